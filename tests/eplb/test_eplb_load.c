/* test_eplb_load.c - load statistics: what is counted and what is not, the window of passes. Families of
 * bugs that other systems had are named after the thread they were reported in. */
#include "eplb_load_fixture.h"
#include "wb_random.h"

#include <inttypes.h>

/* ---- what is counted ------------------------------------------------------------------------- */

static void test_each_valid_row_counts_its_experts(void **state) {
    (void)state;
    wb_load *load = open_one(1, 4, 0, 2);
    decode(load, 0, 0, 3, 2, (uint8_t[]){0, 1, 1, 3, 3, 1});
    decode(load, 0, 0, 2, 1, (uint8_t[]){3, 3}); /* another K in the same layer */
    assert_counts(load, 0, 0, 0, 0, 0);          /* the pass is still open */
    end_pass(load);
    assert_counts(load, 0, 1, 3, 0, 4);
    wb_load_close(load);
}

static void test_rows_of_a_route_tensor_are_read_by_stride(void **state) {
    (void)state;
    wb_load *load = open_one(2, 300, 0, 1);
    const uint16_t tensor[3][2][2] = {{{1, 2}, {299, 256}}, {{9, 9}, {9, 9}}, {{1, 7}, {255, 256}}};
    uint8_t unaligned[sizeof tensor + 1];
    memcpy(unaligned + 1, tensor, sizeof tensor);
    for (int32_t l = 0; l < 2; l++) {
        wb_routed_rows rows = {unaligned + 1 + 4 * l, WB_U16, 8, 3, 2, (uint8_t[]){0xfd}};
        assert_int_equal(wb_load_record(load, 0, WB_PHASE_PREFILL, l, &rows), WB_OK);
    }
    end_pass(load);
    double counts[600],
        expected[600] = {[1] = 2, [2] = 1, [7] = 1, [300 + 255] = 1, [300 + 256] = 2, [300 + 299] = 1};
    assert_int_equal(wb_load_counts(load, 0, ALL, counts), WB_OK);
    assert_doubles(counts, expected, 600);
    wb_load_close(load);
}

static void test_phases_are_apart(void **state) {
    (void)state;
    wb_load *load = open_one(1, 3, 0, 2);
    for (uint32_t phase = 0; phase < WB_N_PHASES; phase++) {
        wb_routed_rows rows =
            rows_u8(phase + 1, 1, (uint8_t[]){(uint8_t)phase, (uint8_t)phase, (uint8_t)phase});
        assert_int_equal(wb_load_record(load, 0, (wb_phase)phase, 0, &rows), WB_OK);
    }
    end_pass(load);
    for (uint32_t set = 1; set <= ALL; set++) {
        double counts[3], expected[3] = {set & 1 ? 1 : 0, set & 2 ? 2 : 0, set & 4 ? 3 : 0};
        assert_int_equal(wb_load_counts(load, 0, set, counts), WB_OK);
        assert_doubles(counts, expected, 3);
    }
    double counts[3] = {-7, -7, -7};
    assert_int_equal(wb_load_counts(load, 0, 0, counts), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_load_counts(load, 0, 8, counts), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_load_pass_counts(load, 0, 9, 0, counts), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_load_pass_counts(load, 0, ALL, 1, counts), WB_NOT_FOUND);
    assert_int_equal(wb_load_counts(load, 1, ALL, counts), WB_INVALID_ARGUMENT);
    assert_doubles(counts, (double[]){-7, -7, -7}, 3);
    wb_load_close(load);
}

static void test_vllm_38128_padding_is_not_counted(void **state) {
    (void)state;
    wb_load *load = open_one(1, 4, 0, 2);
    wb_routed_rows rows = rows_u8(10, 1, (uint8_t[]){0, 255, 1, 0, 0, 0, 0, 0, 2, 99});
    rows.valid = (uint8_t[]){0x05, 0xfd}; /* rows 0, 2 and 8; bits beyond row 9 mean nothing */
    assert_int_equal(wb_load_record(load, 0, WB_PHASE_DECODE, 0, &rows), WB_OK);
    end_pass(load);
    assert_counts(load, 0, 1, 1, 1, 0);
    wb_load_close(load);
}

static void test_sglang_16044_draft_layers_have_their_own_region(void **state) {
    (void)state;
    const wb_load_region regions[] = {{"target", 2, 3, 0}, {"draft", 1, 2, 0}};
    wb_load *load = open_load(2, regions, 4, 1);
    decode(load, 0, 0, 2, 1, (uint8_t[]){0, 2});
    decode(load, 1, 0, 3, 1, (uint8_t[]){1, 1, 0}); /* layer 0 of the draft is not layer 0 of the target */
    assert_int_equal(wb_load_enable(load, 1, false), WB_OK);
    decode(load, 1, 0, 3, 1, (uint8_t[]){1, 1, 0});
    decode(load, 0, 1, 1, 1, (uint8_t[]){1});
    end_pass(load);
    assert_counts(load, 0, 1, 0, 1, 0, 1, 0);
    assert_counts(load, 1, 1, 2);
    assert_int_equal(wb_load_enable(load, 1, true), WB_OK);
    decode(load, 1, 0, 1, 1, (uint8_t[]){0});
    end_pass(load);
    assert_counts(load, 0, 1, 0, 1, 0, 1, 0);
    assert_counts(load, 1, 2, 2);
    assert_int_equal(wb_load_enable(load, 2, true), WB_INVALID_ARGUMENT);
    wb_load_close(load);
}

static void test_a_region_that_is_off_still_checks_where_a_record_goes(void **state) {
    (void)state;
    wb_load *load = open_one(2, 3, 0, 4);
    wb_routed_rows rows = rows_u8(1, 1, (uint8_t[]){1});
    assert_int_equal(wb_load_enable(load, 0, false), WB_OK);
    assert_int_equal(wb_load_record(load, 0, WB_PHASE_DECODE, 1, &rows), WB_OK);
    assert_int_equal(wb_load_record(load, 0, WB_PHASE_DECODE, -1, &rows), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_load_record(load, 1, WB_PHASE_DECODE, 0, &rows), WB_INVALID_ARGUMENT);
    end_pass(load);
    assert_int_equal(wb_load_passes(load), 0);
    wb_load_close(load);
}

static void test_sglang_34974_a_record_without_a_layer_is_an_error(void **state) {
    (void)state;
    wb_load *load = open_one(2, 4, 0, 2);
    wb_routed_rows rows = rows_u8(1, 1, (uint8_t[]){3});
    const int32_t layers[] = {-1, 2, INT32_MIN, INT32_MAX};
    for (size_t i = 0; i < sizeof layers / sizeof layers[0]; i++) {
        assert_int_equal(wb_load_record(load, 0, WB_PHASE_DECODE, layers[i], &rows), WB_INVALID_ARGUMENT);
        assert_message_has("a record needs its layer, expected 0..1");
    }
    decode(load, 0, 1, 1, 1, (uint8_t[]){0});
    end_pass(load);
    assert_counts(load, 0, 0, 0, 0, 0, 1, 0, 0, 0);
    wb_load_close(load);
}

static void test_sglang_46_each_layer_counts_in_its_own_row(void **state) {
    (void)state;
    wb_load *load = open_one(3, 2, 0, 2);
    for (int32_t l = 0; l < 3; l++) decode_n(load, l, (uint8_t)(l % 2), (uint32_t)l + 1);
    end_pass(load);
    assert_counts(load, 0, 1, 0, 0, 2, 3, 0);
    wb_load_close(load);
}

static void test_sglang_22525_shared_experts_are_not_counted(void **state) {
    (void)state;
    wb_load *load = open_one(2, 3, 2, 2);
    decode(load, 0, 0, 2, 3, (uint8_t[]){0, 2, 3, 1, 2, 4});
    wb_routed_rows rows = rows_u8(2, 2, (uint8_t[]){0, 3, 4, 5});
    assert_int_equal(wb_load_record(load, 0, WB_PHASE_DECODE, 1, &rows), WB_INVALID_ARGUMENT);
    assert_message_has(
        "\"target\": row 1, choice 1, layer 1: expected an expert below 5 (3 routed, 2 shared), found 5");
    end_pass(load);
    assert_counts(load, 0, 1, 1, 2, 0, 0, 0);
    wb_load_close(load);

    load = open_one(1, 256, 1, 2); /* ids of shared experts beyond u8 */
    const uint16_t wide[] = {255, 256};
    rows = (wb_routed_rows){.ids = wide, .dtype = WB_U16, .T = 1, .K = 2};
    assert_int_equal(wb_load_record(load, 0, WB_PHASE_DECODE, 0, &rows), WB_OK);
    rows.ids = (const uint16_t[]){257, 0};
    assert_int_equal(wb_load_record(load, 0, WB_PHASE_DECODE, 0, &rows), WB_INVALID_ARGUMENT);
    decode(load, 0, 0, 1, 1, (uint8_t[]){255});
    end_pass(load);
    double counts[256], expected[256] = {[255] = 2};
    assert_int_equal(wb_load_counts(load, 0, ALL, counts), WB_OK);
    assert_doubles(counts, expected, 256);
    wb_load_close(load);
}

static void test_rows_that_cannot_be_are_refused(void **state) {
    (void)state;
    wb_load *load = open_one(1, 4, 0, 2);
    const uint8_t ids[] = {0, 1, 2, 3};
    const struct {
        wb_routed_rows rows;
        const char *message;
    } cases[] = {
        {{ids, WB_I32, 0, 1, 1, NULL}, "dtype: expected u8 or u16, found i32"},
        {{ids, WB_U8, 0, 1, 0, NULL}, "K: expected 1 or more"},
        {{NULL, WB_U8, 0, 1, 1, NULL}, "ids: NULL"},
        {{ids, WB_U16, 3, 1, 2, NULL}, "row_stride: expected 4.."},
        {{ids, WB_U8, SIZE_MAX / 2, 3, 1, NULL}, "row_stride"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(wb_load_record(load, 0, WB_PHASE_DECODE, 0, &cases[i].rows), WB_INVALID_ARGUMENT);
        assert_message_has(cases[i].message);
    }
    wb_routed_rows rows = rows_u8(1, 1, ids);
    assert_int_equal(wb_load_record(load, 0, (wb_phase)3, 0, &rows), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_load_record(load, 0, (wb_phase)-1, 0, &rows), WB_INVALID_ARGUMENT);
    decode(load, 0, 0, 0, 1, NULL);
    end_pass(load);
    assert_int_equal(wb_load_passes(load), 0);
    wb_load_close(load);
}

static void test_a_count_beyond_32_bits_is_refused_whole(void **state) {
    (void)state;
    wb_load *load = open_one(1, 2, 0, 2);
    uint32_t *counts_of_pass = wb_load_cells(&load->regions[0], load->open, WB_PHASE_DECODE);
    counts_of_pass[0] = UINT32_MAX - 1; /* as billions of rows would have left it */
    wb_routed_rows rows = rows_u8(1, 3, (uint8_t[]){0, 1, 0});
    assert_int_equal(wb_load_record(load, 0, WB_PHASE_DECODE, 0, &rows), WB_CAPACITY);
    assert_message_has("decode, layer 0, expert 0: 4294967294 and 2 tokens in one pass");
    wb_route_model model = model_of(1, 2, 1);
    const wb_route_rows run = {0, 3, (uint8_t[]){1, 0, 0}, NULL};
    wb_record record = record_of(1, 4, 1, &run); /* its prompt row would fit, and does not count either */
    assert_int_equal(wb_load_add_record(load, 0, &model, &record, false), WB_CAPACITY);
    assert_int_equal(wb_load_end_pass(load, NULL), WB_OK);
    assert_int_equal(wb_load_passes(load), 0); /* nothing was recorded: the pass is still open */
    decode(load, 0, 0, 1, 2, (uint8_t[]){0, 1});
    end_pass(load);
    assert_counts(load, 0, 4294967295., 1);
    wb_load_close(load);
}

/* ---- captured records ------------------------------------------------------------------------ */

static void test_a_record_counts_prompt_rows_as_prefill(void **state) {
    (void)state;
    wb_load *load = open_one(2, 4, 0, 2);
    wb_route_model model = model_of(2, 4, 1);
    const wb_route_rows runs[] = {
        {0, 3, (uint8_t[]){0, 1, 0, 1, 250, 250}, (uint8_t[]){0x03}}, /* position 2 is not valid */
        {4, 2, (uint8_t[]){2, 3, 3, 3}, NULL},
    };
    wb_record record = record_of(5, 7, 2, runs); /* position 4 is of the prompt, 5 is not */
    double counts[8];
    assert_int_equal(wb_load_add_record(load, 0, &model, &record, false), WB_OK);
    end_pass(load);
    assert_int_equal(wb_load_counts(load, 0, 1u << WB_PHASE_PREFILL, counts), WB_OK);
    assert_doubles(counts, (double[]){2, 0, 1, 0, 0, 2, 0, 1}, 8);
    assert_int_equal(wb_load_counts(load, 0, 1u << WB_PHASE_DECODE, counts), WB_OK);
    assert_doubles(counts, (double[]){0, 0, 0, 1, 0, 0, 0, 1}, 8);
    assert_int_equal(wb_load_add_record(load, 0, &model, &record, true), WB_OK);
    end_pass(load);
    assert_int_equal(wb_load_counts(load, 0, 1u << WB_PHASE_REPLAY, counts), WB_OK);
    assert_doubles(counts, (double[]){2, 0, 1, 1, 0, 2, 0, 2}, 8);
    wb_load_close(load);
}

static void test_a_record_with_one_bad_id_counts_nothing(void **state) {
    (void)state;
    wb_load *load = open_one(2, 4, 1, 2);
    wb_route_model model = model_of(2, 4, 1), other = model_of(2, 5, 1), deeper = model_of(3, 4, 1);
    const wb_route_rows bad = {1, 2, (uint8_t[]){0, 1, 2, 5}, NULL},
                        good = {1, 2, (uint8_t[]){0, 1, 2, 4}, NULL};
    wb_record record = record_of(1, 4, 1, &bad);
    assert_int_equal(wb_load_add_record(load, 0, &model, &record, false), WB_INVALID_ARGUMENT);
    assert_message_has("rid r-1, position 2, choice 0, layer 1: expected an expert below 5");
    assert_int_equal(wb_load_add_record(load, 0, &other, &record, false), WB_MISMATCH);
    assert_message_has("expected L 2 and E 4, found a record of model test with L 2 and E 5");
    assert_int_equal(wb_load_add_record(load, 0, &deeper, &record, false), WB_MISMATCH);
    assert_int_equal(wb_load_add_record(load, 1, &model, &record, false), WB_INVALID_ARGUMENT);
    record.n_tokens = 3; /* the run reaches beyond the last fed token */
    assert_int_equal(wb_load_add_record(load, 0, &model, &record, false), WB_INVALID_ARGUMENT);
    end_pass(load);
    assert_int_equal(wb_load_passes(load), 0);
    record = record_of(1, 4, 1, &good);
    assert_int_equal(wb_load_add_record(load, 0, &model, &record, false), WB_OK);
    end_pass(load);
    assert_counts(load, 0, 1, 0, 1, 0, 0, 1, 0, 0); /* the shared expert 4 aside */
    wb_load_close(load);
}

/* ---- passes ---------------------------------------------------------------------------------- */

static void test_dummy_passes_do_not_count(void **state) {
    (void)state;
    const wb_load_region regions[] = {{"target", 1, 3, 0}, {"draft", 1, 3, 0}};
    wb_load *load = open_load(2, regions, 2, 1);
    decode_n(load, 0, 1, 5);
    end_pass(load);
    for (int i = 0; i < 4; i++) {
        wb_routed_rows padding = rows_u8(3, 1, (uint8_t[]){0, 0, 0});
        padding.valid = (uint8_t[]){0};
        assert_int_equal(wb_load_record(load, 0, WB_PHASE_DECODE, 0, &padding), WB_OK);
        end_pass(load);
    }
    assert_int_equal(wb_load_passes(load), 1);
    assert_int_equal(wb_load_passes_seen(load), 1);
    assert_counts(load, 0, 0, 5, 0);
    decode(load, 1, 0, 1, 1, (uint8_t[]){2}); /* a pass of the draft alone is a pass */
    end_pass(load);
    assert_int_equal(wb_load_passes(load), 2);
    wb_load_close(load);
}

static void test_the_window_lets_the_oldest_pass_go(void **state) {
    (void)state;
    wb_load *load = open_one(1, 2, 0, 3);
    for (uint32_t pass = 1; pass <= 5; pass++) {
        decode_n(load, 0, (uint8_t)(pass % 2), pass);
        end_pass(load);
        assert_int_equal(wb_load_passes(load), pass < 3 ? pass : 3);
        assert_int_equal(wb_load_passes_seen(load), pass);
    }
    assert_counts(load, 0, 4, 8); /* passes 3, 4 and 5 */
    for (uint32_t age = 0; age < 3; age++) {
        double counts[2], expected[2] = {age == 1 ? 4 : 0, age == 1 ? 0 : 5 - age};
        assert_int_equal(wb_load_pass_counts(load, 0, ALL, age, counts), WB_OK);
        assert_doubles(counts, expected, 2);
    }
    wb_load_close(load);
}

static void test_older_passes_decay(void **state) {
    (void)state;
    wb_load *load = open_load(1, &(wb_load_region){"target", 1, 2, 0}, 3, 0.5);
    for (uint32_t pass = 1; pass <= 4; pass++) {
        decode_n(load, 0, 0, 4 * pass);
        decode_n(load, 0, 1, 1);
        end_pass(load);
    }
    assert_counts(load, 0, 16 + 12 * .5 + 8 * .25, 1.75);
    double counts[2];
    assert_int_equal(wb_load_pass_counts(load, 0, ALL, 2, counts), WB_OK); /* one pass: no weight */
    assert_doubles(counts, (double[]){8, 1}, 2);
    wb_load_close(load);
}

/* Sums go along from pass to pass: whatever has entered and left, they are those of the passes that are
 * there, and of a cell whose passes have all left nothing remains, rounded or not. */
static void test_sums_are_of_the_window_after_many_passes(void **state) {
    (void)state;
    const double decays[] = {1, 0.9};
    for (int d = 0; d < 2; d++) {
        wb_load *load = open_load(1, &(wb_load_region){"target", 1, 2, 0}, 5, decays[d]);
        for (uint32_t pass = 0; pass < 3000; pass++) {
            double expected[2] = {0}, found[2];
            const uint32_t n = pass % 997 > 8 ? pass % 13 : 0;
            for (uint32_t i = 0; i < (pass % 997 == 3 ? 1000 : 1); i++)
                decode_n(load, 0, 0, pass % 997 == 3 ? 60 : n);
            decode_n(load, 0, 1, 1);
            end_pass(load);
            for (uint32_t age = 0; age < wb_load_passes(load); age++) {
                assert_int_equal(wb_load_pass_counts(load, 0, ALL, age, found), WB_OK);
                for (int e = 0; e < 2; e++) expected[e] += pow(decays[d], age) * found[e];
            }
            assert_int_equal(wb_load_counts(load, 0, ALL, found), WB_OK);
            for (int e = 0; e < 2; e++)
                assert_true(expected[e] == 0 || d == 0 ? found[e] == expected[e]
                                                       : fabs(found[e] - expected[e]) < 1e-9 * expected[e]);
        }
        wb_load_close(load);
    }
}

static void test_sglang_7266_per_pass_and_rebalance_compose(void **state) {
    (void)state;
    wb_load *load = open_one(1, 2, 0, 3);
    double pass[2], balancedness;
    wb_placement *placement = NULL;
    assert_int_equal(wb_placement_open(&(wb_topology){2, 1, 2, NULL, NULL, NULL}, 1, 2, &placement), WB_OK);
    for (uint32_t i = 1; i <= 4;
         i++) { /* every pass read, and the window for a rebalance, while counting goes on */
        decode_n(load, 0, 0, i);
        if (i > 1) assert_int_equal(wb_load_pass_counts(load, 0, ALL, 0, pass), WB_OK);
        decode_n(load, 0, 1, 10 * i);
        end_pass(load);
        assert_int_equal(wb_load_pass_counts(load, 0, ALL, 0, pass), WB_OK);
        assert_doubles(pass, (double[]){i, 10 * i}, 2);
        assert_int_equal(wb_load_balancedness(load, 0, ALL, 0, placement, NULL, &balancedness, NULL), WB_OK);
        assert_near(balancedness, 5.5 / 10);
    }
    assert_counts(load, 0, 9, 90);
    wb_placement_close(placement);
    wb_load_close(load);
}

/* ---- against a naive model ------------------------------------------------------------------- */

enum { N_REGIONS = 2, MAX_L = 3, MAX_E = 300, MAX_WINDOW = 4, MAX_PASSES = 24, MAX_T = 20, MAX_K = 4 };

typedef double naive_pass[N_REGIONS][WB_N_PHASES][MAX_L][MAX_E];

typedef struct naive {
    wb_load_region regions[N_REGIONS];
    wb_load_options options;
    bool on[N_REGIONS], recorded;
    uint32_t n;                        /* closed passes, all that ever were */
    naive_pass passes[MAX_PASSES + 1]; /* the open one is passes[n] */
} naive;

static void random_shape(naive *model, uint64_t *random) {
    static const uint32_t experts[] = {1, 2, 7, 64, 255, 256, 257, 290};
    static const char *const names[] = {"target", "draft"};
    memset(model, 0, sizeof *model);
    for (uint32_t i = 0; i < N_REGIONS; i++) {
        model->regions[i] = (wb_load_region){names[i], 1 + wb_random_below(random, MAX_L),
                                             experts[wb_random_below(random, 8)], wb_random_below(random, 3)};
        model->on[i] = true;
    }
    model->options.window = 1 + wb_random_below(random, MAX_WINDOW);
    model->options.decay = wb_random_below(random, 2) ? 1 : 0.7;
}

/* T rows, written as u8 or u16; ids of rows that are not valid are anything. One valid row may have a bad
 * id. */
static void naive_record(naive *model, wb_load *load, uint64_t *random) {
    uint32_t region = wb_random_below(random, N_REGIONS), T = wb_random_below(random, MAX_T + 1);
    uint32_t K = 1 + wb_random_below(random, MAX_K), phase = wb_random_below(random, WB_N_PHASES);
    const wb_load_region *r = &model->regions[region];
    uint32_t limit = r->n_experts + r->n_shared, layer = wb_random_below(random, r->n_layers);
    bool wide = limit > 256 || wb_random_below(random, 2), all = wb_random_below(random, 3) == 0, bad = false;
    size_t size = wide ? 2 : 1, stride = K * size + wb_random_below(random, 5);
    uint8_t bytes[MAX_T * (MAX_K * 2 + 4) + 1], valid[(MAX_T + 7) / 8] = {0};
    naive_pass *open = &model->passes[model->n], before;
    memcpy(before, *open, sizeof before);
    bool recorded = model->recorded;
    for (uint32_t t = 0; t < T; t++) {
        bool is_valid = all || wb_random_below(random, 4);
        if (is_valid) valid[t / 8] = (uint8_t)(valid[t / 8] | 1u << (t % 8));
        for (uint32_t k = 0; k < K; k++) {
            uint32_t id = wb_random_below(random, limit);
            bool wrong = !is_valid || wb_random_below(random, 500) == 0;
            if (wrong) id = wide ? 65535 : 255;
            bad |= is_valid && id >= limit;
            for (size_t i = 0; i < size; i++) bytes[t * stride + k * size + i] = (uint8_t)(id >> 8 * i);
            if (is_valid && id < r->n_experts && model->on[region]) (*open)[region][phase][layer][id]++;
        }
        if (is_valid && model->on[region]) model->recorded = true;
    }
    wb_routed_rows rows = {bytes, wide ? WB_U16 : WB_U8, stride, T, K, all ? NULL : valid};
    bool refused = bad && model->on[region];
    assert_int_equal(wb_load_record(load, region, (wb_phase)phase, (int32_t)layer, &rows),
                     refused ? WB_INVALID_ARGUMENT : WB_OK);
    if (!refused) return;
    memcpy(*open, before, sizeof before);
    model->recorded = recorded;
}

/* A record of one or two runs whose every row is random; not always all of it valid. */
static void naive_add_record(naive *model, wb_load *load, uint64_t *random) {
    uint32_t region = wb_random_below(random, N_REGIONS), prompt = wb_random_below(random, MAX_T);
    const wb_load_region *r = &model->regions[region];
    uint32_t K = 1 + wb_random_below(random, r->n_experts < MAX_K ? r->n_experts : MAX_K), L = r->n_layers;
    bool wide = r->n_experts > 256, replay = wb_random_below(random, 2);
    uint16_t ids[MAX_T * MAX_L * MAX_K];
    uint8_t narrow[MAX_T * MAX_L * MAX_K], valid[(MAX_T + 7) / 8];
    uint32_t T = wb_random_below(random, MAX_T);
    for (uint32_t i = 0; i < T * L * K; i++) {
        ids[i] = (uint16_t)wb_random_below(random, r->n_experts);
        narrow[i] = (uint8_t)ids[i];
    }
    for (size_t i = 0; i < sizeof valid; i++) valid[i] = (uint8_t)wb_random(random);
    uint32_t first = wb_random_below(random, T + 1);
    const uint8_t *bytes = wide ? (const uint8_t *)ids : narrow;
    const wb_route_rows runs[] = {
        {0, first, bytes, NULL},
        {first + 2, T - first, bytes + (size_t)first * L * K * (wide ? 2 : 1), valid},
    };
    wb_record record = record_of(prompt, MAX_T + 3, 2, runs);
    for (uint32_t t = 0; t < T && model->on[region]; t++) {
        uint32_t position = t < first ? t : t + 2;
        if (t >= first && !(valid[(t - first) / 8] >> ((t - first) % 8) & 1)) continue;
        wb_phase phase = replay ? WB_PHASE_REPLAY : position < prompt ? WB_PHASE_PREFILL : WB_PHASE_DECODE;
        for (uint32_t i = 0; i < L * K; i++)
            model->passes[model->n][region][phase][i / K][ids[t * L * K + i]]++;
        model->recorded = true;
    }
    wb_route_model routes = model_of(L, r->n_experts, K);
    assert_int_equal(wb_load_add_record(load, region, &routes, &record, replay), WB_OK);
}

static void naive_end_pass(naive *model, wb_load *load) {
    end_pass(load);
    if (model->recorded) model->n++;
    model->recorded = false;
}

static void naive_compare(const naive *model, const wb_load *load) {
    uint32_t kept = model->n < model->options.window ? model->n : model->options.window;
    double found[MAX_L * MAX_E];
    assert_int_equal(wb_load_passes(load), kept);
    assert_int_equal(wb_load_passes_seen(load), model->n);
    for (uint32_t i = 0; i < N_REGIONS * ALL; i++) {
        const wb_load_region *r = &model->regions[i / ALL];
        uint32_t phases = i % ALL + 1;
        double sums[MAX_L * MAX_E] = {0};
        for (uint32_t age = 0; age < kept; age++) {
            assert_int_equal(wb_load_pass_counts(load, i / ALL, phases, age, found), WB_OK);
            for (uint32_t c = 0; c < r->n_layers * r->n_experts; c++) {
                double expected = 0;
                for (uint32_t p = 0; p < WB_N_PHASES; p++)
                    if (phases >> p & 1)
                        expected +=
                            model->passes[model->n - 1 - age][i / ALL][p][c / r->n_experts][c % r->n_experts];
                if (!(found[c] == expected))
                    fail_msg("age %u cell %u: expected %g, found %g", age, c, expected, found[c]);
                sums[c] += pow(model->options.decay, age) * expected;
            }
        }
        assert_int_equal(wb_load_counts(load, i / ALL, phases, found), WB_OK);
        for (uint32_t c = 0; c < r->n_layers * r->n_experts; c++)
            if (!(fabs(found[c] - sums[c]) <= (model->options.decay < 1 ? 1e-12 * (1 + sums[c]) : 0)))
                fail_msg("cell %u: expected %.17g, found %.17g", c, sums[c], found[c]);
    }
}

static void test_random_passes_against_a_naive_model(void **state) {
    (void)state;
    uint64_t seed = 20260823;
    static naive model;
    for (uint64_t round = 0; round < 25; round++) {
        uint64_t random = seed + (round << 32);
        print_message("seed %" PRIu64 ", round %" PRIu64 "\n", seed, round);
        random_shape(&model, &random);
        wb_load *load = open_load(N_REGIONS, model.regions, model.options.window, model.options.decay);
        while (model.n < 8) {
            uint32_t action = wb_random_below(&random, 10), region = wb_random_below(&random, N_REGIONS);
            if (action < 5)
                naive_record(&model, load, &random);
            else if (action < 7)
                naive_add_record(&model, load, &random);
            else if (action == 7) {
                model.on[region] = !model.on[region];
                assert_int_equal(wb_load_enable(load, region, model.on[region]), WB_OK);
            } else {
                naive_end_pass(&model, load);
                naive_compare(&model, load);
            }
        }
        wb_load_close(load);
    }
}

/* ---- opening --------------------------------------------------------------------------------- */

static void test_regions_that_cannot_be_are_refused(void **state) {
    (void)state;
    const struct {
        wb_load_region regions[2];
        uint32_t n, window;
        double decay;
        wb_status status;
        const char *message;
    } cases[] = {
        {{{0}}, 0, 1, 1, WB_INVALID_ARGUMENT, "expected 1..64 regions, found 0"},
        {{{0}}, 65, 1, 1, WB_INVALID_ARGUMENT, "expected 1..64 regions, found 65"},
        {{{NULL, 1, 1, 0}}, 1, 1, 1, WB_INVALID_ARGUMENT, "expected a name"},
        {{{"", 1, 1, 0}}, 1, 1, 1, WB_INVALID_ARGUMENT, "expected a name"},
        {{{"\xff", 1, 1, 0}}, 1, 1, 1, WB_INVALID_ARGUMENT, "expected a name"},
        {{{"a", 1, 1, 0}, {"a", 1, 1, 0}}, 2, 1, 1, WB_INVALID_ARGUMENT, "both named \"a\""},
        {{{"a", 0, 1, 0}}, 1, 1, 1, WB_INVALID_ARGUMENT, "n_layers: expected 1..65536, found 0"},
        {{{"a", 65537, 1, 0}}, 1, 1, 1, WB_INVALID_ARGUMENT, "n_layers"},
        {{{"a", 1, 0, 0}}, 1, 1, 1, WB_INVALID_ARGUMENT, "n_experts: expected 1..65536, found 0"},
        {{{"a", 1, 65537, 0}}, 1, 1, 1, WB_INVALID_ARGUMENT, "n_experts"},
        {{{"a", 1, 65535, 2}}, 1, 1, 1, WB_INVALID_ARGUMENT, "n_shared: expected 0..1 beside 65535"},
        {{{"a", 1, 1, UINT32_MAX}}, 1, 1, 1, WB_INVALID_ARGUMENT, "n_shared"},
        {{{"a", 1, 1, 0}}, 1, 0, 1, WB_INVALID_ARGUMENT, "window"},
        {{{"a", 1, 1, 0}}, 1, 1, 0, WB_INVALID_ARGUMENT, "decay: expected (0, 1]"},
        {{{"a", 1, 1, 0}}, 1, 1, 1.5, WB_INVALID_ARGUMENT, "decay"},
        {{{"a", 1, 1, 0}}, 1, 1, (double)NAN, WB_INVALID_ARGUMENT, "decay"},
        {{{"a", 65536, 65536, 0}}, 1, UINT32_MAX, 1, WB_CAPACITY, "\"a\""},
        {{{"a", 1, 65536, 0}}, 1, UINT32_MAX, 1, WB_CAPACITY, "4294967295 passes of 786432 bytes"},
        {{{"a", 1, 1, 0}}, 1, UINT32_MAX, 1, WB_CAPACITY, "\"a\""},
        {{{"a", 65536, 1, 65535}}, 1, 1, 1, WB_CAPACITY, "\"a\""},
        {{{"a", 1, 8, 0}, {"b", 60, 65536, 0}}, 2, 1000, 1, WB_CAPACITY, "\"b\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        wb_load *load = (wb_load *)&load;
        wb_load_options options = {sizeof options, cases[i].window, cases[i].decay};
        assert_int_equal(wb_load_open(cases[i].n, cases[i].regions, &options, &load), cases[i].status);
        assert_message_has(cases[i].message);
        assert_ptr_equal(load, &load);
    }
    wb_load *load;
    assert_int_equal(wb_load_open(1, NULL, NULL, &load), WB_INVALID_ARGUMENT);
    char name[] = "mine";
    assert_int_equal(wb_load_open(1, &(wb_load_region){name, 1, 1, 0}, NULL, &load),
                     WB_OK); /* the defaults */
    name[0] = 'x';
    assert_int_equal(wb_load_record(load, 0, WB_PHASE_DECODE, 5, &(wb_routed_rows){0}), WB_INVALID_ARGUMENT);
    assert_message_has("\"mine\"");
    for (uint32_t pass = 0; pass < 102; pass++) {
        decode_n(load, 0, 0, 1);
        end_pass(load);
    }
    assert_int_equal(wb_load_passes(load), 100);
    assert_counts(load, 0, 100);
    wb_load_close(load);
    wb_load_close(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_valid_row_counts_its_experts),
        cmocka_unit_test(test_rows_of_a_route_tensor_are_read_by_stride),
        cmocka_unit_test(test_phases_are_apart),
        cmocka_unit_test(test_vllm_38128_padding_is_not_counted),
        cmocka_unit_test(test_sglang_16044_draft_layers_have_their_own_region),
        cmocka_unit_test(test_a_region_that_is_off_still_checks_where_a_record_goes),
        cmocka_unit_test(test_sglang_34974_a_record_without_a_layer_is_an_error),
        cmocka_unit_test(test_sglang_46_each_layer_counts_in_its_own_row),
        cmocka_unit_test(test_sglang_22525_shared_experts_are_not_counted),
        cmocka_unit_test(test_rows_that_cannot_be_are_refused),
        cmocka_unit_test(test_a_count_beyond_32_bits_is_refused_whole),
        cmocka_unit_test(test_a_record_counts_prompt_rows_as_prefill),
        cmocka_unit_test(test_a_record_with_one_bad_id_counts_nothing),
        cmocka_unit_test(test_dummy_passes_do_not_count),
        cmocka_unit_test(test_the_window_lets_the_oldest_pass_go),
        cmocka_unit_test(test_older_passes_decay),
        cmocka_unit_test(test_sums_are_of_the_window_after_many_passes),
        cmocka_unit_test(test_sglang_7266_per_pass_and_rebalance_compose),
        cmocka_unit_test(test_random_passes_against_a_naive_model),
        cmocka_unit_test(test_regions_that_cannot_be_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
