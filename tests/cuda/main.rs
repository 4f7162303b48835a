//! The executor on CUDA devices, proved on the stand-in driver: what it computes, every order of the device's work, every
//! wait, and every fault.

#[path = "../support/rank_threads.rs"]
mod rank_threads;
#[path = "../support/standin.rs"]
mod standin;

mod device;
mod faults;
mod features;
mod flow;
mod nccl;
mod order;
mod overlap;
