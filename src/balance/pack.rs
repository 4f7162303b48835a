//! Heaviest first, each onto the lightest pack that has a free place; all packs get equally many.
//!
//! Source: `balanced_packing` of deepseek-ai/EPLB, which is Graham's longest-processing-time rule with a limit on
//! the number of items. Packs' loads are summed in float32, as there; ties go to the lower index, of items and of
//! packs. The greedy does not necessarily find the lightest heaviest pack.
//!
//! `O(n log n)` for n items, whatever the number of packs.

use super::tournament::{
    greatest_first, greatest_value, index, least_first, least_value, Tournament, OUT,
};

/// The room to pack in.
pub(super) struct Packer {
    /// The items, heaviest first.
    heaviest_first: Vec<u64>,
    /// How many items each pack holds.
    filled: Vec<u32>,
    lightest: Tournament,
}

impl Packer {
    /// Room for `num_items` in `num_packs` without allocating later.
    pub(super) fn with_capacity(num_items: usize, num_packs: usize) -> Packer {
        Packer {
            heaviest_first: Vec::with_capacity(num_items),
            filled: Vec::with_capacity(num_packs),
            lightest: Tournament::with_capacity(num_packs),
        }
    }

    /// Calls `place(item, pack, rank in pack)` once for each item. `num_packs` divides the number of items.
    pub(super) fn pack(
        &mut self,
        loads: impl ExactSizeIterator<Item = f32>,
        num_packs: usize,
        mut place: impl FnMut(usize, usize, usize),
    ) {
        let num_items = loads.len();
        let per_pack = (num_items / num_packs) as u32;
        if per_pack == 1 {
            // One each: any order is as good, and DeepSeek keeps theirs.
            (0..num_items).for_each(|item| place(item, item, 0));
            return;
        }
        self.heaviest_first.clear();
        let keys = loads.enumerate();
        self.heaviest_first
            .extend(keys.map(|(item, load)| greatest_first(load, item)));
        self.heaviest_first.sort_unstable();

        self.filled.clear();
        self.filled.resize(num_packs, 0);
        let empty = (0..num_packs).map(|pack| least_first(0.0, pack));
        let mut lightest = self.lightest.start(empty);
        for &item in &self.heaviest_first {
            let pack = index(lightest);
            let rank = self.filled[pack];
            self.filled[pack] = rank + 1;
            place(index(item), pack, rank as usize);
            let load = least_value(lightest) + greatest_value(item);
            let key = if rank + 1 < per_pack {
                least_first(load, pack)
            } else {
                OUT
            };
            lightest = self.lightest.replace(pack, key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packs(loads: &[f32], num_packs: usize) -> Vec<Vec<usize>> {
        let mut packs = vec![Vec::new(); num_packs];
        let mut packer = Packer::with_capacity(0, 0);
        packer.pack(loads.iter().copied(), num_packs, |item, pack, rank| {
            assert_eq!(rank, packs[pack].len());
            packs[pack].push(item);
        });
        packs
    }

    #[test]
    fn the_heaviest_goes_to_the_lightest_pack_with_a_free_place() {
        assert_eq!(packs(&[1.0, 9.0, 5.0, 5.0], 2), [[1, 0], [2, 3]]);
        assert_eq!(packs(&[9.0, 1.0, 1.0, 1.0], 2), [[0, 3], [1, 2]]);
        assert_eq!(packs(&[0.0; 4], 2), [[0, 1], [2, 3]]);
        assert_eq!(packs(&[1.0, 2.0, 3.0], 3), [[0], [1], [2]]);
        assert_eq!(packs(&[1.0, 2.0, 3.0], 1), [[2, 1, 0]]);
    }
}
