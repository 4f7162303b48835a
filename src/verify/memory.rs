//! Whether each rank keeps to a cap.

use std::collections::BTreeSet;

use super::report::Faults;
use super::{Finding, Kind, Options};
use crate::ids::Rank;
use crate::op::Pass;
use crate::schedule::{Schedule, Work};
use crate::sim::peak_memory_bytes;

/// Adds a [`Kind::ExceedsCap`] for each rank that keeps more than the cap. Each pass is there once and in order.
pub(super) fn check(schedule: &Schedule, options: &Options<'_>, faults: &mut Faults) {
    let peaks = schedule.peak_live();
    let bytes = options.costs.map(|costs| peak_memory_bytes(schedule, costs));
    for (r, peak) in peaks.into_iter().enumerate() {
        let rank = Rank::from_index(r);
        if let Some(cap) = options.cap.activations(rank).filter(|&cap| peak > cap) {
            faults.add(Kind::ExceedsCap, || {
                finding(schedule, rank, cap as u64, &format!("{peak} activations"), 0, |_| 1)
            });
        }
        let bytes = bytes.as_ref().map(|bytes| bytes[r]);
        let (Some(cap), Some(bytes), Some(costs)) = (options.cap.bytes(rank), bytes, options.costs) else {
            continue;
        };
        if bytes > cap {
            let parameters = schedule.placement().copies_on(rank).iter();
            let parameters = parameters.map(|copy| costs.stage(copy.stage).parameter_bytes).sum();
            let activation = |pass: Pass| costs.stage(pass.stage).activation_bytes;
            faults.add(Kind::ExceedsCap, || {
                finding(schedule, rank, cap, &format!("{bytes} bytes"), parameters, activation)
            });
        }
    }
}

/// The first op of `rank` at which what is alive is more than the cap: always the `base`, and the `size` of each pass.
fn finding(
    schedule: &Schedule,
    rank: Rank,
    cap: u64,
    peak: &str,
    base: u64,
    size: impl Fn(Pass) -> u64,
) -> Finding {
    let mut alive: BTreeSet<Pass> = BTreeSet::new();
    let mut sum = base;
    let mut first = format!("rank {rank}: its parameters alone exceed the cap of {cap}");
    let order = if sum > cap { &[] } else { schedule.order(rank) };
    for (position, op) in order.iter().enumerate() {
        if let Some(pass) = op.forward() {
            alive.insert(pass);
            sum += size(pass);
        }
        if sum > cap {
            first = format!("rank {rank}, position {position} ({op}): exceeds the cap of {cap}");
            break;
        }
        let ended = match schedule.work() {
            Work::Training => op.backward_weight(),
            Work::ForwardOnly => op.forward(),
        };
        if let Some(pass) = ended.filter(|pass| alive.remove(pass)) {
            sum -= size(pass);
        }
    }
    let text = format!("{first}; the peak is {peak}");
    Finding::new(Kind::ExceedsCap, vec![rank], alive, text)
}
