/* made_up_dumps.c - two dumps of nearly the same records, for the checks of `waybill`: check_numbers.py
 * computes anew what the commands say of them.
 *
 *   made_up_dumps DIRECTORY SEED      writes a.wbr, and b.wbr, to the directory
 *
 * B has most of A's records and some of its own; rows with their choices in another order, with another
 * expert, missing rows; another token, or fewer; other log-probabilities and weight versions. An even seed
 * makes ids of 8 bits, an odd one of 16; one that 3 divides a model with indexers. Records of a group share
 * their prompts. */
#include "formats/dump_fixture.h"
#include "support/usage.h"

enum { N = 40, PROMPT = 9, L = 3, K = 4, MAX_TOKENS = 80 };

typedef struct made_up {
    fixture_model f;
    fixture_rng rng;
    wb_dump_writer *a, *b;
    uint8_t prompt_ids[(PROMPT + 1) * L * K * 2];
} made_up;

static void require(wb_status status) {
    if (status == WB_OK) return;
    fprintf(stderr, "made_up_dumps: %s\n", wb_error_message());
    exit(1);
}

static bool one_in(made_up *m, uint32_t n) {
    return fixture_below(&m->rng, n) == 0;
}

static uint8_t *layer_at(const made_up *m, uint8_t *ids, uint32_t row, uint32_t l) {
    return ids + (row * L + l) * K * wb_dtype_size(wb_route_dtype(m->f.model.num_experts));
}

/* Another order of the K choices. */
static void turn(const made_up *m, uint8_t *layer) {
    const wb_dtype dtype = wb_route_dtype(m->f.model.num_experts);
    const uint32_t first = wb_route_id(layer, dtype, 0);
    for (uint32_t k = 0; k + 1 < K; k++) wb_route_id_set(layer, dtype, k, wb_route_id(layer, dtype, k + 1));
    wb_route_id_set(layer, dtype, K - 1, first);
}

/* An expert that is none of the layer's K in place of one of them. */
static void exchange(made_up *m, uint8_t *layer) {
    const wb_dtype dtype = wb_route_dtype(m->f.model.num_experts);
    uint32_t e = fixture_below(&m->rng, m->f.model.num_experts);
    for (uint32_t k = 0; k < K; k++)
        if (wb_route_id(layer, dtype, k) == e) {
            e = (e + 1) % m->f.model.num_experts;
            k = UINT32_MAX; /* from the first choice again */
        }
    wb_route_id_set(layer, dtype, fixture_below(&m->rng, K), e);
}

/* Some layers go where the token before went, in the same order or another. */
static void repeat_some(made_up *m, fixture_record *r) {
    const size_t layer_bytes = wb_route_row_bytes(&m->f.model) / L;
    for (uint32_t t = 1; t < r->record.n_tokens; t++)
        for (uint32_t l = 0; l < L; l++) {
            if (!one_in(m, 3)) continue;
            memcpy(layer_at(m, r->ids, t, l), layer_at(m, r->ids, t - 1, l), layer_bytes);
            if (one_in(m, 2)) turn(m, layer_at(m, r->ids, t, l));
        }
}

static void change_rows(made_up *m, fixture_record *r) {
    for (uint32_t t = 0; t < r->record.n_tokens; t++) {
        if (!one_in(m, 4)) continue;
        for (uint32_t l = 0; l < L; l++) {
            if (one_in(m, 2)) turn(m, layer_at(m, r->ids, t, l));
            if (one_in(m, 2)) exchange(m, layer_at(m, r->ids, t, l));
        }
    }
}

/* What indexers chose: in A of all rows but in some records; in B the same, or other choices, or of fewer
 * rows. */
static void index_record(made_up *m, fixture_record *r, uint32_t i) {
    free(r->counts);
    free(r->ends);
    free(r->positions);
    fixture_record_index(r, &m->f.model, &m->rng, i % 4);
    if (i % 11 == 9) r->record.indexer = NULL;
}

static void change_index(made_up *m, fixture_record *r, uint32_t i) {
    if (i % 3 == 1) index_record(m, r, i + 1);
    if (i % 6 == 4) index_record(m, r, i); /* of a record that ended earlier */
    if (i % 5 == 3) r->indexer.rows--;
}

/* What B has in place of A's record. */
static void change(made_up *m, fixture_record *r, uint32_t i) {
    wb_record *record = &r->record;
    const uint32_t n = record->n_tokens - record->prompt_len;
    change_rows(m, r);
    for (uint32_t t = 0; t < n; t++) {
        r->logprobs[t] += (float)fixture_below(&m->rng, 256) / 128.0f - 1.0f;
        if (r->sampling_logprobs) r->sampling_logprobs[t] -= 0.25f;
    }
    for (uint32_t b = 0; b < (MAX_TOKENS + 7) / 8; b++)
        r->bits[b] = (uint8_t)(fixture_next(&m->rng) | fixture_next(&m->rng));
    if (i % 4 == 1) r->routes[0].valid = r->bits;
    r->spans[0].weight_version += i % 3;
    if (i % 5 == 2) r->tokens[record->n_tokens / 2] ^= 1;
    if (i % 7 == 3) record->logprobs = NULL;
    if (i % 6 == 4) { /* it ended earlier */
        record->n_tokens -= 2;
        r->routes[record->n_routes - 1].rows -= 2;
        r->spans[1].end -= 2;
    }
    if (i % 9 == 8) record->n_spans = 0;
}

static void write_record(made_up *m, uint32_t i) {
    fixture_record r;
    char rid[32];
    const uint32_t n_tokens = PROMPT + 8 + fixture_below(&m->rng, MAX_TOKENS - PROMPT - 8);
    snprintf(rid, sizeof rid, "request-%u", i);
    fixture_record_init(&r, &m->f.model, &m->rng, rid, PROMPT, n_tokens, 0, 1, false);
    repeat_some(m, &r);
    if (i % 4 == 0) memcpy(m->prompt_ids, r.ids, PROMPT * wb_route_row_bytes(&m->f.model));
    memcpy(r.ids, m->prompt_ids, PROMPT * wb_route_row_bytes(&m->f.model));
    for (uint32_t t = 0; t < n_tokens; t++) r.tokens[t] %= 1000;
    r.record.group = i / 4;
    r.record.sample = i % 4;
    r.record.n_spans = 2;
    if (i % 2) fixture_record_sample(&r, &m->rng, false);
    if (m->f.model.n_indexer_layers > 0) index_record(m, &r, i);
    if (i % 8 != 5) require(wb_dump_append(m->a, &r.record));
    change(m, &r, i);
    if (m->f.model.n_indexer_layers > 0) change_index(m, &r, i);
    if (i % 8 != 7) require(wb_dump_append(m->b, &r.record));
    fixture_record_free(&r);
}

int main(int argc, char **argv) {
    int code = 0;
    if (usage_ends(argc, argv, 2, 2, "usage: made_up_dumps DIRECTORY SEED\n", &code)) return code;
    const uint64_t seed = strtoull(argv[2], NULL, 10);
    made_up m = {.rng = {seed * 1000003 + 17}};
    char path[4096];
    wb_dump_options options = wb_dump_options_default();
    fixture_model_init(&m.f, L, seed % 2 ? 300 : 24, K);
    if (seed % 3 == 0) fixture_model_index(&m.f, 6);
    snprintf(path, sizeof path, "%s/a.wbr", argv[1]);
    require(wb_dump_create(path, &m.f.model, NULL, &m.a));
    snprintf(path, sizeof path, "%s/b.wbr", argv[1]);
    options.codec = WB_CODEC_ZSTD;
    require(wb_dump_create(path, &m.f.model, &options, &m.b));
    for (uint32_t i = 0; i < N; i++) write_record(&m, i);
    require(wb_dump_finish(m.a));
    require(wb_dump_finish(m.b));
    return 0;
}
