/* moe.c - the MoE part of a layer: router, the one place where experts are chosen, dispatch to the ranks that
 * hold the experts, combine; and the backward of all of it.
 *
 * Owns: choose(), through which capture and replay both go, and the plan of who sends which rows where.
 * Refuses: attention, the residual stream, where routes come from.
 *
 * The plan reads expert_rank and expert_slot at each forward and asks nothing of them but that each rank's
 * slots are 0 .. n-1, each used once. Rows move, never sums: a token's result does not depend on the plan. */
#include <stdlib.h>
#include <string.h>

#include "forward_internal.h"
#include "wb_memory.h"

/* ---- workspace ----------------------------------------------------------------------------------- */

wb_status wb_moe_open(wb_model *model, wb_workspace *memory, wb_moe *moe) {
    memset(moe, 0, sizeof *moe);
    moe->model = model;
    moe->memory = memory;
    const size_t E = (size_t)model->config.router.n_experts;
    const size_t R = (size_t)wb_comm_size(model->comm);
    WB_TRY(WB_OWN(&memory->host, moe->rank_first, R + 1, "MoE plan"));
    WB_TRY(WB_OWN(&memory->host, moe->order, E, "MoE plan"));
    WB_TRY(WB_OWN(&memory->host, moe->counts, E, "MoE plan"));
    WB_TRY(WB_OWN(&memory->host, moe->position_counts, E, "MoE plan"));
    WB_TRY(WB_OWN(&memory->host, moe->slot_start, E + 1, "MoE plan"));
    WB_TRY(WB_OWN(&memory->host, moe->send_rows, R, "MoE plan"));
    WB_TRY(WB_OWN(&memory->host, moe->receive_rows, R, "MoE plan"));
    WB_TRY(WB_OWN(&memory->host, moe->send_bytes, R, "MoE plan"));
    WB_TRY(WB_OWN(&memory->host, moe->send_offsets, R, "MoE plan"));
    WB_TRY(WB_OWN(&memory->host, moe->receive_bytes, R, "MoE plan"));
    WB_TRY(WB_OWN(&memory->host, moe->receive_offsets, R, "MoE plan"));
    return WB_OWN(&memory->host, moe->list, 2 * E, "MoE plan");
}

/* ---- device memory as the host sees it ------------------------------------------------------- */

/* The host's view of device[bytes], for reading: itself where device memory is host memory, else a copy in
 * `stage`. */
static wb_status to_host_view(wb_workspace *memory, wb_host_buffer *stage, const void *device, size_t bytes,
                              const void **host_out) {
    wb_device *dev = memory->device;
    *host_out = device;
    if (dev->backend == WB_BACKEND_CPU) return WB_OK;
    WB_TRY(wb_reserve_host(memory, stage, (int64_t)bytes, 1, "staging"));
    WB_TRY(dev->to_host(dev, stage->data, device, bytes));
    *host_out = stage->data;
    return WB_OK;
}

/* Where the host may write what is to become device[bytes] by from_host_view. */
static wb_status host_view(wb_workspace *memory, wb_host_buffer *stage, void *device, size_t bytes,
                           void **host_out) {
    wb_device *dev = memory->device;
    *host_out = device;
    if (dev->backend == WB_BACKEND_CPU) return WB_OK;
    WB_TRY(wb_reserve_host(memory, stage, (int64_t)bytes, 1, "staging"));
    *host_out = stage->data;
    return WB_OK;
}

static wb_status from_host_view(wb_device *dev, void *device, const void *host, size_t bytes) {
    return host == device ? WB_OK : dev->to_device(dev, device, host, bytes);
}

/* ---- choice -------------------------------------------------------------------------------------- */

static wb_dtype ids_dtype(const wb_model *model) {
    return wb_route_dtype((uint32_t)model->config.router.n_experts);
}

/* Layer `moe_index` of a route tensor [T][L][K]. */
static wb_ids layer_ids(const wb_model *model, void *tensor, int32_t moe_index) {
    const int64_t K = model->config.router.top_k;
    wb_ids ids = {NULL, ids_dtype(model), K * (int64_t)model->route_model.n_moe_layers};
    if (tensor != NULL) ids.data = (uint8_t *)tensor + (size_t)(moe_index * K) * wb_dtype_size(ids.dtype);
    return ids;
}

wb_status wb_moe_check_routing(wb_moe *moe, int64_t T, const wb_routing *routing) {
    const wb_model *model = moe->model;
    const int64_t E = model->config.router.n_experts, K = model->config.router.top_k;
    const int64_t L = model->route_model.n_moe_layers;
    if (L == 0) return WB_OK;
    if (routing == NULL || (routing->ids == NULL && T > 0))
        return wb_fail(WB_INVALID_ARGUMENT, "routing: expected ids [%lld][%lld][%lld], found NULL",
                       (long long)T, (long long)L, (long long)K);
    const wb_dtype dtype = ids_dtype(model);
    if (T == 0 || routing->forced == NULL || E == (dtype == WB_U8 ? 256 : 65536)) return WB_OK;

    const void *forced_view, *ids_view;
    WB_TRY(to_host_view(moe->memory, &moe->stage_send, routing->forced, (size_t)T, &forced_view));
    WB_TRY(to_host_view(moe->memory, &moe->stage_receive, routing->ids,
                        (size_t)(T * L * K) * wb_dtype_size(dtype), &ids_view));
    const uint8_t *forced = forced_view;
    for (int64_t t = 0; t < T; t++)
        for (int64_t i = t * L * K; forced[t] != 0 && i < (t + 1) * L * K; i++) {
            const int64_t id =
                dtype == WB_U8 ? ((const uint8_t *)ids_view)[i] : ((const uint16_t *)ids_view)[i];
            if (id >= E)
                return wb_fail(WB_INVALID_ARGUMENT,
                               "routing: token %lld, MoE layer %lld, slot %lld: expected a forced id below "
                               "%lld, found %lld",
                               (long long)t, (long long)(i / K % L), (long long)(i % K), (long long)E,
                               (long long)id);
        }
    return WB_OK;
}

/* Logits of x, then ids by the direction of each row, then the weights of those ids: the one place where
 * experts are chosen. */
static wb_status choose(wb_moe *moe, const wb_layer *layer, const float *x, const wb_routing *routing,
                        bool follow) {
    const wb_model *model = moe->model;
    wb_device *dev = model->device;
    const wb_router *router = &model->config.router;
    const int64_t T = moe->T, H = model->config.hidden_size;
    WB_TRY(wb_reserve(moe->memory, &moe->logits, T, router->n_experts, sizeof(float)));
    WB_TRY(wb_reserve(moe->memory, &moe->weights, T, router->top_k, sizeof(float)));
    float *logits = moe->logits.data;

    const wb_matmul product =
        wb_matmul_forward(T, H, router->n_experts, x, wb_param_data(model, layer->router),
                          model->params[layer->router].dtype, logits);
    WB_TRY(dev->matmul(dev, 1, &product));
    const wb_ids ids = layer_ids(model, routing->ids, layer->moe_index);
    if (!follow) {
        const wb_topk args = {.router = *router,
                              .T = T,
                              .logits = logits,
                              .forced = routing->forced,
                              .ids = ids,
                              .native = layer_ids(model, routing->native, layer->moe_index)};
        WB_TRY(dev->topk(dev, &args));
    }
    return dev->gate_forward(dev, router, T, logits, ids, moe->weights.data);
}

/* ---- plan ---------------------------------------------------------------------------------------- */

/* Fills rank_first and order from the placement. */
static void number_positions(wb_moe *moe) {
    const wb_model *model = moe->model;
    const int32_t E = model->config.router.n_experts, R = wb_comm_size(model->comm);
    memset(moe->rank_first, 0, ((size_t)R + 1) * sizeof(int32_t));
    for (int32_t e = 0; e < E; e++) moe->rank_first[model->expert_rank[e] + 1]++;
    for (int32_t r = 0; r < R; r++) moe->rank_first[r + 1] += moe->rank_first[r];
    for (int32_t e = 0; e < E; e++)
        moe->order[moe->rank_first[model->expert_rank[e]] + model->expert_slot[e]] = e;
}

/* Renumbers slot_row and row_token from order by expert id to order by position. */
static wb_status sort_by_position(wb_moe *moe, int64_t n_pairs) {
    wb_device *dev = moe->model->device;
    const int32_t E = moe->model->config.router.n_experts;
    const size_t bytes = (size_t)n_pairs * sizeof(int32_t);
    WB_TRY(wb_reserve_host(moe->memory, &moe->index, 3 * n_pairs, sizeof(int32_t), "row order"));
    int32_t *slot_row = moe->index.data, *row_token = slot_row + n_pairs, *moved = row_token + n_pairs;

    /* moved[row by id] = row by position; row_token follows it. */
    WB_TRY(dev->to_host(dev, slot_row, moe->row_token.data, bytes));
    int64_t *first_row = moe->slot_start; /* by expert id; filled with its own content later */
    int64_t row = 0;
    for (int32_t e = 0; e < E; e++) {
        first_row[e] = row;
        row += moe->counts[e];
    }
    int32_t to = 0;
    for (int32_t p = 0; p < E; p++)
        for (int64_t i = 0; i < moe->counts[moe->order[p]]; i++) {
            const int64_t from = first_row[moe->order[p]] + i;
            row_token[to] = slot_row[from];
            moved[from] = to++;
        }
    WB_TRY(dev->to_device(dev, moe->row_token.data, row_token, bytes));
    WB_TRY(dev->to_host(dev, slot_row, moe->slot_row.data, bytes));
    for (int64_t i = 0; i < n_pairs; i++) slot_row[i] = moved[slot_row[i]];
    return dev->to_device(dev, moe->slot_row.data, slot_row, bytes);
}

/* Rows of this rank's pairs: slot_row, row_token, position_counts. */
static wb_status sort_rows(wb_moe *moe, wb_ids ids) {
    const wb_model *model = moe->model;
    wb_device *dev = model->device;
    const int32_t E = model->config.router.n_experts, K = model->config.router.top_k;
    const int64_t n_pairs = moe->T * K;
    WB_TRY(wb_reserve(moe->memory, &moe->slot_row, n_pairs, 1, sizeof(int32_t)));
    WB_TRY(wb_reserve(moe->memory, &moe->row_token, n_pairs, 1, sizeof(int32_t)));
    WB_TRY(dev->moe_sort(dev, moe->T, K, E, ids, moe->slot_row.data, moe->row_token.data, moe->counts));

    number_positions(moe);
    bool by_id = true;
    for (int32_t p = 0; p < E; p++) {
        moe->position_counts[p] = moe->counts[moe->order[p]];
        by_id = by_id && moe->order[p] == p;
    }
    return by_id ? WB_OK : sort_by_position(moe, n_pairs);
}

/* Tells every rank how many rows its experts get from here: received_counts[r][slot], send_rows,
 * receive_rows. */
static wb_status exchange_counts(wb_moe *moe) {
    wb_comm *comm = moe->model->comm;
    const int32_t R = wb_comm_size(comm),
                  n_local = moe->rank_first[wb_comm_rank(comm) + 1] - moe->rank_first[wb_comm_rank(comm)];
    WB_TRY(wb_reserve_host(moe->memory, &moe->received_counts, (int64_t)R * n_local, sizeof(int64_t),
                           "row counts"));
    int64_t *received = moe->received_counts.data;
    for (int32_t r = 0; r < R; r++) {
        moe->send_offsets[r] = (size_t)moe->rank_first[r] * sizeof(int64_t);
        moe->send_bytes[r] = (size_t)(moe->rank_first[r + 1] - moe->rank_first[r]) * sizeof(int64_t);
        moe->receive_offsets[r] = (size_t)r * (size_t)n_local * sizeof(int64_t);
        moe->receive_bytes[r] = (size_t)n_local * sizeof(int64_t);
    }
    WB_TRY(wb_comm_all_to_all_v(comm, moe->position_counts, moe->send_bytes, moe->send_offsets, received,
                                moe->receive_bytes, moe->receive_offsets));
    for (int32_t r = 0; r < R; r++) {
        moe->send_rows[r] = moe->receive_rows[r] = 0;
        for (int32_t p = moe->rank_first[r]; p < moe->rank_first[r + 1]; p++)
            moe->send_rows[r] += moe->position_counts[p];
        for (int32_t i = 0; i < n_local; i++) moe->receive_rows[r] += received[(int64_t)r * n_local + i];
    }
    return WB_OK;
}

/* Rows arrive by source rank, then slot; experts want them by slot, then source rank: slot_start, n and
 * both maps. */
static wb_status plan_groups(wb_moe *moe) {
    wb_comm *comm = moe->model->comm;
    const int32_t R = wb_comm_size(comm),
                  n_local = moe->rank_first[wb_comm_rank(comm) + 1] - moe->rank_first[wb_comm_rank(comm)];
    const int64_t *received = moe->received_counts.data;
    int64_t n = 0;
    for (int32_t r = 0; r < R; r++) n += moe->receive_rows[r];
    if (n > INT32_MAX)
        return wb_fail(WB_CAPACITY, "rows for the experts of rank %d: expected at most %d, found %lld",
                       wb_comm_rank(comm), INT32_MAX, (long long)n);
    moe->n = n;
    WB_TRY(wb_reserve_host(moe->memory, &moe->index, 2 * n, sizeof(int32_t), "row order"));
    int32_t *to_received = moe->index.data, *to_grouped = to_received + n;

    moe->slot_start[0] = 0;
    for (int32_t i = 0; i < n_local; i++) {
        moe->slot_start[i + 1] = moe->slot_start[i];
        for (int32_t r = 0; r < R; r++) moe->slot_start[i + 1] += received[(int64_t)r * n_local + i];
    }
    int32_t arrived = 0;
    for (int32_t r = 0; r < R; r++)
        for (int32_t i = 0; i < n_local; i++) {
            int64_t grouped = moe->slot_start[i]; /* after the rows of the ranks before r */
            for (int32_t before = 0; before < r; before++) grouped += received[(int64_t)before * n_local + i];
            for (int64_t j = 0; j < received[(int64_t)r * n_local + i]; j++) {
                to_received[grouped] = arrived;
                to_grouped[arrived++] = (int32_t)grouped++;
            }
        }
    WB_TRY(wb_upload(moe->memory, &moe->to_received, to_received, n, sizeof(int32_t)));
    return wb_upload(moe->memory, &moe->to_grouped, to_grouped, n, sizeof(int32_t));
}

static bool has_peers(const wb_moe *moe) {
    return wb_comm_size(moe->model->comm) > 1;
}

/* Where every row of this forward goes. */
static wb_status plan(wb_moe *moe, wb_ids ids) {
    WB_TRY(sort_rows(moe, ids));
    if (has_peers(moe)) {
        WB_TRY(exchange_counts(moe));
        return plan_groups(moe);
    }
    const int32_t E = moe->model->config.router.n_experts;
    moe->slot_start[0] = 0;
    for (int32_t i = 0; i < E; i++) moe->slot_start[i + 1] = moe->slot_start[i] + moe->position_counts[i];
    moe->n = moe->slot_start[E];
    return WB_OK;
}

/* ---- dispatch ------------------------------------------------------------------------------------ */

static size_t part_sizes(int32_t R, const int64_t *rows, size_t row_bytes, size_t *bytes, size_t *offsets) {
    size_t total = 0;
    for (int32_t r = 0; r < R; r++) {
        bytes[r] = (size_t)rows[r] * row_bytes;
        offsets[r] = total;
        total += bytes[r];
    }
    return total;
}

/* All-to-all of rows [*, H] that lie by rank on both sides. */
static wb_status exchange_rows(wb_moe *moe, const int64_t *send_rows, const float *send,
                               const int64_t *receive_rows, float *receive) {
    wb_device *dev = moe->model->device;
    wb_comm *comm = moe->model->comm;
    const size_t row_bytes = (size_t)moe->model->config.hidden_size * sizeof(float);
    const size_t sent =
        part_sizes(wb_comm_size(comm), send_rows, row_bytes, moe->send_bytes, moe->send_offsets);
    const size_t received =
        part_sizes(wb_comm_size(comm), receive_rows, row_bytes, moe->receive_bytes, moe->receive_offsets);
    const void *from;
    void *to;
    WB_TRY(to_host_view(moe->memory, &moe->stage_send, send, sent, &from));
    WB_TRY(host_view(moe->memory, &moe->stage_receive, receive, received, &to));
    WB_TRY(wb_comm_all_to_all_v(comm, from, moe->send_bytes, moe->send_offsets, to, moe->receive_bytes,
                                moe->receive_offsets));
    return from_host_view(dev, receive, to, received);
}

/* rows[T * K, H] of this rank's tokens -> grouped[n, H] at their experts. */
static wb_status send_to_experts(wb_moe *moe, const float *rows, float *grouped) {
    wb_device *dev = moe->model->device;
    WB_TRY(exchange_rows(moe, moe->send_rows, rows, moe->receive_rows, moe->received.data));
    return dev->gather_rows(dev, moe->n, moe->model->config.hidden_size, moe->to_received.data,
                            moe->received.data, grouped);
}

/* The way back. */
static wb_status return_to_tokens(wb_moe *moe, const float *grouped, float *rows) {
    wb_device *dev = moe->model->device;
    WB_TRY(dev->gather_rows(dev, moe->n, moe->model->config.hidden_size, moe->to_grouped.data, grouped,
                            moe->received.data));
    return exchange_rows(moe, moe->receive_rows, moe->received.data, moe->send_rows, rows);
}

/* ---- experts ------------------------------------------------------------------------------------- */

/* One product a local expert that has rows. An expert's weight is [out, in], slot by slot in its storage. */
typedef struct expert_linear {
    int32_t param;
    int64_t in, out;
} expert_linear;

static const void *expert_weight(const wb_model *model, expert_linear linear, int32_t slot) {
    const wb_param *param = &model->params[linear.param];
    return (const uint8_t *)param->data +
           (size_t)(slot * linear.out * linear.in) * wb_dtype_size(param->dtype);
}

static int32_t n_slots(const wb_moe *moe) {
    const int rank = wb_comm_rank(moe->model->comm);
    return moe->rank_first[rank + 1] - moe->rank_first[rank];
}

/* y[n,out] = x[n,in] w^T, each row with its expert's w. */
static wb_status linear_forward(wb_moe *moe, expert_linear linear, const float *x, float *y) {
    const wb_model *model = moe->model;
    int64_t count = 0;
    for (int32_t i = 0; i < n_slots(moe); i++) {
        const int64_t start = moe->slot_start[i], n = moe->slot_start[i + 1] - start;
        if (n == 0) continue;
        moe->list[count++] = wb_matmul_forward(n, linear.in, linear.out, x + start * linear.in,
                                               expert_weight(model, linear, i),
                                               model->params[linear.param].dtype, y + start * linear.out);
    }
    return model->device->matmul(model->device, count, moe->list);
}

/* dx[n,in] (=) and dw (+=) from dy[n,out] and x[n,in]; the rows of an expert are summed in their order. */
static wb_status linear_backward(wb_moe *moe, expert_linear linear, const float *x, const float *dy,
                                 float *dw, float *dx) {
    const wb_model *model = moe->model;
    int64_t count = 0;
    for (int32_t i = 0; i < n_slots(moe); i++) {
        const int64_t start = moe->slot_start[i], n = moe->slot_start[i + 1] - start;
        if (n == 0) continue;
        const float *dy_rows = dy + start * linear.out;
        moe->list[count++] = wb_matmul_wgrad(n, linear.in, linear.out, dy_rows, x + start * linear.in,
                                             dw + i * linear.out * linear.in);
        moe->list[count++] =
            wb_matmul_dgrad(n, linear.in, linear.out, dy_rows, expert_weight(model, linear, i),
                            model->params[linear.param].dtype, dx + start * linear.in, false);
    }
    return model->device->matmul(model->device, count, moe->list);
}

static wb_status experts_forward(wb_moe *moe, const wb_layer *layer, const float *input, float *output) {
    wb_device *dev = moe->model->device;
    const int64_t H = moe->model->config.hidden_size, F = moe->model->config.expert_width;
    WB_TRY(linear_forward(moe, (expert_linear){layer->gate_up, H, 2 * F}, input, moe->gate_up.data));
    WB_TRY(dev->swiglu_forward(dev, moe->n, F, moe->gate_up.data, moe->act.data));
    return linear_forward(moe, (expert_linear){layer->down, F, H}, moe->act.data, output);
}

/* `grad` [n, H]: in, of the outputs; out, of the inputs. Uses up gate_up. */
static wb_status experts_backward(wb_moe *moe, const wb_layer *layer, const float *input, float *const *grads,
                                  float *grad) {
    wb_device *dev = moe->model->device;
    const int64_t H = moe->model->config.hidden_size, F = moe->model->config.expert_width;
    float *gate_up = moe->gate_up.data;
    WB_TRY(wb_reserve(moe->memory, &moe->dact, moe->n, F, sizeof(float)));
    WB_TRY(linear_backward(moe, (expert_linear){layer->down, F, H}, moe->act.data, grad, grads[layer->down],
                           moe->dact.data));
    WB_TRY(dev->swiglu_backward(dev, moe->n, F, gate_up, moe->dact.data, gate_up));
    return linear_backward(moe, (expert_linear){layer->gate_up, H, 2 * F}, input, gate_up,
                           grads[layer->gate_up], grad);
}

/* ---- forward and backward -------------------------------------------------------------------- */

static wb_status reserve_rows(wb_moe *moe) {
    const wb_config *config = &moe->model->config;
    const int64_t n_pairs = moe->T * config->router.top_k, H = config->hidden_size, F = config->expert_width;
    WB_TRY(wb_reserve(moe->memory, &moe->sent, n_pairs, H, sizeof(float)));
    WB_TRY(wb_reserve(moe->memory, &moe->rows, n_pairs, H, sizeof(float)));
    WB_TRY(wb_reserve(moe->memory, &moe->gate_up, moe->n, 2 * F, sizeof(float)));
    WB_TRY(wb_reserve(moe->memory, &moe->act, moe->n, F, sizeof(float)));
    if (!has_peers(moe)) return WB_OK;
    WB_TRY(wb_reserve(moe->memory, &moe->input, moe->n, H, sizeof(float)));
    WB_TRY(wb_reserve(moe->memory, &moe->received, moe->n, H, sizeof(float)));
    return wb_reserve(moe->memory, &moe->output, moe->n, H, sizeof(float));
}

wb_status wb_moe_forward(wb_moe *moe, const wb_layer *layer, int64_t T, const float *x,
                         const wb_routing *routing, bool follow, float *y) {
    wb_device *dev = moe->model->device;
    const int32_t K = moe->model->config.router.top_k;
    const int64_t H = moe->model->config.hidden_size;
    moe->T = T;
    WB_TRY(choose(moe, layer, x, routing, follow));
    WB_TRY(plan(moe, layer_ids(moe->model, routing->ids, layer->moe_index)));
    WB_TRY(reserve_rows(moe));

    WB_TRY(dev->gather_rows(dev, T * K, H, moe->row_token.data, x, moe->sent.data));
    if (has_peers(moe)) {
        WB_TRY(send_to_experts(moe, moe->sent.data, moe->input.data));
        WB_TRY(experts_forward(moe, layer, moe->input.data, moe->output.data));
        WB_TRY(return_to_tokens(moe, moe->output.data, moe->rows.data));
    } else {
        WB_TRY(experts_forward(moe, layer, moe->sent.data, moe->rows.data));
    }
    return dev->moe_combine(dev, T, K, H, moe->rows.data, moe->slot_row.data, moe->weights.data, false, y);
}

/* dx (+=) and the router's gradient, from dweights. */
static wb_status router_backward(wb_moe *moe, const wb_layer *layer, const float *x, wb_ids ids,
                                 float *const *grads, float *dx) {
    const wb_model *model = moe->model;
    wb_device *dev = model->device;
    const wb_router *router = &model->config.router;
    const int64_t T = moe->T, H = model->config.hidden_size, E = router->n_experts;
    WB_TRY(wb_reserve(moe->memory, &moe->dlogits, T, E, sizeof(float)));
    float *dlogits = moe->dlogits.data;
    WB_TRY(dev->gate_backward(dev, router, T, moe->logits.data, ids, moe->dweights.data, dlogits));
    const wb_matmul list[] = {wb_matmul_wgrad(T, H, E, dlogits, x, grads[layer->router]),
                              wb_matmul_dgrad(T, H, E, dlogits, wb_param_data(model, layer->router),
                                              model->params[layer->router].dtype, dx, true)};
    return dev->matmul(dev, 2, list);
}

wb_status wb_moe_backward(wb_moe *moe, const wb_layer *layer, const float *x, const wb_routing *routing,
                          const float *dy, float *const *grads, float *dx) {
    wb_device *dev = moe->model->device;
    const int32_t K = moe->model->config.router.top_k;
    const int64_t T = moe->T, H = moe->model->config.hidden_size;
    WB_TRY(wb_reserve(moe->memory, &moe->output, moe->n, H, sizeof(float)));
    WB_TRY(wb_reserve(moe->memory, &moe->dweights, T, K, sizeof(float)));

    /* `sent` and `rows` are free again once their content has gone: the experts of other ranks hold
     * `input`. */
    float *drows = has_peers(moe) ? moe->sent.data : moe->output.data;
    WB_TRY(dev->moe_combine_backward(dev, T, K, H, moe->rows.data, moe->slot_row.data, moe->weights.data, dy,
                                     drows, moe->dweights.data));
    if (has_peers(moe)) {
        WB_TRY(send_to_experts(moe, drows, moe->output.data));
        WB_TRY(experts_backward(moe, layer, moe->input.data, grads, moe->output.data));
        WB_TRY(return_to_tokens(moe, moe->output.data, moe->rows.data));
        drows = moe->rows.data;
    } else {
        WB_TRY(experts_backward(moe, layer, moe->sent.data, grads, drows));
    }
    WB_TRY(dev->moe_combine(dev, T, K, H, drows, moe->slot_row.data, NULL, false, dx));
    return router_backward(moe, layer, x, layer_ids(moe->model, routing->ids, layer->moe_index), grads, dx);
}
