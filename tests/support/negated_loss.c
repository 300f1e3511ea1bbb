/* negated_loss.c - a defect, planted: waybill-grpo-negated trains away from the reward. Linked with
 * --wrap=loss_sequence; check_learning.sh must catch it. */
#include "../../examples/grpo/grpo.h"

void __real_loss_sequence(const loss_options *o, size_t n, const loss_logprobs *logprobs, double advantage,
                          float *dlogprobs_out, loss_sums *sums);
void __wrap_loss_sequence(const loss_options *o, size_t n, const loss_logprobs *logprobs, double advantage,
                          float *dlogprobs_out, loss_sums *sums);
void __wrap_loss_sequence(const loss_options *o, size_t n, const loss_logprobs *logprobs, double advantage,
                          float *dlogprobs_out, loss_sums *sums) {
    __real_loss_sequence(o, n, logprobs, -advantage, dlogprobs_out, sums);
}
