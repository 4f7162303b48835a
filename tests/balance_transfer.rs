//! Transfer plans: right by replay, as cheap as can be, with the fewest buffers; and a replay that finds every fault.

use dualpipe::balance::transfer::{
    check_transfers, transfers, Link, LinkCounts, Part, TransferOptions, TransferPlan,
};
use dualpipe::balance::{Cluster, EMPTY};
use proptest::prelude::*;

/// Two GPUs of two slots on a node, and two nodes.
fn four_gpus() -> Cluster {
    Cluster::even(8, 4, 2).unwrap()
}

fn plan(
    cluster: &Cluster,
    num_experts: usize,
    from: &[u32],
    to: &[u32],
    options: &TransferOptions,
) -> TransferPlan {
    let plan = transfers(cluster, num_experts, from, to, options).unwrap();
    check_transfers(&plan, cluster, num_experts, from, to, options).unwrap();
    plan
}

/// (round, from, to) of each copy.
fn copies(plan: &TransferPlan) -> Vec<(u32, u32, u32)> {
    plan.copies.iter().map(|copy| (copy.round, copy.from, copy.to)).collect()
}

#[test]
fn small_transfers_by_hand() {
    let cluster = Cluster::even(4, 2, 1).unwrap();
    let options = TransferOptions::default();
    for (from, to, want, buffers) in [
        // Nothing to do.
        ([0, 1, 2, 3], [0, 1, 2, 3], vec![], 0),
        // A free slot is filled.
        ([0, 1, EMPTY, 3], [0, 1, 0, 3], vec![(0, 0, 2)], 0),
        // A slot that does not matter keeps what it has, and is a source.
        ([0, 1, 2, 3], [0, 2, EMPTY, 3], vec![(0, 2, 1)], 0),
        // Three in a circle, one by way of a buffer.
        ([0, 1, 2, 3], [2, 0, 1, 3], vec![(0, 2, 4), (1, 1, 2), (2, 0, 1), (3, 4, 0)], 1),
        // A chain: 0 is not needed any more.
        ([0, 1, 2, 3], [2, 1, 3, 1], vec![(0, 2, 0), (1, 3, 2), (2, 1, 3)], 0),
        // An exchange between GPUs, by way of a buffer: 4 is the first.
        ([0, 1, 2, 3], [2, 1, 0, 3], vec![(0, 2, 4), (1, 0, 2), (2, 4, 0)], 1),
        // Within a GPU too.
        ([0, 1, 2, 3], [1, 0, 2, 3], vec![(0, 1, 4), (1, 0, 1), (2, 4, 0)], 1),
        // Twice on one GPU: once over the link.
        ([0, 1, 2, 3], [0, 1, 0, 0], vec![(0, 0, 2), (1, 2, 3)], 0),
    ] {
        let plan = plan(&cluster, 4, &from, &to, &options);
        assert_eq!(copies(&plan), want, "{from:?} to {to:?}");
        assert_eq!(plan.staging.iter().sum::<u32>(), buffers, "{from:?} to {to:?}");
    }
}

#[test]
fn what_goes_over_a_link_goes_over_it_once() {
    // Expert 0 is wanted on both GPUs of the other node.
    let (from, to) = ([0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 0, 5, 0, 7]);
    for (sends_per_gpu, least_rounds) in [(1, 2), (2, 1)] {
        let options = TransferOptions { sends_per_gpu, ..Default::default() };
        let plan = plan(&four_gpus(), 8, &from, &to, &options);
        assert_eq!(plan.counts(), LinkCounts { same_gpu: 0, same_node: 1, other_node: 1 });
        assert_eq!(copies(&plan), [(0, 0, 4), (1, 4, 6)]);
        assert_eq!((plan.layers[0].num_rounds, plan.layers[0].least_rounds), (2, least_rounds));
    }
}

#[test]
fn the_nearest_source_is_taken() {
    // Expert 0 on GPUs 0, 1 and 2; wanted on GPU 3, of GPU 2's node.
    let plan =
        plan(&four_gpus(), 8, &[0, 1, 0, 3, 0, 5, 6, 7], &[0, 1, 0, 3, 0, 5, 0, 7], &Default::default());
    assert_eq!((plan.copies[0].from, plan.copies[0].link), (4, Link::SameNode));
}

#[test]
fn the_last_source_on_a_gpu_waits_for_who_needs_it() {
    // Slot 0 could be overwritten at once, as GPU 1 has expert 0 too; but slot 1 will want it.
    let cluster = Cluster::even(6, 3, 1).unwrap();
    let plan = plan(&cluster, 4, &[0, 1, 0, 2, 3, EMPTY], &[2, 0, 0, 2, 3, 1], &Default::default());
    assert_eq!(copies(&plan), [(0, 1, 5), (1, 0, 1), (2, 3, 0)]);
}

#[test]
fn sources_take_turns() {
    // 16 copies of expert 0, on 4 GPUs of 8: with doubling 2 rounds of 4 and 8, and 4 in the third.
    let cluster = Cluster::even(24, 24, 1).unwrap();
    let from: Vec<u32> = (0..24).map(|slot| if slot < 4 { 0 } else { 1 }).collect();
    let to: Vec<u32> = (0..24).map(|slot| if slot < 20 { 0 } else { 1 }).collect();
    let plan = plan(&cluster, 2, &from, &to, &Default::default());
    assert_eq!((plan.layers[0].num_rounds, plan.layers[0].least_rounds), (3, 3));
}

#[test]
fn a_dead_gpu_neither_sends_nor_receives_and_what_only_it_had_is_lost() {
    let cluster = Cluster::new(&[2, 2, 2], &[0, 0, 1], &[true, false, true]).unwrap();
    let plan = plan(
        &cluster,
        6,
        &[0, 1, 2, 3, 4, 3],
        &[2, 3, EMPTY, EMPTY, 0, 1],
        &TransferOptions { tensor_bytes: &[10, 20, 7], ..Default::default() },
    );
    assert_eq!(plan.lost.iter().map(|lost| (lost.expert, lost.slot)).collect::<Vec<_>>(), [(2, 0)]);
    assert!(plan.copies.iter().all(|copy| copy.from_gpu != 1 && copy.to_gpu != 1));
    assert_eq!(plan.bytes_per_expert, 37);
    // One of the exchanged goes through a buffer.
    assert_eq!(plan.counts().bytes(&plan), [37, 0, 37 * 3]);
}

#[test]
fn layers_come_by_their_gain_and_can_be_resumed() {
    let cluster = Cluster::even(2, 2, 1).unwrap();
    let (from, to) = ([0, 1, 0, 1, 0, 1], [1, 0, 1, 0, 0, 0]);
    let options = TransferOptions { gains: &[0.1, 0.3, 0.2], ..Default::default() };
    let plan = plan(&cluster, 2, &from, &to, &options);
    assert_eq!(plan.layers.iter().map(|layer| layer.layer).collect::<Vec<_>>(), [1, 2, 0]);
    assert_eq!(plan.placement_after(2, &from, &to), [0, 1, 1, 0, 0, 0]);
    // What is left is what a plan from there has.
    let rest = transfers(&cluster, 2, &plan.placement_after(2, &from, &to), &to, &options).unwrap();
    assert_eq!(plan.copies_after(2), rest.copies);
    assert_eq!(plan.copies_after(0), plan.copies);
    assert!(plan.copies_after(3).is_empty());
}

#[test]
fn each_gpu_sees_its_part_in_order() {
    let cluster = Cluster::even(4, 2, 1).unwrap();
    let plan = plan(&cluster, 4, &[0, 1, 2, 3], &[2, 1, 0, 3], &Default::default());
    let parts =
        |gpu| plan.for_gpu(gpu).map(|(part, copy)| (part, copy.round, copy.expert)).collect::<Vec<_>>();
    assert_eq!(parts(0), [(Part::Receive, 0, 2), (Part::Send, 1, 0), (Part::Local, 2, 2)]);
    assert_eq!(parts(1), [(Part::Send, 0, 2), (Part::Receive, 1, 0)]);
    assert_eq!(plan.round_copies(0, 1), &plan.copies[1..2]);
}

#[test]
fn what_cannot_be_is_refused() {
    let cluster = Cluster::new(&[1, 1], &[], &[true, false]).unwrap();
    let default = TransferOptions::default();
    let error = |from: &[u32], to: &[u32], options: &TransferOptions| {
        transfers(&cluster, 3, from, to, options).unwrap_err().to_string()
    };
    for (error, want) in [
        (
            error(&[0], &[0], &default),
            "the length of from is 1, must be num_layers * 2 slots, for 1 to 4096 layers",
        ),
        (
            error(&[], &[], &default),
            "the length of from is 0, must be num_layers * 2 slots, for 1 to 4096 layers",
        ),
        (error(&[0, 1], &[0], &default), "the length of to is 1, must be the length of from, 2"),
        (
            error(&[0, 3], &[0, EMPTY], &default),
            "from[layer 0, slot 1] is 3, must be less than num_experts = 3, or 4294967295 for none",
        ),
        (error(&[0, 1], &[0, 1], &default), "to[layer 0, slot 1] is 1, must be 4294967295: its GPU is dead"),
        (
            error(&[0, 1], &[0, EMPTY], &TransferOptions { sends_per_gpu: 0, ..default.clone() }),
            "sends_per_gpu is 0, must be 1 to 1048576",
        ),
        (
            error(&[0, 1], &[0, EMPTY], &TransferOptions { gains: &[f64::NAN], ..default.clone() }),
            "gains[0] is NaN, must be finite",
        ),
        (
            error(&[0, 1], &[0, EMPTY], &TransferOptions { gains: &[1.0, 2.0], ..default.clone() }),
            "the number of gains is 2, must be num_layers = 1",
        ),
        (
            error(&[0, 1], &[0, EMPTY], &TransferOptions { tensor_bytes: &[u64::MAX, 1], ..default.clone() }),
            "the sum of tensor_bytes is 2^64 or more, must be at most 4611686018427387903 for 4 copies",
        ),
    ] {
        assert_eq!(error, format!("transfers: {want}"));
    }
}

/// A cluster, and two placements of a layer or two.
#[derive(Clone, Debug)]
struct Case {
    cluster: Cluster,
    num_experts: usize,
    from: Vec<u32>,
    to: Vec<u32>,
    limits: [usize; 4],
}

impl Case {
    fn options(&self) -> TransferOptions<'static> {
        let [sends_per_gpu, receives_per_gpu, copies_per_node_link, staging_per_gpu] = self.limits;
        TransferOptions {
            sends_per_gpu,
            receives_per_gpu,
            copies_per_node_link,
            staging_per_gpu,
            tensor_bytes: &[3, 4],
            gains: &[],
        }
    }

    fn plan(&self) -> TransferPlan {
        transfers(&self.cluster, self.num_experts, &self.from, &self.to, &self.options()).unwrap()
    }

    fn check(&self, plan: &TransferPlan) -> Result<(), String> {
        check_transfers(plan, &self.cluster, self.num_experts, &self.from, &self.to, &self.options())
            .map_err(|error| error.to_string())
    }

    fn is_live(&self, slot: usize) -> bool {
        self.cluster.is_alive(self.cluster.gpu_of_slot()[slot] as usize)
    }
}

/// Arbitrary placements: the second is sometimes a permutation of the first, which has the most cycles.
fn case() -> impl Strategy<Value = Case> {
    let gpus = prop::collection::vec((0u32..5, 0u32..3, 0u32..6), 1..8);
    (gpus, 1usize..3, any::<u64>(), 0u32..4, [1usize..3, 1usize..3, 0usize..3, 0usize..3]).prop_map(
        |(gpus, num_layers, seed, kind, limits)| {
            let slots: Vec<u32> = gpus.iter().map(|gpu| gpu.0).chain([2]).collect();
            let nodes: Vec<u32> = gpus.iter().map(|gpu| gpu.1.min(gpus.len() as u32)).chain([0]).collect();
            let alive: Vec<bool> = gpus.iter().map(|gpu| gpu.2 > 0).chain([true]).collect();
            let cluster = Cluster::new(&slots, &nodes, &alive).unwrap();
            let mut random = fastrand::Rng::with_seed(seed);
            let num_slots = cluster.num_slots();
            let num_experts = random.usize(1..=num_slots + 2);
            let mut arbitrary = |_| match random.u32(0..8) {
                0 => EMPTY,
                _ => random.u32(0..num_experts as u32),
            };
            let mut from: Vec<u32> = (0..num_layers * num_slots).map(&mut arbitrary).collect();
            let mut to: Vec<u32> = (0..num_layers * num_slots).map(&mut arbitrary).collect();
            if kind > 0 {
                for layer in 0..num_layers {
                    let slots = layer * num_slots..(layer + 1) * num_slots;
                    let each: Vec<u32> = (0..num_slots).map(|slot| (slot % num_experts) as u32).collect();
                    from[slots.clone()].copy_from_slice(&each);
                    to[slots.clone()].copy_from_slice(&each);
                    random.shuffle(&mut to[slots]);
                }
            }
            for (slot, expert) in to.iter_mut().enumerate() {
                if !cluster.is_alive(cluster.gpu_of_slot()[slot % num_slots] as usize) {
                    *expert = EMPTY;
                }
            }
            Case { cluster, num_experts, from, to, limits }
        },
    )
}

/// The fewest buffers on one GPU by what the module says: one if an expert that is in one slot moves to one slot, and
/// so on in a circle.
fn has_closed_cycle(case: &Case) -> bool {
    let num_slots = case.cluster.num_slots();
    case.from.chunks(num_slots).zip(case.to.chunks(num_slots)).any(|(from, to)| {
        let slots = |placement: &[u32], expert: u32| -> Vec<usize> {
            (0..num_slots).filter(|&slot| case.is_live(slot) && placement[slot] == expert).collect()
        };
        // Where the expert of a slot goes, if it is only there and goes to one slot only.
        let moves_to = |slot: usize| match (&slots(from, from[slot])[..], &slots(to, from[slot])[..]) {
            (&[_], &[to]) if from[slot] != EMPTY && to != slot => Some(to),
            _ => None,
        };
        (0..num_slots).filter(|&slot| case.is_live(slot)).any(|start| {
            let mut slot = moves_to(start);
            for _ in 0..num_slots {
                match slot {
                    Some(there) if there == start => return true,
                    Some(there) => slot = moves_to(there),
                    None => return false,
                }
            }
            false
        })
    })
}

/// Whether some order of copies, one at a time and without a buffer, leads from one placement of a small layer to the
/// other: all orders are tried.
fn can_do_without_buffers(from: &[u32], to: &[u32]) -> bool {
    let mut seen = std::collections::BTreeSet::new();
    let mut open = vec![from.to_vec()];
    while let Some(now) = open.pop() {
        if now == to {
            return true;
        }
        for slot in 0..now.len() {
            if now[slot] != to[slot] && now.contains(&to[slot]) {
                let mut next = now.clone();
                next[slot] = to[slot];
                if seen.insert(next.clone()) {
                    open.push(next);
                }
            }
        }
    }
    false
}

#[test]
fn trying_all_orders_by_hand() {
    assert!(can_do_without_buffers(&[0, 1, 2], &[1, 1, 0]));
    assert!(can_do_without_buffers(&[0, 0, 2], &[2, 2, 0]));
    assert!(!can_do_without_buffers(&[0, 1], &[1, 0]));
    assert!(can_do_without_buffers(&[0, 1, 0], &[1, 0, 1]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn every_plan_is_right(case in case()) {
        let plan = case.plan();
        prop_assert_eq!(case.check(&plan), Ok(()));
        let most = *plan.staging.iter().max().unwrap() as usize;
        match case.limits[3] {
            0 => prop_assert_eq!(most, usize::from(has_closed_cycle(&case))),
            n => prop_assert!(most <= n),
        }
    }

    /// Each GPU gets from outside only what it has no replica of, once, and so does each node: unless the last
    /// source had to be given up.
    #[test]
    fn no_plan_copies_less(case in case()) {
        let plan = case.plan();
        let num_slots = case.cluster.num_slots();
        let mut least = LinkCounts::default();
        for layer in 0..case.from.len() / num_slots {
            let slots = layer * num_slots..(layer + 1) * num_slots;
            let (from, to) = (&case.from[slots.clone()], &case.to[slots]);
            for expert in 0..case.num_experts as u32 {
                let gpu = |slot: &usize| case.cluster.gpu_of_slot()[*slot];
                let node = |slot: &usize| case.cluster.node_of_gpu()[gpu(slot) as usize];
                let held: Vec<usize> = (0..num_slots).filter(|&s| case.is_live(s) && from[s] == expert).collect();
                let new: Vec<usize> = (0..num_slots).filter(|&s| to[s] == expert && from[s] != expert).collect();
                let missing = |places: &mut Vec<u32>, held: Vec<u32>| {
                    places.sort_unstable();
                    places.dedup();
                    places.iter().filter(|place| !held.contains(place)).count()
                };
                if held.is_empty() {
                    continue;
                }
                let nodes = missing(&mut new.iter().map(node).collect(), held.iter().map(node).collect());
                let gpus = missing(&mut new.iter().map(gpu).collect(), held.iter().map(gpu).collect());
                least.other_node += nodes;
                least.same_node += gpus - nodes;
                least.same_gpu += new.len() - gpus;
            }
        }
        let counts = plan.counts();
        prop_assert!(counts.other_node >= least.other_node);
        prop_assert!(counts.other_node + counts.same_node >= least.other_node + least.same_node);
        let staged = plan.copies.iter().filter(|copy| copy.to as usize >= num_slots).count();
        prop_assert_eq!(counts.all() - staged, least.all());
    }

    #[test]
    fn buffers_are_used_where_no_order_does_without(
        from in prop::collection::vec(0u32..5, 2..6), seed in any::<u64>(),
    ) {
        let mut random = fastrand::Rng::with_seed(seed);
        let to: Vec<u32> = from.iter().map(|_| from[random.usize(0..from.len())]).collect();
        let cluster = Cluster::even(from.len(), from.len(), 1).unwrap();
        let plan = plan(&cluster, 5, &from, &to, &Default::default());
        let without = plan.staging.iter().all(|&buffers| buffers == 0);
        prop_assert_eq!(without, can_do_without_buffers(&from, &to), "{:?} to {:?}", from, to);
    }

    /// Whatever is changed in a plan, the replay finds it.
    #[test]
    fn every_corruption_is_found(case in case(), seed in any::<u64>()) {
        let plan = case.plan();
        let mut random = fastrand::Rng::with_seed(seed);
        for kind in 0..14 {
            let mut wrong = plan.clone();
            corrupt(&mut wrong, kind, case.cluster.num_slots(), &mut random);
            if wrong != plan {
                prop_assert!(case.check(&wrong).is_err(), "corruption {} was not found", kind);
            }
        }
    }
}

fn corrupt(plan: &mut TransferPlan, kind: u32, num_slots: usize, random: &mut fastrand::Rng) {
    let layer = random.usize(0..plan.layers.len());
    match kind {
        0 => plan.layers[layer].num_rounds += 1,
        1 => plan.layers[layer].least_rounds = plan.layers[layer].num_rounds + 1,
        2 => plan.layers[layer].counts.same_node += 1,
        3 => plan.layers[layer].first_copy += 1,
        4 => drop(plan.layers.pop()),
        5 => plan.bytes_per_expert += 1,
        6 => drop(plan.lost.pop()),
        7 => plan.staging.iter_mut().for_each(|buffers| *buffers = buffers.saturating_sub(1)),
        _ if plan.copies.is_empty() => {}
        _ => {
            let index = random.usize(0..plan.copies.len());
            let copy = &mut plan.copies[index];
            match kind {
                // The same expert may be in a buffer already.
                10 | 13 if copy.to as usize >= num_slots => {}
                8 => copy.expert += 1,
                // By one it might still be right.
                9 => copy.round += 2,
                10 => copy.from = copy.to,
                11 => copy.to = u32::MAX,
                12 => copy.to_gpu += 1,
                _ => {
                    // One copy less, and all counts right.
                    let layer = copy.layer;
                    plan.copies.remove(index);
                    let position = plan.layers.iter().position(|l| l.layer == layer).unwrap();
                    plan.layers[position].num_copies -= 1;
                    plan.layers[position].counts = LinkCounts::of(plan.layer_copies(position));
                    let last = plan.layer_copies(position).last().map_or(0, |copy| copy.round + 1);
                    plan.layers[position].num_rounds = last;
                    plan.layers[position].least_rounds = 0;
                    for later in &mut plan.layers[position + 1..] {
                        later.first_copy -= 1;
                    }
                }
            }
        }
    }
}

/// A copy may not be moved into the round before: something must forbid it, or the round was not needed.
#[test]
fn limits_are_counted() {
    let cluster = Cluster::even(4, 2, 2).unwrap();
    let (from, to) = ([0, 1, 2, 3], [0, 1, 0, 1]);
    let mut wide = TransferOptions { receives_per_gpu: 2, sends_per_gpu: 2, ..Default::default() };
    let plan = plan(&cluster, 4, &from, &to, &wide);
    assert_eq!(plan.layers[0].num_rounds, 1);
    let error = |options: &TransferOptions| {
        check_transfers(&plan, &cluster, 4, &from, &to, options).unwrap_err().to_string()
    };
    for (options, want) in [
        (TransferOptions { sends_per_gpu: 1, ..wide.clone() }, "more than 1 sends in the round"),
        (TransferOptions { receives_per_gpu: 1, ..wide.clone() }, "more than 1 receives in the round"),
        (
            TransferOptions { copies_per_node_link: 1, ..wide.clone() },
            "more than 1 copies over a link in the round",
        ),
    ] {
        assert!(error(&options).ends_with(want), "{}", error(&options));
    }
    wide.copies_per_node_link = 2;
    assert!(check_transfers(&plan, &cluster, 4, &from, &to, &wide).is_ok());
}
