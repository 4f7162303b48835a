/* A file of bytes: from a few of them in a row, the value of the next is to be predicted. */
#ifndef DATA_H
#define DATA_H

#include <stddef.h>
#include <stdint.h>

#include "model.h"

typedef struct data {
  unsigned char *bytes;
  size_t num_bytes;
} data;

/* Reads a file, which must have more than `context` bytes. 0, or -1 and why not in `error`. */
int data_read(const char *path, int context, data *data, char *error, size_t capacity);
void data_free(data *data);

/* A step's data, micro-batch by micro-batch. */
typedef struct batch {
  model_shape shape;
  float *inputs;  /* [num_microbatches, num_rows, context] */
  float *targets; /* [num_microbatches, num_rows] */
} batch;

/* Room for one. 0, or -1 if there is no memory. */
int batch_create(batch *batch, const model_shape *shape, int num_microbatches);
void batch_free(batch *batch);

/* Draws the rows of micro-batches 0 to num_microbatches - 1 of a step from the seed; bytes are scaled to -1 to 1. */
void batch_draw(batch *batch, const data *data, uint64_t seed, int step, int num_microbatches);
/* One of them, where it lies. */
microbatch_data batch_at(const batch *batch, int index);

#endif
