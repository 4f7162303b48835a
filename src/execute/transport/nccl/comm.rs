//! A communicator of two ranks that does not block, and that may be aborted from another thread.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::sys::{self, nccl, Nccl};
use crate::error::Result;
use crate::execute::fault::Notice;
use crate::execute::rank::Stop;
use crate::execute::transport::stream_ordered::{Line, Posted};
use crate::ids::Rank;

/// How often a communicator is asked whether it has done what it was told.
pub(super) const POLL_PERIOD: Duration = Duration::from_micros(50);

/// One end of a communicator.
pub(super) struct Comm {
    nccl: &'static Nccl,
    pub(super) peer: Rank,
    /// Locked while NCCL is in a call, which does not block.
    raw: Mutex<Raw>,
    /// Whether streams may be waiting for the peer's signals.
    has_waits: AtomicBool,
}

enum Raw {
    Live(Handle),
    /// It has failed, and nobody uses it; it cannot be aborted yet.
    GivenUp(Handle),
    /// Aborted, destroyed or forgotten.
    Gone,
}

/// The communicator's name.
#[derive(Clone, Copy)]
struct Handle(sys::Comm);

// SAFETY: a name; NCCL's functions may be called from any thread, one at a time, which the lock sees to.
unsafe impl Send for Handle {}

/// What NCCL answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    InProgress,
}

impl Comm {
    /// Begins to join `peer`; [`Comm::poll`] tells when it has come. The context of its device must be current.
    pub(super) fn begin(peer: Rank, id: sys::UniqueId, rank: c_int, max_ctas: u32) -> Result<Comm> {
        let nccl = nccl()?;
        let mut config = sys::Config::new();
        config.blocking = 0;
        config.min_ctas = 1;
        config.max_ctas = max_ctas as c_int;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes to a local; NCCL copies the configuration.
        let code = unsafe { (nccl.ncclCommInitRankConfig)(&mut handle, 2, id, rank, &mut config) };
        let (raw, has_waits) = (Raw::Live(Handle(handle)), AtomicBool::new(false));
        let comm = Comm { nccl, peer, raw: Mutex::new(raw), has_waits };
        match code {
            sys::SUCCESS | sys::IN_PROGRESS => Ok(comm),
            code => {
                let text = nccl.say("ncclCommInitRankConfig", code, handle);
                comm.abort(); // what has failed is there all the same
                Err(crate::Error::new(crate::ErrorKind::Transport, format!("nccl: with rank {peer}: {text}")))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Raw> {
        self.raw.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls NCCL with the communicator.
    pub(super) fn call(
        &self,
        function: &str,
        call: impl FnOnce(&Nccl, sys::Comm) -> c_int,
    ) -> Posted<Answer> {
        let raw = self.lock();
        let Raw::Live(Handle(comm)) = *raw else {
            return Err(Stop::Transport(format!("the communicator with rank {} was aborted", self.peer)));
        };
        match call(self.nccl, comm) {
            sys::SUCCESS => Ok(Answer::Done),
            sys::IN_PROGRESS => Ok(Answer::InProgress),
            code => Err(Stop::Transport(self.nccl.say(function, code, comm))),
        }
    }

    /// Whether it has done what it was told.
    pub(super) fn poll(&self) -> Posted<Answer> {
        self.call("ncclCommGetAsyncError", |nccl, comm| {
            let mut state = sys::SUCCESS;
            // SAFETY: the communicator lives; writes to a local.
            match unsafe { (nccl.ncclCommGetAsyncError)(comm, &mut state) } {
                sys::SUCCESS => state,
                code => code,
            }
        })
    }

    /// A stream is about to wait for signals of the peer's.
    pub(super) fn expect_signals(&self) {
        self.has_waits.store(true, Ordering::Relaxed);
    }

    /// Ends it, whatever it is doing, here and on the device.
    pub(super) fn abort(&self) {
        self.abort_locked(self.lock());
    }

    fn abort_locked(&self, mut raw: MutexGuard<'_, Raw>) {
        match std::mem::replace(&mut *raw, Raw::Gone) {
            Raw::Live(Handle(comm)) | Raw::GivenUp(Handle(comm)) if !comm.is_null() => {
                // SAFETY: it lived, and nobody has it any more. What it returns does not matter.
                let _ = unsafe { (self.nccl.ncclCommAbort)(comm) };
            }
            _ => {}
        }
    }

    /// As [`Comm::abort`] if that helps. What NCCL's kernels see, a stream that waits for a signal does not: it would
    /// go on to wait on memory that NCCL has freed.
    fn stop(&self) {
        let mut raw = self.lock();
        match *raw {
            Raw::Live(handle) if self.has_waits.load(Ordering::Relaxed) => *raw = Raw::GivenUp(handle),
            Raw::Live(_) => self.abort_locked(raw),
            Raw::GivenUp(_) | Raw::Gone => {}
        }
    }

    /// The device has done all that it will do for this end.
    pub(super) fn bury(&self) {
        let raw = self.lock();
        if matches!(*raw, Raw::GivenUp(_)) {
            self.abort_locked(raw);
        }
    }

    /// The device may never do what it was told: nothing of this end can be given back.
    pub(super) fn forget(&self) {
        // Whoever holds the lock is aborting it.
        if let Ok(mut raw) = self.raw.try_lock() {
            if matches!(*raw, Raw::GivenUp(_)) {
                *raw = Raw::Gone;
            }
        }
    }

    /// Ends it when all that it was told is done, or aborts it after `timeout`.
    pub(super) fn end(&self, timeout: Duration) {
        if self.poll() != Ok(Answer::Done) {
            return self.abort();
        }
        let deadline = Instant::now() + timeout;
        // SAFETY: the communicator lives.
        let mut answer = self.call("ncclCommFinalize", |nccl, comm| unsafe { (nccl.ncclCommFinalize)(comm) });
        while answer == Ok(Answer::InProgress) && Instant::now() < deadline {
            std::thread::sleep(POLL_PERIOD);
            answer = self.poll();
        }
        if answer != Ok(Answer::Done) {
            return self.abort();
        }
        // One that has failed is not destroyed, only aborted.
        // SAFETY: the communicator lives.
        match self.call("ncclCommDestroy", |nccl, comm| unsafe { (nccl.ncclCommDestroy)(comm) }) {
            Ok(_) => *self.lock() = Raw::Gone,
            Err(_) => self.abort(),
        }
    }
}

/// All communicators of a rank.
pub(super) struct Comms {
    pub(super) comms: Vec<Arc<Comm>>,
}

impl Line for Comms {
    fn failure(&self) -> Option<(Option<Rank>, String)> {
        let failed = |comm: &Arc<Comm>| match comm.poll() {
            Err(Stop::Transport(text)) => Some((Some(comm.peer), format!("{text}, with rank {}", comm.peer))),
            _ => None,
        };
        self.comms.iter().find_map(failed)
    }

    /// NCCL has no words for the others: they find out by their deadlines.
    fn notice(&self) -> Option<Notice> {
        None
    }

    fn abort(&self, _: &Notice) {
        self.comms.iter().for_each(|comm| comm.stop());
    }
}
