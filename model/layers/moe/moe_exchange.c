/* moe_exchange.c - rows from the ranks of their tokens to the ranks of their experts, and back.
 * Refuses: which rows (the plan). */
#include "host_view.h"
#include "layers/moe/moe.h"

wb_status wb_moe_exchange_open(wb_model *model, wb_workspace *memory, wb_moe_exchange *exchange) {
    const size_t R = (size_t)wb_comm_size(model->comm);
    exchange->model = model;
    exchange->memory = memory;
    WB_TRY(WB_OWN(&memory->host, exchange->send_bytes, R, "MoE exchange"));
    WB_TRY(WB_OWN(&memory->host, exchange->send_offsets, R, "MoE exchange"));
    WB_TRY(WB_OWN(&memory->host, exchange->receive_bytes, R, "MoE exchange"));
    return WB_OWN(&memory->host, exchange->receive_offsets, R, "MoE exchange");
}

static wb_status all_to_all(wb_moe_exchange *exchange, const void *send, void *receive) {
    return wb_comm_all_to_all_v(exchange->model->comm, send, exchange->send_bytes, exchange->send_offsets,
                                receive, exchange->receive_bytes, exchange->receive_offsets);
}

wb_status wb_moe_exchange_counts(wb_moe_exchange *exchange, const int32_t *rank_first, int32_t n_local,
                                 const int64_t *slot_counts, int64_t *received_counts) {
    for (int32_t r = 0; r < wb_comm_size(exchange->model->comm); r++) {
        exchange->send_offsets[r] = (size_t)rank_first[r] * sizeof(int64_t);
        exchange->send_bytes[r] = (size_t)(rank_first[r + 1] - rank_first[r]) * sizeof(int64_t);
        exchange->receive_offsets[r] = (size_t)r * (size_t)n_local * sizeof(int64_t);
        exchange->receive_bytes[r] = (size_t)n_local * sizeof(int64_t);
    }
    return all_to_all(exchange, slot_counts, received_counts);
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

/* All-to-all of rows [*, H] that lie by rank on both sides. */
static wb_status exchange_rows(wb_moe_exchange *exchange, const int64_t *send_rows, const float *send,
                               const int64_t *receive_rows, float *receive) {
    wb_workspace *memory = exchange->memory;
    const int32_t R = wb_comm_size(exchange->model->comm);
    const size_t row_bytes = (size_t)exchange->model->config.hidden_size * sizeof(float);
    const size_t sent = lay_out(R, send_rows, row_bytes, exchange->send_bytes, exchange->send_offsets);
    const size_t received =
        lay_out(R, receive_rows, row_bytes, exchange->receive_bytes, exchange->receive_offsets);
    const void *from;
    void *to;
    WB_TRY(wb_host_view_read(memory, &exchange->stage_send, send, sent, &from));
    WB_TRY(wb_host_view_write(memory, &exchange->stage_receive, receive, received, &to));
    WB_TRY(all_to_all(exchange, from, to));
    return wb_host_view_commit(memory, receive, to, received);
}

wb_status wb_moe_send_to_experts(wb_moe_exchange *exchange, const wb_moe_plan *plan, const float *rows,
                                 float *grouped) {
    wb_device *dev = exchange->model->device;
    const int64_t H = exchange->model->config.hidden_size;
    WB_TRY(wb_reserve(exchange->memory, &exchange->received, plan->n, H, sizeof(float)));
    WB_TRY(exchange_rows(exchange, plan->send_rows, rows, plan->receive_rows, exchange->received.data));
    return dev->gather_rows(dev, plan->n, H, plan->to_received.data, wb_f32_rows(exchange->received.data),
                            wb_f32_rows(grouped));
}

wb_status wb_moe_return_to_tokens(wb_moe_exchange *exchange, const wb_moe_plan *plan, const float *grouped,
                                  float *rows) {
    wb_device *dev = exchange->model->device;
    const int64_t H = exchange->model->config.hidden_size;
    WB_TRY(dev->gather_rows(dev, plan->n, H, plan->to_grouped.data, wb_f32_rows(grouped),
                            wb_f32_rows(exchange->received.data)));
    return exchange_rows(exchange, plan->receive_rows, exchange->received.data, plan->send_rows, rows);
}
