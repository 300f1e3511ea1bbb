/* hopper_attention.cu - which calls of attention the kernels of sm_90a take, and which of the two serves a
 * token. See hopper_attention.h. */
#include "cuda/hopper/hopper_attention.h"
#include "cuda/hopper/hopper_attention_launch.h"
#include "wb_check.h"

namespace {

/* Up to so many tokens all of them are served one by one, whatever stands beside them, and no other kernel is
 * started. Up to so many tokens those that are alone have the kernel of single ones: more in the pages of an
 * engine than in the rows of training, where few are alone. For speed alone. */
const int64_t ALL_SINGLE = 16, MAX_TOKENS_IN_ROWS = 2048, MAX_TOKENS_IN_PAGES = WB_MAX_SINGLES;
const int64_t MAX_KEYS = 1 << 20;

bool aligned(const void *data) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

/* Places of blocks of keys are counted in 31 bits, and the parts of an item are listed in shared memory. */
bool can_be_single(const wb_attention *args) {
    const int64_t keys = static_cast<int64_t>(args->max_blocks) * args->block_size;
    const int64_t most = args->block_size > 1 ? MAX_TOKENS_IN_PAGES : MAX_TOKENS_IN_ROWS;
    return args->T <= most && keys <= MAX_KEYS && args->T * (keys / 128 + 1) * args->n_heads <= INT32_MAX;
}

} // namespace

bool wb_hopper_attention_takes(const wb_device *dev, const wb_attention *args, wb_rows out) {
    if (reinterpret_cast<const wb_cuda_device *>(dev)->capability != 9) return false;
    if (args->q.dtype != WB_BF16 || args->k.dtype != WB_BF16 || args->v.dtype != WB_BF16) return false;
    if (args->head_dim != 64 && args->head_dim != 128) return false;
    if (args->value_dim != args->head_dim) return false;
    /* a tile has at least one token; the largest score is found before it is scaled */
    if (args->n_heads / args->n_kv_heads > 128 || !(args->scale > 0)) return false;
    return aligned(args->q.data) && aligned(args->k.data) && aligned(args->v.data) && aligned(out.data);
}

wb_status wb_hopper_attention_forward(wb_device *dev, const wb_attention *args, wb_rows out) {
    const bool singles = can_be_single(args);
    const bool all = singles && (args->T <= ALL_SINGLE || args->one_a_sequence);
    WB_TRY(wb_cuda_use(dev, "attention_forward"));
    if (singles) WB_TRY(wb_hopper_attend_singles(dev, *args, out, all));
    return all ? WB_OK : wb_hopper_attend_tiles(dev, *args, out, singles);
}
