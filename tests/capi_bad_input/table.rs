//! Every function of the headers, with its arguments.

use std::ffi::c_char;
use std::ptr::null_mut;

use dualpipe::capi::balance::*;
use dualpipe::capi::cuda::*;
use dualpipe::capi::executor::*;
use dualpipe::capi::log::*;
use dualpipe::capi::op::{dualpipe_op, DUALPIPE_NONE};
use dualpipe::capi::overlap::*;
use dualpipe::capi::program::*;
use dualpipe::capi::schedule::*;
use dualpipe::capi::status::dualpipe_status::*;
use dualpipe::capi::status::*;
use dualpipe::capi::task::*;
use dualpipe::capi::timeline::*;
use dualpipe::capi::transport::*;
use dualpipe::capi::version::*;

use super::inputs::Arg::*;
use super::inputs::{self, Arg, Entry, Words};
use super::world::{self, costs};

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

pub(crate) fn values<T>(name: &'static str) -> Arg {
    Values { name, size: size_of::<T>(), align: align_of::<T>(), too_small: &[0, 1] }
}

/// A text that may be empty: room for a NUL is enough.
fn short_text(name: &'static str) -> Arg {
    Values { name, size: 1, align: 1, too_small: &[0] }
}

pub(crate) fn out_struct<T>(name: &'static str) -> Arg {
    OutStruct { name, size: size_of::<T>(), align: align_of::<T>() }
}

pub(crate) fn entry(name: &'static str, call: unsafe fn(&Words) -> dualpipe_status, args: &[Arg]) -> Entry {
    Entry { name, call, args: args.to_vec(), is_optional: false }
}

/// Of something that the machine may lack.
fn optional(name: &'static str, call: unsafe fn(&Words) -> dualpipe_status, args: &[Arg]) -> Entry {
    Entry { is_optional: true, ..entry(name, call, args) }
}

/// Every function, with its arguments.
#[rustfmt::skip] // an argument list reads better on one line
#[allow(clippy::undocumented_unsafe_blocks)] // whoever calls an entry says why it may: `inputs::check_all`
pub(crate) fn table() -> Vec<Entry> {
    let buffer = |handle, name, values| vec![handle, values, Capacity, Count(name)];
    let entry_of = |name, call, args: Vec<Arg>| entry(name, call, &args);
    let mut table = vec![
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
                name: "options", size: 24, size_v1: 20, align: 4,
                good: |_| inputs::words(&world::schedule_options()),
                bad: &[
                    (1, 0, "options->kind is 0, must be one of DUALPIPE_KIND_DUALPIPE (1), "),
                    (1, 99, "options->kind is 99, must be one of "),
                    (1, 1000, "options->kind is 1000, must be one of DUALPIPE_KIND_DUALPIPE (1), "),
                    (1, DUALPIPE_NONE, "options->kind is 4294967295, must be one of "),
                    (2, 0, "num_ranks is 0, must be 2 to 4096"),
                    (2, 3, "num_ranks is 3, must be even and at least 2"),
                    (2, DUALPIPE_NONE, "num_ranks is 4294967295, must be 2 to 4096"),
                    (3, 0, "num_microbatches is 0, must be even and at least 2 for 2 ranks"),
                    (3, DUALPIPE_NONE - 1, "num_microbatches is 4294967294, must be 1 to 1048576"),
                    (4, 2, "options->forward_only is 2, must be 0 to 1"),
                    (5, 1, "options->stages_per_rank is 1, must be 0 for DUALPIPE_KIND_DUALPIPE"),
                ],
            },
            Out("schedule", 8),
        ]),
        entry("dualpipe_schedule_free", |w| unsafe { dualpipe_schedule_free(w.at(0)) },
              &[Owned("schedule", |_| world::schedule())]),
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
                name: "costs", size: 56, size_v1: 40, align: 8,
                good: |world| inputs::words(&costs(&world.stages[..2])),
                bad: &[
                    (1, 1, "costs->reserved is 1, must be 0"),
                    (4, 0, "costs->num_stages is 0, must be 1 to 8192"),
                    (4, 3, "the number of stages is 3, must be 1 or 2"),
                    (5, 1, "costs->num_stages is 4294967298, must be 1 to 8192"),
                    (7, 1 << 20, "latency_ns is 4503599627370497, must be 0 to 1000000000000"),
                    (12, 1, "costs->pairs is NULL"),
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
        entry("dualpipe_timeline_compare",
              |w| unsafe { dualpipe_timeline_compare(w.at(0), w.usize(1), w.at(2), w.usize(3), w.at(4)) },
              &[
                  Lent("timelines", 8, |world| inputs::words(&[world.timeline])),
                  Number("count", 1, &[(0, "must be 1 to 64"), (65, "must be 1 to 64"), (usize::MAX, "is 18446")]),
                  values::<c_char>("text"), Capacity, Count("length"),
              ]),
        entry("dualpipe_timeline_free", |w| unsafe { dualpipe_timeline_free(w.at(0)) },
              &[Owned("timeline", |world| world::timeline(world.schedule, &world.stages[..2]))]),
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
              &[Owned("program", |world| world::program(world.schedule))]),
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
              &[Owned("inproc", |_| world::inproc(1))]),
        entry("dualpipe_executor_create",
              |w| unsafe { dualpipe_executor_create(w.at(0), w.at(1), w.at(2)) },
              &[
                  PROGRAM,
                  InStruct {
                      name: "options", size: 64, size_v1: 48, align: 8,
                      good: |_| inputs::words(&world::executor_options(2)),
                      bad: &[
                          (1, 33, "num_tensors is 33, must be 0 to 32"),
                          (1, DUALPIPE_NONE, "num_tensors is 4294967295, must be 0 to 32"),
                          (5, DUALPIPE_NONE, "options->timeout_ns is 184467440"),
                          (8, 8, "options has inproc and transport of inproc, transport and nccl, must have exactly"),
                          (14, 8, "options has inproc and nccl of inproc, transport and nccl, must have exactly one"),
                          (10, 1, "options->memory is 0x1, must be a multiple of 8"),
                          (12, 1, "options->cuda is 0x1, must be a multiple of 8"),
                      ],
                  },
                  Out("executor", 8),
              ]),
        entry("dualpipe_executor_free", |w| unsafe { dualpipe_executor_free(w.at(0)) },
              &[Owned("executor", |_| world::executor())]),
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
                  dualpipe_executor_start(w.at(0), Some(world::does_nothing), null_mut());
                  dualpipe_executor_wait(w.at(0), w.usize(1) as u64)
              },
              &[EXECUTOR, Number("timeout_ns", SECOND as usize, &[])]),
        entry("dualpipe_executor_synchronize",
              |w| unsafe { dualpipe_executor_synchronize(w.at(0), w.usize(1) as u64) },
              &[EXECUTOR, Anything("timeout_ns")]),
        entry("dualpipe_executor_graph",
              |w| unsafe { dualpipe_executor_graph(w.at(0), w.at(1), w.at(2), w.usize(3), w.at(4)) },
              &[EXECUTOR, Out("state", 4), short_text("text"), Capacity, Count("length")]),
        entry("dualpipe_executor_timeline", |w| unsafe { dualpipe_executor_timeline(w.at(0), w.at(1)) },
              &[EXECUTOR, Out("timeline", 8)]),
        entry("dualpipe_executor_fault", |w| unsafe { dualpipe_executor_fault(w.at(0), w.at(1)) },
              &[EXECUTOR, out_struct::<dualpipe_fault>("fault")]),
        entry("dualpipe_task_set_error", |w| unsafe { dualpipe_task_set_error(w.at(0)) }, &[Anything("text")]),

        optional("dualpipe_overlap_create", |w| unsafe { dualpipe_overlap_create(w.u32(0), w.at(1)) },
                 &[Anything("device"), Out("overlap", 8)]),
        entry("dualpipe_overlap_free", |w| unsafe { dualpipe_overlap_free(w.at(0)) }, &[Owned("overlap", |_| 0)]),
        // The rest of it, which needs a device, is in tests/c/cuda.c.
        entry("dualpipe_overlap_run", |w| unsafe {
                  dualpipe_overlap_run(w.at(0), w.at(1), w.at(2), w.u32(3), w.u32(4), None, w.at(6))
              },
              &[Handle("overlap", |_| 0), Anything("compute_stream"), Anything("comm_stream"), Anything("num_forward"),
                Anything("num_backward"), Anything("enqueue"), Anything("user_data")]),

        optional("dualpipe_cuda_available", |w| unsafe { dualpipe_cuda_available(w.at(0)) },
                 &[out_struct::<dualpipe_cuda_info>("info")]),
        optional("dualpipe_nccl_version", |w| unsafe { dualpipe_nccl_version(w.at(0)) }, &[Out("version", 4)]),
        optional("dualpipe_nccl_unique_id",
                 |w| unsafe { dualpipe_nccl_unique_id(w.at(0), w.at(1), w.usize(2), w.at(3)) },
                 &[SCHEDULE, values::<u8>("bytes"), Capacity, Count("count")]),

        entry("dualpipe_expert_plan_create",
              |w| unsafe { dualpipe_expert_plan_create(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              &[
                  InStruct {
                      name: "options", size: 32, size_v1: 32, align: 4,
                      good: |_| inputs::words(&world::balance_options()),
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
              &[Owned("plan", |_| world::plan())]),
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
    ];
    table.extend(super::schedules::entries());
    table.extend(super::schedule_verify::entries());
    table.extend(super::torch_csv::entries());
    table.extend(super::front::entries());
    table.extend(super::planner::entries());
    table.extend(super::plans::entries());
    table.extend(super::loads::entries());
    table.extend(super::route::entries());
    table.extend(super::expert_transfer::entries());
    table.extend(super::trust::entries());
    table
}

/// In nanoseconds; more than a step without work takes.
pub(crate) const SECOND: u64 = 1_000_000_000;
const ONE_DIRECTION: Arg = Number("direction", 0, &[(1, "must be 0 to 0"), (NONE, "must be 0 to 0")]);
const SPECS: Arg = Lent("tensors", 8, |_| inputs::words(&world::SPEC));
const NUM_TENSORS: Arg = Number("num_tensors", 1, &[(33, "must be 0 to 32"), (NONE, "must be 0 to 32")]);
/// Of a function only NULL can be told from others.
const TASK: Arg = Lent("task", 1, |_| vec![0]);

fn task(words: &Words, i: usize) -> dualpipe_task_fn {
    (words.usize(i) != 0).then_some(world::does_nothing)
}

/// The status of a function that cannot fail.
fn ok<T>(_: T) -> dualpipe_status {
    DUALPIPE_OK
}
