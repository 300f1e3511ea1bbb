/* moe_plan.c - who sends which rows where, for the ids of a batch and the placement of the experts.
 *
 * Reads the placement at each forward. Refuses: moving rows. */
#include "layers/moe/moe.h"

#include <inttypes.h>

wb_status wb_moe_plan_open(wb_model *model, wb_workspace *memory, wb_moe_plan *plan) {
    const size_t E = (size_t)model->config.router.n_experts, R = (size_t)wb_comm_size(model->comm);
    const size_t S = wb_placement_topology(model->placement)->n_slots;
    plan->model = model;
    plan->memory = memory;
    WB_TRY(WB_OWN(&memory->host, plan->rank_first, R + 1, "MoE plan"));
    WB_TRY(WB_OWN(&memory->host, plan->order, S, "MoE plan"));
    WB_TRY(WB_OWN(&memory->host, plan->next_row, S, "MoE plan"));
    WB_TRY(WB_OWN(&memory->host, plan->counts, E, "MoE plan"));
    WB_TRY(WB_OWN(&memory->host, plan->slot_counts, S, "MoE plan"));
    WB_TRY(WB_OWN(&memory->host, plan->local_start, S + 1, "MoE plan"));
    WB_TRY(WB_OWN(&memory->host, plan->send_rows, R, "MoE plan"));
    return WB_OWN(&memory->host, plan->receive_rows, R, "MoE plan");
}

wb_status wb_moe_plan_reserve(wb_moe_plan *plan, int64_t T) {
    const wb_model *model = plan->model;
    const int64_t n_pairs = T * model->config.router.top_k;
    WB_TRY(wb_reserve(plan->memory, &plan->choice_row, n_pairs, 1, sizeof(int32_t)));
    WB_TRY(wb_reserve(plan->memory, &plan->row_token, n_pairs, 1, sizeof(int32_t)));
    WB_TRY(wb_reserve_host(plan->memory, &plan->index, 3 * n_pairs, sizeof(int32_t), "row order"));
    const int64_t n_counts = (int64_t)wb_comm_size(model->comm) * wb_model_local_slots(model);
    return wb_reserve_host(plan->memory, &plan->received_counts, n_counts, sizeof(int64_t), "row counts");
}

int32_t wb_moe_plan_n_local(const wb_moe_plan *plan) {
    const int rank = wb_comm_rank(plan->model->comm);
    return plan->rank_first[rank + 1] - plan->rank_first[rank];
}

/* ---- rows of this rank's tokens ------------------------------------------------------------------- */

/* S. */
static int32_t n_slots(const wb_moe_plan *plan) {
    return (int32_t)wb_placement_topology(plan->model->placement)->n_slots;
}

/* Fills rank_first and order from the placement. */
static void number_slots(wb_moe_plan *plan) {
    const wb_placement *placement = plan->model->placement;
    const wb_layer_map map = wb_placement_layer(placement, (uint32_t)plan->moe_index);
    for (int32_t r = 0; r <= wb_comm_size(plan->model->comm); r++)
        plan->rank_first[r] = (int32_t)wb_placement_first_slot(placement, (uint32_t)r);
    for (int32_t s = 0; s < n_slots(plan); s++)
        plan->order[s] = map.replica_of_slot[s] == 0 ? map.expert_of_slot[s] : WB_NO_EXPERT;
}

/* The row by expert id at which each expert's rows start: host [E], in memory that is filled with its own
 * content later. */
static const int64_t *first_rows(wb_moe_plan *plan) {
    int64_t *first = plan->local_start, row = 0;
    for (int32_t e = 0; e < plan->model->config.router.n_experts; e++) {
        first[e] = row;
        row += plan->counts[e];
    }
    return first;
}

/* Renumbers choice_row and row_token from order by expert id to order by slot. */
static wb_status sort_by_slot(wb_moe_plan *plan, int64_t n_pairs) {
    wb_device *dev = plan->model->device;
    const size_t bytes = (size_t)n_pairs * sizeof(int32_t);
    int32_t *by_id = plan->index.data, *by_slot = by_id + n_pairs, *moved = by_slot + n_pairs;

    /* moved[row by id] = row by slot; row_token follows it. */
    WB_TRY(dev->to_host(dev, by_id, plan->row_token.data, bytes));
    const int64_t *first = first_rows(plan);
    int32_t to = 0;
    for (int32_t s = 0; s < n_slots(plan); s++)
        for (int64_t i = 0; i < plan->slot_counts[s]; i++) {
            const int64_t from = first[plan->order[s]] + i;
            by_slot[to] = by_id[from];
            moved[from] = to++;
        }
    WB_TRY(dev->to_device(dev, plan->row_token.data, by_slot, bytes));

    WB_TRY(dev->to_host(dev, by_id, plan->choice_row.data, bytes));
    for (int64_t i = 0; i < n_pairs; i++) by_id[i] = moved[by_id[i]];
    return dev->to_device(dev, plan->choice_row.data, by_id, bytes);
}

/* choice_row, row_token, slot_counts. */
static wb_status sort_rows(wb_moe_plan *plan, int64_t T, wb_ids ids) {
    const wb_model *model = plan->model;
    wb_device *dev = model->device;
    const int32_t E = model->config.router.n_experts, K = model->config.router.top_k;
    WB_TRY(dev->moe_sort(dev, T, K, E, ids, plan->choice_row.data, plan->row_token.data, plan->counts));

    number_slots(plan);
    bool by_id = true;
    for (int32_t s = 0, last = 0; s < n_slots(plan); s++) {
        const int32_t e = plan->order[s];
        plan->slot_counts[s] = e >= 0 ? plan->counts[e] : 0;
        by_id = by_id && (e < 0 || e >= last);
        if (e >= 0) last = e;
    }
    return by_id ? WB_OK : sort_by_slot(plan, T * K);
}

/* ---- rows of this rank's experts ------------------------------------------------------------------ */

/* send_rows and receive_rows from the counts of both sides, and n. */
static wb_status count_rows(wb_moe_plan *plan) {
    wb_comm *comm = plan->model->comm;
    const int32_t R = wb_comm_size(comm), n_local = wb_moe_plan_n_local(plan);
    const int64_t *received = plan->received_counts.data;
    int64_t n = 0;
    for (int32_t r = 0; r < R; r++) {
        plan->send_rows[r] = plan->receive_rows[r] = 0;
        for (int32_t s = plan->rank_first[r]; s < plan->rank_first[r + 1]; s++)
            plan->send_rows[r] += plan->slot_counts[s];
        for (int32_t i = 0; i < n_local; i++) plan->receive_rows[r] += received[(int64_t)r * n_local + i];
        n += plan->receive_rows[r];
    }
    if (n > INT32_MAX)
        return wb_fail(WB_CAPACITY, "rows for the experts of rank %d: expected at most %d, found %" PRId64,
                       wb_comm_rank(comm), INT32_MAX, n);
    plan->n = n;
    return WB_OK;
}

/* Rows arrive by source rank, then local index; experts want them by local index, then source rank:
 * local_start and both maps. */
static wb_status group_rows(wb_moe_plan *plan) {
    const int32_t R = wb_comm_size(plan->model->comm), n_local = wb_moe_plan_n_local(plan);
    const int64_t *received = plan->received_counts.data, n = plan->n;
    WB_TRY(wb_reserve_host(plan->memory, &plan->index, 2 * n, sizeof(int32_t), "row order"));
    int32_t *to_received = plan->index.data, *to_grouped = to_received + n;

    plan->local_start[0] = 0;
    for (int32_t i = 0; i < n_local; i++) {
        plan->next_row[i] = plan->local_start[i];
        plan->local_start[i + 1] = plan->local_start[i];
        for (int32_t r = 0; r < R; r++) plan->local_start[i + 1] += received[(int64_t)r * n_local + i];
    }
    int32_t arrived = 0;
    for (int32_t r = 0; r < R; r++)
        for (int32_t i = 0; i < n_local; i++) /* after the rows of the ranks before r */
            for (int64_t j = 0; j < received[(int64_t)r * n_local + i]; j++) {
                to_received[plan->next_row[i]] = arrived;
                to_grouped[arrived++] = (int32_t)plan->next_row[i]++;
            }
    WB_TRY(wb_upload(plan->memory, &plan->to_received, to_received, n, sizeof(int32_t)));
    return wb_upload(plan->memory, &plan->to_grouped, to_grouped, n, sizeof(int32_t));
}

static wb_status plan_among_ranks(wb_moe_plan *plan, wb_moe_exchange *exchange) {
    const int32_t n_local = wb_moe_plan_n_local(plan);
    WB_TRY(wb_moe_exchange_counts(exchange, plan->rank_first, n_local, plan->slot_counts,
                                  plan->received_counts.data));
    WB_TRY(count_rows(plan));
    return group_rows(plan);
}

wb_status wb_moe_plan_make(wb_moe_plan *plan, wb_moe_exchange *exchange, int64_t T, wb_ids ids) {
    WB_TRY(sort_rows(plan, T, ids));
    if (wb_comm_size(plan->model->comm) > 1) return plan_among_ranks(plan, exchange);
    const int32_t S = n_slots(plan);
    plan->local_start[0] = 0;
    for (int32_t s = 0; s < S; s++) plan->local_start[s + 1] = plan->local_start[s] + plan->slot_counts[s];
    plan->n = plan->local_start[S];
    return WB_OK;
}

/* ---- rows read back ------------------------------------------------------------------------------- */

/* expert_of_row[n_pairs] from where the rows of each slot begin, and from the placement. */
static void name_rows(wb_moe_plan *plan, int32_t *expert_of_row) {
    int64_t row = 0;
    for (int32_t s = 0; s < n_slots(plan); s++)
        for (int64_t i = 0; i < plan->slot_counts[s]; i++) expert_of_row[row++] = plan->order[s];
}

static void set_id(wb_ids ids, int64_t at, int32_t expert) {
    if (ids.dtype == WB_U8)
        ((uint8_t *)ids.data)[at] = (uint8_t)expert;
    else
        ((uint16_t *)ids.data)[at] = (uint16_t)expert;
}

wb_status wb_moe_plan_used(wb_moe_plan *plan, int64_t T, wb_ids used) {
    wb_device *dev = plan->model->device;
    const int32_t K = plan->model->config.router.top_k;
    const int64_t n_pairs = T * K;
    const size_t bytes = (size_t)n_pairs * sizeof(int32_t);
    int32_t *row_of = plan->index.data, *token_of_row = row_of + n_pairs,
            *expert_of_row = token_of_row + n_pairs;
    WB_TRY(dev->to_host(dev, row_of, plan->choice_row.data, bytes));
    WB_TRY(dev->to_host(dev, token_of_row, plan->row_token.data, bytes));
    name_rows(plan, expert_of_row);
    for (int64_t i = 0; i < n_pairs; i++) {
        const int32_t row = row_of[i];
        if (row < 0 || row >= n_pairs || token_of_row[row] != i / K)
            return wb_fail(WB_CORRUPT,
                           "MoE plan: token %" PRId64 ", choice %" PRId64
                           ": expected a row of this token, found row %d",
                           i / K, i % K, row);
        set_id(used, i / K * used.stride + i % K, expert_of_row[row]);
    }
    return WB_OK;
}
