/* cuda_attention_latent.cu - the forward of attention over latents in bf16 by tensor cores: keys of 576
 * elements, whose first 512 are the values, one row for all heads that share it, as in MLA's absorbed form.
 *
 * The contract of a query is that of cuda_attention_warp.h but for its blocks, which are of 32 keys here:
 * from position 0 on, whatever else is in the call. A row's sum of weights is two chains, of the block's
 * first 16 keys and of the others, which are added last.
 *
 * A block of threads has 64 rows, pairs of (token, head): heads of one token, and of the tokens beside it
 * where these are fewer. Scores are shared out as 16 rows and 16 keys a warp, values as 64 columns a warp, so
 * that each element of a latent is read once as a value. Of which rows a tile consists changes no bit of
 * them. Refuses: values beside the keys, and the backward (cuda_attention_back.cu). */
#include "cuda/cuda_attention_keys.h"
#include "cuda/cuda_attention_latent.h"

namespace {

enum { WIDTH = 576, VALUES = 512, TILE = 64, BLOCK_KEYS = 32, THREADS = WARPS * 32 };
/* 16-byte parts of a latent, columns of values that a warp has, and elements of a line of weights: half of it
 * is not used, since eight parts make a swizzle. */
enum { PARTS = WIDTH / 8, COLUMNS = VALUES / WARPS, LINE = 64 };
static_assert(WARPS == TILE / ROWS * BLOCK_KEYS / 16, "a warp's scores are 16 rows and 16 keys");
static_assert(BLOCK_KEYS * PARTS % THREADS == 0, "all lanes of a warp have as many parts as each other");

/* Up to so many tokens each has tiles of its own, as single ones have: more blocks, with fewer rows. */
const int64_t MAX_SINGLES = 128;

/* What the warps of a block have in common. Blocks of keys lie in two places in turn: one is read while the
 * other comes. */
struct shared_tiles {
    alignas(128) uint16_t queries[TILE * WIDTH], keys[2][BLOCK_KEYS * WIDTH], weights[TILE * LINE];
    /* of each row: of the keys of either half of a block the largest score, and of all such keys the sum */
    float most[2][TILE], sum[2][TILE];
    /* what its values so far are multiplied by before a block, and in the end */
    float scale[TILE], factor[TILE];
};
/* What a block may have on sm_80; there is more on sm_90. */
static_assert(sizeof(shared_tiles) <= 163 * 1024, "shared memory of sm_80");

/* The rows of a tile: those from `first` on, `n` of them, of the tokens [begin, end) of one sequence. Row i
 * of a run is head i % group of token begin + i / group, as find_rows has it. */
struct query_tile {
    int64_t kv, begin, end;
    int first, n;
};

/* A warp's place: 16 rows and the first or the second 16 keys of a block. */
struct warp_place {
    int rows, half;
    __device__ __forceinline__ int row(int r) const {
        return rows + static_cast<int>(threadIdx.x) % 32 / 4 + 8 * r;
    }
};

/* ---- copies ------------------------------------------------------------------------------------ */

/* Rows that are not there are zeros. */
__device__ __forceinline__ void begin_queries(const wb_attention &args, const query_tile &tile,
                                              uint32_t queries) {
    const int group = group_size(args);
    for (int i = threadIdx.x; i < TILE * PARTS; i += THREADS) {
        const int row = i / PARTS, part = i % PARTS, number = tile.first + row;
        const bool there = row < tile.n;
        const int64_t t = tile.begin + number / group, head = tile.kv * group + number % group;
        const int64_t at = there ? (t * args.n_heads + head) * WIDTH + 8 * part : 0;
        begin_copy(tile_part<WIDTH>(queries, row, part), static_cast<const uint16_t *>(args.q.data) + at,
                   there);
    }
}

/* Keys that the run does not see are zeros. All threads; a lane knows where key number `lane` lies. */
__device__ __forceinline__ void begin_keys(const wb_attention &args, const query_tile &tile, int block,
                                           const run_keys &seen, uint32_t keys) {
    const uint16_t *head = static_cast<const uint16_t *>(args.k.data) + tile.kv * WIDTH;
    const int64_t stride = static_cast<int64_t>(args.n_kv_heads) * WIDTH;
    const int32_t j = block * BLOCK_KEYS + static_cast<int32_t>(threadIdx.x) % 32;
    const int32_t mine = j < seen.begin ? -1 : pool_row(args, args.seq[tile.begin], j, seen.end);
    for (int i = threadIdx.x; i < BLOCK_KEYS * PARTS; i += THREADS) {
        const int key = i / PARTS, part = i % PARTS;
        const int32_t row = __shfl_sync(ALL_LANES, mine, key);
        begin_copy(tile_part<WIDTH>(keys, key, part), head + (row >= 0 ? row * stride : 0) + 8 * part,
                   row >= 0);
    }
}

__device__ __forceinline__ void store_shared(uint32_t to, uint32_t pair) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(pair) : "memory");
}

/* ---- a block of keys --------------------------------------------------------------------------- */

/* s (=) the scores of the warp's rows and keys. */
__device__ __forceinline__ void multiply_latents(uint32_t queries, uint32_t keys, const warp_place &at,
                                                 float (&s)[2][4]) {
    const int lane = threadIdx.x % 32, key = lane / 16 * 8 + lane % 8, part = lane / 8 % 2;
#pragma unroll
    for (int k = 0; k < WIDTH / 16; k++) {
        uint32_t a[4], b[4];
        load_four(tile_part<WIDTH>(queries, at.rows + lane % 16, 2 * k + lane / 16), a);
        load_four(tile_part<WIDTH>(keys, 16 * at.half + key, 2 * k + part), b);
        add_products_16(s[0], a, b[0], b[1]);
        add_products_16(s[1], a, b[2], b[3]);
    }
}

/* Scores are scaled, and the largest of each row left for the warp that has the block's other keys. */
__device__ __forceinline__ void leave_largest(const lane_rows &rows, const warp_place &at, int32_t j0,
                                              float factor, float (&s)[2][4], shared_tiles &shared) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float most = MINUS_INFINITY;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float &x = s[i / 2][2 * r + i % 2];
            x = sees(rows, r, j0, i / 2, i % 2) ? wb_mul(x, factor) : MINUS_INFINITY;
            most = fmaxf(most, x);
        }
        most = quad_max(most);
        if (threadIdx.x % 4 == 0) shared.most[at.half][at.row(r)] = most;
    }
}

/* Scores become weights, rounded, of all warps; *state goes on by the block. */
__device__ __forceinline__ void leave_weights(const warp_place &at, const float (&s)[2][4],
                                              shared_tiles &shared, row_state *state) {
    const uint32_t weights = shared_place(shared.weights);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = at.row(r);
        const float most = fmaxf(shared.most[0][row], shared.most[1][row]);
        const float largest = fmaxf(state->largest[r], most);
        /* nothing was seen yet: any number will do in place of -inf - -inf */
        const float base = largest == MINUS_INFINITY ? 0.0f : largest;
        const float scale = exp2_of(wb_sub(state->largest[r], base));
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const float low = exp2_of(wb_sub(s[j][2 * r], base));
            const float high = exp2_of(wb_sub(s[j][2 * r + 1], base));
            store_shared(tile_part<LINE>(weights, row, 2 * at.half + j) + threadIdx.x % 4 * 4,
                         pack_pair(low, high));
            sum = wb_add(wb_add(sum, low), high);
        }
        state->sum[r] = wb_fma(state->sum[r], scale, sum);
        state->largest[r] = largest;
        if (at.half == 0 && threadIdx.x % 4 == 0) shared.scale[row] = scale;
    }
}

/* sum[64 rows][the warp's columns], 16 rows and 8 columns each, goes on by a block's values. */
typedef float value_sums[TILE / ROWS][COLUMNS / 8][4];

__device__ __forceinline__ void add_latents(const shared_tiles &shared, uint32_t keys, int n,
                                            value_sums &sum) {
    const int lane = threadIdx.x % 32, column = threadIdx.x / 32 * (COLUMNS / 8);
    const uint32_t weights = shared_place(shared.weights);
#pragma unroll
    for (int i = 0; i < TILE / ROWS; i++) {
        if (ROWS * i >= n) break;
        const float scale[2] = {shared.scale[ROWS * i + lane / 4], shared.scale[ROWS * i + lane / 4 + 8]};
        scale_rows<COLUMNS>(scale, sum[i]);
    }
#pragma unroll
    for (int k = 0; k < BLOCK_KEYS / 16; k++) {
        uint32_t v[COLUMNS / 16][4];
#pragma unroll
        for (int j = 0; j < COLUMNS / 16; j++)
            load_four_turned(tile_part<WIDTH>(keys, 16 * k + lane % 16, column + 2 * j + lane / 16), v[j]);
#pragma unroll
        for (int i = 0; i < TILE / ROWS; i++) {
            if (ROWS * i >= n) break;
            uint32_t p[4];
            load_four(tile_part<LINE>(weights, ROWS * i + lane % 16, 2 * k + lane / 16), p);
#pragma unroll
            for (int j = 0; j < COLUMNS / 16; j++) {
                add_products_16(sum[i][2 * j], p, v[j][0], v[j][1]);
                add_products_16(sum[i][2 * j + 1], p, v[j][2], v[j][3]);
            }
        }
    }
}

/* ---- a tile ------------------------------------------------------------------------------------ */

/* After the last block: shared.factor of the tile's rows, and log_sums. */
__device__ __forceinline__ void end_tile(const wb_attention &args, const query_tile &tile,
                                         const warp_place &at, const lane_rows &rows, row_state state,
                                         shared_tiles &shared) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float sum = quad_sum(state.sum[r]);
        if (threadIdx.x % 4 == 0) shared.sum[at.half][at.row(r)] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 2 && at.half == 0; r++) {
        const int row = at.row(r);
        state.sum[r] = wb_add(shared.sum[0][row], shared.sum[1][row]);
        const int64_t head = head_of_row(args, tile.kv, tile.first + at.rows, r);
        const float factor = end_whole_sum(args, head, r, &state);
        store_log_sum(args, rows, r, state);
        /* padding: zeros */
        if (threadIdx.x % 4 == 0) shared.factor[row] = rows.limit[r] == 0 ? 0.0f : factor;
    }
    __syncthreads();
}

/* The warp's columns of out; adding 0 as in store_rows. */
__device__ __forceinline__ void store_tile(const wb_attention &args, const query_tile &tile,
                                           const shared_tiles &shared, const value_sums &sum, wb_rows out) {
    const int lane = threadIdx.x % 32, column = threadIdx.x / 32 * COLUMNS + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < TILE / ROWS; i++) {
        const lane_rows rows = find_rows(args, tile.kv, tile.begin, tile.end, tile.first + ROWS * i);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if (rows.at[r] < 0) continue;
            const float factor = shared.factor[ROWS * i + lane / 4 + 8 * r];
            uint16_t *to = static_cast<uint16_t *>(out.data) + rows.at[r] * VALUES + column;
#pragma unroll
            for (int j = 0; j < COLUMNS / 8; j++) {
                const float low = wb_add(wb_mul(sum[i][j][2 * r], factor), 0.0f);
                const float high = wb_add(wb_mul(sum[i][j][2 * r + 1], factor), 0.0f);
                *reinterpret_cast<uint32_t *>(to + 8 * j) = pack_pair(low, high);
            }
        }
    }
}

/* All threads of the block. What is on its way has come, and all threads are past what they read of `shared`,
 * when the next tile begins. */
__device__ __forceinline__ void attend_tile(const wb_attention &args, const query_tile &tile,
                                            shared_tiles &shared, wb_rows out) {
    const int warp = threadIdx.x / 32;
    const warp_place at = {warp % (TILE / ROWS) * ROWS, warp / (TILE / ROWS)};
    const bool any = at.rows < tile.n;
    const lane_rows rows = find_rows(args, tile.kv, tile.begin, tile.end, tile.first + at.rows);
    const run_keys seen = keys_of_run(args, tile.begin, tile.end - 1);
    const int first = seen.begin / BLOCK_KEYS, blocks = (seen.end + BLOCK_KEYS - 1) / BLOCK_KEYS;
    const uint32_t queries = shared_place(shared.queries);
    const float factor = score_factor(args);
    row_state state = {{MINUS_INFINITY, MINUS_INFINITY}, {0.0f, 0.0f}};
    value_sums sum = {};
    if (first < blocks) {
        begin_queries(args, tile, queries);
        begin_keys(args, tile, first, seen, shared_place(shared.keys[first % 2]));
    }
    for (int block = first; block < blocks; block++) {
        const uint32_t keys = shared_place(shared.keys[block % 2]);
        float s[2][4] = {};
        end_group_of_copies();
        wait_for_copies<0>();
        __syncthreads(); /* the block has come, and no warp reads the one before it any more */
        if (block + 1 < blocks)
            begin_keys(args, tile, block + 1, seen, shared_place(shared.keys[(block + 1) % 2]));
        if (any) multiply_latents(queries, keys, at, s);
        if (any) leave_largest(rows, at, block * BLOCK_KEYS + 16 * at.half, factor, s, shared);
        __syncthreads();
        if (any) leave_weights(at, s, shared, &state);
        __syncthreads();
        add_latents(shared, keys, tile.n, sum);
    }
    end_tile(args, tile, at, rows, state, shared);
    store_tile(args, tile, shared, sum, out);
}

/* A block for each `tokens` tokens, kv head, and 64 rows of these (`parts`), the last tokens, which see most,
 * first. */
__global__ void __launch_bounds__(THREADS, 1)
    attend_latents(wb_attention args, int64_t tokens, int parts, wb_rows out) {
    extern __shared__ __align__(128) uint8_t bytes[];
    shared_tiles &shared = *reinterpret_cast<shared_tiles *>(bytes);
    const int64_t each = static_cast<int64_t>(parts) * args.n_kv_heads, n_tiles = gridDim.x / each;
    const int64_t number = n_tiles - 1 - blockIdx.x / each, last = min((number + 1) * tokens, args.T);
    const int64_t kv = blockIdx.x % each / parts;
    const int first = static_cast<int>(blockIdx.x % parts) * TILE;
    for (int64_t begin = number * tokens; begin < last;) {
        const int64_t end = end_of_run(args, begin, last);
        const int rows = static_cast<int>(end - begin) * group_size(args);
        attend_tile(args, {kv, begin, end, first, min(rows - first, static_cast<int>(TILE))}, shared, out);
        begin = end;
    }
}

} // namespace

extern "C" {

bool wb_cuda_attention_latent_takes(const wb_device *dev, const wb_attention *args, wb_rows out) {
    if (args->q.dtype != WB_BF16 || args->k.dtype != WB_BF16) return false;
    if (args->head_dim != WIDTH || args->value_dim != VALUES || !attention_values_in_keys(args)) return false;
    if (!is_aligned(args->q) || !is_aligned(args->k) || !is_aligned(out)) return false;
    int most = 0;
    const int index = reinterpret_cast<const wb_cuda_device *>(dev)->index;
    if (cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, index) != cudaSuccess)
        return false;
    return most >= static_cast<int>(sizeof(shared_tiles));
}

wb_status wb_cuda_attention_latent_forward(wb_device *dev, const wb_attention *args, wb_rows out) {
    const char *op = "attention_forward";
    const int group = args->n_heads / args->n_kv_heads, parts = (group + TILE - 1) / TILE;
    const bool singles = args->one_a_sequence || args->T <= MAX_SINGLES || group > TILE;
    const int64_t tokens = singles ? 1 : TILE / group;
    unsigned blocks = 0;
    WB_TRY(count_blocks(op, "tokens", (args->T + tokens - 1) / tokens * parts * args->n_kv_heads, BLOCK,
                        &blocks));
    WB_TRY(wb_cuda_use(dev, op));
    WB_TRY(wb_cuda_check(cudaFuncSetAttribute(attend_latents, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                              static_cast<int>(sizeof(shared_tiles))),
                         op));
    attend_latents<<<blocks, THREADS, sizeof(shared_tiles), stream_of(dev)>>>(*args, tokens, parts, out);
    return wb_cuda_check(cudaGetLastError(), op);
}
}
