// Objects of the C++ header: what they give, how they move, and what they throw.
#include <dualpipe.hpp>

#include <array>
#include <cmath>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "throws.hpp"

using namespace dualpipe;

namespace {

Schedule eight_ranks() { return Schedule::create(ScheduleKind::dualpipe, 8, 20); }

void schedules_say_what_they_are() {
  const Schedule schedule = eight_ranks();
  const ScheduleInfo info = schedule.describe();
  CHECK(info.kind() == ScheduleKind::dualpipe && info.num_ranks == 8 && info.num_stages == 8);
  CHECK(info.num_directions == 2 && info.num_microbatches == 20 && info.forward_only == 0);
  CHECK(schedule.rank_of(1, 0) == 7);

  const std::vector<Op> order = schedule.order(0);
  CHECK(order.front().kind() == OpKind::F && order.front().forward.microbatch == 0);
  CHECK(order.front().backward.stage == none);
  std::size_t num_pairs = 0;
  for (const Op &op : order) num_pairs += op.kind() == OpKind::FB;
  CHECK(num_pairs > 0);
  CHECK(schedule.check() == std::vector<std::uint32_t>(8, 9));
  CHECK(schedule.to_text().rfind("0| 0F0 ", 0) == 0);
  CHECK(Schedule::create(ScheduleKind::one_f_one_b, 2, 2, true).describe().forward_only == 1);
  for (const ScheduleKind kind : {ScheduleKind::gpipe, ScheduleKind::chimera, ScheduleKind::zb_h1, ScheduleKind::zb_h2,
                                  ScheduleKind::zb_v, ScheduleKind::v_half, ScheduleKind::v_min}) {
    CHECK(Schedule::create(kind, 4, 8).check().size() == 4);
  }
  for (const ScheduleKind kind : {ScheduleKind::interleaved_1f1b, ScheduleKind::interleaved_overlapped,
                                  ScheduleKind::interleaved_zero_bubble, ScheduleKind::looped_bfs}) {
    ScheduleOptions looped(kind, 4, 8);
    looped.stages_per_rank = 3;
    CHECK(Schedule::create(looped).describe().num_stages == 12);
  }
}

void timelines_are_simulated_drawn_and_compared() {
  const Schedule schedule = eight_ranks();
  const Timeline timeline = Timeline::simulate(schedule, Costs({1000, 1000, 1000, 2500, 0, 0, 0}));
  const TimelineSummary summary = timeline.summarize();
  CHECK(summary.source() == TimelineSource::simulated && summary.makespan_ns == 59000);
  CHECK(summary.lower_bound_ns <= summary.makespan_ns && summary.lower_bound_ns > 0);
  CHECK(timeline.ranks().size() == 8 && timeline.spans().size() == summary.num_spans);
  CHECK(timeline.messages().size() == summary.num_messages);
  CHECK(timeline.messages()[0].message().kind() == MessageKind::activation);
  CHECK(timeline.spans()[0].op().kind() == OpKind::F && timeline.spans()[0].start_ns == 0);
  CHECK(timeline.draw(DrawFormat::svg).find("<svg") != std::string::npos);
  CHECK(timeline.draw(DrawFormat::trace).front() == '{' || timeline.draw(DrawFormat::trace).front() == '[');
  CHECK(!timeline.draw(DrawFormat::text).empty());

  Costs slow(std::vector<StageCosts>(8, StageCosts{1000, 1000, 1000, 2500, 4000, 0, 0}));
  slow.p2p_latency_ns = 100;
  slow.p2p_bytes_per_second = 1000000000;
  std::array<Timeline, 2> both = {Timeline::simulate(schedule, Costs({1000, 1000, 1000, 2500, 0, 0, 0})),
                                  Timeline::simulate(schedule, slow)};
  CHECK(both[1].summarize().makespan_ns > 59000);
  CHECK(Timeline::compare(both).find("<svg") != std::string::npos);
  const Error twice = thrown_by<Error>([&] { Timeline::merge(both); });
  CHECK(twice.status() == Status::invalid_argument);
}

void programs_have_instructions_and_buffers() {
  const Program program = Program::create(eight_ranks(), 3);
  const std::vector<Instruction> instructions = program.instructions();
  std::array<std::size_t, 5> counts{};
  for (const Instruction &instruction : instructions) counts[static_cast<std::size_t>(instruction.kind())] += 1;
  CHECK(counts[1] > 0 && counts[1] == counts[3]); // as much is received as sent
  for (const Instruction &instruction : instructions) {
    if (instruction.kind() == InstructionKind::run) CHECK(instruction.op().kind() >= OpKind::F);
    if (instruction.kind() == InstructionKind::send) CHECK(instruction.message().pass.stage < 8);
  }
  CHECK(!program.buffers().empty() && program.buffers()[0].kind() == MessageKind::activation);
  const PassBuffers buffers = program.pass_buffers(0, 3, 0);
  CHECK(buffers.input != none && buffers.output_grad != none);
  CHECK(thrown_by<Error>([&] { program.pass_buffers(0, 4, 0); }).status() == Status::invalid_argument);
}

void experts_are_placed() {
  const std::vector<float> loads = {90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86};
  BalanceOptions options(1, 12, 16, 8);
  options.num_groups = 4;
  options.num_nodes = 2;
  const ExpertPlan plan = ExpertPlan::create(options, loads);
  CHECK(plan.slot_to_expert().size() == 16 && plan.replica_counts().size() == 12);
  CHECK(plan.expert_to_slots().size() % 12 == 0);
  const std::vector<LayerBalance> layers = plan.layers();
  CHECK(layers.size() == 1 && layers[0].imbalance >= layers[0].lower_bound && layers[0].lower_bound >= 1);

  const Error error = thrown_by<Error>([&] { ExpertPlan::create(options, {1.0F, NAN}); });
  CHECK(error.status() == Status::invalid_argument);
}

void errors_have_status_and_words() {
  const Error odd = thrown_by<Error>([] { Schedule::create(ScheduleKind::dualpipe, 7, 20); });
  CHECK(odd.status() == Status::invalid_argument);
  CHECK(std::string(odd.what()).find("num_ranks is 7") != std::string::npos);
  CHECK(std::string(status_name(odd.status())) == "DUALPIPE_ERROR_INVALID_ARGUMENT");
  CHECK(std::string(last_error()) == odd.what());
  // Each thread has its own, and an Error keeps its words.
  std::thread([] { thrown_by<Error>([] { Schedule::create(ScheduleKind::dualpipe, 2, 1); }); }).join();
  CHECK(std::string(last_error()) == odd.what());
  CHECK(version() == header_version && std::string(version_string()).rfind("0.", 0) == 0);
}

void objects_move_and_are_freed_once() {
  Schedule schedule = eight_ranks();
  dualpipe_schedule_t handle = schedule.get();
  Schedule moved = std::move(schedule);
  CHECK(moved && moved.get() == handle && !schedule);
  CHECK(thrown_by<Error>([&] { schedule.describe(); }).status() == Status::invalid_handle);
  moved = Schedule::create(ScheduleKind::one_f_one_b, 2, 2); // the first is gone
  CHECK(dualpipe_schedule_free(handle) == DUALPIPE_ERROR_INVALID_HANDLE);
  CHECK(moved.describe().kind() == ScheduleKind::one_f_one_b);

  Schedule released(moved.release()); // by hand
  CHECK(!moved && released.check().size() == 2);
  released = Schedule();
  CHECK(!released);
}

} // namespace

int main() {
  schedules_say_what_they_are();
  timelines_are_simulated_drawn_and_compared();
  programs_have_instructions_and_buffers();
  experts_are_placed();
  errors_have_status_and_words();
  objects_move_and_are_freed_once();
}
