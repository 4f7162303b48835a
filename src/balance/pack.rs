//! Heaviest first, each onto the lightest pack that has a free place; all packs get equally many.
//!
//! Source: `balanced_packing` of deepseek-ai/EPLB, which is Graham's longest-processing-time rule with a limit on
//! the number of items. Packs' loads are summed in float32, as there; ties go to the lower index, of items and of
//! packs. The greedy does not necessarily find the lightest heaviest pack.
//!
//! `O(n log n)` for n items, whatever the number of packs.

use super::tournament::{greatest_first, greatest_value, index, least_first, least_value, Tournament, OUT};

/// The room to pack in.
pub(super) struct Packer {
    /// The items, heaviest first.
    heaviest_first: Vec<u64>,
    /// The place that each pack's next item gets.
    next_places: Vec<u32>,
    lightest: Tournament,
    /// The item in each place, pack by pack.
    places: Vec<u32>,
}

impl Packer {
    /// Room for `num_items` in `num_packs` without allocating later.
    pub(super) fn with_capacity(num_items: usize, num_packs: usize) -> Packer {
        Packer {
            heaviest_first: Vec::with_capacity(num_items),
            next_places: Vec::with_capacity(num_packs),
            lightest: Tournament::with_capacity(num_packs),
            places: Vec::with_capacity(num_items),
        }
    }

    /// Packs `loads` and returns the item in each place: `[num_packs, items per pack]`, in a pack heaviest first.
    /// `num_packs` divides the number of items.
    pub(super) fn pack(&mut self, loads: &[f32], num_packs: usize) -> &[u32] {
        let num_items = loads.len();
        let per_pack = num_items / num_packs;
        self.places.clear();
        if per_pack == 1 {
            // One each: any order is as good, and DeepSeek keeps theirs.
            self.places.extend(0..num_items as u32);
            return &self.places;
        }
        self.places.resize(num_items, 0);
        self.heaviest_first.resize(num_items, 0);
        let keys = self.heaviest_first.iter_mut().zip(loads);
        for (item, (key, &load)) in keys.enumerate() {
            *key = greatest_first(load, item);
        }
        self.heaviest_first.sort_unstable();

        // While there are empty packs, each item that weighs anything goes to the first of them.
        let (first, later) = self.heaviest_first.split_at(num_packs);
        let (first, later) = match first.last() {
            Some(&last) if greatest_value(last) > 0.0 => (first, later),
            _ => (&[][..], &self.heaviest_first[..]),
        };
        for (pack, &item) in first.iter().enumerate() {
            self.places[pack * per_pack] = item as u32;
        }
        let filled = usize::from(!first.is_empty());
        let next_places = (0..num_packs).map(|pack| (pack * per_pack + filled) as u32);
        self.next_places.clear();
        self.next_places.extend(next_places);
        let load = |pack| first.get(pack).map_or(0.0, |&item| greatest_value(item));
        let loads = (0..num_packs).map(|pack| least_first(load(pack), pack));
        let mut lightest = self.lightest.start(loads);
        for &item in later {
            let pack = index(lightest);
            let place = self.next_places[pack];
            self.next_places[pack] = place + 1;
            self.places[place as usize] = item as u32;
            let load = least_value(lightest) + greatest_value(item);
            let is_full = place as usize + 1 == (pack + 1) * per_pack;
            let key = if is_full { OUT } else { least_first(load, pack) };
            lightest = self.lightest.replace(pack, key);
        }
        &self.places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packs(loads: &[f32], num_packs: usize) -> Vec<Vec<u32>> {
        let mut packer = Packer::with_capacity(0, 0);
        let places = packer.pack(loads, num_packs);
        let packs = places.chunks(loads.len() / num_packs);
        packs.map(<[u32]>::to_vec).collect()
    }

    #[test]
    fn the_heaviest_goes_to_the_lightest_pack_with_a_free_place() {
        assert_eq!(packs(&[1.0, 9.0, 5.0, 5.0], 2), [[1, 0], [2, 3]]);
        assert_eq!(packs(&[9.0, 1.0, 1.0, 1.0], 2), [[0, 3], [1, 2]]);
        assert_eq!(packs(&[0.0, 0.0, 0.0, 7.0], 2), [[3, 2], [0, 1]]);
        assert_eq!(packs(&[0.0; 4], 2), [[0, 1], [2, 3]]);
        assert_eq!(packs(&[1.0, 2.0, 3.0], 3), [[0], [1], [2]]);
        assert_eq!(packs(&[1.0, 2.0, 3.0], 1), [[2, 1, 0]]);
    }
}
