/* cpu_elements.c - ops on elements: SwiGLU, sums, bias, clamps, casts.
 *
 * Each element is computed alone; the gradient of a bias sums over rows ascending, the columns being shared
 * out among the threads. Refuses: sums along a row (cpu_rows.c).
 */
#include "cpu/cpu_operands.h"
#include "cpu/cpu_row.h"

/* Columns of one task where rows are summed: a cache line. */
enum { COLUMNS = 16 };

/* ---- SwiGLU ---------------------------------------------------------------------------------- */

wb_status WB_CPU(swiglu_forward)(wb_device *dev, int64_t n, int64_t F, wb_rows gate_up, wb_rows out) {
    operand list[] = {{.name = "gate_up", .rows = gate_up, .n = n * 2 * F, .use = READ},
                      {.name = "out", .rows = out, .n = n * F, .use = WRITE}};
    WB_TRY(WB_CPU(operands_open)(dev, "swiglu_forward", list, 2));
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n *F * 8))
    for (int64_t row = 0; row < n; row++) {
        const float *gate = list[0].f32 + row * 2 * F, *up = gate + F;
        float *to = list[1].f32 + row * F;
        WB_INDEPENDENT
        for (int64_t i = 0; i < F; i++) to[i] = wb_silu(gate[i]) * up[i];
    }
    WB_CPU(operands_close)(dev, list, 2);
    return WB_OK;
}

/* silu'(x) = s + x s (1 - s), s = sigmoid(x) */
wb_status WB_CPU(swiglu_backward)(wb_device *dev, int64_t n, int64_t F, wb_rows gate_up, wb_rows dout,
                                  wb_rows dgate_up) {
    operand list[] = {{.name = "gate_up", .rows = gate_up, .n = n * 2 * F, .use = READ},
                      {.name = "dout", .rows = dout, .n = n * F, .use = READ},
                      {.name = "dgate_up", .rows = dgate_up, .n = n * 2 * F, .use = WRITE}};
    WB_TRY(WB_CPU(operands_open)(dev, "swiglu_backward", list, 3));
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n *F * 8))
    for (int64_t row = 0; row < n; row++) {
        const float *gate = list[0].f32 + row * 2 * F, *up = gate + F, *d = list[1].f32 + row * F;
        float *dgate = list[2].f32 + row * 2 * F, *dup = dgate + F;
        WB_INDEPENDENT
        for (int64_t i = 0; i < F; i++) {
            float x = gate[i], s = wb_sigmoid(x), silu = x * s;
            float slope = fmaf(silu, 1.0f - s, s), u = up[i];
            dgate[i] = d[i] * u * slope;
            dup[i] = d[i] * silu;
        }
    }
    WB_CPU(operands_close)(dev, list, 3);
    return WB_OK;
}

/* ---- elements -------------------------------------------------------------------------------- */

/* Elements of one task. */
enum { ELEMENTS = 8192 };

wb_status WB_CPU(add)(wb_device *dev, int64_t n, wb_rows x, wb_rows y) {
    operand list[] = {{.name = "x", .rows = x, .n = n, .use = READ},
                      {.name = "y", .rows = y, .n = n, .use = UPDATE}};
    WB_TRY(WB_CPU(operands_open)(dev, "add", list, 2));
    const float *from = list[0].f32;
    float *to = list[1].f32;
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n))
    for (int64_t begin = 0; begin < n; begin += ELEMENTS) {
        int64_t end = min64(begin + ELEMENTS, n);
        WB_INDEPENDENT
        for (int64_t i = begin; i < end; i++) to[i] += from[i];
    }
    WB_CPU(operands_close)(dev, list, 2);
    return WB_OK;
}

wb_status WB_CPU(bias_forward)(wb_device *dev, int64_t n, int64_t width, const float *b, wb_rows y) {
    operand list[] = {{.name = "y", .rows = y, .n = n * width, .use = UPDATE}};
    WB_TRY(WB_CPU(operands_open)(dev, "bias_forward", list, 1));
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n *width))
    for (int64_t row = 0; row < n; row++) {
        float *to = list[0].f32 + row * width;
        WB_INDEPENDENT
        for (int64_t i = 0; i < width; i++) to[i] += b[i];
    }
    WB_CPU(operands_close)(dev, list, 1);
    return WB_OK;
}

wb_status WB_CPU(bias_backward)(wb_device *dev, int64_t n, int64_t width, wb_rows dy, float *db) {
    operand list[] = {{.name = "dy", .rows = dy, .n = n * width, .use = READ}};
    WB_TRY(WB_CPU(operands_open)(dev, "bias_backward", list, 1));
    const float *d = list[0].f32;
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n *width))
    for (int64_t begin = 0; begin < width; begin += COLUMNS) {
        int64_t end = min64(begin + COLUMNS, width);
        for (int64_t row = 0; row < n; row++) {
            WB_INDEPENDENT
            for (int64_t i = begin; i < end; i++) db[i] += d[row * width + i];
        }
    }
    return WB_OK;
}

wb_status WB_CPU(clamp)(wb_device *dev, int64_t n, float limit, wb_rows x) {
    operand list[] = {{.name = "x", .rows = x, .n = n, .use = UPDATE}};
    WB_TRY(WB_CPU(operands_open)(dev, "clamp", list, 1));
    float *y = list[0].f32;
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n))
    for (int64_t begin = 0; begin < n; begin += ELEMENTS)
        row_clamp(min64(ELEMENTS, n - begin), limit, y + begin);
    WB_CPU(operands_close)(dev, list, 1);
    return WB_OK;
}

wb_status WB_CPU(clamp_backward)(wb_device *dev, int64_t n, float limit, wb_rows x, wb_rows dx) {
    operand list[] = {{.name = "x", .rows = x, .n = n, .use = READ},
                      {.name = "dx", .rows = dx, .n = n, .use = UPDATE}};
    WB_TRY(WB_CPU(operands_open)(dev, "clamp_backward", list, 2));
    const float *from = list[0].f32;
    float *d = list[1].f32;
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n))
    for (int64_t begin = 0; begin < n; begin += ELEMENTS) {
        int64_t end = min64(begin + ELEMENTS, n);
        WB_INDEPENDENT
        for (int64_t i = begin; i < end; i++) d[i] = fabsf(from[i]) > limit ? 0.0f : d[i];
    }
    WB_CPU(operands_close)(dev, list, 2);
    return WB_OK;
}

wb_status WB_CPU(cast)(wb_device *dev, int64_t n, wb_rows from, wb_rows to) {
    WB_TRY(operand_check("cast", "from", from.dtype));
    WB_TRY(operand_check("cast", "to", to.dtype));
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n))
    for (int64_t begin = 0; begin < n; begin += ELEMENTS) {
        int64_t count = min64(ELEMENTS, n - begin);
        const void *source = wb_rows_from(from, begin).data;
        void *target = wb_rows_from(to, begin).data;
        if (from.dtype == to.dtype)
            memmove(target, source, (size_t)count * wb_dtype_size(to.dtype));
        else if (to.dtype == WB_BF16)
            narrow(count, source, target);
        else
            widen(count, source, target);
    }
    return WB_OK;
}
