/* trained_once.c - the proof that a step trained on each of its samples once: however groups came to the
 * ranks and were packed, all ranks together have trained on each once. Refuses: a step that skipped a sample
 * or took it twice, before its weights are handed on or saved. */
#include "train_step.h"

#include <inttypes.h>

void trained_count(const trainer *t, const micro_batch *mb, double *trained) {
    for (int64_t s = 0; s < mb->n_seqs; s++) {
        const wb_record *record = record_of(mb->samples[s]);
        trained[(int64_t)record->group * t->o->samples + record->sample]++;
    }
}

wb_status trained_check(const trainer *t, double *trained) {
    int64_t n = t->o->prompts * t->o->samples;
    WB_TRY(wb_comm_all_reduce_f64(t->comm, trained, (size_t)n));
    for (int64_t i = 0; i < n; i++)
        if (trained[i] != 1)
            return wb_fail(WB_MISMATCH,
                           "step %" PRIu64 ": group %" PRId64 ", sample %" PRId64
                           ": expected to be trained on once, found %.0f times",
                           t->step, i / t->o->samples, i % t->o->samples, trained[i]);
    return WB_OK;
}
