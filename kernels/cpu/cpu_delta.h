/* cpu_delta.h - a token of a gated delta rule in one head, which the forward and the backward, that computes
 * it again, share. */
#ifndef WB_CPU_DELTA_H
#define WB_CPU_DELTA_H

#include "cpu/cpu_recurrent.h"
#include "delta_rules.h"

/* Queries and keys of one token and key head: divided by their lengths, and the query scaled. */
typedef struct delta_keys {
    float *q, *k;                      /* [key_dim] */
    float inverse_q, inverse_k, scale; /* what they were multiplied by */
} delta_keys;

static inline void delta_load_keys(const wb_gated_delta *a, int64_t t, int64_t key_head, delta_keys *keys) {
    const int64_t dim = a->heads.key_dim;
    rows_load(a->qkv, wb_delta_query_at(a->heads, t, key_head), dim, keys->q);
    rows_load(a->qkv, wb_delta_key_at(a->heads, t, key_head), dim, keys->k);
    keys->inverse_q = wb_delta_inverse_length(row_dot(keys->q, keys->q, dim));
    keys->inverse_k = wb_delta_inverse_length(row_dot(keys->k, keys->k, dim));
    keys->scale = wb_delta_query_scale(a->heads.key_dim);
    for (int64_t i = 0; i < dim; i++) {
        keys->q[i] = keys->q[i] * keys->inverse_q * keys->scale;
        keys->k[i] = keys->k[i] * keys->inverse_k;
    }
}

/* exp(g) and beta of a token's head. */
typedef struct delta_gates {
    float decay, beta;
} delta_gates;

static inline delta_gates delta_load_gates(const wb_gated_delta *args, int64_t t, int64_t head) {
    const int64_t at = t * args->heads.n_value + head;
    float b, a;
    rows_load(args->b, at, 1, &b);
    rows_load(args->a, at, 1, &a);
    return (delta_gates){wb_expf(wb_delta_log_decay(args->A_log[head], args->dt_bias[head], a)),
                         wb_sigmoid(b)};
}

/* A row of S^T, that of one value: to (=) decay * from, which may be the same. Returns its product with k. */
static inline float delta_fade(int64_t dim, float decay, const float *k, const float *from, float *to) {
    const lanes all = lanes_set(decay);
    lanes acc = lanes_set(0.0f);
    int64_t i = 0;
    for (; i + WB_LANES <= dim; i += WB_LANES) {
        const lanes faded = lanes_mul(all, lanes_load(from + i));
        lanes_store(to + i, faded);
        acc = lanes_fma(faded, lanes_load(k + i), acc);
    }
    for (int64_t rest = i; rest < dim; rest++) to[rest] = decay * from[rest];
    return lanes_sum_rest(acc, to + i, k + i, dim - i);
}

/* row += k d. Returns its product with q. */
static inline float delta_learn(int64_t dim, float d, const float *k, const float *q, float *row) {
    const lanes all = lanes_set(d);
    lanes acc = lanes_set(0.0f);
    int64_t i = 0;
    for (; i + WB_LANES <= dim; i += WB_LANES) {
        const lanes learnt = lanes_fma(lanes_load(k + i), all, lanes_load(row + i));
        lanes_store(row + i, learnt);
        acc = lanes_fma(learnt, lanes_load(q + i), acc);
    }
    for (int64_t rest = i; rest < dim; rest++) row[rest] = fmaf(k[rest], d, row[rest]);
    return lanes_sum_rest(acc, row + i, q + i, dim - i);
}

#endif
