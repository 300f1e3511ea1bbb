/* test_import_indexer.c - SGLang's indexer_topk beside its routes: read into a record, layers by their
 * number, positions sorted; what it cannot be is refused with its place. */
#include "dump_fixture.h"
#include "import/wb_import.h"

#include <setjmp.h>
#include <stdarg.h>
// clang-format off
#include <cmocka.h>
// clang-format on

enum { TOKENS = 4, ROWS = TOKENS - 1, K = 3, MAX_LAYERS = 4 };

static void base64(const void *data, size_t size, char *out) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint8_t *bytes = data;
    for (size_t i = 0; i < size; i += 3) {
        uint32_t three = 0;
        for (size_t j = 0; j < 3; j++) three = three << 8 | (i + j < size ? bytes[i + j] : 0);
        for (size_t j = 0; j < 4; j++) *out++ = i + j > size ? '=' : letters[three >> (18 - 6 * j) & 63];
    }
    *out = '\0';
}

/* The answer of one request of 2 + 2 tokens with `topk` [n], of `layers` layers; 0: it does not say. */
static wb_status import(const wb_route_model *m, int layers, const int32_t *topk, size_t n,
                        wb_import **import_out, wb_record *record_out) {
    int32_t routes[ROWS][2][2];
    char a[512], b[1024], number[64] = "", text[2048];
    bool found = false;
    for (int i = 0; i < ROWS * 4; i++) ((int32_t *)routes)[i] = (i / 2 * 3 + i % 2) % 8;
    base64(routes, sizeof routes, a);
    base64(topk, n * sizeof *topk, b);
    if (layers > 0) snprintf(number, sizeof number, "\"indexer_topk_num_layers\":%d,", layers);
    snprintf(
        text, sizeof text,
        "{\"input_ids\":[5,6],\"output_ids\":[7,8],\"meta_info\":{\"id\":\"x\",\"routed_experts\":\"%s\","
        "\"indexer_topk\":\"%s\",%s\"finish_reason\":{\"type\":\"stop\"}}}",
        a, b, number);
    if (wb_import_open("answer", text, strlen(text), WB_IMPORT_SGLANG, m, import_out) != WB_OK) abort();
    const wb_status status = wb_import_next(*import_out, record_out, &found);
    if (status != WB_OK) {
        wb_import_close(*import_out);
        *import_out = NULL;
    }
    return status;
}

/* Cell (row, layer) of the answers: of a layer without an indexer 9s, which would be refused. */
static void fill(int layers, const int *layer_of_column, int32_t *topk) {
    static const int32_t cells[ROWS][2][K] = {
        {{0, -1, -1}, {-1, -1, -1}}, {{1, 0, -1}, {1, -1, -1}}, {{2, 0, -1}, {2, 1, 0}}};
    for (int i = 0; i < ROWS * layers * K; i++) topk[i] = 9;
    for (int row = 0; row < ROWS; row++)
        for (int column = 0; column < 2; column++)
            memcpy(topk + (row * layers + layer_of_column[column]) * K, cells[row][column],
                   sizeof cells[0][0]);
}

static void test_layers_by_their_number(void **unused) {
    (void)unused;
    static const struct { int layers, of_column[2]; } forms[] = {{4, {0, 2}}, {3, {0, 2}}, {2, {0, 1}}};
    fixture_model f;
    fixture_model_init(&f, 3, 8, 2);
    f.model.n_moe_layers = 2;
    fixture_model_index(&f, K);
    for (int i = 0; i < 3; i++) {
        int32_t topk[ROWS * MAX_LAYERS * K];
        wb_import *imported = NULL;
        wb_record r;
        wb_indexer_choice c;
        fill(forms[i].layers, forms[i].of_column, topk);
        const size_t n = (size_t)(ROWS * forms[i].layers * K);
        const wb_status status = import(&f.model, forms[i].layers, topk, n, &imported, &r);
        assert_string_equal(status == WB_OK ? "" : wb_error_message(), "");
        assert_non_null(r.indexer);
        assert_true(r.indexer->start == 0 && r.indexer->rows == ROWS);
        assert_true(wb_indexer_at(&f.model, r.indexer, 0, 1, &c) && c.count == 0);
        assert_true(wb_indexer_at(&f.model, r.indexer, 2, 0, &c) && c.count == 2);
        assert_true(wb_indexer_position(&c, 0) == 0 && wb_indexer_position(&c, 1) == 2);
        assert_true(wb_indexer_at(&f.model, r.indexer, 2, 1, &c) && c.count == 3);
        assert_int_equal(wb_indexer_position(&c, 2), 2);
        wb_import_close(imported);
    }
}

static void test_what_is_refused(void **unused) {
    (void)unused;
    fixture_model f;
    int32_t topk[ROWS * MAX_LAYERS * K];
    wb_import *imported = NULL;
    wb_record r;
    fixture_model_init(&f, 3, 8, 2);
    f.model.n_moe_layers = 2;
    fixture_model_index(&f, K);
    fill(2, (const int[]){0, 1}, topk);
    assert_int_equal(import(&f.model, 5, topk, ROWS * 2 * K, &imported, &r), WB_MISMATCH);
    assert_non_null(
        strstr(wb_error_message(), "request x: indexer_topk_num_layers: expected 4 hidden layers, 3 that"));
    assert_int_equal(import(&f.model, 0, topk, ROWS * 2 * K, &imported, &r), WB_MISMATCH);
    assert_non_null(
        strstr(wb_error_message(), "indexer_topk_num_layers: expected a number of layers, found none"));
    assert_int_equal(import(&f.model, 2, topk, ROWS * 2 * K - 1, &imported, &r), WB_MISMATCH);
    assert_non_null(
        strstr(wb_error_message(), "request x: indexer_topk: expected integers of 3 rows, 2 layers"));
    topk[2 * K] = 2; /* of the token at position 1 */
    assert_int_equal(import(&f.model, 2, topk, ROWS * 2 * K, &imported, &r), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(),
                           "record x: indexer: position 1, model layer 0: expected positions "
                           "below 2, found 2"));
    topk[2 * K] = -2;
    assert_int_equal(import(&f.model, 2, topk, ROWS * 2 * K, &imported, &r), WB_INVALID_ARGUMENT);
    assert_non_null(
        strstr(wb_error_message(), "indexer_topk: position 1: expected -1..2147483647, found -2"));
    topk[2 * K] = 0;
    assert_int_equal(import(&f.model, 2, topk, ROWS * 2 * K, &imported, &r), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "indexer_topk: position 1: 0 is chosen twice"));
    /* A model without indexers has no place for it. */
    f.model.n_indexer_layers = f.model.indexer_k = 0;
    assert_int_equal(import(&f.model, 2, topk, ROWS * 2 * K, &imported, &r), WB_OK);
    assert_null(r.indexer);
    wb_import_close(imported);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layers_by_their_number),
        cmocka_unit_test(test_what_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
