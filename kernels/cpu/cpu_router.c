/* cpu_router.c - selection, the gate over given ids and the sort of (token, slot) pairs by expert.
 *
 * The rules are those of router_rules.h. Ids are checked against E before anything is written.
 */
#include "cpu_lanes.h"

enum { MAX_K = 64, MAX_U8_EXPERTS = 256 };

static inline uint32_t id_get(wb_ids ids, int64_t t, int32_t k) {
    int64_t index = t * ids.stride + k;
    return ids.dtype == WB_U8 ? ((const uint8_t *)ids.data)[index] : ((const uint16_t *)ids.data)[index];
}

static inline void id_set(wb_ids ids, int64_t t, int32_t k, uint32_t id) {
    int64_t index = t * ids.stride + k;
    if (ids.dtype == WB_U8)
        ((uint8_t *)ids.data)[index] = (uint8_t)id;
    else
        ((uint16_t *)ids.data)[index] = (uint16_t)id;
}

static wb_status check_view(const char *what, wb_ids ids, int32_t E) {
    if (ids.dtype != WB_U16 && (ids.dtype != WB_U8 || E > MAX_U8_EXPERTS))
        return wb_fail(WB_INVALID_ARGUMENT, "%s: expected %s ids for %d experts, found %s", what,
                       E > MAX_U8_EXPERTS ? "u16" : "u8 or u16", E, wb_dtype_name(ids.dtype));
    return WB_OK;
}

/* Every id of the view below E. */
static wb_status check_ids(const char *what, wb_ids ids, int64_t T, int32_t K, int32_t E) {
    WB_TRY(check_view(what, ids, E));
    for (int64_t t = 0; t < T; t++)
        for (int32_t k = 0; k < K; k++)
            if (id_get(ids, t, k) >= (uint32_t)E)
                return wb_fail(WB_INVALID_ARGUMENT,
                               "%s: row %lld, slot %d: expected an id below %d, found %u", what, (long long)t,
                               k, E, id_get(ids, t, k));
    return WB_OK;
}

/* ---- selection -------------------------------------------------------------------------------------- */

/* Keeps the `limit` largest ranks, descending. */
static inline void insert_rank(uint64_t *ranks, int32_t *count, int32_t limit, uint64_t rank) {
    if (*count == limit && rank <= ranks[limit - 1]) return;
    int32_t at = *count < limit ? (*count)++ : limit - 1;
    for (; at > 0 && ranks[at - 1] < rank; at--) ranks[at] = ranks[at - 1];
    ranks[at] = rank;
}

/* Adds experts [begin, end) to the `limit` best so far. */
static inline void scan_experts(const uint32_t *orders, int32_t begin, int32_t end, int32_t limit,
                                uint64_t *ranks, int32_t *count) {
    for (int32_t e = begin; e < end; e++) insert_rank(ranks, count, limit, wb_rank(orders[e], (uint32_t)e));
}

static float group_score(const wb_router *router, const uint32_t *orders, int32_t begin, int32_t size) {
    uint32_t first = 0, second = 0;
    for (int32_t e = begin; e < begin + size; e++) {
        uint32_t order = orders[e];
        second = order > first ? first : order > second ? order : second;
        first = order > first ? order : first;
    }
    return wb_router_group_score(router->type, first, second, size);
}

/* Marks the kept groups in kept[n_group]. */
static void keep_groups(const wb_router *router, const uint32_t *orders, uint64_t *ranks, uint8_t *kept) {
    int32_t size = router->n_experts / router->n_group, count = 0;
    for (int32_t g = 0; g < router->n_group; g++) {
        float score = group_score(router, orders, g * size, size);
        insert_rank(ranks, &count, router->topk_group, wb_rank(wb_key_order(score), (uint32_t)g));
        kept[g] = 0;
    }
    for (int32_t i = 0; i < count; i++) kept[wb_rank_id(ranks[i])] = 1;
}

/* What one thread needs to select a row. */
typedef struct selection {
    uint32_t *orders; /* [E] */
    uint64_t *ranks;  /* [max(n_group, 1)] */
    uint8_t *kept;    /* [max(n_group, 1)] */
} selection;

static size_t selection_bytes(const wb_router *router) {
    size_t groups = router->n_group > 1 ? (size_t)router->n_group : 1;
    return (size_t)router->n_experts * sizeof(uint32_t) + groups * (sizeof(uint64_t) + 1) + sizeof(uint64_t);
}

static selection selection_place(const wb_router *router, void *scratch) {
    size_t groups = router->n_group > 1 ? (size_t)router->n_group : 1;
    selection s = {.ranks = scratch};
    s.orders = (uint32_t *)(s.ranks + groups);
    s.kept = (uint8_t *)(s.orders + router->n_experts);
    return s;
}

static void key_orders(const wb_router *router, const float *z, const float *bias,
                       uint32_t *restrict orders) {
    int32_t E = router->n_experts;
    if (wb_router_is_softmax(router->type))
        for (int32_t e = 0; e < E; e++) orders[e] = wb_key_order(z[e]);
    else if (router->type == WB_ROUTER_SIGMOID)
        for (int32_t e = 0; e < E; e++)
            orders[e] = wb_key_order(wb_router_key(WB_ROUTER_SIGMOID, z[e], bias ? bias[e] : 0.0f));
    else
        for (int32_t e = 0; e < E; e++)
            orders[e] = wb_key_order(wb_router_key(WB_ROUTER_SQRTSOFTPLUS, z[e], bias ? bias[e] : 0.0f));
}

/* ids[K] of one row, in slot order. */
static void select_row(const wb_topk *args, int64_t t, selection s, uint32_t *ids) {
    const wb_router *router = &args->router;
    int32_t E = router->n_experts, K = router->top_k, count = 0;
    if (router->type == WB_ROUTER_HASH) {
        for (int32_t k = 0; k < K; k++) ids[k] = (uint32_t)args->table[(int64_t)args->tokens[t] * K + k];
        return;
    }
    uint64_t best[MAX_K];
    key_orders(router, args->logits + t * E, args->bias, s.orders);
    if (router->n_group > 1) {
        int32_t size = E / router->n_group;
        keep_groups(router, s.orders, s.ranks, s.kept);
        for (int32_t g = 0; g < router->n_group; g++)
            if (s.kept[g]) scan_experts(s.orders, g * size, (g + 1) * size, K, best, &count);
    } else {
        scan_experts(s.orders, 0, E, K, best, &count);
    }
    for (int32_t k = 0; k < K; k++) ids[k] = wb_rank_id(best[k]);
}

static wb_status check_table(const wb_topk *args) {
    if (args->table == NULL || args->tokens == NULL)
        return wb_fail(WB_INVALID_ARGUMENT, "topk: a hash router needs table and tokens");
    int32_t K = args->router.top_k, E = args->router.n_experts;
    for (int64_t t = 0; t < args->T; t++)
        for (int32_t k = 0; k < K; k++) {
            int32_t id = args->table[(int64_t)args->tokens[t] * K + k];
            if (id < 0 || id >= E)
                return wb_fail(WB_INVALID_ARGUMENT, "topk: table[%d][%d]: expected an id below %d, found %d",
                               args->tokens[t], k, E, id);
        }
    return WB_OK;
}

wb_status WB_CPU(topk)(wb_device *dev, const wb_topk *args) {
    const wb_router *router = &args->router;
    WB_TRY(wb_router_check(router));
    WB_TRY(check_view("topk: ids", args->ids, router->n_experts));
    if (args->native.data != NULL) WB_TRY(check_view("topk: native", args->native, router->n_experts));
    if (router->type == WB_ROUTER_HASH) WB_TRY(check_table(args));
    WB_TRY(wb_cpu_scratch_reserve(dev, selection_bytes(router)));
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, args->T * router->n_experts))
    for (int64_t t = 0; t < args->T; t++) {
        bool forced = args->forced != NULL && args->forced[t] != 0;
        if (forced && args->native.data == NULL) continue;
        uint32_t ids[MAX_K];
        select_row(args, t, selection_place(router, wb_cpu_scratch(dev)), ids);
        for (int32_t k = 0; k < router->top_k; k++) {
            if (!forced) id_set(args->ids, t, k, ids[k]);
            if (args->native.data != NULL) id_set(args->native, t, k, ids[k]);
        }
    }
    return WB_OK;
}

/* ---- the gate ---------------------------------------------------------------------------------------- */

static void gate_row(const wb_router *router, const float *z, const uint32_t *ids, float *w) {
    int32_t K = router->top_k;
    float chosen[MAX_K];
    for (int32_t k = 0; k < K; k++) chosen[k] = z[ids[k]];
    if (router->type != WB_ROUTER_SOFTMAX) {
        wb_gate_row(router, chosen, w);
        return;
    }
    float max = row_max(z, router->n_experts), sum = row_exp_sum(z, router->n_experts, max);
    for (int32_t k = 0; k < K; k++) w[k] = router->scale * wb_gate_dense_p(chosen[k], max, sum);
}

static void gate_dense_backward(const wb_router *router, const float *z, const uint32_t *ids, const float *g,
                                float *dz) {
    int32_t K = router->top_k, E = router->n_experts;
    float p[MAX_K], c = router->scale, dot = 0.0f;
    float max = row_max(z, E), sum = row_exp_sum(z, E, max);
    for (int32_t k = 0; k < K; k++) {
        p[k] = wb_gate_dense_p(z[ids[k]], max, sum);
        dot = fmaf(g[k], p[k], dot);
    }
    WB_INDEPENDENT
    for (int32_t e = 0; e < E; e++) dz[e] = wb_gate_dense_dz(wb_gate_dense_p(z[e], max, sum), c, dot);
    for (int32_t k = 0; k < K; k++) dz[ids[k]] = wb_gate_dense_dz_chosen(dz[ids[k]], p[k], c, g[k]);
}

static void gate_row_backward(const wb_router *router, const float *z, const uint32_t *ids, const float *g,
                              float *dz) {
    if (router->type == WB_ROUTER_SOFTMAX) {
        gate_dense_backward(router, z, ids, g, dz);
        return;
    }
    int32_t K = router->top_k;
    float chosen[MAX_K], slots[MAX_K];
    for (int32_t k = 0; k < K; k++) chosen[k] = z[ids[k]];
    wb_gate_row_backward(router, chosen, g, slots);
    memset(dz, 0, (size_t)router->n_experts * sizeof(float));
    for (int32_t k = 0; k < K; k++) dz[ids[k]] += slots[k];
}

wb_status WB_CPU(gate_forward)(wb_device *dev, const wb_router *router, int64_t T, const float *logits,
                               wb_ids ids, float *weights) {
    int32_t E = router->n_experts, K = router->top_k;
    WB_TRY(wb_router_check(router));
    WB_TRY(check_ids("gate_forward: ids", ids, T, K, E));
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *E))
    for (int64_t t = 0; t < T; t++) {
        uint32_t row[MAX_K];
        for (int32_t k = 0; k < K; k++) row[k] = id_get(ids, t, k);
        gate_row(router, logits + t * E, row, weights + t * K);
    }
    return WB_OK;
}

wb_status WB_CPU(gate_backward)(wb_device *dev, const wb_router *router, int64_t T, const float *logits,
                                wb_ids ids, const float *dweights, float *dlogits) {
    int32_t E = router->n_experts, K = router->top_k;
    WB_TRY(wb_router_check(router));
    WB_TRY(check_ids("gate_backward: ids", ids, T, K, E));
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *E))
    for (int64_t t = 0; t < T; t++) {
        uint32_t row[MAX_K];
        for (int32_t k = 0; k < K; k++) row[k] = id_get(ids, t, k);
        gate_row_backward(router, logits + t * E, row, dweights + t * K, dlogits + t * E);
    }
    return WB_OK;
}

/* ---- sort by expert ------------------------------------------------------------------------------------ */

wb_status WB_CPU(moe_sort)(wb_device *dev, int64_t T, int32_t K, int32_t E, wb_ids ids, int32_t *slot_row,
                           int32_t *row_token, int64_t *counts) {
    if (K < 0 || T > INT32_MAX / (K > 0 ? K : 1))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "moe_sort: %lld tokens of %d slots: more pairs than an i32 can number", (long long)T,
                       K);
    WB_TRY(check_ids("moe_sort: ids", ids, T, K, E));
    void *shared = NULL;
    WB_TRY(wb_cpu_shared_reserve(dev, (size_t)E * sizeof(int32_t), &shared));
    int32_t *next = shared;
    for (int32_t e = 0; e < E; e++) counts[e] = 0;
    for (int64_t t = 0; t < T; t++)
        for (int32_t k = 0; k < K; k++) counts[id_get(ids, t, k)]++;
    int32_t row = 0;
    for (int32_t e = 0; e < E; e++) {
        next[e] = row;
        row += (int32_t)counts[e];
    }
    for (int64_t t = 0; t < T; t++)
        for (int32_t k = 0; k < K; k++) {
            int32_t place = next[id_get(ids, t, k)]++;
            slot_row[t * K + k] = place;
            row_token[place] = (int32_t)t;
        }
    return WB_OK;
}
