/* hf_choices.h - the experts that a row chose, and their weights, beside the reference's: of a set where
 * the router asked torch for one, and in bf16 any that errors of its logits can bring in. The reference's
 * own choices as routes that are forced. */
#ifndef HF_CHOICES_H
#define HF_CHOICES_H

#include "tools/hf_rank.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_K = 64 };

/* Choices [K] of a row, moved to where the reference has the same expert, where its order means nothing;
 * those that it does not have fill the places left. */
static void pair_choices(const reference *ref, const int64_t *expected, int64_t *found) {
    if (!ref->unordered) return;
    for (int64_t k = 0; k < ref->K; k++)
        for (int64_t j = 0; j < ref->K; j++)
            if (found[j] == expected[k] && found[j] != expected[j]) {
                const int64_t swap = found[k];
                found[k] = found[j];
                found[j] = swap;
                break;
            }
}

static int descending(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* The weights [K] of a row of the reference's own choices; of a set, in the order of their size. */
static void see_weights(rank_run *run, const float *weights, float *expected) {
    const reference *ref = run->ref;
    const size_t bytes = (size_t)ref->K * sizeof(float);
    float found[MAX_K], sorted[MAX_K];
    if (run->keeps) memcpy(expected, weights, bytes);
    memcpy(found, weights, bytes);
    memcpy(sorted, expected, bytes);
    if (ref->unordered) {
        qsort(found, (size_t)ref->K, sizeof(float), descending);
        qsort(sorted, (size_t)ref->K, sizeof(float), descending);
    }
    see_floats(&run->outcomes[ROUTER_WEIGHTS], ref->K, found, sorted);
}

/* What an expert is chosen by; a sigmoid makes an error of its logit four times smaller, at least. */
static double selection_key(const reference *ref, const layer_reference *layer, int64_t row, int64_t e) {
    const double logit = (double)layer->logits[row * ref->E + e];
    if (!layer->bias) return logit;
    /* Of sqrt(softplus) the slope is below 1/3. */
    if (ref->config.router.type == WB_ROUTER_SQRTSOFTPLUS)
        return 3 * (sqrt(log1p(exp(-fabs(logit))) + fmax(logit, 0)) + (double)layer->bias[e]);
    return 4 * (1 / (1 + exp(-logit)) + (double)layer->bias[e]);
}

/* The sum of a group's two largest keys, or the largest alone where experts are chosen by logits; such a
 * score is off by as many errors as there are keys in it. */
static double group_score(const reference *ref, const layer_reference *layer, int64_t row, int64_t group) {
    const int64_t size = ref->E / ref->config.router.n_group;
    double first = -INFINITY, second = -INFINITY;
    for (int64_t e = group * size; e < (group + 1) * size; e++) {
        const double key = selection_key(ref, layer, row, e);
        second = fmax(second, fmin(key, first));
        first = fmax(first, key);
    }
    return layer->bias && size > 1 ? first + second : first;
}

/* Whether errors can take the group of `expected` out of those that are chosen from, or bring that of `found`
 * in: the reference's score of it is as close to one on the other side as two errors of scores. */
static bool groups_are_close(const reference *ref, const layer_reference *layer, int64_t row,
                             int64_t expected, int64_t found) {
    const int64_t n = ref->config.router.n_group, kept = ref->config.router.topk_group;
    if (n <= 1) return false;
    const double bound = 2 * (layer->bias && ref->E > n ? 2 : 1) * ref->bounds[ROUTER_LOGITS];
    const double lost = group_score(ref, layer, row, expected / (ref->E / n)),
                 won = group_score(ref, layer, row, found / (ref->E / n));
    for (int64_t g = 0; g < n; g++) {
        const double score = group_score(ref, layer, row, g);
        int64_t rank = 0;
        for (int64_t other = 0; other < n; other++) rank += group_score(ref, layer, row, other) > score;
        if (rank >= kept && lost - score <= bound) return true;
        if (rank < kept && won < score && score - won <= bound) return true;
    }
    return false;
}

/* The choices of a row in layer l. In bf16 the reference's key of another expert than its own is as close as
 * two errors can bring them, or their groups are. */
static void see_choices(rank_run *run, int64_t l, int64_t row, int64_t *found) {
    const reference *ref = run->ref;
    const layer_reference *layer = &ref->layers[l];
    const int64_t *expected = layer->ids + row * ref->K;
    pair_choices(ref, expected, found);
    for (int64_t k = 0; k < ref->K; k++) {
        const bool close =
            ref->dtype != WB_F32 && found[k] < ref->E &&
            (fabs(selection_key(ref, layer, row, found[k]) - selection_key(ref, layer, row, expected[k])) <=
                 2 * ref->bounds[ROUTER_LOGITS] ||
             groups_are_close(ref, layer, row, expected[k], found[k]));
        see_id(&run->outcomes[ROUTER_IDS], close ? expected[k] : found[k], expected[k]);
    }
}

/* Those of a tensor of routes. */
static void see_routes(rank_run *run, const routes *chosen) {
    const reference *ref = run->ref;
    for (int64_t i = 0; i < chosen->n; i += ref->K) {
        int64_t found[MAX_K];
        for (int64_t k = 0; k < ref->K; k++) found[k] = routes_get(chosen, i + k);
        see_choices(run, i / ref->K % ref->L, reference_row(run, i / ref->K / ref->L), found);
    }
}

/* The reference's choices, or those of its forced pass, for this rank's rows. */
static wb_status put_choices(const rank_run *run, routes *r, bool forced) {
    const reference *ref = run->ref;
    for (int64_t i = 0; i < r->n; i++) {
        const int64_t k = i % ref->K, l = i / ref->K % ref->L, row = reference_row(run, i / ref->K / ref->L);
        const layer_reference *layer = &ref->layers[l];
        routes_set(r, i, (forced ? layer->forced_ids : layer->ids)[row * ref->K + k]);
    }
    return routes_upload(r);
}

#endif
