/* test_mtp.c - layers for multi-token prediction: their logits are those of transformers' own layers, however
 * a sequence is cut; they are read, saved and copied with their decoder, and are none of its layers. */
#include "checkpoint_fixture.h"
#include "infer_state.h"

#include <math.h>

enum { MAX_S = 64, BLOCK_SIZE = 4, N_BLOCKS = 2 * MAX_S / BLOCK_SIZE };

/* Latent attention with two MTP layers, grouped-query attention with one, and behind gated delta nets one of
 * attention that has names of its own. */
static temp_path oracle_of(const char *name) {
    return temp_in(temp_in(WB_TEST_DATA, "oracles").text, name);
}

static temp_path oracle(void) {
    return oracle_of("deepseek_v3_mtp");
}

/* A tensor of ref.safetensors. */
static wb_tensor_view reference(const wb_safetensors *files, const char *name) {
    wb_tensor_view view;
    assert_int_equal(wb_safetensors_find(files, name, &view), WB_OK);
    return view;
}

/* One sequence, whose rows [done, done + n) are fed to the decoder, and then those with a token behind them
 * to the MTP layer. logits [n, V] of these. */
static int32_t feed(wb_infer *infer, const int32_t *tokens, int32_t S, int32_t done, int32_t n, void *ids,
                    float *logits) {
    const wb_model *model = infer->model;
    int32_t pos[MAX_S], seq[MAX_S] = {0}, next[MAX_S], rows[MAX_S], blocks[N_BLOCKS], state = 1;
    const int32_t guessed = done + n < S ? n : n - 1;
    const float *found;
    for (int32_t b = 0; b < N_BLOCKS; b++) blocks[b] = (7 * b + 3) % N_BLOCKS;
    for (int32_t t = 0; t < n; t++) {
        pos[t] = done + t, rows[t] = t;
        next[t] = done + t + 1 < S ? tokens[done + t + 1] : 0;
    }
    wb_infer_batch batch = {.T = n,
                            .tokens = tokens + done,
                            .pos = pos,
                            .seq = seq,
                            .n_seqs = 1,
                            .max_blocks = N_BLOCKS,
                            .blocks = blocks,
                            .states = &state};
    const wb_routing routing = {.ids = ids};
    assert_int_equal(wb_infer_forward(infer, &batch, &routing, &found), WB_OK);
    batch.T = batch.n_logits = guessed;
    batch.tokens = next, batch.logit_rows = rows;
    assert_int_equal(wb_infer_draft(infer, &batch, rows, &found), WB_OK);
    const size_t bytes = (size_t)guessed * (size_t)model->config.vocab_size * sizeof(float);
    assert_int_equal(model->device->to_host(model->device, logits, found, bytes), WB_OK);
    return guessed;
}

static wb_infer *open_infer(wb_model *model) {
    wb_infer_options options = wb_infer_options_default();
    wb_infer *infer = NULL;
    options.n_blocks = N_BLOCKS, options.block_size = BLOCK_SIZE;
    options.max_tokens = options.max_logits = MAX_S;
    options.max_blocks = N_BLOCKS;
    options.drafts = true;
    assert_int_equal(wb_infer_open(model, &options, &infer), WB_OK);
    assert_true(wb_infer_drafts(infer));
    return infer;
}

/* Within what logits of the decoder are held to, 1e-4; cut into pieces of `piece` tokens the same bits. */
static void check_logits(const char *name) {
    wb_device *device;
    wb_comm *comm;
    wb_model *m = open_one(oracle_of(name).text, WB_F32, &device, &comm);
    wb_safetensors *ref = NULL;
    assert_int_equal(wb_safetensors_open(oracle_of(name).text, "ref", &ref), WB_OK);
    const wb_tensor_view input = reference(ref, "input_ids"), expected = reference(ref, "mtp.logits");
    const int64_t B = input.shape[0], S = input.shape[1], V = m->config.vocab_size;
    assert_true(S <= MAX_S && expected.shape[1] == S - 1 && expected.shape[2] == V);
    wb_infer *infer = open_infer(m);
    void *ids = NULL;
    assert_int_equal(wb_device_alloc(device, MAX_S * 64, &ids), WB_OK);
    double largest = 0;
    for (int64_t b = 0; b < B; b++) {
        static float whole[MAX_S * 256], pieces[MAX_S * 256];
        int32_t tokens[MAX_S];
        for (int64_t t = 0; t < S; t++) {
            int64_t id;
            memcpy(&id, (const char *)input.data + (b * S + t) * 8, sizeof id);
            tokens[t] = (int32_t)id;
        }
        assert_int_equal(feed(infer, tokens, (int32_t)S, 0, (int32_t)S, ids, whole), S - 1);
        for (int64_t i = 0; i < (S - 1) * V; i++) {
            float value;
            memcpy(&value, (const char *)expected.data + (b * (S - 1) * V + i) * 4, sizeof value);
            const double difference = fabs((double)whole[i] - (double)value);
            if (!(difference <= 1e-4)) fail_msg("logit %d: found %g", (int)i, (double)whole[i]);
            largest = difference > largest ? difference : largest;
        }
        for (int32_t done = 0, guessed = 0; done < (int32_t)S; done += 5) {
            const int32_t n = done + 5 < (int32_t)S ? 5 : (int32_t)S - done;
            guessed += feed(infer, tokens, (int32_t)S, done, n, ids, pieces + guessed * V);
        }
        assert_memory_equal(whole, pieces, (size_t)((S - 1) * V) * sizeof(float));
    }
    printf("%s: largest difference %.3g\n", name, largest);
    wb_device_free(device, ids);
    wb_infer_close(infer);
    wb_safetensors_close(ref);
    close_one(m, device, comm);
}

static void test_logits_are_those_of_transformers(void **state) {
    (void)state;
    check_logits("deepseek_v3_mtp");
    check_logits("glm4_moe_mtp");
    check_logits("qwen3_next_mtp");
    check_logits("qwen3_5_moe_mtp");
}

static bool same_tensor(const wb_tensor_view *a, const wb_tensor_view *b) {
    return a->dtype == b->dtype && a->bytes == b->bytes && memcmp(a->data, b->data, a->bytes) == 0;
}

/* All tensors of the files come back, those of the MTP layers among them, which are none of the decoder's. */
static void test_they_are_saved_as_they_were(void **state) {
    (void)state;
    wb_device *device;
    wb_comm *comm;
    wb_model *m = open_one(oracle().text, WB_F32, &device, &comm), *copy = NULL;
    const temp_path saved = temp_in(dir.text, "mtp_saved");
    assert_int_equal(m->config.n_mtp_layers, 2);
    assert_int_equal(wb_model_routes(m)->num_hidden_layers, 3);
    for (int32_t i = 0; i < wb_model_n_tensors(m); i++)
        assert_null(strstr(wb_model_tensor(m, i).name, "model.layers.3."));
    const wb_model_options options = {
        .size = sizeof options, .device = device, .comm = comm, .dtype = WB_F32, .activations = WB_F32};
    assert_int_equal(wb_model_clone(m, &options, &copy), WB_OK);
    assert_int_equal(wb_model_save(copy, saved.text), WB_OK);
    wb_safetensors *before = NULL, *after = NULL;
    assert_int_equal(wb_safetensors_open(oracle().text, NULL, &before), WB_OK);
    assert_int_equal(wb_safetensors_open(saved.text, NULL, &after), WB_OK);
    assert_int_equal(wb_safetensors_count(before), wb_safetensors_count(after));
    for (size_t i = 0; i < wb_safetensors_count(before); i++) {
        wb_tensor_view a, b;
        assert_int_equal(wb_safetensors_get(before, i, &a), WB_OK);
        assert_int_equal(wb_safetensors_find(after, a.name, &b), WB_OK);
        if (!same_tensor(&a, &b)) fail_msg("%s is another one", a.name);
    }
    wb_safetensors_close(before);
    wb_safetensors_close(after);
    wb_model_close(copy);
    close_one(m, device, comm);
}

/* Layers with names of their own: they are found by these, and saved under them. */
static void test_layers_with_names_of_their_own(void **state) {
    (void)state;
    edit *e = edit_begin_from(oracle_of("qwen3_next_mtp").text, "unsaid");
    const temp_path config = temp_in(e->out.text, "config.json"), saved = temp_in(dir.text, "named_saved");
    json_t *root = json_load_file(config.text, 0, NULL);
    json_object_del(root, "mtp_num_hidden_layers"); /* as public files of qwen3_next */
    assert_int_equal(json_dump_file(root, config.text, 0), 0);
    json_decref(root);
    const temp_path out = edit_end(e, NULL);
    wb_device *device;
    wb_comm *comm;
    wb_model *m = open_one(out.text, WB_F32, &device, &comm);
    assert_null(wb_model_note(m));
    assert_int_equal(m->config.n_mtp_layers, 1);
    for (int32_t i = 0; i < wb_model_n_tensors(m); i++)
        assert_null(strstr(wb_model_tensor(m, i).name, "mtp."));
    assert_int_equal(wb_model_save(m, saved.text), WB_OK);
    wb_safetensors *before = NULL, *after = NULL;
    assert_int_equal(wb_safetensors_open(out.text, NULL, &before), WB_OK);
    assert_int_equal(wb_safetensors_open(saved.text, NULL, &after), WB_OK);
    assert_int_equal(wb_safetensors_count(before), wb_safetensors_count(after));
    for (size_t i = 0; i < wb_safetensors_count(before); i++) {
        wb_tensor_view a, b;
        assert_int_equal(wb_safetensors_get(before, i, &a), WB_OK);
        assert_int_equal(wb_safetensors_find(after, a.name, &b), WB_OK);
        if (!same_tensor(&a, &b)) fail_msg("%s is another one", a.name);
    }
    wb_safetensors_close(before);
    wb_safetensors_close(after);
    close_one(m, device, comm);
    e = edit_begin_from(oracle_of("qwen3_next_mtp").text, "no_fc");
    edit_remove(e, "mtp.fc.weight");
    expect_open_fails(edit_end(e, NULL).text, WB_NOT_FOUND, "missing tensor mtp.fc.weight [16, 32]");
    e = edit_begin_from(oracle_of("qwen3_next_mtp").text, "no_named");
    for (size_t i = 0; i < e->n;)
        if (strstr(e->views[i].name, "mtp."))
            e->views[i] = e->views[--e->n];
        else
            i++;
    m = open_one(edit_end(e, NULL).text, WB_F32, &device, &comm);
    assert_null(wb_model_mtp(m));
    assert_non_null(strstr(wb_model_note(m), "the files have no MTP layers"));
    close_one(m, device, comm);
}

static void remove_layers(edit *e) {
    for (size_t i = 0; i < e->n;)
        if (strstr(e->views[i].name, "model.layers.3.") || strstr(e->views[i].name, "model.layers.4."))
            e->views[i] = e->views[--e->n];
        else
            i++;
}

/* How many there are by config.json, which takes `value`; NULL: it does not say. */
static void say_layers(const edit *e, json_t *value) {
    const temp_path config = temp_in(e->out.text, "config.json");
    json_t *root = json_load_file(config.text, 0, NULL);
    if (value)
        json_object_set_new(root, "num_nextn_predict_layers", value);
    else
        json_object_del(root, "num_nextn_predict_layers");
    assert_int_equal(json_dump_file(root, config.text, 0), 0);
    json_decref(root);
}

/* Who saves the decoder alone leaves the key in config.json. */
static void test_files_without_them(void **state) {
    (void)state;
    edit *e = edit_begin_from(oracle().text, "no_mtp");
    remove_layers(e);
    const temp_path out = edit_end(e, NULL);
    wb_device *device;
    wb_comm *comm;
    wb_model *m = open_one(out.text, WB_F32, &device, &comm);
    assert_null(wb_model_mtp(m));
    assert_non_null(strstr(wb_model_note(m), "the files have no MTP layers"));
    close_one(m, device, comm);
}

/* Embedding and head are the decoder's. */
static void test_a_copy_that_is_none_is_told(void **state) {
    (void)state;
    static float other[4096];
    edit *e = edit_begin_from(oracle().text, "other_head");
    wb_tensor_view *view = edit_find(e, "model.layers.4.shared_head.head.weight");
    assert_true(view->bytes <= sizeof other);
    view->data = other;
    edit_remove(e, "model.layers.3.embed_tokens.weight"); /* need not be there */
    const temp_path out = edit_end(e, NULL);
    wb_device *device;
    wb_comm *comm;
    wb_model *m = open_one(out.text, WB_F32, &device, &comm);
    assert_non_null(
        strstr(wb_model_note(m), "layers.4.shared_head.head.weight is no copy of lm_head.weight"));
    close_one(m, device, comm);
}

static void test_a_layer_that_lacks_a_tensor(void **state) {
    (void)state;
    edit *e = edit_begin_from(oracle().text, "no_hnorm");
    edit_remove(e, "model.layers.4.hnorm.weight");
    const temp_path out = edit_end(e, NULL);
    expect_open_fails(out.text, WB_NOT_FOUND, "missing tensor model.layers.4.hnorm.weight [16]");
}

/* A tensor that a decoder layer has too is not taken from there. */
static void test_a_layer_that_lacks_what_the_decoder_has(void **state) {
    (void)state;
    static const char *const names[] = {"model.layers.3.self_attn.o_proj.weight",
                                        "model.layers.4.mlp.gate.weight",
                                        "model.layers.4.mlp.experts.1.up_proj.weight"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char folder[32], part[128];
        snprintf(folder, sizeof folder, "lacks_%zu", i);
        snprintf(part, sizeof part, "missing tensor %s", names[i]);
        edit *e = edit_begin_from(oracle().text, folder);
        edit_remove(e, names[i]);
        const temp_path out = edit_end(e, NULL);
        expect_open_fails(out.text, WB_NOT_FOUND, part);
    }
}

/* Layers that are there in part are not passed over, and those that the configuration does not have are named
 * for what they are. */
static void test_layers_that_do_not_fit_the_configuration(void **state) {
    (void)state;
    edit *e = edit_begin_from(oracle().text, "no_eh_proj");
    edit_remove(e, "model.layers.3.eh_proj.weight");
    expect_open_fails(edit_end(e, NULL).text, WB_NOT_FOUND, "missing tensor model.layers.3.eh_proj.weight");
    for (int absent = 0; absent < 2; absent++) {
        e = edit_begin_from(oracle().text, absent ? "nothing_said" : "none_said");
        say_layers(e, absent ? NULL : json_integer(0));
        expect_open_fails(edit_end(e, NULL).text, WB_MISMATCH,
                          "layers from 3 on are for multi-token prediction (MTP), of which there are 0 by "
                          "num_nextn_predict_layers");
    }
}

/* What is saved without them and without the key, as transformers 4 does, has none: the class's default of
 * one layer in transformers 5 says nothing of the files. */
static void test_without_the_key_there_are_none(void **state) {
    (void)state;
    edit *e = edit_begin_from(oracle().text, "no_key");
    remove_layers(e);
    say_layers(e, NULL);
    const temp_path out = edit_end(e, NULL);
    wb_device *device;
    wb_comm *comm;
    wb_model *m = open_one(out.text, WB_F32, &device, &comm);
    assert_null(wb_model_mtp(m));
    assert_true(!wb_model_note(m) || !strstr(wb_model_note(m), "MTP"));
    close_one(m, device, comm);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits_are_those_of_transformers),
        cmocka_unit_test(test_they_are_saved_as_they_were),
        cmocka_unit_test(test_layers_with_names_of_their_own),
        cmocka_unit_test(test_files_without_them),
        cmocka_unit_test(test_a_copy_that_is_none_is_told),
        cmocka_unit_test(test_a_layer_that_lacks_a_tensor),
        cmocka_unit_test(test_a_layer_that_lacks_what_the_decoder_has),
        cmocka_unit_test(test_layers_that_do_not_fit_the_configuration),
        cmocka_unit_test(test_without_the_key_there_are_none),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
