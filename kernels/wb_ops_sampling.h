/* wb_ops_sampling.h - log-probabilities of tokens, and the tokens that logits draw.
 *
 * What all ops have in common is said in wb_kernels.h. */
#ifndef WB_OPS_SAMPLING_H
#define WB_OPS_SAMPLING_H

#include "wb_operands.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What the tokens of T rows were, or would have been, drawn from: the softmax of logits / temperature over
 * the kept tokens of each row. */
typedef struct wb_distribution {
    /* device [T], finite and above 0; NULL: 1 */
    const float *temperature;
    /* device: row t keeps kept_ids[kept_start[t] .. kept_start[t + 1]), ascending and below V, or the whole
     * vocabulary where there are none; kept_start: device [T + 1]; both NULL: no row is limited */
    const uint32_t *kept_ids;
    const int64_t *kept_start;
} wb_distribution;

/* logprobs[t] = log of the probability of targets[t] in row t of `of`; 0 where targets[t] < 0. `of` NULL:
 * temperature 1 over the whole vocabulary. targets: device [T]; a target is one of its row's kept tokens.
 * The kept tokens are summed in the order of their ids, in parts of 2048 of which each has exponentials of
 * its own largest (sample_rules.h), so that a row that keeps every token, one by one, and a row that is not
 * limited have the same bits, and so have temperature 1 and none.
 * Backward: dlogits[t,:] = dlogprobs[t] / temperature * (onehot - softmax), zeros outside of the kept tokens
 * and where targets[t] < 0; may be logits. */
typedef wb_status wb_logprob_forward_fn(wb_device *dev, int64_t T, int64_t V, const float *logits,
                                        const int32_t *targets, const wb_distribution *of, float *logprobs);
typedef wb_status wb_logprob_backward_fn(wb_device *dev, int64_t T, int64_t V, const float *logits,
                                         const int32_t *targets, const wb_distribution *of,
                                         const float *dlogprobs, float *dlogits);

/* The smallest temperature that is not greedy: below it logits / temperature leave the range of f32. */
#define WB_MIN_TEMPERATURE 1e-6f

/* How one row is sampled. */
typedef struct wb_sample_params {
    /* 0: greedy, lowest id on a tie; else at least WB_MIN_TEMPERATURE */
    float temperature;
    /* 0: no limit */
    int32_t top_k;
    /* 1: no limit; keeps the smallest set, by probability descending, that reaches top_p */
    float top_p;
    /* this row's random number in [0, 1) */
    float uniform;
} wb_sample_params;

/* How many tokens a row that is sampled so can keep; 0: no limit is named. A top_k that the vocabulary does
 * not reach is a limit too, which keeps all V tokens by name: who has the params and not V cannot tell it
 * from one that was not told. */
static inline int64_t wb_sample_max_kept(const wb_sample_params *params, int64_t V) {
    if (params->temperature == 0) return 1;
    if (params->top_k > 0 && params->top_k < V) return params->top_k;
    return params->top_k > 0 || params->top_p < 1 ? V : 0;
}

/* Where the tokens that top-k and top-p keep are to be told. */
typedef struct wb_sample_kept {
    /* host [B + 1]: row b has room for the ids from start[b] to start[b + 1]: wb_sample_max_kept at least, or
     * none where they are not wanted */
    const int64_t *start;
    /* device, out: from start[b] on, ascending */
    uint32_t *ids;
    /* device [B], out: how many; 0 where there is no room */
    int32_t *counts;
} wb_sample_kept;

/* One token a row from logits[B,V]. params: host [B]. kept: or NULL. tokens, logprobs: device [B]; logprobs
 * are of the distribution sampled from, the same bits as wb_logprob_forward_fn gives for the temperature and
 * the kept tokens. Greedy is a point mass: its token alone is kept, with log-probability 0. INVALID_ARGUMENT
 * names the first row whose logits hold a NaN or +inf, or are all -inf; on CUDA the token of such a row is
 * -1. */
typedef wb_status wb_sample_fn(wb_device *dev, int64_t B, int64_t V, const float *logits,
                               const wb_sample_params *params, const wb_sample_kept *kept, int32_t *tokens,
                               float *logprobs);

#ifdef __cplusplus
}
#endif
#endif
