/*
 * What experts are placed on, and what makes a placement good: two structs that functions of expert plans take.
 *
 *     // 288 slots on 32 GPUs of 4 nodes; GPU 5 has failed. Groups of experts stay on a node.
 *     #include <dualpipe.h>
 *
 *     static void describe(dualpipe_cluster *cluster, dualpipe_goal *goal, uint8_t is_alive[32]) {
 *       const dualpipe_cluster no_cluster = DUALPIPE_CLUSTER_INIT;
 *       const dualpipe_goal no_goal = DUALPIPE_GOAL_INIT;
 *       *cluster = no_cluster;
 *       cluster->num_gpus = 32;
 *       cluster->num_slots = 288;
 *       cluster->num_nodes = 4;
 *       is_alive[5] = 0;
 *       cluster->is_alive = is_alive;
 *       *goal = no_goal;
 *       goal->num_layers = 58;
 *       goal->num_experts = 256;
 *       goal->num_groups = 8;
 *       goal->group_rule = DUALPIPE_GROUPS_WHOLE;
 *     }
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_CLUSTER_H
#define DUALPIPE_CLUSTER_H

#include <stddef.h>
#include <stdint.h>
#include "status.h"

/**
 * How the tokens of an expert are shared among its replicas.
 */
enum dualpipe_split
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Each replica gets as many, as engines do by default.
   */
  DUALPIPE_SPLIT_EQUAL = 0,
  /**
   * Each slot gets the share that the plan says.
   */
  DUALPIPE_SPLIT_WEIGHTED = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_split dualpipe_split;
#else
typedef uint32_t dualpipe_split;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Whether the experts of a group stay together.
 */
enum dualpipe_group_rule
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Groups play no part.
   */
  DUALPIPE_GROUPS_FREE = 0,
  /**
   * Every replica of a group's experts is on one node.
   */
  DUALPIPE_GROUPS_WHOLE = 1,
  /**
   * A group may be spread over nodes, at dualpipe_goal's price.
   */
  DUALPIPE_GROUPS_PRICED = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_group_rule dualpipe_group_rule;
#else
typedef uint32_t dualpipe_group_rule;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * GPUs, their slots for the experts of a layer, and their nodes. Start from DUALPIPE_CLUSTER_INIT.
 *
 * Slots are numbered GPU by GPU, those of dead GPUs too: a number means the same slot before and after a failure. A
 * slot of a dead GPU holds no expert, which is written as -1.
 */
typedef struct dualpipe_cluster {
  /**
   * sizeof(dualpipe_cluster).
   */
  uint32_t size;
  /**
   * GPUs, 1 to 2^20.
   */
  uint32_t num_gpus;
  /**
   * Slots of all GPUs together, num_gpus to 2^20; where they do not divide, the first GPUs have one more. 0 with
   * slots_per_gpu.
   */
  uint32_t num_slots;
  /**
   * Nodes, 1 to num_gpus; where they do not divide, the first have one GPU more. 0 stands for 1, and with
   * node_of_gpu it must be 0.
   */
  uint32_t num_nodes;
  /**
   * NULL, or num_gpus numbers: the slots of each GPU, also 0.
   */
  const uint32_t *slots_per_gpu;
  /**
   * NULL, or num_gpus numbers: the node of each GPU, less than num_gpus.
   */
  const uint32_t *node_of_gpu;
  /**
   * NULL, or num_gpus times 0 or 1: whether each GPU is alive. NULL: all are.
   */
  const uint8_t *is_alive;
} dualpipe_cluster;

/**
 * What is placed, and what makes a placement good. Start from DUALPIPE_GOAL_INIT.
 */
typedef struct dualpipe_goal {
  /**
   * sizeof(dualpipe_goal).
   */
  uint32_t size;
  /**
   * MoE layers, each placed for itself; 1 to 4096.
   */
  uint32_t num_layers;
  /**
   * Logical experts of a layer, 1 to 65536.
   */
  uint32_t num_experts;
  /**
   * Groups of consecutive experts, at most num_experts; where they do not divide, the first have one expert more. 0
   * stands for 1.
   */
  uint32_t num_groups;
  /**
   * A dualpipe_group_rule.
   */
  uint32_t group_rule;
  /**
   * A dualpipe_split.
   */
  uint32_t split;
  /**
   * Every expert is on at least so many GPUs. 0 stands for 1.
   */
  uint32_t min_gpus;
  /**
   * Every expert is on GPUs of at least so many nodes. 0 stands for 1.
   */
  uint32_t min_nodes;
  /**
   * How long to search: the time grows in proportion. At most 1000; 0 stands for 1.
   */
  uint32_t effort;
  /**
   * Must be 0.
   */
  uint32_t reserved;
  /**
   * For DUALPIPE_GROUPS_PRICED, otherwise 0: the least imbalance + price * away is looked for, away being the
   * share of all load that is not on the node that most of its group's load is on. Finite, not negative.
   */
  double price;
} dualpipe_goal;

/** Initializes a dualpipe_cluster: `dualpipe_cluster x = DUALPIPE_CLUSTER_INIT;` */
#define DUALPIPE_CLUSTER_INIT { sizeof(dualpipe_cluster), 0, 0, 0, NULL, NULL, NULL }

/** Initializes a dualpipe_goal: `dualpipe_goal x = DUALPIPE_GOAL_INIT;` */
#define DUALPIPE_GOAL_INIT { sizeof(dualpipe_goal), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

#endif /* DUALPIPE_CLUSTER_H */
