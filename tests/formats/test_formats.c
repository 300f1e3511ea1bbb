/* test_formats.c - the route model, the check of records against a plain oracle, rows. */
#include "dump_fixture.h"
#include "support/test_seed.h"
#include "wb_msgpack_scan.h"
#include "wb_random.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
// clang-format off
#include <cmocka.h>
// clang-format on

static void expect_bad_model(const wb_route_model *m, const char *field) {
    assert_int_equal(wb_route_model_check(m), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), field));
}

static void test_model_check(void **state) {
    (void)state;
    fixture_model f;
    fixture_model_init(&f, 3, 8, 2);
    assert_int_equal(wb_route_model_check(&f.model), WB_OK);
    wb_route_model m = f.model;
    m.num_experts = 0;
    expect_bad_model(&m, "num_experts");
    m.num_experts = 65537;
    expect_bad_model(&m, "num_experts");
    m = f.model;
    m.top_k = 9;
    expect_bad_model(&m, "top_k");
    m.top_k = 0;
    expect_bad_model(&m, "top_k");
    m = f.model;
    m.n_moe_layers = 0;
    expect_bad_model(&m, "n_moe_layers");
    m = f.model;
    m.moe_layers = NULL;
    expect_bad_model(&m, "moe_layers");
    m = f.model;
    m.num_hidden_layers = 3;
    expect_bad_model(&m, "moe_layers[2]");
    m = f.model;
    memset(m.name, 'x', sizeof m.name);
    expect_bad_model(&m, "name");
    m = f.model;
    m.router[0] = '\0';
    expect_bad_model(&m, "router");
    m = f.model;
    m.fingerprint[31] = '\0';
    expect_bad_model(&m, "fingerprint");
}

static void test_model_match(void **state) {
    (void)state;
    fixture_model a, b;
    fixture_model_init(&a, 3, 8, 2);
    fixture_model_init(&b, 3, 8, 2);
    assert_int_equal(wb_route_model_match(&a.model, &b.model), WB_OK);
    b.layers[2] = 5;
    assert_int_equal(wb_route_model_match(&a.model, &b.model), WB_MISMATCH);
    assert_string_equal(wb_error_message(), "model moe_layers: expected 3, found 5");
    b.layers[2] = 3;
    b.model.fingerprint[0] = 'f';
    assert_int_equal(wb_route_model_match(&a.model, &b.model), WB_MISMATCH);
    b.model.num_experts = 9;
    assert_int_equal(wb_route_model_match(&a.model, &b.model), WB_MISMATCH);
    assert_string_equal(wb_error_message(), "model num_experts: expected 8, found 9");
}

/* The oracle: compares every pair. */
static bool ids_good(const wb_route_model *m, const wb_record *r) {
    wb_dtype dtype = wb_route_dtype(m->num_experts);
    for (uint32_t t = 0; t < r->n_tokens; t++) {
        const void *row = wb_record_row(m, r, t);
        for (uint32_t l = 0; row && l < m->n_moe_layers; l++) {
            for (uint32_t i = 0; i < m->top_k; i++) {
                uint32_t id = wb_route_id(row, dtype, l * m->top_k + i);
                if (id >= m->num_experts) return false;
                for (uint32_t j = 0; j < i; j++)
                    if (wb_route_id(row, dtype, l * m->top_k + j) == id) return false;
            }
        }
    }
    return true;
}

/* Good ids and ids with one of them changed, by every path of the check: eight u8 at a time, and one by
 * one. */
static void test_ids_against_oracle(void **state) {
    (void)state;
    uint64_t seed = test_seed(0, NULL);
    print_message("seed %" PRIu64 "\n", seed);
    fixture_rng rng = {seed};
    static const struct {
        uint32_t E, K;
    } shapes[] = {{8, 8},   {9, 8},   {64, 8}, {127, 8}, {128, 8},  {129, 8},   {160, 8},
                  {255, 8}, {256, 8}, {60, 4}, {300, 8}, {512, 10}, {65535, 8}, {1, 1}};
    uint32_t refused = 0, rounds = 0;
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        fixture_model f;
        fixture_model_init(&f, 3, shapes[s].E, shapes[s].K);
        for (int round = 0; round < 400; round++, rounds++) {
            fixture_record r;
            fixture_record_init(&r, &f.model, &rng, "r", 1, 6, 0, 1, round % 3 == 0);
            assert_int_equal(wb_record_check(&f.model, &r.record, true), WB_OK);
            size_t ids = (size_t)5 * 3 * shapes[s].K, at = fixture_below(&rng, (uint32_t)ids);
            uint32_t id = fixture_below(&rng, shapes[s].E <= 256 ? 256 : 65536);
            if (round % 2)
                id = wb_route_id(r.ids, wb_route_dtype(shapes[s].E), fixture_below(&rng, (uint32_t)ids));
            wb_route_id_set(r.ids, wb_route_dtype(shapes[s].E), at, id);
            bool good = ids_good(&f.model, &r.record);
            assert_int_equal(wb_record_check(&f.model, &r.record, true) == WB_OK, good);
            assert_int_equal(wb_record_check(&f.model, &r.record, false), WB_OK);
            refused += !good;
            fixture_record_free(&r);
        }
    }
    assert_true(refused > rounds / 20 && refused < rounds);
}

/* Each of the 28 pairs of eight choices, at both ends of the range of ids. */
static void test_every_pair(void **state) {
    (void)state;
    fixture_model f;
    fixture_model_init(&f, 1, 256, 8);
    for (uint32_t base = 0; base <= 248; base += 31) {
        for (int i = 0; i < 8; i++) {
            for (int j = 0; j < 8; j++) {
                uint8_t ids[8];
                uint32_t tokens[2] = {0};
                for (int k = 0; k < 8; k++) ids[k] = (uint8_t)(base + (uint32_t)k);
                ids[i] = ids[j];
                wb_route_rows run = {0, 1, ids, NULL};
                wb_record r = {.rid = "r", .n_tokens = 2, .tokens = tokens, .n_routes = 1, .routes = &run};
                assert_int_equal(wb_record_check(&f.model, &r, true), i == j ? WB_OK : WB_INVALID_ARGUMENT);
            }
        }
    }
}

/* Either list, at any place; the message says which. */
static void test_logprobs_are_finite(void **state) {
    (void)state;
    fixture_model f;
    fixture_model_init(&f, 1, 8, 2);
    const float wrong[] = {NAN, INFINITY, -INFINITY};
    uint32_t tokens[5] = {0};
    for (int list = 0; list < 2; list++) {
        for (uint32_t i = 0; i < 3; i++) {
            for (size_t k = 0; k < sizeof wrong / sizeof wrong[0]; k++) {
                /* Behind the last one lies what is not theirs, and is not looked at. */
                float logprobs[4] = {-1, 0, -FLT_MAX, NAN};
                wb_record r = {.rid = "r", .prompt_len = 2, .n_tokens = 5, .tokens = tokens};
                *(list ? &r.sampling_logprobs : &r.logprobs) = logprobs;
                assert_int_equal(wb_record_check(&f.model, &r, true), WB_OK);
                logprobs[i] = wrong[k];
                assert_int_equal(wb_record_check(&f.model, &r, false), WB_INVALID_ARGUMENT);
                char expected[64];
                snprintf(expected, sizeof expected, "r: %s of position %u",
                         list ? "sampling_logprobs" : "logprobs", 2 + i);
                assert_non_null(strstr(wb_error_message(), expected));
            }
        }
    }
}

static void test_rows(void **state) {
    (void)state;
    fixture_model f;
    fixture_model_init(&f, 2, 300, 2);
    assert_int_equal(wb_route_row_bytes(&f.model), 8);
    uint8_t ids[1 + 3 * 8], bits = 0x5; /* unaligned; the middle row is not valid */
    for (uint32_t i = 0; i < 12; i++) wb_route_id_set(ids + 1, WB_U16, i, 288 + i);
    wb_route_rows runs[2] = {{1, 3, ids + 1, &bits}, {6, 1, ids + 1, NULL}};
    wb_record r = {.rid = "r", .n_tokens = 9, .n_routes = 2, .routes = runs};
    assert_null(wb_record_row(&f.model, &r, 0));
    assert_ptr_equal(wb_record_row(&f.model, &r, 1), ids + 1);
    assert_null(wb_record_row(&f.model, &r, 2));
    assert_int_equal(wb_route_id(wb_record_row(&f.model, &r, 3), WB_U16, 3), 299);
    assert_null(wb_record_row(&f.model, &r, 4));
    assert_ptr_equal(wb_record_row(&f.model, &r, 6), ids + 1);
    assert_null(wb_record_row(&f.model, &r, UINT32_MAX));
}

static void test_same_experts(void **state) {
    (void)state;
    static const uint8_t a[] = {1, 7, 255}, turned[] = {255, 1, 7}, other[] = {1, 7, 254},
                         twice[] = {1, 7, 7};
    assert_true(wb_route_same_experts(a, a, WB_U8, 3));
    assert_true(wb_route_same_experts(a, turned, WB_U8, 3));
    assert_false(wb_route_same_experts(a, other, WB_U8, 3));
    assert_false(wb_route_same_experts(a, twice, WB_U8, 3));
    /* Ids that differ in their high byte alone. */
    static const uint8_t wide[] = {1, 0, 2, 1}, wide_turned[] = {2, 1, 1, 0}, high[] = {1, 1, 2, 0};
    assert_true(wb_route_same_experts(wide, wide_turned, WB_U16, 2));
    assert_false(wb_route_same_experts(wide, high, WB_U16, 2));
}

/* How many ids two sets have in common, against the plainest loop: widths on both sides of every way of
 * counting. */
static void test_common(void **state) {
    (void)state;
    fixture_rng rng = {31};
    static const uint32_t widths[] = {1, 2, 8, 31, 32, 33, 60};
    for (int i = 0; i < 400; i++) {
        fixture_model f;
        const uint32_t K = widths[fixture_below(&rng, 7)],
                       E = fixture_below(&rng, 2) ? 64 : 257 + fixture_below(&rng, 50);
        const wb_dtype dtype = wb_route_dtype(E);
        uint8_t rows[2][60 * 2];
        uint32_t expected = 0;
        fixture_model_init(&f, 1, E, K);
        fixture_fill_ids(&f.model, rows[0], 1, &rng);
        fixture_fill_ids(&f.model, rows[1], 1, &rng);
        for (uint32_t a = 0; a < K; a++)
            for (uint32_t b = 0; b < K; b++)
                expected += wb_route_id(rows[0], dtype, a) == wb_route_id(rows[1], dtype, b);
        assert_int_equal(wb_route_common(rows[0], rows[1], dtype, K), expected);
        assert_int_equal(wb_route_common(rows[0], rows[0], dtype, K), K);
        assert_int_equal(wb_route_same_experts(rows[0], rows[1], dtype, K), expected == K);
    }
    /* Ids that differ in their high byte alone, and the highest. */
    static const uint8_t low[] = {1, 0, 255, 255}, high[] = {1, 1, 255, 255};
    assert_int_equal(wb_route_common(low, high, WB_U16, 2), 1);
}

/* Positions 0, 1, 2, 4, 5, the last in a run of its own: three have a row at the position before. */
static void test_repeats(void **state) {
    (void)state;
    fixture_model f;
    fixture_model_init(&f, 2, 8, 2);
    static const uint8_t ids[] = {
        1,         2, 3, 4, /* 1 */ 2, 1, 3, 5, /* 2 */ 1, 2, 5, 3, /* 3: not valid */ 1, 2, 5, 3,
        /* 4 */ 1, 2, 5, 3, /* 5 */ 2, 1, 0, 3};
    const uint8_t valid = 0x17;
    const wb_route_rows runs[] = {{0, 5, ids, &valid}, {5, 1, ids + 20, NULL}};
    const wb_record r = {.rid = "r", .n_tokens = 9, .n_routes = 2, .routes = runs};
    uint64_t repeats[2] = {100, 200};
    assert_int_equal(wb_record_count_repeats(&f.model, &r, repeats), 3);
    assert_int_equal(repeats[0], 103);
    assert_int_equal(repeats[1], 201);
}

static void test_kl(void **state) {
    (void)state;
    const wb_kl_terms same = wb_kl_of_token(-1.5f, -1.5f), half = wb_kl_of_token(-1.0f, -2.0f),
                      nothing = wb_kl_of_token(NAN, 0);
    assert_true(same.k1 == 0 && same.k3 == 0 && !same.outside);
    assert_true(half.k1 == 1 && fabs(half.k3 - exp(-1.0)) < 1e-15 && half.outside);
    assert_true(nothing.outside && isnan(nothing.k1) && isnan(nothing.k3));
    assert_false(wb_kl_of_token(0, 0.6875f).outside);
    assert_true(wb_kl_of_token(0, 0.703125f).outside);
}

/* Lengths in every encoding, and what is incomplete against what is wrong. */
static void test_scan(void **state) {
    (void)state;
    static const struct {
        const char *bytes;
        size_t size;
        wb_scan_error error;
    } cases[] = {
        {"", 0, WB_SCAN_INCOMPLETE},
        {"\x01", 1, WB_SCAN_OK},
        {"\xc1", 1, WB_SCAN_INVALID},
        {"\x92\x01", 2, WB_SCAN_INCOMPLETE},
        {"\x92\x01\xc1", 3, WB_SCAN_INVALID},
        {"\x81\xa1k\x93\x01\xff\xc0", 7, WB_SCAN_OK},
        {"\xc4\x03"
         "abc",
         5, WB_SCAN_OK},
        {"\xc4\x04"
         "abc",
         5, WB_SCAN_INCOMPLETE},
        {"\xd9\x03"
         "abc",
         5, WB_SCAN_OK},
        {"\xc7\x01\x05z", 4, WB_SCAN_OK},
        {"\xd8"
         "tuvwxyz0123456789",
         18, WB_SCAN_OK},
        {"\xcb"
         "12345678",
         9, WB_SCAN_OK},
        {"\xcf"
         "1234567",
         8, WB_SCAN_INCOMPLETE},
        {"\xdd\xff\xff\xff\xff", 5, WB_SCAN_INCOMPLETE},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        wb_scan s = wb_scan_range(cases[i].bytes, 0, cases[i].size);
        assert_int_equal(wb_scan_skip(&s), cases[i].error == WB_SCAN_OK);
        assert_int_equal(s.error, cases[i].error);
        if (s.error == WB_SCAN_OK) assert_int_equal(s.pos, cases[i].size);
    }
    uint8_t deep[WB_SCAN_MAX_DEPTH + 2];
    memset(deep, 0x91, sizeof deep);
    deep[WB_SCAN_MAX_DEPTH] = 0xc0;
    wb_scan s = wb_scan_range(deep, 0, sizeof deep);
    assert_true(wb_scan_skip(&s));
    deep[WB_SCAN_MAX_DEPTH] = 0x90;
    s = wb_scan_range(deep, 0, sizeof deep);
    assert_false(wb_scan_skip(&s));
    assert_int_equal(s.error_pos, WB_SCAN_MAX_DEPTH);
    /* A count is refused when it is read, before anyone could allocate for it. */
    s = wb_scan_range("\xdd\xff\xff\xff\xff\x01", 0, 6);
    assert_int_equal(wb_scan_array(&s), 0);
    assert_int_equal(s.error, WB_SCAN_INCOMPLETE);
    s = wb_scan_range("\x82\x01\x02\x03", 0, 4);
    assert_int_equal(wb_scan_map(&s), 0);
    assert_int_equal(s.error, WB_SCAN_INCOMPLETE);
    /* The first error sticks. */
    s = wb_scan_range("\x05\xa1x", 0, 3);
    assert_int_equal(wb_scan_uint(&s, 4), 0);
    assert_int_equal(s.error, WB_SCAN_INVALID);
    size_t length = 77;
    assert_null(wb_scan_str(&s, &length));
    assert_int_equal(length, 77);
    assert_int_equal(s.error_pos, 0);
}

static void test_names(void **state) {
    (void)state;
    assert_int_equal(wb_route_dtype(256), WB_U8);
    assert_int_equal(wb_route_dtype(257), WB_U16);
    assert_string_equal(wb_finish_name(WB_FINISH_ABORT), "abort");
}

/* Walking and counting against the plain question for each position, on records with holes. */
static void test_walk_and_count_against_positions(void **state) {
    (void)state;
    enum { ROWS = 40, L = 3, K = 2, E = 300 };
    static const uint32_t layers[L] = {0, 1, 2};
    wb_route_model m = {
        .num_hidden_layers = L, .n_moe_layers = L, .moe_layers = layers, .num_experts = E, .top_k = K};
    uint8_t ids[2][ROWS * L * K * 2], valid[(ROWS + 7) / 8] = {0};
    uint64_t random = 5, counts[L * E] = {0}, expected[L * E] = {0};
    for (size_t i = 0; i < ROWS * L * K; i++)
        for (int run = 0; run < 2; run++) wb_route_id_set(ids[run], WB_U16, i, wb_random_below(&random, E));
    for (size_t r = 0; r < ROWS; r++) wb_row_set_valid(valid, r, wb_random_below(&random, 3) > 0);
    wb_route_rows runs[] = {{5, ROWS, ids[0], valid}, {60, ROWS, ids[1], NULL}};
    wb_record record = {.rid = "r", .n_tokens = 200, .n_routes = 2, .routes = runs};

    wb_row_walk walk = wb_rows_of(&m, &record);
    for (uint32_t position = 0; position < 200; position++) {
        const void *row = wb_record_row(&m, &record, position);
        bool in_first = position >= 5 && position < 5 + ROWS && wb_row_valid(valid, position - 5);
        const bool in_second = position >= 60 && position < 60 + ROWS;
        assert_int_equal(row != NULL, in_first || in_second);
        if (!row) continue;
        assert_true(wb_row_next(&walk));
        assert_int_equal(walk.position, position);
        assert_ptr_equal(walk.row, row);
        if (position < 10 || position >= 70) continue;
        for (size_t i = 0; i < L * K; i++) expected[i / K * E + wb_route_id(row, WB_U16, i)]++;
    }
    assert_false(wb_row_next(&walk));
    assert_false(wb_row_next(&walk));
    wb_record_count(&m, &record, 10, 70, counts);
    assert_memory_equal(counts, expected, sizeof counts);
}

/* Bits in long stretches and short ones, from every row on, against the question for each row. */
static void test_validity_bits(void **state) {
    (void)state;
    enum { ROWS = 203, BYTES = (ROWS + 7) / 8 };
    uint64_t random = 3;
    for (int round = 0; round < 50; round++) {
        uint8_t valid[BYTES] = {0}, copy[BYTES + 1];
        for (uint32_t r = 0, n; r < ROWS; r += n) {
            n = 1 + wb_random_below(&random, round % 2 ? 4 : 60);
            bool is_valid = wb_random_below(&random, 2) == 0;
            for (uint32_t i = r; i < r + n && i < ROWS; i++) wb_row_set_valid(valid, i, is_valid);
        }
        for (uint32_t r = 0; r < ROWS; r++) {
            uint32_t end = r + 1 + wb_random_below(&random, ROWS - r), n = wb_row_stretch(valid, r, end);
            assert_true(n > 0 && r + n <= end);
            for (uint32_t i = r; i < r + n; i++)
                assert_int_equal(wb_row_valid(valid, i), wb_row_valid(valid, r));
            if (r + n < end) assert_int_not_equal(wb_row_valid(valid, r + n), wb_row_valid(valid, r));

            size_t bytes = (end - r + 7) / 8;
            memset(copy, 0xa5, sizeof copy);
            wb_row_copy_valid(valid, r, end - r, copy);
            for (uint32_t i = 0; i < bytes * 8; i++)
                assert_int_equal(wb_row_valid(copy, i), r + i < end && wb_row_valid(valid, r + i));
            assert_int_equal(copy[bytes], 0xa5);
        }
    }
    uint8_t ones[2];
    wb_row_copy_valid(NULL, 5, 11, ones);
    assert_int_equal(ones[0], 0xff);
    assert_int_equal(ones[1], 0x07);
    assert_int_equal(wb_row_stretch(NULL, 7, 40), 33);
}

/* The stretches of a record tile its positions [first, end), and say of each what wb_record_row says. */
static void check_stretches(const wb_route_model *m, const wb_record *r, uint32_t first, uint32_t end) {
    size_t row_bytes = wb_route_row_bytes(m);
    for (uint32_t position = first, n; position < end; position += n) {
        const void *rows = m;
        n = wb_record_stretch(m, r, position, end, &rows);
        assert_true(n > 0 && n <= end - position);
        for (uint32_t i = 0; i < n; i++)
            assert_ptr_equal(wb_record_row(m, r, position + i),
                             rows ? (const uint8_t *)rows + i * row_bytes : NULL);
        /* A stretch ends where rows end or begin, or where a run does. */
        uint32_t next = position + n;
        bool run_ends = false;
        for (uint32_t i = 0; i < r->n_routes; i++)
            run_ends |= next == r->routes[i].start + r->routes[i].rows || next == r->routes[i].start;
        if (next < end && !run_ends) assert_int_not_equal(!rows, !wb_record_row(m, r, next));
    }
}

/* Records of every width of ids, of more rows and layers than are counted together, against the question for
 * each position and choice. */
static void test_rows_of_records_against_positions(void **state) {
    (void)state;
    static const struct {
        uint32_t L, E, K;
    } shapes[] = {{3, 8, 2}, {30, 256, 8}, {13, 300, 3}, {2, 4000, 10}};
    fixture_rng rng = {12};
    for (uint32_t i = 0; i < 64; i++) {
        fixture_model f;
        fixture_record r;
        uint32_t L = shapes[i / 16].L, E = shapes[i / 16].E, K = shapes[i / 16].K, rows = 0;
        fixture_model_init(&f, L, E, K);
        fixture_record_init(&r, &f.model, &rng, "r", 1, 2 + fixture_below(&rng, 150), fixture_below(&rng, 9),
                            i % 4, i % 3 > 0);
        uint32_t first = fixture_below(&rng, 40), end = i % 5 ? fixture_below(&rng, 160) : UINT32_MAX;
        uint64_t *counts = calloc((size_t)L * E, sizeof *counts);
        uint64_t *expected = calloc((size_t)L * E, sizeof *expected);
        for (uint32_t position = 0; position < r.record.n_tokens; position++) {
            const void *row = wb_record_row(&f.model, &r.record, position);
            rows += row != NULL;
            for (size_t at = 0; row && position >= first && position < end && at < (size_t)L * K; at++)
                expected[at / K * E + wb_route_id(row, wb_route_dtype(E), at)]++;
        }
        wb_record_count(&f.model, &r.record, first, end, counts);
        assert_memory_equal(counts, expected, (size_t)L * E * sizeof *counts);
        assert_int_equal(wb_record_count_rows(&r.record), rows);
        check_stretches(&f.model, &r.record, 0, r.record.n_tokens);
        for (uint32_t last = 1; last < r.record.n_tokens; last++)
            check_stretches(&f.model, &r.record, first % last, last);
        free(counts);
        free(expected);
        fixture_record_free(&r);
    }
}

/* Rule 37: layers with a K of their own, counted and compared as plain loops do. */
static void test_rule_37_layers_of_their_own_k(void **state) {
    (void)state;
    enum { L = 5, E = 9, K = 4, TOKENS = 60 };
    fixture_rng rng = {37};
    fixture_model f;
    fixture_record r;
    uint64_t counts[L * E] = {0}, expected[L * E] = {0}, repeats[L] = {0}, same[L] = {0}, pairs = 0;
    fixture_model_init(&f, L, E, K);
    fixture_model_vary(&f, 2);
    const wb_route_model *m = &f.model;
    assert_int_equal(wb_route_model_check(m), WB_OK);
    assert_int_equal(wb_route_row_ids(m), 4 + 3 + 4 + 1 + 2);
    assert_int_equal(wb_route_weighted(m), 7);
    fixture_record_init(&r, m, &rng, "r", 3, TOKENS, 0, 2, true);
    /* Some rows are their neighbours' again. */
    for (uint32_t t = 3; t < TOKENS; t += 5)
        memcpy(r.ids + t * wb_route_row_bytes(m), r.ids + (t - 1) * wb_route_row_bytes(m), 7);
    for (uint32_t t = 0; t < TOKENS; t++) {
        const uint8_t *row = wb_record_row(m, &r.record, t);
        const uint8_t *before = t > 0 ? wb_record_row(m, &r.record, t - 1) : NULL;
        pairs += row && before;
        for (uint32_t l = 0; row && l < L; l++) {
            const size_t first = wb_route_layer_first(m, l);
            uint32_t common = 0;
            for (uint32_t k = 0; k < f.layer_top_k[l]; k++) {
                expected[l * E + row[first + k]]++;
                for (uint32_t j = 0; before && j < f.layer_top_k[l]; j++)
                    common += row[first + k] == before[first + j];
            }
            same[l] += before && common == f.layer_top_k[l];
        }
    }
    wb_record_count(m, &r.record, 0, UINT32_MAX, counts);
    assert_memory_equal(counts, expected, sizeof counts);
    assert_int_equal(wb_record_count_repeats(m, &r.record, repeats), pairs);
    assert_memory_equal(repeats, same, sizeof repeats);
    assert_int_equal(wb_record_check(m, &r.record, true), WB_OK);
    r.ids[5] = r.ids[4]; /* layer 1 has ids 4 .. 6 of a row */
    wb_row_set_valid(r.bits, 0, true);
    assert_int_equal(wb_record_check(m, &r.record, true), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "position 0, MoE layer 1 (model layer 2)"));
    fixture_record_free(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_37_layers_of_their_own_k),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_walk_and_count_against_positions),
        cmocka_unit_test(test_validity_bits),
        cmocka_unit_test(test_rows_of_records_against_positions),
        cmocka_unit_test(test_model_check),
        cmocka_unit_test(test_model_match),
        cmocka_unit_test(test_ids_against_oracle),
        cmocka_unit_test(test_every_pair),
        cmocka_unit_test(test_logprobs_are_finite),
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_same_experts),
        cmocka_unit_test(test_common),
        cmocka_unit_test(test_repeats),
        cmocka_unit_test(test_kl),
        cmocka_unit_test(test_scan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
