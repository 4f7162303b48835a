//! The monitor against a list of everything that was recorded; merging in any order; its state as bytes.

use dualpipe::balance::monitor::{LoadMonitor, MonitorOptions, Reported};
use dualpipe::balance::EMPTY;
use proptest::prelude::*;

fn options(num_layers: usize, num_experts: usize, window: usize, num_ranks: usize) -> MonitorOptions {
    MonitorOptions { num_layers, num_experts, window, num_ranks, half_life: 2.5 }
}

fn monitor(num_layers: usize, num_experts: usize, window: usize, num_ranks: usize) -> LoadMonitor {
    LoadMonitor::new(options(num_layers, num_experts, window, num_ranks)).unwrap()
}

const LAYERS: usize = 2;
const EXPERTS: usize = 3;
const WINDOW: usize = 6;
const RANKS: usize = 200;

/// Makes the last 8 bytes of a state the hash of what is before.
fn seal(state: &mut [u8]) {
    let (body, hash) = state.split_at_mut(state.len() - 8);
    let fnv1a = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    hash.copy_from_slice(&body.iter().fold(0xcbf2_9ce4_8422_2325, fnv1a).to_le_bytes());
}

/// A report of one layer or of all.
#[derive(Clone, Debug)]
struct Report {
    step: u64,
    layer: Option<usize>,
    counts: [u32; LAYERS * EXPERTS],
}

fn report() -> impl Strategy<Value = Report> {
    let counts = prop::array::uniform6(prop_oneof![0u32..200, Just(u32::MAX), Just(0)]);
    (0u64..20, prop::option::of(0..LAYERS), counts).prop_map(|(step, layer, counts)| Report {
        step,
        layer,
        counts,
    })
}

fn record(monitor: &mut LoadMonitor, report: &Report) -> bool {
    match report.layer {
        None => monitor.record_logical(report.step, &report.counts).unwrap(),
        Some(layer) => monitor.record_layer(report.step, layer, &report.counts[..EXPERTS]).unwrap(),
    }
}

/// `[step][layer]`: how many reports and their sum, of the steps in the window.
fn by_hand(reports: &[Report]) -> Vec<(u64, [u32; LAYERS], [u64; LAYERS * EXPERTS])> {
    let newest = reports.iter().map(|report| report.step).max().unwrap_or(0);
    let mut steps = Vec::new();
    for step in (0..=newest).filter(|step| step + WINDOW as u64 > newest) {
        let (mut num_reports, mut sums) = ([0; LAYERS], [0; LAYERS * EXPERTS]);
        for report in reports.iter().filter(|report| report.step == step) {
            for layer in 0..LAYERS {
                let counts = match report.layer {
                    None => &report.counts[layer * EXPERTS..][..EXPERTS],
                    Some(of) if of == layer => &report.counts[..EXPERTS],
                    Some(_) => continue,
                };
                num_reports[layer] += 1;
                for expert in 0..EXPERTS {
                    sums[layer * EXPERTS + expert] += u64::from(counts[expert]);
                }
            }
        }
        if num_reports != [0; LAYERS] {
            steps.push((step, num_reports, sums));
        }
    }
    steps
}

proptest! {
    #[test]
    fn a_monitor_is_what_was_recorded_in_any_order_on_any_ranks(
        reports in prop::collection::vec((report(), 0usize..4), 0..40),
        seed: u64,
    ) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut whole = monitor(LAYERS, EXPERTS, WINDOW, RANKS);
        for (report, _) in &reports {
            record(&mut whole, report);
        }
        // Each rank records its own in another order, and ranks are merged in a random order and nesting.
        let mut shuffled = reports.clone();
        rng.shuffle(&mut shuffled);
        let mut ranks = vec![monitor(LAYERS, EXPERTS, WINDOW, RANKS); 4];
        for (report, rank) in &shuffled {
            record(&mut ranks[*rank], report);
        }
        while ranks.len() > 1 {
            let other = ranks.swap_remove(rng.usize(..ranks.len()));
            let into = rng.usize(..ranks.len());
            ranks[into].merge(&other).unwrap();
        }
        prop_assert_eq!(&ranks[0], &whole);
        prop_assert_eq!(ranks[0].to_bytes(), whole.to_bytes());
        prop_assert_eq!(&LoadMonitor::from_bytes(&whole.to_bytes()).unwrap(), &whole);

        let reports: Vec<Report> = reports.into_iter().map(|(report, _)| report).collect();
        let steps = by_hand(&reports);
        let numbers: Vec<u64> = steps.iter().map(|(step, ..)| *step).collect();
        prop_assert_eq!(whole.step_numbers(Reported::ByAny), numbers.clone());
        prop_assert_eq!(whole.incomplete_steps(), numbers);
        prop_assert_eq!(whole.newest_step(), reports.iter().map(|report| report.step).max());
        for (step, num_reports, _) in &steps {
            prop_assert_eq!(whole.reports(*step), Some(&num_reports[..]));
        }
        let mut sums = [0; LAYERS * EXPERTS];
        let (mut weighted, mut weights) = ([0.0; LAYERS * EXPERTS], 0.0);
        for (step, _, counts) in &steps {
            let weight = (-((steps[steps.len() - 1].0 - step) as f64) / 2.5).exp2();
            weights += weight;
            for i in 0..sums.len() {
                sums[i] += counts[i];
                weighted[i] += weight * counts[i] as f64;
            }
        }
        prop_assert_eq!(whole.window_counts(Reported::ByAny), sums);
        prop_assert_eq!(whole.window_sum(Reported::ByAny), sums.map(|sum| sum as f32));
        let all: Vec<f32> = steps.iter().flat_map(|(_, _, counts)| counts.map(|count| count as f32)).collect();
        prop_assert_eq!(whole.steps(Reported::ByAny), all);
        for (average, weighted) in whole.average(Reported::ByAny).into_iter().zip(weighted) {
            let want = if weights > 0.0 { weighted / weights } else { 0.0 };
            prop_assert!((f64::from(average) - want).abs() <= 1e-7 * want, "{average} {want}");
        }
    }

    #[test]
    fn a_state_is_read_as_it_was_written_or_not_at_all(
        reports in prop::collection::vec(report(), 1..8),
        counters in prop::collection::vec(any::<[i32; LAYERS]>(), 0..3),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut monitor = monitor(LAYERS, EXPERTS, WINDOW, RANKS);
        for report in &reports {
            record(&mut monitor, report);
        }
        monitor.set_counters(&counters.concat()).unwrap();
        prop_assert_eq!(&LoadMonitor::from_bytes(&monitor.to_bytes()).unwrap(), &monitor);
        // Damage that the hash does not show: what is accepted is then a state in its one form.
        let mut bytes = monitor.to_bytes();
        let body = bytes.len() - 8;
        for (at, byte) in &changes {
            bytes[at.index(body)] = *byte;
        }
        seal(&mut bytes);
        match LoadMonitor::from_bytes(&bytes) {
            Ok(read) => prop_assert_eq!(read.to_bytes(), bytes),
            Err(error) => prop_assert!(error.to_string().starts_with("monitor: "), "{}", error),
        }
    }
}

#[test]
fn what_is_older_than_the_window_is_left_out() {
    let mut monitor = monitor(1, 1, 3, 1);
    for (step, is_kept) in
        [(10, true), (8, true), (7, false), (12, true), (9, false), (11, true), (u64::MAX >> 1, true)]
    {
        assert_eq!(monitor.record_logical(step, &[1]).unwrap(), is_kept, "{step}");
    }
    assert_eq!(monitor.step_numbers(Reported::ByAny), [u64::MAX >> 1]);
    let error = monitor.record_logical(1 << 63, &[1]).unwrap_err().to_string();
    assert_eq!(error, "monitor: step is 9223372036854775808, must be 0 to 9223372036854775807");
}

#[test]
fn the_average_halves_with_each_half_life() {
    let mut monitor = LoadMonitor::new(MonitorOptions { half_life: 2.0, ..options(1, 1, 9, 1) }).unwrap();
    assert_eq!(monitor.average(Reported::ByAny), [0.0]);
    for (step, count) in [(10, 16), (12, 8), (14, 1)] {
        monitor.record_logical(step, &[count]).unwrap();
    }
    assert_eq!(monitor.average(Reported::ByAny), [(16.0 * 0.25 + 8.0 * 0.5 + 1.0) / 1.75]);
    let mut plain =
        LoadMonitor::new(MonitorOptions { half_life: f64::INFINITY, ..options(1, 1, 9, 1) }).unwrap();
    let mut last = LoadMonitor::new(MonitorOptions { half_life: 1e-300, ..options(1, 1, 9, 1) }).unwrap();
    for (step, count) in [(10, 16), (12, 8), (14, 6)] {
        plain.record_logical(step, &[count]).unwrap();
        last.record_logical(step, &[count]).unwrap();
    }
    assert_eq!((plain.average(Reported::ByAny), last.average(Reported::ByAny)), (vec![10.0], vec![6.0]));
}

#[test]
fn steps_that_ranks_have_not_all_reported_are_told_apart() {
    let mut monitor = monitor(2, 1, 10, 2);
    monitor.record_logical(1, &[1, 2]).unwrap();
    monitor.record_logical(1, &[10, 20]).unwrap();
    monitor.record_logical(2, &[5, 5]).unwrap();
    monitor.record_layer(2, 1, &[6]).unwrap();
    monitor.record_layer(4, 0, &[7]).unwrap();
    assert_eq!(monitor.step_numbers(Reported::ByAllRanks), [1]);
    assert_eq!(monitor.incomplete_steps(), [2, 4]);
    assert_eq!(monitor.reports(2), Some(&[1, 2][..]));
    assert_eq!(monitor.reports(3), None);
    assert_eq!(monitor.window_sum(Reported::ByAllRanks), [11.0, 22.0]);
    assert_eq!(monitor.window_sum(Reported::ByAny), [23.0, 33.0]);
    assert_eq!(monitor.steps(Reported::ByAny), [11.0, 22.0, 5.0, 11.0, 7.0, 0.0]);
    assert_eq!(monitor.average(Reported::ByAllRanks), [11.0, 22.0], "the newest of these steps weighs 1");

    // One report too many changes nothing, recorded or merged.
    let before = monitor.clone();
    let error = monitor.record_logical(2, &[1, 1]).unwrap_err().to_string();
    assert_eq!(
        error,
        "monitor: the number of reports of step 2, layer 1 is 3, must be at most num_ranks = 2"
    );
    let error = monitor.merge(&before).unwrap_err().to_string();
    assert_eq!(
        error,
        "monitor: the number of reports of step 1, layer 0 is 4, must be at most num_ranks = 2"
    );
    assert_eq!(monitor, before);
}

#[test]
fn slots_count_for_their_experts() {
    let mut whole = monitor(2, 3, 10, 1);
    let slot_to_expert = [0, 1, 2, 0, 2, EMPTY, 1, 1];
    whole.record_physical(5, &slot_to_expert, &[1, 2, 3, 4, 5, 0, 7, 8]).unwrap();
    assert_eq!(whole.window_counts(Reported::ByAllRanks), [5, 2, 3, 0, 15, 5]);

    // The same from two ranks of two slots each.
    let mut ranks = [monitor(2, 3, 10, 2), monitor(2, 3, 10, 2)];
    ranks[0].record_physical(5, &[0, 1, 2, EMPTY], &[1, 2, 5, 0]).unwrap();
    ranks[1].record_physical(5, &[2, 0, 1, 1], &[3, 4, 7, 8]).unwrap();
    let [mut one, other] = ranks;
    one.merge(&other).unwrap();
    assert_eq!(one.window_counts(Reported::ByAllRanks), whole.window_counts(Reported::ByAllRanks));

    // A rank without slots reports too.
    assert!(whole.record_physical(6, &[], &[]).unwrap());
    assert_eq!(whole.step_numbers(Reported::ByAllRanks), [5, 6]);
}

#[test]
fn counters_that_grow_count_by_what_they_grew() {
    let mut monitor = monitor(1, 2, 10, 1);
    let record = |monitor: &mut LoadMonitor, step, slots: [u32; 3], values: [i32; 3]| {
        monitor.record_cumulative(step, &slots, &values).map_err(|error| error.to_string())
    };
    let empty = monitor.clone();
    assert!(record(&mut monitor, 0, [0, 1, 2], [10, 20, 30]).is_err());
    assert_eq!(monitor, empty);
    record(&mut monitor, 0, [0, 1, 0], [10, 20, 30]).unwrap();
    // A failure leaves the counters where they were: step 0 has its report.
    assert!(record(&mut monitor, 0, [0, 1, 0], [11, 21, 31]).is_err());
    assert_eq!(monitor.counters(), [10, 20, 30]);
    // The experts have changed places.
    record(&mut monitor, 1, [1, 0, 1], [11, 22, 34]).unwrap();
    assert_eq!(monitor.steps(Reported::ByAllRanks), [40.0, 20.0, 2.0, 5.0]);
    // What is older than the window was counted nevertheless.
    record(&mut monitor, 20, [0, 1, 0], [12, 23, 35]).unwrap();
    assert!(!record(&mut monitor, 2, [0, 1, 0], [99, 99, 99]).unwrap());
    assert_eq!(monitor.counters(), [99; 3]);
    let error = monitor.record_cumulative(21, &[0; 4], &[100; 4]).unwrap_err().to_string();
    assert_eq!(error, "monitor: the number of counters is 4, must be 3");
}

#[test]
fn a_restart_counts_nothing_twice() {
    let (slots, mut before) = ([0, 1, 0], monitor(1, 2, 10, 1));
    before.record_cumulative(0, &slots, &[10, 20, 30]).unwrap();
    let state = before.to_bytes();
    let after = || LoadMonitor::from_bytes(&state).unwrap();
    assert_eq!(after(), before);

    // The counters have outlived it.
    let mut same = after();
    same.record_cumulative(1, &slots, &[11, 22, 33]).unwrap();
    assert_eq!(same.steps(Reported::ByAny)[2..], [4.0, 2.0]);
    // They have begun anew, and one shows less than before: that is noticed.
    let mut fallen = after();
    fallen.record_cumulative(1, &slots, &[50, 60, 7]).unwrap();
    assert_eq!(fallen.steps(Reported::ByAny)[2..], [57.0, 60.0]);
    // They have begun anew and outgrown all that they were: that must be said.
    for (is_said, counts) in [(false, [80.0, 40.0]), (true, [120.0, 60.0])] {
        let mut anew = after();
        if is_said {
            anew.set_counters(&[]).unwrap();
        }
        anew.record_cumulative(1, &slots, &[50, 60, 70]).unwrap();
        assert_eq!(anew.steps(Reported::ByAny)[2..], counts);
    }
    // There are other counters now, which show something already.
    let mut other = after();
    other.set_counters(&[5, 5]).unwrap();
    other.record_cumulative(1, &[0, 1], &[6, 8]).unwrap();
    assert_eq!(other.steps(Reported::ByAny)[2..], [1.0, 3.0]);
    let error = monitor(2, 1, 1, 1).set_counters(&[1, 2, 3]).unwrap_err().to_string();
    assert_eq!(error, "monitor: the number of counters is 3, must be a multiple of num_layers = 2");

    // Who merges keeps the counters that it reads itself.
    let mut merged = monitor(1, 2, 10, 1);
    merged.set_counters(&[1, 2, 3]).unwrap();
    merged.merge(&before).unwrap();
    assert_eq!((merged.counters(), merged.window_counts(Reported::ByAny)), (&[1, 2, 3][..], vec![40, 20]));
}

#[test]
fn what_cannot_be_recorded_is_refused() {
    let mut monitor = monitor(2, 3, 10, 1);
    let empty = monitor.clone();
    let mut errors = vec![
        monitor.record_logical(0, &[1; 5]).map(|_| ()),
        monitor.record_layer(0, 2, &[1; 3]).map(|_| ()),
        monitor.record_layer(0, 1, &[1; 6]).map(|_| ()),
    ];
    for (slots, counts) in [
        (&[0, 1][..], &[1][..]),
        (&[0, 1, 2], &[1, 1, 1]),
        (&[0, 1, 2, 3], &[1, 1, 1, 1]),
        (&[0, 1, 2, 2], &[1, 1, -1, 1]),
        (&[0, 1, 2, EMPTY], &[1, 1, 1, 1]),
        (&[0, 0, 0, 1, 1, 1], &[i32::MAX, i32::MAX, 2, 0, 0, 0]),
    ] {
        errors.push(monitor.record_physical(0, slots, counts).map(|_| ()));
    }
    errors.push(monitor.merge(&self::monitor(2, 3, 11, 1)));
    let errors: Vec<String> = errors.into_iter().map(|error| error.unwrap_err().to_string()).collect();
    let mine = format!("{:?}", empty.options());
    let other = mine.replace("window: 10", "window: 11");
    assert_eq!(
        errors,
        [
            "monitor: the number of counts is 5, must be 6",
            "monitor: layer is 2, must be 0 to 1",
            "monitor: the number of counts is 6, must be 3",
            "monitor: the number of counts is 1, must be 2",
            "monitor: the number of counts is 3, must be a multiple of num_layers = 2",
            "monitor: slot_to_expert[layer 1, slot 1] is 3, must be 0 to 2",
            "monitor: counts[layer 1, slot 0] is -1, must not be negative",
            "monitor: counts[layer 1, slot 1] is 1, must be 0 where the slot is empty",
            "monitor: the tokens of expert 0 up to [layer 0, slot 2] is 4294967296, must be at most 4294967295",
            &format!("monitor: the other monitor's options is {other}, must be those of this monitor, {mine}"),
        ]
    );
    assert_eq!(monitor, empty);
}

#[test]
fn options_out_of_range_are_refused_before_anything_is_allocated() {
    let base = MonitorOptions::new(58, 256);
    assert_eq!((base.window, base.num_ranks, base.half_life), (1000, 1, 250.0));
    assert_eq!(MonitorOptions::new(4096, 65536).window, 1);
    LoadMonitor::new(MonitorOptions::new(4096, 65536)).unwrap();
    let error = |options| LoadMonitor::new(options).unwrap_err().to_string();
    for (options, want) in [
        (MonitorOptions { num_layers: 0, ..base }, "num_layers is 0, must be 1 to 4096"),
        (
            MonitorOptions { num_experts: usize::MAX, ..base },
            "num_experts is 18446744073709551615, must be 1 to 65536",
        ),
        (MonitorOptions { num_ranks: 0, ..base }, "num_ranks is 0, must be 1 to 65536"),
        (
            MonitorOptions { window: 0, ..base },
            "window is 0, must be 1 to 18078 for 58 layers of 256 experts",
        ),
        (
            MonitorOptions { window: 18079, ..base },
            "window is 18079, must be 1 to 18078 for 58 layers of 256 experts",
        ),
        (
            MonitorOptions { window: 65537, num_layers: 1, num_experts: 1, ..base },
            "window is 65537, must be 1 to 65536 for 1 layers of 1 experts",
        ),
        (MonitorOptions { half_life: 0.0, ..base }, "half_life is 0, must be above 0"),
        (MonitorOptions { half_life: f64::NAN, ..base }, "half_life is NaN, must be above 0"),
    ] {
        assert_eq!(error(options), format!("monitor: {want}"));
    }
}

#[test]
fn a_damaged_or_foreign_state_is_refused() {
    let mut monitor = monitor(1, 2, 4, 2);
    monitor.record_logical(7, &[1, 300]).unwrap();
    let bytes = monitor.to_bytes();
    assert_eq!(bytes.len(), 8 + 16 + 8 + 4 + (8 + 4 + 1 + 2) + 4 + 8, "compact");
    for at in 0..bytes.len() {
        assert!(LoadMonitor::from_bytes(&bytes[..at]).is_err(), "cut off at {at}");
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            assert!(LoadMonitor::from_bytes(&damaged).is_err(), "bit {bit} of byte {at}");
        }
    }
    let error = |bytes: &[u8]| LoadMonitor::from_bytes(bytes).unwrap_err().to_string();
    let mut newer = bytes.clone();
    newer[7] = 2;
    for (bytes, want) in [
        (&b"{\"json\": 1}"[..], "does not begin with DPLOADS: not a monitor's state"),
        (b"", "does not begin with DPLOADS: not a monitor's state"),
        (b"DPLOADS", "is damaged or cut off: the hash of its 7 bytes differs"),
        (&newer, "has version 2, must be 1"),
        (&bytes[..50], "is damaged or cut off: the hash of its 50 bytes differs"),
        (&[&bytes[..], &[0]].concat(), "is damaged or cut off: the hash of its 64 bytes differs"),
    ] {
        assert_eq!(error(bytes), format!("monitor: the state {want}"));
    }
}

#[test]
fn a_state_that_no_monitor_can_have_is_refused() {
    // Of one layer of two experts, a window of 4 steps, 2 ranks.
    let state = |num_steps: u32, steps: &[(u64, u32, &[u8])]| {
        let mut bytes = b"DPLOADS\x01".to_vec();
        bytes.extend([1u32, 2, 4, 2].iter().flat_map(|size| size.to_le_bytes()));
        bytes.extend(1.5f64.to_le_bytes());
        bytes.extend(num_steps.to_le_bytes());
        for (number, reports, counts) in steps {
            bytes.extend(number.to_le_bytes());
            bytes.extend(reports.to_le_bytes());
            bytes.extend(*counts);
        }
        bytes.extend([0; 4 + 8]); // no counters, the hash
        seal(&mut bytes);
        bytes
    };
    // Without so many of the last bytes before the hash.
    let cut = |mut bytes: Vec<u8>, len: usize| {
        bytes.truncate(bytes.len() - len);
        seal(&mut bytes);
        bytes
    };
    let read = LoadMonitor::from_bytes(&state(2, &[(5, 1, &[1, 0xac, 2]), (8, 2, &[0, 0])])).unwrap();
    assert_eq!(read.steps(Reported::ByAny), [1.0, 300.0, 0.0, 0.0]);
    let most = [0xfe, 0xff, 0xff, 0xff, 0x1f, 0];
    assert_eq!(
        LoadMonitor::from_bytes(&state(1, &[(5, 2, &most)])).unwrap().window_counts(Reported::ByAny)[0],
        (1 << 33) - 2
    );
    for (bytes, want) in [
        (state(2, &[(5, 1, &[1, 1]), (5, 1, &[1, 1])]), "has step 5 after step 5"),
        (state(2, &[(5, 1, &[1, 1]), (4, 1, &[1, 1])]), "has step 4 after step 5"),
        (state(1, &[(1 << 63, 1, &[1, 1])]), "has step 9223372036854775808 after step 0"),
        (state(2, &[(5, 1, &[1, 1]), (9, 1, &[1, 1])]), "has steps 5 and 9, must be within a window of 4"),
        (state(1, &[(5, 0, &[0, 0])]), "has step 5 without a report"),
        (state(1, &[(5, 3, &[0, 0])]), "has 3 reports of step 5, layer 0, of 2 ranks"),
        (
            state(1, &[(5, 1, &most)]),
            "has 8589934590 tokens of step 5, layer 0, expert 0, too many for its reports",
        ),
        (state(1, &[(5, 1, &[0x80, 0, 1])]), "has no count before byte 50"),
        (state(1, &[(5, 1, &[0x80; 10])]), "has no count before byte 57"),
        (cut(state(1, &[(5, 1, &[1, 0x80])]), 4), "ends within a number at byte 50"),
        (cut(state(1, &[(5, 1, &[1])]), 4), "ends within step 5"),
        (cut(state(1, &[(5, 1, &[1, 1])]), 1), "ends within a number at byte 50"),
        (state(2, &[(5, 1, &[1, 1])]), "ends within a number at byte 50"),
        (state(u32::MAX, &[]), "ends within a number at byte 36"),
        (state(0, &[(5, 1, &[1, 1])]), "ends within its counters"),
        (state(0, &[(0, 1, &[1, 1])]), "has 14 bytes more than it needs"),
    ] {
        assert_eq!(
            LoadMonitor::from_bytes(&bytes).unwrap_err().to_string(),
            format!("monitor: the state {want}")
        );
    }
    let mut bytes = state(0, &[]);
    bytes[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    seal(&mut bytes);
    let error = LoadMonitor::from_bytes(&bytes).unwrap_err().to_string();
    assert_eq!(error, "monitor: window is 4294967295, must be 1 to 65536 for 1 layers of 2 experts");
}
