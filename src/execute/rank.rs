//! One rank on its way through its program: a state machine without a clock, a thread or a network of its own, so
//! that a test can drive many of them in one thread, in simulated time, over a network that loses messages.

use std::sync::Arc;
use std::time::Duration;

use super::fault::{Cause, Fault, Notice, Wait};
use crate::ids::Rank;
use crate::op::{Message, Task};
use crate::program::{BufferId, Instruction, Program};

/// What surrounds a rank. No method waits.
pub trait World {
    /// Time in nanoseconds, from any start, never going back.
    fn now_ns(&mut self) -> u64;

    /// Posts a receive; `false` if the transport cannot take it yet.
    fn receive(&mut self, message: Message, from: Rank, buffer: BufferId) -> Result<bool, Stop>;

    /// Whether what was posted for `buffer` has come.
    fn is_received(&mut self, message: Message, from: Rank, buffer: BufferId) -> Result<bool, Stop>;

    /// Starts to send; `false` if the transport cannot take it yet.
    fn send(&mut self, message: Message, to: Rank, buffer: BufferId) -> Result<bool, Stop>;

    /// Whether `buffer`, being sent, may be used again.
    fn is_sent(&mut self, message: Message, to: Rank, buffer: BufferId) -> Result<bool, Stop>;

    /// Runs a task whose inputs are all there. The only method that may take long.
    fn run(&mut self, task: Task) -> Result<(), Stop>;

    /// The buffer is not needed any more.
    fn free(&mut self, buffer: BufferId);

    /// What another rank said when it failed.
    fn notice(&mut self) -> Option<Notice>;
}

/// Why a [`World`] cannot do what it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The task callback failed, in its own words.
    Callback(String),
    /// The transport failed, in its own words.
    Transport(String),
    /// The peer is no longer there.
    PeerGone,
    /// The transport waited by itself, as long as the rank would have.
    TimedOut,
    /// The driver or the device failed, in its own words.
    Device(String),
}

/// How far a rank has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The step is done.
    Finished,
    /// It waits, at the latest until the deadline on the world's clock; then it fails.
    Waiting {
        /// For what.
        wait: Wait,
        /// Until when.
        deadline_ns: u64,
    },
}

/// What a buffer is being used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// Free, or filled by a task of this rank.
    Local,
    Receiving(Message, Rank),
    Sending(Message, Rank),
}

/// A rank in the middle of its program.
pub struct RankMachine {
    program: Arc<Program>,
    at: usize,
    uses: Vec<Use>,
    last_done: Option<Task>,
    waiting_since_ns: Option<u64>,
    timeout_ns: u64,
}

impl RankMachine {
    /// A rank before its first step. No single wait lasts longer than `timeout`.
    pub fn new(program: Arc<Program>, timeout: Duration) -> RankMachine {
        let uses = vec![Use::Local; program.buffers().len()];
        let timeout_ns = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        RankMachine { program, at: 0, uses, last_done: None, waiting_since_ns: None, timeout_ns }
    }

    /// Back to the start of the program, for the next step.
    pub fn restart(&mut self) {
        self.at = 0;
        self.uses.fill(Use::Local);
        self.last_done = None;
        self.waiting_since_ns = None;
    }

    /// The instruction that it is at.
    pub fn instruction(&self) -> usize {
        self.at
    }

    /// Does as much as it can without waiting.
    ///
    /// # Errors
    /// The world failed, another rank did, or a wait outlived its deadline. The rank is then of no more use.
    pub fn advance(&mut self, world: &mut impl World) -> Result<Progress, Fault> {
        loop {
            if let Some(progress) = self.advance_once(world)? {
                return Ok(progress);
            }
        }
    }

    /// Does one instruction: `None` if it is done and there are more.
    ///
    /// # Errors
    /// As [`RankMachine::advance`].
    pub fn advance_once(&mut self, world: &mut impl World) -> Result<Option<Progress>, Fault> {
        let Some(&instruction) = self.program.instructions().get(self.at) else {
            return Ok(Some(Progress::Finished));
        };
        match self.try_instruction(instruction, world) {
            Ok(None) => {
                self.at += 1;
                self.waiting_since_ns = None;
                Ok(None)
            }
            Ok(Some(wait)) => self.wait(wait, world).map(Some),
            Err((stop, wait)) => Err(self.fault(stop, wait, world.notice())),
        }
    }

    /// Does one instruction; `Some` if it has to wait first.
    fn try_instruction(
        &mut self,
        instruction: Instruction,
        world: &mut impl World,
    ) -> Result<Option<Wait>, (Stop, Option<Wait>)> {
        match instruction {
            Instruction::Receive { message, from, buffer } => {
                let wait = Wait { message, peer: from, is_receive: true };
                if !world.receive(message, from, buffer).map_err(|stop| (stop, Some(wait)))? {
                    return Ok(Some(wait));
                }
                self.uses[buffer.index()] = Use::Receiving(message, from);
            }
            Instruction::Send { message, to, buffer } => {
                let wait = Wait { message, peer: to, is_receive: false };
                if !world.send(message, to, buffer).map_err(|stop| (stop, Some(wait)))? {
                    return Ok(Some(wait));
                }
                self.uses[buffer.index()] = Use::Sending(message, to);
            }
            Instruction::Free(buffer) => {
                if let Some(wait) = self.settle(buffer, world)? {
                    return Ok(Some(wait));
                }
                world.free(buffer);
            }
            Instruction::Run(task) => {
                if let Task::Op(op) = task {
                    let (read, _) = self.program.reads_and_writes(op);
                    for buffer in read.into_iter().flatten() {
                        if let Some(wait) = self.settle(buffer, world)? {
                            return Ok(Some(wait));
                        }
                    }
                }
                world.run(task).map_err(|stop| (stop, None))?;
                self.last_done = Some(task);
            }
        }
        Ok(None)
    }

    /// Waits for what is coming into a buffer, or leaving it.
    fn settle(
        &mut self,
        buffer: BufferId,
        world: &mut impl World,
    ) -> Result<Option<Wait>, (Stop, Option<Wait>)> {
        let (wait, settled) = match self.uses[buffer.index()] {
            Use::Local => return Ok(None),
            Use::Receiving(message, peer) => {
                (Wait { message, peer, is_receive: true }, world.is_received(message, peer, buffer))
            }
            Use::Sending(message, peer) => {
                (Wait { message, peer, is_receive: false }, world.is_sent(message, peer, buffer))
            }
        };
        if !settled.map_err(|stop| (stop, Some(wait)))? {
            return Ok(Some(wait));
        }
        self.uses[buffer.index()] = Use::Local;
        Ok(None)
    }

    fn wait(&mut self, wait: Wait, world: &mut impl World) -> Result<Progress, Fault> {
        if let Some(notice) = world.notice() {
            return Err(self.fault_of(Cause::Peer { wait: Some(wait), notice }));
        }
        let now_ns = world.now_ns();
        let since_ns = *self.waiting_since_ns.get_or_insert(now_ns);
        let deadline_ns = since_ns.saturating_add(self.timeout_ns);
        if now_ns >= deadline_ns {
            let waited = Duration::from_nanos(now_ns - since_ns);
            return Err(self.fault_of(Cause::Timeout { wait, waited }));
        }
        Ok(Progress::Waiting { wait, deadline_ns })
    }

    fn fault(&self, stop: Stop, wait: Option<Wait>, notice: Option<Notice>) -> Fault {
        self.fault_of(match (stop, wait, notice) {
            (Stop::Callback(text), _, _) => Cause::Callback(text),
            // A peer that is gone may have said why.
            (Stop::PeerGone, wait, Some(notice)) => Cause::Peer { wait, notice },
            (Stop::PeerGone, Some(wait), None) => Cause::Gone(wait),
            (Stop::PeerGone, None, None) => Cause::Transport { wait: None, text: "a peer is gone".into() },
            (Stop::Transport(text), wait, _) => Cause::Transport { wait, text },
            (Stop::TimedOut, wait, Some(notice)) => Cause::Peer { wait, notice },
            (Stop::TimedOut, Some(wait), None) => {
                Cause::Timeout { wait, waited: Duration::from_nanos(self.timeout_ns) }
            }
            (Stop::TimedOut, None, None) => Cause::Transport { wait: None, text: "it timed out".into() },
            (Stop::Device(text), wait, _) => Cause::Device { wait, text },
        })
    }

    /// A fault at the instruction that the rank is at, whatever the world said.
    pub(crate) fn fault_of_stop(&self, stop: Stop) -> Fault {
        self.fault(stop, None, None)
    }

    /// A fault at the instruction that the rank is at.
    pub(crate) fn fault_of(&self, cause: Cause) -> Fault {
        let instruction = self.program.instructions().get(self.at);
        Fault {
            rank: self.program.rank(),
            instruction: self.at,
            text: instruction.map_or("end".to_string(), Instruction::to_string),
            last_done: self.last_done,
            stream: None,
            cause,
        }
    }
}
