/* byte_lanes.h - as many unsigned bytes side by side as a vector of the machine has (internal). Owns: the
 * type `lanes`, LANES, the type `lanes_mask` of a yes or no for each byte, and the operations on them.
 * Refuses: results that depend on the width. */
#ifndef WB_BYTE_LANES_H
#define WB_BYTE_LANES_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define LANES_INLINE static inline __attribute__((always_inline))

#if defined(__AVX512BW__)
#include <immintrin.h>
enum { LANES = 64 };
typedef __m512i lanes;
typedef __mmask64 lanes_mask;

LANES_INLINE lanes lanes_set(unsigned x) {
    return _mm512_set1_epi8((char)x);
}
LANES_INLINE lanes lanes_load(const uint8_t *p) {
    return _mm512_loadu_si512(p);
}
LANES_INLINE void lanes_store(uint8_t *p, lanes x) {
    _mm512_storeu_si512(p, x);
}
LANES_INLINE lanes lanes_sub(lanes x, lanes y) {
    return _mm512_sub_epi8(x, y);
}
LANES_INLINE lanes lanes_min(lanes x, lanes y) {
    return _mm512_min_epu8(x, y);
}
LANES_INLINE lanes lanes_max(lanes x, lanes y) {
    return _mm512_max_epu8(x, y);
}
/* x >= y */
LANES_INLINE lanes_mask lanes_at_least(lanes x, lanes y) {
    return _mm512_cmpge_epu8_mask(x, y);
}
/* x == y */
LANES_INLINE lanes_mask lanes_same(lanes x, lanes y) {
    return _mm512_cmpeq_epi8_mask(x, y);
}
/* m, where x and y differ as well */
LANES_INLINE lanes_mask lanes_differ(lanes_mask m, lanes x, lanes y) {
    return _mm512_mask_cmpneq_epi8_mask(m, x, y);
}
LANES_INLINE bool lanes_all(lanes_mask m) {
    return m == UINT64_MAX;
}
/* Each eight bytes turned by n of them, 1..7. */
LANES_INLINE lanes lanes_turn(lanes x, unsigned n) {
    return _mm512_rolv_epi64(x, _mm512_set1_epi64(8 * (int)n));
}
/* x has the bit, a power of two. */
LANES_INLINE lanes_mask lanes_has(lanes x, unsigned bit) {
    return _mm512_test_epi8_mask(x, lanes_set(bit));
}
/* `yes` where m, else `no` */
LANES_INLINE lanes lanes_pick(lanes_mask m, lanes no, lanes yes) {
    return _mm512_mask_blend_epi8(m, no, yes);
}
/* n + by where m, else n */
LANES_INLINE lanes lanes_add(lanes_mask m, lanes n, unsigned by) {
    return _mm512_mask_add_epi8(n, m, n, lanes_set(by));
}

#elif defined(__AVX2__)
#include <immintrin.h>
enum { LANES = 32 };
typedef __m256i lanes, lanes_mask;

LANES_INLINE lanes lanes_set(unsigned x) {
    return _mm256_set1_epi8((char)x);
}
LANES_INLINE lanes lanes_load(const uint8_t *p) {
    return _mm256_loadu_si256((const __m256i *)(const void *)p);
}
LANES_INLINE void lanes_store(uint8_t *p, lanes x) {
    _mm256_storeu_si256((__m256i *)(void *)p, x);
}
LANES_INLINE lanes lanes_sub(lanes x, lanes y) {
    return _mm256_sub_epi8(x, y);
}
LANES_INLINE lanes lanes_min(lanes x, lanes y) {
    return _mm256_min_epu8(x, y);
}
LANES_INLINE lanes lanes_max(lanes x, lanes y) {
    return _mm256_max_epu8(x, y);
}
LANES_INLINE lanes_mask lanes_at_least(lanes x, lanes y) {
    return _mm256_cmpeq_epi8(_mm256_max_epu8(x, y), x);
}
LANES_INLINE lanes_mask lanes_same(lanes x, lanes y) {
    return _mm256_cmpeq_epi8(x, y);
}
LANES_INLINE lanes_mask lanes_differ(lanes_mask m, lanes x, lanes y) {
    return _mm256_andnot_si256(lanes_same(x, y), m);
}
LANES_INLINE bool lanes_all(lanes_mask m) {
    return _mm256_movemask_epi8(m) == -1;
}
LANES_INLINE lanes lanes_turn(lanes x, unsigned n) {
    typedef uint64_t words __attribute__((vector_size(32)));
    const uint64_t order = 0x0706050403020100u, first = order << 8 * n | order >> (64 - 8 * n),
                   second = first + 0x0808080808080808u;
    const words places = {first, second, first, second};
    return _mm256_shuffle_epi8(x, (__m256i)places);
}
LANES_INLINE lanes_mask lanes_has(lanes x, unsigned bit) {
    return lanes_same(_mm256_and_si256(x, lanes_set(bit)), lanes_set(bit));
}
LANES_INLINE lanes lanes_pick(lanes_mask m, lanes no, lanes yes) {
    return _mm256_blendv_epi8(no, yes, m);
}
LANES_INLINE lanes lanes_add(lanes_mask m, lanes n, unsigned by) {
    return by == 1 ? _mm256_sub_epi8(n, m) : _mm256_add_epi8(n, _mm256_and_si256(m, lanes_set(by)));
}

#else
enum { LANES = 16 };
typedef uint8_t lanes __attribute__((vector_size(16)));
typedef lanes lanes_mask;

LANES_INLINE lanes lanes_set(unsigned x) {
    return (lanes){0} + (uint8_t)x;
}
LANES_INLINE lanes lanes_load(const uint8_t *p) {
    lanes x;
    memcpy(&x, p, sizeof x);
    return x;
}
LANES_INLINE void lanes_store(uint8_t *p, lanes x) {
    memcpy(p, &x, sizeof x);
}
LANES_INLINE lanes lanes_sub(lanes x, lanes y) {
    return x - y;
}
LANES_INLINE lanes lanes_min(lanes x, lanes y) {
    lanes less = (lanes)(x < y);
    return (x & less) | (y & ~less);
}
LANES_INLINE lanes lanes_max(lanes x, lanes y) {
    lanes less = (lanes)(x < y);
    return (y & less) | (x & ~less);
}
LANES_INLINE lanes_mask lanes_at_least(lanes x, lanes y) {
    return (lanes_mask)(x >= y);
}
LANES_INLINE lanes_mask lanes_same(lanes x, lanes y) {
    return (lanes_mask)(x == y);
}
LANES_INLINE lanes_mask lanes_differ(lanes_mask m, lanes x, lanes y) {
    return m & ~lanes_same(x, y);
}
LANES_INLINE bool lanes_all(lanes_mask m) {
    static const lanes_mask none;
    const lanes_mask not_yet = ~m;
    return memcmp(&not_yet, &none, sizeof none) == 0;
}
LANES_INLINE lanes lanes_turn(lanes x, unsigned n) {
    typedef uint64_t words __attribute__((vector_size(16)));
    const words v = (words)x;
    return (lanes)(v << 8 * n | v >> (64 - 8 * n));
}
LANES_INLINE lanes_mask lanes_has(lanes x, unsigned bit) {
    return lanes_same(x & lanes_set(bit), lanes_set(bit));
}
LANES_INLINE lanes lanes_pick(lanes_mask m, lanes no, lanes yes) {
    return (yes & m) | (no & ~m);
}
LANES_INLINE lanes lanes_add(lanes_mask m, lanes n, unsigned by) {
    return by == 1 ? n - m : n + (m & lanes_set(by));
}
#endif

#endif
