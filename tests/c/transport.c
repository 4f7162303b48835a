/* Executors over a transport and memory of the caller's: here a list of messages under a lock. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <string.h>

#include "model.h"

enum { LIST_MAX = 256 };

/* A side of a message that waits for the other, or has met it. */
typedef struct entry {
  int is_used, is_send, is_done;
  uint32_t from, to;
  uint64_t tag, num_bytes, request;
  void *data;
} entry;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static entry entries[LIST_MAX];
static uint64_t next_request = 1;
static int failed_rank = -1, destroyed, allocated, released, calls;
static char failed_text[512];
static uint32_t ranks[NUM_RANKS] = {0, 1, 2, 3};

/* Adds one side; copies at once if the other is there. */
static uint32_t post(uint32_t self, const dualpipe_transfer *transfer, uint64_t *request, int is_send) {
  uint32_t from = is_send ? self : transfer->peer, to = is_send ? transfer->peer : self;
  entry *mine = NULL, *other = NULL;
  int i;
  CHECK(transfer->size >= sizeof *transfer && transfer->channel < 4);
  CHECK(transfer->tensor < 32 && transfer->message.pass.stage < 2 * NUM_RANKS);
  CHECK(transfer->channel % 2 == (transfer->message.kind == DUALPIPE_MESSAGE_GRADIENT));
  CHECK(transfer->channel / 2 == transfer->message.pass.direction);
  pthread_mutex_lock(&lock);
  /* Now and then it is not ready. */
  if (++calls % 5 == 0) {
    pthread_mutex_unlock(&lock);
    return DUALPIPE_TRANSPORT_AGAIN;
  }
  for (i = 0; i < LIST_MAX; i++) {
    entry *e = &entries[i];
    if (!e->is_used) {
      mine = e;
    } else if (!e->is_done && e->is_send != is_send && e->from == from && e->to == to && e->tag == transfer->tag) {
      other = e;
    }
  }
  CHECK(mine != NULL);
  mine->is_used = 1;
  mine->is_send = is_send;
  mine->is_done = 0;
  mine->from = from;
  mine->to = to;
  mine->tag = transfer->tag;
  mine->num_bytes = transfer->num_bytes;
  mine->data = transfer->data;
  mine->request = *request = next_request++;
  if (other != NULL) {
    const entry *send = is_send ? mine : other, *receive = is_send ? other : mine;
    CHECK(send->num_bytes <= receive->num_bytes);
    memcpy(receive->data, send->data, (size_t)send->num_bytes);
    (is_send ? other : mine)->num_bytes = send->num_bytes;
    mine->is_done = other->is_done = 1;
  }
  pthread_mutex_unlock(&lock);
  return DUALPIPE_TRANSPORT_OK;
}

static uint32_t on_send(void *self, const dualpipe_transfer *transfer, uint64_t *request) {
  return post(*(uint32_t *)self, transfer, request, 1);
}

static uint32_t on_receive(void *self, const dualpipe_transfer *transfer, uint64_t *request) {
  return post(*(uint32_t *)self, transfer, request, 0);
}

static uint32_t on_test(void *self, uint64_t request, uint32_t *done, uint64_t *num_bytes) {
  int i;
  (void)self;
  *done = 0;
  pthread_mutex_lock(&lock);
  for (i = 0; i < LIST_MAX; i++) {
    if (entries[i].is_used && entries[i].request == request && entries[i].is_done) {
      *done = 1;
      *num_bytes = entries[i].num_bytes;
      entries[i].is_used = 0;
    }
  }
  pthread_mutex_unlock(&lock);
  return DUALPIPE_TRANSPORT_OK;
}

static uint32_t on_poll_abort(void *self, uint32_t *rank, char *text, size_t capacity) {
  uint32_t told = 0;
  (void)self;
  pthread_mutex_lock(&lock);
  if (failed_rank >= 0) {
    told = 1;
    *rank = (uint32_t)failed_rank;
    strncpy(text, failed_text, capacity - 1);
    text[capacity - 1] = 0;
  }
  pthread_mutex_unlock(&lock);
  return told;
}

static void on_abort(void *self, uint32_t rank, const char *text) {
  (void)self;
  pthread_mutex_lock(&lock);
  if (failed_rank < 0) {
    failed_rank = (int)rank;
    strncpy(failed_text, text, sizeof failed_text - 1);
  }
  pthread_mutex_unlock(&lock);
}

static void on_withdraw(void *self) {
  uint32_t rank = *(uint32_t *)self;
  int i;
  pthread_mutex_lock(&lock);
  for (i = 0; i < LIST_MAX; i++) {
    if (entries[i].is_used && (entries[i].is_send ? entries[i].from : entries[i].to) == rank) entries[i].is_used = 0;
  }
  pthread_mutex_unlock(&lock);
}

static void on_destroy(void *self) {
  (void)self;
  pthread_mutex_lock(&lock);
  destroyed++;
  pthread_mutex_unlock(&lock);
}

static void *take_memory(uint64_t num_bytes) {
  void *data = malloc((size_t)num_bytes);
  CHECK(data != NULL);
  pthread_mutex_lock(&lock);
  allocated++;
  pthread_mutex_unlock(&lock);
  return data;
}

static int32_t on_allocate(void *self, uint64_t num_bytes, void **data, void **owner) {
  (void)self;
  *owner = *data = take_memory(num_bytes);
  return 0;
}

static void on_release(void *self, void *data, void *owner) {
  (void)self;
  CHECK(data == owner);
  free(data);
  pthread_mutex_lock(&lock);
  released++;
  pthread_mutex_unlock(&lock);
}

static void create_all(rank_state states[NUM_RANKS]) {
  dualpipe_executor_options options = executor_options(&three_floats);
  dualpipe_transport transport = DUALPIPE_TRANSPORT_INIT;
  dualpipe_memory memory = DUALPIPE_MEMORY_INIT;
  dualpipe_schedule_t schedule = create_schedule();
  int rank;
  transport.send = on_send;
  transport.receive = on_receive;
  transport.test = on_test;
  transport.poll_abort = on_poll_abort;
  transport.abort = on_abort;
  transport.withdraw = on_withdraw;
  transport.destroy = on_destroy;
  memory.allocate = on_allocate;
  memory.release = on_release;
  options.transport = &transport;
  options.memory = &memory;
  memset(states, 0, NUM_RANKS * sizeof *states);
  for (rank = 0; rank < NUM_RANKS; rank++) {
    transport.user_data = &ranks[rank];
    states[rank].allocate = take_memory;
    states[rank].executor = create_executor(schedule, (uint32_t)rank, &options);
  }
  /* A transport whose executor could not be created is still the caller's. */
  options.timeout_ns = UINT64_MAX;
  {
    dualpipe_program_t program = NULL;
    dualpipe_executor_t none = NULL;
    CHECK_OK(dualpipe_program_create(schedule, 0, &program));
    CHECK(dualpipe_executor_create(program, &options, &none) == DUALPIPE_ERROR_INVALID_ARGUMENT);
    CHECK(none == NULL && destroyed % NUM_RANKS == 0);
    CHECK_OK(dualpipe_program_free(program));
  }
  CHECK_OK(dualpipe_schedule_free(schedule));
}

static void free_all(rank_state states[NUM_RANKS]) {
  int rank, before = destroyed;
  for (rank = 0; rank < NUM_RANKS; rank++) CHECK_OK(dualpipe_executor_free(states[rank].executor));
  CHECK(destroyed == before + NUM_RANKS);
  CHECK(allocated > 0 && allocated == released);
}

int main(void) {
  rank_state states[NUM_RANKS];
  int step;
  create_all(states);
  for (step = 0; step < 3; step++) CHECK(step_all(states) == 0);
  free_all(states);

  create_all(states);
  states[1].fails_at = 9;
  CHECK(step_all(states) >= 2);
  CHECK(failed_rank == 1 && strstr(failed_text, "as planned") != NULL);
  free_all(states);

  failed_rank = -1;
  create_all(states);
  CHECK(step_all(states) == 0);
  free_all(states);
  return 0;
}
