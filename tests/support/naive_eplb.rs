//! DeepSeek's EPLB as plainly as it can be said: lists of lists, a scan for every choice, experts renumbered node
//! by node and back. An oracle for `balance::deepseek`, itself checked against the recorded results.

/// `[slots]`, `[slots]`, `[experts]` of one layer.
#[derive(Debug, PartialEq)]
pub(crate) struct NaiveLayer {
    pub(crate) slot_to_expert: Vec<u32>,
    pub(crate) slot_to_replica: Vec<u32>,
    pub(crate) counts: Vec<u32>,
}

/// For each item its pack and its rank in the pack.
fn balanced_packing(weights: &[f32], num_packs: usize) -> Vec<(usize, usize)> {
    let per_pack = weights.len() / num_packs;
    if per_pack == 1 {
        return (0..weights.len()).map(|item| (item, 0)).collect();
    }
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| weights[b].partial_cmp(&weights[a]).unwrap());
    let mut packs = vec![Vec::new(); num_packs];
    let mut pack_weights = vec![0.0f32; num_packs];
    for item in order {
        let mut lightest = None;
        for pack in 0..num_packs {
            let lighter = lightest.is_none_or(|best: usize| pack_weights[pack] < pack_weights[best]);
            if packs[pack].len() < per_pack && lighter {
                lightest = Some(pack);
            }
        }
        let pack = lightest.unwrap();
        packs[pack].push(item);
        pack_weights[pack] += weights[item];
    }
    let place = |item| {
        let pack = packs.iter().position(|pack| pack.contains(&item)).unwrap();
        (pack, packs[pack].iter().position(|&i| i == item).unwrap())
    };
    (0..weights.len()).map(place).collect()
}

/// The expert of each replica, its rank among the expert's replicas, and each expert's count.
fn replicate_experts(weights: &[f32], num_slots: usize) -> (Vec<usize>, Vec<u32>, Vec<u32>) {
    let mut experts: Vec<usize> = (0..weights.len()).collect();
    let mut ranks = vec![0; weights.len()];
    let mut counts = vec![1; weights.len()];
    for _ in weights.len()..num_slots {
        let share = |e: usize| weights[e] / counts[e] as f32;
        let mut heaviest = 0;
        for e in 0..weights.len() {
            if share(e) > share(heaviest) {
                heaviest = e;
            }
        }
        experts.push(heaviest);
        ranks.push(counts[heaviest]);
        counts[heaviest] += 1;
    }
    (experts, ranks, counts)
}

/// One layer, placed.
pub(crate) fn rebalance_experts(
    loads: &[f32],
    num_slots: usize,
    num_groups: usize,
    num_nodes: usize,
    num_gpus: usize,
) -> NaiveLayer {
    let (num_groups, num_nodes) = if num_groups % num_nodes == 0 { (num_groups, num_nodes) } else { (1, 1) };
    let group_size = loads.len() / num_groups;
    let group_loads: Vec<f32> =
        loads.chunks(group_size).map(|group| group.iter().fold(0.0, |sum, load| sum + load)).collect();
    let groups_per_node = num_groups / num_nodes;
    let mut renumbered = vec![usize::MAX; loads.len()];
    for (group, (node, rank)) in balanced_packing(&group_loads, num_nodes).into_iter().enumerate() {
        for j in 0..group_size {
            let place = (node * groups_per_node + rank) * group_size + j;
            renumbered[place] = group * group_size + j;
        }
    }
    let slots_per_node = num_slots / num_nodes;
    let slots_per_gpu = num_slots / num_gpus;
    let mut layer = NaiveLayer {
        slot_to_expert: vec![u32::MAX; num_slots],
        slot_to_replica: vec![u32::MAX; num_slots],
        counts: vec![0; loads.len()],
    };
    for (node, names) in renumbered.chunks(loads.len() / num_nodes).enumerate() {
        let weights: Vec<f32> = names.iter().map(|&e| loads[e]).collect();
        let (experts, ranks, counts) = replicate_experts(&weights, slots_per_node);
        let shares: Vec<f32> = experts.iter().map(|&e| weights[e] / counts[e] as f32).collect();
        let packed = balanced_packing(&shares, num_gpus / num_nodes);
        for (replica, (gpu, rank)) in packed.into_iter().enumerate() {
            let slot = node * slots_per_node + gpu * slots_per_gpu + rank;
            layer.slot_to_expert[slot] = names[experts[replica]] as u32;
            layer.slot_to_replica[slot] = ranks[replica];
        }
        for (&name, &count) in names.iter().zip(&counts) {
            layer.counts[name] = count;
        }
    }
    layer
}
