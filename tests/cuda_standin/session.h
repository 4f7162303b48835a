// One call of a driver function: takes the engine's lock, counts the call, and finds what its handles stand for.
#pragma once

#include <memory>
#include <new>
#include <string>
#include <utility>

#include "drops.h"
#include "engine.h"
#include "thread.h"

namespace standin {

class Session {
 public:
  explicit Session(const char *function);

  // What the call fails with before it has begun, or SUCCESS.
  Status enter();

  Engine &engine;
  Lock lock;
  Life &life;
  Thread &thread;

  void report(const std::string &problem) { life.problems.add(std::string(function_) + ": " + problem); }

  // The same, and what the call then returns.
  Status refuse(Status status, const std::string &problem) {
    report(problem);
    return status;
  }

  // Each of these finds an object; if there is none, or its context does not work, it says so.
  Status context(void *handle, Context *&found);
  Status current_context(Context *&found);
  Status device(int32_t ordinal, Context *&found);
  Status stream(void *handle, std::shared_ptr<Stream> &found);
  Status event(void *handle, std::shared_ptr<Event> &found);
  template <typename Object>
  Status object(const Handles<Object> &handles, void *handle, std::shared_ptr<Object> &found) {
    found = handles.find(handle);
    return found != nullptr ? SUCCESS : refuse(INVALID_HANDLE, handles.why_none(handle));
  }

  // A context must be retained and not have failed.
  Status check(const Context &context);

  // A call that no capture allows.
  Status check_unsafe_call() { return standin::check_unsafe_call(life, thread.capture_mode); }

  // A call that waits for a stream or asks for its state, which a capture has none of.
  Status check_not_capturing(const Stream &stream);
  Status check_not_captured(const Event &event);

  // Enqueues device work, or captures it.
  Status submit(Stream &stream, std::shared_ptr<const Work> work);

  // Blocks until something holds or a context fails; the call's status.
  template <typename Holds>
  Status wait(const Context &context, Holds holds) {
    const bool is_alive =
        engine.wait_until(lock, [&] { return context.failure != SUCCESS || holds(); });
    return is_alive ? context.failure : DEINITIALIZED;
  }

  // Blocks until a lane has done all that is in it now, which the thread then knows of.
  Status synchronize(const std::shared_ptr<Lane> &lane);

  void learn(const Lane &lane) { thread.learn(life.components, lane.clock, lane.rank); }
  void learn(const Version &version) { thread.learn(life.components, version.clock, version.rank); }

 private:
  std::shared_ptr<Stream> default_stream(Context &context);

  const char *function_;
};

// Runs the body of a driver function.
template <typename Body>
Status call(const char *function, Body body) {
  Status status = SUCCESS;
  try {
    Session session(function);
    status = session.enter();
    if (status == SUCCESS) status = body(session);
  } catch (const std::bad_alloc &) {
    status = OUT_OF_MEMORY;
  }
  run_drops();
  return status;
}

// Device work of this kind.
inline std::shared_ptr<Work> make_work(std::string label) {
  auto work = std::make_shared<Work>();
  work->label = std::move(label);
  return work;
}

}  // namespace standin
