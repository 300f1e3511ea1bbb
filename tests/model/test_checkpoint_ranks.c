/* test_checkpoint_ranks.c - ranks that open different things: all of them end in an error. */
#include "checkpoint_fixture.h"

static void expect_two_disagree(const char *first, const char *second, const char *what) {
    job j = open_job(first, WB_F32);
    j.open[1] = second;
    run_job(&j, 2);
    for (int r = 0; r < 2; r++) {
        assert_int_equal(j.status[r], WB_PEER);
        if (!strstr(j.message[r], what)) fail_msg("rank %d: '%s' has no '%s'", r, j.message[r], what);
    }
}

static void expect_disagreement(const char *second, const char *what) {
    expect_two_disagree(golden("qwen3_moe").text, second, what);
}

/* The model of `from` with element `at` of tensor `name` changed by a bit; name NULL: with none. */
static temp_path with_other_bit(const char *from, const char *folder, const char *name, size_t at) {
    edit *e = edit_begin_from(from, folder);
    if (!name) return edit_end(e, NULL);
    wb_tensor_view *view = edit_find(e, name);
    uint32_t *copy = malloc(view->bytes);
    assert_non_null(copy);
    assert_true(at < view->bytes / 4);
    memcpy(copy, view->data, view->bytes);
    copy[at] ^= 1;
    view->data = copy;
    temp_path out = edit_end(e, NULL);
    free(copy);
    return out;
}

/* Of what all ranks hold, every bit is compared, and so is every bit of an expert of 4 KiB. */
static void test_ranks_with_other_weights_of_the_same_shape(void **state) {
    (void)state;
    static const char *const names[] = {"model.layers.1.self_attn.q_proj.weight",
                                        "model.layers.0.mlp.experts.3.up_proj.weight"};
    temp_path same = with_other_bit(golden("qwen3_moe").text, "bits_same", NULL, 0);
    for (size_t i = 0; i < 2; i++) {
        temp_path other = with_other_bit(same.text, i ? "bits_expert" : "bits_attention", names[i], 5);
        expect_two_disagree(same.text, other.text, names[i]);
        expect_two_disagree(other.text, same.text, "rank 1");
    }
    job j = open_job(same.text, WB_F32);
    run_job(&j, 2);
    expect_all_ok(&j, 2);
}

/* Of an expert above 4 KiB the middle is compared: whoever trained it has changed that as well. */
static void test_ranks_with_other_large_experts(void **state) {
    (void)state;
    static const char name[] = "model.layers.2.mlp.experts.15.down_proj.weight";
    const size_t n = 32 * 96;
    temp_path made = temp_in(dir.text, "large_made");
    wb_config config;
    assert_int_equal(wb_config_load(golden("qwen3_moe").text, &config), WB_OK);
    config.expert_width = 96;
    create_save(&config, 3, WB_F32, 1, made.text);
    temp_path same = with_other_bit(made.text, "large_same", NULL, 0);
    expect_two_disagree(same.text, with_other_bit(same.text, "large_middle", name, n / 2).text, name);
}

/* Every expert of a fused tensor is compared, not the tensor's middle alone. */
static void test_ranks_with_other_fused_experts(void **state) {
    (void)state;
    temp_path same = with_other_bit(with_fused_experts("fused_made", "").text, "fused_same", NULL, 0);
    temp_path first = with_other_bit(same.text, "fused_first", "model.layers.0.mlp.experts.gate_up_proj", 7);
    temp_path last =
        with_other_bit(same.text, "fused_last", "model.layers.2.mlp.experts.down_proj", 15 * 512 + 256);
    expect_two_disagree(same.text, first.text, "model.layers.0.mlp.experts.0.gate_proj.weight");
    expect_two_disagree(same.text, last.text, "model.layers.2.mlp.experts.15.down_proj.weight");
}

static void test_ranks_that_open_different_models(void **state) {
    (void)state;
    edit *e = edit_begin("qwen3_moe", "other_header");
    temp_path other = edit_end(e, "{\"format\":\"pt\",\"from\":\"elsewhere\"}");
    expect_disagreement(golden("olmoe").text, "model fingerprint");
    expect_disagreement(other.text, "source of the weights");
}

static void test_a_failure_on_one_rank_ends_all(void **state) {
    (void)state;
    job j = open_job(golden("qwen3_moe").text, WB_F32);
    const temp_path missing = temp_in(dir.text, "no_such_folder");
    j.open[2] = missing.text;
    run_job(&j, 4);
    for (int r = 0; r < 4; r++) {
        assert_int_equal(j.status[r], r == 2 ? WB_NOT_FOUND : WB_PEER);
        assert_non_null(strstr(j.message[r], r == 2 ? missing.text : "rank 2"));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ranks_that_open_different_models),
        cmocka_unit_test(test_ranks_with_other_weights_of_the_same_shape),
        cmocka_unit_test(test_ranks_with_other_large_experts),
        cmocka_unit_test(test_ranks_with_other_fused_experts),
        cmocka_unit_test(test_a_failure_on_one_rank_ends_all),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
