// Capture keeps CUDA's rules; a replay is plain ops in the graph's own lanes, with events for the edges between them.
#include "graph.h"

#include <algorithm>
#include <set>

#include "engine.h"
#include "life.h"

namespace standin {

namespace {

void add_tail(std::vector<Tail> &tails, Tail tail) {
  for (Tail &known : tails) {
    if (known.node != tail.node) continue;
    known.is_ghost = known.is_ghost && tail.is_ghost;
    return;
  }
  tails.push_back(tail);
}

void invalidate(Capture &capture) { capture.is_valid = false; }

// Whether all that was captured comes before the end of the origin.
bool is_joined(const Capture &capture) {
  const Graph &graph = *capture.graph;
  std::vector<bool> is_before(graph.nodes.size(), false);
  for (const Tail &tail : capture.branches[0].tails) is_before[tail.node] = true;
  for (size_t node = graph.nodes.size(); node-- > 0;) {
    if (!is_before[node]) continue;
    for (const Tail &tail : graph.nodes[node].after) is_before[tail.node] = true;
  }
  return std::all_of(capture.branches.begin(), capture.branches.end(), [&](const Capture::Branch &branch) {
    return std::all_of(branch.tails.begin(), branch.tails.end(), [&](Tail tail) { return is_before[tail.node]; });
  });
}

Op event_op(Op::Kind kind, std::shared_ptr<Version> version) {
  Op op;
  op.kind = kind;
  op.version = std::move(version);
  return op;
}

}  // namespace

std::shared_ptr<Capture> begin_capture(Life &life, const std::shared_ptr<Stream> &origin, uint32_t mode) {
  auto capture = std::make_shared<Capture>();
  capture->id = ++life.num_captures;
  capture->mode = mode;
  capture->thread = std::this_thread::get_id();
  capture->graph = std::make_shared<Graph>();
  capture->graph->chains.push_back({origin->lane->rank, origin->lane->context});
  capture->branches.push_back({origin, {}});
  origin->capture = capture;
  origin->branch = 0;
  life.captures.push_back(capture);
  return capture;
}

Status end_capture(Life &life, const std::shared_ptr<Stream> &origin, std::shared_ptr<Graph> &graph) {
  const std::shared_ptr<Capture> capture = origin->capture;
  if (capture == nullptr) return ILLEGAL_STATE;
  if (origin->branch != 0) return CAPTURE_UNMATCHED;
  if (capture->mode != RELAXED && capture->thread != std::this_thread::get_id()) return CAPTURE_WRONG_THREAD;
  for (const Capture::Branch &branch : capture->branches) {
    const auto stream = branch.stream.lock();
    if (stream != nullptr) stream->capture = nullptr;
  }
  capture->is_over = true;
  auto &captures = life.captures;
  captures.erase(std::remove(captures.begin(), captures.end(), capture), captures.end());
  if (!capture->is_valid) return CAPTURE_INVALIDATED;
  if (!is_joined(*capture)) return CAPTURE_UNJOINED;
  graph = capture->graph;
  return SUCCESS;
}

void add_node(const Stream &stream, Node node) {
  Capture &capture = *stream.capture;
  auto &tails = capture.branches[stream.branch].tails;
  node.chain = stream.branch;
  node.after = tails;
  tails = {{capture.graph->nodes.size(), false}};
  capture.graph->nodes.push_back(std::move(node));
}

std::shared_ptr<Version> captured_version(const Stream &stream) {
  auto version = std::make_shared<Version>();
  version->capture = stream.capture;
  version->tails = stream.capture->branches[stream.branch].tails;
  version->rank = stream.lane->rank;
  return version;
}

Status wait_in_capture(const std::shared_ptr<Stream> &stream, const Version &version, bool is_ghost) {
  const std::shared_ptr<Capture> &other = version.capture;
  const bool is_other_active = other != nullptr && !other->is_over;
  if (stream->capture == nullptr) {
    if (!is_other_active) return CAPTURED_EVENT;
    if (!other->is_valid) return CAPTURE_INVALIDATED;
    stream->capture = other;
    stream->branch = other->branches.size();
    other->branches.push_back({stream, {}});
    other->graph->chains.push_back({stream->lane->rank, stream->lane->context});
  } else if (!stream->capture->is_valid) {
    return CAPTURE_INVALIDATED;
  } else if (stream->capture != other) {
    invalidate(*stream->capture);
    if (!is_other_active) return CAPTURE_ISOLATION;
    invalidate(*other);
    return CAPTURE_MERGE;
  }
  auto &tails = stream->capture->branches[stream->branch].tails;
  for (const Tail &tail : version.tails) add_tail(tails, {tail.node, tail.is_ghost || is_ghost});
  return SUCCESS;
}

Status check_unsafe_call(Life &life, uint32_t thread_mode) {
  if (thread_mode == RELAXED) return SUCCESS;
  Status status = SUCCESS;
  for (const auto &capture : life.captures) {
    const bool is_own = capture->thread == std::this_thread::get_id() && capture->mode != RELAXED;
    const bool is_global = thread_mode == GLOBAL && capture->mode == GLOBAL;
    if (!is_own && !is_global) continue;
    invalidate(*capture);
    status = CAPTURE_UNSUPPORTED;
  }
  return status;
}

std::shared_ptr<GraphExec> instantiate(Life &life, const std::shared_ptr<const Graph> &graph) {
  auto exec = std::make_shared<GraphExec>();
  exec->graph = graph;
  for (const Chain &chain : graph->chains) exec->lanes.push_back(life.add_lane(*chain.context, chain.rank, true));
  return exec;
}

void launch(GraphExec &exec, Lane &lane) {
  const Graph &graph = *exec.graph;
  Engine &engine = Engine::get();
  // Each chain begins when the stream has come this far and all of the launch before is over.
  const auto start = std::make_shared<Version>();
  engine.enqueue(lane, event_op(Op::Kind::RECORD, start));
  for (const auto &chain : exec.lanes) {
    engine.enqueue(*chain, event_op(Op::Kind::WAIT, start));
    for (const auto &end : exec.ends) engine.enqueue(*chain, event_op(Op::Kind::WAIT, end));
  }
  std::set<size_t> sources;
  for (const Node &node : graph.nodes) {
    for (const Tail &tail : node.after) {
      if (!tail.is_ghost && graph.nodes[tail.node].chain != node.chain) sources.insert(tail.node);
    }
  }
  std::vector<std::shared_ptr<Version>> versions(graph.nodes.size());
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    const Node &node = graph.nodes[i];
    Lane &chain = *exec.lanes[node.chain];
    for (const Tail &tail : node.after) {
      if (!tail.is_ghost && graph.nodes[tail.node].chain != node.chain) {
        engine.enqueue(chain, event_op(Op::Kind::WAIT, versions[tail.node]));
      }
    }
    if (node.kind == Op::Kind::WORK) {
      Op op;
      op.work = node.work;
      engine.enqueue(chain, std::move(op));
    } else {
      if (node.kind == Op::Kind::RECORD) node.event->last = std::make_shared<Version>();
      if (node.event->last != nullptr) engine.enqueue(chain, event_op(node.kind, node.event->last));
    }
    if (sources.count(i) > 0) {
      versions[i] = std::make_shared<Version>();
      engine.enqueue(chain, event_op(Op::Kind::RECORD, versions[i]));
    }
  }
  exec.ends.clear();
  for (const auto &chain : exec.lanes) {
    const auto end = std::make_shared<Version>();
    exec.ends.push_back(end);
    engine.enqueue(*chain, event_op(Op::Kind::RECORD, end));
    engine.enqueue(lane, event_op(Op::Kind::WAIT, end));
  }
}

}  // namespace standin
