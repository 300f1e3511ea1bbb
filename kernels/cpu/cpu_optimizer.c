/* cpu_optimizer.c - the gradient norm and AdamW. Refuses: schedules, what is a parameter. */
#include "adamw_rules.h"
#include "cpu/cpu_operands.h"

/* Elements of one partial sum, and of one task: part of the fixed order. */
enum { BLOCK = WB_CPU_SUM_BLOCK };

static double block_sum_squares(const float *x, int64_t n) {
    double sum[WB_LANES] = {0.0};
    int64_t i = 0;
    for (; i + WB_LANES <= n; i += WB_LANES)
        for (int lane = 0; lane < WB_LANES; lane++) {
            double value = (double)x[i + lane];
            sum[lane] += value * value; /* the product is exact */
        }
    for (int lane = 0; i < n; i++, lane++) sum[lane] += (double)x[i] * (double)x[i];
    double total = 0.0;
    for (int lane = 0; lane < WB_LANES; lane++) total += sum[lane];
    return total;
}

/* Of elements [begin, begin + n) of x, n at most BLOCK. */
static double rows_sum_squares(wb_rows x, int64_t begin, int64_t n) {
    float wide[BLOCK];
    if (x.dtype == WB_F32) return block_sum_squares((const float *)x.data + begin, n);
    rows_load(x, begin, n, wide);
    return block_sum_squares(wide, n);
}

/* Of x[n]; partial: [blocks of n]. */
static double sum_of_squares(wb_device *dev, int64_t n, wb_rows x, double *partial) {
    const int64_t blocks = (n + BLOCK - 1) / BLOCK;
    double total = 0.0;
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n))
    for (int64_t b = 0; b < blocks; b++) {
        int64_t begin = b * BLOCK, left = n - begin;
        partial[b] = rows_sum_squares(x, begin, left < BLOCK ? left : BLOCK);
    }
    for (int64_t b = 0; b < blocks; b++) total += partial[b];
    return total;
}

wb_status WB_CPU(sum_squares)(wb_device *dev, int64_t count, int64_t n, wb_rows x, double *sums) {
    void *shared = NULL;
    WB_TRY(operand_check("sum_squares", "x", x.dtype));
    WB_TRY(wb_cpu_shared_reserve(dev, wb_cpu_sum_bytes(n), &shared));
    for (int64_t i = 0; i < count; i++) sums[i] = sum_of_squares(dev, n, wb_rows_from(x, i * n), shared);
    return WB_OK;
}

static void update(int64_t n, wb_adamw_step s, const float *restrict g, float *restrict m, float *restrict v,
                   float *restrict w) {
    for (int64_t i = 0; i < n; i++) wb_adamw_element(&s, g[i], m + i, v + i, w + i);
}

wb_status WB_CPU(adamw)(wb_device *dev, int64_t n, const wb_adamw *hyper, const float *g, float *m, float *v,
                        float *w, uint16_t *rounded) {
    if (hyper->step == 0) return wb_fail(WB_INVALID_ARGUMENT, "adamw: step: expected 1 or more, found 0");
    const wb_adamw_step s = wb_adamw_step_of(hyper);
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n))
    for (int64_t begin = 0; begin < n; begin += BLOCK) {
        int64_t count = n - begin < BLOCK ? n - begin : BLOCK;
        update(count, s, g + begin, m + begin, v + begin, w + begin);
        if (rounded) narrow(count, w + begin, rounded + begin);
    }
    return WB_OK;
}
