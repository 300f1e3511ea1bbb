/* moe_plan.c - who sends which rows where, for the ids of a batch and the placement of the layer.
 *
 * Reads the placement's maps at each forward. Refuses: moving rows; choosing replicas
 * (wb_dispatch_rules.h). */
#include "host_view.h"
#include "layers/moe/moe.h"
#include "model_dispatch.h"

#include <inttypes.h>
#include <string.h>

/* Rows for the slots of this rank. */
static void layout_slots(wb_moe_rows *plan, wb_arena *arena) {
    const wb_model *model = plan->model;
    const int64_t R = model->n_ranks, S = wb_model_n_slots(model), here = wb_model_local_slots(model);
    WB_PLACE_HOST(arena, plan->send_rows, R);
    WB_PLACE_HOST(arena, plan->receive_rows, R);
    WB_PLACE_HOST(arena, plan->host_offsets, S + 1);
    WB_PLACE_HOST(arena, plan->sent, S);
    WB_PLACE_HOST(arena, plan->received, R * here);
    wb_place(arena, &plan->counts, R, here, sizeof(int32_t));
    wb_place(arena, &plan->grouped_offsets, here + 1, 1, sizeof(int32_t));
    wb_place(arena, &plan->to_received, plan->max_rows, 1, sizeof(int32_t));
    wb_place(arena, &plan->to_grouped, plan->max_rows, 1, sizeof(int32_t));
}

void wb_moe_rows_layout(wb_moe_rows *plan, const wb_moe_rows *other, wb_model *model, const wb_sizes *sizes,
                        wb_arena *arena) {
    const int64_t n_pairs = sizes->tokens * model->config.router.top_k, S = wb_model_n_slots(model);
    if (other) *plan = *other;
    plan->model = model;
    plan->max_rows = sizes->expert_rows;
    wb_place(arena, &plan->pair_row, n_pairs, 1, sizeof(int32_t));
    wb_place(arena, &plan->row_token, n_pairs, 1, sizeof(int32_t));
    wb_place(arena, &plan->offsets, S + 1, 1, sizeof(int32_t));
    if (wb_moe_rows_travel(plan->model)) layout_slots(plan, arena);
    if (other) return;
    wb_host_view_place(arena, &plan->host_pair_row, n_pairs, sizeof(int32_t));
    wb_host_view_place(arena, &plan->host_row_token, n_pairs, sizeof(int32_t));
    wb_host_view_place(arena, &plan->host_used_offsets, S + 1, sizeof(int32_t));
    if (model->config.n_weightless > 0)
        wb_host_view_place(arena, &plan->host_ids, sizes->tokens, wb_route_row_bytes(&model->route_model));
}

/* ---- rows of this rank's tokens ------------------------------------------------------------------- */

wb_moe_plan wb_moe_plan_args(const wb_model *model, const wb_pass *pass, int32_t moe_index) {
    const wb_dispatch_rule rule = wb_model_dispatch_rule(model, moe_index);
    const bool by_token = !rule.slot_of_expert;
    return (wb_moe_plan){.T = pass->T,
                         .top_k = wb_config_layer_k(&model->config, moe_index),
                         .n_experts = model->config.router.n_experts,
                         .n_weightless = model->config.n_weightless,
                         .n_slots = wb_model_n_slots(model),
                         .rule = rule,
                         .tokens = by_token ? pass->tokens : NULL,
                         .pos = by_token ? pass->pos : NULL,
                         .direction = pass->routing->direction,
                         .ids = wb_moe_ids(model, pass->routing->ids, moe_index)};
}

static wb_status plan_pairs(wb_moe_rows *plan, const wb_pass *pass, int32_t moe_index) {
    wb_moe_plan args = wb_moe_plan_args(plan->model, pass, moe_index);
    args.pair_row = plan->pair_row.data;
    args.row_token = plan->row_token.data;
    args.offsets = plan->offsets.data;
    plan->T = pass->T;
    return plan->model->device->moe_plan(plan->model->device, &args);
}

/* ---- rows of this rank's slots -------------------------------------------------------------------- */

/* host_offsets, which the host must learn to call an all-to-all, and `received` from all ranks. */
static wb_status learn_counts(wb_moe_rows *plan, wb_moe_exchange *exchange) {
    wb_device *dev = plan->model->device;
    const int32_t *offsets = plan->host_offsets;
    const int32_t S = wb_model_n_slots(plan->model);
    WB_TRY(dev->to_host(dev, plan->host_offsets, plan->offsets.data, ((size_t)S + 1) * sizeof *offsets));
    for (int32_t s = 0; s < S; s++) plan->sent[s] = offsets[s + 1] - offsets[s];
    return wb_moe_exchange_counts(exchange, plan->sent, plan->received);
}

/* send_rows and n_sent from the offsets. */
static void count_sent(wb_moe_rows *plan) {
    const wb_model *model = plan->model;
    const int32_t *offsets = plan->host_offsets;
    for (uint32_t r = 0; r < (uint32_t)model->n_ranks; r++)
        plan->send_rows[r] = offsets[wb_placement_first_slot(model->placement, r + 1)] -
                             offsets[wb_placement_first_slot(model->placement, r)];
    plan->n_sent = offsets[wb_model_n_slots(model)];
}

/* receive_rows and n from the counts of all sources. */
static wb_status count_received(wb_moe_rows *plan) {
    const wb_model *model = plan->model;
    const int32_t here = (int32_t)wb_model_local_slots(model);
    int64_t n = 0;
    for (int32_t r = 0; r < model->n_ranks; r++) {
        plan->receive_rows[r] = 0;
        for (int32_t i = 0; i < here; i++) plan->receive_rows[r] += plan->received[(int64_t)r * here + i];
        n += plan->receive_rows[r];
    }
    if (n > plan->max_rows)
        return wb_fail(WB_CAPACITY,
                       "max_expert_rows: rows for the slots of rank %d: expected at most %" PRId64
                       ", found %" PRId64,
                       model->rank, plan->max_rows, n);
    plan->n = n;
    return WB_OK;
}

/* Rows arrive by source rank, then slot; experts want them by slot, then source rank. */
static wb_status group_rows(wb_moe_rows *plan) {
    const wb_model *model = plan->model;
    wb_device *dev = model->device;
    const int32_t R = model->n_ranks, here = (int32_t)wb_model_local_slots(model);
    WB_TRY(dev->to_device(dev, plan->counts.data, plan->received, (size_t)(R * here) * sizeof(int32_t)));
    const wb_moe_group group = {.n_sources = R,
                                .n_slots = here,
                                .counts = plan->counts.data,
                                .offsets = plan->grouped_offsets.data,
                                .to_received = plan->to_received.data,
                                .to_grouped = plan->to_grouped.data};
    return dev->moe_group(dev, &group);
}

/* What learn_counts would have found; it was checked where it came in. */
static void take_counts(wb_moe_rows *plan, const wb_planned_layer *planned) {
    const wb_model *model = plan->model;
    const size_t n_offsets = (size_t)wb_model_n_slots(model) + 1;
    const size_t n_received = (size_t)model->n_ranks * (size_t)wb_model_local_slots(model);
    memcpy(plan->host_offsets, planned->offsets, n_offsets * sizeof *plan->host_offsets);
    if (n_received > 0) memcpy(plan->received, planned->received, n_received * sizeof *plan->received);
}

/* ---- both ----------------------------------------------------------------------------------------- */

wb_status wb_moe_rows_make(wb_moe_rows *plan, wb_moe_exchange *exchange, const wb_pass *pass,
                           int32_t moe_index) {
    const wb_planned_layer *planned = pass->routing->planned;
    WB_TRY(plan_pairs(plan, pass, moe_index));
    plan->gather = wb_moe_rows_travel(plan->model) ? NULL : plan->row_token.data;
    if (!wb_moe_rows_travel(plan->model) || pass->mailbox_rows > 0) return WB_OK;
    if (planned)
        take_counts(plan, &planned[moe_index]);
    else
        WB_TRY(learn_counts(plan, exchange));
    count_sent(plan);
    WB_TRY(count_received(plan));
    return group_rows(plan);
}

/* ---- rows read back ------------------------------------------------------------------------------- */

static int32_t slot_of_row(const int32_t *offsets, int32_t n_slots, int32_t row) {
    int32_t low = 0, high = n_slots;
    while (high - low > 1) {
        const int32_t middle = low + (high - low) / 2;
        if (offsets[middle] <= row)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* What is read back of a pass. */
typedef struct evidence {
    const int32_t *pair_row, *row_token, *offsets;
    int32_t n_slots;
    wb_layer_map map;
    wb_ids used;
    int32_t K;
    /* The ids that the plan was made of; data NULL where all experts have weights. */
    wb_ids ids;
    uint32_t first_weightless;
} evidence;

/* A choice without a row went nowhere: it is of an expert without weights, or its row is lost. */
static bool is_weightless(const evidence *e, int64_t t, int32_t k) {
    if (!e->ids.data || e->pair_row[t * e->K + k] >= 0) return false;
    const size_t at = (size_t)(t * e->ids.stride + k);
    const uint32_t id = wb_route_id(e->ids.data, e->ids.dtype, at);
    if (id < e->first_weightless) return false;
    wb_route_id_set(e->used.data, e->used.dtype, (size_t)(t * e->used.stride + k), id);
    return true;
}

/* The choices of a token that has rows. */
static wb_status read_token(const evidence *e, int64_t t) {
    const int32_t K = e->K;
    for (int32_t k = 0; k < K; k++) {
        const int32_t row = e->pair_row[t * K + k];
        if (is_weightless(e, t, k)) continue;
        if (row < 0 || row >= e->offsets[e->n_slots] || e->row_token[row] != t)
            return wb_fail(WB_CORRUPT,
                           "MoE plan: token %" PRId64
                           ", choice %d: expected a row of this token, found row %d",
                           t, k, row);
        const int32_t slot = slot_of_row(e->offsets, e->n_slots, row);
        wb_route_id_set(e->used.data, e->used.dtype, (size_t)(t * e->used.stride + k),
                        (uint32_t)e->map.expert_of_slot[slot]);
    }
    return WB_OK;
}

/* All layers' ids of the pass, on the host. */
static wb_status read_ids(const wb_moe_rows *plan, const wb_pass *pass, void **ids_out) {
    const wb_model *model = plan->model;
    const size_t bytes = (size_t)pass->T * wb_route_row_bytes(&model->route_model);
    const void *ids;
    WB_TRY(wb_host_view_read(model->device, plan->host_ids, pass->routing->ids, bytes, &ids));
    *ids_out = (void *)(uintptr_t)ids;
    return WB_OK;
}

wb_status wb_moe_rows_used(wb_moe_rows *plan, const wb_pass *pass, int32_t moe_index) {
    const wb_model *model = plan->model;
    wb_device *dev = model->device;
    const int32_t K = wb_config_layer_k(&model->config, moe_index), S = wb_model_n_slots(model);
    const size_t pairs_bytes = (size_t)(pass->T * K) * sizeof(int32_t),
                 offsets_bytes = ((size_t)S + 1) * sizeof(int32_t);
    const void *pair_row, *row_token, *offsets;
    void *ids = NULL;
    WB_TRY(wb_host_view_read(dev, plan->host_pair_row, plan->pair_row.data, pairs_bytes, &pair_row));
    WB_TRY(wb_host_view_read(dev, plan->host_row_token, plan->row_token.data, pairs_bytes, &row_token));
    WB_TRY(wb_host_view_read(dev, plan->host_used_offsets, plan->offsets.data, offsets_bytes, &offsets));
    if (model->config.n_weightless > 0) WB_TRY(read_ids(plan, pass, &ids));
    const evidence e = {.pair_row = pair_row,
                        .row_token = row_token,
                        .offsets = offsets,
                        .n_slots = S,
                        .map = wb_placement_layer(model->placement, (uint32_t)moe_index),
                        .used = wb_moe_ids(model, pass->used, moe_index),
                        .K = K,
                        .ids = wb_moe_ids(model, ids, moe_index),
                        .first_weightless = (uint32_t)wb_config_weighted(&model->config)};
    int64_t t = 0;
    for (int64_t i = 0; i <= pass->n_padding; i++) {
        const wb_row_run end = {pass->T, 0}, run = i < pass->n_padding ? pass->padding[i] : end;
        for (; t < run.start; t++) WB_TRY(read_token(&e, t));
        t += run.n;
    }
    return WB_OK;
}
