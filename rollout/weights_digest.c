/* weights_digest.c - see weights_digest.h. */
#include "weights_digest.h"
#include "wb_check.h"
#include "wb_device.h"
#include "wb_hash.h"

/* At most this many tensors, evenly over the registry, and at most this many bytes from the middle of each:
 * each is a copy of its own from the device. */
enum { MAX_TENSORS = 32, MAX_BYTES = 1024 };

/* Tensors that every rank holds; experts live on one. */
static int32_t count_replicated(const wb_model *model) {
    int32_t n = 0;
    for (int32_t i = 0; i < wb_model_n_tensors(model); i++) n += wb_model_tensor(model, i).expert < 0;
    return n;
}

static wb_status add_tensor(wb_hash *hash, const wb_model *model, const wb_tensor *tensor) {
    unsigned char host[MAX_BYTES];
    const int64_t size = (int64_t)wb_dtype_size(tensor->dtype), max = MAX_BYTES / size;
    const int64_t n = tensor->n < max ? tensor->n : max, start = (tensor->n - n) / 2;
    WB_TRY(wb_model_read(model, tensor, start, n, host));
    wb_hash_add(hash, host, (size_t)(n * size));
    return WB_OK;
}

wb_status wb_weights_digest(const wb_model *model, uint64_t *digest_out) {
    const int32_t stride = (count_replicated(model) + MAX_TENSORS - 1) / MAX_TENSORS;
    wb_hash hash;
    wb_hash_start(&hash);
    for (int32_t i = 0, j = 0; i < wb_model_n_tensors(model); i++) {
        const wb_tensor tensor = wb_model_tensor(model, i);
        if (tensor.expert >= 0 || j++ % stride != 0) continue;
        WB_TRY(add_tensor(&hash, model, &tensor));
    }
    *digest_out = wb_hash_value(&hash);
    return WB_OK;
}
