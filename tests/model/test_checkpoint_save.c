/* test_checkpoint_save.c - saving: what a model saves is what it holds, with the small files that belong to
 * it, and a save that fails leaves the earlier one. */
#include "checkpoint_fixture.h"

#include <errno.h>
#include <fcntl.h>

static void test_save_and_reopen_with_other_rank_counts(void **state) {
    (void)state;
    static const int rank_counts[] = {1, 2, 4};
    for (size_t i = 0; i < N_FAMILIES; i++) {
        temp_path out = temp_in(dir.text, "saved"), from = golden(families[i]);
        open_expect_save(from.text, WB_F32, rank_counts[i % 3], from.text, out.text);
        expect_same_tensors(from.text, out.text);
        for (size_t k = 0; k < 3; k++) open_expect_save(out.text, WB_F32, rank_counts[k], from.text, NULL);
        size_t bytes, other;
        char *a = temp_read(temp_in(out.text, "config.json").text, &bytes);
        char *b = temp_read(temp_in(from.text, "config.json").text, &other);
        assert_string_equal(a, b);
        free(a);
        free(b);
        assert_true(temp_exists(temp_in(out.text, "generation_config.json").text));
    }
}

static void test_index_of_several_ranks(void **state) {
    (void)state;
    temp_path out = temp_in(dir.text, "parents/are/made");
    open_expect_save(golden("qwen3_moe").text, WB_F32, 2, NULL, out.text);
    json_t *index = json_load_file(temp_in(out.text, "model.safetensors.index.json").text, 0, NULL);
    assert_non_null(index);
    json_t *map = json_object_get(index, "weight_map");
    assert_int_equal(json_object_size(map), 174);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(index, "metadata"), "total_size")),
                     408832);
    assert_string_equal(
        json_string_value(json_object_get(map, "model.layers.0.mlp.experts.7.up_proj.weight")),
        "model-00001-of-00002.safetensors");
    assert_string_equal(
        json_string_value(json_object_get(map, "model.layers.0.mlp.experts.8.up_proj.weight")),
        "model-00002-of-00002.safetensors");
    assert_string_equal(json_string_value(json_object_get(map, "lm_head.weight")),
                        "model-00001-of-00002.safetensors");
    json_decref(index);
}

/* A directory holds one save: files of an earlier one with another rank count go, other files stay. */
static void test_stale_files_of_an_earlier_save_go(void **state) {
    (void)state;
    temp_path out = temp_in(dir.text, "reused");
    temp_path single = temp_in(out.text, "model.safetensors"),
              index = temp_in(out.text, "model.safetensors.index.json");
    temp_path first = temp_in(out.text, "model-00001-of-00004.safetensors");
    temp_path second = temp_in(out.text, "model-00002-of-00002.safetensors");
    temp_path left = temp_in(out.text, "model-00009-of-00009.safetensors.123.tmp");
    temp_path other = temp_in(out.text, "model-notes.safetensors");
    open_expect_save(golden("qwen3_moe").text, WB_F32, 4, NULL, out.text);
    assert_true(temp_exists(first.text) && temp_exists(index.text) && !temp_exists(single.text));
    temp_write(left.text, "x", 1);
    temp_write(other.text, "x", 1);
    open_expect_save(golden("qwen3_moe").text, WB_F32, 1, NULL, out.text);
    assert_true(!temp_exists(first.text) && !temp_exists(index.text) && temp_exists(single.text));
    assert_true(!temp_exists(left.text) && temp_exists(other.text));
    open_expect_save(golden("qwen3_moe").text, WB_F32, 2, NULL, out.text);
    assert_true(!temp_exists(single.text) && temp_exists(index.text) && temp_exists(second.text));
    expect_same_tensors(golden("qwen3_moe").text, out.text);
}

static void test_save_over_the_source(void **state) {
    (void)state;
    temp_path out = temp_in(dir.text, "in_place");
    open_expect_save(golden("olmoe").text, WB_F32, 1, NULL, out.text);
    temp_write(temp_in(out.text, "tokenizer.json").text, "{}", 2);
    open_expect_save(out.text, WB_F32, 2, golden("olmoe").text, out.text);
    expect_same_tensors(golden("olmoe").text, out.text);
    assert_true(temp_exists(temp_in(out.text, "tokenizer.json").text));
}

static void expect_text(temp_path folder, const char *name, const char *expected) {
    char *text = temp_read(temp_in(folder.text, name).text, NULL);
    assert_string_equal(text, expected);
    free(text);
}

static void test_small_files_come_along(void **state) {
    (void)state;
    static const char *const copied[] = {"tokenizer.json", "tokenizer.bin", "vocab.txt", "spiece.model",
                                         "chat.jinja"};
    static const char *const left[] = {"notes.md", "other.safetensors", "pytorch_model.bin.index.json"};
    temp_path from = temp_in(dir.text, "with_tokenizer"), out = temp_in(dir.text, "with_tokenizer_saved");
    open_expect_save(golden("olmoe").text, WB_F32, 1, NULL, from.text);
    for (size_t i = 0; i < 5; i++)
        temp_write(temp_in(from.text, copied[i]).text, copied[i], strlen(copied[i]));
    for (size_t i = 0; i < 3; i++) temp_write(temp_in(from.text, left[i]).text, "x", 1);
    open_expect_save(from.text, WB_BF16, 1, NULL, out.text);
    for (size_t i = 0; i < 5; i++) expect_text(out, copied[i], copied[i]);
    for (size_t i = 0; i < 3; i++) assert_false(temp_exists(temp_in(out.text, left[i]).text));
    json_t *config = json_load_file(temp_in(out.text, "config.json").text, 0, NULL);
    assert_string_equal(json_string_value(json_object_get(config, "dtype")), "bfloat16");
    json_decref(config);
    open_expect_save(out.text, WB_BF16, 1, out.text, NULL);
}

/* Bits of the tensor of that name in a checkpoint's file. */
static uint16_t first_bits(temp_path folder, const char *name) {
    wb_safetensors *files;
    wb_tensor_view view;
    uint16_t bits;
    assert_int_equal(wb_safetensors_open(folder.text, NULL, &files), WB_OK);
    assert_int_equal(wb_safetensors_find(files, name, &view), WB_OK);
    assert_int_equal(view.dtype, WB_BF16);
    memcpy(&bits, view.data, sizeof bits);
    wb_safetensors_close(files);
    return bits;
}

/* A model of f32 that came in bf16 goes back to it, each weight to the nearest; its vectors, which came in
 * f32, and any of its weights where it is saved as it is, keep their bits. */
static void test_saved_as_it_was_opened(void **state) {
    (void)state;
    temp_path low = temp_in(dir.text, "low"), same = temp_in(dir.text, "low_again"),
              wide = temp_in(dir.text, "low_in_f32");
    wb_device *device;
    wb_comm *comm;
    open_expect_save(golden("qwen3_moe").text, WB_BF16, 1, NULL, low.text);
    wb_model *model = open_one(low.text, WB_F32, &device, &comm);
    assert_int_equal(wb_model_save_as_opened(model, same.text), WB_OK);
    expect_same_tensors(low.text, same.text);
    char *config = temp_read(temp_in(same.text, "config.json").text, NULL);
    assert_non_null(strstr(config, "\"bfloat16\""));
    free(config);

    const wb_tensor t = wb_model_tensor(model, 0);
    assert_true(t.dtype == WB_F32 && t.file_dtype == WB_BF16 && t.n_dims == 2);
    /* Between 1 and the next bf16, 1 + 2^-7: nearer to the one, to the other, and in the middle to even. */
    static const float values[] = {1 + 0x1p-9F, 1 + 0x1.8p-8F, 1 + 0x1p-8F};
    static const uint16_t rounded[] = {0x3f80, 0x3f81, 0x3f80};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(device->to_device(device, t.data, &values[i], sizeof(float)), WB_OK);
        assert_int_equal(wb_model_save_as_opened(model, same.text), WB_OK);
        assert_int_equal(first_bits(same, t.name), rounded[i]);
    }
    assert_int_equal(wb_model_save(model, wide.text), WB_OK);
    close_one(model, device, comm);
    model = open_one(wide.text, WB_F32, &device, &comm);
    float back;
    assert_int_equal(device->to_host(device, &back, wb_model_tensor(model, 0).data, sizeof back), WB_OK);
    assert_true(back == values[2] && wb_model_tensor(model, 0).file_dtype == WB_F32);
    close_one(model, device, comm);
}

static void test_unwritable_directory(void **state) {
    (void)state;
    temp_path file = temp_in(dir.text, "a_file"), out = temp_in(file.text, "below");
    temp_write(file.text, "x", 1);
    for (int ranks = 1; ranks <= 2; ranks++) {
        job j = open_job(golden("olmoe").text, WB_F32);
        j.save = out.text;
        run_job(&j, ranks);
        for (int r = 0; r < ranks; r++) {
            assert_int_equal(j.status[r], WB_IO);
            assert_non_null(strstr(j.message[r], "a_file"));
        }
    }
}

/* One rank cannot write: all leave with an error, and the save that was there is as it was. */
static void test_failed_save_keeps_the_earlier_one(void **state) {
    (void)state;
    temp_path out = temp_in(dir.text, "kept"), block;
    char name[64];
    snprintf(name, sizeof name, "model-00003-of-00004.safetensors.%d.tmp", (int)getpid());
    block = temp_in(out.text, name);
    open_expect_save(golden("qwen3_moe").text, WB_F32, 4, NULL, out.text);
    assert_int_equal(mkdir(block.text, 0777), 0);
    wb_config config;
    assert_int_equal(wb_config_load(golden("qwen3_moe").text, &config), WB_OK);
    job j = {.config = &config, .seed = 5, .dtype = WB_F32, .save = out.text};
    run_job(&j, 4);
    for (int r = 0; r < 4; r++) {
        assert_int_equal(j.status[r], r == 2 ? WB_IO : WB_PEER);
        assert_non_null(strstr(j.message[r], r == 2 ? "model-00003-of-00004" : "rank 2"));
        snprintf(name, sizeof name, "model-%05d-of-00004.safetensors.%d.tmp", r + 1, (int)getpid());
        assert_int_equal(temp_exists(temp_in(out.text, name).text), r == 2);
    }
    expect_same_tensors(golden("qwen3_moe").text, out.text);
}

/* The library's renames come here: one to refused_rename fails. */
static const char *refused_rename;
int rename(const char *from, const char *to) {
    if (refused_rename && strcmp(to, refused_rename) == 0) {
        errno = EIO;
        return -1;
    }
    return renameat(AT_FDCWD, from, AT_FDCWD, to);
}

/* One rank cannot put its shard in place while another did: no index is left over shards of two saves. */
static void test_half_done_save_has_no_index(void **state) {
    (void)state;
    temp_path out = temp_in(dir.text, "half"), block = temp_in(out.text, "model-00002-of-00002.safetensors");
    open_expect_save(golden("qwen3_moe").text, WB_F32, 2, NULL, out.text);
    job j = open_job(golden("qwen3_moe").text, WB_F32);
    j.save = out.text;
    refused_rename = block.text;
    run_job(&j, 2);
    refused_rename = NULL;
    assert_int_equal(j.status[0], WB_PEER);
    assert_int_equal(j.status[1], WB_IO);
    assert_non_null(strstr(j.message[1], "cannot be renamed"));
    expect_open_fails(out.text, WB_NOT_FOUND, "neither model.safetensors nor model.safetensors.index.json");
    open_expect_save(golden("qwen3_moe").text, WB_F32, 2, NULL, out.text);
    expect_same_tensors(golden("qwen3_moe").text, out.text);
}

/* An index or a single file that cannot be put in place leaves the earlier save, which can be opened. */
static void test_failed_change_of_layout_keeps_the_earlier_one(void **state) {
    (void)state;
    for (int ranks = 1; ranks <= 2; ranks++) {
        temp_path out = temp_in(dir.text, ranks == 1 ? "to_one" : "to_shards");
        temp_path last = temp_in(out.text, ranks == 1 ? "model.safetensors" : "model.safetensors.index.json");
        open_expect_save(golden("qwen3_moe").text, WB_F32, 3 - ranks, NULL, out.text);
        wb_config config;
        assert_int_equal(wb_config_load(golden("qwen3_moe").text, &config), WB_OK);
        job j = {.config = &config, .seed = 5, .dtype = WB_F32, .save = out.text};
        refused_rename = last.text;
        run_job(&j, ranks);
        refused_rename = NULL;
        assert_int_equal(j.status[0], WB_IO);
        open_expect_save(out.text, WB_F32, 1, golden("qwen3_moe").text, NULL);
    }
}

/* The directory that a model came from is not needed any more. */
static void test_a_base_that_is_gone_takes_nothing_along(void **state) {
    (void)state;
    temp_path base = temp_in(dir.text, "base_gone"), out = temp_in(dir.text, "base_gone_saved");
    wb_device *device;
    wb_comm *comm;
    open_expect_save(golden("olmoe").text, WB_F32, 1, NULL, base.text);
    temp_write(temp_in(base.text, "tokenizer.json").text, "words", 5);
    wb_model *model = open_one(base.text, WB_F32, &device, &comm);
    assert_int_equal(rename(base.text, temp_in(dir.text, "base_elsewhere").text), 0);
    if (wb_model_save(model, out.text) != WB_OK) fail_msg("%s", wb_error_message());
    expect_text(out, "tokenizer.json", "words");
    close_one(model, device, comm);
    open_expect_save(out.text, WB_F32, 1, golden("olmoe").text, NULL);
}

/* A run that resumes from its checkpoint saves into a new directory, which takes the place of the one that it
 * came from. File systems give the new one the number of one that is gone. */
static void test_a_base_that_is_replaced_again_and_again(void **state) {
    (void)state;
    temp_path base = temp_in(dir.text, "replaced"), fresh = temp_in(dir.text, "replaced_new");
    wb_device *device;
    wb_comm *comm;
    open_expect_save(golden("olmoe").text, WB_F32, 1, NULL, base.text);
    temp_write(temp_in(base.text, "tokenizer.json").text, "words", 5);
    wb_model *model = open_one(base.text, WB_F32, &device, &comm);
    for (int i = 0; i < 4; i++) {
        if (wb_model_save(model, fresh.text) != WB_OK) fail_msg("%s", wb_error_message());
        temp_remove(base);
        assert_int_equal(rename(fresh.text, base.text), 0);
        expect_text(base, "tokenizer.json", "words");
    }
    close_one(model, device, comm);
}

/* Saved where it is from: what is there is somebody's, and newer; what is missing comes back. */
static void test_small_files_where_the_model_is_from(void **state) {
    (void)state;
    temp_path base = temp_in(dir.text, "from_here"), vocab = temp_in(base.text, "vocab.txt");
    wb_device *device;
    wb_comm *comm;
    open_expect_save(golden("olmoe").text, WB_F32, 1, NULL, base.text);
    temp_write(temp_in(base.text, "tokenizer.json").text, "words", 5);
    temp_write(vocab.text, "a b c", 5);
    wb_model *model = open_one(base.text, WB_F32, &device, &comm);
    temp_write(temp_in(base.text, "tokenizer.json").text, "newer", 5);
    assert_int_equal(unlink(vocab.text), 0);
    if (wb_model_save(model, base.text) != WB_OK) fail_msg("%s", wb_error_message());
    expect_text(base, "tokenizer.json", "newer");
    expect_text(base, "vocab.txt", "a b c");
    close_one(model, device, comm);
}

/* What cannot be kept does not stop a model from being opened, and is said. */
static void test_small_files_that_stay_behind(void **state) {
    (void)state;
    temp_path base = temp_in(dir.text, "too_large"), out = temp_in(dir.text, "too_large_saved");
    temp_path large = temp_in(base.text, "large.json");
    wb_device *device;
    wb_comm *comm;
    open_expect_save(golden("olmoe").text, WB_F32, 1, NULL, base.text);
    temp_write(temp_in(base.text, "tokenizer.json").text, "words", 5);
    temp_write(large.text, "x", 1);
    assert_int_equal(truncate(large.text, ((off_t)64 << 20) + 1), 0);
    assert_int_equal(symlink("nowhere", temp_in(base.text, "vocab.txt").text), 0);
    wb_model *model = open_one(base.text, WB_F32, &device, &comm);
    assert_non_null(wb_model_note(model));
    assert_non_null(strstr(wb_model_note(model), "too_large"));
    assert_non_null(
        strstr(wb_model_note(model), "large.json: expected at most 67108864 bytes, found 67108865"));
    assert_non_null(strstr(wb_model_note(model), "vocab.txt"));
    assert_null(strstr(wb_model_note(model), "tokenizer.json"));
    if (wb_model_save(model, out.text) != WB_OK) fail_msg("%s", wb_error_message());
    expect_text(out, "tokenizer.json", "words");
    assert_false(temp_exists(temp_in(out.text, "large.json").text));
    close_one(model, device, comm);
}

static void expect_same_text(temp_path a, temp_path b, const char *name) {
    char *expected = temp_read(temp_in(a.text, name).text, NULL);
    char *found = temp_read(temp_in(b.text, name).text, NULL);
    assert_string_equal(expected, found);
    free(expected);
    free(found);
}

/* A clone outlives what it was made from, and its checkpoint has all that the other one's would have. */
static void test_a_clone_saves_what_the_original_would(void **state) {
    (void)state;
    temp_path base = temp_in(dir.text, "cloned"),
              out[2] = {temp_in(dir.text, "cloned_original"), temp_in(dir.text, "cloned_clone")};
    wb_model *model, *clone;
    wb_model_options options = wb_model_options_default();
    open_expect_save(golden("olmoe").text, WB_F32, 1, NULL, base.text);
    temp_write(temp_in(base.text, "tokenizer.json").text, "words", 5);
    char *config = temp_read(temp_in(base.text, "config.json").text, NULL), longer[8192];
    const int n = snprintf(longer, sizeof longer, "{\"unknown_to_us\": 7, %s", strchr(config, '{') + 1);
    free(config);
    temp_write(temp_in(base.text, "config.json").text, longer, (size_t)n);
    assert_int_equal(wb_device_open_cpu(1, &options.device), WB_OK);
    assert_int_equal(wb_comm_open_self(&options.comm), WB_OK);
    assert_int_equal(wb_model_open(base.text, &options, &model), WB_OK);
    assert_int_equal(wb_model_clone(model, &options, &clone), WB_OK);
    assert_int_equal(wb_model_save(model, out[0].text), WB_OK);
    wb_model_close(model);
    assert_int_equal(wb_model_save(clone, out[1].text), WB_OK);
    wb_model_close(clone);
    wb_comm_close(options.comm);
    wb_device_close(options.device);
    expect_same_tensors(out[0].text, out[1].text);
    expect_same_text(out[0], out[1], "config.json");
    expect_same_text(base, out[1], "tokenizer.json");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_save_and_reopen_with_other_rank_counts),
        cmocka_unit_test(test_index_of_several_ranks),
        cmocka_unit_test(test_stale_files_of_an_earlier_save_go),
        cmocka_unit_test(test_save_over_the_source),
        cmocka_unit_test(test_small_files_come_along),
        cmocka_unit_test(test_saved_as_it_was_opened),
        cmocka_unit_test(test_unwritable_directory),
        cmocka_unit_test(test_failed_save_keeps_the_earlier_one),
        cmocka_unit_test(test_half_done_save_has_no_index),
        cmocka_unit_test(test_failed_change_of_layout_keeps_the_earlier_one),
        cmocka_unit_test(test_a_clone_saves_what_the_original_would),
        cmocka_unit_test(test_a_base_that_is_gone_takes_nothing_along),
        cmocka_unit_test(test_a_base_that_is_replaced_again_and_again),
        cmocka_unit_test(test_small_files_where_the_model_is_from),
        cmocka_unit_test(test_small_files_that_stay_behind),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
