/* packed_lanes.c - see packed_ranks.h. Each lane is an MoE layer: a row depends on the row before it, layers
 * do not depend on each other. Compiled once for each instruction set; the same bytes from all. */
#include "lanes/byte_lanes.h"
#include "packed_ranks.h"
#include "wb_isa.h"

#include <string.h>

/* The row before, of up to LANES layers. */
typedef struct row_before {
    lanes ranks[WB_PACKED_CHOICES];  /* in the order of choices */
    lanes sorted[WB_PACKED_CHOICES]; /* ascending, for decoding alone */
} row_before;

LANES_INLINE void row_before_begin(row_before *before, uint32_t K) {
    for (uint32_t k = 0; k < K; k++) before->ranks[k] = before->sorted[k] = lanes_set(k);
}

/* ---- decoding ----------------------------------------------------------------------------------- */

LANES_INLINE void sort_ranks(row_before *before, uint32_t K) {
    lanes *s = before->sorted;
#pragma GCC unroll 8
    for (uint32_t k = 0; k < K; k++) {
        lanes x = before->ranks[k];
#pragma GCC unroll 8
        for (uint32_t j = 0; j < k; j++) {
            lanes low = lanes_min(s[j], x);
            x = lanes_max(s[j], x);
            s[j] = low;
        }
        s[k] = x;
    }
}

/* The ranks of the next row, of symbols that lie `plane` bytes apart from choice to choice. A place in the
 * list without the first j choices becomes one in the list without the first j - 1 by stepping over choice
 * j; a rank among those that the row before lacks becomes a rank by stepping over its ranks, ascending. */
LANES_INLINE void decode_row(const uint8_t *symbols, size_t plane, uint32_t K, row_before *before) {
    lanes symbol[WB_PACKED_CHOICES], ranks[WB_PACKED_CHOICES];
#pragma GCC unroll 8
    for (uint32_t k = 0; k < K; k++) {
        symbol[k] = lanes_load(symbols + k * plane);
        lanes place = symbol[k];
#pragma GCC unroll 8
        for (uint32_t j = k; j > 0; j--) place = lanes_count(place, place, symbol[j - 1]);
        lanes rank = lanes_sub(place, lanes_set(K));
#pragma GCC unroll 8
        for (uint32_t j = 0; j < K; j++) rank = lanes_count(rank, rank, before->sorted[j]);
#pragma GCC unroll 8
        for (uint32_t j = 0; j < K; j++) rank = lanes_choose(rank, place, lanes_set(j), before->ranks[j]);
        ranks[k] = rank;
    }
#pragma GCC unroll 8
    for (uint32_t k = 0; k < K; k++) before->ranks[k] = ranks[k];
    sort_ranks(before, K);
}

/* Layers [first, first + n) of all rows, n <= LANES. */
LANES_INLINE void decode_layers(wb_packed_shape shape, uint32_t K, const uint8_t *expert_at,
                                const uint8_t *symbols, uint32_t first, uint32_t n, uint8_t *ids) {
    const size_t plane = shape.rows * shape.L;
    row_before before;
    uint8_t ranks[WB_PACKED_CHOICES][LANES];
    row_before_begin(&before, K);
    for (size_t r = 0; r < shape.rows; r++) {
        decode_row(symbols + r * shape.L + first, plane, K, &before);
        for (uint32_t k = 0; k < K; k++) lanes_store(ranks[k], before.ranks[k]);
        uint8_t *id = ids + (r * shape.L + first) * K;
        const uint8_t *expert = expert_at + (size_t)first * WB_PACKED_EXPERTS;
        for (uint32_t l = 0; l < n; l++, id += K, expert += WB_PACKED_EXPERTS)
#pragma GCC unroll 8
            for (uint32_t k = 0; k < K; k++) id[k] = expert[ranks[k][l]];
    }
}

LANES_INLINE void decode_all(wb_packed_shape shape, uint32_t K, const uint8_t *expert_at,
                             const uint8_t *symbols, uint8_t *ids) {
    for (uint32_t l = 0; l < shape.L; l += LANES) {
        uint32_t n = shape.L - l < LANES ? shape.L - l : LANES;
        decode_layers(shape, K, expert_at, symbols, l, n, ids);
    }
}

static void decode(wb_packed_shape shape, const uint8_t *expert_at, const uint8_t *symbols,
                   uint8_t *ids_out) {
    /* A constant K lets the compiler keep a row in registers. */
    if (shape.K == 8)
        decode_all(shape, 8, expert_at, symbols, ids_out);
    else
        decode_all(shape, shape.K, expert_at, symbols, ids_out);
}

/* ---- encoding ----------------------------------------------------------------------------------- */

/* The symbols of a row of `ranks`, which becomes the row before. */
LANES_INLINE void encode_row(const uint8_t (*ranks)[LANES], uint32_t K, row_before *before,
                             uint8_t (*symbols_out)[LANES]) {
    lanes rank[WB_PACKED_CHOICES], place[WB_PACKED_CHOICES];
    for (uint32_t k = 0; k < K; k++) {
        rank[k] = lanes_load(ranks[k]);
        lanes below = lanes_set(0), before_it = lanes_set(0);
        for (uint32_t j = 0; j < K; j++) below = lanes_count(below, rank[k], before->ranks[j]);
        place[k] = lanes_sub(rank[k], lanes_sub(below, lanes_set(K)));
        for (uint32_t j = 0; j < K; j++)
            place[k] = lanes_choose(place[k], rank[k], before->ranks[j], lanes_set(j));
        for (uint32_t j = 0; j < k; j++) before_it = lanes_count(before_it, place[k], place[j]);
        lanes_store(symbols_out[k], lanes_sub(place[k], before_it));
    }
    for (uint32_t k = 0; k < K; k++) before->ranks[k] = rank[k];
}

static void encode_layers(wb_packed_shape shape, const uint8_t *rank_of, const uint8_t *ids,
                          const uint8_t *valid, uint32_t first, uint32_t n, uint8_t *symbols_out) {
    const size_t plane = shape.rows * shape.L;
    const uint32_t K = shape.K;
    row_before before;
    uint8_t ranks[WB_PACKED_CHOICES][LANES] = {{0}}, symbols[WB_PACKED_CHOICES][LANES];
    row_before_begin(&before, K);
    for (size_t r = 0; r < shape.rows; r++) {
        if (!valid || (valid[r / 8] >> (r % 8) & 1)) {
            const uint8_t *id = ids + (r * shape.L + first) * K;
            const uint8_t *rank = rank_of + (size_t)first * WB_PACKED_EXPERTS;
            for (uint32_t l = 0; l < n; l++, id += K, rank += WB_PACKED_EXPERTS)
                for (uint32_t k = 0; k < K; k++) ranks[k][l] = rank[id[k]];
            encode_row((const uint8_t(*)[LANES])ranks, K, &before, symbols);
        } else {
            memset(symbols, 0, sizeof symbols);
        }
        for (uint32_t k = 0; k < K; k++) memcpy(symbols_out + k * plane + r * shape.L + first, symbols[k], n);
    }
}

static void encode(wb_packed_shape shape, const uint8_t *rank_of, const uint8_t *ids, const uint8_t *valid,
                   uint8_t *symbols_out) {
    for (uint32_t l = 0; l < shape.L; l += LANES) {
        uint32_t n = shape.L - l < LANES ? shape.L - l : LANES;
        encode_layers(shape, rank_of, ids, valid, l, n, symbols_out);
    }
}

const wb_packed_table WB_LANES(wb_packed) = {encode, decode};
