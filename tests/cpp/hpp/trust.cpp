// Placements one can trust, in C++: verify, hashes, memory, heat maps, and replays with callbacks that throw.
#include <dualpipe.hpp>

#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "throws.hpp"

using namespace dualpipe;

namespace {

const std::vector<std::int64_t> good = {0, 1, 2, 0, 1, 2};

void findings_say_where_and_what() {
  const Cluster cluster(3, 6, 3);
  const Goal goal(1, 3);
  CHECK(expert_verify(cluster, goal, UnverifiedPlacement(good)).is_ok());
  CHECK(expert_verify_text(cluster, goal, UnverifiedPlacement(good)).empty());

  std::vector<std::int64_t> wrong = good;
  wrong[2] = (std::int64_t{1} << 32) + 2;
  UnverifiedPlacement placement(wrong);
  const std::array<std::int64_t, 3> counts = {2, 2, 1};
  const std::array<float, 3> loads = {4, 1, 1};
  const std::array<double, 6> shares = {0.5, 1, 0, 0.5, 0, 1};
  const std::array<std::int64_t, 6> table = {0, 3, 1, 4, 5, 5};
  placement.set_replica_counts(counts);
  placement.set_limit(loads, 1.2);
  placement.set_shares(shares);
  placement.set_expert_to_slots(table);
  const Report report = expert_verify(cluster, goal, placement);
  CHECK(!report.is_ok() && report.num_errors == 2 && report.count(FindingKind::not_an_expert) == 1);
  const Finding &finding = report.findings.front();
  CHECK(finding.kind() == FindingKind::not_an_expert && finding.severity() == Severity::error);
  CHECK(finding.slot == 2 && finding.value == wrong[2] && finding.expert == none);
  CHECK(report.count(FindingKind::wrong_slot) == 1 && report.num_warnings == report.count(FindingKind::overloaded));
  CHECK(expert_verify_text(cluster, goal, placement).find("slot 2 holds 4294967298") != std::string::npos);

  // Lists that do not fit each other are refused, not read behind their ends.
  const std::array<double, 1> too_few = {1};
  const std::array<float, 2> too_few_loads = {1, 1};
  UnverifiedPlacement by_shares(good), by_loads(good);
  by_shares.set_shares(too_few);
  by_loads.set_replica_counts(counts);
  by_loads.set_limit(too_few_loads, 2);
  for (const UnverifiedPlacement &each : {by_shares, by_loads})
    CHECK(thrown_by<Error>([&] { expert_verify(cluster, goal, each); }).status() == Status::invalid_argument);
  CHECK(thrown_by<Error>([&] { expert_hash(cluster, good, too_few); }).status() == Status::invalid_argument);
  CHECK(thrown_by<Error>([&] { expert_gpu_loads(cluster, 3, good, too_few, loads); }).status() ==
        Status::invalid_argument);
}

void hashes_and_memory() {
  const std::vector<std::int64_t> slots = {0, 1, 2, 0};
  const std::uint64_t hash = expert_hash(Cluster(2, 4), slots);
  CHECK(hash == 0xc749d0bc92281331u);
  CHECK(expert_hash(Cluster(2, 4), slots, {0.5, 1.0, 1.0, 0.5}) != hash);
  const HashAgreement agreement = expert_hash_agree({hash, 1, hash, 2});
  CHECK(agreement.hash == hash && agreement.ranks == (std::vector<std::uint32_t>{1, 3}));
  ExpertTraffic traffic;
  traffic.num_layers = 58, traffic.num_experts = 256, traffic.top_k = 8;
  traffic.hidden = 7168, traffic.tokens_per_rank = 128;
  CHECK(expert_buffers(Cluster(32, 288), traffic).low_latency_bytes >> 20 == 2017);
}

void loads_are_drawn() {
  const Cluster cluster(3, 6, 3);
  const std::array<float, 3> loads = {8, 1, 3};
  const std::vector<double> gpus = expert_gpu_loads(cluster, 3, good, {}, loads);
  CHECK(gpus == (std::vector<double>{4.5, 5.5, 2}));
  CHECK(expert_node_loads(Cluster({2, 2, 2}, {0, 0, 1}), gpus) == (std::vector<double>{10, 2}));
  const std::array<HeatMapPanel, 2> panels = {HeatMapPanel{"before", cluster, gpus},
                                              HeatMapPanel{"after", cluster, {4, 4, 4}}};
  CHECK(heat_map(panels, HeatMapFormat::svg).find("mean imbalance 1.375") != std::string::npos);
  CHECK(heat_map(panels, HeatMapFormat::text).rfind("before\n", 0) == 0);
}

void policies_are_replayed() {
  // The load of expert 0 grows from step to step.
  std::vector<float> loads;
  for (int step = 1; step <= 5; step++) loads.insert(loads.end(), {static_cast<float>(step), 1, 1, 1});
  const Cluster cluster(2, 6);
  const Goal goal(1, 4);
  ReplayOptions options(2, 1);
  const std::vector<std::int64_t> initial = {0, 0, 1, 2, 3, 1};
  options.set_initial(initial);
  options.with_bounds = 1;
  std::vector<Policy> policies;
  policies.push_back(Policy::none());
  policies.push_back(Policy::deepseek());
  policies.push_back(Policy::refined().named("ours"));
  policies.push_back(Policy::within_moves(1));
  policies.push_back(Policy::within_price(2, {1, 2}));
  policies.push_back(Policy::reaching(1.1));
  std::uint32_t steps = 0;
  policies.emplace_back("mine", [&](const PolicyPast &past) -> std::optional<PolicyPlacement> {
    CHECK(past.num_layers() == 1 && past.num_experts() == 4 && past.loads().size() == 4 * past.num_steps());
    CHECK(past.window().size() == 8 && past.window().end() == past.loads().end() && past.shares().empty());
    steps += past.num_steps();
    if (past.num_steps() == 2) return std::nullopt;
    return PolicyPlacement{{past.slot_to_expert().begin(), past.slot_to_expert().end()}, {}};
  });
  const Replay replay = Replay::create(cluster, goal, loads, options, policies);
  const std::vector<ReplayRun> runs = replay.runs();
  CHECK(runs.size() == 7 && steps == 2 + 3 + 4 && runs[6].num_new == 2 && runs[6].moves.same_gpu == 0);
  CHECK(runs[6].imbalance == runs[0].imbalance && runs[2].imbalance < runs[0].imbalance);
  for (const ReplayRun &run : runs) CHECK(run.lower_bound > 0 && run.lower_bound <= run.imbalance);
  CHECK(runs[3].moves.same_node + runs[3].moves.other_node <= 3);
  const std::vector<ReplayWindow> windows = replay.windows(6);
  CHECK(windows.size() == 3 && windows[0].step == 2 && windows[0].is_new == 0 && windows[1].is_new == 1);
  CHECK(replay.layers(2)[0].imbalance == runs[2].imbalance);
  CHECK(replay.layers(2, 1)[0].imbalance == replay.windows(2)[1].imbalance);
  const std::vector<double> gpus = replay.gpu_loads(0);
  CHECK(gpus.size() == 2 && gpus[0] + gpus[1] == 8);
  CHECK(replay.to_text().find("\nours ") != std::string::npos);

  const std::array<Policy, 1> throwing = {
      Policy("throwing", [](const PolicyPast &) -> std::optional<PolicyPlacement> { throw std::range_error("no"); })};
  const auto thrown = thrown_by<std::range_error>([&] { Replay::create(cluster, goal, loads, options, throwing); });
  CHECK(thrown.what() == std::string("no"));
  const std::array<Policy, 1> short_one = {
      Policy("short", [](const PolicyPast &) { return std::optional<PolicyPlacement>(PolicyPlacement{{0}, {}}); })};
  const Error error = thrown_by<Error>([&] { Replay::create(cluster, goal, loads, options, short_one); });
  CHECK(error.status() == Status::callback_failed);
}

} // namespace

int main() {
  findings_say_where_and_what();
  hashes_and_memory();
  loads_are_drawn();
  policies_are_replayed();
}
