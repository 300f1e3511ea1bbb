/* hopper_attention_forward.h - the kernel of adjacent tokens: two warpgroups with 64 rows each, which take
 * turns on the tensor cores, and one that fills shared memory (hopper_attention_tiles.h).
 *
 * The products of a block's scores are in flight together with those of the values of the block before, and
 * softmax runs beside them. Refuses: launching (hopper_attention_forward.cu). For .cu files compiled for
 * sm_90a. */
#ifndef WB_HOPPER_ATTENTION_FORWARD_H
#define WB_HOPPER_ATTENTION_FORWARD_H

#include "cuda/hopper/hopper_attention_tiles.h"

namespace {

ASM_INLINE void threads_arrive(int number, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

/* sum[64][D] (+)= P[64][16] V[16][D]: P from registers, as soften leaves it; V in rows of keys. */
ASM_INLINE void add_values(float (&sum)[64], const uint32_t *p, uint64_t v, int more) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %69, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{" REG_64 "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;}"
        : SUM_64(0)
        : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "l"(v), "r"(more));
}
ASM_INLINE void add_values(float (&sum)[32], const uint32_t *p, uint64_t v, int more) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %37, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 "{" REG_UP_TO_9
                 "," REG_10(1) "," REG_10(2) ",%30,%31}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;}"
                 : SUM_16(0), SUM_16(16)
                 : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "l"(v), "r"(more));
}

/* What a lane has of its two rows of the piece. */
template <int D> struct attender {
    float score[64], sum[D / 2];
    uint32_t weights[32];
    /* of the split so far; of the one that has just ended; of those before it */
    row_state row[2], ended[2], all[2];
    /* what sums so far are multiplied by before the next values come */
    float scale[2];
    /* positions below it are seen */
    int32_t limit[2];
};

/* ---- products ---------------------------------------------------------------------------------- */

template <int D>
ASM_INLINE void begin_scores(attender<D> &w, const tile_memory<D> &shared, int warpgroup, uint32_t stage) {
    const uint64_t q = operand_at(shared.queries() + static_cast<uint32_t>(warpgroup) * 8192, 0);
    const uint64_t keys = operand_at(shared.keys(stage), 0, tile_memory<D>::EIGHT_ROWS);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < D / 16; k++)
        wgmma<0, 0>(w.score, q + (k / 4 * tile_memory<D>::PART + k % 4 * 32) / 16,
                    keys + (k / 4 * 1024 + k % 4 * 32) / 16, k > 0);
    wgmma_commit();
}

template <int D>
ASM_INLINE void begin_values(attender<D> &w, const tile_memory<D> &shared, uint32_t stage, int more) {
    const uint64_t values = operand_at(shared.values(stage), 1024, tile_memory<D>::EIGHT_ROWS);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < BLOCK_KEYS / 16; k++)
        add_values(w.sum, w.weights + 4 * k, values + k * (2 * tile_memory<D>::EIGHT_ROWS / 16), more | k);
    wgmma_commit();
}

/* Keys that a row does not see: those after it, and those before its window. */
template <int D>
ASM_INLINE void hide_keys(attender<D> &w, const wb_attention &args, int block, const piece_view &v) {
    const int32_t column = block * BLOCK_KEYS + static_cast<int32_t>(threadIdx.x % 4) * 2;
    if (block * BLOCK_KEYS + BLOCK_KEYS - 1 > v.first_position) {
        const int32_t seen[2] = {w.limit[0] - column, w.limit[1] - column};
#pragma unroll
        for (int i = 0; i < 64; i++)
            if (8 * (i / 4) + i % 2 >= seen[i / 2 % 2]) w.score[i] = NO_SCORE;
    }
    if (block * BLOCK_KEYS < v.last_begin) {
        const int32_t hidden[2] = {w.limit[0] - args.window - column, w.limit[1] - args.window - column};
#pragma unroll
        for (int i = 0; i < 64; i++)
            if (8 * (i / 4) + i % 2 < hidden[i / 2 % 2]) w.score[i] = NO_SCORE;
    }
}

/* Pinned: else it sinks below the next wgmma, which then waits for it. */
template <int D> ASM_INLINE void pack_weights(attender<D> &w) {
#pragma unroll
    for (int i = 0; i < 32; i++) {
        w.weights[i] = pack_pair(w.score[2 * i], w.score[2 * i + 1]);
        asm volatile("" : "+r"(w.weights[i])::"memory");
    }
}

/* ---- splits ------------------------------------------------------------------------------------ */

template <int D> ASM_INLINE void end_split(attender<D> &w) {
#pragma unroll
    for (int r = 0; r < 2; r++) w.ended[r] = w.row[r], w.row[r] = no_keys();
}

/* Folds the split that has ended into those before it, whose sums lie in shared memory. `last`: the result
 * goes back to w.sum, else to shared memory. Sums are never written on one of two ways alone: wgmma would
 * have to wait for copies of them. */
template <int D>
ASM_INLINE void fold(attender<D> &w, const tile_memory<D> &shared, int warpgroup, bool first, bool last) {
    fold_factors by[2] = {};
    const uint32_t at = shared.kept(warpgroup) + threadIdx.x % GROUP_THREADS * 16;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const row_state split = {w.ended[r].largest, sum_of_lanes(w.ended[r].sum)};
        if (first)
            w.all[r] = split;
        else
            by[r] = fold_split(&w.all[r], split);
    }
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
        float x[4] = {w.sum[4 * j], w.sum[4 * j + 1], w.sum[4 * j + 2], w.sum[4 * j + 3]};
        if (!first) {
            const uint4 before = load_16(at + static_cast<uint32_t>(j * GROUP_THREADS * 16));
            x[0] = fold_value(__uint_as_float(before.x), x[0], by[0]);
            x[1] = fold_value(__uint_as_float(before.y), x[1], by[0]);
            x[2] = fold_value(__uint_as_float(before.z), x[2], by[1]);
            x[3] = fold_value(__uint_as_float(before.w), x[3], by[1]);
        }
        if (last) {
            w.sum[4 * j] = x[0], w.sum[4 * j + 1] = x[1], w.sum[4 * j + 2] = x[2], w.sum[4 * j + 3] = x[3];
        } else {
            asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(
                             at + static_cast<uint32_t>(j * GROUP_THREADS * 16)),
                         "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3])
                         : "memory");
        }
    }
}

/* What the block before `block` left to be done to the sums. At the beginning of a split the scale is 0 and
 * the values begin new sums. */
template <int D>
ASM_INLINE void settle(attender<D> &w, const tile_memory<D> &shared, int warpgroup, int block,
                       int first_block) {
    if (block > first_block && block % SPLIT_BLOCKS == 0)
        fold(w, shared, warpgroup, block / SPLIT_BLOCKS - 1 == first_block / SPLIT_BLOCKS, false);
#pragma unroll
    for (int i = 0; i < D / 2; i++) w.sum[i] = __fmul_rn(w.sum[i], w.scale[i / 2 % 2]);
}

template <int D> ASM_INLINE void soften_rows(attender<D> &w, float factor) {
    w.scale[0] = soften<0>(w.score, factor, &w.row[0]);
    w.scale[1] = soften<1>(w.score, factor, &w.row[1]);
}

/* ---- a piece ----------------------------------------------------------------------------------- */

ASM_INLINE void release(uint32_t barrier) {
    if (threadIdx.x % 32 == 0) barrier_arrive(barrier);
}

/* A lane's row r of the tile: token and head of the group, from 16 rows a warp. */
ASM_INLINE int tile_row(int r) {
    const int thread = static_cast<int>(threadIdx.x);
    return thread / 32 * 16 - 64 + thread % 32 / 4 + 8 * r;
}

template <int D> ASM_INLINE void begin_piece(attender<D> &w, const tile_call &call, const piece &p) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int32_t t = tile_row(r) / group_size(call.args);
        w.limit[r] = t < p.n && p.keys > 0 ? call.args.pos[p.token + t] + 1 : 0;
        w.row[r] = no_keys(), w.scale[r] = 0.0f;
        w.all[r] = no_keys();
    }
#pragma unroll
    for (int i = 0; i < D / 2; i++) w.sum[i] = 0.0f;
}

/* Rows of out; zeros of padding. */
template <int D> ASM_INLINE void store_piece(const attender<D> &w, const tile_call &call, const piece &p) {
    const int group = group_size(call.args);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int32_t t = tile_row(r) / group;
        if (t >= p.n) continue;
        const int64_t at =
            (p.token + static_cast<int64_t>(t)) * call.args.n_heads + p.kv * group + tile_row(r) % group;
        row_state row = w.all[r];
        const float inverse =
            p.keys > 0 ? end_row(call.args, p.kv * group + tile_row(r) % group, &row) : 0.0f;
        uint16_t *to = static_cast<uint16_t *>(call.out.data) + at * D + threadIdx.x % 4 * 2;
#pragma unroll
        for (int j = 0; j < D / 8; j++)
            *reinterpret_cast<uint32_t *>(to + 8 * j) = pack_pair(
                end_value(w.sum[4 * j + 2 * r], inverse), end_value(w.sum[4 * j + 2 * r + 1], inverse));
        if (call.args.log_sums && threadIdx.x % 4 == 0)
            call.args.log_sums[at] = p.keys > 0 ? log_of_sum(row) : 0.0f;
    }
}

/* Turns: a warpgroup multiplies while the other is at its softmax. */
ASM_INLINE void take_turn(int warpgroup) {
    threads_sync(SYNC_TURNS + warpgroup, 2 * GROUP_THREADS);
}
ASM_INLINE void give_turn(int warpgroup) {
    threads_arrive(SYNC_TURNS + 1 - warpgroup, 2 * GROUP_THREADS);
}

/* The first block's scores. `at`: blocks of keys so far. */
template <int D>
ASM_INLINE void begin_keys(attender<D> &w, const tile_call &call, const tile_memory<D> &shared,
                           const piece &p, const piece_view &v, int warpgroup, float factor, uint32_t at) {
    barrier_wait(shared.keys_full(stage_of(at)), parity_of(at));
    if (was_copied(call.args, p, v, v.first_block())) fence_async();
    begin_scores(w, shared, warpgroup, stage_of(at));
    wgmma_wait<0>();
    sums_are_there(w.score);
    release(shared.keys_empty(stage_of(at)));
    hide_keys(w, call.args, v.first_block(), v);
    soften<0>(w.score, factor, &w.row[0]), soften<1>(w.score, factor, &w.row[1]);
    pack_weights(w);
}

/* The scores of block + 1, and the values of `block`. */
template <int D>
ASM_INLINE void go_on(attender<D> &w, const tile_call &call, const tile_memory<D> &shared, const piece &p,
                      const piece_view &v, int warpgroup, float factor, int block, uint32_t at) {
    const uint32_t stage = stage_of(at), next = stage_of(at + 1);
    barrier_wait(shared.keys_full(next), parity_of(at + 1));
    if (was_copied(call.args, p, v, block + 1)) fence_async();
    take_turn(warpgroup);
    begin_scores(w, shared, warpgroup, next);
    settle(w, shared, warpgroup, block, v.first_block());
    barrier_wait(shared.values_full(stage), parity_of(at));
    if (was_copied(call.args, p, v, block)) fence_async();
    begin_values(w, shared, stage, block % SPLIT_BLOCKS);
    give_turn(warpgroup);
    wgmma_wait<1>();
    sums_are_there(w.score);
    release(shared.keys_empty(next));
    if ((block + 1) % SPLIT_BLOCKS == 0) end_split(w);
    hide_keys(w, call.args, block + 1, v);
    soften_rows(w, factor);
    wgmma_wait<0>();
    sums_are_there(w.sum);
    release(shared.values_empty(stage));
    pack_weights(w);
}

/* The values of the last block. */
template <int D>
ASM_INLINE void end_keys(attender<D> &w, const tile_call &call, const tile_memory<D> &shared, const piece &p,
                         const piece_view &v, int warpgroup, int block, uint32_t at) {
    settle(w, shared, warpgroup, block, v.first_block());
    barrier_wait(shared.values_full(stage_of(at)), parity_of(at));
    if (was_copied(call.args, p, v, block)) fence_async();
    begin_values(w, shared, stage_of(at), block % SPLIT_BLOCKS);
    wgmma_wait<0>();
    sums_are_there(w.sum);
    release(shared.values_empty(stage_of(at)));
    end_split(w);
    fold(w, shared, warpgroup, block / SPLIT_BLOCKS == v.first_block() / SPLIT_BLOCKS, true);
}

/* What a warpgroup of 64 rows does from beginning to end. */
template <int D>
ASM_INLINE void attend_all(const tile_call &call, const tile_memory<D> &shared, int warpgroup) {
    const float factor = score_factor(call.args);
    attender<D> w;
    uint32_t at = 0;
    /* The first turn is given once, not with each piece: two arrivals of one warpgroup would complete it. */
    if (warpgroup == 1) give_turn(1);
    for (uint32_t pieces = 0;; pieces++) {
        barrier_wait(shared.piece_full(), pieces % 2);
        const uint4 words = load_16(shared.piece());
        const piece p = {static_cast<int32_t>(words.x), static_cast<int32_t>(words.y),
                         static_cast<int32_t>(words.z), static_cast<int32_t>(words.w)};
        if (p.n == 0) break;
        const int blocks = (p.keys + BLOCK_KEYS - 1) / BLOCK_KEYS;
        const piece_view v = view_of(call.args, p);
        begin_piece(w, call, p);
        if (blocks > 0) begin_keys(w, call, shared, p, v, warpgroup, factor, at);
        for (int block = v.first_block(); block + 1 < blocks; block++, at++)
            go_on(w, call, shared, p, v, warpgroup, factor, block, at);
        /* Every thread has read what the piece is, and says so itself; all products have read its queries. */
        barrier_arrive(shared.piece_empty());
        if (blocks > 0) end_keys(w, call, shared, p, v, warpgroup, blocks - 1, at++);
        store_piece(w, call, p);
    }
}

/* Block of threads: the filling warpgroup first. */
template <int D>
__global__ void __launch_bounds__(3 * GROUP_THREADS, 1)
    attend_tiles(const __grid_constant__ CUtensorMap map_q, const __grid_constant__ CUtensorMap map_k,
                 const __grid_constant__ CUtensorMap map_v, const __grid_constant__ tile_call call) {
    extern __shared__ __align__(1024) uint8_t bytes[];
    const tile_memory<D> shared = {shared_address(bytes)};
    const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x / GROUP_THREADS), 0);
    if (threadIdx.x == 0) init_barriers(shared);
    __syncthreads();
    if (warpgroup == 0) {
        give_registers<56>();
        fill_all<D>(call, map_q, map_k, map_v, shared);
    } else {
        take_registers<224>();
        attend_all<D>(call, shared, warpgroup - 1);
    }
    /* The kernel of single tokens may still be at work, on rows of its own: whoever waits for this kernel
     * waits for both. */
    wait_for_kernels_before();
}

} // namespace

#endif
