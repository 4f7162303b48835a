//! Where tensors live and tasks run.

pub mod cuda;
pub(crate) mod host;
pub(crate) mod slots;
mod tensor;

pub use slots::Memory;
pub use tensor::{Element, Place, Tensor};

use std::time::Duration;

use super::boundary::Boundaries;
use super::fault::{Fault, Notice};
use super::rank::RankMachine;
use super::task::TaskRunner;
use crate::error::Result;
use crate::timeline::Timeline;
use cuda::GraphState;

/// What an executor runs its program on.
pub(crate) trait Device: Send {
    /// Other shapes from the next step on.
    fn set_boundaries(&mut self, boundaries: Boundaries) -> Result<()>;

    /// Runs a step with a machine that stands at its start: to the end, or until all of it is enqueued.
    fn step(
        &mut self,
        machine: &mut RankMachine,
        runner: &mut dyn TaskRunner,
    ) -> std::result::Result<(), Fault>;

    /// Waits until what has been enqueued is done: `false` if it is not within `timeout`.
    fn synchronize(&mut self, timeout: Duration) -> std::result::Result<bool, Fault>;

    /// What went wrong since the last call, if something did.
    fn fault(&self) -> Option<Fault>;

    /// Stops wherever the step is, tells the other ranks, and leaves all memory alone. It does not wait for ever.
    fn fail(&mut self, notice: &Notice);

    /// How far it is from launching whole steps.
    fn graph(&self) -> GraphState;

    /// What the rank did in its last step.
    fn timeline(&self) -> Result<Timeline>;
}
