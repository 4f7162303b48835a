// Lives: how they begin and end, and their lanes.
#include "life.h"

#include <algorithm>
#include <tuple>

namespace standin {

namespace {

enum HandleKind : uint64_t { CONTEXT = 1, STREAM, EVENT, MODULE, FUNCTION, GRAPH, GRAPH_EXEC };

bool is_before(const Lane::Key &a, const Lane::Key &b) {
  return std::tie(a.rank, a.is_graph, a.ordinal) < std::tie(b.rank, b.is_graph, b.ordinal);
}

}  // namespace

Life::Life(uint64_t number, const Settings &settings)
    : number(number),
      settings(settings),
      checker(components, problems),
      memory(problems),
      strategy(settings.seed),
      streams("stream", STREAM, number),
      events("event", EVENT, number),
      modules("module", MODULE, number),
      functions("function", FUNCTION, number),
      graphs("graph", GRAPH, number),
      graph_execs("executable graph", GRAPH_EXEC, number) {
  components.is_rank_local = settings.is_rank_local;
  for (uint32_t device = 0; device < settings.num_devices; ++device) {
    contexts.push_back(std::make_unique<Context>());
    contexts.back()->device = static_cast<int32_t>(device);
    contexts.back()->handle = make_handle(CONTEXT, number, device + 1);
  }
}

std::shared_ptr<Lane> Life::add_lane(Context &context, int32_t rank, bool is_graph) {
  Ordinals &next = ordinals[rank];
  const uint64_t ordinal = is_graph ? next.chains++ : next.streams++;
  return add_lane(context, {rank, is_graph, ordinal}, in_words(rank, is_graph ? "graph chain" : "stream", ordinal));
}

std::shared_ptr<Lane> Life::add_default_lane(Context &context) {
  // Before all streams of no rank, by device.
  const Lane::Key key{-2, false, static_cast<uint64_t>(context.device)};
  return add_lane(context, key, text("default stream of device %d", context.device));
}

std::shared_ptr<Lane> Life::add_lane(Context &context, const Lane::Key &key, const std::string &name) {
  auto lane = std::make_shared<Lane>();
  lane->key = key;
  lane->context = &context;
  lane->priority = strategy.priority(key);
  lane->rank = std::max(key.rank, -1);
  lane->component = components.add(lane->rank, name);
  auto is_later = [](const Lane::Key &a, const std::shared_ptr<Lane> &b) { return is_before(a, b->key); };
  lanes.insert(std::upper_bound(lanes.begin(), lanes.end(), key, is_later), lane);
  return lane;
}

void Life::sweep_lanes() {
  auto is_over = [&](const std::shared_ptr<Lane> &lane) {
    if (!lane->is_destroyed || lane->num_finished < lane->num_enqueued) return false;
    components.join(lane->context->retired, lane->clock, lane->rank);
    return true;
  };
  lanes.erase(std::remove_if(lanes.begin(), lanes.end(), is_over), lanes.end());
}

void Life::add_barrier() {
  num_barriers += 1;
  for (const auto &context : contexts) components.join(barrier, context->retired);
  for (const auto &lane : lanes) components.join(barrier, lane->clock, lane->rank);
}

void Life::clear() {
  for (const auto &lane : lanes) lane->queue.clear();
  for (const auto &[handle, stream] : streams.all()) stream->capture = nullptr;
  for (const auto &[handle, event] : events.all()) event->last = nullptr;
}

std::string in_words(int32_t rank, const char *what, uint64_t ordinal) {
  const std::string owner = rank < 0 ? "" : text("rank %d ", rank);
  return owner + text("%s %llu", what, static_cast<unsigned long long>(ordinal));
}

}  // namespace standin
