/* test_sampling.c - one distribution (rule 31): what the engine records of how a token was sampled is what a
 * trainer computes from the record, bit for bit. */
#include "engine_rig.h"
#include "support/temp_files.h"

enum { PROMPT = 5, NEW = 24, T = PROMPT + NEW - 1, ROW_BYTES = 2 * 3, V = 61 };

/* The record as a batch of one sequence. */
typedef struct fed {
    int32_t tokens[T], targets[T];
    float temperature[T];
    int64_t kept_start[T + 1];
    wb_train_batch batch;
} fed;

static const int32_t seq_start[] = {0, T};

static void feed(const wb_record *record, fed *f) {
    f->kept_start[0] = 0;
    for (uint32_t t = 0; t < T; t++) {
        const bool sampled = t + 1 >= PROMPT;
        f->tokens[t] = (int32_t)record->tokens[t];
        f->targets[t] = sampled ? (int32_t)record->tokens[t + 1] : -1;
        f->temperature[t] = record->sampling->temperature;
        f->kept_start[t + 1] = sampled && record->mask_ends ? record->mask_ends[t + 1 - PROMPT] : 0;
    }
    f->batch = (wb_train_batch){.T = T,
                                .tokens = f->tokens,
                                .targets = f->targets,
                                .n_seqs = 1,
                                .seq_start = seq_start,
                                .temperature = f->temperature,
                                .kept_ids = record->mask_ids,
                                .kept_start = record->mask_ids ? f->kept_start : NULL};
}

/* Log-probabilities of the sampled tokens under replay, and how many of them differ in bits. */
static int trainer_differs(wb_model *model, const wb_record *record, const wb_train_batch *batch,
                           const float *expected) {
    uint8_t ids[T * ROW_BYTES], forced[T];
    float logprobs[T];
    wb_train *train = NULL;
    assert_int_equal(1, record->n_routes);
    assert_int_equal(T, record->routes[0].rows);
    memcpy(ids, record->routes[0].ids, sizeof ids);
    memset(forced, WB_ROW_FORCED, sizeof forced);
    assert_ok(wb_train_open(model, NULL, &train));
    assert_ok(wb_train_forward(train, batch, &(wb_routing){.ids = ids, .direction = forced}, NULL, logprobs));
    wb_train_close(train);
    int differing = 0;
    for (int i = 0; i < NEW; i++)
        differing += memcmp(&logprobs[PROMPT - 1 + i], &expected[i], sizeof(float)) != 0;
    return differing;
}

static const struct {
    float temperature;
    int32_t top_k;
    float top_p;
} samplings[] = {{1, 0, 1},        {0.7f, 0, 1},     {1, 5, 1},        {1, 0, 0.9f},
                 {0.7f, 5, 1},     {0.7f, 0, 0.9f},  {1, 5, 0.9f},     {0.7f, 5, 0.9f},
                 {1.3f, 30, 0.8f}, {2.0f, V, 0.99f}, {0.3f, V + 5, 1}, {0.9f, 1, 1}};

static wb_completion *sample_with(wb_model *model, size_t i, bool with_mask) {
    ask a = ask_fixed("sampled", PROMPT, NEW);
    a.request.seed = 9 + i;
    a.request.temperature = samplings[i].temperature;
    a.request.top_k = samplings[i].top_k;
    a.request.top_p = samplings[i].top_p;
    a.request.return_sampling_mask = with_mask;
    return run_alone(model, &a);
}

static void test_rule_31_the_trainer_has_the_bits_of_the_rollout(void **state) {
    (void)state;
    rig r = open_rig();
    for (size_t i = 0; i < sizeof samplings / sizeof samplings[0]; i++) {
        wb_completion *c = sample_with(r.model, i, true);
        const wb_record *record = &c->record;
        const bool cut = (samplings[i].top_k > 0 && samplings[i].top_k < V) || samplings[i].top_p < 1;
        const bool limited = cut || samplings[i].top_k > 0;
        fed f;
        assert_record_good(r.model, c);
        assert_true(record->sampling->temperature == samplings[i].temperature);
        assert_int_equal(record->sampling->top_k, samplings[i].top_k);
        assert_true(record->sampling->top_p == samplings[i].top_p);
        assert_int_equal(limited, record->mask_ends != NULL);
        for (int t = 0; limited && samplings[i].top_k > 0 && t < NEW; t++)
            assert_true(record->mask_ends[t] - (t > 0 ? record->mask_ends[t - 1] : 0) <=
                        (uint32_t)samplings[i].top_k);
        feed(record, &f);
        if (trainer_differs(r.model, record, &f.batch, record->sampling_logprobs) > 0)
            fail_msg(
                "temperature %g, top-k %d, top-p %g: the trainer's log-probabilities are not the rollout's",
                (double)samplings[i].temperature, samplings[i].top_k, (double)samplings[i].top_p);
        /* logprobs stay those of temperature 1 over the whole vocabulary. */
        const wb_train_batch plain = {
            .T = T, .tokens = f.tokens, .targets = f.targets, .n_seqs = 1, .seq_start = seq_start};
        assert_int_equal(0, trainer_differs(r.model, record, &plain, record->logprobs));
        if (cut || samplings[i].temperature != 1)
            assert_true(trainer_differs(r.model, record, &plain, record->sampling_logprobs) > 0);
        wb_completion_free(c);
    }
    rig_close(&r);
}

static void test_rule_31_a_mask_is_recorded_on_request(void **state) {
    (void)state;
    rig r = open_rig();
    for (size_t i = 0; i < sizeof samplings / sizeof samplings[0]; i++) {
        wb_completion *with = sample_with(r.model, i, true), *without = sample_with(r.model, i, false);
        assert_null(without->record.mask_ids);
        assert_null(without->record.mask_ends);
        assert_memory_equal(with->record.tokens, without->record.tokens, (PROMPT + NEW) * sizeof(uint32_t));
        assert_memory_equal(with->record.sampling_logprobs, without->record.sampling_logprobs,
                            NEW * sizeof(float));
        wb_completion_free(with);
        wb_completion_free(without);
    }
    rig_close(&r);
}

/* The record as it comes back from a dump at `path`. */
static wb_dump *through_a_dump(const char *path, const wb_model *model, const wb_record *record,
                               wb_record *read) {
    wb_dump_writer *writer = NULL;
    wb_dump *dump = NULL;
    assert_ok(wb_dump_create(path, wb_model_routes(model), NULL, &writer));
    assert_ok(wb_dump_append(writer, record));
    assert_ok(wb_dump_finish(writer));
    assert_ok(wb_dump_open(path, &dump));
    assert_ok(wb_dump_record(dump, 0, read));
    return dump;
}

/* A limit that the vocabulary does not reach: who reads the dump does not know the vocabulary, so that
 * nothing recorded would look like a mask that was not asked for. */
static void test_rule_31_a_limit_that_keeps_all_is_recorded(void **state) {
    (void)state;
    rig r = open_rig();
    const temp_path dir = temp_dir();
    for (int32_t top_k = V; top_k <= V + 1; top_k++) {
        ask a = ask_fixed("wide", PROMPT, NEW);
        wb_record read;
        a.request.temperature = 1;
        a.request.top_k = top_k;
        a.request.return_sampling_mask = true;
        wb_completion *c = run_alone(r.model, &a);
        const temp_path path = temp_in(dir.text, top_k == V ? "as_wide.wbr" : "wider.wbr");
        wb_dump *dump = through_a_dump(path.text, r.model, &c->record, &read);
        assert_int_equal(top_k, read.sampling->top_k);
        assert_non_null(read.mask_ends);
        for (uint32_t i = 0; i < NEW; i++) assert_int_equal((i + 1) * V, read.mask_ends[i]);
        for (uint32_t i = 0; i < NEW * V; i++) assert_int_equal(i % V, read.mask_ids[i]);
        /* Every token by name is no other distribution than every token. */
        assert_memory_equal(read.logprobs, read.sampling_logprobs, NEW * sizeof(float));
        wb_dump_close(dump);
        wb_completion_free(c);
    }
    temp_remove(dir);
    rig_close(&r);
}

/* A point mass: the token alone, with probability 1. */
static wb_logprob_forward_fn *logprob_forward;
static int logprob_calls;

static wb_status counted_logprob_forward(wb_device *dev, int64_t n, int64_t width, const float *logits,
                                         const int32_t *targets, const wb_distribution *of, float *logprobs) {
    logprob_calls++;
    return logprob_forward(dev, n, width, logits, targets, of, logprobs);
}

/* Requests at temperature 1 without a limit: both log-probabilities are one number, which is made once. With
 * another request beside them they are made twice, and are the same bits. */
static void test_rule_31_logits_at_temperature_1_are_read_once(void **state) {
    (void)state;
    rig r = open_rig();
    ask plain = ask_fixed("plain", 5, NEW), other = ask_fixed("other", 4, NEW);
    plain.request.temperature = 1, other.request.temperature = 0.7f;
    logprob_forward = r.device->logprob_forward;
    r.device->logprob_forward = counted_logprob_forward;
    wb_completion *alone = run_alone(r.model, &plain);
    assert_int_equal(0, logprob_calls);
    assert_memory_equal(alone->record.logprobs, alone->record.sampling_logprobs, NEW * sizeof(float));
    wb_engine *engine = engine_of(r.model, 16, 4, 16, 4);
    assert_ok(wb_engine_submit(engine, ask_request(&plain)));
    assert_ok(wb_engine_submit(engine, ask_request(&other)));
    run_dry(engine, 100);
    assert_true(logprob_calls > 0);
    for (wb_completion *c; (c = wb_engine_poll(engine)); wb_completion_free(c))
        if (strcmp(c->record.rid, "plain") == 0) assert_same(r.model, alone, c);
    wb_completion_free(alone);
    wb_engine_close(engine);
    rig_close(&r);
}

static void test_rule_31_greedy_is_a_point_mass(void **state) {
    (void)state;
    rig r = open_rig();
    ask a = ask_fixed("greedy", PROMPT, NEW);
    a.request.temperature = 0;
    a.request.return_sampling_mask = true;
    wb_completion *c = run_alone(r.model, &a);
    assert_record_good(r.model, c);
    for (uint32_t i = 0; i < NEW; i++) {
        assert_true(c->record.sampling_logprobs[i] == 0.0f);
        assert_true(c->record.logprobs[i] < 0.0f);
        assert_int_equal(i + 1, c->record.mask_ends[i]);
        assert_int_equal(c->record.tokens[PROMPT + i], c->record.mask_ids[i]);
    }
    wb_completion_free(c);
    rig_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_31_the_trainer_has_the_bits_of_the_rollout),
        cmocka_unit_test(test_rule_31_a_mask_is_recorded_on_request),
        cmocka_unit_test(test_rule_31_a_limit_that_keeps_all_is_recorded),
        cmocka_unit_test(test_rule_31_logits_at_temperature_1_are_read_once),
        cmocka_unit_test(test_rule_31_greedy_is_a_point_mass),
    };
    return cmocka_run_group_tests_name("sampling", tests, NULL, NULL);
}
