/* cuda_gate_row.h - the gate of one row over the lanes of a warp, for the kernels of cuda_gate.cu.
 *
 * Owns: which lane has which choice and which expert, and sums over them in ascending order. The formulas are
 * those of router_rules.h, so that weights and dlogits are the CPU's bits.
 *
 * The shape of the work: a row has a power of two of at most 16 lanes; choice j lies in lane j mod lanes.
 */
#ifndef WB_CUDA_GATE_ROW_H
#define WB_CUDA_GATE_ROW_H

#include "cuda/cuda_fault.h"
#include "cuda/cuda_grid.h"
#include "cuda/cuda_ids.h"
#include "router_rules.h"

namespace {

/* ---- choices over lanes -------------------------------------------------------------- */

struct gate_args {
    wb_router router;
    int64_t T;
    const float *logits;      /* [T, E] */
    const uint8_t *direction; /* [T], or NULL: no padding */
    wb_ids ids;
    /* Of a row: the power of two >= K, at most 16; SOFTMAX: 16, which its sum over experts needs. */
    int lanes;
    /* where an id that is no expert's is told of, and by which op */
    wb_fault *fault;
    wb_op op;
};

/* The place of a thread: its row and the first of its choices. Rows beyond T repeat the last row and write
 * nothing, so that every lane of a warp takes part in the exchanges. */
struct gate_place {
    int64_t t;
    int choice; /* and choice + lanes, choice + 2 lanes, ... */
    bool live;
    bool padding; /* all that is written for it is zero, whatever its logits are */
};

__device__ __forceinline__ gate_place find_place(const gate_args &args) {
    int64_t thread = static_cast<int64_t>(blockIdx.x) * BLOCK + threadIdx.x;
    int64_t t = thread / args.lanes;
    gate_place place = {t < args.T ? t : args.T - 1, static_cast<int>(threadIdx.x % args.lanes), t < args.T,
                        false};
    place.padding = args.direction && args.direction[place.t] == WB_ROW_PADDING;
    return place;
}

/* Calls f(n, r) for every choice of the row ascending: it is value n of lane r. */
template <int N, typename F> __device__ __forceinline__ void for_choices(int32_t K, int lanes, F f) {
#pragma unroll
    for (int n = 0; n < N; n++)
        for (int r = 0; r < lanes && n * lanes + r < K; r++) f(n, r);
}

template <int N> __device__ __forceinline__ float sum_choices(int32_t K, int lanes, const float *value) {
    float sum = 0.0f;
    for_choices<N>(K, lanes,
                   [&](int n, int r) { sum = wb_add(sum, __shfl_sync(ALL_LANES, value[n], r, lanes)); });
    return sum;
}

template <int N>
__device__ __forceinline__ float dot_choices(int32_t K, int lanes, const float *a, const float *b) {
    float dot = 0.0f;
    for_choices<N>(K, lanes, [&](int n, int r) {
        float a_r = __shfl_sync(ALL_LANES, a[n], r, lanes), b_r = __shfl_sync(ALL_LANES, b[n], r, lanes);
        dot = wb_fma(a_r, b_r, dot);
    });
    return dot;
}

/* The ids and logits of this lane's choices. A choice beyond K reads as the last one. An id of E or more is a
 * fault; its logit is a NaN, and no foreign memory is touched. */
template <int N>
__device__ __forceinline__ void load_choices(const gate_args &args, const gate_place &place, uint32_t *id,
                                             float *z) {
    uint32_t E = static_cast<uint32_t>(args.router.n_experts);
    const float *row = args.logits + place.t * args.router.n_experts;
#pragma unroll
    for (int n = 0; n < N; n++)
        id[n] = load_id(args.ids, place.t, min(place.choice + n * args.lanes, args.router.top_k - 1));
#pragma unroll
    for (int n = 0; n < N; n++) z[n] = id[n] < E ? row[id[n]] : __int_as_float(0x7fc00000);
#pragma unroll
    for (int n = 0; n < N; n++) {
        int32_t choice = min(place.choice + n * args.lanes, args.router.top_k - 1);
        if (id[n] >= E)
            set_fault(args.fault, {WB_FAULT_ID, args.op, place.t, choice, args.router.n_experts, id[n]});
    }
}

template <int N>
__device__ __forceinline__ void load_weights(const gate_args &args, const gate_place &place,
                                             const float *dweights, float *g) {
#pragma unroll
    for (int n = 0; n < N; n++) {
        int choice = min(place.choice + n * args.lanes, args.router.top_k - 1);
        g[n] = dweights[place.t * args.router.top_k + choice];
    }
}

/* wb_gate_softmax over lanes. The repeated last choice changes no maximum. */
template <int N>
__device__ __forceinline__ void softmax_choices(int32_t K, int lanes, const float *z, float *q) {
    float largest = z[0];
#pragma unroll
    for (int n = 1; n < N; n++) largest = fmaxf(largest, z[n]);
    for (int step = lanes / 2; step > 0; step /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, step));
#pragma unroll
    for (int n = 0; n < N; n++) q[n] = wb_expf(wb_sub(z[n], largest));
    float sum = sum_choices<N>(K, lanes, q);
#pragma unroll
    for (int n = 0; n < N; n++) q[n] = wb_div(q[n], sum);
}

/* wb_gate_divisor over lanes. */
template <int N>
__device__ __forceinline__ float divisor_choices(const wb_router &router, int lanes, const float *s) {
    return router.normalize ? wb_add(sum_choices<N>(router.top_k, lanes, s), 1e-20f) : 1.0f;
}

/* wb_gate_row over lanes. */
template <int N>
__device__ __forceinline__ void gate_choices(const wb_router &router, int lanes, const float *z, float *w) {
    float c = router.scale;
    if (wb_router_is_softmax(router.type)) {
        softmax_choices<N>(router.top_k, lanes, z, w);
#pragma unroll
        for (int n = 0; n < N; n++) w[n] = wb_mul(c, w[n]);
        return;
    }
#pragma unroll
    for (int n = 0; n < N; n++) w[n] = wb_router_score(router.type, z[n]);
    float divisor = divisor_choices<N>(router, lanes, w);
#pragma unroll
    for (int n = 0; n < N; n++) w[n] = wb_div(wb_mul(c, w[n]), divisor);
}

/* wb_gate_row_backward over lanes. */
template <int N>
__device__ __forceinline__ void gate_choices_backward(const wb_router &router, int lanes, const float *z,
                                                      const float *g, float *dz) {
    int32_t K = router.top_k;
    float c = router.scale, dot = 0.0f;
    if (wb_router_is_softmax(router.type)) {
        softmax_choices<N>(K, lanes, z, dz);
        dot = dot_choices<N>(K, lanes, g, dz);
#pragma unroll
        for (int n = 0; n < N; n++) dz[n] = wb_mul(wb_mul(c, dz[n]), wb_sub(g[n], dot));
        return;
    }
#pragma unroll
    for (int n = 0; n < N; n++) dz[n] = wb_router_score(router.type, z[n]);
    float divisor = divisor_choices<N>(router, lanes, dz);
    if (router.normalize) dot = wb_div(dot_choices<N>(K, lanes, g, dz), divisor);
#pragma unroll
    for (int n = 0; n < N; n++) {
        float s = dz[n], ds = wb_mul(wb_div(c, divisor), wb_sub(g[n], dot));
        if (router.type == WB_ROUTER_SIGMOID) {
            dz[n] = wb_mul(ds, wb_mul(s, wb_sub(1.0f, s)));
        } else {
            float slope = wb_div(wb_sigmoid(z[n]), wb_add(s, s));
            dz[n] = s == 0.0f ? 0.0f : wb_mul(ds, slope);
        }
    }
}

/* Writes the choices' values of a [T, K] matrix. */
template <int N>
__device__ __forceinline__ void store_weights(const gate_args &args, const gate_place &place, const float *w,
                                              float *weights) {
    int32_t K = args.router.top_k;
#pragma unroll
    for (int n = 0; n < N; n++) {
        int choice = place.choice + n * args.lanes;
        if (place.live && choice < K) weights[place.t * K + choice] = place.padding ? 0.0f : w[n];
    }
}

/* dlogits[id] = the choice's `total` after add(total, value, n) for the values of all choices with that id,
 * ascending: the whole of that element, so that choices with the same id write the same. Overwrites what the
 * warp wrote before. */
template <int N, typename F>
__device__ __forceinline__ void store_choices(const gate_args &args, const gate_place &place,
                                              const uint32_t *id, const float *value, float *total,
                                              float *dlogits, F add) {
    int32_t E = args.router.n_experts, K = args.router.top_k;
    for_choices<N>(K, args.lanes, [&](int n, int r) {
        uint32_t other = __shfl_sync(ALL_LANES, id[n], r, args.lanes);
        float more = __shfl_sync(ALL_LANES, value[n], r, args.lanes);
#pragma unroll
        for (int m = 0; m < N; m++) total[m] = other == id[m] ? add(total[m], more, m) : total[m];
    });
    float *row = dlogits + place.t * E;
    __syncwarp(); /* orders the warp's earlier writes before these */
#pragma unroll
    for (int n = 0; n < N; n++)
        if (place.live && place.choice + n * args.lanes < K && id[n] < static_cast<uint32_t>(E))
            row[id[n]] = place.padding ? 0.0f : total[n];
}

/* ---- SOFTMAX, whose sum and whose gradient run over all experts -------------------- */

/* A row over WB_LANES lanes: lane l has the experts l, l + 16, ..., i counting them. With M > 0 the row
 * has at most 16 M experts and exp(z - largest) stays in registers; with M = 0 it is computed again
 * wherever it is needed. */
template <int M> struct dense_row {
    const float *z; /* [E] */
    int32_t E;
    int lane;
    float largest, sum;
    float kept[M > 0 ? M : 1];

    __device__ __forceinline__ int32_t expert(int i) const {
        return lane + i * WB_LANES;
    }

    __device__ __forceinline__ float exponential(float logit) const {
        return wb_expf(wb_sub(logit, largest));
    }

    __device__ __forceinline__ void load() {
        const float below_all = __int_as_float(0xff800000); /* -inf, whose exponential adds 0 */
        largest = below_all;
        sum = 0.0f;
        if constexpr (M > 0) {
#pragma unroll
            for (int i = 0; i < M; i++) kept[i] = expert(i) < E ? z[expert(i)] : below_all;
#pragma unroll
            for (int i = 0; i < M; i++) largest = fmaxf(largest, kept[i]);
        } else {
            for (int i = 0; expert(i) < E; i++) largest = fmaxf(largest, z[expert(i)]);
        }
        for (int step = WB_LANES / 2; step > 0; step /= 2)
            largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, step));
        if constexpr (M > 0) {
#pragma unroll
            for (int i = 0; i < M; i++) {
                kept[i] = exponential(kept[i]);
                sum = wb_add(sum, kept[i]);
            }
        } else {
            for (int i = 0; expert(i) < E; i++) sum = wb_add(sum, exponential(z[expert(i)]));
        }
        for (int step = WB_LANES / 2; step > 0; step /= 2) /* wb_lanes_sum: the same pairs at each step */
            sum = wb_add(sum, __shfl_xor_sync(ALL_LANES, sum, step));
    }

    __device__ __forceinline__ void store_zeros(float *dz) const {
        for (int i = 0; expert(i) < E; i++) dz[expert(i)] = 0.0f;
    }

    /* dz of every expert as if none were chosen. */
    __device__ __forceinline__ void store_unchosen(float c, float dot, float *dz) const {
        if constexpr (M > 0) {
#pragma unroll
            for (int i = 0; i < M; i++)
                if (expert(i) < E) dz[expert(i)] = wb_gate_dense_dz(wb_div(kept[i], sum), c, dot);
        } else {
            for (int i = 0; expert(i) < E; i++)
                dz[expert(i)] = wb_gate_dense_dz(wb_gate_dense_p(z[expert(i)], largest, sum), c, dot);
        }
    }
};

template <int M>
__device__ __forceinline__ dense_row<M> load_row(const gate_args &args, const gate_place &place) {
    dense_row<M> row;
    row.E = args.router.n_experts;
    row.z = args.logits + place.t * row.E;
    row.lane = place.choice;
    row.load();
    return row;
}

} // namespace

#endif
