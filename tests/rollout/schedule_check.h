/* schedule_check.h - what must come of a schedule: each request is, bit for bit, what it is alone on one rank
 * with the whole model, without any company, where the same tokens are fed by the same weights; and where
 * weights changed on the way, also what feed_log.h's forward, which is not the engine's, gives. */
#ifndef WB_SCHEDULE_CHECK_H
#define WB_SCHEDULE_CHECK_H

#include "schedule_run.h"

/* Engines of one rank with the whole model, and the weights that they are given. */
typedef struct lone_engine {
    const schedule *s;
    rig own, repeated;
    rig wholes[MAX_VERSIONS];
    const wb_model *versions[MAX_VERSIONS];
    wb_engine *engine;
    repeater repeater;
} lone_engine;

static inline void lone_open(const schedule *s, lone_engine *lone) {
    memset(lone, 0, sizeof *lone);
    lone->s = s;
    lone->own = schedule_rig_own(s, NULL);
    lone->engine = engine_of(lone->own.model, 160, 1, 160, 1);
    for (uint32_t v = 0; v < MAX_VERSIONS; v++)
        if (version_used(s, v)) lone->wholes[v] = schedule_rig_of_version(s, v, NULL);
    for (uint32_t v = 0; v < MAX_VERSIONS; v++) lone->versions[v] = lone->wholes[v].model;
    must(wb_engine_set_weights(lone->engine, lone->versions[0], 0), "weights alone");
    lone->repeated = schedule_rig_own(s, NULL);
    lone->repeater = repeater_open(lone->repeated.model, lone->versions);
}

static inline void lone_close(lone_engine *lone) {
    repeater_close(&lone->repeater);
    wb_engine_close(lone->engine);
    for (uint32_t v = 0; v < MAX_VERSIONS; v++)
        if (lone->wholes[v].model) rig_close(&lone->wholes[v]);
    rig_close(&lone->repeated);
    rig_close(&lone->own);
}

static inline void lone_set_weights(lone_engine *lone, uint64_t version) {
    if (lone->engine->weight_version != version)
        must(wb_engine_set_weights(lone->engine, lone->wholes[version].model, version), "weights alone");
}

/* Feeds up to f->end. Several decodes that were one feed, as accepted drafts are, are decoded one by one. */
static inline void lone_feed(lone_engine *lone, const feed *f) {
    wb_engine *engine = lone->engine;
    wb_scheduler *scheduler = &engine->scheduler;
    bool busy;
    if (f->start < scheduler->first->n_in_pool) wb_scheduler_preempt_all(scheduler);
    lone_set_weights(lone, f->version);
    while (scheduler->first && scheduler->first->n_in_pool < f->end) {
        scheduler->max_batch_tokens = (int32_t)(f->end - scheduler->first->n_in_pool);
        must(wb_engine_step(engine, &busy), "step alone");
    }
}

/* The request with the feeds of its log, then aborted if it goes on. */
static inline wb_completion *lone_request(lone_engine *lone, ask *a, const feed_log *log) {
    if (log->n > 0) lone_set_weights(lone, log->feeds[0].version);
    must(wb_engine_submit(lone->engine, ask_request(a)), "submit alone");
    for (uint32_t i = 0; i < log->n && lone->engine->scheduler.first; i++) lone_feed(lone, &log->feeds[i]);
    if (lone->engine->scheduler.first) must(wb_engine_abort(lone->engine, a->rid), "abort alone");
    wb_completion *done = wb_engine_poll(lone->engine);
    if (!done) abort();
    return done;
}

static inline bool same_cells(const wb_route_model *routes, const wb_indexer_rows *a,
                              const wb_indexer_rows *b, uint32_t t) {
    for (uint32_t c = 0; c < wb_indexer_columns(routes); c++) {
        wb_indexer_choice x, y;
        if (!wb_indexer_at(routes, a, t, c, &x) || !wb_indexer_at(routes, b, t, c, &y)) return false;
        if (!wb_indexer_same(x, y)) return false;
    }
    return true;
}

/* What a request continues, it has: tokens, spans, and rows and what indexers chose where it returns them. */
static inline const char *not_continued(const wb_route_model *routes, const wb_record *earlier,
                                        const wb_record *record) {
    if (!same_bytes(earlier->tokens, record->tokens, earlier->n_tokens * sizeof *record->tokens))
        return "tokens of the record that it continues";
    const uint32_t n_fed = earlier->n_spans > 0 ? earlier->spans[earlier->n_spans - 1].end : 0;
    for (uint32_t i = 0, t = 0; i < earlier->n_spans; t = earlier->spans[i++].end)
        if (i >= record->n_spans || record->spans[i].start != t ||
            record->spans[i].weight_version != earlier->spans[i].weight_version)
            return "spans of the record that it continues";
    for (uint32_t t = record->indexer ? record->indexer->start : n_fed; t < n_fed; t++)
        if (!same_cells(routes, earlier->indexer, record->indexer, t))
            return "what indexers chose in the record that it continues";
    for (uint32_t t = record->n_routes > 0 ? record->routes[0].start : n_fed; t < n_fed; t++)
        if (!same_bytes(wb_record_row(routes, earlier, t), wb_record_row(routes, record, t),
                        wb_route_row_bytes(routes)))
            return "rows of the record that it continues";
    return NULL;
}

/* The engine that a request is alone in could err alike about what a record is to have at all: rows from
 * routes_start on, as far as it was fed, a mask, what indexers chose. */
static inline const char *not_as_asked(const wb_request *asked, const wb_record *record) {
    const uint32_t fed = record->n_spans > 0 ? record->spans[record->n_spans - 1].end : 0;
    const uint32_t start = asked->routes_start, n = fed > start ? fed - start : 0;
    const uint32_t n_rows = asked->return_routes ? n : 0;
    if (record->n_routes != (n_rows > 0)) return "runs of rows, as asked for";
    if (n_rows > 0 && (record->routes[0].start != start || record->routes[0].rows != n_rows))
        return "rows' places, as asked for";
    if (asked->return_sampling_mask && asked->temperature == 0 && record->n_tokens > record->prompt_len &&
        !record->mask_ends)
        return "a mask, as asked for";
    return !record->indexer == !(asked->return_indexer && n > 0) ? NULL : "what indexers chose, as asked for";
}

static inline const char *check_request(lone_engine *lone, ask *a, const feed_log *log,
                                        const wb_completion *found) {
    const wb_route_model *routes = wb_model_routes(lone->own.model);
    if (wb_record_check(routes, &found->record, found->record.finish != WB_FINISH_ABORT) != WB_OK)
        return wb_error_message();
    const char *odd = not_as_asked(&a->request, &found->record);
    if (odd) return odd;
    wb_completion *alone = lone_request(lone, a, log);
    const char *what = difference(routes, alone, found);
    wb_completion_free(alone);
    if (!what && a->request.continues) what = not_continued(routes, a->request.continues, &found->record);
    /* Rows that came with the request are not those of its own feeds. */
    if (what || found->record.n_spans < 2 || a->request.continues || found->record.finish == WB_FINISH_ABORT)
        return what;
    lone->repeater.lists = a->request.return_indexer;
    return repeat_record(&lone->repeater, log, &found->record);
}

/* Whether the schedule aborts request n: what ends so without it has ended for another one. */
static inline bool is_to_abort(const schedule *s, uint32_t n) {
    for (uint32_t i = 0; i < s->n_events; i++)
        if (s->events[i].kind == EVENT_ABORT && s->events[i].number == n) return true;
    return false;
}

/* Adds what is wrong to the outcome's failures. */
static inline void schedule_check(schedule *s, outcome *out) {
    lone_engine lone;
    lone_open(s, &lone);
    for (uint32_t i = 0; i < s->n_events; i++) {
        const uint32_t n = s->events[i].number;
        if (s->events[i].kind != EVENT_SUBMIT) continue;
        const char *what = "was lost";
        if (out->done[n]) what = check_request(&lone, &s->asks[n], &out->logs[n], out->done[n]);
        if (out->done[n] && out->done[n]->record.finish == WB_FINISH_ABORT && !is_to_abort(s, n))
            what = "was aborted, which nobody asked for";
        if (what) schedule_fail(out, (int)s->rank[n], s->asks[n].rid, what);
    }
    lone_close(&lone);
}

#endif
