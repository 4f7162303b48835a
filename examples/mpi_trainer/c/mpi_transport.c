/*
 * Tags. MPI's are of 15 to 31 bits, libdualpipe's of 56, so a message gets one of its own: its kind (F's activation or
 * B's gradient), direction, stage and micro-batch, and which of its tensors, as the digits of one number. So no two
 * tensors of a step share a tag. Those of two steps do, and MPI cannot mistake them: of messages with the same sender,
 * receiver and tag it matches the one that was sent first with the receive that was posted first, and the steps of one
 * executor come one after the other.
 *
 * Memory. MPI cannot take a send back, nor a receive whose message has begun to come from a process that has died. But
 * after withdraw nobody may touch the executor's memory. So messages are sent from memory of the transport's and
 * received into it. What is still under way after a failure stays allocated, for MPI to touch, until the process ends.
 * Where a copy costs too much, give the executor memory of your own (dualpipe_memory), and keep from release what MPI
 * still has.
 */
#include "mpi_transport.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A transfer under way; its number is its index. */
typedef struct transfer {
  MPI_Request request;
  char *bytes;
  size_t capacity, num_bytes;
  /* Of a receive, where the bytes are to go. */
  void *into;
  int is_used;
} transfer;

struct mpi_transport {
  MPI_Comm comm;
  peers *peers;
  dualpipe_schedule_info info;
  uint32_t num_tensors;
  transfer *transfers;
  size_t num_transfers;
  char error[PEERS_TEXT_MAX];
};

/* Of tensor number `tensor` of a message. */
static uint64_t tag_of(const mpi_transport *self, const dualpipe_message *message, uint32_t tensor) {
  uint64_t tag = message->kind == DUALPIPE_MESSAGE_GRADIENT;
  tag = tag * self->info.num_directions + message->pass.direction;
  tag = tag * self->info.num_stages + message->pass.stage;
  tag = tag * self->info.num_microbatches + message->pass.microbatch;
  return tag * self->num_tensors + tensor;
}

static uint32_t failed(mpi_transport *self, const char *what, int code) {
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  snprintf(self->error, sizeof self->error, "%s: %s", what, text);
  return DUALPIPE_TRANSPORT_FAILED;
}

/* A transfer that is not used, with room for so many bytes; NULL if there is no memory. */
static transfer *take(mpi_transport *self, size_t num_bytes) {
  transfer *found = NULL;
  size_t i;
  for (i = 0; i < self->num_transfers && found == NULL; i++) {
    if (!self->transfers[i].is_used) found = &self->transfers[i];
  }
  if (found == NULL) {
    const size_t more = 2 * self->num_transfers + 8;
    transfer *all = realloc(self->transfers, more * sizeof *all);
    if (all == NULL) return NULL;
    memset(all + self->num_transfers, 0, (more - self->num_transfers) * sizeof *all);
    found = all + self->num_transfers;
    self->transfers = all;
    self->num_transfers = more;
  }
  if (found->capacity < num_bytes) {
    char *bytes = realloc(found->bytes, num_bytes);
    if (bytes == NULL) return NULL;
    found->bytes = bytes;
    found->capacity = num_bytes;
  }
  found->num_bytes = num_bytes;
  return found;
}

static uint32_t post(mpi_transport *self, const dualpipe_transfer *asked, uint64_t *request, int is_send) {
  const size_t num_bytes = (size_t)asked->num_bytes;
  transfer *transfer;
  int code, tag;
  if (asked->num_bytes > INT_MAX) {
    snprintf(self->error, sizeof self->error, "a tensor has %llu bytes; MPI sends at most %d at once: split it",
             (unsigned long long)asked->num_bytes, INT_MAX);
    return DUALPIPE_TRANSPORT_FAILED;
  }
  transfer = take(self, num_bytes);
  if (transfer == NULL) return failed(self, "memory for a message", MPI_ERR_NO_MEM);
  tag = (int)tag_of(self, &asked->message, asked->tensor);
  if (is_send) {
    if (num_bytes > 0) memcpy(transfer->bytes, asked->data, num_bytes);
    code = MPI_Isend(transfer->bytes, (int)num_bytes, MPI_BYTE, (int)asked->peer, tag, self->comm, &transfer->request);
  } else {
    code = MPI_Irecv(transfer->bytes, (int)num_bytes, MPI_BYTE, (int)asked->peer, tag, self->comm, &transfer->request);
  }
  if (code != MPI_SUCCESS) return failed(self, is_send ? "MPI_Isend" : "MPI_Irecv", code);
  transfer->into = is_send ? NULL : asked->data;
  transfer->is_used = 1;
  *request = (uint64_t)(transfer - self->transfers);
  return DUALPIPE_TRANSPORT_OK;
}

static uint32_t on_send(void *self, const dualpipe_transfer *asked, uint64_t *request) {
  return post(self, asked, request, 1);
}

static uint32_t on_receive(void *self, const dualpipe_transfer *asked, uint64_t *request) {
  return post(self, asked, request, 0);
}

static uint32_t on_test(void *user_data, uint64_t request, uint32_t *done, uint64_t *num_bytes) {
  mpi_transport *self = user_data;
  transfer *transfer = &self->transfers[request];
  MPI_Status status;
  int is_done = 0, count = (int)transfer->num_bytes;
  const int code = MPI_Test(&transfer->request, &is_done, &status);
  *done = 0;
  if (code != MPI_SUCCESS) return failed(self, "MPI_Test", code);
  if (!is_done) return DUALPIPE_TRANSPORT_OK;
  if (transfer->into != NULL) {
    /* Less than was asked for: nothing, for an absent gradient. */
    MPI_Get_count(&status, MPI_BYTE, &count);
    if (count > 0) memcpy(transfer->into, transfer->bytes, (size_t)count);
  }
  transfer->is_used = 0;
  *done = 1;
  *num_bytes = (uint64_t)count;
  return DUALPIPE_TRANSPORT_OK;
}

static void on_wait(void *self, uint64_t timeout_ns) {
  (void)self;
  peers_pause(1e-9 * (double)timeout_ns);
}

static uint32_t on_poll_abort(void *user_data, uint32_t *rank, char *text, size_t capacity) {
  peers *peers = ((mpi_transport *)user_data)->peers;
  if (!peers_poll(peers)) return 0;
  *rank = peers->heard.rank;
  snprintf(text, capacity, "%s", peers->heard.text);
  return 1;
}

static void on_abort(void *self, uint32_t rank, const char *text) {
  peers_abort(((mpi_transport *)self)->peers, rank, text);
}

static void on_withdraw(void *user_data) {
  mpi_transport *self = user_data;
  size_t i;
  /* They stay used: see Memory above. Nobody asks for them any more, so nothing is copied to the executor. */
  for (i = 0; i < self->num_transfers; i++) self->transfers[i].into = NULL;
}

static void on_last_error(void *self, char *text, size_t capacity) {
  snprintf(text, capacity, "%s", ((mpi_transport *)self)->error);
}

static void on_destroy(void *user_data) {
  mpi_transport *self = user_data;
  size_t i;
  for (i = 0; i < self->num_transfers; i++) {
    if (!self->transfers[i].is_used) free(self->transfers[i].bytes);
  }
  free(self->transfers);
  free(self);
}

/* Whether the communicator has a process for each rank and a tag for each message. */
static int check(const mpi_transport *self, char *error, size_t capacity) {
  const dualpipe_message none = {0, 0, {0, 0, 0, 0}};
  dualpipe_message last = none;
  int num_processes = 0, has_value = 0, *tag_max = NULL;
  uint64_t tag;
  MPI_Comm_size(self->comm, &num_processes);
  if ((uint32_t)num_processes != self->info.num_ranks) {
    snprintf(error, capacity, "the schedule has %u ranks, but there are %d processes: start as many (mpirun -n %u)",
             (unsigned)self->info.num_ranks, num_processes, (unsigned)self->info.num_ranks);
    return -1;
  }
  last.kind = DUALPIPE_MESSAGE_GRADIENT;
  last.pass.direction = self->info.num_directions - 1;
  last.pass.stage = self->info.num_stages - 1;
  last.pass.microbatch = self->info.num_microbatches - 1;
  tag = tag_of(self, &last, self->num_tensors - 1);
  MPI_Comm_get_attr(self->comm, MPI_TAG_UB, &tag_max, &has_value);
  if (!has_value || tag > (uint64_t)*tag_max) {
    snprintf(error, capacity, "the messages of a step need tags up to %llu, this MPI has them up to %d: use fewer "
             "micro-batches, stages or tensors", (unsigned long long)tag, has_value ? *tag_max : 32767);
    return -1;
  }
  return 0;
}

int mpi_transport_create(MPI_Comm comm, peers *peers, dualpipe_schedule_t schedule, uint32_t num_tensors,
                         dualpipe_transport *table, char *error, size_t capacity) {
  const dualpipe_transport empty = DUALPIPE_TRANSPORT_INIT;
  const dualpipe_schedule_info no_info = DUALPIPE_SCHEDULE_INFO_INIT;
  mpi_transport *self = calloc(1, sizeof *self);
  if (self == NULL) {
    snprintf(error, capacity, "no memory for a transport");
    return -1;
  }
  self->comm = comm;
  self->peers = peers;
  self->info = no_info;
  self->num_tensors = num_tensors;
  if (dualpipe_schedule_describe(schedule, &self->info) != DUALPIPE_OK) {
    snprintf(error, capacity, "%s", dualpipe_last_error());
    on_destroy(self);
    return -1;
  }
  if (check(self, error, capacity) != 0) {
    on_destroy(self);
    return -1;
  }
  *table = empty;
  table->user_data = self;
  table->send = on_send;
  table->receive = on_receive;
  table->test = on_test;
  table->wait = on_wait;
  table->poll_abort = on_poll_abort;
  table->abort = on_abort;
  table->withdraw = on_withdraw;
  table->last_error = on_last_error;
  table->destroy = on_destroy;
  return 0;
}
