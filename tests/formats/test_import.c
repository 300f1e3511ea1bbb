/* test_import.c - answers of other systems as records: what tests/tools/make_import_answers.py wrote, good
 * files against the requests that it made them of, bad ones with their status and message, all of them
 * cut. */
#include "import_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
// clang-format off
#include <cmocka.h>
// clang-format on

static json_t *manifest;

/* ---- against the truth ---------------------------------------------------------------------------- */

static bool is_true(const json_t *object, const char *key) {
    return json_is_true(json_object_get(object, key));
}

static bool is_missing(const json_t *expected, uint32_t position) {
    const json_t *missing = json_object_get(expected, "missing");
    for (size_t i = 0; i < json_array_size(missing); i++)
        if (json_integer_value(json_array_get(missing, i)) == (json_int_t)position) return true;
    return false;
}

static void assert_row(const wb_route_model *m, const json_t *row, const void *found, uint32_t position) {
    const wb_dtype dtype = wb_route_dtype(m->num_experts);
    for (uint32_t l = 0; l < m->n_moe_layers; l++) {
        assert_int_equal(json_array_size(json_array_get(row, l)), wb_route_layer_k(m, l));
        for (uint32_t k = 0; k < wb_route_layer_k(m, l); k++)
            if (json_integer_value(json_array_get(json_array_get(row, l), k)) !=
                (json_int_t)wb_route_id(found, dtype, wb_route_layer_first(m, l) + k))
                fail_msg("position %u, MoE layer %u, choice %u: another expert", position, l, k);
    }
}

static void assert_rows(const wb_route_model *m, const json_t *expected, const json_t *truth,
                        const wb_record *r) {
    const json_t *rows = json_object_get(truth, "rows");
    const uint32_t start = import_number(expected, "start");
    for (uint32_t p = 0; p < r->n_tokens; p++) {
        const void *row = wb_record_row(m, r, p);
        const bool there =
            is_true(expected, "routes") && p >= start && p + 1 < r->n_tokens && !is_missing(expected, p);
        if (!row != !there) fail_msg("position %u: a row is %s", p, there ? "missing" : "there");
        if (row) assert_row(m, json_array_get(rows, p), row, p);
    }
}

static void assert_logprobs(const json_t *expected, const json_t *truth, const wb_record *r) {
    const json_t *logprobs = json_object_get(truth, "logprobs");
    assert_int_equal(r->logprobs != NULL, is_true(expected, "logprobs"));
    for (uint32_t i = 0; r->logprobs && i < r->n_tokens - r->prompt_len; i++)
        assert_true(r->logprobs[i] == (float)json_number_value(json_array_get(logprobs, i)));
}

static void assert_mask(const json_t *expected, const json_t *truth, const wb_record *r) {
    const json_t *masks = json_object_get(truth, "masks");
    assert_int_equal(r->mask_ends != NULL, is_true(expected, "mask"));
    for (uint32_t i = 0, at = 0; r->mask_ends && i < r->n_tokens - r->prompt_len; i++) {
        const json_t *row = json_array_get(masks, i);
        assert_int_equal(r->mask_ends[i] - at, json_array_size(row));
        for (size_t k = 0; at < r->mask_ends[i]; k++)
            assert_int_equal(r->mask_ids[at++], json_integer_value(json_array_get(row, k)));
    }
}

static void assert_indexer(const wb_route_model *m, const json_t *expected, const json_t *truth,
                           const wb_record *r) {
    const json_t *rows = json_object_get(truth, "indexer");
    const uint32_t start = import_number(expected, "start");
    assert_int_equal(r->indexer != NULL, is_true(expected, "indexer"));
    for (uint32_t p = 0; r->indexer && p < r->n_tokens; p++)
        for (uint32_t s = 0; s < wb_indexer_columns(m); s++) {
            const json_t *cell = json_array_get(json_array_get(rows, p), s);
            wb_indexer_choice choice = {0};
            assert_int_equal(wb_indexer_at(m, r->indexer, p, s, &choice), p >= start && p + 1 < r->n_tokens);
            if (p < start) continue;
            assert_int_equal(choice.count, json_array_size(cell));
            for (uint32_t j = 0; j < choice.count; j++)
                assert_int_equal(wb_indexer_position(&choice, j),
                                 json_integer_value(json_array_get(cell, j)));
        }
}

static void assert_record(const wb_route_model *m, const json_t *expected, const wb_record *r) {
    const json_t *truth =
        json_array_get(json_object_get(manifest, "truth"), import_number(expected, "truth"));
    const json_t *tokens = json_object_get(truth, "tokens"), *version = json_object_get(expected, "version");
    const json_t *sample = json_object_get(expected, "sample");
    if (sample) assert_int_equal(r->sample, json_integer_value(sample));
    assert_string_equal(r->rid, import_text(expected, "rid"));
    assert_string_equal(wb_finish_name(r->finish), import_text(expected, "finish"));
    assert_int_equal(r->prompt_len, import_number(truth, "prompt_len"));
    assert_int_equal(r->n_tokens, json_array_size(tokens));
    for (uint32_t i = 0; i < r->n_tokens; i++)
        assert_int_equal(r->tokens[i], json_integer_value(json_array_get(tokens, i)));
    assert_int_equal(r->n_spans, json_is_integer(version));
    if (r->n_spans) {
        assert_int_equal(r->spans[0].end, r->n_tokens);
        assert_int_equal(r->spans[0].weight_version, json_integer_value(version));
    }
    assert_int_equal(r->group, json_integer_value(json_object_get(expected, "group")));
    assert_rows(m, expected, truth, r);
    assert_logprobs(expected, truth, r);
    assert_mask(expected, truth, r);
    assert_indexer(m, expected, truth, r);
}

static wb_import *open_file(const json_t *file, const uint8_t *bytes, size_t size, fixture_model *f) {
    wb_import *import = NULL;
    import_model_of(manifest, file, f);
    if (wb_import_open(import_text(file, "file"), bytes, size, import_layout_of(file), &f->model, &import) !=
        WB_OK)
        return NULL;
    assert_non_null(import);
    return import;
}

static void test_good(void **unused) {
    (void)unused;
    const json_t *files = json_object_get(manifest, "good"), *file;
    size_t i;
    json_array_foreach(files, i, file) {
        const json_t *records = json_object_get(file, "records");
        fixture_model f;
        size_t size = 0;
        uint8_t *bytes = import_file(file, &size);
        wb_import *import = open_file(file, bytes, size, &f);
        bool found = true;
        wb_record record;
        print_message("%s\n", import_text(file, "file"));
        assert_non_null(import);
        for (size_t k = 0; found; k++) {
            if (wb_import_next(import, &record, &found) != WB_OK) fail_msg("%s", wb_error_message());
            assert_int_equal(found, k < json_array_size(records));
            if (found) assert_record(&f.model, json_array_get(records, k), &record);
        }
        assert_int_equal(wb_import_bytes_read(import), size);
        wb_import_close(import);
        free(bytes);
    }
    assert_true(i > 50);
}

/* ---- what cannot be ------------------------------------------------------------------------------- */

static wb_status status_of(const char *name) {
#define X(NAME, value, meaning) \
    if (strcmp(name, #NAME) == 0) return WB_##NAME;
    WB_STATUS_LIST(X)
#undef X
    fail_msg("%s is no status", name);
    return WB_OK;
}

static void assert_refused(const json_t *file, wb_status status) {
    const char *message = wb_error_message();
    if (status != status_of(import_text(file, "status")) || !strstr(message, import_text(file, "message")) ||
        !strstr(message, import_text(file, "file")))
        fail_msg("expected %s with '%s', found %d: %s", import_text(file, "status"),
                 import_text(file, "message"), (int)status, message);
}

/* The request is refused, outputs untouched, and the others are read. */
static void refuse_file(const json_t *file) {
    fixture_model f;
    size_t size = 0;
    uint8_t *bytes = import_file(file, &size);
    wb_import *import = open_file(file, bytes, size, &f);
    print_message("%s\n", import_text(file, "file"));
    if (!import) {
        assert_refused(file, status_of(import_text(file, "status")));
        free(bytes);
        return;
    }
    uint32_t good = 0, bad = 0;
    for (bool found = true; found;) {
        wb_record record = {.rid = "untouched"};
        const wb_status status = wb_import_next(import, &record, &found);
        good += status == WB_OK && found;
        if (status == WB_OK) continue;
        assert_string_equal(record.rid, "untouched");
        assert_true(found);
        if (bad++ == 0) assert_refused(file, status);
    }
    assert_true(bad > 0);
    assert_int_equal(good, import_number(file, "good_read"));
    wb_import_close(import);
    free(bytes);
}

static void test_rule_35_a_tape_that_cannot_be_is_refused(void **unused) {
    (void)unused;
    const json_t *files = json_object_get(manifest, "bad"), *file;
    size_t i;
    json_array_foreach(files, i, file) refuse_file(file);
    assert_true(i > 50);
}

/* A file that was cut gives the requests before the cut, and none that is another. */
static void read_cut(const json_t *file, const uint8_t *bytes, size_t size) {
    const json_t *records = json_object_get(file, "records");
    fixture_model f;
    uint8_t *cut = malloc(size + 1); /* of its own, so that a sanitizer sees a read behind it */
    if (!cut) abort();
    memcpy(cut, bytes, size);
    wb_import *import = open_file(file, cut, size, &f);
    bool found = import != NULL;
    for (size_t k = 0; found;) {
        wb_record record;
        const wb_status status = wb_import_next(import, &record, &found);
        if (status != WB_OK || !found) continue;
        assert_true(k < json_array_size(records));
        assert_record(&f.model, json_array_get(records, k++), &record);
    }
    wb_import_close(import);
    free(cut);
}

static void test_cut(void **unused) {
    (void)unused;
    enum { CUTS = 40 };
    const json_t *files = json_object_get(manifest, "good"), *file;
    size_t i;
    json_array_foreach(files, i, file) {
        size_t size = 0;
        uint8_t *bytes = import_file(file, &size);
        for (size_t k = 0; k < CUTS; k++) read_cut(file, bytes, (size - 1) * k / CUTS);
        for (size_t k = 1; k < 12 && k < size; k++) read_cut(file, bytes, size - k);
        free(bytes);
    }
}

/* ---- arguments ------------------------------------------------------------------------------------ */

static void test_layouts(void **unused) {
    (void)unused;
    static const char *const names[] = {"vllm",   "sglang",   "nemo-rl",  "slime", "verl",
                                        "trtllm", "prime-rl", "megatron", "dynamo"};
    wb_import_layout layout = WB_IMPORT_DYNAMO;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        assert_int_equal(wb_import_layout_find(names[i], &layout), WB_OK);
        assert_int_equal(layout, i);
        assert_string_equal(wb_import_layout_name(layout), names[i]);
    }
    assert_int_equal(wb_import_layout_find("vlm", &layout), WB_INVALID_ARGUMENT);
    assert_int_equal(layout, WB_IMPORT_DYNAMO);
    assert_non_null(strstr(wb_error_message(), "expected one of vllm sglang nemo-rl"));
    assert_string_equal(wb_import_layout_name((wb_import_layout)9), "unknown");
}

static void test_arguments(void **unused) {
    (void)unused;
    fixture_model f;
    wb_import *import = (wb_import *)&f;
    fixture_model_init(&f, 2, 8, 2);
    assert_int_equal(wb_import_open("a", "", 0, (wb_import_layout)77, &f.model, &import),
                     WB_INVALID_ARGUMENT);
    f.model.top_k = 9;
    assert_int_equal(wb_import_open("a", "", 0, WB_IMPORT_VLLM, &f.model, &import), WB_INVALID_ARGUMENT);
    assert_ptr_equal(import, &f);
    f.model.top_k = 2;
    assert_int_equal(wb_import_open("a", "", 0, WB_IMPORT_VLLM, &f.model, &import), WB_OK);
    wb_record record;
    bool found = true;
    assert_int_equal(wb_import_next(import, &record, &found), WB_OK);
    assert_false(found);
    wb_import_close(import);
    wb_import_close(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layouts), cmocka_unit_test(test_arguments),
        cmocka_unit_test(test_good),    cmocka_unit_test(test_rule_35_a_tape_that_cannot_be_is_refused),
        cmocka_unit_test(test_cut),
    };
    manifest = import_manifest_open();
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(manifest);
    return failed;
}
