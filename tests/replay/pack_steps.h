/* pack_steps.h - random steps packed and moved on the ranks of a communicator: each sequence once, within its
 * update and the room of a micro-batch, the same on every rank, loads exact; records arrive whole. */
#ifndef WB_PACK_STEPS_H
#define WB_PACK_STEPS_H

#include "pack_fixture.h"

enum { MOST = 13, LONGEST = 20, ROUNDS = 6 };

typedef struct extra {
    uint64_t seed;
    uint32_t update;
    uint8_t tail[5]; /* a size that is no multiple of 8 */
} extra;

/* A step: this rank's sequences, and how many the others have. */
typedef struct step {
    wb_route_model model;
    wb_pack_options options;
    uint64_t number;
    uint32_t n[MAX_RANKS], n_own;
    full_record *records; /* [n_own] */
    wb_pack_sequence *sequences;
    extra *extras;
    wb_pack *pack;
} step;

/* What every rank can tell of any sequence. */
static uint32_t rows_of(const wb_record *record, uint64_t seed) {
    const uint32_t unfed = (uint32_t)(seed % 4);
    return record->n_tokens > unfed ? record->n_tokens - unfed : 1;
}

static uint32_t update_of(const step *s, uint64_t seed) {
    return (uint32_t)(wb_mix64(seed) % s->options.n_updates);
}

/* Sizes for which a sketch is the counts, and others. */
static inline void step_open(rank *r, uint64_t number, step *s) {
    static const uint32_t sizes[][3] = {{16, 2, 3}, {300, 8, 4}, {5, 5, 1}};
    const uint32_t *size = sizes[number % 3];
    *s = (step){.model = fixture_model(size[0], size[1], size[2]), .number = number};
    if (number % 2 == 0) model_with_indexers(&s->model);
    s->model.n_weightless = number % 2 ? size[0] / 4 : 0;
    s->options = wb_pack_options_default();
    s->options.max_rows = LONGEST + 1 + wb_random_below(&r->state, 2 * LONGEST);
    s->options.n_updates = 1 + wb_random_below(&r->state, 3);
    for (int i = 0; i < r->of; i++) s->n[i] = wb_random_below(&r->state, MOST + 1);
    s->n_own = s->n[r->number];
    s->records = calloc(MOST, sizeof *s->records);
    s->sequences = calloc(MOST, sizeof *s->sequences);
    s->extras = calloc(MOST, sizeof *s->extras);
    for (uint32_t i = 0; i < s->n_own; i++) {
        const uint64_t seed = seed_of(number, (uint32_t)r->number, i);
        full_open(&s->records[i], &s->model, seed, LONGEST);
        const wb_record *record = &s->records[i].f.record;
        s->extras[i] = (extra){.seed = seed, .update = update_of(s, seed), .tail = {1, 2, 3, 4, (uint8_t)i}};
        s->sequences[i] = (wb_pack_sequence){record, rows_of(record, seed), s->extras[i].update};
    }
}

static inline void step_pack(rank *r, step *s) {
    MUST(wb_pack_open(r->comm, &s->model, &s->options, s->n_own, s->sequences, &s->pack));
}

static inline void step_close(step *s) {
    wb_pack_close(s->pack);
    for (uint32_t i = 0; i < s->n_own; i++) full_close(&s->records[i]);
    free(s->records);
    free(s->sequences);
    free(s->extras);
}

/* ---- the packing --------------------------------------------------------------------------------- */

static inline void expect_updates(const step *s) {
    EXPECT(wb_pack_first(s->pack, 0) == 0);
    for (uint32_t u = 0; u < s->options.n_updates; u++)
        EXPECT(wb_pack_first(s->pack, u) <= wb_pack_first(s->pack, u + 1));
    EXPECT(wb_pack_first(s->pack, s->options.n_updates) == wb_pack_micro_batches(s->pack));
}

/* By home and index, so that each is there once; rows within the room; no micro-batch without a sequence. */
static inline void expect_places(rank *r, const step *s) {
    const uint32_t M = (uint32_t)wb_pack_micro_batches(s->pack), R = (uint32_t)r->of;
    uint32_t n, at = 0;
    const wb_pack_place *places = wb_pack_places(s->pack, &n);
    int64_t *rows = calloc((size_t)M * R + 1, sizeof *rows), moved = 0;
    for (uint32_t home = 0; home < R; home++)
        for (uint32_t i = 0; i < s->n[home]; i++, at++) {
            EXPECT(at < n && places[at].home == home && places[at].index == i);
            const uint64_t seed = seed_of(s->number, home, i);
            const int32_t m = (int32_t)places[at].micro_batch;
            const uint32_t update = update_of(s, seed);
            EXPECT(m >= wb_pack_first(s->pack, update) && m < wb_pack_first(s->pack, update + 1));
            EXPECT(places[at].rank < R && places[at].rows > 0);
            rows[(size_t)m * R + places[at].rank] += places[at].rows;
            moved += places[at].rank != home;
        }
    EXPECT(at == n && wb_pack_get_stats(s->pack).moved_sequences == (uint64_t)moved);
    for (uint32_t m = 0; m < M; m++) {
        int64_t sum = 0;
        for (uint32_t k = 0; k < R; k++) {
            EXPECT(rows[m * R + k] <= s->options.max_rows);
            sum += rows[m * R + k];
        }
        EXPECT(sum > 0);
    }
    MUST(wb_comm_check_equal(r->comm, places, n * sizeof *places, "places"));
    free(rows);
}

/* Counted here from the ids that the fixture's records have, valid rows before the last fed one. */
static inline void expect_loads(rank *r, const step *s) {
    const uint32_t M = (uint32_t)wb_pack_micro_batches(s->pack), L = s->model.n_moe_layers;
    const uint32_t E = wb_route_weighted(&s->model);
    double *expected = calloc((size_t)M * L * E + 1, sizeof *expected);
    uint32_t n;
    const wb_pack_place *places = wb_pack_places(s->pack, &n);
    for (uint32_t i = 0; i < n; i++) {
        full_record f;
        const uint64_t seed = seed_of(s->number, places[i].home, places[i].index);
        full_open(&f, &s->model, seed, LONGEST);
        EXPECT(places[i].rows == rows_of(&f.f.record, seed));
        for (uint32_t p = 0; p < places[i].rows; p++)
            for (uint32_t l = 0; wb_record_row(&s->model, &f.f.record, p) && l < L; l++)
                for (uint32_t k = 0; k < s->model.top_k; k++) {
                    const uint32_t e = fixture_id(&s->model, seed, p, l, k);
                    if (e < E) expected[((size_t)places[i].micro_batch * L + l) * E + e] += 1;
                }
        full_close(&f);
    }
    EXPECT(memcmp(wb_pack_loads(s->pack), expected, (size_t)M * L * E * sizeof *expected) == 0);
    free(expected);
    (void)r;
}

static inline void pack_random_steps(rank *r) {
    for (int i = 0; i < ROUNDS; i++) {
        step s;
        step_open(r, base_seed % 1000 + (uint64_t)i, &s);
        step_pack(r, &s);
        expect_updates(&s);
        expect_places(r, &s);
        expect_loads(r, &s);
        const wb_pack_stats stats = wb_pack_get_stats(s.pack);
        EXPECT(stats.attention > 0 && stats.attention <= 1 + 1e-12 && stats.unevenness >= 0);
        step_close(&s);
    }
}

/* ---- records on their way ------------------------------------------------------------------------ */

static inline bool same(const void *a, const void *b, size_t bytes) {
    return !a || !b ? a == b : memcmp(a, b, bytes) == 0;
}

static inline void expect_same_routes(const wb_route_model *model, const wb_record *a, const wb_record *b) {
    EXPECT(a->n_routes == b->n_routes);
    for (uint32_t i = 0; i < a->n_routes; i++) {
        const wb_route_rows *x = &a->routes[i], *y = &b->routes[i];
        EXPECT(x->start == y->start && x->rows == y->rows);
        EXPECT(same(x->ids, y->ids, x->rows * wb_route_row_bytes(model)));
        EXPECT(same(x->valid, y->valid, (x->rows + 7) / 8));
    }
}

static inline void expect_same_cells(const wb_route_model *model, const wb_indexer_rows *a,
                                     const wb_indexer_rows *b) {
    const size_t n = (size_t)a->rows * wb_indexer_columns(model);
    EXPECT(a->start == b->start && a->rows == b->rows && a != b);
    EXPECT(same(a->counts, b->counts, n * sizeof *a->counts) && same(a->ends, b->ends, n * sizeof *a->ends));
    EXPECT(same(a->positions, b->positions, n > 0 ? (size_t)a->ends[n - 1] * sizeof *a->positions : 0));
}

static inline void expect_same_record(const wb_route_model *model, const wb_record *a, const wb_record *b) {
    const size_t n_new = a->n_tokens - a->prompt_len;
    EXPECT(strcmp(a->rid, b->rid) == 0 && a->group == b->group && a->sample == b->sample);
    EXPECT(a->prompt_len == b->prompt_len && a->n_tokens == b->n_tokens && a->finish == b->finish);
    EXPECT(same(a->tokens, b->tokens, a->n_tokens * sizeof *a->tokens));
    EXPECT(same(a->logprobs, b->logprobs, n_new * sizeof(float)));
    EXPECT(same(a->sampling_logprobs, b->sampling_logprobs, n_new * sizeof(float)));
    EXPECT(a->n_spans == b->n_spans && same(a->spans, b->spans, a->n_spans * sizeof *a->spans));
    EXPECT(same(a->sampling, b->sampling, sizeof *a->sampling));
    EXPECT(same(a->mask_ends, b->mask_ends, n_new * sizeof(uint32_t)));
    if (a->mask_ends && n_new > 0)
        EXPECT(same(a->mask_ids, b->mask_ids, a->mask_ends[n_new - 1] * sizeof(uint32_t)));
    expect_same_routes(model, a, b);
    EXPECT(!a->indexer == !b->indexer);
    if (a->indexer && b->indexer) expect_same_cells(model, a->indexer, b->indexer);
}

/* The sequences of this rank in the order of the places, each whole, with what belongs to it. */
static inline void expect_items(rank *r, const step *s, bool with_extras) {
    uint32_t n, all, seen = 0;
    const wb_pack_place *places = wb_pack_places(s->pack, &all);
    for (int32_t m = 0; m < wb_pack_micro_batches(s->pack); m++) {
        const wb_pack_item *items = wb_pack_items(s->pack, m, &n);
        uint32_t i = 0;
        for (uint32_t p = 0; p < all; p++) {
            if ((int32_t)places[p].micro_batch != m || places[p].rank != (uint32_t)r->number) continue;
            const uint64_t seed = seed_of(s->number, places[p].home, places[p].index);
            full_record f;
            EXPECT(i < n && items[i].rows == places[p].rows);
            full_open(&f, &s->model, seed, LONGEST);
            expect_same_record(&s->model, &f.f.record, items[i].record);
            MUST(wb_record_check(&s->model, items[i].record, true));
            EXPECT((items[i].extra != NULL) == with_extras);
            if (with_extras) {
                const extra *e = items[i].extra;
                EXPECT(e->seed == seed && e->update == update_of(s, seed) && e->tail[4] == places[p].index);
            }
            full_close(&f);
            i++;
        }
        EXPECT(i == n);
        seen += n;
    }
    double sum = seen;
    MUST(wb_comm_all_reduce_f64(r->comm, &sum, 1));
    EXPECT((uint32_t)sum == all);
}

/* What went elsewhere is overwritten here: ranks that are threads could read it. */
static inline void spoil_moved(rank *r, const step *s) {
    uint32_t n;
    const wb_pack_place *places = wb_pack_places(s->pack, &n);
    for (uint32_t i = 0; i < n; i++)
        if (places[i].home == (uint32_t)r->number && places[i].rank != places[i].home)
            full_spoil(&s->records[places[i].index], &s->model);
    MUST(wb_comm_barrier(r->comm));
}

static inline void move_random_steps(rank *r) {
    for (int i = 0; i < ROUNDS; i++) {
        step s;
        uint32_t n = 7;
        const bool with_extras = i % 3 != 0;
        step_open(r, base_seed % 1000 + (uint64_t)i, &s);
        step_pack(r, &s);
        EXPECT(!wb_pack_items(s.pack, 0, &n) && n == 0);
        MUST(wb_pack_move(s.pack, r->comm, with_extras ? sizeof *s.extras : 0, s.extras));
        spoil_moved(r, &s);
        expect_items(r, &s, with_extras);
        EXPECT(!wb_pack_items(s.pack, -1, &n) && n == 0);
        EXPECT(!wb_pack_items(s.pack, wb_pack_micro_batches(s.pack), &n) && n == 0);
        EXPECT(wb_pack_move(s.pack, r->comm, 0, NULL) == WB_INVALID_ARGUMENT);
        EXPECT(strstr(wb_error_message(), "moved before"));
        step_close(&s);
    }
}

#endif
