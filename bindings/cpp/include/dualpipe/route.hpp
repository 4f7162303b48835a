/// Routing one step: how many tokens of each expert go to each of its replicas, and which token goes where.
#ifndef DUALPIPE_ROUTE_HPP
#define DUALPIPE_ROUTE_HPP

#include <dualpipe/balance.hpp>
#include <dualpipe/cluster.h>
#include <dualpipe/route.h>
#include <dualpipe/span.hpp>
#include <dualpipe/status.hpp>
#include <dualpipe/token_map.h>

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <type_traits>
#include <utility>
#include <vector>

namespace dualpipe {

/// What is to be kept small besides the heaviest GPU: tile, gpu_price, node_price, ignore_senders.
struct RouteOptions : dualpipe_route_options {
  RouteOptions() : dualpipe_route_options DUALPIPE_ROUTE_OPTIONS_INIT {}
};

/// The sizes of a router's placement: num_layers, num_experts, num_slots, num_gpus, num_nodes.
struct RouterInfo : dualpipe_router_info {
  RouterInfo() : dualpipe_router_info DUALPIPE_ROUTER_INFO_INIT {}
};

/// How a step is routed: heaviest (no routing has a lighter heaviest GPU), bound (none has even with parts of
/// tokens), bottleneck_load, num_bottleneck_gpus, tokens_on_gpu, tokens_on_node.
struct Routing : dualpipe_routing {
  Routing() : dualpipe_routing DUALPIPE_ROUTING_INIT {}

  /// The tokens that each slot gets. Those of an expert's slots add up to the expert's.
  std::vector<std::uint32_t> quotas;
};

/// Shares of slots in their experts' tokens.
struct RoutingShares {
  std::vector<double> shares; ///< Of each slot; those of an expert add up to 1.
  double heaviest = 0;        ///< The heaviest GPU's load.
};

inline namespace DUALPIPE_ERRORS {

/// Routes the tokens of a step, of any layer of a placement. One thread at a time: give each its own. It stays usable
/// after a fork. Every call may give Status::busy and, for a layer or a list of a wrong length,
/// Status::invalid_argument.
class Router : public detail::Handle<dualpipe_router_t, dualpipe_router_free> {
public:
  using Handle::Handle;

  /// For all layers of a plan.
  static Result<Router> create(const ExpertPlan &plan) {
    dualpipe_router_t router = nullptr;
    const dualpipe_status status = dualpipe_router_create(plan.get(), &router);
    return detail::outcome(status, [&] { return Router(router); });
  }

  /// For a placement from anywhere: the expert in each slot of the cluster, layer after layer; -1 where there is
  /// none.
  static Result<Router> create(const dualpipe_cluster &cluster, std::uint32_t num_experts,
                               Span<const std::int64_t> slot_to_expert) {
    dualpipe_router_t router = nullptr;
    const dualpipe_status status = dualpipe_router_create_from_slots(&cluster, num_experts, slot_to_expert.data(),
                                                                     slot_to_expert.size(), &router);
    return detail::outcome(status, [&] { return Router(router); });
  }

  /// The sizes of its placement.
  Result<RouterInfo> describe() const {
    RouterInfo info;
    const dualpipe_status status = dualpipe_router_describe(get(), &info);
    return detail::outcome(status, [&] { return info; });
  }

  /// Routes a step of which the totals are known: the tokens of each expert.
  ///
  /// Errors: Status::invalid_argument for more than 2^32 - 1 tokens, or any to an expert that no live GPU has.
  Result<Routing> route(std::uint32_t layer, Span<const std::uint32_t> counts,
                        const RouteOptions &options = RouteOptions()) {
    return route_by(dualpipe_router_route, layer, counts, options);
  }

  /// Routes a step of which the senders are known: num_gpus rows of the tokens that each sends to each expert. Of all
  /// splits with the least heaviest GPU it takes one of the least price. Errors: as route.
  Result<Routing> route_from(std::uint32_t layer, Span<const std::uint32_t> counts,
                             const RouteOptions &options = RouteOptions()) {
    return route_by(dualpipe_router_route_from, layer, counts, options);
  }

  /// How many of its tokens each of num_gpus GPUs, from first_gpu on, sends to each slot, by the last route_from of
  /// this layer: num_gpus rows.
  Result<std::vector<std::uint32_t>> source_quotas(std::uint32_t layer, std::uint32_t first_gpu,
                                                   std::uint32_t num_gpus = 1) const {
    return detail::values<std::uint32_t>([&](std::uint32_t *quotas, std::size_t capacity, std::size_t *count) {
      return dualpipe_router_source_quotas(get(), layer, first_gpu, num_gpus, quotas, capacity, count);
    });
  }

  /// Each GPU's load by the last routing of this layer: tokens, or tiles times the tokens of a tile.
  Result<std::vector<std::uint64_t>> gpu_loads(std::uint32_t layer) const {
    return detail::values<std::uint64_t>([&](std::uint64_t *loads, std::size_t capacity, std::size_t *count) {
      return dualpipe_router_gpu_loads(get(), layer, loads, capacity, count);
    });
  }

  /// The GPUs of the bottleneck by the last routing of this layer: the experts that are on these GPUs only have its
  /// bottleneck_load.
  Result<std::vector<std::uint32_t>> bottleneck(std::uint32_t layer) const {
    return detail::values<std::uint32_t>([&](std::uint32_t *gpus, std::size_t capacity, std::size_t *count) {
      return dualpipe_router_bottleneck(get(), layer, gpus, capacity, count);
    });
  }

  /// The shares that make the heaviest GPU as light as can be if the experts have these loads.
  ///
  /// Errors: Status::invalid_argument for a load that is not finite, negative, or of an expert that no live GPU has.
  Result<RoutingShares> shares(std::uint32_t layer, Span<const float> loads) {
    RoutingShares made;
    std::size_t count = 0;
    double heaviest = 0;
    dualpipe_status status =
        dualpipe_router_shares(get(), layer, loads.data(), loads.size(), nullptr, 0, &count, &heaviest);
    if (status == DUALPIPE_OK) {
      made.shares.resize(count);
      status = dualpipe_router_shares(get(), layer, loads.data(), loads.size(), made.shares.data(), count, &count,
                                      &made.heaviest);
    }
    return detail::outcome(status, [&] { return std::move(made); });
  }

  /// The slot of each of a rank's tokens by quotas, -1 where there is no expert: any rank that is given the same
  /// finds the same, and each slot has its quota exactly when all tokens have been sent.
  ///
  /// choices: the experts of the tokens, [tokens, top_k], std::int32_t or std::int64_t, -1 for none; slots has room
  /// for as many. before: empty with the quotas of this rank's tokens alone, else the number of each expert's tokens
  /// on lower ranks, and in earlier chunks of this one.
  ///
  /// Errors: Status::invalid_argument also if an expert has more tokens than its quotas, Status::buffer_too_small.
  template <class Choices>
  Result<void> slots_by_quotas(std::uint32_t layer, Span<const std::uint32_t> quotas,
                               Span<const std::uint32_t> before, const Choices &choices, Span<std::int32_t> slots) {
    std::size_t count = 0;
    return detail::outcome(dualpipe_router_slots_by_quotas(
        get(), layer, quotas.data(), quotas.size(), before.data(), before.size(), std::data(choices),
        bytes_of(std::data(choices)), std::size(choices), slots.data(), slots.size(), &count));
  }

  /// The slot of each of a rank's tokens by shares, without counts. Empty shares stand for the plan's, or, if the
  /// router was made from slots, for equal ones. phase: another for each rank and step, such as step * num_gpus +
  /// rank. Choices and slots as for slots_by_quotas.
  ///
  /// Errors: Status::invalid_argument also if an expert with tokens has no share, Status::buffer_too_small.
  template <class Choices>
  Result<void> slots_by_shares(std::uint32_t layer, Span<const double> shares, std::uint64_t phase,
                               const Choices &choices, Span<std::int32_t> slots) {
    std::size_t count = 0;
    return detail::outcome(dualpipe_router_slots_by_shares(
        get(), layer, shares.data(), shares.size(), phase, std::data(choices), bytes_of(std::data(choices)),
        std::size(choices), slots.data(), slots.size(), &count));
  }

private:
  template <class Id>
  static constexpr std::uint32_t bytes_of(const Id *) {
    static_assert(std::is_same_v<Id, std::int32_t> || std::is_same_v<Id, std::int64_t>,
                  "experts are std::int32_t or std::int64_t");
    return sizeof(Id);
  }

  template <class Function>
  Result<Routing> route_by(Function function, std::uint32_t layer, Span<const std::uint32_t> counts,
                           const RouteOptions &options) {
    Routing routing;
    dualpipe_router_info info = DUALPIPE_ROUTER_INFO_INIT;
    dualpipe_status status = dualpipe_router_describe(get(), &info);
    if (status == DUALPIPE_OK) {
      std::size_t count = 0;
      routing.quotas.resize(info.num_slots);
      status = function(get(), layer, &options, counts.data(), counts.size(), routing.quotas.data(), info.num_slots,
                        &count, &routing);
    }
    return detail::outcome(status, [&] { return std::move(routing); });
  }
};

} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_ROUTE_HPP
