/* hopper_attention_back_keys.cu - dk and dv on sm_90a: a block has 128 keys of one kv head, 64 a warpgroup,
 * and goes over the queries that see them, head by head of the group, 64 tokens at a time.
 *
 * Scores are made with keys as rows, so that weights and ds are, in registers, the A of the products that add
 * up dv and dk. s = k q^T, p = 2^(s - log2_sum), dv += p dout, ds = p (v dout^T - dot), dk += ds q.
 * Refuses: dq (hopper_attention_back_queries.cu). */
#include "cuda/hopper/hopper_attention_back_fill.h"

namespace {

template <int D> struct key_memory {
    static constexpr int STAGES = 4, TILE = WB_BACK_TILE * D * 2, ROWS = STAGE_ROWS * D * 2;
    static constexpr int STAGE = 2 * ROWS, NUMBERS = 2 * TILE + STAGES * STAGE;
    /* of each row of a stage: log2_sum, dot and position */
    static constexpr int BARRIERS = NUMBERS + STAGES * 3 * STAGE_ROWS * 4;
    static constexpr int BYTES = BARRIERS + 16 + 16 * STAGES;
    uint32_t base;

    ASM_INLINE uint32_t k() const {
        return base;
    }
    ASM_INLINE uint32_t v() const {
        return base + TILE;
    }
    ASM_INLINE uint32_t q(uint32_t stage) const {
        return base + 2 * TILE + stage * STAGE;
    }
    ASM_INLINE uint32_t dout(uint32_t stage) const {
        return q(stage) + ROWS;
    }
    ASM_INLINE uint32_t log2_sums(uint32_t stage) const {
        return base + NUMBERS + stage * 3 * STAGE_ROWS * 4;
    }
    ASM_INLINE uint32_t dots(uint32_t stage) const {
        return log2_sums(stage) + STAGE_ROWS * 4;
    }
    ASM_INLINE uint32_t positions(uint32_t stage) const {
        return log2_sums(stage) + 2 * STAGE_ROWS * 4;
    }
    ASM_INLINE uint32_t keys_full() const {
        return base + BARRIERS;
    }
    ASM_INLINE uint32_t keys_empty() const {
        return base + BARRIERS + 8;
    }
    ASM_INLINE uint32_t full(uint32_t stage) const {
        return base + BARRIERS + 16 + 8 * stage;
    }
    ASM_INLINE uint32_t empty(uint32_t stage) const {
        return full(STAGES + stage);
    }
};

/* Keys [j0, j0 + 128) of a run and a kv head, of which those of positions [seen_from, keys) are there: the
 * run's tokens [begin, end) see no others. Of the tokens those of [first, last) may see them. */
struct key_tile {
    int seq, kv, j0, seen_from, keys, begin, end, first, last;
};

/* The tile of a piece of work, in its first part. A run whose first token is not at position 0 has more tiles
 * of keys than of queries: every `levels`-th of them from the first on is the item's. Tiles before the run's
 * window are left out. */
ASM_INLINE key_tile find_keys(const wb_attention_back &call, int number, int *step_out) {
    const work w = find_work(call, number, call.args.n_kv_heads);
    const int step = w.item.levels * WB_BACK_TILE;
    key_tile t;
    t.kv = w.head, t.begin = w.item.begin, t.end = w.item.end;
    t.seq = call.args.seq[t.begin], t.keys = call.args.pos[t.end - 1] + 1;
    t.seen_from = attention_first_key(&call.args, call.args.pos[t.begin]);
    t.j0 = (w.item.levels - w.item.level) * WB_BACK_TILE;
    t.j0 += max(t.seen_from - t.j0 - WB_BACK_TILE + step, 0) / step * step;
    *step_out = step;
    return t;
}

/* Where the queries begin: at a multiple of STAGE_ROWS tokens from the run's first on. Those before and from
 * `last` on see none of the keys, if positions go on by 1; if not, all are looked at. */
ASM_INLINE void find_queries(const wb_attention_back &call, key_tile *t) {
    const int from = call.args.pos[t->begin], window = call.args.window;
    const bool adjacent = t->keys - from == t->end - t->begin;
    t->first = t->begin + (adjacent ? max(t->j0 - from, 0) / STAGE_ROWS * STAGE_ROWS : 0);
    t->last = t->end;
    if (adjacent && window > 0) {
        /* In 64 bits: a window may be any int, and none is added to without care. */
        const int64_t seen = static_cast<int64_t>(t->j0) + WB_BACK_TILE - 1 + window - from;
        if (seen < t->last - t->begin) t->last = t->begin + static_cast<int>(max(seen, int64_t{0}));
    }
}

/* The tiles of this block of threads, one after the other. */
struct key_walk {
    int round = 0, step = 0;
    key_tile t = {};

    /* False where there are no more. */
    ASM_INLINE bool next(const wb_attention_back &call) {
        t.j0 += step;
        while (t.j0 >= t.keys) {
            if (work_number(round) >= *call.n_items * call.args.n_kv_heads) return false;
            t = find_keys(call, work_number(round++), &step);
        }
        find_queries(call, &t);
        return true;
    }
};

/* ---- filling ----------------------------------------------------------------------------------- */

ASM_INLINE void copy_4(uint32_t to, const void *from, uint32_t bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

/* Rows that are not there are zeros: of q and dout, so that they add nothing. */
template <int D>
ASM_INLINE void fill_stage(const filler<D> &f, const wb_attention_back &call, const key_memory<D> &m,
                           const key_tile &tile, int head, int first, uint32_t stage) {
    const int row = static_cast<int>(threadIdx.x) % STAGE_ROWS, t = first + row;
    const bool there = t < tile.end;
    const int64_t at = there ? head * call.args.T + t : 0;
    fill_tokens<D, STAGE_ROWS>(f, call.args, call.q_map, call.args.q, head, first, tile.end, m.q(stage),
                               m.full(stage));
    fill_tokens<D, STAGE_ROWS>(f, call.args, call.dout_map, call.dout, head, first, tile.end, m.dout(stage),
                               m.full(stage));
    if (static_cast<int>(threadIdx.x) % WARPGROUP < STAGE_ROWS) {
        copy_4(m.log2_sums(stage) + 4 * row, call.log2_sums + at, there ? 4 : 0);
        copy_4(m.positions(stage) + 4 * row, call.args.pos + (there ? t : 0), there ? 4 : 0);
    } else {
        copy_4(m.dots(stage) + 4 * row, call.dots + at, there ? 4 : 0);
    }
    copies_arrive(m.full(stage));
}

template <int D>
ASM_INLINE void fill_key_tile(const filler<D> &f, const wb_attention_back &call, const key_memory<D> &m,
                              const key_tile &t, ring<key_memory<D>::STAGES> *stage) {
    const int group = call.args.n_heads / call.args.n_kv_heads;
#pragma unroll 1
    for (int half = 0; half < 2; half++) {
        const key_places places =
            find_key_places(call.args, t.seq, t.j0 + STAGE_ROWS * half, t.seen_from, t.keys);
        const uint32_t from = half * STAGE_ROWS * 128;
        fill_keys<D, WB_BACK_TILE>(f, call, t.kv, places, m.k() + from, m.v() + from, m.keys_full());
    }
    copies_arrive(m.keys_full());
    for (int head = t.kv * group; head < (t.kv + 1) * group; head++)
        for (int first = t.first; first < t.last; first += STAGE_ROWS, stage->next()) {
            barrier_wait(m.empty(stage->at), stage->parity ^ 1);
            fill_stage<D>(f, call, m, t, head, first, stage->at);
        }
}

template <int D>
ASM_INLINE void fill_all_keys(const wb_attention_back &call, const key_memory<D> &m, int thread) {
    const filler<D> f(thread);
    ring<1> tile = {0, 0};
    ring<key_memory<D>::STAGES> stage = {0, 0};
    for (key_walk walk; walk.next(call); tile.next()) {
        barrier_wait(m.keys_empty(), tile.parity ^ 1);
        fill_key_tile<D>(f, call, m, walk.t, &stage);
    }
}

/* ---- multiplying ------------------------------------------------------------------------------- */

ASM_INLINE int load_position(uint32_t address) {
    int position;
    asm volatile("ld.shared.s32 %0, [%1];" : "=r"(position) : "r"(address) : "memory");
    return position;
}

ASM_INLINE void load_two(uint32_t address, float (&x)[2]) {
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x[0]), "=f"(x[1]) : "r"(address) : "memory");
}

/* Scores to weights; key: the position of the lane's first row; `masked`: some query does not see all. */
template <int D>
ASM_INLINE void find_weights(const key_memory<D> &m, uint32_t stage, int key, bool masked, int window,
                             float factor, float (&s)[32]) {
    const uint32_t pair = threadIdx.x % 4 * 8;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        float sum[2];
        load_two(m.log2_sums(stage) + pair + 32 * j, sum);
#pragma unroll
        for (int i = 0; i < 4; i++) s[4 * j + i] = wb_fma(s[4 * j + i], factor, -sum[i % 2]);
    }
    if (masked) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float at[2];
            load_two(m.positions(stage) + pair + 32 * j, at);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int behind = __float_as_int(at[i % 2]) - key - i / 2 * 8;
                if (behind < 0 || (window > 0 && behind >= window)) s[4 * j + i] = MINUS_INFINITY;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 32; i++) s[i] = exp2_of(s[i]);
}

/* Weights to ds. */
template <int D>
ASM_INLINE void find_ds(const key_memory<D> &m, uint32_t stage, const float (&dp)[32], float (&s)[32]) {
    const uint32_t pair = threadIdx.x % 4 * 8;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        float dot[2];
        load_two(m.dots(stage) + pair + 32 * j, dot);
#pragma unroll
        for (int i = 0; i < 4; i++) s[4 * j + i] = wb_mul(s[4 * j + i], wb_sub(dp[4 * j + i], dot[i % 2]));
    }
}

/* Rows of `to` += sum times factor, in f32, rounded once. */
template <int D>
ASM_INLINE void add_to_keys(const wb_attention &args, const wb_rows &to, const key_tile &t, int key,
                            float factor, const float (&sum)[D / 2]) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (key + 8 * r < t.seen_from) continue;
        const int32_t row = pool_row(args, t.seq, key + 8 * r, t.keys);
        if (row < 0) continue;
        uint32_t *pairs = reinterpret_cast<uint32_t *>(
            static_cast<uint16_t *>(to.data) + (static_cast<int64_t>(row) * args.n_kv_heads + t.kv) * D +
            threadIdx.x % 4 * 2);
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            const uint32_t old = pairs[4 * j];
            const float low = __uint_as_float(old << 16), high = __uint_as_float(old & 0xffff0000u);
            pairs[4 * j] = pack_pair(wb_fma(sum[4 * j + 2 * r], factor, low),
                                     wb_fma(sum[4 * j + 2 * r + 1], factor, high));
        }
    }
}

/* How the tokens of a stage, those from `first` on, see the 64 keys from position `key` on. */
struct stage_view {
    bool some, all;
};

template <int D>
ASM_INLINE stage_view find_view(const key_memory<D> &m, uint32_t stage, const key_tile &t, int first, int key,
                                int window) {
    const int from = load_position(m.positions(stage));
    const int to = load_position(m.positions(stage) + 4 * (min(STAGE_ROWS, t.end - first) - 1));
    if (window == 0) return {to >= key, from >= key + 63};
    return {to >= key && from - key - 63 < window, from >= key + 63 && to - key < window};
}

/* A warpgroup's 64 keys of a tile: the position of the first and of the lane's first; their sums so far, none
 * before `more`; and the stage that the last products still read. */
template <int D> struct key_state {
    int first, own;
    uint64_t k, v; /* operands */
    float dk[D / 2], dv[D / 2];
    int more;
    bool held;
    uint32_t before;
};

template <int D>
ASM_INLINE void begin_keys(const key_memory<D> &m, const key_tile &t, int warp, key_state<D> *w) {
    const uint32_t rows = warp / 4 * 64 * 128;
    w->first = t.j0 + warp / 4 * 64;
    w->own = w->first + warp % 4 * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
    w->k = operand_at(m.k() + rows, 0), w->v = operand_at(m.v() + rows, 0);
    w->more = 0, w->held = false, w->before = 0;
}

/* The sums go on by a stage. The stage before is released when its products are done. */
template <int D>
ASM_INLINE void add_stage(const key_memory<D> &m, uint32_t stage, bool masked, int window, float factor,
                          key_state<D> *w) {
    float s[32], dp[32];
    uint32_t packed_p[16], packed_ds[16];
    wgmma_fence();
    multiply_tiles<D>(w->k, operand_at(m.q(stage), 0), s);
    multiply_tiles<D>(w->v, operand_at(m.dout(stage), 0), dp);
    wgmma_wait<1>();
    sums_are_there(s);
    if (w->held) release_buffer(m.empty(w->before));
    find_weights<D>(m, stage, w->own, masked, window, factor, s);
    pack_sums(s, packed_p);
    wgmma_fence();
    add_rows_of<D>(packed_p, m.dout(stage), w->more, w->dv);
    wgmma_commit();
    wgmma_wait<1>();
    sums_are_there(dp);
    find_ds<D>(m, stage, dp, s);
    pack_sums(s, packed_ds);
    wgmma_fence();
    add_rows_of<D>(packed_ds, m.q(stage), w->more, w->dk);
    wgmma_commit();
    wgmma_wait<1>(); /* dv: packed_p is free */
    w->before = stage, w->held = true, w->more = 1;
}

/* A stage that is not for these keys. The other warpgroup may need many of them before this one goes on. */
template <int D> ASM_INLINE void pass_stage(const key_memory<D> &m, uint32_t stage, key_state<D> *w) {
    if (w->held) wgmma_wait<0>(), release_buffer(m.empty(w->before));
    release_buffer(m.empty(stage));
    w->held = false;
}

/* One tile: the warpgroup's 64 keys over all heads of the group and the tokens that see them. */
template <int D>
ASM_INLINE void multiply_key_tile(const wb_attention_back &call, const key_memory<D> &m, const key_tile &t,
                                  int warp, uint32_t parity, ring<key_memory<D>::STAGES> *at) {
    const int group = call.args.n_heads / call.args.n_kv_heads;
    const float factor = wb_mul(call.args.scale, WB_LOG2_E);
    key_state<D> w;
    begin_keys<D>(m, t, warp, &w);
    barrier_wait(m.keys_full(), parity);
    for (int head = 0; head < group; head++)
        for (int first = t.first; first < t.last; first += STAGE_ROWS, at->next()) {
            barrier_wait(m.full(at->at), at->parity);
            const stage_view view = find_view(m, at->at, t, first, w.first, call.args.window);
            if (w.first >= t.keys || !view.some) {
                pass_stage<D>(m, at->at, &w);
                continue;
            }
            /* what came by copies of 16 bytes is there for wgmma too */
            if (!w.more || first + STAGE_ROWS > t.end) fence_async();
            add_stage<D>(m, at->at, !view.all, call.args.window, factor, &w);
        }
    wgmma_wait<0>();
    sums_are_there(w.dk), sums_are_there(w.dv);
    if (w.held) release_buffer(m.empty(w.before));
    release_buffer(m.keys_empty());
    if (!w.more) return;
    add_to_keys<D>(call.args, call.dk, t, w.own, call.args.scale, w.dk);
    add_to_keys<D>(call.args, call.dv, t, w.own, 1.0f, w.dv);
}

template <int D>
ASM_INLINE void multiply_all_keys(const wb_attention_back &call, const key_memory<D> &m, int warp) {
    ring<1> tile = {0, 0};
    ring<key_memory<D>::STAGES> stage = {0, 0};
    for (key_walk walk; walk.next(call); tile.next())
        multiply_key_tile<D>(call, m, walk.t, warp, tile.parity, &stage);
}

/* ---- the kernel -------------------------------------------------------------------------------- */

template <int D>
__global__ void __launch_bounds__(BACK_THREADS, 1)
    attend_back_to_keys(const __grid_constant__ wb_attention_back call) {
    extern __shared__ __align__(1024) uint8_t bytes[];
    const key_memory<D> m = {shared_address(bytes)};
    const int warpgroup = __shfl_sync(ALL_LANES, static_cast<int>(threadIdx.x / WARPGROUP), 0);
    if (threadIdx.x == 0) {
        init_buffer(m.keys_full(), m.keys_empty());
        for (int i = 0; i < key_memory<D>::STAGES; i++) init_buffer(m.full(i), m.empty(i));
        barrier_init_fence();
    }
    __syncthreads();
    if (warpgroup == 2) {
        give_registers<24>();
        fill_all_keys<D>(call, m, static_cast<int>(threadIdx.x) % WARPGROUP);
    } else {
        take_registers<240>();
        multiply_all_keys<D>(call, m, __shfl_sync(ALL_LANES, static_cast<int>(threadIdx.x / 32), 0));
    }
}

} // namespace

wb_status wb_hopper_attention_back_keys(wb_device *dev, const char *op, const wb_attention_back &call) {
    return call.args.head_dim == 64
               ? launch_back(dev, op, attend_back_to_keys<64>, key_memory<64>::BYTES, call)
               : launch_back(dev, op, attend_back_to_keys<128>, key_memory<128>::BYTES, call);
}
