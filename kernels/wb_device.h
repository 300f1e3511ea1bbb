/* wb_device.h - the op table: what a backend can do, as the rooms above call it (not installed: outside, a
 * device is opaque).
 *
 * Owns: struct wb_device. Refuses: implementations (cpu/, cuda/), policy. The rules of memory, layout,
 * invariance and errors are those of wb_kernels.h. */
#ifndef WB_DEVICE_H
#define WB_DEVICE_H

#include "wb_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Every op's first argument is the device. `w` are weights, `d...` gradients; "+=" accumulates, "=" writes.
 * A backend that lacks an op leaves its pointer NULL. */
struct wb_device {
    wb_backend backend;
    const char *name; /* "cpu x86-64-v3", "cuda" */
    int threads;      /* CPU: OpenMP threads of an op */
    void *stream;     /* CUDA: cudaStream_t */

    /* Memory. mem_alloc gives 64-byte aligned, uninitialised memory; 0 bytes give a valid pointer. */
    wb_status (*mem_alloc)(wb_device *dev, size_t bytes, void **device_out);
    void (*mem_free)(wb_device *dev, void *device); /* NULL is a no-op */
    wb_status (*to_device)(wb_device *dev, void *device, const void *host, size_t bytes);
    wb_status (*to_host)(wb_device *dev, void *host, const void *device, size_t bytes); /* done on return */
    wb_status (*copy)(wb_device *dev, void *to, const void *from, size_t bytes);
    wb_status (*zero)(wb_device *dev, void *device, size_t bytes);

    /* `count` independent products (a Linear layer is one, a layer of experts one for each expert).
     * `list`: host. */
    wb_status (*matmul)(wb_device *dev, int64_t count, const wb_matmul *list);

    /* y[T,H] = table[tokens[t],:]; dtable[V,H] += scattered dy, ascending t. tokens: device [T]. */
    wb_status (*embed_forward)(wb_device *dev, int64_t T, int64_t H, const int32_t *tokens, const void *table,
                               wb_dtype table_dtype, float *y);
    wb_status (*embed_backward)(wb_device *dev, int64_t T, int64_t H, const int32_t *tokens, const float *dy,
                                float *dtable);

    /* y[n,width] = x * rsqrt(mean(x^2) + eps) * w[width]; y may be x. Backward: dx (=), may be dy; dw
     * (+=), may be NULL. Also the per-head query/key norm, with n = T * heads and width = head_dim. */
    wb_status (*rmsnorm_forward)(wb_device *dev, int64_t n, int64_t width, const float *x, const float *w,
                                 float eps, float *y);
    wb_status (*rmsnorm_backward)(wb_device *dev, int64_t n, int64_t width, const float *x, const float *w,
                                  float eps, const float *dy, float *dx, float *dw);

    /* Rotary embedding of x[T, n_heads, head_dim] in place, pairs (i, i + rot/2) of the first rot_dim
     * dimensions. cos, sin: device [positions, rot_dim / 2]; pos: device [T]. `inverse` rotates back: the
     * backward. */
    wb_status (*rope)(wb_device *dev, int64_t T, int32_t n_heads, int32_t head_dim, int32_t rot_dim,
                      const int32_t *pos, const float *cos_table, const float *sin_table, bool inverse,
                      float *x);

    /* cache[rows[t], :] = x[t, :width], rounded to nearest even when cache_dtype is bf16. rows: device
     * [T]. */
    wb_status (*kv_write)(wb_device *dev, int64_t T, int64_t width, const float *x, const int64_t *rows,
                          void *cache, wb_dtype cache_dtype);

    /* out[T, n_heads * head_dim] (=). Backward (kv_dtype f32): dq (=) like q, dk and dv (+=) like k and v. */
    wb_status (*attention_forward)(wb_device *dev, const wb_attention *args, float *out);
    wb_status (*attention_backward)(wb_device *dev, const wb_attention *args, const float *dout, float *dq,
                                    float *dk, float *dv);

    wb_status (*topk)(wb_device *dev, const wb_topk *args);

    /* weights[T,K] of the ids as they stand, from the current logits[T,E]; ids forced or selected alike.
     * Backward: dlogits[T,E] (=) from dweights[T,K]. With g = dweights and q, s, p as in wb_router_type:
     *   SOFTMAX        dz_e = [e in S] c g_e p_e - p_e sum_j c g_j p_j         for every e: dense
     *   SOFTMAX_NORM, TOPK_SOFTMAX   dz_j = c q_j (g_j - sum_l g_l q_l)        the chosen only, others 0
     *   SIGMOID        ds_j = (c/Q)(g_j - sum_l g_l s_l / Q), dz_j = ds_j s_j (1 - s_j);  Q = sum s + 1e-20
     *   SQRTSOFTPLUS, HASH           the same ds_j, dz_j = ds_j sigmoid(z_j) / (2 s_j), 0 where s_j = 0
     *   not normalised: ds_j = c g_j.   A repeated id accumulates. */
    wb_status (*gate_forward)(wb_device *dev, const wb_router *router, int64_t T, const float *logits,
                              wb_ids ids, float *weights);
    wb_status (*gate_backward)(wb_device *dev, const wb_router *router, int64_t T, const float *logits,
                               wb_ids ids, const float *dweights, float *dlogits);

    /* Sorts the T * K (token, slot) pairs by expert, stable in (t, k): slot_row[t * K + k] is the pair's
     * row in that order, row_token[row] its token. Both device [T * K]. counts: host [E], done on return:
     * the one place where a routing decision crosses to the host during a forward. */
    wb_status (*moe_sort)(wb_device *dev, int64_t T, int32_t K, int32_t E, wb_ids ids, int32_t *slot_row,
                          int32_t *row_token, int64_t *counts);

    /* out[i, :] = in[index[i], :], i < n. index: device [n]. */
    wb_status (*gather_rows)(wb_device *dev, int64_t n, int64_t width, const int32_t *index, const float *in,
                             float *out);

    /* y[t] (+)= sum over ascending slots k of weights[t,k] * rows[slot_row[t,k]]; weights NULL: all 1.
     * Backward: drows[slot_row[t,k]] = weights[t,k] * dy[t]; dweights[t,k] = <dy[t], rows[slot_row[t,k]]>. */
    wb_status (*moe_combine)(wb_device *dev, int64_t T, int32_t K, int64_t H, const float *rows,
                             const int32_t *slot_row, const float *weights, bool accumulate, float *y);
    wb_status (*moe_combine_backward)(wb_device *dev, int64_t T, int32_t K, int64_t H, const float *rows,
                                      const int32_t *slot_row, const float *weights, const float *dy,
                                      float *drows, float *dweights);

    /* gate_up[n, 2F] = [gate | up]: out[n,F] = silu(gate) * up. Backward: dgate_up (=), may be gate_up. */
    wb_status (*swiglu_forward)(wb_device *dev, int64_t n, int64_t F, const float *gate_up, float *out);
    wb_status (*swiglu_backward)(wb_device *dev, int64_t n, int64_t F, const float *gate_up,
                                 const float *dout, float *dgate_up);

    wb_status (*add)(wb_device *dev, int64_t n, const float *x, float *y); /* y += x */
    /* y[n,width] += b[width] on every row. Backward: db[width] += sum of dy over ascending rows. */
    wb_status (*bias_forward)(wb_device *dev, int64_t n, int64_t width, const float *b, float *y);
    wb_status (*bias_backward)(wb_device *dev, int64_t n, int64_t width, const float *dy, float *db);
    wb_status (*clamp)(wb_device *dev, int64_t n, float limit, float *x); /* x to [-limit, limit] in place */
    /* dx = 0 where |x| > limit, x before the clamp; in place on dx. */
    wb_status (*clamp_backward)(wb_device *dev, int64_t n, float limit, const float *x, float *dx);

    /* logprobs[t] = log_softmax(logits[t] )[targets[t]]; 0 where targets[t] < 0. targets: device [T].
     * Backward: dlogits[t,:] = dlogprobs[t] * (onehot - softmax), zeros where targets[t] < 0; may be
     * logits. */
    wb_status (*logprob_forward)(wb_device *dev, int64_t T, int64_t V, const float *logits,
                                 const int32_t *targets, float *logprobs);
    wb_status (*logprob_backward)(wb_device *dev, int64_t T, int64_t V, const float *logits,
                                  const int32_t *targets, const float *dlogprobs, float *dlogits);

    /* One token a row from logits[B,V]. params: host [B]. tokens, logprobs (under the distribution sampled
     * from: after temperature, top-k and top-p; greedy gives 0): device [B]. NaN logits:
     * WB_INVALID_ARGUMENT names the row. */
    wb_status (*sample)(wb_device *dev, int64_t B, int64_t V, const float *logits,
                        const wb_sample_params *params, int32_t *tokens, float *logprobs);

    wb_status (*sum_squares)(wb_device *dev, int64_t n, const float *x,
                             double *sum_out); /* host, fixed order */
    /* w, m, v [n] updated in place from g [n]. */
    wb_status (*adamw)(wb_device *dev, int64_t n, const wb_adamw *hyper, const float *g, float *m, float *v,
                       float *w);
    /* to[n] = from[n], f32 or bf16 either way, to nearest even. */
    wb_status (*cast)(wb_device *dev, int64_t n, const void *from, wb_dtype from_dtype, void *to,
                      wb_dtype to_dtype);
};

#ifdef __cplusplus
}
#endif
#endif
