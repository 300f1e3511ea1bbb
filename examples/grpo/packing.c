/* packing.c - a rollout batch as micro-batches: which samples each holds, their tokens and targets, and the
 * memory that the passes over them work in. Every rank has the same number of micro-batches, the last ones
 * empty where it has fewer samples. Refuses: who trains on what by its routes (planned_step.c), what the
 * tokens were sampled from (distribution.c). */
#include "train_step.h"
#include "wb_memory.h"

/* How many of `samples` [n] go into the next micro-batch. */
static int64_t take(const sample *samples, int64_t n, int64_t limit, int64_t *T_out) {
    int64_t i = 0, T = 0;
    while (i < n && (i == 0 || T + fed_tokens(&samples[i]) <= limit)) T += fed_tokens(&samples[i++]);
    *T_out = T;
    return i;
}

static wb_status fill(wb_owner *owner, micro_batch *mb, const sample *samples, int64_t n, int64_t T) {
    WB_TRY(WB_OWN(owner, mb->samples, (size_t)n, "micro-batch"));
    WB_TRY(WB_OWN(owner, mb->seq_start, (size_t)n + 1, "micro-batch"));
    WB_TRY(WB_OWN(owner, mb->tokens, (size_t)T, "micro-batch"));
    WB_TRY(WB_OWN(owner, mb->targets, (size_t)T, "micro-batch"));
    WB_TRY(WB_OWN(owner, mb->old, (size_t)T, "micro-batch"));
    WB_TRY(WB_OWN(owner, mb->reference, (size_t)T, "micro-batch"));
    mb->n_seqs = n;
    mb->T = T;
    int64_t row = 0;
    for (int64_t i = 0; i < n; i++) {
        const wb_record *record = record_of(&samples[i]);
        mb->samples[i] = &samples[i];
        mb->seq_start[i] = (int32_t)row;
        for (uint32_t p = 0; p + 1 < record->n_tokens; p++, row++) {
            mb->tokens[row] = (int32_t)record->tokens[p];
            mb->targets[row] = p + 1 >= record->prompt_len ? (int32_t)record->tokens[p + 1] : -1;
        }
    }
    mb->seq_start[n] = (int32_t)row;
    return distribution_fill(owner, mb);
}

/* First of this rank's samples in minibatch u. Minibatches are equal runs of the batch's groups, whichever
 * ranks these are on, so that they hold the same samples on any number of ranks. */
static int64_t update_first(const trainer *t, const batch *b, int64_t u) {
    return batch_first_group(b, t->o->prompts / t->o->updates * u) * t->o->samples;
}

/* Micro-batches of minibatch u, those of the rank that has the most. */
static wb_status count_micro_batches(const trainer *t, const batch *b, int64_t u, uint64_t *n_out) {
    int64_t last = update_first(t, b, u + 1), T;
    *n_out = 0;
    for (int64_t i = update_first(t, b, u); i < last; ++*n_out)
        i += take(b->samples + i, last - i, t->o->micro_batch_tokens, &T);
    return wb_comm_all_reduce_max_u64(t->comm, n_out);
}

/* Collective, and with no failure of this rank's own in between. */
static wb_status number_micro_batches(const trainer *t, const batch *b, packed_batch *p) {
    for (int64_t u = 0; u < t->o->updates; u++) {
        uint64_t n;
        if (p->pack) {
            p->update_start[u + 1] = wb_pack_first(p->pack, (uint32_t)u + 1);
            continue;
        }
        WB_TRY(count_micro_batches(t, b, u, &n));
        p->update_start[u + 1] = p->update_start[u] + (int32_t)n;
    }
    p->n = p->update_start[t->o->updates];
    return WB_OK;
}

static wb_status fill_planned(packed_batch *p, int32_t m) {
    const sample *samples = NULL;
    int64_t n, T;
    WB_TRY(planned_samples(p, m, &samples, &n));
    take(samples, n, INT64_MAX, &T);
    if (T > p->largest) p->largest = T;
    return fill(&p->workspace.host, &p->list[m], samples, n, T);
}

static wb_status fill_update(const trainer *t, const batch *b, int64_t u, packed_batch *p) {
    int64_t i = update_first(t, b, u), last = update_first(t, b, u + 1), T;
    for (int32_t m = p->update_start[u]; m < p->update_start[u + 1]; m++) {
        int64_t n = take(b->samples + i, last - i, t->o->micro_batch_tokens, &T);
        WB_TRY(fill(&p->workspace.host, &p->list[m], b->samples + i, n, T));
        if (T > p->largest) p->largest = T;
        i += n;
    }
    return WB_OK;
}

/* What one rank can fail alone before the first exchange. */
static wb_status prepare(const trainer *t, const batch *b, packed_batch *p) {
    const int64_t vocab_size = wb_model_config(t->model)->vocab_size;
    for (int64_t i = 0; i < b->n_samples; i++)
        WB_TRY(distribution_check(t->o, vocab_size, record_of(&b->samples[i])));
    return WB_OWN(&p->workspace.host, p->update_start, (size_t)t->o->updates + 1, "micro-batches");
}

static wb_status fill_all(const trainer *t, const batch *b, packed_batch *p) {
    WB_TRY(WB_OWN(&p->workspace.host, p->list, (size_t)p->n, "micro-batches"));
    for (int32_t m = 0; p->pack && m < p->n; m++) WB_TRY(fill_planned(p, m));
    for (int64_t u = 0; !p->pack && u < t->o->updates; u++) WB_TRY(fill_update(t, b, u, p));
    wb_workspace *w = &p->workspace;
    size_t T = (size_t)p->largest;
    WB_TRY(wb_reserve(w, &p->ids, p->largest, (int64_t)p->row_bytes, 1));
    WB_TRY(wb_reserve(w, &p->native, p->largest, (int64_t)p->row_bytes, 1));
    WB_TRY(wb_reserve(w, &p->used, p->largest, (int64_t)p->row_bytes, 1));
    if (t->reference) {
        int64_t width = (int64_t)wb_route_row_bytes(wb_model_routes(t->reference));
        WB_TRY(wb_reserve(w, &p->reference_ids, p->largest, width, 1));
    }
    WB_TRY(wb_reserve(w, &p->direction, p->largest, 1, 1));
    WB_TRY(WB_OWN_ALLOC(&w->host, p->host_ids, T, p->row_bytes, "routes"));
    WB_TRY(WB_OWN_ALLOC(&w->host, p->host_native, T, p->row_bytes, "routes"));
    WB_TRY(WB_OWN(&w->host, p->logprobs, T, "log-probabilities"));
    WB_TRY(WB_OWN(&w->host, p->trained, (size_t)(t->o->prompts * t->o->samples), "samples of the step"));
    WB_TRY(bias_open(t, &w->host, &p->loads));
    WB_TRY(lists_open(t, p));
    return WB_OWN(&w->host, p->gradients, T, "gradients");
}

wb_status packed_open(trainer *t, const batch *b, packed_batch *p, step_metrics *m) {
    const wb_route_model *model = wb_model_routes(t->model);
    p->workspace.device = t->device;
    p->row_bytes = wb_route_row_bytes(model);
    p->stride = (int64_t)wb_route_row_ids(model);
    if (t->o->eplb == EPLB_PLANNED) WB_TRY(planned_open(t, b, p, m));
    WB_TRY(wb_comm_agree(t->comm, prepare(t, b, p)));
    WB_TRY(number_micro_batches(t, b, p));
    return wb_comm_agree(t->comm, fill_all(t, b, p));
}

void packed_close(packed_batch *p) {
    wb_pack_close(p->pack);
    wb_workspace_close(&p->workspace);
}
