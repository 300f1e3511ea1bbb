/* comm_reduce.c - sums over ranks, of each element in rank order, whatever way the elements travel.
 * Refuses: the sums of a transport, whose order is not fixed. */
#include "comm_state.h"
#include "wb_check.h"

#include <string.h>

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

/* Every rank sums everything: R * n elements arrive on each, as many at a time as the scratch holds. */
static wb_status reduce_gathered(wb_comm *comm, unsigned char *buffer, size_t n, const addend *type) {
    const size_t most = comm->scratch_bytes / (type->size * (size_t)comm->size);
    for (size_t done = 0; done < n; done += most) {
        const size_t count = n - done < most ? n - done : most;
        unsigned char *at = buffer + done * type->size;
        WB_TRY(wb_comm_all_gather(comm, at, count * type->size, comm->scratch));
        add_rows(comm, count, type);
        memcpy(at, comm->scratch, count * type->size);
    }
    return WB_OK;
}

/* Rank r sums the r-th of R parts of `part` elements: 2 * R * part elements arrive on each. */
static wb_status reduce_parts(wb_comm *comm, unsigned char *buffer, size_t part, const addend *type) {
    const size_t ranks = (size_t)comm->size, bytes = part * type->size;
    for (size_t r = 0; r < ranks; r++) {
        comm->part_bytes[r] = bytes;
        comm->part_offsets[r] = r * bytes;
    }
    WB_TRY(wb_comm_all_to_all_v(comm, buffer, comm->part_bytes, comm->part_offsets, comm->scratch,
                                comm->part_bytes, comm->part_offsets));
    add_rows(comm, part, type);
    return wb_comm_all_gather(comm, comm->scratch, bytes, buffer);
}

/* One block, at most WB_SUM_BYTES, so that sizes times R fit for any R that is an int. The elements that
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
    WB_TRY(wb_comm_check_buffer("all_reduce", "buffer", buffer, n * type->size));
    unsigned char *at = buffer;
    while (n > 0) {
        const size_t block = n < WB_SUM_BYTES / type->size ? n : WB_SUM_BYTES / type->size;
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
