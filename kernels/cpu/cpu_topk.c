/* cpu_topk.c - the selection of experts.
 *
 * The rules are those of router_rules.h. Ids of a table are checked against E before anything is written.
 */
#include "cpu/cpu_ids.h"
#include "cpu/cpu_lanes.h"

/* Experts come as order numbers: wb_key_order, but 1 for NaN; 0 is no candidate (outside the kept groups,
 * taken already, or padding up to a whole block). */
enum { BLOCK = 16 };

static uint32_t block_max(const uint32_t *orders) {
    uint32_t max = 0;
    for (int i = 0; i < BLOCK; i++) max = orders[i] > max ? orders[i] : max;
    return max;
}

static uint32_t first_in_block(const uint32_t *orders, uint32_t order) {
    uint32_t first = BLOCK;
    for (uint32_t i = 0; i < BLOCK; i++) {
        uint32_t here = orders[i] == order ? i : BLOCK;
        first = here < first ? here : first;
    }
    return first;
}

/* ids[K]: the K best candidates, order descending, id ascending; takes them out of `orders`. maxima:
 * [blocks]. */
static void take_best(uint32_t *orders, uint32_t *maxima, int32_t blocks, int32_t K, uint32_t *ids) {
    for (int32_t b = 0; b < blocks; b++) maxima[b] = block_max(orders + b * BLOCK);
    for (int32_t k = 0; k < K; k++) {
        int32_t best = 0;
        for (int32_t b = 1; b < blocks; b++) best = maxima[b] > maxima[best] ? b : best;
        uint32_t *block = orders + best * BLOCK, at = first_in_block(block, maxima[best]);
        ids[k] = (uint32_t)(best * BLOCK) + at;
        block[at] = 0;
        maxima[best] = block_max(block);
    }
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

/* Makes no candidates of the experts outside the best topk_group groups. group_orders: [n_group]. */
static void drop_groups(const wb_router *router, uint32_t *orders, uint64_t *group_orders) {
    int32_t size = router->n_experts / router->n_group;
    for (int32_t g = 0; g < router->n_group; g++) {
        float score = group_score(router, orders, g * size, size);
        group_orders[g] = wb_choice_order(wb_key_order(score), (uint32_t)g);
    }
    for (int32_t g = 0; g < router->n_group; g++) {
        int32_t better = 0;
        for (int32_t other = 0; other < router->n_group; other++)
            better += group_orders[other] > group_orders[g];
        if (better >= router->topk_group) memset(orders + g * size, 0, (size_t)size * sizeof *orders);
    }
}

/* What one thread needs to select a row. */
typedef struct selection {
    uint32_t *orders;       /* [blocks * BLOCK] */
    uint32_t *maxima;       /* [blocks] */
    uint64_t *group_orders; /* [n_group] */
    int32_t blocks;
} selection;

static selection selection_place(const wb_router *router, void *scratch) {
    selection s = {.group_orders = scratch, .blocks = (router->n_experts + BLOCK - 1) / BLOCK};
    s.orders = (uint32_t *)(s.group_orders + (router->n_group > 1 ? router->n_group : 0));
    s.maxima = s.orders + s.blocks * BLOCK;
    return s;
}

size_t WB_CPU(topk_bytes)(const wb_router *router) {
    size_t blocks = ((size_t)router->n_experts + BLOCK - 1) / BLOCK;
    size_t groups = router->n_group > 1 ? (size_t)router->n_group : 0;
    return groups * sizeof(uint64_t) + blocks * (BLOCK + 1) * sizeof(uint32_t);
}

static inline uint32_t candidate_order(float key) {
    uint32_t order = wb_key_order(key);
    return order == 0 ? 1 : order;
}

static void key_orders(const wb_router *router, const float *restrict z, const float *restrict bias,
                       uint32_t *restrict orders) {
    int32_t E = router->n_experts;
    if (wb_router_is_softmax(router->type)) {
        for (int32_t e = 0; e < E; e++) orders[e] = candidate_order(z[e]);
        return;
    }
    if (router->type == WB_ROUTER_SIGMOID)
        for (int32_t e = 0; e < E; e++) orders[e] = wb_float_bits(wb_router_score(WB_ROUTER_SIGMOID, z[e]));
    else
        for (int32_t e = 0; e < E; e++)
            orders[e] = wb_float_bits(wb_router_score(WB_ROUTER_SQRTSOFTPLUS, z[e]));
    if (bias)
        for (int32_t e = 0; e < E; e++)
            orders[e] = candidate_order(wb_add(wb_bits_float(orders[e]), bias[e]));
    else
        for (int32_t e = 0; e < E; e++) orders[e] = candidate_order(wb_bits_float(orders[e]));
}

/* ids[K] of one row, in the order of the choices. */
static void select_row(const wb_topk *args, int64_t t, selection s, uint32_t *ids) {
    const wb_router *router = &args->router;
    int32_t E = router->n_experts, K = router->top_k;
    if (router->type == WB_ROUTER_HASH) {
        for (int32_t k = 0; k < K; k++) ids[k] = (uint32_t)args->table[(int64_t)args->tokens[t] * K + k];
        return;
    }
    key_orders(router, args->logits + t * E, args->bias, s.orders);
    memset(s.orders + E, 0, (size_t)(s.blocks * BLOCK - E) * sizeof(uint32_t));
    if (router->n_group > 1) drop_groups(router, s.orders, s.group_orders);
    take_best(s.orders, s.maxima, s.blocks, K, ids);
}

static wb_status check_table(const wb_topk *args) {
    if (!args->table || !args->tokens)
        return wb_fail(WB_INVALID_ARGUMENT, "topk: a hash router needs table and tokens");
    int32_t K = args->router.top_k, E = args->router.n_experts;
    for (int64_t t = 0; t < args->T; t++)
        for (int32_t k = 0; k < K; k++) {
            const int32_t token = args->tokens[t], id = args->table[(int64_t)token * K + k];
            const wb_fault fault = {.kind = WB_FAULT_TABLE_ID,
                                    .op = WB_OP_topk,
                                    .row = token,
                                    .choice = k,
                                    .limit = E,
                                    .found = id};
            if (id < 0 || id >= E) return wb_fault_report(&fault);
        }
    return WB_OK;
}

wb_status WB_CPU(topk)(wb_device *dev, const wb_topk *args) {
    const wb_router *router = &args->router;
    WB_TRY(wb_router_check(router));
    WB_TRY(check_view("topk: ids", args->ids, router->n_experts));
    if (args->native.data) WB_TRY(check_view("topk: native", args->native, router->n_experts));
    if (router->type == WB_ROUTER_HASH) WB_TRY(check_table(args));
    WB_TRY(wb_cpu_scratch_reserve(dev, WB_CPU(topk_bytes)(router)));
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, args->T * router->n_experts))
    for (int64_t t = 0; t < args->T; t++) {
        bool forced = args->direction && args->direction[t];
        if (forced && !args->native.data) continue;
        uint32_t ids[MAX_K];
        select_row(args, t, selection_place(router, wb_cpu_scratch(dev)), ids);
        for (int32_t k = 0; k < router->top_k; k++) {
            if (!forced) id_set(args->ids, t, k, ids[k]);
            if (args->native.data) id_set(args->native, t, k, ids[k]);
        }
    }
    return WB_OK;
}
