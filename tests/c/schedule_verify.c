/* Schedules and communicating orders verified: valid ones, faults, and what is said of them. */
#include <dualpipe.h>
#include <string.h>

#include "check.h"

enum { RANKS = 2, MICROBATCHES = 6, ACTIONS = 128 };

static dualpipe_schedule_t published(uint32_t kind) {
  dualpipe_schedule_options options = DUALPIPE_SCHEDULE_OPTIONS_INIT;
  dualpipe_schedule_t schedule = NULL;
  options.kind = kind;
  options.num_ranks = RANKS;
  options.num_microbatches = MICROBATCHES;
  CHECK_OK(dualpipe_schedule_create(&options, &schedule));
  return schedule;
}

static dualpipe_verification_info info_of(dualpipe_verification_t verification) {
  dualpipe_verification_info info = DUALPIPE_VERIFICATION_INFO_INIT;
  CHECK_OK(dualpipe_verification_describe(verification, &info));
  return info;
}

static dualpipe_schedule_finding first_finding(dualpipe_verification_t verification) {
  dualpipe_schedule_finding findings[8];
  size_t count = 0;
  CHECK_OK(dualpipe_verification_findings(verification, findings, 8, &count));
  CHECK(count > 0 && count == info_of(verification).num_findings);
  return findings[0];
}

/* The actions of a schedule's programs. */
static void actions_of(dualpipe_schedule_t schedule, dualpipe_action (*actions)[ACTIONS],
                       dualpipe_action_order *orders) {
  uint32_t rank;
  for (rank = 0; rank < RANKS; rank++) {
    dualpipe_program_t program = NULL;
    CHECK_OK(dualpipe_program_create(schedule, rank, &program));
    CHECK_OK(dualpipe_program_actions(program, actions[rank], ACTIONS, &orders[rank].num_actions));
    CHECK_OK(dualpipe_program_free(program));
    orders[rank].actions = actions[rank];
  }
}

static size_t position(const dualpipe_action_order *order, uint32_t kind, size_t which) {
  size_t i;
  for (i = 0; i < order->num_actions; i++)
    if (order->actions[i].kind == kind && which-- == 0) return i;
  CHECK(0);
  return 0;
}

static void a_valid_schedule_holds_under_each_transport(void) {
  const dualpipe_stage_costs stage = {1, 1, 1, 3, 0, 100, 1000};
  dualpipe_schedule_verify_options options = DUALPIPE_SCHEDULE_VERIFY_OPTIONS_INIT;
  dualpipe_schedule_t schedule = published(DUALPIPE_KIND_DUALPIPE);
  dualpipe_verification_t verification = NULL;
  dualpipe_verification_trial trials[3 * 6];
  dualpipe_verification_rank ranks[RANKS];
  dualpipe_verification_info info;
  dualpipe_costs costs = DUALPIPE_COSTS_INIT;
  uint32_t peaks[RANKS], valid = 0, i;
  size_t count = 0;
  costs.stages = &stage;
  costs.num_stages = 1;
  options.costs = &costs;
  CHECK_OK(dualpipe_schedule_verify(schedule, &options, &verification));
  info = info_of(verification);
  CHECK(info.is_valid == 1 && info.num_findings == 0 && info.num_omitted == 0);
  CHECK(info.num_ranks == RANKS && info.has_bytes == 1);
  CHECK(info.transports == 63 && info.holds_for == 63);
  CHECK_OK(dualpipe_schedule_check(schedule, peaks, RANKS, &count));
  CHECK_OK(dualpipe_verification_ranks(verification, ranks, RANKS, &count));
  CHECK(count == RANKS);
  for (i = 0; i < RANKS; i++) {
    CHECK(ranks[i].peak_live == peaks[i]);
    CHECK(ranks[i].peak_bytes == 2000 + 100 * (uint64_t)peaks[i]);
  }
  CHECK_OK(dualpipe_verification_trials(verification, trials, 18, &count));
  CHECK(count == 18);
  for (i = 0; i < 18; i++) valid |= trials[i].kind == DUALPIPE_NONE ? trials[i].transport : 0;
  CHECK(valid == 63);
  CHECK_OK(dualpipe_verification_to_text(verification, NULL, 0, &count));
  CHECK(count == 0);
  CHECK_OK(dualpipe_verification_free(verification));
  CHECK_OK(dualpipe_schedule_free(schedule));
}

static void the_actions_of_programs_are_valid_and_a_swap_is_found(void) {
  dualpipe_schedule_verify_options options = DUALPIPE_SCHEDULE_VERIFY_OPTIONS_INIT;
  dualpipe_schedule_t schedule = published(DUALPIPE_KIND_GPIPE), smaller = NULL;
  static dualpipe_action actions[RANKS][ACTIONS], few[ACTIONS];
  dualpipe_action_order orders[RANKS];
  dualpipe_verification_t verification = NULL;
  dualpipe_schedule_finding finding;
  dualpipe_schedule_info info = DUALPIPE_SCHEDULE_INFO_INIT;
  dualpipe_action swapped;
  dualpipe_pass passes[4];
  uint32_t ranks[4];
  static char text[1 << 14];
  size_t count = 0, i, j;
  actions_of(schedule, actions, orders);
  options.orders = orders;
  options.num_orders = RANKS;
  options.transports = DUALPIPE_VERIFY_ASYNCHRONOUS;
  CHECK_OK(dualpipe_schedule_verify(schedule, &options, &verification));
  CHECK(info_of(verification).is_valid == 1);
  CHECK_OK(dualpipe_verification_free(verification));

  i = position(&orders[1], DUALPIPE_ACTION_RECEIVE, 2);
  j = position(&orders[1], DUALPIPE_ACTION_RECEIVE, 3);
  swapped = actions[1][i];
  actions[1][i] = actions[1][j];
  actions[1][i].message.to_stage = DUALPIPE_NONE; /* the pass says it */
  actions[1][j] = swapped;
  options.transports = DUALPIPE_VERIFY_ASYNCHRONOUS | DUALPIPE_VERIFY_ASYNCHRONOUS_TAGGED;
  CHECK_OK(dualpipe_schedule_verify(schedule, &options, &verification));
  CHECK(info_of(verification).is_valid == 0);
  finding = first_finding(verification);
  if (finding.kind == DUALPIPE_SCHEDULE_FINDING_FIFO_MISMATCH) {
    CHECK(finding.transports == DUALPIPE_VERIFY_ASYNCHRONOUS);
    CHECK(info_of(verification).holds_for == DUALPIPE_VERIFY_ASYNCHRONOUS_TAGGED);
  } else {
    CHECK(finding.kind == DUALPIPE_SCHEDULE_FINDING_RECEIVE_AFTER_USE);
    CHECK(info_of(verification).holds_for == 0);
  }
  CHECK(finding.receives == DUALPIPE_RECEIVES_GIVEN && finding.has_counterexample == 1 && finding.is_smallest == 1);
  CHECK_OK(dualpipe_verification_finding_ranks(verification, 0, ranks, 4, &count));
  CHECK(count >= 1 && ranks[count - 1] == 1);
  CHECK_OK(dualpipe_verification_finding_passes(verification, 0, passes, 4, &count));
  CHECK(count >= 1 && passes[0].stage == 0 && passes[0].copy == 0);
  CHECK_OK(dualpipe_verification_finding_text(verification, 0, text, sizeof text, &count));
  CHECK(strstr(text, "activation 0F") != NULL);
  CHECK_OK(dualpipe_verification_to_text(verification, text, sizeof text, &count));
  CHECK(strstr(text, "The same with micro-batches ") != NULL);

  CHECK_OK(dualpipe_verification_counterexample_text(verification, 0, text, sizeof text, &count));
  CHECK(strncmp(text, "The same with micro-batches ", 28) == 0);
  CHECK_OK(dualpipe_verification_counterexample(verification, 0, &smaller));
  CHECK_OK(dualpipe_schedule_describe(smaller, &info));
  CHECK(info.num_ranks == RANKS && info.num_microbatches < MICROBATCHES && info.kind == DUALPIPE_KIND_CUSTOM);
  /* The counterexample has the same fault. */
  for (i = 0; i < RANKS; i++) {
    CHECK_OK(dualpipe_verification_counterexample_actions(verification, 0, (uint32_t)i, few, ACTIONS, &count));
    memcpy(actions[i], few, count * sizeof few[0]);
    orders[i].num_actions = count;
  }
  CHECK_OK(dualpipe_verification_free(verification));
  CHECK_OK(dualpipe_schedule_verify(smaller, &options, &verification));
  CHECK(first_finding(verification).kind == finding.kind);
  CHECK_OK(dualpipe_verification_free(verification));
  CHECK_OK(dualpipe_schedule_free(smaller));
  CHECK_OK(dualpipe_schedule_free(schedule));
}

static void a_cap_that_is_exceeded_is_said(void) {
  const uint64_t each[RANKS] = {6, 5}, all = 6;
  dualpipe_schedule_verify_options options = DUALPIPE_SCHEDULE_VERIFY_OPTIONS_INIT;
  dualpipe_schedule_t schedule = published(DUALPIPE_KIND_GPIPE);
  dualpipe_verification_t verification = NULL;
  uint32_t rank = 77;
  size_t count = 0;
  options.cap_activations = &all;
  options.num_cap_activations = 1;
  CHECK_OK(dualpipe_schedule_verify(schedule, &options, &verification));
  CHECK(info_of(verification).is_valid == 1 && info_of(verification).has_bytes == 0);
  CHECK_OK(dualpipe_verification_free(verification));
  options.cap_activations = each;
  options.num_cap_activations = RANKS;
  options.no_counterexamples = 1;
  CHECK_OK(dualpipe_schedule_verify(schedule, &options, &verification));
  CHECK(first_finding(verification).kind == DUALPIPE_SCHEDULE_FINDING_EXCEEDS_CAP);
  CHECK(first_finding(verification).receives == DUALPIPE_NONE);
  CHECK(first_finding(verification).has_counterexample == 0);
  CHECK_OK(dualpipe_verification_finding_ranks(verification, 0, &rank, 1, &count));
  CHECK(count == 1 && rank == 1);
  CHECK_OK(dualpipe_verification_free(verification));
  CHECK_OK(dualpipe_schedule_free(schedule));
}

static void a_csv_is_verified_with_its_messages(void) {
  /* As torch 2.9 has it, and with rank 1's gradients sent before its last activation is there. */
  const char *right = "0F0,0SEND_F0,0RECV_B0,0B0\n1RECV_F0,1F0,1B0,1SEND_B0\n";
  const char *wrong = "0F0,0SEND_F0,0RECV_B0,0B0\n1F0,1RECV_F0,1B0,1SEND_B0\n";
  dualpipe_schedule_verify_options options = DUALPIPE_SCHEDULE_VERIFY_OPTIONS_INIT;
  const uint32_t comms = DUALPIPE_TORCH_CSV_COMPUTE_COMMS;
  dualpipe_verification_t verification = NULL;
  CHECK_OK(dualpipe_schedule_verify_torch_csv(right, strlen(right), 2, 9, comms, &options, &verification));
  CHECK(info_of(verification).is_valid == 1);
  CHECK_OK(dualpipe_verification_free(verification));
  CHECK_OK(dualpipe_schedule_verify_torch_csv(wrong, strlen(wrong), 2, 9, comms, &options, &verification));
  CHECK(first_finding(verification).kind == DUALPIPE_SCHEDULE_FINDING_RECEIVE_AFTER_USE);
  CHECK(first_finding(verification).receives == DUALPIPE_RECEIVES_GIVEN);
  CHECK_OK(dualpipe_verification_free(verification));
}

int main(void) {
  a_valid_schedule_holds_under_each_transport();
  the_actions_of_programs_are_valid_and_a_swap_is_found();
  a_cap_that_is_exceeded_is_said();
  a_csv_is_verified_with_its_messages();
  return 0;
}
