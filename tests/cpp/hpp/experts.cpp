// Expert plans of the C++ header: any cluster and goal, a window, few moves, and placements from anywhere.
#include <dualpipe.hpp>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "throws.hpp"

using namespace dualpipe;

namespace {

bool near(double a, double b) { return std::abs(a - b) < 1e-3; }

/// Loads that fall off, the heaviest first; `shift` rotates them.
std::vector<float> loads_of(std::size_t experts, std::size_t shift = 0) {
  std::vector<float> loads(experts);
  for (std::size_t i = 0; i < experts; i++) {
    loads[(i + shift) % experts] = 1000.0F / static_cast<float>(i + 3) + static_cast<float>(i % 5);
  }
  return loads;
}

// The example of vLLM-Ascend's FlashLB, both of whose optima are known.
void the_best_of_both_splits_is_found() {
  const std::vector<float> loads = {600, 560, 120, 120, 20, 10, 10, 10};
  for (const auto &[split, heaviest] : {std::pair(Split::equal, 590.0 / 3), std::pair(Split::weighted, 181.25)}) {
    Goal goal(1, 8);
    goal.set_split(split);
    const ExpertPlan plan = ExpertPlan::balance(Cluster(8, 16), goal, loads);
    const std::vector<double> gpus = plan.gpu_loads(loads);
    CHECK(gpus.size() == 8 && near(*std::max_element(gpus.begin(), gpus.end()), heaviest));
    CHECK(near(plan.node_loads(loads).at(0), 1450) && near(plan.layers().at(0).imbalance * 181.25, heaviest));
    const ExpertPlanInfo info = plan.describe();
    CHECK(info.split() == split && info.num_slots == 16 && info.num_gpus == 8 && info.num_experts == 8);
    double sum = 0;
    for (const double share : plan.shares()) sum += share;
    CHECK(near(sum, 8));
  }
}

void clusters_may_be_uneven_and_partly_dead() {
  const std::vector<float> loads = loads_of(8);
  Cluster cluster({3, 2, 0, 5}, {0, 0, 1, 1});
  cluster.set_alive({true, false, true, true});
  const std::vector<std::int64_t> slots = ExpertPlan::balance(cluster, Goal(1, 8), loads, 0).slot_to_expert();
  CHECK(slots.size() == 10 && slots[3] == -1 && slots[4] == -1 && std::count(slots.begin(), slots.end(), -1) == 2);

  const auto refused = [&](const Cluster &bad, const char *words) {
    const Error error = thrown_by<Error>([&] { ExpertPlan::balance(bad, Goal(1, 8), loads); });
    CHECK(error.status() == Status::invalid_argument && std::string(error.what()).find(words) != std::string::npos);
  };
  refused(Cluster({4, 4}, {0}), "node_of_gpu[1] is 4294967295, must be 0 to 1");
  refused(Cluster({4, 4}, {0, 0, 0}), "node_of_gpu[1] is 4294967295, must be 0 to 1");
  refused(Cluster(std::vector<std::uint32_t>{}), "num_gpus is 0");
  cluster.set_alive({true});
  refused(cluster, "is_alive[1] is 2");
}

void groups_stay_together_or_have_a_price() {
  std::vector<float> loads = loads_of(32);
  const Cluster cluster(8, 40, 2);
  Goal goal(1, 32);
  goal.set_groups(4, GroupRule::whole);
  const ExpertPlan whole = ExpertPlan::balance(cluster, goal, loads);
  const std::vector<std::int64_t> slots = whole.slot_to_expert();
  for (std::int64_t group = 0; group < 4; group++) {
    const auto is_of = [&](std::int64_t expert) { return expert / 8 == group; };
    CHECK(std::any_of(slots.begin(), slots.begin() + 20, is_of) != std::any_of(slots.begin() + 20, slots.end(), is_of));
  }
  CHECK(near(whole.layers()[0].away, 0) && whole.layers()[0].node_bound >= 1);
  goal.set_groups(4, GroupRule::priced, 0.01);
  const LayerBalance cheap = ExpertPlan::balance(cluster, goal, loads).layers()[0];
  goal.set_groups(4, GroupRule::priced, 100);
  const LayerBalance dear = ExpertPlan::balance(cluster, goal, loads).layers()[0];
  CHECK(cheap.imbalance < dear.imbalance && cheap.away > dear.away);
}

void few_moves_gain_much() {
  const Cluster cluster(8, 48, 2);
  const Goal goal(1, 32);
  const std::vector<std::int64_t> was = ExpertPlan::balance(cluster, goal, loads_of(32)).slot_to_expert();
  const std::vector<float> loads = loads_of(32, 1);
  const double stale = ExpertPlan::from_slots(cluster, goal, was, loads).layers()[0].imbalance;
  CurrentPlacement current(was);

  const ExpertPlan few = ExpertPlan::balance(cluster, goal, loads, current.within_moves(6));
  const MoveCount moved = expert_moves(cluster, 32, was, few.slot_to_expert()).at(0);
  CHECK(moved.moves > 0 && moved.moves <= 6 && few.layers()[0].imbalance < stale);

  const std::vector<MovePoint> curve = expert_move_curve(cluster, goal, loads, was, 100);
  CHECK(curve.size() > 2 && curve[0].moves == 0 && near(curve[0].imbalance, stale));
  const double target = curve[curve.size() / 2].imbalance;
  const ExpertPlan reached = ExpertPlan::balance(cluster, goal, loads, current.reaching(target, {1, 3}));
  CHECK(reached.layers()[0].imbalance <= target + 1e-9);

  const ExpertPlan cheap = ExpertPlan::balance(cluster, goal, loads, current.within_price(6, {1, 3}), 2);
  const MoveCount paid = expert_moves(cluster, 32, was, cheap.slot_to_expert()).at(0);
  CHECK(paid.same_node + 3 * paid.other_node <= 6 && paid.lost == 0);

  const ExpertPlan anew = ExpertPlan::balance(cluster, goal, loads, CurrentPlacement(was));
  CHECK(anew.layers()[0].imbalance <= few.layers()[0].imbalance + 1e-9);
  const Error error = thrown_by<Error>([&] { expert_moves(cluster, 32, was, {1, 2}); });
  CHECK(error.status() == Status::invalid_argument);
}

void placements_come_from_anywhere() {
  Goal goal(1, 3);
  goal.set_split(Split::weighted);
  const ExpertPlan plan = ExpertPlan::from_slots(Cluster(2, 4), goal, {0, 1, 2, 0}, {100, 50, 10}, {0.25, 1, 1, 0.75});
  CHECK(near(plan.gpu_loads({100, 50, 10}).at(0), 75) && near(plan.layers()[0].imbalance, 85.0 / 80));
  const Error error = thrown_by<Error>([] { ExpertPlan::from_slots(Cluster(2, 4), Goal(1, 3), {0, 2, 2, 0}); });
  CHECK(std::string(error.what()).find("layer 0: expert 1 is on no live GPU") != std::string::npos);
}

} // namespace

int main() {
  the_best_of_both_splits_is_found();
  clusters_may_be_uneven_and_partly_dead();
  groups_stay_together_or_have_a_price();
  few_moves_gain_much();
  placements_come_from_anywhere();
}
