//! What the ranks of one process share, whatever their messages travel through: clock, failures, sleep and wake.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{in_range, Error, ErrorKind, Result};
use crate::execute::fault::Notice;
use crate::execute::rank::Stop;
use crate::ids::Rank;
use crate::placement::RANKS_MAX;

/// How often a waiting rank looks again before it sleeps, if there is a core for every rank.
const SPINS: u32 = 2_000;
/// How often it offers its core to another rank instead, if there are fewer cores than ranks.
const YIELDS: u32 = 20;

/// What the ranks of one process share.
#[derive(Debug)]
pub(super) struct Hub<M> {
    start: Instant,
    posts: Vec<Post<M>>,
    spins: u32,
    yields: u32,
    /// Which [`Kind`] of ranks it has, once it has some.
    kind: AtomicU8,
    is_aborted: AtomicBool,
    notice: Mutex<Option<Notice>>,
}

/// Where the ranks' tensors are: all of them in ordinary memory, or all on devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Host = 1,
    Cuda = 2,
}

/// What belongs to one rank.
#[derive(Debug, Default)]
struct Post<M> {
    mailbox: Mutex<M>,
    /// Counts all that happens to the rank.
    events: AtomicU64,
    /// Whether the rank sleeps, or is about to: only then is waking it worth a system call.
    is_asleep: AtomicBool,
    sleeper: Mutex<()>,
    wake: Condvar,
    is_taken: AtomicBool,
    is_gone: AtomicBool,
}

/// A lock is never left in a bad state here: what is done under it does not panic.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<M: Default> Hub<M> {
    /// For `num_ranks` ranks, at least 1.
    pub(super) fn new(num_ranks: usize) -> Result<Hub<M>> {
        in_range("inproc", "num_ranks", num_ranks, 1..=RANKS_MAX as usize)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Hub {
            start: Instant::now(),
            posts: (0..num_ranks).map(|_| Post::default()).collect(),
            spins: if num_ranks <= cores { SPINS } else { 0 },
            yields: if num_ranks <= cores { 0 } else { YIELDS },
            kind: AtomicU8::new(0),
            is_aborted: AtomicBool::new(false),
            notice: Mutex::new(None),
        })
    }
}

impl<M> Hub<M> {
    pub(super) fn num_ranks(&self) -> usize {
        self.posts.len()
    }

    pub(super) fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// What has been put down for `rank`.
    pub(super) fn mailbox(&self, rank: Rank) -> MutexGuard<'_, M> {
        lock(&self.posts[rank.index()].mailbox)
    }

    pub(super) fn notice(&self) -> Option<Notice> {
        if !self.is_aborted.load(Ordering::Acquire) {
            return None;
        }
        lock(&self.notice).clone()
    }

    /// Tells all ranks that one has failed. The first notice counts.
    pub(super) fn abort(&self, notice: &Notice) {
        lock(&self.notice).get_or_insert_with(|| notice.clone());
        self.is_aborted.store(true, Ordering::Release);
        self.notify_all();
    }

    /// Something has happened to `rank`.
    pub(super) fn notify(&self, rank: Rank) {
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

/// One rank's place at a [`Hub`]. Dropping it leaves: the others are told.
#[derive(Debug)]
pub(super) struct Seat<M> {
    hub: Arc<Hub<M>>,
    rank: Rank,
    /// The events that had happened when the rank last looked.
    seen: u64,
}

impl<M> Seat<M> {
    /// The place of `rank`, of which there is only one.
    ///
    /// # Errors
    /// `rank` is out of range or its place has been taken before; the other ranks are of another kind; or a rank has
    /// failed.
    pub(super) fn take(hub: &Arc<Hub<M>>, rank: Rank, kind: Kind) -> Result<Seat<M>> {
        in_range("inproc", "rank", rank.index(), 0..=hub.num_ranks() - 1)?;
        if let Some(notice) = hub.notice() {
            let text = format!("inproc: rank {} failed, make a new one [{}]", notice.rank, notice.text);
            return Err(Error::new(ErrorKind::Poisoned, text));
        }
        let other = hub.kind.compare_exchange(0, kind as u8, Ordering::AcqRel, Ordering::Acquire).err();
        if other.is_some_and(|other| other != kind as u8) {
            let text = "inproc: its ranks are either all on the host or all on CUDA devices";
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        if hub.posts[rank.index()].is_taken.swap(true, Ordering::AcqRel) {
            return Err(Error::argument("inproc", "rank", rank, "which another executor has"));
        }
        Ok(Seat { hub: Arc::clone(hub), rank, seen: 0 })
    }

    pub(super) fn hub(&self) -> &Arc<Hub<M>> {
        &self.hub
    }

    pub(super) fn rank(&self) -> Rank {
        self.rank
    }

    fn post(&self) -> &Post<M> {
        &self.hub.posts[self.rank.index()]
    }

    /// Looks up, so that whatever happens from now on ends the next [`Seat::wait`] at once; then tells whether `peer`
    /// has left.
    pub(super) fn is_gone(&mut self, peer: Rank) -> std::result::Result<bool, Stop> {
        self.seen = self.post().events.load(Ordering::Acquire);
        self.check(peer)?;
        Ok(self.hub.posts[peer.index()].is_gone.load(Ordering::Acquire))
    }

    /// Fails if there is no such rank.
    pub(super) fn check(&self, peer: Rank) -> std::result::Result<(), Stop> {
        if peer.index() < self.hub.num_ranks() {
            return Ok(());
        }
        Err(Stop::Transport(format!("there is no rank {peer} in this inproc")))
    }

    /// Returns when something may have happened since the rank last looked, or after `timeout`.
    pub(super) fn wait(&self, timeout: Duration) {
        let post = self.post();
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
}

impl<M> Drop for Seat<M> {
    fn drop(&mut self) {
        self.post().is_gone.store(true, Ordering::Release);
        self.hub.notify_all();
    }
}
