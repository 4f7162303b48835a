/* Executors on CUDA over a transport of the caller's, which only enqueues: the sender copies into memory of the
 * transport's own and records an event, the receiver waits for it on its own stream and copies from there. */
#define _POSIX_C_SOURCE 200809L
#include "cuda_trail.h"

#include <time.h>

enum { MESSAGES_MAX = 256, STEPS = 3 };

/* A message that has been sent; each has a place of its own in the staging memory. */
typedef struct message {
  uint32_t from, to, channel;
  uint64_t tag, num_bytes;
  int is_taken;
  void *ready;
} message;

/* One rank's end. */
typedef struct end {
  uint32_t rank;
  int sends, receives, withdrawn, destroyed, polls, aborts, is_in_abort;
  /* How long its abort takes. */
  unsigned abort_ms;
} end;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static message messages[MESSAGES_MAX];
static int num_messages, num_calls;
static device_pointer staging;
static int failed_rank;
static char failed_text[512];
static end ends[NUM_RANKS];

static void check_transfer(const dualpipe_transfer *transfer) {
  CHECK(transfer->size >= sizeof *transfer && transfer->channel < 4 && transfer->tag < (uint64_t)1 << 56);
  CHECK(transfer->stream != NULL && transfer->device == 0 && transfer->num_bytes == TRAIL);
  CHECK(transfer->tensor == 0 && transfer->step < 65536);
  CHECK(transfer->message.kind != DUALPIPE_NONE && transfer->message.pass.copy < 2);
}

/* Now and then it is not ready. */
static int is_not_now(void) { return ++num_calls % 5 == 0; }

static uint32_t on_send(void *user_data, const dualpipe_transfer *transfer, uint64_t *request) {
  end *self = (end *)user_data;
  message *sent;
  uint32_t code = DUALPIPE_TRANSPORT_AGAIN;
  check_transfer(transfer);
  pthread_mutex_lock(&lock);
  if (!is_not_now()) {
    CHECK(num_messages < MESSAGES_MAX);
    sent = &messages[num_messages];
    sent->from = self->rank;
    sent->to = transfer->peer;
    sent->channel = transfer->channel;
    sent->tag = transfer->tag;
    sent->num_bytes = transfer->num_bytes;
    CHECK_CU(cu.copy(staging + (device_pointer)num_messages * TRAIL, (device_pointer)(uintptr_t)transfer->data,
                     (size_t)transfer->num_bytes, transfer->stream));
    CHECK_CU(cu.event_create(&sent->ready, 2));
    CHECK_CU(cu.event_record(sent->ready, transfer->stream));
    *request = (uint64_t)num_messages++;
    self->sends++;
    code = DUALPIPE_TRANSPORT_OK;
  }
  pthread_mutex_unlock(&lock);
  return code;
}

static uint32_t on_receive(void *user_data, const dualpipe_transfer *transfer, uint64_t *request) {
  end *self = (end *)user_data;
  int i;
  uint32_t code = DUALPIPE_TRANSPORT_AGAIN;
  check_transfer(transfer);
  pthread_mutex_lock(&lock);
  for (i = is_not_now() ? num_messages : 0; i < num_messages; i++) {
    message *sent = &messages[i];
    if (sent->is_taken || sent->from != transfer->peer || sent->to != self->rank) continue;
    if (sent->tag != transfer->tag) continue;
    CHECK(sent->channel == transfer->channel && sent->num_bytes == transfer->num_bytes);
    CHECK_CU(cu.stream_wait(transfer->stream, sent->ready, 0));
    CHECK_CU(cu.copy((device_pointer)(uintptr_t)transfer->data, staging + (device_pointer)i * TRAIL,
                     (size_t)transfer->num_bytes, transfer->stream));
    sent->is_taken = 1;
    *request = (uint64_t)i;
    self->receives++;
    code = DUALPIPE_TRANSPORT_OK;
    break;
  }
  pthread_mutex_unlock(&lock);
  return code;
}

static uint32_t on_test(void *user_data, uint64_t request, uint32_t *is_done, uint64_t *num_bytes) {
  (void)user_data, (void)request, (void)is_done, (void)num_bytes;
  CHECK(!"called on a device");
  return DUALPIPE_TRANSPORT_FAILED;
}

static uint32_t on_poll_abort(void *user_data, uint32_t *rank, char *text, size_t capacity) {
  end *self = (end *)user_data;
  uint32_t is_told;
  pthread_mutex_lock(&lock);
  CHECK(!self->destroyed);
  self->polls++;
  is_told = failed_rank >= 0;
  if (is_told) {
    *rank = (uint32_t)failed_rank;
    strncpy(text, failed_text, capacity - 1);
    text[capacity - 1] = 0;
  }
  pthread_mutex_unlock(&lock);
  return is_told;
}

static void sleep_ms(unsigned ms) {
  struct timespec pause;
  pause.tv_sec = 0;
  pause.tv_nsec = 1000000L * (long)ms;
  nanosleep(&pause, NULL);
}

/* Under the lock. */
static void tell_all(uint32_t rank, const char *text) {
  if (failed_rank < 0) {
    failed_rank = (int)rank;
    strncpy(failed_text, text, sizeof failed_text - 1);
  }
}

static void on_abort(void *user_data, uint32_t rank, const char *text) {
  end *self = (end *)user_data;
  pthread_mutex_lock(&lock);
  CHECK(!self->destroyed);
  self->aborts++;
  self->is_in_abort++;
  tell_all(rank, text);
  pthread_mutex_unlock(&lock);
  sleep_ms(self->abort_ms);
  pthread_mutex_lock(&lock);
  self->is_in_abort--;
  CHECK(!self->destroyed);
  pthread_mutex_unlock(&lock);
}

static void on_withdraw(void *user_data) {
  pthread_mutex_lock(&lock);
  CHECK(!((end *)user_data)->destroyed);
  ((end *)user_data)->withdrawn++;
  pthread_mutex_unlock(&lock);
}

/* Comes last, and once. */
static void on_destroy(void *user_data) {
  end *self = (end *)user_data;
  pthread_mutex_lock(&lock);
  CHECK(self->is_in_abort == 0 && self->withdrawn > 0);
  self->destroyed++;
  pthread_mutex_unlock(&lock);
}

static const dualpipe_transport plain_transport = DUALPIPE_TRANSPORT_INIT;

static dualpipe_transport transport_of(end *self) {
  dualpipe_transport transport = plain_transport;
  transport.user_data = self;
  transport.send = on_send;
  transport.receive = on_receive;
  transport.test = on_test;
  transport.poll_abort = on_poll_abort;
  transport.abort = on_abort;
  transport.withdraw = on_withdraw;
  transport.destroy = on_destroy;
  return transport;
}

static void *run_steps(void *argument) {
  rank_state *state = (rank_state *)argument;
  end *self = &ends[state->rank];
  dualpipe_transport transport = transport_of(self);
  unsigned char step;
  open_device(state);
  state->options.transport = &transport;
  CHECK_OK(create_executor(state));
  memset(&transport, 0xEE, sizeof transport); /* It has been copied. */
  for (step = 1; step <= STEPS; step++) {
    set_step(state, step);
    CHECK_OK(dualpipe_executor_step(state->executor, run_task, state));
    CHECK_OK(dualpipe_executor_synchronize(state->executor, 20000000000u));
    check_kept(state, state->kept, step);
  }
  /* Inner ranks have a neighbour on each side. */
  CHECK(self->sends == self->receives && self->aborts == 0);
  CHECK(self->sends == (state->rank % (NUM_RANKS - 1) == 0 ? 1 : 2) * NUM_MICROBATCHES * STEPS);
  CHECK_OK(dualpipe_executor_free(state->executor));
  CHECK(self->destroyed == 1);
  close_device(state);
  return NULL;
}

/* A rank's task fails: its end tells the others, whose ends tell their executors. */
static void *run_failing(void *argument) {
  rank_state *state = (rank_state *)argument;
  dualpipe_transport transport = transport_of(&ends[state->rank]);
  open_device(state);
  state->options.transport = &transport;
  CHECK_OK(create_executor(state));
  if (state->rank == 2) state->fails_at = 7;
  set_step(state, 1);
  note(state, dualpipe_executor_step(state->executor, run_task, state));
  if (state->status == DUALPIPE_OK) note(state, dualpipe_executor_synchronize(state->executor, 20000000000u));
  CHECK_OK(dualpipe_executor_free(state->executor));
  CHECK(ends[state->rank].destroyed == 1);
  close_device(state);
  return NULL;
}

/* A step that has been enqueued everywhere, and is then said to have failed: the watchdogs tell of it, on threads of
 * their own, slowly. The ends stay until they have. */
static pthread_barrier_t all_have_enqueued;

static void *run_watched(void *argument) {
  rank_state *state = (rank_state *)argument;
  end *self = &ends[state->rank];
  dualpipe_transport transport = transport_of(self);
  int is_told = 0;
  self->abort_ms = 200;
  open_device(state);
  state->options.transport = &transport;
  CHECK_OK(create_executor(state));
  set_step(state, 1);
  CHECK_OK(dualpipe_executor_step(state->executor, run_task, state));
  pthread_barrier_wait(&all_have_enqueued);
  pthread_mutex_lock(&lock);
  tell_all(3, "the lights went out");
  pthread_mutex_unlock(&lock);
  while (!is_told) {
    sleep_ms(1);
    pthread_mutex_lock(&lock);
    is_told = self->is_in_abort;
    pthread_mutex_unlock(&lock);
  }
  note(state, dualpipe_executor_synchronize(state->executor, 20000000000u));
  CHECK_OK(dualpipe_executor_free(state->executor));
  CHECK(self->destroyed == 1);
  close_device(state);
  return NULL;
}

static void with_transport(rank_state states[NUM_RANKS], const dualpipe_cuda_options *cuda, int brings_streams,
                           uint64_t seed, void *(*run)(void *)) {
  dualpipe_executor_options options = executor_options();
  void *context = NULL;
  int i;
  memset(states, 0, NUM_RANKS * sizeof *states);
  memset(ends, 0, sizeof ends);
  memset(messages, 0, sizeof messages);
  num_messages = num_calls = 0;
  failed_rank = -1;
  for (i = 0; i < NUM_RANKS; i++) {
    ends[i].rank = (uint32_t)i;
    states[i].brings_streams = brings_streams;
  }
  /* The receiver learns from the sender's event that the staging memory may be read: not by its own waits alone. */
  begin_session(seed, NOT_RANK_LOCAL);
  CHECK_CU(cu.retain(&context, 0));
  CHECK_CU(cu.set_current(context));
  CHECK_CU(cu.allocate(&staging, MESSAGES_MAX * TRAIL));
  on_threads(states, &options, cuda, run);
  for (i = 0; i < num_messages; i++) CHECK_CU(cu.event_destroy(messages[i].ready));
  CHECK_CU(cu.release_memory(staging));
  CHECK_CU(cu.release(0));
  end_session();
}

int main(int argc, char **argv) {
  rank_state states[NUM_RANKS];
  dualpipe_cuda_options cuda = plain_cuda;
  uint64_t seed;
  int rank;
  (void)argv;
  if (!has_driver(argc > 1)) return 0;
  load_driver();
  for (seed = 0; seed < 4; seed++) {
    cuda.is_stream_ordered = seed % 2;
    cuda.has_comm_stream = seed < 2;
    with_transport(states, &cuda, seed == 3, seed, run_steps);
  }
  cuda = plain_cuda;
  with_transport(states, &cuda, 0, 0, run_failing);
  CHECK(failed_rank == 2 && strstr(failed_text, "as planned") != NULL);
  for (rank = 0; rank < NUM_RANKS; rank++) {
    CHECK(states[rank].status == (rank == 2 ? DUALPIPE_ERROR_CALLBACK_FAILED : DUALPIPE_ERROR_PEER_FAILED));
    CHECK(strstr(states[rank].text, "as planned") != NULL);
  }
  cuda.is_stream_ordered = 1;
  CHECK(pthread_barrier_init(&all_have_enqueued, NULL, NUM_RANKS) == 0);
  with_transport(states, &cuda, 0, 0, run_watched);
  for (rank = 0; rank < NUM_RANKS; rank++) {
    CHECK(states[rank].status == DUALPIPE_ERROR_PEER_FAILED);
    CHECK(strstr(states[rank].text, "stopped because rank 3 failed") != NULL);
    CHECK(strstr(states[rank].text, "[the lights went out]") != NULL);
  }
  CHECK(pthread_barrier_destroy(&all_have_enqueued) == 0);
  return 0;
}
