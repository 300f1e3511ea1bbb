/* hf_checks.h - what hf_oracle compares, by name, and the largest error that it saw of each. Refuses:
 * limits other than those that need no model (hf_limits.h). */
#ifndef HF_CHECKS_H
#define HF_CHECKS_H

#define ORACLE "hf_oracle"
#include "tools/hf_noise.h"
#include "tools/oracle_exit.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef enum check_id {
    LOGITS,
    ROUTER_IDS,
    ROUTER_LOGITS,
    ROUTER_WEIGHTS,
    FORCED_WEIGHTS,
    FORCED_LOGITS,
    FORCED_LOGPROBS,
    FORCED_LOSS,
    GRADIENTS,
    GREEDY_IDS,
    GREEDY_ROUTES,
    ENGINE_LOGPROBS,
    MTP_LOGITS,
    MTP_FURTHER_LOGITS,
    N_CHECKS
} check_id;

static const struct {
    const char *name, *unit;
    double limit; /* of the largest error; ids: of their number that differ */
} checks[N_CHECKS] = {
    {"logits", "absolute", LEAST_BOUND},
    {"router ids", "differing", 0},
    {"router logits", "absolute", LEAST_BOUND},
    {"router weights", "absolute", LEAST_BOUND},
    {"forced weights", "absolute", LEAST_BOUND},
    {"forced logits", "absolute", LEAST_BOUND},
    {"forced logprobs", "absolute", LEAST_BOUND},
    {"forced loss", "absolute", LEAST_BOUND},
    {"gradients", "relative", LEAST_BOUND},
    {"greedy ids", "differing", 0},
    {"greedy routes", "differing", 0},
    {"engine logprobs", "absolute", LEAST_BOUND},
    {"mtp logits", "absolute", LEAST_BOUND},
    {"mtp further", "absolute", LEAST_BOUND},
};

typedef struct outcome {
    double error; /* largest, or number of differing ids; infinite once a NaN was seen */
    int64_t compared;
} outcome;

static void see_error(outcome *o, double error) {
    if (!(error <= o->error)) o->error = isnan(error) ? INFINITY : error;
}

static void see_floats(outcome *o, int64_t n, const float *found, const float *expected) {
    for (int64_t i = 0; i < n; i++) see_error(o, fabs((double)found[i] - (double)expected[i]));
    o->compared += n;
}

static void see_id(outcome *o, int64_t found, int64_t expected) {
    o->error += found != expected;
    o->compared++;
}

#endif
