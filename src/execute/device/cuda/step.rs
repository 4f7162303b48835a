//! How a rank gets a step onto its device: instruction by instruction, or as one captured graph.

use std::sync::Arc;
use std::time::Duration;

use super::graph::{self, Gather, Graph, Member};
use super::rank::{Buffer, Cuda, GraphState, State};
use super::stream::Mark;
use super::sys::{DriverError, DriverResult};
use super::world::CudaWorld;
use crate::execute::fault::{Cause, Fault};
use crate::execute::rank::{Progress, RankMachine};
use crate::execute::task::TaskRunner;
use crate::program::Instruction;

/// What the driver says, at the instruction that the machine is at.
pub(super) fn device_fault(machine: &RankMachine, why: DriverError) -> Fault {
    machine.fault_of(Cause::Device { wait: None, text: why.to_string() })
}

impl Cuda {
    /// Gets ready for a step; the one before is done. `fork` is where side streams join a capture.
    fn begin(&mut self, fork: Option<&Mark>) {
        self.step = self.step.wrapping_add(1).max(1);
        self.compute.forget();
        self.comm.iter_mut().for_each(|comm| comm.stream.forget());
        self.transport.start(fork);
        self.last_done = None;
        self.buffers.fill(Buffer::default());
    }

    /// Enqueues the whole step.
    fn enqueue(
        &mut self,
        machine: &mut RankMachine,
        runner: &mut dyn TaskRunner,
    ) -> std::result::Result<(), Fault> {
        self.begin(None);
        self.watch.begin(self.step);
        self.state = State::Enqueued;
        self.record_start().map_err(|why| device_fault(machine, why))?;
        self.drive(machine, runner, None)?;
        self.events.end.record(&self.compute).map_err(|why| device_fault(machine, why))?;
        self.watch.enqueued();
        Ok(())
    }

    fn record_start(&self) -> DriverResult {
        self.events.timing.as_ref().map_or(Ok(()), |timing| timing.start.record(&self.compute))
    }

    /// Goes through the program. In a capture it stops early, without a fault, if some rank has given the capture up.
    fn drive(
        &mut self,
        machine: &mut RankMachine,
        runner: &mut dyn TaskRunner,
        gather: Option<&Gather>,
    ) -> std::result::Result<(), Fault> {
        loop {
            if let Some(fault) = self.watch.fault() {
                return Err(fault);
            }
            let turn = gather.map(Gather::turn);
            if gather.is_some_and(|gather| gather.failure().is_some()) {
                return Ok(());
            }
            let instruction = machine.instruction();
            let mut world = CudaWorld { cuda: self, instruction, runner: &mut *runner };
            let advanced = machine.advance_once(&mut world);
            if let Some(gather) = gather {
                if !graph::is_capturing(&self.compute).unwrap_or(false) {
                    let at = self.program.instructions().get(instruction);
                    let what = at.map_or("the step".to_string(), Instruction::to_string);
                    let why = advanced.err().map_or(String::new(), |fault| format!(": {fault}"));
                    gather.give_up(&format!("{what} cannot be captured{why}"));
                    return Ok(());
                }
            }
            drop(turn);
            match advanced? {
                None => {}
                Some(Progress::Finished) => {
                    // The last sends: the end of the step comes after all that uses its memory.
                    return self.compute.settle().map_err(|why| device_fault(machine, why));
                }
                Some(Progress::Waiting { deadline_ns, .. }) => {
                    let left_ns = deadline_ns.saturating_sub(self.transport.now_ns());
                    // The watchdog does not wake this thread, nor does a rank that gives a capture up.
                    let most_ns = Duration::from_millis(20).as_nanos() as u64;
                    self.transport.wait(Duration::from_nanos(left_ns.min(most_ns)));
                }
            }
        }
    }

    /// Captures the whole step, or says why that does not go.
    fn capture(
        &mut self,
        member: &Member,
        machine: &mut RankMachine,
        runner: &mut dyn TaskRunner,
    ) -> std::result::Result<std::result::Result<Arc<Graph>, String>, Fault> {
        let stopped = |machine: &RankMachine, stop| machine.fault_of_stop(stop);
        member.begin(&self.compute).map_err(|stop| stopped(machine, stop))?;
        self.is_capturing = true;
        let captured = (|| {
            let fork = match member.gather().failure() {
                None => self.compute.mark(&self.events.fork).ok(),
                Some(_) => None,
            };
            self.begin(fork.as_ref());
            self.drive(machine, runner, Some(member.gather()))?;
            member.end(&self.compute).map_err(|stop| stopped(machine, stop))
        })();
        self.is_capturing = false;
        if captured.is_err() {
            member.abandon(&self.compute);
        }
        if !matches!(captured, Ok(Ok(_))) {
            self.slots.release_all();
            machine.restart();
        }
        captured
    }

    /// Launches the captured step.
    fn launch(
        &mut self,
        member: &Member,
        graph: &Graph,
        machine: &RankMachine,
    ) -> std::result::Result<(), Fault> {
        self.step = self.step.wrapping_add(1).max(1);
        self.events.clear_flags();
        self.record_start().map_err(|why| device_fault(machine, why))?;
        self.state = State::Enqueued;
        member.launch(graph, &self.compute).map_err(|stop| machine.fault_of_stop(stop))?;
        self.events.end.record(&self.compute).map_err(|why| device_fault(machine, why))?;
        self.watch.launched(self.step);
        Ok(())
    }

    /// Runs a step of an executor that uses graphs: the first as usual, so that whatever the tasks have to make once is
    /// made; the second captured; the others launched.
    pub(super) fn step_with_graph(
        &mut self,
        machine: &mut RankMachine,
        runner: &mut dyn TaskRunner,
    ) -> std::result::Result<(), Fault> {
        let Some(member) = self.member.take() else { return self.enqueue(machine, runner) };
        let stepped = (|| {
            if self.graph == GraphState::Warm {
                match self.capture(&member, machine, runner)? {
                    Ok(graph) => self.captured = Some(graph),
                    Err(why) => self.graph = GraphState::FellBack(why),
                }
            }
            let Some(graph) = self.captured.clone() else { return self.enqueue(machine, runner) };
            self.graph = GraphState::Captured;
            self.launch(&member, &graph, machine)
        })();
        self.member = Some(member);
        if stepped.is_ok() && self.graph == GraphState::Cold {
            self.graph = GraphState::Warm;
        }
        stepped
    }
}
