/* sequence.h - one request while the engine holds it: its growing record.
 *
 * Owns: tokens, logprobs, rows, spans; they are append-only, but for sampled tokens that are taken back with
 * all that belongs to them. Refuses: when to feed (scheduler.c), what a good request is (request.c). */
#ifndef WB_SEQUENCE_H
#define WB_SEQUENCE_H

#include "cells.h"
#include "request.h"
#include "sched_entry.h"

/* The tokens [0, n_fed) have been fed at least once. Rows and spans go with the mark, which grows, but for
 * wb_sequence_take_back, whereas entry.n_in_pool falls back to 0 at a preemption. */
typedef struct wb_sequence {
    wb_completion completion; /* first: the completion that poll hands out is the sequence itself */
    wb_sched_entry entry;     /* of the scheduler's line */
    wb_route_rows routes;
    wb_span *spans; /* [spans_capacity] */
    size_t spans_capacity;
    uint32_t *tokens; /* [max_len]; completion.record.n_tokens of them exist, behind them stand drafts */
    float *logprobs, *sampling_logprobs; /* [max_len - prompt_len] */
    wb_sampling sampling;
    uint32_t *mask_ends; /* [max_len - prompt_len] of the record; NULL: not asked for, or no limit */
    uint32_t *mask_ids;  /* [mask_room], of which what is not written takes no memory of the machine */
    size_t mask_room;
    /* [max_len - 1], the first n_fed exist. All are kept, whatever the caller asked for: a request that is
     * fed again follows them. */
    uint8_t *rows;
    size_t row_bytes;
    wb_cells cells; /* of the tokens [0, n_fed), where the caller asked for them */
    bool return_routes;
    uint32_t max_len, routes_start;
    wb_sample_params params; /* its uniform is set at each token */
    uint64_t seed;
    uint32_t n_stop;
    uint32_t *stop_tokens; /* [n_stop] */
    uint32_t n_fed;
    size_t bytes; /* of the host that it takes, but for the spans of weights that change on the way */
    /* Ranks: to which it was submitted, and which runs it (lending.h). Another one than home, of a sequence
     * that is home: it is away. */
    int32_t home, host;
    uint64_t number;              /* of the requests of its home, in the order in which they came */
    bool abort_asked, abort_told; /* while it is away: by its owner; to its host */
    struct wb_sequence *next;     /* of the finished ones, or of a list of lending.h */
} wb_sequence;

static inline wb_sequence *wb_sequence_of(wb_sched_entry *entry) {
    return (wb_sequence *)(void *)((char *)entry - offsetof(wb_sequence, entry));
}

/* Copies `request`, which has been checked by `limits`, with room for everything that it can grow to.
 * max_blocks: KV blocks that it can hold. */
wb_status wb_sequence_create(const wb_request *request, const wb_request_limits *limits, int64_t max_blocks,
                             wb_sequence **sequence_out);
void wb_sequence_free(wb_sequence *sequence); /* NULL is a no-op */

/* Makes room for a span of weight_version, so that feeds under it cannot fail. The first version needs no
 * call. */
wb_status wb_sequence_reserve_span(wb_sequence *sequence, uint64_t weight_version);

/* Of the tokens from `start` on, `n` of them, how many have been fed before: they come first, and their rows
 * exist. */
static inline uint32_t wb_sequence_n_refed(const wb_sequence *sequence, uint32_t start, uint32_t n) {
    const uint32_t known = sequence->n_fed > start ? sequence->n_fed - start : 0;
    return known < n ? known : n;
}

/* Rows that a feed adds: the tokens [first, first + n) were fed for the first time, and `rows` is where their
 * rows belong, to be filled before anybody looks at the record's. */
typedef struct wb_fed_rows {
    uint32_t first, n;
    uint8_t *rows;
} wb_fed_rows;

/* All tokens before `end` have been fed, the latest under weight_version. What exists already stays. */
wb_fed_rows wb_sequence_feed(wb_sequence *sequence, uint32_t end, uint64_t weight_version);

/* Where the n_kept tokens kept at the token that is appended next belong: *ids_out [n_kept], to be filled
 * before anybody looks at the record's. CAPACITY where a record holds no more. */
wb_status wb_sequence_next_mask(const wb_sequence *sequence, uint32_t n_kept, uint32_t **ids_out);

/* Of `sampled` [n], tokens for the positions behind the last one, where the n - 1 drafts stand in tokens[]:
 * how many the request takes. Each up to the first that its draft is not, which is taken too: those behind it
 * were sampled after a token that is not there. *finish_out: how the request ends with the last one taken;
 * WB_FINISH_NONE when it goes on. */
uint32_t wb_sequence_count_taken(const wb_sequence *sequence, uint32_t n, const int32_t *sampled,
                                 wb_finish *finish_out);

/* A token that was sampled. */
typedef struct wb_sampled_token {
    uint32_t token;
    float logprob, sampling_logprob;
    uint32_t n_kept; /* ids at wb_sequence_next_mask; 0 without a mask */
} wb_sampled_token;

/* Appends a token that was taken. */
void wb_sequence_append(wb_sequence *sequence, const wb_sampled_token *sampled);

/* Takes back the sampled tokens behind the first `n_tokens`, at least the prompt's, with their logprobs and
 * kept tokens, the rows, cells and spans from token n_tokens - 1 on, and all drafts: that token is fed
 * next. */
void wb_sequence_take_back(wb_sequence *sequence, uint32_t n_tokens);

/* Drafts that can come to something: the token behind them still is the request's. */
static inline uint32_t wb_sequence_max_drafts(const wb_sequence *s) {
    return s->max_len - s->completion.record.n_tokens - 1;
}

/* Puts a draft behind the last token and the drafts that stand there, fewer than wb_sequence_max_drafts. */
void wb_sequence_propose(wb_sequence *sequence, uint32_t token);

/* Drafts behind the last token in place of those that stand there, at most `max`, by the request's own text
 * (draft.h). */
void wb_sequence_propose_text(wb_sequence *sequence, uint32_t max);

/* The record as it stands becomes the completion's. */
void wb_sequence_finish(wb_sequence *sequence, wb_finish finish);

static inline uint32_t wb_sequence_length(const wb_sequence *sequence) {
    return sequence->completion.record.n_tokens;
}

#endif
