/* train_step.c - what happens to one rollout batch: packing, the first forward (old log-probabilities and
 * fidelity), the same batch with free routing for comparison, the reference, and the minibatch updates
 * under replay.
 *
 * The plan is made once for a batch and followed by every pass: the first forward and each update see the
 * same micro-batches, so a (micro-batch, layer) always means the same tokens. Every rank runs the same
 * number of micro-batches, the last ones empty where it has fewer. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "grpo.h"
#include "wb_memory.h"

/* Sequences packed into one forward. A sequence of N tokens feeds N - 1: row t predicts token t + 1. */
typedef struct micro_batch {
    int64_t T, n_seqs;
    const sample **samples; /* [n_seqs] */
    int32_t *seq_start;     /* [n_seqs + 1] */
    int32_t *tokens, *targets;
    float *old, *reference; /* [T] log-probabilities of the first forward and of the reference model */
} micro_batch;

typedef struct packed_batch {
    int32_t n;             /* micro-batches */
    micro_batch *list;     /* [n] */
    int32_t *update_start; /* [updates + 1] first micro-batch of each minibatch */
    int64_t largest;       /* T */
    /* device, for `largest` rows */
    void *ids, *native;
    uint8_t *forced;
    /* host, likewise */
    void *host_ids, *host_native;
    float *logprobs, *gradients;
} packed_batch;

static const wb_record *record_of(const sample *s) {
    return &s->completion->record;
}

static size_t row_bytes(const trainer *t) {
    return wb_route_row_bytes(wb_model_routes(t->model));
}

/* ---- packing --------------------------------------------------------------------------------- */

static int64_t fed_tokens(const sample *s) {
    return (int64_t)record_of(s)->n_tokens - 1;
}

/* How many of `samples` [n] go into the next micro-batch. */
static int64_t take(const sample *samples, int64_t n, int64_t limit, int64_t *T_out) {
    int64_t i = 0, T = 0;
    while (i < n && (i == 0 || T + fed_tokens(&samples[i]) <= limit)) T += fed_tokens(&samples[i++]);
    *T_out = T;
    return i;
}

static wb_status fill(micro_batch *mb, const sample *samples, int64_t n, int64_t T) {
    void *memory;
    WB_TRY(WB_ALLOC(memory, (size_t)n, sizeof *mb->samples, "micro-batch"));
    mb->samples = memory;
    WB_TRY(WB_ALLOC(memory, (size_t)(n + 1 + 2 * T), sizeof(int32_t), "micro-batch"));
    mb->seq_start = memory;
    mb->tokens = mb->seq_start + n + 1;
    mb->targets = mb->tokens + T;
    WB_TRY(WB_ALLOC(memory, (size_t)(2 * T), sizeof(float), "micro-batch"));
    mb->old = memory;
    mb->reference = mb->old + T;
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
    return WB_OK;
}

static wb_status count_micro_batches(const trainer *t, const batch *b, int64_t first, int64_t last,
                                     uint64_t *n_out) {
    *n_out = 0;
    for (int64_t i = first, T; i < last; ++*n_out)
        i += take(b->samples + i, last - i, t->o->micro_batch_tokens, &T);
    return wb_comm_all_reduce_max_u64(t->comm, n_out);
}

/* First of this rank's samples in minibatch u. Minibatches are equal runs of the batch's groups over all
 * ranks, so that they hold the same samples on any number of ranks, and none is empty. */
static int64_t update_first(const trainer *t, int64_t u) {
    int64_t group = t->o->prompts / t->o->updates * u, ranks = wb_comm_size(t->comm);
    return (group - wb_comm_rank(t->comm) + ranks - 1) / ranks * t->o->samples;
}

static wb_status pack_lists(const trainer *t, const batch *b, packed_batch *p) {
    void *memory;
    WB_TRY(WB_ALLOC(memory, (size_t)t->o->updates + 1, sizeof *p->update_start, "micro-batches"));
    p->update_start = memory;
    for (int64_t u = 0; u < t->o->updates; u++) {
        uint64_t n;
        WB_TRY(count_micro_batches(t, b, update_first(t, u), update_first(t, u + 1), &n));
        p->update_start[u + 1] = p->update_start[u] + (int32_t)n;
    }
    p->n = p->update_start[t->o->updates];
    WB_TRY(WB_ALLOC(memory, (size_t)p->n, sizeof *p->list, "micro-batches"));
    p->list = memory;
    for (int64_t u = 0; u < t->o->updates; u++) {
        int64_t i = update_first(t, u), last = update_first(t, u + 1), T;
        for (int32_t m = p->update_start[u]; m < p->update_start[u + 1]; m++) {
            int64_t n = take(b->samples + i, last - i, t->o->micro_batch_tokens, &T);
            WB_TRY(fill(&p->list[m], b->samples + i, n, T));
            if (T > p->largest) p->largest = T;
            i += n;
        }
    }
    return WB_OK;
}

static void packed_free(trainer *t, packed_batch *p) {
    for (int32_t m = 0; p->list != NULL && m < p->n; m++) {
        free(p->list[m].samples);
        free(p->list[m].seq_start);
        free(p->list[m].old);
    }
    free(p->list);
    free(p->update_start);
    t->device->mem_free(t->device, p->ids);
    t->device->mem_free(t->device, p->native);
    t->device->mem_free(t->device, p->forced);
    free(p->host_ids);
    free(p->host_native);
    free(p->logprobs);
}

static wb_status pack(trainer *t, const batch *b, packed_batch *p) {
    *p = (packed_batch){0};
    WB_TRY(pack_lists(t, b, p));
    size_t T = (size_t)p->largest, bytes = T * row_bytes(t);
    void *memory;
    WB_TRY(t->device->mem_alloc(t->device, bytes, &p->ids));
    WB_TRY(t->device->mem_alloc(t->device, bytes, &p->native));
    WB_TRY(t->device->mem_alloc(t->device, T, &memory));
    p->forced = memory;
    WB_TRY(WB_ALLOC(p->host_ids, bytes, 1, "routes"));
    WB_TRY(WB_ALLOC(p->host_native, bytes, 1, "routes"));
    WB_TRY(WB_ALLOC(memory, 2 * T, sizeof(float), "log-probabilities"));
    p->logprobs = memory;
    p->gradients = p->logprobs + T;
    return WB_OK;
}

/* ---- the plan -------------------------------------------------------------------------------- */

static wb_status plan_micro_batch(wb_replay *replay, wb_segment_kind kind, int32_t m, const micro_batch *mb) {
    void *memory;
    WB_TRY(WB_ALLOC(memory, (size_t)mb->n_seqs, sizeof(wb_segment), "segments"));
    wb_segment *segments = memory;
    for (int64_t i = 0; i < mb->n_seqs; i++)
        segments[i] = (wb_segment){kind, kind == WB_SEGMENT_REPLAY ? record_of(mb->samples[i])->rid : NULL, 0,
                                   (uint32_t)fed_tokens(mb->samples[i])};
    wb_status status = wb_replay_plan(replay, m, (int32_t)mb->n_seqs, segments);
    free(segments);
    return status;
}

static wb_status make_plan(const trainer *t, wb_replay *replay, wb_segment_kind kind, const batch *b,
                           const packed_batch *p) {
    wb_replay_clear(replay);
    for (int64_t i = 0; i < b->n_samples; i++)
        WB_TRY(wb_replay_add(replay, wb_model_routes(t->model), record_of(&b->samples[i])));
    WB_TRY(wb_replay_begin(replay, p->n));
    for (int32_t m = 0; m < p->n; m++) WB_TRY(plan_micro_batch(replay, kind, m, &p->list[m]));
    return WB_OK;
}

/* ---- forward passes -------------------------------------------------------------------------- */

static wb_status run_forward(wb_train *train, packed_batch *p, const micro_batch *mb, const uint8_t *forced,
                             void *native, float *logprobs_out) {
    wb_train_batch fed = {mb->T, mb->tokens, mb->targets, (int32_t)mb->n_seqs, mb->seq_start};
    wb_routing routing = {p->ids, forced, native};
    return wb_train_forward(train, &fed, &routing, NULL, logprobs_out);
}

/* True when both hold the same set of K ids. */
static bool same_set(const void *a, const void *b, wb_dtype dtype, uint32_t K) {
    if (memcmp(a, b, K * wb_dtype_size(dtype)) == 0) return true;
    for (uint32_t i = 0; i < K; i++) {
        uint32_t j = 0, id = wb_route_id(a, dtype, i);
        while (j < K && wb_route_id(b, dtype, j) != id) j++;
        if (j == K) return false;
    }
    return true;
}

typedef struct row_count {
    double rows, differ;
} row_count;

/* Counts the rows that training sent to other experts than the rollout did, in any layer: straight from
 * the ids used and the records, whatever the replay module says. */
static void count_routed_differently(const trainer *t, const packed_batch *p, const micro_batch *mb,
                                     row_count *count) {
    const wb_route_model *model = wb_model_routes(t->model);
    wb_dtype dtype = wb_route_dtype(model->num_experts);
    size_t layer_bytes = model->top_k * wb_dtype_size(dtype);
    for (int64_t s = 0; s < mb->n_seqs; s++)
        for (int64_t row = mb->seq_start[s]; row < mb->seq_start[s + 1]; row++) {
            const char *rolled =
                wb_record_row(model, record_of(mb->samples[s]), (uint32_t)(row - mb->seq_start[s]));
            if (rolled == NULL) continue;
            const char *used = (const char *)p->host_ids + (size_t)row * row_bytes(t);
            bool same = true;
            for (uint32_t l = 0; same && l < model->n_moe_layers; l++)
                same = same_set(used + l * layer_bytes, rolled + l * layer_bytes, dtype, model->top_k);
            count->rows += 1;
            count->differ += !same;
        }
}

/* Hands each layer's ids of the pass to the replay module: what was used (kept where free, checked where
 * forced), or only measured against the records. */
static wb_status tell_replay(wb_replay *replay, const trainer *t, const packed_batch *p, int32_t m,
                             bool measure_only, bool have_native) {
    const wb_route_model *model = wb_model_routes(t->model);
    size_t layer_bytes = model->top_k * wb_dtype_size(wb_route_dtype(model->num_experts));
    int64_t stride = (int64_t)model->n_moe_layers * model->top_k;
    uint32_t T = (uint32_t)p->list[m].T;
    for (uint32_t l = 0; l < model->n_moe_layers; l++) {
        const char *used = (const char *)p->host_ids + l * layer_bytes;
        const char *native = have_native ? (const char *)p->host_native + l * layer_bytes : NULL;
        if (measure_only)
            WB_TRY(wb_replay_measure(replay, m, (int32_t)l, 0, T, used, stride));
        else
            WB_TRY(wb_replay_store(replay, m, (int32_t)l, 0, T, used, stride, native, stride));
    }
    return WB_OK;
}

/* A forward of the policy under the mode: forced as planned. With it the routes used are counted and told. */
static wb_status policy_forward(trainer *t, packed_batch *p, int32_t m, row_count *count) {
    const micro_batch *mb = &p->list[m];
    wb_device *dev = t->device;
    bool off = t->o->replay == WB_REPLAY_OFF;
    bool want_native = !off && wb_replay_wants_native(t->replay, m, 0, 0, (uint32_t)mb->T);
    size_t bytes = (size_t)mb->T * row_bytes(t);
    if (!off) {
        wb_replay_micro_batch rows;
        WB_TRY(wb_replay_rows(t->replay, m, &rows));
        WB_TRY(dev->to_device(dev, p->ids, rows.ids, bytes));
        WB_TRY(dev->to_device(dev, p->forced, rows.state, (size_t)mb->T));
    }
    WB_TRY(run_forward(t->train, p, mb, off ? NULL : p->forced, want_native ? p->native : NULL, p->logprobs));
    WB_TRY(dev->to_host(dev, p->host_ids, p->ids, bytes));
    if (want_native) WB_TRY(dev->to_host(dev, p->host_native, p->native, bytes));
    count_routed_differently(t, p, mb, count);
    return tell_replay(t->replay, t, p, m, off, want_native);
}

/* Log-probabilities at rollout beside those in p->logprobs, over the response tokens. */
static wb_status observe_logprobs(wb_replay *replay, const packed_batch *p, const micro_batch *mb) {
    for (int64_t s = 0; s < mb->n_seqs; s++) {
        const wb_record *record = record_of(mb->samples[s]);
        const float *now = p->logprobs + mb->seq_start[s] + record->prompt_len - 1;
        WB_TRY(wb_replay_observe_logprobs(replay, record->n_tokens - record->prompt_len, record->logprobs,
                                          now, NULL));
    }
    return WB_OK;
}

static wb_status first_forward(trainer *t, packed_batch *p, report *r, row_count *count) {
    for (int32_t m = 0; m < p->n; m++) {
        WB_TRY(policy_forward(t, p, m, count));
        WB_TRY(observe_logprobs(t->replay, p, &p->list[m]));
        memcpy(p->list[m].old, p->logprobs, (size_t)p->list[m].T * sizeof(float));
        report_progress(r, t->step, "first forward", m + 1, p->n);
    }
    return WB_OK;
}

/* The same batch and weights with free routing. */
static wb_status compare_forward(trainer *t, packed_batch *p, report *r) {
    for (int32_t m = 0; m < p->n; m++) {
        const micro_batch *mb = &p->list[m];
        WB_TRY(run_forward(t->train, p, mb, NULL, NULL, p->logprobs));
        WB_TRY(t->device->to_host(t->device, p->host_ids, p->ids, (size_t)mb->T * row_bytes(t)));
        WB_TRY(tell_replay(t->compare, t, p, m, true, false));
        WB_TRY(observe_logprobs(t->compare, p, mb));
        report_progress(r, t->step, "comparison", m + 1, p->n);
    }
    return WB_OK;
}

/* The reference never follows the policy's routes. */
static wb_status reference_forward(trainer *t, packed_batch *p) {
    for (int32_t m = 0; m < p->n; m++)
        WB_TRY(run_forward(t->reference_train, p, &p->list[m], NULL, NULL, p->list[m].reference));
    return WB_OK;
}

/* ---- updates --------------------------------------------------------------------------------- */

/* d loss / d logprobs of the micro-batch into p->gradients; dropped samples stay at zero. */
static void micro_batch_loss(trainer *t, packed_batch *p, int32_t m, const loss_options *loss,
                             loss_sums *sums) {
    const micro_batch *mb = &p->list[m];
    memset(p->gradients, 0, (size_t)mb->T * sizeof(float));
    for (int64_t s = 0; s < mb->n_seqs; s++) {
        if (wb_replay_dropped(t->replay, m, (int32_t)s)) continue;
        const wb_record *record = record_of(mb->samples[s]);
        size_t first = (size_t)mb->seq_start[s] + record->prompt_len - 1,
               n = record->n_tokens - record->prompt_len;
        loss_sequence(loss, n, p->logprobs + first, mb->old + first,
                      t->reference ? mb->reference + first : NULL, mb->samples[s]->advantage,
                      p->gradients + first, sums);
    }
}

/* Response tokens and sequences of the minibatch over all ranks, without the dropped ones. */
static wb_status minibatch_size(const trainer *t, const packed_batch *p, int64_t u, double *tokens_out,
                                double *sequences_out) {
    double size[2] = {0, 0};
    for (int32_t m = p->update_start[u]; m < p->update_start[u + 1]; m++)
        for (int64_t s = 0; s < p->list[m].n_seqs; s++) {
            if (wb_replay_dropped(t->replay, m, (int32_t)s)) continue;
            const wb_record *record = record_of(p->list[m].samples[s]);
            size[0] += record->n_tokens - record->prompt_len;
            size[1] += 1;
        }
    WB_TRY(wb_comm_all_reduce_f64(t->comm, size, 2));
    *tokens_out = size[0];
    *sequences_out = size[1];
    return WB_OK;
}

static wb_status update(trainer *t, packed_batch *p, int64_t u, loss_sums *sums, row_count *count,
                        double *norm_out) {
    double tokens, sequences;
    WB_TRY(minibatch_size(t, p, u, &tokens, &sequences));
    loss_options loss = {t->o->ratio,   t->o->clip_low,      t->o->clip_high,
                         t->o->kl_coef, 1 / fmax(tokens, 1), 1 / fmax(sequences, 1)}; /* all may be dropped */
    WB_TRY(wb_train_zero_grads(t->train));
    for (int32_t m = p->update_start[u]; m < p->update_start[u + 1]; m++) {
        WB_TRY(policy_forward(t, p, m, count));
        micro_batch_loss(t, p, m, &loss, sums);
        WB_TRY(wb_train_backward(t->train, p->gradients));
    }
    WB_TRY(wb_train_reduce_grads(t->train));
    return optimizer_step(&t->opt, t->o, t->o->lr, norm_out);
}

/* ---- metrics --------------------------------------------------------------------------------- */

static wb_status replay_metrics(const trainer *t, wb_replay *replay, wb_replay_metrics *out) {
    size_t n;
    double *sums = wb_replay_metric_sums(replay, &n);
    WB_TRY(wb_comm_all_reduce_f64(t->comm, sums, n));
    wb_replay_get_metrics(replay, out, NULL);
    return WB_OK;
}

static wb_status batch_metrics(const trainer *t, const batch *b, step_metrics *m) {
    double sums[4] = {0, 0, 0, 0};
    for (int64_t i = 0; i < b->n_samples; i++) {
        const wb_record *record = record_of(&b->samples[i]);
        sums[0] += 1;
        sums[1] += b->samples[i].reward;
        sums[2] += b->samples[i].reward * b->samples[i].reward;
        sums[3] += record->n_tokens - record->prompt_len;
    }
    WB_TRY(wb_comm_all_reduce_f64(t->comm, sums, 4));
    m->samples = sums[0];
    m->reward_mean = sums[1] / sums[0];
    m->reward_std = sqrt(fmax(0, sums[2] / sums[0] - m->reward_mean * m->reward_mean));
    m->response_tokens = sums[3];
    return WB_OK;
}

static wb_status share(const trainer *t, row_count count, double *out) {
    double sums[2] = {count.rows, count.differ};
    WB_TRY(wb_comm_all_reduce_f64(t->comm, sums, 2));
    *out = sums[0] > 0 ? sums[1] / sums[0] : 0;
    return WB_OK;
}

static wb_status loss_metrics(const trainer *t, loss_sums sums, step_metrics *m) {
    double all[4] = {sums.loss, sums.clipped, sums.tokens, sums.kl_reference};
    WB_TRY(wb_comm_all_reduce_f64(t->comm, all, 4));
    m->loss = all[0] / (double)t->o->updates;
    m->clip_share = all[2] > 0 ? all[1] / all[2] : 0;
    m->kl_reference = all[2] > 0 ? all[3] / all[2] : 0;
    return WB_OK;
}

/* ---- the step -------------------------------------------------------------------------------- */

static wb_status run_step(trainer *t, const batch *b, packed_batch *p, report *r, step_metrics *m) {
    wb_segment_kind kind = t->o->replay == WB_REPLAY_RECORD ? WB_SEGMENT_RECORD : WB_SEGMENT_REPLAY;
    wb_status planned = make_plan(t, t->replay, kind, b, p);
    m->compared = t->o->replay != WB_REPLAY_OFF && t->o->compare_every > 0 &&
                  t->step % (uint64_t)t->o->compare_every == 0;
    if (planned == WB_OK && m->compared) planned = make_plan(t, t->compare, WB_SEGMENT_REPLAY, b, p);
    WB_TRY(wb_comm_agree(t->comm, planned));

    row_count first = {0, 0}, updates = {0, 0};
    WB_TRY(first_forward(t, p, r, &first));
    WB_TRY(share(t, first, &m->routed_differently));
    if (m->compared) {
        WB_TRY(compare_forward(t, p, r));
        WB_TRY(replay_metrics(t, t->compare, &m->off));
    }
    if (t->reference != NULL) WB_TRY(reference_forward(t, p));

    loss_sums sums = {0, 0, 0, 0};
    for (int64_t u = 0; u < t->o->updates; u++) {
        WB_TRY(update(t, p, u, &sums, &updates, &m->grad_norm));
        report_progress(r, t->step, "update", u + 1, t->o->updates);
    }
    WB_TRY(wb_comm_agree(t->comm, wb_replay_end(t->replay)));
    WB_TRY(share(t, updates, &m->routed_differently_updates));
    WB_TRY(loss_metrics(t, sums, m));
    WB_TRY(replay_metrics(t, t->replay, &m->replay));
    return batch_metrics(t, b, m);
}

wb_status train_step(trainer *t, const batch *b, report *r, step_metrics *m) {
    packed_batch p;
    wb_status status = pack(t, b, &p);
    status = wb_comm_agree(t->comm, status);
    if (status == WB_OK) status = run_step(t, b, &p, r, m);
    wb_replay_clear(t->replay); /* they borrow the batch's records */
    wb_replay_clear(t->compare);
    packed_free(t, &p);
    return status;
}
