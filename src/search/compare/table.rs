//! A comparison as a table of text.

use super::{Candidate, Comparison, Excess, Measured, Setting};
use crate::search::show::{gap, table, Unit};
use crate::sim::MemoryCap;

/// The units of a table's columns.
struct Units {
    time: Unit,
    parameters: Option<Unit>,
    activations: Option<Unit>,
    sent: Option<Unit>,
}

pub(super) fn to_text(comparison: &Comparison) -> String {
    let units = Units::of(&comparison.candidates);
    let mut rows = head(&units).to_vec();
    let mut reasons = String::new();
    for candidate in &comparison.candidates {
        match &candidate.outcome {
            Ok(measured) => rows.push(row(candidate, measured, &units)),
            Err(why) => reasons += &format!("  {} on {}: {why}\n", candidate.name, candidate.placement),
        }
    }
    let mut text = title(&comparison.setting);
    text += &table(&rows, |column| column < 2);
    if !reasons.is_empty() {
        text += &format!("not possible:\n{reasons}");
    }
    text
}

fn title(setting: &Setting) -> String {
    let Setting { num_ranks, num_microbatches, cap, .. } = setting;
    let entries = |shown: Vec<String>| match &shown[..] {
        [one] => format!("{one} on each rank"),
        all => format!("{} on ranks 0 to {}", all.join(" "), all.len() - 1),
    };
    let cap = match cap {
        MemoryCap::Unlimited => "no memory cap".to_owned(),
        MemoryCap::Activations(caps) => {
            format!("at most {} (activations)", entries(caps.iter().map(usize::to_string).collect()))
        }
        MemoryCap::Bytes(caps) => {
            let unit = Unit::of_bytes(caps.iter().copied().max().unwrap_or(0));
            format!("at most {} ({})", entries(caps.iter().map(|&cap| unit.show(cap)).collect()), unit.name)
        }
    };
    format!("{num_ranks} ranks, {num_microbatches} micro-batches, {cap}\n")
}

impl Units {
    fn of(candidates: &[Candidate]) -> Units {
        let measured = || candidates.iter().filter_map(|candidate| candidate.outcome.as_ref().ok());
        let most = |value: fn(&Measured) -> u64| measured().map(value).max().unwrap_or(0);
        let of_bytes = |most: u64| (most > 0).then(|| Unit::of_bytes(most));
        Units {
            time: Unit::of_times(most(|measured| measured.makespan_ns)),
            parameters: of_bytes(most(|measured| measured.parameter_bytes)),
            activations: of_bytes(most(|measured| measured.peak_activation_bytes)),
            sent: of_bytes(most(|measured| measured.sent_bytes)),
        }
    }
}

/// Two rows: what a column is, and its units.
fn head(units: &Units) -> [Vec<String>; 2] {
    let names = [
        "schedule",
        "placement",
        "makespan",
        "gap",
        "bubble",
        "parameters",
        "activations",
        "messages",
        "excess",
    ];
    let of_bytes = |unit: Option<Unit>| unit.map_or(String::new(), |unit| format!("/ {}", unit.name));
    let [blank, parameters, activations, sent] =
        [None, units.parameters, units.activations, units.sent].map(of_bytes);
    let mut below = vec![blank; names.len()];
    below[2] = units.time.name.to_owned();
    below[5..8].clone_from_slice(&[parameters, activations, sent]);
    [names.map(str::to_owned).into(), below]
}

fn row(candidate: &Candidate, measured: &Measured, units: &Units) -> Vec<String> {
    let with_bytes = |first: String, unit: Option<Unit>, bytes: u64| match unit {
        Some(unit) => format!("{first} / {}", unit.show(bytes)),
        None => first,
    };
    let copies = format!("{}x", measured.parameter_copies);
    let activations = format!("{:.2}", measured.peak_activations);
    let messages = measured.sent_messages.to_string();
    vec![
        candidate.name.clone(),
        candidate.placement.clone(),
        units.time.show(measured.makespan_ns),
        gap(measured.makespan_ns, measured.lower_bound_ns),
        format!("{:.1}%", measured.bubble_share * 100.0),
        with_bytes(copies, units.parameters, measured.parameter_bytes),
        with_bytes(activations, units.activations, measured.peak_activation_bytes),
        with_bytes(messages, units.sent, measured.sent_bytes),
        match measured.excess {
            None => String::new(),
            Some(Excess::Activations(over)) => format!("{over:.2}"),
            Some(Excess::Bytes(over)) => Unit::of_bytes(over).show_named(over),
        },
    ]
}
