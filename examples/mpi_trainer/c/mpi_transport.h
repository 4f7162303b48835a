/*
 * A transport of libdualpipe on MPI: one rank's end of it.
 *
 * It is called by one thread, the one that runs the executor's step, which must be the one that may call MPI
 * (MPI_THREAD_FUNNELED will do).
 */
#ifndef MPI_TRANSPORT_H
#define MPI_TRANSPORT_H

#include <dualpipe.h>
#include <mpi.h>

#include "peers.h"

typedef struct mpi_transport mpi_transport;

/*
 * Fills `table` with a transport for an executor of this schedule, with num_tensors tensors at each boundary. Rank r is
 * process r of `comm`, which nobody else may use. `peers` hears of failures. Freeing the executor frees the transport.
 * 0, or -1 and why not in `error`.
 */
int mpi_transport_create(MPI_Comm comm, peers *peers, dualpipe_schedule_t schedule, uint32_t num_tensors,
                         dualpipe_transport *table, char *error, size_t capacity);

#endif
