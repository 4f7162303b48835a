// The driver's functions for stream capture and graphs.
#include <cstddef>

#include "session.h"

using namespace standin;

namespace {

// A CUstreamCaptureStatus.
int capture_status(const Stream &stream) {
  if (stream.capture == nullptr) return 0;
  return stream.capture->is_valid ? 1 : 2;
}

}  // namespace

DRIVER_API Status cuStreamBeginCapture_v2(void *handle, uint32_t mode) {
  return call("cuStreamBeginCapture_v2", [&](Session &session) -> Status {
    std::shared_ptr<Stream> stream;
    if (mode > RELAXED) return INVALID_VALUE;
    if (const Status status = session.stream(handle, stream)) return status;
    if (stream == stream->lane->context->default_stream) return CAPTURE_UNSUPPORTED;
    if (stream->capture != nullptr) return ILLEGAL_STATE;
    begin_capture(session.life, stream, mode);
    return SUCCESS;
  });
}

DRIVER_API Status cuStreamEndCapture(void *handle, void **graph_handle) {
  return call("cuStreamEndCapture", [&](Session &session) -> Status {
    std::shared_ptr<Stream> stream;
    std::shared_ptr<Graph> graph;
    if (graph_handle == nullptr) return INVALID_VALUE;
    *graph_handle = nullptr;
    if (const Status status = session.stream(handle, stream)) return status;
    if (const Status status = end_capture(session.life, stream, graph)) return status;
    *graph_handle = session.life.graphs.add(graph);
    return SUCCESS;
  });
}

DRIVER_API Status cuStreamIsCapturing(void *handle, int *status_out) {
  return call("cuStreamIsCapturing", [&](Session &session) -> Status {
    std::shared_ptr<Stream> stream;
    if (status_out == nullptr) return INVALID_VALUE;
    if (const Status status = session.stream(handle, stream)) return status;
    *status_out = capture_status(*stream);
    return SUCCESS;
  });
}

// The graph under construction and its nodes are not shown.
DRIVER_API Status cuStreamGetCaptureInfo_v2(void *handle, int *status_out, uint64_t *id, void **graph,
                                            const void ***dependencies, size_t *num_dependencies) {
  return call("cuStreamGetCaptureInfo_v2", [&](Session &session) -> Status {
    std::shared_ptr<Stream> stream;
    if (status_out == nullptr) return INVALID_VALUE;
    if (const Status status = session.stream(handle, stream)) return status;
    *status_out = capture_status(*stream);
    if (id != nullptr) *id = stream->capture == nullptr ? 0 : stream->capture->id;
    if (graph != nullptr) *graph = nullptr;
    if (dependencies != nullptr) *dependencies = nullptr;
    if (num_dependencies != nullptr) *num_dependencies = 0;
    return SUCCESS;
  });
}

DRIVER_API Status cuThreadExchangeStreamCaptureMode(uint32_t *mode) {
  return call("cuThreadExchangeStreamCaptureMode", [&](Session &session) -> Status {
    if (mode == nullptr || *mode > RELAXED) return INVALID_VALUE;
    std::swap(*mode, session.thread.capture_mode);
    return SUCCESS;
  });
}

DRIVER_API Status cuGraphInstantiateWithFlags(void **exec_handle, void *graph_handle, uint64_t flags) {
  static_cast<void>(flags);
  return call("cuGraphInstantiateWithFlags", [&](Session &session) -> Status {
    std::shared_ptr<Graph> graph;
    Context *context = nullptr;
    if (exec_handle == nullptr) return INVALID_VALUE;
    if (const Status status = session.current_context(context)) return status;
    if (const Status status = session.object(session.life.graphs, graph_handle, graph)) return status;
    *exec_handle = session.life.graph_execs.add(instantiate(session.life, graph));
    return SUCCESS;
  });
}

DRIVER_API Status cuGraphLaunch(void *exec_handle, void *stream_handle) {
  return call("cuGraphLaunch", [&](Session &session) -> Status {
    std::shared_ptr<GraphExec> exec;
    std::shared_ptr<Stream> stream;
    if (const Status status = session.object(session.life.graph_execs, exec_handle, exec)) return status;
    if (const Status status = session.stream(stream_handle, stream)) return status;
    // A graph within a graph is beyond this stand-in.
    if (const Status status = session.check_not_capturing(*stream)) return status;
    for (const Chain &chain : exec->graph->chains) {
      if (const Status status = session.check(*chain.context)) return status;
    }
    for (const Node &node : exec->graph->nodes) {
      if (node.work == nullptr) continue;
      for (const Access &access : node.work->accesses) {
        if (session.life.memory.find(access.begin, access.end) != nullptr) continue;
        return session.refuse(INVALID_VALUE, node.work->label + " touches " +
                                                 session.life.memory.describe(access.begin, access.end));
      }
    }
    launch(*exec, *stream->lane);
    return SUCCESS;
  });
}

DRIVER_API Status cuGraphUpload(void *exec_handle, void *stream_handle) {
  return call("cuGraphUpload", [&](Session &session) -> Status {
    std::shared_ptr<GraphExec> exec;
    std::shared_ptr<Stream> stream;
    if (const Status status = session.object(session.life.graph_execs, exec_handle, exec)) return status;
    return session.stream(stream_handle, stream);
  });
}

// Only how many there are: nodes have no handles here.
DRIVER_API Status cuGraphGetNodes(void *graph_handle, void **nodes, size_t *num_nodes) {
  return call("cuGraphGetNodes", [&](Session &session) -> Status {
    std::shared_ptr<Graph> graph;
    if (num_nodes == nullptr) return INVALID_VALUE;
    if (const Status status = session.object(session.life.graphs, graph_handle, graph)) return status;
    if (nodes != nullptr) return session.refuse(INVALID_VALUE, "nodes have no handles here");
    *num_nodes = graph->nodes.size();
    return SUCCESS;
  });
}

DRIVER_API Status cuGraphDestroy(void *handle) {
  return call("cuGraphDestroy", [&](Session &session) -> Status {
    std::shared_ptr<Graph> graph;
    if (const Status status = session.object(session.life.graphs, handle, graph)) return status;
    session.life.graphs.remove(handle);
    return SUCCESS;
  });
}

// A launch under way goes on.
DRIVER_API Status cuGraphExecDestroy(void *handle) {
  return call("cuGraphExecDestroy", [&](Session &session) -> Status {
    std::shared_ptr<GraphExec> exec;
    if (const Status status = session.object(session.life.graph_execs, handle, exec)) return status;
    for (const auto &lane : exec->lanes) lane->is_destroyed = true;
    session.life.sweep_lanes();
    session.life.graph_execs.remove(handle);
    return SUCCESS;
  });
}
