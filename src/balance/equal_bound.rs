//! What no placement with an equal split can beat where no GPU has more than two slots.
//!
//! Let no GPU carry more than T, and T / 2 <= x < T. A replica heavier than x has a GPU for itself and at most one
//! replica of T - x or less. So there are at least as many of those light ones, or GPUs of one slot, as heavy ones:
//!
//! ```text
//! heavy - light <= GPUs of one slot,  Σ count <= slots,  count >= ⌈w / T⌉
//! ```
//!
//! An expert of load w adds to heavy - light its count if w / count > x, nothing down to T - x, and below that its
//! count, negative. The least that all can add together is bounded by its linear relaxation, a knapsack with several
//! choices per expert: along the lower convex hull of each expert's choices, the steepest steps first. If even that
//! exceeds the GPUs of one slot, T is too low. Any x will do. What can be said changes where x passes the load of a
//! replica, so that these are tried, or as many of them as there is time for; T by bisection.
//!
//! Sources: the knapsack is Sinha and Zoltners, "The multiple-choice knapsack problem", Operations Research 27, 1979;
//! that heavy items need partners is how bounds for bin packing begin: Martello and Toth, "Lower bounds and reduction
//! procedures for the bin packing problem", 1990.
//!
//! `O(E log E)` for each pair of T and x, of which there are about 16 + 2 log E for each x that raises the bound, and
//! else one.

/// So many x are tried at most, and fewer if there are so many experts that this would take more work.
const THRESHOLDS_MAX: usize = 128;
const WORK: usize = 1 << 20;
/// Bisection stops at this.
const PRECISION: f64 = 1e-5;

/// Room to find the bound of one layer.
#[derive(Default)]
pub(super) struct EqualBound {
    /// (slope, replicas) of the steps that experts may take.
    steps: Vec<(f64, u32)>,
    /// Loads that replicas may have, ascending.
    shares: Vec<f64>,
}

/// The GPUs, as far as the bound goes.
#[derive(Clone, Copy)]
pub(super) struct Slots {
    /// All of them.
    pub(super) num_slots: usize,
    /// GPUs that have only one; the others have two.
    pub(super) single: usize,
    /// No expert has fewer replicas.
    pub(super) count_min: u32,
}

impl Slots {
    /// None where the bound does not apply: a GPU has three slots or more, or more than there are experts, or all
    /// have one.
    pub(super) fn new(
        slots: impl Iterator<Item = usize>,
        num_experts: usize,
        count_min: u32,
    ) -> Option<Slots> {
        let mut all = Slots { num_slots: 0, single: 0, count_min };
        for slots in slots {
            if slots > num_experts.min(2) {
                return None;
            }
            all.num_slots += slots;
            all.single += usize::from(slots == 1);
        }
        // One slot each: the joint bound is the best there is.
        (all.single < all.num_slots).then_some(all)
    }
}

impl EqualBound {
    /// Some GPU carries at least this, and at least `joint`, which is more than 0 and not below the joint bound.
    pub(super) fn heaviest_gpu(&mut self, loads: &[f64], slots: Slots, joint: f64) -> f64 {
        self.find_shares(loads, joint);
        let num_thresholds = self.shares.len().min(THRESHOLDS_MAX).min(WORK / loads.len() + 1);
        let mut bound = joint;
        for i in 0..num_thresholds {
            // A little less, so that replicas of this load are heavy.
            let heavy = self.shares[i * self.shares.len() / num_thresholds] * (1.0 - 1e-9);
            let mut too_low = |t: f64| self.is_too_low(loads, slots, t, heavy);
            if !too_low(bound * (1.0 + PRECISION)) {
                continue;
            }
            let mut step = bound * 0.01;
            while too_low(bound + step) {
                bound += step;
            }
            while step > bound * PRECISION {
                step *= 0.5;
                if too_low(bound + step) {
                    bound += step;
                }
            }
        }
        bound
    }

    /// The loads that replicas may have from half a GPU's to a little more than one's.
    fn find_shares(&mut self, loads: &[f64], joint: f64) {
        self.shares.clear();
        for &load in loads {
            let fewest = round_up(load / (joint * 1.1)).max(1);
            let counts = fewest..=(load / (joint * 0.5)) as u32;
            self.shares.extend(counts.map(|count| load / f64::from(count)));
        }
        self.shares.sort_unstable_by(f64::total_cmp);
        self.shares.dedup();
    }

    /// Whether some GPU must carry more than `t`, as replicas heavier than x = `heavy` need partners.
    fn is_too_low(&mut self, loads: &[f64], slots: Slots, t: f64, heavy: f64) -> bool {
        // Two heavy replicas must be too much for a GPU.
        if heavy * 2.0 < t || heavy >= t {
            return false;
        }
        let light = t - heavy;
        self.steps.clear();
        let (mut left, mut excess) = (slots.num_slots as i64, 0i64);
        for &load in loads {
            // The least count, the one that makes no replica heavy, and the one that makes all of them light.
            let least = round_up(load / t).max(slots.count_min);
            let middle = round_up(load / heavy);
            let most = round_up(load / light);
            left -= i64::from(least);
            let slope = |gain: u32, replicas: u32| (-f64::from(gain) / f64::from(replicas), replicas);
            if least >= most {
                excess -= i64::from(least);
            } else if least >= middle {
                self.steps.push(slope(most, most - least));
            } else {
                excess += i64::from(least);
                let (first, second) = (slope(least, middle - least), slope(most, (most - middle).max(1)));
                if middle < most && first.0 <= second.0 {
                    self.steps.extend([first, second]);
                } else {
                    self.steps.push(slope(least + most, most - least));
                }
            }
        }
        if left < 0 {
            return true;
        }
        self.steps.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let mut excess = excess as f64;
        for &(slope, replicas) in &self.steps {
            let taken = left.min(i64::from(replicas));
            excess += slope * taken as f64;
            left -= taken;
            if left == 0 {
                break;
            }
        }
        // If slots are left, all replicas are light.
        excess > slots.single as f64 + 1e-6
    }
}

/// ⌈quotient⌉, at most 2^32 - 1.
pub(super) fn round_up(quotient: f64) -> u32 {
    let down = quotient as u32;
    down.saturating_add(u32::from(f64::from(down) < quotient))
}
