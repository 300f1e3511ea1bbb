/* bench_tools.h - what benchmarks share: a clock, an end at the first error, memory, and random numbers of
 * two laws. */
#ifndef BENCH_TOOLS_H
#define BENCH_TOOLS_H

#include "wb_base.h"
#include "wb_random.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static inline void must(wb_status status) {
    if (status == WB_OK) return;
    fprintf(stderr, "benchmark: %s\n", wb_error_message());
    exit(1);
}

/* Zeros, of no bytes too. */
static inline void *take(size_t count, size_t size) {
    void *memory = calloc(count > 0 ? count : 1, size);
    if (!memory) abort();
    return memory;
}

/* Seconds of a clock that only goes forward. */
static inline double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Between 0 and 1, neither of them. */
static inline double uniform(uint64_t *state) {
    return ((double)(wb_random(state) >> 11) + 0.5) * 0x1p-53;
}

/* Of mean 0 and variance 1. */
static inline double normal(uint64_t *state) {
    const double u = uniform(state);
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * uniform(state));
}

#endif
