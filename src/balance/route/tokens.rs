//! Which token goes to which slot: each rank finds the same, and none needs to ask another.
//!
//! By quotas q_1 … q_k of an expert's slots, N in all, token i of N goes to the first slot j that takes it:
//!
//! ```text
//! slot 1 takes i              if ⌊((i + 1) q_1 + N/2) / N⌋ > ⌊(i q_1 + N/2) / N⌋
//! slot 2 takes, of the rest   i' = i - ⌊(i q_1 + N/2) / N⌋   likewise with q_2 of N - q_1, and so on
//! ```
//!
//! which is Bresenham's line for each slot, the greatest quota first: of all N tokens it takes exactly its quota, and
//! of the first i nearly its part, so that no slot gets its tokens in a burst. A line is off by half a token at most,
//! and passes on what those before it are off by, times its part of what they left; with the greatest first that dies
//! away. Any i can be begun at, and each next costs an addition.
//!
//! By shares, without this step's counts, there is no N: token i of phase p falls on the point (i / φ + p √2) mod 1
//! of a line on which each slot has a stretch as long as its share (Kronecker's sequence: of n tokens in a row each
//! slot gets its part within O(log n)).

use std::cmp::Reverse;
use std::fmt::Display;

use super::super::cluster::Cluster;
use super::links::Links;
use super::placement::{check_placement, no_replica};
use crate::error::{in_range, Error, Result};

/// Finds the slots of tokens; made once for a placement of one layer, then it allocates nothing.
pub struct TokenMap {
    num_slots: usize,
    links: Links,
    /// `[num_experts]`: how many tokens, how many so far.
    counts: Vec<u64>,
    /// `[num_slots]`: the line of each slot.
    lines: Vec<Line>,
    /// Each expert's slots, the greatest quota first.
    in_order: Vec<u32>,
    /// `[num_slots]`: where the stretch of each slot ends, of its expert's 2^64 points.
    ends: Vec<u64>,
}

/// A slot's line: `(i * quota + of / 2) % of` for the next i.
#[derive(Clone, Copy, Default)]
struct Line {
    quota: u64,
    of: u64,
    phase: u64,
}

/// The number of an expert as a router writes it; -1, or the greatest `u32`, is none.
pub trait ExpertId: Copy + Display {
    /// The number, -1 for none.
    fn number(self) -> i64;
}

impl ExpertId for i32 {
    fn number(self) -> i64 {
        i64::from(self)
    }
}

impl ExpertId for i64 {
    fn number(self) -> i64 {
        self
    }
}

impl ExpertId for u32 {
    fn number(self) -> i64 {
        if self == u32::MAX {
            -1
        } else {
            i64::from(self)
        }
    }
}

/// 2^64 / φ and 2^64 (√2 - 1).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const SILVER: u64 = 0x6a09_e667_f3bc_c908;
/// 2^64
const POINTS: f64 = 18_446_744_073_709_551_616.0;

impl TokenMap {
    /// For a placement as in [`Router::new`](super::Router::new), with its errors.
    pub fn new(cluster: &Cluster, num_experts: usize, slot_to_expert: &[u32]) -> Result<TokenMap> {
        check_placement(cluster, num_experts, slot_to_expert)?;
        let mut links = Links::new(cluster, num_experts);
        links.read(cluster, num_experts, slot_to_expert);
        let num_slots = cluster.num_slots();
        Ok(TokenMap {
            num_slots,
            links,
            counts: vec![0; num_experts],
            lines: vec![Line::default(); num_slots],
            in_order: vec![0; num_slots],
            ends: vec![0; num_slots],
        })
    }

    /// The slot of each choice in `experts`, `[tokens, top_k]` in this rank's order, by `quotas`, `[num_slots]`; -1
    /// where there is no expert. `slots` is as long as `experts`. `O(num_slots + len(experts) * replicas)`.
    ///
    /// With the quotas of this rank alone (its row of [`Routing::source_quotas`](super::Routing::source_quotas)),
    /// `before` is empty. With those of all ranks ([`Routing::quotas`](super::Routing::quotas)) it is
    /// `[num_experts]`: the number of each expert's tokens on lower ranks. If a rank sends its tokens in chunks, the
    /// tokens of its earlier chunks are added to it. Where all tokens that the quotas were made for have been sent,
    /// each slot has had its quota exactly.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: a list of another length, an expert that is out of range, more tokens of an expert than its
    /// quotas allow, quotas of an expert that add up to 2^32 or more. `slots` is not changed then.
    pub fn by_quotas<Id: ExpertId>(
        &mut self,
        quotas: &[u32],
        before: &[u32],
        experts: &[Id],
        slots: &mut [i32],
    ) -> Result<()> {
        let num_experts = self.counts.len();
        in_range("route", "the number of quotas", quotas.len(), self.num_slots..=self.num_slots)?;
        if !before.is_empty() {
            in_range("route", "the length of before", before.len(), num_experts..=num_experts)?;
        }
        self.count(experts, slots)?;
        for expert in 0..num_experts {
            if self.counts[expert] > 0 {
                self.draw_lines(expert, quotas, before.get(expert).copied().unwrap_or(0))?;
            }
        }
        for (slot, &id) in slots.iter_mut().zip(experts) {
            *slot = match id.number() {
                -1 => -1,
                expert => take(&mut self.lines, &self.in_order[self.links.places_of(expert as usize)]),
            };
        }
        Ok(())
    }

    /// The slot of each choice in `experts`, `[tokens, top_k]` in this rank's order, by `shares`, `[num_slots]`, such
    /// as a plan has, without counts; -1 where there is no expert. Only the proportions of an expert's shares matter.
    /// `O(num_slots + len(experts) * log replicas)`.
    ///
    /// `phase` is to be another for each rank and step, such as `step * num_gpus + rank`, lest all begin with the same
    /// replica.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: a list of another length, an expert that is out of range or has tokens but no share, a share
    /// that is negative, infinite or not a number. `slots` is not changed then.
    pub fn by_shares<Id: ExpertId>(
        &mut self,
        shares: &[f64],
        phase: u64,
        experts: &[Id],
        slots: &mut [i32],
    ) -> Result<()> {
        in_range("route", "the number of shares", shares.len(), self.num_slots..=self.num_slots)?;
        self.count(experts, slots)?;
        for expert in 0..self.counts.len() {
            if self.counts[expert] > 0 {
                self.lay_stretches(expert, shares)?;
            }
        }
        self.counts.fill(0);
        let shift = phase.wrapping_mul(SILVER);
        for (slot, &id) in slots.iter_mut().zip(experts) {
            let expert = match id.number() {
                -1 => {
                    *slot = -1;
                    continue;
                }
                expert => expert as usize,
            };
            let point = self.counts[expert].wrapping_mul(GOLDEN).wrapping_add(shift).min(u64::MAX - 1);
            self.counts[expert] += 1;
            let of = self.links.slots_of(expert);
            let index = of.partition_point(|&slot| self.ends[slot as usize] <= point);
            *slot = of[index] as i32;
        }
        Ok(())
    }

    /// Counts the tokens of each expert, each of which is on a live GPU.
    fn count<Id: ExpertId>(&mut self, experts: &[Id], slots: &[i32]) -> Result<()> {
        in_range("route", "the length of slots", slots.len(), experts.len()..=experts.len())?;
        let num_experts = self.counts.len();
        self.counts.fill(0);
        for (index, &id) in experts.iter().enumerate() {
            match id.number() {
                -1 => {}
                expert if (0..num_experts as i64).contains(&expert) => self.counts[expert as usize] += 1,
                _ => {
                    let range = format!("must be less than {num_experts}, or -1 for none");
                    return Err(Error::argument("route", format!("experts[{index}]"), id, range));
                }
            }
        }
        for (expert, &count) in self.counts.iter().enumerate() {
            if count > 0 && self.links.of(expert).is_empty() {
                return Err(no_replica(format!("the number of tokens of expert {expert}"), count));
            }
        }
        Ok(())
    }

    /// Draws the lines of an expert's slots up to its token `before`.
    fn draw_lines(&mut self, expert: usize, quotas: &[u32], before: u32) -> Result<()> {
        let slots = self.links.slots_of(expert);
        let total: u64 = slots.iter().map(|&slot| u64::from(quotas[slot as usize])).sum();
        if total > u64::from(u32::MAX) {
            let range = format!("must be at most {}", u32::MAX);
            return Err(Error::argument(
                "route",
                format!("the sum of quotas of expert {expert}"),
                total,
                range,
            ));
        }
        let (mut index, mut of) = (u64::from(before), total);
        if index + self.counts[expert] > total {
            let argument = format!("the number of tokens of expert {expert}");
            let range = format!("must be at most its quotas {total} less before {before}");
            return Err(Error::argument("route", argument, self.counts[expert], range));
        }
        let in_order = &mut self.in_order[self.links.places_of(expert)];
        in_order.copy_from_slice(slots);
        in_order.sort_unstable_by_key(|&slot| (Reverse(quotas[slot as usize]), slot));
        for &slot in &*in_order {
            let quota = u64::from(quotas[slot as usize]);
            // Below 2^64, for index <= of < 2^32.
            let passed = index * quota + of / 2;
            let taken = passed.checked_div(of).unwrap_or(0);
            self.lines[slot as usize] = Line { quota, of, phase: passed - taken * of };
            index -= taken;
            of -= quota;
        }
        Ok(())
    }

    /// Lays the stretches of an expert's slots on the line of 2^64 points.
    fn lay_stretches(&mut self, expert: usize, shares: &[f64]) -> Result<()> {
        let slots = self.links.slots_of(expert);
        for &slot in slots {
            let share = shares[slot as usize];
            if !(0.0..=1e300).contains(&share) {
                let (argument, value) = (format!("shares[slot {slot}]"), format!("{share:?}"));
                return Err(Error::argument("route", argument, value, "must be 0 to 1e300"));
            }
        }
        let total: f64 = slots.iter().map(|&slot| shares[slot as usize]).sum();
        if !(total > 0.0 && total <= 1e300) {
            let argument = format!("the sum of shares of expert {expert}");
            return Err(Error::argument("route", argument, total, "must be more than 0 and at most 1e300"));
        }
        let mut sum = 0.0;
        let mut last = slots[0];
        for &slot in slots {
            let share = shares[slot as usize];
            sum += share;
            self.ends[slot as usize] = (sum / total * POINTS) as u64;
            if share > 0.0 {
                last = slot;
            }
        }
        // The last that has a share has the line's last point too, wherever rounding put its end.
        let behind = slots.iter().skip_while(|&&slot| slot != last);
        behind.for_each(|&slot| self.ends[slot as usize] = u64::MAX);
        Ok(())
    }
}

/// The slot that takes the next token.
fn take(lines: &mut [Line], slots: &[u32]) -> i32 {
    if let &[slot] = slots {
        return slot as i32;
    }
    for &slot in slots {
        let line = &mut lines[slot as usize];
        line.phase += line.quota;
        if line.phase >= line.of {
            line.phase -= line.of;
            return slot as i32;
        }
    }
    // Never: the last slot with a quota takes whatever reaches it.
    -1
}
