/// What experts are placed on, and what makes a placement good.
#ifndef DUALPIPE_CLUSTER_HPP
#define DUALPIPE_CLUSTER_HPP

#include <dualpipe/cluster.h>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace dualpipe {

/// GPUs, their slots for the experts of a layer, and their nodes.
///
/// Slots are numbered GPU by GPU, those of dead GPUs too: a number means the same slot before and after a failure. A
/// slot of a dead GPU holds no expert, which is written as -1. Functions take it as the dualpipe_cluster that it
/// becomes.
class Cluster {
public:
  /// GPUs as alike as can be: where the slots do not divide, the first GPUs have one more, and so with the GPUs of
  /// nodes.
  Cluster(std::uint32_t gpus, std::uint32_t slots, std::uint32_t nodes = 1)
      : num_gpus_(gpus), num_slots_(slots), num_nodes_(nodes) {}

  /// The slots of each GPU, also 0, and the node of each; no nodes: all GPUs are of one.
  explicit Cluster(std::vector<std::uint32_t> slots_per_gpu, std::vector<std::uint32_t> node_of_gpu = {})
      : num_gpus_(static_cast<std::uint32_t>(slots_per_gpu.size())), slots_per_gpu_(std::move(slots_per_gpu)),
        node_of_gpu_(std::move(node_of_gpu)) {
    fit(node_of_gpu_, NOT_A_NODE);
  }

  /// Whether each GPU is alive; as it is made, all are. A list that is not as long as there are GPUs is refused by
  /// whoever takes the cluster.
  void set_alive(const std::vector<bool> &is_alive) {
    is_alive_.assign(is_alive.begin(), is_alive.end());
    fit(is_alive_, NOT_A_FLAG);
  }

  /// As C has it, while this lives and stays as it is.
  dualpipe_cluster in_c() const noexcept {
    dualpipe_cluster cluster = DUALPIPE_CLUSTER_INIT;
    cluster.num_gpus = num_gpus_;
    cluster.num_slots = num_slots_;
    cluster.num_nodes = num_nodes_;
    cluster.slots_per_gpu = slots_per_gpu_.empty() ? nullptr : slots_per_gpu_.data();
    cluster.node_of_gpu = node_of_gpu_.empty() ? nullptr : node_of_gpu_.data();
    cluster.is_alive = is_alive_.empty() ? nullptr : is_alive_.data();
    return cluster;
  }

  /// Likewise.
  operator dualpipe_cluster() const noexcept { return in_c(); }

private:
  static constexpr std::uint32_t NOT_A_NODE = 0xFFFFFFFF;
  static constexpr std::uint8_t NOT_A_FLAG = 2;

  /// C reads as many values as there are GPUs: a list of another length becomes one that it refuses.
  template <class T>
  void fit(std::vector<T> &list, T refused) {
    const std::size_t length = list.size();
    if (length == 0 || length == num_gpus_) return;
    list.resize(num_gpus_, refused);
    if (!list.empty()) list.back() = refused;
  }

  std::uint32_t num_gpus_ = 0;
  std::uint32_t num_slots_ = 0;
  std::uint32_t num_nodes_ = 0;
  std::vector<std::uint32_t> slots_per_gpu_;
  std::vector<std::uint32_t> node_of_gpu_;
  std::vector<std::uint8_t> is_alive_;
};

/// How the tokens of an expert are shared among its replicas.
enum class Split : std::uint32_t {
  equal = DUALPIPE_SPLIT_EQUAL,       ///< Each replica gets as many, as engines do by default.
  weighted = DUALPIPE_SPLIT_WEIGHTED, ///< Each slot gets the share that the plan says.
};

/// Whether the experts of a group stay together.
enum class GroupRule : std::uint32_t {
  free = DUALPIPE_GROUPS_FREE,     ///< Groups play no part.
  whole = DUALPIPE_GROUPS_WHOLE,   ///< Every replica of a group's experts is on one node.
  priced = DUALPIPE_GROUPS_PRICED, ///< A group may be spread over nodes, at a price.
};

/// What is placed, num_layers of num_experts experts, and what makes a placement good: min_gpus and min_nodes that
/// every expert is on at least, the effort of the search (1 unless said); an equal split and no groups unless said.
/// dualpipe/cluster.h has the ranges.
struct Goal : dualpipe_goal {
  Goal(std::uint32_t layers, std::uint32_t experts) : dualpipe_goal DUALPIPE_GOAL_INIT {
    num_layers = layers;
    num_experts = experts;
  }

  /// How many groups of consecutive experts there are, and what they mean; for GroupRule::priced the least
  /// imbalance + price * away is looked for, away being the share of all load that is not at its group's home.
  void set_groups(std::uint32_t count, GroupRule rule, double price_of_away = 0) noexcept {
    num_groups = count;
    group_rule = static_cast<std::uint32_t>(rule);
    price = price_of_away;
  }

  /// How the tokens of an expert are shared.
  void set_split(Split by) noexcept { split = static_cast<std::uint32_t>(by); }
};

} // namespace dualpipe

#endif // DUALPIPE_CLUSTER_HPP
