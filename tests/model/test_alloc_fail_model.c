/* test_alloc_fail_model.c - every allocation of reading and writing checkpoints is made to fail in turn:
 * the call says so or does without, nothing leaks, and a directory that was whole stays whole. */
#include "support/alloc_fail.h"
#include "support/temp_files.h"

#include "config.h"
#include "wb_model.h"

#include <errno.h>

typedef struct place {
    temp_path dir, single, shards, saved;
    wb_device *device;
    wb_comm *comm;
    wb_config config;
    wb_model *model; /* opened from `single` */
} place;

static wb_model_options options_of(const place *p) {
    return (wb_model_options){.size = sizeof(wb_model_options),
                              .device = p->device,
                              .comm = p->comm,
                              .dtype = WB_F32,
                              .activations = WB_F32};
}

/* The checkpoint as two shards with an index. */
static void make_shards(const place *p) {
    static const char *const files[] = {"a.safetensors", "b.safetensors"};
    wb_safetensors *st = NULL;
    wb_tensor_view views[64];
    json_t *map = json_object();
    assert_int_equal(mkdir(p->shards.text, 0777), 0);
    assert_int_equal(wb_safetensors_open(p->single.text, NULL, &st), WB_OK);
    size_t n = wb_safetensors_count(st), half = n / 2;
    assert_true(n < 64);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(wb_safetensors_get(st, i, &views[i]), WB_OK);
        json_object_set_new(map, views[i].name, json_string(files[i >= half]));
    }
    assert_int_equal(wb_safetensors_write(temp_in(p->shards.text, files[0]).text, half, views, NULL), WB_OK);
    assert_int_equal(
        wb_safetensors_write(temp_in(p->shards.text, files[1]).text, n - half, views + half, NULL), WB_OK);
    json_t *index = json_pack("{s:o}", "weight_map", map);
    assert_int_equal(json_dump_file(index, temp_in(p->shards.text, "model.safetensors.index.json").text, 0),
                     0);
    json_decref(index);
    temp_copy(temp_in(p->single.text, "config.json").text, temp_in(p->shards.text, "config.json").text);
    wb_safetensors_close(st);
}

static int setup(void **state) {
    place *p = calloc(1, sizeof *p);
    p->dir = temp_dir();
    p->single = temp_in(p->dir.text, "single");
    p->shards = temp_in(p->dir.text, "shards");
    p->saved = temp_in(p->dir.text, "saved");
    temp_path golden = temp_in(WB_TEST_DATA, "qwen3_moe");
    assert_int_equal(wb_device_open_cpu(1, &p->device), WB_OK);
    assert_int_equal(wb_comm_open_self(&p->comm), WB_OK);
    assert_int_equal(wb_config_load(golden.text, &p->config), WB_OK);
    p->config.n_layers = 1;
    p->config.moe_layer_mask[0] = 1;
    p->config.router.n_experts = 2;
    p->config.router.top_k = 1;
    p->config.max_positions = 8;
    wb_model_options options = options_of(p);
    wb_model *created = NULL;
    assert_int_equal(wb_model_create(&p->config, 3, 0.1f, &options, &created), WB_OK);
    assert_int_equal(wb_model_save(created, p->single.text), WB_OK);
    wb_model_close(created);
    temp_write(temp_in(p->single.text, "tokenizer.json").text, "{}", 2);
    make_shards(p);
    temp_write(temp_in(p->shards.text, "tokenizer.json").text, "{}", 2);
    assert_int_equal(symlink("nowhere", temp_in(p->shards.text, "vocab.txt").text), 0);
    assert_int_equal(wb_model_open(p->single.text, &options, &p->model), WB_OK);
    assert_int_equal(wb_model_save(p->model, p->saved.text), WB_OK);
    *state = p;
    return 0;
}

static int teardown(void **state) {
    place *p = *state;
    wb_model_close(p->model);
    wb_comm_close(p->comm);
    wb_device_close(p->device);
    temp_remove(p->dir);
    free(p);
    return 0;
}

/* Out of memory, in our own words, or as JSON or the system put it. */
static bool says_so(wb_status status) {
    return status == WB_OUT_OF_MEMORY || (status == WB_CORRUPT && strstr(wb_error_message(), "JSON")) ||
           (status == WB_IO && strstr(wb_error_message(), strerror(ENOMEM)));
}

/* Runs `body` with its n-th allocation failing, for every n. A refused allocation that the C library does
 * without (a sort's scratch) leaves the call ok. */
static void every_allocation(const place *p, wb_status (*body)(const place *)) {
    for (int ever_after = 0; ever_after < 2; ever_after++) {
        long refused = 0;
        for (long n = 0;; n++) {
            long live = 0;
            alloc_fail_arm(n, ever_after);
            wb_status status = body(p);
            bool failed = alloc_fail_disarm(&live);
            if (live != 0) fail_msg("allocation %ld fails: %ld blocks are not freed", n, live);
            if (!failed) {
                assert_int_equal(status, WB_OK);
                print_message("%ld allocations\n", n);
                assert_true(n > 3 && refused > n / 2);
                break;
            }
            if (status != WB_OK && !says_so(status))
                fail_msg("allocation %ld fails: status %d: %s", n, (int)status, wb_error_message());
            refused += status != WB_OK;
        }
    }
}

/* Jansson up to 2.14 ignores that its lexer's string buffer could not grow, and then asserts or reads
 * beyond it. Those blocks, whose sizes are powers of two from 32 up, are counted but never refused; all
 * its others are. */
static void *json_malloc(size_t size) {
#if ALLOC_FAIL_WORKS
    if (size >= 32 && (size & (size - 1)) == 0) return alloc_fail_count(__libc_malloc(size));
#endif
    return malloc(size);
}

/* ---- bodies ---------------------------------------------------------------------------------- */

static wb_status load_config(const place *p) {
    wb_config config;
    return wb_config_load(p->single.text, &config);
}

static wb_status read_routes(const place *p) {
    uint32_t layers[WB_ROUTE_LISTS_MAX], vocab_size;
    wb_route_model model;
    return wb_routes_of_folder(p->single.text, layers, &model, &vocab_size);
}

static wb_status open_files(const char *path) {
    wb_safetensors *st = NULL;
    wb_status status = wb_safetensors_open(path, NULL, &st);
    if (status == WB_OK && wb_safetensors_count(st) != 18) status = WB_MISMATCH;
    wb_safetensors_close(st);
    return status;
}

static wb_status open_single_file(const place *p) {
    return open_files(p->single.text);
}

static wb_status open_shards(const place *p) {
    return open_files(p->shards.text);
}

static wb_status open_model(const place *p) {
    wb_model_options options = options_of(p);
    wb_model *model = NULL;
    wb_status status = wb_model_open(p->shards.text, &options, &model);
    wb_model_close(model);
    return status;
}

static wb_status create_model(const place *p) {
    wb_model_options options = options_of(p);
    wb_model *model = NULL;
    wb_status status = wb_model_create(&p->config, 1, 0.1f, &options, &model);
    wb_model_close(model);
    return status;
}

static wb_status clone_model(const place *p) {
    wb_model_options options = options_of(p);
    wb_model *clone = NULL;
    wb_status status = wb_model_clone(p->model, &options, &clone);
    wb_model_close(clone);
    return status;
}

static wb_status save_model(const place *p) {
    return wb_model_save(p->model, p->saved.text);
}

static wb_status save_generated_config(const place *p) {
    char *text = NULL;
    wb_status status = wb_config_text(&p->config, wb_family_rules_of(p->config.family), NULL, WB_F32, &text);
    free(text);
    return status;
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void test_config_load(void **state) {
    every_allocation(*state, load_config);
}

static void test_routes_of_a_folder(void **state) {
    every_allocation(*state, read_routes);
}

static void test_config_text(void **state) {
    every_allocation(*state, save_generated_config);
}

static void test_safetensors_open(void **state) {
    every_allocation(*state, open_single_file);
    every_allocation(*state, open_shards);
}

static void test_model_open(void **state) {
    every_allocation(*state, open_model);
}

static void test_model_create(void **state) {
    every_allocation(*state, create_model);
}

static void test_model_clone(void **state) {
    every_allocation(*state, clone_model);
}

static void test_model_save(void **state) {
    place *p = *state;
    every_allocation(p, save_model);
    assert_int_equal(open_files(p->saved.text), WB_OK);
    assert_false(temp_exists(temp_in(p->saved.text, "model.safetensors.tmp").text));
    assert_false(temp_exists(temp_in(p->saved.text, "config.json.tmp").text));
    assert_false(temp_exists(temp_in(p->saved.text, "tokenizer.json.tmp").text));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config_load), cmocka_unit_test(test_routes_of_a_folder),
        cmocka_unit_test(test_config_text), cmocka_unit_test(test_safetensors_open),
        cmocka_unit_test(test_model_open),  cmocka_unit_test(test_model_create),
        cmocka_unit_test(test_model_save),  cmocka_unit_test(test_model_clone),
    };
    if (!ALLOC_FAIL_WORKS) {
        fprintf(stderr, "skipped: a sanitizer replaces malloc\n");
        return 77;
    }
    json_set_alloc_funcs(json_malloc, free);
    return cmocka_run_group_tests(tests, setup, teardown);
}
