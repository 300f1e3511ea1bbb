/* cuda_moe.cu - where token rows go: the row of each pair, and the rows that arrive from other ranks.
 *
 * Rows lie by slot, then by pair. A kernel counts the pairs of each part and slot; a second one sums for
 * each part what comes before it, and places its pairs, so that nothing depends on which block runs first.
 * Few pairs are one part, which the second kernel does by itself. Refuses: choosing experts, what experts
 * compute (cuda_matmul.cu), the way back (cuda_combine.cu). */
#include "cuda/cuda_fault.h"
#include "cuda/cuda_ids.h"
#include "cuda/cuda_operands.h"
#include "cuda/cuda_ops.h"
#include "cuda/cuda_scratch.h"
#include "cuda/cuda_sum_before.h"
#include "wb_dispatch_rules.h"

namespace {

/* A block's threads; the pairs that it places at a time, one a thread, or fewer. */
enum { TILE = SUM_THREADS };

/* ---- rows of this rank's tokens -------------------------------------------------------------- */

/* Parts at most, of few slots and of many, since each part reads the counts of all; slots of which shared
 * memory holds the counts. */
enum { MAX_PARTS = 128, MIN_PARTS = 32, PART_COUNTS = 1 << 16, MAX_SHARED_SLOTS = 3072 };

/* How a plan is shared out among blocks, by the numbers of pairs and slots alone. */
struct plan_parts {
    uint32_t n_pairs, part; /* pairs of all; of a part, whole tiles */
    int32_t n_parts, warps; /* warps of a part that place at a time */
    int32_t *counts;        /* [n_parts][S] pairs of a part that go to a slot; a part alone has none */
    int32_t *next;          /* [n_parts][2 S] where there are more slots than shared memory holds */
};

/* The slot of pair i, -1 for padding, for an expert without weights and for an id that is none. */
__device__ __forceinline__ int32_t choose_slot(const wb_moe_plan &plan, uint32_t i, wb_fault *fault) {
    const uint32_t t = i / static_cast<uint32_t>(plan.top_k);
    const int32_t k = static_cast<int32_t>(i - t * static_cast<uint32_t>(plan.top_k));
    const uint32_t id = load_id(plan.ids, t, k);
    if (id >= static_cast<uint32_t>(plan.n_experts)) {
        set_fault(fault, {WB_FAULT_ID, WB_OP_moe_plan, t, k, plan.n_experts, id});
        return -1;
    }
    if (plan.direction && plan.direction[t] == WB_ROW_PADDING) return -1;
    if (id >= static_cast<uint32_t>(plan.n_experts - plan.n_weightless)) return -1;
    return wb_dispatch_slot(&plan.rule, id, plan.tokens ? wb_dispatch_key(plan.tokens[t], plan.pos[t]) : 0);
}

/* The pairs of this block's part. */
__device__ __forceinline__ uint32_t first_pair(const plan_parts &parts) {
    return blockIdx.x * parts.part;
}
__device__ __forceinline__ uint32_t last_pair(const plan_parts &parts) {
    return min(first_pair(parts) + parts.part, parts.n_pairs);
}

/* The slot of pair i, -1 where this block's part has no such pair. */
__device__ __forceinline__ int32_t part_slot(const wb_moe_plan &plan, const plan_parts &parts, uint32_t i) {
    return i < last_pair(parts) ? plan.pair_row[i] : -1;
}

/* counts[S] (=) pairs of each part that go to each slot, pair_row (=) the slots. A block a part. */
__global__ void __launch_bounds__(TILE) count_parts(wb_moe_plan plan, plan_parts parts, wb_fault *fault) {
    extern __shared__ int32_t shared[];
    int32_t *to = parts.counts + static_cast<int64_t>(blockIdx.x) * plan.n_slots;
    int32_t *counts = plan.n_slots <= MAX_SHARED_SLOTS ? shared : to;
    for (int32_t s = threadIdx.x; s < plan.n_slots; s += TILE) counts[s] = 0;
    __syncthreads();
    for (uint32_t i = first_pair(parts) + threadIdx.x; i < last_pair(parts); i += TILE) {
        const int32_t slot = choose_slot(plan, i, fault);
        plan.pair_row[i] = slot;
        if (slot >= 0) atomicAdd(counts + slot, 1); /* of whole numbers: in any order the same */
    }
    __syncthreads();
    for (int32_t s = threadIdx.x; s < plan.n_slots && counts != to; s += TILE) to[s] = counts[s];
}

/* before[S] (+=) the pairs of earlier parts, all[S] (+=) those of all parts, that go to each slot. */
__device__ void add_counts(int32_t S, const plan_parts &parts, int32_t *before, int32_t *all) {
    const int32_t width = S < TILE ? S : TILE, step = TILE / width;
    const int32_t mine = static_cast<int32_t>(threadIdx.x) / width;
    for (int32_t s = static_cast<int32_t>(threadIdx.x) % width; s < S && mine < step; s += width) {
        int32_t sum_before = 0, sum = 0;
#pragma unroll 16
        for (int32_t part = mine; part < parts.n_parts; part += step) {
            const int32_t count = parts.counts[static_cast<int64_t>(part) * S + s];
            sum_before += part < static_cast<int32_t>(blockIdx.x) ? count : 0;
            sum += count;
        }
        atomicAdd(before + s, sum_before);
        atomicAdd(all + s, sum);
    }
}

/* next[S] (+=) where each slot begins, of all[S] pairs; offsets (=) the same, by the first block. */
__device__ void find_rows(const wb_moe_plan &plan, const int32_t *all, int32_t *next) {
    const int32_t S = plan.n_slots;
    int32_t row = 0, total;
    for (int32_t first = 0; first < S; first += TILE) {
        const int32_t s = first + static_cast<int32_t>(threadIdx.x);
        const int32_t begin = row + sum_before(s < S ? all[s] : 0, &total);
        if (s < S) next[s] += begin;
        if (s < S && blockIdx.x == 0) plan.offsets[s] = begin;
        row += total;
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) plan.offsets[S] = row;
}

__device__ __forceinline__ void place_pair(const wb_moe_plan &plan, uint32_t i, int32_t row) {
    plan.pair_row[i] = row;
    if (row >= 0) plan.row_token[row] = static_cast<int32_t>(i / static_cast<uint32_t>(plan.top_k));
}

/* Says how many lanes of this warp have `slot`, if not -1, by calling count(how many) in the first of them;
 * returns how many come before this one. */
template <typename F> __device__ __forceinline__ int32_t count_warp(int32_t slot, F count) {
    const unsigned same = __match_any_sync(ALL_LANES, slot), lower = (1u << threadIdx.x % WARP) - 1;
    const int32_t rank = __popc(same & lower);
    if (slot >= 0 && rank == 0) count(__popc(same));
    return rank;
}

/* counts[warps + 1][S], how many pairs of each warp go to a slot, become how many of the warps before it, the
 * last row those of all. By the whole block. */
__device__ void sum_warps(int32_t S, int32_t warps, uint16_t *counts) {
    for (int32_t s = threadIdx.x; s < S; s += TILE) {
        uint16_t of_warp[TILE / WARP];
        uint16_t sum = 0;
#pragma unroll
        for (int w = 0; w < TILE / WARP; w++) of_warp[w] = w < warps ? counts[w * S + s] : 0;
#pragma unroll
        for (int w = 0; w < TILE / WARP; w++) {
            if (w < warps) counts[w * S + s] = sum;
            sum = static_cast<uint16_t>(sum + of_warp[w]);
        }
        counts[warps * S + s] = sum;
    }
}

/* Places the pairs of this block's part in tiles of a pair a thread. slot, rank: of this thread's pair in the
 * first tile, of which sum_warps was called already; counts: shared [warps + 1][S]. */
__device__ void place_tiles(const wb_moe_plan &plan, const plan_parts &parts, int32_t slot, int32_t rank,
                            int32_t *next, uint16_t *counts) {
    const int32_t S = plan.n_slots;
    const uint32_t tile = static_cast<uint32_t>(parts.warps) * WARP;
    uint16_t *mine = counts + static_cast<int32_t>(threadIdx.x / WARP) * S;
    for (uint32_t i = first_pair(parts) + threadIdx.x;; i += tile) {
        const bool there = threadIdx.x < tile && i < last_pair(parts);
        const int32_t slot_after = threadIdx.x < tile ? part_slot(plan, parts, i + tile) : -1;
        if (there) place_pair(plan, i, slot < 0 ? -1 : next[slot] + mine[slot] + rank);
        if (i - threadIdx.x + tile >= last_pair(parts)) return;
        __syncthreads();
        for (int32_t s = threadIdx.x; s < S; s += TILE) next[s] += counts[parts.warps * S + s];
        for (int32_t at = threadIdx.x; at < parts.warps * S; at += TILE) counts[at] = 0;
        __syncthreads();
        slot = slot_after;
        rank = count_warp(slot, [&](int n) { mine[slot] = static_cast<uint16_t>(n); });
        __syncthreads();
        sum_warps(S, parts.warps, counts);
        __syncthreads();
    }
}

/* The same by one warp, which needs no counts of others. */
__device__ void place_in_turn(const wb_moe_plan &plan, const plan_parts &parts, int32_t *next) {
    for (uint32_t i = first_pair(parts) + threadIdx.x; i - threadIdx.x < last_pair(parts); i += WARP) {
        int32_t more = 0;
        const int32_t slot = part_slot(plan, parts, i);
        const int32_t rank = count_warp(slot, [&](int n) { more = n; });
        const int32_t row = slot < 0 ? -1 : next[slot] + rank;
        __syncwarp();
        if (more > 0) next[slot] += more;
        __syncwarp();
        if (i < last_pair(parts)) place_pair(plan, i, row);
    }
}

/* A block a part: pair_row (=) the row of each pair, row_token (=) the token of each row, offsets. */
__global__ void __launch_bounds__(TILE) place_parts(wb_moe_plan plan, plan_parts parts, wb_fault *fault) {
    extern __shared__ int32_t shared[];
    const int32_t S = plan.n_slots, warp = static_cast<int32_t>(threadIdx.x / WARP);
    const bool few = S <= MAX_SHARED_SLOTS, alone = parts.n_parts == 1;
    int32_t *next = few ? shared : parts.next + static_cast<int64_t>(blockIdx.x) * 2 * S, *all = next + S;
    uint16_t *counts = reinterpret_cast<uint16_t *>(shared + 2 * S);
    const uint32_t i = first_pair(parts) + threadIdx.x;
    int32_t slot = -1;
    if (alone && i < parts.n_pairs) plan.pair_row[i] = slot = choose_slot(plan, i, fault);
    if (!alone) slot = part_slot(plan, parts, i);
    for (int32_t at = threadIdx.x; few && at < parts.warps * S; at += TILE) counts[at] = 0;
    for (int32_t s = threadIdx.x; s < S; s += TILE) next[s] = all[s] = 0;
    __syncthreads();
    if (!alone) add_counts(S, parts, next, all);
    const int32_t rank = count_warp(slot, [&](int n) {
        if (few && warp < parts.warps) counts[warp * S + slot] = static_cast<uint16_t>(n);
        if (alone) atomicAdd(all + slot, n);
    });
    __syncthreads();
    if (few) sum_warps(S, parts.warps, counts);
    find_rows(plan, all, next);
    __syncthreads();
    if (few)
        place_tiles(plan, parts, slot, rank, next, counts);
    else if (threadIdx.x < WARP)
        place_in_turn(plan, parts, next);
}

int64_t max_parts(int32_t n_slots) {
    const int64_t few = MIN_PARTS, many = MAX_PARTS, parts = PART_COUNTS / (n_slots > 0 ? n_slots : 1);
    return parts < few ? few : parts > many ? many : parts;
}

/* What blocks have of shared memory: next, all, and the counts of their warps. */
size_t shared_bytes(int32_t n_slots, int32_t warps) {
    return (size_t)n_slots * (2 * sizeof(int32_t) + (size_t)(warps + 1) * sizeof(uint16_t));
}

plan_parts share_out(int64_t n_pairs, int32_t n_slots, int32_t *scratch) {
    const size_t max_shared = 47 << 10;
    plan_parts parts = {static_cast<uint32_t>(n_pairs), 0, 1, TILE / WARP, scratch, NULL};
    const int64_t most = max_parts(n_slots);
    const int64_t tiles = (n_pairs + TILE * most - 1) / (TILE * most);
    parts.part = static_cast<uint32_t>(tiles * TILE);
    parts.n_parts = static_cast<int32_t>((n_pairs + tiles * TILE - 1) / (tiles * TILE));
    while (n_slots <= MAX_SHARED_SLOTS && shared_bytes(n_slots, parts.warps) > max_shared) parts.warps /= 2;
    if (n_slots > MAX_SHARED_SLOTS) parts.next = scratch + parts.n_parts * static_cast<int64_t>(n_slots);
    return parts;
}

wb_status check_plan(const wb_moe_plan *plan) {
    const int32_t K = plan->top_k;
    if (plan->ids.dtype != WB_U16 && (plan->ids.dtype != WB_U8 || plan->n_experts > 256))
        return wb_fail(WB_INVALID_ARGUMENT, "moe_plan: ids: expected %s ids for %d experts, found %s",
                       plan->n_experts > 256 ? "u16" : "u8 or u16", plan->n_experts,
                       wb_dtype_name(plan->ids.dtype));
    if (K < 0 || plan->T > INT32_MAX / (K > 0 ? K : 1))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "moe_plan: %" PRId64 " tokens of %d choices: more pairs than an i32 can number",
                       plan->T, K);
    return WB_OK;
}

/* ---- rows of this rank's experts ------------------------------------------------------------- */

/* arrived[r][s], grouped[r][s] (=) the first row that arrives from r for s, as received and as grouped;
 * offsets (=) where the slots begin. One block: the counts are few. */
__global__ void __launch_bounds__(TILE) sum_arrivals(wb_moe_group group, int32_t *arrived, int32_t *grouped) {
    const int32_t R = group.n_sources, n = group.n_slots;
    int32_t received = 0, row = 0, total;
    for (int32_t first = 0; first < R * n; first += TILE) {
        const int32_t i = first + static_cast<int32_t>(threadIdx.x), at = i % R * n + i / R;
        const bool there = i < R * n;
        const int32_t before = received + sum_before(there ? group.counts[i] : 0, &total);
        received += total;
        const int32_t begin = row + sum_before(there ? group.counts[at] : 0, &total);
        row += total;
        if (there) arrived[i] = before, grouped[at] = begin;
        if (there && i % R == 0) group.offsets[i / R] = begin;
    }
    if (threadIdx.x == 0) group.offsets[n] = row;
}

/* A block for each (source, slot). */
__global__ void __launch_bounds__(BLOCK)
    place_arrivals(wb_moe_group group, const int32_t *arrived, const int32_t *grouped) {
    const int64_t at = blockIdx.x;
    for (int32_t i = threadIdx.x; i < group.counts[at]; i += BLOCK) {
        group.to_received[grouped[at] + i] = arrived[at] + i;
        group.to_grouped[arrived[at] + i] = grouped[at] + i;
    }
}

} // namespace

extern "C" {

size_t wb_cuda_plan_bytes(int64_t n_pairs, int32_t n_slots) {
    const int64_t tiles = (n_pairs + TILE - 1) / TILE, most = max_parts(n_slots);
    const int64_t rows = (tiles < most ? tiles : most) * (n_slots > MAX_SHARED_SLOTS ? 3 : 1);
    return static_cast<size_t>(rows * n_slots) * sizeof(int32_t);
}

size_t wb_cuda_group_bytes(int32_t n_sources, int32_t n_slots) {
    return static_cast<size_t>(n_sources) * static_cast<size_t>(n_slots) * 2 * sizeof(int32_t);
}

wb_status wb_cuda_moe_plan(wb_device *dev, const wb_moe_plan *plan) {
    const int64_t n_pairs = plan->T * plan->top_k;
    const int32_t S = plan->n_slots;
    int32_t *scratch = NULL;
    WB_TRY(check_plan(plan));
    WB_TRY(wb_cuda_use(dev, "moe_plan"));
    if (n_pairs == 0) return dev->zero(dev, plan->offsets, ((size_t)S + 1) * sizeof *plan->offsets);
    WB_TRY(reserve_scratch(dev, wb_cuda_plan_bytes(n_pairs, S), &scratch));
    const plan_parts parts = share_out(n_pairs, S, scratch);
    const unsigned blocks = static_cast<unsigned>(parts.n_parts);
    const size_t counted = S <= MAX_SHARED_SLOTS ? (size_t)S * sizeof(int32_t) : 0;
    const size_t placed = S <= MAX_SHARED_SLOTS ? shared_bytes(S, parts.warps) : 0;
    if (blocks > 1) count_parts<<<blocks, TILE, counted, stream_of(dev)>>>(*plan, parts, fault_of(dev));
    place_parts<<<blocks, TILE, placed, stream_of(dev)>>>(*plan, parts, fault_of(dev));
    return wb_cuda_check(cudaGetLastError(), "moe_plan");
}

wb_status wb_cuda_moe_group(wb_device *dev, const wb_moe_group *group) {
    const int64_t n = (int64_t)group->n_sources * group->n_slots;
    int32_t *arrived = NULL;
    WB_TRY(wb_cuda_use(dev, "moe_group"));
    WB_TRY(reserve_scratch(dev, wb_cuda_group_bytes(group->n_sources, group->n_slots), &arrived));
    sum_arrivals<<<1, TILE, 0, stream_of(dev)>>>(*group, arrived, arrived + n);
    if (n > 0)
        place_arrivals<<<static_cast<unsigned>(n), BLOCK, 0, stream_of(dev)>>>(*group, arrived, arrived + n);
    return wb_cuda_check(cudaGetLastError(), "moe_group");
}
}
