//! What the library keeps for the whole process, behind one lock that a fork cannot leave locked.
//!
//! A child of fork has only the thread that forked; a lock that another thread held at that moment stays locked for
//! ever. So whoever forks takes this lock first and gives it back on both sides (pthread_atfork).

use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::handle::Table;
use super::log::Callbacks;

/// The process-wide state.
pub(crate) struct Process {
    /// Every live object.
    pub(crate) handles: Table,
    /// Log and progress callbacks.
    pub(crate) callbacks: Callbacks,
}

static PROCESS: Mutex<Process> = Mutex::new(Process { handles: Table::new(), callbacks: Callbacks::none() });

/// How often this process is a fork of one that had the library loaded.
static FORKS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The lock, between this thread's call of fork and its return. Never dropped with the thread.
    static HELD_BY_FORK: RefCell<Option<ManuallyDrop<MutexGuard<'static, Process>>>> = const { RefCell::new(None) };
}

/// The process-wide state, locked. Call nothing of the caller's, and drop no object, before it is unlocked.
pub(crate) fn lock() -> MutexGuard<'static, Process> {
    register();
    PROCESS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `f` so that no fork happens in the middle of it: for what would be left half done in the child.
pub(crate) fn without_fork<T>(f: impl FnOnce() -> T) -> T {
    let _lock = lock();
    f()
}

/// A number that differs between a process and those that were forked from it.
pub(crate) fn fork_epoch() -> u64 {
    FORKS.load(Ordering::Acquire)
}

/// Once; nobody waits for it, since a `Once` that is running during a fork hangs the child.
fn register() {
    static REGISTERED: AtomicBool = AtomicBool::new(false);
    if !REGISTERED.load(Ordering::Relaxed) && !REGISTERED.swap(true, Ordering::AcqRel) {
        // SAFETY: the three handlers are functions of this library, which is never unloaded (-z nodelete). It fails
        // only without memory, and then a fork is as unprotected as in other libraries.
        unsafe {
            libc::pthread_atfork(Some(before_fork), Some(after_fork_in_parent), Some(after_fork_in_child))
        };
    }
}

extern "C" fn before_fork() {
    let lock = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
    HELD_BY_FORK.with(|held| *held.borrow_mut() = Some(ManuallyDrop::new(lock)));
}

extern "C" fn after_fork_in_parent() {
    drop(HELD_BY_FORK.with(|held| held.borrow_mut().take()).map(ManuallyDrop::into_inner));
}

extern "C" fn after_fork_in_child() {
    FORKS.fetch_add(1, Ordering::AcqRel);
    after_fork_in_parent();
}
