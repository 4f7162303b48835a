/*
 * The processes of the job, one for each rank: how they hear of one another's failures, and waits for them that end.
 */
#ifndef PEERS_H
#define PEERS_H

#include <mpi.h>
#include <stddef.h>
#include <stdint.h>

enum { PEERS_TEXT_MAX = 1024 };

/* What a rank that fails sends to all others. */
typedef struct peers_alarm {
  uint32_t rank;
  char text[PEERS_TEXT_MAX];
} peers_alarm;

typedef struct peers {
  int rank, num_ranks;
  double timeout_s;
  /* Nothing but alarms and the roll goes through it, so that no other message is mistaken for one. */
  MPI_Comm comm;
  int is_told, has_heard;
  peers_alarm told, heard;
  /* The sends of `told`, which outlive the function that starts them. */
  MPI_Request *sends;
} peers;

/* For all processes of `comm`. No wait for one of them lasts longer than timeout_s. 0, or a number of MPI's. */
int peers_create(peers *peers, MPI_Comm comm, double timeout_s);
/* After the last step, if none has failed. */
void peers_free(peers *peers);

/* Tells all others that `rank` has failed, and how, once. Does not wait. */
void peers_abort(peers *peers, uint32_t rank, const char *text);
/* Whether another rank has told that one failed: then `heard` says which. */
int peers_poll(peers *peers);

/*
 * Waits until the requests have ended, or another rank fails, or it takes too long: 0, or -1 and why in `error`, which
 * begins with `what`; the others know then, too. The requests may still go on: their memory must stay.
 */
int peers_wait(peers *peers, int count, MPI_Request *requests, const char *what, char *error, size_t capacity);

/*
 * After a failure has been printed: waits until all others have come here too, at most a second, and prints which have
 * not. The rank whose deadline was the first need not have waited for the one that died, and a launcher may end all
 * processes as soon as the first is gone. MPI_Finalize would wait for the dead.
 */
void peers_leave(peers *peers);

/* Sleeps: a rank that waits leaves its core to one that computes. */
void peers_pause(double at_most_s);

#endif
