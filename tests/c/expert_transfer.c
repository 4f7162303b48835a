/* Expert transfers: two GPUs swap experts through a staging buffer, replayed on memory; a failed GPU's are lost. */
#include <dualpipe.h>
#include <string.h>

#include "check.h"

enum { LAYERS = 2, GPUS = 3, EXPERTS = 4, SLOTS = 4 };

/* GPUs 0 and 1 of node 0 have a slot each, GPU 2 of node 1 has two. */
static const uint32_t slots_per_gpu[GPUS] = {1, 1, 2}, nodes[GPUS] = {0, 0, 1};

/* In layer 0 slots 0 and 1 swap, and slot 3 gets what slot 2 has; in layer 1 slot 3 gets what slot 0 has. */
static const int64_t from[LAYERS * SLOTS] = {0, 1, 2, 3, 3, 2, 1, 0}, to[LAYERS * SLOTS] = {1, 0, 2, 2, 3, 2, 1, 3};

static dualpipe_cluster three_gpus(void) {
  dualpipe_cluster cluster = DUALPIPE_CLUSTER_INIT;
  cluster.num_gpus = GPUS;
  cluster.slots_per_gpu = slots_per_gpu;
  cluster.node_of_gpu = nodes;
  return cluster;
}

static void a_swap_is_run(void) {
  const uint64_t bytes[2] = {1000, 24};
  const double gains[LAYERS] = {1, 2};
  const dualpipe_cluster cluster = three_gpus();
  dualpipe_expert_transfer_options options = DUALPIPE_EXPERT_TRANSFER_OPTIONS_INIT;
  dualpipe_expert_transfers_t transfers = NULL;
  dualpipe_expert_transfers_info info = DUALPIPE_EXPERT_TRANSFERS_INFO_INIT;
  dualpipe_expert_layer_transfers layers[LAYERS];
  dualpipe_expert_copy copies[16], mine[16];
  uint32_t staging[GPUS], gpu;
  int64_t room[LAYERS][GPUS][SLOTS + 1], before[LAYERS][GPUS][SLOTS + 1], after[LAYERS * SLOTS];
  size_t count = 0, num_mine = 0, i, j;
  options.num_tensors = 2;
  options.tensor_bytes = bytes;
  options.num_gains = LAYERS;
  options.gains = gains;
  CHECK_OK(dualpipe_expert_transfers_create(&cluster, EXPERTS, from, to, LAYERS * SLOTS, &options, &transfers));
  CHECK_OK(dualpipe_expert_transfers_check(transfers));
  CHECK_OK(dualpipe_expert_transfers_describe(transfers, &info));
  CHECK(info.num_layers == LAYERS && info.num_gpus == GPUS && info.num_slots == SLOTS && info.num_lost == 0);
  CHECK(info.bytes_per_expert == 1024 && info.num_staging == 1 && info.least_rounds <= info.num_rounds);
  /* A swap takes three copies, one of them into or out of the buffer. */
  CHECK(info.num_copies == 5 && info.other_node_bytes == 1024);
  CHECK(info.same_gpu_bytes + info.same_node_bytes == 4096);

  CHECK_OK(dualpipe_expert_transfers_layers(transfers, layers, LAYERS, &count));
  CHECK(count == LAYERS && layers[0].layer == 1 && layers[0].num_copies == 1); /* layer 1 gains more */
  CHECK(layers[0].num_rounds == 1 && layers[0].least_rounds == 1 && layers[0].other_node == 1);
  CHECK(layers[1].layer == 0 && layers[1].num_copies == 4 && layers[1].first_copy == 1 && layers[1].num_lost == 0);
  CHECK(layers[1].num_rounds + 1 == info.num_rounds && layers[1].least_rounds + 1 == info.least_rounds);
  CHECK(layers[1].same_gpu >= 1 && layers[1].same_gpu + layers[1].same_node == 4 && layers[1].other_node == 0);
  CHECK_OK(dualpipe_expert_transfers_staging(transfers, staging, GPUS, &count));
  CHECK(count == GPUS && staging[0] + staging[1] == 1 && staging[2] == 0);

  /* All of a round at once: what is read is what was there before it. Each GPU's room SLOTS is its buffer. */
  CHECK_OK(dualpipe_expert_transfers_copies(transfers, copies, 16, &count));
  CHECK(count == 5);
  for (j = 0; j < LAYERS; j++)
    for (gpu = 0; gpu < GPUS; gpu++)
      for (i = 0; i <= SLOTS; i++) room[j][gpu][i] = i < SLOTS ? from[j * SLOTS + i] : -1;
  memcpy(before, room, sizeof room);
  for (i = 0; i < count; i++) {
    const dualpipe_expert_copy *c = &copies[i];
    if (i > 0 && c->round != copies[i - 1].round) memcpy(before, room, sizeof room);
    CHECK(before[c->layer][c->from_gpu][c->from] == (int64_t)c->expert);
    CHECK((c->link == DUALPIPE_LINK_SAME_GPU) == (c->from_gpu == c->to_gpu));
    CHECK((c->link == DUALPIPE_LINK_OTHER_NODE) == (nodes[c->from_gpu] != nodes[c->to_gpu]));
    room[c->layer][c->to_gpu][c->to] = c->expert;
  }
  for (j = 0; j < LAYERS; j++)
    for (i = 0; i < SLOTS; i++) CHECK(room[j][i < 2 ? i : 2][i] == to[j * SLOTS + i]);

  /* A GPU's copies are those of all that it is in, in their order. */
  for (gpu = 0; gpu < GPUS; gpu++) {
    CHECK_OK(dualpipe_expert_transfers_for_gpu(transfers, gpu, mine, 16, &num_mine));
    for (i = 0, j = 0; i < count; i++)
      if (copies[i].from_gpu == gpu || copies[i].to_gpu == gpu)
        CHECK(j < num_mine && memcmp(&copies[i], &mine[j++], sizeof *mine) == 0);
    CHECK(j == num_mine);
  }

  CHECK_OK(dualpipe_expert_transfers_placement_after(transfers, 0, after, LAYERS * SLOTS, &count));
  CHECK(memcmp(after, from, sizeof from) == 0);
  CHECK_OK(dualpipe_expert_transfers_placement_after(transfers, 2, after, LAYERS * SLOTS, &count));
  CHECK(memcmp(after, to, sizeof to) == 0);
  CHECK(dualpipe_expert_transfers_placement_after(transfers, 3, after, LAYERS * SLOTS, &count) ==
        DUALPIPE_ERROR_INVALID_ARGUMENT);
  CHECK_OK(dualpipe_expert_transfers_free(transfers));
  CHECK(dualpipe_expert_transfers_check(transfers) == DUALPIPE_ERROR_INVALID_HANDLE);
  CHECK(dualpipe_expert_transfers_free(transfers) == DUALPIPE_ERROR_INVALID_HANDLE);
}

/* GPU 2 is dead, and with it experts 2 and 3; expert 2 is to be on GPU 1. */
static void what_is_lost_is_said(void) {
  const int64_t wanted[SLOTS] = {0, 2, -1, -1};
  const uint8_t is_alive[GPUS] = {1, 1, 0};
  dualpipe_cluster cluster = three_gpus();
  dualpipe_expert_transfer_options options = DUALPIPE_EXPERT_TRANSFER_OPTIONS_INIT;
  dualpipe_expert_transfers_t transfers = NULL;
  dualpipe_lost_expert lost[SLOTS];
  int64_t after[SLOTS];
  size_t count = 0;
  cluster.is_alive = is_alive;
  CHECK_OK(dualpipe_expert_transfers_create(&cluster, EXPERTS, from, wanted, SLOTS, &options, &transfers));
  CHECK_OK(dualpipe_expert_transfers_lost(transfers, lost, SLOTS, &count));
  CHECK(count == 1 && lost[0].layer == 0 && lost[0].expert == 2 && lost[0].slot == 1);
  CHECK_OK(dualpipe_expert_transfers_placement_after(transfers, 1, after, SLOTS, &count));
  CHECK(after[3] == -1 && after[1] == 2);
  CHECK_OK(dualpipe_expert_transfers_free(transfers));
  /* Nothing may be put onto a dead GPU. */
  CHECK(dualpipe_expert_transfers_create(&cluster, EXPERTS, from, from, SLOTS, &options, &transfers) ==
        DUALPIPE_ERROR_INVALID_ARGUMENT);
}

int main(void) {
  a_swap_is_run();
  what_is_lost_is_said();
  return 0;
}
