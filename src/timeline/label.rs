//! What the pictures of a timeline call things: tasks, parameter copies, times. Text, SVG and trace all use it.

use crate::ids::Microbatch;
use crate::op::{Op, Pass, StageCopy, Task};
use crate::placement::Placement;

/// What one part of a task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    F,
    B,
    I,
    W,
    R,
}

impl Kind {
    pub(super) const ALL: [Kind; 5] = [Kind::F, Kind::B, Kind::I, Kind::W, Kind::R];

    pub(super) fn letter(self) -> char {
        match self {
            Kind::F => 'F',
            Kind::B => 'B',
            Kind::I => 'I',
            Kind::W => 'W',
            Kind::R => 'R',
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::F => "forward",
            Kind::B => "backward",
            Kind::I => "backward for input",
            Kind::W => "backward for weights",
            Kind::R => "REDUCE_GRADS",
        }
    }
}

/// A task, or one half of an overlapped pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) kind: Kind,
    pub(super) copy: StageCopy,
    /// `None` for the reduction of gradients.
    pub(super) microbatch: Option<Microbatch>,
}

impl Part {
    fn of(kind: Kind, pass: Pass) -> Part {
        Part { kind, copy: pass.copy(), microbatch: Some(pass.microbatch) }
    }

    /// The whole story in a line, for whoever hovers over it.
    pub(super) fn description(self) -> String {
        let (kind, letter) = (self.kind.name(), self.kind.letter());
        let StageCopy { direction, stage } = self.copy;
        match self.microbatch {
            Some(microbatch) => {
                format!("{letter}, {kind}: micro-batch {microbatch}, stage {stage}, direction {direction}")
            }
            None => format!("{kind}: stage {stage}, direction {direction}"),
        }
    }
}

/// The one part of a task; for an overlapped pair the forward and the backward.
pub(super) fn parts(task: Task) -> (Part, Option<Part>) {
    match task {
        Task::Op(Op::F(pass)) => (Part::of(Kind::F, pass), None),
        Task::Op(Op::B(pass)) => (Part::of(Kind::B, pass), None),
        Task::Op(Op::I(pass)) => (Part::of(Kind::I, pass), None),
        Task::Op(Op::W(pass)) => (Part::of(Kind::W, pass), None),
        Task::Op(Op::FB(f, b)) => (Part::of(Kind::F, f), Some(Part::of(Kind::B, b))),
        Task::ReduceGrads(copy) => {
            let part = Part { kind: Kind::R, copy, microbatch: None };
            (part, None)
        }
    }
}

/// A parameter copy among those of its rank.
#[derive(Clone, Copy, Debug)]
pub(super) struct Local {
    /// 0 for the rank's first.
    pub(super) index: usize,
    /// How many the rank holds.
    pub(super) count: usize,
}

/// Names tasks by where a placement has their parameters.
pub(super) struct Labels<'a> {
    placement: &'a Placement,
    /// By [`Placement::copy_index`].
    locals: Vec<Local>,
}

impl Labels<'_> {
    pub(super) fn new(placement: &Placement) -> Labels<'_> {
        let mut locals = vec![Local { index: 0, count: 1 }; placement.num_copies()];
        for rank in 0..placement.num_ranks() {
            let copies = placement.copies_on(crate::ids::Rank::from_index(rank));
            let count = copies.len();
            for (index, copy) in copies.iter().enumerate() {
                if let Some(i) = placement.copy_index(*copy) {
                    locals[i] = Local { index, count };
                }
            }
        }
        Labels { placement, locals }
    }

    /// Where `copy` is on its rank; one that the placement lacks counts as its rank's only one.
    pub(super) fn local(&self, copy: StageCopy) -> Local {
        match self.placement.copy_index(copy) {
            Some(i) => self.locals[i],
            None => Local { index: 0, count: 1 },
        }
    }

    /// The names of a task, longest first: `F3&b1`, `F&b`, `&`. A name is shortened by leaving out numbers, since
    /// a number that is cut off is a wrong number.
    pub(super) fn names(&self, task: Task) -> [String; 3] {
        let (first, second) = parts(task);
        let (full, kind) = self.part_names(first);
        match second {
            None => [full, kind.to_string(), kind.to_string()],
            Some(second) => {
                let (second_full, second_kind) = self.part_names(second);
                [format!("{full}&{second_full}"), format!("{kind}&{second_kind}"), "&".to_owned()]
            }
        }
    }

    fn part_names(&self, part: Part) -> (String, char) {
        let local = self.local(part.copy);
        let letter = match local {
            Local { index: 1, count: 2 } => part.kind.letter().to_ascii_lowercase(),
            _ => part.kind.letter(),
        };
        let mut full = String::new();
        if local.count > 2 {
            full.push_str(&part.copy.stage.to_string());
        }
        full.push(letter);
        if let Some(microbatch) = part.microbatch {
            full.push_str(&microbatch.to_string());
        }
        (full, letter)
    }
}

/// A unit of time: its name and its nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) name: &'static str,
    pub(super) ns: u64,
}

impl Unit {
    /// The largest in which `ns` is at least 1.
    pub(super) fn of(ns: u64) -> Unit {
        let (name, ns) = match ns {
            1_000_000_000.. => ("s", 1_000_000_000),
            1_000_000.. => ("ms", 1_000_000),
            1_000.. => ("us", 1_000),
            _ => ("ns", 1),
        };
        Unit { name, ns }
    }

    /// `ns` in this unit, exactly, without the unit's name.
    pub(super) fn exact(self, ns: u64) -> String {
        let (whole, rest) = (ns / self.ns, ns % self.ns);
        let digits = self.ns.ilog10() as usize;
        trimmed(format!("{whole}.{rest:0digits$}"))
    }

    /// `ns` in this unit to three decimals, without the unit's name.
    fn rounded(self, ns: u64) -> String {
        let thousandths = (u128::from(ns) * 1000 + u128::from(self.ns) / 2) / u128::from(self.ns);
        trimmed(format!("{}.{:03}", thousandths / 1000, thousandths % 1000))
    }
}

/// A time for people: `18 ms`, `1.235 us`.
pub(super) fn time(ns: u64) -> String {
    let unit = Unit::of(ns);
    format!("{} {}", unit.rounded(ns), unit.name)
}

/// A decimal number without zeros at its end.
fn trimmed(number: String) -> String {
    number.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `9.1 %`.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}
