//! Load histories: the loads of a recorded run, step by step, and placements, as other programs keep them in files.
//!
//! | file    | what                                                                              |
//! | ------- | --------------------------------------------------------------------------------- |
//! | `vllm`  | vLLM's JSON lines: loads per slot with the placement they were recorded under     |
//! | `json`  | `{"load_history": [{"logical_expert_load": [[...]]}]}`                            |
//! | `csv`   | numbers: a line per layer, an empty line between steps                            |
//! | `ascend` | a placement: vllm-ascend's expert map                                             |
//! | `table` | rows of numbers within JSON, checked while they are read                          |
//!
//! Everything is text in and text out; files are the caller's. What is read is checked number by number, an error
//! names the line, and reading takes memory in proportion to the text and the loads that it says, at most 2^28. What is
//! written depends on the history only.

mod ascend;
mod csv;
mod json;
mod table;
mod vllm;

pub use ascend::FilePlacement;

use super::cluster::{EMPTY, SLOTS_MAX};
use super::goal::{EXPERTS_MAX, LAYERS_MAX};
use crate::error::{in_range, Error, ErrorKind, Result};

/// Loads of layers and experts for a number of steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadHistory {
    /// Layers with experts.
    pub num_layers: usize,
    /// Logical experts of a layer.
    pub num_experts: usize,
    /// In the order of the file.
    pub steps: Vec<HistoryStep>,
    /// What else the file says.
    pub meta: HistoryMeta,
}

/// One step, or one record of several that were added up.
#[derive(Clone, Debug, PartialEq)]
pub struct HistoryStep {
    /// Its number in the file, else its index.
    pub step: u64,
    /// `[num_layers, num_experts]`: finite, not negative.
    pub loads: Vec<f32>,
    /// The placement of the step and what each slot got, if recorded.
    pub slots: Option<SlotLoads>,
}

/// The loads of slots, as a placement shared them.
#[derive(Clone, Debug, PartialEq)]
pub struct SlotLoads {
    /// `[num_layers, num_slots]`; [`EMPTY`] where a slot holds nothing.
    pub slot_to_expert: Vec<u32>,
    /// `[num_layers, num_slots]`: finite, not negative.
    pub loads: Vec<f32>,
}

/// What vLLM's first line says of a run. `None` is not written.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct HistoryMeta {
    /// The model's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// GPUs that share the experts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_ranks: Option<u32>,
    /// Groups of experts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_groups: Option<u32>,
    /// Nodes of the GPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_nodes: Option<u32>,
}

/// Loads of all steps together.
const LOADS_MAX: usize = 1 << 28;

impl LoadHistory {
    /// A history from loads `[num_steps, num_layers, num_experts]`, numbered from 0, such as a
    /// [`LoadMonitor`](super::LoadMonitor) gives.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: `num_layers` outside 1 to 4096, `num_experts` outside 1 to 65536, a number of loads that is
    /// not a multiple of both or more than 2^28, a load that is not finite or negative.
    pub fn new(num_layers: usize, num_experts: usize, loads: &[f32]) -> Result<LoadHistory> {
        let per_step = check_sizes(num_layers, num_experts)?;
        in_range("history", "the number of loads", loads.len(), 0..=LOADS_MAX)?;
        if loads.len() % per_step != 0 {
            let range = format!("must be a multiple of num_layers * num_experts = {per_step}");
            return Err(Error::argument("history", "the number of loads", loads.len(), range));
        }
        let steps = loads.chunks_exact(per_step).enumerate();
        let steps =
            steps.map(|(step, loads)| HistoryStep { step: step as u64, loads: loads.to_vec(), slots: None });
        let history =
            LoadHistory { num_layers, num_experts, steps: steps.collect(), meta: HistoryMeta::default() };
        history.check()?;
        Ok(history)
    }

    /// More steps, `loads[num_steps, num_layers, num_experts]`, numbered from `step` on.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: a number of loads that is not a multiple of both, a load that is not finite or negative, a
    /// step number of 2^64, more than 2^28 loads of all steps. Nothing has changed then.
    pub fn append(&mut self, step: u64, loads: &[f32]) -> Result<()> {
        let more = LoadHistory::new(self.num_layers, self.num_experts, loads)?;
        self.check_room(step, more.steps.len())?;
        self.steps.extend(more.steps.into_iter().map(|more| HistoryStep { step: step + more.step, ..more }));
        Ok(())
    }

    /// One more step as slots got it, `loads[num_layers, num_slots]`, with the expert that each held, [`EMPTY`] for
    /// none.
    ///
    /// # Errors
    ///
    /// As [`append`](LoadHistory::append); lengths that are not equal or not a multiple of `num_layers`, an expert that
    /// there is not, a slot that is [`EMPTY`] and has load.
    pub fn append_slots(&mut self, step: u64, slot_to_expert: &[u32], loads: &[f32]) -> Result<()> {
        check_sizes(self.num_layers, self.num_experts)?;
        let (index, num_slots) = (self.steps.len(), loads.len() / self.num_layers);
        check_slots(index, self.num_layers, slot_to_expert, loads)?;
        let of_experts = logical(self.num_experts, num_slots, slot_to_expert, loads, f64::from)
            .map_err(|error| error.within(&format!("history: step {index}")))?;
        self.check_room(step, 1)?;
        let slots = SlotLoads { slot_to_expert: slot_to_expert.to_vec(), loads: loads.to_vec() };
        self.steps.push(HistoryStep { step, loads: of_experts, slots: Some(slots) });
        Ok(())
    }

    /// Whether so many steps more have a number and a place.
    fn check_room(&self, step: u64, num_steps: usize) -> Result<()> {
        let per_step = check_sizes(self.num_layers, self.num_experts)?;
        in_range("history", "the number of steps", self.steps.len() + num_steps, 0..=LOADS_MAX / per_step)?;
        in_range("history", "step", step, 0..=u64::MAX - num_steps as u64)?;
        Ok(())
    }

    /// `[num_steps, num_layers, num_experts]`: the loads of all steps.
    pub fn loads(&self) -> Vec<f32> {
        self.steps.iter().flat_map(|step| step.loads.iter().copied()).collect()
    }

    /// Whether the fields, which anyone may set, fit together; what is written is checked so.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: sizes out of range, or a step whose arrays have other lengths, numbers that are no loads, or
    /// an expert that there is not.
    pub fn check(&self) -> Result<()> {
        let per_step = check_sizes(self.num_layers, self.num_experts)?;
        in_range("history", "the number of steps", self.steps.len(), 0..=LOADS_MAX / per_step)?;
        for (index, step) in self.steps.iter().enumerate() {
            check_len(index, "loads", step.loads.len(), per_step)?;
            check_loads(index, "loads", self.num_experts, &step.loads)?;
            let Some(slots) = &step.slots else { continue };
            check_slots(index, self.num_layers, &slots.slot_to_expert, &slots.loads)?;
            let num_slots = slots.loads.len() / self.num_layers;
            logical(self.num_experts, num_slots, &slots.slot_to_expert, &slots.loads, f64::from)
                .map_err(|error| error.within(&format!("history: step {index}")))?;
        }
        Ok(())
    }
}

/// Tokens that slots got, `counts[step, layer, slot]`, as those of their experts, `[num_steps, num_layers,
/// num_experts]`, under one placement, `slot_to_expert[layer, slot]`: what SGLang's recorder has as
/// `global_physical_count` and `last_physical_to_logical_map`. `O(counts)`.
///
/// # Errors
///
/// `InvalidArgument`: sizes out of range, a number of counts that is not a multiple of the slots, more than 2^28 of
/// either kind, an expert that there is not, a negative count, a slot that is [`EMPTY`] and has got tokens.
pub fn logical_loads(
    num_layers: usize,
    num_experts: usize,
    slot_to_expert: &[u32],
    counts: &[i64],
) -> Result<Vec<f32>> {
    let per_step = check_sizes(num_layers, num_experts)?;
    let num_slots =
        in_range("history", "the number of slots", slot_to_expert.len() / num_layers, 1..=SLOTS_MAX)?;
    if slot_to_expert.len() % num_layers != 0 {
        let range = format!("must be a multiple of num_layers = {num_layers}");
        return Err(Error::argument("history", "the length of slot_to_expert", slot_to_expert.len(), range));
    }
    if counts.len() % slot_to_expert.len() != 0 {
        let range = format!("must be a multiple of slot_to_expert's {}", slot_to_expert.len());
        return Err(Error::argument("history", "the number of counts", counts.len(), range));
    }
    let num_steps = counts.len() / slot_to_expert.len();
    in_range("history", "the number of steps", num_steps, 0..=LOADS_MAX / per_step)?;
    let mut loads = Vec::with_capacity(num_steps * per_step);
    for (step, counts) in counts.chunks_exact(slot_to_expert.len()).enumerate() {
        let of_step = logical(num_experts, num_slots, slot_to_expert, counts, |count| count as f64);
        loads.extend(of_step.map_err(|error| error.within(&format!("history: step {step}")))?);
    }
    Ok(loads)
}

/// `[layers, num_experts]`: the sums over the slots of each expert. Errors have the texts of `"slots: ..."`, to be put
/// in place with [`Error::within`].
fn logical<T: Copy>(
    num_experts: usize,
    num_slots: usize,
    slot_to_expert: &[u32],
    slot_loads: &[T],
    as_f64: impl Fn(T) -> f64,
) -> Result<Vec<f32>> {
    let mut loads = Vec::with_capacity(slot_loads.len() / num_slots * num_experts);
    let layers = slot_to_expert.chunks_exact(num_slots).zip(slot_loads.chunks_exact(num_slots));
    for (layer, (experts, slot_loads)) in layers.enumerate() {
        let mut sums = vec![0.0; num_experts];
        for (slot, (&expert, &load)) in experts.iter().zip(slot_loads).enumerate() {
            let load = as_f64(load);
            let wrong = |what: &str, value: String, range: String| {
                Err(Error::argument("slots", format!("{what}[layer {layer}, slot {slot}]"), value, range))
            };
            if load < 0.0 {
                return wrong("load", load.to_string(), "must not be negative".into());
            } else if expert == EMPTY && load > 0.0 {
                return wrong("load", load.to_string(), "must be 0 where the slot is empty".into());
            } else if expert != EMPTY && expert as usize >= num_experts {
                return wrong(
                    "slot_to_expert",
                    expert.to_string(),
                    format!("must be 0 to {}", num_experts - 1),
                );
            } else if expert != EMPTY {
                sums[expert as usize] += load;
            }
        }
        if let Some(expert) = sums.iter().position(|&sum| sum > f64::from(f32::MAX)) {
            let argument = format!("the load of layer {layer}'s expert {expert}");
            let range = format!("must be at most {:e}", f32::MAX);
            return Err(Error::argument("slots", argument, format!("{:e}", sums[expert]), range));
        }
        loads.extend(sums.into_iter().map(|sum| sum as f32));
    }
    Ok(loads)
}

fn check_sizes(num_layers: usize, num_experts: usize) -> Result<usize> {
    in_range("history", "num_layers", num_layers, 1..=LAYERS_MAX)?;
    in_range("history", "num_experts", num_experts, 1..=EXPERTS_MAX)?;
    Ok(num_layers * num_experts)
}

fn check_len(step: usize, what: &str, len: usize, must_be: usize) -> Result<()> {
    if len == must_be {
        return Ok(());
    }
    Err(Error::argument(
        "history",
        format!("the length of steps[{step}].{what}"),
        len,
        format!("must be {must_be}"),
    ))
}

/// The lengths and the loads; not yet whether each slot that has a load has an expert.
fn check_slots(step: usize, num_layers: usize, slot_to_expert: &[u32], loads: &[f32]) -> Result<()> {
    let num_slots = loads.len() / num_layers;
    in_range("history", &format!("the number of slots of step {step}"), num_slots, 1..=SLOTS_MAX)?;
    check_len(step, "slots.loads", loads.len(), num_slots * num_layers)?;
    check_len(step, "slots.slot_to_expert", slot_to_expert.len(), num_slots * num_layers)?;
    check_loads(step, "slots.loads", num_slots, loads)
}

fn check_loads(step: usize, what: &str, row_len: usize, loads: &[f32]) -> Result<()> {
    match loads.iter().position(|&load| !is_load(load.into())) {
        None => Ok(()),
        Some(i) => {
            let argument = format!("steps[{step}].{what}[layer {}][{}]", i / row_len, i % row_len);
            Err(Error::argument(
                "history",
                argument,
                format!("{:?}", loads[i]),
                "must be finite and not negative",
            ))
        }
    }
}

/// Whether a number in a file is a load; false for NaN. What float32 would round to infinity is none.
fn is_load(load: f64) -> bool {
    (0.0..=f64::from(f32::MAX)).contains(&load)
}

/// What serde_json found, with the line and column of the whole text, which it began to read at `first_line`.
fn json_error(first_line: usize, error: &serde_json::Error) -> Error {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(&*text, |(what, _)| what);
    let line = first_line + error.line().saturating_sub(1);
    malformed(format_args!("line {line}, column {}: {what}", error.column()))
}

/// An error in a text.
fn malformed(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("history: {what}"))
}
