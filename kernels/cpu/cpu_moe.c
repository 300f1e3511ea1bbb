/* cpu_moe.c - moving token rows to their experts and back: where each pair's row lies, gather, weighted
 * combine and its backward.
 *
 * A token's choices are summed in their order, whatever the placement of the rows. Refuses: choosing experts,
 * what experts compute (cpu_grouped.c).
 */
#include "cpu/cpu_ids.h"
#include "cpu/cpu_lanes.h"
#include "wb_moe_plan_host.h"

#include <inttypes.h>

/* ---- rows of this rank's tokens ------------------------------------------------------------------ */

wb_status WB_CPU(moe_plan)(wb_device *dev, const wb_moe_plan *plan) {
    void *shared = NULL;
    WB_TRY(check_view("moe_plan: ids", plan->ids, plan->n_experts));
    WB_TRY(wb_cpu_shared_reserve(dev, (size_t)plan->n_slots * sizeof(int32_t), &shared));
    return wb_moe_plan_host(plan, shared);
}

/* ---- rows of this rank's experts ----------------------------------------------------------------- */

wb_status WB_CPU(moe_group)(wb_device *dev, const wb_moe_group *group) {
    const int32_t R = group->n_sources, n_slots = group->n_slots;
    void *shared = NULL;
    WB_TRY(wb_cpu_shared_reserve(dev, (size_t)n_slots * sizeof(int32_t), &shared));
    int32_t *next = shared, row = 0, arrived = 0;
    for (int32_t s = 0; s < n_slots; s++) {
        group->offsets[s] = next[s] = row;
        for (int32_t r = 0; r < R; r++) row += group->counts[(int64_t)r * n_slots + s];
    }
    group->offsets[n_slots] = row;
    for (int32_t r = 0; r < R; r++)
        for (int32_t s = 0; s < n_slots; s++)
            for (int32_t i = 0; i < group->counts[(int64_t)r * n_slots + s]; i++) {
                group->to_received[next[s]] = arrived;
                group->to_grouped[arrived++] = next[s]++;
            }
    return WB_OK;
}

/* ---- rows ---------------------------------------------------------------------------------------- */

wb_status WB_CPU(gather_rows)(wb_device *dev, int64_t n, int64_t width, const int32_t *index, const float *in,
                              float *out) {
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n *width))
    for (int64_t i = 0; i < n; i++)
        memcpy(out + i * width, in + index[i] * width, (size_t)width * sizeof(float));
    return WB_OK;
}

static void combine_row(int32_t K, int64_t H, const float *rows, const int32_t *pair_row,
                        const float *weights, float *restrict y) {
    memset(y, 0, (size_t)H * sizeof(float));
    for (int32_t k = 0; k < K; k++) {
        if (pair_row[k] < 0) continue;
        const float *restrict row = rows + pair_row[k] * H;
        float w = weights ? weights[k] : 1.0f;
        for (int64_t i = 0; i < H; i++) y[i] = fmaf(w, row[i], y[i]);
    }
}

wb_status WB_CPU(moe_combine)(wb_device *dev, int64_t T, int32_t K, int64_t H, wb_rows rows,
                              const int32_t *pair_row, const float *weights, wb_rows y) {
    const float *from = rows.data;
    float *to = y.data;
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *K *H))
    for (int64_t t = 0; t < T; t++)
        combine_row(K, H, from, pair_row + t * K, weights ? weights + t * K : NULL, to + t * H);
    return WB_OK;
}

wb_status WB_CPU(moe_combine_backward)(wb_device *dev, int64_t T, int32_t K, int64_t H, wb_rows rows,
                                       const int32_t *pair_row, const float *weights, wb_rows dy,
                                       wb_rows drows, float *dweights) {
    const float *from = rows.data, *gradient = dy.data;
    float *to = drows.data;
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *K *H))
    for (int64_t t = 0; t < T; t++)
        for (int32_t k = 0; k < K; k++) {
            const float *restrict d = gradient + t * H;
            const float w = weights ? weights[t * K + k] : 1.0f;
            const int64_t row = pair_row[t * K + k];
            /* before drows, which may be rows */
            if (dweights) dweights[t * K + k] = row < 0 ? 0.0f : row_dot(d, from + row * H, H);
            if (row < 0) continue;
            float *drow = to + row * H;
            WB_INDEPENDENT
            for (int64_t i = 0; i < H; i++) drow[i] = w * d[i];
        }
    return WB_OK;
}
