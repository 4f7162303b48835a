//! Counters that only grow, such as DeepEP's `cumulative_local_expert_recv_stats`, read once per step.
//!
//! Such a counter is an int32 per slot that kernels add to. After 2^31 tokens it goes on at -2^31, and its owner may
//! set it back to 0 at any time. Growth is the difference modulo 2^32, which the first does not disturb, as long as
//! no counter grows by 2^31 between two readings. A negative difference is the second: the counters of a layer are
//! one tensor, so all of them were set back, and what they show has been counted since. A reset after which every
//! counter of the layer has already passed its old value cannot be told from growth: who resets says so.
//!
//! O(slots) per reading.

use crate::balance::cluster::SLOTS_MAX;
use crate::error::{in_range, Error, Result};

use super::COUNTS_MAX;

/// The last reading of counters, `[num_layers, num_slots]` of a rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SlotCounters {
    num_layers: usize,
    last: Vec<i32>,
}

impl SlotCounters {
    /// Counters that show 0.
    pub(super) fn new(num_layers: usize, num_counters: usize) -> Result<SlotCounters> {
        if num_counters % num_layers != 0 {
            let range = format!("must be a multiple of num_layers = {num_layers}");
            return Err(Error::argument("monitor", "the number of counters", num_counters, range));
        }
        let most = SLOTS_MAX.min(COUNTS_MAX / num_layers);
        in_range("monitor", "the number of counters of a layer", num_counters / num_layers, 1..=most)?;
        Ok(SlotCounters { num_layers, last: vec![0; num_counters] })
    }

    pub(super) fn last(&self) -> &[i32] {
        &self.last
    }

    /// They show this now, whatever they showed before.
    pub(super) fn set(&mut self, values: &[i32]) {
        self.last.copy_from_slice(values);
    }

    /// What they have grown by since the last reading, never negative.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: another number of values; a layer in which a counter has fallen and one is negative, which
    /// neither growth nor a reset explains.
    pub(super) fn growth(&self, values: &[i32]) -> Result<Vec<i32>> {
        if values.len() != self.last.len() {
            let range = format!("must be {}", self.last.len());
            return Err(Error::argument("monitor", "the number of counters", values.len(), range));
        }
        let num_slots = self.last.len() / self.num_layers;
        let mut growth: Vec<i32> =
            values.iter().zip(&self.last).map(|(now, &last)| now.wrapping_sub(last)).collect();
        let layers = growth.chunks_exact_mut(num_slots).zip(values.chunks_exact(num_slots));
        for (layer, (growth, values)) in layers.enumerate() {
            let Some(fallen) = growth.iter().position(|&growth| growth < 0) else { continue };
            if let Some(slot) = values.iter().position(|&value| value < 0) {
                let argument = format!("counters[layer {layer}, slot {slot}]");
                let range = format!("must not be negative after a reset, which slot {fallen} shows");
                return Err(Error::argument("monitor", argument, values[slot], range));
            }
            growth.copy_from_slice(values);
        }
        Ok(growth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The growth, which is read at once.
    fn advance(counters: &mut SlotCounters, values: &[i32]) -> Result<Vec<i32>> {
        let growth = counters.growth(values)?;
        counters.set(values);
        Ok(growth)
    }

    #[test]
    fn counters_grow_wrap_and_are_set_back() {
        let mut counters = SlotCounters::new(2, 4).unwrap();
        for (what, values, growth) in [
            ("from 0", [5, 0, 7, 1], [5, 0, 7, 1]),
            ("grown", [6, 4, 7, i32::MAX], [1, 4, 0, i32::MAX - 1]),
            ("layer 1 wraps in one slot", [6, 4, 8, i32::MIN + 9], [0, 0, 1, 10]),
            ("grown while negative", [6, 4, 8, i32::MIN + 19], [0, 0, 0, 10]),
            ("layer 0 set back: its other slot too", [3, 9, 8, i32::MIN + 19], [3, 9, 0, 0]),
        ] {
            assert_eq!(advance(&mut counters, &values).unwrap(), growth, "{what}");
        }
        counters.set(&[0; 4]);
        assert_eq!(counters.growth(&[4, 10, 9, 1]).unwrap(), [4, 10, 9, 1]);
    }

    #[test]
    fn what_neither_growth_nor_a_reset_explains_is_refused() {
        let mut counters = SlotCounters::new(1, 3).unwrap();
        counters.growth(&[10, i32::MIN, 0]).unwrap_err();
        advance(&mut counters, &[10, i32::MAX, 0]).unwrap();
        advance(&mut counters, &[10, i32::MIN, 0]).unwrap();
        let error = counters.growth(&[9, i32::MIN, 0]).unwrap_err().to_string();
        assert_eq!(
            error,
            "monitor: counters[layer 0, slot 1] is -2147483648, must not be negative after a reset, which slot 0 shows"
        );
        let error = counters.growth(&[1]).unwrap_err().to_string();
        assert_eq!(error, "monitor: the number of counters is 1, must be 3");
        let error = SlotCounters::new(2, 3).unwrap_err().to_string();
        assert_eq!(error, "monitor: the number of counters is 3, must be a multiple of num_layers = 2");
    }
}
