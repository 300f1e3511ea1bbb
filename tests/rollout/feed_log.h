/* feed_log.h - by which weights each key of a request was computed, and an independent forward that repeats
 * it: the requests one by one, as one chunk of one sequence a feed, through wb_infer.
 *
 * What it checks holds through preemption, changed weights and any dtype: every row and every logprob of a
 * record is what the weights of its span give over keys and values that went where the record's rows say. */
#ifndef WB_FEED_LOG_H
#define WB_FEED_LOG_H

#include "engine.h"
#include "engine_fixture.h"

#define MAX_FEEDS 512

typedef struct feed {
    uint32_t start, end;
    uint64_t version;
} feed;

typedef struct feed_log {
    uint32_t n_in_pool, n_fed; /* of the request, when it was looked at last */
    uint32_t reached;          /* the end of the latest feed */
    uint32_t n;
    feed feeds[MAX_FEEDS];
} feed_log;

static inline uint32_t number_of(const wb_record *record) {
    return (uint32_t)strtoul(record->rid + 1, NULL, 10);
}

/* Of the request nothing behind the first n_fed tokens is fed, whatever was. */
static inline void log_taken_back(feed_log *log, uint32_t n_fed) {
    while (log->n > 0 && log->feeds[log->n - 1].start >= n_fed) log->n--;
    if (log->n > 0 && log->feeds[log->n - 1].end > n_fed) log->feeds[log->n - 1].end = n_fed;
    if (log->reached > n_fed) log->reached = n_fed;
}

/* Where the request stands after a step or before the next one. n_in_pool falls in a preemption, to 0, from
 * where a step that admits the request again feeds it at once. Behind it, n_went_back tokens have been fed
 * and their state has gone back from a wrong draft: the next step feeds them again. n_fed falls where weights
 * are set before it does. */
static inline void log_feed(feed_log *log, uint32_t n_in_pool, uint32_t n_went_back, uint32_t n_fed,
                            uint64_t version) {
    const uint32_t end = n_in_pool + n_went_back;
    if (n_fed < log->n_fed) log_taken_back(log, n_fed);
    if (n_in_pool < log->n_in_pool) log->reached = 0;
    if (end > log->reached) {
        if (log->n == MAX_FEEDS) abort();
        log->feeds[log->n++] = (feed){log->reached, end, version};
        log->reached = end;
    }
    log->n_in_pool = n_in_pool;
    log->n_fed = n_fed;
}

/* Behind a step that failed, before log_step: what a request took over in it, whose keys it has lost with its
 * state. */
static inline void log_lost(const wb_engine *engine, feed_log *logs) {
    for (wb_sched_entry *entry = engine->scheduler.first; entry; entry = entry->next) {
        feed_log *log = &logs[number_of(entry->record)];
        const uint32_t n_fed = wb_sequence_of(entry)->n_fed;
        if (entry->running || n_fed <= log->n_fed) continue;
        log_feed(log, n_fed, 0, n_fed, engine->weight_version);
    }
}

/* What was polled: it has been fed all but its last token, or as far as its spans go. */
static inline void log_finished(const wb_engine *engine, feed_log *logs, const wb_record *record) {
    const uint32_t n = record->n_tokens - 1;
    if (record->finish == WB_FINISH_ABORT)
        log_taken_back(&logs[number_of(record)],
                       record->n_spans > 0 ? record->spans[record->n_spans - 1].end : 0);
    else
        log_feed(&logs[number_of(record)], n, 0, n, engine->weight_version);
}

/* After a step: what it fed of unfinished requests, and of those of other ranks that ended; log_finished then
 * tells of a polled one. logs: by the number in a rid. */
static inline void log_step(const wb_engine *engine, feed_log *logs) {
    for (wb_sched_entry *entry = engine->scheduler.first; entry; entry = entry->next)
        log_feed(&logs[number_of(entry->record)], entry->n_in_pool, entry->n_went_back,
                 wb_sequence_of(entry)->n_fed, engine->weight_version);
    for (const wb_sequence *s = engine->lending.ended.first; s; s = s->next)
        if (s->completion.record.finish != WB_FINISH_ABORT) log_finished(engine, logs, &s->completion.record);
}

/* Feeds of tokens that were fed before, by other weights than then. */
static inline uint64_t fed_again_by_other_weights(const feed_log *log) {
    uint64_t n = 0;
    for (uint32_t i = 1; i < log->n; i++)
        n += log->feeds[i].start == 0 && log->feeds[i].version != log->feeds[0].version;
    return n;
}

/* A model on one rank whose weights become those of versions[v]. */
typedef struct repeater {
    wb_model *model;
    const wb_model *const *versions;
    wb_infer *infer;
    uint8_t *rows, *direction; /* [max_positions] */
    int32_t *tokens, *pos, *seq, *block;
    bool lists; /* what indexers chose is followed too, of a request that asked for it */
    /* [S][max_positions][k]; and those of a feed, with directions, [S][tokens][k] */
    int32_t *listed, *fed_listed;
    uint8_t *listed_direction;
    /* Of a feed, on the device. */
    void *device_rows, *device_direction, *device_token, *device_logprob, *device_listed,
        *device_listed_direction;
} repeater;

static inline repeater repeater_open(wb_model *model, const wb_model *const *versions) {
    const size_t n = (size_t)wb_model_config(model)->max_positions;
    repeater r = {.model = model, .versions = versions};
    wb_infer_options options = wb_infer_options_default();
    options.n_blocks = (int32_t)n;
    options.block_size = 1;
    options.max_tokens = (int64_t)n;
    must(wb_infer_open(model, &options, &r.infer), "inference");
    r.rows = take(n, wb_route_row_bytes(wb_model_routes(model)));
    r.direction = take(n, 1);
    r.tokens = take(n, sizeof *r.tokens);
    r.pos = take(n, sizeof *r.pos);
    r.seq = take(n, sizeof *r.seq);
    r.block = take(n, sizeof *r.block);
    for (size_t i = 0; i < n; i++) r.block[i] = (int32_t)i;
    const wb_route_model *routes = wb_model_routes(model);
    const size_t n_lists = wb_indexer_columns(routes) * n;
    r.listed = take(n_lists * routes->indexer_k, sizeof *r.listed);
    r.fed_listed = take(n_lists * routes->indexer_k, sizeof *r.listed);
    r.listed_direction = take(n_lists, 1);
    wb_device *device = wb_model_device(model);
    must(wb_device_alloc(device, n * wb_route_row_bytes(wb_model_routes(model)), &r.device_rows), "rows");
    must(wb_device_alloc(device, n, &r.device_direction), "direction");
    must(wb_device_alloc(device, sizeof(int32_t), &r.device_token), "token");
    must(wb_device_alloc(device, sizeof(float), &r.device_logprob), "logprob");
    must(wb_device_alloc(device, n_lists * routes->indexer_k * sizeof *r.listed, &r.device_listed), "listed");
    must(wb_device_alloc(device, n_lists, &r.device_listed_direction), "directions of listed");
    return r;
}

static inline void repeater_close(repeater *r) {
    void *const on_device[] = {r->device_rows,    r->device_direction, r->device_token,
                               r->device_logprob, r->device_listed,    r->device_listed_direction};
    for (size_t i = 0; i < sizeof on_device / sizeof on_device[0]; i++)
        wb_device_free(wb_model_device(r->model), on_device[i]);
    wb_infer_close(r->infer);
    void *const arrays[] = {r->rows,   r->direction,  r->tokens,          r->pos, r->seq, r->block,
                            r->listed, r->fed_listed, r->listed_direction};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) free(arrays[i]);
}

/* Lists of the tokens of `f` to those of the feed, or back. */
static inline void move_lists(repeater *r, const feed *f, bool into_feed) {
    const wb_route_model *routes = wb_model_routes(r->model);
    const size_t n = (size_t)wb_model_config(r->model)->max_positions, T = f->end - f->start;
    const size_t bytes = T * routes->indexer_k * sizeof *r->listed;
    for (size_t c = 0; c < wb_indexer_columns(routes); c++) {
        int32_t *all = r->listed + (c * n + f->start) * routes->indexer_k;
        int32_t *fed = r->fed_listed + c * T * routes->indexer_k;
        memcpy(into_feed ? fed : all, into_feed ? all : fed, bytes);
        memcpy(r->listed_direction + c * T, r->direction, T);
    }
}

/* Gives a feed its lists before it, or takes back after it what it left. */
static inline void feed_lists(repeater *r, const feed *f, bool before) {
    wb_device *device = wb_model_device(r->model);
    const wb_route_model *routes = wb_model_routes(r->model);
    const size_t cells = wb_indexer_columns(routes) * (f->end - f->start);
    const size_t bytes = cells * routes->indexer_k * sizeof *r->fed_listed;
    if (before) {
        move_lists(r, f, true);
        must(wb_device_upload(device, r->device_listed, r->fed_listed, bytes), "listed");
        must(wb_device_upload(device, r->device_listed_direction, r->listed_direction, cells), "directions");
    } else {
        must(wb_device_download(device, r->fed_listed, r->device_listed, bytes), "listed");
        move_lists(r, f, false);
    }
}

/* Feeds `f`; tokens below n_known follow the rows that are in r->rows, the others write theirs there. Returns
 * the logprob of the token after the last one at temperature 1. */
static inline float repeat_feed(repeater *r, const wb_record *record, const feed *f, uint32_t n_known) {
    const size_t row_bytes = wb_route_row_bytes(wb_model_routes(r->model));
    const int32_t last = (int32_t)(f->end - f->start) - 1, target = (int32_t)record->tokens[f->end],
                  state = 0;
    for (uint32_t i = f->start; i < f->end; i++) {
        r->tokens[i - f->start] = (int32_t)record->tokens[i];
        r->pos[i - f->start] = (int32_t)i;
        r->direction[i - f->start] = i < n_known ? WB_ROW_FORCED : WB_ROW_NATIVE;
    }
    must(wb_model_copy_weights(r->model, r->versions[f->version]), "weights");
    const wb_infer_batch batch = {.T = last + 1,
                                  .tokens = r->tokens,
                                  .pos = r->pos,
                                  .seq = r->seq,
                                  .n_seqs = 1,
                                  .max_blocks = wb_model_config(r->model)->max_positions,
                                  .blocks = r->block,
                                  .states = &state,
                                  .n_logits = 1,
                                  .logit_rows = &last};
    wb_routing routing = {.ids = r->device_rows, .direction = r->device_direction};
    const size_t n = (size_t)batch.T;
    if (r->lists) {
        feed_lists(r, f, true);
        routing.listed = r->device_listed;
        routing.listed_direction = r->device_listed_direction;
    }
    const float *logits;
    float logprob;
    wb_device *device = wb_model_device(r->model);
    must(wb_device_upload(device, r->device_rows, r->rows + f->start * row_bytes, n * row_bytes), "rows");
    must(wb_device_upload(device, r->device_direction, r->direction, n), "direction");
    must(wb_device_upload(device, r->device_token, &target, sizeof target), "token");
    must(wb_infer_forward(r->infer, &batch, &routing, &logits), "forward");
    must(device->logprob_forward(device, 1, wb_model_config(r->model)->vocab_size, logits, r->device_token,
                                 NULL, r->device_logprob),
         "logprob");
    must(wb_device_download(device, r->rows + f->start * row_bytes, r->device_rows, n * row_bytes), "rows");
    if (r->lists) feed_lists(r, f, false);
    must(wb_device_download(device, &logprob, r->device_logprob, sizeof logprob), "logprob");
    return logprob;
}

/* Whether the record says of a token what the repeater's indexers chose. */
static inline bool same_lists(const repeater *r, const wb_record *record, uint32_t t) {
    const wb_route_model *routes = wb_model_routes(r->model);
    const size_t n = (size_t)wb_model_config(r->model)->max_positions, k = routes->indexer_k;
    for (uint32_t c = 0; c < wb_indexer_columns(routes); c++) {
        const int32_t *list = r->listed + (c * n + t) * k;
        wb_indexer_choice choice;
        if (!wb_indexer_at(routes, record->indexer, t, c, &choice)) return false;
        if (!wb_indexer_same(choice, wb_indexer_of_list(list, (uint32_t)k))) return false;
    }
    return true;
}

/* NULL, or the first thing in which the record is not what its feeds give. */
static inline const char *repeat_record(repeater *r, const feed_log *log, const wb_record *record) {
    const wb_route_model *routes = wb_model_routes(r->model);
    const size_t row_bytes = wb_route_row_bytes(routes);
    uint32_t n_known = 0;
    for (uint32_t i = 0; i < log->n; i++) {
        const feed *f = &log->feeds[i];
        const float logprob = repeat_feed(r, record, f, n_known);
        const uint32_t first = n_known > f->start ? n_known : f->start;
        for (uint32_t t = first; record->n_routes > 0 && t < f->end; t++) {
            const void *row = wb_record_row(routes, record, t);
            if (t < record->routes[0].start) continue;
            if (!row) return "a row is missing";
            if (memcmp(row, r->rows + t * row_bytes, row_bytes) != 0)
                return "a row is not its weights' choice";
        }
        for (uint32_t t = first; record->indexer && t < f->end; t++)
            if (t >= record->indexer->start && !same_lists(r, record, t))
                return "what an indexer chose is not its weights' choice";
        if (f->end > n_known && f->end >= record->prompt_len &&
            memcmp(&logprob, &record->logprobs[f->end - record->prompt_len], sizeof logprob) != 0)
            return "a logprob is not its weights'";
        if (f->end > n_known) n_known = f->end;
    }
    return n_known == record->n_tokens - 1 ? NULL : "tokens were not fed";
}

#endif
