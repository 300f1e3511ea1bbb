/* evaluation.c - the evaluation set: one answer to each of its prompts under the engine's weights, and what
 * they are rewarded with. Nothing of it is trained on or dumped, and no sample of training depends on it. */
#include "grpo.h"

#include <math.h>

/* Tokens are drawn from the distribution, so that the mean of -log p over them is its entropy but for
 * chance. */
static double surprise(const wb_record *record) {
    double sum = 0;
    for (uint32_t i = 0; record->sampling_logprobs && i < record->n_tokens - record->prompt_len; i++)
        sum -= (double)record->sampling_logprobs[i];
    return sum;
}

wb_status answers_measure(wb_comm *comm, const batch *b, answer_metrics *out) {
    double sums[5] = {0, 0, 0, 0, 0};
    for (int64_t i = 0; i < b->n_samples; i++) {
        const wb_record *record = b->samples[i].record;
        sums[0] += 1;
        sums[1] += b->samples[i].reward;
        sums[2] += b->samples[i].reward * b->samples[i].reward;
        sums[3] += record->n_tokens - record->prompt_len;
        sums[4] += surprise(record);
    }
    WB_TRY(wb_comm_all_reduce_f64(comm, sums, 5));
    out->samples = sums[0];
    out->reward = sums[1] / sums[0];
    out->reward_std = sqrt(fmax(0, sums[2] / sums[0] - out->reward * out->reward));
    out->response_tokens = sums[3];
    out->entropy = sums[3] > 0 ? sums[4] / sums[3] : 0;
    return WB_OK;
}

wb_status evaluation_run(wb_engine *engine, wb_comm *comm, const options *o, const task *set,
                         reward_program *program, uint64_t step, struct report *r, bool *evaluated_out,
                         answer_metrics *out) {
    options answers = *o;
    batch b;
    int signal = 0;
    answers.prompts = task_n_prompts(set);
    answers.samples = 1;
    answers.temperature = o->eval_temperature;
    answers.replay_indexer = false; /* nobody trains on them */
    *evaluated_out = false;
    WB_TRY(rollouts_generate(engine, comm, &answers, set, step, r, &signal, &b));
    if (signal != 0) return WB_OK;
    wb_status status = rollouts_reward(comm, &answers, set, program, step, &b);
    /* A program that was killed because a rank was told to stop has left rewards out. */
    if (status == WB_OK) status = interrupt_agree(comm, &signal);
    if (status == WB_OK) status = answers_measure(comm, &b, out);
    *evaluated_out = status == WB_OK && signal == 0;
    batch_free(&b);
    return status;
}
