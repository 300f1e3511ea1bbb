/* rollouts.c - one batch of samples: generated and rewarded. Groups come from a queue that all ranks share
 * (group_queue.c); a sample's random stream depends on (seed, step, group, sample) alone. */
#include "grpo.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- generating ------------------------------------------------------------------------------ */

static wb_status submit_group(wb_engine *engine, const options *o, const task *t, uint64_t step,
                              uint64_t group) {
    uint32_t *prompt, n;
    WB_TRY(task_prompt(t, step, group, &prompt, &n));
    wb_request request = wb_request_default();
    request.group = group;
    request.tokens = prompt;
    request.n_tokens = n;
    request.temperature = (float)o->temperature;
    request.top_k = (int32_t)o->top_k;
    request.top_p = (float)o->top_p;
    request.return_sampling_mask = true; /* the trainer takes the same distribution */
    request.return_indexer = o->replay_indexer;
    request.max_tokens = (uint32_t)o->max_tokens;
    request.stop_tokens = task_stop_tokens(t, &request.n_stop);
    wb_status status = WB_OK;
    for (uint32_t i = 0; status == WB_OK && i < o->samples; i++) {
        char rid[64];
        snprintf(rid, sizeof rid, "%s%" PRIu64 "-g%" PRIu64 "-%" PRIu32, task_is_evaluation(t) ? "e" : "s",
                 step, group, i);
        request.rid = rid;
        request.sample = i;
        request.seed = ((o->seed * 1000003 + step) * 1000003 + group) * 1000003 + i;
        status = wb_engine_submit(engine, &request);
    }
    free(prompt);
    return status;
}

/* What a rank tells the others between two steps of the engine. */
typedef struct rank_word {
    int64_t room;     /* groups that it could run now */
    int64_t signal;   /* that it was told to stop by; 0: none */
    int64_t finished; /* samples */
    int64_t tokens;   /* generated */
} rank_word;

typedef struct generation {
    wb_engine *engine;
    wb_comm *comm;
    const options *o;
    const task *task;
    uint64_t step;
    batch *b;
    uint64_t decoded_before; /* the engine's count at the start */
    int64_t next_group, finished;
    wb_owner memory;
    rank_word *words; /* [R] */
    int64_t *room;    /* [R] */
} generation;

static wb_status generation_open(generation *g) {
    size_t n_ranks = (size_t)wb_comm_size(g->comm);
    size_t n_groups = (size_t)g->o->prompts, n_samples = n_groups * (size_t)g->o->samples;
    WB_TRY(WB_NEW(g->b->groups, n_groups, "groups"));
    WB_TRY(WB_NEW(g->b->samples, n_samples, "samples"));
    WB_TRY(WB_OWN(&g->memory, g->words, n_ranks, "ranks"));
    WB_TRY(WB_OWN(&g->memory, g->room, n_ranks, "ranks"));
    g->decoded_before = wb_engine_get_stats(g->engine).decode_tokens;
    return WB_OK;
}

/* Completions come in the order in which they end; samples are kept group-major. */
static void collect(generation *g) {
    for (wb_completion *c; (c = wb_engine_poll(g->engine)); g->finished++) {
        int64_t at = batch_first_group(g->b, (int64_t)c->record.group);
        g->b->samples[at * g->o->samples + c->record.sample] =
            (sample){.completion = c, .record = &c->record};
    }
}

static wb_status exchange_words(generation *g, rank_word *sum_out) {
    wb_engine_stats stats = wb_engine_get_stats(g->engine);
    rank_word own = {.signal = interrupt_signal(), .finished = g->finished};
    own.room = group_queue_room(g->o->max_running, stats.waiting + stats.running, g->o->samples);
    own.tokens = (int64_t)(stats.decode_tokens - g->decoded_before);
    WB_TRY(wb_comm_all_gather(g->comm, &own, sizeof own, g->words));
    *sum_out = (rank_word){0};
    for (int r = 0; r < wb_comm_size(g->comm); r++) {
        g->room[r] = g->words[r].room;
        if (sum_out->signal == 0) sum_out->signal = g->words[r].signal;
        sum_out->finished += g->words[r].finished;
        sum_out->tokens += g->words[r].tokens;
    }
    return WB_OK;
}

/* The groups that fit now, in the same order on all ranks; this rank submits its own. */
static wb_status hand_out(generation *g) {
    wb_status status = WB_OK;
    bool any = false;
    for (int to;
         g->next_group < g->o->prompts && (to = group_queue_next(wb_comm_size(g->comm), g->room)) >= 0;
         g->next_group++) {
        any = true;
        if (to != wb_comm_rank(g->comm) || status != WB_OK) continue;
        g->b->groups[g->b->n_groups++] = g->next_group;
        status = submit_group(g->engine, g->o, g->task, g->step, (uint64_t)g->next_group);
    }
    g->b->n_samples = g->b->n_groups * g->o->samples;
    return any ? wb_comm_agree(g->comm, status) : WB_OK;
}

static wb_status generate(generation *g, report *r, int *signal_out) {
    int64_t total = g->o->prompts * g->o->samples;
    rank_word sum = {0};
    for (bool busy = true; busy || g->next_group < g->o->prompts;) {
        WB_TRY(exchange_words(g, &sum));
        *signal_out = (int)sum.signal;
        if (sum.signal != 0) return WB_OK;
        WB_TRY(hand_out(g));
        WB_TRY(wb_engine_step(g->engine, &busy));
        collect(g);
        /* What is left is taken to be as long as what has ended. */
        double mean = sum.finished > 0 ? (double)sum.tokens / (double)sum.finished : (double)g->o->max_tokens;
        double left = mean * (double)total - (double)sum.tokens;
        report_progress(r, g->step, "rollout", sum.tokens, sum.tokens + (int64_t)fmax(left, 0));
    }
    return WB_OK;
}

wb_status rollouts_generate(wb_engine *engine, wb_comm *comm, const options *o, const task *t, uint64_t step,
                            report *r, int *signal_out, batch *batch_out) {
    batch b = {0};
    generation g = {.engine = engine, .comm = comm, .o = o, .task = t, .step = step, .b = &b};
    wb_status status = wb_comm_agree(comm, generation_open(&g));
    if (status == WB_OK) status = generate(&g, r, signal_out);
    wb_owner_close(&g.memory);
    if (status == WB_OK && *signal_out == 0)
        *batch_out = b;
    else
        batch_free(&b);
    return status;
}

wb_status rollouts_count(const wb_engine *engine, const wb_engine_stats *before, wb_comm *comm,
                         step_metrics *m) {
    const wb_engine_stats now = wb_engine_get_stats(engine);
    double sums[5] = {(double)(now.prefill_tokens - before->prefill_tokens),
                      (double)(now.taken_over_tokens - before->taken_over_tokens),
                      (double)(now.preemptions - before->preemptions), (double)(now.drafts - before->drafts),
                      (double)(now.accepted_drafts - before->accepted_drafts)};
    WB_TRY(wb_comm_all_reduce_f64(comm, sums, 5));
    m->prefill_tokens = sums[0];
    m->taken_over_tokens = sums[1];
    m->preemptions = sums[2];
    m->drafts = sums[3];
    m->accepted_drafts = sums[4];
    return WB_OK;
}

int64_t batch_first_group(const batch *b, int64_t group) {
    int64_t low = 0, high = b->n_groups;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (b->groups[middle] < group)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* ---- rewarding ------------------------------------------------------------------------------- */

static wb_status builtin_rewards(const task *t, batch *b) {
    for (int64_t i = 0; i < b->n_samples; i++)
        WB_TRY(task_reward(t, b->samples[i].record, &b->samples[i].reward));
    return WB_OK;
}

static wb_status command_rewards(reward_program *program, const task *t, uint64_t step, batch *b) {
    wb_owner owner = {0};
    double *rewards;
    const wb_record **records;
    wb_status status;
    WB_GOTO(WB_OWN(&owner, rewards, (size_t)b->n_samples, "rewards"), close_owner);
    WB_GOTO(WB_OWN(&owner, records, (size_t)b->n_samples, "rewards"), close_owner);
    for (int64_t i = 0; i < b->n_samples; i++) records[i] = b->samples[i].record;
    WB_GOTO(reward_batch(program, t, step, b->n_samples, records, rewards), close_owner);
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

wb_status rollouts_reward(wb_comm *comm, const options *o, const task *t, reward_program *program,
                          uint64_t step, batch *b) {
    wb_status status = o->reward_cmd ? command_rewards(program, t, step, b) : builtin_rewards(t, b);
    /* The others may be asking for a long time yet. */
    if (status != WB_OK) report_failure(wb_comm_rank(comm), status);
    WB_TRY(wb_comm_agree(comm, status));
    for (int64_t g = 0; g < b->n_groups; g++) group_advantages(b->samples + g * o->samples, o->samples);
    return WB_OK;
}

void batch_free(batch *b) {
    for (int64_t i = 0; b->samples && i < b->n_samples; i++) wb_completion_free(b->samples[i].completion);
    free(b->samples);
    free(b->groups);
    *b = (batch){0};
}
