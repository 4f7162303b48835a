//! A front as text: a line for each cap, with makespan and bound on a common axis.

use super::Front;
use crate::search::show::{gap, table, Unit};

/// Characters of the axis.
const WIDTH: u64 = 40;

pub(super) fn draw(front: &Front) -> String {
    let axis = Axis::of(front);
    let memory = front.memory_unit();
    let mut rows =
        vec![[memory.name, "peak", "makespan", "bound", "gap", "from"].map(str::to_owned).to_vec()];
    rows[0].push(axis.head());
    for point in &front.points {
        rows.push(vec![
            memory.show(point.cap),
            memory.show(point.peak),
            axis.unit.show(point.makespan_ns),
            axis.unit.show(point.lower_bound_ns),
            gap(point.makespan_ns, point.lower_bound_ns),
            point.started_from.clone(),
            axis.line(Some(point.lower_bound_ns), point.makespan_ns, '='),
        ]);
    }
    for published in &front.published {
        let blank = String::new;
        rows.push(vec![
            blank(),
            memory.show(published.peak),
            axis.unit.show(published.makespan_ns),
            blank(),
            blank(),
            published.name.clone(),
            axis.line(None, published.makespan_ns, 'o'),
        ]);
    }
    let cap = format!("memory cap on each rank in {}, times in {}", memory.name, axis.unit.name);
    let stopped = if front.is_stopped { ", stopped early" } else { "" };
    format!(
        "{}: {cap}{stopped}\n{}| no schedule is faster, = the plan, o published\n",
        front.title,
        table(&rows, |column| column >= 5)
    )
}

/// Times from the lowest bound to the longest makespan.
struct Axis {
    unit: Unit,
    from_ns: u64,
    to_ns: u64,
}

impl Axis {
    fn of(front: &Front) -> Axis {
        let (from_ns, to_ns) = front.times();
        Axis { unit: Unit::of_times(to_ns), from_ns, to_ns }
    }

    fn head(&self) -> String {
        let (from, to) = (self.unit.show_short(self.from_ns), self.unit.show_short(self.to_ns));
        format!("{from}{to:>width$}", width = (WIDTH as usize + 1).saturating_sub(from.len()))
    }

    /// `|` at the bound, the mark from there to the makespan; without a bound, the mark at the makespan.
    fn line(&self, bound_ns: Option<u64>, makespan_ns: u64, mark: char) -> String {
        let end = self.column(makespan_ns);
        let Some(bound) = bound_ns.map(|ns| self.column(ns)) else {
            return format!("{}{mark}", " ".repeat(end));
        };
        let bar = mark.to_string().repeat(end.saturating_sub(bound));
        format!("{}|{bar}", " ".repeat(bound))
    }

    fn column(&self, ns: u64) -> usize {
        let length_ns = u128::from((self.to_ns - self.from_ns).max(1));
        let from_start_ns = u128::from(ns.clamp(self.from_ns, self.to_ns) - self.from_ns);
        ((from_start_ns * u128::from(WIDTH) + length_ns / 2) / length_ns) as usize
    }
}
