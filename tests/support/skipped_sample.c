/* skipped_sample.c - a defect, planted: waybill-grpo-skips never counts the first sample of a micro-batch, as
 * if it had not been trained on. Linked with --wrap=trained_count; check_resume.sh must see the step fail. */
#include "../../examples/grpo/train_step.h"

void __real_trained_count(const trainer *t, const micro_batch *mb, double *trained);
void __wrap_trained_count(const trainer *t, const micro_batch *mb, double *trained);
void __wrap_trained_count(const trainer *t, const micro_batch *mb, double *trained) {
    micro_batch rest = *mb;
    if (rest.n_seqs > 0) {
        rest.samples++;
        rest.n_seqs--;
    }
    __real_trained_count(t, &rest, trained);
}
