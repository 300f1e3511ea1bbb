/* comm.c - the calls of wb_comm.h over any adapter.
 *
 * Owns: argument checks, the sums in rank order, and the verdicts (check_equal, agree), all built from the
 * adapter's broadcast, all-gather and all-to-all-v. Refuses: threads, MPI.
 *
 * Scratch only grows, and whether it must grow depends on n alone, so that all ranks grow in the same call
 * and can agree on the outcome. It is never smaller than `scratch_initial`, which is enough for the
 * verdicts. */
#include <stdlib.h>
#include <string.h>

#include "wb_check.h"
#include "wb_comm.h"
#include "wb_memory.h"

/* Up to this many gathered bytes one all-gather is cheaper than two steps. */
#define WB_GATHER_BYTES ((size_t)64 * 1024)

/* An all-reduce works through its buffer in blocks of this size; it bounds the scratch. */
#define WB_BLOCK_BYTES ((size_t)4 * 1024 * 1024)

struct wb_comm {
    wb_comm_ops ops;
    int rank, size;
    void *state; /* the adapter's */
    wb_owner memory;
    unsigned char *scratch; /* of its own: it is replaced */
    size_t scratch_bytes;
    size_t *part_bytes, *part_offsets; /* [size] each, for all_to_all_v */
};

/* ---- the object ---------------------------------------------------------------------------------- */

static wb_status check_ops(const wb_comm_ops *ops) {
    if (ops->size != sizeof *ops)
        return wb_fail(WB_INVALID_ARGUMENT, "transport: expected ops of %zu bytes, found %zu", sizeof *ops,
                       ops->size);
    const struct {
        const char *name;
        bool given;
    } functions[] = {{"broadcast", ops->broadcast != NULL},
                     {"all_gather", ops->all_gather != NULL},
                     {"all_to_all_v", ops->all_to_all_v != NULL},
                     {"barrier", ops->barrier != NULL},
                     {"abort", ops->abort != NULL},
                     {"close", ops->close != NULL}};
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++)
        if (!functions[i].given)
            return wb_fail(WB_INVALID_ARGUMENT, "transport %s: %s is NULL",
                           ops->name ? ops->name : "(no name)", functions[i].name);
    return WB_OK;
}

static wb_status open_memory(wb_comm *comm) {
    const size_t ranks = (size_t)comm->size;
    comm->scratch_bytes = WB_GATHER_BYTES + ranks * sizeof(uint64_t);
    WB_TRY(WB_NEW(comm->scratch, comm->scratch_bytes, "communicator scratch"));
    WB_TRY(WB_OWN(&comm->memory, comm->part_bytes, ranks, "communicator part sizes"));
    return WB_OWN(&comm->memory, comm->part_offsets, ranks, "communicator part offsets");
}

wb_status wb_comm_new(const wb_comm_ops *ops, int rank, int size, void *state, wb_comm **comm_out) {
    wb_comm *comm = NULL;
    WB_TRY(check_ops(ops));
    WB_TRY(WB_NEW(comm, 1, "communicator"));
    comm->ops = *ops;
    comm->rank = rank;
    comm->size = size;
    comm->state = state;
    const wb_status status = open_memory(comm);
    if (status != WB_OK) {
        wb_comm_delete(comm);
        return status;
    }
    *comm_out = comm;
    return WB_OK;
}

void wb_comm_delete(wb_comm *comm) {
    if (comm == NULL) return;
    free(comm->scratch);
    wb_owner_close(&comm->memory);
    free(comm);
}

int wb_comm_rank(const wb_comm *comm) {
    return comm->rank;
}

int wb_comm_size(const wb_comm *comm) {
    return comm->size;
}

const char *wb_comm_name(const wb_comm *comm) {
    return comm->ops.name;
}

void *wb_comm_state(const wb_comm *comm) {
    return comm->state;
}

void wb_comm_close(wb_comm *comm) {
    if (comm != NULL) comm->ops.close(comm);
}

void wb_comm_abort(wb_comm *comm) {
    if (comm != NULL) comm->ops.abort(comm);
}

/* All ranks take the larger scratch or none does: a rank that kept the small one would grow alone later. */
static wb_status scratch_reserve(wb_comm *comm, size_t bytes) {
    if (bytes <= comm->scratch_bytes) return WB_OK;
    void *larger = NULL;
    wb_status status = WB_ALLOC(larger, bytes, 1, "all-reduce scratch");
    status = wb_comm_agree(comm, status);
    if (status != WB_OK) {
        free(larger);
        return status;
    }
    free(comm->scratch);
    comm->scratch = larger;
    comm->scratch_bytes = bytes;
    return WB_OK;
}

/* ---- moving bytes -------------------------------------------------------------------------------- */

static wb_status check_buffer(const char *call, const char *name, const void *buffer, size_t bytes) {
    if (bytes > 0 && buffer == NULL)
        return wb_fail(WB_INVALID_ARGUMENT, "%s: %s: expected %zu bytes, found NULL", call, name, bytes);
    return WB_OK;
}

wb_status wb_comm_broadcast(wb_comm *comm, void *buffer, size_t bytes, int root) {
    if (root < 0 || root >= comm->size)
        return wb_fail(WB_INVALID_ARGUMENT, "broadcast: root: expected 0..%d, found %d", comm->size - 1,
                       root);
    WB_TRY(check_buffer("broadcast", "buffer", buffer, bytes));
    return comm->ops.broadcast(comm, buffer, bytes, root);
}

wb_status wb_comm_all_gather(wb_comm *comm, const void *send, size_t bytes, void *recv) {
    if (bytes > SIZE_MAX / (size_t)comm->size)
        return wb_fail(WB_INVALID_ARGUMENT, "all_gather: %zu bytes on each of %d ranks overflow", bytes,
                       comm->size);
    WB_TRY(check_buffer("all_gather", "send", send, bytes));
    WB_TRY(check_buffer("all_gather", "recv", recv, bytes));
    return comm->ops.all_gather(comm, send, bytes, recv);
}

static wb_status check_parts(const wb_comm *comm, const char *name, const void *buffer, const size_t *bytes,
                             const size_t *offsets) {
    if (bytes == NULL || offsets == NULL)
        return wb_fail(WB_INVALID_ARGUMENT, "all_to_all_v: %s: expected sizes and offsets, found NULL", name);
    for (int r = 0; r < comm->size; r++) {
        if (bytes[r] > SIZE_MAX - offsets[r])
            return wb_fail(WB_INVALID_ARGUMENT, "all_to_all_v: %s: rank %d: offset %zu + %zu bytes overflow",
                           name, r, offsets[r], bytes[r]);
        WB_TRY(check_buffer("all_to_all_v", name, buffer, bytes[r]));
    }
    return WB_OK;
}

wb_status wb_comm_all_to_all_v(wb_comm *comm, const void *send, const size_t *send_bytes,
                               const size_t *send_offsets, void *recv, const size_t *recv_bytes,
                               const size_t *recv_offsets) {
    WB_TRY(check_parts(comm, "send", send, send_bytes, send_offsets));
    WB_TRY(check_parts(comm, "recv", recv, recv_bytes, recv_offsets));
    return comm->ops.all_to_all_v(comm, send, send_bytes, send_offsets, recv, recv_bytes, recv_offsets);
}

wb_status wb_comm_barrier(wb_comm *comm) {
    return comm->ops.barrier(comm);
}

/* ---- sums ---------------------------------------------------------------------------------------- */

/* An element type: into[n] += from[n]. */
typedef struct addend {
    size_t size;
    void (*add)(void *into, const void *from, size_t n);
} addend;

static void add_f32(void *into, const void *from, size_t n) {
    float *a = into;
    const float *b = from;
    for (size_t i = 0; i < n; i++) a[i] += b[i];
}

static void add_f64(void *into, const void *from, size_t n) {
    double *a = into;
    const double *b = from;
    for (size_t i = 0; i < n; i++) a[i] += b[i];
}

static const addend f32 = {sizeof(float), add_f32};
static const addend f64 = {sizeof(double), add_f64};

/* scratch[R][n]: row 0 := row 0 + row 1 + ... in that order. */
static void add_rows(wb_comm *comm, size_t n, const addend *type) {
    for (size_t r = 1; r < (size_t)comm->size; r++)
        type->add(comm->scratch, comm->scratch + r * n * type->size, n);
}

/* Every rank sums everything: R * n elements arrive on each. */
static wb_status reduce_gathered(wb_comm *comm, unsigned char *buffer, size_t n, const addend *type) {
    const size_t bytes = n * type->size;
    WB_TRY(scratch_reserve(comm, bytes * (size_t)comm->size));
    WB_TRY(wb_comm_all_gather(comm, buffer, bytes, comm->scratch));
    add_rows(comm, n, type);
    memcpy(buffer, comm->scratch, bytes);
    return WB_OK;
}

/* Rank r sums the r-th of R parts of `part` elements: 2 * R * part elements arrive on each. */
static wb_status reduce_parts(wb_comm *comm, unsigned char *buffer, size_t part, const addend *type) {
    const size_t ranks = (size_t)comm->size, bytes = part * type->size;
    WB_TRY(scratch_reserve(comm, bytes * ranks));
    for (size_t r = 0; r < ranks; r++) {
        comm->part_bytes[r] = bytes;
        comm->part_offsets[r] = r * bytes;
    }
    WB_TRY(wb_comm_all_to_all_v(comm, buffer, comm->part_bytes, comm->part_offsets, comm->scratch,
                                comm->part_bytes, comm->part_offsets));
    add_rows(comm, part, type);
    return wb_comm_all_gather(comm, comm->scratch, bytes, buffer);
}

/* One block, at most WB_BLOCK_BYTES, so that sizes times R fit for any R that is an int. The elements that
 * do not divide by R go through the gathered way; each element is summed in rank order either way. */
static wb_status reduce_block(wb_comm *comm, unsigned char *buffer, size_t n, const addend *type) {
    const size_t ranks = (size_t)comm->size;
    const size_t part = n / ranks;
    if (part == 0 || n * type->size * ranks <= WB_GATHER_BYTES) return reduce_gathered(comm, buffer, n, type);
    WB_TRY(reduce_parts(comm, buffer, part, type));
    const size_t done = part * ranks;
    return done == n ? WB_OK : reduce_gathered(comm, buffer + done * type->size, n - done, type);
}

static wb_status all_reduce(wb_comm *comm, void *buffer, size_t n, const addend *type) {
    if (n > SIZE_MAX / type->size)
        return wb_fail(WB_INVALID_ARGUMENT, "all_reduce: %zu elements of %zu bytes overflow", n, type->size);
    WB_TRY(check_buffer("all_reduce", "buffer", buffer, n * type->size));
    unsigned char *at = buffer;
    while (n > 0) {
        const size_t block = n < WB_BLOCK_BYTES / type->size ? n : WB_BLOCK_BYTES / type->size;
        WB_TRY(reduce_block(comm, at, block, type));
        at += block * type->size;
        n -= block;
    }
    return WB_OK;
}

wb_status wb_comm_all_reduce_f32(wb_comm *comm, float *buffer, size_t n) {
    return all_reduce(comm, buffer, n, &f32);
}

wb_status wb_comm_all_reduce_f64(wb_comm *comm, double *buffer, size_t n) {
    return all_reduce(comm, buffer, n, &f64);
}

/* ---- verdicts ------------------------------------------------------------------------------------ */

/* One number of each rank, [size]; owner: the scratch, until the next call. */
static wb_status gather_u64(wb_comm *comm, uint64_t value, const uint64_t **values_out) {
    void *scratch = (comm)->scratch;
    WB_TRY(wb_comm_all_gather(comm, &value, sizeof(value), scratch));
    *values_out = scratch;
    return WB_OK;
}

wb_status wb_comm_all_reduce_max_u64(wb_comm *comm, uint64_t *value) {
    WB_TRY(check_buffer("all_reduce_max", "value", value, sizeof(*value)));
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
    for (size_t start = 0; start < n; start += WB_GATHER_BYTES) {
        const size_t block = n - start < WB_GATHER_BYTES ? n - start : WB_GATHER_BYTES;
        if (comm->rank == 0) memcpy(comm->scratch, bytes + start, block);
        WB_TRY(wb_comm_broadcast(comm, comm->scratch, block, 0));
        if (where < n || memcmp(comm->scratch, bytes + start, block) == 0) continue;
        where = start;
        while (bytes[where] == comm->scratch[where - start]) where++;
    }
    *where_out = where;
    return WB_OK;
}

wb_status wb_comm_check_equal(wb_comm *comm, const void *bytes, size_t n, const char *what) {
    WB_TRY(check_buffer("check_equal", what, bytes, n));
    const uint64_t *values;
    WB_TRY(gather_u64(comm, n, &values));
    for (int r = 1; r < comm->size; r++)
        if (values[r] != values[0])
            return wb_fail(WB_PEER, "%s: rank %d differs from rank 0: expected %llu bytes, found %llu", what,
                           r, (unsigned long long)values[0], (unsigned long long)values[r]);

    size_t where;
    WB_TRY(first_difference(comm, bytes, n, &where));
    WB_TRY(gather_u64(comm, where, &values));
    for (int r = 1; r < comm->size; r++)
        if (values[r] != n)
            return wb_fail(WB_PEER, "%s: rank %d differs from rank 0 at byte %llu of %zu", what, r,
                           (unsigned long long)values[r], n);
    return WB_OK;
}

wb_status wb_comm_agree(wb_comm *comm, wb_status status) {
    /* Should the transport fail too, the caller still gets the message that goes with its status. */
    char message[1024];
    if (status != WB_OK) {
        const char *latest = wb_error_message();
        const size_t length = strnlen(latest, sizeof(message) - 1);
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
