/* schedule.c - what goes into a step.
 *
 * Owns: decodes first, then prefill chunks in order of arrival, then admission; preemption. Refuses: the
 * forward.
 *
 * Why every request ends: the oldest one is never preempted for another and takes the block that it needs
 * from the youngest; it fits the pool alone (submit checks). Decodes take turns, so it gets its token;
 * sampled tokens are kept for good, so those before it in the step run out. A request is admitted only
 * with blocks for all its tokens: a prefill never stops half way. */
#include "engine_internal.h"

/* The running sequence before the first waiting one. */
static wb_sequence *last_running(const wb_engine *engine) {
    wb_sequence *last = engine->first_waiting != NULL ? engine->first_waiting->previous : engine->last;
    return last != NULL && last->running ? last : NULL;
}

static wb_sequence *next_running(const wb_sequence *sequence) {
    return sequence->next != NULL && sequence->next->running ? sequence->next : NULL;
}

static wb_sequence *first_running(const wb_engine *engine) {
    return engine->first != NULL && engine->first->running ? engine->first : NULL;
}

void wb_schedule_release(wb_engine *engine, wb_sequence *s) {
    wb_kv_blocks_give(&engine->pool, s->n_blocks, s->blocks);
    if (engine->next_decode == s) engine->next_decode = next_running(s);
    s->n_blocks = 0;
    s->n_in_pool = 0;
    s->n_planned = 0;
    s->running = false;
    engine->stats.running--;
}

static void preempt(wb_engine *engine, wb_sequence *s) {
    wb_schedule_release(engine, s);
    engine->first_waiting = s;
    engine->stats.waiting++;
    engine->stats.preemptions++;
}

static bool decodes(const wb_sequence *s) {
    return s->n_in_pool + 1 == wb_sequence_length(s);
}

/* Plans a token for each sequence that waits for nothing but it, at most `budget` of them, in turn. */
static void choose_decodes(wb_engine *engine, int32_t budget) {
    wb_sequence *s = engine->next_decode != NULL ? engine->next_decode : first_running(engine);
    for (int32_t i = engine->stats.running; i > 0 && budget > 0; i--) {
        s->n_planned = decodes(s);
        budget -= (int32_t)s->n_planned;
        s = next_running(s);
        if (s == NULL) s = first_running(engine);
    }
    engine->next_decode = s;
}

/* Gives `s` a block for its next token, from the youngest if need be; false when it is the youngest itself
 * and must wait. */
static bool extend_blocks(wb_engine *engine, wb_sequence *s) {
    if (wb_kv_blocks_for(&engine->pool, s->n_in_pool + 1) <= s->n_blocks) return true;
    while (!wb_kv_blocks_take(&engine->pool, 1, &s->blocks[s->n_blocks])) {
        wb_sequence *youngest = last_running(engine);
        if (youngest == s) return false;
        preempt(engine, youngest);
    }
    s->n_blocks++;
    return true;
}

/* In order of arrival, so that whoever is preempted has no block of this step yet. Returns the tokens
 * planned. */
static int32_t plan_decodes(wb_engine *engine) {
    int32_t n = 0;
    choose_decodes(engine, engine->options.max_batch_tokens);
    for (wb_sequence *s = first_running(engine); s != NULL; s = next_running(s)) {
        if (s->n_planned > 0 && !extend_blocks(engine, s)) s->n_planned = 0;
        n += (int32_t)s->n_planned;
    }
    return n;
}

/* Plans the next chunk of a sequence that has blocks for all its tokens. Returns its tokens. */
static int32_t plan_chunk(wb_sequence *s, int32_t budget) {
    const uint32_t left = wb_sequence_length(s) - s->n_in_pool;
    s->n_planned = left < (uint32_t)budget ? left : (uint32_t)budget;
    return (int32_t)s->n_planned;
}

static bool admit(wb_engine *engine) {
    wb_sequence *s = engine->first_waiting;
    if (s == NULL || engine->stats.running >= engine->options.max_running) return false;
    const int32_t needed = (int32_t)wb_kv_blocks_for(&engine->pool, wb_sequence_length(s));
    if (!wb_kv_blocks_take(&engine->pool, needed, s->blocks)) return false;
    s->n_blocks = needed;
    s->running = true;
    engine->first_waiting = s->next;
    engine->stats.running++;
    engine->stats.waiting--;
    return true;
}

static void plan_prefills(wb_engine *engine, int32_t budget) {
    for (wb_sequence *s = first_running(engine); s != NULL && budget > 0; s = next_running(s))
        if (!decodes(s)) budget -= plan_chunk(s, budget);
    while (budget > 0 && admit(engine)) budget -= plan_chunk(last_running(engine), budget);
}

/* ---- the batch ----------------------------------------------------------------------------------- */

static void add_tokens(wb_step_batch *batch, const wb_sequence *s) {
    wb_infer_batch *infer = &batch->infer;
    for (uint32_t i = s->n_in_pool; i < s->n_in_pool + s->n_planned; i++) {
        batch->tokens[infer->T] = (int32_t)s->tokens[i];
        batch->pos[infer->T] = (int32_t)i;
        batch->seq[infer->T++] = infer->n_seqs;
    }
}

static void add_sequence(wb_step_batch *batch, wb_sequence *s) {
    wb_infer_batch *infer = &batch->infer;
    add_tokens(batch, s);
    batch->sequences[infer->n_seqs++] = s;
    if (infer->max_blocks < s->n_blocks) infer->max_blocks = s->n_blocks;
    batch->with_rows = batch->with_rows || s->rows != NULL;
    if (!wb_sequence_samples(s)) return;
    batch->sampled[infer->n_logits] = s;
    batch->params[infer->n_logits] = s->params;
    batch->params[infer->n_logits].uniform = wb_sampling_uniform(s->seed, wb_sequence_length(s));
    batch->logit_rows[infer->n_logits++] = (int32_t)infer->T - 1;
}

/* Rows of `blocks` are as wide as the longest of this step needs; what lies beyond a shorter one's is
 * never read. */
static void fill_blocks(wb_step_batch *batch) {
    const wb_infer_batch *infer = &batch->infer;
    for (int32_t i = 0; i < infer->n_seqs; i++) {
        int32_t *row = batch->blocks + (size_t)i * (size_t)infer->max_blocks;
        const wb_sequence *s = batch->sequences[i];
        for (int32_t k = 0; k < infer->max_blocks; k++) row[k] = k < s->n_blocks ? s->blocks[k] : 0;
    }
}

static void clear_batch(wb_step_batch *batch) {
    batch->infer = (wb_infer_batch){.tokens = batch->tokens,
                                    .pos = batch->pos,
                                    .seq = batch->seq,
                                    .blocks = batch->blocks,
                                    .logit_rows = batch->logit_rows};
    batch->with_rows = false;
}

wb_status wb_schedule_step(wb_engine *engine) {
    wb_step_batch *batch = &engine->batch;
    clear_batch(batch);
    for (wb_sequence *s = first_running(engine); s != NULL; s = next_running(s)) s->n_planned = 0;
    plan_prefills(engine, engine->options.max_batch_tokens - plan_decodes(engine));

    for (wb_sequence *s = first_running(engine); s != NULL; s = next_running(s)) {
        if (s->n_planned == 0) continue;
        const wb_status status = wb_sequence_reserve_span(s, engine->weight_version);
        if (status != WB_OK) {
            clear_batch(batch);
            return status;
        }
        add_sequence(batch, s);
    }
    fill_blocks(batch);
    return WB_OK;
}
