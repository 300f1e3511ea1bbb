/* metrics_table.c - which numbers a step has: their keys, where they lie in step_metrics, and the line of
 * metrics.jsonl that they make. docs/metrics.md says what they mean. */
#include "metrics.h"
#include "option_table.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stddef.h>

#define REAL(group, key, field) \
    { group, key, REAL_METRIC, offsetof(step_metrics, field) }
#define INTEGER_OF(group, key, field) \
    { group, key, INTEGER_METRIC, offsetof(step_metrics, field) }

const char *const metric_group_names[N_METRIC_GROUPS] = {
    [OF_STEP] = "step",
    [OF_EXPERTS] = "experts",
    [OF_EVALUATION] = "evaluation",
    [OF_FIDELITY] = "fidelity",
    [OF_FIDELITY_OFF] = "fidelity_replay_off",
};

const metric_row metric_rows[] = {
    INTEGER_OF(OF_STEP, "long_prompts", long_prompts),
    REAL(OF_STEP, "reward", answers.reward),
    REAL(OF_STEP, "reward_std", answers.reward_std),
    REAL(OF_STEP, "samples", answers.samples),
    REAL(OF_STEP, "response_tokens", answers.response_tokens),
    REAL(OF_STEP, "prefill_tokens", prefill_tokens),
    REAL(OF_STEP, "taken_over_tokens", taken_over_tokens),
    REAL(OF_STEP, "preemptions", preemptions),
    REAL(OF_STEP, "drafts", drafts),
    REAL(OF_STEP, "accepted_drafts", accepted_drafts),
    REAL(OF_STEP, "loss", loss),
    REAL(OF_STEP, "lr", lr),
    REAL(OF_STEP, "entropy", answers.entropy),
    REAL(OF_STEP, "clip_share", clip_share),
    REAL(OF_STEP, "kl_reference", kl_reference),
    REAL(OF_STEP, "grad_norm", grad_norm),
    REAL(OF_STEP, "routed_differently_updates", routed_differently_updates),
    REAL(OF_STEP, "planned_updates", planned),
    REAL(OF_STEP, "seconds_rollout", seconds_rollout),
    REAL(OF_STEP, "seconds_train", seconds_train),
    REAL(OF_EXPERTS, "balancedness", balancedness),
    REAL(OF_EXPERTS, "balancedness_training", balancedness_training),
    INTEGER_OF(OF_EXPERTS, "epoch", epoch),
    REAL(OF_EXPERTS, "moved_bytes", moved_bytes),
    REAL(OF_EXPERTS, "seconds_rebalance", seconds_rebalance),
    REAL(OF_EVALUATION, "reward", evaluation.reward),
    REAL(OF_EVALUATION, "reward_std", evaluation.reward_std),
    REAL(OF_EVALUATION, "samples", evaluation.samples),
    REAL(OF_EVALUATION, "response_tokens", evaluation.response_tokens),
    REAL(OF_EVALUATION, "entropy", evaluation.entropy),
    REAL(OF_EVALUATION, "seconds", seconds_evaluation),
    REAL(OF_FIDELITY, "routed_differently", routed_differently),
    REAL(OF_FIDELITY, "kl_k1", replay.kl_k1),
    REAL(OF_FIDELITY, "kl_k3", replay.kl_k3),
    REAL(OF_FIDELITY, "ratio_outside", replay.ratio_outside),
    REAL(OF_FIDELITY, "native_token_differ", replay.token_differ),
    REAL(OF_FIDELITY, "native_decision_differ", replay.decision_differ),
    REAL(OF_FIDELITY, "fallback_share", replay.fallback_share),
    REAL(OF_FIDELITY, "listed_differently", lists.differently),
    REAL(OF_FIDELITY, "native_listed_differ", lists.native_differ),
    REAL(OF_FIDELITY, "listed_fallback_share", lists.fallback_share),
    REAL(OF_FIDELITY, "forced_balancedness", replay.forced_balancedness),
    REAL(OF_FIDELITY, "native_balancedness", replay.native_balancedness),
    /* Free routing goes where it would have gone. */
    REAL(OF_FIDELITY_OFF, "routed_differently", off.token_differ),
    REAL(OF_FIDELITY_OFF, "kl_k1", off.kl_k1),
    REAL(OF_FIDELITY_OFF, "kl_k3", off.kl_k3),
    REAL(OF_FIDELITY_OFF, "ratio_outside", off.ratio_outside),
    REAL(OF_FIDELITY_OFF, "native_token_differ", off.token_differ),
    REAL(OF_FIDELITY_OFF, "native_decision_differ", off.decision_differ),
    REAL(OF_FIDELITY_OFF, "fallback_share", off.fallback_share),
    REAL(OF_FIDELITY_OFF, "listed_differently", lists_off.native_differ),
    REAL(OF_FIDELITY_OFF, "native_listed_differ", lists_off.native_differ),
    REAL(OF_FIDELITY_OFF, "listed_fallback_share", lists_off.fallback_share),
    REAL(OF_FIDELITY_OFF, "forced_balancedness", off.forced_balancedness),
    REAL(OF_FIDELITY_OFF, "native_balancedness", off.native_balancedness),
};
const int n_metric_rows = sizeof metric_rows / sizeof metric_rows[0];

bool metrics_have(const step_metrics *m, metric_group group) {
    if (group == OF_EVALUATION) return m->evaluated;
    return group != OF_FIDELITY_OFF || m->compared;
}

static int64_t integer_of(const metric_row *row, const step_metrics *m) {
    return *(const int64_t *)((const char *)m + row->offset);
}

double metric_value(const metric_row *row, const step_metrics *m) {
    if (row->kind == INTEGER_METRIC) return (double)integer_of(row, m);
    return *(const double *)((const char *)m + row->offset);
}

/* The texts that stand among the numbers. */
static int put_texts(const options *o, uint64_t step, json_t *line, json_t *experts) {
    char eplb[OPTION_TEXT_BYTES];
    const char *where = option_text(option_find("--eplb"), o, eplb);
    return json_object_set_new(line, "step", json_integer((json_int_t)step)) |
           json_object_set_new(line, "replay", json_string(wb_replay_mode_name(o->replay))) |
           json_object_set_new(experts, "eplb", json_string(where));
}

static int put_number(json_t *object, const metric_row *row, const step_metrics *m) {
    json_t *number = row->kind == INTEGER_METRIC ? json_integer((json_int_t)integer_of(row, m))
                                                 : json_real(metric_value(row, m));
    return json_object_set_new(object, row->key, number);
}

/* JSON has no other numbers. */
static wb_status check_finite(uint64_t step, const step_metrics *m) {
    for (int i = 0; i < n_metric_rows; i++)
        if (metric_rows[i].kind != INTEGER_METRIC && !isfinite(metric_value(&metric_rows[i], m)))
            return wb_fail(WB_INVALID_ARGUMENT,
                           "metrics of step %" PRIu64 ": %s: expected a finite number, found %g", step,
                           metric_rows[i].key, metric_value(&metric_rows[i], m));
    return WB_OK;
}

/* Objects stand behind the line's own numbers, in the order of the groups. */
wb_status metrics_line(const options *o, uint64_t step, const step_metrics *m, char **line_out) {
    json_t *objects[N_METRIC_GROUPS];
    int failed = 0;
    WB_TRY(check_finite(step, m));
    for (int g = 0; g < N_METRIC_GROUPS; g++) objects[g] = json_object();
    failed |= put_texts(o, step, objects[OF_STEP], objects[OF_EXPERTS]);
    for (int i = 0; i < n_metric_rows; i++)
        failed |= put_number(objects[metric_rows[i].group], &metric_rows[i], m);
    for (int g = OF_STEP + 1; g < N_METRIC_GROUPS; g++)
        if (metrics_have(m, (metric_group)g))
            failed |= json_object_set(objects[OF_STEP], metric_group_names[g], objects[g]);
    char *text = failed ? NULL : json_dumps(objects[OF_STEP], JSON_COMPACT | JSON_REAL_PRECISION(9));
    for (int g = 0; g < N_METRIC_GROUPS; g++) json_decref(objects[g]);
    if (!text) return wb_fail(WB_OUT_OF_MEMORY, "metrics of step %" PRIu64, step);
    *line_out = text;
    return WB_OK;
}
