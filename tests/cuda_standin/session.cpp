// Calls: what they all check.
#include "session.h"

#include <cstring>

#include "text.h"

namespace standin {

namespace {

// CU_STREAM_LEGACY.
constexpr uint64_t LEGACY_STREAM = 1;

bool needs_no_init(const char *function) {
  return std::strcmp(function, "cuInit") == 0 || std::strcmp(function, "cuDriverGetVersion") == 0;
}

}  // namespace

Session::Session(const char *function)
    : engine(Engine::get()),
      lock(engine.mutex()),
      life(engine.life()),
      thread(this_thread(life.number)),
      function_(function) {
  if (thread.num_barriers == life.num_barriers) return;
  thread.num_barriers = life.num_barriers;
  thread.learn(life.components, life.barrier);
}

Status Session::enter() {
  const Status status = life.faults.call(function_);
  if (status != SUCCESS) return status;
  if (thread.is_inside_op) return refuse(NOT_PERMITTED, "called from inside an op");
  return engine.is_initialized || needs_no_init(function_) ? SUCCESS : NOT_INITIALIZED;
}

Status Session::context(void *handle, Context *&found) {
  for (const auto &context : life.contexts) {
    if (context->handle == handle) {
      found = context.get();
      return found->num_retains > 0 ? SUCCESS : check(*found);
    }
  }
  return refuse(INVALID_CONTEXT, text("%p is no context", handle));
}

Status Session::current_context(Context *&found) {
  if (thread.contexts.empty() || thread.contexts.back() == nullptr) return INVALID_CONTEXT;
  const Status status = context(thread.contexts.back(), found);
  return status != SUCCESS ? status : check(*found);
}

Status Session::device(int32_t ordinal, Context *&found) {
  if (ordinal < 0 || static_cast<size_t>(ordinal) >= life.contexts.size()) return INVALID_DEVICE;
  found = life.contexts[static_cast<size_t>(ordinal)].get();
  return SUCCESS;
}

Status Session::stream(void *handle, std::shared_ptr<Stream> &found) {
  if (reinterpret_cast<uint64_t>(handle) <= LEGACY_STREAM) {
    Context *context = nullptr;
    const Status status = current_context(context);
    if (status == SUCCESS) found = default_stream(*context);
    return status;
  }
  const Status status = object(life.streams, handle, found);
  return status != SUCCESS ? status : check(*found->lane->context);
}

Status Session::event(void *handle, std::shared_ptr<Event> &found) {
  const Status status = object(life.events, handle, found);
  return status != SUCCESS ? status : check(*found->context);
}

Status Session::check(const Context &context) {
  if (context.num_retains == 0) {
    return refuse(CONTEXT_IS_DESTROYED, text("the context of device %d is not retained", context.device));
  }
  return context.failure;
}

Status Session::check_not_capturing(const Stream &stream) {
  if (stream.capture == nullptr) return SUCCESS;
  if (!stream.capture->is_valid) return CAPTURE_INVALIDATED;
  stream.capture->is_valid = false;
  return CAPTURE_UNSUPPORTED;
}

Status Session::check_not_captured(const Event &event) {
  if (event.last == nullptr || event.last->capture == nullptr) return SUCCESS;
  if (event.last->capture->is_over) return CAPTURED_EVENT;
  event.last->capture->is_valid = false;
  return CAPTURE_UNSUPPORTED;
}

Status Session::submit(Stream &stream, std::shared_ptr<const Work> work) {
  if (stream.capture != nullptr) {
    if (!stream.capture->is_valid) return CAPTURE_INVALIDATED;
    Node node;
    node.work = std::move(work);
    add_node(stream, std::move(node));
    return SUCCESS;
  }
  Op op;
  op.work = std::move(work);
  engine.enqueue(*stream.lane, std::move(op));
  return SUCCESS;
}

Status Session::synchronize(const std::shared_ptr<Lane> &lane) {
  const uint64_t end = lane->num_enqueued;
  const Status status = wait(*lane->context, [&] { return lane->num_finished >= end; });
  if (status == SUCCESS) learn(*lane);
  return status;
}

std::shared_ptr<Stream> Session::default_stream(Context &context) {
  if (context.default_stream == nullptr) {
    context.default_stream = std::make_shared<Stream>();
    context.default_stream->lane = life.add_default_lane(context);
  }
  return context.default_stream;
}

}  // namespace standin
