//! What a task callback is handed.

use super::device::Tensor;
use crate::op::{Pass, Task};

/// A task to run now, with the tensors that it reads and writes.
///
/// | task         | forward | backward | reads                   | writes                |
/// | ------------ | ------- | -------- | ----------------------- | --------------------- |
/// | F            | yes     |          | inputs                  | outputs               |
/// | B, I         |         | yes      | inputs, output_grads    | input_grads           |
/// | W            |         | yes      | inputs, output_grads    |                       |
/// | F&B          | yes     | yes      | both                    | both                  |
/// | REDUCE_GRADS |         |          |                         |                       |
#[derive(Debug)]
pub struct TaskRun<'a> {
    /// What to do.
    pub task: Task,
    /// The pass to run forward.
    pub forward: Option<PassTensors<'a>>,
    /// The pass to run backward.
    pub backward: Option<PassTensors<'a>>,
}

/// A pass and its tensors. At the first stage `inputs` and `input_grads` are empty, at the last `outputs` and
/// `output_grads`; whatever else a stage keeps from F to W is its own business.
#[derive(Debug)]
pub struct PassTensors<'a> {
    /// Direction, stage and micro-batch.
    pub pass: Pass,
    /// Activations from the previous stage; the same from F to W.
    pub inputs: &'a [Tensor],
    /// Activations for the next stage, to be filled by F.
    pub outputs: &'a mut [Tensor],
    /// Gradients from the next stage; absent ones say so.
    pub output_grads: &'a [Tensor],
    /// Gradients for the previous stage, to be filled by B or I, or said to be absent.
    pub input_grads: &'a mut [Tensor],
}

/// Runs tasks: computes what it is handed and returns, or says why it cannot.
pub trait TaskRunner {
    /// Runs one task. An error ends the step on all ranks.
    fn run(&mut self, task: &mut TaskRun<'_>) -> Result<(), String>;
}

impl<F: FnMut(&mut TaskRun<'_>) -> Result<(), String>> TaskRunner for F {
    fn run(&mut self, task: &mut TaskRun<'_>) -> Result<(), String> {
        self(task)
    }
}
