/* test_hooks_graph.c - a foreign trainer's micro-batch as a graph: captured in its first step and launched in
 * every one, with other logits and other records, it gives what direct calls give: ids, weights, gradients
 * and metrics, exactly. The device is a CPU that writes its ops down (graph_device.h), so that a copy, a wait
 * or an allocation in a capture aborts. */
#include "replay/replay_fixture.h"
#include "support/graph_device.h"
#include "support/test_seed.h"

#include "wb_check.h"
#include "wb_train_hooks.h"

enum { E = 32, K = 4, L = 3, TOKENS = 7, PADDING = 2, T = TOKENS + PADDING, STEPS = 4 };

static uint64_t seed;

/* What a trainer has of a step. */
typedef struct tensors {
    float logits[L][T][E], dweights[L][T][K];
    uint16_t ids[L][T][K];
    float weights[L][T][K], dlogits[L][T][E];
} tensors;

typedef struct trainer {
    wb_device *dev;
    wb_replay *replay;
    wb_hooks *hooks;
    tensors t;
} trainer;

static wb_route_model model;
static fixture_record records[STEPS];

static void open_trainer(trainer *f, wb_router_type type) {
    wb_hooks_options options = wb_hooks_options_default();
    OK(wb_replay_open(&model, NULL, &f->replay));
    for (int i = 0; i < STEPS; i++) OK(wb_replay_add(f->replay, &model, &records[i].record));
    options.device = f->dev;
    options.replay = f->replay;
    options.router = (wb_router){type, E, K, 1, 1, true, 1};
    OK(wb_hooks_open(&options, &f->hooks));
}

static void close_trainer(trainer *f) {
    wb_hooks_close(f->hooks);
    wb_replay_close(f->replay);
    wb_device_close(f->dev);
}

static void begin(trainer *f, wb_replay_mode mode, int step) {
    const wb_segment whole = fixture_segment(&records[step], 0, TOKENS);
    wb_segment s[2] = {whole, {WB_SEGMENT_PADDING, NULL, 0, PADDING, NULL}};
    if (mode == WB_REPLAY_RECORD) s[0] = (wb_segment){WB_SEGMENT_RECORD, NULL, 0, TOKENS, NULL};
    OK(wb_hooks_step_begin(f->hooks, mode, 1));
    OK(wb_replay_plan(f->replay, 0, 2, s));
}

/* Forward and, when all layers are through, a recompute and the backward. */
static wb_status run(trainer *f) {
    tensors *t = &f->t;
    for (int32_t pass = 0; pass < 2; pass++)
        for (int32_t l = 0; l < L; l++) {
            const wb_ids ids = {t->ids[l], WB_U16, K};
            WB_TRY(wb_hooks_gate_forward(f->hooks, 0, l, 0, T, t->logits[l][0], ids, t->weights[l][0]));
            WB_TRY(wb_hooks_dispatched(f->hooks, 0, l, 0, T, ids));
            if (pass == 1)
                WB_TRY(wb_hooks_gate_backward(f->hooks, 0, l, 0, T, t->logits[l][0], t->dweights[l][0],
                                              t->dlogits[l][0]));
        }
    return WB_OK;
}

static void shake(tensors *t, uint64_t *state) {
    memset(t, 0x7f, sizeof *t);
    float *logits = &t->logits[0][0][0], *dweights = &t->dweights[0][0][0];
    for (size_t i = 0; i < sizeof t->logits / sizeof *logits; i++)
        logits[i] = 6 * wb_random_unit(wb_random(state)) - 3;
    for (size_t i = 0; i < sizeof t->dweights / sizeof *dweights; i++)
        dweights[i] = wb_random_unit(wb_random(state));
}

/* The step by direct calls. */
static wb_replay_metrics direct_step(trainer *f, wb_replay_mode mode, int step) {
    wb_replay_metrics metrics;
    begin(f, mode, step);
    OK(run(f));
    OK(wb_hooks_step_end(f->hooks, &metrics));
    return metrics;
}

static wb_replay_metrics graph_step(trainer *f, wb_replay_mode mode, int step, void **captured) {
    wb_replay_metrics metrics;
    begin(f, mode, step);
    OK(wb_hooks_upload(f->hooks, 0));
    if (step == 0) {
        OK(f->dev->graph_begin(f->dev));
        OK(run(f));
        OK(f->dev->graph_end(f->dev, captured));
    }
    OK(f->dev->graph_launch(f->dev, *captured));
    if (step > 0) OK(wb_hooks_launched(f->hooks, 0));
    OK(wb_hooks_step_end(f->hooks, &metrics));
    return metrics;
}

static void open_both(trainer *direct, trainer *graphed, wb_router_type type) {
    model = fixture_model(E, K, L);
    strcpy(model.router, wb_router_name(type));
    for (int i = 0; i < STEPS; i++)
        fixture_complete(&records[i], &model, (uint32_t)(seed % 89) + 3 * (uint32_t)i, TOKENS);
    OK(wb_device_open_cpu(1, &direct->dev));
    OK(wb_device_open_cpu(1, &graphed->dev));
    graph_device_make(graphed->dev);
    open_trainer(direct, type);
    open_trainer(graphed, type);
}

static void close_both(trainer *direct, trainer *graphed, void *captured) {
    graphed->dev->graph_free(graphed->dev, captured);
    close_trainer(direct);
    close_trainer(graphed);
    graph_device_close();
    for (int i = 0; i < STEPS; i++) fixture_close(&records[i]);
}

static trainer direct, graphed;

static void test_a_graph_gives_what_calls_give(void **unused) {
    (void)unused;
    const wb_router_type types[] = {WB_ROUTER_SOFTMAX_NORM, WB_ROUTER_SOFTMAX, WB_ROUTER_SIGMOID};
    uint64_t state = seed;
    for (int i = 0; i < 6; i++) {
        const wb_replay_mode mode = i % 2 ? WB_REPLAY_RECORD : WB_REPLAY_ROLLOUT;
        void *captured = NULL;
        open_both(&direct, &graphed, types[i / 2]);
        for (int step = 0; step < STEPS; step++) {
            shake(&direct.t, &state);
            graphed.t = direct.t;
            const wb_replay_metrics expected = direct_step(&direct, mode, step);
            const wb_replay_metrics found = graph_step(&graphed, mode, step, &captured);
            assert_memory_equal(&graphed.t, &direct.t, sizeof direct.t);
            assert_memory_equal(&found, &expected, sizeof found);
        }
        close_both(&direct, &graphed, captured);
    }
}

static void test_what_a_graph_needs_around_it(void **unused) {
    (void)unused;
    void *captured = NULL;
    uint64_t state = seed;
    open_both(&direct, &graphed, WB_ROUTER_SOFTMAX_NORM);
    shake(&graphed.t, &state);
    assert_int_equal(wb_hooks_upload(graphed.hooks, 0), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("outside of a step");
    graph_step(&graphed, WB_REPLAY_ROLLOUT, 0, &captured);
    begin(&graphed, WB_REPLAY_ROLLOUT, 1);
    assert_int_equal(wb_hooks_upload(graphed.hooks, 1), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("micro-batch 1 was not planned");
    assert_int_equal(wb_hooks_launched(graphed.hooks, 0), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("was not uploaded");
    OK(wb_hooks_upload(graphed.hooks, 0));
    OK(graphed.dev->graph_launch(graphed.dev, captured));
    assert_int_equal(wb_hooks_step_end(graphed.hooks, NULL), WB_MISMATCH);
    HAS_MESSAGE("9 untold");
    OK(wb_hooks_launched(graphed.hooks, 0));
    OK(wb_hooks_step_end(graphed.hooks, NULL));
    close_both(&direct, &graphed, captured);
}

/* A dispatcher that follows an older plan is found by the launch. */
static void test_a_launch_compares_with_the_plan_of_its_step(void **unused) {
    (void)unused;
    void *captured = NULL;
    uint64_t state = seed;
    open_both(&direct, &graphed, WB_ROUTER_SOFTMAX_NORM);
    shake(&graphed.t, &state);
    begin(&graphed, WB_REPLAY_ROLLOUT, 0);
    OK(wb_hooks_upload(graphed.hooks, 0));
    for (int32_t l = 0; l < L; l++) {
        const wb_ids ids = {graphed.t.ids[l], WB_U16, K};
        OK(wb_hooks_gate_forward(graphed.hooks, 0, l, 0, T, graphed.t.logits[l][0], ids,
                                 graphed.t.weights[l][0]));
    }
    OK(graphed.dev->graph_begin(graphed.dev));
    for (int32_t l = 0; l < L; l++)
        OK(wb_hooks_dispatched(graphed.hooks, 0, l, 0, T, (wb_ids){graphed.t.ids[l], WB_U16, K}));
    OK(graphed.dev->graph_end(graphed.dev, &captured));
    OK(graphed.dev->graph_launch(graphed.dev, captured));
    OK(wb_hooks_step_end(graphed.hooks, NULL));
    begin(&graphed, WB_REPLAY_ROLLOUT, 1);
    OK(wb_hooks_upload(graphed.hooks, 0));
    assert_int_equal(graphed.dev->graph_launch(graphed.dev, captured), WB_MISMATCH);
    HAS_MESSAGE("was not routed as planned");
    wb_hooks_step_abort(graphed.hooks);
    close_both(&direct, &graphed, captured);
}

int main(int argc, char **argv) {
    seed = test_seed(argc, argv);
    print_message("seed %" PRIu64 "\n", seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_graph_gives_what_calls_give),
        cmocka_unit_test(test_what_a_graph_needs_around_it),
        cmocka_unit_test(test_a_launch_compares_with_the_plan_of_its_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
