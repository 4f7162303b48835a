//! Numbers and tables as people read them.

/// A unit to show values in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) name: &'static str,
    size: u64,
    decimals: usize,
}

const TIMES: [Unit; 4] = [
    Unit { name: "s", size: 1_000_000_000, decimals: 3 },
    Unit { name: "ms", size: 1_000_000, decimals: 3 },
    Unit { name: "us", size: 1_000, decimals: 3 },
    Unit { name: "ns", size: 1, decimals: 0 },
];
const BYTES: [Unit; 4] = [
    Unit { name: "GiB", size: 1 << 30, decimals: 2 },
    Unit { name: "MiB", size: 1 << 20, decimals: 2 },
    Unit { name: "KiB", size: 1 << 10, decimals: 2 },
    Unit { name: "B", size: 1, decimals: 0 },
];

impl Unit {
    /// For times of which the longest is `ns`: two digits before the point, where there are that many.
    pub(super) fn of_times(ns: u64) -> Unit {
        Unit::below(ns / 10, TIMES)
    }

    /// For sizes of which the largest is `bytes`.
    pub(super) fn of_bytes(bytes: u64) -> Unit {
        Unit::below(bytes, BYTES)
    }

    /// Things that are counted.
    pub(super) const COUNT: Unit = Unit { name: "activations", size: 1, decimals: 0 };

    /// The largest that `value` is one of.
    fn below(value: u64, [first, second, third, least]: [Unit; 4]) -> Unit {
        [first, second, third].into_iter().find(|unit| value >= unit.size).unwrap_or(least)
    }

    /// A value in this unit.
    pub(super) fn value(self, value: u64) -> f64 {
        value as f64 / self.size as f64
    }

    /// A value in this unit, without its name.
    pub(super) fn show(self, value: u64) -> String {
        format!("{:.*}", self.decimals, self.value(value))
    }

    /// A value in this unit, with its name.
    pub(super) fn show_named(self, value: u64) -> String {
        format!("{} {}", self.show(value), self.name)
    }

    /// A value in this unit, without its name, with no more decimals than it has.
    pub(super) fn show_short(self, value: u64) -> String {
        let text = self.show(value);
        match text.contains('.') {
            true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
            false => text,
        }
    }
}

/// value / bound - 1 in per cent, or a dash where there is no bound.
pub(super) fn gap(value: u64, bound: u64) -> String {
    match bound {
        0 => "-".to_owned(),
        bound => format!("{:.1}%", (value as f64 / bound as f64 - 1.0) * 100.0),
    }
}

/// Rows of as many cells as the first has, which heads them. Columns of words begin at their left edge, those of
/// numbers end at their right one.
pub(super) fn table(rows: &[Vec<String>], is_left: impl Fn(usize) -> bool) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells =
            row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match is_left(column) {
                true => format!("{cell:<width$}"),
                false => format!("{cell:>width$}"),
            });
        let line = cells.collect::<Vec<String>>().join("  ");
        text += line.trim_end();
        text.push('\n');
    }
    text
}
