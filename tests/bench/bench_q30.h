/* bench_q30.h - what the benchmarks of whole models on a GPU share: the sizes of Qwen3-30B-A3B with some of
 * its layers, what a pass over it computes and reads, and the rate at which the device copies. Included by
 * one program each. */
#ifndef BENCH_Q30_H
#define BENCH_Q30_H

#include "bench/bench_tools.h"
#include "wb_device.h"
#include "wb_model.h"

enum { Q30_LAYERS = 48, Q30_VOCABULARY = 151936 };

/* Dense bf16 products of an H100 or H200 by their data sheet, which no card keeps up. */
static const double peak_flops = 989e12;

static inline wb_config q30_config(int32_t layers) {
    const wb_config config = {
        .family = WB_FAMILY_QWEN3_MOE,
        .hidden_size = 2048,
        .n_layers = layers,
        .n_heads = 32,
        .n_kv_heads = 4,
        .head_dim = 128,
        .expert_width = 768,
        .dense_width = 6144,
        .vocab_size = Q30_VOCABULARY,
        .max_positions = 8192,
        .norm_eps = 1e-6F,
        .rope_theta = 1000000,
        .qk_norm = WB_QK_NORM_PER_HEAD,
        .router = {.type = WB_ROUTER_SOFTMAX_NORM, .n_experts = 128, .top_k = 8, .scale = 1},
        .moe_layer_mask = {((uint64_t)1 << layers) - 1}};
    return config;
}

/* Weights that a token is multiplied by in a layer; those of the head are hidden size * vocabulary. */
static inline double q30_token_weights(const wb_config *c) {
    const double H = c->hidden_size, D = c->head_dim;
    const double attention = H * D * (2.0 * c->n_heads + 2.0 * c->n_kv_heads);
    return attention + H * c->router.n_experts + 3.0 * c->router.top_k * c->expert_width * H;
}

/* Operations of attention, in all layers, for a sequence of n tokens from its start: q k and p v. */
static inline double q30_attention_flops(const wb_config *c, double n) {
    return c->n_layers * 4.0 * c->n_heads * c->head_dim * n * (n + 1) / 2;
}

/* Operations of a forward over whole sequences of n tokens, of which `logits` rows go through the head. */
static inline double q30_forward_flops(const wb_config *c, double sequences, double n, double logits) {
    return sequences * (2 * n * c->n_layers * q30_token_weights(c) + q30_attention_flops(c, n)) +
           2 * logits * c->hidden_size * (double)c->vocab_size;
}

/* Bytes read and written a second by copies of 1 GiB on the device, whose stream is waited for. */
static inline double copy_rate(wb_device *dev) {
    enum { COPIES = 8 };
    const size_t bytes = (size_t)1 << 30;
    void *from = NULL, *to = NULL;
    double best = 0;
    char word;
    must(wb_device_alloc(dev, bytes, &from));
    must(wb_device_alloc(dev, bytes, &to));
    for (int i = 0; i < 4; i++) {
        const double begin = now();
        for (int k = 0; k < COPIES; k++) must(dev->copy(dev, to, from, bytes));
        must(wb_device_download(dev, &word, to, 1));
        const double rate = 2.0 * COPIES * (double)bytes / (now() - begin);
        best = i > 0 && rate > best ? rate : best;
    }
    wb_device_free(dev, from);
    wb_device_free(dev, to);
    return best;
}

static inline int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of values, which it sorts. */
static inline double median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, by_value);
    return values[n / 2];
}

#endif
