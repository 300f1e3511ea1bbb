/* train_step.c - what happens to one rollout batch: the first forward (old log-probabilities and fidelity),
 * the same batch with free routing for comparison, the reference, and the minibatch updates under replay.
 *
 * The plan is made once for a batch and followed by every pass: the first forward and each update see the
 * same micro-batches, so a (micro-batch, layer) always means the same tokens. */
#include "train_step.h"

#include <math.h>
#include <string.h>

/* ---- updates --------------------------------------------------------------------------------- */

/* d loss / d logprobs of the micro-batch into p->gradients; dropped samples stay at zero. */
static void micro_batch_loss(trainer *t, packed_batch *p, int32_t m, const loss_options *loss,
                             loss_sums *sums) {
    const micro_batch *mb = &p->list[m];
    memset(p->gradients, 0, (size_t)mb->T * sizeof(float));
    for (int64_t s = 0; s < mb->n_seqs; s++) {
        if (wb_replay_dropped(t->replay, m, (int32_t)s)) continue;
        const wb_record *record = record_of(mb->samples[s]);
        size_t first = (size_t)mb->seq_start[s] + record->prompt_len - 1;
        size_t n = record->n_tokens - record->prompt_len;
        const loss_logprobs logprobs = {.now = p->logprobs + first,
                                        .old = mb->old + first,
                                        .reference = t->reference ? mb->reference + first : NULL,
                                        .rollout = t->o->tis_cap > 0 ? record->sampling_logprobs : NULL};
        loss_sequence(loss, n, &logprobs, mb->samples[s]->advantage, p->gradients + first, sums);
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

static wb_status update(trainer *t, packed_batch *p, int64_t u, report *r, loss_sums *sums, pass_count *count,
                        double *norm_out) {
    double tokens, sequences;
    WB_TRY(minibatch_size(t, p, u, &tokens, &sequences));
    /* At least 1: all samples may have been dropped. */
    loss_options loss = {.ratio = t->o->ratio,
                         .clip_low = t->o->clip_low,
                         .clip_high = t->o->clip_high,
                         .kl_coef = t->o->kl_coef,
                         .tis_cap = t->o->tis_cap,
                         .token_scale = 1 / fmax(tokens, 1),
                         .sequence_scale = 1 / fmax(sequences, 1)};
    WB_TRY(wb_train_zero_grads(t->train));
    const int32_t end = p->update_start[u + 1];
    for (int32_t m = p->update_start[u]; m < end; m++) {
        WB_TRY(policy_forward(t, p, m, count));
        bias_count(t, p, &p->list[m]);
        micro_batch_loss(t, p, m, &loss, sums);
        trained_count(t, &p->list[m], p->trained);
        WB_TRY(m + 1 < end ? wb_train_backward(t->train, p->gradients)
                           : wb_train_backward_last(t->train, p->gradients));
        report_progress(r, t->step, "update", tokens_until(p, m + 1), tokens_until(p, p->n));
    }
    WB_TRY(optimizer_step(&t->opt, t->o, learning_rate(t->o, t->step),
                          u + 1 == t->o->updates ? t->follow : NULL, norm_out));
    return bias_update(t, p);
}

/* ---- metrics --------------------------------------------------------------------------------- */

static wb_status replay_metrics(const trainer *t, wb_replay *replay, wb_replay_metrics *out) {
    size_t n;
    double *sums = wb_replay_metric_sums(replay, &n);
    WB_TRY(wb_comm_all_reduce_f64(t->comm, sums, n));
    wb_replay_get_metrics(replay, out, NULL);
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

static wb_status plan_step(trainer *t, const packed_batch *p, step_metrics *m) {
    m->compared = t->o->replay != WB_REPLAY_OFF && t->o->compare_every > 0 &&
                  t->step % (uint64_t)t->o->compare_every == 0;
    wb_status status = plan_batch(t, t->replay, t->o->replay, p);
    if (status == WB_OK && m->compared) status = plan_batch(t, t->compare, WB_REPLAY_OFF, p);
    return wb_comm_agree(t->comm, status);
}

static wb_status run_step(trainer *t, const batch *b, packed_batch *p, report *r, step_metrics *m) {
    WB_TRY(plan_step(t, p, m));
    WB_TRY(plan_dispatch(t, p, m));

    pass_count first = {0}, updates = {0};
    WB_TRY(first_forward(t, p, r, &first));
    /* Rows that chose in it are forced from here on. */
    WB_TRY(plan_dispatch(t, p, m));
    WB_TRY(share(t, first.routes, &m->routed_differently));
    WB_TRY(share(t, first.lists, &m->lists.differently));
    if (m->compared) {
        WB_TRY(compare_forward(t, p, r));
        WB_TRY(replay_metrics(t, t->compare, &m->off));
        lists_metrics(t, t->compare, p, &m->lists_off);
    }
    if (t->reference) WB_TRY(reference_forward(t, p, r));

    loss_sums sums = {0, 0, 0, 0};
    for (int64_t u = 0; u < t->o->updates; u++) WB_TRY(update(t, p, u, r, &sums, &updates, &m->grad_norm));
    WB_TRY(wb_comm_agree(t->comm, wb_replay_end(t->replay)));
    WB_TRY(trained_check(t, p->trained));
    WB_TRY(share(t, updates.routes, &m->routed_differently_updates));
    WB_TRY(loss_metrics(t, sums, m));
    WB_TRY(replay_metrics(t, t->replay, &m->replay));
    lists_metrics(t, t->replay, p, &m->lists);
    m->lr = learning_rate(t->o, t->step);
    return answers_measure(t->comm, b, &m->answers);
}

wb_status train_step(trainer *t, const batch *b, report *r, step_metrics *m) {
    packed_batch p = {0};
    wb_status status = packed_open(t, b, &p, m);
    if (status == WB_OK) status = expert_load_training(t, &p, &m->balancedness_training);
    if (status == WB_OK) status = run_step(t, b, &p, r, m);
    wb_replay_clear(t->replay); /* they borrow the batch's records */
    wb_replay_clear(t->compare);
    packed_close(&p);
    return status;
}
