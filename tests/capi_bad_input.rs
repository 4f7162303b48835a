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

use dualpipe::capi::cost::{dualpipe_costs, dualpipe_stage_costs};
use dualpipe::capi::log::*;
use dualpipe::capi::op::{dualpipe_op, DUALPIPE_NONE};
use dualpipe::capi::program::*;
use dualpipe::capi::schedule::*;
use dualpipe::capi::status::dualpipe_status::*;
use dualpipe::capi::status::*;
use dualpipe::capi::timeline::*;
use dualpipe::capi::version::*;
use inputs::Arg::*;
use inputs::{check_all, costs, last_error, Arg, Entry, Words, World};

const SCHEDULE: Arg = Handle("schedule", |world| world.schedule);
const TIMELINE: Arg = Handle("timeline", |world| world.timeline);
const PROGRAM: Arg = Handle("program", |world| world.program);
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
    ]
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
        let both = [(); 2].map(|()| scope.spawn(|| check_all(&table, &world)));
        both.into_iter().for_each(|one| assert_none("on two threads", one.join().unwrap()));
    });

    assert_none("in a child of fork", in_a_child(|| check_all(&table, &world)));

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
