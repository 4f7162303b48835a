/// From one placement of experts to the next: which expert is copied from where to where, in rounds.
#ifndef DUALPIPE_EXPERT_TRANSFER_HPP
#define DUALPIPE_EXPERT_TRANSFER_HPP

#include <dualpipe/cluster.h>
#include <dualpipe/expert_transfer.h>
#include <dualpipe/span.hpp>
#include <dualpipe/status.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace dualpipe {

/// How far an expert is copied.
enum class ExpertLink : std::uint32_t {
  same_gpu = DUALPIPE_LINK_SAME_GPU,     ///< Within a GPU.
  same_node = DUALPIPE_LINK_SAME_NODE,   ///< Between GPUs of a node.
  other_node = DUALPIPE_LINK_OTHER_NODE, ///< Between nodes.
};

/// What may happen at once, what an expert consists of, which layers come first. dualpipe/expert_transfer.h has the
/// ranges and what 0 stands for.
struct ExpertTransferOptions {
  std::uint32_t sends_per_gpu = 1;        ///< Experts that a GPU sends in a round to other GPUs.
  std::uint32_t receives_per_gpu = 1;     ///< Experts that a GPU receives in a round from other GPUs.
  std::uint32_t copies_per_node_link = 0; ///< Experts that go in a round from one node to another; 0: no limit.
  std::uint32_t staging_per_gpu = 0;      ///< Staging buffers that a GPU may use to save rounds.
  std::vector<std::uint64_t> tensor_bytes; ///< The bytes of each tensor of an expert. A copy moves all of them.
  std::vector<double> gains; ///< Empty, or what each layer gains: the greatest is done first.
};

/// Transfers as a whole: num_layers, num_gpus, num_slots, num_rounds, least_rounds, num_copies, num_lost,
/// num_staging, bytes_per_expert, same_gpu_bytes, same_node_bytes, other_node_bytes.
struct ExpertTransfersInfo : dualpipe_expert_transfers_info {
  ExpertTransfersInfo() : dualpipe_expert_transfers_info DUALPIPE_EXPERT_TRANSFERS_INFO_INIT {}
};

/// The copies of one layer: layer, num_rounds, least_rounds, num_copies, same_gpu, same_node, other_node, num_lost,
/// first_copy.
using ExpertLayerTransfers = dualpipe_expert_layer_transfers;

/// One copy of an expert, with all its tensors: layer, round, expert, from_gpu, from, to_gpu, to. from and to are
/// rooms: below num_slots a slot, num_slots + i the staging buffer i of that GPU.
struct ExpertCopy : dualpipe_expert_copy {
  ExpertLink link() const noexcept { return static_cast<ExpertLink>(dualpipe_expert_copy::link); }
};

/// What must be loaded from elsewhere: layer, expert, slot.
using LostExpert = dualpipe_lost_expert;

// C fills rows of them.
static_assert(sizeof(ExpertCopy) == sizeof(dualpipe_expert_copy));

inline namespace DUALPIPE_ERRORS {

/// The copies that lead from one placement to another. All copies of a round may run at once. They never change: any
/// number of threads may use them at once. They stay usable after a fork.
class ExpertTransfers : public detail::Handle<dualpipe_expert_transfers_t, dualpipe_expert_transfers_free> {
public:
  using Handle::Handle;

  /// From placement `from` to placement `to`, equally long: the expert in each slot of the cluster, layer after
  /// layer, or
  /// -1. The cluster is as it is now: what is on a dead GPU is not there.
  ///
  /// Errors: Status::invalid_argument.
  static Result<ExpertTransfers> create(const dualpipe_cluster &cluster, std::uint32_t num_experts,
                                        Span<const std::int64_t> from, Span<const std::int64_t> to,
                                        const ExpertTransferOptions &options = ExpertTransferOptions()) {
    dualpipe_expert_transfer_options in_c = DUALPIPE_EXPERT_TRANSFER_OPTIONS_INIT;
    in_c.sends_per_gpu = options.sends_per_gpu;
    in_c.receives_per_gpu = options.receives_per_gpu;
    in_c.copies_per_node_link = options.copies_per_node_link;
    in_c.staging_per_gpu = options.staging_per_gpu;
    in_c.num_tensors = static_cast<std::uint32_t>(options.tensor_bytes.size());
    in_c.tensor_bytes = options.tensor_bytes.data();
    in_c.num_gains = static_cast<std::uint32_t>(options.gains.size());
    in_c.gains = options.gains.data();
    const std::size_t num_slots = from.size() == to.size() ? from.size() : 0; // which is refused
    dualpipe_expert_transfers_t transfers = nullptr;
    const dualpipe_status status = dualpipe_expert_transfers_create(&cluster, num_experts, from.data(), to.data(),
                                                                    num_slots, &in_c, &transfers);
    return detail::outcome(status, [&] { return ExpertTransfers(transfers); });
  }

  /// Rounds, copies, bytes by how far they go, staging buffers, what is lost.
  Result<ExpertTransfersInfo> describe() const {
    ExpertTransfersInfo info;
    const dualpipe_status status = dualpipe_expert_transfers_describe(get(), &info);
    return detail::outcome(status, [&] { return info; });
  }

  /// The layers in the order in which they are to be done.
  Result<std::vector<ExpertLayerTransfers>> layers() const {
    using Layer = ExpertLayerTransfers;
    return detail::values<Layer>([&](Layer *layers, std::size_t capacity, std::size_t *count) {
      return dualpipe_expert_transfers_layers(get(), layers, capacity, count);
    });
  }

  /// All copies: layer after layer in the order of layers(), in a layer round after round.
  Result<std::vector<ExpertCopy>> copies() const {
    return detail::values<ExpertCopy>([&](ExpertCopy *copies, std::size_t capacity, std::size_t *count) {
      return dualpipe_expert_transfers_copies(get(), copies, capacity, count);
    });
  }

  /// What a GPU does, in order: the copies that it sends, receives and does within itself.
  Result<std::vector<ExpertCopy>> for_gpu(std::uint32_t gpu) const {
    return detail::values<ExpertCopy>([&](ExpertCopy *copies, std::size_t capacity, std::size_t *count) {
      return dualpipe_expert_transfers_for_gpu(get(), gpu, copies, capacity, count);
    });
  }

  /// The staging buffers that each GPU needs.
  Result<std::vector<std::uint32_t>> staging() const {
    return detail::values<std::uint32_t>([&](std::uint32_t *staging, std::size_t capacity, std::size_t *count) {
      return dualpipe_expert_transfers_staging(get(), staging, capacity, count);
    });
  }

  /// What must be loaded from elsewhere, by layer and slot.
  Result<std::vector<LostExpert>> lost() const {
    return detail::values<LostExpert>([&](LostExpert *lost, std::size_t capacity, std::size_t *count) {
      return dualpipe_expert_transfers_lost(get(), lost, capacity, count);
    });
  }

  /// The placement when the first layers_done layers have been done, what was lost being loaded.
  Result<std::vector<std::int64_t>> placement_after(std::uint32_t layers_done) const {
    return detail::values<std::int64_t>([&](std::int64_t *experts, std::size_t capacity, std::size_t *count) {
      return dualpipe_expert_transfers_placement_after(get(), layers_done, experts, capacity, count);
    });
  }

  /// Proves them right by replaying them. Errors: Status::invalid_schedule, which would be a defect of the library.
  Result<void> check() const { return detail::outcome(dualpipe_expert_transfers_check(get())); }
};

} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_EXPERT_TRANSFER_HPP
