/* moe_exchange.c - rows from the ranks of their tokens to the ranks of their experts, and back.
 * Refuses: which rows (the plan). */
#include "layers/moe/moe.h"

void wb_moe_exchange_layout(wb_moe_exchange *exchange, wb_model *model, const wb_sizes *sizes,
                            wb_arena *arena) {
    const int64_t R = model->n_ranks;
    exchange->model = model;
    wb_place_activations(arena, model, &exchange->received, sizes->expert_rows, model->config.hidden_size);
    WB_PLACE_HOST(arena, exchange->send_bytes, R);
    WB_PLACE_HOST(arena, exchange->send_offsets, R);
    WB_PLACE_HOST(arena, exchange->receive_bytes, R);
    WB_PLACE_HOST(arena, exchange->receive_offsets, R);
}

wb_status wb_moe_exchange_counts(wb_moe_exchange *exchange, const int32_t *counts, int32_t *received) {
    const wb_model *model = exchange->model;
    const size_t here = (size_t)wb_model_local_slots(model);
    for (uint32_t r = 0; r < (uint32_t)model->n_ranks; r++) {
        const size_t first = wb_placement_first_slot(model->placement, r);
        const size_t end = wb_placement_first_slot(model->placement, r + 1);
        exchange->send_offsets[r] = first * sizeof *counts;
        exchange->send_bytes[r] = (end - first) * sizeof *counts;
        exchange->receive_offsets[r] = r * here * sizeof *received;
        exchange->receive_bytes[r] = here * sizeof *received;
    }
    return wb_comm_all_to_all_v(model->comm, counts, exchange->send_bytes, exchange->send_offsets, received,
                                exchange->receive_bytes, exchange->receive_offsets);
}

/* Bytes and offsets of rows that lie by rank. */
static void lay_out(int32_t R, const int64_t *rows, size_t row_bytes, size_t *bytes, size_t *offsets) {
    size_t total = 0;
    for (int32_t r = 0; r < R; r++) {
        bytes[r] = (size_t)rows[r] * row_bytes;
        offsets[r] = total;
        total += bytes[r];
    }
}

/* All-to-all of rows [*, H] that lie by rank on both sides. */
static wb_status exchange_rows(wb_moe_exchange *exchange, const int64_t *send_rows, wb_rows send,
                               const int64_t *receive_rows, wb_rows receive) {
    const wb_model *model = exchange->model;
    const size_t row_bytes = (size_t)model->config.hidden_size * wb_dtype_size(send.dtype);
    uint64_t work;
    lay_out(model->n_ranks, send_rows, row_bytes, exchange->send_bytes, exchange->send_offsets);
    lay_out(model->n_ranks, receive_rows, row_bytes, exchange->receive_bytes, exchange->receive_offsets);
    WB_TRY(wb_exchange_start_all_to_all_v(model->exchange, send.data, exchange->send_bytes,
                                          exchange->send_offsets, receive.data, exchange->receive_bytes,
                                          exchange->receive_offsets, &work));
    return wb_exchange_wait(model->exchange, work);
}

wb_status wb_moe_send_to_experts(wb_moe_exchange *exchange, const wb_moe_rows *plan, wb_rows rows) {
    return exchange_rows(exchange, plan->send_rows, rows, plan->receive_rows,
                         wb_activations(exchange->model, &exchange->received));
}

wb_status wb_moe_return_to_tokens(wb_moe_exchange *exchange, const wb_moe_rows *plan, wb_rows grouped,
                                  wb_rows rows) {
    const wb_model *model = exchange->model;
    wb_device *dev = model->device;
    const wb_rows leaving = wb_activations(model, &exchange->received);
    WB_TRY(
        dev->gather_rows(dev, plan->n, model->config.hidden_size, plan->to_grouped.data, grouped, leaving));
    return exchange_rows(exchange, plan->receive_rows, leaving, plan->send_rows, rows);
}
