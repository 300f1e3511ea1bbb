/* cuda_mailbox.cu - rows that go straight into the mailboxes of other devices, and come back (wb_mailbox.h).
 *
 * Rows are stored by whole blocks, a row at a time, over NVLink where the mailbox is another device's. The
 * block that is the last to have stored its rows tells all ranks so: its store of the exchange's number is
 * ordered behind the rows of all blocks by fences of the system. Who waits looks at numbers in its own
 * memory. Refuses: a wait without a bound, which would hold the device for ever where a rank is gone. */
#include "cuda/cuda_fault.h"
#include "cuda/cuda_operands.h"
#include "cuda/cuda_ops.h"
#include "cuda/cuda_sum_before.h"

#include <stddef.h>

namespace {

/* Looks at a number between two at the clock, and between two at a word of the host, which take longer. */
enum { WAITERS = SUM_THREADS, BLOCKS_OF_A_STORE = 1024, LOOKS = 64, LOOKS_OF_HOST = 1024 };

__device__ __forceinline__ wb_mailbox *own_mailbox(const wb_mailboxes &boxes) {
    return static_cast<wb_mailbox *>(boxes.mailbox[boxes.rank]);
}

__device__ __forceinline__ uint64_t nanoseconds() {
    uint64_t now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

__device__ __forceinline__ uint64_t load_number(const uint64_t *number) {
    uint64_t value;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(number) : "memory");
    return value;
}

/* Behind a fence of the system, which one store to each rank shares. */
__device__ __forceinline__ void store_number(uint64_t *number, uint64_t value) {
    asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(number), "l"(value) : "memory");
}

/* ---- storing ----------------------------------------------------------------------------------- */

/* A row, by the threads of a block. */
__device__ __forceinline__ void store_row(const void *from, void *to, int64_t bytes) {
    const uintptr_t both = reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to);
    if ((both | static_cast<uintptr_t>(bytes)) % sizeof(uint4) == 0) {
        for (int64_t i = threadIdx.x; i < bytes / 16; i += BLOCK)
            static_cast<uint4 *>(to)[i] = static_cast<const uint4 *>(from)[i];
    } else {
        for (int64_t i = threadIdx.x; i < bytes / 2; i += BLOCK)
            static_cast<uint16_t *>(to)[i] = static_cast<const uint16_t *>(from)[i];
    }
}

/* What a block has stored comes before the number that the last block stores in numbers[rank] of each
 * mailbox; `at`: where numbers lie in it. */
__device__ void tell_all(const wb_mailboxes &boxes, size_t at) {
    wb_mailbox *own = own_mailbox(boxes);
    __syncthreads();
    if (threadIdx.x > 0) return;
    __threadfence_system();
    if (atomicAdd(&own->blocks, 1u) != gridDim.x - 1) return;
    own->blocks = 0;
    __threadfence_system();
    for (int32_t r = 0; r < boxes.n_ranks; r++)
        store_number(reinterpret_cast<uint64_t *>(static_cast<char *>(boxes.mailbox[r]) + at) + boxes.rank,
                     own->done + 1);
}

__global__ void __launch_bounds__(BLOCK)
    send_rows(const __grid_constant__ wb_mailboxes boxes, const int32_t *row_token, const int32_t *offsets,
              const char *x) {
    const int64_t bytes = static_cast<int64_t>(wb_mailbox_row_bytes(&boxes));
    if (own_mailbox(boxes)->lost) return;
    if (blockIdx.x == 0)
        for (int32_t to = 0; to < boxes.n_ranks; to++) {
            const int32_t first = boxes.first_slot[to], slots = boxes.first_slot[to + 1] - first;
            int32_t *there = wb_mailbox_offsets(&boxes, to, boxes.rank);
            for (int32_t s = threadIdx.x; s <= slots; s += BLOCK) there[s] = offsets[first + s];
        }
    for (int32_t row = blockIdx.x; row < offsets[boxes.first_slot[boxes.n_ranks]]; row += gridDim.x) {
        int32_t to = 0;
        while (row >= offsets[boxes.first_slot[to + 1]]) to++;
        const int64_t there = boxes.rank * boxes.max_rows + row - offsets[boxes.first_slot[to]];
        store_row(x + row_token[row] * bytes, wb_mailbox_row(&boxes, to, there), bytes);
    }
    tell_all(boxes, offsetof(wb_mailbox, sent));
}

__global__ void __launch_bounds__(BLOCK)
    return_rows(const __grid_constant__ wb_mailboxes boxes, const int32_t *offsets, const int32_t *place,
                const char *rows) {
    const int64_t bytes = static_cast<int64_t>(wb_mailbox_row_bytes(&boxes));
    const int32_t slots = boxes.first_slot[boxes.rank + 1] - boxes.first_slot[boxes.rank];
    if (own_mailbox(boxes)->lost) return;
    for (int32_t row = blockIdx.x; row < offsets[slots]; row += gridDim.x) {
        const int32_t to = static_cast<int32_t>(place[row] / boxes.max_rows);
        const int64_t there = wb_mailbox_offsets(&boxes, boxes.rank, to)[0] + place[row] % boxes.max_rows;
        store_row(rows + row * bytes, wb_mailbox_output(&boxes, to, there), bytes);
    }
    tell_all(boxes, offsetof(wb_mailbox, returned));
}

/* ---- waiting ----------------------------------------------------------------------------------- */

/* Where a device is told of faults, and that its stream is lost. */
struct host_words {
    wb_fault *fault;
    const int32_t *lost;
};

host_words words_of(wb_device *dev) {
    return {fault_of(dev), lost_of(dev)};
}

__device__ __forceinline__ bool is_lost(const int32_t *lost) {
    return *static_cast<const volatile int32_t *>(lost) != 0;
}

/* A thread waits for a number of rank r; 0, or what its mailbox's `lost` is to be. */
__device__ int32_t wait_for(const uint64_t *number, uint64_t wanted, int32_t r, uint64_t limit,
                            const int32_t *lost) {
    const uint64_t begin = nanoseconds();
    for (uint32_t look = 1; load_number(number) < wanted; look++) {
        if (look % LOOKS == 0 && nanoseconds() - begin > limit) return 1 + r;
        if (look % LOOKS_OF_HOST == 0 && is_lost(lost)) return WB_MAILBOX_GIVEN_UP;
    }
    return 0;
}

/* Thread r waits for rank r; all threads learn whether all came. */
__device__ bool all_came(const wb_mailboxes &boxes, const uint64_t *numbers, wb_op op, host_words words) {
    wb_mailbox *own = own_mailbox(boxes);
    const int32_t r = static_cast<int32_t>(threadIdx.x);
    const uint64_t limit = static_cast<uint64_t>(1e9 * boxes.timeout);
    int32_t late = own->lost;
    if (!late && r < boxes.n_ranks) late = wait_for(numbers + r, own->done + 1, r, limit, words.lost);
    if (late && r < boxes.n_ranks) {
        own->lost = late;
        const int64_t row = late == WB_MAILBOX_GIVEN_UP ? -1 : late - 1;
        set_fault(words.fault, {WB_FAULT_PEER, op, row, 0, 0, static_cast<int64_t>(1e3 * boxes.timeout)});
    }
    return __syncthreads_or(late) == 0;
}

/* The threads of a warp write the places of each other's n rows, which begin at `row` here and at `from` in
 * the mailbox. */
__device__ void place_rows(int32_t n, int32_t row, int32_t from, int32_t *place) {
    for (int lane = 0; lane < WARP; lane++) {
        const int32_t count = __shfl_sync(ALL_LANES, n, lane), to = __shfl_sync(ALL_LANES, row, lane);
        const int32_t at = __shfl_sync(ALL_LANES, from, lane);
        for (int32_t i = threadIdx.x % WARP; i < count; i += WARP) place[to + i] = at + i;
    }
}

/* One block. A thread has the rows of one rank for one slot, by slot, then rank. */
__global__ void __launch_bounds__(WAITERS) receive_rows(const __grid_constant__ wb_mailboxes boxes,
                                                        int32_t *offsets, int32_t *place, host_words words) {
    const int32_t slots = boxes.first_slot[boxes.rank + 1] - boxes.first_slot[boxes.rank];
    const bool came = all_came(boxes, own_mailbox(boxes)->sent, WB_OP_mailbox_receive, words);
    int32_t row = 0;
    for (int32_t begin = 0; begin < slots * boxes.n_ranks; begin += WAITERS) {
        const int32_t at = begin + threadIdx.x, s = at / boxes.n_ranks, r = at % boxes.n_ranks;
        int32_t n = 0, from = 0, total;
        if (came && s < slots) {
            const int32_t *theirs = wb_mailbox_offsets(&boxes, boxes.rank, r);
            n = __ldcg(theirs + s + 1) - __ldcg(theirs + s);
            from = static_cast<int32_t>(r * boxes.max_rows) + __ldcg(theirs + s) - __ldcg(theirs);
        }
        const int32_t first = row + sum_before(n, &total);
        if (r == 0 && s < slots) offsets[s] = first;
        place_rows(n, first, from, place);
        row += total;
    }
    if (threadIdx.x == 0) offsets[slots] = row;
}

__global__ void __launch_bounds__(WARP)
    wait_for_outputs(const __grid_constant__ wb_mailboxes boxes, host_words words) {
    wb_mailbox *own = own_mailbox(boxes);
    if (all_came(boxes, own->returned, WB_OP_mailbox_wait, words) && threadIdx.x == 0) own->done++;
}

/* Blocks for n rows at most; one at least, which tells the others that there are none. */
unsigned blocks_of(int64_t n) {
    const int64_t most = BLOCKS_OF_A_STORE;
    return static_cast<unsigned>(n < 1 ? 1 : n < most ? n : most);
}

} // namespace

extern "C" {

wb_status wb_cuda_mailbox_send(wb_device *dev, const wb_mailboxes *boxes, int64_t n, const int32_t *row_token,
                               const int32_t *offsets, wb_rows x) {
    WB_TRY(operand_check("mailbox_send", "x", x.dtype));
    WB_TRY(operand_check_like("mailbox_send", "x", x.dtype, "mailbox", boxes->dtype));
    WB_TRY(wb_cuda_use(dev, "mailbox_send"));
    send_rows<<<blocks_of(n), BLOCK, 0, stream_of(dev)>>>(*boxes, row_token, offsets,
                                                          static_cast<const char *>(x.data));
    return wb_cuda_check(cudaGetLastError(), "mailbox_send");
}

wb_status wb_cuda_mailbox_receive(wb_device *dev, const wb_mailboxes *boxes, int32_t *offsets,
                                  int32_t *place) {
    WB_TRY(wb_cuda_use(dev, "mailbox_receive"));
    receive_rows<<<1, WAITERS, 0, stream_of(dev)>>>(*boxes, offsets, place, words_of(dev));
    return wb_cuda_check(cudaGetLastError(), "mailbox_receive");
}

wb_status wb_cuda_mailbox_return(wb_device *dev, const wb_mailboxes *boxes, int64_t n, const int32_t *offsets,
                                 const int32_t *place, wb_rows rows) {
    WB_TRY(operand_check("mailbox_return", "rows", rows.dtype));
    WB_TRY(operand_check_like("mailbox_return", "rows", rows.dtype, "mailbox", boxes->dtype));
    WB_TRY(wb_cuda_use(dev, "mailbox_return"));
    return_rows<<<blocks_of(n), BLOCK, 0, stream_of(dev)>>>(*boxes, offsets, place,
                                                            static_cast<const char *>(rows.data));
    return wb_cuda_check(cudaGetLastError(), "mailbox_return");
}

wb_status wb_cuda_mailbox_wait(wb_device *dev, const wb_mailboxes *boxes) {
    WB_TRY(wb_cuda_use(dev, "mailbox_wait"));
    wait_for_outputs<<<1, WARP, 0, stream_of(dev)>>>(*boxes, words_of(dev));
    return wb_cuda_check(cudaGetLastError(), "mailbox_wait");
}
}
