/* replica_check.c - see replica_check.h. */
#include "replica_check.h"
#include "wb_hash.h"

#include <inttypes.h>
#include <stdlib.h>

#define SAMPLE_BYTES ((size_t)4096)

/* 52 bits, so that f64 holds them exactly and a sum over ranks, of which one has the replica, does too. */
static wb_status digest_of(const wb_model *m, const wb_tensor *t, double *digest_out) {
    unsigned char sample[SAMPLE_BYTES];
    const size_t all = (size_t)t->n * wb_dtype_size(t->dtype),
                 bytes = all < SAMPLE_BYTES ? all : SAMPLE_BYTES;
    const char *middle = (const char *)t->data + (all - bytes) / 2;
    WB_TRY(m->device->to_host(m->device, sample, middle, bytes));
    *digest_out = (double)(wb_hash64(sample, bytes) >> 12);
    return WB_OK;
}

/* How many replicas there are of tensors that have several. */
static size_t count_digests(const wb_model *m) {
    size_t count = 0;
    for (int32_t i = 0; i < m->n_tensors; i++) {
        const int32_t n = wb_model_n_replicas(m, i);
        if (n > 1) count += (size_t)n;
    }
    return count;
}

/* digests [count_digests], zeros: fills those of the replicas here. */
static wb_status take_digests(const wb_model *m, double *digests) {
    for (int32_t i = 0; i < m->n_tensors; i++) {
        const int32_t n = wb_model_n_replicas(m, i);
        for (int32_t k = 0; n > 1 && k < n; k++, digests++) {
            const wb_tensor t = wb_model_replica(m, i, k);
            if (t.data) WB_TRY(digest_of(m, &t, digests));
        }
    }
    return WB_OK;
}

static wb_status compare_digests(const wb_model *m, const double *digests) {
    for (int32_t i = 0; i < m->n_tensors; i++) {
        const int32_t n = wb_model_n_replicas(m, i);
        for (int32_t k = 1; k < n; k++) {
            const wb_tensor a = wb_model_replica(m, i, 0), b = wb_model_replica(m, i, k);
            if (digests[0] != digests[k])
                return wb_fail(WB_MISMATCH,
                               "%s: expected the same in all replicas, found slot %" PRIu32
                               " of rank %d and slot %" PRIu32 " of rank %d to differ",
                               a.name, a.slot.slot, a.rank, b.slot.slot, b.rank);
        }
        if (n > 1) digests += n;
    }
    return WB_OK;
}

wb_status wb_replicas_check(const wb_model *m) {
    const size_t count = count_digests(m);
    double *digests = NULL;
    if (count == 0) return WB_OK;
    wb_status status = WB_NEW(digests, count, "digests of replicas");
    if (status == WB_OK) status = take_digests(m, digests);
    status = wb_comm_agree(m->comm, status);
    if (status == WB_OK) status = wb_comm_all_reduce_f64(m->comm, digests, count);
    if (status == WB_OK) status = compare_digests(m, digests);
    free(digests);
    return status;
}
