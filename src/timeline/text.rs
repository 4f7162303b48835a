//! A timeline as text for a terminal: one line per rank, time from left to right.
//!
//! ```text
//! 0|F0 F1 F2 f0 i0 w0 f1 F3&b1    .  f2&B0    b2    .  f3&B1    b3    I2 W2 I3 W3 | idle 2 ms
//! ```
//!
//! A task stands where it starts and lasts until the next token; `.` is idle. Small letters are the rank's second
//! parameter copy; where a rank has more than two, the stage stands in front (`2F0`). R reduces gradients.
//!
//! Where all times are multiples of one unit that is not too small, each unit has the same number of columns, and
//! the drawing is exact. Elsewhere each column is the same share of the step, numbers that do not fit are left out
//! (never cut), and tasks shorter than a column may be missing.

use super::label::{percent, time, Labels};
use super::{Span, Timeline};
use crate::ids::Rank;

/// How wide [`Timeline::to_text`] draws at most.
pub const COLUMNS: usize = 300;
/// The fewest columns that time is drawn in, however few were asked for.
const TIME_COLUMNS_MIN: usize = 16;
/// The most that are drawn, however many were asked for: what keeps the text small enough to allocate.
const TIME_COLUMNS_MAX: usize = 10_000;

impl Timeline {
    /// The timeline as text, at most [`COLUMNS`] wide.
    pub fn to_text(&self) -> String {
        self.to_text_within(COLUMNS)
    }

    /// The timeline as text, at most `columns` wide: a title, one line per rank with its idle time at the end, and
    /// a line with makespan and bubble. Less than 16 columns for the time itself are not kept to.
    pub fn to_text_within(&self, columns: usize) -> String {
        let ranks = 0..self.spans.len();
        let idle = |rank| time(self.idle_ns(Rank::from_index(rank)));
        let head_width = self.spans.len().saturating_sub(1).to_string().len();
        let idle_width = ranks.clone().map(|rank| idle(rank).len()).max();
        let frame = head_width + "|".len() + "| idle ".len() + idle_width.unwrap_or(0);
        let room = columns.saturating_sub(frame).clamp(TIME_COLUMNS_MIN, TIME_COLUMNS_MAX);
        let labels = Labels::new(&self.placement);
        let grid = Grid::fit(self, &labels, room);

        let mut out = format!("{} ({})\n", one_line(&self.title), self.source.name());
        for rank in ranks {
            let line = grid.line(&self.spans[rank], &labels);
            out.push_str(&format!("{rank:head_width$}|{line}| idle {}\n", idle(rank)));
        }
        out.push_str(&format!(
            "makespan {}, bubble {}",
            time(self.makespan_ns()),
            percent(self.bubble_share())
        ));
        out.push_str(&grid.scale());
        out.push('\n');
        out
    }
}

/// A title's lines as one, without what would move a terminal's cursor.
fn one_line(title: &str) -> String {
    title.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Which column a time is in.
struct Grid {
    makespan_ns: u64,
    /// Columns of the whole makespan.
    columns: usize,
    /// Columns of a unit, if the grid is exact: the makespan is a multiple of the unit.
    columns_per_unit: Option<usize>,
}

impl Grid {
    /// The finest exact grid whose labels fit into `room` columns; else the finest exact one; else one that is not.
    fn fit(timeline: &Timeline, labels: &Labels, room: usize) -> Grid {
        let makespan_ns = timeline.makespan_ns();
        let unit_ns = unit_ns(timeline);
        let exact = (unit_ns > 0)
            .then(|| usize::try_from(makespan_ns / unit_ns).ok())
            .flatten()
            .filter(|&units| units <= room);
        let Some(units) = exact else {
            return Grid {
                makespan_ns,
                columns: if makespan_ns > 0 { room } else { 0 },
                columns_per_unit: None,
            };
        };
        let wanted = |span: &Span| {
            let width = (labels.names(span.task)[0].len() + 1) as u64;
            match span.end_ns.saturating_sub(span.start_ns) / unit_ns {
                0 => 1,
                lasts => width.div_ceil(lasts),
            }
        };
        let spans = timeline.spans.iter().flatten();
        let wanted = spans.map(wanted).max().unwrap_or(1) as usize;
        let columns_per_unit = wanted.min(room / units.max(1));
        Grid { makespan_ns, columns: columns_per_unit * units, columns_per_unit: Some(columns_per_unit) }
    }

    /// The first column that starts at `ns` or later, rounded down.
    fn column(&self, ns: u64) -> usize {
        match u128::from(self.makespan_ns) {
            0 => 0,
            // At most `columns`, since no time exceeds the makespan.
            makespan => {
                let ns = u128::from(ns.min(self.makespan_ns));
                (ns * self.columns as u128 / makespan) as usize
            }
        }
    }

    fn line(&self, spans: &[Span], labels: &Labels) -> String {
        let mut line = String::with_capacity(self.columns);
        for span in spans {
            self.idle_until(self.column(span.start_ns), &mut line);
            let room = self.column(span.end_ns).saturating_sub(line.len());
            let names = labels.names(span.task);
            let fitting = names.iter().find(|name| name.len() < room);
            match (fitting, room) {
                (_, 0) => {}
                (Some(name), _) => line.push_str(&format!("{name:room$}")),
                (None, _) => line.push_str(&format!("{:room$}", &names[2])),
            }
        }
        self.idle_until(self.columns, &mut line);
        line
    }

    /// One dot per unit, or per column if the grid is not exact.
    fn idle_until(&self, end: usize, line: &mut String) {
        let step = self.columns_per_unit.unwrap_or(1);
        while line.len() < end {
            let column = line.len();
            line.push(if column % step == 0 { '.' } else { ' ' });
        }
    }

    fn scale(&self) -> String {
        match self.columns_per_unit {
            Some(columns) if self.columns > 0 => {
                let unit_ns = self.makespan_ns / (self.columns / columns) as u64;
                format!(", {columns} columns = {}", time(unit_ns))
            }
            None if self.columns > 0 => {
                let column_ns = self.makespan_ns / self.columns as u64;
                format!(", 1 column = {}", time(column_ns))
            }
            _ => String::new(),
        }
    }
}

/// The greatest common divisor of all starts and ends; 0 if all are 0.
fn unit_ns(timeline: &Timeline) -> u64 {
    let mut unit = 0;
    for span in timeline.spans.iter().flatten() {
        unit = greatest_common_divisor(span.start_ns, unit);
        unit = greatest_common_divisor(span.end_ns, unit);
        if unit == 1 {
            break;
        }
    }
    unit
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
