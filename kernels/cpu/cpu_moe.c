/* cpu_moe.c - moving token rows to their experts and back: gather, weighted combine and its backward.
 *
 * A token's slots are summed in slot order, whatever the placement of the rows. Refuses: choosing experts.
 */
#include "cpu_lanes.h"

wb_status WB_CPU(gather_rows)(wb_device *dev, int64_t n, int64_t width, const int32_t *index, const float *in,
                              float *out) {
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n *width))
    for (int64_t i = 0; i < n; i++)
        memcpy(out + i * width, in + index[i] * width, (size_t)width * sizeof(float));
    return WB_OK;
}

static void combine_row(int32_t K, int64_t H, const float *rows, const int32_t *slot_row,
                        const float *weights, bool accumulate, float *restrict y) {
    if (!accumulate) memset(y, 0, (size_t)H * sizeof(float));
    for (int32_t k = 0; k < K; k++) {
        const float *restrict row = rows + slot_row[k] * H;
        float w = weights != NULL ? weights[k] : 1.0f;
        for (int64_t i = 0; i < H; i++) y[i] = fmaf(w, row[i], y[i]);
    }
}

wb_status WB_CPU(moe_combine)(wb_device *dev, int64_t T, int32_t K, int64_t H, const float *rows,
                              const int32_t *slot_row, const float *weights, bool accumulate, float *y) {
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *K *H))
    for (int64_t t = 0; t < T; t++)
        combine_row(K, H, rows, slot_row + t * K, weights != NULL ? weights + t * K : NULL, accumulate,
                    y + t * H);
    return WB_OK;
}

wb_status WB_CPU(moe_combine_backward)(wb_device *dev, int64_t T, int32_t K, int64_t H, const float *rows,
                                       const int32_t *slot_row, const float *weights, const float *dy,
                                       float *drows, float *dweights) {
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *K *H))
    for (int64_t t = 0; t < T; t++)
        for (int32_t k = 0; k < K; k++) {
            const float *restrict d = dy + t * H;
            float w = weights != NULL ? weights[t * K + k] : 1.0f;
            int64_t row = slot_row[t * K + k];
            if (dweights != NULL) dweights[t * K + k] = row_dot(d, rows + row * H, H); /* drows may be rows */
            float *to = drows + row * H;
            WB_INDEPENDENT
            for (int64_t i = 0; i < H; i++) to[i] = w * d[i];
        }
    return WB_OK;
}
