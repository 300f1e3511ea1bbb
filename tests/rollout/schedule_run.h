/* schedule_run.h - a schedule on its ranks, which are threads: what each request became, and by which weights
 * each of its tokens was fed. A failure is kept as words, so that a schedule that fails can be run again in
 * parts. Refuses: what must have come of it (schedule_check.h). */
#ifndef WB_SCHEDULE_RUN_H
#define WB_SCHEDULE_RUN_H

#include "feed_log.h"
#include "schedule.h"

#include <pthread.h>

/* A livelock takes more. */
enum { MAX_STEPS = 4000 };

typedef struct outcome {
    feed_log logs[MAX_ASKS];
    wb_completion *done[MAX_ASKS];
    const wb_record *continued[MAX_ASKS]; /* that the request was submitted with */
    wb_engine_stats stats[MAX_RANKS];
    uint64_t pause_steps[MAX_RANKS]; /* the same on all ranks */
    uint64_t refusals[MAX_RANKS];
    uint64_t failed_steps[MAX_RANKS];  /* by weights that were late; the same on all ranks */
    uint64_t behind_drafts[MAX_RANKS]; /* events that met what they waited for; likewise */
    char failures[MAX_RANKS][400];     /* of each rank, the first; "": none */
} outcome;

typedef struct schedule_rank {
    schedule *s;
    outcome *out;
    wb_comm *comm;
    rig shards[MAX_VERSIONS];
    wb_engine *engine;
    uint64_t resume_step;       /* of whichever rank's pause; 0: nothing to end */
    const event *late;          /* new weights that some rank has yet to be given */
    uint32_t refused[MAX_ASKS]; /* by the limits of the engine, in order: they are asked again in each step */
    uint32_t n_refused;
} schedule_rank;

static inline void schedule_fail(outcome *out, int rank, const char *rid, const char *what) {
    if (out->failures[rank][0] == 0)
        snprintf(out->failures[rank], sizeof out->failures[rank], "rank %d, %s: %s", rank, rid, what);
}

/* A model of the schedule, on a device of its own; on a GPU, that of the rank. comm NULL: of one rank. */
static inline rig schedule_rig(const schedule *s, uint64_t seed, wb_comm *comm, wb_dtype dtype,
                               wb_dtype activations, bool inference_only) {
    wb_device *device = NULL;
    if (s->cuda)
        must(wb_device_open_cuda(comm ? wb_comm_rank(comm) : 0, NULL, &device), "GPU");
    else
        must(wb_device_open_cpu(1, &device), "device");
    return rig_open_with(&s->config, seed, device, comm, dtype, activations, inference_only);
}

/* The engine's, whose weights are set before anything is asked. comm NULL: of the engine that is asked
 * everything again, whose experts lie as they were loaded. */
static inline rig schedule_rig_own(const schedule *s, wb_comm *comm) {
    return schedule_rig(s, s->seed, comm, s->dtype, s->activations, comm && s->inference_only);
}

/* The trainer's of a version. */
static inline rig schedule_rig_of_version(const schedule *s, uint64_t version, wb_comm *comm) {
    return schedule_rig(s, schedule_weights_seed(s, version), comm, WB_F32, WB_F32, false);
}

static inline bool version_used(const schedule *s, uint32_t version) {
    for (uint32_t i = 0; i < s->n_events; i++)
        if (s->events[i].kind == EVENT_WEIGHTS && s->events[i].number == version) return true;
    return false;
}

static inline wb_status submit_one(schedule_rank *r, uint32_t number) {
    const uint32_t earlier = r->s->continues[number];
    if (earlier != NONE && r->out->done[earlier]) r->out->continued[number] = &r->out->done[earlier]->record;
    return wb_engine_submit(r->engine, schedule_request(r->s, number, r->out->continued[number]));
}

/* What has been refused and then `number`, or NONE, as far as it is taken: the order stays. */
static inline bool submit(schedule_rank *r, uint32_t number) {
    uint32_t n_taken = 0;
    wb_status status = WB_OK;
    if (number != NONE) r->refused[r->n_refused++] = number;
    while (n_taken < r->n_refused && (status = submit_one(r, r->refused[n_taken])) == WB_OK) n_taken++;
    r->n_refused -= n_taken;
    memmove(r->refused, r->refused + n_taken, r->n_refused * sizeof *r->refused);
    r->out->refusals[wb_comm_rank(r->comm)] += status == WB_CAPACITY;
    return status == WB_OK || (status == WB_CAPACITY && r->s->options[0].max_unfinished > 0);
}

/* Between two steps: who waits holds nothing, and each state is free, a snapshot or held by one who runs. */
static inline void check_held(const schedule_rank *r) {
    const int rank = wb_comm_rank(r->comm);
    const wb_scheduler *scheduler = &r->engine->scheduler;
    const wb_state_pool *states = &scheduler->states;
    int32_t n = states->free.n_free + scheduler->running;
    for (const wb_sched_entry *entry = scheduler->first; entry; entry = entry->next)
        if (!entry->running && (entry->n_blocks > 0 || entry->n_in_pool > 0 || entry->n_went_back > 0))
            schedule_fail(r->out, rank, entry->record->rid, "holds something while it waits");
    for (int32_t i = 0; i < states->free.n; i++) n += states->block_of[i] != WB_NO_BLOCK;
    if (n != states->free.n) schedule_fail(r->out, rank, "states", "are missing or held twice");
}

/* Nothing is known by the new ones yet. */
static inline bool set_weights(schedule_rank *r, const event *e) {
    const wb_scheduler *scheduler = &r->engine->scheduler;
    if (wb_engine_set_weights(r->engine, r->shards[e->number].model, e->number) != WB_OK) return false;
    if (scheduler->blocks.cache.n_known > 0 ||
        scheduler->states.free.n_free + scheduler->running != scheduler->states.free.n)
        schedule_fail(r->out, wb_comm_rank(r->comm), "new weights", "something of the old ones is known");
    return true;
}

static inline bool lags_behind(const schedule_rank *r, const event *e) {
    return (uint32_t)wb_comm_rank(r->comm) == e->number % (uint32_t)r->s->n_ranks;
}

static inline bool apply_event(schedule_rank *r, const event *e, uint64_t step) {
    if (e->kind == EVENT_WEIGHTS) {
        r->late = e->late && r->s->n_ranks > 1 ? e : NULL;
        return (r->late && lags_behind(r, e)) || set_weights(r, e);
    }
    if (e->kind == EVENT_PAUSE) {
        r->resume_step = step + PAUSE_STEPS;
        if (e->number == (uint32_t)wb_comm_rank(r->comm)) wb_engine_pause(r->engine);
        return true;
    }
    ask *a = &r->s->asks[e->number];
    if (r->s->rank[e->number] != (uint32_t)wb_comm_rank(r->comm)) return true;
    if (e->kind == EVENT_SUBMIT) return submit(r, e->number);
    const wb_status status = wb_engine_abort(r->engine, a->rid);
    return status == WB_OK || status == WB_NOT_FOUND; /* not yet, or no longer */
}

/* On which rank ever. */
static inline bool has_gone_back(schedule_rank *r, const event *e, bool *found_out) {
    uint64_t n = 0;
    for (const wb_sched_entry *entry = r->engine->scheduler.first; entry; entry = entry->next)
        if (e->kind != EVENT_ABORT || number_of(entry->record) == e->number) n |= entry->n_went_back > 0;
    if (wb_comm_all_reduce_max_u64(r->comm, &n) != WB_OK) return false;
    *found_out = n > 0;
    r->out->behind_drafts[wb_comm_rank(r->comm)] += n;
    return true;
}

/* Those whose step has come, but nothing behind weights that are late: that step fails. */
static inline bool apply_events(schedule_rank *r, uint64_t step, uint32_t *next_event) {
    const schedule *s = r->s;
    for (; *next_event < s->n_events && !r->late; ++*next_event) {
        const event *e = &s->events[*next_event];
        bool due = step >= e->step + (e->behind_draft ? PATIENCE : 0);
        if (!due && step >= e->step && !has_gone_back(r, e, &due)) return false;
        if (!due) return true;
        if (!apply_event(r, e, step)) return false;
    }
    return true;
}

/* A step that all ranks fail by, of which nothing stays but what a request took over. */
static inline bool fail_step(schedule_rank *r, bool *busy) {
    const int rank = wb_comm_rank(r->comm);
    const wb_status status = wb_engine_step(r->engine, busy);
    if (status != WB_PEER) schedule_fail(r->out, rank, "late weights", "a step did not fail by them");
    log_lost(r->engine, r->out->logs);
    log_step(r->engine, r->out->logs);
    r->out->failed_steps[rank]++;
    check_held(r);
    const bool set = !lags_behind(r, r->late) || set_weights(r, r->late);
    r->late = NULL;
    *busy = true;
    return status == WB_PEER && set;
}

static inline void take_finished(schedule_rank *r) {
    for (wb_completion *c = wb_engine_poll(r->engine); c; c = wb_engine_poll(r->engine)) {
        const uint32_t i = number_of(&c->record);
        log_finished(r->engine, r->out->logs, &c->record);
        if (r->out->done[i]) schedule_fail(r->out, wb_comm_rank(r->comm), c->record.rid, "is done twice");
        r->out->done[i] = c;
    }
}

/* Busy are all ranks too as long as one of them has what was refused. */
static inline bool go_on_for_refused(schedule_rank *r, bool *busy) {
    uint64_t n = r->n_refused;
    if (r->s->options[0].max_unfinished == 0) return true;
    if (wb_comm_all_reduce_max_u64(r->comm, &n) != WB_OK) return false;
    *busy |= n > 0;
    return true;
}

static inline bool one_step(schedule_rank *r, uint64_t step, uint32_t *next_event, bool *busy) {
    if (!submit(r, NONE) || !apply_events(r, step, next_event)) return false;
    if (r->resume_step == step) wb_engine_resume(r->engine);
    const wb_engine_stats before = wb_engine_get_stats(r->engine);
    log_step(r->engine, r->out->logs); /* whom an event has preempted */
    if (r->late) return fail_step(r, busy);
    if (wb_engine_step(r->engine, busy) != WB_OK) return false;
    const wb_engine_stats after = wb_engine_get_stats(r->engine);
    if (before.paused &&
        before.prefill_tokens + before.decode_tokens != after.prefill_tokens + after.decode_tokens)
        schedule_fail(r->out, wb_comm_rank(r->comm), "a pause", "something was fed");
    r->out->pause_steps[wb_comm_rank(r->comm)] += before.paused;
    check_held(r);
    log_step(r->engine, r->out->logs);
    take_finished(r);
    return go_on_for_refused(r, busy);
}

static inline void schedule_steps(schedule_rank *r) {
    const int rank = wb_comm_rank(r->comm);
    uint32_t next_event = 0;
    bool busy = true;
    for (uint64_t step = 0; busy || next_event < r->s->n_events || step <= r->resume_step; step++) {
        if (step < MAX_STEPS && one_step(r, step, &next_event, &busy)) continue;
        schedule_fail(r->out, rank, "a step", step == MAX_STEPS ? "still busy" : wb_error_message());
        wb_comm_abort(r->comm);
        return;
    }
    r->out->stats[rank] = wb_engine_get_stats(r->engine);
    if (r->out->stats[rank].paused) schedule_fail(r->out, rank, "a pause", "does not end");
    if (r->out->stats[rank].free_blocks != r->s->options[rank].n_blocks)
        schedule_fail(r->out, rank, "the pool", "blocks are missing at the end");
    if (r->out->stats[rank].unfinished_tokens != 0 || r->out->stats[rank].unfinished_bytes != 0)
        schedule_fail(r->out, rank, "requests", "are unfinished at the end");
    if (r->out->stats[rank].away != 0 || r->out->stats[rank].guests != 0)
        schedule_fail(r->out, rank, "requests", "are not home at the end");
}

static inline void *schedule_rank_main(void *arg) {
    schedule_rank *r = arg;
    const schedule *s = r->s;
    rig own = schedule_rig_own(s, r->comm);
    for (uint32_t v = 0; v < MAX_VERSIONS; v++)
        if (version_used(s, v)) r->shards[v] = schedule_rig_of_version(s, v, r->comm);
    must(wb_engine_open(own.model, &s->options[wb_comm_rank(r->comm)], &r->engine), "engine");
    schedule_steps(r);
    wb_engine_close(r->engine);
    for (uint32_t v = 0; v < MAX_VERSIONS; v++)
        if (r->shards[v].model) rig_close(&r->shards[v]);
    rig_close(&own);
    return NULL;
}

/* In a zeroed outcome. */
static inline void schedule_run(schedule *s, outcome *out) {
    wb_comm *comms[MAX_RANKS];
    schedule_rank ranks[MAX_RANKS] = {{0}};
    pthread_t threads[MAX_RANKS];
    must(wb_comm_open_threads(s->n_ranks, comms), "comms");
    for (int i = 0; i < s->n_ranks; i++) {
        ranks[i] = (schedule_rank){.s = s, .out = out, .comm = comms[i]};
        if (i > 0 && pthread_create(&threads[i], NULL, schedule_rank_main, &ranks[i]) != 0) abort();
    }
    schedule_rank_main(&ranks[0]);
    for (int i = 1; i < s->n_ranks; i++) pthread_join(threads[i], NULL);
    for (int i = 1; i < s->n_ranks; i++)
        if (out->pause_steps[i] != out->pause_steps[0])
            schedule_fail(out, i, "a pause", "was not of all ranks");
    for (int i = 0; i < s->n_ranks; i++) wb_comm_close(comms[i]);
}

#endif
