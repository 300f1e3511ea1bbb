/* metrics.c - the fidelity of a step: native choice against forced ids and the load that each of them makes,
 * log-probabilities of rollout against trainer. Owns: the sums behind the metrics and what counts once.
 * Refuses: means of nothing (they are 0). */
#include "replay_state.h"

#include <inttypes.h>
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

/* [E] of one map in MoE layer l. */
static double *load_of(const wb_replay *r, uint32_t l, int map) {
    const size_t L = r->model.n_moe_layers, E = r->model.num_experts;
    return r->sums + SUMS_FIXED + (L + r->n_columns) * SUMS_PER_LAYER +
           ((size_t)l * N_MAPS + (size_t)map) * E;
}

static void count_load(const wb_replay *r, uint32_t K, const uint8_t *ids, double *load) {
    for (uint32_t k = 0; k < K; k++) load[wb_route_id(ids, r->dtype, k)] += 1;
}

void wb_replay_measure_rows(wb_replay *r, const layer_rows *s, const uint8_t *native,
                            size_t native_stride_bytes) {
    const uint32_t K = s->K;
    micro_batch *b = s->batch;
    double *sums = r->sums + SUMS_FIXED + (size_t)s->layer * SUMS_PER_LAYER;
    double *forced_load = load_of(r, s->layer, MAP_FORCED), *native_load = load_of(r, s->layer, MAP_NATIVE);
    for (uint32_t i = 0; i < s->rows; i++) {
        if (!unmeasured(s, i)) continue;
        uint32_t t = s->row + i;
        const uint8_t *forced = s->ids + i * r->row_bytes, *chosen = native + i * native_stride_bytes;
        uint32_t common = wb_route_common(forced, chosen, r->dtype, K);
        count_load(r, K, forced, forced_load);
        count_load(r, K, chosen, native_load);
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

/* Mean over maximum; 0 where there is none. */
static double balancedness(const double *load, uint32_t n) {
    double sum = 0, largest = 0;
    for (uint32_t e = 0; e < n; e++) {
        sum += load[e];
        if (load[e] > largest) largest = load[e];
    }
    return mean(sum / n, largest);
}

wb_status wb_replay_get_load(const wb_replay *r, int32_t layer, double *forced_out, double *native_out) {
    if (!r || !forced_out || !native_out)
        return wb_fail(WB_INVALID_ARGUMENT, "replay: handle or place for the load is NULL");
    if (layer < 0 || (uint32_t)layer >= r->model.n_moe_layers)
        return wb_fail(WB_INVALID_ARGUMENT, "replay: load of MoE layer %" PRId32 ": the model has %" PRIu32,
                       layer, r->model.n_moe_layers);
    const size_t bytes = r->model.num_experts * sizeof(double);
    memcpy(forced_out, load_of(r, (uint32_t)layer, MAP_FORCED), bytes);
    memcpy(native_out, load_of(r, (uint32_t)layer, MAP_NATIVE), bytes);
    return WB_OK;
}

void wb_replay_get_metrics(const wb_replay *r, wb_replay_metrics *metrics_out,
                           wb_replay_layer_metrics *layers_out) {
    const uint32_t n_weighted = wb_route_weighted(&r->model); /* the others are work for no rank */
    const double *s = r->sums;
    double decisions = 0, decisions_differ = 0, n_loads = 0, balance[N_MAPS] = {0};
    for (uint32_t l = 0; l < r->model.n_moe_layers; l++) {
        const double *layer = s + SUMS_FIXED + (size_t)l * SUMS_PER_LAYER;
        decisions += layer[LAYER_TOKENS];
        decisions_differ += layer[LAYER_DIFFER];
        const double forced = balancedness(load_of(r, l, MAP_FORCED), n_weighted),
                     native = balancedness(load_of(r, l, MAP_NATIVE), n_weighted);
        n_loads += layer[LAYER_TOKENS] > 0;
        balance[MAP_FORCED] += forced;
        balance[MAP_NATIVE] += native;
        if (!layers_out) continue;
        layers_out[l].tokens = layer[LAYER_TOKENS];
        layers_out[l].overlap = mean(layer[LAYER_OVERLAP], layer[LAYER_TOKENS]);
        layers_out[l].differ = mean(layer[LAYER_DIFFER], layer[LAYER_TOKENS]);
        layers_out[l].forced_balancedness = forced;
        layers_out[l].native_balancedness = native;
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
        .forced_balancedness = mean(balance[MAP_FORCED], n_loads),
        .native_balancedness = mean(balance[MAP_NATIVE], n_loads),
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
