//! Where tensors live and tasks run.

pub mod host;
mod tensor;

pub use tensor::{Element, Tensor};
