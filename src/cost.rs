//! What each stage costs, in time and in bytes. The only place that adds costs up.

use crate::error::{in_range, Error, Result};
use crate::ids::Stage;
use crate::op::{Message, Op};
use crate::placement::STAGES_MAX;

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
    /// In order of their stages.
    pairs: Vec<PairCosts>,
}

/// What F of one stage overlapped with B of another takes, where it was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairCosts {
    /// The stage whose F it is.
    pub forward: Stage,
    /// The stage whose B it is.
    pub backward: Stage,
    /// Time of the pair: at least the longer of that F and that B.
    pub overlapped_ns: u64,
}

/// Most pairs that costs may have of their own.
pub const PAIRS_MAX: usize = 1 << 20;

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
        Ok(Costs { stages, link, pairs: Vec::new() })
    }

    /// The same costs with the times of these pairs as given, in any order; of the others as [`Costs::pair_ns`] says.
    ///
    /// # Errors
    /// More than [`PAIRS_MAX`] pairs, a pair twice, a stage that has no costs (where all stages cost the same, any
    /// stage has), a time above [`COST_NS_MAX`] or below the longer of F and B.
    pub fn with_pairs(mut self, mut pairs: Vec<PairCosts>) -> Result<Costs> {
        in_range("costs", "the number of pairs", pairs.len(), 0..=PAIRS_MAX)?;
        for (i, pair) in pairs.iter().enumerate() {
            let at = |name: &str| format!("pairs[{i}].{name}");
            for (name, stage) in [("forward", pair.forward), ("backward", pair.backward)] {
                if self.stages.len() > 1 {
                    in_range("costs", &at(name), stage.index(), 0..=self.stages.len() - 1)?;
                }
            }
            let longer = self.stage(pair.forward).forward_ns.max(self.stage(pair.backward).backward_ns());
            in_range("costs", &at("overlapped_ns"), pair.overlapped_ns, longer..=COST_NS_MAX.max(longer))?;
        }
        pairs.sort_unstable_by_key(|pair| (pair.forward, pair.backward));
        if let Some(twice) =
            pairs.windows(2).find(|w| (w[0].forward, w[0].backward) == (w[1].forward, w[1].backward))
        {
            let (f, b) = (twice[0].forward, twice[0].backward);
            return Err(Error::argument(
                "costs",
                format!("the pair of stages {f} and {b}"),
                "twice",
                "must be once",
            ));
        }
        self.pairs = pairs;
        Ok(self)
    }

    /// The same costs with pairs that take as long as their F and B one after the other.
    pub fn without_overlap(&self) -> Costs {
        let apart = |stage: &StageCosts| StageCosts { overlapped_ns: stage.whole_ns(), ..*stage };
        Costs { stages: self.stages.iter().map(apart).collect(), link: self.link, pairs: Vec::new() }
    }

    /// The pairs that have a time of their own, in order of their stages.
    pub fn pairs(&self) -> &[PairCosts] {
        &self.pairs
    }

    /// What messages cost.
    pub fn link(&self) -> Link {
        self.link
    }

    /// The costs of the same model cut into `into` stages instead of `stages`, which these costs [fit](Costs::fit).
    ///
    /// Stages put together add up; what goes from one to the next is what the last of them sends. A stage that is cut
    /// is cut evenly, to the nanosecond and to the byte, so that the sums stay what they were; each part sends as much
    /// as the whole one did.
    ///
    /// # Errors
    /// These costs do not fit `stages`; of `stages` and `into`, neither divides the other; pairs with times of their
    /// own, which do not say what other pairs take; a sum above [`COST_NS_MAX`] or [`COST_BYTES_MAX`].
    pub fn regrouped(&self, stages: usize, into: usize) -> Result<Costs> {
        in_range("costs", "the number of stages", stages, 1..=STAGES_MAX as usize)?;
        in_range("costs", "the number of stages to cut the model into", into, 1..=STAGES_MAX as usize)?;
        self.fit(stages)?;
        if stages % into != 0 && into % stages != 0 {
            let range = format!("must divide {stages}, the stages that costs are given of, or be a multiple");
            return Err(Error::argument("costs", "the number of stages to cut the model into", into, range));
        }
        if let Some(pair) = self.pairs.first().filter(|_| stages != into) {
            let what = format!("the pair of stages {} and {}", pair.forward, pair.backward);
            let range = format!("which says nothing of {into} stages instead of {stages}");
            return Err(Error::argument("costs", what, "given", range));
        }
        let whole = |stage: usize| *self.stage(Stage(stage as u16));
        let regrouped: Vec<StageCosts> = if into <= stages {
            let group = stages / into;
            (0..into).map(|i| StageCosts::sum((i * group..(i + 1) * group).map(whole))).collect()
        } else {
            let parts = into / stages;
            (0..into).map(|i| whole(i / parts).part(i % parts, parts)).collect()
        };
        Costs::new(regrouped, self.link)?.with_pairs(self.pairs.clone())
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

    /// Time of F of one stage overlapped with B of another, if [`Costs::with_pairs`] had it. Otherwise each shrinks by
    /// its own stage's `overlapped / (F + B)`, and the pair lasts at least as long as the longer of the two; rounded
    /// to the nearest nanosecond.
    pub fn pair_ns(&self, forward: Stage, backward: Stage) -> u64 {
        let key = (forward, backward);
        if let Ok(i) = self.pairs.binary_search_by_key(&key, |pair| (pair.forward, pair.backward)) {
            return self.pairs[i].overlapped_ns;
        }
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

    /// Of stages one after the other. No sum overflows: there are at most [`STAGES_MAX`].
    fn sum(stages: impl Iterator<Item = StageCosts>) -> StageCosts {
        stages.fold(StageCosts::default(), |sum, stage| StageCosts {
            forward_ns: sum.forward_ns + stage.forward_ns,
            input_ns: sum.input_ns + stage.input_ns,
            weight_ns: sum.weight_ns + stage.weight_ns,
            overlapped_ns: sum.overlapped_ns + stage.overlapped_ns,
            output_bytes: stage.output_bytes,
            activation_bytes: sum.activation_bytes + stage.activation_bytes,
            parameter_bytes: sum.parameter_bytes + stage.parameter_bytes,
        })
    }

    /// One of `parts` even parts: what is left over goes to the first ones. A longer time never has a shorter part, so
    /// the overlapped time of each part stays at least that of its F and its B.
    fn part(self, index: usize, parts: usize) -> StageCosts {
        let part = |whole: u64| (whole + (parts - 1 - index) as u64) / parts as u64;
        let input_ns = part(self.input_ns);
        StageCosts {
            forward_ns: part(self.forward_ns),
            input_ns,
            weight_ns: part(self.backward_ns()) - input_ns,
            overlapped_ns: part(self.overlapped_ns),
            output_bytes: self.output_bytes,
            activation_bytes: part(self.activation_bytes),
            parameter_bytes: part(self.parameter_bytes),
        }
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
