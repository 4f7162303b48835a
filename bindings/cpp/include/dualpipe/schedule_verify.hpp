/// A schedule one can trust: complete, in order, within memory, every message received, and no rank waiting for ever.
#ifndef DUALPIPE_SCHEDULE_VERIFY_HPP
#define DUALPIPE_SCHEDULE_VERIFY_HPP

#include <dualpipe/action.h>
#include <dualpipe/cost.hpp>
#include <dualpipe/op.hpp>
#include <dualpipe/program.hpp>
#include <dualpipe/schedule.hpp>
#include <dualpipe/schedule_verify.h>
#include <dualpipe/status.hpp>
#include <dualpipe/torch_csv.hpp>
#include <dualpipe/verification.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dualpipe {

/// What an action does.
enum class ActionKind : std::uint32_t {
  run = DUALPIPE_ACTION_RUN,             ///< Wait for what the op needs, and run it.
  send = DUALPIPE_ACTION_SEND,           ///< Start to send a message.
  receive = DUALPIPE_ACTION_RECEIVE,     ///< Receive a message, or post its receive.
  wait_send = DUALPIPE_ACTION_WAIT_SEND, ///< Wait until an earlier send of the message has been taken up.
};

/// One action of a communicating order: what a rank runs, or its part in an exchange; its peer (of send and receive).
struct Action : dualpipe_action {
  Action() : dualpipe_action() {}
  Action(const dualpipe_action &action) : dualpipe_action(action) {}

  static Action run(const Op &op) { return Action(ActionKind::run, none, Message(), op); }
  static Action send(const Message &message, std::uint32_t to) {
    return Action(ActionKind::send, to, message, Op());
  }
  static Action receive(const Message &message, std::uint32_t from) {
    return Action(ActionKind::receive, from, message, Op());
  }
  static Action wait_send(const Message &message) { return Action(ActionKind::wait_send, none, message, Op()); }

  ActionKind kind() const noexcept { return static_cast<ActionKind>(dualpipe_action::kind); }
  /// What travels, of send, receive and wait_send.
  Message message() const noexcept { return dualpipe_action::message; }
  /// What runs, of run.
  Op op() const noexcept { return dualpipe_action::op; }

private:
  Action(ActionKind what, std::uint32_t with, const Message &of_message, const Op &of_op)
      : dualpipe_action{static_cast<std::uint32_t>(what), with, of_message, of_op} {}
};

/// How messages travel: bits, to be put together with |. Without tags, the k-th receive from a rank gets that rank's
/// k-th send.
enum class VerifyTransport : std::uint32_t {
  asynchronous = DUALPIPE_VERIFY_ASYNCHRONOUS,               ///< Neither a send nor a receive waits; an op does.
  rendezvous = DUALPIPE_VERIFY_RENDEZVOUS,                   ///< A send waits until its receive has been posted.
  grouped = DUALPIPE_VERIFY_GROUPED,                         ///< What is between two ops is one blocking group.
  asynchronous_tagged = DUALPIPE_VERIFY_ASYNCHRONOUS_TAGGED, ///< A receive finds its message by name.
  rendezvous_tagged = DUALPIPE_VERIFY_RENDEZVOUS_TAGGED,     ///< Likewise.
  grouped_tagged = DUALPIPE_VERIFY_GROUPED_TAGGED,           ///< Likewise.
  all = 63,                                                  ///< All of them.
};

constexpr VerifyTransport operator|(VerifyTransport one, VerifyTransport other) noexcept {
  return static_cast<VerifyTransport>(static_cast<std::uint32_t>(one) | static_cast<std::uint32_t>(other));
}
constexpr VerifyTransport operator&(VerifyTransport one, VerifyTransport other) noexcept {
  return static_cast<VerifyTransport>(static_cast<std::uint32_t>(one) & static_cast<std::uint32_t>(other));
}

/// Where the receives of a communicating order stand.
enum class Receives : std::uint32_t {
  given = DUALPIPE_RECEIVES_GIVEN,           ///< Where the caller put them.
  lowered = DUALPIPE_RECEIVES_LOWERED,       ///< Where a program has them.
  before_use = DUALPIPE_RECEIVES_BEFORE_USE, ///< Right before the op that needs the message.
  at_start = DUALPIPE_RECEIVES_AT_START,     ///< Before the first op, those from one rank as that rank sends.
  of_none = DUALPIPE_NONE,                   ///< It is not about a communicating order.
};

/// What sort of fault a finding is; dualpipe/verification.h has more words.
enum class ScheduleFindingKind : std::uint32_t {
  foreign_op = DUALPIPE_SCHEDULE_FINDING_FOREIGN_OP,                   ///< An op that is none of the schedule's.
  missing_op = DUALPIPE_SCHEDULE_FINDING_MISSING_OP,                   ///< A pass without one of its ops.
  doubled_op = DUALPIPE_SCHEDULE_FINDING_DOUBLED_OP,                   ///< A pass with one of its ops twice.
  op_order = DUALPIPE_SCHEDULE_FINDING_OP_ORDER,                       ///< An op before one that it needs.
  dependency_cycle = DUALPIPE_SCHEDULE_FINDING_DEPENDENCY_CYCLE,       ///< Ops that need one another in a circle.
  task_order = DUALPIPE_SCHEDULE_FINDING_TASK_ORDER,                   ///< Actions that do not do the schedule.
  foreign_message = DUALPIPE_SCHEDULE_FINDING_FOREIGN_MESSAGE,         ///< A message that there is not.
  missing_message = DUALPIPE_SCHEDULE_FINDING_MISSING_MESSAGE,         ///< One that is not sent or not received.
  doubled_message = DUALPIPE_SCHEDULE_FINDING_DOUBLED_MESSAGE,         ///< One that is sent or received twice.
  send_before_made = DUALPIPE_SCHEDULE_FINDING_SEND_BEFORE_MADE,       ///< A send before the op that makes it.
  receive_after_use = DUALPIPE_SCHEDULE_FINDING_RECEIVE_AFTER_USE,     ///< A receive after the op that needs it.
  wait_without_send = DUALPIPE_SCHEDULE_FINDING_WAIT_WITHOUT_SEND,     ///< A wait_send without a send before it.
  foreign_reduction = DUALPIPE_SCHEDULE_FINDING_FOREIGN_REDUCTION,     ///< A reduction of what has no twin.
  missing_reduction = DUALPIPE_SCHEDULE_FINDING_MISSING_REDUCTION,     ///< A copy that is not reduced.
  doubled_reduction = DUALPIPE_SCHEDULE_FINDING_DOUBLED_REDUCTION,     ///< A copy that is reduced twice.
  premature_reduction = DUALPIPE_SCHEDULE_FINDING_PREMATURE_REDUCTION, ///< One before the last weight gradient.
  crossed_reductions = DUALPIPE_SCHEDULE_FINDING_CROSSED_REDUCTIONS,   ///< Two ranks in different orders.
  fifo_mismatch = DUALPIPE_SCHEDULE_FINDING_FIFO_MISMATCH,             ///< A receive that gets another message.
  deadlock = DUALPIPE_SCHEDULE_FINDING_DEADLOCK,                       ///< Ranks that wait for one another.
  exceeds_cap = DUALPIPE_SCHEDULE_FINDING_EXCEEDS_CAP,                 ///< More kept alive than the cap allows.
};

/// What to verify besides the schedule, and for what.
struct ScheduleVerifyOptions {
  /// Those to hold for.
  VerifyTransport transports = VerifyTransport::all;
  /// The communicating order of each rank. Empty: three places of the receives are tried.
  std::vector<std::vector<Action>> orders = {};
  /// To count bytes with; only those of memory matter.
  std::optional<Costs> costs = std::nullopt;
  /// How many activations may be alive at once: on each rank, or one entry for all. Empty: any number.
  std::vector<std::uint64_t> cap_activations = {};
  /// How many bytes each rank may keep, likewise; it needs costs. Only one of the caps may be there.
  std::vector<std::uint64_t> cap_bytes = {};
  /// Whether to look for counterexamples.
  bool counterexamples = true;
};

/// What was found: is_valid, num_ranks, num_findings, transports, holds_for, has_bytes, num_omitted.
struct VerificationInfo : dualpipe_verification_info {
  VerificationInfo() : dualpipe_verification_info DUALPIPE_VERIFICATION_INFO_INIT {}
};

/// What a rank keeps at most: peak_live, peak_bytes.
using VerificationRank = dualpipe_verification_rank;

/// One fault: transports, has_counterexample, is_smallest; and what it is about.
struct ScheduleFinding : dualpipe_schedule_finding {
  ScheduleFindingKind kind() const noexcept {
    return static_cast<ScheduleFindingKind>(dualpipe_schedule_finding::kind);
  }
  /// The transports, of those asked for, under which it is a fault.
  VerifyTransport transports() const noexcept {
    return static_cast<VerifyTransport>(dualpipe_schedule_finding::transports);
  }
  Receives receives() const noexcept { return static_cast<Receives>(dualpipe_schedule_finding::receives); }
};

/// How one communicating order fares under one transport.
struct VerificationTrial : dualpipe_verification_trial {
  Receives receives() const noexcept { return static_cast<Receives>(dualpipe_verification_trial::receives); }
  VerifyTransport transport() const noexcept {
    return static_cast<VerifyTransport>(dualpipe_verification_trial::transport);
  }
  /// Whether nothing is wrong.
  bool holds() const noexcept { return dualpipe_verification_trial::kind == none; }
  /// What is wrong, if anything is.
  ScheduleFindingKind kind() const noexcept {
    return static_cast<ScheduleFindingKind>(dualpipe_verification_trial::kind);
  }
};

// C fills rows of them.
static_assert(sizeof(Action) == sizeof(dualpipe_action));
static_assert(sizeof(ScheduleFinding) == sizeof(dualpipe_schedule_finding));
static_assert(sizeof(VerificationTrial) == sizeof(dualpipe_verification_trial));

namespace detail {

/// The options as C has them, while both live and stay as they are.
class VerifyOptionsInC {
public:
  explicit VerifyOptionsInC(const ScheduleVerifyOptions &given) {
    if (given.costs.has_value()) costs = given.costs->in_c();
    orders.reserve(given.orders.size());
    for (const std::vector<Action> &order : given.orders) orders.push_back({order.data(), order.size()});
    options.transports = static_cast<std::uint32_t>(given.transports);
    options.orders = orders.empty() ? nullptr : orders.data();
    options.num_orders = orders.size();
    options.costs = given.costs.has_value() ? &costs : nullptr;
    options.cap_activations = given.cap_activations.empty() ? nullptr : given.cap_activations.data();
    options.num_cap_activations = given.cap_activations.size();
    options.cap_bytes = given.cap_bytes.empty() ? nullptr : given.cap_bytes.data();
    options.num_cap_bytes = given.cap_bytes.size();
    options.no_counterexamples = given.counterexamples ? 0 : 1;
  }
  VerifyOptionsInC(const VerifyOptionsInC &) = delete;
  VerifyOptionsInC &operator=(const VerifyOptionsInC &) = delete;

  dualpipe_schedule_verify_options options = DUALPIPE_SCHEDULE_VERIFY_OPTIONS_INIT;

private:
  std::vector<dualpipe_action_order> orders;
  dualpipe_costs costs = DUALPIPE_COSTS_INIT;
};

} // namespace detail

inline namespace DUALPIPE_ERRORS {

/// What a program does, as actions: its instructions without the buffers.
inline Result<std::vector<Action>> program_actions(const Program &program) {
  return detail::values<Action>([&](Action *actions, std::size_t capacity, std::size_t *count) {
    return dualpipe_program_actions(program.get(), actions, capacity, count);
  });
}

/// What a verification found. It never changes: any number of threads may use it at once. It stays usable after a fork.
class Verification : public detail::Handle<dualpipe_verification_t, dualpipe_verification_free> {
public:
  using Handle::Handle;

  /// Verifies a schedule, and with orders in the options a communicating order of it.
  ///
  /// Errors: Status::invalid_argument where it cannot be told what is meant: orders that are not one for each rank, an
  /// action of no kind, rank or pass, with rank and position; a cap or costs that do not fit. Whatever else is wrong is
  /// a finding.
  static Result<Verification> of(const Schedule &schedule, const ScheduleVerifyOptions &options = {}) {
    dualpipe_verification_t verification = nullptr;
    const detail::VerifyOptionsInC in_c(options);
    const dualpipe_status status = dualpipe_schedule_verify(schedule.get(), &in_c.options, &verification);
    return detail::outcome(status, [&] { return Verification(verification); });
  }

  /// Verifies a CSV of torch's; the communicating order of compute_comms as it stands there. No orders in the options.
  ///
  /// Errors: as of read_torch_csv and of the other.
  static Result<Verification> of_torch_csv(std::string_view text, TorchVersion torch, TorchCsvFormat format,
                                           const ScheduleVerifyOptions &options = {}) {
    dualpipe_verification_t verification = nullptr;
    const detail::VerifyOptionsInC in_c(options);
    // An empty view may be of nothing.
    const char *const bytes = text.empty() ? "" : text.data();
    const dualpipe_status status =
        dualpipe_schedule_verify_torch_csv(bytes, text.size(), torch.major, torch.minor,
                                           static_cast<std::uint32_t>(format), &in_c.options, &verification);
    return detail::outcome(status, [&] { return Verification(verification); });
  }

  /// What was found, in numbers.
  Result<VerificationInfo> describe() const {
    VerificationInfo info;
    const dualpipe_status status = dualpipe_verification_describe(get(), &info);
    return detail::outcome(status, [&] { return info; });
  }

  /// What each rank keeps at most.
  Result<std::vector<VerificationRank>> ranks() const {
    return detail::values<VerificationRank>([&](VerificationRank *ranks, std::size_t capacity, std::size_t *count) {
      return dualpipe_verification_ranks(get(), ranks, capacity, count);
    });
  }

  /// What is wrong, fault by fault: in order of what depends on what, then of ranks.
  Result<std::vector<ScheduleFinding>> findings() const {
    return detail::values<ScheduleFinding>([&](ScheduleFinding *findings, std::size_t capacity, std::size_t *count) {
      return dualpipe_verification_findings(get(), findings, capacity, count);
    });
  }

  /// The ranks that a finding, by its index, is about; of a deadlock each waits for the next.
  Result<std::vector<std::uint32_t>> finding_ranks(std::uint32_t finding) const {
    return detail::values<std::uint32_t>([&](std::uint32_t *ranks, std::size_t capacity, std::size_t *count) {
      return dualpipe_verification_finding_ranks(get(), finding, ranks, capacity, count);
    });
  }

  /// The passes that it is about.
  Result<std::vector<Pass>> finding_passes(std::uint32_t finding) const {
    return detail::values<Pass>([&](Pass *passes, std::size_t capacity, std::size_t *count) {
      return dualpipe_verification_finding_passes(get(), finding, passes, capacity, count);
    });
  }

  /// It in words.
  Result<std::string> finding_text(std::uint32_t finding) const {
    return detail::text([&](char *text, std::size_t capacity, std::size_t *length) {
      return dualpipe_verification_finding_text(get(), finding, text, capacity, length);
    });
  }

  /// Its counterexample: the same schedule with fewer micro-batches, and the same kind of fault.
  ///
  /// Errors: Status::invalid_argument if it has none.
  Result<Schedule> counterexample(std::uint32_t finding) const {
    dualpipe_schedule_t schedule = nullptr;
    const dualpipe_status status = dualpipe_verification_counterexample(get(), finding, &schedule);
    return detail::outcome(status, [&] { return Schedule(schedule); });
  }

  /// The communicating order of a rank in it; empty if none was given.
  Result<std::vector<Action>> counterexample_actions(std::uint32_t finding, std::uint32_t rank) const {
    return detail::values<Action>([&](Action *actions, std::size_t capacity, std::size_t *count) {
      return dualpipe_verification_counterexample_actions(get(), finding, rank, actions, capacity, count);
    });
  }

  /// It in words.
  Result<std::string> counterexample_text(std::uint32_t finding) const {
    return detail::text([&](char *text, std::size_t capacity, std::size_t *length) {
      return dualpipe_verification_counterexample_text(get(), finding, text, capacity, length);
    });
  }

  /// Each communicating order under each transport that was asked for.
  Result<std::vector<VerificationTrial>> trials() const {
    return detail::values<VerificationTrial>([&](VerificationTrial *trials, std::size_t capacity, std::size_t *count) {
      return dualpipe_verification_trials(get(), trials, capacity, count);
    });
  }

  /// All findings and their counterexamples in words; empty if nothing was found.
  Result<std::string> to_text() const {
    return detail::text([&](char *text, std::size_t capacity, std::size_t *length) {
      return dualpipe_verification_to_text(get(), text, capacity, length);
    });
  }
};

} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_SCHEDULE_VERIFY_HPP
