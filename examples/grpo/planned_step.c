/* planned_step.c - --eplb planned: the routes that a step will replay say, before it runs, which rank trains
 * on which sample in which micro-batch, and where the experts are to be meanwhile. Refuses: the packing
 * itself (wb_pack.h), the rollout's placement. */
#include "train_step.h"
#include "wb_memory.h"

/* Moves that the solver tries in a layer, for each slot: it has a step's time, not more. */
enum { SOLVER_TRIALS = 1000 };

/* What goes with a sample's record. */
typedef struct judgement {
    double reward, advantage;
} judgement;

static wb_pack_options pack_options(const trainer *t) {
    const wb_config *c = wb_model_config(t->model);
    wb_pack_options o = wb_pack_options_default();
    o.max_rows = t->o->micro_batch_tokens;
    o.n_updates = (uint32_t)t->o->updates;
    o.cost = wb_pack_cost_of((uint32_t)c->hidden_size, (uint32_t)(c->n_heads * c->head_dim),
                             (uint32_t)(c->n_kv_heads * c->head_dim), (uint32_t)c->expert_width,
                             (uint32_t)c->n_layers);
    return o;
}

/* Minibatches hold the groups that they hold without a plan. */
static wb_status list_samples(const trainer *t, const batch *b, packed_batch *p, wb_pack_sequence **list_out,
                              judgement **extras_out) {
    const int64_t groups = t->o->prompts / t->o->updates;
    wb_pack_sequence *list = NULL;
    judgement *extras = NULL;
    WB_TRY(WB_OWN(&p->workspace.host, list, (size_t)b->n_samples, "samples to pack"));
    WB_TRY(WB_OWN(&p->workspace.host, extras, (size_t)b->n_samples, "samples to pack"));
    for (int64_t i = 0; i < b->n_samples; i++) {
        const sample *s = &b->samples[i];
        list[i] = (wb_pack_sequence){.record = record_of(s),
                                     .rows = (uint32_t)fed_tokens(s),
                                     .update = (uint32_t)(b->groups[i / t->o->samples] / groups)};
        extras[i] = (judgement){s->reward, s->advantage};
    }
    *list_out = list;
    *extras_out = extras;
    return WB_OK;
}

/* The placement for the packed micro-batches, at an epoch after the policy's. The same on every rank. */
static wb_status solve(const trainer *t, const wb_pack *pack, wb_placement **next_out) {
    const wb_placement *now = wb_model_placement(t->model);
    const uint32_t L = wb_placement_layers(now), E = wb_placement_experts(now);
    wb_eplb_options o = wb_eplb_options_default();
    wb_placement *solved = NULL, *next = NULL;
    o.algorithm = WB_EPLB_MICROBATCH;
    o.trials = SOLVER_TRIALS * wb_placement_topology(now)->n_slots;
    o.current = now;
    wb_status status = wb_eplb_solve(wb_placement_topology(now), L, E, (uint32_t)wb_pack_micro_batches(pack),
                                     wb_pack_loads(pack), &o, &solved);
    if (status == WB_OK) status = wb_placement_clone(now, &next);
    if (status == WB_OK)
        status = wb_placement_copy_layers(next, solved, L, NULL, wb_placement_layer(now, 0).epoch + 1);
    wb_placement_close(solved);
    if (status == WB_OK)
        *next_out = next;
    else
        wb_placement_close(next);
    return status;
}

/* Bytes that this rank has sent in groups of transfers. */
static wb_status sent_bytes(const trainer *t, double *bytes_out) {
    wb_exchange_count count;
    WB_TRY(wb_exchange_stats(wb_model_exchange(t->model), WB_EXCHANGE_GROUP, &count));
    *bytes_out = (double)count.bytes;
    return WB_OK;
}

static wb_status place_experts(trainer *t, const wb_pack *pack, step_metrics *m) {
    wb_placement *next = NULL;
    double before, after;
    WB_TRY(wb_comm_agree(t->comm, solve(t, pack, &next)));
    wb_status status = sent_bytes(t, &before);
    if (status == WB_OK) status = wb_train_place_experts(t->train, next);
    wb_placement_close(next);
    WB_TRY(status);
    WB_TRY(sent_bytes(t, &after));
    m->moved_bytes = after - before;
    m->epoch = wb_placement_layer(wb_model_placement(t->model), 0).epoch;
    return wb_comm_all_reduce_f64(t->comm, &m->moved_bytes, 1);
}

wb_status planned_open(trainer *t, const batch *b, packed_batch *p, step_metrics *m) {
    const wb_pack_options o = pack_options(t);
    const double start = now_seconds();
    wb_pack_sequence *list = NULL;
    judgement *extras = NULL;
    WB_TRY(wb_comm_agree(t->comm, list_samples(t, b, p, &list, &extras)));
    WB_TRY(wb_pack_open(t->comm, wb_model_routes(t->model), &o, (uint32_t)b->n_samples, list, &p->pack));
    WB_TRY(place_experts(t, p->pack, m));
    WB_TRY(wb_pack_move(p->pack, t->comm, sizeof *extras, extras));
    m->seconds_rebalance = now_seconds() - start;
    return WB_OK;
}

wb_status planned_samples(packed_batch *p, int32_t m, const sample **samples_out, int64_t *n_out) {
    uint32_t n;
    const wb_pack_item *items = wb_pack_items(p->pack, m, &n);
    sample *samples = NULL;
    WB_TRY(WB_OWN(&p->workspace.host, samples, n, "micro-batch"));
    for (uint32_t i = 0; i < n; i++) {
        const judgement *j = items[i].extra;
        samples[i] = (sample){.record = items[i].record, .reward = j->reward, .advantage = j->advantage};
    }
    *samples_out = samples;
    *n_out = n;
    return WB_OK;
}
