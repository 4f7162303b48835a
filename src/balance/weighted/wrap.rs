//! The experts of a tree on its GPUs, two to each, so that none carries more than T.
//!
//! McNaughton's wrap-around rule (1959), choosing who wraps: the lightest expert and the heaviest share a GPU, the
//! lightest with all its load, the heaviest with as much as there is room for; what is left of it is one of the k - 1
//! experts for the other k - 2 GPUs. Their load is (k - 2) T at most, as the GPU was filled, or else all that is left
//! fits in pairs, no two being heavier than the heaviest and the lightest. The lightest is never heavier than T, for
//! the mean is less.
//!
//! `O(k^2)` for k experts, of which there are few.

/// Gives `experts`, `(load, expert)`, the GPUs that `free` yields. Who is a phantom, a number from `num_experts`, holds
/// no slot: another expert of the tree does, or if there is none, one of the first two.
pub(super) fn wrap<'a>(
    experts: &mut Vec<(f64, u32)>,
    most: f64,
    num_experts: u32,
    free: &mut impl Iterator<Item = &'a mut [u32; 2]>,
) {
    let by_load = |a: &(f64, u32), b: &(f64, u32)| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1));
    // Phantoms, which have no load, come first whatever others have none.
    experts.sort_by(|a, b| (a.1 < num_experts).cmp(&(b.1 < num_experts)).then_with(|| by_load(a, b)));
    let mut lightest = 0;
    while lightest + 1 < experts.len() {
        let (light, light_expert) = experts[lightest];
        let Some((heavy, heavy_expert)) = experts.pop() else { return };
        lightest += 1;
        let Some(gpu) = free.next() else { return };
        *gpu = [heavy_expert, light_expert];
        if light_expert >= num_experts {
            let of_tree = experts[lightest..].iter().rev().map(|&(_, expert)| expert);
            let mut real = of_tree.chain(0..num_experts.min(2)).filter(|&expert| expert < num_experts);
            gpu[1] = real.find(|&expert| expert != heavy_expert).unwrap_or(heavy_expert);
        }
        let rest = ((heavy - (most - light).max(0.0)).max(0.0), heavy_expert);
        let is_before = |other: &(f64, u32)| other.1 >= num_experts || by_load(other, &rest).is_lt();
        let place = experts[lightest..].partition_point(is_before);
        experts.insert(lightest + place, rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrapped(loads: &[f64], num_phantoms: usize, most: f64) -> Vec<[u32; 2]> {
        let num_experts = (loads.len() - num_phantoms) as u32;
        let mut experts: Vec<(f64, u32)> = loads.iter().copied().zip(0..).collect();
        let mut gpus = vec![[9; 2]; loads.len() - 1];
        wrap(&mut experts, most, num_experts, &mut gpus.iter_mut());
        gpus
    }

    #[test]
    fn the_heaviest_wraps() {
        // 25 in all on 3 GPUs.
        assert_eq!(wrapped(&[20.0, 1.0, 3.0, 1.0], 0, 9.0), [[0, 3], [0, 1], [0, 2]]);
        // 8 of 0 beside 2; 4 of 0 beside 6 of 1, of which 3 are left for 3.
        assert_eq!(wrapped(&[12.0, 9.0, 2.0, 7.0], 0, 10.0), [[0, 2], [1, 0], [3, 1]]);
        // A phantom's GPU is for the heaviest, and its second slot for the next.
        assert_eq!(wrapped(&[12.0, 6.0, 0.0], 1, 9.0), [[0, 1], [1, 0]]);
        assert_eq!(wrapped(&[12.0, 0.0], 1, 12.0), [[0, 0]], "there is only one expert");
    }
}
