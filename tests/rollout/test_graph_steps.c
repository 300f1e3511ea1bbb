/* test_graph_steps.c - steps as graphs of the device: a launch is the step that would have run op by op, over
 * any schedule; and all steps of one size are the same calls, argument by argument. The device is one of the
 * CPU that writes its ops down (graph_device.h). */
#include "engine_rig.h"
#include "support/graph_device.h"

static uint64_t first_seed = 1, n_seeds = 8;

/* ---- a launch is the step -------------------------------------------------------------------------- */

enum { N_ASKS = 24, MAX_UNFINISHED = 9 };

/* Completions in order of their requests. The last one decodes alone, so that one size comes again and
 * again. */
static void run_asks(wb_engine *engine, wb_model *other, ask *asks, dice d, wb_completion **done) {
    uint32_t submitted = 0, n_done = 0, version = 0;
    for (bool busy = true; busy || submitted < N_ASKS;) {
        const uint32_t end = n_done == N_ASKS - 1 ? N_ASKS : N_ASKS - 1;
        while (submitted < end && submitted - n_done < MAX_UNFINISHED && pick(&d, 0, 2) > 0)
            assert_ok(wb_engine_submit(engine, ask_request(&asks[submitted++])));
        busy = step(engine);
        /* In place: graphs go on. */
        if (pick(&d, 0, 30) == 0) assert_ok(wb_engine_set_weights(engine, other, ++version));
        for (wb_completion *c; (c = wb_engine_poll(engine)); n_done++) {
            const uint32_t number = (uint32_t)strtoul(c->record.rid + 1, NULL, 10);
            assert_null(done[number]);
            done[number] = c;
        }
    }
    assert_int_equal(n_done, N_ASKS);
}

static wb_config config_of(uint64_t seed) {
    return seed % 2 ? tiny_config(WB_FAMILY_QWEN3_MOE, 12, 3, 3, 2)
                    : tiny_config(WB_FAMILY_OLMOE, 12, 3, 3, 0);
}

/* What the asks of a seed give on `device`, which is closed. */
static void play_on(wb_device *device, uint64_t seed, ask *asks, wb_completion **done) {
    const wb_config c = config_of(seed);
    dice d = {seed};
    const int32_t n_blocks = (int32_t)pick(&d, 20, 60), tokens = (int32_t)pick(&d, 5, 40);
    for (uint32_t i = 0; i < N_ASKS; i++) asks[i] = ask_random(&d, i, 61, 20, 24);
    asks[N_ASKS - 1] = ask_fixed("r23", 1, 12);
    rig r = rig_open_on(&c, seed, device, NULL, WB_F32);
    wb_model *other = NULL;
    wb_model_options options = wb_model_options_default();
    options.device = device, options.comm = r.own_comm;
    assert_ok(wb_model_create(&c, seed + 1000, 0.4f, &options, &other));
    wb_engine *engine = engine_of(r.model, n_blocks, 4, tokens, 8);
    run_asks(engine, other, asks, d, done);
    wb_engine_close(engine);
    wb_model_close(other);
    rig_close(&r);
}

static void assert_same_all(uint64_t seed, wb_completion **direct, wb_completion **graphs) {
    const wb_config c = config_of(seed);
    rig r = rig_open(&c, seed, 1, NULL);
    for (uint32_t i = 0; i < N_ASKS; i++) {
        assert_same(r.model, direct[i], graphs[i]);
        wb_completion_free(direct[i]);
        wb_completion_free(graphs[i]);
    }
    rig_close(&r);
}

static void play_seed(uint64_t seed) {
    ask asks[N_ASKS];
    wb_completion *direct[N_ASKS] = {NULL}, *graphs[N_ASKS] = {NULL};
    wb_device *device = NULL;
    assert_ok(wb_device_open_cpu(1, &device));
    play_on(device, seed, asks, direct);
    assert_ok(wb_device_open_cpu(1, &device));
    graph_device_make(device);
    play_on(device, seed, asks, graphs);
    assert_true(graph.captured > 0 && graph.launched > graph.captured);
    assert_int_equal(graph.freed, graph.captured);
    graph_device_close();
    assert_same_all(seed, direct, graphs);
}

/* A GPU against itself, where there is one. */
static void test_a_launch_on_cuda_is_the_step(void **state) {
    (void)state;
    if (wb_device_count_cuda() == 0) skip();
    for (uint64_t seed = first_seed; seed < first_seed + 4; seed++) {
        ask asks[N_ASKS];
        wb_completion *direct[N_ASKS] = {NULL}, *graphs[N_ASKS] = {NULL};
        wb_device *device = NULL;
        assert_ok(wb_device_open_cuda(0, NULL, &device));
        assert_non_null(device->graph_begin);
        device->graph_begin = NULL;
        play_on(device, seed, asks, direct);
        assert_ok(wb_device_open_cuda(0, NULL, &device));
        play_on(device, seed, asks, graphs);
        assert_same_all(seed, direct, graphs);
    }
}

static void test_a_launch_is_the_step(void **state) {
    (void)state;
    for (uint64_t i = 0; i < n_seeds; i++) {
        print_message("seed %" PRIu64 "\n", first_seed + i);
        play_seed(first_seed + i);
    }
}

/* ---- steps of one size ------------------------------------------------------------------------------ */

enum { T = 16, BLOCKS = 40, BLOCK_SIZE = 4, MOST = 10 };

/* A step of T rows of any sequences, with 9 to 16 tokens and as many logits and blocks as one size has. */
typedef struct any_step {
    int32_t tokens[T], pos[T], seq[T], blocks[T * MOST], logit_rows[T];
    wb_infer_batch batch;
} any_step;

static void make_step(dice *d, any_step *s) {
    const int32_t n = (int32_t)pick(d, 9, T), max_blocks = (int32_t)pick(d, 5, 8);
    memset(s, 0, sizeof *s);
    int32_t t = 0, n_seqs = 0;
    while (t < n) {
        int32_t run = (int32_t)pick(d, 1, 3), pos = (int32_t)pick(d, 0, 15);
        for (; run > 0 && t < n; run--, t++) {
            s->tokens[t] = (int32_t)pick(d, 0, 60), s->pos[t] = pos++, s->seq[t] = n_seqs;
        }
        n_seqs++;
    }
    for (; t < T; t++) s->seq[t] = -1;
    for (int32_t i = 0; i < n_seqs * max_blocks; i++) s->blocks[i] = (int32_t)pick(d, 0, BLOCKS - 1);
    const int64_t n_logits = pick(d, 5, 8);
    for (int64_t i = 0; i < n_logits; i++) s->logit_rows[i] = (int32_t)pick(d, 0, (uint32_t)n - 1);
    s->batch = (wb_infer_batch){T,          s->tokens, s->pos, s->seq,   n_seqs,
                                max_blocks, s->blocks, NULL,   n_logits, s->logit_rows};
}

static void test_steps_of_one_size_are_the_same_calls(void **state) {
    (void)state;
    dice d = {first_seed};
    rig r = open_rig();
    graph_device_make(r.device);
    wb_infer_options options = wb_infer_options_default();
    options.n_blocks = BLOCKS, options.block_size = BLOCK_SIZE, options.max_blocks = MOST;
    options.max_tokens = 64, options.max_sequences = 16, options.max_logits = 16;
    wb_infer *infer = NULL;
    assert_ok(wb_infer_open(r.model, &options, &infer));
    assert_int_equal(wb_infer_padded(infer, 9), T);
    uint8_t *ids = take(T, wb_route_row_bytes(wb_model_routes(r.model)));
    const wb_routing routing = {.ids = ids};
    graph_log *first = take(1, sizeof *first);
    for (int i = 0; i < 30; i++) {
        any_step s;
        const float *logits;
        make_step(&d, &s);
        r.device->scratch_moves++; /* graphs are dropped, and the step runs op by op */
        assert_ok(wb_infer_forward(infer, &s.batch, &routing, &logits));
        assert_int_equal(graph.captured, 0);
        if (i == 0) *first = *graph.now;
        assert_true(first->n > 0 && graph_same(first, graph.now));
    }
    free(first);
    free(ids);
    wb_infer_close(infer);
    rig_close(&r);
    graph_device_close();
}

int main(int argc, char **argv) {
    if (argc > 1) first_seed = strtoull(argv[1], NULL, 10);
    if (argc > 2) n_seeds = strtoull(argv[2], NULL, 10);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_a_launch_is_the_step),
                                       cmocka_unit_test(test_a_launch_on_cuda_is_the_step),
                                       cmocka_unit_test(test_steps_of_one_size_are_the_same_calls)};
    return cmocka_run_group_tests_name("graph steps", tests, NULL, NULL);
}
