/* nccl_sizes.c - whether sender and receiver agree on the bytes of a group, over the control plane, which
 * NCCL does not see. For tests: it waits for all ranks, and takes memory. */
#include "nccl_state.h"
#include "wb_check.h"

#include <inttypes.h>
#include <stdlib.h>

/* What one rank sends another in a group, or expects of it. */
typedef struct pair_sizes {
    uint64_t group, transfers, bytes;
    uint64_t order; /* another for other sizes, in another order */
} pair_sizes;

typedef struct size_tables {
    pair_sizes *sends, *expects, *theirs; /* [ranks] */
    size_t *bytes, *offsets;              /* [ranks] */
} size_tables;

static void add_item(pair_sizes *pair, const wb_transfer *transfer) {
    pair->transfers++;
    pair->bytes += transfer->bytes;
    pair->order = (pair->order ^ transfer->bytes) * UINT64_C(0x9e3779b97f4a7c15) + 1;
}

static void fill(size_tables *tables, int ranks, const wb_exchange_group *group) {
    for (int r = 0; r < ranks; r++) {
        tables->sends[r] = tables->expects[r] = (pair_sizes){.group = group->number};
        tables->bytes[r] = sizeof(pair_sizes);
        tables->offsets[r] = (size_t)r * sizeof(pair_sizes);
    }
    for (size_t i = 0; i < group->n; i++) {
        const wb_transfer *const t = &group->items[i].transfer;
        add_item(t->receive ? &tables->expects[t->peer] : &tables->sends[t->peer], t);
    }
}

static wb_status compare(const pair_sizes *expected, const pair_sizes *found, int from, int to) {
    if (expected->group == found->group && expected->transfers == found->transfers &&
        expected->bytes == found->bytes && expected->order == found->order)
        return WB_OK;
    return wb_fail(WB_MISMATCH,
                   "exchange: group %" PRIu64 ": rank %d to rank %d: expected %" PRIu64
                   " bytes, found %" PRIu64 " (transfers: %" PRIu64 ", %" PRIu64 ", of group %" PRIu64 ")",
                   expected->group, from, to, expected->bytes, found->bytes, expected->transfers,
                   found->transfers, found->group);
}

static wb_status tell_and_compare(wb_comm *control, size_tables *tables, const wb_exchange_group *group) {
    const int me = wb_comm_rank(control), ranks = wb_comm_size(control);
    fill(tables, ranks, group);
    WB_TRY(wb_comm_all_to_all_v(control, tables->sends, tables->bytes, tables->offsets, tables->theirs,
                                tables->bytes, tables->offsets));
    for (int r = 0; r < ranks; r++)
        if (r != me) WB_TRY(compare(&tables->expects[r], &tables->theirs[r], r, me));
    return WB_OK;
}

wb_status wb_nccl_check_sizes(wb_comm *control, const wb_exchange_group *group) {
    const size_t ranks = (size_t)wb_comm_size(control);
    pair_sizes *const pairs = calloc(3 * ranks, sizeof *pairs);
    size_t *const sizes = calloc(2 * ranks, sizeof *sizes);
    wb_status status = WB_OK;
    if (pairs && sizes) {
        size_tables tables = {pairs, pairs + ranks, pairs + 2 * ranks, sizes, sizes + ranks};
        status = tell_and_compare(control, &tables, group);
    } else {
        status = wb_fail(WB_OUT_OF_MEMORY, "exchange over NCCL: sizes of %zu ranks", ranks);
    }
    free(pairs);
    free(sizes);
    return status;
}
