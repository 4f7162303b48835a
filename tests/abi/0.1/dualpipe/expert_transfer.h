/*
 * From one placement of experts to the next: which expert is copied from where to where, in rounds.
 *
 * All copies of a round may run at once: no slot is read and written in the same round, none is overwritten while
 * it is an expert's only source, and no GPU or link does more than the options say. Layers do not depend on each
 * other. A GPU that does its own copies round by round, in their order, needs no barrier: what it sends was there
 * before, and what it overwrites it has sent.
 *
 *     // What one rank does: it starts the sends and receives of a round together, and waits for them before the next.
 *     // Room num_slots + i of a GPU is its staging buffer i.
 *     #include <dualpipe.h>
 *
 *     static dualpipe_status move_experts(dualpipe_expert_transfers_t transfers, uint32_t rank,
 *                                         dualpipe_expert_copy *copies, size_t capacity,
 *                                         void (*send)(uint32_t layer, uint32_t room, uint32_t to_gpu),
 *                                         void (*receive)(uint32_t layer, uint32_t room, uint32_t from_gpu),
 *                                         void (*copy_within)(uint32_t layer, uint32_t from, uint32_t to),
 *                                         void (*wait)(void)) {
 *       size_t count = 0, i;
 *       dualpipe_status status = dualpipe_expert_transfers_for_gpu(transfers, rank, copies, capacity, &count);
 *       if (status != DUALPIPE_OK) return status;
 *       for (i = 0; i < count; i++) {
 *         const dualpipe_expert_copy *c = &copies[i];
 *         if (c->link == DUALPIPE_LINK_SAME_GPU) copy_within(c->layer, c->from, c->to);
 *         else if (c->from_gpu == rank) send(c->layer, c->from, c->to_gpu);
 *         else receive(c->layer, c->to, c->from_gpu);
 *         if (i + 1 == count || c[1].round != c->round || c[1].layer != c->layer) wait();
 *       }
 *       return DUALPIPE_OK;
 *     }
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_EXPERT_TRANSFER_H
#define DUALPIPE_EXPERT_TRANSFER_H

#include <stddef.h>
#include <stdint.h>
#include "cluster.h"
#include "status.h"

/**
 * How far an expert is copied.
 */
enum dualpipe_expert_link
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Within a GPU.
   */
  DUALPIPE_LINK_SAME_GPU = 0,
  /**
   * Between GPUs of a node.
   */
  DUALPIPE_LINK_SAME_NODE = 1,
  /**
   * Between nodes.
   */
  DUALPIPE_LINK_OTHER_NODE = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_expert_link dualpipe_expert_link;
#else
typedef uint32_t dualpipe_expert_link;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What a dualpipe_expert_transfers_t points to: nothing that C could look into.
 */
typedef struct dualpipe_expert_transfers dualpipe_expert_transfers;

/**
 * What may happen at once, what an expert consists of, which layers come first. Start from
 * DUALPIPE_EXPERT_TRANSFER_OPTIONS_INIT.
 */
typedef struct dualpipe_expert_transfer_options {
  /**
   * sizeof(dualpipe_expert_transfer_options).
   */
  uint32_t size;
  /**
   * Experts that a GPU sends in a round to other GPUs, at most 2^20. 0 stands for 1.
   */
  uint32_t sends_per_gpu;
  /**
   * Experts that a GPU receives in a round from other GPUs, at most 2^20. 0 stands for 1.
   */
  uint32_t receives_per_gpu;
  /**
   * Experts that go in a round from one node to another, each direction for itself, at most 2^20. 0: no limit.
   */
  uint32_t copies_per_node_link;
  /**
   * Staging buffers, each with room for one expert, that a GPU may use to save rounds, at most 1024. With 0
   * there are only those without which it cannot be done, at most one on a GPU; 2 bring the rounds near their
   * least number.
   */
  uint32_t staging_per_gpu;
  /**
   * Tensors of an expert: weights, scales, optimizer state. A copy moves all of them.
   */
  uint32_t num_tensors;
  /**
   * num_layers, or 0: layers are done in their order.
   */
  uint32_t num_gains;
  /**
   * Must be 0.
   */
  uint32_t reserved;
  /**
   * num_tensors numbers: the bytes of each.
   */
  const uint64_t *tensor_bytes;
  /**
   * num_gains finite numbers: what each layer gains; the greatest is done first.
   */
  const double *gains;
} dualpipe_expert_transfer_options;

/**
 * The copies that lead from one placement to another. They never change: any number of threads may use them at
 * once. They stay usable after a fork. Free them with dualpipe_expert_transfers_free.
 */
typedef struct dualpipe_expert_transfers *dualpipe_expert_transfers_t;

/**
 * Transfers as a whole. Start from DUALPIPE_EXPERT_TRANSFERS_INFO_INIT.
 */
typedef struct dualpipe_expert_transfers_info {
  /**
   * sizeof(dualpipe_expert_transfers_info).
   */
  uint32_t size;
  /**
   * MoE layers.
   */
  uint32_t num_layers;
  /**
   * GPUs.
   */
  uint32_t num_gpus;
  /**
   * Slots of a layer: rooms from this number on are staging buffers.
   */
  uint32_t num_slots;
  /**
   * Rounds of all layers, one after the other.
   */
  uint64_t num_rounds;
  /**
   * No plan for these layers has fewer.
   */
  uint64_t least_rounds;
  /**
   * Copies.
   */
  uint64_t num_copies;
  /**
   * Experts that must be loaded from elsewhere: dualpipe_expert_transfers_lost has them.
   */
  uint64_t num_lost;
  /**
   * Staging buffers of all GPUs together.
   */
  uint64_t num_staging;
  /**
   * The bytes of an expert.
   */
  uint64_t bytes_per_expert;
  /**
   * The bytes copied within GPUs.
   */
  uint64_t same_gpu_bytes;
  /**
   * The bytes that go between GPUs of a node.
   */
  uint64_t same_node_bytes;
  /**
   * The bytes that go between nodes.
   */
  uint64_t other_node_bytes;
} dualpipe_expert_transfers_info;

/**
 * The copies of one layer.
 */
typedef struct dualpipe_expert_layer_transfers {
  /**
   * Which layer.
   */
  uint32_t layer;
  /**
   * Its rounds.
   */
  uint32_t num_rounds;
  /**
   * No plan for this layer has fewer rounds.
   */
  uint32_t least_rounds;
  /**
   * Its copies: the sum of the next three.
   */
  uint32_t num_copies;
  /**
   * Copies within a GPU.
   */
  uint32_t same_gpu;
  /**
   * Copies between GPUs of a node.
   */
  uint32_t same_node;
  /**
   * Copies between nodes.
   */
  uint32_t other_node;
  /**
   * Its experts that must be loaded from elsewhere.
   */
  uint32_t num_lost;
  /**
   * Where its copies begin among all.
   */
  uint64_t first_copy;
} dualpipe_expert_layer_transfers;

/**
 * One copy of an expert, with all its tensors. from and to are rooms: below num_slots a slot, num_slots + i the
 * staging buffer i of that GPU.
 */
typedef struct dualpipe_expert_copy {
  /**
   * The layer.
   */
  uint32_t layer;
  /**
   * The round of its layer, from 0.
   */
  uint32_t round;
  /**
   * What is copied.
   */
  uint32_t expert;
  /**
   * The GPU that sends.
   */
  uint32_t from_gpu;
  /**
   * The room that is read.
   */
  uint32_t from;
  /**
   * The GPU that receives.
   */
  uint32_t to_gpu;
  /**
   * The room that is written.
   */
  uint32_t to;
  /**
   * A dualpipe_expert_link: how far.
   */
  uint32_t link;
} dualpipe_expert_copy;

/**
 * A slot whose expert no live slot held: it must be loaded from elsewhere, after the last round of its layer.
 */
typedef struct dualpipe_lost_expert {
  /**
   * The layer.
   */
  uint32_t layer;
  /**
   * What is to be loaded.
   */
  uint32_t expert;
  /**
   * Where to.
   */
  uint32_t slot;
} dualpipe_lost_expert;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The copies that lead from placement `from` to placement `to`: num_layers rows of the cluster's slots each, the
 * expert in each slot or -1, num_slots numbers in all.
 *
 * cluster is as it is now: what `from` has on a dead GPU is not there, and `to` must have -1 there. In a live slot of
 * `to` -1 says that it does not matter: it is not written. A slot that holds what it is to hold is not touched. The
 * staging buffers are the fewest with which it can be done, or more if options->staging_per_gpu allows it. Each GPU
 * and each node gets an expert from outside once, and only if it has no replica, except where that would stop
 * everything. Time: about proportional to the slots.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT.
 */
dualpipe_status dualpipe_expert_transfers_create(const dualpipe_cluster *cluster,
                                                 uint32_t num_experts,
                                                 const int64_t *from,
                                                 const int64_t *to,
                                                 size_t num_slots,
                                                 const struct dualpipe_expert_transfer_options *options,
                                                 dualpipe_expert_transfers_t *transfers);

/**
 * Frees transfers. NULL is fine.
 */
dualpipe_status dualpipe_expert_transfers_free(dualpipe_expert_transfers_t transfers);

/**
 * Transfers as a whole: rounds, copies, bytes by how far they go, staging buffers, what is lost.
 */
dualpipe_status dualpipe_expert_transfers_describe(dualpipe_expert_transfers_t transfers,
                                                   struct dualpipe_expert_transfers_info *info);

/**
 * The layers in the order in which they are to be done, num_layers entries. Buffers are filled as dualpipe.h says
 * under "Buffers".
 */
dualpipe_status dualpipe_expert_transfers_layers(dualpipe_expert_transfers_t transfers,
                                                 struct dualpipe_expert_layer_transfers *layers,
                                                 size_t capacity,
                                                 size_t *count);

/**
 * All copies: layer after layer in the order of dualpipe_expert_transfers_layers, in a layer round after round.
 * Buffers are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_expert_transfers_copies(dualpipe_expert_transfers_t transfers,
                                                 struct dualpipe_expert_copy *copies,
                                                 size_t capacity,
                                                 size_t *count);

/**
 * What a GPU does, in order: the copies that it sends (from_gpu is `gpu`), receives (to_gpu is `gpu`) and does
 * within itself (both are). Buffers are filled as dualpipe.h says under "Buffers". Time: proportional to all
 * copies.
 */
dualpipe_status dualpipe_expert_transfers_for_gpu(dualpipe_expert_transfers_t transfers,
                                                  uint32_t gpu,
                                                  struct dualpipe_expert_copy *copies,
                                                  size_t capacity,
                                                  size_t *count);

/**
 * The staging buffers that each GPU needs, num_gpus numbers. Buffers are filled as dualpipe.h says under
 * "Buffers".
 */
dualpipe_status dualpipe_expert_transfers_staging(dualpipe_expert_transfers_t transfers,
                                                  uint32_t *staging,
                                                  size_t capacity,
                                                  size_t *count);

/**
 * What must be loaded from elsewhere, by layer and slot. Buffers are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_expert_transfers_lost(dualpipe_expert_transfers_t transfers,
                                               struct dualpipe_lost_expert *lost,
                                               size_t capacity,
                                               size_t *count);

/**
 * The placement when the first layers_done layers have been done, what was lost being loaded: num_layers rows of
 * the cluster's slots, -1 where there is no expert. What remains after a failure is planned from this one. Buffers
 * are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_expert_transfers_placement_after(dualpipe_expert_transfers_t transfers,
                                                          uint32_t layers_done,
                                                          int64_t *experts,
                                                          size_t capacity,
                                                          size_t *count);

/**
 * Proves transfers right by replaying them: every copy reads what is there since an earlier round, nothing is read
 * and written in the same round, no limit is passed, and in the end every slot holds what it should.
 *
 * Errors: DUALPIPE_ERROR_INVALID_SCHEDULE, with the first fault; it would be a defect of the library.
 */
dualpipe_status dualpipe_expert_transfers_check(dualpipe_expert_transfers_t transfers);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/** Initializes a dualpipe_expert_transfer_options:
 * `dualpipe_expert_transfer_options x = DUALPIPE_EXPERT_TRANSFER_OPTIONS_INIT;` */
#define DUALPIPE_EXPERT_TRANSFER_OPTIONS_INIT \
  { sizeof(dualpipe_expert_transfer_options), 0, 0, 0, 0, 0, 0, 0, NULL, NULL }

/** Initializes a dualpipe_expert_transfers_info:
 * `dualpipe_expert_transfers_info x = DUALPIPE_EXPERT_TRANSFERS_INFO_INIT;` */
#define DUALPIPE_EXPERT_TRANSFERS_INFO_INIT \
  { sizeof(dualpipe_expert_transfers_info), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

#endif /* DUALPIPE_EXPERT_TRANSFER_H */
