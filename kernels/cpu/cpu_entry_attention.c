/* cpu_entry_attention.c - the forward of attention whose heads share one row, over a window and over
 * compressed entries.
 *
 * A task is a query with all its heads: its keys are gathered, which costs little beside the heads' products
 * with them, so that they are one matrix whatever they are. A query's bits depend on nothing beside it.
 * Refuses: gradients (cpu_entry_attention_back.c). */
#include "cpu/cpu_entries.h"

size_t WB_CPU(entry_attention_forward_bytes)(const wb_attention *heads, int64_t keys) {
    const int64_t hd = heads->head_dim, rows = heads->n_heads;
    return (size_t)(PRODUCT_FLOATS + keys * hd + rows * (2 * hd + keys)) * sizeof(float);
}

/* to[keys, head_dim] = the keys of token t. */
static void gather_list(const wb_entry_attention *args, int64_t t, key_list keys, float *to) {
    const int64_t hd = args->raw.head_dim;
    const int32_t *blocks = blocks_of_token(args, t);
    for (int64_t j = keys.first; j < keys.first + keys.raw; j++, to += hd)
        rows_load(args->raw.k, position_row(blocks, args->raw.block_size, j) * hd, hd, to);
    for (int64_t i = 0; i < keys.entries; i++, to += hd) {
        const int64_t row = entry_row(blocks, args->raw.block_size, args->entries.ratio, entry_of(keys, i));
        rows_load(args->entries.rows, row * args->entries.stride, hd, to);
    }
}

static void forward_query(const wb_entry_attention *args, int64_t t, wb_rows out, float *scratch) {
    const wb_attention *raw = &args->raw;
    const key_list keys = find_list(args, t);
    const int64_t n = key_count(keys), hd = raw->head_dim, heads = raw->n_heads;
    const piece p = {t, 1};
    float *of_keys = scratch + PRODUCT_FLOATS, *q = of_keys + n * hd, *sums = q + heads * hd,
          *scores = sums + heads * hd;
    gather_list(args, t, keys, of_keys);
    gather_queries(raw, p, 0, raw->scale, hd, raw->q, q);
    const wb_weight k = {of_keys, WB_F32, n, hd, false};
    const wb_matmul to_scores = wb_matmul_forward(heads, wb_f32_rows(q), k, wb_f32_rows(scores));
    const wb_matmul to_out = wb_matmul_dgrad(heads, wb_f32_rows(scores), k, wb_f32_rows(sums), false);
    WB_CPU(product)(&to_scores, scratch);
    /* the queries are not needed any more */
    for (int64_t h = 0; h < heads; h++) q[h] = soften(raw, h, (span){0, n}, scores + h * n).inverse;
    WB_CPU(product)(&to_out, scratch);
    scatter_queries(raw, p, 0, q, 1, hd, sums, out);
}

wb_status WB_CPU(entry_attention_forward)(wb_device *dev, const wb_entry_attention *args, wb_rows out) {
    const char *op = "entry_attention_forward";
    int64_t work = 0;
    WB_TRY(entry_attention_check(op, args));
    WB_TRY(operand_check_like(op, "out", out.dtype, "q", args->raw.q.dtype));
    WB_TRY(check_lists(args, WB_OP_entry_attention_forward));
    const int64_t most = most_keys(args, &work);
    WB_TRY(wb_cpu_scratch_reserve(dev, WB_CPU(entry_attention_forward_bytes)(&args->raw, most)));
    zero_padding(&args->raw, args->raw.head_dim, out);
#pragma omp parallel for schedule(dynamic) num_threads(wb_cpu_threads(dev, work / 4))
    for (int64_t t = 0; t < args->raw.T; t++)
        if (args->raw.seq[t] >= 0) forward_query(args, t, out, wb_cpu_scratch(dev));
    return WB_OK;
}
