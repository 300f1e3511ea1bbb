/* test_hash_routes.c - rule 9: in layers that are routed by a table, records are the table's. */
#include "replay_fixture.h"

enum { E = 300, K = 3, L = 4, N_TOKENS = 7 };

/* MoE layers 1 and 3 are hash-routed, by the tables that make the fixture's record right. */
static const uint32_t hashed[] = {1, 3};

typedef struct tables {
    wb_hash_routes routes;
    int32_t *ids;
} tables;

static void tables_open(tables *t, const wb_route_model *m, const fixture_record *f) {
    const uint32_t vocab = fixture_token(f->seed, N_TOKENS);
    t->ids = calloc(2 * (size_t)vocab * K, sizeof *t->ids);
    for (uint32_t i = 0; i < 2; i++)
        for (uint32_t p = 0; p < N_TOKENS; p++)
            for (uint32_t k = 0; k < K; k++)
                t->ids[((size_t)i * vocab + f->tokens[p]) * K + k] =
                    (int32_t)fixture_id(m, f->seed, p, hashed[i], k);
    t->routes =
        (wb_hash_routes){.n_hash_layers = 2, .hash_layers = hashed, .vocab_size = vocab, .ids = t->ids};
}

static void has(const char *part) {
    if (strstr(wb_error_message(), part)) return;
    fail_msg("expected \"%s\" in \"%s\"", part, wb_error_message());
}

/* Ids of a row at any of its positions, in a layer of either kind. */
static uint8_t *row_of(fixture_record *f, const wb_route_model *m, uint32_t position) {
    return f->blocks[0] + 1 + position * wb_route_row_bytes(m);
}

static void swap(uint8_t *row, uint32_t layer, uint32_t k, uint32_t j) {
    const wb_dtype dtype = wb_route_dtype(E);
    const uint32_t a = wb_route_id(row, dtype, layer * K + k), b = wb_route_id(row, dtype, layer * K + j);
    wb_route_id_set(row, dtype, layer * K + k, b);
    wb_route_id_set(row, dtype, layer * K + j, a);
}

static void test_rule_9_hash_rows_are_the_tables(void **unused) {
    (void)unused;
    const wb_route_model m = fixture_model(E, K, L);
    fixture_record f;
    tables t;
    wb_replay *r = NULL;
    fixture_complete(&f, &m, 3, N_TOKENS);
    tables_open(&t, &m, &f);
    wb_replay_options options = wb_replay_options_default();
    options.hash = &t.routes;
    OK(wb_replay_open(&m, &options, &r));
    /* A learned layer may be anything; a hash-routed one not even in another order. */
    swap(row_of(&f, &m, 2), 0, 0, 1);
    OK(wb_record_check_hash(&m, &t.routes, &f.record));
    swap(row_of(&f, &m, 5), 3, 1, 2);
    assert_int_equal(wb_replay_add(r, &m, &f.record), WB_MISMATCH);
    has("record r-3: position 5, MoE layer 3 (model layer 5), which is routed by a table");
    has("for token 3005");
    swap(row_of(&f, &m, 5), 3, 1, 2);
    /* Another expert, that is in no place of the row: all neighbours of a fixture's ids are below them. */
    const uint32_t id = wb_route_id(row_of(&f, &m, 0), wb_route_dtype(E), K);
    wb_route_id_set(row_of(&f, &m, 0), wb_route_dtype(E), K, (id + 1) % E);
    assert_int_equal(wb_replay_add(r, &m, &f.record), WB_MISMATCH);
    has("position 0, MoE layer 1 (model layer 3)");
    wb_route_id_set(row_of(&f, &m, 0), wb_route_dtype(E), K, id);
    OK(wb_replay_add(r, &m, &f.record));
    wb_replay_close(r);
    free(t.ids);
    fixture_close(&f);
}

/* Rows that are not valid are not looked at; a token that no table has is one of another model. */
static void test_other_rows_and_tokens(void **unused) {
    (void)unused;
    const wb_route_model m = fixture_model(E, K, L);
    fixture_record f;
    tables t;
    fixture_complete(&f, &m, 3, N_TOKENS);
    tables_open(&t, &m, &f);
    const uint8_t all_but_4 = 0x6f;
    swap(row_of(&f, &m, 4), 1, 0, 1);
    assert_int_equal(wb_record_check_hash(&m, &t.routes, &f.record), WB_MISMATCH);
    f.runs[0].valid = &all_but_4;
    OK(wb_record_check_hash(&m, &t.routes, &f.record));
    t.routes.n_hash_layers = 0;
    t.routes.vocab_size = f.tokens[3];
    assert_int_equal(wb_record_check_hash(&m, &t.routes, &f.record), WB_MISMATCH);
    has("position 3: expected a token below 3003, found 3003");
    f.runs[0].valid = NULL;
    free(t.ids);
    fixture_close(&f);
}

static void test_layers_of_the_tables_are_the_models(void **unused) {
    (void)unused;
    const wb_route_model m = fixture_model(E, K, L);
    static const uint32_t beyond[] = {L};
    const wb_hash_routes routes = {.n_hash_layers = 1, .hash_layers = beyond, .vocab_size = 1};
    wb_replay_options options = wb_replay_options_default();
    wb_replay *r = NULL;
    options.hash = &routes;
    assert_int_equal(wb_replay_open(&m, &options, &r), WB_INVALID_ARGUMENT);
    has("hash: expected MoE layers below 4, found 4");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_9_hash_rows_are_the_tables),
        cmocka_unit_test(test_other_rows_and_tokens),
        cmocka_unit_test(test_layers_of_the_tables_are_the_models),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
