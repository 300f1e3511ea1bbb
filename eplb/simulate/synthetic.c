/* synthetic.c - expert loads made up from a seed, for the simulator and for tests: Zipf, log-normal,
 * drifting. Owns: the numbers, the same on every machine. That is why exp and log are written out here:
 * those of a libm differ in the last bit from machine to machine, and a last bit can turn a rounding;
 * additions, products, quotients, square roots, frexp and ldexp are exact or correctly rounded everywhere.
 * Refuses: measuring; routes of single tokens. */
#include "wb_check.h"
#include "wb_memory.h"
#include "wb_random.h"
#include "wb_simulate.h"

#include <inttypes.h>
#include <math.h>

#define LN_2 0.69314718055994530942
#define SQRT_HALF 0.70710678118654752440

/* Streams of random numbers that have nothing to do with each other. */
enum { STREAM_SHUFFLE = 1, STREAM_BASE, STREAM_DRIFT, STREAM_BATCH };

/* log of x > 0: x = m 2^k, m within [sqrt(1/2), sqrt(2)), log m = 2 atanh((m - 1) / (m + 1)) by its
 * series. */
static double fixed_log(double x) {
    int k = 0;
    double m = frexp(x, &k);
    if (m < SQRT_HALF) {
        m *= 2;
        k--;
    }
    double s = (m - 1) / (m + 1), square = s * s, sum = 0;
    for (int i = 25; i >= 1; i -= 2) sum = sum * square + 1.0 / i;
    return 2 * s * sum + k * LN_2;
}

/* exp of x <= 0: x = k log 2 + r, |r| <= log(2) / 2, exp r by its series. */
static double fixed_exp(double x) {
    if (x < -700) return 0;
    int k = (int)floor(x / LN_2 + 0.5);
    double r = x - k * LN_2, sum = 1;
    for (int i = 18; i >= 1; i--) sum = 1 + sum * r / i;
    return ldexp(sum, k);
}

/* (-1, 1), odd multiples of 2^-53 */
static double uniform(uint64_t *state) {
    return ldexp((double)((wb_random(state) >> 11) | 1), -52) - 1;
}

/* Standard normal by the polar method; a state gives one number. */
static double normal(uint64_t state) {
    double u, square;
    do {
        double v = uniform(&state);
        u = uniform(&state);
        square = u * u + v * v;
    } while (!(square > 0 && square < 1));
    return u * sqrt(-2 * fixed_log(square) / square);
}

static uint64_t mix(uint64_t state, uint64_t value) {
    return wb_mix64(state ^ wb_mix64(value));
}

static uint64_t stream(const wb_synthetic *s, int which, uint32_t layer) {
    return mix(mix(wb_mix64(s->seed), (uint64_t)which), layer);
}

/* order [E]: order[i] is the i-th most popular expert of the layer. */
static void shuffle(uint64_t state, uint32_t n, uint32_t *order) {
    for (uint32_t i = 0; i < n; i++) order[i] = i;
    for (uint32_t i = n; i > 1; i--) {
        uint32_t j = wb_random_below(&state, i), last = order[i - 1];
        order[i - 1] = order[j];
        order[j] = last;
    }
}

/* base_out [E]: logarithms of a layer's popularities in step `step`, before the noise of its batches. */
static void base_of_layer(const wb_synthetic *s, uint32_t step, uint32_t layer, uint32_t n_experts,
                          uint32_t *order, double *base_out) {
    if (s->kind == WB_SYNTHETIC_ZIPF) {
        shuffle(stream(s, STREAM_SHUFFLE, layer), n_experts, order);
        for (uint32_t i = 0; i < n_experts; i++) base_out[order[i]] = -s->skew * fixed_log(i + 1.0);
        return;
    }
    uint64_t base = stream(s, STREAM_BASE, layer), drift = stream(s, STREAM_DRIFT, layer);
    for (uint32_t e = 0; e < n_experts; e++) {
        base_out[e] = s->skew * normal(mix(base, e));
        if (s->kind != WB_SYNTHETIC_DRIFT) continue;
        for (uint32_t i = 1; i <= step; i++) base_out[e] += s->noise * normal(mix(mix(drift, e), i));
    }
}

/* Shares of `tokens` in proportion to exp(logs): expert e gets what the rounded running sum grows by, so
 * that the loads are whole and sum to `tokens`. logs [E] are overwritten. */
static void share_tokens(uint64_t tokens, uint32_t n_experts, double *logs, double *loads_out) {
    double max = logs[0], sum = 0, running = 0, shared = 0;
    for (uint32_t e = 1; e < n_experts; e++)
        if (logs[e] > max) max = logs[e];
    for (uint32_t e = 0; e < n_experts; e++) sum += logs[e] = fixed_exp(logs[e] - max); /* one is 1 */
    for (uint32_t e = 0; e < n_experts; e++) {
        running += logs[e];
        double upto = e + 1 == n_experts ? (double)tokens : floor(running / sum * (double)tokens + 0.5);
        loads_out[e] = upto - shared;
        shared = upto;
    }
}

static wb_status check(const wb_synthetic *s, uint32_t n_experts, const double *loads_out) {
    if (!s || !loads_out || n_experts == 0)
        return wb_fail(WB_INVALID_ARGUMENT, "synthetic loads: a pointer is NULL or there are no experts");
    if (s->kind != WB_SYNTHETIC_ZIPF && s->kind != WB_SYNTHETIC_LOGNORMAL && s->kind != WB_SYNTHETIC_DRIFT)
        return wb_fail(WB_INVALID_ARGUMENT, "synthetic loads: kind: expected 0..2, found %d", (int)s->kind);
    if (!(s->skew >= 0 && s->skew <= 1000))
        return wb_fail(WB_INVALID_ARGUMENT, "synthetic loads: skew: expected 0..1000, found %g", s->skew);
    if (!(s->noise >= 0 && s->noise <= 1000))
        return wb_fail(WB_INVALID_ARGUMENT, "synthetic loads: noise: expected 0..1000, found %g", s->noise);
    if (s->tokens > (uint64_t)1 << 50)
        return wb_fail(WB_INVALID_ARGUMENT, "synthetic loads: tokens: expected at most 2^50, found %" PRIu64,
                       s->tokens);
    return WB_OK;
}

static wb_status make_loads(const wb_synthetic *s, uint32_t step, uint32_t n_batches, uint32_t n_layers,
                            uint32_t n_experts, wb_owner *scratch, double *loads_out) {
    double *base = NULL, *logs = NULL;
    uint32_t *order = NULL;
    WB_TRY(WB_OWN(scratch, base, n_experts, "popularities"));
    WB_TRY(WB_OWN(scratch, logs, n_experts, "popularities"));
    WB_TRY(WB_OWN(scratch, order, n_experts, "popularities"));
    for (uint32_t l = 0; l < n_layers; l++) {
        base_of_layer(s, step, l, n_experts, order, base);
        for (uint32_t b = 0; b < n_batches; b++) {
            uint64_t noise = mix(mix(stream(s, STREAM_BATCH, l), step), b);
            for (uint32_t e = 0; e < n_experts; e++)
                logs[e] = base[e] + (s->noise > 0 ? s->noise * normal(mix(noise, e)) : 0);
            share_tokens(s->tokens, n_experts, logs, loads_out + ((size_t)b * n_layers + l) * n_experts);
        }
    }
    return WB_OK;
}

wb_status wb_synthetic_loads(const wb_synthetic *synthetic, uint32_t step, uint32_t n_batches,
                             uint32_t n_layers, uint32_t n_experts, double *loads_out) {
    wb_owner scratch = {0};
    WB_TRY(check(synthetic, n_experts, loads_out));
    wb_status status = make_loads(synthetic, step, n_batches, n_layers, n_experts, &scratch, loads_out);
    wb_owner_close(&scratch);
    return status;
}
