/* test_import_refusals.c - what an answer says besides its routes and cannot be: log-probabilities, tokens,
 * lengths, versions and ids. Each is refused by the name of its request and field, and the answer without it
 * is taken. */
#include "dump_fixture.h"
#include "wb_import.h"

#include <math.h>
#include <msgpack.h>

#include <setjmp.h>
#include <stdarg.h>
// clang-format off
#include <cmocka.h>
// clang-format on

/* Four tokens, of which 8 and 9 are new; three rows of two MoE layers and two choices. */
#define ROUTES "\"routed_experts\":[[[0,1],[2,3]],[[4,5],[6,7]],[[1,2],[3,4]]]"
#define ANSWER(more) "{\"request_id\":\"a-1\",\"prompt_token_ids\":[5,6],\"token_ids\":[8,9]," ROUTES more "}"

/* The first request of the bytes. The record lives until the next call. */
static wb_status read_first(const void *bytes, size_t size, wb_record *record_out) {
    static wb_import *import = NULL;
    fixture_model f;
    bool found = true;
    wb_import_close(import);
    import = NULL;
    if (!bytes) return WB_OK;
    fixture_model_init(&f, 2, 8, 2);
    assert_int_equal(wb_import_open("answers", bytes, size, WB_IMPORT_VLLM, &f.model, &import), WB_OK);
    const wb_status status = wb_import_next(import, record_out, &found);
    assert_true(found);
    return status;
}

static wb_record taken(const char *text) {
    wb_record record;
    if (read_first(text, strlen(text), &record) != WB_OK) fail_msg("%s: %s", text, wb_error_message());
    return record;
}

static void refused(const char *text, wb_status expected, const char *message) {
    wb_record record = {.rid = "untouched"};
    const wb_status status = read_first(text, strlen(text), &record);
    if (status != expected || !strstr(wb_error_message(), message))
        fail_msg("%s: expected %d with '%s', found %d: %s", text, (int)expected, message, (int)status,
                 status == WB_OK ? "taken" : wb_error_message());
    assert_string_equal(record.rid, "untouched");
}

/* ---- log-probabilities ---------------------------------------------------------------------------- */

/* The answer in msgpack, which can say what JSON cannot. */
static wb_status read_logprob(float number, wb_record *record_out) {
    msgpack_sbuffer buffer;
    msgpack_packer p;
    msgpack_sbuffer_init(&buffer);
    msgpack_packer_init(&p, &buffer, msgpack_sbuffer_write);
    const char *const texts[] = {"request_id", "prompt_token_ids", "token_ids", "logprobs"};
    msgpack_pack_map(&p, 5);
    for (int i = 0; i < 4; i++) {
        msgpack_pack_str_with_body(&p, texts[i], strlen(texts[i]));
        if (i == 0) msgpack_pack_str_with_body(&p, "a-1", 3);
        if (i > 0) msgpack_pack_array(&p, 2);
        for (int k = 0; i > 0 && i < 3 && k < 2; k++) msgpack_pack_int(&p, 4 + i + k);
    }
    msgpack_pack_float(&p, -1);
    msgpack_pack_float(&p, number);
    msgpack_pack_str_with_body(&p, "routed_experts", 14);
    msgpack_pack_array(&p, 3);
    for (int row = 0; row < 3; row++) {
        msgpack_pack_array(&p, 2);
        for (int layer = 0; layer < 2; layer++) {
            msgpack_pack_array(&p, 2);
            msgpack_pack_int(&p, row);
            msgpack_pack_int(&p, row + layer + 1);
        }
    }
    const wb_status status = read_first(buffer.data, buffer.size, record_out);
    msgpack_sbuffer_destroy(&buffer);
    return status;
}

static void test_logprobs_that_cannot_be(void **unused) {
    (void)unused;
    static const float bad[] = {NAN, INFINITY, -INFINITY, 0.0011f, 3};
    static const float good[] = {0, -0.0f, 0.0009f, -1e30f};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        wb_record record;
        assert_int_equal(read_logprob(bad[i], &record), WB_INVALID_ARGUMENT);
        assert_non_null(strstr(
            wb_error_message(),
            "request a-1: log-probabilities: new token 1: expected a finite number of at most 0.001, found"));
    }
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        wb_record record;
        if (read_logprob(good[i], &record) != WB_OK) fail_msg("%s", wb_error_message());
        assert_true(record.logprobs[0] == -1 && record.logprobs[1] == good[i]);
    }
    refused(ANSWER(",\"logprobs\":[-1,-1e300]"), WB_INVALID_ARGUMENT, "new token 1: expected a finite");
    refused(ANSWER(",\"sampling_logprobs\":[0.5,-1]"), WB_INVALID_ARGUMENT, "new token 0: expected a finite");
    refused(ANSWER(",\"logprobs\":[\"x\",-1]"), WB_CORRUPT, "new token 0: expected a number, found text");
}

static void test_logprobs_name_their_tokens(void **unused) {
    (void)unused;
    const wb_record r =
        taken(ANSWER(",\"meta_info\":{\"output_token_logprobs\":[[-1,8,\"x\"],[-2,9,null]]}"));
    assert_true(r.logprobs[0] == -1 && r.logprobs[1] == -2);
    taken(ANSWER(",\"output_token_logprobs\":[[-1,8],[-2]]"));
    refused(ANSWER(",\"meta_info\":{\"output_token_logprobs\":[[-1,8,null],[-2,7,null]]}"),
            WB_INVALID_ARGUMENT,
            "request a-1: output_token_logprobs[1]: expected that of the new token 9, found of 7");
    refused(ANSWER(",\"output_token_logprobs\":[[-1,\"8\"],[-2,9]]"), WB_CORRUPT,
            "output_token_logprobs[0]: expected [logprob, id, ..], found text");
    /* In a part of a stream, too. */
    refused("data: {\"rid\":\"s-1\",\"input_ids\":[5,6],\"output_ids\":[8],\"meta_info\":{"
            "\"output_token_logprobs\":[[-1,7,null]]}}\n",
            WB_INVALID_ARGUMENT, "request s-1: output_token_logprobs[0]: expected that of the new token 8");
}

/* Names that are text need a tokenizer, and are not looked at; a list of them may be too short. */
static void test_names_of_tokens_are_compared(void **unused) {
    (void)unused;
    static const char *const good[] = {
        ANSWER(",\"logprobs\":{\"token_logprobs\":[-1,-2],\"tokens\":[\"token_id:8\",\"token_id:9\"]}"),
        ANSWER(",\"logprobs\":{\"token_logprobs\":[-1,-2],\"tokens\":[\"token\",\"token_id\"]}"),
        ANSWER(",\"logprobs\":{\"token_logprobs\":[-1,-2],\"tokens\":[\"token_id:8\"]}"),
        ANSWER(",\"logprobs\":{\"token_logprobs\":[-1,-2],\"tokens\":8}"),
        ANSWER(",\"logprobs\":[{\"8\":-1,\"9\":-7},{\"9\":{\"logprob\":-2}}]"),
        ANSWER(",\"logprobs\":true,\"meta_info\":{\"output_token_logprobs\":[[-1,8],[-2,9]]}")};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        const wb_record r = taken(good[i]);
        assert_true(r.logprobs && r.logprobs[0] == -1 && r.logprobs[1] == -2);
    }
    assert_null(taken(ANSWER(",\"logprobs\":[]")).logprobs);
    refused(ANSWER(",\"logprobs\":{\"token_logprobs\":[-1,-2],\"tokens\":[\"token_id:8\",\"token_id:90\"]}"),
            WB_INVALID_ARGUMENT, "new token 1: expected that of token 9, found of \"token_id:90\"");
    refused(ANSWER(",\"logprobs\":{\"content\":[{\"token\":\"token_id:\",\"logprob\":-1},{\"logprob\":-2}]}"),
            WB_INVALID_ARGUMENT, "new token 0: expected that of token 8, found of \"token_id:\"");
    refused(ANSWER(",\"logprobs\":[{\"8\":-1},{\"8\":-2}]"), WB_INVALID_ARGUMENT,
            "new token 1: expected \"logprob\" or \"9\", its token, among the keys of a map, found neither");
    refused(
        "data: "
        "{\"id\":\"s-1\",\"prompt_token_ids\":[5,6],\"choices\":[{\"index\":0,\"token_ids\":[8],\"logprobs\":"
        "{\"content\":[{\"token\":\"token_id:7\",\"logprob\":-1}]}}]}\n",
        WB_INVALID_ARGUMENT, "request s-1: log-probabilities: new token 0: expected that of token 8");
}

static void test_fields_of_another_kind(void **unused) {
    (void)unused;
    refused(ANSWER(",\"logprobs\":\"abc\""), WB_CORRUPT, "log-probabilities: expected a list, found text");
    refused(ANSWER(",\"logprobs\":-1.5"), WB_CORRUPT,
            "log-probabilities: expected a list, found a real number");
    refused(ANSWER(",\"sampling_logprobs\":3"), WB_CORRUPT, "sampling_logprobs: expected a list");
    static const char *const none[] = {
        ANSWER(",\"logprobs\":null"), ANSWER(",\"logprobs\":{\"content\":null}"),
        ANSWER(",\"request\":{\"logprobs\":true}"), ANSWER(",\"request\":{\"logprobs\":1}")};
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++) assert_null(taken(none[i]).logprobs);
}

static void test_positions_and_types_of_another_kind(void **unused) {
    (void)unused;
    static const char *const fields[] = {"routed_experts_start_len", "routed_experts_prompt_start",
                                         "routed_experts_start"};
    static const char *const values[] = {"\"0\"", "0.5", "1e30", "false", "[0]"};
    char text[512], message[128];
    for (size_t i = 0; i < 3; i++) {
        snprintf(text, sizeof text, ANSWER(",\"%s\":0"), fields[i]);
        taken(text);
        for (size_t k = 0; k < sizeof values / sizeof values[0]; k++) {
            snprintf(text, sizeof text, ANSWER(",\"%s\":%s"), fields[i], values[k]);
            snprintf(message, sizeof message, "request a-1: %s: expected an integer, found ", fields[i]);
            refused(text, WB_CORRUPT, message);
        }
        snprintf(text, sizeof text, ANSWER(",\"%s\":-1"), fields[i]);
        refused(text, WB_INVALID_ARGUMENT, "expected routes that start at 0..2");
    }
    refused(ANSWER(",\"routed_experts_dtype\":16"), WB_CORRUPT, "routed_experts_dtype: expected text");
    static const char *const starts[] = {"\"0\"", "0.5", "-1"};
    for (size_t k = 0; k < 3; k++) {
        snprintf(text, sizeof text,
                 "{\"rid\":\"a-1\",\"input_ids\":[5],\"output_ids\":[6],\"routed_experts\":"
                 "{\"data\":[[[0,1],[2,3]]],\"start\":%s}}",
                 starts[k]);
        refused(text, WB_CORRUPT, "routes: start: expected a position, found ");
    }
}

static void test_versions(void **unused) {
    (void)unused;
    static const char *const none[] = {ANSWER(",\"weight_version\":null"),
                                       ANSWER(",\"weight_version\":\"default\""),
                                       ANSWER(",\"weight_version\":-1"), ANSWER(",\"weight_versions\":[]"),
                                       ANSWER(",\"weight_versions\":[\"default\",\"default\"]")};
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++) assert_int_equal(taken(none[i]).n_spans, 0);
    static const char *const four[] = {ANSWER(",\"weight_version\":4"), ANSWER(",\"weight_version\":\"4\""),
                                       ANSWER(",\"weight_versions\":[4,\"4\",4]"),
                                       ANSWER(",\"weight_versions\":[3,4],\"spans\":[[0,4,4]]")};
    for (size_t i = 0; i < sizeof four / sizeof four[0]; i++) {
        const wb_record r = taken(four[i]);
        assert_int_equal(r.n_spans, 1);
        assert_int_equal(r.spans[0].end, 4);
        assert_int_equal(r.spans[0].weight_version, 4);
    }
    refused(ANSWER(",\"weight_version\":-3"), WB_CORRUPT, "weight_version: expected a number of at least 0");
    refused(ANSWER(",\"weight_version\":2.5"), WB_CORRUPT, "weight_version: expected an integer, or text");
    refused(ANSWER(",\"weight_versions\":[4,{}]"), WB_CORRUPT,
            "weight_version: expected an integer, or text");
    refused(ANSWER(",\"weight_versions\":[4,4,5]"), WB_INVALID_ARGUMENT, "found others from number 2 on");
    refused(ANSWER(",\"weight_versions\":[4,\"default\"]"), WB_INVALID_ARGUMENT,
            "weight_versions: expected one");
    refused(ANSWER(",\"spans\":\"x\""), WB_CORRUPT, "spans: expected a list, found text");
}

/* ---- lengths and ids ------------------------------------------------------------------------------ */

#define WHOLE(more) "{\"rid\":\"a-1\",\"tokens\":[5,6,8,9]," ROUTES more "}"

static void test_lengths_out_of_range(void **unused) {
    (void)unused;
    assert_int_equal(taken(WHOLE(",\"response_length\":1")).prompt_len, 3);
    assert_int_equal(taken(WHOLE(",\"prompt_length\":1")).prompt_len, 1);
    refused(WHOLE(",\"response_length\":5"), WB_INVALID_ARGUMENT,
            "request a-1: response_length: expected 0..4, as many as there are tokens, found 5");
    refused(WHOLE(",\"response_length\":-1"), WB_INVALID_ARGUMENT, "response_length: expected 0..4");
    refused(WHOLE(",\"response_length\":\"2\""), WB_CORRUPT, "response_length: expected an integer");
    refused(WHOLE(",\"prompt_length\":5"), WB_INVALID_ARGUMENT, "prompt_length: expected 0..4");
    refused(WHOLE(""), WB_NOT_FOUND, "expected the prompt's tokens");
}

static void test_a_nul_in_an_id(void **unused) {
    (void)unused;
    refused("{\"rid\":\"a\\u0000b\",\"input_ids\":[5],\"output_ids\":[6],\"routed_experts\":[[[0,1],[2,3]]]}",
            WB_CORRUPT, "request without an id: rid: expected text, found a NUL in it");
}

/* ---- groups, settings of sampling, errors ----------------------------------------------------------- */

static void test_groups_and_samples(void **unused) {
    (void)unused;
    const wb_record r = taken(ANSWER(",\"group_index\":9223372036854775807,\"sample\":4294967295"));
    assert_true(r.group == INT64_MAX && r.sample == UINT32_MAX);
    taken(ANSWER(",\"group\":null,\"sample\":\"a text that is called so\""));
    refused(ANSWER(",\"sample\":4294967296"), WB_CORRUPT,
            "request a-1: sample: expected 0..4294967295, or -1 for none, found 4294967296");
    taken(ANSWER(",\"group\":-1,\"sample\":-1"));
    refused(ANSWER(",\"sample\":-2"), WB_CORRUPT, "sample: expected 0..4294967295, or -1 for none, found -2");
    refused(ANSWER(",\"group_index\":-7"), WB_CORRUPT,
            "group_index: expected 0..9223372036854775807, or -1 for none, found -7");
}

static void test_settings_of_sampling(void **unused) {
    (void)unused;
    const wb_record r =
        taken(ANSWER(",\"sampling\":{\"temperature\":0.5,\"top_k\":-1,\"top_p\":1},\"logprobs\":[-1,-1]"));
    assert_true(r.sampling->temperature == 0.5f && r.sampling->top_k == 0 && r.sampling->top_p == 1);
    assert_null(taken(ANSWER(",\"sampling\":{\"top_k\":4}")).sampling);
    static const char *const bad[][2] = {
        {"\"top_k\":\"5\"", "top_k: expected an integer, found text"},
        {"\"top_k\":5.5", "top_k: expected an integer, found a real number"},
        {"\"top_k\":4294967296", "top_k: expected at most 4294967295, found 4294967296"},
        {"\"top_p\":\"0.9\"", "top_p: expected a number, found text"}};
    char text[512], message[128];
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        snprintf(text, sizeof text, ANSWER(",\"sampling\":{\"temperature\":1,%s}"), bad[i][0]);
        snprintf(message, sizeof message, "request a-1: sampling %s", bad[i][1]);
        refused(text, WB_CORRUPT, message);
    }
    refused(ANSWER(",\"sampling\":{\"temperature\":\"1\"}"), WB_CORRUPT,
            "sampling temperature: expected a number, found text");
}

/* A stream passes over parts that say nothing, as that of the role of a chat; an error is none of them. */
static void test_an_error_is_no_answer(void **unused) {
    (void)unused;
    refused("{\"id\":\"a-1\",\"object\":\"error\",\"message\":\"too long\",\"code\":400}", WB_NOT_FOUND,
            "request a-1: expected an answer, found an error: too long");
    refused("{\"id\":\"a-1\",\"input_ids\":[5],\"error\":\"too long\"}", WB_NOT_FOUND, "an error: too long");
    refused("data: {\"error\":{\"message\":\"too long\",\"code\":400}}\n\n" ANSWER(""), WB_NOT_FOUND,
            "line 1: request request-0: expected an answer, found an error: too long");
    refused("data: {\"error\":{\"code\":400}}\n\n", WB_NOT_FOUND, "found an error: no text");
    taken(ANSWER(",\"error\":null"));
    taken(ANSWER(",\"error\":{\"message\":\"of a tool\"}"));
}

static void test_what_is_there_in_place_of_tokens(void **unused) {
    (void)unused;
    refused("{\"rid\":\"a-1\",\"input_ids\":[\"5\"],\"output_ids\":[6]," ROUTES "}", WB_NOT_FOUND,
            "tokens beside response_length, found input_ids: a list that begins with text");
    refused("{\"rid\":\"a-1\",\"prompt_tokens\":1,\"output_ids\":[6]," ROUTES "}", WB_NOT_FOUND,
            "response_length, found nothing");
    refused("{\"rid\":\"a-1\",\"input_ids\":[5],\"output_ids\":[[6]]," ROUTES "}", WB_NOT_FOUND,
            "a name like these, found output_ids: a list that begins with a list");
    refused("{\"rid\":\"a-1\",\"input_ids\":[5],\"token_ids\":\"6\"," ROUTES "}", WB_NOT_FOUND,
            "a name like these, found token_ids: text");
}

static void test_tokens_beyond_the_vocabulary(void **unused) {
    static const char answer[] = ANSWER("");
    static const struct {
        uint32_t vocab_size;
        wb_status status;
    } cases[] = {{0, WB_OK}, {10, WB_OK}, {9, WB_INVALID_ARGUMENT}, {6, WB_INVALID_ARGUMENT}};
    fixture_model f;
    (void)unused;
    fixture_model_init(&f, 2, 8, 2);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        wb_import *import;
        wb_record record;
        bool found = false;
        assert_int_equal(
            WB_OK, wb_import_open("answers", answer, strlen(answer), WB_IMPORT_VLLM, &f.model, &import));
        wb_import_set_vocab_size(import, cases[i].vocab_size);
        assert_int_equal(cases[i].status, wb_import_next(import, &record, &found));
        if (cases[i].status != WB_OK)
            assert_non_null(
                strstr(wb_error_message(), i == 2 ? "record a-1: position 3: expected a token of the "
                                                    "model's, 0..8, found 9"
                                                  : "position 1: expected a token of the model's, 0..5"));
        wb_import_close(import);
    }
}

/* The kept tokens too: 9 and 10 of which 9 was sampled. */
static void test_kept_tokens_beyond_the_vocabulary(void **unused) {
    static const char answer[] = ANSWER(",\"sampling_mask\":[[8],[10,9]]");
    fixture_model f;
    (void)unused;
    fixture_model_init(&f, 2, 8, 2);
    for (uint32_t vocab_size = 10; vocab_size < 12; vocab_size++) {
        wb_import *import;
        wb_record record;
        bool found = false;
        assert_int_equal(
            WB_OK, wb_import_open("answers", answer, strlen(answer), WB_IMPORT_VLLM, &f.model, &import));
        wb_import_set_vocab_size(import, vocab_size);
        assert_int_equal(vocab_size == 10 ? WB_INVALID_ARGUMENT : WB_OK,
                         wb_import_next(import, &record, &found));
        if (vocab_size == 10)
            assert_non_null(strstr(wb_error_message(),
                                   "request a-1: record a-1: mask of position 3: expected "
                                   "tokens of the model's, 0..9, found 10"));
        wb_import_close(import);
    }
}

static int close_last(void **unused) {
    (void)unused;
    return (int)read_first(NULL, 0, NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logprobs_that_cannot_be),
        cmocka_unit_test(test_logprobs_name_their_tokens),
        cmocka_unit_test(test_names_of_tokens_are_compared),
        cmocka_unit_test(test_fields_of_another_kind),
        cmocka_unit_test(test_positions_and_types_of_another_kind),
        cmocka_unit_test(test_versions),
        cmocka_unit_test(test_lengths_out_of_range),
        cmocka_unit_test(test_a_nul_in_an_id),
        cmocka_unit_test(test_groups_and_samples),
        cmocka_unit_test(test_settings_of_sampling),
        cmocka_unit_test(test_an_error_is_no_answer),
        cmocka_unit_test(test_what_is_there_in_place_of_tokens),
        cmocka_unit_test(test_tokens_beyond_the_vocabulary),
        cmocka_unit_test(test_kept_tokens_beyond_the_vocabulary),
    };
    return cmocka_run_group_tests(tests, NULL, close_last);
}
