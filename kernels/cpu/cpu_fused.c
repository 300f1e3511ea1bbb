/* cpu_fused.c - ops that make several steps of a row at once: the residual sum with the norm behind it, and
 * what lies between the projections of attention and attention itself.
 *
 * Bits are those of the ops that make one step each: what these write to bf16 memory between two steps is
 * rounded here at the same place. Refuses: steps that look at several rows. */
#include "cpu/cpu_operands.h"
#include "cpu/cpu_row.h"
#include "fused_check.h"

/* As if it had been written to memory of `dtype` and read again. */
static void round_row(wb_dtype dtype, int64_t n, float *x) {
    if (dtype == WB_F32) return;
    for (int64_t i = 0; i < n; i++) x[i] = wb_bf16_to_f32(wb_f32_to_bf16(x[i]));
}

wb_status WB_CPU(add_rmsnorm)(wb_device *dev, int64_t n, int64_t width, wb_rows x, wb_rows y, wb_norm norm,
                              wb_rows normed) {
    operand list[] = {{.name = "x", .rows = x, .n = n * width, .use = READ},
                      {.name = "y", .rows = y, .n = n * width, .use = UPDATE},
                      {.name = "normed", .rows = normed, .n = n * width, .use = WRITE}};
    WB_TRY(WB_CPU(operands_open)(dev, "add_rmsnorm", list, 3));
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, n *width))
    for (int64_t row = 0; row < n; row++) {
        const float *from = list[0].f32 + row * width;
        float *to = list[1].f32 + row * width;
        WB_INDEPENDENT
        for (int64_t i = 0; i < width; i++) to[i] += from[i];
        round_row(y.dtype, width, to);
        row_norm(width, to, norm, list[2].f32 + row * width);
    }
    WB_CPU(operands_close)(dev, list, 3);
    return WB_OK;
}

/* ---- q, k and v ------------------------------------------------------------------------------------ */

/* What q, k or v of a token goes through. */
typedef struct heads {
    float *x; /* [T, n * head_dim] */
    wb_dtype dtype;
    int64_t n;
    wb_norm norm; /* w NULL: none */
    bool rotates;
    wb_rows cache; /* data NULL: none */
} heads;

static void norm_heads(const wb_attention_inputs *a, const heads *h, float *x) {
    const int64_t width = h->n * a->head_dim, of_norm = a->norm_whole ? width : a->head_dim;
    for (int64_t i = 0; i < width; i += of_norm) row_norm(of_norm, x + i, h->norm, x + i);
    round_row(h->dtype, width, x);
}

static void rotate_heads(const wb_attention_inputs *a, const heads *h, int64_t t, float *x) {
    const int64_t half = a->rot_dim / 2, angle = a->pos[t] * half;
    for (int64_t i = 0; i < h->n; i++, x += a->head_dim)
        row_rotate(half, a->cos_table + angle, a->sin_table + angle, 1.0f, x, x + half);
}

static void prepare_token(const wb_attention_inputs *a, const heads *h, int64_t t) {
    const int64_t width = h->n * a->head_dim;
    float *x = h->x + t * width;
    if (h->norm.w) norm_heads(a, h, x);
    if (a->clip > 0) {
        row_clamp(width, a->clip, x);
        round_row(h->dtype, width, x);
    }
    if (h->rotates) rotate_heads(a, h, t, x);
    if (h->cache.data && a->rows[t] >= 0) rows_store(width, x, h->cache, a->rows[t] * width);
}

wb_status WB_CPU(attention_prepare)(wb_device *dev, const wb_attention_inputs *a) {
    const int64_t T = a->T, q = (int64_t)a->n_heads * a->head_dim, kv = (int64_t)a->n_kv_heads * a->head_dim;
    operand list[] = {{.name = "q", .rows = a->q, .n = T * q, .use = UPDATE},
                      {.name = "k", .rows = a->k, .n = T * kv, .use = UPDATE},
                      {.name = "v", .rows = a->v, .n = T * kv, .use = UPDATE}};
    const wb_rows none = {0};
    const bool writes = a->rows != NULL;
    WB_TRY(fused_check_inputs(a));
    WB_TRY(WB_CPU(operands_open)(dev, "attention_prepare", list, 3));
    const heads parts[] = {
        {list[0].f32, a->q.dtype, a->n_heads, a->q_norm, true, none},
        {list[1].f32, a->k.dtype, a->n_kv_heads, a->k_norm, true, writes ? a->k_cache : none},
        {list[2].f32, a->v.dtype, a->n_kv_heads, (wb_norm){0}, false, writes ? a->v_cache : none},
    };
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *(q + 2 * kv)))
    for (int64_t t = 0; t < T; t++)
        for (int i = 0; i < 3; i++) prepare_token(a, &parts[i], t);
    WB_CPU(operands_close)(dev, list, 3);
    return WB_OK;
}
