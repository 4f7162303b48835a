/*
 * Routing one step: how many tokens of each expert go to each of its replicas, and which token goes where.
 *
 * A router knows a placement. From a step's counts it makes quotas, with which the heaviest GPU is as light as can
 * be: exactly, and with the GPUs that prove it (the bottleneck). From quotas every rank finds the slot of each of
 * its tokens for itself, and all find the same: nothing is sent but the counts.
 *
 *     // What a rank does in a step, for one layer. counts: [num_gpus, num_experts], the tokens that each rank has for
 *     // each expert, gathered from all of them; topk: [tokens, top_k], this rank's choices. Choice i goes to slots[i].
 *     #include <dualpipe.h>
 *
 *     static dualpipe_status map_tokens(dualpipe_router_t router, uint32_t layer, uint32_t rank,
 *                                       const uint32_t *counts, size_t num_counts, uint32_t quotas[288],
 *                                       const int64_t *topk, size_t num_choices, int32_t *slots) {
 *       dualpipe_route_options options = DUALPIPE_ROUTE_OPTIONS_INIT;
 *       dualpipe_routing routing = DUALPIPE_ROUTING_INIT;
 *       size_t count = 0;
 *       dualpipe_status status =
 *           dualpipe_router_route_from(router, layer, &options, counts, num_counts, quotas, 288, &count, &routing);
 *       if (status == DUALPIPE_OK) // of all quotas, those of this rank's tokens
 *         status = dualpipe_router_source_quotas(router, layer, rank, 1, quotas, 288, &count);
 *       if (status == DUALPIPE_OK)
 *         status = dualpipe_router_slots_by_quotas(router, layer, quotas, 288, NULL, 0, topk, sizeof *topk,
 *                                                  num_choices, slots, num_choices, &count);
 *       return status;
 *     }
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_ROUTE_H
#define DUALPIPE_ROUTE_H

#include <stddef.h>
#include <stdint.h>
#include "balance.h"
#include "cluster.h"
#include "status.h"

/**
 * What a dualpipe_router_t points to: nothing that C could look into.
 */
typedef struct dualpipe_router dualpipe_router;

/**
 * Routes the tokens of a step, of any layer of a placement. One thread at a time: a second gets
 * DUALPIPE_ERROR_BUSY; so give each thread its own. It stays usable after a fork. Free it with
 * dualpipe_router_free.
 *
 * The first call for a layer makes what is needed for it; later ones allocate nothing. Steps do not influence each
 * other.
 */
typedef struct dualpipe_router *dualpipe_router_t;

/**
 * What a router routes on. Start from DUALPIPE_ROUTER_INFO_INIT.
 */
typedef struct dualpipe_router_info {
  /**
   * sizeof(dualpipe_router_info).
   */
  uint32_t size;
  /**
   * MoE layers.
   */
  uint32_t num_layers;
  /**
   * Logical experts of a layer.
   */
  uint32_t num_experts;
  /**
   * Slots of a layer, on all GPUs together.
   */
  uint32_t num_slots;
  /**
   * GPUs.
   */
  uint32_t num_gpus;
  /**
   * Nodes.
   */
  uint32_t num_nodes;
} dualpipe_router_info;

/**
 * What is to be kept small besides the heaviest GPU, which comes first. Start from DUALPIPE_ROUTE_OPTIONS_INIT.
 */
typedef struct dualpipe_route_options {
  /**
   * sizeof(dualpipe_route_options).
   */
  uint32_t size;
  /**
   * A slot's load counts as a whole number of so many tokens, the rows of a tile of its matrix product; at most
   * 65536. 0 stands for 1.
   */
  uint32_t tile;
  /**
   * For dualpipe_router_route_from: the price of a token that leaves its sender's GPU, at most 1000. If both
   * prices are 0 they stand for 1 and 8.
   */
  uint32_t gpu_price;
  /**
   * Likewise, the price that comes on top for a token that leaves its sender's node.
   */
  uint32_t node_price;
  /**
   * 1: senders play no part in the quotas of slots, and both prices must be 0. Otherwise 0.
   */
  uint32_t ignore_senders;
} dualpipe_route_options;

/**
 * How a step is routed. Start from DUALPIPE_ROUTING_INIT.
 */
typedef struct dualpipe_routing {
  /**
   * sizeof(dualpipe_routing).
   */
  uint32_t size;
  /**
   * GPUs of the bottleneck: dualpipe_router_bottleneck says which.
   */
  uint32_t num_bottleneck_gpus;
  /**
   * The heaviest GPU's load: tokens, or tiles times the tokens of a tile. No whole-numbered routing has a
   * lighter one.
   */
  uint64_t heaviest;
  /**
   * What no routing can beat, even of parts of tokens or tiles: bottleneck_load / num_bottleneck_gpus. heaviest
   * is less than one token (one tile) above it.
   */
  double bound;
  /**
   * The load of the experts that are on GPUs of the bottleneck only. It stays there however it is routed:
   * another replica helps only where it takes some of this load elsewhere.
   */
  uint64_t bottleneck_load;
  /**
   * Tokens that stay on their sender's GPU; 0 after dualpipe_router_route.
   */
  uint64_t tokens_on_gpu;
  /**
   * Tokens that stay on their sender's node, or GPU; 0 after dualpipe_router_route.
   */
  uint64_t tokens_on_node;
} dualpipe_routing;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * A router for all layers of a plan. The plan may be freed before it.
 */
dualpipe_status dualpipe_router_create(dualpipe_expert_plan_t plan, dualpipe_router_t *router);

/**
 * A router for a placement from anywhere: slot_to_expert has the expert in each slot, num_layers (1 to 4096) rows
 * of the cluster's slots, num_slots in all; -1 where there is none. What slots of dead GPUs hold does not matter.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT.
 */
dualpipe_status dualpipe_router_create_from_slots(const dualpipe_cluster *cluster,
                                                  uint32_t num_experts,
                                                  const int64_t *slot_to_expert,
                                                  size_t num_slots,
                                                  dualpipe_router_t *router);

/**
 * Frees a router. NULL is fine.
 */
dualpipe_status dualpipe_router_free(dualpipe_router_t router);

/**
 * The sizes of a router's placement.
 */
dualpipe_status dualpipe_router_describe(dualpipe_router_t router,
                                         struct dualpipe_router_info *info);

/**
 * Routes a step of which the totals are known: counts has the tokens of each expert, num_counts = num_experts.
 * Writes the tokens that each slot gets, num_slots numbers: those of an expert's slots add up to the expert's.
 * Buffers are filled as dualpipe.h says under "Buffers".
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also if more than 2^32 - 1 tokens are sent, or any to an expert that no
 * live GPU has.
 */
dualpipe_status dualpipe_router_route(dualpipe_router_t router,
                                      uint32_t layer,
                                      const struct dualpipe_route_options *options,
                                      const uint32_t *counts,
                                      size_t num_counts,
                                      uint32_t *quotas,
                                      size_t capacity,
                                      size_t *count,
                                      struct dualpipe_routing *routing);

/**
 * Routes a step of which the senders are known: counts has num_gpus rows of num_experts numbers, the tokens that
 * each GPU sends to each expert, num_counts = num_gpus * num_experts. Of all splits with the least heaviest GPU it
 * takes one of the least price (dualpipe_route_options). Otherwise as dualpipe_router_route; what of the quotas
 * each GPU sends has dualpipe_router_source_quotas.
 *
 * Errors: as dualpipe_router_route; and more than 2^28 quotas of senders.
 */
dualpipe_status dualpipe_router_route_from(dualpipe_router_t router,
                                           uint32_t layer,
                                           const struct dualpipe_route_options *options,
                                           const uint32_t *counts,
                                           size_t num_counts,
                                           uint32_t *quotas,
                                           size_t capacity,
                                           size_t *count,
                                           struct dualpipe_routing *routing);

/**
 * How many of its tokens each of num_gpus GPUs, from first_gpu on, sends to each slot, by the last
 * dualpipe_router_route_from of this layer: num_gpus rows of num_slots numbers. Those of all GPUs add up to the
 * quotas. Tokens stay on their GPU if they can, else on their node. Buffers are filled as dualpipe.h says under
 * "Buffers".
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also if the layer was not routed, or last by dualpipe_router_route.
 */
dualpipe_status dualpipe_router_source_quotas(dualpipe_router_t router,
                                              uint32_t layer,
                                              uint32_t first_gpu,
                                              uint32_t num_gpus,
                                              uint32_t *quotas,
                                              size_t capacity,
                                              size_t *count);

/**
 * Each GPU's load by the last routing of this layer, num_gpus numbers: tokens, or tiles times the tokens of a
 * tile. Buffers are filled as dualpipe.h says under "Buffers".
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also if the layer was not routed.
 */
dualpipe_status dualpipe_router_gpu_loads(dualpipe_router_t router,
                                          uint32_t layer,
                                          uint64_t *gpu_loads,
                                          size_t capacity,
                                          size_t *count);

/**
 * The GPUs of the bottleneck by the last routing of this layer, in order: the experts that are on these GPUs only
 * have dualpipe_routing's bottleneck_load. Buffers are filled as dualpipe.h says under "Buffers".
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also if the layer was not routed.
 */
dualpipe_status dualpipe_router_bottleneck(dualpipe_router_t router,
                                           uint32_t layer,
                                           uint32_t *gpus,
                                           size_t capacity,
                                           size_t *count);

/**
 * The shares of slots in their experts' tokens that make the heaviest GPU as light as can be if the loads are
 * these: num_loads = num_experts, finite and not negative. Writes num_slots shares, those of an expert adding up
 * to 1 (an expert without load is shared equally), and the heaviest GPU's load. Buffers are filled as dualpipe.h
 * says under "Buffers".
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also if an expert has a load that no live GPU has.
 */
dualpipe_status dualpipe_router_shares(dualpipe_router_t router,
                                       uint32_t layer,
                                       const float *loads,
                                       size_t num_loads,
                                       double *shares,
                                       size_t capacity,
                                       size_t *count,
                                       double *heaviest);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/** Initializes a dualpipe_router_info: `dualpipe_router_info x = DUALPIPE_ROUTER_INFO_INIT;` */
#define DUALPIPE_ROUTER_INFO_INIT { sizeof(dualpipe_router_info), 0, 0, 0, 0, 0 }

/** Initializes a dualpipe_route_options: `dualpipe_route_options x = DUALPIPE_ROUTE_OPTIONS_INIT;` */
#define DUALPIPE_ROUTE_OPTIONS_INIT { sizeof(dualpipe_route_options), 0, 0, 0, 0 }

/** Initializes a dualpipe_routing: `dualpipe_routing x = DUALPIPE_ROUTING_INIT;` */
#define DUALPIPE_ROUTING_INIT { sizeof(dualpipe_routing), 0, 0, 0, 0, 0, 0 }

#endif /* DUALPIPE_ROUTE_H */
