/* cpu_gated.c - what is multiplied by a function of a gate, element by element: the gated norm of recurrent
 * layers, and the sigmoid gate of attention. Refuses: a gate that a whole row has (cpu_rows.c). */
#include "cpu/cpu_operands.h"
#include "cpu/cpu_row.h"

/* ---- the gated norm -------------------------------------------------------------------------- */

wb_status WB_CPU(gated_rmsnorm_forward)(wb_device *dev, int64_t n, int64_t width, wb_rows x, wb_norm norm,
                                        wb_rows z, wb_rows y) {
    operand list[] = {{.name = "x", .rows = x, .n = n * width, .use = READ},
                      {.name = "z", .rows = z, .n = n * width, .use = READ},
                      {.name = "y", .rows = y, .n = n * width, .use = WRITE}};
    WB_TRY(WB_CPU(operands_open)(dev, "gated_rmsnorm_forward", list, 3));
    const float offset = wb_norm_offset(norm);
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n *width * 8))
    for (int64_t row = 0; row < n; row++) {
        const float *from = list[0].f32 + row * width, *gate = list[1].f32 + row * width;
        const float r = row_inverse_rms(from, width, norm.eps);
        float *to = list[2].f32 + row * width;
        WB_INDEPENDENT
        for (int64_t i = 0; i < width; i++) to[i] = from[i] * r * (norm.w[i] + offset) * wb_silu(gate[i]);
    }
    WB_CPU(operands_close)(dev, list, 3);
    return WB_OK;
}

/* d: dy, which becomes the gradient of the norm, dy silu(z). dz (=) dy norm(x) silu'(z), may be z. */
static void gate_backward(int64_t width, const float *x, wb_norm norm, float r, const float *z,
                          const float *dy, float *d, float *dz) {
    const float offset = wb_norm_offset(norm);
    WB_INDEPENDENT
    for (int64_t i = 0; i < width; i++) {
        const float s = wb_sigmoid(z[i]), silu = z[i] * s, slope = fmaf(silu, 1.0f - s, s), gradient = dy[i];
        dz[i] = gradient * (x[i] * r * (norm.w[i] + offset)) * slope;
        d[i] = gradient * silu;
    }
}

/* Columns of one task where rows are summed: a cache line. */
enum { COLUMNS = 16 };

/* dw[begin, end) += sum over rows of dy silu(z) x r, ascending */
static void gated_norm_columns(int64_t n, int64_t width, int64_t begin, int64_t end, const operand *list,
                               const float *r, float *dw) {
    for (int64_t row = 0; row < n; row++) {
        const float *x = list[0].f32 + row * width, *z = list[1].f32 + row * width,
                    *dy = list[2].f32 + row * width;
        WB_INDEPENDENT
        for (int64_t i = begin; i < end; i++) dw[i] = fmaf(dy[i] * wb_silu(z[i]), x[i] * r[row], dw[i]);
    }
}

wb_status WB_CPU(gated_rmsnorm_backward)(wb_device *dev, int64_t n, int64_t width, wb_rows x, wb_norm norm,
                                         wb_rows z, wb_rows dy, wb_rows dx, wb_rows dz, float *dw) {
    operand list[] = {{.name = "x", .rows = x, .n = n * width, .use = READ},
                      {.name = "z", .rows = z, .n = n * width, .use = READ},
                      {.name = "dy", .rows = dy, .n = n * width, .use = READ},
                      {.name = "dx", .rows = dx, .n = n * width, .use = WRITE},
                      {.name = "dz", .rows = dz, .n = n * width, .use = WRITE}};
    void *shared = NULL;
    WB_TRY(wb_cpu_shared_reserve(dev, (size_t)n * sizeof(float), &shared));
    WB_TRY(WB_CPU(operands_open)(dev, "gated_rmsnorm_backward", list, 5));
    float *r = shared;
    const int threads = wb_cpu_threads(dev, n * width * 8);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < n; row++)
        r[row] = row_inverse_rms(list[0].f32 + row * width, width, norm.eps);
    if (dw) { /* before dx and dz, which may be dy and z */
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int64_t begin = 0; begin < width; begin += COLUMNS)
            gated_norm_columns(n, width, begin, begin + COLUMNS < width ? begin + COLUMNS : width, list, r,
                               dw);
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < n; row++) {
        const float *from = list[0].f32 + row * width;
        float *to = list[3].f32 + row * width;
        gate_backward(width, from, norm, r[row], list[1].f32 + row * width, list[2].f32 + row * width, to,
                      list[4].f32 + row * width);
        row_norm_backward(width, from, norm, r[row], to, to);
    }
    WB_CPU(operands_close)(dev, list, 5);
    return WB_OK;
}

/* ---- the sigmoid gate ------------------------------------------------------------------------ */

/* Elements that are f32 at a time. */
enum { PIECE = 256 };

static int64_t piece_of(int64_t width, int64_t first) {
    return width - first < PIECE ? width - first : PIECE;
}

wb_status WB_CPU(sigmoid_gate_forward)(wb_device *dev, int64_t n, int64_t width, wb_rows x, wb_rows gate,
                                       int64_t gate_stride, wb_rows y) {
    WB_TRY(operand_check("sigmoid_gate_forward", "x", x.dtype));
    WB_TRY(operand_check_like("sigmoid_gate_forward", "gate", gate.dtype, "x", x.dtype));
    WB_TRY(operand_check_like("sigmoid_gate_forward", "y", y.dtype, "x", x.dtype));
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n *width * 8))
    for (int64_t row = 0; row < n; row++)
        for (int64_t first = 0; first < width; first += PIECE) {
            const int64_t count = piece_of(width, first);
            float from[PIECE], g[PIECE];
            rows_load(x, row * width + first, count, from);
            rows_load(gate, row * gate_stride + first, count, g);
            for (int64_t i = 0; i < count; i++) from[i] *= wb_sigmoid(g[i]);
            rows_store(count, from, y, row * width + first);
        }
    return WB_OK;
}

/* dgate = dy x s (1 - s), dx = dy s, s = sigmoid(gate) */
wb_status WB_CPU(sigmoid_gate_backward)(wb_device *dev, int64_t n, int64_t width, wb_rows x, wb_rows gate,
                                        int64_t gate_stride, wb_rows dy, wb_rows dx, wb_rows dgate) {
    WB_TRY(operand_check("sigmoid_gate_backward", "x", x.dtype));
    WB_TRY(operand_check_like("sigmoid_gate_backward", "gate", gate.dtype, "x", x.dtype));
    WB_TRY(operand_check_like("sigmoid_gate_backward", "dy", dy.dtype, "x", x.dtype));
    WB_TRY(operand_check_like("sigmoid_gate_backward", "dx", dx.dtype, "x", x.dtype));
    WB_TRY(operand_check_like("sigmoid_gate_backward", "dgate", dgate.dtype, "x", x.dtype));
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n *width * 8))
    for (int64_t row = 0; row < n; row++)
        for (int64_t first = 0; first < width; first += PIECE) {
            const int64_t count = piece_of(width, first);
            float from[PIECE], g[PIECE], d[PIECE];
            rows_load(x, row * width + first, count, from);
            rows_load(gate, row * gate_stride + first, count, g);
            rows_load(dy, row * width + first, count, d);
            for (int64_t i = 0; i < count; i++) {
                const float s = wb_sigmoid(g[i]), gradient = d[i];
                d[i] = gradient * s;
                g[i] = gradient * from[i] * (s * (1.0f - s));
            }
            rows_store(count, d, dx, row * width + first);
            rows_store(count, g, dgate, row * gate_stride + first);
        }
    return WB_OK;
}
