/* test_packed_layers.c - models whose matrices are all of whole groups of rows, so that each that a layer
 * registers for products is packed, the narrow ones too: routers, projections a head's number wide. They
 * compute the same bits as rows that lie, and a part of packed rows is made of whole groups or refused.
 * Argument 1 sets the seed. */
#include "packed_model.h"

/* ---- layers -------------------------------------------------------------------------------------- */

static int32_t whole(int32_t rows) {
    return (rows + WB_PACKED_COLUMNS - 1) / WB_PACKED_COLUMNS * WB_PACKED_COLUMNS;
}

/* What is multiplied as a whole has whole groups of rows. What is multiplied in parts has them too, where the
 * parts have not: o_a a group's 8 rows, kv_a 24 and 8, kv_b 8 and 8 of a head. So one of these that is packed
 * is seen in what is computed. */
static wb_config whole_groups(variant v) {
    wb_config c = variant_config(v);
    c.hidden_size = 32;
    c.expert_width = whole(c.expert_width);
    c.dense_width = whole(c.dense_width);
    c.shared_width = whole(c.shared_width);
    c.vocab_size = whole(c.vocab_size);
    c.router.n_experts = whole(c.router.n_experts);
    c.head_dim = c.n_kv_heads == 2 ? 8 : 16;
    if (c.compressed.o_rank > 0) {
        c.compressed.q_rank = c.compressed.index_heads = c.compressed.index_dim = 16;
        c.compressed.o_rank = 8;
    }
    if (c.mla.kv_rank > 0) {
        c.mla.kv_rank = 24;
        c.mla.q_rank = whole(c.mla.q_rank);
        c.mla.nope_dim = c.mla.value_dim = c.mla.rope_dim = 8;
    }
    if (c.delta.conv_width > 0) {
        c.delta.n_value_heads = 16;
        c.delta.key_dim = 8;
    }
    MUST(wb_config_check(&c));
    return c;
}

/* The gate of shared experts has one row and is never packed; nor are tied embeddings. */
static void expect_all_packed(const wb_model *m) {
    if (m->mtp) expect_all_packed(m->mtp);
    for (int32_t i = 0; i < m->n_params; i++) {
        const wb_param *p = &m->params[i];
        if (p->shared || p->cols == 1 || p->rows == 1 || !multiplied_as_a_whole(m, i)) continue;
        if (!p->packed) fprintf(stderr, "%s: expected packed rows\n", tensor_of(m, i)->name);
        EXPECT(p->packed);
    }
}

static void compute_both(rank *r) {
    for (int v = 0; v < N_VARIANTS; v++) {
        const wb_config config = whole_groups((variant)v);
        wb_model_options options = whole_options(r);
        wb_model *model, *packed;
        MUST(wb_model_create(&config, base_seed + (uint64_t)v, 0.25F, &options, &model));
        options.inference_only = true;
        MUST(wb_model_clone(model, &options, &packed));
        expect_same_steps(model, packed);
        expect_all_packed(packed);
        EXPECT(unpack(packed).others > 0);
        expect_weights(packed, model);
        wb_model_close(packed);
        wb_model_close(model);
    }
}

static void test_every_kind_of_layer_gives_the_same_bits(void **unused) {
    (void)unused;
    on_ranks(1, base_seed, compute_both, NULL, NULL);
}

/* ---- parts of weights ------------------------------------------------------------------------------ */

enum { T = 3, ROWS = 48, COLS = 5 };

static wb_weight rows_as_they_lie(float *data) {
    return (wb_weight){data, WB_F32, ROWS, COLS, false};
}

static void multiply_parts(rank *r) {
    float lying[ROWS * COLS], packed[ROWS * COLS], x[T * COLS], expected[T * ROWS], found[T * ROWS];
    for (int i = 0; i < ROWS * COLS; i++) packed[i] = lying[i] = random_unit(&r->state);
    for (int i = 0; i < T * COLS; i++) x[i] = random_unit(&r->state);
    wb_weight w = rows_as_they_lie(packed), part = {0}, poison = {.rows = -1};
    MUST(r->device->pack_weights(r->device, 1, w));
    w.packed = true;
    for (int64_t first = 0; first < ROWS; first++)
        for (int64_t n = 1; n <= ROWS - first; n++) {
            const bool is_whole = first % 16 == 0 && n % 16 == 0;
            wb_weight other = poison;
            MUST(wb_weight_rows(rows_as_they_lie(lying), first, n, &part));
            const wb_matmul wanted = wb_matmul_forward(T, wb_f32_rows(x), part, wb_f32_rows(expected));
            MUST(r->device->matmul(r->device, 1, &wanted));
            EXPECT((wb_weight_rows(w, first, n, &other) == WB_OK) == is_whole);
            if (!is_whole) EXPECT_MESSAGE("packed weights: expected rows in whole groups of 16");
            EXPECT(is_whole || other.rows == -1);
            if (!is_whole) continue;
            const wb_matmul product = wb_matmul_forward(T, wb_f32_rows(x), other, wb_f32_rows(found));
            MUST(r->device->matmul(r->device, 1, &product));
            EXPECT(memcmp(found, expected, (size_t)(T * n) * sizeof(float)) == 0);
        }
    MUST(wb_weight_columns(rows_as_they_lie(lying), 2, 3, &part));
    EXPECT(part.data == lying + 2 && part.rows == ROWS && part.cols == 3 && !part.packed);
    EXPECT(wb_weight_columns(w, 2, 3, &poison) == WB_INVALID_ARGUMENT && poison.rows == -1);
    EXPECT_MESSAGE("packed weights: expected all of 5 columns, found 3 from column 2 on");
}

static void test_parts_are_whole_groups_or_refused(void **unused) {
    (void)unused;
    on_ranks(1, base_seed, multiply_parts, NULL, NULL);
}

int main(int argc, char **argv) {
    placed_model_begin(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_kind_of_layer_gives_the_same_bits),
        cmocka_unit_test(test_parts_are_whole_groups_or_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
