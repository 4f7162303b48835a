/* Executors on CUDA: tasks that only enqueue, streams of the caller's, steps that return before the device is done,
 * steps launched as graphs, times, shapes, NCCL, faults. Without a driver: that all of it is refused in words. With an
 * argument there must be a driver. */
#define _POSIX_C_SOURCE 200809L
#include "cuda_trail.h"

static uint32_t graph_state(const rank_state *state, char text[256]) {
  uint32_t graph = 99;
  size_t length = 0;
  CHECK_OK(dualpipe_executor_graph(state->executor, &graph, text, 256, &length));
  CHECK(strlen(text) == length);
  return graph;
}

/* Steps that are done when they return. */
static void *run_plain(void *argument) {
  rank_state *state = (rank_state *)argument;
  dualpipe_timeline_t none = NULL;
  char text[256];
  unsigned char step;
  open_device(state);
  CHECK_OK(create_executor(state));
  for (step = 1; step <= 3; step++) {
    set_step(state, step);
    CHECK_OK(dualpipe_executor_step(state->executor, run_task, state));
    check_kept(state, state->kept, step);
    CHECK_OK(dualpipe_executor_synchronize(state->executor, 0));
    CHECK(graph_state(state, text) == DUALPIPE_GRAPH_OFF && text[0] == 0);
  }
  CHECK(state->reductions == 2 * 3);
  CHECK(dualpipe_executor_timeline(state->executor, &none) == DUALPIPE_ERROR_INVALID_ARGUMENT && none == NULL);
  CHECK(strstr(dualpipe_last_error(), "is_timed") != NULL);
  CHECK_OK(dualpipe_executor_free(state->executor));
  close_device(state);
  return NULL;
}

/* Steps that return when they are enqueued: what comes on the stream afterwards comes after them, as the next step. */
static void *run_stream_ordered(void *argument) {
  rank_state *state = (rank_state *)argument;
  unsigned char step;
  open_device(state);
  CHECK_OK(create_executor(state));
  for (step = 1; step <= 3; step++) {
    set_step(state, step);
    CHECK_OK(dualpipe_executor_step(state->executor, run_task, state));
    CHECK_CU(cu.copy(state->copy, state->kept, KEPT_BYTES, state->stream));
    CHECK_CU(cu.set(state->kept, 0xEE, KEPT_BYTES, state->stream));
    if (step == 2) {
      CHECK_OK(dualpipe_executor_synchronize(state->executor, 20000000000u));
      CHECK_CU(cu.stream_synchronize(state->stream));
      check_kept(state, state->copy, step);
    }
  }
  CHECK_CU(cu.stream_synchronize(state->stream));
  check_kept(state, state->copy, 3);
  CHECK_OK(dualpipe_executor_synchronize(state->executor, 20000000000u));
  CHECK_OK(dualpipe_executor_free(state->executor));
  close_device(state);
  return NULL;
}

/* The first step as usual, the second captured, the others launched without a call of the tasks. */
static void *run_graph(void *argument) {
  rank_state *state = (rank_state *)argument;
  char text[256];
  unsigned char step;
  int tasks = 0;
  open_device(state);
  CHECK_OK(create_executor(state));
  CHECK(graph_state(state, text) == DUALPIPE_GRAPH_COLD);
  for (step = 1; step <= 5; step++) {
    set_step(state, step);
    CHECK_OK(dualpipe_executor_step(state->executor, run_task, state));
    CHECK_OK(dualpipe_executor_synchronize(state->executor, 20000000000u));
    check_kept(state, state->kept, step);
    CHECK(graph_state(state, text) == (step == 1 ? DUALPIPE_GRAPH_WARM : DUALPIPE_GRAPH_CAPTURED));
    CHECK(text[0] == 0);
    if (step == 1) tasks = state->tasks;
    CHECK(tasks > 0 && state->tasks == (step == 1 ? tasks : 2 * tasks));
  }
  CHECK_OK(dualpipe_executor_free(state->executor));
  close_device(state);
  return NULL;
}

/* A step that cannot be captured runs all the same. */
static void *run_spoiled_graph(void *argument) {
  rank_state *state = (rank_state *)argument;
  char text[256];
  unsigned char step;
  uint32_t graph = 99;
  size_t length = 0;
  open_device(state);
  CHECK_OK(create_executor(state));
  for (step = 1; step <= 3; step++) {
    set_step(state, step);
    if (step == 2 && state->rank == 2) state->spoils_at = state->tasks + 5;
    /* Another rank may be at a task when its capture ends. */
    state->may_be_refused = step == 2;
    CHECK_OK(dualpipe_executor_step(state->executor, run_task, state));
    check_kept(state, state->kept, step);
  }
  CHECK(graph_state(state, text) == DUALPIPE_GRAPH_FELL_BACK && strstr(text, "cannot be captured") != NULL);
  CHECK(dualpipe_executor_graph(state->executor, &graph, text, 3, &length) == DUALPIPE_ERROR_BUFFER_TOO_SMALL);
  CHECK(graph == 99 && length == strlen(text));
  CHECK_OK(dualpipe_executor_free(state->executor));
  close_device(state);
  return NULL;
}

/* Tasks and messages have times. */
static dualpipe_timeline_t parts[NUM_RANKS];

static void *run_timed(void *argument) {
  rank_state *state = (rank_state *)argument;
  open_device(state);
  CHECK_OK(create_executor(state));
  set_step(state, 1);
  CHECK_OK(dualpipe_executor_step(state->executor, run_task, state));
  if (state->cuda.is_stream_ordered) {
    dualpipe_timeline_t early = NULL;
    CHECK(dualpipe_executor_timeline(state->executor, &early) == DUALPIPE_ERROR_BUSY && early == NULL);
    CHECK(strstr(dualpipe_last_error(), "synchronize first") != NULL);
    CHECK_OK(dualpipe_executor_synchronize(state->executor, 20000000000u));
  }
  CHECK_OK(dualpipe_executor_timeline(state->executor, &parts[state->rank]));
  CHECK_OK(dualpipe_executor_free(state->executor));
  close_device(state);
  return NULL;
}

static void check_timeline(const rank_state states[NUM_RANKS]) {
  dualpipe_timeline_t whole = NULL;
  dualpipe_timeline_summary summary = DUALPIPE_TIMELINE_SUMMARY_INIT;
  int rank, tasks = 0;
  CHECK_OK(dualpipe_timeline_merge(parts, NUM_RANKS, &whole));
  CHECK_OK(dualpipe_timeline_summarize(whole, &summary));
  for (rank = 0; rank < NUM_RANKS; rank++) tasks += states[rank].tasks;
  CHECK(summary.source == DUALPIPE_TIMELINE_RECORDED && summary.num_ranks == NUM_RANKS);
  CHECK(summary.num_spans == (uint64_t)tasks && summary.makespan_ns > 0);
  CHECK(summary.num_messages == 2 * (NUM_RANKS - 1) * NUM_MICROBATCHES);
  CHECK_OK(dualpipe_timeline_free(whole));
  for (rank = 0; rank < NUM_RANKS; rank++) CHECK_OK(dualpipe_timeline_free(parts[rank]));
}

/* A task that fails ends every rank. */
static void *run_failing(void *argument) {
  rank_state *state = (rank_state *)argument;
  dualpipe_fault fault = DUALPIPE_FAULT_INIT;
  open_device(state);
  CHECK_OK(create_executor(state));
  if (state->rank == 1) state->fails_at = 6;
  note(state, dualpipe_executor_step(state->executor, run_task, state));
  if (state->status == DUALPIPE_OK) note(state, dualpipe_executor_synchronize(state->executor, 20000000000u));
  CHECK_OK(dualpipe_executor_fault(state->executor, &fault));
  CHECK(fault.has_failed == 1 && fault.rank == state->rank && fault.status == (uint32_t)state->status);
  CHECK(dualpipe_executor_step(state->executor, run_task, state) == DUALPIPE_ERROR_POISONED);
  CHECK(dualpipe_executor_synchronize(state->executor, 0) == DUALPIPE_ERROR_POISONED);
  CHECK_OK(dualpipe_executor_free(state->executor));
  close_device(state);
  return NULL;
}

/* All ranks in one process. */
static void with_inproc(rank_state states[NUM_RANKS], const dualpipe_cuda_options *cuda, int brings_streams,
                        uint64_t seed, void *(*run)(void *)) {
  dualpipe_executor_options options = executor_options();
  int rank;
  memset(states, 0, NUM_RANKS * sizeof *states);
  for (rank = 0; rank < NUM_RANKS; rank++) states[rank].brings_streams = brings_streams;
  begin_session(seed, cuda->uses_graph ? NOT_RANK_LOCAL : RANK_LOCAL);
  CHECK_OK(dualpipe_inproc_create(NUM_RANKS, &options.inproc));
  on_threads(states, &options, cuda, run);
  CHECK_OK(dualpipe_inproc_free(options.inproc));
  end_session();
}

static void in_one_process(void) {
  rank_state states[NUM_RANKS];
  dualpipe_cuda_options cuda = plain_cuda;
  uint64_t seed;
  int rank;
  for (seed = 0; seed < 4; seed++) {
    cuda = plain_cuda;
    with_inproc(states, &cuda, 0, seed, run_plain);
    cuda.has_comm_stream = 1;
    with_inproc(states, &cuda, 0, seed, run_plain);
    cuda.exchanges_shapes = 1;
    with_inproc(states, &cuda, 0, seed, run_plain);
    cuda = plain_cuda;
    with_inproc(states, &cuda, 1, seed, run_plain);
    cuda.is_stream_ordered = 1;
    with_inproc(states, &cuda, 1, seed, run_stream_ordered);
    cuda.uses_graph = 1;
    with_inproc(states, &cuda, seed % 2 == 1, seed, run_graph);
    cuda.is_stream_ordered = 0;
    with_inproc(states, &cuda, 0, seed, run_spoiled_graph);
    cuda = plain_cuda;
    cuda.is_timed = 1;
    cuda.is_stream_ordered = seed % 2;
    with_inproc(states, &cuda, 0, seed, run_timed);
    check_timeline(states);
  }
  cuda = plain_cuda;
  with_inproc(states, &cuda, 0, 0, run_failing);
  for (rank = 0; rank < NUM_RANKS; rank++) {
    CHECK(states[rank].status == (rank == 1 ? DUALPIPE_ERROR_CALLBACK_FAILED : DUALPIPE_ERROR_PEER_FAILED));
    CHECK(strstr(states[rank].text, "rank 1, instruction ") != NULL && strstr(states[rank].text, "as planned") != NULL);
  }
}

/* A rank that never comes, and a device that fails. */
static void *run_alone(void *argument) {
  rank_state *state = (rank_state *)argument;
  dualpipe_inproc_t inproc = NULL;
  dualpipe_fault fault = DUALPIPE_FAULT_INIT;
  state->schedule = create_schedule();
  state->cuda = plain_cuda;
  state->options = executor_options();
  state->options.cuda = &state->cuda;
  state->options.timeout_ns = 100000000;
  CHECK_OK(dualpipe_inproc_create(NUM_RANKS, &inproc));
  state->options.inproc = inproc;
  open_device(state);
  CHECK_OK(create_executor(state));
  state->may_be_refused = state->rank == 0;
  if (state->rank == 0 && standin.fail_op != NULL) standin.fail_op(0, 4, 700);
  note(state, dualpipe_executor_step(state->executor, run_task, state));
  CHECK_OK(dualpipe_executor_fault(state->executor, &fault));
  CHECK(fault.has_failed == 1 && fault.status == (uint32_t)state->status);
  CHECK_OK(dualpipe_executor_free(state->executor));
  CHECK_OK(dualpipe_inproc_free(inproc));
  CHECK_OK(dualpipe_schedule_free(state->schedule));
  return NULL;
}

static void faults(void) {
  rank_state state;
  uint32_t rank;
  for (rank = 0; rank < 2; rank++) {
    pthread_t thread;
    memset(&state, 0, sizeof state);
    state.rank = 1 - rank;
    begin_session(0, RANK_LOCAL);
    CHECK(pthread_create(&thread, NULL, run_alone, &state) == 0 && pthread_join(thread, NULL) == 0);
    if (state.rank == 1) {
      CHECK(state.status == DUALPIPE_ERROR_TIMEOUT && strstr(state.text, "rank 1, instruction ") != NULL);
    } else if (standin.fail_op != NULL) {
      /* The step says so, unless a task has heard it first. */
      CHECK(state.status == (state.refused ? DUALPIPE_ERROR_CALLBACK_FAILED : DUALPIPE_ERROR_DEVICE));
      CHECK(state.refused == 700 || strstr(state.text, "CUDA_ERROR_ILLEGAL_ADDRESS") != NULL);
    }
  }
}

/* What is refused with good options but for one. */
static void bad_options(void) {
  dualpipe_inproc_t inproc = NULL;
  dualpipe_nccl_options nccl = DUALPIPE_NCCL_OPTIONS_INIT;
  static const uint8_t id[1000];
  rank_state state;
  memset(&state, 0, sizeof state);
  begin_session(0, RANK_LOCAL);
  state.schedule = create_schedule();
  state.cuda = plain_cuda;
  state.options = executor_options();
  state.options.cuda = &state.cuda;
  CHECK_OK(dualpipe_inproc_create(NUM_RANKS, &inproc));
  state.options.inproc = inproc;
  state.cuda.device = 4096;
  CHECK(create_executor(&state) == DUALPIPE_ERROR_INVALID_ARGUMENT);
  CHECK(strstr(state.text, "device is 4096, must be 0 to ") != NULL);
  state.cuda.device = 0;
  state.options.inproc = NULL;
  state.options.nccl = &nccl;
  nccl.unique_id = id;
  for (nccl.unique_id_length = 0; nccl.unique_id_length < sizeof id; nccl.unique_id_length += 100) {
    CHECK(create_executor(&state) == DUALPIPE_ERROR_INVALID_ARGUMENT);
    CHECK(strstr(state.text, "must be 768 for the 6 links of this placement") != NULL);
  }
  CHECK_OK(dualpipe_inproc_free(inproc));
  CHECK_OK(dualpipe_schedule_free(state.schedule));
  end_session();
}

/* Ranks joined by NCCL, if there is one that works on this driver: the stand-in's. */
static void with_nccl(void) {
  rank_state states[NUM_RANKS];
  dualpipe_schedule_t schedule = create_schedule();
  dualpipe_executor_options options = executor_options();
  dualpipe_nccl_options nccl = DUALPIPE_NCCL_OPTIONS_INIT;
  dualpipe_cuda_options cuda = plain_cuda;
  uint8_t id[768];
  uint32_t version = 0;
  size_t count = 0;
  int way;
  if (standin.reset == NULL) return;
  options.nccl = &nccl;
  nccl.unique_id = id;
  for (way = 0; way < 4; way++) {
    memset(states, 0, sizeof states);
    begin_session((uint64_t)way, RANK_LOCAL);
    CHECK_OK(dualpipe_nccl_version(&version));
    CHECK(version >= 21800);
    CHECK_OK(dualpipe_nccl_unique_id(schedule, NULL, 0, &count));
    CHECK(count == sizeof id);
    CHECK_OK(dualpipe_nccl_unique_id(schedule, id, sizeof id, &count));
    nccl.unique_id_length = count;
    nccl.max_ctas = (uint32_t)way;
    cuda = plain_cuda;
    cuda.exchanges_shapes = way == 1;
    cuda.uses_graph = way == 2;
    cuda.is_timed = way == 3;
    on_threads(states, &options, &cuda, way == 2 ? run_graph : way == 3 ? run_timed : run_plain);
    if (way == 3) check_timeline(states);
    end_session();
  }
  CHECK_OK(dualpipe_schedule_free(schedule));
}

/* Parts of an F&B pair in two streams. */
typedef struct block_parts {
  void *streams[2];
  int counts[10];
  int fails_at, calls;
} block_parts;

static int32_t enqueue_part(void *user_data, uint32_t part, uint32_t block, void *stream) {
  block_parts *parts = (block_parts *)user_data;
  const int communicates = part == DUALPIPE_PART_DISPATCH_F || part == DUALPIPE_PART_COMBINE_F ||
                           part == DUALPIPE_PART_COMBINE_B || part == DUALPIPE_PART_DISPATCH_B;
  CHECK(part < 10 && block < 3 && stream == parts->streams[communicates]);
  parts->counts[part]++;
  return ++parts->calls == parts->fails_at ? 9 : 0;
}

static void overlap(void) {
  dualpipe_overlap_t two = NULL;
  block_parts parts;
  rank_state state;
  int part;
  memset(&state, 0, sizeof state);
  memset(&parts, 0, sizeof parts);
  begin_session(0, RANK_LOCAL);
  open_device(&state);
  parts.streams[0] = state.stream;
  parts.streams[1] = state.side;
  CHECK(dualpipe_overlap_create(4096, &two) == DUALPIPE_ERROR_INVALID_ARGUMENT && two == NULL);
  CHECK_OK(dualpipe_overlap_create(0, &two));
  CHECK_OK(dualpipe_overlap_run(two, state.stream, state.side, 3, 2, enqueue_part, &parts));
  for (part = 0; part < 10; part++) CHECK(parts.counts[part] == (part <= DUALPIPE_PART_COMBINE_F ? 3 : 2));
  CHECK_OK(dualpipe_overlap_run(two, state.stream, state.side, 0, 0, enqueue_part, &parts));
  CHECK(parts.calls == 3 * 4 + 2 * 6);
  parts.fails_at = parts.calls + 3;
  CHECK(dualpipe_overlap_run(two, state.stream, state.side, 1, 1, enqueue_part, &parts) ==
        DUALPIPE_ERROR_CALLBACK_FAILED);
  CHECK(strstr(dualpipe_last_error(), " returned 9") != NULL && parts.calls == parts.fails_at);
  CHECK(dualpipe_overlap_run(two, state.stream, NULL, 1, 1, enqueue_part, &parts) == DUALPIPE_ERROR_INVALID_ARGUMENT);
  CHECK(strstr(dualpipe_last_error(), "comm_stream is NULL") != NULL);
  CHECK(dualpipe_overlap_run(two, state.stream, state.side, 1, 1, NULL, &parts) == DUALPIPE_ERROR_INVALID_ARGUMENT);
  CHECK(strstr(dualpipe_last_error(), "enqueue is NULL") != NULL);
  CHECK(dualpipe_overlap_run(two, state.stream, state.side, 4097, 1, enqueue_part, &parts) ==
        DUALPIPE_ERROR_INVALID_ARGUMENT);
  CHECK(dualpipe_overlap_run(two, state.stream, state.side, 1, 4097, enqueue_part, &parts) ==
        DUALPIPE_ERROR_INVALID_ARGUMENT);
  CHECK(parts.calls == parts.fails_at);
  CHECK_CU(cu.stream_synchronize(state.stream));
  CHECK_OK(dualpipe_overlap_free(two));
  CHECK(dualpipe_overlap_free(two) == DUALPIPE_ERROR_INVALID_HANDLE);
  close_device(&state);
  end_session();
}

/* Without a driver: good options are refused, for the reason that dualpipe_cuda_available gives. */
static void without_driver(void) {
  char why[512] = {0};
  const char *told;
  dualpipe_overlap_t none = NULL;
  rank_state state;
  memset(&state, 0, sizeof state);
  told = strstr(dualpipe_last_error(), "cuda: ");
  CHECK(told != NULL);
  strncpy(why, told, sizeof why - 1);
  state.schedule = create_schedule();
  state.cuda = plain_cuda;
  state.options = executor_options();
  state.options.cuda = &state.cuda;
  CHECK_OK(dualpipe_inproc_create(NUM_RANKS, &state.options.inproc));
  CHECK(create_executor(&state) == DUALPIPE_ERROR_UNAVAILABLE && strstr(state.text, why) != NULL);
  CHECK(dualpipe_overlap_create(0, &none) == DUALPIPE_ERROR_UNAVAILABLE && none == NULL);
  /* The rank's place is as free as before. */
  state.options.cuda = NULL;
  CHECK_OK(create_executor(&state));
  CHECK_OK(dualpipe_executor_synchronize(state.executor, 0));
  CHECK_OK(dualpipe_executor_free(state.executor));
  CHECK_OK(dualpipe_inproc_free(state.options.inproc));
  CHECK_OK(dualpipe_schedule_free(state.schedule));
}

int main(int argc, char **argv) {
  (void)argv;
  if (!has_driver(argc > 1)) {
    without_driver();
    return 0;
  }
  load_driver();
  bad_options();
  in_one_process();
  with_nccl();
  overlap();
  faults();
  return 0;
}
