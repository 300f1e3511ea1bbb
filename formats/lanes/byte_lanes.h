/* byte_lanes.h - as many unsigned bytes side by side as a vector of the machine has (internal). Owns: the
 * type `lanes`, LANES and the operations on them. Refuses: results that depend on the width. */
#ifndef WB_BYTE_LANES_H
#define WB_BYTE_LANES_H

#include <stdint.h>
#include <string.h>

#define LANES_INLINE static inline __attribute__((always_inline))

#if defined(__AVX512BW__)
#include <immintrin.h>
enum { LANES = 64 };
typedef __m512i lanes;

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
/* n + 1 where x >= y, else n */
LANES_INLINE lanes lanes_count(lanes n, lanes x, lanes y) {
    return _mm512_mask_add_epi8(n, _mm512_cmpge_epu8_mask(x, y), n, _mm512_set1_epi8(1));
}
/* z where x == y, else n */
LANES_INLINE lanes lanes_choose(lanes n, lanes x, lanes y, lanes z) {
    return _mm512_mask_mov_epi8(n, _mm512_cmpeq_epi8_mask(x, y), z);
}

#elif defined(__AVX2__)
#include <immintrin.h>
enum { LANES = 32 };
typedef __m256i lanes;

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
LANES_INLINE lanes lanes_count(lanes n, lanes x, lanes y) {
    return _mm256_sub_epi8(n, _mm256_cmpeq_epi8(_mm256_max_epu8(x, y), x));
}
LANES_INLINE lanes lanes_choose(lanes n, lanes x, lanes y, lanes z) {
    return _mm256_blendv_epi8(n, z, _mm256_cmpeq_epi8(x, y));
}

#else
enum { LANES = 16 };
typedef uint8_t lanes __attribute__((vector_size(16)));

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
LANES_INLINE lanes lanes_count(lanes n, lanes x, lanes y) {
    return n - (lanes)(x >= y);
}
LANES_INLINE lanes lanes_choose(lanes n, lanes x, lanes y, lanes z) {
    lanes same = (lanes)(x == y);
    return (z & same) | (n & ~same);
}
#endif

#endif
