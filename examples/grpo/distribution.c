/* distribution.c - what a batch's tokens were sampled from, for the trainer: every log-probability of a
 * ratio, of the KL to the rollout and of the KL to the reference is of this distribution, logits /
 * temperature over the tokens that top-k and top-p kept. Refuses: records that were sampled otherwise than
 * the run samples, or from fewer tokens than they tell; their ratios would be of two distributions. */
#include "train_step.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <string.h>

/* ---- what is refused ------------------------------------------------------------------------- */

static wb_status check_values(const options *o, const wb_record *record) {
    const wb_sampling *found = record->sampling;
    if (!found)
        return wb_fail(WB_MISMATCH, "record %s: expected how it was sampled, found nothing recorded",
                       record->rid);
    /* As the engine was asked: f32. */
    if (found->temperature != (float)o->temperature)
        return wb_fail(WB_MISMATCH, "record %s: temperature: expected %g, found %g", record->rid,
                       o->temperature, (double)found->temperature);
    if ((int64_t)found->top_k != o->top_k)
        return wb_fail(WB_MISMATCH, "record %s: top-k: expected %" PRId64 ", found %" PRIu32, record->rid,
                       o->top_k, found->top_k);
    if (found->top_p != (float)o->top_p)
        return wb_fail(WB_MISMATCH, "record %s: top-p: expected %g, found %g", record->rid, o->top_p,
                       (double)found->top_p);
    return WB_OK;
}

wb_status distribution_check(const options *o, int64_t vocab_size, const wb_record *record) {
    WB_TRY(check_values(o, record));
    if (record->n_tokens == record->prompt_len) return WB_OK;
    const wb_sample_params params = {(float)o->temperature, (int32_t)o->top_k, (float)o->top_p, 0};
    if (wb_sample_max_kept(&params, vocab_size) > 0 && !record->mask_ends)
        return wb_fail(WB_MISMATCH,
                       "record %s: top-k %" PRId64 ", top-p %g: expected the kept tokens (sampling_mask), "
                       "found none recorded",
                       record->rid, o->top_k, o->top_p);
    if (!record->sampling_logprobs)
        return wb_fail(WB_MISMATCH, "record %s: expected sampling_logprobs, found none recorded",
                       record->rid);
    return WB_OK;
}

/* ---- a micro-batch --------------------------------------------------------------------------- */

static int64_t count_kept(const wb_record *record) {
    const uint32_t n = record->n_tokens - record->prompt_len;
    return record->mask_ends && n > 0 ? record->mask_ends[n - 1] : 0;
}

/* The kept tokens of a sample's rows, from *kept on. Row `first` predicts token 1. */
static void fill_kept(const wb_record *record, int64_t first, micro_batch *mb, int64_t *kept) {
    const int64_t before = *kept, n = count_kept(record);
    if (n > 0) memcpy(mb->kept_ids + before, record->mask_ids, (size_t)n * sizeof *mb->kept_ids);
    for (uint32_t p = 0; p + 1 < record->n_tokens; p++) {
        const bool sampled = p + 1 >= record->prompt_len;
        if (sampled && record->mask_ends) *kept = before + record->mask_ends[p + 1 - record->prompt_len];
        mb->kept_start[first + p + 1] = *kept;
    }
}

wb_status distribution_fill(wb_owner *owner, micro_batch *mb) {
    int64_t n = 0, kept = 0;
    WB_TRY(WB_OWN(owner, mb->temperature, (size_t)mb->T, "micro-batch"));
    for (int64_t s = 0; s < mb->n_seqs; s++) {
        const wb_record *record = record_of(mb->samples[s]);
        for (int32_t t = mb->seq_start[s]; t < mb->seq_start[s + 1]; t++)
            mb->temperature[t] = record->sampling->temperature;
        n += count_kept(record);
    }
    if (n == 0) return WB_OK;
    WB_TRY(WB_OWN(owner, mb->kept_ids, (size_t)n, "kept tokens"));
    WB_TRY(WB_OWN(owner, mb->kept_start, (size_t)mb->T + 1, "kept tokens"));
    for (int64_t s = 0; s < mb->n_seqs; s++)
        fill_kept(record_of(mb->samples[s]), mb->seq_start[s], mb, &kept);
    return WB_OK;
}
