//! `{"load_history": [{"logical_expert_load": [[1, 2], [3, 4]]}]}`: loads of experts, `[layers][experts]` per step, as
//! in the recordings that EPLB policies were evolved on (ADRS, skydiscover; `expert-load.json`).

use serde::Deserialize;

use super::table::{self, Digits, Table};
use super::{json_error, malformed, LoadHistory};
use crate::error::Result;

#[derive(Deserialize)]
struct File {
    load_history: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(deserialize_with = "table::logical_expert_load")]
    logical_expert_load: Table<f32>,
}

impl LoadHistory {
    /// Reads the form of this file's head; other fields are skipped. Steps are numbered from 0. `O(text)`.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: not such a text, numbers that are no loads, steps with other sizes than the first, no step,
    /// more than 2^28 loads.
    pub fn from_json(text: &str) -> Result<LoadHistory> {
        let file: File = serde_json::from_str(text).map_err(|error| json_error(1, &error))?;
        let Some(Entry { logical_expert_load: first }) = file.load_history.first() else {
            return Err(malformed("load_history is empty, must have a step"));
        };
        let (num_layers, num_experts) = (first.num_rows, first.num_columns);
        let mut loads = Vec::with_capacity(file.load_history.len() * first.values.len());
        for (step, Entry { logical_expert_load: table }) in file.load_history.iter().enumerate() {
            if (table.num_rows, table.num_columns) != (num_layers, num_experts) {
                let (layers, experts) = (table.num_rows, table.num_columns);
                let is = format!("load_history[{step}] has {layers} layers of {experts} experts");
                return Err(malformed(format_args!("{is}, must have {num_layers} of {num_experts}")));
            }
            loads.extend_from_slice(&table.values);
        }
        LoadHistory::new(num_layers, num_experts, &loads)
    }

    /// The loads of experts in that form, without the numbers of steps.
    ///
    /// # Errors
    ///
    /// As [`LoadHistory::check`].
    pub fn to_json(&self) -> Result<String> {
        self.check()?;
        let mut text = String::from("{\"load_history\":[");
        for (index, step) in self.steps.iter().enumerate() {
            text.push_str(if index > 0 { ",\n" } else { "\n" });
            text.push_str("{\"logical_expert_load\":");
            table::write(&mut text, self.num_experts, &step.loads, Digits);
            text.push('}');
        }
        text.push_str("\n]}\n");
        Ok(text)
    }
}
