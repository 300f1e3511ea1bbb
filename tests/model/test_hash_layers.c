/* test_hash_layers.c - layers that are routed by a table of token ids, and the names and tensors of
 * checkpoints that have such layers: routes, load and placement as of any other layer, and what is
 * refused. */
#include "checkpoint_fixture.h"
#include "wb_random.h"
#include "wb_solve.h"

enum { T = 96, V = 32, E = 8, K = 2, L = 3 };

static temp_path oracle(void) {
    return temp_in(temp_in(WB_TEST_DATA, "oracles").text, "deepseek_v4_kinds");
}

/* ---- choices ------------------------------------------------------------------------------------- */

typedef struct pass {
    int32_t tokens[T], targets[T];
    uint32_t text[T + 1];
    uint8_t ids[T][L][K], native[T][L][K];
} pass;

/* All tokens, some of them often: what a table makes of it is far from even. */
static void make_tokens(pass *p, uint64_t seed) {
    uint64_t state = seed;
    for (int t = 0; t < T; t++) {
        p->tokens[t] = t < V ? t : (int32_t)wb_random_below(&state, 3);
        p->targets[t] = -1;
        p->text[t] = (uint32_t)p->tokens[t];
    }
    p->targets[T - 1] = 1;
}

static void forward(wb_model *model, pass *p, const uint8_t *direction) {
    const int32_t start[] = {0, T};
    float logprobs[T];
    wb_train *train = NULL;
    const wb_train_options options = {.size = sizeof options, .forward_only = true, .max_tokens = T};
    const wb_train_batch batch = {
        .T = T, .tokens = p->tokens, .targets = p->targets, .n_seqs = 1, .seq_start = start};
    const wb_routing routing = {.ids = p->ids, .direction = direction, .native = p->native};
    assert_int_equal(wb_train_open(model, &options, &train), WB_OK);
    if (wb_train_forward(train, &batch, &routing, NULL, logprobs) != WB_OK)
        fail_msg("%s", wb_error_message());
    wb_train_close(train);
}

static const int32_t *by_table(const wb_hash_routes *hash, int32_t token) {
    return hash->ids + (size_t)token * K;
}

/* The pass as a record, its routes those that were chosen. */
static wb_record record_of(const pass *p, wb_route_rows *rows) {
    *rows = (wb_route_rows){.rows = T, .ids = p->ids};
    return (wb_record){
        .rid = "r", .n_tokens = T + 1, .prompt_len = 1, .tokens = p->text, .n_routes = 1, .routes = rows};
}

static void test_rule_9_choices_are_the_tables(void **state) {
    (void)state;
    static pass p;
    wb_device *device;
    wb_comm *comm;
    wb_route_rows rows;
    wb_model *model = open_one(oracle().text, WB_F32, &device, &comm);
    const wb_hash_routes *hash = wb_model_hash_routes(model);
    assert_true(hash && hash->n_hash_layers == 1 && hash->hash_layers[0] == 0 && hash->vocab_size == V);
    make_tokens(&p, 1);
    forward(model, &p, NULL);
    int differing = 0;
    for (int t = 0; t < T; t++)
        for (int k = 0; k < K; k++) {
            assert_int_equal(p.ids[t][0][k], by_table(hash, p.tokens[t])[k]);
            differing += p.ids[t][1][k] != by_table(hash, p.tokens[t])[k];
        }
    assert_true(differing > 0);
    wb_record record = record_of(&p, &rows);
    assert_int_equal(wb_record_check(wb_model_routes(model), &record, true), WB_OK);
    assert_int_equal(wb_record_check_hash(wb_model_routes(model), hash, &record), WB_OK);

    /* Forced rows go where they are told, a table or not; what they would have chosen is the table's. */
    uint8_t direction[T];
    memset(direction, WB_ROW_FORCED, sizeof direction);
    for (int k = 0; k < K; k++) p.ids[7][0][k] = (uint8_t)((p.ids[7][0][k] + 3) % E);
    const pass forced = p;
    forward(model, &p, direction);
    assert_memory_equal(p.ids, forced.ids, sizeof p.ids);
    for (int k = 0; k < K; k++) assert_int_equal(p.native[7][0][k], by_table(hash, p.tokens[7])[k]);
    record = record_of(&p, &rows);
    assert_int_equal(wb_record_check_hash(wb_model_routes(model), hash, &record), WB_MISMATCH);
    if (!strstr(wb_error_message(), "position 7, MoE layer 0")) fail_msg("%s", wb_error_message());
    close_one(model, device, comm);
}

/* Counts of all layers, each by its own number, and a placement that is better for the hash-routed one
 * too. */
static void test_hash_layers_are_counted_and_balanced(void **state) {
    (void)state;
    static pass p;
    wb_device *device;
    wb_comm *comm;
    wb_route_rows rows;
    wb_model *model = open_one(oracle().text, WB_F32, &device, &comm);
    make_tokens(&p, 2);
    forward(model, &p, NULL);
    const wb_record record = record_of(&p, &rows);
    uint64_t counts[L][E] = {{0}};
    double loads[L][E], of_rank[4];
    wb_record_count(wb_model_routes(model), &record, 0, UINT32_MAX, &counts[0][0]);
    for (int l = 0; l < L; l++) {
        uint64_t sum = 0;
        for (int e = 0; e < E; e++) sum += counts[l][e], loads[l][e] = (double)counts[l][e];
        assert_int_equal(sum, T * K);
    }
    const wb_topology topology = {.n_ranks = 4, .n_nodes = 1, .n_slots = 12},
                      plain = {.n_ranks = 4, .n_nodes = 1, .n_slots = E};
    wb_placement *before = NULL, *after = NULL;
    assert_int_equal(wb_placement_open(&plain, L, E, &before), WB_OK);
    assert_int_equal(wb_eplb_solve(&topology, L, E, 1, &loads[0][0], NULL, &after), WB_OK);
    wb_placement_rank_loads(before, 0, loads[0], of_rank);
    const double was = wb_placement_balancedness(before, of_rank);
    wb_placement_rank_loads(after, 0, loads[0], of_rank);
    const double is = wb_placement_balancedness(after, of_rank);
    if (!(is > was && is > 0.9)) fail_msg("balancedness of the hash-routed layer: %g, before %g", is, was);
    wb_placement_close(before);
    wb_placement_close(after);
    close_one(model, device, comm);
}

/* A dump says which layers they are, and another list is another model. */
static void test_a_dump_names_them(void **state) {
    (void)state;
    static pass p;
    wb_device *device;
    wb_comm *comm;
    wb_route_rows rows;
    wb_dump_writer *writer = NULL;
    wb_dump *dump = NULL;
    wb_model *model = open_one(oracle().text, WB_F32, &device, &comm);
    const wb_route_model *routes = wb_model_routes(model);
    const temp_path path = temp_in(dir.text, "dump.wbr");
    make_tokens(&p, 3);
    forward(model, &p, NULL);
    const wb_record record = record_of(&p, &rows);
    assert_true(routes->n_hash_layers == 1 && routes->hash_layers[0] == 0);
    assert_int_equal(wb_dump_create(path.text, routes, NULL, &writer), WB_OK);
    assert_int_equal(wb_dump_append(writer, &record), WB_OK);
    assert_int_equal(wb_dump_finish(writer), WB_OK);
    assert_int_equal(wb_dump_open(path.text, &dump), WB_OK);
    assert_int_equal(wb_route_model_match(routes, wb_dump_model(dump)), WB_OK);
    assert_int_equal(wb_dump_model(dump)->hash_layers[0], 0);
    wb_dump_close(dump);

    static const uint32_t second[] = {1}, twice[] = {1, 1}, beyond[] = {L};
    wb_route_model other = *routes;
    other.hash_layers = second;
    assert_int_equal(wb_route_model_match(routes, &other), WB_MISMATCH);
    other.n_hash_layers = 2;
    other.hash_layers = twice;
    assert_int_equal(wb_route_model_check(&other), WB_INVALID_ARGUMENT);
    other.n_hash_layers = 1;
    other.hash_layers = beyond;
    assert_int_equal(wb_route_model_check(&other), WB_INVALID_ARGUMENT);
    close_one(model, device, comm);
}

/* ---- checkpoints --------------------------------------------------------------------------------- */

static const char table_name[] = "model.layers.0.ffn.gate.tid2eid";

/* Names as releases have them, and a tensor of a layer for multi-token prediction. */
static temp_path as_released(char names[500][96]) {
    static const char *const others[][2] = {{"model.embed_tokens.weight", "embed.weight"},
                                            {"model.hc_head.hc_fn", "hc_head_fn"},
                                            {"model.hc_head.hc_base", "hc_head_base"},
                                            {"model.hc_head.hc_scale", "hc_head_scale"}};
    edit *e = edit_begin_from(oracle().text, "released");
    for (size_t i = 0; i < e->n; i++) {
        const char *own = e->views[i].name, *norm = strstr(own, ".attn.norm.weight");
        snprintf(names[i], 96, "%s", strncmp(own, "model.", 6) == 0 ? own + 6 : own);
        for (size_t k = 0; k < 4; k++)
            if (strcmp(own, others[k][0]) == 0) snprintf(names[i], 96, "%s", others[k][1]);
        if (norm) snprintf(names[i], 96, "%.*s.attn.kv_norm.weight", (int)(norm - own) - 6, own + 6);
        e->views[i].name = names[i];
    }
    e->views[e->n] = *edit_find(e, "norm.weight");
    e->views[e->n++].name = "mtp.0.norm.weight";
    return edit_end(e, NULL);
}

static void test_released_names(void **state) {
    (void)state;
    static char names[500][96];
    const temp_path released = as_released(names), saved = temp_in(dir.text, "saved_released");
    wb_device *device;
    wb_comm *comm;
    wb_model *model = open_one(released.text, WB_F32, &device, &comm);
    const char *note = wb_model_note(model);
    assert_true(note && strstr(note, "tensors mtp.* were passed over"));
    close_one(model, device, comm);
    open_expect_save(released.text, WB_F32, 3, NULL, saved.text);
    job j = open_job(saved.text, WB_F32);
    j.expect = oracle().text;
    run_job(&j, 2);
    expect_all_ok(&j, 2);

    wb_safetensors *a, *b;
    wb_tensor_view x, y;
    assert_int_equal(wb_safetensors_open(oracle().text, NULL, &a), WB_OK);
    assert_int_equal(wb_safetensors_open(saved.text, NULL, &b), WB_OK);
    assert_int_equal(wb_safetensors_count(a), wb_safetensors_count(b));
    assert_int_equal(wb_safetensors_find(a, table_name, &x), WB_OK);
    assert_int_equal(wb_safetensors_find(b, table_name, &y), WB_OK);
    assert_true(y.dtype == WB_I64 && x.bytes == y.bytes && memcmp(x.data, y.data, x.bytes) == 0);
    wb_safetensors_close(a);
    wb_safetensors_close(b);
}

/* The table with one id of token 5 changed, or in another shape. */
static temp_path with_table(const char *name, int64_t id, int64_t *table) {
    edit *e = edit_begin_from(oracle().text, name);
    wb_tensor_view *view = edit_find(e, table_name);
    memcpy(table, view->data, V * K * sizeof *table);
    table[5 * K + 1] = id < 0 ? table[5 * K] : id;
    view->data = table;
    return edit_end(e, NULL);
}

static void test_bad_tables(void **state) {
    (void)state;
    int64_t table[V * K];
    expect_open_fails(with_table("beyond", E, table).text, WB_CORRUPT,
                      "tid2eid: token 5: expected 2 distinct experts below 8, found 8");
    expect_open_fails(with_table("twice", -1, table).text, WB_CORRUPT,
                      "token 5: expected 2 distinct experts");

    edit *e = edit_begin_from(oracle().text, "short_table");
    wb_tensor_view *view = edit_find(e, table_name);
    view->shape[0]--;
    view->bytes -= K * sizeof(int64_t);
    expect_open_fails(edit_end(e, NULL).text, WB_MISMATCH, "tid2eid: expected shape [32, 2], found [31, 2]");

    e = edit_begin_from(oracle().text, "float_table");
    view = edit_find(e, table_name);
    view->dtype = WB_F32;
    view->bytes /= 2;
    expect_open_fails(edit_end(e, NULL).text, WB_UNSUPPORTED,
                      "tid2eid: expected dtype i64 or i32, found f32");

    e = edit_begin_from(oracle().text, "no_table");
    edit_remove(e, table_name);
    expect_open_fails(edit_end(e, NULL).text, WB_NOT_FOUND, "missing tensor model.layers.0.ffn.gate.tid2eid");
}

/* Headers are alike, and all weights. */
static void test_ranks_with_different_tables(void **state) {
    (void)state;
    int64_t table[V * K];
    wb_safetensors *st;
    wb_tensor_view view;
    assert_int_equal(wb_safetensors_open(oracle().text, NULL, &st), WB_OK);
    assert_int_equal(wb_safetensors_find(st, table_name, &view), WB_OK);
    memcpy(table, view.data, sizeof table);
    wb_safetensors_close(st);
    int64_t other = 0;
    while (other == table[5 * K] || other == table[5 * K + 1]) other++;
    const temp_path changed = with_table("other_table", other, table), same = temp_in(dir.text, "same_table");
    edit *e = edit_begin_from(oracle().text, "same_table");
    edit_end(e, NULL);
    job j = open_job(same.text, WB_F32);
    j.open[1] = changed.text;
    run_job(&j, 2);
    assert_int_equal(j.status[0], WB_PEER);
    if (!strstr(j.message[0], "tables of hash-routed layers")) fail_msg("%s", j.message[0]);
}

static void test_tables_without_the_model(void **state) {
    (void)state;
    wb_device *device;
    wb_comm *comm;
    wb_hash_file *file = NULL;
    wb_model *model = open_one(oracle().text, WB_F32, &device, &comm);
    assert_int_equal(wb_hash_file_open(oracle().text, &file), WB_OK);
    const wb_hash_routes *a = wb_model_hash_routes(model), *b = wb_hash_file_routes(file);
    assert_true(b && a->n_hash_layers == b->n_hash_layers && a->vocab_size == b->vocab_size &&
                a->hash_layers[0] == b->hash_layers[0]);
    assert_memory_equal(a->ids, b->ids, V * K * sizeof *a->ids);
    wb_hash_file_close(file);
    close_one(model, device, comm);
    assert_int_equal(wb_hash_file_open(golden("qwen3_moe").text, &file), WB_OK);
    assert_null(wb_hash_file_routes(file));
    wb_hash_file_close(file);
    assert_int_equal(wb_hash_file_open(dir.text, &file), WB_NOT_FOUND);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_9_choices_are_the_tables),
        cmocka_unit_test(test_hash_layers_are_counted_and_balanced),
        cmocka_unit_test(test_a_dump_names_them),
        cmocka_unit_test(test_released_names),
        cmocka_unit_test(test_bad_tables),
        cmocka_unit_test(test_ranks_with_different_tables),
        cmocka_unit_test(test_tables_without_the_model),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
