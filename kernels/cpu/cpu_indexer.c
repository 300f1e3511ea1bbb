/* cpu_indexer.c - which entries a token's attention is to see: the scores of an indexer and the choice of the
 * best.
 *
 * A task is a token. Scores become numbers that order them (wb_key_order); the smallest chosen one is found
 * digit by digit, so that the choice costs the same whatever the scores are. Refuses: attention over what is
 * chosen. */
#include "cpu/cpu_entries.h"
#include "cpu/cpu_panel.h"

/* Entries whose keys lie packed together, digits of an order. */
enum { CHUNK = 256, DIGITS = 256, DIGIT_BITS = 8, ORDER_BITS = 32 };

size_t WB_CPU(indexer_bytes)(int64_t n_heads, int64_t head_dim, int64_t entries) {
    const int64_t row = n_heads * head_dim;
    return (size_t)(PRODUCT_FLOATS + CHUNK * (head_dim + n_heads) + row + entries) * sizeof(float);
}

/* orders[n] of the first n entries of token t. */
static void order_entries(const wb_indexer *args, int64_t t, int64_t n, uint32_t *orders, float *scratch) {
    const int64_t heads = args->n_heads, dim = args->head_dim;
    const int32_t *blocks = args->blocks + (int64_t)args->seq[t] * args->max_blocks;
    float *keys = scratch + PRODUCT_FLOATS, *products = keys + CHUNK * dim, *q = products + CHUNK * heads;
    rows_load(args->q, t * heads * dim, heads * dim, q);
    for (int64_t begin = 0; begin < n; begin += CHUNK) {
        const int64_t count = min64(CHUNK, n - begin);
        for (int64_t i = 0; i < count; i++) {
            const int64_t row = entry_row(blocks, args->block_size, args->keys.ratio, (int32_t)(begin + i));
            rows_load(args->keys.rows, row * args->keys.stride, dim, keys + i * dim);
        }
        const wb_weight k = {keys, WB_F32, count, dim, false};
        const wb_matmul product = wb_matmul_forward(heads, wb_f32_rows(q), k, wb_f32_rows(products));
        WB_CPU(product)(&product, scratch);
        for (int64_t i = 0; i < count; i++) {
            float score = 0.0f;
            for (int64_t h = 0; h < heads; h++)
                score = index_score(score, args->weights[t * heads + h], products[h * count + i]);
            orders[begin + i] = wb_key_order(score);
        }
    }
}

/* The K-th largest of orders[n], K <= n, and in *equal_out how many of those like it are among the K. */
static uint32_t smallest_chosen(const uint32_t *orders, int64_t n, int64_t K, int64_t *equal_out) {
    uint32_t found = 0, known = 0; /* the digits of it so far, and their bits */
    for (int shift = ORDER_BITS - DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
        int64_t count[DIGITS] = {0};
        uint32_t digit = DIGITS - 1;
        for (int64_t i = 0; i < n; i++)
            count[orders[i] >> shift & (DIGITS - 1)] += (orders[i] & known) == found;
        for (; count[digit] < K; digit--) K -= count[digit];
        found |= digit << shift;
        known |= (uint32_t)(DIGITS - 1) << shift;
    }
    *equal_out = K;
    return found;
}

/* list[top_k] (=) the best of a token's n entries, ascending, then -1. */
static void choose(const uint32_t *orders, int64_t n, int64_t top_k, int32_t *list) {
    int64_t equal = n, count = 0;
    const uint32_t least = n > top_k ? smallest_chosen(orders, n, top_k, &equal) : 0;
    for (int64_t i = 0; i < n; i++) {
        const bool is_least = orders[i] == least;
        if (orders[i] < least || (is_least && equal == 0)) continue;
        equal -= is_least;
        list[count++] = (int32_t)i;
    }
    for (; count < top_k; count++) list[count] = -1;
}

static void choose_of_token(const wb_indexer *args, int64_t t, float *scratch) {
    const bool forced = args->direction && args->direction[t];
    const int64_t n = args->seq[t] < 0 ? 0 : entries_seen(args->keys.ratio, args->pos[t]);
    int32_t *list = args->listed + t * args->top_k;
    float *behind = scratch + PRODUCT_FLOATS + CHUNK * (args->head_dim + args->n_heads) +
                    (int64_t)args->n_heads * args->head_dim;
    uint32_t *orders = (uint32_t *)(void *)behind;
    if (forced && !args->native) return;
    order_entries(args, t, n, orders, scratch);
    if (!forced) choose(orders, n, args->top_k, list);
    if (args->native) choose(orders, n, args->top_k, args->native + t * args->top_k);
}

wb_status WB_CPU(indexer_topk)(wb_device *dev, const wb_indexer *args) {
    int64_t most = 0, all = 0;
    WB_TRY(indexer_check(args));
    for (int64_t t = 0; t < args->T; t++) {
        const int64_t n = args->seq[t] < 0 ? 0 : entries_seen(args->keys.ratio, args->pos[t]);
        if (n > args->max_entries)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "indexer_topk: row %" PRId64 ": expected at most max_entries %" PRId64
                           " that it sees, found %" PRId64,
                           t, args->max_entries, n);
        most = max64(most, n);
        all += n;
    }
    WB_TRY(wb_cpu_scratch_reserve(dev, WB_CPU(indexer_bytes)(args->n_heads, args->head_dim, most)));
#pragma omp parallel for schedule(dynamic) \
    num_threads(wb_cpu_threads(dev, all * args->n_heads * args->head_dim / 8))
    for (int64_t t = 0; t < args->T; t++) choose_of_token(args, t, wb_cpu_scratch(dev));
    return WB_OK;
}
