//! What a task callback is handed.

use std::ffi::c_void;

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
///
/// On a CUDA device a task only enqueues: it waits for nothing, and its tensors are filled when the streams come to it.
#[derive(Debug)]
pub struct TaskRun<'a> {
    /// What to do.
    pub task: Task,
    /// Where to enqueue it, on a CUDA device; `None` on the host.
    pub streams: Option<TaskStreams>,
    /// The pass to run forward.
    pub forward: Option<PassTensors<'a>>,
    /// The pass to run backward.
    pub backward: Option<PassTensors<'a>>,
}

/// The streams of a task: what it reads is there in their order, and the next task comes after what it enqueues there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskStreams {
    /// A `CUstream` for computing.
    pub compute: *mut c_void,
    /// A `CUstream` of the highest priority for expert communication; NULL if the executor has none.
    pub comm: *mut c_void,
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
