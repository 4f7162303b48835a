// Loads of experts: counted, kept in files of other programs, and judged for whether they are worth a move.
#include <dualpipe.hpp>

#include <cstdint>
#include <string>
#include <vector>

#include "throws.hpp"

using namespace dualpipe;

namespace {

using Slots = std::vector<std::int64_t>;

LoadMonitor of_rank(std::uint32_t num_ranks = 1) {
  LoadMonitorOptions options(2, 3);
  options.window = 8;
  options.num_ranks = num_ranks;
  return LoadMonitor::create(options);
}

void ranks_are_merged_in_any_order() {
  LoadMonitor first = of_rank(2), second = of_rank(2);
  CHECK(first.record_physical(5, Slots{0, 1, 2, -1}, {1, 2, 5, 0}));
  CHECK(second.record_physical(5, Slots{2, 0, 1, 1}, {3, 4, 7, 8}));
  CHECK(second.record(6, {1, 1, 1, 1, 1, 1}) && second.record_layer(6, 1, {1, 2, 3}));
  const std::vector<std::uint8_t> state = first.save();
  first.merge(second);
  second.merge(LoadMonitor::load(state));
  CHECK(first.save() == second.save());
  CHECK((first.loads(MonitorLoads::sum) == std::vector<float>{5, 2, 3, 0, 15, 5}));
  CHECK(first.loads() == first.loads(MonitorLoads::steps));
  CHECK(first.loads(MonitorLoads::steps, Reported::by_any).size() == 12);
  CHECK((first.counts(Reported::by_any) == std::vector<std::uint64_t>{6, 3, 4, 2, 18, 9}));
  CHECK((first.step_numbers() == std::vector<std::uint64_t>{5}));
  CHECK((first.incomplete_steps() == std::vector<std::uint64_t>{6}));
  CHECK((first.reports(6) == std::vector<std::uint32_t>{1, 2}));
  const LoadMonitorInfo info = first.describe();
  CHECK(info.num_layers == 2 && info.window == 8 && info.half_life == 2 && info.newest_step == 6);
  CHECK(thrown_by<Error>([&] { first.merge(second); }).status() == Status::invalid_argument);
  CHECK(thrown_by<Error>([&] { first.record_physical(7, Slots{0, 1}, {1, 1, 1, 1}); }).status() ==
        Status::invalid_argument);
}

void counters_count_by_what_they_grew() {
  LoadMonitor monitor = of_rank();
  const Slots slots = {0, 1, 2, 0};
  monitor.set_counters({1, 1, 1, 1});
  monitor.record_cumulative(0, slots, {2, 3, 4, 5});
  monitor.set_counters();
  CHECK(monitor.record_cumulative(1, slots, {9, 9, 9, 9}));
  CHECK((monitor.loads(MonitorLoads::steps) == std::vector<float>{1, 2, 0, 4, 0, 3, 9, 9, 0, 9, 0, 9}));
  CHECK(monitor.describe().num_counters == 2);
}

void balancedness_is_what_vllm_logs() {
  LoadMonitor monitor = of_rank();
  const Cluster cluster(2, 4);
  const Slots slots = {0, 1, 0, 2, 0, 1, 2, 2};
  monitor.record(0, {4, 6, 2, 0, 1, 3});
  const Balancedness equal = monitor.balancedness(cluster, slots);
  CHECK(equal.overall == 8 / 11.0 && (equal.layers == std::vector<double>{6 / 8.0, 2 / 3.0}));
  CHECK(monitor.balancedness(cluster, slots, {0, 1, 1, 1, 1, 1, 0.5, 0.5}).layers[0] == 1);
  CHECK(balancedness(cluster, {8, 4, 1, 3}).overall == equal.overall);
  CHECK(thrown_by<Error>([&] { monitor.balancedness(cluster, slots, {1, 1}); }).status() == Status::invalid_argument);
}

void histories_are_recorded_written_and_read() {
  LoadHistoryOptions options(1, 2);
  options.model = "m";
  LoadHistory history = LoadHistory::create(options);
  history.append_slots(7, Slots{0, 1, 0}, {10, 1, 5});
  history.append(8, {1, 2, 3, 4});
  const LoadHistory again = LoadHistory::read(history.write(LoadFormat::vllm), LoadFormat::vllm);
  CHECK((again.loads() == std::vector<float>{15, 1, 1, 2, 3, 4}) && again.model() == "m");
  CHECK((again.step_numbers() == std::vector<std::uint64_t>{7, 8, 9}));
  CHECK((again.slot_to_expert(0) == Slots{0, 1, 0}) && (again.slot_loads(0) == std::vector<float>{10, 1, 5}));
  CHECK(history.slot_loads(1).empty() && again.describe().num_steps == 3);
  CHECK(history.write(LoadFormat::csv) == "15,1\n\n1,2\n\n3,4\n");
  CHECK(LoadHistory::read(history.write(LoadFormat::json), LoadFormat::json).loads() == history.loads());
  const Error bad = thrown_by<Error>([] { LoadHistory::read("1,x", LoadFormat::csv); });
  CHECK(std::string(bad.what()).find("line 1, column 2 is \"x\"") != std::string::npos);
  CHECK(thrown_by<Error>([] { LoadHistory::read({}, LoadFormat::csv); }).status() == Status::invalid_argument);
  CHECK(thrown_by<Error>([&] { history.append_slots(9, Slots{0}, {1, 2}); }).status() == Status::invalid_argument);
}

void what_other_engines_have_is_read() {
  const std::string map = write_expert_map(Cluster(std::vector<std::uint32_t>{2, 1}), {0, 1, 2});
  CHECK((read_expert_map_slots(map) == Slots{0, 1, 2}));
  CHECK((read_expert_map_gpus(map) == std::vector<std::uint32_t>{2, 1}));
  CHECK((logical_loads(1, 2, Slots{0, 1, 0}, Slots{1, 2, 3, 10, 20, 30}) == std::vector<float>{4, 2, 40, 20}));
  CHECK(thrown_by<Error>([] { read_expert_map_slots(""); }).status() == Status::invalid_argument);
}

void a_move_is_made_if_it_pays() {
  std::vector<std::uint32_t> counts;
  for (int step = 0; step < 8; ++step) counts.insert(counts.end(), {5, 3, 1, 3});
  const Slots current = {0, 1, 2, 3}, planned = {0, 2, 1, 3};
  const std::vector<double> even(4, 1.0);
  RebalanceProposal proposal(1, 4);
  proposal.horizon = 100;
  proposal.expert_seconds = 1;
  proposal.price_seconds = 24;
  const Cluster cluster(2, 4);
  const RebalanceDecision found = should_rebalance(cluster, proposal, counts, {current}, {planned, even});
  CHECK(found && found.reason() == RebalanceReason::worthwhile && found.gain_seconds == 25);
  proposal.price_seconds = 26;
  const RebalanceDecision dear = should_rebalance(cluster, proposal, counts, {current}, {planned});
  CHECK(!dear && dear.reason() == RebalanceReason::below_cost && dear.moved_replicas == 2);
  const Slots shorter = {0, 1};
  CHECK(thrown_by<Error>([&] { should_rebalance(cluster, proposal, counts, {current}, {shorter}); }).status() ==
        Status::invalid_argument);
  CHECK(thrown_by<Error>([&] {
          should_rebalance(cluster, proposal, counts, {current, {even.data(), 2}}, {planned});
        }).status() == Status::invalid_argument);
}

} // namespace

int main() {
  ranks_are_merged_in_any_order();
  counters_count_by_what_they_grew();
  balancedness_is_what_vllm_logs();
  histories_are_recorded_written_and_read();
  what_other_engines_have_is_read();
  a_move_is_made_if_it_pays();
}
