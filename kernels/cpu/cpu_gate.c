/* cpu_gate.c - the weights of given ids, and their backward.
 *
 * The rules are those of router_rules.h. Ids are checked against E before anything is written.
 */
#include "cpu/cpu_ids.h"
#include "cpu/cpu_lanes.h"

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
    float chosen[MAX_K], dchosen[MAX_K];
    for (int32_t k = 0; k < K; k++) chosen[k] = z[ids[k]];
    wb_gate_row_backward(router, chosen, g, dchosen);
    memset(dz, 0, (size_t)router->n_experts * sizeof(float));
    for (int32_t k = 0; k < K; k++) dz[ids[k]] += dchosen[k];
}

static bool is_padding(const uint8_t *direction, int64_t t) {
    return direction && direction[t] == WB_ROW_PADDING;
}

wb_status WB_CPU(gate_forward)(wb_device *dev, const wb_router *router, int64_t T, const float *logits,
                               const uint8_t *direction, wb_ids ids, float *weights) {
    int32_t E = router->n_experts, K = router->top_k;
    WB_TRY(wb_router_check(router));
    WB_TRY(check_ids(WB_OP_gate_forward, "gate_forward: ids", ids, T, K, E));
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *E))
    for (int64_t t = 0; t < T; t++) {
        uint32_t row[MAX_K];
        if (is_padding(direction, t)) {
            memset(weights + t * K, 0, (size_t)K * sizeof *weights);
            continue;
        }
        for (int32_t k = 0; k < K; k++) row[k] = id_get(ids, t, k);
        gate_row(router, logits + t * E, row, weights + t * K);
    }
    return WB_OK;
}

wb_status WB_CPU(gate_backward)(wb_device *dev, const wb_router *router, int64_t T, const float *logits,
                                const uint8_t *direction, wb_ids ids, const float *dweights, float *dlogits) {
    int32_t E = router->n_experts, K = router->top_k;
    WB_TRY(wb_router_check(router));
    WB_TRY(check_ids(WB_OP_gate_backward, "gate_backward: ids", ids, T, K, E));
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *E))
    for (int64_t t = 0; t < T; t++) {
        uint32_t row[MAX_K];
        if (is_padding(direction, t)) {
            memset(dlogits + t * E, 0, (size_t)E * sizeof *dlogits);
            continue;
        }
        for (int32_t k = 0; k < K; k++) row[k] = id_get(ids, t, k);
        gate_row_backward(router, logits + t * E, row, dweights + t * K, dlogits + t * E);
    }
    return WB_OK;
}
