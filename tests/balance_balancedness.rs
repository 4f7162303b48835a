//! Balancedness as vLLM logs it: by hand, for a placement and as measured.

use dualpipe::balance::monitor::{Balancedness, LoadMonitor, MonitorOptions, Reported};
use dualpipe::balance::Cluster;

#[test]
fn balancedness_is_the_sum_of_means_over_the_sum_of_maxima() {
    let cluster = Cluster::even(4, 2, 1).unwrap();
    let mut monitor = LoadMonitor::new(MonitorOptions::new(2, 3)).unwrap();
    let placement = [0, 1, 0, 2, 0, 1, 2, 2];
    let none = monitor.balancedness(Reported::ByAllRanks, &cluster, &placement, None).unwrap();
    assert_eq!(none, Balancedness { overall: 0.0, layers: vec![0.0; 2] }, "as vLLM says of no load");
    monitor.record_logical(0, &[4, 6, 2, 0, 1, 3]).unwrap();
    // GPUs have 8 and 4, mean 6; and 1 and 3, mean 2.
    let is = monitor.balancedness(Reported::ByAllRanks, &cluster, &placement, None).unwrap();
    assert_eq!(is, Balancedness { overall: 8.0 / 11.0, layers: vec![6.0 / 8.0, 2.0 / 3.0] });
    // Expert 0 of layer 0 is sent to the second GPU only.
    let shares = [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5];
    let is = monitor.balancedness(Reported::ByAllRanks, &cluster, &placement, Some(&shares)).unwrap();
    assert_eq!(is.layers, [1.0, 2.0 / 3.0]);
    // As measured per slot, with a dead GPU that does not count.
    let cluster = Cluster::new(&[2, 2, 1], &[], &[true, true, false]).unwrap();
    let is = Balancedness::of_slot_counts(&cluster, &[2, 6, 2, 2, 0, 0, 1, 1, 2, 0]).unwrap();
    assert_eq!(is, Balancedness { overall: 8.0 / 11.0, layers: vec![6.0 / 8.0, 2.0 / 3.0] });

    let errors = [
        monitor.balancedness(Reported::ByAny, &cluster, &placement, None),
        Balancedness::of_slot_counts(&cluster, &[0; 4]),
        Balancedness::of_slot_counts(&cluster, &[0, 0, -3, 0, 0]),
        Balancedness::of_gpu_loads(&cluster, &[1.0, f64::NAN, 0.0]),
    ];
    assert_eq!(
        errors.map(|error| error.unwrap_err().to_string()),
        [
            "balancedness: the length of slot_to_expert is 8, must be 10",
            "balancedness: the number of counts is 4, must be a multiple of 5",
            "balancedness: counts[layer 0, slot 2] is -3, must not be negative",
            "balancedness: gpu_loads[layer 0, GPU 1] is NaN, must be 0 to 1e100",
        ]
    );
}
