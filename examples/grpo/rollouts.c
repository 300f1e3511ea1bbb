/* rollouts.c - one batch of samples: generated and rewarded. Group g of a step is generated on rank g
 * mod R; a sample's random stream depends on (seed, step, group, sample) alone. */
#include "grpo.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static wb_status submit_group(wb_engine *engine, const options *o, const task *t, uint64_t step,
                              uint64_t group) {
    uint32_t *prompt, n, stop = o->stop_token >= 0 ? (uint32_t)o->stop_token : task_stop_token(t);
    WB_TRY(task_prompt(t, step, group, &prompt, &n));
    wb_request request = wb_request_default();
    request.group = group;
    request.tokens = prompt;
    request.n_tokens = n;
    request.temperature = (float)o->temperature;
    request.top_k = (int32_t)o->top_k;
    request.top_p = (float)o->top_p;
    request.max_tokens = (uint32_t)o->max_tokens;
    request.stop_tokens = &stop;
    request.n_stop = stop != UINT32_MAX;
    wb_status status = WB_OK;
    for (uint32_t i = 0; status == WB_OK && i < o->samples; i++) {
        char rid[64];
        snprintf(rid, sizeof rid, "s%" PRIu64 "-g%" PRIu64 "-%" PRIu32, step, group, i);
        request.rid = rid;
        request.sample = i;
        request.seed = ((o->seed * 1000003 + step) * 1000003 + group) * 1000003 + i;
        status = wb_engine_submit(engine, &request);
    }
    free(prompt);
    return status;
}

/* Completions come in the order in which they end; samples are kept group-major. */
static int64_t collect(wb_engine *engine, const options *o, int n_ranks, batch *b) {
    int64_t n = 0;
    for (wb_completion *c; (c = wb_engine_poll(engine)); n++) {
        int64_t local_group = (int64_t)c->record.group / n_ranks;
        b->samples[local_group * o->samples + c->record.sample].completion = c;
    }
    return n;
}

wb_status rollouts_generate(wb_engine *engine, wb_comm *comm, const options *o, const task *t, uint64_t step,
                            report *r, batch *batch_out) {
    batch b = {.n_groups = (o->prompts - wb_comm_rank(comm) + wb_comm_size(comm) - 1) / wb_comm_size(comm)};
    b.n_samples = b.n_groups * o->samples;
    wb_status status = WB_NEW(b.samples, (size_t)b.n_samples, "samples");
    for (int64_t g = 0; status == WB_OK && g < b.n_groups; g++)
        status = submit_group(engine, o, t, step, (uint64_t)(g * wb_comm_size(comm) + wb_comm_rank(comm)));
    WB_GOTO(wb_comm_agree(comm, status), drop_batch);
    int64_t done = 0;
    for (bool busy = true; busy;) {
        WB_GOTO(wb_engine_step(engine, &busy), drop_batch);
        done += collect(engine, o, wb_comm_size(comm), &b);
        report_progress(r, step, "rollout", done, b.n_samples);
    }
    *batch_out = b;
    return WB_OK;
drop_batch:
    batch_free(&b);
    return status;
}

static wb_status builtin_rewards(const task *t, batch *b) {
    for (int64_t i = 0; i < b->n_samples; i++)
        WB_TRY(task_reward(t, &b->samples[i].completion->record, &b->samples[i].reward));
    return WB_OK;
}

static wb_status command_rewards(const options *o, const task *t, uint64_t step, batch *b) {
    wb_owner owner = {0};
    double *rewards;
    const wb_record **records;
    wb_status status;
    WB_GOTO(WB_OWN(&owner, rewards, (size_t)b->n_samples, "rewards"), close_owner);
    WB_GOTO(WB_OWN(&owner, records, (size_t)b->n_samples, "rewards"), close_owner);
    for (int64_t i = 0; i < b->n_samples; i++) records[i] = &b->samples[i].completion->record;
    WB_GOTO(reward_command(o->reward_cmd, t, step, b->n_samples, records, rewards), close_owner);
    for (int64_t i = 0; i < b->n_samples; i++) b->samples[i].reward = rewards[i];
close_owner:
    wb_owner_close(&owner);
    return status;
}

/* (reward - mean) / (standard deviation + 1e-6) within the group. */
static void group_advantages(sample *samples, int64_t n) {
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < n; i++) mean += samples[i].reward / (double)n;
    for (int64_t i = 0; i < n; i++)
        variance += (samples[i].reward - mean) * (samples[i].reward - mean) / (double)n;
    for (int64_t i = 0; i < n; i++)
        samples[i].advantage = (samples[i].reward - mean) / (sqrt(variance) + 1e-6);
}

wb_status rollouts_reward(wb_comm *comm, const options *o, const task *t, uint64_t step, batch *b) {
    wb_status status = o->reward_cmd ? command_rewards(o, t, step, b) : builtin_rewards(t, b);
    WB_TRY(wb_comm_agree(comm, status));
    for (int64_t g = 0; g < b->n_groups; g++) group_advantages(b->samples + g * o->samples, o->samples);
    return WB_OK;
}

void batch_free(batch *b) {
    for (int64_t i = 0; b->samples && i < b->n_samples; i++) wb_completion_free(b->samples[i].completion);
    free(b->samples);
    *b = (batch){0};
}
