/* loss.c - the policy-gradient loss of one sequence and its gradient with respect to the
 * log-probabilities. Owns: the clipped objectives of GRPO (arXiv 2402.03300) by token and GSPO (arXiv
 * 2507.18071) by sequence, with separate clips below and above (DAPO, arXiv 2503.14476), and truncated
 * importance sampling of what the rollout sampled otherwise than the trainer would have
 * (https://fengyao.notion.site/off-policy-rl). A pure function. */
#include "grpo.h"

#include <math.h>

/* -min(r A, clip(r) A): *gradient_out is its derivative by log r, zero where the clip is active. */
static double clipped_objective(const loss_options *o, double ratio, double advantage, double *gradient_out,
                                bool *clipped_out) {
    double bounded = fmin(fmax(ratio, 1 - o->clip_low), 1 + o->clip_high);
    bool clipped = bounded * advantage < ratio * advantage;
    *clipped_out = clipped;
    *gradient_out = clipped ? 0 : -ratio * advantage;
    return -(clipped ? bounded : ratio) * advantage;
}

/* k3 estimate of KL(policy || reference) for one token, and its derivative by the policy's
 * log-probability. */
static double kl_token(double logprob, double reference, double *gradient_out) {
    double log_r = reference - logprob;
    *gradient_out = 1 - exp(log_r);
    return exp(log_r) - log_r - 1;
}

/* How much likelier the trainer's first forward makes the token than the rollout did, which counts for more
 * than `tis_cap` nowhere: a weight without a bound would let a few tokens be the gradient. */
static double importance(const loss_options *o, const loss_logprobs *logprobs, size_t t) {
    if (!logprobs->rollout) return 1;
    return fmin(exp((double)logprobs->old[t] - (double)logprobs->rollout[t]), o->tis_cap);
}

/* The policy's part of one token by its own ratio, weighted; its derivative into *gradient_out. */
static double token_objective(const loss_options *o, const loss_logprobs *logprobs, size_t t,
                              double advantage, double *gradient_out, bool *clipped_out) {
    const double weight = importance(o, logprobs, t);
    const double ratio = exp((double)logprobs->now[t] - (double)logprobs->old[t]);
    const double loss = clipped_objective(o, ratio, advantage, gradient_out, clipped_out);
    *gradient_out *= weight;
    return weight * loss;
}

void loss_sequence(const loss_options *o, size_t n, const loss_logprobs *logprobs, double advantage,
                   float *dlogprobs_out, loss_sums *sums) {
    const bool by_sequence = o->ratio == RATIO_SEQUENCE;
    double mean_log_ratio = 0, sequence_gradient = 0;
    bool clipped = false;
    const double scale = by_sequence && n > 0 ? o->sequence_scale / (double)n : o->token_scale;
    if (by_sequence && n > 0) {
        for (size_t t = 0; t < n; t++)
            mean_log_ratio += ((double)logprobs->now[t] - (double)logprobs->old[t]) / (double)n;
        sums->loss += o->sequence_scale *
                      clipped_objective(o, exp(mean_log_ratio), advantage, &sequence_gradient, &clipped);
    }
    for (size_t t = 0; t < n; t++) {
        double gradient = sequence_gradient, kl_gradient;
        if (!by_sequence)
            sums->loss += scale * token_objective(o, logprobs, t, advantage, &gradient, &clipped);
        if (logprobs->reference) {
            double kl = kl_token(logprobs->now[t], logprobs->reference[t], &kl_gradient);
            sums->kl_reference += kl;
            sums->loss += scale * o->kl_coef * kl;
            gradient += o->kl_coef * kl_gradient;
        }
        sums->clipped += clipped;
        sums->tokens += 1;
        dlogprobs_out[t] = (float)(scale * gradient);
    }
}
