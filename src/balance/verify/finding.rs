//! All that can be wrong with a placement, each in a sentence.

use std::fmt;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// Tokens are lost or computed wrongly, or what was asked for is not so.
    Error,
    /// Memory or time is wasted.
    Warning,
}

/// One thing that is wrong in a layer. Layers, experts, slots, GPUs, nodes and groups are numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finding {
    /// The layer.
    pub layer: usize,
    /// What is wrong there.
    pub what: What,
}

/// What is wrong, with the numbers of its place.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // the fields are named after what they number
pub enum What {
    /// An expert is on no live GPU: its tokens have nowhere to go.
    Missing { expert: usize },
    /// A slot holds a number that is neither an expert's nor [`EMPTY`](crate::balance::EMPTY).
    NotAnExpert { slot: usize, value: i64, num_experts: usize },
    /// A slot of a dead GPU holds an expert: a token sent there is lost.
    OnDeadGpu { slot: usize, gpu: usize, expert: usize },
    /// An expert is on too few GPUs to survive the failures that the goal says.
    TooFewGpus { expert: usize, gpus: usize, min_gpus: usize },
    /// An expert is on too few nodes to survive the failures that the goal says.
    TooFewNodes { expert: usize, nodes: usize, min_nodes: usize },
    /// The experts of a group that is to be whole are on several nodes.
    SplitGroup { group: usize, nodes: usize },
    /// A share is negative or not finite, or not 0 where there is no expert that tokens could be sent to.
    Share { slot: usize, share: f64 },
    /// The shares of an expert's live slots do not sum to 1: some of its tokens go nowhere, or twice.
    ShareSum { expert: usize, sum: f64 },
    /// A replica count is not the number of live slots that hold the expert.
    ReplicaCount { expert: usize, count: i64, slots: usize },
    /// An entry of the table from experts to slots that names no slot, a slot of another expert, a slot again, or any
    /// slot behind a -1; `entry` numbers the entries of the expert.
    WrongSlot { expert: usize, entry: usize, slot: i64 },
    /// A live slot that the table from experts to slots does not have.
    Unlisted { slot: usize, expert: usize },
    /// A slot of a live GPU holds nothing.
    Empty { slot: usize, gpu: usize },
    /// A GPU holds several replicas of an expert, which take memory and balance nothing. Not to be avoided where the
    /// GPU has more slots than there are experts for it: those of all, or with whole groups, of its node's groups.
    Twice { gpu: usize, expert: usize, times: usize, avoidable: bool },
    /// A GPU carries more than the limit; both are multiples of the mean.
    Overloaded { gpu: usize, load: f64, limit: f64 },
}

/// A [`What`] without its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // named as what they are the kinds of
pub enum Kind {
    Missing,
    NotAnExpert,
    OnDeadGpu,
    TooFewGpus,
    TooFewNodes,
    SplitGroup,
    Share,
    ShareSum,
    ReplicaCount,
    WrongSlot,
    Unlisted,
    Empty,
    Twice,
    Overloaded,
}

impl Kind {
    /// All kinds, each at its own number.
    pub const ALL: [Kind; 14] = [
        Kind::Missing,
        Kind::NotAnExpert,
        Kind::OnDeadGpu,
        Kind::TooFewGpus,
        Kind::TooFewNodes,
        Kind::SplitGroup,
        Kind::Share,
        Kind::ShareSum,
        Kind::ReplicaCount,
        Kind::WrongSlot,
        Kind::Unlisted,
        Kind::Empty,
        Kind::Twice,
        Kind::Overloaded,
    ];

    /// How bad all findings of this kind are.
    pub fn severity(self) -> Severity {
        match self {
            Kind::Empty | Kind::Twice | Kind::Overloaded => Severity::Warning,
            _ => Severity::Error,
        }
    }
}

impl Finding {
    /// What kind of finding this is.
    pub fn kind(&self) -> Kind {
        match self.what {
            What::Missing { .. } => Kind::Missing,
            What::NotAnExpert { .. } => Kind::NotAnExpert,
            What::OnDeadGpu { .. } => Kind::OnDeadGpu,
            What::TooFewGpus { .. } => Kind::TooFewGpus,
            What::TooFewNodes { .. } => Kind::TooFewNodes,
            What::SplitGroup { .. } => Kind::SplitGroup,
            What::Share { .. } => Kind::Share,
            What::ShareSum { .. } => Kind::ShareSum,
            What::ReplicaCount { .. } => Kind::ReplicaCount,
            What::WrongSlot { .. } => Kind::WrongSlot,
            What::Unlisted { .. } => Kind::Unlisted,
            What::Empty { .. } => Kind::Empty,
            What::Twice { .. } => Kind::Twice,
            What::Overloaded { .. } => Kind::Overloaded,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer {}: {}", self.layer, self.what)
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            What::Missing { expert } => write!(f, "expert {expert} is on no live GPU"),
            What::NotAnExpert { slot, value, num_experts } => {
                write!(f, "slot {slot} holds {value}, but experts are 0 to {}", num_experts.saturating_sub(1))
            }
            What::OnDeadGpu { slot, gpu, expert } => {
                write!(f, "slot {slot} holds expert {expert}, but its GPU {gpu} is dead")
            }
            What::TooFewGpus { expert, gpus, min_gpus } => {
                write!(f, "the number of GPUs with expert {expert} is {gpus}, must be at least {min_gpus}")
            }
            What::TooFewNodes { expert, nodes, min_nodes } => {
                write!(f, "the number of nodes with expert {expert} is {nodes}, must be at least {min_nodes}")
            }
            What::SplitGroup { group, nodes } => {
                write!(f, "group {group} is on {nodes} nodes, must be on one")
            }
            What::Share { slot, share } if share > 0.0 && share.is_finite() => {
                write!(f, "slot {slot} has the share {share}, but no expert on a live GPU")
            }
            What::Share { slot, share } => {
                write!(f, "slot {slot} has the share {share}, must be finite and not negative")
            }
            What::ShareSum { expert, sum } => {
                write!(f, "the shares of expert {expert} sum to {sum}, must be 1")
            }
            What::ReplicaCount { expert, count, slots } => {
                write!(f, "the replica count of expert {expert} is {count}, but {slots} live slots hold it")
            }
            What::WrongSlot { expert, entry, slot } => {
                write!(f, "entry {entry} of expert {expert}'s slots is {slot}, which does not belong there")
            }
            What::Unlisted { slot, expert } => {
                write!(f, "slot {slot} holds expert {expert}, but is not among that expert's slots")
            }
            What::Empty { slot, gpu } => write!(f, "slot {slot} of the live GPU {gpu} is empty"),
            What::Twice { gpu, expert, times, avoidable } => {
                write!(f, "GPU {gpu} holds {times} replicas of expert {expert}, ")?;
                f.write_str(match avoidable {
                    true => "though other experts are left for it",
                    false => "as no other expert is left for it",
                })
            }
            What::Overloaded { gpu, load, limit } => {
                write!(f, "GPU {gpu} carries {load:.4} times the mean, must be at most {limit}")
            }
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Missing => "experts on no live GPU",
            Kind::NotAnExpert => "slots that hold a number that is no expert",
            Kind::OnDeadGpu => "experts in slots of dead GPUs",
            Kind::TooFewGpus => "experts on too few GPUs",
            Kind::TooFewNodes => "experts on too few nodes",
            Kind::SplitGroup => "groups on several nodes",
            Kind::Share => "shares that no slot can have",
            Kind::ShareSum => "experts whose shares do not sum to 1",
            Kind::ReplicaCount => "replica counts that are wrong",
            Kind::WrongSlot => "wrong entries in the slots of experts",
            Kind::Unlisted => "slots that are not among their expert's",
            Kind::Empty => "empty slots of live GPUs",
            Kind::Twice => "experts several times on a GPU",
            Kind::Overloaded => "GPUs with more load than the limit",
        })
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        })
    }
}
