/* test_vllm_answers.c - what a server of vLLM 0.25.1 answered for this model, tests/golden/vllm: its answers
 * are our engine's, tokens, log-probabilities and routes. Its CPU path leaves the routes at zero, and these
 * answers are refused.
 *
 *   test_vllm_answers --save DIR     writes the model, for tests/tools/make_vllm_answers.py DIR OUT.jsonl */
#include "engine.h"
#include "engine_rig.h"
#include "formats/dump_fixture.h"
#include "wb_import.h"

#include <math.h>

#define GOLDEN WB_TEST_DATA "/vllm/"

enum { N_ANSWERS = 3, SEED = 25 };

/* Sizes that vLLM's CPU kernels take. */
static wb_config served_config(void) {
    wb_config c = tiny_config(WB_FAMILY_QWEN3_MOE, 16, 4, 3, 0);
    c.hidden_size = 64;
    c.head_dim = 32;
    c.expert_width = 64;
    c.dense_width = 64;
    c.vocab_size = 128;
    c.max_positions = 256;
    return c;
}

static wb_import *open_answers(const char *file, const wb_route_model *model, uint8_t **bytes_out) {
    size_t size;
    wb_import *import;
    *bytes_out = fixture_read_file(file, &size);
    must(wb_import_open(file, *bytes_out, size, WB_IMPORT_VLLM, model, &import), file);
    return import;
}

/* vLLM's CPU path does not sort what it selects: choices are compared as sets. */
static void assert_same_experts(const wb_route_model *m, const wb_record *a, const wb_record *b, uint32_t p) {
    const void *x = wb_record_row(m, a, p), *y = wb_record_row(m, b, p);
    assert_non_null(x);
    assert_non_null(y);
    for (uint32_t l = 0; l < m->n_moe_layers; l++) {
        uint64_t found[2] = {0, 0};
        for (uint32_t k = 0; k < m->top_k; k++) {
            found[0] |= UINT64_C(1) << wb_route_id(x, WB_U8, (size_t)l * m->top_k + k);
            found[1] |= UINT64_C(1) << wb_route_id(y, WB_U8, (size_t)l * m->top_k + k);
        }
        if (found[0] != found[1]) fail_msg("position %u, MoE layer %u: other experts", p, l);
    }
}

/* Two engines add up in other orders, which moves a log-probability of this model by 1.8e-5; another
 * expert in one layer of one token moves it by 1e-3 and more. */
static void assert_like_ours(wb_model *model, const wb_record *answer) {
    ask a = ask_fixed(answer->rid, answer->prompt_len, answer->n_tokens - answer->prompt_len);
    memcpy(a.prompt, answer->tokens, answer->prompt_len * sizeof *a.prompt);
    a.request.temperature = 0;
    wb_completion *ours = run_alone(model, &a);
    assert_int_equal(answer->n_tokens, ours->record.n_tokens);
    assert_memory_equal(answer->tokens, ours->record.tokens, answer->n_tokens * sizeof(uint32_t));
    for (uint32_t i = 0; i < answer->n_tokens - answer->prompt_len; i++)
        assert_true(fabsf(answer->logprobs[i] - ours->record.logprobs[i]) <= 5e-5f);
    for (uint32_t p = 0; p + 1 < answer->n_tokens; p++)
        assert_same_experts(wb_model_routes(model), answer, &ours->record, p);
    wb_completion_free(ours);
}

static void test_true_answers_are_our_engines(void **state) {
    const wb_config c = served_config();
    rig r = rig_open(&c, SEED, 2, NULL);
    uint8_t *bytes;
    wb_import *import = open_answers(GOLDEN "true.jsonl", wb_model_routes(r.model), &bytes);
    wb_record record;
    bool found = true;
    int n = 0;
    (void)state;
    for (;; n++) {
        must(wb_import_next(import, &record, &found), "answer");
        if (!found) break;
        assert_true(record.n_tokens == record.prompt_len + 24 && record.logprobs);
        assert_like_ours(r.model, &record);
    }
    assert_int_equal(N_ANSWERS, n);
    wb_import_close(import);
    free(bytes);
    rig_close(&r);
}

static void test_rule_35_zeros_of_the_cpu_path_are_refused(void **state) {
    const wb_config c = served_config();
    rig r = rig_open(&c, SEED, 1, NULL);
    uint8_t *bytes;
    wb_import *import = open_answers(GOLDEN "zeros.jsonl", wb_model_routes(r.model), &bytes);
    wb_record record;
    bool found = true;
    (void)state;
    for (int i = 0; i < N_ANSWERS; i++) {
        assert_int_equal(WB_INVALID_ARGUMENT, wb_import_next(import, &record, &found));
        assert_non_null(strstr(wb_error_message(), "zero"));
        assert_non_null(strstr(wb_error_message(), "cmpl-"));
    }
    must(wb_import_next(import, &record, &found), "end");
    assert_false(found);
    wb_import_close(import);
    free(bytes);
    rig_close(&r);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_true_answers_are_our_engines),
                                       cmocka_unit_test(test_rule_35_zeros_of_the_cpu_path_are_refused)};
    if (argc == 3 && strcmp(argv[1], "--save") == 0) {
        const wb_config c = served_config();
        rig r = rig_open(&c, SEED, 1, NULL);
        must(wb_model_save(r.model, argv[2]), argv[2]);
        rig_close(&r);
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
