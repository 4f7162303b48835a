// The verifier of the C++ header: what it proves, what it finds, what it refuses.
#include <dualpipe.hpp>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "throws.hpp"

using namespace dualpipe;

namespace {

std::vector<std::vector<Action>> actions_of(const Schedule &schedule) {
  std::vector<std::vector<Action>> actions;
  for (std::uint32_t rank = 0; rank < schedule.describe().num_ranks; rank++)
    actions.push_back(program_actions(Program::create(schedule, rank)));
  return actions;
}

void a_valid_schedule_holds() {
  const Schedule schedule = Schedule::create(ScheduleKind::dualpipe, 4, 8);
  ScheduleVerifyOptions options;
  options.costs = Costs({1, 1, 1, 3, 0, 100, 1000});
  options.cap_bytes = {2500};
  const Verification tried = Verification::of(schedule, options);
  CHECK(tried.describe().is_valid == 1 && tried.describe().has_bytes == 1 && tried.to_text().empty());
  CHECK(tried.trials().size() == 18 && tried.ranks().size() == 4);
  const std::vector<std::uint32_t> peaks = schedule.check();
  for (std::size_t rank = 0; rank < 4; rank++) {
    CHECK(tried.ranks()[rank].peak_live == peaks[rank]);
    CHECK(tried.ranks()[rank].peak_bytes == 2000 + 100 * std::uint64_t(peaks[rank]));
  }
  options.orders = actions_of(schedule);
  options.transports = VerifyTransport::asynchronous | VerifyTransport::grouped_tagged;
  const Verification given = Verification::of(schedule, options);
  CHECK(given.describe().is_valid == 1 && given.trials().size() == 2);
  CHECK(given.trials()[0].holds() && given.trials()[0].receives() == Receives::given);
  CHECK(given.trials()[1].transport() == VerifyTransport::grouped_tagged);
  CHECK((options.transports & VerifyTransport::asynchronous) == VerifyTransport::asynchronous);
}

void a_fault_is_found_and_its_counterexample_has_it_too() {
  const Schedule schedule = Schedule::create(ScheduleKind::gpipe, 2, 6);
  ScheduleVerifyOptions options;
  options.orders = actions_of(schedule);
  std::vector<Action> &first = options.orders[0];
  std::size_t i = 0;
  while (first[i].kind() != ActionKind::send) i++;
  const Action sent = first[i];
  CHECK(sent.message().kind() == MessageKind::activation && sent.peer == 1);
  first.erase(first.begin() + static_cast<std::ptrdiff_t>(i));
  const Verification verification = Verification::of(schedule, options);
  const ScheduleFinding finding = verification.findings().back();
  const auto index = static_cast<std::uint32_t>(verification.findings().size() - 1);
  CHECK(finding.kind() == ScheduleFindingKind::missing_message && finding.transports() == VerifyTransport::all);
  CHECK(finding.receives() == Receives::given && finding.has_counterexample == 1);
  CHECK((verification.finding_ranks(index) == std::vector<std::uint32_t>{0, 1}));
  CHECK(verification.finding_passes(index)[0].microbatch == sent.message().pass.microbatch);
  CHECK(verification.finding_text(index).find("rank 0 does not send it") != std::string::npos);
  CHECK(verification.to_text().find(verification.counterexample_text(index)) != std::string::npos);
  const Schedule smaller = verification.counterexample(index);
  CHECK(smaller.describe().num_microbatches == 1);
  ScheduleVerifyOptions again;
  for (std::uint32_t rank = 0; rank < 2; rank++)
    again.orders.push_back(verification.counterexample_actions(index, rank));
  CHECK(Verification::of(smaller, again).findings().back().kind() == ScheduleFindingKind::missing_message);
  Message message = sent.message();
  message.pass.microbatch = 0;
  again.orders[0].push_back(Action::send(message, 1));
  // Now it is there, but behind its wait.
  CHECK(Verification::of(smaller, again).findings()[0].kind() == ScheduleFindingKind::wait_without_send);
}

void a_csv_is_verified() {
  const std::string swapped = "0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1\n"
                              "1RECV_F1,1RECV_F0,1F0,1F1,1B0,1SEND_B0,1B1,1SEND_B1\n";
  ScheduleVerifyOptions options;
  options.transports = VerifyTransport::asynchronous | VerifyTransport::asynchronous_tagged;
  const Verification found = Verification::of_torch_csv(swapped, {2, 9}, TorchCsvFormat::compute_comms, options);
  CHECK(found.findings()[0].kind() == ScheduleFindingKind::fifo_mismatch);
  CHECK(found.describe().holds_for == DUALPIPE_VERIFY_ASYNCHRONOUS_TAGGED);
  CHECK(!found.trials()[0].holds() && found.trials()[0].kind() == ScheduleFindingKind::fifo_mismatch);
}

void what_makes_no_sense_is_refused() {
  const Schedule schedule = Schedule::create(ScheduleKind::gpipe, 2, 2);
  ScheduleVerifyOptions options;
  options.orders = actions_of(schedule);
  options.orders[1].push_back(Action::wait_send(Message()));
  const Error no_message = thrown_by<Error>([&] { Verification::of(schedule, options); });
  CHECK(no_message.status() == Status::invalid_argument);
  CHECK(std::string(no_message.what()).find("message.kind is 0, must be one of") != std::string::npos);
  options.orders.pop_back();
  const Error too_few = thrown_by<Error>([&] { Verification::of(schedule, options); });
  CHECK(std::string(too_few.what()).find("num_orders is 1, must be 2") != std::string::npos);
  options.orders.clear();
  options.cap_bytes = {1};
  CHECK(thrown_by<Error>([&] { Verification::of(schedule, options); }).status() == Status::invalid_argument);
  CHECK(thrown_by<Error>([&] { Verification::of(schedule).counterexample(0); }).status() == Status::invalid_argument);
}

} // namespace

int main() {
  a_valid_schedule_holds();
  a_fault_is_found_and_its_counterexample_has_it_too();
  a_csv_is_verified();
  what_makes_no_sense_is_refused();
}
