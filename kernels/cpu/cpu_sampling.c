/* cpu_sampling.c - drawing tokens.
 *
 * Owns: temperature, top-k, top-p and the inverse of the cumulative distribution. Refuses: random numbers
 * (the caller brings one for each row), log-probabilities of given tokens (cpu_logprob.c).
 */
#include "cpu/cpu_softmax.h"
#include "device_fault.h"

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

/* One part of a row that is drawn from. */
typedef struct draw_part {
    double mass; /* of its exponentials, scaled */
    float scale; /* exp(its largest - top) */
} draw_part;

/* What one thread needs to draw from a row. */
typedef struct draw {
    const float *z;
    const wb_sample_params *params;
    int64_t V, n_parts;
    float top;        /* the largest z / temperature */
    float *p;         /* [V] exp(z / temperature - the largest of the part) */
    float exp_sum;    /* as row_softmax_sum */
    double *sums;     /* of p over blocks of DRAW_BLOCK */
    draw_part *parts; /* [n_parts] */
    double total;     /* of the masses, ascending */
    uint64_t *heap;   /* [V] */
    uint32_t *kept;   /* [V] ids that top-k and top-p keep, ascending */
    int64_t n_kept;   /* 0: all */
} draw;

size_t WB_CPU(sample_bytes)(int64_t V) {
    return (size_t)V * (sizeof(uint64_t) + sizeof(float) + sizeof(uint32_t)) +
           (size_t)(V / DRAW_BLOCK + 1) * sizeof(double) + (size_t)(V / SOFTMAX_PART + 1) * sizeof(draw_part);
}

/* Fills p, sums and the entry of one part; its sum in lanes, scaled. */
static float make_part(draw *d, int64_t number) {
    const int64_t begin = number * SOFTMAX_PART, length = softmax_part_length(d->V, begin);
    const float *z = d->z + begin, temperature = d->params->temperature;
    const float largest = row_max(z, length) / temperature, origin = softmax_origin(largest);
    float *restrict p = d->p + begin;
    double *sums = d->sums + number * DRAW_BLOCKS, mass = 0.0;
    draw_part *part = &d->parts[number];
    for (int64_t i = 0; i < length; i++) p[i] = wb_expf(z[i] / temperature - origin);
    for (int64_t b = 0; b * DRAW_BLOCK < length; b++) {
        const int64_t at = b * DRAW_BLOCK, left = length - at;
        sums[b] = (double)row_sum(p + at, left < DRAW_BLOCK ? left : DRAW_BLOCK);
        mass += sums[b];
    }
    part->scale = wb_expf(largest - d->top);
    part->mass = mass * (double)part->scale;
    return row_sum(p, length) * part->scale;
}

static draw make_draw(int64_t V, const float *z, float max, const wb_sample_params *params, void *scratch) {
    draw d = {.z = z, .params = params, .V = V, .top = max / params->temperature, .heap = scratch};
    float sum[WB_LANES] = {0.0f};
    d.n_parts = (V + SOFTMAX_PART - 1) / SOFTMAX_PART;
    d.sums = (double *)(void *)(d.heap + V);
    d.parts = (draw_part *)(void *)(d.sums + V / DRAW_BLOCK + 1);
    d.p = (float *)(void *)(d.parts + V / SOFTMAX_PART + 1);
    d.kept = (uint32_t *)(d.p + V);
    for (int64_t part = 0; part < d.n_parts; part++) {
        sum[part % WB_LANES] += make_part(&d, part);
        d.total += d.parts[part].mass;
    }
    d.exp_sum = wb_lanes_sum(sum);
    return d;
}

/* In id order: the part, the block, then the token, where the running sum passes uniform * total. Where
 * rounding leaves a remainder it is the last block of the part, and the last token of the block, with
 * p > 0. */
static int64_t draw_in_id_order(const draw *d) {
    double below = 0.0, target = (double)d->params->uniform * d->total, block_below = 0.0;
    int64_t part = 0, block = 0;
    while (below + d->parts[part].mass <= target) below += d->parts[part++].mass; /* target < total */
    target = (target - below) / (double)d->parts[part].scale;
    const int64_t begin = part * SOFTMAX_PART, end = begin + softmax_part_length(d->V, begin);
    below = 0.0;
    for (int64_t b = begin / DRAW_BLOCK; b * DRAW_BLOCK < end; b++) {
        if (d->sums[b] > 0.0) block = b, block_below = below;
        below += d->sums[b];
        if (below > target) break;
    }
    below = block_below;
    int64_t last = block * DRAW_BLOCK;
    for (int64_t i = last; i < end && i < (block + 1) * DRAW_BLOCK; i++) {
        below += (double)d->p[i];
        if (d->p[i] > 0.0f) last = i;
        if (below > target) break;
    }
    return last;
}

/* exp(z / temperature - top) of a token. */
static double p_of(const draw *d, int64_t id) {
    return (double)wb_expf(d->z[id] / d->params->temperature - d->top);
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
            sum += p_of(d, i);
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
            total += p_of(d, wb_choice_order_id(sorted_end[-popped]));
        }
        size = limit;
    }
    for (; n < size && (n == 0 || kept < (double)params->top_p * total); n++) {
        if (n == popped) heap_pop(heap, size - popped++);
        kept += p_of(d, wb_choice_order_id(sorted_end[-n]));
    }
    double target = (double)params->uniform * kept;
    int64_t last = wb_choice_order_id(*sorted_end);
    for (int64_t i = 0; i < n; i++) {
        const int64_t id = wb_choice_order_id(sorted_end[-i]);
        const double p = p_of(d, id);
        sum += p;
        if (p > 0.0) last = id;
        if (sum > target) break;
    }
    keep(d, sorted_end - (n - 1), n);
    return last;
}

/* The bits of logprob_forward for the kept tokens: the largest logit is always kept. Their logits /
 * temperature come into p, which nobody needs any more. */
static float drawn_logprob(draw *d, int64_t id) {
    const float temperature = d->params->temperature;
    for (int64_t i = 0; i < d->n_kept; i++) d->p[i] = d->z[d->kept[i]] / temperature;
    const float sum = d->n_kept > 0 ? row_softmax_sum(d->p, d->n_kept, d->top) : d->exp_sum;
    return d->z[id] / temperature - d->top - wb_logf(sum);
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
