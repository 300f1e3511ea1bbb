/* replay_dispatch.c - where the rows of a step go, planned before it runs: for every (micro-batch, layer)
 * whose rows are all forced or padding, on all ranks, the offsets of the op moe_plan, and the counts of all
 * ranks, told in one exchange.
 *
 * Refuses: the rule of replicas (wb_dispatch_rules.h), the rows themselves (the op). */
#include "replay_state.h"
#include "wb_dispatch_rules.h"
#include "wb_moe_plan_host.h"

#include <inttypes.h>
#include <string.h>

/* ---- tables ----------------------------------------------------------------------------------- */

static uint32_t slots_of(const wb_replay *r, uint32_t rank) {
    return wb_placement_topology(r->options.placement)->slots_of_rank[rank];
}

static uint32_t n_slots_of(const wb_replay *r) {
    return wb_placement_topology(r->options.placement)->n_slots;
}

static uint32_t n_ranks_of(const wb_replay *r) {
    return wb_placement_topology(r->options.placement)->n_ranks;
}

wb_status wb_replay_open_dispatch(wb_replay *r) {
    const wb_placement *p = r->options.placement;
    dispatch_state *d = &r->dispatch;
    d->rank = -1;
    if (!p) return WB_OK;
    WB_TRY(wb_dispatch_table_length(p, r->options.dispatch, &d->table_length));
    const size_t R = n_ranks_of(r), layers = (size_t)r->options.n_layers;
    WB_TRY(WB_OWN(&r->memory, d->tables, layers * d->table_length, "replay: dispatch tables"));
    WB_TRY(WB_OWN(&r->memory, d->send_bytes, R, "replay: counts"));
    WB_TRY(WB_OWN(&r->memory, d->send_offsets, R, "replay: counts"));
    WB_TRY(WB_OWN(&r->memory, d->recv_bytes, R, "replay: counts"));
    WB_TRY(WB_OWN(&r->memory, d->recv_offsets, R, "replay: counts"));
    return WB_OK;
}

static int32_t *table_of(const wb_replay *r, uint32_t stage_layer) {
    return r->dispatch.tables + stage_layer * r->dispatch.table_length;
}

/* Kept until the maps change: a table costs more than a micro-batch's use of it. */
static wb_status fill_tables(wb_replay *r, int32_t rank) {
    wb_replay_refresh_placement(r);
    if (r->dispatch.rank == rank) return WB_OK;
    r->dispatch.rank = -1;
    for (uint32_t l = 0; l < (uint32_t)r->options.n_layers; l++)
        WB_TRY(wb_dispatch_fill_table(r->options.placement, r->options.dispatch, (uint32_t)rank,
                                      (uint32_t)r->options.first_layer + l, table_of(r, l)));
    r->dispatch.rank = rank;
    return WB_OK;
}

/* ---- rows of this rank's tokens --------------------------------------------------------------- */

/* The arrays of one layer in the block of its micro-batch. */
typedef struct layer_arrays {
    int32_t *offsets, *received;
} layer_arrays;

static size_t received_length(const wb_replay *r) {
    return n_ranks_of(r) * (size_t)slots_of(r, (uint32_t)r->dispatch.rank);
}

static size_t layer_length(const wb_replay *r) {
    return n_slots_of(r) + 1 + received_length(r);
}

static layer_arrays arrays_of(const wb_replay *r, const micro_batch *b, uint32_t stage_layer) {
    layer_arrays a;
    a.offsets = (int32_t *)(b->layer_plans + r->options.n_layers) + stage_layer * layer_length(r);
    a.received = a.offsets + n_slots_of(r) + 1;
    return a;
}

static wb_status reserve_layers(wb_replay *r, micro_batch *b) {
    const size_t layers = (size_t)r->options.n_layers;
    const size_t bytes = layers * (sizeof *b->layer_plans + layer_length(r) * sizeof(int32_t));
    WB_TRY(wb_host_reserve(&r->memory, &b->dispatch, bytes, 1, "replay: plan of a micro-batch"));
    b->layer_plans = b->dispatch.data;
    memset(b->layer_plans, 0, layers * sizeof *b->layer_plans);
    return WB_OK;
}

static bool is_decided(const wb_replay *r, const micro_batch *b, uint32_t stage_layer) {
    if (!b->planned || (r->options.dispatch == WB_DISPATCH_DYNAMIC && !b->all_tokens)) return false;
    return !memchr(b->by_layer + (size_t)stage_layer * b->T, WB_ROW_NATIVE, b->T);
}

static wb_status plan_layer(const wb_replay *r, const micro_batch *b, uint32_t stage_layer) {
    const uint32_t layer = (uint32_t)r->options.first_layer + stage_layer, E = wb_route_weighted(&r->model);
    const wb_dispatch_rule rule = wb_dispatch_table_rule(r->options.dispatch == WB_DISPATCH_DYNAMIC,
                                                         table_of(r, stage_layer), E, layer);
    const bool by_token = !rule.slot_of_expert;
    const wb_moe_plan args = {
        .T = b->T,
        .top_k = (int32_t)wb_route_layer_k(&r->model, layer),
        .n_experts = (int32_t)r->model.num_experts,
        .n_weightless = (int32_t)r->model.n_weightless,
        .n_slots = (int32_t)n_slots_of(r),
        .rule = rule,
        .tokens = by_token ? b->tokens : NULL,
        .pos = by_token ? b->pos : NULL,
        .direction = b->by_layer + (size_t)stage_layer * b->T,
        .ids = {b->ids + r->layer_at[layer], r->dtype, (int64_t)wb_route_row_ids(&r->model)},
        .offsets = arrays_of(r, b, stage_layer).offsets};
    return wb_moe_offsets_host(&args);
}

/* ---- counts of all ranks ---------------------------------------------------------------------- */

/* To rank s go a flag for each (micro-batch, layer), 1: planned here, then its rows for each slot of s. */
static size_t part_length(const wb_replay *r, uint32_t slots) {
    return (size_t)r->n_micro_batches * (size_t)r->options.n_layers * (1 + (size_t)slots);
}

static wb_status lay_out_counts(wb_replay *r) {
    dispatch_state *d = &r->dispatch;
    const size_t here = part_length(r, slots_of(r, (uint32_t)d->rank));
    size_t n_sent = 0;
    for (uint32_t s = 0; s < n_ranks_of(r); s++) {
        d->send_bytes[s] = part_length(r, slots_of(r, s)) * sizeof(int32_t);
        d->send_offsets[s] = n_sent;
        n_sent += d->send_bytes[s];
        d->recv_bytes[s] = here * sizeof(int32_t);
        d->recv_offsets[s] = s * here * sizeof(int32_t);
    }
    WB_TRY(wb_host_reserve(&r->memory, &d->send, n_sent, 1, "replay: counts"));
    return wb_host_reserve(&r->memory, &d->recv, n_ranks_of(r) * here, sizeof(int32_t), "replay: counts");
}

/* `offsets` of (micro-batch, layer) number i go into the parts of all ranks; NULL: not planned here. */
static void put_counts(wb_replay *r, size_t i, const int32_t *offsets) {
    const wb_placement *p = r->options.placement;
    for (uint32_t s = 0; s < n_ranks_of(r); s++) {
        int32_t *part = (int32_t *)r->dispatch.send.data + r->dispatch.send_offsets[s] / sizeof(int32_t);
        const uint32_t first = wb_placement_first_slot(p, s), n = slots_of(r, s);
        int32_t *counts = part + part_length(r, 0) + i * n;
        part[i] = offsets != NULL;
        for (uint32_t j = 0; j < n; j++)
            counts[j] = offsets ? offsets[first + j + 1] - offsets[first + j] : 0;
    }
}

static bool planned_by_all(const wb_replay *r, size_t i) {
    for (uint32_t s = 0; s < n_ranks_of(r); s++) {
        const int32_t *part =
            (int32_t *)r->dispatch.recv.data + r->dispatch.recv_offsets[s] / sizeof(int32_t);
        if (!part[i]) return false;
    }
    return true;
}

static void take_counts(const wb_replay *r, size_t i, int32_t *received) {
    const size_t here = slots_of(r, (uint32_t)r->dispatch.rank);
    for (uint32_t s = 0; s < n_ranks_of(r); s++) {
        const int32_t *part =
            (int32_t *)r->dispatch.recv.data + r->dispatch.recv_offsets[s] / sizeof(int32_t);
        memcpy(received + s * here, part + part_length(r, 0) + i * here, here * sizeof *received);
    }
}

/* ---- the step --------------------------------------------------------------------------------- */

static wb_status plan_micro_batch(wb_replay *r, int32_t index) {
    micro_batch *b = &r->micro_batches[index];
    const uint32_t layers = (uint32_t)r->options.n_layers;
    if (b->planned) WB_TRY(reserve_layers(r, b));
    for (uint32_t l = 0; l < layers; l++) {
        const bool decided = is_decided(r, b, l);
        if (decided) WB_TRY(plan_layer(r, b, l));
        put_counts(r, (size_t)index * layers + l, decided ? arrays_of(r, b, l).offsets : NULL);
    }
    return WB_OK;
}

/* What one rank can fail alone. */
static wb_status prepare(wb_replay *r, wb_comm *comm) {
    for (int32_t m = 0; m < r->n_micro_batches; m++) r->micro_batches[m].n_layer_plans = 0;
    if (!r->in_step) return wb_fail(WB_INVALID_ARGUMENT, "replay: plan of dispatch: no step is open");
    if (!r->options.placement)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "replay: plan of dispatch: the replay was opened without a placement");
    if (n_ranks_of(r) != (uint32_t)wb_comm_size(comm))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "replay: plan of dispatch: expected the placement's %" PRIu32 " ranks, found %d",
                       n_ranks_of(r), wb_comm_size(comm));
    WB_TRY(fill_tables(r, wb_comm_rank(comm)));
    WB_TRY(lay_out_counts(r));
    for (int32_t m = 0; m < r->n_micro_batches; m++) WB_TRY(plan_micro_batch(r, m));
    return WB_OK;
}

/* Sizes of the exchange hang on these, and so does what its numbers mean. */
static wb_status check_ranks_agree(const wb_replay *r, wb_comm *comm) {
    const uint64_t same[] = {r->placement_hash, (uint64_t)r->options.dispatch,
                             (uint64_t)r->options.first_layer, (uint64_t)r->options.n_layers,
                             (uint64_t)r->n_micro_batches};
    return wb_comm_check_equal(comm, same, sizeof same,
                               "replay: placement, dispatch, stage and number of micro-batches");
}

static void keep_layer(wb_replay *r, int32_t index, uint32_t stage_layer) {
    micro_batch *b = &r->micro_batches[index];
    const layer_arrays a = arrays_of(r, b, stage_layer);
    take_counts(r, (size_t)index * (uint32_t)r->options.n_layers + stage_layer, a.received);
    b->layer_plans[stage_layer] = (wb_planned_layer){
        .placement_hash = r->placement_hash, .T = b->T, .offsets = a.offsets, .received = a.received};
    b->n_layer_plans++;
}

wb_status wb_replay_plan_dispatch(wb_replay *r, wb_comm *comm, int64_t *planned_out) {
    if (!r || !comm || !planned_out)
        return wb_fail(WB_INVALID_ARGUMENT, "replay: plan of dispatch: replay, comm or planned_out is NULL");
    dispatch_state *d = &r->dispatch;
    const uint32_t layers = (uint32_t)r->options.n_layers;
    int64_t planned = 0;
    WB_TRY(wb_comm_agree(comm, prepare(r, comm)));
    WB_TRY(check_ranks_agree(r, comm));
    WB_TRY(wb_comm_all_to_all_v(comm, d->send.data, d->send_bytes, d->send_offsets, d->recv.data,
                                d->recv_bytes, d->recv_offsets));
    for (int32_t m = 0; m < r->n_micro_batches; m++)
        for (uint32_t l = 0; l < layers; l++) {
            if (!planned_by_all(r, (size_t)m * layers + l)) continue;
            keep_layer(r, m, l);
            planned++;
        }
    *planned_out = planned;
    return WB_OK;
}

const wb_planned_layer *wb_replay_layer_plan(const wb_replay *r, int32_t index, int32_t layer) {
    if (!wb_replay_planned(r, index)) return NULL;
    const micro_batch *b = &r->micro_batches[index];
    const int32_t stage_layer = layer == WB_ALL_LAYERS ? 0 : layer - r->options.first_layer;
    if (layer == WB_ALL_LAYERS)
        return b->n_layer_plans == (uint32_t)r->options.n_layers ? b->layer_plans : NULL;
    if (b->n_layer_plans == 0 || stage_layer < 0 || stage_layer >= r->options.n_layers) return NULL;
    const wb_planned_layer *plan = &b->layer_plans[stage_layer];
    return plan->offsets ? plan : NULL;
}

static int64_t expert_rows(const wb_replay *r, const wb_planned_layer *plan) {
    int64_t rows = 0;
    for (size_t i = 0; i < received_length(r); i++) rows += plan->received[i];
    return rows;
}

int64_t wb_replay_max_expert_rows(const wb_replay *r) {
    int64_t max = 0;
    for (int32_t m = 0; r && m < r->n_micro_batches; m++)
        for (int32_t l = 0; l < r->options.n_layers; l++) {
            const wb_planned_layer *plan = wb_replay_layer_plan(r, m, r->options.first_layer + l);
            const int64_t rows = plan ? expert_rows(r, plan) : 0;
            if (rows > max) max = rows;
        }
    return max;
}
