/* test_engine_measure.c - what an engine would take of a device is measured without it, and is what it takes
 * when it is opened and has its first request. */
#include "engine_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static void check(wb_family family, dice *d) {
    const wb_config config = tiny_config(family, 12, 3, 3, family == WB_FAMILY_QWEN3_MOE ? 2 : 0);
    rig r = rig_open_as(&config, 1, 1, NULL, pick(d, 0, 1) ? WB_BF16 : WB_F32);
    wb_model_options model = wb_model_options_default();
    model.dtype = wb_model_tensor(r.model, 0).dtype;
    wb_engine_options options = wb_engine_options_default();
    options.n_blocks = (int32_t)pick(d, 8, 40);
    options.block_size = (int32_t)pick(d, 4, 16);
    options.max_batch_tokens = (int32_t)pick(d, 1, 100);
    options.max_running = (int32_t)pick(d, 1, 60);
    options.max_drafts = (int32_t)pick(d, 0, 5);
    options.prefix_cache = pick(d, 0, 1) == 1;
    options.indexer = pick(d, 0, 1) == 1;
    ask a = ask_fixed("one", 5, 3);
    a.request.temperature = 1;
    a.request.top_k = (int32_t)pick(d, 0, 30);
    a.request.return_sampling_mask = true;
    a.request.return_indexer = options.indexer && wb_config_n_indexers(&config) > 0;
    const wb_sample_params params = {1, a.request.top_k, 1, 0};

    const size_t before = r.device->held_bytes;
    wb_engine *engine;
    must(wb_engine_open(r.model, &options, &engine), "engine");
    must(wb_engine_submit(engine, ask_request(&a)), "submit");
    wb_memory memory;
    must(wb_engine_measure(&config, &model, &options, wb_sample_max_kept(&params, config.vocab_size), 1, 0,
                           &memory),
         "measure");
    assert_int_equal(memory.device_bytes, r.device->held_bytes - before);
    size_t sum = 0;
    for (int32_t i = 0; i < memory.n_parts; i++) sum += memory.parts[i].bytes;
    assert_int_equal(sum, memory.device_bytes);
    for (bool busy = true; busy;) must(wb_engine_step(engine, &busy), "step");
    /* Beside what there is now, the results without kept tokens, which the first request's have outgrown. */
    wb_memory without;
    must(wb_engine_measure(&config, &model, &options, 0, 1, 0, &without), "measure");
    const wb_memory_part *results = &without.parts[without.n_parts - 1];
    const bool lists = options.indexer && wb_config_n_indexers(&config) > 0;
    assert_int_equal(lists, strcmp(results->name, "indexer lists") == 0);
    if (lists) {
        const size_t n = (size_t)options.max_batch_tokens * (size_t)wb_config_n_indexers(&config);
        assert_int_equal(results->bytes, n * (4 * (size_t)config.compressed.index_top_k + 1));
        results--;
    }
    assert_string_equal(results->name, "results");
    assert_in_range(r.device->peak_bytes - before, memory.device_bytes, memory.device_bytes + results->bytes);
    wb_engine_close(engine);
    assert_int_equal(r.device->held_bytes, before);
    rig_close(&r);
}

static void test_measured_is_what_is_taken(void **unused) {
    (void)unused;
    for (uint64_t seed = 1; seed <= 40; seed++) {
        dice d = {seed};
        print_message("seed %d\n", (int)seed);
        check((wb_family)(seed % N_FAMILIES), &d);
    }
}

static void test_odd_options_are_refused(void **unused) {
    (void)unused;
    const wb_config config = tiny_config(WB_FAMILY_QWEN3_MOE, 12, 3, 3, 2);
    const wb_model_options model = wb_model_options_default();
    wb_engine_options options = wb_engine_options_default();
    options.max_running = 0;
    wb_memory memory = {.n_parts = -7};
    assert_int_equal(wb_engine_measure(&config, &model, &options, 0, 1, 0, &memory), WB_INVALID_ARGUMENT);
    options.max_running = 1;
    assert_int_equal(wb_engine_measure(&config, &model, &options, 0, 2, 2, &memory), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_engine_measure(&config, &model, &options, -1, 1, 0, &memory), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_engine_measure(&config, &model, &options, INT64_MAX / 2 + 1, 1, 0, &memory),
                     WB_CAPACITY);
    /* As many as can be, and the rest of a step's results beside them. */
    assert_int_equal(wb_engine_measure(&config, &model, &options, INT64_MAX / 4, 1, 0, &memory), WB_CAPACITY);
    assert_non_null(strstr(wb_error_message(), "of kept tokens overflow"));
    assert_int_equal(memory.n_parts, -7);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_measured_is_what_is_taken),
                                       cmocka_unit_test(test_odd_options_are_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
