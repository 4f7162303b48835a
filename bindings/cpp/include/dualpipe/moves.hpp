/// From the placement that is there: how much may change, what a change moves, what a move gains.
#ifndef DUALPIPE_MOVES_HPP
#define DUALPIPE_MOVES_HPP

#include <dualpipe/cluster.hpp>
#include <dualpipe/moves.h>
#include <dualpipe/span.hpp>
#include <dualpipe/status.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace dualpipe {

/// How much of a placement may change, of each layer for itself. What must move, as a GPU died or the goal forbids
/// what is there, comes on top.
enum class Budget : std::uint32_t {
  free = DUALPIPE_BUDGET_FREE,   ///< All: it is placed anew, and numbered so that as much as possible stays.
  moves = DUALPIPE_BUDGET_MOVES, ///< At most so many moves: experts that come to a GPU that did not have them.
  price = DUALPIPE_BUDGET_PRICE, ///< Moves of at most this price.
  reach = DUALPIPE_BUDGET_REACH, ///< The cheapest that reaches an imbalance, or comes as near to it as can be found.
};

/// What a move costs, in any unit; finite, not negative.
struct MovePrices {
  double same_node = 1;  ///< Within a node.
  double other_node = 1; ///< Between nodes.
};

/// The placement that experts lie by, and what may change: all, unless one of the others is said. It borrows the
/// placement.
struct CurrentPlacement : dualpipe_current_placement {
  /// slots: the expert in each slot of the cluster, layer after layer, -1 where there is none. What slots of dead GPUs
  /// hold does not matter.
  explicit CurrentPlacement(Span<const std::int64_t> slots)
      : dualpipe_current_placement DUALPIPE_CURRENT_PLACEMENT_INIT {
    slot_to_expert = slots.data();
    num_slots = slots.size();
  }

  /// At most so many moves.
  CurrentPlacement &within_moves(std::uint64_t most) noexcept {
    set(Budget::moves, {0, 0});
    max_moves = most;
    return *this;
  }

  /// Moves of at most this price.
  CurrentPlacement &within_price(double most, MovePrices prices = {}) noexcept {
    set(Budget::price, prices);
    max_price = most;
    return *this;
  }

  /// The cheapest that reaches this imbalance, at least 1.
  CurrentPlacement &reaching(double target, MovePrices prices = {}) noexcept {
    set(Budget::reach, prices);
    imbalance = target;
    return *this;
  }

private:
  void set(Budget kind, MovePrices prices) noexcept {
    budget = static_cast<std::uint32_t>(kind);
    max_moves = 0;
    max_price = imbalance = 0;
    same_node_price = prices.same_node;
    other_node_price = prices.other_node;
  }
};

/// What leads from one placement of a layer to another: moves, of which same_node, other_node and lost by where the
/// nearest replica is at first, and same_gpu, which are none.
using MoveCount = dualpipe_move_count;

/// A point of the curve of imbalance against moves: layer, moves, imbalance.
using MovePoint = dualpipe_move_point;

inline namespace DUALPIPE_ERRORS {

/// Counts for each layer what leads from a placement to another, both the expert in each slot of the cluster, layer
/// after layer, -1 where there is none.
///
/// Errors: Status::invalid_argument.
inline Result<std::vector<MoveCount>> expert_moves(const dualpipe_cluster &cluster, std::uint32_t num_experts,
                                                   Span<const std::int64_t> from, Span<const std::int64_t> to) {
  // C has one number for both: of placements that are not equally long it gets one that is refused.
  const std::size_t num_slots = from.size() == to.size() ? from.size() : 0;
  return detail::values<MoveCount>([&](MoveCount *counts, std::size_t capacity, std::size_t *count) {
    return dualpipe_expert_moves(&cluster, num_experts, from.data(), to.data(), num_slots, counts, capacity, count);
  });
}

/// What imbalance can be had for how many moves from a placement, up to max_moves (at most 2^20) or to where no more
/// is gained: for each layer points with more and more moves and less and less imbalance, of which the first is the
/// current placement, made valid where it is not. Every point was found by a search, which is no proof that none is
/// lower.
///
/// Errors: Status::invalid_argument.
inline Result<std::vector<MovePoint>> expert_move_curve(const dualpipe_cluster &cluster, const dualpipe_goal &goal,
                                                        Span<const float> loads,
                                                        Span<const std::int64_t> slot_to_expert,
                                                        std::uint32_t max_moves) {
  const std::size_t most_of_layer = std::min<std::size_t>(max_moves, 511) + 1;
  const std::size_t expected = std::min<std::size_t>(goal.num_layers, 4096) * most_of_layer;
  return detail::values<MovePoint>(
      [&](MovePoint *points, std::size_t capacity, std::size_t *count) {
        return dualpipe_expert_move_curve(&cluster, &goal, loads.data(), loads.size(), slot_to_expert.data(),
                                          slot_to_expert.size(), max_moves, points, capacity, count);
      },
      expected);
}

} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_MOVES_HPP
