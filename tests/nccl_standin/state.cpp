// The state, and the functions by which tests set and read it.
#include "state.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <set>

#include "driver.h"
#include "nccl_standin.h"
#include "op.h"

#define CONTROL_FUNCTION extern "C" __attribute__((visibility("default")))

namespace nccl_standin {
namespace {

/// More would not be read.
const size_t kProblemsMax = 100;

std::string format_list(const char *format, va_list arguments) {
  char text[1024];
  vsnprintf(text, sizeof text, format, arguments);
  return text;
}

/// The finaliser of splitmix64.
uint64_t mix(uint64_t value) {
  value += 0x9e3779b97f4a7c15;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

struct LastError {
  std::mutex mutex;
  /// All texts there have been: whoever reads one may do so as long as it likes.
  std::set<std::string> texts;
  const char *text = "";
};

LastError &last() {
  static LastError *there = new LastError;
  return *there;
}

size_t give(const std::string &text, char *to, size_t capacity) {
  if (to != nullptr && capacity > 0) {
    size_t length = std::min(text.size(), capacity - 1);
    memcpy(to, text.data(), length);
    to[length] = '\0';
  }
  return text.size();
}

void add_rule(Rule rule) {
  std::lock_guard<std::mutex> lock(state().mutex);
  state().rules.push_back(std::move(rule));
}

void set_flag(bool State::*flag, int on) {
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    state().*flag = on != 0;
  }
  state().changed.notify_all();
}

}  // namespace

State &state() {
  static State *there = new State;
  return *there;
}

int32_t &thread_label() {
  static thread_local int32_t label = -1;
  return label;
}

std::string End::name() const {
  char text[80];
  snprintf(text, sizeof text, "rank %d (%d of %d)", label, rank, clique->size);
  return text;
}

void problem(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::string text = format_list(format, arguments);
  va_end(arguments);
  if (state().problems.size() < kProblemsMax) state().problems.push_back(std::move(text));
}

uint64_t roll(End &end) {
  uint64_t which = static_cast<uint64_t>(end.label) << 32 | static_cast<uint32_t>(end.rank);
  return mix(mix(state().seed ^ mix(which)) ^ end.num_rolls++);
}

int32_t rule(Rule::Kind kind, int32_t from, int32_t to, uint64_t ordinal, int32_t otherwise) {
  for (const Rule &rule : state().rules) {
    if (rule.kind == kind && rule.from == from && rule.to == to && rule.ordinal == ordinal) return rule.value;
  }
  return otherwise;
}

int fail_call(const char *function, int32_t label) {
  uint64_t of_all = state().num_calls[{function, -1}]++;
  uint64_t of_label = label < 0 ? UINT64_MAX : state().num_calls[{function, label}]++;
  for (const Rule &rule : state().rules) {
    if (rule.kind != Rule::kFailCall || rule.function != function) continue;
    if (rule.from < 0 ? rule.ordinal == of_all : rule.from == label && rule.ordinal == of_label) return rule.value;
  }
  return ncclSuccess;
}

int last_error(int code, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::string text = format_list(format, arguments);
  va_end(arguments);
  std::lock_guard<std::mutex> lock(last().mutex);
  last().text = last().texts.insert(std::move(text)).first->c_str();
  return code;
}

}  // namespace nccl_standin

using namespace nccl_standin;

CONTROL_FUNCTION void nccl_standin_reset(uint64_t seed, int32_t version) {
  std::vector<std::shared_ptr<End>> left;
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    State &now = state();
    now.generation += 1;
    for (auto &handle : now.handles) {
      std::shared_ptr<End> &end = handle.second.second;
      if (!end->is_gone) left.push_back(end);
    }
    now.is_init_hung = now.is_abort_hung = now.is_same_device_forbidden = false;
    now.is_connected_lazily = now.has_windows = true;
    now.is_waiting_over = false;
  }
  // The problems of ends that nobody wants any more are none of the next test.
  for (std::shared_ptr<End> &end : left) withdraw(*end);
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    State &now = state();
    now.seed = seed;
    now.version = version == 0 ? 22809 : version;
    now.rules.clear();
    now.problems.clear();
    now.num_calls.clear();
    now.num_sends.clear();
    now.num_messages.clear();
    now.cliques.clear();
  }
  state().changed.notify_all();
  if (const Driver *found = driver()) found->wake();
}

CONTROL_FUNCTION void nccl_standin_set_rank(int32_t rank) { thread_label() = rank; }

CONTROL_FUNCTION void nccl_standin_drop(int32_t from, int32_t to, uint64_t ordinal) {
  add_rule({Rule::kDrop, "", from, to, ordinal, 1});
}

CONTROL_FUNCTION void nccl_standin_delay(int32_t from, int32_t to, uint64_t ordinal, uint32_t milliseconds) {
  add_rule({Rule::kDelay, "", from, to, ordinal, static_cast<int32_t>(milliseconds)});
}

CONTROL_FUNCTION void nccl_standin_async_error(int32_t label, uint64_t ordinal, int32_t code) {
  add_rule({Rule::kAsyncError, "", label, -1, ordinal, code});
}

CONTROL_FUNCTION void nccl_standin_fail_call(const char *function, uint64_t ordinal, int32_t code) {
  add_rule({Rule::kFailCall, function, -1, -1, ordinal, code});
}

CONTROL_FUNCTION void nccl_standin_fail_call_of(int32_t label, const char *function, uint64_t ordinal, int32_t code) {
  add_rule({Rule::kFailCall, function, label, -1, ordinal, code});
}

CONTROL_FUNCTION void nccl_standin_hang_init(int on) { set_flag(&State::is_init_hung, on); }

CONTROL_FUNCTION void nccl_standin_hang_abort(int on) { set_flag(&State::is_abort_hung, on); }

CONTROL_FUNCTION void nccl_standin_forbid_same_device(int on) { set_flag(&State::is_same_device_forbidden, on); }

CONTROL_FUNCTION void nccl_standin_connect_at_first_use(int on) { set_flag(&State::is_connected_lazily, on); }

CONTROL_FUNCTION void nccl_standin_offer_windows(int on) { set_flag(&State::has_windows, on); }

CONTROL_FUNCTION void nccl_standin_release_waits(void) {
  set_flag(&State::is_waiting_over, 1);
  if (const Driver *found = driver()) found->wake();
}

CONTROL_FUNCTION uint64_t nccl_standin_live_comms(void) {
  std::lock_guard<std::mutex> lock(state().mutex);
  uint64_t live = 0;
  for (auto &handle : state().handles) live += !handle.second.second->is_gone;
  return live;
}

CONTROL_FUNCTION uint64_t nccl_standin_num_sends(int32_t from, int32_t to) {
  std::lock_guard<std::mutex> lock(state().mutex);
  uint64_t sends = 0;
  for (auto &count : state().num_sends) {
    bool is_meant = (from < 0 || from == count.first.first) && (to < 0 || to == count.first.second);
    sends += is_meant ? count.second : 0;
  }
  return sends;
}

CONTROL_FUNCTION size_t nccl_standin_report(char *text, size_t capacity) {
  std::lock_guard<std::mutex> lock(state().mutex);
  std::string lines;
  for (const std::string &line : state().problems) lines += line + "\n";
  return give(lines, text, capacity);
}

CONTROL_FUNCTION size_t nccl_standin_waiting(char *text, size_t capacity) {
  std::lock_guard<std::mutex> lock(state().mutex);
  std::set<std::string> lines;
  for (auto &handle : state().handles) {
    const End &end = *handle.second.second;
    if (end.is_gone) continue;
    std::string line = end.name();
    if (!end.is_initialised) line += ": being initialised";
    if (end.is_in_progress) line += ": in progress";
    if (end.async_error != ncclSuccess) line += ": async error " + std::to_string(end.async_error);
    for (auto &entry : end.clique->channels) {
      bool is_from = entry.first.first == end.rank, is_to = entry.first.second == end.rank;
      const Channel &channel = entry.second;
      std::string peer = std::to_string(end.clique->labels[is_from ? entry.first.second : entry.first.first]);
      if (is_from && channel.is_send_called && !channel.is_receive_called) {
        line += ": connects to " + peer;
      } else if (is_to && channel.is_receive_called && !channel.is_send_called) {
        line += ": connects to " + peer;
      }
      if (is_from && !channel.sends.empty()) line += ": sends to " + peer;
      if (is_to && !channel.receives.empty()) line += ": receives from " + peer;
    }
    if (end.registering != nullptr) line += ": registers memory";
    if (end.num_waits > 0) line += ": waits for signals";
    line += ": " + std::to_string(end.num_pending) + " operations pending";
    lines.insert(line + "\n");
  }
  std::string all;
  for (const std::string &line : lines) all += line;
  return give(all, text, capacity);
}

NCCL_FUNCTION int ncclGetVersion(int *version) {
  std::lock_guard<std::mutex> lock(state().mutex);
  if (int code = fail_call("ncclGetVersion", thread_label())) return code;
  if (version == nullptr) return last_error(ncclInvalidArgument, "GetVersion : version argument is NULL");
  *version = state().version;
  return ncclSuccess;
}

NCCL_FUNCTION const char *ncclGetErrorString(int code) {
  static const char *const texts[] = {
      "no error",         "unhandled cuda error", "unhandled system error", "internal error", "invalid argument",
      "invalid usage",    "remote process exited or network error", "operation in progress", "timeout",
  };
  bool is_known = code >= 0 && code < static_cast<int>(sizeof texts / sizeof *texts);
  return is_known ? texts[code] : "unknown result code";
}

NCCL_FUNCTION const char *ncclGetLastError(ncclComm_t) {
  std::lock_guard<std::mutex> lock(last().mutex);
  return last().text;
}
