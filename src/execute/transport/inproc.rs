//! Ranks of one process: a message is one copy, from the sender's buffer into the receiver's.
//!
//! A mailbox per rank, guarded by a lock. Whoever brings the second half of a message copies it, under the lock of
//! the receiver's mailbox, so that [`Transport::withdraw`] need only take the lock to know that nobody is copying.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::mailbox::{Key, Mailbox};
use super::{Completion, Request, Transfer, Transport};
use crate::error::{in_range, Error, ErrorKind, Result};
use crate::execute::fault::Notice;
use crate::execute::rank::Stop;
use crate::ids::Rank;
use crate::placement::RANKS_MAX;

/// How often a waiting rank looks again before it sleeps, if there is a core for every rank.
const SPINS: u32 = 2_000;
/// How often it offers its core to another rank instead, if there are fewer cores than ranks.
const YIELDS: u32 = 20;

/// What the ranks of one process share. Cloning gives another handle on the same.
///
/// Any thread may use it at any time.
#[derive(Clone, Debug)]
pub struct Inproc {
    hub: Arc<Hub>,
}

impl Inproc {
    /// For `num_ranks` ranks, at least 1.
    pub fn new(num_ranks: usize) -> Result<Inproc> {
        in_range("inproc", "num_ranks", num_ranks, 1..=RANKS_MAX as usize)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Inproc {
            hub: Arc::new(Hub {
                start: Instant::now(),
                posts: (0..num_ranks).map(|_| Post::default()).collect(),
                spins: if num_ranks <= cores { SPINS } else { 0 },
                yields: if num_ranks <= cores { 0 } else { YIELDS },
                is_aborted: AtomicBool::new(false),
                notice: Mutex::new(None),
            }),
        })
    }

    /// How many ranks it joins.
    pub fn num_ranks(&self) -> usize {
        self.hub.posts.len()
    }

    /// The end of one rank, of which there is only one.
    ///
    /// # Errors
    /// `rank` is out of range or its end has been handed out before, or a rank has failed.
    pub fn transport(&self, rank: Rank) -> Result<InprocTransport> {
        in_range("inproc", "rank", rank.index(), 0..=self.num_ranks() - 1)?;
        if let Some(notice) = self.hub.notice() {
            let text = format!("inproc: rank {} failed, make a new one [{}]", notice.rank, notice.text);
            return Err(Error::new(ErrorKind::Poisoned, text));
        }
        if self.hub.posts[rank.index()].is_taken.swap(true, Ordering::AcqRel) {
            return Err(Error::argument("inproc", "rank", rank, "which another executor has"));
        }
        Ok(InprocTransport {
            hub: Arc::clone(&self.hub),
            rank,
            requests: Arc::default(),
            free: Vec::new(),
            seen: 0,
        })
    }
}

#[derive(Debug)]
struct Hub {
    start: Instant,
    posts: Vec<Post>,
    spins: u32,
    yields: u32,
    is_aborted: AtomicBool,
    notice: Mutex<Option<Notice>>,
}

/// What belongs to one rank.
#[derive(Debug, Default)]
struct Post {
    mailbox: Mutex<Mailbox<Half, Half>>,
    /// Counts all that happens to the rank.
    events: AtomicU64,
    /// Whether the rank sleeps, or is about to: only then is waking it worth a system call.
    is_asleep: AtomicBool,
    sleeper: Mutex<()>,
    wake: Condvar,
    is_taken: AtomicBool,
    is_gone: AtomicBool,
}

/// One side of a transfer.
#[derive(Debug)]
struct Half {
    transfer: Transfer,
    request: usize,
    requests: Arc<Vec<RequestState>>,
    sent_ns: u64,
}

/// How a request stands.
#[derive(Debug, Default)]
struct RequestState {
    /// 0 while under way, then the bytes plus 1.
    done: AtomicU64,
    sent_ns: AtomicU64,
}

/// A lock is never left in a bad state here: what is done under it does not panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    fn notice(&self) -> Option<Notice> {
        if !self.is_aborted.load(Ordering::Acquire) {
            return None;
        }
        lock(&self.notice).clone()
    }

    fn notify(&self, rank: Rank) {
        let post = &self.posts[rank.index()];
        // Sequentially consistent, as in `wait`: of "the events have grown" and "the rank sleeps" one side sees at
        // least one.
        post.events.fetch_add(1, Ordering::SeqCst);
        if post.is_asleep.load(Ordering::SeqCst) {
            drop(lock(&post.sleeper));
            post.wake.notify_all();
        }
    }

    fn notify_all(&self) {
        (0..self.posts.len()).for_each(|rank| self.notify(Rank::from_index(rank)));
    }
}

/// Copies a message and tells both sides.
///
/// Called under the lock of the receiver's mailbox with two halves that were in it, or one that was and one that its
/// owner posts right now: so both transfers are under way, and their memory is there.
fn copy(send: &Half, receive: &Half) {
    let bytes = send.transfer.bytes.min(receive.transfer.bytes);
    if bytes > 0 {
        // SAFETY: see above, and the contracts of `Transport::send` and `Transport::receive`: both sides are good
        // for `bytes`, and the receiver's memory is not used by anyone else, so they do not overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(send.transfer.data.as_ptr(), receive.transfer.data.as_ptr(), bytes);
        }
    }
    for half in [receive, send] {
        let state = &half.requests[half.request];
        state.sent_ns.store(send.sent_ns, Ordering::Relaxed);
        // The receiver learns how much was meant for it, also if that is more than it had room for.
        state.done.store(send.transfer.bytes as u64 + 1, Ordering::Release);
    }
}

/// One rank's end of an [`Inproc`].
#[derive(Debug)]
pub struct InprocTransport {
    hub: Arc<Hub>,
    rank: Rank,
    requests: Arc<Vec<RequestState>>,
    free: Vec<usize>,
    /// The events that had happened when the rank last looked.
    seen: u64,
}

impl InprocTransport {
    fn post(&self) -> &Post {
        &self.hub.posts[self.rank.index()]
    }

    fn half(&mut self, transfer: Transfer) -> Option<Half> {
        let request = self.free.pop()?;
        self.requests[request].done.store(0, Ordering::Relaxed);
        let sent_ns = self.now_ns();
        Some(Half { transfer, request, requests: Arc::clone(&self.requests), sent_ns })
    }

    fn peer(&self, peer: Rank) -> std::result::Result<&Post, Stop> {
        let post = self.hub.posts.get(peer.index());
        post.ok_or_else(|| Stop::Transport(format!("there is no rank {peer} in this inproc")))
    }

    /// Puts one side of a transfer into the mailbox of `receiver`, and copies if the other is there.
    fn exchange(
        &mut self,
        transfer: Transfer,
        receiver: Rank,
        post: impl FnOnce(&mut Mailbox<Half, Half>, Half) -> Option<(Half, Half)>,
    ) -> std::result::Result<Option<Request>, Stop> {
        self.peer(transfer.peer)?;
        let Some(half) = self.half(transfer) else { return Ok(None) };
        let request = Request(half.request as u64);
        let mut mailbox = lock(&self.hub.posts[receiver.index()].mailbox);
        let matched = post(&mut mailbox, half);
        if let Some((send, receive)) = &matched {
            copy(send, receive);
        }
        drop(mailbox);
        if matched.is_some() {
            self.hub.notify(transfer.peer);
        }
        Ok(Some(request))
    }

    fn leave(&mut self) {
        self.withdraw();
        self.post().is_gone.store(true, Ordering::Release);
        self.hub.notify_all();
    }
}

impl Transport for InprocTransport {
    fn now_ns(&self) -> u64 {
        self.hub.start.elapsed().as_nanos() as u64
    }

    fn reserve(&mut self, transfers: usize) {
        self.requests = Arc::new((0..transfers).map(|_| RequestState::default()).collect());
        self.free = (0..transfers).rev().collect();
    }

    unsafe fn send(&mut self, transfer: Transfer) -> std::result::Result<Option<Request>, Stop> {
        let key = Key { from: self.rank, tag: transfer.tag };
        self.exchange(transfer, transfer.peer, |mailbox, half| mailbox.send(key, half))
    }

    unsafe fn receive(&mut self, transfer: Transfer) -> std::result::Result<Option<Request>, Stop> {
        let key = Key { from: transfer.peer, tag: transfer.tag };
        self.exchange(transfer, self.rank, |mailbox, half| mailbox.receive(key, half))
    }

    fn test(&mut self, request: Request, peer: Rank) -> std::result::Result<Option<Completion>, Stop> {
        let index = request.0 as usize;
        // Looked at before the request, so that what happens in between ends the next wait at once.
        self.seen = self.post().events.load(Ordering::Acquire);
        let is_gone = self.peer(peer)?.is_gone.load(Ordering::Acquire);
        let state = &self.requests[index];
        match state.done.load(Ordering::Acquire) {
            0 if is_gone => Err(Stop::PeerGone),
            0 => Ok(None),
            done => {
                self.free.push(index);
                let sent_ns = Some(state.sent_ns.load(Ordering::Relaxed));
                Ok(Some(Completion { bytes: done as usize - 1, sent_ns }))
            }
        }
    }

    fn wait(&mut self, timeout: Duration) {
        let post = &self.hub.posts[self.rank.index()];
        let is_quiet = || post.events.load(Ordering::SeqCst) == self.seen;
        for _ in 0..self.hub.spins {
            if !is_quiet() {
                return;
            }
            std::hint::spin_loop();
        }
        for _ in 0..self.hub.yields {
            if !is_quiet() {
                return;
            }
            std::thread::yield_now();
        }
        post.is_asleep.store(true, Ordering::SeqCst);
        let mut guard = lock(&post.sleeper);
        if is_quiet() {
            guard = match post.wake.wait_timeout(guard, timeout) {
                Ok((guard, _)) => guard,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        drop(guard);
        post.is_asleep.store(false, Ordering::SeqCst);
    }

    fn notice(&mut self) -> Option<Notice> {
        self.hub.notice()
    }

    fn abort(&mut self, notice: &Notice) {
        lock(&self.hub.notice).get_or_insert_with(|| notice.clone());
        self.hub.is_aborted.store(true, Ordering::Release);
        self.hub.notify_all();
    }

    fn withdraw(&mut self) {
        for post in &self.hub.posts {
            lock(&post.mailbox).withdraw_sends(self.rank);
        }
        lock(&self.post().mailbox).withdraw_receives();
    }
}

impl Drop for InprocTransport {
    fn drop(&mut self) {
        self.leave();
    }
}
