/* reference_digest.c - a number of a model's weights, by which a run that resumes knows its reference again.
 * Each tensor's name and bytes make a number, and those of all tensors are combined whatever their order, so
 * that it is the same on any number of ranks. Refuses: more than CHUNK_BYTES of host memory. */
#include "grpo.h"
#include "wb_hash.h"
#include "wb_memory.h"

#include <string.h>

enum { CHUNK_BYTES = 4 << 20 };

static wb_status digest_tensor(wb_device *device, const wb_tensor *tensor, void *chunk,
                               uint64_t *digest_out) {
    size_t bytes = (size_t)tensor->n * wb_dtype_size(tensor->dtype);
    wb_hash hash;
    wb_hash_start(&hash);
    for (size_t done = 0, part; done < bytes; done += part) {
        part = bytes - done < CHUNK_BYTES ? bytes - done : CHUNK_BYTES;
        WB_TRY(device->to_host(device, chunk, (const char *)tensor->data + done, part));
        wb_hash_add(&hash, chunk, part);
    }
    *digest_out = wb_hash64_seeded(tensor->name, strlen(tensor->name), wb_hash_value(&hash));
    return WB_OK;
}

/* Experts count on the rank that has their replica 0, replicated tensors on rank 0. */
static wb_status digest_local(wb_model *model, void *chunk, uint64_t *digest_out) {
    uint64_t sum = 0;
    for (int32_t i = 0; i < wb_model_n_tensors(model); i++) {
        wb_tensor tensor = wb_model_replica(model, i, 0);
        uint64_t digest;
        if (!tensor.data || (tensor.expert < 0 && wb_comm_rank(wb_model_comm(model)) != 0)) continue;
        WB_TRY(digest_tensor(wb_model_device(model), &tensor, chunk, &digest));
        sum += digest;
    }
    *digest_out = sum;
    return WB_OK;
}

wb_status reference_digest(wb_model *model, uint64_t *digest_out) {
    wb_comm *comm = wb_model_comm(model);
    wb_owner owner = {0};
    char *chunk;
    uint64_t own = 0, sum = 0, *all = NULL;
    wb_status status = WB_OWN(&owner, chunk, CHUNK_BYTES, "digest of the weights");
    if (status == WB_OK) status = WB_OWN(&owner, all, (size_t)wb_comm_size(comm), "digest of the weights");
    if (status == WB_OK) status = digest_local(model, chunk, &own);
    WB_GOTO(wb_comm_agree(comm, status), close_owner);
    WB_GOTO(wb_comm_all_gather(comm, &own, sizeof own, all), close_owner);
    for (int rank = 0; rank < wb_comm_size(comm); rank++) sum += all[rank];
    *digest_out = sum;
close_owner:
    wb_owner_close(&owner);
    return status;
}
