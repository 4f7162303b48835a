//! The published schedules: against recorded orders, drawn, at their edges, and all of them checked.

mod support;

use dualpipe::ids::Rank;
use dualpipe::schedule::{dualpipe, dualpipe_v, one_f_one_b, Schedule, Work};
use expect_test::expect;
use support::data::{data, optional_data};
use support::{family, order_line};
use Work::{ForwardOnly, Training};

/// Every recorded order of deepseek-ai/DualPipe is ours, op by op.
#[test]
fn dualpipe_and_dualpipe_v_are_deepseeks_orders() {
    let mut compared = compare_with_recorded(&data("dualpipe_orders_small.json"));
    assert_eq!(compared, (2 + 4) + (1 + 2 + 4));
    if let Some(text) = optional_data("dualpipe_orders.json") {
        compared = compare_with_recorded(&text);
        assert_eq!(compared, (2 + 4 + 8 + 16) + (1 + 2 + 4 + 8));
    }
}

fn compare_with_recorded(text: &str) -> usize {
    let cases: serde_json::Value = serde_json::from_str(text).unwrap();
    let mut compared = 0;
    for case in cases.as_array().unwrap() {
        let size = |key: &str| case[key].as_u64().unwrap() as usize;
        let schedule = match case["schedule"].as_str().unwrap() {
            "dualpipe" => dualpipe(size("ranks"), size("chunks"), Training),
            _ => dualpipe_v(size("ranks"), size("chunks"), Training),
        };
        let schedule = schedule.unwrap();
        for (rank, order) in case["orders"].as_array().unwrap().iter().enumerate() {
            let ops = order.as_array().unwrap().iter().filter(|op| op[0] != "COMM");
            let theirs: Vec<String> = ops.map(recorded_token).collect();
            let ours = order_line(&schedule, schedule.order(Rank(rank as u32)));
            assert_eq!(ours, theirs.join(" "), "{} rank {rank} of {case:.60}", schedule.name());
            compared += 1;
        }
    }
    compared
}

fn recorded_token(op: &serde_json::Value) -> String {
    let token = |kind: &str, copy: &serde_json::Value, microbatch: &serde_json::Value| match copy.as_u64() {
        Some(0) => format!("{kind}{microbatch}"),
        _ => format!("{}{microbatch}", kind.to_lowercase()),
    };
    match op[0].as_str().unwrap() {
        "FB" => format!("{}&{}", token("F", &op[1], &op[2]), token("B", &op[3], &op[4])),
        kind => token(kind, &op[1], &op[2]),
    }
}

fn orders(schedule: &Schedule) -> String {
    let lines = schedule.orders().iter().enumerate();
    lines.map(|(rank, order)| format!("{rank}|{}\n", order_line(schedule, order))).collect()
}

/// Capitals: a rank's first parameter copy; small letters: its second.
#[test]
fn small_schedules_by_eye() {
    expect![[r#"
        0|F0 F1 F2 f0 i0 w0 f1 b1 f2&B0 b2 I1 W1 I2 W2
        1|F0 f0 F1 f1 F2 b0 f2&B0 b1 B1 i2 I2 w2 W2
        2|f0 F0 f1 F1 f2 B0 F2&b0 B1 b1 I2 i2 W2 w2
        3|f0 f1 f2 F0 I0 W0 F1 B1 F2&b0 B2 i1 w1 i2 w2
    "#]]
    .assert_eq(&orders(&dualpipe(4, 6, Training).unwrap()));
    expect![[r#"
        0|F0 F1 F2 f0 F3 f1 f2 f3
        1|F0 f0 F1 f1 F2 f2 F3 f3
        2|f0 F0 f1 F1 f2 F2 f3 F3
        3|f0 f1 f2 F0 f3 F1 F2 F3
    "#]]
    .assert_eq(&orders(&dualpipe(4, 8, ForwardOnly).unwrap()));
    expect![[r#"
        0|F0 F1 F2 f0 i0 w0 f1 F3&b1 f2&B0 b2 f3&B1 b3 I2 W2 I3 W3
        1|F0 f0 F1 f1 F2 b0 f2&B0 F3&b1 f3&B1 b2 B2 i3 I3 w3 W3
    "#]]
    .assert_eq(&orders(&dualpipe_v(2, 4, Training).unwrap()));
    expect![[r#"
        0|F0 F1 F2 f0 f1 f2
        1|F0 f0 F1 f1 F2 f2
    "#]]
    .assert_eq(&orders(&dualpipe_v(2, 3, ForwardOnly).unwrap()));
    expect![[r#"
        0|F0 F1 F2 F3 B0 F4 B1 F5 B2 B3 B4 B5
        1|F0 F1 F2 B0 F3 B1 F4 B2 F5 B3 B4 B5
        2|F0 F1 B0 F2 B1 F3 B2 F4 B3 F5 B4 B5
        3|F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 F5 B5
    "#]]
    .assert_eq(&orders(&one_f_one_b(4, 6, Training).unwrap()));
    expect![[r#"
        0|F0 F1
        1|F0 F1
        2|F0 F1
    "#]]
    .assert_eq(&orders(&one_f_one_b(3, 2, ForwardOnly).unwrap()));
}

/// One case a line: the last refused and the first accepted of each limit.
#[test]
fn a_schedule_refuses_what_it_cannot_fill() {
    let wrong = Err;
    type Make = fn(usize, usize, Work) -> dualpipe::error::Result<Schedule>;
    type Case = (Make, usize, usize, Work, Result<(), &'static str>);
    let cases: &[Case] = &[
        (dualpipe, 0, 8, Training, wrong("dualpipe: num_ranks is 0, must be 2 to 4096")),
        (dualpipe, 1, 8, Training, wrong("dualpipe: num_ranks is 1, must be 2 to 4096")),
        (dualpipe, 3, 8, Training, wrong("dualpipe: num_ranks is 3, must be even and at least 2")),
        (dualpipe, 4098, 9000, Training, wrong("dualpipe: num_ranks is 4098, must be 2 to 4096")),
        (
            dualpipe,
            2,
            0,
            Training,
            wrong("dualpipe: num_microbatches is 0, must be even and at least 2 for 2 ranks"),
        ),
        (dualpipe, 2, 2, Training, Ok(())),
        (
            dualpipe,
            4,
            4,
            Training,
            wrong("dualpipe: num_microbatches is 4, must be even and at least 6 for 4 ranks"),
        ),
        (dualpipe, 4, 6, Training, Ok(())),
        (
            dualpipe,
            4,
            7,
            Training,
            wrong("dualpipe: num_microbatches is 7, must be even and at least 6 for 4 ranks"),
        ),
        (
            dualpipe,
            8,
            12,
            Training,
            wrong("dualpipe: num_microbatches is 12, must be even and at least 14 for 8 ranks"),
        ),
        (dualpipe, 8, 14, Training, Ok(())),
        (
            dualpipe,
            8,
            1,
            ForwardOnly,
            wrong("dualpipe: num_microbatches is 1, must be even and at least 2 for 8 ranks"),
        ),
        (dualpipe, 8, 2, ForwardOnly, Ok(())),
        (
            dualpipe,
            2,
            1 << 21,
            Training,
            wrong("dualpipe: num_microbatches is 2097152, must be 1 to 1048576"),
        ),
        (
            dualpipe,
            16,
            1 << 20,
            Training,
            wrong("dualpipe: num_microbatches is 1048576, must be at most 262144 for 16 stages"),
        ),
        (dualpipe_v, 0, 8, Training, wrong("dualpipe_v: num_ranks is 0, must be 1 to 4096")),
        (
            dualpipe_v,
            1,
            0,
            Training,
            wrong("dualpipe_v: num_microbatches is 0, must be at least 1 for 1 ranks"),
        ),
        (dualpipe_v, 1, 1, Training, Ok(())),
        (
            dualpipe_v,
            3,
            4,
            Training,
            wrong("dualpipe_v: num_microbatches is 4, must be at least 5 for 3 ranks"),
        ),
        (dualpipe_v, 3, 5, Training, Ok(())),
        (dualpipe_v, 3, 1, ForwardOnly, Ok(())),
        (one_f_one_b, 0, 1, Training, wrong("1f1b: num_ranks is 0, must be 1 to 4096")),
        (one_f_one_b, 3, 0, Training, wrong("1f1b: num_microbatches is 0, must be 1 to 1048576")),
        (
            one_f_one_b,
            3,
            usize::MAX,
            Training,
            wrong("1f1b: num_microbatches is 18446744073709551615, must be 1 to 1048576"),
        ),
        (
            one_f_one_b,
            usize::MAX,
            1,
            Training,
            wrong("1f1b: num_ranks is 18446744073709551615, must be 1 to 4096"),
        ),
        (one_f_one_b, 1, 1, Training, Ok(())),
        (one_f_one_b, 5, 1, ForwardOnly, Ok(())),
    ];
    for (make, num_ranks, num_microbatches, work, want) in cases {
        let got = make(*num_ranks, *num_microbatches, *work).map(|_| ()).map_err(|e| e.to_string());
        assert_eq!(got, want.map_err(String::from), "{num_ranks} ranks, {num_microbatches} micro-batches");
    }
}

/// Sizes up to 16 ranks: some faults of matching never show below 6.
#[test]
fn every_schedule_that_is_admitted_can_run() {
    let mut checked = 0;
    for num_ranks in 1..=16 {
        for num_microbatches in (1..=64).chain([100, 127, 128]) {
            for schedule in family(num_ranks, num_microbatches) {
                if let Err(why) = schedule.check() {
                    panic!(
                        "{num_ranks} ranks, {num_microbatches} micro-batches, {:?}: {why}",
                        schedule.work()
                    );
                }
                checked += 1;
            }
        }
    }
    assert!(checked > 4_000, "only {checked} schedules");
}

#[test]
fn peak_live_is_what_the_papers_say() {
    for (num_ranks, num_microbatches) in [(2, 4), (4, 8), (8, 20), (16, 48)] {
        let report = dualpipe(num_ranks, num_microbatches, Training).unwrap().check().unwrap();
        assert_eq!(report.peak_live, vec![num_ranks + 1; num_ranks], "P + 1 on every rank");
        let report = dualpipe_v(num_ranks / 2, num_microbatches, Training).unwrap().check().unwrap();
        assert_eq!(report.peak_live, vec![num_ranks + 1; num_ranks / 2], "2P + 1 half stages");
        let report = one_f_one_b(num_ranks, num_microbatches, Training).unwrap().check().unwrap();
        let want: Vec<usize> = (0..num_ranks).map(|rank| (num_ranks - rank).min(num_microbatches)).collect();
        assert_eq!(report.peak_live, want, "P - r");
        let report = dualpipe(num_ranks, num_microbatches, ForwardOnly).unwrap().check().unwrap();
        assert_eq!(report.peak_live, vec![1; num_ranks]);
    }
}
