/*
 * Which token goes to which slot: every rank finds the same for itself.
 *
 *     // Without counts, by the shares of the plan that the router was made from. topk: [tokens, top_k], the experts of
 *     // this rank's tokens. The phase keeps ranks and steps from beginning with the same replica.
 *     #include <dualpipe.h>
 *
 *     static dualpipe_status map_tokens(dualpipe_router_t router, uint32_t layer, uint64_t step, uint32_t rank,
 *                                       uint32_t num_ranks, const int32_t *topk, size_t num_choices, int32_t *slots) {
 *       size_t count = 0;
 *       return dualpipe_router_slots_by_shares(router, layer, NULL, 0, step * num_ranks + rank, topk, sizeof *topk,
 *                                              num_choices, slots, num_choices, &count);
 *     }
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_TOKEN_MAP_H
#define DUALPIPE_TOKEN_MAP_H

#include <stddef.h>
#include <stdint.h>
#include "route.h"
#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The slot of each of a rank's tokens by quotas, num_quotas = num_slots; -1 where there is no expert. Any rank
 * that is given the same finds the same, and when all tokens have been sent that the quotas were made for, each
 * slot has had its quota exactly. Of the first tokens, however many, each slot gets its part as near as can be.
 *
 * choices: the experts of the tokens, [tokens, top_k], num_choices integers of choice_bytes bytes each: 4
 * (int32_t) or 8 (int64_t); -1 is none. slots become as many, in the same order. Buffers are filled as dualpipe.h
 * says under "Buffers".
 *
 * before: with the quotas of this rank's tokens alone (its row of dualpipe_router_source_quotas) NULL, num_before
 * 0. With the quotas of all ranks' tokens (dualpipe_router_route) the number of each expert's tokens on lower
 * ranks, num_before = num_experts. If a rank sends its tokens in chunks, those of its earlier chunks are added to
 * it.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also if an expert has more tokens than its quotas.
 */
dualpipe_status dualpipe_router_slots_by_quotas(dualpipe_router_t router,
                                                uint32_t layer,
                                                const uint32_t *quotas,
                                                size_t num_quotas,
                                                const uint32_t *before,
                                                size_t num_before,
                                                const void *choices,
                                                uint32_t choice_bytes,
                                                size_t num_choices,
                                                int32_t *slots,
                                                size_t capacity,
                                                size_t *count);

/**
 * The slot of each of a rank's tokens by shares, without counts: each slot gets about its share of its expert's
 * tokens, of any tokens in a row. choices and slots are as for dualpipe_router_slots_by_quotas.
 *
 * shares: num_shares = num_slots, of which only the proportions among an expert's slots matter; NULL with 0 stands
 * for the plan's, or, if the router was made from slots, for equal ones. phase: another for each rank and step,
 * such as step * num_gpus + rank, lest all begin with the same replica.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also if an expert with tokens has no share.
 */
dualpipe_status dualpipe_router_slots_by_shares(dualpipe_router_t router,
                                                uint32_t layer,
                                                const double *shares,
                                                size_t num_shares,
                                                uint64_t phase,
                                                const void *choices,
                                                uint32_t choice_bytes,
                                                size_t num_choices,
                                                int32_t *slots,
                                                size_t capacity,
                                                size_t *count);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif /* DUALPIPE_TOKEN_MAP_H */
