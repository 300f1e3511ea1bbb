/* wb_random.h - the one random generator: the mix of splitmix64 (Steele, Lea, Flood 2014) over a counter,
 * the same numbers on every machine (not installed). It is not the sequence of splitmix64 itself, whose state
 * goes on by WB_RANDOM_STEP where this one's goes on by 1.
 *
 * Two ways to use it. A stream with a state, for a search that draws as it goes. A stream by counter, for
 * what must not depend on the order of drawing: element i of a seed's stream is a function of both and of
 * nothing else, so that neither preemption nor the batch around a token can shift it. */
#ifndef WB_RANDOM_H
#define WB_RANDOM_H

#include "wb_host_device.h"

#include <stdint.h>

#define WB_RANDOM_STEP UINT64_C(0x9e3779b97f4a7c15)

/* A 64-bit number that looks unrelated to x; different x give different numbers. */
static WB_HD uint64_t wb_mix64(uint64_t x) {
    x += WB_RANDOM_STEP;
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

/* The next number of a stream whose state the caller keeps. The first state is any number; wb_mix64 of a
 * seed keeps the streams of neighbouring seeds apart. */
static inline uint64_t wb_random(uint64_t *state) {
    return wb_mix64((*state)++);
}

/* 0..n-1 */
static inline uint32_t wb_random_below(uint64_t *state, uint32_t n) {
    return (uint32_t)(((wb_random(state) >> 32) * n) >> 32);
}

/* Number i of the stream of `seed`. */
static inline uint64_t wb_random_at(uint64_t seed, uint64_t i) {
    return wb_mix64(wb_mix64(seed) + WB_RANDOM_STEP * i);
}

/* A number in [0, 1) from the upper 24 bits. */
static inline float wb_random_unit(uint64_t bits) {
    return (float)(bits >> 40) * 0x1p-24f;
}

#endif
