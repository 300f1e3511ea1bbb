/* cpu_sampling.c - log-probabilities of given tokens, and drawing tokens.
 *
 * Owns: log_softmax at a target and its gradient; temperature, top-k, top-p and the inverse of the cumulative
 * distribution. Refuses: random numbers (the caller brings one for each row).
 */
#include "cpu/cpu_lanes.h"

#include <inttypes.h>

/* ---- log-probabilities ----------------------------------------------------------------------- */

wb_status WB_CPU(logprob_forward)(wb_device *dev, int64_t T, int64_t V, const float *logits,
                                  const int32_t *targets, float *logprobs) {
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *V * 8))
    for (int64_t t = 0; t < T; t++) {
        const float *z = logits + t * V;
        if (targets[t] < 0) {
            logprobs[t] = 0.0f;
            continue;
        }
        float max = row_max(z, V);
        logprobs[t] = z[targets[t]] - max - wb_logf(row_exp_sum(z, V, max));
    }
    return WB_OK;
}

wb_status WB_CPU(logprob_backward)(wb_device *dev, int64_t T, int64_t V, const float *logits,
                                   const int32_t *targets, const float *dlogprobs, float *dlogits) {
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *V * 8))
    for (int64_t t = 0; t < T; t++) {
        float *dz = dlogits + t * V;
        if (targets[t] < 0) {
            memset(dz, 0, (size_t)V * sizeof(float));
            continue;
        }
        const float *z = logits + t * V;
        float sum = row_exp(z, V, row_max(z, V), dz);
        float d = dlogprobs[t], factor = -d / sum;
        for (int64_t i = 0; i < V; i++) dz[i] *= factor;
        dz[targets[t]] += d;
    }
    return WB_OK;
}

/* ---- drawing --------------------------------------------------------------------------------- */

/* A binary heap of orders of choices, the largest at 0. */
static void sift_down(uint64_t *heap, int64_t count, int64_t at) {
    uint64_t order = heap[at];
    for (int64_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && heap[child + 1] > heap[child]) child++;
        if (heap[child] <= order) break;
        heap[at] = heap[child];
    }
    heap[at] = order;
}

static void heap_make(uint64_t *heap, int64_t count) {
    for (int64_t at = count / 2 - 1; at >= 0; at--) sift_down(heap, count, at);
}

/* Takes the largest out; it is left at heap[count - 1]. */
static void heap_pop(uint64_t *heap, int64_t count) {
    uint64_t largest = heap[0];
    heap[0] = heap[count - 1];
    heap[count - 1] = largest;
    if (count > 1) sift_down(heap, count - 1, 0);
}

/* What one thread needs to draw from a row. */
typedef struct draw {
    const float *z;
    const wb_sample_params *params;
    int64_t V;
    float top;      /* the largest z / temperature */
    float *p;       /* [V] exp(z / temperature - top) */
    double *sums;   /* of p over blocks of DRAW_BLOCK */
    double total;   /* of the sums, ascending */
    uint64_t *heap; /* [V] */
} draw;

enum { DRAW_BLOCK = 128 };

static size_t draw_bytes(int64_t V) {
    return (size_t)V * (sizeof(uint64_t) + sizeof(float)) + (size_t)(V / DRAW_BLOCK + 1) * sizeof(double);
}

static draw make_draw(int64_t V, const float *z, float max, const wb_sample_params *params, void *scratch) {
    draw d = {.z = z, .params = params, .V = V, .top = max / params->temperature, .heap = scratch};
    d.sums = (double *)(void *)(d.heap + V);
    d.p = (float *)(d.sums + V / DRAW_BLOCK + 1);
    float *restrict p = d.p, temperature = params->temperature, top = d.top;
    for (int64_t i = 0; i < V; i++) p[i] = wb_expf(z[i] / temperature - top);
    for (int64_t b = 0; b * DRAW_BLOCK < V; b++) {
        int64_t begin = b * DRAW_BLOCK, left = V - begin;
        d.sums[b] = (double)row_sum(d.p + begin, left < DRAW_BLOCK ? left : DRAW_BLOCK);
        d.total += d.sums[b];
    }
    return d;
}

/* In id order: the block, then the token, where the running sum passes uniform * total; where rounding
 * leaves a remainder, the block's last token with p > 0. */
static int64_t draw_in_id_order(const draw *d) {
    double below = 0.0, target = (double)d->params->uniform * d->total;
    int64_t b = 0;
    while (below + d->sums[b] <= target) below += d->sums[b++]; /* target < total */
    int64_t end = (b + 1) * DRAW_BLOCK < d->V ? (b + 1) * DRAW_BLOCK : d->V, last = b * DRAW_BLOCK;
    for (int64_t i = b * DRAW_BLOCK; i < end; i++) {
        below += (double)d->p[i];
        if (d->p[i] > 0.0f) last = i;
        if (below > target) break;
    }
    return last;
}

/* The number of tokens in the heap: all, or those within a factor exp(7) of the largest where they are
 * certainly enough for the top_k or for the top_p. */
static int64_t fill_heap(const draw *d, int64_t limit) {
    float min = (d->top - 7.0f) * d->params->temperature;
    int64_t count = 0;
    double sum = 0.0;
    for (int64_t i = 0; i < d->V; i++)
        if (d->z[i] >= min) {
            d->heap[count++] = wb_choice_order(wb_key_order(d->z[i]), (uint32_t)i);
            sum += (double)d->p[i];
        }
    bool enough = limit < d->V ? count >= limit : sum > (double)d->params->top_p * d->total * (1.0 + 1e-9);
    if (enough) return count;
    for (int64_t i = 0; i < d->V; i++) d->heap[i] = wb_choice_order(wb_key_order(d->z[i]), (uint32_t)i);
    return d->V;
}

/* Keeps the top_k largest (all when 0) and of these the smallest set that reaches top_p of their sum;
 * draws from it by probability descending, id ascending. kept_out: the sum over the set. */
static int64_t draw_from_top(const draw *d, double *kept_out) {
    const wb_sample_params *params = d->params;
    int64_t limit = params->top_k > 0 && params->top_k < d->V ? params->top_k : d->V;
    int64_t size = fill_heap(d, limit), popped = 0, n = 0;
    uint64_t *heap = d->heap, *sorted_end = heap + size - 1; /* the i-th popped is at sorted_end[-i] */
    double total = d->total, kept = 0.0, sum = 0.0;
    heap_make(heap, size);
    if (limit < d->V) {
        for (total = 0.0; popped < limit; popped++) {
            heap_pop(heap, size - popped);
            total += (double)d->p[wb_choice_order_id(sorted_end[-popped])];
        }
        size = limit;
    }
    for (; n < size && (n == 0 || kept < (double)params->top_p * total); n++) {
        if (n == popped) heap_pop(heap, size - popped++);
        kept += (double)d->p[wb_choice_order_id(sorted_end[-n])];
    }
    double target = (double)params->uniform * kept;
    int64_t last = wb_choice_order_id(*sorted_end);
    for (int64_t i = 0; i < n; i++) {
        int64_t id = wb_choice_order_id(sorted_end[-i]);
        sum += (double)d->p[id];
        if (d->p[id] > 0.0f) last = id;
        if (sum > target) break;
    }
    *kept_out = kept;
    return last;
}

static void sample_row(int64_t V, const float *z, const wb_sample_params *params, void *scratch,
                       int32_t *token, float *logprob) {
    float max = row_max(z, V);
    if (params->temperature == 0.0f) {
        int32_t best = 0;
        while (z[best] != max) best++;
        *token = best;
        *logprob = 0.0f;
        return;
    }
    draw d = make_draw(V, z, max, params, scratch);
    double kept = d.total;
    bool all = (params->top_k == 0 || params->top_k >= V) && params->top_p >= 1.0f;
    int64_t id = all ? draw_in_id_order(&d) : draw_from_top(&d, &kept);
    *token = (int32_t)id;
    *logprob = z[id] / params->temperature - d.top - wb_logf((float)kept);
}

static wb_status check_params(int64_t row, const wb_sample_params *params) {
    if (!(params->temperature >= 0.0f && params->temperature < INFINITY))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "sample: row %" PRId64 ": temperature: expected 0 or more, found %g", row,
                       (double)params->temperature);
    if (params->top_k < 0)
        return wb_fail(WB_INVALID_ARGUMENT, "sample: row %" PRId64 ": top_k: expected 0 or more, found %d",
                       row, params->top_k);
    if (!(params->top_p > 0.0f && params->top_p <= 1.0f))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "sample: row %" PRId64 ": top_p: expected 0 < top_p <= 1, found %g", row,
                       (double)params->top_p);
    if (!(params->uniform >= 0.0f && params->uniform < 1.0f))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "sample: row %" PRId64 ": uniform: expected 0 <= uniform < 1, found %g", row,
                       (double)params->uniform);
    return WB_OK;
}

/* No NaN, and a largest logit that is finite: otherwise there is no distribution. */
static bool row_is_usable(int64_t V, const float *z) {
    int bad = 0;
    for (int64_t i = 0; i < V; i++) bad |= !(z[i] < INFINITY);
    return !bad && row_max(z, V) > -INFINITY;
}

wb_status WB_CPU(sample)(wb_device *dev, int64_t B, int64_t V, const float *logits,
                         const wb_sample_params *params, int32_t *tokens, float *logprobs) {
    if (V < 1 || V > INT32_MAX)
        return wb_fail(WB_INVALID_ARGUMENT, "sample: vocabulary: expected 1..2^31-1, found %" PRId64, V);
    for (int64_t b = 0; b < B; b++) WB_TRY(check_params(b, params + b));
    WB_TRY(wb_cpu_scratch_reserve(dev, draw_bytes(V)));
    int threads = wb_cpu_threads(dev, B * V * 8);
    int64_t bad = B;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(min : bad)
    for (int64_t b = 0; b < B; b++)
        if (b < bad && !row_is_usable(V, logits + b * V)) bad = b;
    if (bad < B)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "sample: row %" PRId64 ": a logit is NaN or +inf, or all are -inf", bad);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t b = 0; b < B; b++)
        sample_row(V, logits + b * V, params + b, wb_cpu_scratch(dev), tokens + b, logprobs + b);
    return WB_OK;
}
