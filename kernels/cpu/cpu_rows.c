/* cpu_rows.c - ops on rows and elements: embedding, RMSNorm, rotary embedding, cache writes, SwiGLU,
 * casts.
 *
 * Each row (or element) is computed alone; gradients of shared weights sum over rows ascending, the
 * columns being shared out among the threads. Refuses: products of matrices, routing.
 */
#include "cpu/cpu_lanes.h"

static bool is_float_type(wb_dtype dtype) {
    return dtype == WB_F32 || dtype == WB_BF16;
}

static wb_status bad_dtype(const char *op, wb_dtype dtype) {
    return wb_fail(WB_INVALID_ARGUMENT, "%s: expected f32 or bf16, found %s", op, wb_dtype_name(dtype));
}

static void widen(int64_t n, const uint16_t *restrict from, float *restrict to) {
    for (int64_t i = 0; i < n; i++) to[i] = wb_bf16_to_f32(from[i]);
}

static void narrow(int64_t n, const float *restrict from, uint16_t *restrict to) {
    for (int64_t i = 0; i < n; i++) to[i] = wb_f32_to_bf16(from[i]);
}

/* ---- embedding ------------------------------------------------------------------------------------ */

wb_status WB_CPU(embed_forward)(wb_device *dev, int64_t T, int64_t H, const int32_t *tokens,
                                const void *table, wb_dtype table_dtype, float *y) {
    if (!is_float_type(table_dtype)) return bad_dtype("embed_forward: table", table_dtype);
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *H))
    for (int64_t t = 0; t < T; t++) {
        int64_t from = tokens[t] * H;
        if (table_dtype == WB_F32)
            memcpy(y + t * H, (const float *)table + from, (size_t)H * sizeof(float));
        else
            widen(H, (const uint16_t *)table + from, y + t * H);
    }
    return WB_OK;
}

/* Columns of one task where rows are summed: a cache line. */
enum { COLUMNS = 16 };

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

wb_status WB_CPU(embed_backward)(wb_device *dev, int64_t T, int64_t H, const int32_t *tokens, const float *dy,
                                 float *dtable) {
    const int64_t block = 64;
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *H))
    for (int64_t begin = 0; begin < H; begin += block) {
        int64_t end = min64(begin + block, H);
        for (int64_t t = 0; t < T; t++) {
            float *to = dtable + tokens[t] * H;
            WB_INDEPENDENT
            for (int64_t i = begin; i < end; i++) to[i] += dy[t * H + i];
        }
    }
    return WB_OK;
}

/* ---- RMSNorm --------------------------------------------------------------------------------- */

static float inverse_rms(const float *x, int64_t width, float eps) {
    float mean = row_dot(x, x, width) / (float)width;
    return 1.0f / sqrtf(mean + eps);
}

wb_status WB_CPU(rmsnorm_forward)(wb_device *dev, int64_t n, int64_t width, const float *x, const float *w,
                                  float eps, float *y) {
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n *width))
    for (int64_t row = 0; row < n; row++) {
        const float *from = x + row * width;
        float *to = y + row * width;
        float r = inverse_rms(from, width, eps);
        WB_INDEPENDENT
        for (int64_t i = 0; i < width; i++) to[i] = from[i] * r * w[i];
    }
    return WB_OK;
}

/* dx = r w dy - x r^3 <w dy, x> / width */
static void rmsnorm_backward_row(int64_t width, const float *x, const float *w, float r, const float *dy,
                                 float *dx) {
    float sum[WB_LANES] = {0.0f};
    int64_t i = 0;
    for (; i + WB_LANES <= width; i += WB_LANES)
        for (int lane = 0; lane < WB_LANES; lane++)
            sum[lane] = fmaf(w[i + lane] * dy[i + lane], x[i + lane], sum[lane]);
    for (int lane = 0; i < width; i++, lane++) sum[lane] = fmaf(w[i] * dy[i], x[i], sum[lane]);
    float shrink = r * r * r * wb_lanes_sum(sum) / (float)width;
    WB_INDEPENDENT
    for (i = 0; i < width; i++) dx[i] = fmaf(-shrink, x[i], r * w[i] * dy[i]);
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

wb_status WB_CPU(rmsnorm_backward)(wb_device *dev, int64_t n, int64_t width, const float *x, const float *w,
                                   float eps, const float *dy, float *dx, float *dw) {
    void *shared = NULL;
    WB_TRY(wb_cpu_shared_reserve(dev, (size_t)n * sizeof(float), &shared));
    float *r = shared;
    int threads = wb_cpu_threads(dev, n * width);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < n; row++) r[row] = inverse_rms(x + row * width, width, eps);
    if (dw) { /* before dx, which may be dy */
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int64_t begin = 0; begin < width; begin += COLUMNS)
            rmsnorm_backward_columns(n, width, begin, min64(begin + COLUMNS, width), x, dy, r, dw);
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < n; row++)
        rmsnorm_backward_row(width, x + row * width, w, r[row], dy + row * width, dx + row * width);
    return WB_OK;
}

/* ---- rotary embedding and the cache ---------------------------------------------------------- */

static void rotate_head(int64_t half, const float *restrict c, const float *restrict s, float sign,
                        float *restrict low, float *restrict high) {
    for (int64_t i = 0; i < half; i++) {
        float sine = sign * s[i], a = low[i], b = high[i];
        low[i] = fmaf(a, c[i], -(b * sine));
        high[i] = fmaf(b, c[i], a * sine);
    }
}

wb_status WB_CPU(rope)(wb_device *dev, int64_t T, int32_t n_heads, int32_t head_dim, int32_t rot_dim,
                       const int32_t *pos, const float *cos_table, const float *sin_table, bool inverse,
                       float *x) {
    if (rot_dim < 0 || rot_dim > head_dim || rot_dim % 2 != 0)
        return wb_fail(WB_INVALID_ARGUMENT, "rope: rot_dim: expected an even number up to %d, found %d",
                       head_dim, rot_dim);
    int64_t half = rot_dim / 2;
    float sign = inverse ? -1.0f : 1.0f;
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *n_heads *rot_dim))
    for (int64_t t = 0; t < T; t++)
        for (int64_t head = 0; head < n_heads; head++) {
            float *low = x + (t * n_heads + head) * head_dim;
            rotate_head(half, cos_table + pos[t] * half, sin_table + pos[t] * half, sign, low, low + half);
        }
    return WB_OK;
}

wb_status WB_CPU(kv_write)(wb_device *dev, int64_t T, int64_t width, const float *x, const int64_t *rows,
                           void *cache, wb_dtype cache_dtype) {
    if (!is_float_type(cache_dtype)) return bad_dtype("kv_write: cache", cache_dtype);
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *width))
    for (int64_t t = 0; t < T; t++) {
        if (cache_dtype == WB_F32)
            memcpy((float *)cache + rows[t] * width, x + t * width, (size_t)width * sizeof(float));
        else
            narrow(width, x + t * width, (uint16_t *)cache + rows[t] * width);
    }
    return WB_OK;
}

/* ---- SwiGLU ---------------------------------------------------------------------------------- */

wb_status WB_CPU(swiglu_forward)(wb_device *dev, int64_t n, int64_t F, const float *gate_up, float *out) {
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n *F * 8))
    for (int64_t row = 0; row < n; row++) {
        const float *gate = gate_up + row * 2 * F, *up = gate + F;
        float *to = out + row * F;
        WB_INDEPENDENT
        for (int64_t i = 0; i < F; i++) to[i] = wb_silu(gate[i]) * up[i];
    }
    return WB_OK;
}

/* silu'(x) = s + x s (1 - s), s = sigmoid(x) */
wb_status WB_CPU(swiglu_backward)(wb_device *dev, int64_t n, int64_t F, const float *gate_up,
                                  const float *dout, float *dgate_up) {
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n *F * 8))
    for (int64_t row = 0; row < n; row++) {
        const float *gate = gate_up + row * 2 * F, *up = gate + F, *d = dout + row * F;
        float *dgate = dgate_up + row * 2 * F, *dup = dgate + F;
        WB_INDEPENDENT
        for (int64_t i = 0; i < F; i++) {
            float x = gate[i], s = wb_sigmoid(x), silu = x * s;
            float slope = fmaf(silu, 1.0f - s, s), u = up[i];
            dgate[i] = d[i] * u * slope;
            dup[i] = d[i] * silu;
        }
    }
    return WB_OK;
}

/* ---- elements -------------------------------------------------------------------------------- */

/* Elements of one task. */
enum { ELEMENTS = 8192 };

wb_status WB_CPU(add)(wb_device *dev, int64_t n, const float *x, float *y) {
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n))
    for (int64_t begin = 0; begin < n; begin += ELEMENTS) {
        int64_t end = min64(begin + ELEMENTS, n);
        WB_INDEPENDENT
        for (int64_t i = begin; i < end; i++) y[i] += x[i];
    }
    return WB_OK;
}

wb_status WB_CPU(bias_forward)(wb_device *dev, int64_t n, int64_t width, const float *b, float *y) {
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n *width))
    for (int64_t row = 0; row < n; row++) {
        float *to = y + row * width;
        WB_INDEPENDENT
        for (int64_t i = 0; i < width; i++) to[i] += b[i];
    }
    return WB_OK;
}

wb_status WB_CPU(bias_backward)(wb_device *dev, int64_t n, int64_t width, const float *dy, float *db) {
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n *width))
    for (int64_t begin = 0; begin < width; begin += COLUMNS) {
        int64_t end = min64(begin + COLUMNS, width);
        for (int64_t row = 0; row < n; row++) {
            WB_INDEPENDENT
            for (int64_t i = begin; i < end; i++) db[i] += dy[row * width + i];
        }
    }
    return WB_OK;
}

wb_status WB_CPU(clamp)(wb_device *dev, int64_t n, float limit, float *x) {
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n))
    for (int64_t begin = 0; begin < n; begin += ELEMENTS) {
        int64_t end = min64(begin + ELEMENTS, n);
        for (int64_t i = begin; i < end; i++) {
            float above = x[i] < -limit ? -limit : x[i];
            x[i] = above > limit ? limit : above;
        }
    }
    return WB_OK;
}

wb_status WB_CPU(clamp_backward)(wb_device *dev, int64_t n, float limit, const float *x, float *dx) {
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n))
    for (int64_t begin = 0; begin < n; begin += ELEMENTS) {
        int64_t end = min64(begin + ELEMENTS, n);
        WB_INDEPENDENT
        for (int64_t i = begin; i < end; i++) dx[i] = fabsf(x[i]) > limit ? 0.0f : dx[i];
    }
    return WB_OK;
}

wb_status WB_CPU(cast)(wb_device *dev, int64_t n, const void *from, wb_dtype from_dtype, void *to,
                       wb_dtype to_dtype) {
    if (!is_float_type(from_dtype)) return bad_dtype("cast: from", from_dtype);
    if (!is_float_type(to_dtype)) return bad_dtype("cast: to", to_dtype);
    size_t from_size = wb_dtype_size(from_dtype), to_size = wb_dtype_size(to_dtype);
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n))
    for (int64_t begin = 0; begin < n; begin += ELEMENTS) {
        int64_t count = min64(ELEMENTS, n - begin);
        const void *source = (const char *)from + (size_t)begin * from_size;
        void *target = (char *)to + (size_t)begin * to_size;
        if (from_dtype == to_dtype)
            memmove(target, source, (size_t)count * to_size);
        else if (to_dtype == WB_BF16)
            narrow(count, source, target);
        else
            widen(count, source, target);
    }
    return WB_OK;
}
