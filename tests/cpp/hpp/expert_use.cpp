// Routers and transfers of experts: what a step and a change of placement take.
#include <dualpipe.hpp>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "throws.hpp"

using namespace dualpipe;

namespace {

// GPU 0 has experts 0 and 1, GPU 1 has 1 and 2.
const std::vector<std::int64_t> two_gpus = {0, 1, 1, 2};

dualpipe_cluster cluster(std::uint32_t num_gpus, std::uint32_t num_slots) {
  dualpipe_cluster cluster = DUALPIPE_CLUSTER_INIT;
  cluster.num_gpus = num_gpus;
  cluster.num_slots = num_slots;
  return cluster;
}

void steps_are_routed() {
  Router router = Router::create(cluster(2, 4), 3, two_gpus);
  const RouterInfo info = router.describe();
  CHECK(info.num_layers == 1 && info.num_experts == 3 && info.num_slots == 4 && info.num_gpus == 2);
  CHECK(info.num_nodes == 1);

  const Routing totals = router.route(0, {30, 40, 10});
  CHECK((totals.quotas == std::vector<std::uint32_t>{30, 10, 30, 10}));
  CHECK(totals.heaviest == 40 && totals.bottleneck_load == 80 && totals.num_bottleneck_gpus == 2);
  CHECK((router.gpu_loads(0) == std::vector<std::uint64_t>{40, 40}));
  CHECK((router.bottleneck(0) == std::vector<std::uint32_t>{0, 1}));

  RouteOptions tiles;
  tiles.tile = 16;
  CHECK(router.route(0, {30, 40, 10}, tiles).heaviest == 48);

  const Routing near = router.route_from(0, {20, 15, 5, 10, 25, 5});
  CHECK(near.heaviest == 40 && near.tokens_on_gpu == 60 && near.tokens_on_node == 80);
  const std::vector<std::uint32_t> of_both = router.source_quotas(0, 0, 2);
  CHECK(of_both.size() == 8);
  for (std::size_t slot = 0; slot < 4; ++slot) CHECK(of_both[slot] + of_both[4 + slot] == near.quotas[slot]);
  CHECK((router.source_quotas(0, 1) == std::vector<std::uint32_t>(of_both.begin() + 4, of_both.end())));
  CHECK(thrown_by<Error>([&] { router.source_quotas(0, 2); }).status() == Status::invalid_argument);
  CHECK(thrown_by<Error>([&] { router.route(1, {1, 1, 1}); }).status() == Status::invalid_argument);
}

void tokens_find_their_slots() {
  Router router = Router::create(cluster(2, 4), 3, two_gpus);
  const Routing routing = router.route(0, {2, 4, 1});
  const std::array<std::int32_t, 8> narrow = {1, 0, 1, 2, 1, 0, 1, -1};
  const std::vector<std::int64_t> wide(narrow.begin(), narrow.end());
  std::vector<std::int32_t> slots(8), same(8);
  router.slots_by_quotas(0, routing.quotas, {}, narrow, slots);
  router.slots_by_quotas(0, routing.quotas, {}, wide, same);
  CHECK(slots == same && slots[7] == -1);
  std::vector<std::uint32_t> sent(4);
  for (std::size_t i = 0; i < 7; ++i) {
    CHECK(two_gpus[static_cast<std::size_t>(slots[i])] == narrow[i]);
    sent[static_cast<std::size_t>(slots[i])] += 1;
  }
  CHECK(sent == routing.quotas);
  // The last two choices alone, as another rank has them.
  const std::vector<std::int32_t> last = {0, 1};
  router.slots_by_quotas(0, routing.quotas, {1, 3, 1}, last, same);
  CHECK(same[0] == slots[5] && same[1] == slots[6]);
  std::vector<std::int32_t> few(7);
  CHECK(thrown_by<Error>([&] { router.slots_by_quotas(0, routing.quotas, {}, narrow, few); }).status() ==
        Status::buffer_too_small);

  const RoutingShares shares = router.shares(0, {30, 40, 10});
  CHECK(shares.shares.size() == 4 && shares.heaviest > 39.999 && shares.heaviest < 40.001);
  CHECK(shares.shares[1] > 0.249 && shares.shares[1] < 0.251);
  const std::vector<std::int32_t> ones(400, 1);
  std::vector<std::int32_t> found(400);
  router.slots_by_shares(0, shares.shares, 7, ones, found);
  CHECK(std::accumulate(found.begin(), found.end(), 0) > 690); // 100 times slot 1, 300 times slot 2
  router.slots_by_shares(0, {}, 7, ones, found);
  CHECK(std::abs(std::accumulate(found.begin(), found.end(), 0) - 600) < 5);
}

void a_plan_gives_a_router() {
  BalanceOptions options(2, 3, 4, 2);
  Router router;
  {
    const ExpertPlan plan = ExpertPlan::create(options, {4, 1, 1, 1, 1, 4});
    router = Router::create(plan);
  }
  CHECK(router.describe().num_layers == 2);
  CHECK(router.route(0, {40, 10, 10}).heaviest == 30); // expert 0 has two replicas there
  CHECK(router.route(1, {40, 10, 10}).heaviest == 40); // and one here
}

void experts_are_transferred() {
  dualpipe_cluster three = cluster(3, 0);
  const std::array<std::uint32_t, 3> slots = {1, 1, 2}, nodes = {0, 0, 1};
  three.slots_per_gpu = slots.data();
  three.node_of_gpu = nodes.data();
  // In layer 0 slots 0 and 1 swap, and slot 3 gets what slot 2 has; in layer 1 it gets what slot 0 has.
  const std::vector<std::int64_t> from = {0, 1, 2, 3, 3, 2, 1, 0}, to = {1, 0, 2, 2, 3, 2, 1, 3};
  ExpertTransferOptions options;
  options.tensor_bytes = {1000, 24};
  options.gains = {1, 2};
  const ExpertTransfers transfers = ExpertTransfers::create(three, 4, from, to, options);
  transfers.check();
  const ExpertTransfersInfo info = transfers.describe();
  CHECK(info.num_layers == 2 && info.num_copies == 5 && info.bytes_per_expert == 1024 && info.num_lost == 0);
  CHECK(info.other_node_bytes == 1024 && info.same_gpu_bytes + info.same_node_bytes == 4096);
  CHECK(info.least_rounds <= info.num_rounds && info.num_staging == 1 && info.num_slots == 4 && info.num_gpus == 3);
  const std::vector<ExpertLayerTransfers> layers = transfers.layers();
  CHECK(layers.size() == 2 && layers[0].layer == 1 && layers[0].num_copies == 1 && layers[1].num_copies == 4);
  const std::vector<std::uint32_t> staging = transfers.staging();
  CHECK(staging.size() == 3 && staging[0] + staging[1] == 1 && staging[2] == 0);

  const std::vector<ExpertCopy> copies = transfers.copies();
  std::size_t num_of_gpus = 0;
  for (std::uint32_t gpu = 0; gpu < 3; ++gpu) num_of_gpus += transfers.for_gpu(gpu).size();
  std::size_t num_parts = 0;
  for (const ExpertCopy &copy : copies) {
    num_parts += copy.link() == ExpertLink::same_gpu ? 1 : 2;
    CHECK((copy.link() == ExpertLink::other_node) == (nodes[copy.from_gpu] != nodes[copy.to_gpu]));
  }
  CHECK(copies.size() == 5 && num_parts == num_of_gpus);
  CHECK(transfers.placement_after(0) == from && transfers.placement_after(2) == to);

  const std::array<std::uint8_t, 3> alive = {1, 1, 0};
  three.is_alive = alive.data();
  const ExpertTransfers some = ExpertTransfers::create(three, 4, {0, 1, 2, 3}, {0, 2, -1, -1});
  const std::vector<LostExpert> lost = some.lost();
  CHECK(lost.size() == 1 && lost[0].expert == 2 && lost[0].slot == 1);
  const auto uneven = [&] { return ExpertTransfers::create(three, 4, {0, 1, 2, 3}, {0, 2, -1}); };
  CHECK(thrown_by<Error>(uneven).status() == Status::invalid_argument);
}

} // namespace

int main() {
  steps_are_routed();
  tokens_find_their_slots();
  a_plan_gives_a_router();
  experts_are_transferred();
}
