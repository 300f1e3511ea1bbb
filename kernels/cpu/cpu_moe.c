/* cpu_moe.c - moving token rows to their experts and back: the sort of (token, choice) pairs by expert,
 * weighted combine and its backward.
 *
 * A token's choices are summed in their order, whatever the placement of the rows. Refuses: choosing experts.
 */
#include "cpu/cpu_ids.h"
#include "cpu/cpu_lanes.h"

#include <inttypes.h>

/* ---- sort by expert -------------------------------------------------------------------------- */

wb_status WB_CPU(moe_sort)(wb_device *dev, int64_t T, int32_t K, int32_t E, wb_ids ids, int32_t *choice_row,
                           int32_t *row_token, int64_t *counts) {
    if (K < 0 || T > INT32_MAX / (K > 0 ? K : 1))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "moe_sort: %" PRId64 " tokens of %d choices: more pairs than an i32 can number", T, K);
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
            choice_row[t * K + k] = place;
            row_token[place] = (int32_t)t;
        }
    return WB_OK;
}

/* ---- rows ---------------------------------------------------------------------------------------- */

static void combine_row(int32_t K, int64_t H, const float *rows, const int32_t *choice_row,
                        const float *weights, bool accumulate, float *restrict y) {
    if (!accumulate) memset(y, 0, (size_t)H * sizeof(float));
    for (int32_t k = 0; k < K; k++) {
        const float *restrict row = rows + choice_row[k] * H;
        float w = weights ? weights[k] : 1.0f;
        for (int64_t i = 0; i < H; i++) y[i] = fmaf(w, row[i], y[i]);
    }
}

wb_status WB_CPU(moe_combine)(wb_device *dev, int64_t T, int32_t K, int64_t H, const float *rows,
                              const int32_t *choice_row, const float *weights, bool accumulate, float *y) {
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *K *H))
    for (int64_t t = 0; t < T; t++)
        combine_row(K, H, rows, choice_row + t * K, weights ? weights + t * K : NULL, accumulate, y + t * H);
    return WB_OK;
}

wb_status WB_CPU(moe_combine_backward)(wb_device *dev, int64_t T, int32_t K, int64_t H, const float *rows,
                                       const int32_t *choice_row, const float *weights, const float *dy,
                                       float *drows, float *dweights) {
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *K *H))
    for (int64_t t = 0; t < T; t++)
        for (int32_t k = 0; k < K; k++) {
            const float *restrict d = dy + t * H;
            float w = weights ? weights[t * K + k] : 1.0f;
            int64_t row = choice_row[t * K + k];
            /* before drows, which may be rows */
            if (dweights) dweights[t * K + k] = row_dot(d, rows + row * H, H);
            float *to = drows + row * H;
            WB_INDEPENDENT
            for (int64_t i = 0; i < H; i++) to[i] = w * d[i];
        }
    return WB_OK;
}
