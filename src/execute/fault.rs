//! Why a rank stopped: always with rank, instruction and, where there is one, peer.

use std::fmt;
use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::ids::Rank;
use crate::op::{Message, Task};

/// What went wrong on a rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Nothing came for too long.
    Timeout {
        /// What it waited for.
        wait: Wait,
        /// For how long.
        waited: Duration,
    },
    /// The task callback failed.
    Callback(String),
    /// The transport failed.
    Transport {
        /// What it was doing; `None` if nothing in particular.
        wait: Option<Wait>,
        /// The transport's own words.
        text: String,
    },
    /// Another rank failed.
    Peer {
        /// What this rank waited for, if it did.
        wait: Option<Wait>,
        /// What the other rank said.
        notice: Notice,
    },
    /// The peer that a message was to come from or go to is no longer there.
    Gone(Wait),
    /// The driver or the device failed.
    Device {
        /// What it was doing for a peer, if it was.
        wait: Option<Wait>,
        /// The driver's own words.
        text: String,
    },
    /// The device has not come to the end of the task, although all that the task reads is there.
    Overdue {
        /// For how long nothing has ended.
        waited: Duration,
    },
}

/// A stream of a rank's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamName {
    /// On which tasks compute.
    Compute,
    /// On which a peer's messages come in.
    ReceiveFrom(Rank),
    /// On which messages go out to a peer.
    SendTo(Rank),
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StreamName::Compute => write!(f, "the compute stream"),
            StreamName::ReceiveFrom(peer) => write!(f, "the receive stream from rank {peer}"),
            StreamName::SendTo(peer) => write!(f, "the send stream to rank {peer}"),
        }
    }
}

/// What a rank waits for from a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The message.
    pub message: Message,
    /// The other rank.
    pub peer: Rank,
    /// `true` if the message is to come, `false` if it is to be taken up by the peer.
    pub is_receive: bool,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Wait { message, peer, is_receive } = self;
        match is_receive {
            true => write!(f, "the {message}, from rank {peer}"),
            false => write!(f, "rank {peer} to take the {message}"),
        }
    }
}

/// What a failing rank tells the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Who failed.
    pub rank: Rank,
    /// Its fault, in words.
    pub text: String,
}

/// A rank's failure in a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Who stopped.
    pub rank: Rank,
    /// At which instruction of its program.
    pub instruction: usize,
    /// That instruction, in words.
    pub text: String,
    /// The last task that it finished in this step.
    pub last_done: Option<Task>,
    /// On which stream of the device; `None` on the host.
    pub stream: Option<StreamName>,
    /// Why.
    pub cause: Cause,
}

impl Fault {
    /// The other rank that it is about, if there is one.
    pub fn peer(&self) -> Option<Rank> {
        match &self.cause {
            Cause::Timeout { wait, .. } | Cause::Gone(wait) => Some(wait.peer),
            Cause::Transport { wait, .. } | Cause::Device { wait, .. } => wait.map(|wait| wait.peer),
            Cause::Peer { notice, .. } => Some(notice.rank),
            Cause::Callback(_) | Cause::Overdue { .. } => None,
        }
    }

    /// What to tell the other ranks: if this rank only passes on another's fault, that one's.
    pub fn notice(&self) -> Notice {
        match &self.cause {
            Cause::Peer { notice, .. } => notice.clone(),
            _ => Notice { rank: self.rank, text: self.to_string() },
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {}, instruction {} ({})", self.rank, self.instruction, self.text)?;
        self.stream.map_or(Ok(()), |stream| write!(f, " on {stream}"))?;
        write!(f, ": ")?;
        match &self.cause {
            Cause::Timeout { wait, waited } => write!(f, "waited {waited:?} for {wait}")?,
            Cause::Callback(text) => write!(f, "the task callback failed: {text}")?,
            Cause::Transport { wait: None, text } => write!(f, "the transport failed: {text}")?,
            Cause::Transport { wait: Some(wait), text } => {
                write!(f, "the transport failed: {text}, with {wait}")?
            }
            Cause::Device { wait: None, text } => write!(f, "the device failed: {text}")?,
            Cause::Device { wait: Some(wait), text } => write!(f, "the device failed: {text}, with {wait}")?,
            Cause::Overdue { waited } => {
                write!(f, "not done after {waited:?} without progress, though its inputs are there")?
            }
            Cause::Gone(wait) => write!(f, "rank {} is gone, waited for {wait}", wait.peer)?,
            Cause::Peer { wait, notice } => {
                write!(f, "stopped because rank {} failed", notice.rank)?;
                if let Some(wait) = wait {
                    write!(f, " while this rank waited for {wait}")?;
                }
                write!(f, " [{}]", notice.text)?;
            }
        }
        match self.last_done {
            Some(task) => write!(f, "; last done {task}"),
            None => write!(f, "; nothing done yet"),
        }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Error {
        let kind = match fault.cause {
            Cause::Timeout { .. } | Cause::Overdue { .. } => ErrorKind::Timeout,
            Cause::Device { .. } => ErrorKind::Device,
            Cause::Callback(_) => ErrorKind::CallbackFailed,
            Cause::Transport { .. } => ErrorKind::Transport,
            Cause::Peer { .. } | Cause::Gone(_) => ErrorKind::PeerFailed,
        };
        Error::new(kind, fault.to_string())
    }
}
