/* cuda_topk.cu - the selection of experts on CUDA.
 *
 * Owns: the kernels of topk and their launches. Refuses: rules. Order, ties and keys are those of
 * router_rules.h, so that the ids are the CPU's; shapes are the caller's promise.
 *
 * The shape of the work: a warp to each row, a run of adjacent experts to each lane; many rows of few experts
 * by eight lanes each (cuda_topk_lists.h).
 */
#include "cuda/cuda_device.h"
#include "cuda/cuda_fault.h"
#include "cuda/cuda_grid.h"
#include "cuda/cuda_ids.h"
#include "cuda/cuda_ops.h"
#include "cuda/cuda_topk_lists.h"
#include "router_rules.h"

#include <cuda_runtime.h>

namespace {

/* Rows of a call from which eight lanes a row are sooner done than a warp a row. */
enum { MIN_LIST_ROWS = 3072 };

/* ---- selection: a row in registers, E <= 1024 ------------------------------------------------ */

/* Reads the logits of experts lane * V .. lane * V + V - 1. `wide`: rows allow 16-byte (V = 2: 8-byte)
 * loads, and then a load lies in the row as a whole or not at all. Experts beyond E are left as they are. */
template <int V>
__device__ __forceinline__ void load_logits(const float *row, int32_t E, int lane, bool wide, float *z) {
    int32_t first = lane * V;
    if (V >= 4 && wide) {
#pragma unroll
        for (int i = 0; i < V; i += 4)
            if (first + i < E) {
                float4 four = *reinterpret_cast<const float4 *>(row + first + i);
                z[i] = four.x, z[i + 1] = four.y, z[i + 2] = four.z, z[i + 3] = four.w;
            }
    } else if (V == 2 && wide) {
        if (first < E) {
            float2 two = *reinterpret_cast<const float2 *>(row + first);
            z[0] = two.x, z[1] = two.y;
        }
    } else {
#pragma unroll
        for (int i = 0; i < V; i++)
            if (first + i < E) z[i] = row[first + i];
    }
}

/* Sets the orders outside the row's topk_group best groups to 0. Needs groups that fill a power of two of
 * lanes. */
template <int V>
__device__ __forceinline__ void keep_best_groups(const wb_router &router, int lane, uint64_t *choice) {
    int32_t group_size = router.n_experts / router.n_group;
    int lanes = group_size / V;
    uint32_t first = 0, second = 0;
#pragma unroll
    for (int i = 0; i < V; i++) {
        uint32_t order = static_cast<uint32_t>(choice[i] >> 32);
        second = max(second, min(first, order));
        first = max(first, order);
    }
    for (int step = 1; step < lanes; step *= 2) {
        uint32_t other_first = __shfl_xor_sync(ALL_LANES, first, step);
        uint32_t other_second = __shfl_xor_sync(ALL_LANES, second, step);
        second = max(min(first, other_first), max(second, other_second));
        first = max(first, other_first);
    }
    uint32_t order = wb_key_order(wb_router_group_score(router.type, first, second, group_size));
    uint32_t group = static_cast<uint32_t>(lane / lanes);
    uint64_t mine = wb_choice_order(order, group);
    int32_t better = 0;
    for (int32_t g = 0; g < router.n_group; g++) {
        uint32_t other = __shfl_sync(ALL_LANES, order, g * lanes);
        better += wb_choice_order(other, static_cast<uint32_t>(g)) > mine;
    }
#pragma unroll
    for (int i = 0; i < V; i++)
        if (better >= router.topk_group) choice[i] = 0;
}

/* Whether nothing is written for a row, which nobody then has to read. */
__device__ __forceinline__ bool is_idle(const wb_topk &args, int64_t t) {
    return t >= args.T || (args.direction && args.direction[t] && !args.native.data);
}

__device__ __forceinline__ void store_choice(const wb_topk &args, int64_t t, int32_t k, uint32_t id) {
    if (!(args.direction && args.direction[t])) store_id(args.ids, t, k, id);
    if (args.native.data) store_id(args.native, t, k, id);
}

/* Row t by a warp, V = experts a lane. An order of 0 is no expert: an expert's ends in 32 bits that are
 * not 0. */
template <int V, bool SOFTMAX> __device__ void select_row(const wb_topk &args, int64_t t, bool wide) {
    const wb_router &router = args.router;
    const int32_t E = router.n_experts, K = router.top_k;
    const int lane = threadIdx.x % WARP;
    float z[V];
    uint64_t choice[V];
    load_logits<V>(args.logits + t * E, E, lane, wide, z);
#pragma unroll
    for (int i = 0; i < V; i++) {
        int32_t e = lane * V + i;
        choice[i] = 0;
        if (e < E) {
            float bias = !SOFTMAX && args.bias ? args.bias[e] : 0.0f;
            float key = SOFTMAX ? z[i] : wb_router_key(router.type, z[i], bias);
            choice[i] = wb_choice_order(wb_key_order(key), static_cast<uint32_t>(e));
        }
    }
    if (router.n_group > 1) keep_best_groups<V>(router, lane, choice);
    sort_choices<V>(choice);

    /* The lane with the largest first order gives it away, K times. Lanes are in the order of their ids, so
     * that the lowest lane wins a tie of keys. */
    uint32_t chosen_low = 0, chosen_high = 0; /* lane k: choices k and 32 + k */
    for (int32_t k = 0; k < K; k++) {
        uint32_t order = static_cast<uint32_t>(choice[0] >> 32);
        uint32_t largest = __reduce_max_sync(ALL_LANES, order);
        int winner = __ffs(__ballot_sync(ALL_LANES, order == largest && choice[0] != 0)) - 1;
        uint32_t id = __shfl_sync(ALL_LANES, wb_choice_order_id(choice[0]), winner);
        if (k == lane) chosen_low = id;
        if (k == lane + WARP) chosen_high = id;
        if (lane == winner) {
#pragma unroll
            for (int i = 0; i + 1 < V; i++) choice[i] = choice[i + 1];
            choice[V - 1] = 0;
        }
    }
    for (int32_t k = lane; k < K; k += WARP) store_choice(args, t, k, k < WARP ? chosen_low : chosen_high);
}

template <int V, bool SOFTMAX> __global__ void __launch_bounds__(BLOCK) topk_rows(wb_topk args, bool wide) {
    const int64_t t = static_cast<int64_t>(blockIdx.x) * (BLOCK / WARP) + threadIdx.x / WARP;
    if (!is_idle(args, t)) select_row<V, SOFTMAX>(args, t, wide);
}

/* ---- selection: eight lanes a row, K <= 8, E <= 256 -------------------------------------------- */

/* Rows whose choices their lists do not tell are selected by the whole warp, one after the other. */
template <int N, bool SOFTMAX, bool GROUPED>
__global__ void __launch_bounds__(BLOCK) topk_lists(wb_topk args, bool wide) {
    const int64_t mine = (static_cast<int64_t>(blockIdx.x) * BLOCK + threadIdx.x) / LIST_LANES;
    const int64_t t = mine < args.T ? mine : args.T - 1;
    const bool idle = is_idle(args, mine);
    if (__all_sync(ALL_LANES, idle)) return;
    list_row<N> row;
    int choice = 0;
    row.lane = threadIdx.x % LIST_LANES;
    row.template load_orders<SOFTMAX>(args, t, wide);
    if (GROUPED) row.keep_best_groups(args.router);
    const uint32_t id = row.template choose<SOFTMAX>(args, t, &choice);
    if (choice < args.router.top_k && !idle && !row.unsure) store_choice(args, t, choice, id);
    for (unsigned left = __ballot_sync(ALL_LANES, row.unsure && !idle && row.lane == 0); left;
         left &= left - 1)
        select_row<N * LIST_LANES / WARP, SOFTMAX>(args, __shfl_sync(ALL_LANES, t, __ffs(left) - 1), wide);
}

/* ---- selection: any E, any groups ------------------------------------------------------------ */

__device__ __forceinline__ uint64_t warp_max(uint64_t choice) {
    for (int step = WARP / 2; step > 0; step /= 2) {
        uint64_t other = __shfl_xor_sync(ALL_LANES, choice, step);
        choice = other > choice ? other : choice;
    }
    return choice;
}

__device__ __forceinline__ uint64_t expert_choice(const wb_topk &args, const float *row, int32_t e) {
    float key = wb_router_key(args.router.type, row[e], args.bias ? args.bias[e] : 0.0f);
    return wb_choice_order(wb_key_order(key), static_cast<uint32_t>(e));
}

__device__ uint64_t group_choice(const wb_topk &args, const float *row, int32_t g, int32_t group_size) {
    uint32_t first = 0, second = 0;
    for (int32_t e = g * group_size; e < (g + 1) * group_size; e++) {
        uint32_t order = static_cast<uint32_t>(expert_choice(args, row, e) >> 32);
        second = max(second, min(first, order));
        first = max(first, order);
    }
    float score = wb_router_group_score(args.router.type, first, second, group_size);
    return wb_choice_order(wb_key_order(score), static_cast<uint32_t>(g));
}

/* One warp a row, which reads the row again for every choice: the largest order below the last one. Lanes
 * take groups in turn; without groups, every expert is one. */
__global__ void __launch_bounds__(BLOCK) topk_any(wb_topk args) {
    const wb_router &router = args.router;
    int lane = threadIdx.x % WARP;
    int64_t t = static_cast<int64_t>(blockIdx.x) * (BLOCK / WARP) + threadIdx.x / WARP;
    if (is_idle(args, t)) return;
    const float *row = args.logits + t * router.n_experts;
    bool grouped = router.n_group > 1;
    int32_t groups = grouped ? router.n_group : router.n_experts;
    int32_t group_size = router.n_experts / groups;

    uint64_t last_group = UINT64_MAX; /* the order of the worst group that is kept */
    for (int32_t i = 0; grouped && i < router.topk_group; i++) {
        uint64_t best = 0;
        for (int32_t g = lane; g < groups; g += WARP) {
            uint64_t choice = group_choice(args, row, g, group_size);
            if (choice < last_group && choice > best) best = choice;
        }
        last_group = warp_max(best);
    }
    uint64_t last = UINT64_MAX;
    for (int32_t k = 0; k < router.top_k; k++) {
        uint64_t best = 0;
        for (int32_t g = lane; g < groups; g += WARP) {
            if (grouped && group_choice(args, row, g, group_size) < last_group) continue;
            for (int32_t e = g * group_size; e < (g + 1) * group_size; e++) {
                uint64_t choice = expert_choice(args, row, e);
                if (choice < last && choice > best) best = choice;
            }
        }
        last = warp_max(best);
        if (lane == 0) store_choice(args, t, k, wb_choice_order_id(last));
    }
}

/* HASH: one thread a choice. An id that is no expert's is a fault, and is written as it stands. */
__global__ void __launch_bounds__(BLOCK) topk_table(wb_topk args, wb_fault *fault) {
    int32_t K = args.router.top_k;
    int64_t at = static_cast<int64_t>(blockIdx.x) * BLOCK + threadIdx.x;
    if (at >= args.T * K) return;
    int64_t t = at / K;
    int32_t k = static_cast<int32_t>(at % K);
    int32_t found = args.table[static_cast<int64_t>(args.tokens[t]) * K + k];
    uint32_t id = static_cast<uint32_t>(found);
    if (found < 0 || found >= args.router.n_experts)
        set_fault(fault, {WB_FAULT_TABLE_ID, WB_OP_topk, args.tokens[t], k, args.router.n_experts, found});
    store_choice(args, t, k, id);
}

/* ---- launches --------------------------------------------------------------------------------- */

/* Whether topk_rows serves this router with V experts a lane: see keep_best_groups. */
bool fits_rows(const wb_router &router, int V) {
    if (V * WARP > 1024) return false;
    if (router.n_group <= 1) return true;
    int32_t group_size = router.n_experts / router.n_group;
    return group_size % V == 0 && power_of_2_from(group_size / V) == group_size / V && group_size / V <= WARP;
}

/* Whether rows allow loads of 16 bytes (V = 2: 8 bytes), each in the row as a whole or not at all. */
bool is_wide(const wb_topk &args, int V) {
    const int unit = V < 4 ? V : 4;
    return args.router.n_experts % unit == 0 &&
           reinterpret_cast<uintptr_t>(args.logits) % (static_cast<unsigned>(unit) * sizeof(float)) == 0;
}

/* A row by a warp. */
template <int V> void launch_rows(const wb_topk &args, unsigned blocks, cudaStream_t stream) {
    if (wb_router_is_softmax(args.router.type))
        topk_rows<V, true><<<blocks, BLOCK, 0, stream>>>(args, is_wide(args, V));
    else
        topk_rows<V, false><<<blocks, BLOCK, 0, stream>>>(args, is_wide(args, V));
}

void launch_any_rows(const wb_topk &args, int V, unsigned blocks, cudaStream_t stream) {
    if (V == 1)
        launch_rows<1>(args, blocks, stream);
    else if (V == 2)
        launch_rows<2>(args, blocks, stream);
    else if (V == 4)
        launch_rows<4>(args, blocks, stream);
    else if (V == 8)
        launch_rows<8>(args, blocks, stream);
    else if (V == 16)
        launch_rows<16>(args, blocks, stream);
    else
        launch_rows<32>(args, blocks, stream);
}

/* Whether a row by eight lanes is possible, and sooner done: few rows leave most of the device idle, and a
 * row by a warp is then done sooner. */
bool fits_lists(const wb_topk &args) {
    const wb_router &router = args.router;
    const bool groups_fit = router.n_group == LIST_GROUPS && router.n_experts == 256;
    return args.T >= MIN_LIST_ROWS && router.top_k <= LIST && router.n_experts > 32 &&
           router.n_experts <= 256 &&
           (router.n_group <= 1 || (groups_fit && !wb_router_is_softmax(router.type)));
}

/* Eight lanes a row, N experts a lane. */
template <int N> void launch_lists(const wb_topk &args, cudaStream_t stream) {
    const bool wide = is_wide(args, 4) && reinterpret_cast<uintptr_t>(args.bias) % sizeof(float4) == 0;
    const unsigned blocks = static_cast<unsigned>((args.T * LIST_LANES + BLOCK - 1) / BLOCK);
    if (wb_router_is_softmax(args.router.type))
        topk_lists<N, true, false><<<blocks, BLOCK, 0, stream>>>(args, wide);
    else if (N == 32 && args.router.n_group > 1)
        topk_lists<32, false, true><<<blocks, BLOCK, 0, stream>>>(args, wide);
    else
        topk_lists<N, false, false><<<blocks, BLOCK, 0, stream>>>(args, wide);
}

void launch_any_lists(const wb_topk &args, cudaStream_t stream) {
    if (args.router.n_experts <= 64)
        launch_lists<8>(args, stream);
    else if (args.router.n_experts <= 128)
        launch_lists<16>(args, stream);
    else
        launch_lists<32>(args, stream);
}

void launch_topk(const wb_topk &args, wb_fault *fault, unsigned blocks, cudaStream_t stream) {
    const int V = power_of_2_from((args.router.n_experts + WARP - 1) / WARP);
    if (args.router.type == WB_ROUTER_HASH)
        topk_table<<<blocks, BLOCK, 0, stream>>>(args, fault);
    else if (fits_lists(args))
        launch_any_lists(args, stream);
    else if (fits_rows(args.router, V))
        launch_any_rows(args, V, blocks, stream);
    else
        topk_any<<<blocks, BLOCK, 0, stream>>>(args);
}

} // namespace

extern "C" {

wb_status wb_cuda_topk(wb_device *dev, const wb_topk *args) {
    const wb_router *router = &args->router;
    WB_TRY(wb_router_check(router));
    WB_TRY(check_ids("topk", "ids", args->ids, router));
    if (args->native.data) WB_TRY(check_ids("topk", "native", args->native, router));
    if (router->type == WB_ROUTER_HASH && (!args->table || !args->tokens))
        return wb_fail(WB_INVALID_ARGUMENT, "topk: a hash router needs table and tokens");
    unsigned blocks = 0;
    WB_TRY(
        count_blocks("topk", "T", args->T, router->type == WB_ROUTER_HASH ? router->top_k : WARP, &blocks));
    if (args->T == 0) return WB_OK;
    WB_TRY(wb_cuda_use(dev, "topk"));
    launch_topk(*args, fault_of(dev), blocks, static_cast<cudaStream_t>(dev->stream));
    return wb_cuda_check(cudaGetLastError(), "topk");
}
}
