//! Which rank holds which parameter copy.

use crate::error::{in_range, Error, Result};
use crate::ids::{Direction, Rank, Stage};
use crate::op::StageCopy;

/// Most ranks that a pipeline may have.
pub const RANKS_MAX: u32 = 4096;
/// Most stages that a pipeline may have.
pub const STAGES_MAX: u32 = 8192;

/// The rank of every (direction, stage), and the reverse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    num_ranks: usize,
    num_stages: usize,
    num_directions: usize,
    /// `rank_of[direction * num_stages + stage]`.
    rank_of: Vec<Rank>,
    /// `copies[rank]`, in order of (direction, stage).
    copies: Vec<Vec<StageCopy>>,
    /// Position of each copy among its rank's.
    local: Vec<usize>,
}

impl Placement {
    /// Stage `r` on rank `r`.
    pub fn linear(num_ranks: usize) -> Result<Placement> {
        Placement::interleaved(num_ranks, 1)
    }

    /// Stages `r`, `r + P`, `r + 2P` … on rank `r`: `stages_per_rank` of them.
    pub fn interleaved(num_ranks: usize, stages_per_rank: usize) -> Result<Placement> {
        Placement::one_direction(num_ranks, stages_per_rank, |stage| stage % num_ranks)
    }

    /// Stages `r` and `2P-1-r` on rank `r`: down the ranks and back up.
    pub fn v(num_ranks: usize) -> Result<Placement> {
        Placement::one_direction(num_ranks, 2, |stage| stage.min(2 * num_ranks - 1 - stage))
    }

    /// Stage `r` of direction 0 and stage `P-1-r` of direction 1 on rank `r`: two copies of the parameters.
    pub fn bidirectional(num_ranks: usize) -> Result<Placement> {
        check_sizes(num_ranks, 1)?;
        let down = (0..num_ranks).map(Rank::from_index);
        Ok(Placement::from_ranks(num_ranks, num_ranks, down.clone().chain(down.rev()).collect()))
    }

    /// Any placement: `rank_of[direction][stage]`, of one direction or two with as many stages.
    ///
    /// # Errors
    /// No direction or more than two, no stage or more than [`STAGES_MAX`], directions of different length, a rank
    /// that is not below `num_ranks`. A rank may hold no stage at all.
    pub fn new(num_ranks: usize, rank_of: &[Vec<Rank>]) -> Result<Placement> {
        in_range("placement", "num_ranks", num_ranks, 1..=RANKS_MAX as usize)?;
        in_range("placement", "the number of directions", rank_of.len(), 1..=2)?;
        let num_stages = rank_of[0].len();
        in_range("placement", "num_stages", num_stages, 1..=STAGES_MAX as usize)?;
        for (direction, ranks) in rank_of.iter().enumerate() {
            if ranks.len() != num_stages {
                let range = format!("must be {num_stages}, as in direction 0");
                let what = format!("the number of stages in direction {direction}");
                return Err(Error::argument("placement", what, ranks.len(), range));
            }
            if let Some(stage) = ranks.iter().position(|rank| rank.index() >= num_ranks) {
                let range = format!("must be 0 to {}", num_ranks - 1);
                let what = format!("the rank of stage {stage} in direction {direction}");
                return Err(Error::argument("placement", what, ranks[stage], range));
            }
        }
        Ok(Placement::from_ranks(num_ranks, num_stages, rank_of.concat()))
    }

    fn one_direction(
        num_ranks: usize,
        stages_per_rank: usize,
        rank_of: impl Fn(usize) -> usize,
    ) -> Result<Placement> {
        check_sizes(num_ranks, stages_per_rank)?;
        let num_stages = num_ranks * stages_per_rank;
        let ranks = (0..num_stages).map(|stage| Rank::from_index(rank_of(stage))).collect();
        Ok(Placement::from_ranks(num_ranks, num_stages, ranks))
    }

    fn from_ranks(num_ranks: usize, num_stages: usize, rank_of: Vec<Rank>) -> Placement {
        let mut copies = vec![Vec::new(); num_ranks];
        let mut local = Vec::with_capacity(rank_of.len());
        for (i, rank) in rank_of.iter().enumerate() {
            let direction = Direction::ALL[i / num_stages];
            local.push(copies[rank.index()].len());
            copies[rank.index()].push(StageCopy { direction, stage: Stage((i % num_stages) as u16) });
        }
        let num_directions = rank_of.len() / num_stages;
        Placement { num_ranks, num_stages, num_directions, rank_of, copies, local }
    }

    /// P.
    pub fn num_ranks(&self) -> usize {
        self.num_ranks
    }

    /// S, the stages of the model.
    pub fn num_stages(&self) -> usize {
        self.num_stages
    }

    /// 1, or 2 for a bidirectional placement.
    pub fn num_directions(&self) -> usize {
        self.num_directions
    }

    /// All parameter copies: stages times directions.
    pub fn num_copies(&self) -> usize {
        self.rank_of.len()
    }

    /// A number of its own for each copy, `0 .. num_copies()`; `None` if the placement has no such copy.
    pub fn copy_index(&self, copy: StageCopy) -> Option<usize> {
        let index = copy.direction.index() * self.num_stages + copy.stage.index();
        (copy.stage.index() < self.num_stages && index < self.rank_of.len()).then_some(index)
    }

    /// The rank that holds `copy`; `None` if the placement has no such copy.
    pub fn rank_of(&self, copy: StageCopy) -> Option<Rank> {
        Some(self.rank_of[self.copy_index(copy)?])
    }

    /// The copies that `rank` holds, in order of (direction, stage).
    pub fn copies_on(&self, rank: Rank) -> &[StageCopy] {
        &self.copies[rank.index()]
    }

    /// Position of `copy` among its rank's copies: in DualPipe the direction, in DualPipeV 0 on the way down and
    /// 1 on the way back. `None` if the placement has no such copy.
    pub fn local_index(&self, copy: StageCopy) -> Option<usize> {
        Some(self.locate(copy)?.1)
    }

    /// The rank that holds `copy` and the copy's position there.
    pub(crate) fn locate(&self, copy: StageCopy) -> Option<(Rank, usize)> {
        let index = self.copy_index(copy)?;
        Some((self.rank_of[index], self.local[index]))
    }

    /// The copy of the stage after `copy`'s in its direction, if there is one.
    pub fn next(&self, copy: StageCopy) -> Option<StageCopy> {
        let stage = copy.stage.index() + 1;
        (stage < self.num_stages).then_some(StageCopy { stage: Stage(stage as u16), ..copy })
    }

    /// The copy of the stage before `copy`'s in its direction, if there is one.
    pub fn previous(&self, copy: StageCopy) -> Option<StageCopy> {
        let stage = copy.stage.0.checked_sub(1)?;
        Some(StageCopy { stage: Stage(stage), ..copy })
    }
}

impl Rank {
    /// The rank of a table's `index`, which the limits of this module keep small.
    pub(crate) fn from_index(index: usize) -> Rank {
        Rank(index as u32)
    }
}

fn check_sizes(num_ranks: usize, stages_per_rank: usize) -> Result<()> {
    in_range("placement", "num_ranks", num_ranks, 1..=RANKS_MAX as usize)?;
    in_range("placement", "stages_per_rank", stages_per_rank, 1..=STAGES_MAX as usize / num_ranks)?;
    Ok(())
}
