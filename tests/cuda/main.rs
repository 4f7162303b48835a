//! The executor on CUDA devices, proved on the stand-in driver: what it computes, every order of the device's work,
//! every wait, and every fault.

#[path = "../support/rank_threads.rs"]
mod rank_threads;
#[path = "../support/standin.rs"]
mod standin;

mod device;
mod faults;
mod features;
mod flow;
mod nccl;
mod nccl_put;
mod order;
mod overlap;

/// The seeds to try: `SEED=7` repeats one.
fn seeds(count: u64) -> Box<dyn Iterator<Item = u64>> {
    match std::env::var("SEED") {
        Ok(seed) => Box::new(std::iter::once(seed.parse().expect("SEED is a number"))),
        Err(_) => Box::new(0..count),
    }
}
