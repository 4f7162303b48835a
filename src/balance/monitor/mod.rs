//! Load statistics: what each expert of each layer got in the last steps, from all ranks.
//!
//! A monitor is a table of integers, `[step, layer, expert]`, for the last `window` step numbers. Recording adds to
//! it, merging adds two of them, and everything else is computed from it when asked. Integer addition has no order,
//! and a step leaves the window for good once a newer one has pushed it out, so that a monitor depends on what was
//! recorded and never on the order in which ranks recorded and merged it. Averages are taken in the order of the
//! step numbers, in float64, with operations that IEEE 754 rounds alike everywhere.
//!
//! | file           | what                                                    |
//! | -------------- | ------------------------------------------------------- |
//! | `counters`     | counters that only grow, such as DeepEP's, as step counts |
//! | `state`        | a monitor as bytes and back                             |
//! | `balancedness` | the figure that vLLM logs                               |
//!
//! Recording costs O(what is recorded), merging and averages O(what the window holds). A monitor has no lock: share it
//! between threads behind one, or give each thread its own and merge.

mod balancedness;
mod counters;
mod state;

pub use balancedness::Balancedness;

use std::collections::BTreeMap;

use self::counters::SlotCounters;
use super::cluster::{Cluster, EMPTY};
use super::goal::{EXPERTS_MAX, LAYERS_MAX};
use crate::error::{in_range, Error, Result};

/// What a [`LoadMonitor`] keeps. Monitors that are to be merged have the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MonitorOptions {
    /// Layers with experts, 1 to 4096.
    pub num_layers: usize,
    /// Logical experts of a layer, 1 to 65536.
    pub num_experts: usize,
    /// Step numbers that are kept: the newest and those less than `window` before it. 1 to 65536, and
    /// `num_layers * num_experts * window` at most 2^28.
    pub window: usize,
    /// Reports that make a step complete: ranks, if each reports for itself, or 1, if one rank has all counts. 1 to
    /// 65536.
    pub num_ranks: usize,
    /// Steps after which a load weighs half as much in [`LoadMonitor::average`]; above 0, may be infinite.
    pub half_life: f64,
}

/// Counts of the last steps per layer and logical expert.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadMonitor {
    options: MonitorOptions,
    /// By step number, none older than the window.
    steps: BTreeMap<u64, Step>,
    /// Counters that this monitor alone has read; merging leaves them as they are.
    counters: Option<SlotCounters>,
}

/// What was reported of a step.
#[derive(Clone, Debug, PartialEq)]
struct Step {
    /// `[num_layers]`: how many reports there are, at most `num_ranks`.
    reports: Vec<u32>,
    /// `[num_layers, num_experts]`: their sum, at most `reports * (2^32 - 1)`. A window of such sums fits in 64 bits.
    counts: Vec<u64>,
}

/// Which steps of a window are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reported {
    /// Those with `num_ranks` reports of each layer.
    ByAllRanks,
    /// Those with any report. Where ranks report their own slots, experts of absent ranks look idle in these.
    ByAny,
}

/// Step numbers are below 2^63, to be an `int64` elsewhere.
const STEP_MAX: u64 = i64::MAX as u64;
const WINDOW_MAX: usize = 1 << 16;
const RANKS_MAX: usize = 1 << 16;
const COUNTS_MAX: usize = 1 << 28;

impl MonitorOptions {
    /// A window of 1000 steps, as vLLM's, a half-life of a quarter of it, and one report per step. The window is less
    /// where 1000 steps would be too many to keep.
    pub fn new(num_layers: usize, num_experts: usize) -> MonitorOptions {
        let per_step = num_layers.saturating_mul(num_experts).max(1);
        let window = (COUNTS_MAX / per_step).clamp(1, 1000);
        MonitorOptions { num_layers, num_experts, window, num_ranks: 1, half_life: window as f64 / 4.0 }
    }

    fn check(&self) -> Result<()> {
        in_range("monitor", "num_layers", self.num_layers, 1..=LAYERS_MAX)?;
        in_range("monitor", "num_experts", self.num_experts, 1..=EXPERTS_MAX)?;
        in_range("monitor", "num_ranks", self.num_ranks, 1..=RANKS_MAX)?;
        let window_max = (COUNTS_MAX / (self.num_layers * self.num_experts)).min(WINDOW_MAX);
        if !(1..=window_max).contains(&self.window) {
            let (layers, experts) = (self.num_layers, self.num_experts);
            let range = format!("must be 1 to {window_max} for {layers} layers of {experts} experts");
            return Err(Error::argument("monitor", "window", self.window, range));
        }
        if self.half_life.is_nan() || self.half_life <= 0.0 {
            return Err(Error::argument("monitor", "half_life", self.half_life, "must be above 0"));
        }
        Ok(())
    }
}

impl LoadMonitor {
    /// A monitor that has recorded nothing.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: an option is out of its range.
    pub fn new(options: MonitorOptions) -> Result<LoadMonitor> {
        options.check()?;
        Ok(LoadMonitor { options, steps: BTreeMap::new(), counters: None })
    }

    /// What it was made with.
    pub fn options(&self) -> &MonitorOptions {
        &self.options
    }

    /// One report of a step: `counts[layer, expert]` tokens. True if it is kept, false if `step` is older than the
    /// window.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: not `num_layers * num_experts` counts, `step` of 2^63 or more, or a step that has all its
    /// reports. Nothing has changed then; so with the other ways to record.
    pub fn record_logical(&mut self, step: u64, counts: &[u32]) -> Result<bool> {
        self.check_len("counts", counts.len(), self.options.num_layers * self.options.num_experts)?;
        self.record(step, 0, counts)
    }

    /// One report of one layer: `counts[expert]` tokens. A step's layers may come in any order.
    ///
    /// # Errors
    ///
    /// As [`record_logical`](LoadMonitor::record_logical); a layer that there is not.
    pub fn record_layer(&mut self, step: u64, layer: usize, counts: &[u32]) -> Result<bool> {
        in_range("monitor", "layer", layer, 0..=self.options.num_layers - 1)?;
        self.check_len("counts", counts.len(), self.options.num_experts)?;
        self.record(step, layer, counts)
    }

    /// One report of a step from any number of slots, a rank's own or all: `counts[layer, slot]` tokens went to a
    /// replica of `slot_to_expert[layer, slot]`. A slot that holds nothing ([`EMPTY`]) has got nothing.
    ///
    /// # Errors
    ///
    /// As [`record_logical`](LoadMonitor::record_logical); lengths that are not equal or not a multiple of
    /// `num_layers`, an expert that there is not, a negative count, more than 2^32 - 1 tokens of one expert.
    pub fn record_physical(&mut self, step: u64, slot_to_expert: &[u32], counts: &[i32]) -> Result<bool> {
        let counts = self.logical_counts(slot_to_expert, counts)?;
        self.record(step, 0, &counts)
    }

    /// [`record_physical`](LoadMonitor::record_physical) from counters that only grow, `values[layer, slot]`: what they
    /// have grown by since this monitor last read them, or since they were 0. They may run over, and be set back to 0;
    /// the head of `counters.rs` says when that is noticed.
    ///
    /// # Errors
    ///
    /// As `record_physical`; another number of counters than last time; a layer in which a counter has fallen and one
    /// is negative, which neither growth nor a reset explains. They have not been read then.
    pub fn record_cumulative(&mut self, step: u64, slot_to_expert: &[u32], values: &[i32]) -> Result<bool> {
        let mut counters = match self.counters.clone() {
            Some(counters) => counters,
            None => SlotCounters::new(self.options.num_layers, values.len())?,
        };
        let counts = self.logical_counts(slot_to_expert, &counters.growth(values)?)?;
        let is_kept = self.record(step, 0, &counts)?;
        counters.set(values);
        self.counters = Some(counters);
        Ok(is_kept)
    }

    /// What the counters show now, which has been counted or is not to count. Nothing: they have been set to 0, and
    /// there may be another number of them from now on.
    ///
    /// Say so where they are set to 0, also after a restart: the state remembers them, lest counters that outlived the
    /// restart are counted twice, and those that began anew may have outgrown what it remembers.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: a number of counters that is not a multiple of `num_layers`, or more than 2^20 of a layer.
    pub fn set_counters(&mut self, values: &[i32]) -> Result<()> {
        self.counters = match values {
            [] => None,
            values => {
                let mut counters = SlotCounters::new(self.options.num_layers, values.len())?;
                counters.set(values);
                Some(counters)
            }
        };
        Ok(())
    }

    /// `[num_layers, num_slots]`: what the counters showed at the last reading; nothing if there was none.
    pub fn counters(&self) -> &[i32] {
        self.counters.as_ref().map_or(&[], SlotCounters::last)
    }

    /// Adds what another monitor has recorded. Any order of merging, and of recording and merging, comes to the same.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: other options, or more reports of a step than there are ranks, as after merging the same
    /// monitor twice. Nothing has changed then.
    pub fn merge(&mut self, other: &LoadMonitor) -> Result<()> {
        if self.options != other.options {
            let (mine, other) = (self.options, other.options);
            let range = format!("must be those of this monitor, {mine:?}");
            return Err(Error::argument(
                "monitor",
                "the other monitor's options",
                format!("{other:?}"),
                range,
            ));
        }
        let newest = self.newest_step().max(other.newest_step()).unwrap_or(0);
        let is_kept = |step: u64| step + self.options.window as u64 > newest;
        for (&number, more) in other.steps.iter().filter(|(&number, _)| is_kept(number)) {
            if let Some(step) = self.steps.get(&number) {
                for (layer, (&mine, &more)) in step.reports.iter().zip(&more.reports).enumerate() {
                    self.check_reports(number, layer, mine as usize + more as usize)?;
                }
            }
        }
        for (&number, more) in other.steps.iter().filter(|(&number, _)| is_kept(number)) {
            let step = self.steps.entry(number).or_insert_with(|| Step::new(&self.options));
            add(&mut step.reports, more.reports.iter().copied());
            add(&mut step.counts, more.counts.iter().copied());
        }
        self.steps.retain(|&number, _| is_kept(number));
        Ok(())
    }

    /// The newest step that was recorded.
    pub fn newest_step(&self) -> Option<u64> {
        self.steps.last_key_value().map(|(&number, _)| number)
    }

    /// The numbers of the window's steps, in order.
    pub fn step_numbers(&self, reported: Reported) -> Vec<u64> {
        self.recorded(reported).map(|(number, _)| number).collect()
    }

    /// The steps that have a report but not all.
    pub fn incomplete_steps(&self) -> Vec<u64> {
        self.recorded(Reported::ByAny)
            .filter(|(_, step)| !self.is_complete(step))
            .map(|(number, _)| number)
            .collect()
    }

    /// `[num_layers]`: how many reports there are of a step; `None` if there is none or it has left the window.
    pub fn reports(&self, step: u64) -> Option<&[u32]> {
        self.steps.get(&step).map(|step| step.reports.as_slice())
    }

    /// `[num_layers, num_experts]`: tokens of the window's steps, exactly.
    pub fn window_counts(&self, reported: Reported) -> Vec<u64> {
        let mut sums = vec![0; self.options.num_layers * self.options.num_experts];
        for (_, step) in self.recorded(reported) {
            add(&mut sums, step.counts.iter().copied());
        }
        sums
    }

    /// `[num_layers, num_experts]`: tokens of the window's steps as loads to balance.
    pub fn window_sum(&self, reported: Reported) -> Vec<f32> {
        self.window_counts(reported).into_iter().map(|count| count as f32).collect()
    }

    /// `[num_steps, num_layers, num_experts]`: tokens of each of the window's steps, in the order of
    /// [`step_numbers`](LoadMonitor::step_numbers).
    pub fn steps(&self, reported: Reported) -> Vec<f32> {
        self.recorded(reported).flat_map(|(_, step)| step.counts.iter().map(|&count| count as f32)).collect()
    }

    /// `[num_layers, num_experts]`: tokens per step, averaged over the window with weights that halve with each
    /// `half_life` of steps before the newest of those asked for. 0 where there is no such step.
    ///
    /// It is a function of the window's integers, without anything carried along, so that it too is the same for any
    /// order of merging. A step that is missing has no weight, instead of counting as one without load.
    pub fn average(&self, reported: Reported) -> Vec<f32> {
        let mut sums = vec![0.0; self.options.num_layers * self.options.num_experts];
        let mut weights = 0.0;
        let newest = self.recorded(reported).next_back().map_or(0, |(number, _)| number);
        for (number, step) in self.recorded(reported) {
            let weight = halved((newest - number) as f64 / self.options.half_life);
            weights += weight;
            for (sum, &count) in sums.iter_mut().zip(&step.counts) {
                *sum += weight * count as f64;
            }
        }
        // The newest step weighs 1: there is no division by 0 where there is a step.
        sums.into_iter().map(|sum| if weights > 0.0 { (sum / weights) as f32 } else { 0.0 }).collect()
    }

    /// How balanced the window's tokens are on the GPUs of a placement, `slot_to_expert[layer, slot]` of all of
    /// `cluster`'s slots, with `shares[layer, slot]` of the expert's tokens or, without, equal shares.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: lengths that do not fit, an expert that there is not or that has no replica, a share that
    /// is not 0 to 1.
    pub fn balancedness(
        &self,
        reported: Reported,
        cluster: &Cluster,
        slot_to_expert: &[u32],
        shares: Option<&[f64]>,
    ) -> Result<Balancedness> {
        let loads = self.window_sum(reported);
        Balancedness::of_placement(self.options.num_experts, cluster, slot_to_expert, shares, &loads)
    }

    fn record(&mut self, number: u64, first_layer: usize, counts: &[u32]) -> Result<bool> {
        in_range("monitor", "step", number, 0..=STEP_MAX)?;
        let window = self.options.window as u64;
        if self.newest_step().is_some_and(|newest| number + window <= newest) {
            return Ok(false);
        }
        let layers = first_layer..first_layer + counts.len() / self.options.num_experts;
        if let Some(step) = self.steps.get(&number) {
            for layer in layers.clone() {
                self.check_reports(number, layer, step.reports[layer] as usize + 1)?;
            }
        }
        let step = self.steps.entry(number).or_insert_with(|| Step::new(&self.options));
        add(
            &mut step.counts[first_layer * self.options.num_experts..],
            counts.iter().map(|&count| count.into()),
        );
        add(&mut step.reports[layers], std::iter::repeat(1));
        while let Some(oldest) = self.steps.first_entry().filter(|oldest| *oldest.key() + window <= number) {
            oldest.remove();
        }
        Ok(true)
    }

    /// Counts of slots as counts of experts, `[num_layers, num_experts]`.
    fn logical_counts(&self, slot_to_expert: &[u32], counts: &[i32]) -> Result<Vec<u32>> {
        let MonitorOptions { num_layers, num_experts, .. } = self.options;
        self.check_len("counts", counts.len(), slot_to_expert.len())?;
        if counts.len() % num_layers != 0 {
            let range = format!("must be a multiple of num_layers = {num_layers}");
            return Err(Error::argument("monitor", "the number of counts", counts.len(), range));
        }
        let num_slots = (counts.len() / num_layers).max(1);
        let mut sums = vec![0u32; num_layers * num_experts];
        for (index, (&count, &expert)) in counts.iter().zip(slot_to_expert).enumerate() {
            let place = || format!("[layer {}, slot {}]", index / num_slots, index % num_slots);
            let error = |what: &str, value: String, range: String| {
                Err(Error::argument("monitor", format!("{what}{}", place()), value, range))
            };
            let Ok(count) = u32::try_from(count) else {
                return error("counts", count.to_string(), "must not be negative".into());
            };
            if expert == EMPTY {
                if count > 0 {
                    return error("counts", count.to_string(), "must be 0 where the slot is empty".into());
                }
                continue;
            }
            if expert as usize >= num_experts {
                return error(
                    "slot_to_expert",
                    expert.to_string(),
                    format!("must be 0 to {}", num_experts - 1),
                );
            }
            let sum = &mut sums[index / num_slots * num_experts + expert as usize];
            let Some(more) = sum.checked_add(count) else {
                let total = u64::from(*sum) + u64::from(count);
                let what = format!("the tokens of expert {expert} up to ");
                return error(&what, total.to_string(), format!("must be at most {}", u32::MAX));
            };
            *sum = more;
        }
        Ok(sums)
    }

    fn recorded(&self, reported: Reported) -> impl DoubleEndedIterator<Item = (u64, &Step)> {
        let is_asked_for = move |step: &Step| reported == Reported::ByAny || self.is_complete(step);
        self.steps.iter().filter(move |(_, step)| is_asked_for(step)).map(|(&number, step)| (number, step))
    }

    fn is_complete(&self, step: &Step) -> bool {
        step.reports.iter().all(|&reports| reports as usize == self.options.num_ranks)
    }

    fn check_reports(&self, step: u64, layer: usize, reports: usize) -> Result<()> {
        if reports <= self.options.num_ranks {
            return Ok(());
        }
        let argument = format!("the number of reports of step {step}, layer {layer}");
        let range = format!("must be at most num_ranks = {}", self.options.num_ranks);
        Err(Error::argument("monitor", argument, reports, range))
    }

    fn check_len(&self, argument: &str, len: usize, want: usize) -> Result<()> {
        if len == want {
            return Ok(());
        }
        Err(Error::argument("monitor", format!("the number of {argument}"), len, format!("must be {want}")))
    }
}

impl Step {
    fn new(options: &MonitorOptions) -> Step {
        Step {
            reports: vec![0; options.num_layers],
            counts: vec![0; options.num_layers * options.num_experts],
        }
    }
}

fn add<T: std::ops::AddAssign>(sums: &mut [T], more: impl Iterator<Item = T>) {
    for (sum, more) in sums.iter_mut().zip(more) {
        *sum += more;
    }
}

/// 2^-x for x of 0 or more, the same on every machine, which `f64::exp2` does not promise.
fn halved(x: f64) -> f64 {
    let halvings = x.floor();
    if halvings > 1022.0 {
        return 0.0;
    }
    let power_of_two = f64::from_bits((1023 - halvings as u64) << 52);
    // e^y by its series, the last term of which is below 1e-20.
    let y = -(x - halvings) * std::f64::consts::LN_2;
    power_of_two * (1..=18).rev().fold(1.0, |series, k| 1.0 + y * series / f64::from(k))
}

#[cfg(test)]
mod tests {
    use super::halved;

    #[test]
    fn halving_is_exact_at_whole_numbers_and_close_to_exp2_between() {
        for (x, want) in
            [(0.0, 1.0), (1.0, 0.5), (10.0, 1.0 / 1024.0), (1022.0, f64::MIN_POSITIVE), (1023.0, 0.0)]
        {
            assert_eq!(halved(x), want, "{x}");
        }
        assert_eq!(halved(f64::INFINITY), 0.0);
        for i in 0..4000 {
            let x = f64::from(i) * 0.01;
            assert!((halved(x) / (-x).exp2() - 1.0).abs() < 4e-16, "{x}");
        }
    }
}
