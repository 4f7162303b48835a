#include "data.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "random.h"

int data_read(const char *path, int context, data *data, char *error, size_t capacity) {
  FILE *file = fopen(path, "rb");
  long num_bytes = 0;
  memset(data, 0, sizeof *data);
  if (file == NULL || fseek(file, 0, SEEK_END) != 0 || (num_bytes = ftell(file)) < 0 || fseek(file, 0, SEEK_SET) != 0) {
    snprintf(error, capacity, "--data %s: %s", path, strerror(errno));
  } else if (num_bytes <= context) {
    snprintf(error, capacity, "--data %s: has %ld bytes, needs at least %d", path, num_bytes, context + 1);
  } else if ((data->bytes = malloc((size_t)num_bytes)) == NULL) {
    snprintf(error, capacity, "--data %s: no memory for %ld bytes", path, num_bytes);
  } else {
    data->num_bytes = fread(data->bytes, 1, (size_t)num_bytes, file);
    if (data->num_bytes < (size_t)num_bytes) {
      snprintf(error, capacity, "--data %s: only %zu of %ld bytes could be read", path, data->num_bytes, num_bytes);
      data_free(data);
    }
  }
  if (file != NULL) fclose(file);
  return data->bytes != NULL ? 0 : -1;
}

void data_free(data *data) {
  free(data->bytes);
  data->bytes = NULL;
}

static float scaled(unsigned char byte) { return (float)byte / 127.5f - 1; }

int batch_create(batch *batch, const model_shape *shape, int num_microbatches) {
  const size_t num_rows = (size_t)num_microbatches * (size_t)shape->num_rows;
  batch->shape = *shape;
  batch->inputs = calloc(num_rows * (size_t)shape->context, sizeof(float));
  batch->targets = calloc(num_rows, sizeof(float));
  return batch->inputs != NULL && batch->targets != NULL ? 0 : -1;
}

void batch_free(batch *batch) {
  free(batch->inputs);
  free(batch->targets);
}

void batch_draw(batch *batch, const data *data, uint64_t seed, int step, int num_microbatches) {
  const int context = batch->shape.context, num_rows = num_microbatches * batch->shape.num_rows;
  const size_t num_places = data->num_bytes - (size_t)context;
  uint64_t state = random_seed(seed, (uint64_t)step);
  int row, i;
  for (row = 0; row < num_rows; row++) {
    const unsigned char *from = data->bytes + (size_t)(random_real(&state) * (double)num_places);
    for (i = 0; i < context; i++) batch->inputs[row * context + i] = scaled(from[i]);
    batch->targets[row] = scaled(from[context]);
  }
}

microbatch_data batch_at(const batch *batch, int index) {
  microbatch_data at;
  at.inputs = batch->inputs + index * batch->shape.num_rows * batch->shape.context;
  at.targets = batch->targets + index * batch->shape.num_rows;
  return at;
}
