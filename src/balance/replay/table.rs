//! A replay as a table for people: a line for each policy.

use std::fmt;

use super::{Replay, Run};

const COLUMNS: [&str; 9] =
    ["policy", "imbalance", "worst", "bound", "away", "replans", "moves", "same node", "other node"];

impl fmt::Display for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![COLUMNS.map(str::to_owned)];
        rows.extend(self.runs.iter().map(row));
        let widths: [usize; COLUMNS.len()] = std::array::from_fn(|column| {
            rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
        });
        for row in rows {
            write!(f, "{:<width$}", row[0], width = widths[0])?;
            for (cell, width) in row.iter().zip(widths).skip(1) {
                write!(f, "  {cell:>width$}")?;
            }
            writeln!(f)?;
        }
        f.write_str(
            "imbalance: heaviest GPU / mean in the steps after each plan, mean over layers; worst: of one layer\n\
             moves: from GPU to GPU\n",
        )
    }
}

fn row(run: &Run) -> [String; COLUMNS.len()] {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    [
        // A name of several lines would break the table.
        run.name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect(),
        format!("{:.4}", mean(&run.imbalance)),
        format!("{:.4}", run.imbalance.iter().copied().fold(1.0, f64::max)),
        if run.lower_bound.is_empty() { "-".into() } else { format!("{:.4}", mean(&run.lower_bound)) },
        format!("{:.1} %", 100.0 * run.away()),
        run.num_new().to_string(),
        run.moves.between_gpus().to_string(),
        bytes(run.moves.same_node_bytes),
        bytes(run.moves.other_node_bytes),
    ]
}

/// In the unit that leaves one to three digits before the point.
fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    // What would be rounded to 1000 belongs to the next unit.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1000.0, unit + 1);
    }
    match (unit, value < 9.995) {
        (0, _) => format!("{value} B"),
        (_, true) => format!("{value:.2} {}", UNITS[unit]),
        (_, false) if value < 99.95 => format!("{value:.1} {}", UNITS[unit]),
        (_, false) => format!("{value:.0} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn bytes_have_three_digits() {
        for (value, want) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (9_994, "9.99 kB"),
            (9_996, "10.0 kB"),
            (99_960, "100 kB"),
            (999_499, "999 kB"),
            (999_500, "1.00 MB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(bytes(value), want);
        }
    }
}
