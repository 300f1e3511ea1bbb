/* indexer_world.h - a model with indexers and what the engine gave for some requests, of which all but
 * one ask what indexers chose. test_return_indexer.c and test_indexer_requests.c look at it. */
#ifndef INDEXER_WORLD_H
#define INDEXER_WORLD_H

#include "engine_rig.h"

enum { REQUESTS = 4, LAYERS = 4 };

static uint64_t seed = 11;

/* Of argument 1, where it is there. */
static inline void take_seed(int argc, char **argv) {
    if (argc > 1) seed = strtoull(argv[1], NULL, 10);
    printf("seed %" PRIu64 "\n", seed);
}

typedef struct world {
    rig r;
    ask asks[REQUESTS];
    wb_completion *done[REQUESTS];
    wb_train *train;
} world;

static inline wb_config config_of_world(void) {
    return tiny_config(WB_FAMILY_DEEPSEEK_V4, 12, 3, LAYERS, 0);
}

static inline wb_engine *open_engine(const world *w, int32_t max_batch_tokens, bool prefix_cache) {
    wb_engine_options options = wb_engine_options_default();
    options.n_blocks = 40;
    options.block_size = 4;
    options.max_batch_tokens = max_batch_tokens;
    options.max_running = 3;
    options.prefix_cache = prefix_cache;
    options.indexer = true;
    wb_engine *engine = NULL;
    assert_ok(wb_engine_open(w->r.model, &options, &engine));
    return engine;
}

/* Long prompts in small chunks, one of which does not ask. */
static inline void roll_out(world *w) {
    dice d = {seed};
    wb_engine *engine = open_engine(w, 9, true);
    for (uint32_t i = 0; i < REQUESTS; i++) {
        w->asks[i] = ask_random(&d, i, 61, 40, 20);
        w->asks[i].request.n_tokens = pick(&d, 20, 40);
        for (uint32_t t = 0; t < w->asks[i].request.n_tokens; t++) w->asks[i].prompt[t] = pick(&d, 0, 60);
        w->asks[i].request.temperature = 1;
        w->asks[i].request.top_k = 0;
        w->asks[i].request.top_p = 1;
        w->asks[i].request.n_stop = 0;
        w->asks[i].request.return_indexer = i != 1;
        assert_ok(wb_engine_submit(engine, ask_request(&w->asks[i])));
    }
    run_dry(engine, 500);
    for (wb_completion *c; (c = wb_engine_poll(engine));) w->done[atoi(c->record.rid + 1)] = c;
    wb_engine_close(engine);
}

static inline world open_world(bool cuda, wb_dtype dtype) {
    const wb_config config = config_of_world();
    wb_model_options options = wb_model_options_default();
    world w = {0};
    if (cuda)
        assert_ok(wb_device_open_cuda(0, NULL, &w.r.device));
    else
        assert_ok(wb_device_open_cpu(2, &w.r.device));
    assert_ok(wb_comm_open_self(&w.r.own_comm));
    options.device = w.r.device;
    options.comm = w.r.own_comm;
    options.dtype = options.activations = dtype;
    assert_ok(wb_model_create(&config, seed, 0.4f, &options, &w.r.model));
    assert_ok(wb_train_open(w.r.model, NULL, &w.train));
    roll_out(&w);
    return w;
}

static inline void close_world(world *w) {
    for (int i = 0; i < REQUESTS; i++) wb_completion_free(w->done[i]);
    wb_train_close(w->train);
    rig_close(&w->r);
}

#endif
