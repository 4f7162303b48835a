//! What the table of handles refuses, and what a fork leaves usable.

use super::*;

struct Thing(u32);
struct ThingHandle;
impl Object for Thing {
    type Opaque = ThingHandle;
    const KIND: Kind = Kind::Test;
}

struct Threads;
impl Object for Threads {
    type Opaque = ThingHandle;
    const KIND: Kind = Kind::Threads;
    const OWNS_THREADS: bool = true;
}
impl Drop for Threads {
    fn drop(&mut self) {
        assert_eq!(process::fork_epoch(), 0, "joined in a child");
    }
}

fn stored(object: u32) -> Stored {
    Stored { kind: Kind::Test, fork_epoch: 0, object: Arc::new(object) }
}

fn why<O: Object>(handle: *mut O::Opaque) -> String {
    get::<O>("thing", handle).err().map(|failure| failure.text).unwrap_or_default()
}

#[test]
fn a_handle_finds_its_object_until_it_is_freed() {
    let handle = insert(Thing(7)).unwrap();
    assert_eq!(get::<Thing>("thing", handle).unwrap().0, 7);
    assert_eq!(why::<Threads>(handle), "thing is a test, must be an owner of threads");
    let in_use = get::<Thing>("thing", handle).unwrap();
    free::<Thing>("thing", handle).unwrap();
    assert_eq!(in_use.0, 7);
    assert_eq!(why::<Thing>(handle), "thing has been freed");
    assert_eq!(free::<Thing>("thing", handle).unwrap_err().text, "thing has been freed");
}

#[test]
fn what_this_library_never_gave_out_is_refused() {
    let handle = insert(Thing(7)).unwrap();
    let bits = handle.addr();
    let next_generation = bits + (1 << SLOT_BITS);
    let other_kind = bits ^ (1 << 48);
    let other_slot = bits | (SLOTS_MAX - 1);
    let local = 7;
    let address = std::ptr::from_ref(&local).addr();
    for made_up in
        [1, usize::MAX, next_generation, other_kind, other_slot, address, 1 << 30 | bits & 0xFF_FFFF]
    {
        let want = "thing is not a handle that this library gave out";
        assert_eq!(why::<Thing>(without_provenance_mut(made_up)), want, "{made_up:x}");
    }
    assert_eq!(why::<Thing>(std::ptr::null_mut()), "thing is NULL, must be a test");
    assert!(free::<Thing>("thing", std::ptr::null_mut()).is_ok());
    free::<Thing>("thing", handle).unwrap();
}

#[test]
fn a_slot_is_used_again_under_another_handle_and_given_up_before_one_could_come_back() {
    let mut table = Table::new();
    let first = table.insert(stored(1)).unwrap();
    assert!(table.remove(first, Kind::Test).is_ok());
    let second = table.insert(stored(2)).unwrap();
    assert_eq!((first.slot(), second.slot()), (0, 0));
    assert_ne!(first, second);
    assert_eq!(table.find(first, Kind::Test).err(), Some(Miss::Freed));

    table.slots[0].generation = GENERATION_MAX;
    let last = Bits::new(Kind::Test, GENERATION_MAX, 0);
    assert!(table.remove(last, Kind::Test).is_ok());
    assert_eq!(table.insert(stored(3)).unwrap().slot(), 1);
    assert_eq!(table.find(last, Kind::Test).err(), Some(Miss::Freed));
}

#[test]
fn a_full_table_refuses_more() {
    let mut table = Table::new();
    let object: Arc<dyn Any + Send + Sync> = Arc::new(0);
    let stored = Stored { kind: Kind::Test, fork_epoch: 0, object };
    for _ in 0..SLOTS_MAX {
        assert!(table.insert(stored.clone()).is_some());
    }
    assert!(table.insert(stored).is_none());
}

/// Forks; the child's exit code is 0 if `in_child` holds. It must not allocate much, nor panic.
fn forked_child_says(in_child: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child calls only this library and _exit; other threads' locks in it are what is tested.
    match unsafe { libc::fork() } {
        // SAFETY: ends the child without running the parent's exit handlers. The alarm ends one that hangs.
        0 => unsafe {
            libc::alarm(10);
            libc::_exit(if in_child() { 0 } else { 1 })
        },
        child => {
            let mut code = -1;
            // SAFETY: `child` is a child of this process, `code` a local.
            unsafe { libc::waitpid(child, &mut code, 0) };
            code == 0
        }
    }
}

#[test]
fn a_fork_keeps_data_and_refuses_what_owned_threads() {
    let thing = insert(Thing(7)).unwrap();
    let threads = insert(Threads).unwrap();
    assert!(forked_child_says(|| get::<Thing>("thing", thing).is_ok_and(|thing| thing.0 == 7)
        && get::<Threads>("thing", threads).is_err_and(|e| e.status == DUALPIPE_ERROR_FORKED)
        && free::<Threads>("thing", threads).is_ok()
        && insert(Thing(8)).is_ok_and(|new| get::<Thing>("thing", new).is_ok())));
    assert!(get::<Threads>("thing", threads).is_ok());
    free::<Threads>("thing", threads).unwrap();
    free::<Thing>("thing", thing).unwrap();
}

#[test]
fn a_child_forked_while_other_threads_hold_the_lock_does_not_hang() {
    let handle = insert(Thing(7)).unwrap().addr();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(relaxed) {
                    assert!(process::without_fork(|| handle != 0));
                }
            });
        }
        // The threads must be stopped before this may fail.
        let all_returned = (0..100).all(|_| forked_child_says(|| process::without_fork(|| handle != 0)));
        stop.store(true, relaxed);
        assert!(all_returned);
    });
    free::<Thing>("thing", without_provenance_mut(handle)).unwrap();
}
