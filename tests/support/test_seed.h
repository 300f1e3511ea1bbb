/* test_seed.h - the seed of a random test.
 *
 * A red run has to be about the change, not about the day: the seed is the same in every run, unless argument
 * 1 gives another one, or WB_TEST_SEED does for all tests at once (a number, or "random" for a new one
 * each). */
#ifndef TEST_SEED_H
#define TEST_SEED_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* `argc` 0 where a test takes no arguments. */
static inline uint64_t test_seed(int argc, char **argv) {
    const char *text = argc > 1 ? argv[1] : getenv("WB_TEST_SEED");
    if (!text) return 1;
    if (strcmp(text, "random") != 0) return strtoull(text, NULL, 10);
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

#endif
