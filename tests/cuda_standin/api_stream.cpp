// The driver's functions for streams and events.
#include <algorithm>

#include "session.h"
#include "text.h"

using namespace standin;

namespace {

constexpr int32_t LEAST_PRIORITY = 0;
constexpr int32_t GREATEST_PRIORITY = -5;

// Flags of cuEventRecordWithFlags and cuStreamWaitEvent: a node of its own in a graph, for an event outside of it.
constexpr uint32_t EXTERNAL = 1;

Status create_stream(Session &session, void **handle, uint32_t flags, int32_t priority) {
  Context *context = nullptr;
  if (handle == nullptr || flags > 1) return INVALID_VALUE;
  if (const Status status = session.current_context(context)) return status;
  auto stream = std::make_shared<Stream>();
  stream->lane = session.life.add_lane(*context, session.thread.rank, false);
  stream->flags = flags;
  stream->priority = std::min(LEAST_PRIORITY, std::max(GREATEST_PRIORITY, priority));
  *handle = session.life.streams.add(stream);
  return SUCCESS;
}

Status add_event_node(const Stream &stream, Op::Kind kind, const std::shared_ptr<Event> &event) {
  Node node;
  node.kind = kind;
  node.event = event;
  add_node(stream, std::move(node));
  return SUCCESS;
}

Status record(Session &session, void *event_handle, void *stream_handle, uint32_t flags) {
  std::shared_ptr<Event> event;
  std::shared_ptr<Stream> stream;
  if (flags > EXTERNAL) return INVALID_VALUE;
  if (const Status status = session.event(event_handle, event)) return status;
  if (const Status status = session.stream(stream_handle, stream)) return status;
  if (event->context != stream->lane->context) {
    return session.refuse(INVALID_HANDLE, text("an event of device %d on a stream of device %d",
                                               event->context->device, stream->lane->context->device));
  }
  if (stream->capture != nullptr) {
    if (!stream->capture->is_valid) return CAPTURE_INVALIDATED;
    if (flags == EXTERNAL) return add_event_node(*stream, Op::Kind::RECORD, event);
    event->last = captured_version(*stream);
    return SUCCESS;
  }
  if (flags == EXTERNAL) return INVALID_VALUE;
  event->last = std::make_shared<Version>();
  Op op;
  op.kind = Op::Kind::RECORD;
  op.version = event->last;
  session.engine.enqueue(*stream->lane, std::move(op));
  return SUCCESS;
}

Status elapsed(Session &session, float *milliseconds, void *start_handle, void *end_handle) {
  std::shared_ptr<Event> start;
  std::shared_ptr<Event> end;
  if (milliseconds == nullptr) return INVALID_VALUE;
  if (const Status status = session.event(start_handle, start)) return status;
  if (const Status status = session.event(end_handle, end)) return status;
  if (((start->flags | end->flags) & Event::DISABLE_TIMING) != 0) {
    return session.refuse(INVALID_HANDLE, "an event was created without timing");
  }
  if (start->last == nullptr || end->last == nullptr) return INVALID_HANDLE;
  if (const Status status = session.check_not_captured(*start)) return status;
  if (const Status status = session.check_not_captured(*end)) return status;
  if (!start->last->is_done || !end->last->is_done) return NOT_READY;
  *milliseconds = static_cast<float>(end->last->nanoseconds - start->last->nanoseconds) / 1e6f;
  return SUCCESS;
}

}  // namespace

DRIVER_API Status cuStreamCreate(void **stream, uint32_t flags) {
  return call("cuStreamCreate", [&](Session &session) { return create_stream(session, stream, flags, 0); });
}

DRIVER_API Status cuStreamCreateWithPriority(void **stream, uint32_t flags, int priority) {
  return call("cuStreamCreateWithPriority",
              [&](Session &session) { return create_stream(session, stream, flags, priority); });
}

// What is queued is still done. A failed context says so, and the stream is gone all the same.
DRIVER_API Status cuStreamDestroy_v2(void *handle) {
  return call("cuStreamDestroy_v2", [&](Session &session) -> Status {
    std::shared_ptr<Stream> stream;
    if (const Status status = session.object(session.life.streams, handle, stream)) return status;
    if (stream->capture != nullptr) stream->capture->is_valid = false;
    stream->lane->is_destroyed = true;
    session.life.streams.remove(handle);
    session.life.sweep_lanes();
    return session.check(*stream->lane->context);
  });
}

DRIVER_API Status cuStreamSynchronize(void *handle) {
  return call("cuStreamSynchronize", [&](Session &session) -> Status {
    std::shared_ptr<Stream> stream;
    if (const Status status = session.stream(handle, stream)) return status;
    if (const Status status = session.check_not_capturing(*stream)) return status;
    return session.synchronize(stream->lane);
  });
}

DRIVER_API Status cuStreamQuery(void *handle) {
  return call("cuStreamQuery", [&](Session &session) -> Status {
    std::shared_ptr<Stream> stream;
    if (const Status status = session.stream(handle, stream)) return status;
    if (const Status status = session.check_not_capturing(*stream)) return status;
    if (stream->lane->num_finished < stream->lane->num_enqueued) return NOT_READY;
    session.learn(*stream->lane);
    return SUCCESS;
  });
}

DRIVER_API Status cuStreamWaitEvent(void *stream_handle, void *event_handle, uint32_t flags) {
  return call("cuStreamWaitEvent", [&](Session &session) -> Status {
    std::shared_ptr<Stream> stream;
    std::shared_ptr<Event> event;
    if (flags > EXTERNAL) return INVALID_VALUE;
    if (const Status status = session.stream(stream_handle, stream)) return status;
    if (const Status status = session.event(event_handle, event)) return status;
    RankFaults &faults = session.life.faults.rank(stream->lane->rank);
    const bool is_skipped = faults.num_waits++ == faults.skipped_wait;
    const std::shared_ptr<Version> version = event->last;
    if (stream->capture != nullptr && flags == EXTERNAL) {
      if (!stream->capture->is_valid) return CAPTURE_INVALIDATED;
      return is_skipped ? SUCCESS : add_event_node(*stream, Op::Kind::WAIT, event);
    }
    if (version == nullptr) return SUCCESS;
    if (stream->capture != nullptr || version->capture != nullptr) {
      return wait_in_capture(stream, *version, is_skipped);
    }
    if (is_skipped) return SUCCESS;
    Op op;
    op.kind = Op::Kind::WAIT;
    op.version = version;
    session.engine.enqueue(*stream->lane, std::move(op));
    return SUCCESS;
  });
}

DRIVER_API Status cuStreamGetCtx(void *handle, void **context) {
  return call("cuStreamGetCtx", [&](Session &session) -> Status {
    std::shared_ptr<Stream> stream;
    if (const Status status = session.stream(handle, stream)) return status;
    *context = stream->lane->context->handle;
    return SUCCESS;
  });
}

DRIVER_API Status cuStreamGetPriority(void *handle, int *priority) {
  return call("cuStreamGetPriority", [&](Session &session) -> Status {
    std::shared_ptr<Stream> stream;
    if (const Status status = session.stream(handle, stream)) return status;
    *priority = stream->priority;
    return SUCCESS;
  });
}

DRIVER_API Status cuStreamGetFlags(void *handle, uint32_t *flags) {
  return call("cuStreamGetFlags", [&](Session &session) -> Status {
    std::shared_ptr<Stream> stream;
    if (const Status status = session.stream(handle, stream)) return status;
    *flags = stream->flags;
    return SUCCESS;
  });
}

DRIVER_API Status cuEventCreate(void **handle, uint32_t flags) {
  return call("cuEventCreate", [&](Session &session) -> Status {
    Context *context = nullptr;
    if (handle == nullptr) return INVALID_VALUE;
    if (const Status status = session.current_context(context)) return status;
    auto event = std::make_shared<Event>();
    event->context = context;
    event->flags = flags;
    *handle = session.life.events.add(event);
    return SUCCESS;
  });
}

// Whoever waits for what the event recorded goes on doing so.
DRIVER_API Status cuEventDestroy_v2(void *handle) {
  return call("cuEventDestroy_v2", [&](Session &session) -> Status {
    std::shared_ptr<Event> event;
    if (const Status status = session.object(session.life.events, handle, event)) return status;
    session.life.events.remove(handle);
    return session.check(*event->context);
  });
}

DRIVER_API Status cuEventRecord(void *event, void *stream) {
  return call("cuEventRecord", [&](Session &session) { return record(session, event, stream, 0); });
}

DRIVER_API Status cuEventRecordWithFlags(void *event, void *stream, uint32_t flags) {
  return call("cuEventRecordWithFlags", [&](Session &session) { return record(session, event, stream, flags); });
}

DRIVER_API Status cuEventQuery(void *handle) {
  return call("cuEventQuery", [&](Session &session) -> Status {
    std::shared_ptr<Event> event;
    if (const Status status = session.event(handle, event)) return status;
    if (const Status status = session.check_not_captured(*event)) return status;
    if (const Status status = session.check_unsafe_call()) return status;
    if (event->last == nullptr) return SUCCESS;
    if (!event->last->is_done) return NOT_READY;
    session.learn(*event->last);
    return SUCCESS;
  });
}

DRIVER_API Status cuEventSynchronize(void *handle) {
  return call("cuEventSynchronize", [&](Session &session) -> Status {
    std::shared_ptr<Event> event;
    if (const Status status = session.event(handle, event)) return status;
    if (const Status status = session.check_not_captured(*event)) return status;
    if (const Status status = session.check_unsafe_call()) return status;
    const std::shared_ptr<Version> version = event->last;
    if (version == nullptr) return SUCCESS;
    if (const Status status = session.wait(*event->context, [&] { return version->is_done; })) return status;
    session.learn(*version);
    return SUCCESS;
  });
}

DRIVER_API Status cuEventElapsedTime(float *milliseconds, void *start, void *end) {
  return call("cuEventElapsedTime", [&](Session &session) { return elapsed(session, milliseconds, start, end); });
}

DRIVER_API Status cuEventElapsedTime_v2(float *milliseconds, void *start, void *end) {
  return call("cuEventElapsedTime_v2", [&](Session &session) { return elapsed(session, milliseconds, start, end); });
}
