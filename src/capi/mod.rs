//! Pipeline and expert parallelism: schedules checked, simulated and run; experts placed with a proof.
//!
//! This header and the pages that it includes are the manual. Include only this one, link with -ldualpipe.
//!
//! ```text
//! 1. Overview    2. Words        3. A first program   4. The life of an object   5. Errors
//! 6. Threads     7. Ownership    8. A trainer         9. Limits                 10. Versions
//! ```
//!
//! # 1. Overview
//!
//! A schedule says for every rank of a pipeline in which order it computes. It can be checked, printed, and simulated
//! against costs, which gives a timeline. Its programs, one for each rank, add receives, sends and frees; an executor
//! runs one of them step after step, on the host or on a CUDA device, calls your code for each task, and moves the
//! tensors. What ran is a timeline again. Beside all that, an expert plan says which GPU holds which replicas of which
//! experts.
//!
//! ```text
//! schedule + costs -------- simulate ------> timeline
//! costs + memory ---------> plan: the best schedule found, and a lower bound
//! schedule + rank --------> program                                the same type: to be compared
//! program + transport ----> executor ------> timeline of a step
//!                              calls your tasks
//! loads of experts -------> expert plan
//! plan + counts of a step -> routing: tokens of each replica, and which they are
//! two placements ---------> transfers: copies of experts, in rounds
//! a placement ------------> findings: what is wrong with it
//! a schedule, actions ----> verification: what is wrong, and a smallest counterexample
//! recorded loads ---------> replay: how policies would have done
//!
//! transport: an inproc (ranks of one process), NCCL, or functions of yours (MPI, sockets)
//! ```
//!
//! The pages:
//!
//! ```text
//! schedule.h   schedules                        task.h       what an executor calls you with
//! op.h         passes, ops, messages            tensor.h     DLPack's tensors
//! cost.h       costs of stages and links        transport.h  ranks of one process; transports of yours
//! timeline.h   simulation, timelines, pictures  memory.h     memory of yours for tensors
//! program.h    programs                         cuda.h       CUDA devices, NCCL, graphs
//! executor.h   executors                        overlap.h    the halves of FB on two streams
//! balance.h    expert plans                     log.h        log and progress callbacks
//! cluster.h    GPUs, and what is good on them   moves.h      few moves from placement to placement
//! route.h      routers: tokens among replicas   token_map.h  which token goes to which slot
//! status.h     statuses, the last error         version.h    the version
//! expert_transfer.h    transfers: copies of experts, in rounds
//! verify.h     a placement one can trust        heat_map.h   loads of GPUs, drawn
//! replay.h     policies on recorded loads       policy.h     policies to replay
//! load_monitor.h       loads counted, on many ranks; monitor_loads.h: loads to balance from them
//! load_history.h, expert_map.h: recorded loads, placements in the files of other programs
//! schedule_orders.h    schedules from outside      torch_csv.h  as PyTorch's CSV
//! schedule_verify.h, verification.h: a schedule one can trust; action.h: ops and messages in one order
//! plan.h       the best schedule for your costs robust_plan.h where times spread
//! front.h      plans within memory caps         comparison.h which placement, with what each costs
//! rebalance.h          whether it pays to move
//! ```
//!
//! # 2. Words
//!
//! A model has stages 0 to S-1 on the ranks 0 to P-1 of a pipeline. A step sends micro-batches through it. In direction
//! 0 they enter at rank 0; a schedule with two directions has a second copy of every stage's parameters, and in
//! direction 1 they enter at rank P-1. A pass is one micro-batch at one stage in one direction.
//!
//! ```text
//! F             forward                        B    backward, for the input and for the weights (B = I + W)
//! I             backward for the input         W    backward for the weights
//! FB            an F and a B of two micro-batches, run as an overlapped pair
//! REDUCE_GRADS  the weight gradients of a copy are final: sum them with those of its twin in the other direction
//! ```
//!
//! # 3. A first program
//!
//! DualPipe on 4 ranks, simulated and drawn. (cc -std=c99 first.c -ldualpipe)
//!
//! ```c
//! #include <dualpipe.h>
//! #include <stdio.h>
//!
//! static int failed(dualpipe_status status) {
//!   if (status != DUALPIPE_OK)
//!     fprintf(stderr, "%s: %s\n", dualpipe_status_name(status), dualpipe_last_error());
//!   return status != DUALPIPE_OK;
//! }
//!
//! int main(void) {
//!   dualpipe_schedule_options options = DUALPIPE_SCHEDULE_OPTIONS_INIT;
//!   dualpipe_schedule_t schedule = NULL;
//!   dualpipe_stage_costs stage = {1000, 1000, 1000, 2500, 1 << 20, 1 << 24, 1 << 28};
//!   dualpipe_costs costs = DUALPIPE_COSTS_INIT;
//!   dualpipe_timeline_t timeline = NULL;
//!   dualpipe_timeline_summary summary = DUALPIPE_TIMELINE_SUMMARY_INIT;
//!   static char picture[1 << 16];
//!   size_t length = 0;
//!
//!   options.kind = DUALPIPE_KIND_DUALPIPE;
//!   options.num_ranks = 4;
//!   options.num_microbatches = 8;
//!   costs.stages = &stage;
//!   costs.num_stages = 1; // one entry: all stages cost the same
//!   if (failed(dualpipe_schedule_create(&options, &schedule)) ||
//!       failed(dualpipe_simulate(schedule, &costs, &timeline)) ||
//!       failed(dualpipe_timeline_summarize(timeline, &summary)) ||
//!       failed(dualpipe_timeline_draw(timeline, DUALPIPE_DRAW_TEXT, picture, sizeof picture, &length)))
//!     return 1;
//!   printf("%s\n%.1f us, bubble %.1f %%\n", picture, summary.makespan_ns / 1e3, 100 * summary.bubble_share);
//!   dualpipe_timeline_free(timeline);
//!   dualpipe_schedule_free(schedule);
//!   return 0;
//! }
//! ```
//!
//! # 4. The life of an object
//!
//! A create function writes a handle; the object's other functions take it first; its free function ends it. free(NULL)
//! is fine. There is one free for each create, and what one object was made from may be freed before it.
//!
//! ```text
//!              made from                       used by                 after a fork  free
//! schedule     options; orders; a text; a plan any number of threads   usable        dualpipe_schedule_free
//! program      schedule, rank                  any number of threads   usable        dualpipe_program_free
//! timeline     schedule and costs; a last step any number of threads   usable        dualpipe_timeline_free
//! plan         options, costs, a spread        any number of threads   usable        dualpipe_plan_free
//! expert plan  options, loads                  any number of threads   usable        dualpipe_expert_plan_free
//! transfers    two placements of experts       any number of threads   usable        dualpipe_expert_transfers_free
//! replay       recorded loads, policies        any number of threads   usable        dualpipe_replay_free
//! verification schedule; a CSV                 any number of threads   usable        dualpipe_verification_free
//! front        options, costs, memory caps     any number of threads   usable        dualpipe_front_free
//! comparison   options, costs                  any number of threads   usable        dualpipe_comparison_free
//! router       expert plan; slots              one thread at a time    usable        dualpipe_router_free
//! monitor      options; a saved state          one thread at a time    usable        dualpipe_load_monitor_free
//! history      options; a text                 one thread at a time    usable        dualpipe_load_history_free
//! inproc       number of ranks                 any number of threads   useless       dualpipe_inproc_free
//! executor     program, options                one thread at a time    useless       dualpipe_executor_free
//! overlap      device                          one thread at a time    useless       dualpipe_overlap_free
//! ```
//!
//! Those above the router never change. An executor runs steps until one fails; then it can say why, give what was
//! recorded, and be freed, and so can those of all other ranks, which fail too. A new inproc and new executors run
//! clean.
//!
//! A handle that was freed, or never was one, is refused with DUALPIPE_ERROR_INVALID_HANDLE. Freeing an object while
//! another thread uses it is safe: it goes when that call ends.
//!
//! # 5. Errors
//!
//! A function that can fail returns a dualpipe_status, DUALPIPE_OK (0) if it worked. dualpipe_last_error() has the
//! words, for each thread its own: the function, the argument, its value and its range, or for a step the rank, the
//! instruction and the peer. Read it on the thread that made the call, before its next failing call.
//!
//! ```text
//! dualpipe_schedule_create: dualpipe: num_ranks is 3, must be even and at least 2
//! dualpipe_executor_step: rank 2, instruction 17 (RUN 2F1): waited 5s for the activation of micro-batch 1
//!     from stage 1 to 2 in direction 0, from rank 1; last done 2F0
//! ```
//!
//! Outputs are written on success only. An argument that is refused has changed nothing. Every wait has a deadline. The
//! library prints nothing, installs no signal handlers, and never aborts because of an argument; a defect of its own
//! comes back as DUALPIPE_ERROR_PANIC. What each status means, and what can be done: status.h.
//!
//! # 6. Threads
//!
//! Every function may be called from any thread. Section 4 says what several threads may do with one object; a second
//! thread at an executor gets DUALPIPE_ERROR_BUSY, at once, and so does a callback that calls the executor that called
//! it.
//!
//! Each rank of a process needs a thread for its step: yours (dualpipe_executor_step), or one of the executor's own
//! (dualpipe_executor_start, dualpipe_executor_wait), so that one thread can drive all ranks. With CUDA an executor has
//! threads more: a watchdog, and one that ends a transport after a fault.
//!
//! Callbacks are called on the threads that their types name. They return to the library: an exception or a longjmp
//! through it ends the process.
//!
//! Fork. Objects without threads stay usable in the child. The others return DUALPIPE_ERROR_FORKED there: free them.
//!
//! # 7. Ownership
//!
//! Pointers. Each points to as much as its function says, aligned, valid until the function returns, and no output
//! overlaps another argument. NULL, misaligned pointers and impossible sizes are refused. What an options struct points
//! to is copied, except for what it says is borrowed: user_data, streams, and what they lead to.
//!
//! Buffers. Where a function writes a number of values that the caller cannot know, it takes the buffer, its capacity
//! and a count: (values, capacity, &count). NULL with capacity 0 only asks for the count. If the buffer is too small,
//! the function returns DUALPIPE_ERROR_BUFFER_TOO_SMALL, writes the count that is needed, and nothing else. Of a text
//! the capacity must have room for the NUL, and the length does not count it.
//!
//! Tensors. A task borrows them until it returns. Inputs and outputs are the executor's memory, which it uses again, or
//! yours if you bring some (memory.h). Parameters, gradients of weights, data and labels are yours and never pass
//! through the library. Nor does what a stage keeps from F to W besides its inputs.
//!
//! Structs that begin with size may grow in later versions: start from their INIT macro, then set fields. Fields that a
//! library does not know must be 0. Structs without size never change while the SONAME stays.
//!
//! Enums are passed as uint32_t; a number that is not one of them is refused.
//!
#![doc = include_str!("trainer.md")]
//!
//! # 9. Limits
//!
//! ```text
//! ranks                      1 to 4096; DualPipe an even number from 2 on
//! stages                     1 to 8192: as many as ranks, or stages_per_rank times as many; own orders: any
//! micro-batches of a step    1 to 1048576, and at most 4194304 / stages of a direction; DualPipe an even number, at
//!                            least 2 * ranks - 2; DualPipeV at least 2 * ranks - 1; forward only 2 and 1
//! own orders                 at most 12582912 ops in all; names of 255 bytes
//! actions to verify          at most 67108864 in all; 8 findings of each kind in detail, all of them counted
//! times of costs             0 to 10^12 ns, for one pass and for one message; at most 1048576 pairs have their own
//! bytes of costs             0 to 2^50
//! caps of a plan             1 or as many as ranks; activations from 1 on, bytes to 2^50
//! time limit of a plan       1 ns to a day; 0 stands for none, and for 2 s where there are no iterations
//! samples of a spread        1 to 1024, times passes at most 4194304; standard deviations 0 to 1
//! timelines merged, drawn    1 to 4096; 1 to 64 in one picture, which beyond 50000 tasks merges them
//! tensors at a boundary      0 to 32, of 0 to 8 dimensions, all together at most 2^40 bytes
//! bits of an element         4, 6, 8, 16, 32, 64 or 128
//! deadline                   1 ns to a day; 0 stands for a minute
//! tags of messages           repeat after 65536 steps
//! words of a failing task    4095 bytes; of a transport 1023
//! multiprocessors of NCCL    1 to 64 for each communicator; 0 stands for 2
//! blocks of an overlap       0 to 4096 in each half
//! layers of an expert plan   1 to 4096, of 1 to 65536 experts each
//! GPUs of a cluster          1 to 2^20, nodes no more than these
//! slots                      experts to 2^20 in a layer, 2^26 in all; expert_to_slots gives at most 2^28 numbers
//! effort of a search         1 to 1000
//! loads                      finite, not negative, of a layer at most 10^38 in all
//! tokens of a routing        at most 2^32 - 1 in a layer; quotas of senders at most 2^28
//! tiles, prices of a routing 1 to 65536 tokens; 0 to 1000
//! experts moved in a round   1 to 2^20 by a GPU; 0 to 2^20 over a link, where 0 stands for no limit
//! staging buffers of a GPU   0 to 1024
//! window of a monitor        1 to 65536 steps, of all layers and experts at most 2^28 counts; 1 to 65536 ranks
//! steps of a monitor         numbered from 0 to 2^63 - 1
//! loads of a history         at most 2^28; words of its model 4095 bytes
//! horizon of a move          at most 2^53 steps
//! threads of a plan          0 to 4096; 0 stands for as many as there are cores
//! findings of a placement    64 of each kind in detail, all of them counted
//! steps of a replay          2 to 65536; of 1 to 64 policies, whose names have at most 255 bytes
//! bytes of an expert         0 to 2^37 in one layer
//! panels of a heat map       1 to 16, whose titles have at most 1023 bytes
//! caps of a front            1 to 256; all that matter: at most 24
//! placements compared        for ranks times micro-batches up to 262144
//! live objects               1048576 in a process
//! size of a struct           as in this header, an older one, or a newer one (up to 4096) with 0 in what it adds
//! machine                    Linux, 64 bits
//! ```
//!
//! # 10. Versions
//!
//! dualpipe_version() is the library's, DUALPIPE_VERSION this header's. A patch release changes nothing here, a minor
//! one adds. Before 1.0 a minor release may break, and the SONAME has its number: libdualpipe.so.0.MINOR.
#![allow(non_camel_case_types)] // the names are C's
#![allow(clippy::missing_safety_doc)] // "Ownership" above says it of every function
#![allow(clippy::upper_case_acronyms)]

// What C sees: a header each, in this order.
pub mod action;
pub mod balance;
pub mod cluster;
pub mod comparison;
pub mod cost;
pub mod cuda;
pub mod executor;
pub mod expert_map;
pub mod expert_transfer;
pub mod front;
pub mod heat_map;
pub mod load_history;
pub mod load_monitor;
pub mod log;
pub mod memory;
pub mod monitor_loads;
pub mod moves;
pub mod op;
pub mod overlap;
pub mod plan;
pub mod policy;
pub mod program;
pub mod rebalance;
pub mod replay;
pub mod robust_plan;
pub mod route;
pub mod schedule;
pub mod schedule_orders;
pub mod schedule_verify;
pub mod status;
pub mod task;
pub mod tensor;
pub mod timeline;
pub mod token_map;
pub mod torch_csv;
pub mod transport;
pub mod verification;
pub mod verify;
pub mod version;

// What they are made with.
mod args;
mod caller_streams;
mod connect;
mod guard;
mod handle;
mod options;
mod plan_object;
mod planner;
mod process;
mod router_object;
