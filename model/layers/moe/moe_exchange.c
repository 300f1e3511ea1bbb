/* moe_exchange.c - rows from the ranks of their tokens to the ranks of their experts, and back.
 * Refuses: which rows (the plan). */
#include "host_view.h"
#include "layers/moe/moe.h"
#include "model_dispatch.h"

void wb_moe_exchange_layout(wb_moe_exchange *exchange, wb_model *model, const wb_sizes *sizes,
                            wb_arena *arena) {
    const int64_t R = model->n_ranks, H = model->config.hidden_size, n = sizes->expert_rows,
                  n_pairs = sizes->tokens * model->config.router.top_k;
    const size_t row_bytes = (size_t)H * wb_dtype_size(model->activations);
    exchange->model = model;
    wb_place_activations(arena, model, &exchange->received, n, H);
    wb_host_view_place(arena, &exchange->host_tokens, n_pairs, row_bytes);
    wb_host_view_place(arena, &exchange->host_slots, n, row_bytes);
    WB_PLACE_HOST(arena, exchange->send_bytes, R);
    WB_PLACE_HOST(arena, exchange->send_offsets, R);
    WB_PLACE_HOST(arena, exchange->receive_bytes, R);
    WB_PLACE_HOST(arena, exchange->receive_offsets, R);
}

static wb_status all_to_all(wb_moe_exchange *exchange, const void *send, void *receive) {
    return wb_comm_all_to_all_v(exchange->model->comm, send, exchange->send_bytes, exchange->send_offsets,
                                receive, exchange->receive_bytes, exchange->receive_offsets);
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
    return all_to_all(exchange, counts, received);
}

/* Bytes and offsets of rows that lie by rank; returns all bytes. */
static size_t lay_out(int32_t R, const int64_t *rows, size_t row_bytes, size_t *bytes, size_t *offsets) {
    size_t total = 0;
    for (int32_t r = 0; r < R; r++) {
        bytes[r] = (size_t)rows[r] * row_bytes;
        offsets[r] = total;
        total += bytes[r];
    }
    return total;
}

/* All-to-all of rows [*, H] that lie by rank on both sides; stages: their host views. */
static wb_status exchange_rows(wb_moe_exchange *exchange, const int64_t *send_rows, wb_rows send,
                               void *send_stage, const int64_t *receive_rows, wb_rows receive,
                               void *receive_stage) {
    wb_device *dev = exchange->model->device;
    const int32_t R = exchange->model->n_ranks;
    const size_t row_bytes = (size_t)exchange->model->config.hidden_size * wb_dtype_size(send.dtype);
    const size_t sent = lay_out(R, send_rows, row_bytes, exchange->send_bytes, exchange->send_offsets);
    const size_t received =
        lay_out(R, receive_rows, row_bytes, exchange->receive_bytes, exchange->receive_offsets);
    const void *from;
    void *to = wb_host_view_write(dev, receive_stage, receive.data);
    WB_TRY(wb_host_view_read(dev, send_stage, send.data, sent, &from));
    WB_TRY(all_to_all(exchange, from, to));
    return wb_host_view_commit(dev, receive.data, to, received);
}

wb_status wb_moe_send_to_experts(wb_moe_exchange *exchange, const wb_layer_plan *plan, wb_rows rows) {
    return exchange_rows(exchange, plan->send_rows, rows, exchange->host_tokens, plan->receive_rows,
                         wb_activations(exchange->model, &exchange->received), exchange->host_slots);
}

wb_status wb_moe_return_to_tokens(wb_moe_exchange *exchange, const wb_layer_plan *plan, wb_rows grouped,
                                  wb_rows rows) {
    const wb_model *model = exchange->model;
    wb_device *dev = model->device;
    const wb_rows leaving = wb_activations(model, &exchange->received);
    WB_TRY(
        dev->gather_rows(dev, plan->n, model->config.hidden_size, plan->to_grouped.data, grouped, leaving));
    return exchange_rows(exchange, plan->receive_rows, leaving, exchange->host_slots, plan->send_rows, rows,
                         exchange->host_tokens);
}
