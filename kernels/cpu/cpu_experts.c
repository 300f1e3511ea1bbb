/* cpu_experts.c - what experts have between their products where that is no plain SwiGLU: a bias for each
 * expert, and the clamped SwiGLU. Refuses: the products (cpu_grouped.c). */
#include "cpu/cpu_operands.h"
#include "swiglu_rules.h"

#include <string.h>

static int64_t n_rows(const wb_grouped *g) {
    return g->offsets ? g->offsets[g->n_groups] : g->max_rows;
}

wb_status WB_CPU(grouped_bias_forward)(wb_device *dev, const wb_grouped *g, int64_t width, const float *b,
                                       wb_rows y) {
    operand list[] = {{.name = "y", .rows = y, .n = n_rows(g) * width, .use = UPDATE}};
    WB_TRY(WB_CPU(operands_open)(dev, "grouped_bias_forward", list, 1));
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n_rows(g) * width))
    for (int32_t group = 0; group < g->n_groups; group++) {
        const float *bias = b + group * width;
        for (int64_t row = g->offsets[group]; row < g->offsets[group + 1]; row++) {
            float *to = list[0].f32 + row * width;
            WB_INDEPENDENT
            for (int64_t i = 0; i < width; i++) to[i] += bias[i];
        }
    }
    WB_CPU(operands_close)(dev, list, 1);
    return WB_OK;
}

wb_status WB_CPU(grouped_bias_backward)(wb_device *dev, const wb_grouped *g, int64_t width, wb_rows dy,
                                        float *db) {
    operand list[] = {{.name = "dy", .rows = dy, .n = n_rows(g) * width, .use = READ}};
    WB_TRY(WB_CPU(operands_open)(dev, "grouped_bias_backward", list, 1));
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n_rows(g) * width))
    for (int32_t group = 0; group < g->n_groups; group++) {
        float *bias = db + group * width;
        if (g->overwrites) memset(bias, 0, (size_t)width * sizeof *bias);
        for (int64_t row = g->offsets[group]; row < g->offsets[group + 1]; row++) {
            const float *d = list[0].f32 + row * width;
            WB_INDEPENDENT
            for (int64_t i = 0; i < width; i++) bias[i] += d[i];
        }
    }
    return WB_OK;
}

wb_status WB_CPU(grouped_swiglu_forward)(wb_device *dev, const wb_grouped *g, int64_t F,
                                         const wb_clamped_swiglu *clamp, wb_rows gate_up, wb_rows out) {
    const int64_t n = n_rows(g);
    operand list[] = {{.name = "gate_up", .rows = gate_up, .n = n * 2 * F, .use = READ},
                      {.name = "out", .rows = out, .n = n * F, .use = WRITE}};
    WB_TRY(WB_CPU(operands_open)(dev, "grouped_swiglu_forward", list, 2));
    const wb_clamped_swiglu c = *clamp;
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n *F * 8))
    for (int64_t row = 0; row < n; row++) {
        const float *gate = list[0].f32 + row * 2 * F, *up = gate + F;
        float *to = list[1].f32 + row * F;
        for (int64_t i = 0; i < F; i++) to[i] = wb_clamped_swiglu_of(c, gate[i], up[i]);
    }
    WB_CPU(operands_close)(dev, list, 2);
    return WB_OK;
}

wb_status WB_CPU(grouped_swiglu_backward)(wb_device *dev, const wb_grouped *g, int64_t F,
                                          const wb_clamped_swiglu *clamp, wb_rows gate_up, wb_rows dout,
                                          wb_rows dgate_up) {
    const int64_t n = n_rows(g);
    operand list[] = {{.name = "gate_up", .rows = gate_up, .n = n * 2 * F, .use = READ},
                      {.name = "dout", .rows = dout, .n = n * F, .use = READ},
                      {.name = "dgate_up", .rows = dgate_up, .n = n * 2 * F, .use = WRITE}};
    WB_TRY(WB_CPU(operands_open)(dev, "grouped_swiglu_backward", list, 3));
    const wb_clamped_swiglu c = *clamp;
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n *F * 8))
    for (int64_t row = 0; row < n; row++) {
        const float *gate = list[0].f32 + row * 2 * F, *up = gate + F, *d = list[1].f32 + row * F;
        float *dgate = list[2].f32 + row * 2 * F, *dup = dgate + F;
        for (int64_t i = 0; i < F; i++)
            wb_clamped_swiglu_gradient(c, gate[i], up[i], d[i], &dgate[i], &dup[i]);
    }
    WB_CPU(operands_close)(dev, list, 3);
    return WB_OK;
}
