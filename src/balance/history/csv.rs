//! Numbers with commas between: a line per layer, a number per expert, an empty line or more between steps. No header.

use std::fmt::Write;

use super::table::Digits;
use super::{is_load, malformed, LoadHistory};
use crate::balance::goal::{EXPERTS_MAX, LAYERS_MAX};
use crate::error::Result;

impl LoadHistory {
    /// Reads such a text. Spaces around numbers do not matter, nor whether lines end in LF or CR LF. `O(text)`.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`, with the line: something that is no load, a line with another number of experts than the
    /// first, a step with another number of layers, no number at all, more than 2^28 loads.
    pub fn from_csv(text: &str) -> Result<LoadHistory> {
        let mut loads = Vec::new();
        let (mut num_experts, mut num_layers, mut layers) = (None, None, 0);
        // An empty line behind the last one ends the last step.
        for (line, text) in (1..).zip(text.lines().map(str::trim).chain([""])) {
            if !text.is_empty() {
                let len = read_layer(line, text, num_experts.unwrap_or(EXPERTS_MAX), &mut loads)?;
                layers += 1;
                let must_have = |must_have| {
                    malformed(format_args!("line {line} has {len} numbers, must have {must_have}"))
                };
                match num_experts {
                    Some(experts) if experts != len => return Err(must_have(experts)),
                    _ => num_experts = Some(len),
                }
                if layers > num_layers.unwrap_or(LAYERS_MAX) {
                    let most = num_layers.unwrap_or(LAYERS_MAX);
                    return Err(malformed(format_args!(
                        "line {line} is layer {layers} of its step, must be at most {most}"
                    )));
                }
            } else if layers > 0 {
                if let Some(num_layers) = num_layers.filter(|&num_layers| num_layers != layers) {
                    let range = format!("must have {num_layers}");
                    return Err(malformed(format_args!(
                        "the step before line {line} has {layers} layers, {range}"
                    )));
                }
                num_layers = Some(layers);
                layers = 0;
            }
        }
        match (num_layers, num_experts) {
            (Some(num_layers), Some(num_experts)) => LoadHistory::new(num_layers, num_experts, &loads),
            _ => Err(malformed("there is no number")),
        }
    }

    /// The loads of experts in that form, without the numbers of steps.
    ///
    /// # Errors
    ///
    /// As [`LoadHistory::check`].
    pub fn to_csv(&self) -> Result<String> {
        self.check()?;
        let mut text = String::new();
        for (index, step) in self.steps.iter().enumerate() {
            if index > 0 {
                text.push('\n');
            }
            for layer in step.loads.chunks_exact(self.num_experts) {
                for (expert, &load) in layer.iter().enumerate() {
                    let comma = if expert > 0 { "," } else { "" };
                    let _ = write!(text, "{comma}{}", Digits(load));
                }
                text.push('\n');
            }
        }
        Ok(text)
    }
}

/// Appends the numbers of a line to `loads`; how many, at most one more than `most`.
fn read_layer(line: usize, text: &str, most: usize, loads: &mut Vec<f32>) -> Result<usize> {
    let mut len = 0;
    for word in text.split(',').map(str::trim).take(most + 1) {
        len += 1;
        let error = |is: String| malformed(format_args!("line {line}, column {len} is {is}"));
        let Ok(load) = word.parse::<f32>() else {
            // A whole file might be one word.
            let start: String = word.chars().take(20).collect();
            return Err(error(format!("{start:?}, must be a number")));
        };
        if !is_load(load.into()) {
            return Err(error(format!("{load}, must be finite and not negative")));
        }
        loads.push(load + 0.0); // -0 becomes 0
    }
    Ok(len)
}
