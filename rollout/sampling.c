/* sampling.c - see sampling.h. Refuses: the choice of the token from the logits, which is an op of the
 * device. */
#include "sampling.h"
#include "wb_check.h"
#include "wb_random.h"

#include <inttypes.h>
#include <stdio.h>

wb_status wb_sampler_open(wb_workspace *workspace, int64_t vocab_size, size_t max_sampled,
                          wb_sampler *sampler) {
    const wb_op_sizes most = {.vocab_size = vocab_size, .sampled = (int64_t)max_sampled};
    sampler->device = workspace->device;
    sampler->vocab_size = vocab_size;
    WB_TRY(WB_OWN(&workspace->host, sampler->params, max_sampled, "engine sampling"));
    WB_TRY(WB_OWN(&workspace->host, sampler->kept_start, max_sampled + 1, "engine sampling"));
    return workspace->device->reserve_scratch(workspace->device, &most);
}

int64_t wb_sampler_max_kept(const wb_sampler *sampler, const wb_sequence *s) {
    return s->mask_ends ? wb_sample_max_kept(&s->params, sampler->vocab_size) : 0;
}

float wb_sampling_uniform(uint64_t seed, uint32_t position) {
    return wb_random_unit(wb_random_at(seed, position));
}

static void set_params(wb_sampler *sampler, const wb_step_batch *batch) {
    for (int64_t i = 0; i < batch->n_sampled; i++) {
        const wb_sequence *s = wb_sequence_of(batch->sampled[i]);
        sampler->params[i] = s->params;
        sampler->params[i].uniform = wb_sampling_uniform(s->seed, wb_step_batch_position(batch, i));
        sampler->kept_start[i + 1] = sampler->kept_start[i] + wb_sampler_max_kept(sampler, s);
    }
}

/* Every row is drawn from the whole distribution at temperature 1: then the log-probabilities of the sampling
 * are those at temperature 1, the same bits, and the logits need not be read again for them. */
static bool all_plain(const wb_sampler *sampler, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (sampler->params[i].temperature != 1 ||
            wb_sample_max_kept(&sampler->params[i], sampler->vocab_size) > 0)
            return false;
    return true;
}

wb_status wb_sample_step(wb_sampler *sampler, const wb_step_batch *batch, const float *logits,
                         const wb_step_results *results, size_t *n_kept_out) {
    wb_device *dev = sampler->device;
    const int64_t V = sampler->vocab_size, n = batch->n_sampled;
    const wb_results_view to = wb_step_results_on_device(results);
    set_params(sampler, batch);
    *n_kept_out = (size_t)sampler->kept_start[n];
    if (n == 0) return WB_OK;
    const wb_sample_kept kept = {sampler->kept_start, to.kept_ids, to.kept_counts};
    WB_TRY(dev->sample(dev, n, V, logits, sampler->params, &kept, to.tokens, to.sampling_logprobs));
    if (all_plain(sampler, n))
        return dev->copy(dev, to.logprobs, to.sampling_logprobs, (size_t)n * sizeof *to.logprobs);
    /* Log-probabilities at temperature 1 come from the op that training uses: the same bits. */
    return dev->logprob_forward(dev, n, V, logits, to.tokens, NULL, to.logprobs);
}

/* sample() reports a row of the batch; repeat it row by row to name the request. The token is fetched because
 * a backend may tell only then. A request of another rank is known to that one alone, which can abort it. */
wb_status wb_sample_name_failure(const wb_sampler *sampler, const wb_step_batch *batch, const float *logits,
                                 const wb_step_results *results, wb_status failure) {
    wb_device *dev = sampler->device;
    const int64_t V = sampler->vocab_size;
    const wb_results_view to = wb_step_results_on_device(results);
    if (failure != WB_INVALID_ARGUMENT) return failure;
    for (int64_t i = 0; i < batch->n_sampled; i++) {
        const wb_sequence *s = wb_sequence_of(batch->sampled[i]);
        char home[32] = "";
        int32_t token;
        wb_status status = dev->sample(dev, 1, V, logits + i * V, &sampler->params[i], NULL, to.tokens,
                                       to.sampling_logprobs);
        if (status == WB_OK) status = dev->to_host(dev, &token, to.tokens, sizeof token);
        if (status == WB_OK) continue;
        if (s->home != s->host) snprintf(home, sizeof home, " of rank %" PRId32, s->home);
        return wb_fail_context(status, "request %s%s: token at position %" PRIu32, s->completion.record.rid,
                               home, wb_step_batch_position(batch, i));
    }
    return failure;
}

wb_status wb_sample_check_kept(const wb_step_batch *batch, const wb_step_results *results) {
    const int32_t *counts = wb_step_results_on_host(results).kept_counts;
    uint32_t n_kept = 0; /* of a sequence, with those of its drafts */
    for (int64_t i = 0; i < batch->n_sampled; i++) {
        const wb_sequence *s = wb_sequence_of(batch->sampled[i]);
        uint32_t *ids;
        n_kept = i > 0 && batch->sampled[i] == batch->sampled[i - 1] ? n_kept : 0;
        n_kept += (uint32_t)counts[i];
        if (s->mask_ends) WB_TRY(wb_sequence_next_mask(s, n_kept, &ids));
    }
    return WB_OK;
}
