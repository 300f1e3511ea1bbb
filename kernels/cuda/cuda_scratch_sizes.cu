/* cuda_scratch_sizes.cu - the scratch that the largest op of a device takes, by what each op says of its own.
 * It knows all ops, which know cuda_scratch.cu. Refuses: making it. */
#include "cuda/cuda_scratch.h"
#include "cuda/hopper/hopper_attention.h"

extern "C" {

size_t wb_cuda_scratch_bytes(const wb_device *dev, const wb_op_sizes *most) {
    const int32_t heads = most->n_heads > 0 ? most->n_heads : 1;
    const int32_t K = most->router.n_experts > 0 ? most->router.top_k : 0;
    const int64_t whole = (int64_t)heads * most->head_dim; /* a norm over all heads */
    /* Of a storage of experts each matrix has parts of its own. */
    const size_t rests = 2 * (size_t)most->n_groups * sizeof(double);
    size_t largest = 0;
    size_t bytes[16] = {wb_cuda_plan_bytes(most->tokens * K, most->n_slots),
                        wb_cuda_group_bytes(most->n_sources, most->n_groups),
                        wb_cuda_sum_bytes(1, most->summed) + rests, wb_hopper_attention_bytes(dev, most)};
    if (most->sampled > 0) bytes[4] = wb_cuda_sample_bytes(most->sampled, most->vocab_size);
    if (most->backward) {
        bytes[5] = wb_cuda_attention_backward_bytes(most->tokens, heads);
        bytes[6] = wb_cuda_norm_backward_bytes(most->tokens * heads, most->head_dim);
        bytes[7] = wb_cuda_norm_backward_bytes(most->tokens, whole > most->hidden ? whole : most->hidden);
    }
    bytes[8] = wb_cuda_logprob_bytes(most->vocab_size);
    if (most->backward && most->delta.n_key > 0) {
        bytes[9] = wb_cuda_delta_backward_bytes(dev, most->tokens, most->delta);
        bytes[10] = wb_cuda_norm_backward_bytes(most->tokens * most->delta.n_value, most->delta.value_dim);
    }
    if (most->backward) {
        bytes[11] = wb_cuda_hyper_bytes(most->tokens, most->n_streams);
        bytes[12] = wb_cuda_compress_bytes(most->tokens, most->compress_channels);
    }
    bytes[13] = wb_cuda_indexer_bytes(most->tokens, most->ranked_entries);
    bytes[14] = wb_cuda_entry_forward_bytes(most->tokens, heads, most->entry_keys);
    if (most->backward && most->entry_keys > 0)
        bytes[15] = wb_cuda_entry_backward_bytes(most->tokens, heads, most->head_dim, most->entry_keys,
                                                 most->call_entries);
    for (size_t i = 0; i < sizeof bytes / sizeof bytes[0]; i++)
        largest = bytes[i] > largest ? bytes[i] : largest;
    return largest;
}

size_t wb_scratch_bytes_cuda(const wb_op_sizes *most) {
    wb_cuda_device h100 = {};
    h100.multiprocessors = 132;
    h100.capability = 9;
    return wb_cuda_scratch_bytes(&h100.base, most);
}
}
