/* test_checkpoint_open.c - opening: what a model holds is what the files hold, at any number of ranks; a
 * checkpoint that does not fit is refused. */
#include "checkpoint_fixture.h"
#include "layers/moe/moe.h"

#include <math.h>

static void test_tensors_equal_the_file_at_any_rank_count(void **state) {
    (void)state;
    static const int rank_counts[] = {1, 2, 3, 4};
    for (size_t f = 0; f < 2; f++) {
        for (size_t i = 0; i < 4; i++) {
            temp_path path = golden(families[f]);
            int ranks = rank_counts[i], owned = 0;
            job j = open_job(path.text, WB_F32);
            j.expect = path.text;
            run_job(&j, ranks);
            expect_all_ok(&j, ranks);
            assert_int_equal(j.n_tensors[0], 174);
            for (int r = 0; r < ranks; r++) owned += j.owned[r];
            assert_int_equal(owned, 3 * 16 * 3); /* each expert on exactly one rank */
        }
    }
}

/* The registry describes the storages: names, layers, experts, offsets inside params. */
static void test_registry_describes_the_storages(void **state) {
    (void)state;
    wb_device *device;
    wb_comm *comm;
    wb_model *m = open_one(golden("qwen3_moe").text, WB_F32, &device, &comm);
    bool gate = false, down = false;
    for (int32_t i = 0; i < wb_model_n_tensors(m); i++) {
        wb_tensor t = wb_model_tensor(m, i);
        const wb_param *p = &m->params[t.param];
        assert_int_equal(t.n, t.shape[0] * t.shape[1]);
        assert_true(t.offset >= 0 && t.offset + t.n <= p->n);
        assert_ptr_equal(t.data, (char *)p->memory.data + (size_t)t.offset * 4);
        if (strcmp(t.name, "model.layers.1.mlp.experts.5.up_proj.weight") == 0) {
            gate = true;
            assert_int_equal(t.layer, 1);
            assert_int_equal(t.expert, 5);
            assert_int_equal(t.param, ((const wb_moe_weights *)m->layers[1].feed_forward.weights)->gate_up);
            assert_int_equal(t.offset, 5 * 2 * 16 * 32 + 16 * 32);
        }
        if (strcmp(t.name, "model.layers.2.mlp.experts.15.down_proj.weight") == 0) {
            down = true;
            assert_int_equal(t.param, ((const wb_moe_weights *)m->layers[2].feed_forward.weights)->down);
            assert_int_equal(t.offset, 15 * 32 * 16);
            assert_int_equal(t.shape[0], 32);
            assert_int_equal(t.shape[1], 16);
        }
    }
    assert_true(gate && down);
    assert_int_equal(m->lm_head == m->embed, 0);
    const wb_route_model *routes = wb_model_routes(m);
    assert_string_equal(routes->name, "qwen3_moe");
    assert_string_equal(routes->router, "softmax_norm");
    assert_int_equal(routes->n_moe_layers, 3);
    assert_int_equal(routes->num_experts, 16);
    assert_int_equal(routes->top_k, 4);
    /* The configuration alone says the same. */
    wb_config config;
    uint32_t moe_layers[9];
    wb_route_model told;
    assert_int_equal(wb_config_load(golden("qwen3_moe").text, &config), WB_OK);
    assert_int_equal(wb_config_routes(&config, moe_layers, &told), WB_OK);
    assert_int_equal(wb_route_model_match(routes, &told), WB_OK);
    assert_ptr_equal(told.moe_layers, moe_layers);
    close_one(m, device, comm);
}

static void test_rope_tables(void **state) {
    (void)state;
    wb_device *device;
    wb_comm *comm;
    wb_model *m = open_one(golden("qwen3_moe").text, WB_F32, &device, &comm);
    float *host = malloc(512 * 8 * sizeof *host);
    for (int s = 0; s < 2; s++) {
        assert_int_equal(
            device->to_host(device, host, s ? m->sin_table.data : m->cos_table.data, 512 * 8 * sizeof *host),
            WB_OK);
        for (int p = 0; p < 512; p++) {
            for (int i = 0; i < 8; i++) {
                double angle = p * pow(10000.0, -2.0 * i / 16.0), expected = s ? sin(angle) : cos(angle);
                assert_true(fabs((double)host[p * 8 + i] - expected) <= 1e-4);
            }
        }
    }
    free(host);
    close_one(m, device, comm);
}

static void test_fused_experts_give_the_same_model(void **state) {
    (void)state;
    for (int suffix = 0; suffix < 2; suffix++) {
        temp_path fused = with_fused_experts(suffix ? "fused_weight" : "fused", suffix ? ".weight" : "");
        open_expect_save(fused.text, WB_F32, 1, golden("olmoe").text, NULL);
        open_expect_save(fused.text, WB_F32, 3, golden("olmoe").text, NULL);
    }
}

static void test_missing_tensor(void **state) {
    (void)state;
    edit *e = edit_begin("qwen3_moe", "missing");
    edit_remove(e, "model.layers.1.mlp.experts.3.up_proj.weight");
    temp_path out = edit_end(e, NULL);
    expect_open_fails(out.text, WB_NOT_FOUND,
                      "missing: missing tensor model.layers.1.mlp.experts.3.up_proj.weight [16, 32]");
}

/* The rank that has nothing to do with the tensor notices as well. */
static void test_missing_tensor_of_another_rank(void **state) {
    (void)state;
    edit *e = edit_begin("qwen3_moe", "missing_far");
    edit_remove(e, "model.layers.1.mlp.experts.15.up_proj.weight");
    temp_path out = edit_end(e, NULL);
    job j = open_job(out.text, WB_F32);
    run_job(&j, 4);
    for (int r = 0; r < 4; r++) assert_int_equal(j.status[r], WB_NOT_FOUND);
}

static void test_surplus_tensor(void **state) {
    (void)state;
    edit *e = edit_begin("olmoe", "surplus");
    wb_tensor_view extra = e->views[0];
    extra.name = "model.layers.7.self_attn.q_proj.weight";
    e->views[e->n++] = extra;
    temp_path out = edit_end(e, NULL);
    expect_open_fails(out.text, WB_MISMATCH,
                      "surplus tensor model.layers.7.self_attn.q_proj.weight [128, 32]");
}

/* What checkpoints carry and nobody needs. */
static void test_harmless_extras(void **state) {
    (void)state;
    edit *e = edit_begin("olmoe", "harmless");
    wb_tensor_view extra = {.name = "model.layers.0.self_attn.rotary_emb.inv_freq",
                            .dtype = WB_I64,
                            .n_dims = 1,
                            .shape = {4},
                            .data = e->views[0].data,
                            .bytes = 32};
    e->views[e->n++] = extra;
    json_t *root = json_load_file(temp_in(e->out.text, "config.json").text, 0, NULL);
    json_object_set_new(root, "tie_word_embeddings", json_true());
    assert_int_equal(json_dump_file(root, temp_in(e->out.text, "config.json").text, 0), 0);
    json_decref(root);
    temp_path out = edit_end(e, NULL); /* lm_head.weight is there though tied */
    open_expect_save(out.text, WB_F32, 1, golden("olmoe").text, NULL);
}

static void test_wrong_shape(void **state) {
    (void)state;
    edit *e = edit_begin("qwen3_moe", "shape");
    wb_tensor_view *view = edit_find(e, "model.layers.0.self_attn.q_proj.weight");
    view->shape[0] = 32;
    view->shape[1] = 64;
    temp_path out = edit_end(e, NULL);
    expect_open_fails(
        out.text, WB_MISMATCH,
        "shape/model.safetensors: tensor model.layers.0.self_attn.q_proj.weight: expected shape [64, 32], "
        "found [32, 64]");
    e = edit_begin("qwen3_moe", "dims");
    view = edit_find(e, "model.norm.weight");
    view->n_dims = 2;
    view->shape[1] = 1;
    out = edit_end(e, NULL);
    expect_open_fails(out.text, WB_MISMATCH, "model.norm.weight: expected shape [32], found [32, 1]");
}

static void test_wrong_dtype(void **state) {
    (void)state;
    edit *e = edit_begin("qwen3_moe", "dtype");
    wb_tensor_view *view = edit_find(e, "model.norm.weight");
    view->dtype = WB_I32;
    temp_path out = edit_end(e, NULL);
    expect_open_fails(
        out.text, WB_UNSUPPORTED,
        "dtype/model.safetensors: tensor model.norm.weight [32]: expected dtype f32, bf16 or f16, found i32");
}

static void test_missing_files(void **state) {
    (void)state;
    temp_path empty = temp_in(dir.text, "nothing");
    assert_int_equal(mkdir(empty.text, 0777), 0);
    expect_open_fails(temp_in(dir.text, "no_such_folder").text, WB_NOT_FOUND, "/no_such_folder/config.json");
    expect_open_fails(empty.text, WB_NOT_FOUND, "nothing/config.json");
    temp_copy(temp_in(golden("olmoe").text, "config.json").text, temp_in(empty.text, "config.json").text);
    expect_open_fails(empty.text, WB_NOT_FOUND, "model.safetensors");
}

static void test_bad_options(void **state) {
    (void)state;
    wb_device *device;
    wb_comm *comm;
    wb_model *model = open_one(golden("olmoe").text, WB_F32, &device, &comm), *out = NULL;
    wb_model_options options = {.size = sizeof(wb_model_options),
                                .device = device,
                                .comm = comm,
                                .dtype = WB_F16,
                                .activations = WB_F32};
    assert_int_equal(wb_model_open(golden("olmoe").text, &options, &out), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_model_open(golden("olmoe").text, NULL, &out), WB_INVALID_ARGUMENT);
    options.comm = NULL;
    assert_int_equal(wb_model_create(wb_model_config(model), 1, 1, &options, &out), WB_INVALID_ARGUMENT);
    options = (wb_model_options){.size = sizeof(wb_model_options),
                                 .device = device,
                                 .comm = comm,
                                 .dtype = WB_F32,
                                 .activations = WB_F32};
    assert_int_equal(wb_model_open(NULL, &options, &out), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_model_create(NULL, 1, 1, &options, &out), WB_INVALID_ARGUMENT);
    options.reserved[0] = 1;
    assert_int_equal(wb_model_open(golden("olmoe").text, &options, &out), WB_INVALID_ARGUMENT);
    assert_message_has("model options: reserved[0]: expected 0, found 1");
    options.reserved[0] = 0;
    options.activations = WB_F16;
    assert_int_equal(wb_model_open(golden("olmoe").text, &options, &out), WB_INVALID_ARGUMENT);
    assert_message_has("activations: expected f32 or bf16, found f16");
    options.activations = WB_F32;
    options.size = 0; /* not from the initialiser */
    assert_int_equal(wb_model_open(golden("olmoe").text, &options, &out), WB_INVALID_ARGUMENT);
    assert_message_has("model options");
    struct {
        wb_model_options known;
        int64_t later;
    } longer = {.known = {.size = sizeof longer,
                          .device = device,
                          .comm = comm,
                          .dtype = WB_F32,
                          .activations = WB_F32},
                .later = 1};
    assert_int_equal(wb_model_open(golden("olmoe").text, &longer.known, &out), WB_INVALID_ARGUMENT);
    assert_message_has("model options");
    assert_int_equal(wb_model_save(model, NULL), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_model_save(model, ""), WB_INVALID_ARGUMENT);
    assert_null(out);
    wb_model_close(NULL);
    close_one(model, device, comm);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tensors_equal_the_file_at_any_rank_count),
        cmocka_unit_test(test_registry_describes_the_storages),
        cmocka_unit_test(test_rope_tables),
        cmocka_unit_test(test_fused_experts_give_the_same_model),
        cmocka_unit_test(test_missing_tensor),
        cmocka_unit_test(test_missing_tensor_of_another_rank),
        cmocka_unit_test(test_surplus_tensor),
        cmocka_unit_test(test_harmless_extras),
        cmocka_unit_test(test_wrong_shape),
        cmocka_unit_test(test_wrong_dtype),
        cmocka_unit_test(test_missing_files),
        cmocka_unit_test(test_bad_options),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
