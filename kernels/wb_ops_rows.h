/* wb_ops_rows.h - the ops on rows and elements: products, embeddings, norms, rotary embedding, gates, biases,
 * copies; and hyper-connections, a residual stream of several rows a token.
 *
 * What all ops have in common is said in wb_kernels.h. */
#ifndef WB_OPS_ROWS_H
#define WB_OPS_ROWS_H

#include "wb_operands.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- matmul -------------------------------------------------------------------------------------- */

/* C[m,n] = (accumulate ? C[m,n] : 0) + sum over ascending k of A(m,k) * B(k,n), one fma chain for each
 * element. a, b and c may each be f32 or bf16, whatever the others are. A(m,k) = a[m * a_row + k * a_col],
 * B(k,n) = b[k * b_row + n * b_col]; of each pair of strides one is 1. C rows are ldc apart. M, N or K may be
 * 0 (K = 0 writes zeros, or nothing when accumulating). */
typedef struct wb_matmul {
    int64_t M, N, K;
    wb_rows a;
    int64_t a_row, a_col;
    /* activations or weights */
    wb_rows b;
    int64_t b_row, b_col;
    wb_rows c;
    int64_t ldc;
    bool accumulate;
    /* b is packed weights, of a forward: b_row is 1, b_col is K, a_col is 1, N % WB_PACKED_COLUMNS is 0 */
    bool b_packed;
} wb_matmul;

/* `count` matrices like `w`, one after the other from w.data on, in place: rows in groups of
 * WB_PACKED_COLUMNS, of which w.rows is a multiple, and in a group [cols][WB_PACKED_COLUMNS], so that a
 * product reads address after address and turns nothing. The bits of a product do not depend on it.
 * Optional: CUDA, whose products read rows as they lie, has no such op. */
typedef wb_status wb_pack_weights_fn(wb_device *dev, int64_t count, wb_weight w);

/* `count` independent products (a Linear layer is one, a layer of experts one for each expert). list: host
 * [count]. */
typedef wb_status wb_matmul_fn(wb_device *dev, int64_t count, const wb_matmul *list);

/* y[T,out] = x[T,in] w[out,in]^T : a Linear layer's forward. */
static inline wb_matmul wb_matmul_forward(int64_t T, wb_rows x, wb_weight w, wb_rows y) {
    wb_rows b = {w.data, w.dtype};
    wb_matmul m = {T, w.rows, w.cols, x, w.cols, 1, b, 1, w.cols, y, w.rows, false, w.packed};
    return m;
}

/* dx[T,in] (+)= dy[T,out] w[out,in] : the gradient of its input. */
static inline wb_matmul wb_matmul_dgrad(int64_t T, wb_rows dy, wb_weight w, wb_rows dx, bool accumulate) {
    wb_rows b = {w.data, w.dtype};
    wb_matmul m = {T, w.cols, w.rows, dy, w.rows, 1, b, w.cols, 1, dx, w.cols, accumulate, w.packed};
    return m;
}

/* dw[out,in] += dy[T,out]^T x[T,in] : the gradient of its weight. */
static inline wb_matmul wb_matmul_wgrad(int64_t T, int64_t in, int64_t out, wb_rows dy, wb_rows x,
                                        float *dw) {
    wb_matmul m = {out, in, T, dy, 1, out, x, in, 1, wb_f32_rows(dw), in, true, false};
    return m;
}

/* ---- rows and elements --------------------------------------------------------------------------- */

/* y[T,H] = table[tokens[t],:], H = table.cols. Backward: dtable[V,H] += scattered dy[T,H], ascending t.
 * tokens: device [T], below table.rows, or INVALID_ARGUMENT; in the backward those of the forward. */
typedef wb_status wb_embed_forward_fn(wb_device *dev, int64_t T, const int32_t *tokens, wb_weight table,
                                      wb_rows y);
typedef wb_status wb_embed_backward_fn(wb_device *dev, int64_t T, int64_t H, const int32_t *tokens,
                                       wb_rows dy, float *dtable);

/* What an RMSNorm multiplies a row by, behind the division by the row's root mean square. */
typedef struct wb_norm {
    /* device, as wide as the row; NULL, in rmsnorm_forward and its backward, which has no dw then: all 1 */
    const float *w;
    /* added to the mean of the squares */
    float eps;
    /* the factor is 1 + w and not w (qwen3_next) */
    bool zero_centered;
} wb_norm;

/* y[n,width] = x * rsqrt(mean(x^2) + eps) * w[width]; y may be x. Backward: dx (=), may be dy; dw (+=), may
 * be NULL. Also the per-head query/key norm, with n = T * heads and width = head_dim. */
typedef wb_status wb_rmsnorm_forward_fn(wb_device *dev, int64_t n, int64_t width, wb_rows x, wb_norm norm,
                                        wb_rows y);
typedef wb_status wb_rmsnorm_backward_fn(wb_device *dev, int64_t n, int64_t width, wb_rows x, wb_norm norm,
                                         wb_rows dy, wb_rows dx, float *dw);

/* y[n,width] += x[n,width], then normed = rmsnorm_forward of y as it was written: the residual stream, and
 * what the next part of a layer gets of it. */
typedef wb_status wb_add_rmsnorm_fn(wb_device *dev, int64_t n, int64_t width, wb_rows x, wb_rows y,
                                    wb_norm norm, wb_rows normed);

/* y[n,width] = norm(x) * silu(z), z[n,width]; y may be x or z. Backward: dx (=), may be dy; dz (=), may be z;
 * dw (+=), may be NULL. */
typedef wb_status wb_gated_rmsnorm_forward_fn(wb_device *dev, int64_t n, int64_t width, wb_rows x,
                                              wb_norm norm, wb_rows z, wb_rows y);
typedef wb_status wb_gated_rmsnorm_backward_fn(wb_device *dev, int64_t n, int64_t width, wb_rows x,
                                               wb_norm norm, wb_rows z, wb_rows dy, wb_rows dx, wb_rows dz,
                                               float *dw);

/* Rotary embedding of x[T, n_heads, head_dim] in place: of the rot_dim dimensions from `first` on the pairs
 * (i, i + rot_dim / 2), or where `interleaved` the pairs (2 i, 2 i + 1). */
typedef struct wb_rope {
    int64_t T;
    int32_t n_heads, head_dim, first, rot_dim;
    bool interleaved;
    /* rotates back: the backward */
    bool inverse;
    /* R > 1: of compressed entries, which are rotated as at the first position of theirs (wb_entries): row t
     * by the angles of pos[t] / R * R. 0 and 1: by those of pos[t]. */
    int32_t ratio;
    /* device [T] */
    const int32_t *pos;
    /* device [positions, rot_dim / 2] */
    const float *cos_table, *sin_table;
    wb_rows x;
} wb_rope;
typedef wb_status wb_rope_fn(wb_device *dev, const wb_rope *args);

/* out[i, :] = in[index[i], :], i < n. index: device [n]. */
typedef wb_status wb_gather_rows_fn(wb_device *dev, int64_t n, int64_t width, const int32_t *index,
                                    wb_rows in, wb_rows out);

/* to[i, j] = from[i, j], i < n, j < width: a block of columns, whose rows are from_stride and to_stride
 * elements apart, of one dtype; from[0, 0] and to[0, 0] are the first elements of the rows. What lies between
 * the rows stays as it is, and the blocks do not overlap. */
typedef wb_status wb_copy_columns_fn(wb_device *dev, int64_t n, int64_t width, wb_rows from,
                                     int64_t from_stride, wb_rows to, int64_t to_stride);

/* to[t, h, i] = from[t, h, i], t < T, h < n_heads, i < width, both of one dtype: blocks of columns that lie
 * in another order there. Element [t, h, i] is t * row + h * head + i behind the first one. What lies between
 * the blocks stays as it is, and no two of them overlap. */
typedef struct wb_copy_heads {
    int64_t T, n_heads, width;
    wb_rows from;
    int64_t from_row, from_head;
    wb_rows to;
    int64_t to_row, to_head;
} wb_copy_heads;
typedef wb_status wb_copy_heads_fn(wb_device *dev, const wb_copy_heads *args);

/* out[index[i], :] = in[i, :], i < n, the other rows of out staying as they are: the way back from a gather.
 * index: device [n], no row twice. */
typedef wb_status wb_scatter_rows_fn(wb_device *dev, int64_t n, int64_t width, const int32_t *index,
                                     wb_rows in, wb_rows out);

/* gate_up[n, 2F] = [gate | up]: out[n,F] = silu(gate) * up. Backward: dgate_up (=), may be gate_up. */
typedef wb_status wb_swiglu_forward_fn(wb_device *dev, int64_t n, int64_t F, wb_rows gate_up, wb_rows out);
typedef wb_status wb_swiglu_backward_fn(wb_device *dev, int64_t n, int64_t F, wb_rows gate_up, wb_rows dout,
                                        wb_rows dgate_up);

/* y[n] += x[n] */
typedef wb_status wb_add_fn(wb_device *dev, int64_t n, wb_rows x, wb_rows y);

/* y[n,width] += s * x[n,width], s = sigmoid(gate[row]) of each row: one fma for each element. gate: device
 * f32 [n]. Backward: dx[n,width] (=) s * dy, may be x; dgate[n] (=) s (1 - s) <dy, x>, summed in lane
 * order. */
typedef wb_status wb_add_gated_forward_fn(wb_device *dev, int64_t n, int64_t width, const float *gate,
                                          wb_rows x, wb_rows y);
typedef wb_status wb_add_gated_backward_fn(wb_device *dev, int64_t n, int64_t width, const float *gate,
                                           wb_rows x, wb_rows dy, wb_rows dx, float *dgate);

/* y[n,width] = x * sigmoid(gate), whose rows are gate_stride elements apart, as dgate's; y may be x.
 * Backward: dx (=), may be dy; dgate (=), may be gate, and what lies between its rows stays as it is. */
typedef wb_status wb_sigmoid_gate_forward_fn(wb_device *dev, int64_t n, int64_t width, wb_rows x,
                                             wb_rows gate, int64_t gate_stride, wb_rows y);
typedef wb_status wb_sigmoid_gate_backward_fn(wb_device *dev, int64_t n, int64_t width, wb_rows x,
                                              wb_rows gate, int64_t gate_stride, wb_rows dy, wb_rows dx,
                                              wb_rows dgate);

/* y[n,width] += b[width] on every row. Backward: db[width] += sum of dy over ascending rows. */
typedef wb_status wb_bias_forward_fn(wb_device *dev, int64_t n, int64_t width, const float *b, wb_rows y);
typedef wb_status wb_bias_backward_fn(wb_device *dev, int64_t n, int64_t width, wb_rows dy, float *db);

/* x[n] to [-limit, limit], in place. Backward, in place on dx[n]: 0 where |x| > limit, x before the clamp. */
typedef wb_status wb_clamp_fn(wb_device *dev, int64_t n, float limit, wb_rows x);
typedef wb_status wb_clamp_backward_fn(wb_device *dev, int64_t n, float limit, wb_rows x, wb_rows dx);

/* to[n] = from[n], from either dtype to either. */
typedef wb_status wb_cast_fn(wb_device *dev, int64_t n, wb_rows from, wb_rows to);

/* ---- hyper-connections --------------------------------------------------------------------------- */

/* A residual stream of S rows a token, x[T,S,H]. A part of a layer reads a sum of them, `in`, and what it
 * makes of it, `out`, is added to all of them, y[T,S,H], which are mixed besides. With p = products, which
 * are those of fn[M, S H] and a token's S rows as one, M = S (S + 2), and m = p / sqrt(mean of x^2 over S H +
 * norm_eps):
 *   pre_n = sigmoid(scale[0] m_n + base_n) + eps            in = sum over n of pre_n x_n
 *   post_k = 2 sigmoid(scale[1] m_(S + k) + base_(S + k))   y_k = post_k out + sum over j of C_jk x_j
 *   C_jk = the softmax over k of scale[2] m_(2S + jS + k) + base_(2S + jS + k), + eps; then its columns, and
 *          iterations - 1 times its rows and its columns, are divided by their sums + eps (Sinkhorn)
 * Sums over streams are fma chains in ascending order. */
enum { WB_MAX_STREAMS = 8, WB_MAX_SINKHORN = 32 };

typedef struct wb_hyper {
    int64_t T, H;
    /* S, 1..WB_MAX_STREAMS */
    int32_t n_streams;
    /* 1..WB_MAX_SINKHORN; 0: there is pre alone, M = S and scale has one element, as at the end of a model */
    int32_t iterations;
    float norm_eps, eps;
    wb_rows x;
    /* device [T, M]; a matmul of x and fn */
    const float *products;
    /* device [3], [M] */
    const float *scale, *base;
} wb_hyper;

static inline int64_t wb_hyper_width(int32_t n_streams, int32_t iterations) {
    return (int64_t)n_streams * (iterations > 0 ? n_streams + 2 : 1);
}

/* in[T,H] (=); weights[T,M] (=), f32: pre, post and C.
 * Backward, with the products of the forward: from din and dweights[T,M], of which those of post and C are
 * read, dx (+=) what comes by pre and by the mean of the squares, dproducts[T,M] (=), may be dweights,
 * dscale and dbase (+=) over ascending tokens. What comes by the products is left to a matmul: dx +=
 * dproducts fn, and dfn += dproducts^T x. */
typedef wb_status wb_hyper_pre_forward_fn(wb_device *dev, const wb_hyper *args, wb_rows in, float *weights);
typedef wb_status wb_hyper_pre_backward_fn(wb_device *dev, const wb_hyper *args, wb_rows din,
                                           const float *dweights, wb_rows dx, float *dproducts, float *dscale,
                                           float *dbase);

/* y[T,S,H] (=), may be x. weights: those of hyper_pre_forward. Backward: dout[T,H] (=), dx[T,S,H] (=), may be
 * dy, and dweights[T,M] (=), zeros for pre, each a sum over H in lane order. */
typedef wb_status wb_hyper_post_forward_fn(wb_device *dev, int64_t T, int32_t S, int64_t H,
                                           const float *weights, wb_rows x, wb_rows out, wb_rows y);
typedef wb_status wb_hyper_post_backward_fn(wb_device *dev, int64_t T, int32_t S, int64_t H,
                                            const float *weights, wb_rows x, wb_rows out, wb_rows dy,
                                            wb_rows dout, wb_rows dx, float *dweights);

#ifdef __cplusplus
}
#endif
#endif
