/* eplb_dispatch_fixture.h - random topologies, maps and counts for the tests of dispatch: uneven slots,
 * several nodes, dead ranks, empty slots, replicas that share a rank, replicas out of slot order. */
#ifndef EPLB_DISPATCH_FIXTURE_H
#define EPLB_DISPATCH_FIXTURE_H

#include "dispatch/dispatch_internal.h"
#include "wb_eplb.h"
#include "wb_random.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define assert_ok(call)                                          \
    do {                                                         \
        if ((call) != WB_OK) fail_msg("%s", wb_error_message()); \
    } while (0)

#define assert_fails(call, expected, words)                                                            \
    do {                                                                                               \
        assert_int_equal(call, expected);                                                              \
        if (!strstr(wb_error_message(), words)) fail_msg("no '%s' in: %s", words, wb_error_message()); \
    } while (0)

static inline void *take(size_t count, size_t size) {
    void *block = calloc(count ? count : 1, size);
    assert_non_null(block);
    return block;
}

static inline uint32_t pick(uint64_t *random, uint32_t min, uint32_t max) {
    return min + wb_random_below(random, max - min + 1);
}

/* Fills a layer: every expert once, then any expert or none in the slots left over, replicas in any order. */
static inline void set_random_layer(wb_placement *p, uint32_t layer, uint64_t epoch, uint64_t *random) {
    uint32_t S = p->topology.n_slots, E = p->n_experts, n_free = 0;
    int32_t *map = take(S, sizeof *map);
    uint32_t *replica = take(S, sizeof *replica), *slots = take(S, sizeof *slots), *n = take(E, sizeof *n);
    for (uint32_t slot = 0; slot < S; slot++) {
        map[slot] = WB_NO_EXPERT;
        if (!p->topology.dead[p->rank_of_slot[slot]]) slots[n_free++] = slot;
    }
    for (uint32_t i = n_free; i > 1; i--) {
        uint32_t j = wb_random_below(random, i), swap = slots[i - 1];
        slots[i - 1] = slots[j];
        slots[j] = swap;
    }
    for (uint32_t i = 0; i < n_free; i++) {
        uint32_t e = i < E ? i : wb_random_below(random, E);
        if (i >= E && pick(random, 0, 9) == 0) continue;
        map[slots[i]] = (int32_t)e;
        replica[slots[i]] = n[e]++;
    }
    assert_ok(wb_placement_set_layer(p, layer, map, replica, epoch));
    free(map);
    free(replica);
    free(slots);
    free(n);
}

/* At most `ranks` ranks and `experts` experts, about `spare` slots more than experts on live ranks. */
static inline wb_placement *random_placement(uint64_t *random, uint32_t ranks, uint32_t experts,
                                             uint32_t spare, uint32_t layers) {
    uint32_t R = pick(random, 1, ranks), N = pick(random, 1, R), E = pick(random, 1, experts), live = 0;
    uint32_t *slots = take(R, sizeof *slots), *nodes = take(R, sizeof *nodes), n_slots = 0;
    uint8_t *dead = take(R, 1);
    for (uint32_t r = 1, left = N - 1; r < R; r++) {
        bool next = left > 0 && (R - r == left || pick(random, 0, R - 1) < N);
        nodes[r] = nodes[r - 1] + (next ? 1 : 0);
        left -= next;
    }
    for (uint32_t r = 0; r < R; r++) dead[r] = pick(random, 0, 5) == 0;
    dead[pick(random, 0, R - 1)] = 0;
    for (uint32_t wanted = E + pick(random, 0, spare); live < wanted;) {
        uint32_t r = pick(random, 0, R - 1);
        slots[r]++;
        live += !dead[r];
        n_slots++;
    }
    wb_topology t = {R, N, n_slots, slots, nodes, dead};
    wb_placement *p = NULL;
    assert_ok(wb_placement_open(&t, layers, E, &p));
    for (uint32_t layer = 0; layer < layers; layer++) set_random_layer(p, layer, 1, random);
    free(slots);
    free(nodes);
    free(dead);
    return p;
}

/* counts [R][E], 0..max tokens of each live rank for each expert, many of them 0. */
static inline uint32_t *random_counts(const wb_placement *p, uint32_t max, uint64_t *random) {
    uint32_t R = p->topology.n_ranks, E = p->n_experts;
    uint32_t *counts = take((size_t)R * E, sizeof *counts);
    for (uint32_t i = 0; i < R * E; i++)
        if (!p->topology.dead[i / E] && pick(random, 0, 2) > 0) counts[i] = pick(random, 0, max);
    return counts;
}

/* The tokens of one rank, from its row of counts [E], in random order. */
static inline uint16_t *tokens_of(const uint32_t *counts, uint32_t E, uint64_t *random, uint32_t *n_out) {
    uint32_t n = 0, at = 0;
    for (uint32_t e = 0; e < E; e++) n += counts[e];
    uint16_t *ids = take(n, sizeof *ids);
    for (uint32_t e = 0; e < E; e++)
        for (uint32_t i = 0; i < counts[e]; i++) ids[at++] = (uint16_t)e;
    for (uint32_t i = n; i > 1; i--) {
        uint32_t j = wb_random_below(random, i);
        uint16_t swap = ids[i - 1];
        ids[i - 1] = ids[j];
        ids[j] = swap;
    }
    *n_out = n;
    return ids;
}

#endif
