//! The model on a CUDA device: what [`crate::model`] and [`crate::trainer`] do on the host, by kernels.
//!
//! ```text
//! driver   the driver's calls, and all `unsafe`      queue    kernels, by name and parameters
//! layout   where everything lies in memory           stage    F, I and W of a stage
//! trainer  a rank's stages, pass by pass             pipeline the ranks, spread over the devices
//! ```
//!
//! A pass only enqueues: nothing waits for the device, and nothing that the device decides, as which expert a token
//! goes to, changes what is enqueued. Within a step after the first nothing is allocated either, so that a step can be
//! captured.

mod driver;
mod layout;
mod pipeline;
mod queue;
mod stage;
mod trainer;

#[cfg(test)]
mod pipeline_tests;
#[cfg(test)]
mod tests;
