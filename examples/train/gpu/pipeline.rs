//! The ranks of a schedule on CUDA devices.

use dualpipe::execute::{CudaLink, Executor};
use dualpipe::schedule::Schedule;

use super::driver::Device;
use super::trainer::GpuTrainer;
use crate::model::Config;
use crate::pipeline::Pipeline;

impl Pipeline<GpuTrainer> {
    /// As [`Pipeline::on_host`], on the first `num_devices` devices: rank r on device `r % num_devices`. With
    /// `uses_graph` the steps from the third on are launches of a graph that is captured in the second.
    ///
    /// # Errors
    /// The driver's.
    pub(crate) fn on_cuda(
        schedule: Schedule,
        config: Config,
        seed: u64,
        num_devices: usize,
        uses_graph: bool,
    ) -> Result<Pipeline<GpuTrainer>, String> {
        let num_used = num_devices.min(schedule.num_ranks());
        let devices = (0..num_used).map(Device::open).collect::<Result<Vec<_>, _>>()?;
        Pipeline::new(schedule, config, |program, copies, inproc, options| {
            let device = &devices[program.rank().index() % num_used];
            let trainer = GpuTrainer::new(device, config, copies, seed)?;
            let cuda = trainer.executor_options(uses_graph);
            let executor = Executor::on_cuda(program, CudaLink::inproc(inproc), options, &cuda);
            Ok((executor.map_err(|e| e.to_string())?, trainer))
        })
    }
}
