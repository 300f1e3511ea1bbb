/* packed_lanes.c - see packed_ranks.h. Each lane is an MoE layer: a row depends on the row before it, layers
 * do not depend on each other. Compiled once for each instruction set; the same bytes from all. */
#include "lanes/rank_lookup.h"
#include "wb_isa.h"

#include <string.h>

/* n + 1 where x >= y, else n */
LANES_INLINE lanes lanes_count(lanes n, lanes x, lanes y) {
    return lanes_add(lanes_at_least(x, y), n, 1);
}

/* ---- decoding ----------------------------------------------------------------------------------- */

/* The row before, of up to LANES layers. Both arrays are filled up behind the K, to a power of two. */
typedef struct row_before {
    lanes ranks[WB_PACKED_CHOICES]; /* in the order of choices */
    /* How many ranks that the row lacks lie below its k-th smallest: that rank less k. Then 255. */
    lanes below[WB_PACKED_CHOICES];
} row_before;

LANES_INLINE void row_before_begin(row_before *before, uint32_t K) {
    for (uint32_t k = 0; k < WB_PACKED_CHOICES; k++) {
        before->ranks[k] = lanes_set(k);
        before->below[k] = lanes_set(k < K ? 0 : 255);
    }
}

LANES_INLINE void count_below(row_before *before, uint32_t K) {
    lanes *s = before->below;
#pragma GCC unroll 10
    for (uint32_t k = 0; k < K; k++) {
        lanes x = before->ranks[k];
#pragma GCC unroll 10
        for (uint32_t j = 0; j < k; j++) {
            lanes low = lanes_min(s[j], x);
            x = lanes_max(s[j], x);
            s[j] = low;
        }
        s[k] = x;
    }
#pragma GCC unroll 10
    for (uint32_t k = 0; k < K; k++) s[k] = lanes_sub(s[k], lanes_set(k));
}

/* The least b with K <= 2^b. */
LANES_INLINE uint32_t bits_of(uint32_t K) {
    return K <= 1 ? 0 : K <= 2 ? 1 : K <= 4 ? 2 : K <= 8 ? 3 : 4;
}

/* Number `place` of the 2^bits, for places beyond them that of the low bits: a tournament, a bit a round. */
LANES_INLINE lanes choose_rank(const lanes *ranks, uint32_t bits, lanes place) {
    lanes left[WB_PACKED_CHOICES];
#pragma GCC unroll 16
    for (uint32_t i = 0; i < WB_PACKED_CHOICES; i++) left[i] = ranks[i];
#pragma GCC unroll 4
    for (uint32_t b = 0; b < bits; b++) {
        const lanes_mask odd = lanes_has(place, 1u << b);
        const uint32_t half = 1u << (bits - b - 1);
#pragma GCC unroll 8
        for (uint32_t i = 0; i < half; i++) left[i] = lanes_pick(odd, left[2 * i], left[2 * i + 1]);
    }
    return left[0];
}

/* Rank number `nth` of those that the row before lacks: it steps over as many as are in the row and have at
 * most `nth` of the lacking ones below them. How many these are, bisection of the 2^bits numbers finds. */
LANES_INLINE lanes nth_lacking(const lanes *below, uint32_t bits, lanes nth) {
    const uint32_t n = 1u << bits;
    lanes rank = lanes_count(nth, nth, below[n - 1]), left[WB_PACKED_CHOICES];
#pragma GCC unroll 16
    for (uint32_t i = 0; i < WB_PACKED_CHOICES; i++) left[i] = below[i];
#pragma GCC unroll 4
    for (uint32_t b = bits; b > 0; b--) {
        const uint32_t half = 1u << (b - 1);
        const lanes_mask upper = lanes_at_least(nth, left[half - 1]);
        rank = lanes_add(upper, rank, half);
#pragma GCC unroll 8
        for (uint32_t i = 0; i + 1 < half; i++) left[i] = lanes_pick(upper, left[i], left[i + half]);
    }
    return rank;
}

/* The ranks of the next row, of symbols that lie `plane` bytes apart from choice to choice. A place in the
 * list without the first j choices becomes one in the list without the first j - 1 by stepping over choice
 * j; the first K places are the row before, the others the ranks that it lacks. */
LANES_INLINE void decode_row(const uint8_t *symbols, size_t plane, uint32_t K, row_before *before) {
    lanes symbol[WB_PACKED_CHOICES], ranks[WB_PACKED_CHOICES];
    const uint32_t bits = bits_of(K);
#pragma GCC unroll 10
    for (uint32_t k = 0; k < K; k++) {
        symbol[k] = lanes_load(symbols + k * plane);
        lanes place = symbol[k];
#pragma GCC unroll 10
        for (uint32_t j = k; j > 0; j--) place = lanes_count(place, place, symbol[j - 1]);
        ranks[k] = lanes_pick(lanes_at_least(place, lanes_set(K)), choose_rank(before->ranks, bits, place),
                              nth_lacking(before->below, bits, lanes_sub(place, lanes_set(K))));
    }
#pragma GCC unroll 10
    for (uint32_t k = 0; k < K; k++) before->ranks[k] = ranks[k];
    count_below(before, K);
}

/* Layers [first, first + n) of all rows, n <= LANES. */
LANES_INLINE void decode_layers(wb_packed_shape shape, uint32_t K, const uint8_t *expert_at,
                                const uint8_t *symbols, uint32_t first, uint32_t n, uint8_t *ids) {
    const size_t plane = shape.rows * shape.L;
    row_before before;
    rank_rows ranks = {{{0}}};
    lookup to = {shape, expert_at + (size_t)first * WB_PACKED_EXPERTS, ids + (size_t)first * K, 0, n};
    row_before_begin(&before, K);
    for (size_t r = 0; r < shape.rows; r++) {
        decode_row(symbols + r * shape.L + first, plane, K, &before);
        for (uint32_t k = 0; k < K; k++) lanes_store(ranks[to.rows][k], before.ranks[k]);
        if (++to.rows < LOOKUP_ROWS && r + 1 < shape.rows) continue;
        look_up(&to, K, (const uint8_t(*)[WB_PACKED_CHOICES][LANES])ranks);
        to.ids += to.rows * shape.L * K;
        to.rows = 0;
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
    /* A constant K lets the compiler keep a row in registers; these are those of models that there are. */
    switch (shape.K) {
    case 2:
        decode_all(shape, 2, expert_at, symbols, ids_out);
        break;
    case 4:
        decode_all(shape, 4, expert_at, symbols, ids_out);
        break;
    case 6:
        decode_all(shape, 6, expert_at, symbols, ids_out);
        break;
    case 8:
        decode_all(shape, 8, expert_at, symbols, ids_out);
        break;
    case 10:
        decode_all(shape, 10, expert_at, symbols, ids_out);
        break;
    default:
        decode_all(shape, shape.K, expert_at, symbols, ids_out);
    }
}

/* ---- encoding ----------------------------------------------------------------------------------- */

/* z where x == y, else n */
LANES_INLINE lanes lanes_choose(lanes n, lanes x, lanes y, lanes z) {
    return lanes_pick(lanes_same(x, y), n, z);
}

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
