//! The least of many keys, while one key at a time is replaced.
//!
//! A binary tree of minima: node i holds the lesser of its children 2i and 2i + 1, the leaves are the keys. A
//! replacement costs log2 n comparisons along one path, whose other ends are known beforehand: nothing waits but
//! the comparisons themselves.

/// Keys are a non-negative float32 in the upper half and an index in the lower: less by value, then by index.
pub(super) struct Tournament {
    /// `[1]` the winner, `[leaves ..]` the keys; unused leaves hold `OUT`.
    tree: Vec<u64>,
    leaves: usize,
}

/// The key of who no longer takes part.
pub(super) const OUT: u64 = u64::MAX;

/// The key that is less for the lesser value, then for the lower index.
pub(super) fn least_first(value: f32, index: usize) -> u64 {
    (u64::from(value.to_bits()) << 32) | index as u64
}

/// The key that is less for the greater value, then for the lower index.
pub(super) fn greatest_first(value: f32, index: usize) -> u64 {
    (u64::from(!value.to_bits()) << 32) | index as u64
}

/// The value of a [`least_first`] key.
pub(super) fn least_value(key: u64) -> f32 {
    f32::from_bits((key >> 32) as u32)
}

/// The value of a [`greatest_first`] key.
pub(super) fn greatest_value(key: u64) -> f32 {
    f32::from_bits(!((key >> 32) as u32))
}

/// The index of either key.
pub(super) fn index(key: u64) -> usize {
    key as u32 as usize
}

impl Tournament {
    /// Room for `num_keys` without allocating later.
    pub(super) fn with_capacity(num_keys: usize) -> Tournament {
        Tournament { tree: Vec::with_capacity(2 * num_keys.next_power_of_two()), leaves: 0 }
    }

    /// Starts anew with `keys`, which come in the order of their indices, and returns the least.
    pub(super) fn start(&mut self, keys: impl ExactSizeIterator<Item = u64>) -> u64 {
        // A power of two, so that all paths are equally long and the branch at their end is foreseen.
        self.leaves = keys.len().next_power_of_two();
        self.tree.resize(2 * self.leaves, OUT);
        let (used, unused) = self.tree[self.leaves..].split_at_mut(keys.len());
        for (leaf, key) in used.iter_mut().zip(keys) {
            *leaf = key;
        }
        unused.fill(OUT);
        let mut row = self.leaves;
        while row > 1 {
            let (above, below) = self.tree.split_at_mut(row);
            for (parent, pair) in above[row / 2..].iter_mut().zip(below.chunks_exact(2)) {
                *parent = pair[0].min(pair[1]);
            }
            row /= 2;
        }
        self.tree[1]
    }

    /// Gives `index` another key and returns the least of all.
    #[inline]
    pub(super) fn replace(&mut self, index: usize, key: u64) -> u64 {
        let mut node = self.leaves + index;
        let mut least = key;
        self.tree[node] = key;
        while node > 1 {
            least = least.min(self.tree[node ^ 1]);
            node /= 2;
            self.tree[node] = least;
        }
        least
    }

    /// The keys, in the order of their indices.
    pub(super) fn keys(&self) -> &[u64] {
        &self.tree[self.leaves..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_winner_is_the_least_key_after_every_replacement() {
        for num_keys in [1, 2, 3, 7, 8, 9, 100] {
            let mut keys: Vec<u64> = (0..num_keys).map(|i| (i * 7919) % 101).collect();
            let mut tournament = Tournament::with_capacity(0);
            let mut least = tournament.start(keys.iter().copied());
            for step in 0..300 {
                assert_eq!(Some(&least), keys.iter().min(), "{num_keys} keys, step {step}");
                let index = (step * 31) % num_keys as usize;
                keys[index] = if step % 11 == 0 { OUT } else { (step as u64 * 977) % 103 };
                least = tournament.replace(index, keys[index]);
            }
        }
    }

    #[test]
    fn keys_order_by_value_and_then_by_lower_index() {
        let values = [0.0, f32::from_bits(1), 1.0, 1.5, f32::MAX];
        for (i, pair) in values.windows(2).enumerate() {
            assert!(least_first(pair[0], 9) < least_first(pair[1], 3));
            assert!(greatest_first(pair[0], 3) > greatest_first(pair[1], 9));
            assert!(least_first(pair[0], 3) < least_first(pair[0], 9));
            assert!(greatest_first(pair[0], 3) < greatest_first(pair[0], 9));
            assert_eq!(least_value(least_first(values[i], 7)), values[i]);
            assert_eq!(greatest_value(greatest_first(values[i], 7)), values[i]);
            assert_eq!(index(greatest_first(values[i], 7)), 7);
        }
    }
}
