/* cpu_moe.c - moving token rows to their experts and back: where each pair's row lies, the weighted combine
 * and its backward; what experts without weights add.
 *
 * A token's choices are summed in their order, whatever the placement of the rows. Refuses: choosing experts,
 * what experts compute (cpu_grouped.c). */
#include "cpu/cpu_ids.h"
#include "cpu/cpu_operands.h"
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

/* How many pairs have a row: they are the rows 0 .. n - 1. */
static int64_t count_rows(int64_t n_pairs, const int32_t *pair_row) {
    int64_t n = 0;
    for (int64_t i = 0; i < n_pairs; i++) n += pair_row[i] >= 0;
    return n;
}

wb_status WB_CPU(moe_combine)(wb_device *dev, int64_t T, int32_t K, int64_t H, wb_rows rows,
                              const int32_t *pair_row, const float *weights, wb_rows y) {
    operand list[] = {{"rows", rows, count_rows(T * K, pair_row) * H, READ, NULL},
                      {"y", y, T * H, WRITE, NULL}};
    WB_TRY(WB_CPU(operands_open)(dev, "moe_combine", list, 2));
    const float *from = list[0].f32;
    float *to = list[1].f32;
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *K *H))
    for (int64_t t = 0; t < T; t++)
        combine_row(K, H, from, pair_row + t * K, weights ? weights + t * K : NULL, to + t * H);
    WB_CPU(operands_close)(dev, list, 2);
    return WB_OK;
}

static void combine_row_backward(int32_t K, int64_t H, const float *rows, const int32_t *pair_row,
                                 const float *weights, const float *restrict dy, float *drows,
                                 float *dweights) {
    for (int32_t k = 0; k < K; k++) {
        const float w = weights ? weights[k] : 1.0f;
        const int64_t row = pair_row[k];
        /* before drows, which may be rows */
        if (dweights) dweights[k] = row < 0 ? 0.0f : row_dot(dy, rows + row * H, H);
        if (row < 0) continue;
        float *to = drows + row * H;
        WB_INDEPENDENT
        for (int64_t i = 0; i < H; i++) to[i] = w * dy[i];
    }
}

wb_status WB_CPU(moe_combine_backward)(wb_device *dev, int64_t T, int32_t K, int64_t H, wb_rows rows,
                                       const int32_t *pair_row, const float *weights, wb_rows dy,
                                       wb_rows drows, float *dweights) {
    const int64_t n = count_rows(T * K, pair_row) * H;
    operand list[] = {
        {"rows", rows, n, READ, NULL}, {"dy", dy, T * H, READ, NULL}, {"drows", drows, n, WRITE, NULL}};
    WB_TRY(WB_CPU(operands_open)(dev, "moe_combine_backward", list, 3));
    const float *from = list[0].f32, *d = list[1].f32;
    float *to = list[2].f32;
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *K *H))
    for (int64_t t = 0; t < T; t++)
        combine_row_backward(K, H, from, pair_row + t * K, weights ? weights + t * K : NULL, d + t * H, to,
                             dweights ? dweights + t * K : NULL);
    WB_CPU(operands_close)(dev, list, 3);
    return WB_OK;
}

/* ---- experts without weights --------------------------------------------------------------------- */

static bool is_own(const wb_own_choices *own, int64_t t, int32_t k) {
    return own->weights[t * own->K + k] != 0 && id_get(own->ids, t, k) >= own->first;
}

/* to[H] (+=) the row of token t, weighted, once for each such choice. */
static void add_own(const wb_own_choices *own, int64_t t, const float *restrict row, float *restrict to) {
    for (int32_t k = 0; k < own->K; k++) {
        const float w = own->weights[t * own->K + k];
        if (!is_own(own, t, k)) continue;
        for (int64_t i = 0; i < own->H; i++) to[i] = fmaf(w, row[i], to[i]);
    }
}

wb_status WB_CPU(moe_own_forward)(wb_device *dev, const wb_own_choices *own, wb_rows x, wb_rows y) {
    const int64_t T = own->T, H = own->H;
    operand list[] = {{"x", x, T * H, READ, NULL}, {"y", y, T * H, UPDATE, NULL}};
    WB_TRY(WB_CPU(operands_open)(dev, "moe_own_forward", list, 2));
    const float *from = list[0].f32;
    float *to = list[1].f32;
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *H))
    for (int64_t t = 0; t < T; t++) add_own(own, t, from + t * H, to + t * H);
    WB_CPU(operands_close)(dev, list, 2);
    return WB_OK;
}

wb_status WB_CPU(moe_own_backward)(wb_device *dev, const wb_own_choices *own, wb_rows x, wb_rows dy,
                                   wb_rows dx, float *dweights) {
    const int64_t T = own->T, H = own->H;
    operand list[] = {
        {"x", x, T * H, READ, NULL}, {"dy", dy, T * H, READ, NULL}, {"dx", dx, T * H, UPDATE, NULL}};
    WB_TRY(WB_CPU(operands_open)(dev, "moe_own_backward", list, 3));
    const float *from = list[0].f32, *d = list[1].f32;
    float *to = list[2].f32;
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *H))
    for (int64_t t = 0; t < T; t++) {
        add_own(own, t, d + t * H, to + t * H);
        for (int32_t k = 0; k < own->K; k++)
            if (is_own(own, t, k)) dweights[t * own->K + k] = row_dot(d + t * H, from + t * H, H);
    }
    WB_CPU(operands_close)(dev, list, 3);
    return WB_OK;
}
