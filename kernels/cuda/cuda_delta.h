/* cuda_delta.h - a token of a gated delta rule in one head, which the kernels of the forward and of the
 * backward, that computes it again, share. For .cu files.
 *
 * A half warp has a row of S^T, that of one value: its lane l the elements l, l + 16, ..., N of them, so that
 * sums are in lane order, as on the CPU. Every lane of a warp takes part in each sum: a half warp without a
 * row of its own repeats the last one, and writes nothing. */
#ifndef WB_CUDA_DELTA_H
#define WB_CUDA_DELTA_H

#include "cuda/cuda_recurrent.h"
#include "delta_rules.h"

namespace {

/* Half warps of a block, and lanes' elements of the longest row. */
enum { HALVES = BLOCK / WB_LANES, MAX_LANE_ELEMENTS = 16 };

/* Elements of a row that a lane has: x[n] is row[lane + 16 n], 0 behind the row's end. */
template <int N>
__device__ __forceinline__ void load_row(const wb_rows &rows, int64_t first, int dim, int lane,
                                         float (&x)[N]) {
#pragma unroll
    for (int n = 0; n < N; n++) {
        const int i = lane + WB_LANES * n;
        x[n] = i < dim ? load_element(rows, first + i) : 0.0f;
    }
}
template <int N>
__device__ __forceinline__ void load_row(const float *row, int dim, int lane, float (&x)[N]) {
#pragma unroll
    for (int n = 0; n < N; n++) {
        const int i = lane + WB_LANES * n;
        x[n] = i < dim ? row[i] : 0.0f;
    }
}
template <int N>
__device__ __forceinline__ void store_row(const float (&x)[N], int dim, int lane, float *row) {
#pragma unroll
    for (int n = 0; n < N; n++) {
        const int i = lane + WB_LANES * n;
        if (i < dim) row[i] = x[n];
    }
}

/* All lanes of the half warp get it. */
template <int N>
__device__ __forceinline__ float dot(const float (&x)[N], const float (&y)[N], int dim, int lane) {
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < N; n++)
        if (lane + WB_LANES * n < dim) sum = wb_fma(x[n], y[n], sum);
    return fold_lanes(sum);
}

/* A token's query and key, as they are in qkv and then as the rule takes them. */
template <int N> struct delta_keys {
    float q[N], k[N];
    float inverse_q, inverse_k, scale; /* what they were multiplied by */
};

template <int N>
__device__ __forceinline__ void load_keys(const wb_gated_delta &a, int64_t t, int64_t key_head, int lane,
                                          delta_keys<N> &keys) {
    load_row(a.qkv, wb_delta_query_at(a.heads, t, key_head), a.heads.key_dim, lane, keys.q);
    load_row(a.qkv, wb_delta_key_at(a.heads, t, key_head), a.heads.key_dim, lane, keys.k);
}

template <int N> __device__ __forceinline__ void norm_keys(int dim, int lane, delta_keys<N> &keys) {
    keys.inverse_q = wb_delta_inverse_length(dot(keys.q, keys.q, dim, lane));
    keys.inverse_k = wb_delta_inverse_length(dot(keys.k, keys.k, dim, lane));
    keys.scale = wb_delta_query_scale(dim);
#pragma unroll
    for (int n = 0; n < N; n++) {
        keys.q[n] = wb_mul(wb_mul(keys.q[n], keys.inverse_q), keys.scale);
        keys.k[n] = wb_mul(keys.k[n], keys.inverse_k);
    }
}

/* exp(g) and beta of a token's head. */
struct delta_gates {
    float decay, beta;
};

__device__ __forceinline__ delta_gates gates_of(const wb_gated_delta &args, int64_t head, float b, float a) {
    return {wb_expf(wb_delta_log_decay(args.A_log[head], args.dt_bias[head], a)), wb_sigmoid(b)};
}

/* s: a row of S^T, from before a token to behind it. Returns v - m, m being what S gives for k. */
template <int N>
__device__ __forceinline__ float delta_step(int dim, int lane, delta_gates gates, const float (&k)[N],
                                            float v, float (&s)[N]) {
#pragma unroll
    for (int n = 0; n < N; n++) s[n] = wb_mul(gates.decay, s[n]);
    const float error = wb_sub(v, dot(s, k, dim, lane)), d = wb_mul(gates.beta, error);
#pragma unroll
    for (int n = 0; n < N; n++) s[n] = wb_fma(k[n], d, s[n]);
    return error;
}

/* Calls launch<N>() of an object for rows of `dim` elements, at most WB_LANES * MAX_LANE_ELEMENTS. */
template <class LAUNCHER> wb_status launch_for(int32_t dim, const LAUNCHER &launcher) {
    switch (power_of_2_from((dim + WB_LANES - 1) / WB_LANES)) {
    case 1:
        return launcher.template launch<1>();
    case 2:
        return launcher.template launch<2>();
    case 4:
        return launcher.template launch<4>();
    case 8:
        return launcher.template launch<8>();
    default:
        return launcher.template launch<MAX_LANE_ELEMENTS>();
    }
}

inline wb_status check_key_dim(const char *op, int32_t key_dim) {
    const int most = WB_LANES * MAX_LANE_ELEMENTS;
    if (key_dim <= most) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "%s: key_dim: expected at most %d on CUDA, found %d", op, most,
                   key_dim);
}

} // namespace

#endif
