/* test_measure.c - what a model, inference and training would take is measured without them, by part, and is
 * what they take when they are opened; also of a model that no test could open. */
#include "infer_state.h"
#include "train_state.h"
#include "variant_ranks.h"

#include <unistd.h>

enum { MAX_RANKS = 3 };

static void must_be(bool held, const char *what) {
    if (held) return;
    fprintf(stderr, "expected %s\n", what);
    exit(1);
}

static size_t sum(const wb_memory *memory) {
    size_t bytes = 0;
    for (int32_t i = 0; i < memory->n_parts; i++) bytes += memory->parts[i].bytes;
    return bytes;
}

static size_t part(const wb_memory *memory, const char *name) {
    for (int32_t i = 0; i < memory->n_parts; i++)
        if (strcmp(memory->parts[i].name, name) == 0) return memory->parts[i].bytes;
    return 0;
}

/* ---- sums of gradients ---------------------------------------------------------------------------- */

/* What an all-reduce takes of scratch on any number of ranks, some of which no test could run. */
static void test_a_bucket_has_the_scratch_of_its_sum(void **unused) {
    (void)unused;
    const int64_t bucket = (int64_t)1 << 20;
    for (int32_t R = 1; R <= 5000; R++) {
        const int64_t part = bucket / R + (bucket % R > 0), scratch = wb_train_bucket_scratch(bucket, R);
        if (scratch < bucket || scratch < (R - 1) * part || scratch > bucket + R)
            fail_msg("%d ranks: expected scratch for %d parts of %" PRId64 ", found %" PRId64, R, R - 1, part,
                     scratch);
    }
    assert_int_equal(wb_train_bucket_scratch(bucket, 1056), bucket);
    assert_int_equal(wb_train_bucket_scratch(bucket, 1057), 1056 * 993);
}

/* ---- against what is opened ---------------------------------------------------------------------- */

static void *run_rank(void *argument) {
    const rank_state *s = argument;
    const int32_t R = wb_comm_size(s->comm), rank = wb_comm_rank(s->comm);
    fixture f = fixture_create(&s->config, 5, s->comm, 1);
    const wb_model_options model = wb_model_options_default();
    wb_memory memory;
    MUST(wb_model_measure(&s->config, &model, R, rank, &memory));
    must_be(memory.device_bytes == f.model->memory.arena.bytes && sum(&memory) == memory.device_bytes,
            "the model's bytes");

    for (int64_t n = 1; n <= (int64_t)1 << 20; n += n / 3 + 1)
        must_be((int64_t)wb_exchange_all_reduce_scratch(f.model->exchange, (size_t)n) <=
                    wb_train_bucket_scratch((int64_t)1 << 20, R),
                "scratch for a bucket of gradients");

    wb_infer_options infer_options = wb_infer_options_default();
    infer_options.n_blocks = 7;
    infer_options.max_tokens = 33;
    wb_infer *infer;
    MUST(wb_infer_open(f.model, &infer_options, &infer));
    MUST(wb_infer_measure(&s->config, &model, &infer_options, R, rank, &memory));
    must_be(memory.device_bytes == infer->memory.arena.bytes && sum(&memory) == memory.device_bytes,
            "the bytes of inference");
    must_be((part(&memory, "exchange") > 0) == (R > 1), "an exchange with several ranks alone");
    wb_infer_close(infer);

    for (int i = 0; i < 4; i++) {
        wb_train_options options = wb_train_options_default();
        options.max_tokens = 21;
        options.forward_only = i == 1;
        options.keep_bytes = i == 2 ? 1 << 15 : i == 3 ? UINT64_MAX : 0;
        wb_train *train;
        MUST(wb_train_open(f.model, &options, &train));
        MUST(wb_train_measure(&s->config, &model, &options, R, rank, &memory));
        must_be(memory.device_bytes == train->memory.arena.bytes && sum(&memory) == memory.device_bytes,
                "the bytes of training");
        must_be((part(&memory, "gradients") == 0) == options.forward_only, "gradients unless forwards only");
        wb_train_close(train);
    }
    fixture_close(&f);
    return NULL;
}

static void test_measured_is_what_is_taken(void **unused) {
    (void)unused;
    on_every_variant(MAX_RANKS, run_rank);
}

/* ---- without --------------------------------------------------------------------------------------- */

/* 30 billion parameters, of which a rank of eight has 16 experts a layer. */
static wb_config large_config(void) {
    wb_config c = {.family = WB_FAMILY_QWEN3_MOE,
                   .hidden_size = 2048,
                   .n_layers = 48,
                   .n_heads = 32,
                   .n_kv_heads = 4,
                   .head_dim = 128,
                   .expert_width = 768,
                   .dense_width = 6144,
                   .vocab_size = 151936,
                   .max_positions = 40960,
                   .norm_eps = 1e-6F,
                   .rope_theta = 1e6,
                   .qk_norm = WB_QK_NORM_PER_HEAD,
                   .router = {.type = WB_ROUTER_SOFTMAX_NORM, .n_experts = 128, .top_k = 8, .scale = 1},
                   .moe_layer_mask = {((uint64_t)1 << 48) - 1}};
    return c;
}

static void test_a_model_that_is_not_there(void **unused) {
    (void)unused;
    const wb_config config = large_config();
    wb_model_options model = wb_model_options_default();
    model.dtype = WB_BF16;
    wb_memory memory;
    MUST(wb_model_measure(&config, &model, 8, 3, &memory));
    const int64_t H = 2048, experts = 16 * 3 * 768 * H, attention = H * (2 * 32 + 2 * 4) * 128,
                  router = 128 * H, norms = 2 * H + 2 * 128;
    const int64_t expected =
        2 * (48 * (experts + attention + router) + 2 * 151936 * H) + 4 * (48 * norms + H);
    assert_int_equal(part(&memory, "weights"), expected);

    size_t slot_bytes;
    MUST(wb_model_measure_slot(&config, &model, &slot_bytes));
    assert_int_equal(slot_bytes, 2 * 3 * 768 * H);

    wb_infer_options infer = wb_infer_options_default();
    infer.n_blocks = 1024;
    MUST(wb_infer_measure(&config, &model, &infer, 8, 3, &memory));
    assert_int_equal(part(&memory, "KV pool"), (int64_t)2 * 2 * 48 * 1024 * 16 * 4 * 128);
    const size_t worst = part(&memory, "exchange");
    infer.max_expert_rows = 3 * infer.max_tokens * 8;
    MUST(wb_infer_measure(&config, &model, &infer, 8, 3, &memory));
    assert_true(part(&memory, "exchange") < worst);

    wb_train_options train = wb_train_options_default();
    model.dtype = WB_F32;
    MUST(wb_train_measure(&config, &model, &train, 8, 7, &memory));
    assert_true(part(&memory, "gradients") > (size_t)expected);
    const size_t recomputed = part(&memory, "activations kept");
    train.keep_bytes = (uint64_t)20 << 30;
    MUST(wb_train_measure(&config, &model, &train, 8, 7, &memory));
    const size_t kept = part(&memory, "activations kept") - recomputed;
    assert_true(kept <= train.keep_bytes && kept > train.keep_bytes / 2);

    assert_int_equal(wb_model_measure(&config, &model, 8, 8, &memory), WB_INVALID_ARGUMENT);
    train.max_tokens = 0;
    assert_int_equal(wb_train_measure(&config, &model, &train, 8, 7, &memory), WB_INVALID_ARGUMENT);
    assert_true(part(&memory, "gradients") > 0);
}

/* A sequence has no more blocks than the pool, however many positions the model has. */
static void test_a_step_is_not_larger_than_the_pool(void **unused) {
    (void)unused;
    wb_config config = variant_config(VARIANT_QWEN3);
    const wb_model_options model = wb_model_options_default();
    wb_infer_options infer = wb_infer_options_default();
    wb_memory pool, many;
    infer.n_blocks = 2048;
    infer.block_size = 16;
    config.max_positions = infer.n_blocks * infer.block_size;
    MUST(wb_infer_measure(&config, &model, &infer, 2, 0, &pool));
    config.max_positions = INT32_MAX;
    MUST(wb_infer_measure(&config, &model, &infer, 2, 0, &many));
    assert_int_equal(many.host_bytes, pool.host_bytes);
    assert_int_equal(many.device_bytes, pool.device_bytes);
}

/* As a placement has them, so that nothing is made for ranks that nobody has. */
static void test_numbers_of_ranks(void **unused) {
    (void)unused;
    const wb_config config = variant_config(VARIANT_QWEN3);
    const wb_model_options model = wb_model_options_default();
    wb_memory memory;
    MUST(wb_model_measure(&config, &model, 65536, 65535, &memory));
    const int32_t odd[] = {65537, 2000000000, INT32_MAX, 0, -1};
    for (size_t i = 0; i < sizeof odd / sizeof odd[0]; i++) {
        alarm(20);
        assert_int_equal(wb_model_measure(&config, &model, odd[i], 0, &memory), WB_INVALID_ARGUMENT);
        alarm(0);
        assert_non_null(strstr(wb_error_message(), "1..65536 ranks"));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_bucket_has_the_scratch_of_its_sum),
        cmocka_unit_test(test_a_step_is_not_larger_than_the_pool), cmocka_unit_test(test_numbers_of_ranks),
        cmocka_unit_test(test_measured_is_what_is_taken), cmocka_unit_test(test_a_model_that_is_not_there)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
