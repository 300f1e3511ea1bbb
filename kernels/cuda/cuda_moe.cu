/* cuda_moe.cu - where token rows go: the row of each pair, and the rows that arrive from other ranks.
 *
 * Rows lie by slot, then by pair; the count of what comes before a pair is made of counts of whole parts of
 * the pairs, so that no kernel depends on which block runs first. Refuses: choosing experts, what experts
 * compute (cuda_matmul.cu), the way back (cuda_combine.cu). */
#include "cuda/cuda_fault.h"
#include "cuda/cuda_ids.h"
#include "cuda/cuda_operands.h"
#include "cuda/cuda_ops.h"
#include "cuda/cuda_scratch.h"
#include "wb_dispatch_rules.h"

namespace {

/* ---- rows of this rank's tokens -------------------------------------------------------------- */

/* Pairs of a part: a warp takes them in turn, WARP at a time. */
enum { PART = 1024 };

/* pair_row (=) the slot of each pair, -1 for padding and for an id that is none. */
__global__ void __launch_bounds__(BLOCK) choose_slots(wb_moe_plan plan, wb_fault *fault) {
    const int64_t i = thread_number(), t = i / plan.top_k;
    if (t >= plan.T) return;
    const uint32_t id = load_id(plan.ids, t, static_cast<int32_t>(i % plan.top_k));
    if (id >= static_cast<uint32_t>(plan.n_experts))
        set_fault(fault,
                  {WB_FAULT_ID, WB_OP_moe_plan, t, static_cast<int32_t>(i % plan.top_k), plan.n_experts, id});
    const bool padding = plan.direction && plan.direction[t] == WB_ROW_PADDING;
    const uint64_t key = plan.tokens ? wb_dispatch_key(plan.tokens[t], plan.pos[t]) : 0;
    const bool there = !padding && id < static_cast<uint32_t>(plan.n_experts);
    plan.pair_row[i] = there ? wb_dispatch_slot(&plan.rule, id, key) : -1;
}

/* before[part][slot] (=) pairs of the part that go there. A block a part. */
__global__ void __launch_bounds__(BLOCK)
    count_parts(int64_t n_pairs, int32_t n_slots, const int32_t *slots, int32_t *before) {
    int32_t *counts = before + static_cast<int64_t>(blockIdx.x) * n_slots;
    for (int32_t s = threadIdx.x; s < n_slots; s += BLOCK) counts[s] = 0;
    __syncthreads();
    const int64_t begin = static_cast<int64_t>(blockIdx.x) * PART, end = min(begin + PART, n_pairs);
    for (int64_t i = begin + threadIdx.x; i < end; i += BLOCK)
        if (slots[i] >= 0) atomicAdd(counts + slots[i], 1); /* of whole numbers: in any order the same */
}

/* before[part][slot] becomes the pairs of earlier parts that go there; offsets[slot + 1] (=) all of them. */
__global__ void __launch_bounds__(BLOCK)
    sum_parts(int64_t parts, int32_t n_slots, int32_t *before, int32_t *offsets) {
    const int64_t slot = thread_number();
    if (slot >= n_slots) return;
    int32_t sum = 0;
    for (int64_t part = 0; part < parts; part++) {
        const int32_t count = before[part * n_slots + slot];
        before[part * n_slots + slot] = sum;
        sum += count;
    }
    offsets[slot + 1] = sum;
}

/* offsets[1..n] become their sums. One warp. */
__global__ void sum_offsets(int32_t n, int32_t *offsets) {
    const int lane = threadIdx.x;
    int32_t total = 0;
    if (lane == 0) offsets[0] = 0;
    for (int32_t begin = 0; begin < n; begin += WARP) {
        int32_t sum = begin + lane < n ? offsets[begin + lane + 1] : 0;
        for (int step = 1; step < WARP; step *= 2) {
            const int32_t other = __shfl_up_sync(ALL_LANES, sum, step);
            sum += lane >= step ? other : 0;
        }
        if (begin + lane < n) offsets[begin + lane + 1] = total + sum;
        total += __shfl_sync(ALL_LANES, sum, WARP - 1);
    }
}

/* Slots whose next rows a block's shared memory holds. */
enum { MAX_SHARED_SLOTS = 8192 };

/* pair_row (=) the row of each pair, row_token (=) the token of each row. A warp a part; `next` has the next
 * row of each slot: in shared memory, or where the slots are too many in the part's `before`. */
__global__ void place_pairs(wb_moe_plan plan, int32_t *before) {
    extern __shared__ int32_t shared[];
    const int64_t n_pairs = plan.T * plan.top_k, begin = static_cast<int64_t>(blockIdx.x) * PART;
    const int64_t end = min(begin + PART, n_pairs);
    int32_t *of_part = before + static_cast<int64_t>(blockIdx.x) * plan.n_slots;
    int32_t *next = plan.n_slots <= MAX_SHARED_SLOTS ? shared : of_part;
    const unsigned lower = (1u << threadIdx.x) - 1;
    for (int32_t s = threadIdx.x; s < plan.n_slots; s += WARP) next[s] = plan.offsets[s] + of_part[s];
    int32_t slot = begin + threadIdx.x < end ? plan.pair_row[begin + threadIdx.x] : -1;
    for (int64_t i = begin + threadIdx.x; i - threadIdx.x < end; i += WARP) {
        const int32_t slot_after = i + WARP < end ? plan.pair_row[i + WARP] : -1;
        const unsigned same = __match_any_sync(ALL_LANES, slot);
        __syncwarp();
        const int32_t row = slot < 0 ? -1 : next[slot] + __popc(static_cast<int>(same & lower));
        __syncwarp();
        if (slot >= 0 && (same & lower) == 0) next[slot] += __popc(static_cast<int>(same));
        if (i < end) plan.pair_row[i] = row;
        if (slot >= 0) plan.row_token[row] = static_cast<int32_t>(i / plan.top_k);
        slot = slot_after;
    }
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

/* arrived[r][s] (=) the first row that arrives from r for s, offsets (=) where the slots begin. One thread:
 * the counts are few. */
__global__ void sum_arrivals(wb_moe_group group, int32_t *arrived, int32_t *grouped) {
    const int32_t R = group.n_sources, n = group.n_slots;
    int32_t row = 0;
    for (int32_t s = 0; s < n; s++) {
        group.offsets[s] = row;
        for (int32_t r = 0; r < R; r++) {
            grouped[r * n + s] = row;
            row += group.counts[r * n + s];
        }
    }
    group.offsets[n] = row;
    row = 0;
    for (int32_t i = 0; i < R * n; i++) {
        arrived[i] = row;
        row += group.counts[i];
    }
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
    return static_cast<size_t>((n_pairs + PART - 1) / PART * n_slots) * sizeof(int32_t);
}

size_t wb_cuda_group_bytes(int32_t n_sources, int32_t n_slots) {
    return static_cast<size_t>(n_sources) * static_cast<size_t>(n_slots) * 2 * sizeof(int32_t);
}

wb_status wb_cuda_moe_plan(wb_device *dev, const wb_moe_plan *plan) {
    const int64_t n_pairs = plan->T * plan->top_k, parts = (n_pairs + PART - 1) / PART;
    cudaStream_t stream = stream_of(dev);
    int32_t *before = NULL;
    unsigned blocks = 0, slot_blocks = 0;
    WB_TRY(check_plan(plan));
    WB_TRY(wb_cuda_use(dev, "moe_plan"));
    if (n_pairs == 0)
        return dev->zero(dev, plan->offsets, ((size_t)plan->n_slots + 1) * sizeof *plan->offsets);
    WB_TRY(reserve_scratch(dev, wb_cuda_plan_bytes(n_pairs, plan->n_slots), &before));
    WB_TRY(count_blocks("moe_plan", "pairs", n_pairs, 1, &blocks));
    WB_TRY(count_blocks("moe_plan", "slots", plan->n_slots, 1, &slot_blocks));
    choose_slots<<<blocks, BLOCK, 0, stream>>>(*plan, fault_of(dev));
    count_parts<<<static_cast<unsigned>(parts), BLOCK, 0, stream>>>(n_pairs, plan->n_slots, plan->pair_row,
                                                                    before);
    sum_parts<<<slot_blocks, BLOCK, 0, stream>>>(parts, plan->n_slots, before, plan->offsets);
    sum_offsets<<<1, WARP, 0, stream>>>(plan->n_slots, plan->offsets);
    const int32_t slots = plan->n_slots <= MAX_SHARED_SLOTS ? plan->n_slots : 0;
    place_pairs<<<static_cast<unsigned>(parts), WARP, static_cast<size_t>(slots) * sizeof(int32_t), stream>>>(
        *plan, before);
    return wb_cuda_check(cudaGetLastError(), "moe_plan");
}

wb_status wb_cuda_moe_group(wb_device *dev, const wb_moe_group *group) {
    const int64_t n = (int64_t)group->n_sources * group->n_slots;
    int32_t *arrived = NULL;
    WB_TRY(wb_cuda_use(dev, "moe_group"));
    WB_TRY(reserve_scratch(dev, wb_cuda_group_bytes(group->n_sources, group->n_slots), &arrived));
    sum_arrivals<<<1, 1, 0, stream_of(dev)>>>(*group, arrived, arrived + n);
    if (n > 0)
        place_arrivals<<<static_cast<unsigned>(n), BLOCK, 0, stream_of(dev)>>>(*group, arrived, arrived + n);
    return wb_cuda_check(cudaGetLastError(), "moe_group");
}
}
