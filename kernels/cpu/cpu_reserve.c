/* cpu_reserve.c - the scratch of the ops for the largest calls that a user of the device announces.
 * Refuses: sizes of its own, where an op has a function for them (cpu_ops.h). */
#include "cpu/cpu_panel.h"

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

static wb_attention heads_of(const wb_op_sizes *most) {
    return (wb_attention){.n_heads = most->n_heads,
                          .n_kv_heads = most->n_kv_heads,
                          .head_dim = most->head_dim,
                          .value_dim = most->value_dim};
}

/* Of each thread. */
static size_t thread_bytes(const wb_op_sizes *most) {
    const wb_attention heads = heads_of(most);
    size_t bytes = PRODUCT_FLOATS * sizeof(float);
    bytes = larger(bytes, (size_t)most->vocab_size * sizeof(float));
    if (most->sampled > 0) bytes = larger(bytes, WB_CPU(sample_bytes)(most->vocab_size));
    if (most->router.n_experts > 0) bytes = larger(bytes, WB_CPU(topk_bytes)(&most->router));
    if (most->index_heads > 0)
        bytes =
            larger(bytes, WB_CPU(indexer_bytes)(most->index_heads, most->index_dim, most->ranked_entries));
    if (most->entry_keys > 0)
        bytes = larger(bytes, WB_CPU(entry_attention_forward_bytes)(&heads, most->entry_keys));
    if (most->entry_keys > 0 && most->backward)
        bytes = larger(bytes, WB_CPU(entry_attention_backward_bytes)(&heads, most->entry_keys));
    if (most->delta.n_key > 0) bytes = larger(bytes, WB_CPU(delta_forward_bytes)(most->delta));
    if (most->delta.n_key > 0 && most->backward)
        bytes = larger(bytes, WB_CPU(delta_backward_bytes)(most->delta));
    if (most->n_kv_heads == 0) return bytes;
    bytes = larger(bytes, WB_CPU(attention_forward_bytes)(&heads, most->keys));
    return most->backward ? larger(bytes, WB_CPU(attention_backward_bytes)(&heads, most->keys)) : bytes;
}

/* Products of one call of matmul: far more than any caller has. */
enum { MAX_PRODUCTS = 64 };

/* Shared by the threads. A norm's backward has a float a row, the rows being heads at most, and so has a
 * gated delta rule's. */
static size_t shared_bytes(const wb_op_sizes *most) {
    const int64_t of_attention = most->n_heads > 0 ? most->n_heads : 1;
    const int64_t heads = of_attention > most->delta.n_value ? of_attention : most->delta.n_value;
    size_t bytes = wb_cpu_group_bytes(2 * (int64_t)most->n_groups);
    bytes = larger(bytes, (MAX_PRODUCTS + 1) * sizeof(int64_t));
    bytes = larger(bytes, (size_t)most->n_slots * sizeof(int32_t));
    bytes = larger(bytes, wb_cpu_attention_plan_bytes(most->tokens, most->backward ? most->n_heads : 0));
    bytes = larger(bytes, wb_cpu_sum_bytes(most->summed));
    if (most->backward)
        bytes = larger(bytes, wb_cpu_hyper_bytes(most->tokens, wb_hyper_width(most->n_streams, 1)));
    return most->backward ? larger(bytes, (size_t)(most->tokens * heads) * sizeof(float)) : bytes;
}

/* f32 copies of bf16 operands: the elements of the widest call for a token, for a row of an expert and for
 * the rows of a token's choices, and what is lost to whole cache lines and to the list of products. */
static size_t operand_bytes(const wb_op_sizes *most) {
    const int64_t H = most->hidden, K = most->router.n_experts > 0 ? most->router.top_k : 0;
    const int64_t D = most->head_dim > most->value_dim ? most->head_dim : most->value_dim;
    const int64_t q = most->n_heads * D, kv = most->n_kv_heads * D, I = most->dense_width,
                  F = most->expert_width;
    /* Of a recurrent layer: an output, and what is projected. */
    const int64_t O = (int64_t)most->delta.n_value * most->delta.value_dim,
                  U = wb_delta_width(most->delta) + O + 2 * most->delta.n_value;
    /* Three projections, each with a copy of its input; norms of the stream and of heads; SwiGLU and its
     * backward; two products of a backward, which share dy, a router's among them; a recurrent layer's four
     * projections and the two products of their backward, and its gated norm; streams, of which a backward
     * has three and two rows besides; a compressor's backward, of overlapping entries. */
    const int64_t E = most->router.n_experts, V = most->vocab_size;
    const int64_t token[] = {3 * H + q + 2 * kv,
                             3 * H,
                             3 * q,
                             2 * (H + q),
                             5 * I,
                             4 * I + H,
                             2 * H + I,
                             2 * E + H,
                             4 * H + U,
                             2 * (H + U),
                             5 * O,
                             (3 * most->n_streams + 2) * H,
                             5 * most->compress_channels};
    const int64_t row[] = {5 * F, 4 * F + H, 2 * H + F};
    int64_t per_token = (2 * K + 1) * H, per_row = 0;
    if (most->dtype == WB_F32) return 0;
    for (size_t i = 0; i < sizeof token / sizeof token[0]; i++)
        if (token[i] > per_token) per_token = token[i];
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++)
        if (row[i] > per_row) per_row = row[i];
    const int64_t products = 2 * (int64_t)most->n_groups + MAX_PRODUCTS;
    const size_t tokens = (size_t)(most->tokens * per_token), rows = (size_t)(most->expert_rows * per_row),
                 head = most->backward ? (size_t)(most->head_rows * (2 * V + H)) : 0;
    return larger(larger(tokens, rows), head) * sizeof(float) +
           (size_t)products * (sizeof(wb_matmul) + 2 * WB_LANES * sizeof(float));
}

/* Rows of attention over entries in a backward, whose sequences are whole, of either dtype. */
static size_t entry_bytes(const wb_op_sizes *most) {
    const wb_attention heads = heads_of(most);
    if (most->entry_keys == 0 || !most->backward) return 0;
    return WB_CPU(entry_attention_shared_bytes)(&heads, most->tokens, most->call_entries, most->entry_keys);
}

wb_status WB_CPU(reserve_scratch)(wb_device *dev, const wb_op_sizes *most) {
    void *memory = NULL;
    WB_TRY(wb_cpu_scratch_reserve(dev, thread_bytes(most)));
    WB_TRY(wb_cpu_shared_reserve(dev, shared_bytes(most), &memory));
    return wb_cpu_operands_reserve(dev, larger(operand_bytes(most), entry_bytes(most)), &memory);
}
