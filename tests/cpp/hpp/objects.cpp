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

void schedules_come_from_outside() {
  const Schedule published = Schedule::create(ScheduleKind::dualpipe_v, 4, 8);
  ScheduleOrders parts;
  parts.num_microbatches = 8;
  parts.name = "mine";
  parts.rank_of.resize(1);
  for (std::uint32_t stage = 0; stage < 8; stage++) parts.rank_of[0].push_back(published.rank_of(0, stage));
  for (std::uint32_t rank = 0; rank < 4; rank++) parts.orders.push_back(published.order(rank));
  const Schedule copied = Schedule::from_orders(parts);
  CHECK(copied.describe().kind() == ScheduleKind::custom && copied.name() == "mine");
  CHECK(copied.to_text() == published.to_text() && copied.check() == published.check());
  CHECK(Schedule::from_text(published.to_text()).to_text() == published.to_text());
  CHECK(Schedule::from_text(published.to_text()).name() == "custom" && published.name() == "dualpipe_v");

  const Pass zero{0, 0, 0, none}, one{0, 0, 1, none};
  ScheduleOrders own;
  own.rank_of = {{0}};
  own.num_microbatches = 2;
  own.orders = {{Op(OpKind::F, zero), Op(one, zero), Op(OpKind::I, one), Op(OpKind::W, one)}};
  const Schedule small = Schedule::from_orders(own);
  CHECK(small.to_text() == "0| 0F0 0F1&0B0 0I1 0W1\n" && small.check()[0] == 2);
  own.orders[0].pop_back();
  const Error missing = thrown_by<Error>([&] { Schedule::from_orders(own).check(); });
  CHECK(missing.status() == Status::invalid_schedule);
  CHECK(std::string(missing.what()).find("custom: rank 0, position 3 (end): no W") != std::string::npos);

  own.rank_of = {{0, 0}, {0}};
  const Error ragged = thrown_by<Error>([&] { Schedule::from_orders(own); });
  CHECK(std::string(ragged.what()).find("orders->rank_of[3] is 4294967295, must be 0 to 0") != std::string::npos);
  for (const char *text : {"", "0| 0F", "0| 0F0\n1| 0B0"}) {
    CHECK(thrown_by<Error>([&] { Schedule::from_text(std::string(text)); }).status() == Status::invalid_argument);
  }

  Costs costs({1000, 1000, 1000, 3000, 0, 0, 0});
  CHECK(Timeline::simulate(small, costs).summarize().makespan_ns == 6000);
  costs.pairs = {{0, 0, 2500}};
  CHECK(Timeline::simulate(small, costs).summarize().makespan_ns == 5500);
}

void schedules_are_files_for_torch() {
  const Schedule schedule = Schedule::create(ScheduleKind::dualpipe_v, 2, 4);
  const std::string only = write_torch_csv(schedule);
  CHECK(only.find("3F1,(0F3;3B1)OVERLAP_F_B,") != std::string::npos);
  CHECK(write_torch_csv(schedule, {2, 8}).find("3F1,0F3,3B1,") != std::string::npos);
  CHECK(read_torch_csv(only).to_text() == schedule.to_text() && read_torch_csv(only).name() == "custom");
  const std::string comms = write_torch_csv(schedule, {2, 15}, TorchCsvFormat::compute_comms);
  const Schedule read = read_torch_csv(comms, {2, 15}, TorchCsvFormat::compute_comms, "mine");
  CHECK(read.to_text() == schedule.to_text() && read.name() == "mine" && read.check() == schedule.check());
  CHECK(comms.find("WAIT_SEND_F") != std::string::npos);
  for (const auto &refused : {std::string(), comms, std::string("0F0")}) {
    CHECK(thrown_by<Error>([&] { read_torch_csv(refused); }).status() == Status::invalid_argument);
  }
  const Error both_ways = thrown_by<Error>([&] { write_torch_csv(eight_ranks()); });
  CHECK(std::string(both_ways.what()).find("of two directions") != std::string::npos);
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
  schedules_come_from_outside();
  schedules_are_files_for_torch();
  timelines_are_simulated_drawn_and_compared();
  programs_have_instructions_and_buffers();
  experts_are_placed();
  errors_have_status_and_words();
  objects_move_and_are_freed_once();
}
