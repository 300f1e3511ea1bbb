/* cuda_delta_back.h - the backward of the gated delta rule in one value head over a chunk of a run's
 * tokens, by a block. For .cu files.
 *
 * Half warp i has the values i, i + 16, ..., a row of S^T and one of its gradient each, which nothing but
 * sums over values connects. It first goes through the chunk's tokens with each row, from the forward's
 * checkpoint on, and leaves in scratch what the row is before each group of GROUP tokens. Then, from the
 * last group to the first, it computes a group's states again in registers and goes back through them with
 * the gradient. What its values add to a token's sums lies in shared memory until all are done, so that
 * these are in lane order. */
#ifndef WB_CUDA_DELTA_BACK_H
#define WB_CUDA_DELTA_BACK_H

#include "cuda/cuda_delta.h"

namespace {

/* Tokens whose states are in registers at a time, and such groups of a chunk. */
enum { GROUP = 4, GROUPS = WB_DELTA_CHUNK / GROUP };

struct back_args {
    wb_gated_delta delta;
    wb_rows dout, dqkv, db;
    float *dg; /* [T, n_value] out */
    float *scratch;
    int64_t block_floats, n_tasks; /* of scratch; runs times key heads */
};

/* The tokens [first, first + n) of a run, in one value head. */
struct chunk {
    int64_t first, n, key_head, head;
};

/* ---- a block's memory -------------------------------------------------------------------------- */

struct block_scratch {
    float *marks;   /* [GROUPS] S^T before each group, of one value head */
    float *dstates; /* of each value head: the gradient of S^T behind the next token, between groups */
    float *dq, *dk; /* [WB_DELTA_CHUNK, key_dim] sums over the value heads so far */
};

__host__ __device__ inline int64_t state_floats(wb_delta_heads h) {
    return static_cast<int64_t>(h.key_dim) * h.value_dim;
}

inline int64_t block_floats(wb_delta_heads h) {
    return (GROUPS + h.n_value / h.n_key) * state_floats(h) +
           2 * static_cast<int64_t>(WB_DELTA_CHUNK) * h.key_dim;
}

__device__ __forceinline__ block_scratch scratch_of(const back_args &b) {
    const wb_delta_heads h = b.delta.heads;
    block_scratch s;
    s.marks = b.scratch + blockIdx.x * b.block_floats;
    s.dstates = s.marks + GROUPS * state_floats(h);
    s.dq = s.dstates + h.n_value / h.n_key * state_floats(h);
    s.dk = s.dq + static_cast<int64_t>(WB_DELTA_CHUNK) * h.key_dim;
    return s;
}

/* Shared. Rows of lanes are 16 elements longer than they need to be, so that the two half warps of a warp,
 * which have neighbours, meet in no bank where key_dim is a multiple of 32. */
struct block_shared {
    float *lanes_q, *lanes_k; /* [GROUP][HALVES][stride] a half warp's sums over its values */
    float *chunk_k;           /* in the same place: [WB_DELTA_CHUNK][key_dim] keys, while marks are left */
    float *q, *k;             /* [GROUP][key_dim] of a group */
    float *lanes_b, *lanes_g; /* [GROUP][HALVES] */
    delta_gates *gates;       /* [WB_DELTA_CHUNK] */
    int stride;
};
static_assert(2 * GROUP * HALVES >= WB_DELTA_CHUNK, "a chunk's keys have room where lanes are");

inline size_t shared_bytes(wb_delta_heads h) {
    const int64_t stride = h.key_dim + WB_LANES, lanes = 2 * GROUP * HALVES;
    return static_cast<size_t>(lanes * (stride + 1) + 2 * GROUP * static_cast<int64_t>(h.key_dim)) *
               sizeof(float) +
           WB_DELTA_CHUNK * sizeof(delta_gates);
}

__device__ __forceinline__ block_shared shared_of(wb_delta_heads h, float *memory) {
    block_shared s;
    s.stride = h.key_dim + WB_LANES;
    s.lanes_q = s.chunk_k = memory;
    s.lanes_k = s.lanes_q + GROUP * HALVES * s.stride;
    s.q = s.lanes_k + GROUP * HALVES * s.stride;
    s.k = s.q + GROUP * h.key_dim;
    s.lanes_b = s.k + GROUP * h.key_dim;
    s.lanes_g = s.lanes_b + GROUP * HALVES;
    s.gates = reinterpret_cast<delta_gates *>(s.lanes_g + GROUP * HALVES);
    return s;
}

/* ---- states again ------------------------------------------------------------------------------ */

/* Value `wanted` of a half warp, or the last one where there are fewer. */
struct value_place {
    int j;
    bool live;
};
__device__ __forceinline__ value_place place_of(int wanted, int n) {
    return {min(wanted, n - 1), wanted < n};
}

/* Token i of a chunk, its query and key as the rule takes them. */
template <int N>
__device__ __forceinline__ void load_token(const back_args &b, const chunk &c, int64_t i, int lane,
                                           delta_keys<N> &keys) {
    load_keys(b.delta, c.first + i, c.key_head, lane, keys);
    norm_keys(b.delta.heads.key_dim, lane, keys);
}

/* The chunk's keys and gates come to shared memory, a half warp a token. */
template <int N> __device__ void load_chunk(const back_args &b, const chunk &c, const block_shared &shared) {
    const int dim = b.delta.heads.key_dim;
    const int lane = threadIdx.x % WB_LANES, half = threadIdx.x / WB_LANES;
    for (int64_t first = 0; first < c.n; first += HALVES) {
        const int64_t i = min(first + half, c.n - 1), at = (c.first + i) * b.delta.heads.n_value + c.head;
        delta_keys<N> keys;
        load_token(b, c, i, lane, keys);
        if (first + half >= c.n) continue;
        store_row(keys.k, dim, lane, shared.chunk_k + i * dim);
        if (lane == 0)
            shared.gates[i] =
                gates_of(b.delta, c.head, load_element(b.delta.b, at), load_element(b.delta.a, at));
    }
}

/* v of 16 tokens from i0 on, a token a lane. */
__device__ __forceinline__ float load_values(const back_args &b, const chunk &c, int64_t i0, int j,
                                             int lane) {
    if (i0 + lane >= c.n) return 0.0f;
    return load_element(b.delta.qkv, wb_delta_value_at(b.delta.heads, c.first + i0 + lane, c.head) + j);
}

template <int N>
__device__ void leave_marks(const back_args &b, const wb_sequence_run &run, const chunk &c,
                            const block_scratch &s, const block_shared &shared) {
    const int dim = b.delta.heads.key_dim, n = b.delta.heads.value_dim;
    const int lane = threadIdx.x % WB_LANES, half = threadIdx.x / WB_LANES;
    const int64_t size = state_floats(b.delta.heads);
    const float *from =
        b.delta.checkpoints + (c.first / WB_DELTA_CHUNK * b.delta.heads.n_value + c.head) * size;
    for (int first = 0; first < n; first += HALVES) {
        const value_place at = place_of(first + half, n);
        const int64_t row = static_cast<int64_t>(at.j) * dim;
        float state[N] = {}, k[N], v = 0.0f;
        if (c.first > run.start) load_row(from + row, dim, lane, state);
        for (int64_t i = 0; i < c.n; i++) {
            if (i % WB_LANES == 0) v = load_values(b, c, i, at.j, lane);
            if (i % GROUP == 0 && at.live) store_row(state, dim, lane, s.marks + i / GROUP * size + row);
            load_row(shared.chunk_k + i * dim, dim, lane, k);
            delta_step(dim, lane, shared.gates[i], k,
                       __shfl_sync(ALL_LANES, v, static_cast<int>(i % WB_LANES), WB_LANES), state);
        }
    }
}

/* ---- back through a group ---------------------------------------------------------------------- */

/* The `n` tokens of a chunk from number `first` on. */
struct token_group {
    int64_t first;
    int n;
};

/* Token i of the group and one value: g, a row of the gradient of S^T, from behind the token to before it.
 * The half warp's sums go on, db and dg being those of the token. Returns the gradient of v. */
template <int N>
__device__ __forceinline__ float backward_value(int dim, int i, bool live, float dout, float error,
                                                delta_gates gates, const float (&before)[N],
                                                const float (&behind)[N], const block_shared &shared,
                                                float (&g)[N], float &db, float &dg) {
    const int lane = threadIdx.x % WB_LANES, half = threadIdx.x / WB_LANES;
    const int lanes = (i * HALVES + half) * shared.stride + lane;
    const float d = wb_mul(gates.beta, error);
    float q[N], k[N], sum = 0.0f;
    load_row(shared.q + i * dim, dim, lane, q);
    load_row(shared.k + i * dim, dim, lane, k);
#pragma unroll
    for (int x = 0; x < N; x++) {
        float &dq = shared.lanes_q[lanes + WB_LANES * x];
        if (live && lane + WB_LANES * x < dim) dq = wb_fma(behind[x], dout, dq);
        g[x] = wb_fma(q[x], dout, g[x]);
    }
    const float dd = dot(g, k, dim, lane), dv = wb_mul(gates.beta, dd), dm = -dv;
#pragma unroll
    for (int x = 0; x < N; x++) {
        float &dk = shared.lanes_k[lanes + WB_LANES * x];
        const float faded = wb_mul(gates.decay, before[x]);
        const bool there = lane + WB_LANES * x < dim;
        if (live && there) dk = wb_fma(faded, dm, wb_fma(g[x], d, dk));
        g[x] = wb_fma(k[x], dm, g[x]);
        if (there) sum = wb_fma(g[x], faded, sum);
        g[x] = wb_mul(g[x], gates.decay);
    }
    sum = fold_lanes(sum);
    if (live) db = wb_fma(dd, error, db), dg = wb_add(dg, sum);
    return dv;
}

/* All values of a half warp, one after the other; dstate: the gradient of S^T behind the group, then before
 * it. */
template <int N>
__device__ void backward_values(const back_args &b, const chunk &c, token_group group, const block_scratch &s,
                                float *dstate, const block_shared &shared) {
    const int dim = b.delta.heads.key_dim, n = b.delta.heads.value_dim;
    const int lane = threadIdx.x % WB_LANES, half = threadIdx.x / WB_LANES;
    const float *const marks = s.marks + group.first / GROUP * state_floats(b.delta.heads);
    const delta_gates *const gates = shared.gates + group.first;
    float db[GROUP] = {}, dg[GROUP] = {};
    for (int first = 0; first < n; first += HALVES) {
        const value_place at = place_of(first + half, n);
        const int64_t row = static_cast<int64_t>(at.j) * dim, t0 = c.first + group.first;
        float state[GROUP + 1][N], error[GROUP], v[GROUP], dout[GROUP], g[N];
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            const int64_t t = t0 + min(i, group.n - 1);
            v[i] = load_element(b.delta.qkv, wb_delta_value_at(b.delta.heads, t, c.head) + at.j);
            dout[i] = load_element(b.dout, (t * b.delta.heads.n_value + c.head) * n + at.j);
        }
        load_row(marks + row, dim, lane, state[0]);
        load_row(dstate + row, at.live ? dim : 0, lane, g);
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            float k[N];
#pragma unroll
            for (int x = 0; x < N; x++) state[i + 1][x] = state[i][x];
            if (i >= group.n) continue;
            load_row(shared.k + i * dim, dim, lane, k);
            error[i] = delta_step(dim, lane, gates[i], k, v[i], state[i + 1]);
        }
#pragma unroll
        for (int i = GROUP - 1; i >= 0; i--) {
            if (i >= group.n) continue;
            const float dv = backward_value(dim, i, at.live, dout[i], error[i], gates[i], state[i],
                                            state[i + 1], shared, g, db[i], dg[i]);
            if (at.live && lane == 0)
                store_element(b.dqkv, wb_delta_value_at(b.delta.heads, t0 + i, c.head) + at.j, dv);
        }
        if (at.live) store_row(g, dim, lane, dstate + row);
    }
#pragma unroll
    for (int i = 0; i < GROUP; i++)
        if (lane == 0) shared.lanes_b[i * HALVES + half] = db[i], shared.lanes_g[i * HALVES + half] = dg[i];
}

/* The fold of lanes[HALVES], `stride` apart. */
__device__ __forceinline__ float fold_halves(const float *lanes, int stride) {
    float x[HALVES];
#pragma unroll
    for (int m = 0; m < HALVES; m++) x[m] = lanes[m * stride];
    return wb_lanes_sum(x);
}
static_assert(BLOCK == WB_LANES * WB_LANES, "a half warp for each lane of a sum over values");

/* The group's queries and keys come to shared memory, and the sums of this half warp begin. */
template <int N>
__device__ void begin_group(const back_args &b, const chunk &c, token_group group,
                            const block_shared &shared) {
    const int dim = b.delta.heads.key_dim;
    const int lane = threadIdx.x % WB_LANES, half = threadIdx.x / WB_LANES;
    const float zeros[N] = {};
    for (int i = 0; i < GROUP; i++) {
        store_row(zeros, dim, lane, shared.lanes_q + (i * HALVES + half) * shared.stride);
        store_row(zeros, dim, lane, shared.lanes_k + (i * HALVES + half) * shared.stride);
    }
    if (half >= GROUP) return; /* whole warps */
    delta_keys<N> keys;
    load_token(b, c, group.first + min(half, group.n - 1), lane, keys);
    store_row(keys.q, dim, lane, shared.q + half * dim);
    store_row(keys.k, dim, lane, shared.k + half * dim);
}
static_assert(GROUP % 2 == 0, "warps that load a group's tokens are whole");

/* Sums over all values: dq and dk (+=) over the value heads, db and dg. */
__device__ __forceinline__ void end_group(const back_args &b, const chunk &c, token_group group,
                                          const block_scratch &s, const block_shared &shared) {
    const int dim = b.delta.heads.key_dim;
    for (int x = threadIdx.x; x < group.n * dim; x += BLOCK) {
        const int lanes = x / dim * HALVES * shared.stride + x % dim;
        const int64_t at = group.first * dim + x;
        s.dq[at] = wb_add(s.dq[at], fold_halves(shared.lanes_q + lanes, shared.stride));
        s.dk[at] = wb_add(s.dk[at], fold_halves(shared.lanes_k + lanes, shared.stride));
    }
    const int i = threadIdx.x;
    if (i >= group.n) return;
    const int64_t at = (c.first + group.first + i) * b.delta.heads.n_value + c.head;
    const float beta = shared.gates[group.first + i].beta, slope = wb_mul(beta, wb_sub(1.0f, beta));
    store_element(b.db, at, wb_mul(fold_halves(shared.lanes_b + i * HALVES, 1), slope));
    b.dg[at] = fold_halves(shared.lanes_g + i * HALVES, 1);
}

/* A chunk's tokens in one value head. By the block, whose threads meet before and behind it. */
template <int N>
__device__ void backward_head(const back_args &b, const wb_sequence_run &run, const chunk &c, float *dstate,
                              const block_scratch &s, const block_shared &shared) {
    load_chunk<N>(b, c, shared);
    __syncthreads();
    leave_marks<N>(b, run, c, s, shared);
    __syncthreads();
    for (int64_t first = (c.n - 1) / GROUP * GROUP; first >= 0; first -= GROUP) {
        const token_group group = {first, static_cast<int>(min(c.n - first, static_cast<int64_t>(GROUP)))};
        begin_group<N>(b, c, group, shared);
        __syncthreads();
        backward_values<N>(b, c, group, s, dstate, shared);
        __syncthreads();
        end_group(b, c, group, s, shared);
        __syncthreads();
    }
}

} // namespace

#endif
