/* plan.c - the plan of a step: its mode, its micro-batches and the segments that each is made of. Owns: the
 * policy for missing rows and what a mode does not allow. Refuses: a micro-batch planned twice. */
#include "replay_state.h"

#include <inttypes.h>
#include <string.h>

static wb_status reserve_micro_batches(wb_replay *r, int32_t n) {
    size_t before = r->micro_batch_capacity;
    WB_TRY(WB_GROW(r->micro_batches, (size_t)n, &r->micro_batch_capacity, "replay: micro-batches"));
    if (r->micro_batch_capacity > before)
        memset(r->micro_batches + before, 0, (r->micro_batch_capacity - before) * sizeof *r->micro_batches);
    return WB_OK;
}

wb_status wb_replay_begin(wb_replay *r, wb_replay_mode mode, int32_t n_micro_batches) {
    if (!r || n_micro_batches < 0)
        return wb_fail(WB_INVALID_ARGUMENT, "replay: begin: handle is NULL or %" PRId32 " micro-batches",
                       n_micro_batches);
    if ((unsigned)mode > WB_REPLAY_ROLLOUT)
        return wb_fail(WB_INVALID_ARGUMENT, "replay: begin: %d is none of wb_replay_mode", (int)mode);
    if (r->in_step)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "replay: begin: a step in mode %s with %" PRId32
                       " micro-batches is open, and its plan would be lost: end or abort it first",
                       wb_replay_mode_name(r->mode), r->n_micro_batches);
    WB_TRY(reserve_micro_batches(r, n_micro_batches));
    wb_replay_abort(r);
    wb_replay_refresh_placement(r);
    r->mode = mode;
    r->n_micro_batches = n_micro_batches;
    r->in_step = true;
    return WB_OK;
}

wb_segment wb_replay_segment(const wb_replay *r, const char *rid, uint32_t start, uint32_t rows,
                             const uint32_t *tokens) {
    if (r->mode == WB_REPLAY_RECORD) return (wb_segment){WB_SEGMENT_RECORD, NULL, start, rows, tokens};
    return (wb_segment){WB_SEGMENT_REPLAY, rid, start, rows, tokens};
}

/* ---- segments -------------------------------------------------------------------------------- */

static wb_status missing_routes(const wb_replay *r, const wb_segment *s, uint32_t first, uint32_t missing) {
    uint32_t layer = (uint32_t)r->options.first_layer;
    return wb_fail(WB_MISSING_ROUTES,
                   "replay: request %s: no route at position %" PRIu32 ", MoE layer %" PRIu32
                   " (model layer %" PRIu32 ", the stage's first); %" PRIu32 " of the segment's %" PRIu32
                   " rows are missing",
                   s->rid, first, layer, r->model.moe_layers[layer], missing, s->rows);
}

/* What will be fed is what the record was made of, the last token included. */
static wb_status check_tokens(const wb_segment *s, const wb_record *record) {
    if (s->rows == 0) return WB_OK;
    if (!s->tokens)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "replay: request %s: a REPLAY segment needs the tokens that its %" PRIu32
                       " rows will be fed, found NULL",
                       s->rid, s->rows);
    const uint32_t *recorded = record->tokens + s->start;
    if (memcmp(recorded, s->tokens, s->rows * sizeof *recorded) == 0) return WB_OK;
    uint32_t i = 0;
    while (recorded[i] == s->tokens[i]) i++;
    return wb_fail(WB_MISMATCH,
                   "replay: request %s, position %" PRIu32 ": expected the record's token %" PRIu32
                   ", found that the trainer feeds %" PRIu32,
                   s->rid, s->start + i, recorded[i], s->tokens[i]);
}

static wb_status check_replay(const wb_replay *r, const wb_segment *s, const wb_record *record) {
    if (r->mode == WB_REPLAY_RECORD)
        return wb_fail(WB_MISMATCH,
                       "replay: mode record: expected no REPLAY segments, found one of request %s",
                       s->rid ? s->rid : "(NULL)");
    if (!record) return wb_fail(WB_NOT_FOUND, "replay: no record of request %s", s->rid ? s->rid : "(NULL)");
    if (s->start > record->n_tokens || s->rows > record->n_tokens - s->start)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "replay: request %s: %" PRIu32 " rows from position %" PRIu32 " go beyond its %" PRIu32
                       " tokens",
                       s->rid, s->rows, s->start, record->n_tokens);
    return check_tokens(s, record);
}

/* Finds the record and counts the rows it should have and has not. In record mode REPLAY segments are
 * refused: they would silently turn R2 into R3. */
static wb_status resolve_replay(const wb_replay *r, const wb_segment *s, segment_plan *out) {
    const wb_record *record = s->rid ? wb_replay_find_record(r, s->rid) : NULL;
    WB_TRY(check_replay(r, s, record));
    uint32_t end = s->start + s->rows, first = end, missing = 0;
    /* The last token was never fed: it has no row by nature. */
    if (end == record->n_tokens && s->rows > 0) end--;
    for (uint32_t p = s->start, next; p < end; p = next) {
        const void *ids;
        next = p + wb_record_stretch(&r->model, record, p, end, &ids);
        if (ids) continue;
        if (missing == 0) first = p;
        missing += next - p;
    }
    if (missing > 0 && r->options.missing == WB_MISSING_STRICT) return missing_routes(r, s, first, missing);
    WB_TRY(wb_replay_resolve_listed(r, s, record, end, &out->missing_listed));
    out->missing = missing;
    out->record = record;
    out->rid = record->rid;
    return WB_OK;
}

static wb_status resolve(const wb_replay *r, int32_t n, const wb_segment *segments, segment_plan *out,
                         uint32_t *T_out) {
    uint32_t T = 0;
    for (int32_t i = 0; i < n; i++) {
        const wb_segment *s = &segments[i];
        if ((unsigned)s->kind > WB_SEGMENT_PADDING)
            return wb_fail(WB_INVALID_ARGUMENT, "replay: segment %" PRId32 ": %d is none of wb_segment_kind",
                           i, (int)s->kind);
        if (s->rows > UINT32_MAX - T)
            return wb_fail(WB_INVALID_ARGUMENT, "replay: segment %" PRId32 ": more than 2^32 rows", i);
        T += s->rows;
        out[i] = (segment_plan){.kind = s->kind, .start = s->start, .rows = s->rows, .tokens = s->tokens};
        if (s->kind == WB_SEGMENT_REPLAY) WB_TRY(resolve_replay(r, s, &out[i]));
    }
    *T_out = T;
    return WB_OK;
}

/* ---- a micro-batch --------------------------------------------------------------------------- */

wb_status wb_replay_plan(wb_replay *r, int32_t index, int32_t n_segments, const wb_segment *segments) {
    WB_TRY(wb_replay_check_index(r, index));
    micro_batch *b = &r->micro_batches[index];
    if (b->planned)
        return wb_fail(WB_INVALID_ARGUMENT, "replay: micro-batch %" PRId32 " was planned before", index);
    if (n_segments < 0 || (n_segments > 0 && !segments))
        return wb_fail(WB_INVALID_ARGUMENT, "replay: micro-batch %" PRId32 ": %" PRId32 " segments%s", index,
                       n_segments, segments ? "" : ", NULL");
    uint32_t T = 0;
    WB_TRY(wb_replay_reserve_segments(r, b, n_segments));
    WB_TRY(resolve(r, n_segments, segments, b->segments.data, &T));
    WB_TRY(wb_replay_reserve_rows(r, b, T));
    WB_TRY(wb_replay_reserve_listed(r, b, T));
    b->n_segments = n_segments;
    wb_replay_fill(r, b, index);
    wb_replay_fill_listed(r, b);
    const segment_plan *plans = b->segments.data;
    for (int32_t i = 0; i < n_segments; i++) wb_replay_count_segment(r, &plans[i]);
    b->planned = true;
    return WB_OK;
}

bool wb_replay_dropped(const wb_replay *r, int32_t index, int32_t segment) {
    if (!wb_replay_planned(r, index) || r->options.missing != WB_MISSING_DROP) return false;
    const micro_batch *b = &r->micro_batches[index];
    const segment_plan *plans = b->segments.data;
    return segment >= 0 && segment < b->n_segments &&
           (plans[segment].missing > 0 || plans[segment].missing_listed > 0);
}
