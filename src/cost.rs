//! What each stage costs, in time and in bytes. The only place that adds costs up.

use crate::error::{in_range, Error, Result};
use crate::ids::Stage;
use crate::op::{Message, Op};

/// Longest time that one cost may be, in nanoseconds: a quarter of an hour. It keeps every sum below 2^63.
pub const COST_NS_MAX: u64 = 1_000_000_000_000;
/// Most bytes that one cost may be: a pebibyte.
pub const COST_BYTES_MAX: u64 = 1 << 50;

/// What one stage costs for one micro-batch. B takes `input_ns + weight_ns`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageCosts {
    /// Time of F.
    pub forward_ns: u64,
    /// Time of I.
    pub input_ns: u64,
    /// Time of W.
    pub weight_ns: u64,
    /// Time of F&B when both are of this stage: at least the longer of F and B, and as much as F + B without overlap.
    pub overlapped_ns: u64,
    /// Bytes that its F sends to the next stage, and that the gradient coming back has.
    pub output_bytes: u64,
    /// Bytes that one micro-batch keeps on this stage from its F to its W.
    pub activation_bytes: u64,
    /// Bytes of this stage's parameters, their gradients and optimizer state; in each direction once more.
    pub parameter_bytes: u64,
}

/// The costs of every stage and of the links between ranks.
///
/// Immutable; share it among threads freely.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Costs {
    stages: Vec<StageCosts>,
    link: Link,
}

/// What a message from rank to rank costs: `latency_ns` and its bytes' time. Messages do not slow one another down;
/// a message within a rank costs nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Time of a message without bytes.
    pub latency_ns: u64,
    /// Bytes per second; `None` if bytes take no time.
    pub bytes_per_second: Option<u64>,
}

impl Costs {
    /// Costs of every stage, in order of stages, or one entry that is every stage's.
    ///
    /// # Errors
    /// No entry; a time above [`COST_NS_MAX`] or bytes above [`COST_BYTES_MAX`]; `overlapped_ns` below the longer of
    /// F and B; a bandwidth of 0, or one at which a message takes longer than [`COST_NS_MAX`].
    pub fn new(stages: Vec<StageCosts>, link: Link) -> Result<Costs> {
        if stages.is_empty() {
            return Err(Error::argument("costs", "the number of stages", 0, "must be at least 1"));
        }
        in_range("costs", "latency_ns", link.latency_ns, 0..=COST_NS_MAX)?;
        if link.bytes_per_second == Some(0) {
            return Err(Error::argument("costs", "bytes_per_second", 0, "must be at least 1"));
        }
        for (i, stage) in stages.iter().enumerate() {
            stage.check(i, link)?;
        }
        Ok(Costs { stages, link })
    }

    /// The number of stages given: 1 if all cost the same.
    pub fn num_stages(&self) -> usize {
        self.stages.len()
    }

    /// Fails unless these are the costs of a model of `num_stages` stages.
    pub fn fit(&self, num_stages: usize) -> Result<()> {
        if self.stages.len() == 1 || self.stages.len() == num_stages {
            return Ok(());
        }
        let range = format!("must be 1 or {num_stages}, the schedule's stages");
        Err(Error::argument("costs", "the number of stages", self.stages.len(), range))
    }

    /// The costs of `stage`, which must be one of the model's.
    pub fn stage(&self, stage: Stage) -> &StageCosts {
        &self.stages[stage.index().min(self.stages.len() - 1)]
    }

    /// Time of an op.
    pub fn op_ns(&self, op: Op) -> u64 {
        match op {
            Op::F(pass) => self.stage(pass.stage).forward_ns,
            Op::B(pass) => self.stage(pass.stage).backward_ns(),
            Op::I(pass) => self.stage(pass.stage).input_ns,
            Op::W(pass) => self.stage(pass.stage).weight_ns,
            Op::FB(f, b) => self.pair_ns(f.stage, b.stage),
        }
    }

    /// Time of F of one stage overlapped with B of another: each shrinks by its own stage's `overlapped / (F + B)`,
    /// and the pair lasts at least as long as the longer of the two. Rounded to the nearest nanosecond.
    pub fn pair_ns(&self, forward: Stage, backward: Stage) -> u64 {
        let (f, b) = (self.stage(forward), self.stage(backward));
        let (f_whole, b_whole) = (f.whole_ns().max(1) as u128, b.whole_ns().max(1) as u128);
        let f_part = f.forward_ns as u128 * f.overlapped_ns as u128;
        let b_part = b.backward_ns() as u128 * b.overlapped_ns as u128;
        let (sum, whole) = if f_whole == b_whole {
            (f_part + b_part, f_whole)
        } else {
            (f_part * b_whole + b_part * f_whole, f_whole * b_whole)
        };
        let shrunk = ((sum + whole / 2) / whole) as u64;
        shrunk.max(f.forward_ns).max(b.backward_ns())
    }

    /// Time of a message from one rank to another.
    pub fn message_ns(&self, message: Message) -> u64 {
        self.output_ns(message.boundary().stage)
    }

    /// Time of the output of `stage` from one rank to another.
    pub fn output_ns(&self, stage: Stage) -> u64 {
        self.link.message_ns(self.stage(stage).output_bytes)
    }
}

impl StageCosts {
    /// Time of B.
    pub fn backward_ns(&self) -> u64 {
        self.input_ns + self.weight_ns
    }

    /// Time of F and B without overlap.
    fn whole_ns(&self) -> u64 {
        self.forward_ns + self.backward_ns()
    }

    fn check(&self, stage: usize, link: Link) -> Result<()> {
        let at = |name: &str| format!("stages[{stage}].{name}");
        for (name, value) in [
            ("forward_ns", self.forward_ns),
            ("input_ns", self.input_ns),
            ("weight_ns", self.weight_ns),
            ("overlapped_ns", self.overlapped_ns),
        ] {
            in_range("costs", &at(name), value, 0..=COST_NS_MAX)?;
        }
        for (name, value) in [
            ("output_bytes", self.output_bytes),
            ("activation_bytes", self.activation_bytes),
            ("parameter_bytes", self.parameter_bytes),
        ] {
            in_range("costs", &at(name), value, 0..=COST_BYTES_MAX)?;
        }
        let (longer, whole) = (self.forward_ns.max(self.backward_ns()), self.whole_ns());
        if self.overlapped_ns < longer {
            let range = format!("must be at least {longer}, the longer of F and B ({whole} without overlap)");
            return Err(Error::argument("costs", at("overlapped_ns"), self.overlapped_ns, range));
        }
        if link.transfer_ns(self.output_bytes) > COST_NS_MAX as u128 {
            let range = format!("takes longer than {COST_NS_MAX} ns at the given bytes_per_second");
            return Err(Error::argument("costs", at("output_bytes"), self.output_bytes, range));
        }
        Ok(())
    }
}

impl Link {
    fn message_ns(self, bytes: u64) -> u64 {
        self.latency_ns + self.transfer_ns(bytes) as u64
    }

    fn transfer_ns(self, bytes: u64) -> u128 {
        let Some(per_second) = self.bytes_per_second else { return 0 };
        (bytes as u128 * 1_000_000_000).div_ceil(per_second as u128)
    }
}
