//! Every function of the headers is called with every kind of bad input: each gives a status and a text that names
//! the function, the argument, its value and its range, and writes nothing.
//!
//! To add a function, add an entry to `table::table()`: its name, a call from words, and its arguments in order. From
//! each argument's type follows what is tried ([`inputs::Arg`]); a handle, an output or a buffer needs its name only.
//! An object of a new type is added to `world::World`. The test fails while a function of the headers has no entry,
//! or when an entry's arguments are not named as in the header.
//!
//! All of it is done on one thread, on two at once, in a child of fork, and inside a callback.

#[path = "capi_bad_input/cuda.rs"]
mod cuda;
#[path = "capi_bad_input/expert_transfer.rs"]
mod expert_transfer;
#[path = "capi_bad_input/front.rs"]
mod front;
#[path = "capi_bad_input/inputs.rs"]
mod inputs;
#[path = "support/library.rs"]
mod library;
#[path = "capi_bad_input/loads.rs"]
mod loads;
#[path = "capi_bad_input/planner.rs"]
mod planner;
#[path = "capi_bad_input/plans.rs"]
mod plans;
#[path = "capi_bad_input/route.rs"]
mod route;
#[path = "capi_bad_input/schedule_verify.rs"]
mod schedule_verify;
#[path = "capi_bad_input/schedules.rs"]
mod schedules;
#[path = "capi_bad_input/table.rs"]
mod table;
#[path = "capi_bad_input/torch_csv.rs"]
mod torch_csv;
#[path = "capi_bad_input/trust.rs"]
mod trust;
#[path = "capi_bad_input/trust_cases.rs"]
mod trust_cases;
#[path = "capi_bad_input/world.rs"]
mod world;

use std::ffi::{c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::Mutex;
use std::thread;

use dualpipe::capi::balance::*;
use dualpipe::capi::cost::{dualpipe_costs, dualpipe_stage_costs};
use dualpipe::capi::executor::*;
use dualpipe::capi::log::*;
use dualpipe::capi::schedule::*;
use dualpipe::capi::status::dualpipe_status::{self, *};
use dualpipe::capi::task::*;
use dualpipe::capi::timeline::*;
use dualpipe::capi::transport::*;
use inputs::{check_all, last_error, Arg, Entry};
use table::{table, SECOND};
use world::{costs, World};

#[test]
fn bad_input_gives_a_status_and_a_text_and_writes_nothing() {
    // Whether there is NCCL on this machine is not to matter here: tests/c/cuda.c and tests/python have it.
    std::env::set_var("DUALPIPE_NCCL_LIB", "/nowhere/libnccl.so.2");
    let (table, world) = (table(), World::new());
    the_table_has_every_function_of_the_headers(&table);
    assert_none("on one thread", check_all(&table, &world));

    thread::scope(|scope| {
        let worlds = [(); 2].map(|()| world.of_another_thread());
        let table = &table;
        let both = worlds.map(|world| scope.spawn(move || check_all(table, &world)));
        both.into_iter().for_each(|one| assert_none("on two threads", one.join().unwrap()));
    });

    assert_none("in a child of fork", in_a_child(|| check_all(&table, &World::new())));
    assert_none("in a child of fork, with the parent's objects", in_a_child(|| with_threads_of(&world)));

    let inside =
        Inside { table: &table, world: &world, thread: thread::current().id(), wrong: Mutex::new(None) };
    // SAFETY: `inside` lives until the callback is turned off; the calls have no other pointers.
    unsafe {
        dualpipe_set_log(Some(check_inside), std::ptr::from_ref(&inside).cast_mut().cast());
        assert_eq!(
            dualpipe_schedule_free(null_mut::<u8>().wrapping_add(1).cast()),
            DUALPIPE_ERROR_INVALID_HANDLE
        );
        dualpipe_set_log(None, null_mut());
    }
    assert_none("inside a callback", inside.wrong.into_inner().unwrap().expect("the callback was called"));

    bad_lists_and_stages(&world);
    schedules::bad_orders_and_pairs(&world);
    planner::bad_placements_caps_and_spreads();
    front::bad_caps_and_placements();
    schedule_verify::bad_actions_and_caps(&world);
    torch_csv::bad_schedules_and_texts(&world);
    bad_tensors_and_tables(&world);
    cuda::bad_cuda_and_nccl_options(&world);
    cuda::what_is_missing_is_said(&world);
    bad_loads();
    loads::bad_loads_and_texts();
    plans::bad_loads_and_placements();
    route::bad_counts_and_choices();
    route::a_router_is_one_threads_at_a_time();
    expert_transfer::bad_gains_and_tensors();
    trust_cases::bad_placements_and_policies();
    an_executor_is_one_threads_at_a_time();
    a_panic_in_a_callback_stays_in_the_call();
    an_object_may_be_freed_while_another_thread_uses_it();
}

fn the_table_has_every_function_of_the_headers(table: &[Entry]) {
    let mut in_headers = library::functions_in_headers();
    let mut in_table: Vec<_> = table.iter().map(|entry| entry.name.to_string()).collect();
    in_headers.sort();
    in_table.sort();
    let names: Vec<_> = in_headers.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(in_table, names, "give each function of the headers one entry in table()");
    for (name, header) in in_headers {
        let entry = table.iter().find(|entry| entry.name == name).unwrap();
        let names: Vec<_> = entry.args.iter().map(Arg::name).collect();
        assert_eq!(
            names,
            library::parameters(&header, &name),
            "{name}: arguments in table() and in {header}"
        );
    }
}

fn assert_none(place: &str, wrong: Vec<String>) {
    assert!(wrong.is_empty(), "{place}:\n{}", wrong.join("\n"));
}

/// What `check` finds wrong in a child of fork. The child neither prints nor panics: other threads' locks are lost.
fn in_a_child(check: impl FnOnce() -> Vec<String>) -> Vec<String> {
    let mut pipe = [0; 2];
    // SAFETY: plain system calls; the child ends by _exit, or by the alarm if it hangs.
    unsafe {
        assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
        let child = libc::fork();
        if child == 0 {
            libc::alarm(60);
            let wrong = check().join("\n");
            libc::write(pipe[1], wrong.as_ptr().cast(), wrong.len().min(4096));
            libc::_exit(0);
        }
        let (mut code, mut text) = (-1, [0u8; 4096]);
        libc::close(pipe[1]);
        let length = libc::read(pipe[0], text.as_mut_ptr().cast(), text.len()).max(0) as usize;
        libc::close(pipe[0]);
        libc::waitpid(child, &mut code, 0);
        let mut wrong: Vec<String> =
            String::from_utf8_lossy(&text[..length]).lines().map(String::from).collect();
        wrong.extend((code != 0).then(|| format!("the child ended with {code}")));
        wrong
    }
}

/// What the log callback checks, once, on the thread that waits for it.
struct Inside<'a> {
    table: &'a [Entry],
    world: &'a World,
    thread: thread::ThreadId,
    wrong: Mutex<Option<Vec<String>>>,
}

unsafe extern "C-unwind" fn check_inside(user_data: *mut c_void, _: u32, _: *const c_char) {
    // SAFETY: as it was given to dualpipe_set_log.
    let inside = unsafe { &*user_data.cast::<Inside<'_>>() };
    if thread::current().id() == inside.thread {
        *inside.wrong.lock().unwrap() = Some(check_all(inside.table, inside.world));
    }
}

/// What the table cannot say: what is wrong behind a pointer.
fn bad_lists_and_stages(world: &World) {
    let good = world.stages[0];
    for (stage, want) in [
        (dualpipe_stage_costs { overlapped_ns: 1, ..good }, "stages[1].overlapped_ns is 1, must be at least"),
        (
            dualpipe_stage_costs { forward_ns: u64::MAX, ..good },
            "stages[1].forward_ns is 18446744073709551615, must be",
        ),
        (
            dualpipe_stage_costs { output_bytes: 1 << 51, ..good },
            "stages[1].output_bytes is 2251799813685248, must be",
        ),
    ] {
        let mut timeline = null_mut();
        // SAFETY: locals.
        let status = unsafe { dualpipe_simulate(world.schedule as _, &costs(&[good, stage]), &mut timeline) };
        assert_eq!((status, timeline), (DUALPIPE_ERROR_INVALID_ARGUMENT, null_mut()));
        assert!(last_error().contains(want), "{}", last_error());
    }
    let mut timeline = null_mut();
    for (list, status, want) in [
        ([world.timeline, 0], DUALPIPE_ERROR_INVALID_HANDLE, "timelines[1] is NULL"),
        (
            [world.timeline, world.schedule],
            DUALPIPE_ERROR_INVALID_HANDLE,
            "timelines[1] is a schedule, must be",
        ),
        (
            [world.timeline; 2],
            DUALPIPE_ERROR_INVALID_ARGUMENT,
            "timeline is 1, rank 0 is already in an earlier one",
        ),
    ] {
        // SAFETY: locals.
        let got = unsafe { dualpipe_timeline_merge(list.as_ptr().cast(), 2, &mut timeline) };
        assert_eq!((got, timeline), (status, null_mut()));
        assert!(last_error().contains(want), "{}", last_error());
    }
    let nothing = dualpipe_costs { stages: null(), ..costs(&world.stages[..2]) };
    // SAFETY: locals.
    let status = unsafe { dualpipe_simulate(world.schedule as _, &nothing, &mut timeline) };
    assert_eq!((status, timeline), (DUALPIPE_ERROR_INVALID_ARGUMENT, null_mut()));
    assert_eq!(last_error(), "dualpipe_simulate: costs->stages is NULL");
}

/// What is not as it should be with objects whose threads a fork has left behind.
fn with_threads_of(parent: &World) -> Vec<String> {
    let mut timeline = null_mut();
    let inproc = parent.inproc;
    let options = dualpipe_executor_options { inproc: inproc as _, ..world::executor_options(2) };
    let (mut executor, mut state, mut length) = (null_mut(), 0, 0);
    // SAFETY: locals and handles.
    let statuses = unsafe {
        [
            dualpipe_executor_synchronize(parent.executor as _, 0),
            dualpipe_executor_graph(parent.executor as _, &mut state, null_mut(), 0, &mut length),
            dualpipe_executor_step(parent.executor as _, Some(world::does_nothing), null_mut()),
            dualpipe_executor_timeline(parent.executor as _, &mut timeline),
            dualpipe_executor_create(parent.program as _, &options, &mut executor),
        ]
    };
    // What has no threads stays usable.
    let mut count = 0;
    // SAFETY: a local.
    let data = unsafe { dualpipe_schedule_order(parent.schedule as _, 0, null_mut(), 0, &mut count) };
    // SAFETY: handles.
    let frees = unsafe { [dualpipe_executor_free(parent.executor as _), dualpipe_inproc_free(inproc as _)] };
    let mut wrong = Vec::new();
    wrong.extend((statuses != [DUALPIPE_ERROR_FORKED; 5]).then(|| format!("{statuses:?}")));
    wrong.extend((data != DUALPIPE_OK || count == 0).then(|| format!("a schedule: {data:?}")));
    wrong.extend((frees != [DUALPIPE_OK; 2]).then(|| format!("free: {frees:?}")));
    wrong
}

/// An executor for such options cannot be created, with this status and text.
fn refuse(world: &World, options: &dualpipe_executor_options, status: dualpipe_status, want: &str) {
    let mut executor = null_mut();
    // SAFETY: locals.
    let got = unsafe { dualpipe_executor_create(world.program as _, options, &mut executor) };
    assert_eq!((got, executor), (status, null_mut()), "{want}: {}", last_error());
    assert!(last_error().contains(want), "{} does not say {want}", last_error());
}

/// All functions NULL, which is too few.
const NO_TRANSPORT: dualpipe_transport = dualpipe_transport {
    size: size_of::<dualpipe_transport>() as u32,
    reserved: 0,
    user_data: null_mut(),
    send: None,
    receive: None,
    test: None,
    wait: None,
    poll_abort: None,
    abort: None,
    withdraw: None,
    last_error: None,
    destroy: None,
};

fn bad_tensors_and_tables(world: &World) {
    let spec = world::SPEC;
    let refuse = |options: &dualpipe_executor_options, status, want: &str| {
        refuse(world, options, status, want);
    };
    let mut negative = spec;
    negative.shape[0] = -3;
    let mut huge = spec;
    (huge.ndim, huge.shape) = (2, [1 << 40, 1 << 40, 0, 0, 0, 0, 0, 0]);
    let mut bits = spec;
    bits.dtype.bits = 33;
    for (spec, want) in [
        (negative, "options->tensors[0]: boundary: shape[0] is -3, must be 0 to "),
        (huge, "options->tensors[0]: boundary: shape[0] is 1099511627776, makes the tensor larger"),
        (bits, "options->tensors[0]: boundary: dtype.bits is 33, must be 4, 6, 8, "),
        (dualpipe_tensor_spec { ndim: 9, ..spec }, "options->tensors[0].ndim is 9, must be 0 to 8"),
    ] {
        let options = dualpipe_executor_options { tensors: &spec, ..world::executor_options(2) };
        refuse(&options, DUALPIPE_ERROR_INVALID_ARGUMENT, want);
    }
    let good = world::executor_options(2);
    let nothing = dualpipe_executor_options { tensors: null(), ..good };
    refuse(&nothing, DUALPIPE_ERROR_INVALID_ARGUMENT, "options->tensors is NULL");
    let no_way = dualpipe_executor_options { inproc: null_mut(), ..good };
    refuse(
        &no_way,
        DUALPIPE_ERROR_INVALID_ARGUMENT,
        "options has none of inproc, transport and nccl, must have exactly one",
    );
    let foreign = dualpipe_executor_options { inproc: world.schedule as _, ..good };
    refuse(&foreign, DUALPIPE_ERROR_INVALID_HANDLE, "options->inproc is a schedule, must be an inproc");
    let small = dualpipe_executor_options { inproc: world::inproc(1) as _, ..good };
    refuse(&small, DUALPIPE_ERROR_INVALID_ARGUMENT, "rank is 1, must be 0 to 0");
    let mut executor = null_mut();
    // SAFETY: locals.
    assert_eq!(unsafe { dualpipe_executor_create(world.program as _, &good, &mut executor) }, DUALPIPE_OK);
    refuse(&good, DUALPIPE_ERROR_INVALID_ARGUMENT, "rank is 1, which another executor has");

    let table = NO_TRANSPORT;
    for (table, want) in [
        (table, "options->transport->send is NULL"),
        (dualpipe_transport { size: 8, ..table }, "options->transport->size is 8, must be"),
        (dualpipe_transport { reserved: 1, ..table }, "options->transport->reserved is 1, must be 0"),
    ] {
        let options = dualpipe_executor_options { transport: &table, inproc: null_mut(), ..good };
        refuse(&options, DUALPIPE_ERROR_INVALID_ARGUMENT, want);
    }
}

fn bad_loads() {
    for (load, want) in [
        (f32::NAN, "loads[layer 0, expert 2] is NaN, must be"),
        (f32::INFINITY, "loads[layer 0, expert 2] is inf, must be"),
        (-1.0, "loads[layer 0, expert 2] is -1.0, must be"),
        (f32::MAX, "loads"),
    ] {
        let (loads, mut plan) = ([f32::MAX.min(load.abs()), 1.0, load, 1.0, 1.0, 1.0, 1.0, 1.0], null_mut());
        let options = world::balance_options();
        // SAFETY: locals.
        let status = unsafe { dualpipe_expert_plan_create(&options, loads.as_ptr(), 8, &mut plan) };
        assert_eq!((status, plan), (DUALPIPE_ERROR_INVALID_ARGUMENT, null_mut()), "{load}");
        assert!(last_error().contains(want), "{} does not say {want}", last_error());
    }
}

/// Its own callback and other threads get BUSY while a step runs.
fn an_executor_is_one_threads_at_a_time() {
    unsafe extern "C-unwind" fn tries_again(executor: *mut c_void, _: *const dualpipe_task) -> i32 {
        let executor: dualpipe_executor_t = executor.cast();
        let (mut timeline, nothing) = (null_mut(), Some(world::does_nothing as _));
        let (mut state, mut length) = (0, 0);
        // SAFETY: locals and a handle.
        let statuses = unsafe {
            [
                dualpipe_executor_synchronize(executor, 0),
                dualpipe_executor_graph(executor, &mut state, null_mut(), 0, &mut length),
                dualpipe_executor_step(executor, nothing, null_mut()),
                dualpipe_executor_start(executor, nothing, null_mut()),
                dualpipe_executor_timeline(executor, &mut timeline),
            ]
        };
        i32::from(statuses != [DUALPIPE_ERROR_BUSY; 5])
    }
    let executor = world::executor();
    // SAFETY: a handle, which the callback gets too.
    unsafe {
        assert_eq!(dualpipe_executor_step(executor as _, Some(tries_again), executor as _), DUALPIPE_OK);
        assert!(last_error().contains("executor is in use"), "{}", last_error());
        assert_eq!(dualpipe_executor_wait(executor as _, 0), DUALPIPE_ERROR_INVALID_ARGUMENT);
        assert!(last_error().contains("executor has no started step"), "{}", last_error());
        assert_eq!(dualpipe_executor_start(executor as _, Some(tries_again), executor as _), DUALPIPE_OK);
        assert_eq!(dualpipe_executor_wait(executor as _, SECOND), DUALPIPE_OK);
        assert_eq!(dualpipe_executor_free(executor as _), DUALPIPE_OK);
    }
}

fn a_panic_in_a_callback_stays_in_the_call() {
    unsafe extern "C-unwind" fn panics(_: *mut c_void, _: u32, _: *const c_char) {
        panic!("in the log callback");
    }
    // SAFETY: the callback reads nothing.
    unsafe {
        dualpipe_set_log(Some(panics), null_mut());
        assert_eq!(dualpipe_schedule_free(null_mut::<u8>().wrapping_add(1).cast()), DUALPIPE_ERROR_PANIC);
        dualpipe_set_log(None, null_mut());
        assert_eq!(
            dualpipe_schedule_free(null_mut::<u8>().wrapping_add(1).cast()),
            DUALPIPE_ERROR_INVALID_HANDLE
        );
    }
}

fn an_object_may_be_freed_while_another_thread_uses_it() {
    for _ in 0..200 {
        let schedule = world::schedule();
        thread::scope(|scope| {
            scope.spawn(move || loop {
                let mut count = 0;
                // SAFETY: a local; the handle may be freed at any time.
                match unsafe { dualpipe_schedule_order(schedule as _, 0, null_mut(), 0, &mut count) } {
                    DUALPIPE_OK => assert!(count > 0),
                    status => break assert_eq!(status, DUALPIPE_ERROR_INVALID_HANDLE),
                }
            });
            // SAFETY: the handle is live.
            assert_eq!(unsafe { dualpipe_schedule_free(schedule as _) }, DUALPIPE_OK);
        });
    }
}
