/* test_hooks_layers.c - hooks of a model whose layers differ in K, some of whose experts have no weights:
 * each layer gives, in every mode, what hooks of a model of that one layer give, ids, weights and gradients
 * bit for bit. On the CPU, and on a CUDA device where there is one. usage: test_hooks_layers [SEED] */
#include "replay/replay_fixture.h"

#include "wb_device.h"
#include "wb_train_hooks.h"

enum {
    E = 16,
    WEIGHTLESS = 3,
    L = 3,
    MOST = 4,
    TOKENS = 8,
    HOLE = 3,
    PADDING = 4,
    T = TOKENS + PADDING,
    CUT = 5
};
static const uint32_t layer_k[L] = {MOST, 1, 2};
static uint64_t seed = 37;

/* What a gate gave, and its backward. */
typedef struct gate_out {
    uint16_t ids[T][MOST]; /* the first K of each row */
    float weights[T * MOST], dlogits[T][E];
} gate_out;

typedef struct trainer {
    wb_device *dev;
    wb_route_model model;
    fixture_record record;
    wb_replay *replay;
    wb_hooks *hooks;
    wb_router router;
    void *ids, *weights, *logits, *dweights, *dlogits; /* device */
} trainer;

static wb_device *open_cpu(void) {
    wb_device *dev = NULL;
    OK(wb_device_open_cpu(1, &dev));
    return dev;
}

static void make_room(trainer *f) {
    OK(wb_device_alloc(f->dev, sizeof(uint16_t) * T * MOST, &f->ids));
    OK(wb_device_alloc(f->dev, sizeof(float) * T * MOST, &f->weights));
    OK(wb_device_alloc(f->dev, sizeof(float) * T * E, &f->logits));
    OK(wb_device_alloc(f->dev, sizeof(float) * T * MOST, &f->dweights));
    OK(wb_device_alloc(f->dev, sizeof(float) * T * E, &f->dlogits));
}

/* `f->model` and `f->record` are set. */
static void open_trainer(trainer *f, wb_router_type type) {
    wb_replay_options o = wb_replay_options_default();
    wb_hooks_options options = wb_hooks_options_default();
    strcpy(f->model.router, wb_router_name(type));
    f->router = (wb_router){type, E, (int32_t)f->model.top_k, 1, 1, true, 1.5f};
    o.missing = WB_MISSING_NATIVE;
    OK(wb_replay_open(&f->model, &o, &f->replay));
    OK(wb_replay_add(f->replay, &f->model, &f->record.record));
    options.device = f->dev;
    options.replay = f->replay;
    options.router = f->router;
    OK(wb_hooks_open(&options, &f->hooks));
    make_room(f);
}

static void close_trainer(trainer *f) {
    wb_device_free(f->dev, f->ids);
    wb_device_free(f->dev, f->weights);
    wb_device_free(f->dev, f->logits);
    wb_device_free(f->dev, f->dweights);
    wb_device_free(f->dev, f->dlogits);
    wb_hooks_close(f->hooks);
    wb_replay_close(f->replay);
    fixture_close(&f->record);
    wb_device_close(f->dev);
}

/* The model of layer l alone, and the record's ids of that layer. */
static void make_single(const trainer *all, uint32_t l, trainer *f) {
    f->model = fixture_model(E, layer_k[l], 1);
    f->model.n_weightless = WEIGHTLESS;
    fixture_complete(&f->record, &f->model, 7, TOKENS);
    for (uint32_t t = 0; t + 1 < TOKENS; t++) {
        const uint8_t *row = (const uint8_t *)all->record.runs[0].ids + t * wb_route_row_bytes(&all->model);
        memcpy(f->record.blocks[0] + 1 + t * layer_k[l], row + wb_route_layer_first(&all->model, l),
               layer_k[l]);
    }
    fixture_invalidate(&f->record, HOLE);
}

static void begin(trainer *f, wb_replay_mode mode) {
    const wb_segment s[2] = {wb_replay_segment(f->replay, f->record.rid, 0, TOKENS, f->record.tokens),
                             {WB_SEGMENT_PADDING, NULL, 0, PADDING, NULL}};
    OK(wb_hooks_step_begin(f->hooks, mode, 1));
    const wb_segment of_mode[2] = {
        mode == WB_REPLAY_RECORD ? (wb_segment){WB_SEGMENT_RECORD, NULL, 0, TOKENS, NULL} : s[0], s[1]};
    OK(wb_replay_plan(f->replay, 0, 2, of_mode));
}

/* Rows [row, row + rows) of MoE layer l, whose ids lie MOST apart. */
static void pass_rows(trainer *f, int32_t l, uint32_t K, uint32_t row, uint32_t rows, bool backward) {
    uint16_t *ids = (uint16_t *)f->ids + row * MOST;
    float *weights = (float *)f->weights + row * K, *logits = (float *)f->logits + row * E;
    OK(wb_hooks_gate_forward(f->hooks, 0, l, row, rows, logits, (wb_ids){ids, WB_U16, MOST}, weights));
    OK(wb_hooks_dispatched(f->hooks, 0, l, row, rows, (wb_ids){ids, WB_U16, MOST}));
    if (!backward) return;
    OK(wb_hooks_gate_backward(f->hooks, 0, l, row, rows, logits, (const float *)f->dweights + row * K,
                              (float *)f->dlogits + row * E));
}

/* The logits and, for a hash router, the table's ids are functions of the layer's number `number`. */
static gate_out pass(trainer *f, int32_t l, uint32_t number, bool backward) {
    uint64_t state = seed + 101 * number;
    float logits[T][E], dweights[T * MOST];
    gate_out out;
    const uint32_t K = layer_k[number];
    memset(&out, 0, sizeof out);
    for (uint32_t i = 0; i < T * E; i++) logits[i / E][i % E] = 6 * wb_random_unit(wb_random(&state)) - 3;
    for (uint32_t i = 0; i < T * MOST; i++) dweights[i] = wb_random_unit(wb_random(&state)) - 0.5f;
    for (uint32_t i = 0; i < T * MOST; i++)
        out.ids[i / MOST][i % MOST] = (uint16_t)((i / MOST * 7 + i % MOST * 3 + number) % E);
    OK(f->dev->to_device(f->dev, f->logits, logits, sizeof logits));
    OK(f->dev->to_device(f->dev, f->dweights, dweights, sizeof dweights));
    OK(f->dev->to_device(f->dev, f->ids, out.ids, sizeof out.ids));
    OK(f->dev->to_device(f->dev, f->dlogits, out.dlogits, sizeof out.dlogits));
    pass_rows(f, l, K, 0, CUT, backward);
    pass_rows(f, l, K, CUT, T - CUT, backward);
    OK(f->dev->to_host(f->dev, out.ids, f->ids, sizeof out.ids));
    OK(f->dev->to_host(f->dev, out.weights, f->weights, sizeof(float) * T * K));
    OK(f->dev->to_host(f->dev, out.dlogits, f->dlogits, sizeof out.dlogits));
    return out;
}

/* Padding is spread by the whole model: its experts are distinct, and have no weight. */
static void check_padding(const gate_out *out, uint32_t K) {
    for (uint32_t t = TOKENS; t < T; t++)
        for (uint32_t k = 0; k < K; k++) {
            assert_true(out->ids[t][k] < E && out->weights[t * K + k] == 0);
            for (uint32_t j = 0; j < k; j++) assert_true(out->ids[t][j] != out->ids[t][k]);
        }
}

static void compare(const gate_out *a, const gate_out *b, uint32_t K) {
    for (uint32_t t = 0; t < TOKENS; t++)
        for (uint32_t k = 0; k < K; k++) assert_int_equal(a->ids[t][k], b->ids[t][k]);
    assert_memory_equal(a->weights, b->weights, sizeof(float) * T * K);
    assert_memory_equal(a->dlogits, b->dlogits, sizeof a->dlogits);
    check_padding(a, K);
}

static void compare_metrics(const trainer *all, const trainer *one, uint32_t l) {
    wb_replay_layer_metrics of_all[L], of_one;
    wb_replay_metrics unused;
    wb_replay_get_metrics(all->replay, &unused, of_all);
    wb_replay_get_metrics(one->replay, &unused, &of_one);
    assert_memory_equal(&of_all[l], &of_one, sizeof of_one);
}

static void one_step(trainer *all, trainer *single, wb_replay_mode mode) {
    const bool backward = mode != WB_REPLAY_OFF || all->router.type != WB_ROUTER_HASH;
    gate_out found[L];
    begin(all, mode);
    /* The last layer first: no layer waits for another. */
    for (int32_t l = L - 1; l >= 0; l--) found[l] = pass(all, l, (uint32_t)l, backward);
    if (mode == WB_REPLAY_RECORD) /* a recompute is forced to what the first pass chose */
        for (int32_t l = 0; l < L; l++) {
            const gate_out again = pass(all, l, (uint32_t)l, backward);
            compare(&again, &found[l], layer_k[l]);
        }
    OK(wb_hooks_step_end(all->hooks, NULL));
    for (uint32_t l = 0; l < L; l++) {
        begin(&single[l], mode);
        const gate_out expected = pass(&single[l], 0, l, backward);
        if (mode == WB_REPLAY_RECORD) pass(&single[l], 0, l, backward);
        OK(wb_hooks_step_end(single[l].hooks, NULL));
        compare(&found[l], &expected, layer_k[l]);
        compare_metrics(all, &single[l], l);
    }
}

static void layers_are_as_alone(wb_device *(*open)(void)) {
    static const wb_router_type types[] = {WB_ROUTER_SOFTMAX_NORM, WB_ROUTER_SIGMOID, WB_ROUTER_HASH};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        trainer all = {.dev = open()}, single[L];
        memset(single, 0, sizeof single);
        all.model = fixture_model(E, MOST, L);
        all.model.layer_top_k = layer_k;
        all.model.n_weightless = WEIGHTLESS;
        fixture_complete(&all.record, &all.model, 7, TOKENS);
        fixture_invalidate(&all.record, HOLE);
        open_trainer(&all, types[i]);
        for (uint32_t l = 0; l < L; l++) {
            single[l].dev = open_cpu();
            make_single(&all, l, &single[l]);
            open_trainer(&single[l], types[i]);
        }
        for (int mode = WB_REPLAY_OFF; mode <= WB_REPLAY_ROLLOUT; mode++)
            one_step(&all, single, (wb_replay_mode)mode);
        for (uint32_t l = 0; l < L; l++) close_trainer(&single[l]);
        close_trainer(&all);
    }
}

static void test_rule_37_layers_that_differ_in_k(void **state) {
    (void)state;
    print_message("seed %" PRIu64 "\n", seed);
    layers_are_as_alone(open_cpu);
}

static wb_device *open_cuda(void) {
    wb_device *dev = NULL;
    OK(wb_device_open_cuda(0, NULL, &dev));
    return dev;
}

static void test_rule_37_layers_that_differ_in_k_on_cuda(void **state) {
    wb_device *dev = NULL;
    (void)state;
    if (wb_device_open_cuda(0, NULL, &dev) != WB_OK) {
        print_message("skipped: %s\n", wb_error_message());
        return;
    }
    wb_device_close(dev);
    layers_are_as_alone(open_cuda);
}

/* The router's K is the largest, and a tensor has to hold the K of its layer. */
static void test_what_does_not_fit(void **state) {
    (void)state;
    trainer f = {.dev = open_cpu()};
    f.model = fixture_model(E, MOST, L);
    f.model.layer_top_k = layer_k;
    fixture_complete(&f.record, &f.model, 7, TOKENS);
    open_trainer(&f, WB_ROUTER_SIGMOID);
    begin(&f, WB_REPLAY_ROLLOUT);
    const wb_ids narrow = {f.ids, WB_U16, 2};
    assert_int_equal(wb_hooks_gate_forward(f.hooks, 0, 0, 0, T, f.logits, narrow, f.weights),
                     WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "stride 4 or more, found u16 of 2"));
    OK(f.dev->to_device(f.dev, f.logits, (const float[T * E]){0}, sizeof(float) * T * E));
    OK(wb_hooks_gate_forward(f.hooks, 0, 2, 0, T, f.logits, narrow, f.weights));
    wb_hooks_options options = wb_hooks_options_default();
    wb_hooks *other = NULL;
    options.device = f.dev;
    options.replay = f.replay;
    options.router = f.router;
    options.router.top_k = 2;
    assert_int_equal(wb_hooks_open(&options, &other), WB_MISMATCH);
    wb_hooks_step_abort(f.hooks);
    close_trainer(&f);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_37_layers_that_differ_in_k),
        cmocka_unit_test(test_rule_37_layers_that_differ_in_k_on_cuda),
        cmocka_unit_test(test_what_does_not_fit),
    };
    if (argc > 1) seed = strtoull(argv[1], NULL, 10);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
