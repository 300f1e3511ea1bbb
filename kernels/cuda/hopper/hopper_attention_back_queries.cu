/* hopper_attention_back_queries.cu - dq on sm_90a: a block has 128 queries of one head, 64 a warpgroup, and
 * goes over the keys that they see, 64 at a time.
 *
 * s = q k^T, p = 2^(s - log2_sum), ds = p (dout v^T - dot), dq += ds k, of 64 queries and 64 keys at a
 * time. Refuses: dk and dv (hopper_attention_back_keys.cu). */
#include "cuda/hopper/hopper_attention_back_fill.h"

namespace {

/* Queries of 128 go into registers, where wgmma reads them at half the traffic of shared memory, and leave
 * their place to the next tile at once. Those of 64 stay in shared memory, and the next tile comes beside
 * them: ptxas 13.0 takes registers that each turn of a loop reads for dead where all three products of the
 * loop are of one shape, and overwrites them. */
template <int D> struct query_memory {
    static constexpr bool IN_REGISTERS = D == 128;
    static constexpr int STAGES = 5, TILES = IN_REGISTERS ? 1 : 2;
    static constexpr int TILE = WB_BACK_TILE * D * 2, ROWS = STAGE_ROWS * D * 2, STAGE = 2 * ROWS;
    static constexpr int STAGES_AT = TILES * 2 * TILE, BARRIERS = STAGES_AT + STAGES * STAGE;
    static constexpr int BYTES = BARRIERS + 16 * TILES + 16 * STAGES;
    uint32_t base;

    ASM_INLINE uint32_t q(uint32_t tile) const {
        return base + tile * 2 * TILE;
    }
    ASM_INLINE uint32_t dout(uint32_t tile) const {
        return q(tile) + TILE;
    }
    ASM_INLINE uint32_t k(uint32_t stage) const {
        return base + STAGES_AT + stage * STAGE;
    }
    ASM_INLINE uint32_t v(uint32_t stage) const {
        return k(stage) + ROWS;
    }
    ASM_INLINE uint32_t queries_full(uint32_t tile) const {
        return base + BARRIERS + 8 * tile;
    }
    ASM_INLINE uint32_t queries_empty(uint32_t tile) const {
        return queries_full(TILES + tile);
    }
    ASM_INLINE uint32_t full(uint32_t stage) const {
        return queries_full(2 * TILES + stage);
    }
    ASM_INLINE uint32_t empty(uint32_t stage) const {
        return full(STAGES + stage);
    }
};

/* Tokens [first, end) of one head, and their kv head. They see the keys [begin, keys). */
struct query_tile {
    int seq, head, kv, first, end, begin, keys;
};

/* The first stage in which a key is seen by tokens whose first one sees `key` first. */
ASM_INLINE int first_stage(int key) {
    return key / STAGE_ROWS * STAGE_ROWS;
}

ASM_INLINE query_tile find_queries(const wb_attention_back &call, int number) {
    const work w = find_work(call, number, call.args.n_heads);
    query_tile t;
    t.first = w.item.begin + (w.item.level - 1) * WB_BACK_TILE;
    t.end = min(t.first + WB_BACK_TILE, w.item.end);
    t.head = w.head, t.kv = w.head / (call.args.n_heads / call.args.n_kv_heads);
    t.seq = call.args.seq[t.first], t.keys = call.args.pos[t.end - 1] + 1;
    t.begin = attention_first_key(&call.args, call.args.pos[t.first]);
    return t;
}

/* ---- filling ----------------------------------------------------------------------------------- */

template <int D>
ASM_INLINE void fill_queries(const wb_attention_back &call, const query_memory<D> &m, int thread) {
    const filler<D> f(thread);
    const wb_attention &args = call.args;
    const int all = *call.n_items * args.n_heads;
    ring<query_memory<D>::TILES> tile = {0, 0};
    ring<query_memory<D>::STAGES> stage = {0, 0};
    for (int round = 0; work_number(round) < all; round++, tile.next()) {
        const query_tile t = find_queries(call, work_number(round));
        key_places places = find_key_places(args, t.seq, first_stage(t.begin), t.begin, t.keys);
        barrier_wait(m.queries_empty(tile.at), tile.parity ^ 1);
        fill_tokens<D, WB_BACK_TILE>(f, args, call.q_map, args.q, t.head, t.first, t.end, m.q(tile.at),
                                     m.queries_full(tile.at));
        fill_tokens<D, WB_BACK_TILE>(f, args, call.dout_map, call.dout, t.head, t.first, t.end,
                                     m.dout(tile.at), m.queries_full(tile.at));
        copies_arrive(m.queries_full(tile.at));
        for (int j0 = first_stage(t.begin); j0 < t.keys; j0 += STAGE_ROWS, stage.next()) {
            const key_places next = find_key_places(args, t.seq, j0 + STAGE_ROWS, t.begin, t.keys);
            barrier_wait(m.empty(stage.at), stage.parity ^ 1);
            fill_keys<D, STAGE_ROWS>(f, call, t.kv, places, m.k(stage.at), m.v(stage.at), m.full(stage.at));
            copies_arrive(m.full(stage.at));
            places = next;
        }
    }
}

/* ---- multiplying ------------------------------------------------------------------------------- */

/* Of a lane's two rows: where they lie, below which position keys are seen, log2_sum and dot. */
struct query_rows {
    int token[2], limit[2]; /* token -1: no row */
    float log2_sum[2], dot[2];
};

ASM_INLINE query_rows find_query_rows(const wb_attention_back &call, const query_tile &t, int warp) {
    query_rows rows;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int token = t.first + warp * 16 + static_cast<int>(threadIdx.x) % 32 / 4 + 8 * r;
        const int64_t at = t.head * call.args.T + token;
        const bool there = token < t.end;
        rows.token[r] = there ? token : -1, rows.limit[r] = there ? call.args.pos[token] + 1 : 0;
        rows.log2_sum[r] = there ? call.log2_sums[at] : 0.0f, rows.dot[r] = there ? call.dots[at] : 0.0f;
    }
    return rows;
}

/* A tile's 64 rows of a warpgroup as the A of products: in registers or in shared memory. */
template <int D, bool IN_REGISTERS> struct query_operand;

template <int D> struct query_operand<D, true> {
    uint32_t a[D / 4];

    ASM_INLINE void load(uint32_t tile, int warp) {
        const int lane = static_cast<int>(threadIdx.x) % 32, row = warp * 16 + lane % 16;
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            const int part = 2 * k + lane / 16;
            load_matrices(tile + part / 8 * WB_BACK_TILE * 128 + row * 128 + ((part % 8) ^ row % 8) * 16,
                          a + 4 * k);
        }
    }
    /* sum[64][64] (=) the rows times the STAGE_ROWS rows of a tile */
    ASM_INLINE void multiply(uint32_t tile, float (&sum)[32]) const {
        const uint64_t b = operand_at(tile, 0);
#pragma unroll
        for (int k = 0; k < D / 16; k++) wgmma_rows<0>(sum, a + 4 * k, b + k_step<STAGE_ROWS>(k), k);
        wgmma_commit();
    }
};

template <int D> struct query_operand<D, false> {
    uint64_t a;

    ASM_INLINE void load(uint32_t tile, int warp) {
        a = operand_at(tile + warp / 4 * 64 * 128, 0);
    }
    ASM_INLINE void multiply(uint32_t tile, float (&sum)[32]) const {
        multiply_tiles<D>(a, operand_at(tile, 0), sum);
    }
};

/* Which keys the rows of a warpgroup see: all of them those of positions [all_from, all_to), none those
 * before `from` and from `to` on. */
struct seen_keys {
    int from, all_from, all_to, to;
    ASM_INLINE bool all_see(int j0) const {
        return all_from <= j0 && j0 + STAGE_ROWS <= all_to;
    }
};

ASM_INLINE seen_keys find_seen(const wb_attention &args, int first, int end) {
    if (first >= end) return {0, 0, 0, 0};
    const int first_position = args.pos[first], last_position = args.pos[end - 1];
    return {attention_first_key(&args, first_position), attention_first_key(&args, last_position),
            first_position + 1, last_position + 1};
}

/* Scores to weights: keys from position j0 on; `masked`: some row does not see all of them. */
ASM_INLINE void find_weights(const query_rows &rows, int j0, bool masked, int window, float factor,
                             float (&s)[32]) {
#pragma unroll
    for (int i = 0; i < 32; i++) s[i] = wb_fma(s[i], factor, -rows.log2_sum[i / 2 % 2]);
    if (masked) {
        const int column = j0 + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
        for (int i = 0; i < 32; i++)
            if (column + i / 4 * 8 + i % 2 >= rows.limit[i / 2 % 2]) s[i] = MINUS_INFINITY;
        if (window > 0) {
#pragma unroll
            for (int i = 0; i < 32; i++)
                if (column + i / 4 * 8 + i % 2 < rows.limit[i / 2 % 2] - window) s[i] = MINUS_INFINITY;
        }
    }
#pragma unroll
    for (int i = 0; i < 32; i++) s[i] = exp2_of(s[i]);
}

/* Adding 0 makes -0 0: a sum of nothing but zeros does not say how many keys it went over. */
template <int D>
ASM_INLINE void store_queries(const wb_attention_back &call, const query_tile &t, const query_rows &rows,
                              const float (&sum)[D / 2]) {
    const int64_t stride = static_cast<int64_t>(call.args.n_heads) * D;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (rows.token[r] < 0) continue;
        uint16_t *to =
            static_cast<uint16_t *>(call.dq.data) + rows.token[r] * stride + t.head * D + threadIdx.x % 4 * 2;
#pragma unroll
        for (int j = 0; j < D / 8; j++)
            *reinterpret_cast<uint32_t *>(to + 8 * j) =
                pack_pair(wb_add(wb_mul(sum[4 * j + 2 * r], call.args.scale), 0.0f),
                          wb_add(wb_mul(sum[4 * j + 2 * r + 1], call.args.scale), 0.0f));
    }
}

/* What a warpgroup keeps from tile to tile. */
template <int D> struct query_state {
    ring<query_memory<D>::TILES> tile;
    ring<query_memory<D>::STAGES> stage;
};

/* dq goes on by a stage of keys, from position j0 on. `before`: of the stage before, whose products are done
 * when this one's scores are; 0: there is none, and dq begins. */
template <int D, class OPERAND>
ASM_INLINE void add_keys(const query_memory<D> &m, uint32_t stage, uint32_t before, const OPERAND &q,
                         const OPERAND &dout, const query_rows &rows, int j0, bool masked, int window,
                         float factor, float (&dq)[D / 2]) {
    float s[32], dp[32];
    uint32_t packed[16];
    fence_async();
    wgmma_fence();
    q.multiply(m.k(stage), s);
    dout.multiply(m.v(stage), dp);
    wgmma_wait<1>();
    sums_are_there(s);
    if (before) release_buffer(before);
    find_weights(rows, j0, masked, window, factor, s);
    wgmma_wait<0>();
    sums_are_there(dp);
#pragma unroll
    for (int i = 0; i < 32; i++) s[i] = wb_mul(s[i], wb_sub(dp[i], rows.dot[i / 2 % 2]));
    pack_sums(s, packed);
    wgmma_fence();
    add_rows_of<D>(packed, m.k(stage), before != 0, dq);
    wgmma_commit();
}

/* Stages from position j0 on, before `end`, of keys that no row of this warpgroup sees. */
template <int D> ASM_INLINE int pass_stages(const query_memory<D> &m, int j0, int end, query_state<D> *at) {
    for (; j0 < end; j0 += STAGE_ROWS, at->stage.next()) {
        barrier_wait(m.full(at->stage.at), at->stage.parity);
        release_buffer(m.empty(at->stage.at));
    }
    return j0;
}

/* One tile: the warpgroup's 64 rows of it over all keys. */
template <int D>
ASM_INLINE void multiply_queries(const wb_attention_back &call, const query_memory<D> &m, const query_tile &t,
                                 int warp, query_state<D> *at) {
    constexpr bool IN_REGISTERS = query_memory<D>::IN_REGISTERS;
    query_operand<D, IN_REGISTERS> q, dout;
    float dq[D / 2];
    const query_rows rows = find_query_rows(call, t, warp);
    const int first = t.first + warp / 4 * 64;
    const seen_keys seen = find_seen(call.args, first, min(first + 64, t.end));
    const float factor = wb_mul(call.args.scale, WB_LOG2_E);
    uint32_t before = 0;
    int j0 = first_stage(t.begin);
    barrier_wait(m.queries_full(at->tile.at), at->tile.parity);
    q.load(m.q(at->tile.at), warp), dout.load(m.dout(at->tile.at), warp);
    if (IN_REGISTERS) release_buffer(m.queries_empty(at->tile.at));
    j0 = pass_stages<D>(m, j0, first_stage(seen.from), at);
    for (; j0 < seen.to; j0 += STAGE_ROWS, at->stage.next()) {
        const uint32_t stage = at->stage.at;
        barrier_wait(m.full(stage), at->stage.parity);
        add_keys<D>(m, stage, before, q, dout, rows, j0, !seen.all_see(j0), call.args.window, factor, dq);
        before = m.empty(stage);
    }
    wgmma_wait<0>();
    sums_are_there(dq);
    if (before) release_buffer(before);
    if (!IN_REGISTERS) release_buffer(m.queries_empty(at->tile.at));
    pass_stages<D>(m, j0, t.keys, at);
    if (seen.to > 0) store_queries<D>(call, t, rows, dq);
}

/* ---- the kernel -------------------------------------------------------------------------------- */

template <int D>
__global__ void __launch_bounds__(BACK_THREADS, 1)
    attend_back_to_queries(const __grid_constant__ wb_attention_back call) {
    extern __shared__ __align__(1024) uint8_t bytes[];
    const query_memory<D> m = {shared_address(bytes)};
    const int warpgroup = __shfl_sync(ALL_LANES, static_cast<int>(threadIdx.x / WARPGROUP), 0);
    if (threadIdx.x == 0) {
        for (int i = 0; i < query_memory<D>::TILES; i++) init_buffer(m.queries_full(i), m.queries_empty(i));
        for (int i = 0; i < query_memory<D>::STAGES; i++) init_buffer(m.full(i), m.empty(i));
        barrier_init_fence();
    }
    __syncthreads();
    if (warpgroup == 2) {
        give_registers<24>();
        fill_queries<D>(call, m, static_cast<int>(threadIdx.x) % WARPGROUP);
    } else {
        take_registers<240>();
        const int all = *call.n_items * call.args.n_heads;
        const int warp = __shfl_sync(ALL_LANES, static_cast<int>(threadIdx.x / 32), 0);
        query_state<D> at = {{0, 0}, {0, 0}};
        for (int round = 0; work_number(round) < all; round++, at.tile.next())
            multiply_queries<D>(call, m, find_queries(call, work_number(round)), warp, &at);
    }
}

} // namespace

wb_status wb_hopper_attention_back_queries(wb_device *dev, const char *op, const wb_attention_back &call) {
    return call.args.head_dim == 64
               ? launch_back(dev, op, attend_back_to_queries<64>, query_memory<64>::BYTES, call)
               : launch_back(dev, op, attend_back_to_queries<128>, query_memory<128>::BYTES, call);
}
