#define _POSIX_C_SOURCE 200809L
#include "peers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Tags. */
enum { ALARM, ROLL };

int peers_create(peers *peers, MPI_Comm comm, double timeout_s) {
  int code;
  memset(peers, 0, sizeof *peers);
  peers->timeout_s = timeout_s;
  code = MPI_Comm_dup(comm, &peers->comm);
  if (code == MPI_SUCCESS) code = MPI_Comm_set_errhandler(peers->comm, MPI_ERRORS_RETURN);
  if (code == MPI_SUCCESS) code = MPI_Comm_rank(peers->comm, &peers->rank);
  if (code == MPI_SUCCESS) code = MPI_Comm_size(peers->comm, &peers->num_ranks);
  if (code != MPI_SUCCESS) return code;
  peers->sends = malloc(sizeof(MPI_Request) * (size_t)peers->num_ranks);
  return peers->sends != NULL ? MPI_SUCCESS : MPI_ERR_NO_MEM;
}

void peers_free(peers *peers) {
  MPI_Comm_free(&peers->comm);
  free(peers->sends);
}

void peers_abort(peers *peers, uint32_t rank, const char *text) {
  int to;
  if (peers->is_told) return;
  peers->is_told = 1;
  peers->told.rank = rank;
  snprintf(peers->told.text, sizeof peers->told.text, "%s", text);
  for (to = 0; to < peers->num_ranks; to++) {
    peers->sends[to] = MPI_REQUEST_NULL;
    if (to != peers->rank) {
      MPI_Isend(&peers->told, sizeof peers->told, MPI_BYTE, to, ALARM, peers->comm, &peers->sends[to]);
    }
  }
}

int peers_poll(peers *peers) {
  int is_there = 0;
  MPI_Status status;
  if (peers->has_heard) return 1;
  /* What has been probed is received at once. */
  if (MPI_Iprobe(MPI_ANY_SOURCE, ALARM, peers->comm, &is_there, &status) == MPI_SUCCESS && is_there) {
    peers->has_heard = MPI_Recv(&peers->heard, sizeof peers->heard, MPI_BYTE, status.MPI_SOURCE, ALARM, peers->comm,
                                MPI_STATUS_IGNORE) == MPI_SUCCESS;
  }
  return peers->has_heard;
}

int peers_wait(peers *peers, int count, MPI_Request *requests, const char *what, char *error, size_t capacity) {
  const double deadline = MPI_Wtime() + peers->timeout_s;
  int are_done = 0, code = MPI_SUCCESS;
  while (!are_done && code == MPI_SUCCESS && !peers_poll(peers) && MPI_Wtime() < deadline) {
    code = MPI_Testall(count, requests, &are_done, MPI_STATUSES_IGNORE);
    if (!are_done) peers_pause(peers->timeout_s);
  }
  if (are_done) return 0;
  if (peers->has_heard) {
    snprintf(error, capacity, "%s: rank %u failed [%s]", what, (unsigned)peers->heard.rank, peers->heard.text);
    return -1;
  }
  if (code != MPI_SUCCESS) {
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(code, text, &length);
    snprintf(error, capacity, "%s: %s", what, text);
  } else {
    snprintf(error, capacity, "%s: waited %g s", what, peers->timeout_s);
  }
  peers_abort(peers, (uint32_t)peers->rank, error);
  return -1;
}

void peers_leave(peers *peers) {
  const double deadline = MPI_Wtime() + 1;
  /* The roll: every rank calls all others. The requests are MPI's until the process ends. */
  const int count = 2 * peers->num_ranks;
  MPI_Request *requests = malloc(sizeof *requests * (size_t)count);
  int rank, are_done = 0, is_here = 0;
  if (requests == NULL) return;
  for (rank = 0; rank < peers->num_ranks; rank++) {
    requests[rank] = requests[peers->num_ranks + rank] = MPI_REQUEST_NULL;
    if (rank == peers->rank) continue;
    MPI_Irecv(NULL, 0, MPI_BYTE, rank, ROLL, peers->comm, &requests[rank]);
    MPI_Isend(NULL, 0, MPI_BYTE, rank, ROLL, peers->comm, &requests[peers->num_ranks + rank]);
  }
  while (!are_done && MPI_Wtime() < deadline) {
    if (MPI_Testall(count, requests, &are_done, MPI_STATUSES_IGNORE) != MPI_SUCCESS) break;
    peers_pause(1);
  }
  for (rank = 0; rank < peers->num_ranks; rank++) {
    MPI_Test(&requests[rank], &is_here, MPI_STATUS_IGNORE);
    if (!is_here) fprintf(stderr, "rank %d: rank %d does not answer any more\n", peers->rank, rank);
  }
  fflush(stderr);
}

void peers_pause(double at_most_s) {
  const double s = at_most_s < 20e-6 ? at_most_s : 20e-6;
  struct timespec time = {0, (long)(1e9 * s)};
  nanosleep(&time, NULL);
}
