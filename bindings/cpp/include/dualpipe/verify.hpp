/// A placement one can trust: whether it is right, the same on all ranks, and what memory it asks for.
#ifndef DUALPIPE_VERIFY_HPP
#define DUALPIPE_VERIFY_HPP

#include <dualpipe/cluster.hpp>
#include <dualpipe/span.hpp>
#include <dualpipe/status.hpp>
#include <dualpipe/verify.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace dualpipe {

/// A placement that is to be verified, and whatever else is said about it. It borrows all of it. A list that is not as
/// long as another says is refused by whoever takes the placement.
struct UnverifiedPlacement : dualpipe_unverified_placement {
  /// slots: the expert in each slot of the cluster, layer after layer, -1 on dead GPUs (DeepSeek's phy2log).
  explicit UnverifiedPlacement(Span<const std::int64_t> slots)
      : dualpipe_unverified_placement DUALPIPE_UNVERIFIED_PLACEMENT_INIT {
    slot_to_expert = slots.data();
    num_slots = slots.size();
  }

  /// The share of its expert's tokens that each slot gets, 0 where there is no expert.
  void set_shares(Span<const double> of_slots) noexcept {
    if (of_slots.size() != num_slots) num_slots = 0;
    shares = of_slots.data();
  }

  /// The slots of each expert in any order, then -1: num_layers tables of num_experts rows of equal length (DeepSeek's
  /// log2phy).
  void set_expert_to_slots(Span<const std::int64_t> table) noexcept {
    expert_to_slots = table.data();
    num_expert_to_slots = table.size();
  }

  /// How many slots each expert has (DeepSeek's logcnt).
  void set_replica_counts(Span<const std::int64_t> counts) noexcept {
    fit(counts.size(), loads != nullptr);
    replica_counts = counts.data();
  }

  /// Loads of experts under which no GPU may carry more than `most` times the mean, at least 1.
  void set_limit(Span<const float> of_experts, double most) noexcept {
    fit(of_experts.size(), replica_counts != nullptr);
    loads = of_experts.data();
    imbalance_max = most;
  }

private:
  /// C has one number for both lists: of lists that are not equally long it gets one that is refused.
  void fit(std::size_t count, bool has_other) noexcept {
    num_experts = has_other && count != num_experts ? 0 : count;
  }
};

/// How bad a finding is.
enum class Severity : std::uint32_t {
  error = DUALPIPE_SEVERITY_ERROR,     ///< Tokens are lost or computed wrongly, or what was asked for is not so.
  warning = DUALPIPE_SEVERITY_WARNING, ///< Memory or time is wasted.
};

/// What is wrong; dualpipe/verify.h has which fields of a finding say where, and what its numbers are.
enum class FindingKind : std::uint32_t {
  missing = DUALPIPE_FINDING_MISSING,             ///< An expert is on no live GPU.
  not_an_expert = DUALPIPE_FINDING_NOT_AN_EXPERT, ///< A slot holds a number that is no expert.
  on_dead_gpu = DUALPIPE_FINDING_ON_DEAD_GPU,     ///< A slot of a dead GPU holds an expert.
  too_few_gpus = DUALPIPE_FINDING_TOO_FEW_GPUS,   ///< An expert is on too few GPUs.
  too_few_nodes = DUALPIPE_FINDING_TOO_FEW_NODES, ///< An expert is on too few nodes.
  split_group = DUALPIPE_FINDING_SPLIT_GROUP,     ///< A group that is to be whole is on several nodes.
  share = DUALPIPE_FINDING_SHARE,                 ///< A share that no slot can have.
  share_sum = DUALPIPE_FINDING_SHARE_SUM,         ///< Shares of an expert that do not sum to 1.
  replica_count = DUALPIPE_FINDING_REPLICA_COUNT, ///< A replica count that is not what the slots say.
  wrong_slot = DUALPIPE_FINDING_WRONG_SLOT,       ///< An entry of an expert's slots that does not belong there.
  unlisted = DUALPIPE_FINDING_UNLISTED,           ///< A slot that is not among its expert's slots.
  empty = DUALPIPE_FINDING_EMPTY,                 ///< A slot of a live GPU holds nothing.
  twice = DUALPIPE_FINDING_TWICE,                 ///< A GPU holds an expert more than once.
  overloaded = DUALPIPE_FINDING_OVERLOADED,       ///< A GPU carries more than the limit.
};

/// One thing that is wrong in a layer: layer, expert, slot, gpu, group and entry (`none` where its kind has none),
/// is_avoidable, value and wanted, or amount and limit.
struct Finding : dualpipe_finding {
  FindingKind kind() const noexcept { return static_cast<FindingKind>(dualpipe_finding::kind); }
  Severity severity() const noexcept { return static_cast<Severity>(dualpipe_finding::severity); }
};

// C fills rows of them.
static_assert(sizeof(Finding) == sizeof(dualpipe_finding));

/// What was found: num_errors, num_warnings, and the findings, of each kind the first 64.
struct Report : dualpipe_verdict {
  /// Layer by layer.
  std::vector<Finding> findings;

  /// Whether there is no error; there may be warnings.
  bool is_ok() const noexcept { return num_errors == 0; }
  /// How many findings of a kind there were, all of them.
  std::uint64_t count(FindingKind kind) const noexcept { return counts[static_cast<std::uint32_t>(kind)]; }
};

/// What is sent to experts and kept of them: num_layers of num_experts experts, of which a token has top_k; hidden,
/// tokens_per_rank, expert_bytes. dualpipe/verify.h has the ranges.
struct ExpertTraffic : dualpipe_expert_traffic {
  ExpertTraffic() : dualpipe_expert_traffic DUALPIPE_EXPERT_TRAFFIC_INIT {}
};

/// What memory a placement asks for on the GPU that needs most: slots_max, weight_bytes, rows_max, low_latency_bytes,
/// low_latency_bytes_without_redundancy.
struct ExpertMemory : dualpipe_expert_memory {
  ExpertMemory() : dualpipe_expert_memory DUALPIPE_EXPERT_MEMORY_INIT {}
};

/// Who has which hash.
struct HashAgreement {
  std::uint64_t hash = 0;           ///< What most ranks have; of equally frequent ones the lowest rank's.
  std::vector<std::uint32_t> ranks; ///< Those that have another, in order.
};

inline namespace DUALPIPE_ERRORS {

/// Looks for everything in a placement that is wrong, or worse than it need be. Of the goal, num_layers, num_experts,
/// num_groups, GroupRule::whole, min_gpus and min_nodes count.
///
/// Errors: Status::invalid_argument where it cannot be told what is meant: lists of lengths that do not fit, a load
/// that is negative or not finite. What is wrong with the placement is a finding.
inline Result<Report> expert_verify(const dualpipe_cluster &cluster, const dualpipe_goal &goal,
                                    const UnverifiedPlacement &placement) {
  Report report{};
  const std::size_t most = 14 * 64;
  report.findings.resize(most);
  std::size_t count = 0;
  const dualpipe_status status =
      dualpipe_expert_verify(&cluster, &goal, &placement, &report, report.findings.data(), most, &count);
  report.findings.resize(count);
  return detail::outcome(status, [&] { return std::move(report); });
}

/// The same as a text: a line for each finding, errors first. Empty if nothing was found.
inline Result<std::string> expert_verify_text(const dualpipe_cluster &cluster, const dualpipe_goal &goal,
                                              const UnverifiedPlacement &placement) {
  return detail::text([&](char *text, std::size_t capacity, std::size_t *length) {
    return dualpipe_expert_verify_text(&cluster, &goal, &placement, text, capacity, length);
  });
}

/// The hash of a placement and its cluster, the same on every machine: ranks that route by different placements compute
/// wrong results without any error, so each hashes its own and they compare. shares: none for an equal split.
///
/// Errors: Status::invalid_argument for a number that can be no expert's, or shares of another length.
inline Result<std::uint64_t> expert_hash(const dualpipe_cluster &cluster, Span<const std::int64_t> slot_to_expert,
                                         Span<const double> shares = {}) {
  std::uint64_t hash = 0;
  // C has one number for both: of lists that are not equally long it gets one that is refused.
  const bool is_alike = shares.empty() || shares.size() == slot_to_expert.size();
  const std::size_t num_slots = is_alike ? slot_to_expert.size() : static_cast<std::size_t>(-1);
  const double *of_slots = shares.empty() ? nullptr : shares.data();
  const dualpipe_status status =
      dualpipe_expert_hash(&cluster, slot_to_expert.data(), of_slots, num_slots, &hash);
  return detail::outcome(status, [&] { return hash; });
}

/// Which ranks have another hash than most. hashes: one for each rank.
inline Result<HashAgreement> expert_hash_agree(Span<const std::uint64_t> hashes) {
  HashAgreement agreement;
  agreement.ranks.resize(hashes.size());
  std::size_t count = 0;
  const dualpipe_status status = dualpipe_expert_hash_agree(hashes.data(), hashes.size(), &agreement.hash,
                                                            agreement.ranks.data(), hashes.size(), &count);
  agreement.ranks.resize(count);
  return detail::outcome(status, [&] { return std::move(agreement); });
}

/// What memory placements on a cluster ask for: messages and weights, not what a library takes besides.
///
/// Errors: Status::invalid_argument.
inline Result<ExpertMemory> expert_buffers(const dualpipe_cluster &cluster, const ExpertTraffic &traffic) {
  ExpertMemory memory;
  const dualpipe_status status = dualpipe_expert_buffers(&cluster, &traffic, &memory);
  return detail::outcome(status, [&] { return memory; });
}

} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_VERIFY_HPP
