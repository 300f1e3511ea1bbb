/* comm_verdict.c - what ranks learn about each other: the largest of a number, whether bytes are equal,
 * whether a rank failed. Built from broadcast and all-gather, in scratch. */
#include "comm_state.h"
#include "wb_check.h"

#include <inttypes.h>
#include <string.h>

/* One number of each rank, [size]; owner: the scratch, until the next call. */
static wb_status gather_u64(wb_comm *comm, uint64_t value, const uint64_t **values_out) {
    void *values = comm->scratch;
    WB_TRY(wb_comm_all_gather(comm, &value, sizeof value, values));
    *values_out = values;
    return WB_OK;
}

wb_status wb_comm_all_reduce_max_u64(wb_comm *comm, uint64_t *value) {
    WB_TRY(wb_comm_check_buffer("all_reduce_max", "value", value, sizeof *value));
    const uint64_t *values;
    WB_TRY(gather_u64(comm, *value, &values));
    uint64_t largest = values[0];
    for (int r = 1; r < comm->size; r++)
        if (values[r] > largest) largest = values[r];
    *value = largest;
    return WB_OK;
}

/* The first byte in which bytes[n] differs from rank 0's; n when none does. Compares block by block through
 * the scratch and never leaves early: the broadcasts are collective. */
static wb_status first_difference(wb_comm *comm, const unsigned char *bytes, size_t n, size_t *where_out) {
    size_t where = n;
    unsigned char *scratch = comm->scratch;
    for (size_t start = 0; start < n; start += WB_GATHER_BYTES) {
        const size_t block = n - start < WB_GATHER_BYTES ? n - start : WB_GATHER_BYTES;
        if (comm->rank == 0) memcpy(scratch, bytes + start, block);
        WB_TRY(wb_comm_broadcast(comm, scratch, block, 0));
        if (where < n || memcmp(scratch, bytes + start, block) == 0) continue;
        where = start;
        while (bytes[where] == scratch[where - start]) where++;
    }
    *where_out = where;
    return WB_OK;
}

wb_status wb_comm_check_equal(wb_comm *comm, const void *bytes, size_t n, const char *what) {
    WB_TRY(wb_comm_check_buffer("check_equal", what, bytes, n));
    const uint64_t *values;
    WB_TRY(gather_u64(comm, n, &values));
    for (int r = 1; r < comm->size; r++)
        if (values[r] != values[0])
            return wb_fail(WB_PEER,
                           "%s: rank %d differs from rank 0: expected %" PRIu64 " bytes, found %" PRIu64,
                           what, r, values[0], values[r]);

    size_t where;
    WB_TRY(first_difference(comm, bytes, n, &where));
    WB_TRY(gather_u64(comm, where, &values));
    for (int r = 1; r < comm->size; r++)
        if (values[r] != n)
            return wb_fail(WB_PEER, "%s: rank %d differs from rank 0 at byte %" PRIu64 " of %zu", what, r,
                           values[r], n);
    return WB_OK;
}

wb_status wb_comm_agree(wb_comm *comm, wb_status status) {
    /* Should the transport fail too, the caller still gets the message that goes with its status. */
    char message[1024];
    if (status != WB_OK) {
        const char *latest = wb_error_message();
        const size_t length = strnlen(latest, sizeof message - 1);
        memcpy(message, latest, length);
        message[length] = '\0';
    }
    const uint64_t *values;
    const wb_status gathered = gather_u64(comm, (uint64_t)status, &values);
    if (status != WB_OK) return gathered == WB_OK ? status : wb_fail(status, "%s", message);
    if (gathered != WB_OK) return gathered;
    for (int r = 0; r < comm->size; r++)
        if (values[r] != WB_OK)
            return wb_fail(WB_PEER, "rank %d failed: %s", r, wb_status_string((wb_status)values[r]));
    return WB_OK;
}
