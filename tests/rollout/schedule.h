/* schedule.h - a random schedule of the engine: who asks for what, when, on which rank, and what happens in
 * between. A seed makes it; from then on it is plain data, of which parts can be left out to find the part
 * that matters. Refuses: how it runs (schedule_run.h), what must come of it (schedule_check.h). */
#ifndef WB_SCHEDULE_H
#define WB_SCHEDULE_H

#include "engine_fixture.h"

enum {
    NONE = UINT32_MAX >> 1,
    MAX_ASKS = 10,
    MAX_EVENTS = 32,
    MAX_VERSIONS = 4,
    MAX_RANKS = 4,
    PAUSE_STEPS = 3,
    PATIENCE = 12,
    LAST_EVENT_STEP = 16
};

typedef enum event_kind { EVENT_SUBMIT, EVENT_ABORT, EVENT_WEIGHTS, EVENT_PAUSE } event_kind;

/* Before a step. `number`: of the request, on whose rank it happens; or the version of new weights, which are
 * set on all ranks; or the rank that asks for a pause, of PAUSE_STEPS steps. */
typedef struct event {
    uint64_t step;
    event_kind kind;
    uint32_t number;
    /* It waits, and all behind it, until a state has gone back from a wrong draft, of the request where it is
     * of one, and its tokens are yet to be fed again; for PATIENCE steps at most. */
    bool behind_draft;
    /* New weights: a rank lags behind, so that a step fails on all of them and is made again. */
    bool late;
} event;

typedef struct schedule {
    uint64_t seed; /* of the weights too */
    wb_config config;
    wb_dtype dtype, activations; /* of the engine's model */
    bool inference_only;         /* likewise */
    bool cuda;                   /* where it runs: on a GPU, or on the CPU */
    int n_ranks;
    ask asks[MAX_ASKS];
    uint32_t n_asks, rank[MAX_ASKS]; /* who submits it */
    /* Of an earlier request on its rank, whose record it continues if that has ended by then, or NONE. */
    uint32_t continues[MAX_ASKS];
    /* Such a one adds no token of its own; it returns rows from that of the record's last token on. */
    bool adds_nothing[MAX_ASKS], wants_new_rows[MAX_ASKS];
    event events[MAX_EVENTS];
    uint32_t n_events;                    /* in order of their steps */
    wb_engine_options options[MAX_RANKS]; /* of each rank's engine */
} schedule;

/* Version v has the weights of v % 2: an earlier version's come again by another name. */
static inline uint64_t schedule_weights_seed(const schedule *s, uint64_t version) {
    return s->seed + 1000 + version % 2;
}

/* ---- making -------------------------------------------------------------------------------------- */

/* Behind the events of its step. */
static inline void schedule_add(schedule *s, uint64_t step, event_kind kind, uint32_t number) {
    uint32_t at = s->n_events++;
    if (at == MAX_EVENTS) abort();
    for (; at > 0 && s->events[at - 1].step > step; at--) s->events[at] = s->events[at - 1];
    s->events[at] = (event){step, kind, number, false, false};
}

/* Tokens of a request at its longest. */
static inline uint32_t schedule_length(const schedule *s, uint32_t i) {
    const uint32_t earlier = s->continues[i] == NONE ? 0 : schedule_length(s, s->continues[i]);
    return earlier + s->asks[i].request.n_tokens + s->asks[i].request.max_tokens;
}

/* What request i asks for, once it is known whether there is a record that it continues. */
static inline const wb_request *schedule_request(schedule *s, uint32_t i, const wb_record *earlier) {
    wb_request *request = &s->asks[i].request;
    request->continues = earlier;
    if (s->adds_nothing[i]) request->n_tokens = earlier ? 0 : 1;
    if (s->wants_new_rows[i]) request->routes_start = earlier ? earlier->n_tokens - 1 : 0;
    return ask_request(&s->asks[i]);
}

/* Request i goes on from where an earlier one ends, with a few tokens or none; later than most have ended. */
static inline void schedule_continue(schedule *s, dice *d, uint32_t i, uint64_t *arrival) {
    wb_request *request = &s->asks[i].request, *earlier;
    const uint32_t of = pick(d, 0, i - 1);
    if (schedule_length(s, of) > 100) return; /* the model has not many more positions */
    earlier = &s->asks[of].request;
    earlier->return_routes = true;
    earlier->routes_start = 0;
    s->wants_new_rows[of] = false;
    /* What indexers chose is there from the first token on, and so it is where that goes on from. */
    for (uint32_t e = of; request->return_indexer && e != NONE; e = s->continues[e])
        s->asks[e].request.return_indexer = true;
    s->continues[i] = of;
    s->rank[i] = s->rank[of];
    s->adds_nothing[i] = pick(d, 0, 3) == 0;
    request->n_tokens = s->adds_nothing[i] ? 1 : pick(d, 1, 6);
    if (request->routes_start > 0) request->routes_start = pick(d, 0, request->n_tokens);
    s->wants_new_rows[i] = request->routes_start > 0 && pick(d, 0, 1) == 0;
    *arrival = LAST_EVENT_STEP + pick(d, 0, 30);
}

/* A sample of the group of the one before it: the same prompt. */
static inline void schedule_ask_again(schedule *s, uint32_t i) {
    s->asks[i].request.n_tokens = s->asks[i - 1].request.n_tokens;
    memcpy(s->asks[i].prompt, s->asks[i - 1].prompt, sizeof s->asks[i].prompt);
}

/* Requests, of which many begin with the same tokens. */
static inline void schedule_make_asks(schedule *s, dice *d) {
    uint32_t common[MAX_PROMPT];
    const uint32_t vocab_size = (uint32_t)s->config.vocab_size, n_words = pick(d, 2, vocab_size);
    /* The others have what they take. */
    const uint32_t n_asked = pick(d, 1, (uint32_t)s->n_ranks);
    for (uint32_t i = 0; i < MAX_PROMPT; i++) common[i] = pick(d, 0, n_words - 1);
    s->n_asks = pick(d, 1, MAX_ASKS);
    for (uint32_t i = 0; i < s->n_asks; i++) {
        ask *a = &s->asks[i];
        *a = ask_random(d, i, vocab_size, 24, 18);
        const uint32_t n_common = pick(d, 0, 2) == 0 ? 0 : pick(d, 0, a->request.n_tokens);
        memcpy(a->prompt, common, n_common * sizeof *common);
        if (i > 0 && pick(d, 0, 3) == 0) schedule_ask_again(s, i);
        if (pick(d, 0, 2) == 0) a->request.temperature = 0; /* which comes to repeat itself */
        if (pick(d, 0, 3) > 0) a->request.n_stop = 0;
        a->request.priority = pick(d, 0, 2) == 0 ? (int32_t)pick(d, 0, 20) - 10 : 0;
        a->request.return_routes = pick(d, 0, 3) != 0;
        a->request.routes_start = pick(d, 0, 1) == 0 ? 0 : pick(d, 0, a->request.n_tokens);
        a->request.expected_tokens = pick(d, 0, 1) == 0 ? 0 : a->request.max_tokens;
        a->request.return_indexer = wb_config_n_indexers(&s->config) > 0 && (s->seed + i) % 4 != 0;
        s->rank[i] = pick(d, 0, n_asked - 1);
        uint64_t arrival = pick(d, 0, 2) > 0 ? 0 : pick(d, 0, LAST_EVENT_STEP);
        s->continues[i] = NONE;
        if (i > 0 && pick(d, 0, 3) == 0) schedule_continue(s, d, i, &arrival);
        schedule_add(s, arrival, EVENT_SUBMIT, i);
        if (pick(d, 0, 5) == 0) schedule_add(s, arrival + pick(d, 0, 6), EVENT_ABORT, i);
    }
}

/* Pools that hold the longest request and little more, now and then much more. */
static inline void schedule_make_options(schedule *s, dice *d) {
    uint32_t longest = 1;
    for (uint32_t i = 0; i < s->n_asks; i++) {
        const uint32_t fed = schedule_length(s, i) - 1;
        if (fed > longest) longest = fed;
    }
    const int32_t max_batch_tokens = (int32_t)pick(d, 1, pick(d, 0, 1) == 0 ? 8 : 48);
    const int32_t max_prefill_tokens = pick(d, 0, 1) == 0 ? 0 : (int32_t)pick(d, 1, 12);
    const bool recompute_keys = pick(d, 0, 2) == 0, lend_requests = pick(d, 0, 3) > 0;
    const bool has_limits = pick(d, 0, 4) == 0;
    /* MTP layers guess on all ranks, as many drafts, or on none. */
    const bool all_draft = s->config.n_mtp_layers > 0 && s->seed % 2 == 0,
               none_drafts = s->config.n_mtp_layers > 0 && !all_draft;
    for (int r = 0; r < MAX_RANKS; r++) {
        wb_engine_options *o = &s->options[r];
        *o = wb_engine_options_default();
        o->max_batch_tokens = max_batch_tokens;
        o->max_prefill_tokens = max_prefill_tokens;
        o->recompute_keys = recompute_keys;
        o->lend_requests = lend_requests;
        o->indexer = true;
        o->block_size = (int32_t)pick(d, 1, 6);
        const int32_t min_blocks = ((int32_t)longest - 1) / o->block_size + 1;
        o->n_blocks = min_blocks + (int32_t)pick(d, 0, pick(d, 0, 3) == 0 ? 60 : 4);
        const bool drafts = pick(d, 0, 1) > 0;
        o->max_drafts = none_drafts || (!drafts && !all_draft) ? 0 : (int32_t)pick(d, 1, 5);
        if (all_draft) o->max_drafts = s->options[0].max_drafts;
        o->prefix_cache = pick(d, 0, 3) > 0;
        o->max_running = (int32_t)pick(d, pick(d, 0, 3) == 0 ? 1 : 4, MAX_ASKS);
        if (has_limits) o->max_unfinished = pick(d, 1, 4);
        if (has_limits) o->max_unfinished_tokens = longest + 1 + pick(d, 0, 60);
        o->n_snapshots = (int32_t)((s->seed / 4 + (uint64_t)r) % 4); /* 0: as many as run */
    }
}

/* Those whose layers keep state of a sequence twice as often as the others. */
static inline wb_family schedule_pick_family(dice *d) {
    static const wb_family stateful[] = {WB_FAMILY_QWEN3_NEXT, WB_FAMILY_QWEN3_5_MOE, WB_FAMILY_DEEPSEEK_V4};
    const uint32_t i = pick(d, 0, N_FAMILIES + 2);
    return i < N_FAMILIES ? (wb_family)i : stateful[i - N_FAMILIES];
}

/* Layers that the family has to have for one of each kind: a delta net and attention; entries of both rates,
 * the first by a table, and a window alone. */
static inline int32_t schedule_kinds(wb_family family) {
    if (family == WB_FAMILY_DEEPSEEK_V4) return 3;
    return family == WB_FAMILY_QWEN3_NEXT || family == WB_FAMILY_QWEN3_5_MOE ? 2 : 1;
}

/* Aborts and new weights seldom come in the one step between a wrong draft and its tokens' second feed, where
 * layers keep a state, and a step never fails by itself. */
static inline void schedule_make_rare(schedule *s) {
    const bool behind_draft = schedule_kinds(s->config.family) > 1 && s->seed / 2 % 2 == 0;
    const bool late = s->n_ranks > 1 && s->seed / 5 % 4 == 0;
    for (uint32_t i = 0; i < s->n_events; i++) {
        event *e = &s->events[i];
        const bool is_change = e->kind == EVENT_WEIGHTS && e->number > 0;
        /* Not before the first weights, which come last of the first step. */
        e->behind_draft =
            behind_draft && e->step > 0 && (e->kind == EVENT_ABORT || (is_change && e->number % 2 == 1));
        e->late = late && is_change;
    }
}

static inline void schedule_make(schedule *s, uint64_t seed, int max_ranks, bool cuda) {
    dice d = {wb_mix64(seed)};
    memset(s, 0, sizeof *s);
    s->seed = seed;
    s->cuda = cuda;
    const wb_family family = schedule_pick_family(&d);
    const int32_t n_experts = pick(&d, 0, 7) == 0 ? 300 : (int32_t)pick(&d, 4, 24);
    const int32_t top_k = (int32_t)pick(&d, 1, 4), n_more = (int32_t)pick(&d, 0, 1);
    const int32_t n_layers = schedule_kinds(family) + n_more;
    s->config = tiny_config(family, n_experts, top_k, n_layers, 0);
    /* In so few words nearly all is said again, and so there is something to guess. */
    if (pick(&d, 0, 2) == 0) s->config.vocab_size = (int32_t)pick(&d, 3, 7);
    s->dtype = pick(&d, 0, 1) == 0 ? WB_F32 : WB_BF16;
    s->activations = s->seed / 2 % 2 == 0 ? s->dtype : WB_F32;
    s->inference_only = s->seed % 3 == 0;
    s->n_ranks = (int)pick(&d, 1, (uint32_t)max_ranks);
    schedule_make_asks(s, &d);
    schedule_make_options(s, &d);
    schedule_add(s, 0, EVENT_WEIGHTS, 0);
    const uint32_t n_changes = pick(&d, 0, 1) == 0 ? 0 : pick(&d, 1, MAX_VERSIONS - 1);
    if (pick(&d, 0, 3) == 0)
        schedule_add(s, pick(&d, 0, LAST_EVENT_STEP), EVENT_PAUSE, pick(&d, 0, (uint32_t)s->n_ranks - 1));
    uint64_t step = 0;
    for (uint32_t v = 1; v <= n_changes; v++) schedule_add(s, step += pick(&d, 1, 6), EVENT_WEIGHTS, v);
    schedule_make_rare(s);
}

/* ---- printing ------------------------------------------------------------------------------------ */

static inline void schedule_print(const schedule *s) {
    static const char *const names[] = {"submit", "abort", "weights", "pause"};
    printf("  %s, activations %s, for inference only %d, %s, %d layers, %d of %d experts, %d ranks, %" PRId32
           " tokens a step, of prefills %" PRId32 ", keys recomputed %d, requests lent %d\n",
           wb_dtype_name(s->dtype), wb_dtype_name(s->activations), s->inference_only,
           family_names[s->config.family], s->config.n_layers, s->config.router.top_k,
           s->config.router.n_experts, s->n_ranks, s->options[0].max_batch_tokens,
           s->options[0].max_prefill_tokens, s->options[0].recompute_keys, s->options[0].lend_requests);
    for (int r = 0; r < s->n_ranks; r++)
        printf("  rank %d: %" PRId32 " blocks of %" PRId32 ", %" PRId32
               " running at most, prefix cache %d, %" PRId32 " drafts, %" PRId32 " snapshots, limits %" PRIu64
               " requests, %" PRIu64 " tokens\n",
               r, s->options[r].n_blocks, s->options[r].block_size, s->options[r].max_running,
               s->options[r].prefix_cache, s->options[r].max_drafts, s->options[r].n_snapshots,
               s->options[r].max_unfinished, s->options[r].max_unfinished_tokens);
    for (uint32_t i = 0; i < s->n_events; i++) {
        const event *e = &s->events[i];
        printf("  step %" PRIu64 ": %s %" PRIu32 "%s%s", e->step, names[e->kind], e->number,
               e->behind_draft ? " behind a wrong draft" : "", e->late ? ", a rank late" : "");
        if (e->kind == EVENT_SUBMIT) {
            const wb_request *r = &s->asks[e->number].request;
            printf(" on rank %" PRIu32 ": %" PRIu32 " + %" PRIu32 " tokens, routes %d from %" PRIu32
                   ", mask %d, indexer %d, temperature %g, priority %" PRId32 "; prompt",
                   s->rank[e->number], r->n_tokens, r->max_tokens, r->return_routes, r->routes_start,
                   r->return_sampling_mask, r->return_indexer, (double)r->temperature, r->priority);
            for (uint32_t t = 0; t < r->n_tokens; t++) printf(" %" PRIu32, s->asks[e->number].prompt[t]);
        }
        if (e->kind == EVENT_SUBMIT && s->continues[e->number] != NONE)
            printf(", continues %" PRIu32 ", without more tokens %d, new rows only %d",
                   s->continues[e->number], s->adds_nothing[e->number], s->wants_new_rows[e->number]);
        printf("\n");
    }
}

#endif
