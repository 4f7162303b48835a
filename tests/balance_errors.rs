//! What `balance` refuses, in which words, and the first thing beside it that it accepts.

use dualpipe::balance::{deepseek, lower_bounds, Options, Problem};
use dualpipe::ErrorKind;

fn sizes(numbers: [usize; 6]) -> Problem {
    let [num_layers, num_experts, num_slots, num_groups, num_nodes, num_gpus] = numbers;
    Problem { num_layers, num_experts, num_slots, num_groups, num_nodes, num_gpus }
}

#[test]
fn sizes_are_refused_with_the_nearest_that_would_do() {
    const MEBI: usize = 1 << 20;
    for (numbers, want) in [
        // layers, experts, slots, groups, nodes, GPUs
        ([0, 8, 8, 1, 1, 2], "num_layers is 0, must be 1 to 4096"),
        ([1, 8, 8, 1, 1, 2], ""),
        ([4096, 8, 8, 1, 1, 2], ""),
        ([4097, 8, 8, 1, 1, 2], "num_layers is 4097, must be 1 to 4096"),
        ([1, 0, 8, 1, 1, 2], "num_experts is 0, must be 1 to 65536"),
        ([1, 1, 2, 1, 1, 2], ""),
        ([1, 65536, 65536, 1, 1, 2], ""),
        ([1, 65537, 65538, 1, 1, 2], "num_experts is 65537, must be 1 to 65536"),
        ([1, 8, 0, 1, 1, 2], "num_slots is 0, must be 1 to 1048576"),
        ([1, 8, MEBI, 1, 1, 2], ""),
        ([1, 8, MEBI + 2, 1, 1, 2], "num_slots is 1048578, must be 1 to 1048576"),
        ([1, 8, 8, 0, 1, 2], "num_groups is 0, must be 1 to 65536"),
        ([1, 8, 8, 65537, 2, 2], "num_groups is 65537, must be 1 to 65536"),
        ([1, 8, 8, 1, 0, 2], "num_nodes is 0, must be 1 to 1048576"),
        ([1, 8, 8, 1, MEBI, 2], ""),
        ([1, 8, 8, 1, MEBI + 1, 2], "num_nodes is 1048577, must be 1 to 1048576"),
        ([1, 8, 8, 1, 1, 0], "num_gpus is 0, must be 1 to 1048576"),
        ([1, 8, 8, 1, 1, usize::MAX], "num_gpus is 18446744073709551615, must be 1 to 1048576"),
        (
            [1, 8, 7, 1, 1, 7],
            "num_slots is 7, must be at least num_experts = 8 and a multiple of num_gpus = 7: 14",
        ),
        ([1, 8, 14, 1, 1, 7], ""),
        ([1, 256, 290, 8, 4, 32], "num_slots is 290, must be a multiple of num_gpus = 32: 288 or 320"),
        ([1, 256, 257, 8, 4, 32], "num_slots is 257, must be a multiple of num_gpus = 32: 256 or 288"),
        ([1, 257, 258, 1, 1, 32], "num_slots is 258, must be a multiple of num_gpus = 32: 288"),
        ([1, 257, 288, 1, 1, 32], ""),
        ([1, 256, 288, 8, 4, 30], "num_gpus is 30, must be a multiple of num_nodes = 4: 24 or 32"),
        ([1, 256, 288, 8, 4, 24], ""),
        ([1, 256, 288, 8, 4, 32], ""),
        // Three nodes do not divide 8 groups, so that neither matters.
        ([1, 256, 290, 8, 3, 29], ""),
        ([1, 256, 288, 12, 4, 32], "num_groups is 12, must divide num_experts = 256: 8 or 16"),
        ([1, 256, 288, 16, 4, 32], ""),
        // The nodes do not divide 11 groups, so that these need not divide the experts.
        ([1, 256, 288, 11, 4, 32], ""),
        ([1, 7, 8, 2, 2, 2], "num_groups is 2, must divide num_experts = 7"),
        ([65, 8, MEBI, 1, 1, 2], "num_layers is 65, must be at most 64 for 1048576 slots"),
        ([64, 8, MEBI, 1, 1, 2], ""),
    ] {
        let error = sizes(numbers).check().map_err(|error| error.to_string());
        let want = match want {
            "" => Ok(()),
            text => Err(format!("balance: {text}")),
        };
        assert_eq!(error, want, "{numbers:?}");
    }
}

#[test]
fn loads_are_refused_by_layer_and_expert() {
    let range = "must be finite and not negative";
    for (load, want) in [
        (0.0, None),
        (-0.0, None),
        (f32::from_bits(1), None),
        (-f32::from_bits(1), Some(format!("loads[layer 3, expert 17] is -1e-45, {range}"))),
        (f32::NAN, Some(format!("loads[layer 3, expert 17] is NaN, {range}"))),
        (f32::INFINITY, Some(format!("loads[layer 3, expert 17] is inf, {range}"))),
        (f32::NEG_INFINITY, Some(format!("loads[layer 3, expert 17] is -inf, {range}"))),
        (9.9e37, None),
        (1.1e38, Some("the sum of layer 3's loads is 1.100e38, must be at most 1e38".into())),
    ] {
        let problem = sizes([5, 32, 32, 1, 1, 4]);
        let mut loads = vec![1.0; 5 * 32];
        loads[3 * 32 + 17] = load;
        let want = want.map_or(Ok(()), |text| Err(format!("balance: {text}")));
        let plan = deepseek(&problem, &loads, Options::default());
        assert_eq!(plan.map(drop).map_err(|error| error.to_string()), want);
        let bounds = lower_bounds(&problem, &loads);
        assert_eq!(bounds.map(drop).map_err(|error| error.to_string()), want);
    }
}

#[test]
fn loads_must_be_as_many_as_there_are_experts() {
    let problem = sizes([5, 32, 32, 1, 1, 4]);
    for (num_loads, ok) in [(0, false), (159, false), (160, true), (161, false)] {
        let plan = deepseek(&problem, &vec![1.0; num_loads], Options::default());
        assert_eq!(plan.is_ok(), ok, "{num_loads}");
        if let Err(error) = plan {
            let want = "must be num_layers * num_experts = 5 * 32 = 160";
            let want = format!("balance: the number of loads is {num_loads}, {want}");
            assert_eq!(error.to_string(), want);
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        }
    }
}

#[test]
fn threads_are_bounded() {
    let problem = sizes([1, 2, 2, 1, 1, 1]);
    for (num_threads, want) in [(4096, None), (4097, Some("balance: num_threads is 4097, must be 0 to 4096"))]
    {
        let options = Options { num_threads, progress: None };
        let error = deepseek(&problem, &[1.0, 2.0], options).err();
        assert_eq!(error.map(|error| error.to_string()).as_deref(), want);
    }
}

#[test]
fn no_table_of_slots_is_made_that_is_mostly_padding() {
    // Expert 0 gets all of the redundant slots.
    for (num_slots, ok) in [(65520, true), (65521, false)] {
        let problem = sizes([1, 4097, num_slots + 4096, 1, 1, 1]);
        let mut loads = vec![0.0; 4097];
        loads[0] = 1.0;
        let plan = deepseek(&problem, &loads, Options::default()).unwrap();
        assert_eq!(plan.replica_counts()[0] as usize, num_slots);
        assert_eq!(plan.expert_to_slots().is_ok(), ok);
    }
}
