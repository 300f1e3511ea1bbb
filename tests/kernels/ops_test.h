/* ops_test.h - what the tests of the CPU ops share: a printed seed, random arrays, devices, comparisons
 * that fail on NaN. */
#ifndef WB_OPS_TEST_H
#define WB_OPS_TEST_H

#include "cpu/cpu_device.h"
#include "router_rules.h"
#include "support/test_seed.h"
#include "wb_random.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- random numbers -------------------------------------------------------------------------- */

static uint64_t rng_state;

static inline uint64_t rng_next(void) {
    return wb_random(&rng_state);
}

/* Seeds rng_next, and prints the seed. */
static inline void rng_open(int argc, char **argv) {
    uint64_t seed = test_seed(argc, argv);
    printf("seed %" PRIu64 "\n", seed);
    rng_state = wb_mix64(seed); /* neighbouring seeds are not shifts of each other */
}

static inline int64_t rng_range(int64_t low, int64_t high) { /* both included */
    return low + (int64_t)(rng_next() % (uint64_t)(high - low + 1));
}

static inline float rng_uniform(float low, float high) {
    return low + (high - low) * wb_random_unit(rng_next());
}

/* ---- arrays ---------------------------------------------------------------------------------- */

static inline void *xalloc(int64_t count, size_t size) {
    void *memory = calloc(count > 0 ? (size_t)count : 1, size);
    assert_non_null(memory);
    return memory;
}

static inline float *floats(int64_t count) {
    return xalloc(count, sizeof(float));
}

static inline float *random_floats(int64_t count, float low, float high) {
    float *x = floats(count);
    for (int64_t i = 0; i < count; i++) x[i] = rng_uniform(low, high);
    return x;
}

static inline uint8_t *random_bytes(size_t n) {
    uint8_t *bytes = xalloc((int64_t)n, 1);
    for (size_t i = 0; i < n; i++) bytes[i] = (uint8_t)rng_next();
    return bytes;
}

static inline float *copied(const float *x, int64_t count) {
    float *y = floats(count);
    memcpy(y, x, (size_t)count * sizeof(float));
    return y;
}

static inline wb_weight matrix(const void *data, wb_dtype dtype, int64_t rows, int64_t cols) {
    return (wb_weight){(void *)data, dtype, rows, cols, false};
}

static inline wb_norm norm_of(const float *w, bool zero_centered) {
    return (wb_norm){w, 1e-6f, zero_centered};
}

/* ---- devices --------------------------------------------------------------------------------- */

static inline wb_device *open_cpu(int threads) {
    wb_device *dev = NULL;
    assert_int_equal(wb_device_open_cpu(threads, &dev), WB_OK);
    return dev;
}

/* What has to pass before the host looks at what an op has written: on the CPU nothing. */
#ifndef AFTER_OP
#define AFTER_OP() ((void)0)
#endif

#define assert_ok(call)                                                     \
    do {                                                                    \
        if ((call) != WB_OK) fail_msg("%s: %s", #call, wb_error_message()); \
        AFTER_OP();                                                         \
    } while (0)

/* ---- comparisons ----------------------------------------------------------------------------- */

static inline void same_bits_at(const void *a, const void *b, size_t bytes, const char *what, int line) {
    if (bytes > 0 && memcmp(a, b, bytes) != 0) fail_msg("line %d: %s: bits differ", line, what);
}
#define assert_same_bits(a, b, count, what) same_bits_at(a, b, (size_t)(count) * sizeof *(a), what, __LINE__)

/* |found - expected| <= relative * scale + absolute, and so neither is NaN. */
static inline void close_at(double found, double expected, double tolerance, const char *what, int64_t index,
                            int line) {
    double difference = found > expected ? found - expected : expected - found;
    if (!(difference <= tolerance))
        fail_msg("line %d: %s[%" PRId64 "]: expected %.9g within %.3g, found %.9g", line, what, index,
                 expected, tolerance, found);
}
#define assert_close(found, expected, tolerance, what, index) \
    close_at((double)(found), (double)(expected), (double)(tolerance), what, index, __LINE__)

#endif
