/// Pipeline and expert parallelism in C++17: schedules checked, simulated and run; experts placed with a proof.
///
///     #include <dualpipe.hpp>
///     #include <cstdio>
///
///     int main() {
///       const auto schedule = dualpipe::Schedule::create(dualpipe::ScheduleKind::dualpipe, 8, 20);
///       const dualpipe::Costs costs({1000, 1000, 1000, 2500, 0, 0, 0}); // F, I, W, F&B in ns; bytes
///       const auto timeline = dualpipe::Timeline::simulate(schedule, costs);
///       const auto summary = timeline.summarize();
///       std::printf("%.1f us, bubble %.1f %%\n", summary.makespan_ns / 1e3, 100 * summary.bubble_share);
///     }
///
/// Header only, over the C interface of the library, and all of it: link with -ldualpipe. The headers in dualpipe/
/// follow those of C, object by object; dualpipe.h is the manual of the whole, with its words, its limits and what
/// threads may do.
///
/// Objects own what they stand for: they move, do not copy, and free it at their end. get() is the C handle for a
/// function of C; one that was moved from is refused like a freed handle. What one object was made from may go before
/// it. Structs that derive from one of C have its fields.
///
/// Errors. A function that cannot do what it should throws an Error: its status and the library's words. With
/// DUALPIPE_NO_EXCEPTIONS defined, and where the compiler has exceptions turned off, it returns an Expected instead: a
/// value, or the Error. Nothing changes where a function failed.
///
/// Callbacks are functions, lambdas and objects. What they throw does not cross the library: it is carried to the call
/// that ran them, and comes out there. The other ranks of a step hear of it in words.
///
/// Views (Span, Tensor, Task) borrow; a task and its tensors are valid until it returns.
///
/// The library is compiled once; this may be included in any number of files, of C++17 or newer, with and without
/// exceptions, in one program.
#ifndef DUALPIPE_HPP
#define DUALPIPE_HPP

#include <dualpipe/balance.hpp>
#include <dualpipe/cluster.hpp>
#include <dualpipe/comparison.hpp>
#include <dualpipe/cost.hpp>
#include <dualpipe/cuda.hpp>
#include <dualpipe/executor.hpp>
#include <dualpipe/expert_transfer.hpp>
#include <dualpipe/front.hpp>
#include <dualpipe/heat_map.hpp>
#include <dualpipe/load_history.hpp>
#include <dualpipe/load_monitor.hpp>
#include <dualpipe/log.hpp>
#include <dualpipe/memory.hpp>
#include <dualpipe/moves.hpp>
#include <dualpipe/op.hpp>
#include <dualpipe/overlap.hpp>
#include <dualpipe/plan.hpp>
#include <dualpipe/policy.hpp>
#include <dualpipe/program.hpp>
#include <dualpipe/rebalance.hpp>
#include <dualpipe/replay.hpp>
#include <dualpipe/route.hpp>
#include <dualpipe/schedule.hpp>
#include <dualpipe/schedule_verify.hpp>
#include <dualpipe/span.hpp>
#include <dualpipe/status.hpp>
#include <dualpipe/task.hpp>
#include <dualpipe/tensor.hpp>
#include <dualpipe/timeline.hpp>
#include <dualpipe/torch_csv.hpp>
#include <dualpipe/transport.hpp>
#include <dualpipe/verify.hpp>
#include <dualpipe/version.hpp>

#endif // DUALPIPE_HPP
