/* passes.c - the forwards over a packed batch: of the policy under replay, of the same batch with free
 * routing for comparison, of the reference. What a mode does is wb_replay's business: a pass asks for the
 * directions of all rows, runs, and stores what was used. */
#include "train_step.h"
#include "wb_memory.h"

#include <stdlib.h>
#include <string.h>

/* ---- the plan -------------------------------------------------------------------------------- */

static wb_status plan_micro_batch(wb_replay *replay, int32_t m, const micro_batch *mb) {
    wb_segment *segments;
    WB_TRY(WB_NEW(segments, (size_t)mb->n_seqs, "segments"));
    for (int64_t i = 0; i < mb->n_seqs; i++)
        segments[i] =
            wb_replay_segment(replay, record_of(mb->samples[i])->rid, 0, (uint32_t)fed_tokens(mb->samples[i]),
                              (const uint32_t *)mb->tokens + mb->seq_start[i]);
    wb_status status = wb_replay_plan(replay, m, (int32_t)mb->n_seqs, segments);
    free(segments);
    return status;
}

wb_status plan_batch(const trainer *t, wb_replay *replay, wb_replay_mode mode, const packed_batch *p) {
    wb_replay_clear(replay);
    for (int32_t m = 0; m < p->n; m++)
        for (int64_t i = 0; i < p->list[m].n_seqs; i++)
            WB_TRY(wb_replay_add(replay, wb_model_routes(t->model), record_of(p->list[m].samples[i])));
    WB_TRY(wb_replay_begin(replay, mode, p->n));
    for (int32_t m = 0; m < p->n; m++) WB_TRY(plan_micro_batch(replay, m, &p->list[m]));
    return WB_OK;
}

wb_status plan_dispatch(const trainer *t, const packed_batch *p, step_metrics *m) {
    const int64_t n = (int64_t)p->n * wb_model_routes(t->model)->n_moe_layers;
    int64_t planned;
    if (t->o->replay == WB_REPLAY_OFF || m->planned == 1) return WB_OK;
    WB_TRY(wb_replay_plan_dispatch(t->replay, t->comm, &planned));
    m->planned = n > 0 ? (double)planned / (double)n : 0;
    return WB_OK;
}

/* ---- a forward ------------------------------------------------------------------------------- */

static wb_status run_forward(wb_train *train, const micro_batch *mb, const wb_routing *routing,
                             float *logprobs_out) {
    const wb_train_batch fed = {.T = mb->T,
                                .tokens = mb->tokens,
                                .targets = mb->targets,
                                .n_seqs = (int32_t)mb->n_seqs,
                                .seq_start = mb->seq_start,
                                .temperature = mb->temperature,
                                .kept_ids = mb->kept_ids,
                                .kept_start = mb->kept_start};
    return wb_train_forward(train, &fed, routing, NULL, logprobs_out);
}

/* A forward of the policy routed as `replay` says, which is told where the rows really went. Leaves those
 * experts in p->host_ids and the log-probabilities in p->logprobs. */
static wb_status routed_forward(trainer *t, wb_replay *replay, packed_batch *p, int32_t m) {
    const micro_batch *mb = &p->list[m];
    wb_device *dev = t->device;
    uint32_t T = (uint32_t)mb->T;
    size_t bytes = T * p->row_bytes;
    wb_replay_slice rows;
    WB_TRY(wb_replay_rows(replay, m, WB_ALL_LAYERS, 0, T, &rows));
    if (rows.any_forced) {
        WB_TRY(dev->to_device(dev, p->ids.data, rows.ids, bytes));
        WB_TRY(dev->to_device(dev, p->direction.data, rows.direction, T));
    }
    wb_routing routing = {.ids = p->ids.data,
                          .direction = rows.any_forced ? p->direction.data : NULL,
                          .native = rows.want_native ? p->native.data : NULL,
                          .used = p->used.data,
                          .planned = wb_replay_layer_plan(replay, m, WB_ALL_LAYERS)};
    WB_TRY(lists_ask(t, replay, p, m, &routing));
    WB_TRY(run_forward(t->train, mb, &routing, p->logprobs));
    WB_TRY(dev->to_host(dev, p->host_ids, p->used.data, bytes));
    if (rows.want_native) WB_TRY(dev->to_host(dev, p->host_native, p->native.data, bytes));
    WB_TRY(lists_store(t, replay, p, m));
    return wb_replay_store(replay, m, WB_ALL_LAYERS, 0, T, p->host_ids, p->stride,
                           rows.want_native ? p->host_native : NULL, p->stride);
}

/* ---- an independent count -------------------------------------------------------------------- */

static bool same_routes(const wb_route_model *model, const char *used, const char *rolled) {
    wb_dtype dtype = wb_route_dtype(model->num_experts);
    size_t at = 0;
    for (uint32_t l = 0; l < model->n_moe_layers; l++) {
        const uint32_t K = wb_route_layer_k(model, l);
        if (!wb_route_same_experts(used + at, rolled + at, dtype, K)) return false;
        at += K * wb_dtype_size(dtype);
    }
    return true;
}

/* Counts the rows that training sent to other experts than the rollout did, in any layer: straight from
 * the rows that the experts got and the records, whatever the replay module and the ids say. */
static void count_routed_differently(const trainer *t, const packed_batch *p, const micro_batch *mb,
                                     row_count *count) {
    const wb_route_model *model = wb_model_routes(t->model);
    for (int64_t s = 0; s < mb->n_seqs; s++) {
        const char *used = (const char *)p->host_ids + (size_t)mb->seq_start[s] * p->row_bytes;
        wb_row_walk walk = wb_rows_of(model, record_of(mb->samples[s]));
        while (wb_row_next(&walk)) {
            count->rows += 1;
            count->differ += !same_routes(model, used + walk.position * p->row_bytes, walk.row);
        }
    }
}

/* ---- the passes ------------------------------------------------------------------------------ */

wb_status policy_forward(trainer *t, packed_batch *p, int32_t m, pass_count *count) {
    WB_TRY(routed_forward(t, t->replay, p, m));
    count_routed_differently(t, p, &p->list[m], &count->routes);
    lists_count(t, p, &p->list[m], &count->lists);
    return WB_OK;
}

/* Log-probabilities at rollout beside those in p->logprobs, over the response tokens: both of the
 * distribution that was sampled from. */
static wb_status observe_logprobs(wb_replay *replay, const packed_batch *p, const micro_batch *mb) {
    for (int64_t s = 0; s < mb->n_seqs; s++) {
        const wb_record *record = record_of(mb->samples[s]);
        const float *now = p->logprobs + mb->seq_start[s] + record->prompt_len - 1;
        WB_TRY(wb_replay_observe_logprobs(replay, record->n_tokens - record->prompt_len,
                                          record->sampling_logprobs, now, NULL));
    }
    return WB_OK;
}

wb_status first_forward(trainer *t, packed_batch *p, report *r, pass_count *count) {
    for (int32_t m = 0; m < p->n; m++) {
        WB_TRY(policy_forward(t, p, m, count));
        WB_TRY(observe_logprobs(t->replay, p, &p->list[m]));
        memcpy(p->list[m].old, p->logprobs, (size_t)p->list[m].T * sizeof(float));
        report_progress(r, t->step, "first forward", tokens_until(p, m + 1), tokens_until(p, p->n));
    }
    return WB_OK;
}

wb_status compare_forward(trainer *t, packed_batch *p, report *r) {
    for (int32_t m = 0; m < p->n; m++) {
        WB_TRY(routed_forward(t, t->compare, p, m));
        WB_TRY(observe_logprobs(t->compare, p, &p->list[m]));
        report_progress(r, t->step, "comparison", tokens_until(p, m + 1), tokens_until(p, p->n));
    }
    return WB_OK;
}

wb_status reference_forward(trainer *t, packed_batch *p, report *r) {
    for (int32_t m = 0; m < p->n; m++) {
        const wb_routing free_routing = {.ids = p->reference_ids.data};
        WB_TRY(run_forward(t->reference_train, &p->list[m], &free_routing, p->list[m].reference));
        report_progress(r, t->step, "reference", tokens_until(p, m + 1), tokens_until(p, p->n));
    }
    return WB_OK;
}
