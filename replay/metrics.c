/* metrics.c - the fidelity of a step: native choice against forced ids, log-probabilities of rollout
 * against trainer. Owns: the sums behind the metrics and what counts once. Refuses: means of nothing (they
 * are 0). */
#include "replay_state.h"

#include <string.h>

double *wb_replay_metric_sums(wb_replay *r, size_t *n_out) {
    *n_out = wb_replay_sums_count(r);
    return r->sums;
}

void wb_replay_count_segment(wb_replay *r, const segment_plan *s) {
    r->sums[SUM_ROWS] += s->rows;
    if (s->kind == WB_SEGMENT_PADDING) r->sums[SUM_PADDING] += s->rows;
    if (s->kind != WB_SEGMENT_REPLAY || s->rows == 0) return;
    /* The record's last token was never fed by the rollout: it is neither forced nor missing. */
    bool last = s->start + s->rows == s->record->n_tokens;
    r->sums[SUM_FALLBACK] += s->missing;
    r->sums[SUM_LISTED_FALLBACK] += s->missing_listed;
    r->sums[SUM_FORCED] += s->rows - s->missing - last;
}

/* ---- native against forced ------------------------------------------------------------------- */

static void raise_flag(wb_replay *r, uint8_t *flags, uint8_t flag, int sum) {
    r->sums[sum] += (*flags & flag) == 0;
    *flags |= flag;
}

/* Row i of the slice has ids in the plan, and they have not been compared in this layer. */
static bool unmeasured(const layer_rows *s, uint32_t i) {
    const micro_batch *b = s->batch;
    uint8_t flags = b->flags[s->row + i];
    bool stored = (flags & ROW_RECORDED) != 0 && s->direction[i] == WB_ROW_FORCED;
    return ((flags & ROW_REPLAYED) != 0 || stored) && (s->noted[i] & NOTED_MEASURED) == 0;
}

bool wb_replay_unmeasured(const layer_rows *s) {
    for (uint32_t i = 0; i < s->rows; i++)
        if (unmeasured(s, i)) return true;
    return false;
}

void wb_replay_measure_rows(wb_replay *r, const layer_rows *s, const uint8_t *native,
                            size_t native_stride_bytes) {
    const uint32_t K = s->K;
    micro_batch *b = s->batch;
    double *sums = r->sums + SUMS_FIXED + (size_t)s->layer * SUMS_PER_LAYER;
    for (uint32_t i = 0; i < s->rows; i++) {
        if (!unmeasured(s, i)) continue;
        uint32_t t = s->row + i;
        uint32_t common =
            wb_route_common(s->ids + i * r->row_bytes, native + i * native_stride_bytes, r->dtype, K);
        s->noted[i] |= NOTED_MEASURED;
        sums[LAYER_TOKENS] += 1;
        sums[LAYER_OVERLAP] += (double)common / K;
        sums[LAYER_DIFFER] += common < K;
        raise_flag(r, &b->flags[t], ROW_MEASURED, SUM_MEASURED);
        if (common < K) raise_flag(r, &b->flags[t], ROW_DIFFERS, SUM_DIFFER);
    }
}

/* ---- log-probabilities ----------------------------------------------------------------------- */

wb_status wb_replay_observe_logprobs(wb_replay *r, size_t n, const float *rollout, const float *trainer,
                                     const uint8_t *mask) {
    if (!r || (n > 0 && (!rollout || !trainer)))
        return wb_fail(WB_INVALID_ARGUMENT, "replay: handle or log-probabilities are NULL");
    for (size_t i = 0; i < n; i++) {
        if (mask && !mask[i]) continue;
        const wb_kl_terms terms = wb_kl_of_token(rollout[i], trainer[i]);
        r->sums[SUM_LOGPROBS] += 1;
        r->sums[SUM_K1] += terms.k1;
        r->sums[SUM_K3] += terms.k3;
        r->sums[SUM_OUTSIDE] += terms.outside;
    }
    return WB_OK;
}

/* ---- the means ------------------------------------------------------------------------------- */

static double mean(double sum, double count) {
    return count > 0 ? sum / count : 0;
}

void wb_replay_get_metrics(const wb_replay *r, wb_replay_metrics *metrics_out,
                           wb_replay_layer_metrics *layers_out) {
    const double *s = r->sums;
    double decisions = 0, decisions_differ = 0;
    for (uint32_t l = 0; l < r->model.n_moe_layers; l++) {
        const double *layer = s + SUMS_FIXED + (size_t)l * SUMS_PER_LAYER;
        decisions += layer[LAYER_TOKENS];
        decisions_differ += layer[LAYER_DIFFER];
        if (!layers_out) continue;
        layers_out[l].tokens = layer[LAYER_TOKENS];
        layers_out[l].overlap = mean(layer[LAYER_OVERLAP], layer[LAYER_TOKENS]);
        layers_out[l].differ = mean(layer[LAYER_DIFFER], layer[LAYER_TOKENS]);
    }
    *metrics_out = (wb_replay_metrics){
        .rows = s[SUM_ROWS],
        .forced_rows = s[SUM_FORCED],
        .fallback_rows = s[SUM_FALLBACK],
        .padding_rows = s[SUM_PADDING],
        .fallback_share = mean(s[SUM_FALLBACK], s[SUM_ROWS] - s[SUM_PADDING]),
        .token_differ = mean(s[SUM_DIFFER], s[SUM_MEASURED]),
        .decision_differ = mean(decisions_differ, decisions),
        .logprobs = s[SUM_LOGPROBS],
        .kl_k1 = mean(s[SUM_K1], s[SUM_LOGPROBS]),
        .kl_k3 = mean(s[SUM_K3], s[SUM_LOGPROBS]),
        .ratio_outside = mean(s[SUM_OUTSIDE], s[SUM_LOGPROBS]),
    };
}

void wb_replay_get_indexer_metrics(const wb_replay *r, double *fallback_rows_out,
                                   wb_replay_indexer_metrics *layers_out) {
    const double *columns = r->sums + SUMS_FIXED + (size_t)r->model.n_moe_layers * SUMS_PER_LAYER;
    if (fallback_rows_out) *fallback_rows_out = r->sums[SUM_LISTED_FALLBACK];
    for (uint32_t i = 0; layers_out && i < r->model.n_indexer_layers; i++) {
        const double *s = columns + (size_t)wb_indexer_column(&r->model, i) * SUMS_PER_LAYER;
        layers_out[i] = (wb_replay_indexer_metrics){0};
        if (r->n_columns == 0) continue;
        layers_out[i].tokens = s[LAYER_TOKENS];
        layers_out[i].overlap = mean(s[LAYER_OVERLAP], s[LAYER_TOKENS]);
        layers_out[i].differ = mean(s[LAYER_DIFFER], s[LAYER_TOKENS]);
    }
}
