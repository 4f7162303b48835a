/// Loads of GPUs: of any placement under any loads, and as a picture.
#ifndef DUALPIPE_HEAT_MAP_HPP
#define DUALPIPE_HEAT_MAP_HPP

#include <dualpipe/cluster.hpp>
#include <dualpipe/heat_map.h>
#include <dualpipe/span.hpp>
#include <dualpipe/status.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace dualpipe {

/// What a heat map can be drawn as.
enum class HeatMapFormat : std::uint32_t {
  text = DUALPIPE_HEAT_MAP_TEXT, ///< Text for a terminal, in at most 100 columns.
  svg = DUALPIPE_HEAT_MAP_SVG,   ///< A self-contained SVG.
};

/// The loads of one placement's GPUs.
struct HeatMapPanel {
  std::string title;         ///< What it shows, in one line; at most 1023 bytes count.
  Cluster cluster;           ///< Whose nodes are separated by lines, and whose dead GPUs are grey.
  std::vector<double> loads; ///< As of expert_gpu_loads: 1 to 4096 rows, a number for each GPU.
};

inline namespace DUALPIPE_ERRORS {

/// The load of each GPU under a placement, layer after layer, 0 on dead ones.
///
/// slot_to_expert: the expert in each slot of the cluster, layer after layer, -1 where there is none. shares: none for
/// an equal split, or as many. loads: num_layers rows of num_experts.
///
/// Errors: Status::invalid_argument, also where a load would get lost: an expert that has load and no live slot, or
/// shares that do not sum to 1.
inline Result<std::vector<double>> expert_gpu_loads(const dualpipe_cluster &cluster, std::uint32_t num_experts,
                                                    Span<const std::int64_t> slot_to_expert, Span<const double> shares,
                                                    Span<const float> loads) {
  // C has one number for both: of lists that are not equally long it gets one that is refused.
  const bool is_alike = shares.empty() || shares.size() == slot_to_expert.size();
  const std::size_t num_slots = is_alike ? slot_to_expert.size() : 0;
  const double *of_slots = shares.empty() ? nullptr : shares.data();
  return detail::values<double>([&](double *gpu_loads, std::size_t capacity, std::size_t *count) {
    return dualpipe_expert_gpu_loads(&cluster, num_experts, slot_to_expert.data(), of_slots, num_slots, loads.data(),
                                     loads.size(), gpu_loads, capacity, count);
  });
}

/// The load of each node, layer after layer, from those of the GPUs.
inline Result<std::vector<double>> expert_node_loads(const dualpipe_cluster &cluster, Span<const double> gpu_loads) {
  return detail::values<double>([&](double *node_loads, std::size_t capacity, std::size_t *count) {
    return dualpipe_expert_node_loads(&cluster, gpu_loads.data(), gpu_loads.size(), node_loads, capacity, count);
  });
}

/// Draws GPU loads: a row for each layer, a column for each GPU; the colour, or the height of a block, says how far
/// from the layer's mean. 1 to 16 panels have one scale, for before and after.
///
/// Errors: Status::invalid_argument.
inline Result<std::string> heat_map(Span<const HeatMapPanel> panels, HeatMapFormat format) {
  std::vector<dualpipe_cluster> clusters;
  for (const HeatMapPanel &panel : panels) clusters.push_back(panel.cluster.in_c());
  std::vector<dualpipe_heat_map_panel> in_c;
  for (std::size_t i = 0; i < panels.size(); i++) {
    const HeatMapPanel &panel = panels[i];
    in_c.push_back({panel.title.c_str(), &clusters[i], panel.loads.data(), panel.loads.size()});
  }
  return detail::text([&](char *text, std::size_t capacity, std::size_t *length) {
    const auto number = static_cast<std::uint32_t>(format);
    return dualpipe_heat_map(in_c.data(), in_c.size(), number, text, capacity, length);
  });
}

} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_HEAT_MAP_HPP
