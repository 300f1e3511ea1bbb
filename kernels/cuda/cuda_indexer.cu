/* cuda_indexer.cu - which entries a token's attention is to see: a thread an entry for the scores, as numbers
 * that order them (wb_key_order), then a block a token, which finds the smallest chosen one digit by digit
 * and lists what is chosen in rising order. Tokens come in groups whose orders have room in scratch. Refuses:
 * attention over what is chosen. */
#include "cuda/cuda_operands.h"
#include "cuda/cuda_ops.h"
#include "cuda/cuda_scratch.h"
#include "cuda/cuda_sum_before.h"
#include "entry_check.h"
#include "entry_rules.h"
#include "router_rules.h"

namespace {

/* Bytes of orders at once, digits of an order, and floats of a token's query and weights that a block's
 * shared memory holds without being asked for more. */
enum { ORDER_BYTES = 64 << 20, DIGITS = 256, DIGIT_BITS = 8, ORDER_BITS = 32, MAX_QUERY = 12000 };

__device__ __forceinline__ int32_t entries_of_token(const wb_indexer &args, int64_t t) {
    if (args.seq[t] < 0) return 0;
    const int64_t seen = entries_seen(args.keys.ratio, args.pos[t]);
    return static_cast<int32_t>(min(seen, args.max_entries));
}

/* orders[token - first][max_entries], `blocks_each` blocks a token. */
__global__ void __launch_bounds__(BLOCK)
    order_entries(wb_indexer args, int64_t first, int64_t blocks_each, uint32_t *orders) {
    extern __shared__ float q[];
    const int heads = args.n_heads, dim = args.head_dim, width = heads * dim;
    const int64_t token = blockIdx.x / blocks_each, t = first + token;
    const int64_t begin = blockIdx.x % blocks_each * BLOCK, w = begin + threadIdx.x;
    const int32_t n = entries_of_token(args, t);
    float *weights = q + width, score = 0.0f;
    if (begin >= n || (args.direction && args.direction[t] && !args.native))
        return; /* nobody asks for them */
    for (int i = threadIdx.x; i < width; i += BLOCK) q[i] = load_element(args.q, t * width + i);
    for (int h = threadIdx.x; h < heads; h += BLOCK) weights[h] = args.weights[t * heads + h];
    __syncthreads();
    if (w >= n) return;
    const int32_t *blocks = args.blocks + static_cast<int64_t>(args.seq[t]) * args.max_blocks;
    const int64_t key =
        entry_row(blocks, args.block_size, args.keys.ratio, static_cast<int32_t>(w)) * args.keys.stride;
    for (int h = 0; h < heads; h++) {
        float product = 0.0f;
        for (int d = 0; d < dim; d++)
            product = wb_fma(q[h * dim + d], load_element(args.keys.rows, key + d), product);
        score = index_score(score, weights[h], product);
    }
    orders[token * args.max_entries + w] = wb_key_order(score);
}

/* What is chosen of a token: all orders above `least`, and the first `equal` of those like it. */
struct choice {
    uint32_t least;
    int32_t equal;
};

/* The best K of orders[n], K < n, by the block. */
__device__ __forceinline__ choice find_least(const uint32_t *orders, int32_t n, int32_t K) {
    __shared__ int32_t count[DIGITS];
    __shared__ choice found;
    uint32_t known = 0; /* bits of the digits found so far */
    if (threadIdx.x == 0) found = {0, K};
    for (int shift = ORDER_BITS - DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
        for (int i = threadIdx.x; i < DIGITS; i += SUM_THREADS) count[i] = 0;
        __syncthreads();
        const uint32_t so_far = found.least;
        for (int32_t i = threadIdx.x; i < n; i += SUM_THREADS)
            if ((orders[i] & known) == so_far) atomicAdd(&count[orders[i] >> shift & (DIGITS - 1)], 1);
        __syncthreads();
        if (threadIdx.x == 0) {
            uint32_t digit = DIGITS - 1;
            for (; count[digit] < found.equal; digit--) found.equal -= count[digit];
            found.least |= digit << shift;
        }
        known |= static_cast<uint32_t>(DIGITS - 1) << shift;
        __syncthreads();
    }
    return found;
}

/* list[top_k] (=) what is chosen of orders[n], ascending, then -1; by the block. */
__device__ __forceinline__ void list_chosen(const uint32_t *orders, int32_t n, int32_t top_k, choice of,
                                            int32_t *list) {
    int32_t equal = 0, count = 0; /* so far, the same in all threads */
    for (int32_t begin = 0; begin < n; begin += SUM_THREADS) {
        const int32_t i = begin + static_cast<int32_t>(threadIdx.x);
        const uint32_t order = i < n ? orders[i] : 0;
        const bool is_least = i < n && order == of.least;
        int32_t more_equal = 0, more = 0;
        const int32_t equal_before = equal + sum_before(is_least ? 1 : 0, &more_equal);
        const bool chosen = i < n && (order > of.least || (is_least && equal_before < of.equal));
        const int32_t place = count + sum_before(chosen ? 1 : 0, &more);
        if (chosen) list[place] = i;
        equal += more_equal;
        count += more;
    }
    for (int32_t i = count + static_cast<int32_t>(threadIdx.x); i < top_k; i += SUM_THREADS) list[i] = -1;
}

/* A block a token. */
__global__ void __launch_bounds__(SUM_THREADS)
    choose_entries(wb_indexer args, int64_t first, const uint32_t *all_orders) {
    const int64_t t = first + blockIdx.x;
    const bool forced = args.direction && args.direction[t];
    const int32_t n = entries_of_token(args, t);
    const uint32_t *orders = all_orders + blockIdx.x * args.max_entries;
    choice of = {0, n};
    if (forced && !args.native) return;
    if (n > args.top_k) of = find_least(orders, n, args.top_k);
    if (!forced) list_chosen(orders, n, args.top_k, of, args.listed + t * args.top_k);
    if (args.native) list_chosen(orders, n, args.top_k, of, args.native + t * args.top_k);
}

/* Tokens whose orders have room at once; one at least. */
int64_t tokens_at_once(int64_t T, int64_t max_entries) {
    const int64_t room = ORDER_BYTES / ((max_entries > 0 ? max_entries : 1) * 4);
    return room < 1 ? 1 : room < T ? room : T;
}

wb_status launch_orders(wb_device *dev, const wb_indexer *args, int64_t first, int64_t n, uint32_t *orders) {
    const int64_t each = (args->max_entries + BLOCK - 1) / BLOCK;
    const size_t bytes = static_cast<size_t>(args->n_heads) * (args->head_dim + 1) * sizeof(float);
    unsigned blocks = 0;
    WB_TRY(prepare_launch(dev, "indexer_topk", n * each, BLOCK, &blocks));
    if (blocks == 0) return WB_OK;
    order_entries<<<blocks, BLOCK, bytes, stream_of(dev)>>>(*args, first, each, orders);
    return wb_cuda_check(cudaGetLastError(), "indexer_topk");
}

} // namespace

extern "C" {

/* Of all tokens, where that is below ORDER_BYTES; else these, or more where one token needs more. So a call
 * that has fewer tokens or entries never needs more. */
size_t wb_cuda_indexer_bytes(int64_t T, int64_t max_entries) {
    const size_t one = static_cast<size_t>(max_entries) * sizeof(uint32_t),
                 all = static_cast<size_t>(T) * one;
    const size_t room = ORDER_BYTES;
    return all < room ? all : one > room ? one : room;
}

wb_status wb_cuda_indexer_topk(wb_device *dev, const wb_indexer *args) {
    const char *op = "indexer_topk";
    uint32_t *orders = NULL;
    WB_TRY(indexer_check(args));
    if (static_cast<int64_t>(args->n_heads) * (args->head_dim + 1) > MAX_QUERY)
        return wb_fail(WB_INVALID_ARGUMENT, "%s: n_heads %d of %d elements: expected at most %d together", op,
                       args->n_heads, args->head_dim, MAX_QUERY - args->n_heads);
    if (args->T == 0) return WB_OK;
    WB_TRY(wb_cuda_use(dev, op));
    WB_TRY(reserve_scratch(dev, wb_cuda_indexer_bytes(args->T, args->max_entries), &orders));
    const int64_t group = tokens_at_once(args->T, args->max_entries);
    for (int64_t first = 0; first < args->T; first += group) {
        const int64_t n = args->T - first < group ? args->T - first : group;
        WB_TRY(launch_orders(dev, args, first, n, orders));
        choose_entries<<<static_cast<unsigned>(n), SUM_THREADS, 0, stream_of(dev)>>>(*args, first, orders);
        WB_TRY(wb_cuda_check(cudaGetLastError(), op));
    }
    return WB_OK;
}
}
