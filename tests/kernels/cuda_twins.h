/* cuda_twins.h - arrays that two devices have, the CPU's, which is what is expected, and CUDA's, for tests
 * that compare their ops number by number. Included by one program each. */
#ifndef WB_CUDA_TWINS_H
#define WB_CUDA_TWINS_H

#include "wb_device.h"
#include "wb_random.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SKIP = 77, POISON = 0x5d, GUARD = 16 };

static wb_device *cpu, *cuda;
static uint64_t rng_state;

static inline int64_t rng_range(int64_t low, int64_t high) { /* both included */
    return low + (int64_t)(wb_random(&rng_state) % (uint64_t)(high - low + 1));
}

static inline void must(wb_status status, const char *what) {
    if (status == WB_OK) return;
    fprintf(stderr, "%s: %s: %s\n", what, wb_status_string(status), wb_error_message());
    exit(1);
}

static inline void *must_alloc(size_t bytes) {
    void *memory = malloc(bytes ? bytes : 1);
    if (!memory) exit(1);
    return memory;
}

/* ---- arrays of both devices ---------------------------------------------------------------------- */

/* The same array for two devices; `host` is the first one's and what is expected. */
typedef struct twin {
    void *host, *device;
    size_t bytes;
} twin;

static inline twin make_twin(size_t bytes) {
    twin t = {must_alloc(bytes), NULL, bytes};
    must(cuda->mem_alloc(cuda, bytes, &t.device), "mem_alloc");
    return t;
}

static inline void upload(const twin *t) {
    must(cuda->to_device(cuda, t->device, t->host, t->bytes), "to_device");
}

/* An output of n numbers and a guard, poisoned on both sides. */
static inline twin make_output(int64_t n) {
    twin t = make_twin(((size_t)n + GUARD) * sizeof(int32_t));
    memset(t.host, POISON, t.bytes);
    upload(&t);
    return t;
}

static inline void free_twin(twin *t) {
    cuda->mem_free(cuda, t->device);
    free(t->host);
}

static inline void compare(const twin *t, const char *what, const char *of) {
    int32_t *found = must_alloc(t->bytes);
    const int32_t *expected = t->host;
    must(cuda->to_host(cuda, found, t->device, t->bytes), "to_host");
    for (size_t i = 0; i < t->bytes / sizeof *found; i++)
        if (found[i] != expected[i]) {
            fprintf(stderr, "FAILED: %s: %s[%zu]: expected %" PRId32 ", found %" PRId32 "\n", of, what, i,
                    expected[i], found[i]);
            exit(1);
        }
    free(found);
}

/* Opens both devices and takes argv[1] or `seed` for the seed, which it prints; false, with the reason
 * printed, where there is no CUDA device. */
static inline bool open_twins(int argc, char **argv, uint64_t seed) {
    const wb_status status = wb_device_open_cuda(0, NULL, &cuda);
    if (status == WB_UNSUPPORTED) {
        printf("skipped: %s\n", wb_error_message());
        return false;
    }
    must(status, "wb_device_open_cuda");
    must(wb_device_open_cpu(1, &cpu), "wb_device_open_cpu");
    rng_state = argc > 1 ? strtoull(argv[1], NULL, 0) : seed;
    printf("seed %" PRIu64 "\n", rng_state);
    return true;
}

static inline void close_twins(void) {
    wb_device_close(cpu);
    wb_device_close(cuda);
}

#endif
