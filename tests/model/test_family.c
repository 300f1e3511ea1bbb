/* test_family.c - a family is one file: one that Waybill does not have is read, built, loaded, run and
 * trained without a change elsewhere, with layer kinds whose state is not keys and values. */
#include "support/temp_files.h"

#include "made_up_fixture.h"

#define FINITE_DIFFERENCE 1e-2F

typedef struct rig {
    wb_comm *comm;
    wb_config config;
    fixture f;
    corpus c;
    int32_t order[3];
    results r; /* all sequences, every row choosing */
} rig;

static rig rig_open(void) {
    uint64_t state = 7;
    rig g = {.order = {0, 1, 2}};
    MUST(made_up_config(&g.config));
    MUST(wb_comm_open_self(&g.comm));
    g.f = made_up_fixture(g.comm, &g.config, 3, NULL);
    g.c = corpus_random(&g.config, 3, 20, &state);
    g.r = results_new(&g.f, &g.c);
    train_pass(&g.f, &g.c, 3, g.order, (direction){NULL, NULL}, NULL, &g.r);
    return g;
}

static void rig_close(rig *g) {
    results_free(&g->r);
    corpus_free(&g->c);
    fixture_close(&g->f);
    wb_comm_close(g->comm);
}

static bool has_tensor(const wb_model *model, const char *name) {
    for (int32_t i = 0; i < wb_model_n_tensors(model); i++)
        if (strcmp(wb_model_tensor(model, i).name, name) == 0) return true;
    return false;
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void test_its_keys_and_defaults_are_read_and_written(void **unused) {
    (void)unused;
    wb_config c;
    MUST(made_up_config(&c));
    assert_int_equal(c.expert_width, 8);
    assert_int_equal(c.dense_width, 12);
    assert_int_equal(c.moe_layer_mask[0], 14);
    assert_true(c.rope_theta == 5000.0);
    assert_int_equal(c.max_positions, 64);
    assert_int_equal(c.n_kv_heads, 2);
    assert_int_equal(c.router.type, WB_ROUTER_SOFTMAX_NORM);

    char *text;
    json_t *root;
    wb_config again = {0};
    MUST(wb_config_text(&c, &made_up_family, NULL, WB_F32, &text));
    MUST(wb_json_parse(text, strlen(text), "written", &root));
    assert_string_equal(json_string_value(json_object_get(root, "model_type")), "made_up");
    MUST(wb_config_parse(root, &made_up_family, &again));
    assert_memory_equal(&c, &again, sizeof c);
    json_decref(root);
    free(text);
}

static void test_its_tensors_have_its_names(void **unused) {
    (void)unused;
    rig g = rig_open();
    const wb_model *m = g.f.model;
    assert_true(has_tensor(m, "wte.weight"));
    assert_true(has_tensor(m, "lm_head.weight"));
    assert_true(has_tensor(m, "transformer.h.0.shift.gain"));
    assert_true(has_tensor(m, "transformer.h.0.mlp.down_proj.weight"));
    assert_true(has_tensor(m, "transformer.h.1.self_attn.q_proj.weight"));
    assert_true(has_tensor(m, "transformer.h.3.moe.router.weight"));
    assert_true(has_tensor(m, "transformer.h.3.moe.experts.5.w2.weight"));
    for (int32_t i = 0; i < wb_model_n_tensors(m); i++)
        assert_null(strstr(wb_model_tensor(m, i).name, "model.layers"));
    assert_string_equal(wb_model_routes(m)->name, "made_up");
    assert_int_equal(wb_model_routes(m)->n_moe_layers, 3);
    rig_close(&g);
}

static void test_a_checkpoint_by_its_names_loads(void **unused) {
    (void)unused;
    rig g = rig_open();
    const int32_t n = wb_model_n_tensors(g.f.model);
    const temp_path dir = temp_dir(), path = temp_in(dir.text, "model.safetensors");
    wb_tensor_view *views = take(n, sizeof *views);
    for (int32_t i = 0; i < n; i++) {
        const wb_tensor t = wb_model_tensor(g.f.model, i);
        views[i] = (wb_tensor_view){.name = t.name,
                                    .dtype = t.dtype,
                                    .n_dims = t.n_dims,
                                    .shape = {t.shape[0], t.shape[1]},
                                    .data = t.data,
                                    .bytes = (size_t)t.n * sizeof(float)};
    }
    MUST(wb_safetensors_write(path.text, (size_t)n, views, NULL));
    fixture loaded = made_up_fixture(g.comm, &g.config, 0, dir.text);
    results r = results_new(&loaded, &g.c);
    train_pass(&loaded, &g.c, 3, g.order, (direction){NULL, NULL}, NULL, &r);
    assert_memory_equal(r.logits, g.r.logits, (size_t)(g.c.T * g.config.vocab_size) * sizeof(float));
    results_free(&r);
    fixture_close(&loaded);
    free(views);
    temp_remove(dir);
    rig_close(&g);
}

/* The tokens of one sequence, `piece` at a time, through a pool of small blocks: training's bits. */
static void infer_sequence(rig *g, int32_t s, int32_t piece) {
    enum { BLOCK = 4, N_BLOCKS = 8 };
    const int32_t blocks[N_BLOCKS] = {5, 2, 7, 0, 1, 6, 3, 4}, number = 2;
    const int64_t V = g->config.vocab_size;
    wb_infer_options options = wb_infer_options_default();
    options.n_blocks = N_BLOCKS;
    options.block_size = BLOCK;
    wb_infer *infer;
    MUST(wb_infer_open(g->f.model, &options, &infer));
    uint8_t *ids = take(piece, g->f.row_bytes);
    for (int32_t t = g->c.start[s]; t < g->c.start[s + 1]; t += piece) {
        int32_t n = g->c.start[s + 1] - t, pos[32], seq[32] = {0}, rows[32];
        if (n > piece) n = piece;
        for (int32_t i = 0; i < n; i++) {
            pos[i] = t + i - g->c.start[s];
            rows[i] = i;
        }
        const wb_infer_batch batch = {n, g->c.tokens + t, pos, seq, 1, N_BLOCKS, blocks, &number, n, rows};
        const wb_routing routing = {.ids = ids};
        const float *logits;
        MUST(wb_infer_forward(infer, &batch, &routing, &logits));
        assert_memory_equal(logits, g->r.logits + t * V, (size_t)(n * V) * sizeof(float));
    }
    free(ids);
    wb_infer_close(infer);
}

static void test_inference_keeps_its_state(void **unused) {
    (void)unused;
    rig g = rig_open();
    for (int32_t s = 0; s < 3; s++)
        for (int32_t piece = 1; piece <= 7; piece += 3) infer_sequence(&g, s, piece);
    rig_close(&g);
}

/* The parts of layer 0, whose state a case sets; the other layers are the made-up family's. */
static wb_layer_kind odd_mixer, odd_feed_forward;

static wb_layer_parts odd_layer(const wb_config *config, int32_t l) {
    if (l == 0) return (wb_layer_parts){&odd_mixer, &odd_feed_forward};
    return made_up_layer(config, l);
}

static void three_tables(const wb_config *config, wb_state_shape *shape_out) {
    shift_state(config, shape_out);
    shape_out->n_tables = 3;
}

static void both(const wb_config *config, wb_state_shape *shape_out) {
    shift_state(config, shape_out);
    shape_out->sequence_bytes = 4096;
}

static void too_large(const wb_config *config, wb_state_shape *shape_out) {
    (void)config;
    shape_out->sequence_bytes = (int64_t)INT32_MAX + 1;
}

static void test_state_without_a_place_is_refused(void **unused) {
    (void)unused;
    static const struct {
        void (*mixer)(const wb_config *, wb_state_shape *),
            (*feed_forward)(const wb_config *, wb_state_shape *);
        wb_status status;
        const char *message;
    } cases[] = {
        {shift_state, NULL, WB_OK, ""},
        {three_tables, NULL, WB_CAPACITY, "layer 0: expected state in 0..2 tables, found 3"},
        {both, NULL, WB_OK, ""},
        {too_large, NULL, WB_CAPACITY,
         "layer 0: expected state of 0..2147483647 bytes a sequence, found 2147483648"},
        {shift_state, shift_state, WB_UNSUPPORTED, "layer 0: expected state of the mixer only"},
    };
    wb_comm *comm;
    MUST(wb_comm_open_self(&comm));
    wb_family_rules family = made_up_family;
    family.layer = odd_layer;
    wb_config config;
    MUST(made_up_config(&config));
    wb_infer_options options = wb_infer_options_default();
    options.n_blocks = 1;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        odd_mixer = layer_shift;
        odd_mixer.state = cases[i].mixer;
        odd_feed_forward = wb_layer_mlp;
        odd_feed_forward.state = cases[i].feed_forward;
        fixture f = empty_fixture(comm, &config, &family);
        wb_infer *infer = NULL;
        assert_int_equal(wb_infer_open(f.model, &options, &infer), cases[i].status);
        if (cases[i].status != WB_OK) assert_message_has(cases[i].message);
        wb_infer_close(infer);
        fixture_close(&f);
    }
    wb_comm_close(comm);
}

static double sum_of(const rig *g, const float *logprobs) {
    double sum = 0;
    for (int32_t t = 0; t < g->c.T; t++) sum += (double)logprobs[t];
    return sum;
}

/* The gradient of a weight of each kind of layer against a finite difference, all rows forced. */
static void test_its_gradients_are_right(void **unused) {
    (void)unused;
    static const char *const names[] = {"transformer.h.0.shift.gain", "transformer.h.2.decay.gain",
                                        "transformer.h.3.decay.gain",
                                        "transformer.h.1.self_attn.v_proj.weight"};
    rig g = rig_open();
    results r = results_new(&g.f, &g.c);
    uint8_t *forced = take(g.c.T, 1);
    float *ones = take(g.c.T, sizeof(float));
    memset(forced, 1, (size_t)g.c.T);
    for (int32_t t = 0; t < g.c.T; t++) ones[t] = 1;
    const direction replay = {g.r.ids, forced};
    MUST(wb_train_zero_grads(g.f.train));
    train_pass(&g.f, &g.c, 3, g.order, replay, ones, &r);
    for (size_t k = 0; k < sizeof names / sizeof names[0]; k++) {
        for (int32_t i = 0; i < wb_model_n_tensors(g.f.model); i++) {
            const wb_tensor t = wb_model_tensor(g.f.model, i);
            if (strcmp(t.name, names[k]) != 0) continue;
            float *w = t.data, kept = w[3];
            const double gradient = (double)wb_train_grad(g.f.train, &t)[3];
            w[3] = kept + FINITE_DIFFERENCE;
            train_pass(&g.f, &g.c, 3, g.order, replay, NULL, &r);
            const double above = sum_of(&g, r.logprobs);
            w[3] = kept - FINITE_DIFFERENCE;
            train_pass(&g.f, &g.c, 3, g.order, replay, NULL, &r);
            const double found = (above - sum_of(&g, r.logprobs)) / (2 * (double)FINITE_DIFFERENCE);
            w[3] = kept;
            const double error = fabs(found - gradient);
            if (!(error <= 0.02 * fabs(gradient) + 2e-3))
                fail_msg("%s: expected the gradient %g, found %g", t.name, found, gradient);
        }
    }
    free(forced);
    free(ones);
    results_free(&r);
    rig_close(&g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_its_keys_and_defaults_are_read_and_written),
        cmocka_unit_test(test_its_tensors_have_its_names),
        cmocka_unit_test(test_a_checkpoint_by_its_names_loads),
        cmocka_unit_test(test_inference_keeps_its_state),
        cmocka_unit_test(test_state_without_a_place_is_refused),
        cmocka_unit_test(test_its_gradients_are_right),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
