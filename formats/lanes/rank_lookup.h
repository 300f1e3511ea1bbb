/* rank_lookup.h - the experts of ranks, which lie in lanes, one layer beside the other, and go into rows of
 * ids, one choice beside the other (internal). Each layer has a table of its own. Refuses: where ranks come
 * from. */
#ifndef WB_RANK_LOOKUP_H
#define WB_RANK_LOOKUP_H

#include "lanes/byte_lanes.h"
#include "packed_ranks.h"

#include <stdbool.h>

/* So many rows are looked up together: with K = 8 those of a layer are then a vector of AVX-512. */
enum { LOOKUP_ROWS = 8 };

typedef uint8_t rank_rows[LOOKUP_ROWS][WB_PACKED_CHOICES][LANES];

/* Where they go: layers [n] of `rows` rows, ids [..][L][K] from the first of both; their tables expert_at
 * [n][256]. */
typedef struct lookup {
    wb_packed_shape shape;
    const uint8_t *expert_at;
    uint8_t *ids;
    size_t rows;
    uint32_t n;
} lookup;

LANES_INLINE void look_up_each(const lookup *to, uint32_t K, const rank_rows ranks) {
    for (size_t r = 0; r < to->rows; r++) {
        uint8_t *id = to->ids + r * to->shape.L * K;
        const uint8_t *expert = to->expert_at;
        for (uint32_t l = 0; l < to->n; l++, id += K, expert += WB_PACKED_EXPERTS)
#pragma GCC unroll 10
            for (uint32_t k = 0; k < K; k++) id[k] = expert[ranks[r][k][l]];
    }
}

#ifdef __AVX512BW__
/* Eight rows of eight 64-bit numbers become its columns. */
LANES_INLINE void transpose_numbers(__m512i v[8]) {
    __m512i two[8], four[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        two[i] = _mm512_unpacklo_epi64(v[i], v[i + 1]);
        two[i + 1] = _mm512_unpackhi_epi64(v[i], v[i + 1]);
    }
    /* two[2i + h] has columns h, 2 + h, 4 + h and 6 + h of rows 2i and 2i + 1. */
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
        four[h] = _mm512_shuffle_i32x4(two[h], two[2 + h], 0x88);
        four[2 + h] = _mm512_shuffle_i32x4(two[h], two[2 + h], 0xdd);
        four[4 + h] = _mm512_shuffle_i32x4(two[4 + h], two[6 + h], 0x88);
        four[6 + h] = _mm512_shuffle_i32x4(two[4 + h], two[6 + h], 0xdd);
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
        v[h] = _mm512_shuffle_i32x4(four[h], four[4 + h], 0x88);
        v[2 + h] = _mm512_shuffle_i32x4(four[2 + h], four[6 + h], 0x88);
        v[4 + h] = _mm512_shuffle_i32x4(four[h], four[4 + h], 0xdd);
        v[6 + h] = _mm512_shuffle_i32x4(four[2 + h], four[6 + h], 0xdd);
    }
}

/* Bytes of a row [8 choices][64 layers] to [64 layers][8 choices], of which vector m has the layers
 * 16c + 2m + h as its numbers 2c + h. */
LANES_INLINE void choices_together(const uint8_t ranks[][LANES], uint8_t (*layers_out)[64]) {
    __m512i v[8], bytes[8], words[8];
#pragma GCC unroll 8
    for (int k = 0; k < 8; k++) v[k] = lanes_load(ranks[k]);
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        bytes[i] = _mm512_unpacklo_epi8(v[i], v[i + 1]);
        bytes[i + 1] = _mm512_unpackhi_epi8(v[i], v[i + 1]);
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
        words[4 * h] = _mm512_unpacklo_epi16(bytes[h], bytes[2 + h]);
        words[4 * h + 1] = _mm512_unpackhi_epi16(bytes[h], bytes[2 + h]);
        words[4 * h + 2] = _mm512_unpacklo_epi16(bytes[4 + h], bytes[6 + h]);
        words[4 * h + 3] = _mm512_unpackhi_epi16(bytes[4 + h], bytes[6 + h]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const int w = 4 * (i / 2) + i % 2;
        lanes_store(layers_out[2 * i], _mm512_unpacklo_epi32(words[w], words[w + 2]));
        lanes_store(layers_out[2 * i + 1], _mm512_unpackhi_epi32(words[w], words[w + 2]));
    }
}

/* The bytes of `table` [128] at the low seven bits of each byte of v. Without shuffles of bytes over a whole
 * vector (VBMI), pairs are looked up for even bytes and for odd ones, and one byte of each pair is taken. */
LANES_INLINE __m512i look_up_128(const uint8_t *table, __m512i v) {
    const __m512i low = lanes_load(table), high = lanes_load(table + 64);
    const __m512i own = _mm512_set4_epi32(0x0e0e0c0c, 0x0a0a0808, 0x06060404, 0x02020000);
    const __m512i even = _mm512_permutex2var_epi16(low, _mm512_srli_epi16(v, 1), high),
                  odd = _mm512_permutex2var_epi16(low, _mm512_srli_epi16(v, 9), high),
                  place = _mm512_or_si512(_mm512_and_si512(v, lanes_set(1)), own);
    return lanes_pick(0xaaaaaaaaaaaaaaaau, _mm512_shuffle_epi8(even, place), _mm512_shuffle_epi8(odd, place));
}

LANES_INLINE __m512i look_up_64(const uint8_t *table, bool is_wide, __m512i v) {
    const __m512i experts = look_up_128(table, v);
    if (!is_wide) return experts;
    return lanes_pick(_mm512_movepi8_mask(v), experts, look_up_128(table + 128, v));
}

/* Layers 16c + 2m and 16c + 2m + 1 lie beside each other in `rows` too. */
LANES_INLINE void store_ids(const lookup *to, uint32_t m, uint8_t (*rows)[64]) {
    for (uint32_t c = 0; c < 4; c++) {
        const uint32_t l = 16 * c + 2 * m;
        if (l >= to->n) return;
        uint8_t *id = to->ids + (size_t)l * 8;
        for (size_t r = 0; r < to->rows; r++, id += (size_t)to->shape.L * 8) {
            if (l + 1 < to->n)
                memcpy(id, rows[r] + 16 * c, 16);
            else
                memcpy(id, rows[r] + 16 * c, 8);
        }
    }
}

/* K = 8: the ranks of a layer in all rows are brought together, looked up at once, and brought back. */
LANES_INLINE void look_up_layers(const lookup *to, bool is_wide, const rank_rows ranks) {
    uint8_t rows[LOOKUP_ROWS][8][64], ids[LOOKUP_ROWS][64];
    __m512i v[8];
    for (int r = 0; r < LOOKUP_ROWS; r++) choices_together(ranks[r], rows[r]);
    for (uint32_t m = 0; m < 8; m++) {
#pragma GCC unroll 8
        for (int r = 0; r < LOOKUP_ROWS; r++) v[r] = lanes_load(rows[r][m]);
        transpose_numbers(v);
#pragma GCC unroll 8
        for (uint32_t q = 0; q < 8; q++) {
            const uint32_t l = 16 * (q / 2) + 2 * m + q % 2;
            if (l < to->n) v[q] = look_up_64(to->expert_at + (size_t)l * WB_PACKED_EXPERTS, is_wide, v[q]);
        }
        transpose_numbers(v);
#pragma GCC unroll 8
        for (int r = 0; r < LOOKUP_ROWS; r++) lanes_store(ids[r], v[r]);
        store_ids(to, m, ids);
    }
}
#endif

/* All LOOKUP_ROWS rows of ranks are read, and `rows` of them are written. */
LANES_INLINE void look_up(const lookup *to, uint32_t K, const rank_rows ranks) {
#ifdef __AVX512BW__
    if (K == 8 && to->shape.E <= 128)
        look_up_layers(to, false, ranks);
    else if (K == 8)
        look_up_layers(to, true, ranks);
    else
#endif
        look_up_each(to, K, ranks);
}

#endif
