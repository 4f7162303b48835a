//! vLLM's load statistics: JSON lines, one `eplb_load_meta` and then an `eplb_load_stats` per step
//! (vllm-project/vllm, pull request #41141).
//!
//! ```text
//! {"record_type":"eplb_load_meta","version":1,"model":"m","num_ranks":2,"num_layers":1,"num_redundant_experts":1}
//! {"record_type":"eplb_load_stats","version":1,"step":7,"expert_load":[[10,1,5]],"p2l_map":[[0,1,0]]}
//! ```
//!
//! `expert_load` is per slot, `[layers][slots]`, and `p2l_map` says which expert each holds; -1 is none. Without a map
//! the loads are those of experts. How many experts there are, only a field of ours says, `num_logical_experts`; else
//! it is the slots of the first step that hold one, less the redundant ones, or, without a meta line, one more than
//! the highest that any map names. Other records are refused, as vLLM does.

use std::borrow::Cow;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::table::{self, Digits, Table};
use super::{json_error, logical, malformed, HistoryMeta, HistoryStep, LoadHistory, SlotLoads, LOADS_MAX};
use crate::balance::cluster::EMPTY;
use crate::balance::goal::EXPERTS_MAX;
use crate::error::Result;

const META: &str = "eplb_load_meta";
const STATS: &str = "eplb_load_stats";
const VERSION: u32 = 1;

/// A line of either kind, of which it has the fields.
#[derive(Deserialize)]
struct Record<'a> {
    #[serde(borrow)]
    record_type: Cow<'a, str>,
    version: Option<u32>,

    model: Option<String>,
    num_ranks: Option<u32>,
    num_groups: Option<u32>,
    num_nodes: Option<u32>,
    num_layers: Option<usize>,
    num_redundant_experts: Option<usize>,
    num_logical_experts: Option<usize>,

    step: Option<u64>,
    #[serde(default, deserialize_with = "table::expert_load")]
    expert_load: Option<Table<f32>>,
    #[serde(default, deserialize_with = "table::p2l_map")]
    p2l_map: Option<Table<u32>>,
}

/// The first line.
#[derive(Serialize)]
struct MetaRecord<'a> {
    record_type: &'static str,
    version: u32,
    #[serde(flatten)]
    meta: &'a HistoryMeta,
    num_layers: usize,
    num_redundant_experts: usize,
    num_logical_experts: usize,
}

/// A later line.
struct Stats {
    line: usize,
    step: u64,
    load: Table<f32>,
    map: Option<Table<u32>>,
}

impl LoadHistory {
    /// Reads vLLM's JSON lines. Empty lines are skipped. `O(text)`, and the loads that it comes to.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: a line that is no such record, numbers that are no loads or no experts, steps with other
    /// sizes than the first, no step, more than 2^28 loads. The text begins with the line: `history: line 2, column
    /// 73: expert_load[0][1] is -1, must be finite and not negative`.
    pub fn from_vllm(text: &str) -> Result<LoadHistory> {
        let mut head: Option<Record> = None;
        let mut stats: Vec<Stats> = Vec::new();
        for (line, text) in (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty()) {
            let record: Record = serde_json::from_str(text).map_err(|error| json_error(line, &error))?;
            if let Some(version) = record.version.filter(|&version| version != VERSION) {
                return Err(malformed(format_args!("line {line}: version is {version}, must be {VERSION}")));
            }
            match &*record.record_type {
                META if !stats.is_empty() || head.is_some() => {
                    return Err(malformed(format_args!("line {line}: {META} must be the first record only")));
                }
                META => head = Some(record),
                STATS => stats.push(Stats::new(line, stats.len(), record)?),
                other => {
                    let expected = format!("must be {META:?} or {STATS:?}");
                    return Err(malformed(format_args!("line {line}: record_type is {other:?}, {expected}")));
                }
            }
        }
        let first = stats.first().ok_or_else(|| malformed(format_args!("there is no {STATS} record")))?;
        let num_layers = first.load.num_rows;
        if let Some(layers) =
            head.as_ref().and_then(|head| head.num_layers).filter(|&layers| layers != num_layers)
        {
            let line = first.line;
            let rows = format!("expert_load has {num_layers} rows, must have num_layers = {layers}");
            return Err(malformed(format_args!("line {line}: {rows}")));
        }
        let num_experts = num_experts(head.as_ref(), &stats)?;
        if stats.len() > LOADS_MAX / (num_layers * num_experts) {
            let (steps, most) = (stats.len(), LOADS_MAX / (num_layers * num_experts));
            return Err(malformed(format_args!("the number of steps is {steps}, must be at most {most}")));
        }
        let steps = stats.into_iter().map(|stats| stats.into_step(num_layers, num_experts));
        let steps = steps.collect::<Result<Vec<HistoryStep>>>()?;
        let meta = head.map_or_else(HistoryMeta::default, |head| HistoryMeta {
            model: head.model,
            num_ranks: head.num_ranks,
            num_groups: head.num_groups,
            num_nodes: head.num_nodes,
        });
        Ok(LoadHistory { num_layers, num_experts, steps, meta })
    }

    /// vLLM's JSON lines. As vLLM wants a map in each step, a step without slots gets one slot per expert.
    ///
    /// # Errors
    ///
    /// As [`LoadHistory::check`].
    pub fn to_vllm(&self) -> Result<String> {
        self.check()?;
        let slots_of_first_layer = |step: &HistoryStep| match &step.slots {
            None => self.num_experts,
            Some(slots) => {
                let layer = &slots.slot_to_expert[..slots.slot_to_expert.len() / self.num_layers];
                layer.iter().filter(|&&expert| expert != EMPTY).count()
            }
        };
        let num_slots = self.steps.first().map_or(self.num_experts, slots_of_first_layer);
        let head = MetaRecord {
            record_type: META,
            version: VERSION,
            meta: &self.meta,
            num_layers: self.num_layers,
            num_redundant_experts: num_slots.saturating_sub(self.num_experts),
            num_logical_experts: self.num_experts,
        };
        let mut text = serde_json::to_string(&head).map_err(malformed)?;
        let one_each: Vec<u32> = (0..self.num_layers).flat_map(|_| 0..self.num_experts as u32).collect();
        for step in &self.steps {
            let (loads, map) = match &step.slots {
                None => (&step.loads, &one_each),
                Some(slots) => (&slots.loads, &slots.slot_to_expert),
            };
            let _ =
                write!(text, "\n{{\"record_type\":\"{STATS}\",\"version\":{VERSION},\"step\":{}", step.step);
            text.push_str(",\"expert_load\":");
            table::write(&mut text, loads.len() / self.num_layers, loads, Digits);
            text.push_str(",\"p2l_map\":");
            table::write(&mut text, map.len() / self.num_layers, map, |expert| match expert {
                EMPTY => -1,
                _ => i64::from(expert),
            });
            text.push('}');
        }
        text.push('\n');
        Ok(text)
    }
}

impl Stats {
    fn new(line: usize, index: usize, record: Record) -> Result<Stats> {
        let missing = || malformed(format_args!("line {line}: expert_load is missing"));
        let load = record.expert_load.ok_or_else(missing)?;
        if let Some(map) = &record.p2l_map {
            let sizes = |rows, columns| format!("{rows} rows of {columns} numbers");
            let (map, load) = (sizes(map.num_rows, map.num_columns), sizes(load.num_rows, load.num_columns));
            if map != load {
                return Err(malformed(format_args!(
                    "line {line}: p2l_map has {map}, expert_load has {load}"
                )));
            }
        }
        Ok(Stats { line, step: record.step.unwrap_or(index as u64), load, map: record.p2l_map })
    }

    fn into_step(self, num_layers: usize, num_experts: usize) -> Result<HistoryStep> {
        let Stats { line, step, load, map } = self;
        let error = |what: &str, is: usize, must_be: usize| {
            Err(malformed(format_args!("line {line}: expert_load has {is} {what}, must have {must_be}")))
        };
        if load.num_rows != num_layers {
            return error("rows", load.num_rows, num_layers);
        }
        let Some(map) = map else {
            if load.num_columns != num_experts {
                return error("numbers per row and no p2l_map", load.num_columns, num_experts);
            }
            return Ok(HistoryStep { step, loads: load.values, slots: None });
        };
        let loads = logical(num_experts, load.num_columns, &map.values, &load.values, f64::from)
            .map_err(|error| error.within(&format!("history: line {line}")))?;
        Ok(HistoryStep {
            step,
            loads,
            slots: Some(SlotLoads { slot_to_expert: map.values, loads: load.values }),
        })
    }
}

fn num_experts(head: Option<&Record>, stats: &[Stats]) -> Result<usize> {
    let first_row = |stats: &Stats| match &stats.map {
        None => stats.load.num_columns,
        Some(map) => map.values[..map.num_columns].iter().filter(|&&expert| expert != EMPTY).count(),
    };
    let without_map = stats.iter().find(|stats| stats.map.is_none());
    let redundant = head.and_then(|head| head.num_redundant_experts);
    let num_experts = match (head.and_then(|head| head.num_logical_experts), without_map, redundant, stats) {
        (Some(experts), ..) => experts,
        (_, Some(stats), ..) => stats.load.num_columns,
        (_, _, Some(redundant), [first, ..]) => first_row(first).saturating_sub(redundant),
        _ => {
            let maps = stats.iter().filter_map(|stats| stats.map.as_ref());
            let experts = maps.flat_map(|map| &map.values).filter(|&&expert| expert != EMPTY);
            experts.max().map_or(0, |&expert| expert as usize + 1)
        }
    };
    if (1..=EXPERTS_MAX).contains(&num_experts) {
        return Ok(num_experts);
    }
    Err(malformed(format_args!("the number of experts is {num_experts}, must be 1 to {EXPERTS_MAX}")))
}
