/* cpu_sampling.c - log-probabilities of given tokens, and drawing tokens.
 *
 * Owns: log_softmax at a target, of logits / temperature over the kept tokens, and its gradient; temperature,
 * top-k, top-p and the inverse of the cumulative distribution. Refuses: random numbers (the caller brings one
 * for each row).
 */
#include "cpu/cpu_lanes.h"
#include "device_fault.h"
#include "sample_rules.h"

/* ---- log-probabilities ----------------------------------------------------------------------- */

/* One row's distribution. */
typedef struct softmax_row {
    const float *z; /* [V] logits */
    int64_t V;
    float temperature;
    const uint32_t *kept; /* [n_kept] ids; n_kept 0: the whole vocabulary */
    int64_t n_kept;
} softmax_row;

static softmax_row row_of(const wb_distribution *of, const float *logits, int64_t V, int64_t t) {
    softmax_row row = {.z = logits + t * V, .V = V, .temperature = 1.0f};
    if (of && of->temperature) row.temperature = of->temperature[t];
    if (!of || !of->kept_start) return row;
    row.kept = of->kept_ids + of->kept_start[t];
    row.n_kept = of->kept_start[t + 1] - of->kept_start[t];
    return row;
}

/* The kept logits / temperature in the order of their ids, [*n_out]: in `scratch` [V], or where they are. */
static const float *scaled_logits(const softmax_row *row, float *scratch, int64_t *n_out) {
    const float *z = row->z;
    const float temperature = row->temperature;
    *n_out = row->n_kept > 0 ? row->n_kept : row->V;
    if (row->n_kept > 0) {
        for (int64_t i = 0; i < row->n_kept; i++) scratch[i] = z[row->kept[i]] / temperature;
        return scratch;
    }
    if (temperature == 1.0f) return z;
    for (int64_t i = 0; i < row->V; i++) scratch[i] = z[i] / temperature;
    return scratch;
}

static float row_logprob(const softmax_row *row, int32_t target, float *scratch) {
    int64_t n;
    const float *y = scaled_logits(row, scratch, &n);
    float max = row_max(y, n);
    return row->z[target] / row->temperature - max - wb_logf(row_exp_sum(y, n, max));
}

/* dz[V] (=), may be the row's logits. */
static void row_logprob_backward(const softmax_row *row, int32_t target, float dlogprob, float *scratch,
                                 float *dz) {
    int64_t n;
    const float *y = scaled_logits(row, scratch, &n);
    float *p = row->n_kept > 0 ? scratch : dz;
    float sum = row_exp(y, n, row_max(y, n), p);
    float d = dlogprob / row->temperature, factor = -d / sum;
    if (row->n_kept > 0) {
        memset(dz, 0, (size_t)row->V * sizeof(float));
        for (int64_t i = 0; i < n; i++) dz[row->kept[i]] = p[i] * factor;
    } else {
        for (int64_t i = 0; i < n; i++) dz[i] *= factor;
    }
    dz[target] += d;
}

/* Each thread has room for a row of logits / temperature, where there can be one. */
static wb_status reserve_row(wb_device *dev, int64_t V, const wb_distribution *of) {
    return of ? wb_cpu_scratch_reserve(dev, (size_t)V * sizeof(float)) : WB_OK;
}

wb_status WB_CPU(logprob_forward)(wb_device *dev, int64_t T, int64_t V, const float *logits,
                                  const int32_t *targets, const wb_distribution *of, float *logprobs) {
    WB_TRY(reserve_row(dev, V, of));
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *V * 8))
    for (int64_t t = 0; t < T; t++) {
        const softmax_row row = row_of(of, logits, V, t);
        logprobs[t] = targets[t] < 0 ? 0.0f : row_logprob(&row, targets[t], of ? wb_cpu_scratch(dev) : NULL);
    }
    return WB_OK;
}

wb_status WB_CPU(logprob_backward)(wb_device *dev, int64_t T, int64_t V, const float *logits,
                                   const int32_t *targets, const wb_distribution *of, const float *dlogprobs,
                                   float *dlogits) {
    WB_TRY(reserve_row(dev, V, of));
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *V * 8))
    for (int64_t t = 0; t < T; t++) {
        const softmax_row row = row_of(of, logits, V, t);
        float *dz = dlogits + t * V;
        if (targets[t] < 0)
            memset(dz, 0, (size_t)V * sizeof(float));
        else
            row_logprob_backward(&row, targets[t], dlogprobs[t], of ? wb_cpu_scratch(dev) : NULL, dz);
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
    uint32_t *kept; /* [V] ids that top-k and top-p keep, ascending */
    int64_t n_kept; /* 0: all */
} draw;

size_t WB_CPU(sample_bytes)(int64_t V) {
    return (size_t)V * (sizeof(uint64_t) + sizeof(float) + sizeof(uint32_t)) +
           (size_t)(V / DRAW_BLOCK + 1) * sizeof(double);
}

static draw make_draw(int64_t V, const float *z, float max, const wb_sample_params *params, void *scratch) {
    draw d = {.z = z, .params = params, .V = V, .top = max / params->temperature, .heap = scratch};
    d.sums = (double *)(void *)(d.heap + V);
    d.p = (float *)(d.sums + V / DRAW_BLOCK + 1);
    d.kept = (uint32_t *)(d.p + V);
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

/* The ids of `n` orders of choices, ascending, become the kept ones. */
static void keep(draw *d, uint64_t *orders, int64_t n) {
    for (int64_t i = 0; i < n; i++) orders[i] = (uint64_t)wb_choice_order_id(orders[i]);
    heap_make(orders, n);
    for (int64_t count = n; count > 1; count--) heap_pop(orders, count);
    for (int64_t i = 0; i < n; i++) d->kept[i] = (uint32_t)orders[i];
    d->n_kept = n;
}

/* Keeps the top_k largest (all when 0) and of these the smallest set that reaches top_p of their sum;
 * draws from it by probability descending, id ascending. */
static int64_t draw_from_top(draw *d) {
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
    keep(d, sorted_end - (n - 1), n);
    return last;
}

/* The bits of row_logprob for the kept tokens: the largest logit is always kept, so that p has the
 * exponentials that are summed there. Gathers those of the kept tokens at the beginning of p, in place
 * because the i-th kept id is at least i. */
static float drawn_logprob(draw *d, int64_t id) {
    for (int64_t i = 0; i < d->n_kept; i++) d->p[i] = d->p[d->kept[i]];
    const float sum = row_sum(d->p, d->n_kept > 0 ? d->n_kept : d->V);
    return d->z[id] / d->params->temperature - d->top - wb_logf(sum);
}

/* What one row is sampled to. */
typedef struct sampled {
    int32_t *token;
    float *logprob;
    uint32_t *kept_ids;  /* NULL: not wanted */
    int32_t *kept_count; /* NULL: of no row */
} sampled;

static void sample_greedily(int64_t V, const float *z, const sampled *to) {
    const float max = row_max(z, V);
    int32_t best = 0;
    while (z[best] != max) best++;
    *to->token = best;
    *to->logprob = 0.0f;
    if (!to->kept_ids) return;
    to->kept_ids[0] = (uint32_t)best;
    *to->kept_count = 1;
}

/* All V tokens, if the row has a limit: one that keeps all is told like any other. */
static void tell_all(int64_t V, const wb_sample_params *params, const sampled *to) {
    if (!to->kept_ids || wb_sample_max_kept(params, V) == 0) return;
    for (int64_t i = 0; i < V; i++) to->kept_ids[i] = (uint32_t)i;
    *to->kept_count = (int32_t)V;
}

static void sample_row(int64_t V, const float *z, const wb_sample_params *params, void *scratch,
                       const sampled *to) {
    if (to->kept_count) *to->kept_count = 0;
    if (params->temperature == 0.0f) {
        sample_greedily(V, z, to);
        return;
    }
    draw d = make_draw(V, z, row_max(z, V), params, scratch);
    const bool all = (params->top_k == 0 || params->top_k >= V) && params->top_p >= 1;
    const int64_t id = all ? draw_in_id_order(&d) : draw_from_top(&d);
    *to->token = (int32_t)id;
    *to->logprob = drawn_logprob(&d, id);
    if (all) {
        tell_all(V, params, to);
        return;
    }
    if (!to->kept_ids) return;
    memcpy(to->kept_ids, d.kept, (size_t)d.n_kept * sizeof *d.kept);
    *to->kept_count = (int32_t)d.n_kept;
}

/* No NaN, and a largest logit that is finite: otherwise there is no distribution. */
static bool row_is_usable(int64_t V, const float *z) {
    int bad = 0;
    for (int64_t i = 0; i < V; i++) bad |= !(z[i] < INFINITY);
    return !bad && row_max(z, V) > -INFINITY;
}

/* Where row b of the call goes. */
static sampled output_of(int64_t b, const wb_sample_kept *kept, int32_t *tokens, float *logprobs) {
    sampled to = {.token = tokens + b, .logprob = logprobs + b};
    if (!kept) return to;
    to.kept_count = kept->counts + b;
    if (kept->start[b + 1] > kept->start[b]) to.kept_ids = kept->ids + kept->start[b];
    return to;
}

wb_status WB_CPU(sample)(wb_device *dev, int64_t B, int64_t V, const float *logits,
                         const wb_sample_params *params, const wb_sample_kept *kept, int32_t *tokens,
                         float *logprobs) {
    WB_TRY(wb_sample_check(B, V, params, kept));
    WB_TRY(wb_cpu_scratch_reserve(dev, WB_CPU(sample_bytes)(V)));
    int threads = wb_cpu_threads(dev, B * V * 8);
    int64_t bad = B;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(min : bad)
    for (int64_t b = 0; b < B; b++)
        if (b < bad && !row_is_usable(V, logits + b * V)) bad = b;
    if (bad < B) {
        const wb_fault fault = {.kind = WB_FAULT_LOGITS, .op = WB_OP_sample, .row = bad};
        return wb_fault_report(&fault);
    }
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t b = 0; b < B; b++) {
        const sampled to = output_of(b, kept, tokens, logprobs);
        sample_row(V, logits + b * V, params + b, wb_cpu_scratch(dev), &to);
    }
    return WB_OK;
}
