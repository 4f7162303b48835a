//! Every function of the headers is called with every kind of bad input: each gives a status and a text that names
//! the function, the argument, its value and its range, and writes nothing.
//!
//! To add a function, add an entry to `table()`: its name, a call from words, and its arguments in order. From each
//! argument's type follows what is tried ([`inputs::Arg`]); a handle, an output or a buffer needs its name only. An
//! object of a new type is added to `inputs::World`. The test fails while a function of the headers has no entry, or
//! when an entry's arguments are not named as in the header.
//!
//! All of it is done on one thread, on two at once, in a child of fork, and inside a callback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // in tests

#[path = "capi_bad_input/inputs.rs"]
mod inputs;
#[path = "support/library.rs"]
mod library;

use std::ffi::{c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::Mutex;
use std::thread;

use dualpipe::capi::balance::*;
use dualpipe::capi::cost::{dualpipe_costs, dualpipe_stage_costs};
use dualpipe::capi::executor::*;
use dualpipe::capi::log::*;
use dualpipe::capi::op::{dualpipe_op, DUALPIPE_NONE};
use dualpipe::capi::program::*;
use dualpipe::capi::schedule::*;
use dualpipe::capi::status::dualpipe_status::*;
use dualpipe::capi::status::*;
use dualpipe::capi::task::*;
use dualpipe::capi::timeline::*;
use dualpipe::capi::transport::*;
use dualpipe::capi::version::*;
use inputs::Arg::*;
use inputs::{check_all, costs, last_error, Arg, Entry, Words, World};

const SCHEDULE: Arg = Handle("schedule", |world| world.schedule);
const TIMELINE: Arg = Handle("timeline", |world| world.timeline);
const PROGRAM: Arg = Handle("program", |world| world.program);
const EXECUTOR: Arg = Handle("executor", |world| world.executor);
const PLAN: Arg = Handle("plan", |world| world.plan);
/// The objects of `World` have 2 ranks, 2 stages and 2 directions.
const RANK: Arg = Number("rank", 1, &[(2, "must be 0 to 1"), (NONE, "must be 0 to 1")]);
const DIRECTION: Arg = Number("direction", 0, &[(2, "must be 0 to 1"), (NONE, "must be 0 to 1")]);
const STAGE: Arg = Number("stage", 1, &[(2, "must be 0 to 1"), (NONE, "must be 0 to 1")]);
const NONE: usize = DUALPIPE_NONE as usize;

fn values<T>(name: &'static str) -> Arg {
    Values { name, size: size_of::<T>(), align: align_of::<T>() }
}

fn out_struct<T>(name: &'static str) -> Arg {
    OutStruct { name, size: size_of::<T>(), align: align_of::<T>() }
}

fn entry(name: &'static str, call: unsafe fn(&Words) -> dualpipe_status, args: &[Arg]) -> Entry {
    Entry { name, call, args: args.to_vec() }
}

/// Every function, with its arguments.
#[rustfmt::skip] // an argument list reads better on one line
#[allow(clippy::undocumented_unsafe_blocks)] // whoever calls an entry says why it may: `inputs::check_all`
fn table() -> Vec<Entry> {
    let buffer = |handle, name, values| vec![handle, values, Capacity, Count(name)];
    let entry_of = |name, call, args: Vec<Arg>| entry(name, call, &args);
    vec![
        entry("dualpipe_version", |_| unsafe { ok(dualpipe_version()) }, &[]),
        entry("dualpipe_version_string", |_| unsafe { ok(dualpipe_version_string()) }, &[]),
        entry("dualpipe_status_name", |w| unsafe { ok(dualpipe_status_name(w.u32(0))) }, &[Anything("status")]),
        entry("dualpipe_last_error", |_| unsafe { ok(dualpipe_last_error()) }, &[]),
        entry("dualpipe_set_log", |_| unsafe { dualpipe_set_log(None, null_mut()) },
              &[Anything("log"), Anything("user_data")]),
        entry("dualpipe_set_progress", |_| unsafe { dualpipe_set_progress(None, null_mut()) },
              &[Anything("progress"), Anything("user_data")]),

        entry("dualpipe_schedule_create", |w| unsafe { dualpipe_schedule_create(w.at(0), w.at(1)) }, &[
            InStruct {
                name: "options", size: size_of::<dualpipe_schedule_options>(), align: 4,
                good: |_| inputs::words(&inputs::schedule_options()),
                bad: &[
                    (1, 0, "options->kind is 0, must be one of DUALPIPE_KIND_DUALPIPE (1), "),
                    (1, 99, "options->kind is 99, must be one of "),
                    (1, DUALPIPE_NONE, "options->kind is 4294967295, must be one of "),
                    (2, 0, "num_ranks is 0, must be 2 to 4096"),
                    (2, 3, "num_ranks is 3, must be even and at least 2"),
                    (2, DUALPIPE_NONE, "num_ranks is 4294967295, must be 2 to 4096"),
                    (3, 0, "num_microbatches is 0, must be even and at least 2 for 2 ranks"),
                    (3, DUALPIPE_NONE - 1, "num_microbatches is 4294967294, must be 1 to 1048576"),
                    (4, 2, "options->forward_only is 2, must be 0 to 1"),
                ],
            },
            Out("schedule", 8),
        ]),
        entry("dualpipe_schedule_free", |w| unsafe { dualpipe_schedule_free(w.at(0)) },
              &[Owned("schedule", |_| inputs::schedule())]),
        entry("dualpipe_schedule_describe", |w| unsafe { dualpipe_schedule_describe(w.at(0), w.at(1)) },
              &[SCHEDULE, out_struct::<dualpipe_schedule_info>("info")]),
        entry("dualpipe_schedule_order",
              |w| unsafe { dualpipe_schedule_order(w.at(0), w.u32(1), w.at(2), w.usize(3), w.at(4)) },
              &[SCHEDULE, RANK, values::<dualpipe_op>("ops"), Capacity, Count("count")]),
        entry("dualpipe_schedule_rank_of",
              |w| unsafe { dualpipe_schedule_rank_of(w.at(0), w.u32(1), w.u32(2), w.at(3)) },
              &[SCHEDULE, DIRECTION, STAGE, Out("rank", 4)]),
        entry_of("dualpipe_schedule_check",
              |w| unsafe { dualpipe_schedule_check(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              buffer(SCHEDULE, "count", values::<u32>("peak_live"))),
        entry_of("dualpipe_schedule_to_text",
              |w| unsafe { dualpipe_schedule_to_text(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              buffer(SCHEDULE, "length", values::<c_char>("text"))),

        entry("dualpipe_simulate", |w| unsafe { dualpipe_simulate(w.at(0), w.at(1), w.at(2)) }, &[
            SCHEDULE,
            InStruct {
                name: "costs", size: size_of::<dualpipe_costs>(), align: 8,
                good: |world| inputs::words(&costs(&world.stages[..2])),
                bad: &[
                    (1, 1, "costs->reserved is 1, must be 0"),
                    (4, 0, "costs->num_stages is 0, must be 1 to 8192"),
                    (4, 3, "the number of stages is 3, must be 1 or 2"),
                    (5, 1, "costs->num_stages is 4294967298, must be 1 to 8192"),
                    (7, 1 << 20, "latency_ns is 4503599627370497, must be 0 to 1000000000000"),
                ],
            },
            Out("timeline", 8),
        ]),
        entry("dualpipe_timeline_merge",
              |w| unsafe { dualpipe_timeline_merge(w.at(0), w.usize(1), w.at(2)) },
              &[
                  Lent("timelines", 8, |world| inputs::words(&[world.timeline])),
                  Number("count", 1, &[(0, "must be 1 to 4096"), (4097, "must be 1 to 4096"), (usize::MAX, "is 18446")]),
                  Out("timeline", 8),
              ]),
        entry("dualpipe_timeline_free", |w| unsafe { dualpipe_timeline_free(w.at(0)) },
              &[Owned("timeline", |world| inputs::timeline(world.schedule, &world.stages[..2]))]),
        entry("dualpipe_timeline_summarize", |w| unsafe { dualpipe_timeline_summarize(w.at(0), w.at(1)) },
              &[TIMELINE, out_struct::<dualpipe_timeline_summary>("summary")]),
        entry_of("dualpipe_timeline_ranks",
              |w| unsafe { dualpipe_timeline_ranks(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              buffer(TIMELINE, "count", values::<dualpipe_timeline_rank>("ranks"))),
        entry_of("dualpipe_timeline_spans",
              |w| unsafe { dualpipe_timeline_spans(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              buffer(TIMELINE, "count", values::<dualpipe_span>("spans"))),
        entry_of("dualpipe_timeline_messages",
              |w| unsafe { dualpipe_timeline_messages(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              buffer(TIMELINE, "count", values::<dualpipe_message_span>("messages"))),
        entry("dualpipe_timeline_draw",
              |w| unsafe { dualpipe_timeline_draw(w.at(0), w.u32(1), w.at(2), w.usize(3), w.at(4)) },
              &[
                  TIMELINE,
                  Number("format", 1, &[(0, "must be one of DUALPIPE_DRAW_TEXT (1), "), (4, "must be one of ")]),
                  values::<c_char>("text"), Capacity, Count("length"),
              ]),

        entry("dualpipe_program_create",
              |w| unsafe { dualpipe_program_create(w.at(0), w.u32(1), w.at(2)) },
              &[SCHEDULE, RANK, Out("program", 8)]),
        entry("dualpipe_program_free", |w| unsafe { dualpipe_program_free(w.at(0)) },
              &[Owned("program", |world| inputs::program(world.schedule))]),
        entry_of("dualpipe_program_instructions",
              |w| unsafe { dualpipe_program_instructions(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              buffer(PROGRAM, "count", values::<dualpipe_instruction>("instructions"))),
        entry_of("dualpipe_program_buffers",
              |w| unsafe { dualpipe_program_buffers(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              buffer(PROGRAM, "count", values::<dualpipe_program_buffer>("buffers"))),
        entry("dualpipe_program_pass_buffers",
              |w| unsafe { dualpipe_program_pass_buffers(w.at(0), w.u32(1), w.u32(2), w.u32(3), w.at(4)) },
              &[
                  PROGRAM, DIRECTION,
                  Number("stage", 1, &[(2, "must be 0 to 1"), (0, "which rank 0 holds; the program is of rank 1")]),
                  Number("microbatch", 0, &[(1, "must be 0 to 0"), (NONE, "must be 0 to 0")]),
                  Out("buffers", 4),
              ]),

        entry("dualpipe_inproc_create", |w| unsafe { dualpipe_inproc_create(w.u32(0), w.at(1)) },
              &[Number("num_ranks", 1, &[(0, "must be 1 to 4096"), (4097, "must be 1 to 4096"), (NONE, "must be 1")]),
                Out("inproc", 8)]),
        entry("dualpipe_inproc_free", |w| unsafe { dualpipe_inproc_free(w.at(0)) },
              &[Owned("inproc", |_| inputs::inproc(1))]),
        entry("dualpipe_executor_create",
              |w| unsafe { dualpipe_executor_create(w.at(0), w.at(1), w.at(2)) },
              &[
                  PROGRAM,
                  InStruct {
                      name: "options", size: size_of::<dualpipe_executor_options>(), align: 8,
                      good: |_| inputs::words(&inputs::executor_options(2)),
                      bad: &[
                          (1, 33, "num_tensors is 33, must be 0 to 32"),
                          (1, DUALPIPE_NONE, "num_tensors is 4294967295, must be 0 to 32"),
                          (5, DUALPIPE_NONE, "options->timeout_ns is 184467440"),
                          (8, 8, "options->inproc and options->transport are both given, must be exactly one"),
                          (10, 1, "options->memory is 0x1, must be a multiple of 8"),
                      ],
                  },
                  Out("executor", 8),
              ]),
        entry("dualpipe_executor_free", |w| unsafe { dualpipe_executor_free(w.at(0)) },
              &[Owned("executor", |_| inputs::executor())]),
        entry("dualpipe_executor_set_boundary",
              |w| unsafe { dualpipe_executor_set_boundary(w.at(0), w.u32(1), w.u32(2), w.at(3), w.u32(4)) },
              &[EXECUTOR, ONE_DIRECTION, STAGE, SPECS, NUM_TENSORS]),
        entry("dualpipe_executor_set_microbatch",
              |w| unsafe { dualpipe_executor_set_microbatch(w.at(0), w.u32(1), w.u32(2), w.at(3), w.u32(4)) },
              &[EXECUTOR, ONE_DIRECTION, Number("microbatch", 0, &[(1, "must be 0 to 0")]), SPECS, NUM_TENSORS]),
        entry("dualpipe_executor_step",
              |w| unsafe { dualpipe_executor_step(w.at(0), task(w, 1), w.at(2)) },
              &[EXECUTOR, TASK, Anything("user_data")]),
        entry("dualpipe_executor_start", |w| unsafe {
                  let started = dualpipe_executor_start(w.at(0), task(w, 1), w.at(2));
                  if started == DUALPIPE_OK { dualpipe_executor_wait(w.at(0), SECOND) } else { started }
              },
              &[EXECUTOR, TASK, Anything("user_data")]),
        entry("dualpipe_executor_wait", |w| unsafe {
                  dualpipe_executor_start(w.at(0), Some(inputs::does_nothing), null_mut());
                  dualpipe_executor_wait(w.at(0), w.usize(1) as u64)
              },
              &[EXECUTOR, Number("timeout_ns", SECOND as usize, &[])]),
        entry("dualpipe_executor_timeline", |w| unsafe { dualpipe_executor_timeline(w.at(0), w.at(1)) },
              &[EXECUTOR, Out("timeline", 8)]),
        entry("dualpipe_executor_fault", |w| unsafe { dualpipe_executor_fault(w.at(0), w.at(1)) },
              &[EXECUTOR, out_struct::<dualpipe_fault>("fault")]),
        entry("dualpipe_task_set_error", |w| unsafe { dualpipe_task_set_error(w.at(0)) }, &[Anything("text")]),

        entry("dualpipe_expert_plan_create",
              |w| unsafe { dualpipe_expert_plan_create(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              &[
                  InStruct {
                      name: "options", size: size_of::<dualpipe_balance_options>(), align: 4,
                      good: |_| inputs::words(&inputs::balance_options()),
                      bad: &[
                          (1, 0, "num_layers is 0, "), (1, DUALPIPE_NONE, "num_layers is 4294967295, "),
                          (2, 0, "num_experts is 0, "), (2, DUALPIPE_NONE, "num_experts is 4294967295, "),
                          (3, 3, "num_slots is 3, "), (3, 5, "num_slots is 5, "), (3, DUALPIPE_NONE, "num_slots is 42"),
                          (4, 0, "num_groups is 0, "), (4, 3, "num_groups"),
                          (5, 0, "num_nodes is 0, "), (6, 0, "num_gpus is 0, "), (6, 4, "num_slots is 6, "),
                          (7, DUALPIPE_NONE, "num_threads is 4294967295, "),
                      ],
                  },
                  Lent("loads", 4, |_| inputs::words(&[1.0f32; 8])),
                  Number("num_loads", 8, &[
                      (0, "is 0"), (7, "is 7"), (9, "is 9"), (usize::MAX, "is 18446744073709551615"),
                  ]),
                  Out("plan", 8),
              ]),
        entry("dualpipe_expert_plan_free", |w| unsafe { dualpipe_expert_plan_free(w.at(0)) },
              &[Owned("plan", |_| inputs::plan())]),
        entry_of("dualpipe_expert_plan_slot_to_expert",
              |w| unsafe { dualpipe_expert_plan_slot_to_expert(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              buffer(PLAN, "count", values::<i64>("experts"))),
        entry_of("dualpipe_expert_plan_replica_counts",
              |w| unsafe { dualpipe_expert_plan_replica_counts(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              buffer(PLAN, "count", values::<i64>("counts"))),
        entry_of("dualpipe_expert_plan_expert_to_slots",
              |w| unsafe { dualpipe_expert_plan_expert_to_slots(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              buffer(PLAN, "count", values::<i64>("slots"))),
        entry("dualpipe_expert_plan_layers",
              |w| unsafe { dualpipe_expert_plan_layers(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              &[PLAN, values::<dualpipe_layer_balance>("layers"), Capacity, Count("count")]),
    ]
}

/// In nanoseconds; more than a step without work takes.
const SECOND: u64 = 1_000_000_000;
const ONE_DIRECTION: Arg = Number("direction", 0, &[(1, "must be 0 to 0"), (NONE, "must be 0 to 0")]);
const SPECS: Arg = Lent("tensors", 8, |_| inputs::words(&inputs::SPEC));
const NUM_TENSORS: Arg = Number("num_tensors", 1, &[(33, "must be 0 to 32"), (NONE, "must be 0 to 32")]);
/// Of a function only NULL can be told from others.
const TASK: Arg = Lent("task", 1, |_| vec![0]);

fn task(words: &Words, i: usize) -> dualpipe_task_fn {
    (words.usize(i) != 0).then_some(inputs::does_nothing)
}

/// The status of a function that cannot fail.
fn ok<T>(_: T) -> dualpipe_status {
    DUALPIPE_OK
}

#[test]
fn bad_input_gives_a_status_and_a_text_and_writes_nothing() {
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
    bad_tensors_and_tables(&world);
    bad_loads();
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
    let options = dualpipe_executor_options { inproc: inproc as _, ..inputs::executor_options(2) };
    let mut executor = null_mut();
    // SAFETY: locals and handles.
    let statuses = unsafe {
        [
            dualpipe_executor_step(parent.executor as _, Some(inputs::does_nothing), null_mut()),
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
    wrong.extend((statuses != [DUALPIPE_ERROR_FORKED; 3]).then(|| format!("{statuses:?}")));
    wrong.extend((data != DUALPIPE_OK || count == 0).then(|| format!("a schedule: {data:?}")));
    wrong.extend((frees != [DUALPIPE_OK; 2]).then(|| format!("free: {frees:?}")));
    wrong
}

fn bad_tensors_and_tables(world: &World) {
    let spec = inputs::SPEC;
    let refuse = |options: &dualpipe_executor_options, status, want: &str| {
        let mut executor = null_mut();
        // SAFETY: locals.
        let got = unsafe { dualpipe_executor_create(world.program as _, options, &mut executor) };
        assert_eq!((got, executor), (status, null_mut()), "{want}");
        assert!(last_error().contains(want), "{} does not say {want}", last_error());
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
        let options = dualpipe_executor_options { tensors: &spec, ..inputs::executor_options(2) };
        refuse(&options, DUALPIPE_ERROR_INVALID_ARGUMENT, want);
    }
    let good = inputs::executor_options(2);
    let nothing = dualpipe_executor_options { tensors: null(), ..good };
    refuse(&nothing, DUALPIPE_ERROR_INVALID_ARGUMENT, "options->tensors is NULL");
    let no_way = dualpipe_executor_options { inproc: null_mut(), ..good };
    refuse(&no_way, DUALPIPE_ERROR_INVALID_ARGUMENT, "are both NULL, must be exactly one");
    let foreign = dualpipe_executor_options { inproc: world.schedule as _, ..good };
    refuse(&foreign, DUALPIPE_ERROR_INVALID_HANDLE, "options->inproc is a schedule, must be an inproc");
    let small = dualpipe_executor_options { inproc: inputs::inproc(1) as _, ..good };
    refuse(&small, DUALPIPE_ERROR_INVALID_ARGUMENT, "rank is 1, must be 0 to 0");
    let mut executor = null_mut();
    // SAFETY: locals.
    assert_eq!(unsafe { dualpipe_executor_create(world.program as _, &good, &mut executor) }, DUALPIPE_OK);
    refuse(&good, DUALPIPE_ERROR_INVALID_ARGUMENT, "rank is 1, which another executor has");

    let table = dualpipe_transport {
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
        let options = inputs::balance_options();
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
        let (mut timeline, nothing) = (null_mut(), Some(inputs::does_nothing as _));
        // SAFETY: locals and a handle.
        let statuses = unsafe {
            [
                dualpipe_executor_step(executor, nothing, null_mut()),
                dualpipe_executor_start(executor, nothing, null_mut()),
                dualpipe_executor_timeline(executor, &mut timeline),
            ]
        };
        i32::from(statuses != [DUALPIPE_ERROR_BUSY; 3])
    }
    let executor = inputs::executor();
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
        let schedule = inputs::schedule();
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
