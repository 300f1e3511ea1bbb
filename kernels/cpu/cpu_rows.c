/* cpu_rows.c - ops on rows: embedding, RMSNorm, rotary embedding, sums through a gate, and moving rows.
 *
 * Each row is computed alone; gradients of shared weights sum over rows ascending, the columns being shared
 * out among the threads. Refuses: products of matrices, routing, ops on elements (cpu_elements.c).
 */
#include "cpu/cpu_operands.h"
#include "cpu/cpu_row.h"
#include "device_fault.h"
#include "rope_check.h"

/* ---- embedding ------------------------------------------------------------------------------------ */

static wb_status check_tokens(int64_t T, const int32_t *tokens, int64_t V) {
    for (int64_t t = 0; t < T; t++) {
        const wb_fault fault = {.kind = WB_FAULT_TOKEN,
                                .op = WB_OP_embed_forward,
                                .row = t,
                                .limit = (int32_t)V,
                                .found = tokens[t]};
        if (tokens[t] < 0 || tokens[t] >= V) return wb_fault_report(&fault);
    }
    return WB_OK;
}

wb_status WB_CPU(embed_forward)(wb_device *dev, int64_t T, const int32_t *tokens, wb_weight table,
                                wb_rows y) {
    int64_t H = table.cols;
    operand list[] = {{.name = "y", .rows = y, .n = T * H, .use = WRITE}};
    WB_TRY(operand_check("embed_forward", "table", table.dtype));
    WB_TRY(operand_check_rows("embed_forward", table.packed));
    WB_TRY(check_tokens(T, tokens, table.rows));
    WB_TRY(WB_CPU(operands_open)(dev, "embed_forward", list, 1));
    wb_rows from = {table.data, table.dtype};
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *H))
    for (int64_t t = 0; t < T; t++) rows_load(from, tokens[t] * H, H, list[0].f32 + t * H);
    WB_CPU(operands_close)(dev, list, 1);
    return WB_OK;
}

/* Columns of one task where rows are summed: a cache line. */
enum { COLUMNS = 16 };

wb_status WB_CPU(embed_backward)(wb_device *dev, int64_t T, int64_t H, const int32_t *tokens, wb_rows dy,
                                 float *dtable) {
    const int64_t block = 64;
    operand list[] = {{.name = "dy", .rows = dy, .n = T * H, .use = READ}};
    WB_TRY(WB_CPU(operands_open)(dev, "embed_backward", list, 1));
    const float *d = list[0].f32;
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *H))
    for (int64_t begin = 0; begin < H; begin += block) {
        int64_t end = min64(begin + block, H);
        for (int64_t t = 0; t < T; t++) {
            float *to = dtable + tokens[t] * H;
            WB_INDEPENDENT
            for (int64_t i = begin; i < end; i++) to[i] += d[t * H + i];
        }
    }
    return WB_OK;
}

/* ---- RMSNorm --------------------------------------------------------------------------------- */

wb_status WB_CPU(rmsnorm_forward)(wb_device *dev, int64_t n, int64_t width, wb_rows x, wb_norm norm,
                                  wb_rows y) {
    operand list[] = {{.name = "x", .rows = x, .n = n * width, .use = READ},
                      {.name = "y", .rows = y, .n = n * width, .use = WRITE}};
    WB_TRY(WB_CPU(operands_open)(dev, "rmsnorm_forward", list, 2));
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n *width))
    for (int64_t row = 0; row < n; row++)
        row_norm(width, list[0].f32 + row * width, norm, list[1].f32 + row * width);
    WB_CPU(operands_close)(dev, list, 2);
    return WB_OK;
}

/* dw[begin, end) += sum over rows of dy x r, ascending */
static void rmsnorm_backward_columns(int64_t n, int64_t width, int64_t begin, int64_t end, const float *x,
                                     const float *dy, const float *r, float *dw) {
    float sum[COLUMNS] = {0.0f};
    int64_t count = end - begin;
    memcpy(sum, dw + begin, (size_t)count * sizeof(float));
    for (int64_t row = 0; row < n; row++) {
        const float *x_row = x + row * width + begin, *dy_row = dy + row * width + begin;
        if (count == COLUMNS)
            for (int i = 0; i < COLUMNS; i++) sum[i] = fmaf(dy_row[i], x_row[i] * r[row], sum[i]);
        else
            for (int64_t i = 0; i < count; i++) sum[i] = fmaf(dy_row[i], x_row[i] * r[row], sum[i]);
    }
    memcpy(dw + begin, sum, (size_t)count * sizeof(float));
}

wb_status WB_CPU(rmsnorm_backward)(wb_device *dev, int64_t n, int64_t width, wb_rows x, wb_norm norm,
                                   wb_rows dy, wb_rows dx, float *dw) {
    operand list[] = {{.name = "x", .rows = x, .n = n * width, .use = READ},
                      {.name = "dy", .rows = dy, .n = n * width, .use = READ},
                      {.name = "dx", .rows = dx, .n = n * width, .use = WRITE}};
    void *shared = NULL;
    WB_TRY(wb_cpu_shared_reserve(dev, (size_t)n * sizeof(float), &shared));
    WB_TRY(WB_CPU(operands_open)(dev, "rmsnorm_backward", list, 3));
    const float *from = list[0].f32, *d = list[1].f32;
    float *r = shared, *to = list[2].f32;
    int threads = wb_cpu_threads(dev, n * width);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < n; row++) r[row] = row_inverse_rms(from + row * width, width, norm.eps);
    if (dw) { /* before dx, which may be dy */
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int64_t begin = 0; begin < width; begin += COLUMNS)
            rmsnorm_backward_columns(n, width, begin, min64(begin + COLUMNS, width), from, d, r, dw);
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < n; row++)
        row_norm_backward(width, from + row * width, norm, r[row], d + row * width, to + row * width);
    WB_CPU(operands_close)(dev, list, 3);
    return WB_OK;
}

/* ---- rotary embedding and the cache ---------------------------------------------------------- */

wb_status WB_CPU(rope)(wb_device *dev, const wb_rope *args) {
    WB_TRY(rope_check(args));
    operand list[] = {
        {.name = "x", .rows = args->x, .n = args->T * args->n_heads * args->head_dim, .use = UPDATE}};
    WB_TRY(WB_CPU(operands_open)(dev, "rope", list, 1));
    const int64_t half = args->rot_dim / 2, n_heads = args->n_heads;
    const float sign = args->inverse ? -1.0f : 1.0f;
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, args->T *n_heads * args->rot_dim))
    for (int64_t t = 0; t < args->T; t++)
        for (int64_t head = 0; head < n_heads; head++) {
            float *x = list[0].f32 + (t * n_heads + head) * args->head_dim + args->first;
            const int64_t angles = rope_position(args, t) * half;
            const float *c = args->cos_table + angles, *s = args->sin_table + angles;
            if (args->interleaved)
                row_rotate_pairs(half, c, s, sign, x);
            else
                row_rotate(half, c, s, sign, x, x + half);
        }
    WB_CPU(operands_close)(dev, list, 1);
    return WB_OK;
}

/* ---- a gate a row ------------------------------------------------------------------------------ */

wb_status WB_CPU(add_gated_forward)(wb_device *dev, int64_t n, int64_t width, const float *gate, wb_rows x,
                                    wb_rows y) {
    operand list[] = {{.name = "x", .rows = x, .n = n * width, .use = READ},
                      {.name = "y", .rows = y, .n = n * width, .use = UPDATE}};
    WB_TRY(WB_CPU(operands_open)(dev, "add_gated_forward", list, 2));
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n *width))
    for (int64_t row = 0; row < n; row++) {
        const float s = wb_sigmoid(gate[row]), *from = list[0].f32 + row * width;
        float *to = list[1].f32 + row * width;
        WB_INDEPENDENT
        for (int64_t i = 0; i < width; i++) to[i] = fmaf(s, from[i], to[i]);
    }
    WB_CPU(operands_close)(dev, list, 2);
    return WB_OK;
}

wb_status WB_CPU(add_gated_backward)(wb_device *dev, int64_t n, int64_t width, const float *gate, wb_rows x,
                                     wb_rows dy, wb_rows dx, float *dgate) {
    operand list[] = {{.name = "x", .rows = x, .n = n * width, .use = READ},
                      {.name = "dy", .rows = dy, .n = n * width, .use = READ},
                      {.name = "dx", .rows = dx, .n = n * width, .use = WRITE}};
    WB_TRY(WB_CPU(operands_open)(dev, "add_gated_backward", list, 3));
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n *width))
    for (int64_t row = 0; row < n; row++) {
        const float s = wb_sigmoid(gate[row]), *d = list[1].f32 + row * width;
        float *to = list[2].f32 + row * width;
        /* before dx, which may be x */
        dgate[row] = s * (1.0f - s) * row_dot(d, list[0].f32 + row * width, width);
        WB_INDEPENDENT
        for (int64_t i = 0; i < width; i++) to[i] = s * d[i];
    }
    WB_CPU(operands_close)(dev, list, 3);
    return WB_OK;
}

/* ---- moving rows ------------------------------------------------------------------------------ */

wb_status WB_CPU(gather_rows)(wb_device *dev, int64_t n, int64_t width, const int32_t *index, wb_rows in,
                              wb_rows out) {
    WB_TRY(operand_check("gather_rows", "in", in.dtype));
    WB_TRY(operand_check_like("gather_rows", "out", out.dtype, "in", in.dtype));
    int64_t bytes = width * (int64_t)wb_dtype_size(in.dtype);
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n *width))
    for (int64_t i = 0; i < n; i++)
        memcpy((char *)out.data + i * bytes, (const char *)in.data + index[i] * bytes, (size_t)bytes);
    return WB_OK;
}

wb_status WB_CPU(scatter_rows)(wb_device *dev, int64_t n, int64_t width, const int32_t *index, wb_rows in,
                               wb_rows out) {
    WB_TRY(operand_check("scatter_rows", "in", in.dtype));
    WB_TRY(operand_check_like("scatter_rows", "out", out.dtype, "in", in.dtype));
    int64_t bytes = width * (int64_t)wb_dtype_size(in.dtype);
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n *width))
    for (int64_t i = 0; i < n; i++)
        memcpy((char *)out.data + index[i] * bytes, (const char *)in.data + i * bytes, (size_t)bytes);
    return WB_OK;
}

wb_status WB_CPU(copy_columns)(wb_device *dev, int64_t n, int64_t width, wb_rows from, int64_t from_stride,
                               wb_rows to, int64_t to_stride) {
    WB_TRY(operand_check("copy_columns", "from", from.dtype));
    WB_TRY(operand_check_like("copy_columns", "to", to.dtype, "from", from.dtype));
    const int64_t size = (int64_t)wb_dtype_size(from.dtype);
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n *width))
    for (int64_t i = 0; i < n; i++)
        memcpy((char *)to.data + i * to_stride * size, (const char *)from.data + i * from_stride * size,
               (size_t)(width * size));
    return WB_OK;
}

wb_status WB_CPU(copy_heads)(wb_device *dev, const wb_copy_heads *a) {
    WB_TRY(operand_check("copy_heads", "from", a->from.dtype));
    WB_TRY(operand_check_like("copy_heads", "to", a->to.dtype, "from", a->from.dtype));
    const int64_t size = (int64_t)wb_dtype_size(a->from.dtype);
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, a->T * a->n_heads * a->width))
    for (int64_t t = 0; t < a->T; t++)
        for (int64_t h = 0; h < a->n_heads; h++)
            memcpy((char *)a->to.data + (t * a->to_row + h * a->to_head) * size,
                   (const char *)a->from.data + (t * a->from_row + h * a->from_head) * size,
                   (size_t)(a->width * size));
    return WB_OK;
}

wb_status WB_CPU(kv_write)(wb_device *dev, int64_t T, int64_t width, wb_rows x, const int64_t *rows,
                           wb_rows cache) {
    WB_TRY(operand_check("kv_write", "x", x.dtype));
    WB_TRY(operand_check("kv_write", "cache", cache.dtype));
    if (x.dtype == WB_BF16) WB_TRY(operand_check_like("kv_write", "cache", cache.dtype, "x", x.dtype));
    int64_t size = (int64_t)wb_dtype_size(x.dtype);
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *width))
    for (int64_t t = 0; t < T; t++) {
        const void *from = (const char *)x.data + t * width * size;
        if (rows[t] < 0) continue;
        if (x.dtype == cache.dtype)
            memcpy((char *)cache.data + rows[t] * width * size, from, (size_t)(width * size));
        else
            narrow(width, from, (uint16_t *)cache.data + rows[t] * width);
    }
    return WB_OK;
}
