/* bench_matmul.c - GFLOP/s of the CPU's matmul op at the shapes of an 89M-parameter qwen3_moe (H 512, F
 * 192, E 32, K 4, vocabulary 8192), against the naive loop with the same bits and, for few rows, the
 * memory rate of the weights.
 *
 * Usage: bench_matmul [THREADS [MILLISECONDS for each shape]]
 */
#include "bench/bench_tools.h"
#include "router_rules.h"
#include "support/usage.h"
#include "wb_device.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* PACKED: a forward whose weights are packed. */
typedef enum kind { FORWARD, PACKED, DGRAD, WGRAD } kind;

typedef struct shape {
    const char *what;
    kind kind;
    int64_t count, T, in, out;
    wb_dtype w_dtype;
} shape;

static const shape shapes[] = {
    {"prefill qkv, 1024 tokens", FORWARD, 1, 1024, 512, 1024, WB_F32},
    {"prefill experts gate_up", FORWARD, 32, 128, 512, 384, WB_F32},
    {"prefill experts gate_up packed", PACKED, 32, 128, 512, 384, WB_F32},
    {"prefill experts down", FORWARD, 32, 128, 192, 512, WB_F32},
    {"prefill experts down packed", PACKED, 32, 128, 192, 512, WB_F32},
    {"prefill experts gate_up bf16", FORWARD, 32, 128, 512, 384, WB_BF16},
    {"prefill lm_head, 1024 tokens", FORWARD, 1, 1024, 512, 8192, WB_F32},
    {"prefill router", FORWARD, 1, 1024, 512, 32, WB_F32},
    {"decode 1 lm_head", FORWARD, 1, 1, 512, 8192, WB_F32},
    {"decode 1 lm_head bf16", FORWARD, 1, 1, 512, 8192, WB_BF16},
    {"decode 1 experts gate_up", FORWARD, 4, 1, 512, 384, WB_F32},
    {"decode 1 experts gate_up packed", PACKED, 4, 1, 512, 384, WB_F32},
    {"decode 1 experts gate_up bf16", FORWARD, 4, 1, 512, 384, WB_BF16},
    {"decode 1 experts down", FORWARD, 4, 1, 192, 512, WB_F32},
    {"decode 1 qkv", FORWARD, 1, 1, 512, 1024, WB_F32},
    {"decode 16 experts gate_up", FORWARD, 28, 2, 512, 384, WB_F32},
    {"decode 16 experts gate_up packed", PACKED, 28, 2, 512, 384, WB_F32},
    {"decode 16 qkv", FORWARD, 1, 16, 512, 1024, WB_F32},
    {"decode 16 lm_head", FORWARD, 1, 16, 512, 8192, WB_F32},
    {"decode 16 experts down", FORWARD, 28, 2, 192, 512, WB_F32},
    {"decode 16 experts down packed", PACKED, 28, 2, 192, 512, WB_F32},
    {"decode 64 experts gate_up", FORWARD, 32, 8, 512, 384, WB_F32},
    {"decode 64 experts gate_up packed", PACKED, 32, 8, 512, 384, WB_F32},
    {"decode 64 experts gate_up bf16", FORWARD, 32, 8, 512, 384, WB_BF16},
    {"decode 64 experts gate_up bf16 packed", PACKED, 32, 8, 512, 384, WB_BF16},
    {"decode 64 experts down", FORWARD, 32, 8, 192, 512, WB_F32},
    {"decode 64 experts down packed", PACKED, 32, 8, 192, 512, WB_F32},
    {"decode 64 qkv", FORWARD, 1, 64, 512, 1024, WB_F32},
    {"16 rows an expert", FORWARD, 32, 16, 512, 384, WB_F32},
    {"24 rows an expert", FORWARD, 32, 24, 512, 384, WB_F32},
    {"36 rows an expert", FORWARD, 32, 36, 512, 384, WB_F32},
    {"36 rows an expert packed", PACKED, 32, 36, 512, 384, WB_F32},
    {"decode 64 lm_head", FORWARD, 1, 64, 512, 8192, WB_F32},
    {"dgrad qkv, 1024 tokens", DGRAD, 1, 1024, 512, 1024, WB_F32},
    {"dgrad experts gate_up", DGRAD, 32, 128, 512, 384, WB_F32},
    {"wgrad qkv, 1024 tokens", WGRAD, 1, 1024, 512, 1024, WB_F32},
    {"wgrad experts gate_up", WGRAD, 32, 128, 512, 384, WB_F32},
    {"wgrad lm_head, 1024 tokens", WGRAD, 1, 1024, 512, 8192, WB_F32},
    {"tiny H 64 qkv, 8 tokens", FORWARD, 1, 8, 64, 128, WB_F32},
    {"tiny experts gate_up", FORWARD, 16, 2, 64, 64, WB_F32},
    {"square 1024", FORWARD, 1, 1024, 1024, 1024, WB_F32},
};

/* Of the device, whose large pages weights have in use. */
static void *filled(wb_device *dev, size_t count, size_t size) {
    void *memory;
    if (dev->mem_alloc(dev, count * size, &memory) != WB_OK) exit(1);
    for (size_t i = 0; i < count * size / 2; i++) /* bf16 of about 1; pairs of them are f32 of about 1 */
        ((uint16_t *)memory)[i] = (uint16_t)(0x3f00 + rand() % 256);
    return memory;
}

/* The op's definition, as a plain loop. */
static void naive(const wb_matmul *p) {
    const float *a = p->a.data;
    float *c = p->c.data;
    for (int64_t m = 0; m < p->M; m++)
        for (int64_t n = 0; n < p->N; n++) {
            float acc = p->accumulate ? c[m * p->ldc + n] : 0.0f;
            for (int64_t k = 0; k < p->K; k++) {
                int64_t at = k * p->b_row + n * p->b_col;
                float b = p->b.dtype == WB_F32 ? ((const float *)p->b.data)[at]
                                               : wb_bf16_to_f32(((const uint16_t *)p->b.data)[at]);
                acc = wb_fma(a[m * p->a_row + k * p->a_col], b, acc);
            }
            c[m * p->ldc + n] = acc;
        }
}

static wb_weight matrix(void *data, wb_dtype dtype, int64_t rows, int64_t cols) {
    return (wb_weight){data, dtype, rows, cols, false};
}

static wb_matmul product(const shape *s, float *x, char *w, float *y, int64_t i) {
    char *wi = w + (size_t)(i * s->in * s->out) * wb_dtype_size(s->w_dtype);
    float *xi = x + i * s->T * s->in, *yi = y + i * s->T * s->out;
    if (s->kind == FORWARD || s->kind == PACKED) {
        wb_weight weight = matrix(wi, s->w_dtype, s->out, s->in);
        weight.packed = s->kind == PACKED;
        return wb_matmul_forward(s->T, wb_f32_rows(xi), weight, wb_f32_rows(yi));
    }
    if (s->kind == DGRAD)
        return wb_matmul_dgrad(s->T, wb_f32_rows(yi), matrix(wi, s->w_dtype, s->out, s->in), wb_f32_rows(xi),
                               false);
    return wb_matmul_wgrad(s->T, s->in, s->out, wb_f32_rows(yi), wb_f32_rows(xi), (float *)(void *)wi);
}

static int bench(wb_device *dev, const shape *s, double budget_s) {
    /* Enough copies of the weights that a call finds them in memory, not in the cache. */
    size_t weight_bytes = (size_t)(s->count * s->in * s->out) * wb_dtype_size(s->w_dtype);
    int64_t copies = s->T < 64 ? 1 + (int64_t)((64u << 20) / weight_bytes) : 1;
    if (s->in <= 64) copies = 1;
    int64_t n = copies * s->count;
    float *x = filled(dev, (size_t)(n * s->T * s->in), sizeof(float)),
          *y = filled(dev, (size_t)(n * s->T * s->out), sizeof(float));
    char *w = filled(dev, (size_t)(n * s->in * s->out), wb_dtype_size(s->w_dtype));
    wb_matmul *list = malloc((size_t)n * sizeof *list);
    if (!list) exit(1);
    for (int64_t i = 0; i < n; i++) list[i] = product(s, x, w, y, i);
    if (dev->matmul(dev, n, list) != WB_OK) return 1;
    double best = 1e30, begin = now(), naive_s;
    int64_t call = 0;
    while (now() - begin < budget_s || call < copies) {
        double t = now();
        if (dev->matmul(dev, s->count, list + call++ % copies * s->count) != WB_OK) return 1;
        t = now() - t;
        best = t < best ? t : best;
    }
    double mean = (now() - begin) / (double)call;
    begin = now();
    naive(list);
    naive_s = now() - begin;
    double flops = 2.0 * (double)s->T * (double)s->in * (double)s->out;
    printf("%-37s %7.1f GF/s (best %7.1f) %6.1f GB/s of weights %9.2f us, naive %5.2f GF/s\n", s->what,
           flops * (double)s->count / mean * 1e-9, flops * (double)s->count / best * 1e-9,
           (double)weight_bytes / mean * 1e-9, mean * 1e6, flops / naive_s * 1e-9);
    dev->mem_free(dev, x), dev->mem_free(dev, y), dev->mem_free(dev, w);
    free(list);
    return 0;
}

int main(int argc, char **argv) {
    wb_device *dev = NULL;
    int code;
    if (usage_ends(argc, argv, 0, 2, "usage: bench_matmul [THREADS [MILLISECONDS for each shape]]\n", &code))
        return code;
    if (wb_device_open_cpu(argc > 1 ? atoi(argv[1]) : 0, &dev) != WB_OK) {
        fprintf(stderr, "%s\n", wb_error_message());
        return 1;
    }
    double budget_s = argc > 2 ? atof(argv[2]) * 1e-3 : 0.2;
    printf("%s, %d threads\n", dev->name, dev->threads);
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        if (bench(dev, shapes + i, budget_s) != 0) return 1;
    wb_device_close(dev);
    return 0;
}
