//! Transports: how messages get from rank to rank. In one process the library's own; across processes the caller's,
//! through a table of functions (MPI, torch.distributed, UCX, anything that sends bytes).
//!
//! In one process: create an inproc for all ranks, put it into each executor's options, free it when they are created.
//!
//! A transport of yours is used by one executor, in this order: send and receive start transfers, which may be many at
//! once; test asks for each until it has ended; wait, between tests, may sleep. If the rank fails, abort tells the
//! others, and withdraw ends what is under way, also when the executor is freed. destroy is the last call. On the host:
//!
//! ```text
//! MPI           send MPI_Isend, receive MPI_Irecv, test MPI_Test; the tag from message (kind, direction, stage,
//!               micro-batch) and tensor
//! a socket      for each peer: send queues the bytes with tag and length, receive looks for the tag among what came
//! ```

use std::ffi::{c_char, c_void, CStr};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::args::{self, Out, UserData};
use super::guard::call;
use super::handle::{self, Kind, Object};
use super::op::dualpipe_message;
use super::options::{self, Growing};
use super::status::dualpipe_status;
use super::status::{Failure, Outcome};
use crate::execute::fault::Notice;
use crate::execute::rank::Stop;
use crate::execute::transport::{monotonic_ns, Completion, Inproc, Request, Transfer, Transport};
use crate::ids::Rank;
use crate::program::Program;

use dualpipe_transport_code::*;

/// What a dualpipe_inproc_t points to: nothing that C could look into.
pub struct dualpipe_inproc(());

/// What the ranks of one process share, so that their executors can exchange messages: a message is one copy. Each rank
/// is for one executor; after a failure create a new one. Any number of threads may use it at once. It is useless in a
/// child of fork. Free it with dualpipe_inproc_free; executors that use it keep what they need.
pub type dualpipe_inproc_t = *mut dualpipe_inproc;

/// One tensor of one message, to be sent or received. It grows with later versions: read it by its size.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_transfer {
    /// sizeof(dualpipe_transfer) in the library.
    pub size: u32,
    /// The other rank.
    pub peer: u32,
    /// Direction and kind of the message, 0 to 3. Two ranks send and receive in the same order, within a channel and
    /// over all; a transport may rely on that instead of the tag.
    pub channel: u32,
    /// Which of the message's tensors, from 0.
    pub tensor: u32,
    /// A number of its own for each tensor of each message of each step, below 2^56, the same on both sides: message,
    /// tensor and step in one.
    pub tag: u64,
    /// The elements, in ordinary memory or, with a stream, on a CUDA device. It stays in place until the transfer has
    /// ended or was withdrawn.
    pub data: *mut c_void,
    /// How many bytes to send, or at most to receive. An absent gradient is sent as 0 bytes, and must arrive as such.
    pub num_bytes: u64,
    /// On a CUDA device, the CUstream in whose order the transfer is: send and receive enqueue it there and return, and
    /// test is never called. Each peer has a stream for what goes to it and one for what comes from it. NULL on the
    /// host.
    pub stream: *mut c_void,
    /// On a CUDA device, which one. 0 on the host.
    pub device: u32,
    /// In which step of the executor, modulo 65536.
    pub step: u32,
    /// What the tensor is part of.
    pub message: dualpipe_message,
}

/// What a transport's functions return.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_transport_code {
    /// Done; for test: see done.
    DUALPIPE_TRANSPORT_OK = 0,
    /// send and receive: not now, ask again.
    DUALPIPE_TRANSPORT_AGAIN = 1,
    /// The peer is no longer there.
    DUALPIPE_TRANSPORT_PEER_GONE = 2,
    /// The transport failed, as every other number says; last_error may tell how.
    DUALPIPE_TRANSPORT_FAILED = 3,
    /// test: it has waited for the transfer as long as the executor's timeout_ns.
    DUALPIPE_TRANSPORT_TIMED_OUT = 4,
}

/// A transport of the caller's, one rank's end of it. Start from DUALPIPE_TRANSPORT_INIT. The library copies it.
///
/// All functions get user_data. They are called on the thread that runs the executor's step, one at a time, and by
/// dualpipe_executor_free. None but wait may wait, and test if there is no way to ask without: for as long as the
/// executor's timeout_ns at most, and it returns at once when another rank fails. They may not call the executor.
///
/// On a CUDA device abort and poll_abort are also called by the executor's watchdog, on threads of its own, at any
/// time. abort then has to end what has been enqueued and cannot end any more, such as a receive whose sender is
/// gone. Nothing tells an absent gradient there, since sizes are as agreed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_transport {
    /// sizeof(dualpipe_transport).
    pub size: u32,
    /// 0.
    pub reserved: u32,
    /// What the functions get.
    pub user_data: *mut c_void,
    /// Starts to send; writes a number of the caller's choice by which test asks for it. Never NULL.
    pub send: dualpipe_transport_post_fn,
    /// Posts a receive, likewise. Never NULL.
    pub receive: dualpipe_transport_post_fn,
    /// Whether a transfer has ended: writes 1 to done and how many bytes were transferred, or 0 to done. Never NULL.
    pub test: dualpipe_transport_test_fn,
    /// Returns when something may have changed, or after timeout_ns, or for no reason. NULL: the library tests again
    /// every few microseconds, at first at once, at the latest every 200.
    pub wait: dualpipe_transport_wait_fn,
    /// What another rank told by abort, if any did: writes its rank and a text, NUL-terminated, of at most capacity
    /// bytes, and returns 1; 0 if none did. NULL: failing ranks are found by the deadline.
    pub poll_abort: dualpipe_transport_poll_fn,
    /// Tells all other ranks that rank failed, as far as possible. NULL: they find out by the deadline.
    pub abort: dualpipe_transport_abort_fn,
    /// Ends all transfers: when it returns, none of their memory is touched any more. Never NULL.
    pub withdraw: dualpipe_transport_done_fn,
    /// Writes in words what went wrong last, NUL-terminated, at most capacity bytes. NULL: no words.
    pub last_error: dualpipe_transport_error_fn,
    /// The executor has been freed: no function is called any more. It comes after a watchdog's abort; one that takes
    /// longer than 5 s calls it itself. Not called if the executor could not be created. NULL: nothing to do.
    pub destroy: dualpipe_transport_done_fn,
}

/// send and receive: a dualpipe_transport_code.
pub type dualpipe_transport_post_fn = Option<
    unsafe extern "C-unwind" fn(
        user_data: *mut c_void,
        transfer: *const dualpipe_transfer,
        request: *mut u64,
    ) -> u32,
>;
/// test: a dualpipe_transport_code.
pub type dualpipe_transport_test_fn = Option<
    unsafe extern "C-unwind" fn(
        user_data: *mut c_void,
        request: u64,
        done: *mut u32,
        num_bytes: *mut u64,
    ) -> u32,
>;
/// wait.
pub type dualpipe_transport_wait_fn =
    Option<unsafe extern "C-unwind" fn(user_data: *mut c_void, timeout_ns: u64)>;
/// poll_abort.
pub type dualpipe_transport_poll_fn = Option<
    unsafe extern "C-unwind" fn(
        user_data: *mut c_void,
        rank: *mut u32,
        text: *mut c_char,
        capacity: usize,
    ) -> u32,
>;
/// abort.
pub type dualpipe_transport_abort_fn =
    Option<unsafe extern "C-unwind" fn(user_data: *mut c_void, rank: u32, text: *const c_char)>;
/// last_error.
pub type dualpipe_transport_error_fn =
    Option<unsafe extern "C-unwind" fn(user_data: *mut c_void, text: *mut c_char, capacity: usize)>;
/// withdraw and destroy.
pub type dualpipe_transport_done_fn = Option<unsafe extern "C-unwind" fn(user_data: *mut c_void)>;

// SAFETY: repr(C); u32, u32, pointers without gaps; NULL is a value of each, and other bits are the caller's promise.
unsafe impl Growing for dualpipe_transport {
    const SIZE_V1: usize = 88;
}
const _: () = assert!(size_of::<dualpipe_transport>() == 88 && size_of::<dualpipe_transfer>() == 80);

/// Creates what num_ranks ranks of this process (1 to 4096) share.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_inproc_create(
    num_ranks: u32,
    inproc: *mut dualpipe_inproc_t,
) -> dualpipe_status {
    call("dualpipe_inproc_create", || {
        // SAFETY: the caller's.
        let out = unsafe { Out::new("inproc", inproc) }?;
        out.write(handle::insert(InprocObject(Inproc::new(num_ranks as usize)?))?);
        Ok(())
    })
}

/// Frees it. NULL is fine. Executors that use it go on.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_inproc_free(inproc: dualpipe_inproc_t) -> dualpipe_status {
    call("dualpipe_inproc_free", || handle::free::<InprocObject>("inproc", inproc))
}

/// An inproc that C has a handle of.
pub(crate) struct InprocObject(pub(crate) Inproc);

impl Object for InprocObject {
    type Opaque = dualpipe_inproc;
    const KIND: Kind = Kind::Inproc;
    const OWNS_THREADS: bool = true;
}

/// The caller's table of functions as a transport.
pub(super) struct CallerTransport {
    pub(super) table: dualpipe_transport,
    program: Arc<Program>,
    user_data: UserData,
    /// How often in a row the library had to wait by itself.
    idle: u32,
    notice: Option<Notice>,
    end: Arc<End>,
}

/// What the executor's thread and a watchdog's, which may still be in `abort` when the executor is freed, agree on:
/// destroy is called when the executor is gone and nobody is in a function any more.
struct End {
    destroy: dualpipe_transport_done_fn,
    user_data: UserData,
    /// Whether an executor has it: before that, destroy is none of the library's business.
    is_taken: Arc<AtomicBool>,
    state: Mutex<EndState>,
    left: Condvar,
}

#[derive(Default)]
struct EndState {
    /// Calls under way by threads of the watchdog's.
    callers: usize,
    is_over: bool,
}

/// How long the executor's thread waits for them. Then the last of them calls destroy.
const END_TIMEOUT: Duration = Duration::from_secs(5);

impl End {
    fn lock(&self) -> MutexGuard<'_, EndState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls a function of the caller's, unless destroy has been or is about to be called.
    fn call<T>(&self, function: impl FnOnce() -> T) -> Option<T> {
        let mut state = self.lock();
        if state.is_over {
            return None;
        }
        state.callers += 1;
        drop(state);
        let result = function();
        let mut state = self.lock();
        state.callers -= 1;
        let is_last = state.is_over && state.callers == 0;
        drop(state);
        self.left.notify_all();
        if is_last {
            self.destroy();
        }
        Some(result)
    }

    /// The executor is gone.
    fn end(&self) {
        let mut state = self.lock();
        let deadline = Instant::now() + END_TIMEOUT;
        while state.callers > 0 && Instant::now() < deadline {
            let waited = self.left.wait_timeout(state, deadline.saturating_duration_since(Instant::now()));
            state = waited.map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
        state.is_over = true;
        let is_last = state.callers == 0;
        drop(state);
        if is_last {
            self.destroy();
        }
    }

    fn destroy(&self) {
        if let Some(destroy) = self.destroy.filter(|_| self.is_taken.load(Ordering::Acquire)) {
            // SAFETY: the caller's function, with the caller's data.
            unsafe { destroy(self.user_data.0) };
        }
    }
}

// SAFETY: the table's documentation says on which threads its functions are called.
unsafe impl Send for CallerTransport {}

impl CallerTransport {
    /// # Safety
    /// The pointer, if its bits pass, is one to a table, as its documentation says.
    pub(super) unsafe fn read(
        argument: &str,
        table: *const dualpipe_transport,
        program: &Arc<Program>,
    ) -> Outcome<CallerTransport> {
        // SAFETY: the caller's promise.
        let table = unsafe { options::read(argument, table) }?;
        args::zero(&format!("{argument}->reserved"), table.reserved)?;
        let needed = [
            ("send", table.send.is_some()),
            ("receive", table.receive.is_some()),
            ("test", table.test.is_some()),
            ("withdraw", table.withdraw.is_some()),
        ];
        if let Some((name, _)) = needed.iter().find(|(_, is_there)| !is_there) {
            return Err(Failure::argument(format!("{argument}->{name}"), "is NULL"));
        }
        let user_data = UserData(table.user_data);
        let (is_taken, state, left) = (Arc::default(), Mutex::default(), Condvar::new());
        let end = Arc::new(End { destroy: table.destroy, user_data, is_taken, state, left });
        Ok(CallerTransport { table, program: Arc::clone(program), user_data, idle: 0, notice: None, end })
    }

    /// How it tells of failures, also on other threads.
    pub(super) fn alarm(&self) -> Alarm {
        let dualpipe_transport { abort, poll_abort, .. } = self.table;
        Alarm { abort, poll_abort, user_data: self.user_data, end: Arc::clone(&self.end) }
    }

    /// To be set when an executor has been made of it.
    pub(super) fn is_taken(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.end.is_taken)
    }

    /// Starts a transfer, in the order of a stream if there is one, of that device.
    pub(super) fn post(
        &self,
        function: dualpipe_transport_post_fn,
        transfer: Transfer,
        stream: *mut c_void,
        device: u32,
    ) -> Result<Option<Request>, Stop> {
        let transfer = dualpipe_transfer {
            size: size_of::<dualpipe_transfer>() as u32,
            peer: transfer.peer.0,
            channel: transfer.channel(),
            tensor: transfer.tensor as u32,
            tag: transfer.tag(),
            data: transfer.data.as_ptr().cast(),
            num_bytes: transfer.bytes as u64,
            stream,
            device,
            step: transfer.step.into(),
            message: dualpipe_message::new(self.program.placement(), transfer.message),
        };
        let mut request = 0;
        let code = match function {
            // SAFETY: the caller's function, with what its documentation says.
            Some(function) => unsafe { function(self.user_data.0, &transfer, &mut request) },
            None => DUALPIPE_TRANSPORT_FAILED as u32,
        };
        self.check(code).map(|ok| ok.then_some(Request(request)))
    }

    /// `true` for OK, `false` for AGAIN.
    fn check(&self, code: u32) -> Result<bool, Stop> {
        const OK: u32 = DUALPIPE_TRANSPORT_OK as u32;
        const AGAIN: u32 = DUALPIPE_TRANSPORT_AGAIN as u32;
        const GONE: u32 = DUALPIPE_TRANSPORT_PEER_GONE as u32;
        const TIMED_OUT: u32 = DUALPIPE_TRANSPORT_TIMED_OUT as u32;
        match code {
            OK => Ok(true),
            AGAIN => Ok(false),
            GONE => Err(Stop::PeerGone),
            TIMED_OUT => Err(Stop::TimedOut),
            code => Err(Stop::Transport(self.last_error(code))),
        }
    }

    fn last_error(&self, code: u32) -> String {
        let mut text = [0 as c_char; TEXT_MAX];
        if let Some(function) = self.table.last_error {
            // SAFETY: the caller's function, with room for what it writes.
            unsafe { function(self.user_data.0, text.as_mut_ptr(), TEXT_MAX) };
        }
        match text_of(&mut text) {
            text if text.is_empty() => format!("it returned {code}"),
            text => text,
        }
    }
}

/// Longest text of a transport, with its NUL.
const TEXT_MAX: usize = 1024;

/// What the caller has written, made to end in any case.
fn text_of(text: &mut [c_char; TEXT_MAX]) -> String {
    text[TEXT_MAX - 1] = 0;
    // SAFETY: there is a NUL at the end at the latest.
    unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned()
}

/// How the ranks of a caller's transport tell one another of failures.
pub(super) struct Alarm {
    abort: dualpipe_transport_abort_fn,
    poll_abort: dualpipe_transport_poll_fn,
    user_data: UserData,
    end: Arc<End>,
}

impl Alarm {
    /// What another rank said when it failed.
    pub(super) fn poll(&self) -> Option<Notice> {
        let poll = self.poll_abort?;
        let (mut rank, mut text) = (0, [0 as c_char; TEXT_MAX]);
        // SAFETY: the caller's function, with room for what it writes.
        let ask = || unsafe { poll(self.user_data.0, &mut rank, text.as_mut_ptr(), TEXT_MAX) };
        let told = self.end.call(ask)?;
        (told != 0).then(|| Notice { rank: Rank(rank), text: text_of(&mut text) })
    }

    /// Tells the others.
    pub(super) fn tell(&self, notice: &Notice) {
        if let Some(abort) = self.abort {
            let text = super::status::c_text(&notice.text);
            // SAFETY: the caller's function, with a text that outlives the call.
            self.end.call(|| unsafe { abort(self.user_data.0, notice.rank.0, text.as_ptr()) });
        }
    }
}

impl Transport for CallerTransport {
    fn now_ns(&self) -> u64 {
        monotonic_ns()
    }

    fn reserve(&mut self, _: usize) {}

    unsafe fn send(&mut self, transfer: Transfer) -> Result<Option<Request>, Stop> {
        self.idle = 0;
        self.post(self.table.send, transfer, null_mut(), 0)
    }

    unsafe fn receive(&mut self, transfer: Transfer) -> Result<Option<Request>, Stop> {
        self.idle = 0;
        self.post(self.table.receive, transfer, null_mut(), 0)
    }

    fn test(&mut self, request: Request, _: Rank) -> Result<Option<Completion>, Stop> {
        let (mut done, mut num_bytes) = (0, 0);
        let code = match self.table.test {
            // SAFETY: the caller's function, with what its documentation says.
            Some(test) => unsafe { test(self.user_data.0, request.0, &mut done, &mut num_bytes) },
            None => DUALPIPE_TRANSPORT_FAILED as u32,
        };
        if !self.check(code)? || done == 0 {
            return Ok(None);
        }
        self.idle = 0;
        let bytes = usize::try_from(num_bytes).unwrap_or(usize::MAX);
        Ok(Some(Completion { bytes, sent_ns: None }))
    }

    fn wait(&mut self, timeout: Duration) {
        let timeout_ns = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        if let Some(wait) = self.table.wait {
            // SAFETY: the caller's function, with the caller's data.
            return unsafe { wait(self.user_data.0, timeout_ns) };
        }
        self.idle = self.idle.saturating_add(1);
        match self.idle {
            0..200 => std::hint::spin_loop(),
            200..400 => std::thread::yield_now(),
            idle => std::thread::sleep(timeout.min(Duration::from_micros(u64::from(idle / 100).min(200)))),
        }
    }

    fn notice(&mut self) -> Option<Notice> {
        if self.notice.is_none() {
            self.notice = self.alarm().poll();
        }
        self.notice.clone()
    }

    fn abort(&mut self, notice: &Notice) {
        self.alarm().tell(notice);
    }

    fn withdraw(&mut self) {
        if let Some(withdraw) = self.table.withdraw {
            // SAFETY: the caller's function, with the caller's data.
            unsafe { withdraw(self.user_data.0) };
        }
    }
}

impl Drop for CallerTransport {
    fn drop(&mut self) {
        self.end.end();
    }
}
