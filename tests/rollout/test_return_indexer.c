/* test_return_indexer.c - what indexers chose, from the engine's records into a trainer that looks where
 * they looked: with the bits of the rollout, in f32 and bf16, on the CPU and, where there is one, on a
 * GPU. What is planted in a record is seen, followed, and gone with the rollout's own.
 * usage: test_return_indexer [SEED] */
#include "indexer_world.h"
#include "wb_replay.h"

#include <math.h>

/* ---- a trainer ------------------------------------------------------------------------------------ */

typedef struct passed {
    float logprobs[128];
    int32_t *used, *native; /* [S][T][k] */
    double differ, tokens;  /* of all indexers */
    double fallback;
} passed;

static void passed_free(passed *p) {
    free(p->used);
    free(p->native);
}

/* A forward of one record's tokens as a replay of it says. */
static wb_status train_on(world *w, const wb_record *record, wb_replay_mode mode, wb_missing_policy missing,
                          passed *p) {
    const wb_route_model *routes = wb_model_routes(w->r.model);
    const uint32_t T = record->n_tokens - 1, S = wb_indexer_columns(routes), k = routes->indexer_k;
    const size_t row = wb_route_row_bytes(routes), n = (size_t)S * T, bytes = n * k * sizeof(int32_t);
    wb_device *dev = w->r.device;
    wb_replay_options options = wb_replay_options_default();
    wb_replay *replay = NULL;
    int32_t tokens[128], targets[128], start[2] = {0, (int32_t)T};
    void *ids, *ids_direction, *listed, *native, *direction;
    uint8_t *host_direction = take(n, 1), *host_ids = take(T, row);
    bool any_forced = false;
    options.indexer = true;
    options.missing = missing;
    options.hash = wb_model_hash_routes(w->r.model);
    p->used = take(n * k, sizeof(int32_t));
    p->native = take(n * k, sizeof(int32_t));
    assert_ok(wb_replay_open(routes, &options, &replay));
    assert_ok(wb_replay_add(replay, routes, record));
    assert_ok(wb_replay_begin(replay, mode, 1));
    const wb_segment segment = wb_replay_segment(replay, record->rid, 0, T, record->tokens);
    wb_status status = wb_replay_plan(replay, 0, 1, &segment);
    if (status != WB_OK) {
        wb_replay_close(replay);
        free(host_direction);
        free(host_ids);
        return status;
    }
    assert_ok(wb_device_alloc(dev, T * row, &ids));
    assert_ok(wb_device_alloc(dev, T, &ids_direction));
    assert_ok(wb_device_alloc(dev, bytes, &listed));
    assert_ok(wb_device_alloc(dev, bytes, &native));
    assert_ok(wb_device_alloc(dev, n, &direction));
    wb_replay_slice rows;
    assert_ok(wb_replay_rows(replay, 0, WB_ALL_LAYERS, 0, T, &rows));
    assert_ok(wb_device_upload(dev, ids, rows.ids, T * row));
    assert_ok(wb_device_upload(dev, ids_direction, rows.direction, T));
    for (uint32_t i = 0; i < routes->n_indexer_layers; i++) {
        wb_replay_indexer_slice slice;
        assert_int_equal(i, wb_indexer_column(routes, i));
        assert_ok(wb_replay_indexer_rows(replay, 0, i, 0, T, p->used + (size_t)i * T * k,
                                         host_direction + (size_t)i * T, &slice));
        any_forced |= slice.any_forced;
    }
    assert_ok(wb_device_upload(dev, listed, p->used, bytes));
    assert_ok(wb_device_upload(dev, direction, host_direction, n));
    for (uint32_t t = 0; t < T; t++) {
        tokens[t] = (int32_t)record->tokens[t];
        targets[t] = (int32_t)record->tokens[t + 1];
    }
    const wb_train_batch batch = {
        .T = T, .tokens = tokens, .targets = targets, .n_seqs = 1, .seq_start = start};
    const wb_routing routing = {.ids = ids,
                                .direction = rows.any_forced ? ids_direction : NULL,
                                .listed = listed,
                                .listed_direction = any_forced ? direction : NULL,
                                .listed_native = native};
    assert_ok(wb_train_forward(w->train, &batch, &routing, NULL, p->logprobs));
    assert_ok(wb_train_backward(w->train, p->logprobs));
    assert_ok(wb_device_download(dev, p->used, listed, bytes));
    assert_ok(wb_device_download(dev, p->native, native, bytes));
    assert_ok(wb_device_download(dev, host_ids, ids, T * row));
    for (uint32_t i = 0; i < routes->n_indexer_layers; i++)
        assert_ok(wb_replay_indexer_store(replay, 0, i, 0, T, p->used + (size_t)i * T * k,
                                          p->native + (size_t)i * T * k));
    assert_ok(wb_replay_store(replay, 0, WB_ALL_LAYERS, 0, T, host_ids, rows.stride, NULL, 0));
    assert_ok(wb_replay_end(replay));
    wb_replay_indexer_metrics metrics[LAYERS];
    wb_replay_get_indexer_metrics(replay, &p->fallback, metrics);
    p->differ = p->tokens = 0;
    for (uint32_t i = 0; i < routes->n_indexer_layers; i++) {
        p->tokens += metrics[i].tokens;
        p->differ += metrics[i].tokens * metrics[i].differ;
    }
    wb_replay_close(replay);
    void *const device[] = {ids, ids_direction, listed, native, direction};
    for (size_t i = 0; i < sizeof device / sizeof device[0]; i++) wb_device_free(dev, device[i]);
    free(host_direction);
    free(host_ids);
    return WB_OK;
}

/* Lists that are not those of the record. */
static int64_t lists_off(const world *w, const wb_record *record, const int32_t *lists) {
    const wb_route_model *routes = wb_model_routes(w->r.model);
    const uint32_t T = record->n_tokens - 1, k = routes->indexer_k;
    int64_t n = 0;
    for (uint32_t c = 0; c < wb_indexer_columns(routes); c++)
        for (uint32_t t = 0; t < T; t++) {
            const int32_t *list = lists + ((size_t)c * T + t) * k;
            wb_indexer_choice choice;
            n += !wb_indexer_at(routes, record->indexer, t, c, &choice) ||
                 !wb_indexer_same(choice, wb_indexer_of_list(list, k));
        }
    return n;
}

static bool same_logprobs(const wb_record *record, const passed *p) {
    const uint32_t n = record->n_tokens - record->prompt_len;
    for (uint32_t i = 0; i < n; i++)
        if (!isfinite(record->logprobs[i])) return false;
    return memcmp(p->logprobs + record->prompt_len - 1, record->logprobs, n * sizeof(float)) == 0;
}

static void check_bits(bool cuda, wb_dtype dtype) {
    world w = open_world(cuda, dtype);
    for (int i = 0; i < REQUESTS; i++) {
        const wb_record *record = &w.done[i]->record;
        passed p = {0};
        assert_ok(wb_record_check(wb_model_routes(w.r.model), record, true));
        if (!w.asks[i].request.return_indexer) {
            assert_null(record->indexer);
            assert_int_equal(WB_MISSING_ROUTES,
                             train_on(&w, record, WB_REPLAY_ROLLOUT, WB_MISSING_STRICT, &p));
            assert_message("does not say what indexers chose at position 0, model layer 0");
            passed_free(&p);
            assert_ok(train_on(&w, record, WB_REPLAY_ROLLOUT, WB_MISSING_NATIVE, &p));
            assert_true(p.fallback == record->n_tokens - 1 && p.tokens == 0);
            assert_true(same_logprobs(record, &p)); /* the weights are the rollout's */
            passed_free(&p);
            continue;
        }
        assert_non_null(record->indexer);
        assert_int_equal(record->n_tokens - 1, record->indexer->rows);
        assert_ok(train_on(&w, record, WB_REPLAY_ROLLOUT, WB_MISSING_STRICT, &p));
        assert_true(same_logprobs(record, &p));
        assert_int_equal(0, lists_off(&w, record, p.used));
        assert_int_equal(0, lists_off(&w, record, p.native));
        assert_true(p.differ == 0 && p.fallback == 0);
        assert_true(p.tokens == 2.0 * (record->n_tokens - 1));
        passed_free(&p);
    }
    close_world(&w);
}

static void test_training_has_the_bits_of_the_rollout(void **state) {
    (void)state;
    check_bits(false, WB_F32);
    check_bits(false, WB_BF16);
    if (wb_device_count_cuda() == 0) {
        print_message("no GPU: on the CPU alone\n");
        return;
    }
    check_bits(true, WB_F32);
    check_bits(true, WB_BF16);
}

/* ---- what is planted ------------------------------------------------------------------------------- */

/* A copy of what the record has, in which the last token that chooses some of its entries looks at the first
 * ones that there are in column 1. Returns the cell's token. */
static uint32_t plant(const world *w, const wb_record *record, wb_indexer_rows *rows) {
    const wb_route_model *routes = wb_model_routes(w->r.model);
    const size_t S = wb_indexer_columns(routes), n = record->indexer->rows * S;
    uint32_t *positions = take(record->indexer->ends[n - 1], sizeof *positions), token = 0;
    memcpy(positions, record->indexer->positions, record->indexer->ends[n - 1] * sizeof *positions);
    *rows = *record->indexer;
    rows->positions = positions;
    for (uint32_t t = 0; t < rows->rows; t++)
        if (rows->ends[t * S + 1] > rows->ends[t * S] && rows->positions[rows->ends[t * S]] != 0) token = t;
    assert_true(token > 0);
    for (uint32_t j = 0; j < routes->indexer_k; j++) positions[rows->ends[token * S] + j] = j;
    return token;
}

static void check_planted(bool cuda, wb_dtype dtype) {
    world w = open_world(cuda, dtype);
    for (int i = 0; i < REQUESTS; i++) {
        wb_record planted = w.done[i]->record;
        wb_indexer_rows rows;
        passed p = {0}, own = {0};
        if (!w.asks[i].request.return_indexer) continue;
        const uint32_t token = plant(&w, &planted, &rows);
        planted.indexer = &rows;
        assert_ok(wb_record_check(wb_model_routes(w.r.model), &planted, true));
        assert_ok(train_on(&w, &planted, WB_REPLAY_ROLLOUT, WB_MISSING_STRICT, &p));
        assert_int_equal(0, lists_off(&w, &planted, p.used)); /* it is followed */
        assert_int_equal(1, lists_off(&w, &w.done[i]->record, p.used));
        assert_true(p.differ >= 1); /* and seen: its own layer, and what comes of it */
        /* Before it nothing is other than in the rollout, at it something is. */
        assert_ok(train_on(&w, &w.done[i]->record, WB_REPLAY_ROLLOUT, WB_MISSING_STRICT, &own));
        assert_memory_equal(own.logprobs, p.logprobs, token * sizeof(float));
        assert_true(isfinite(p.logprobs[token]) && p.logprobs[token] != own.logprobs[token]);
        assert_true(same_logprobs(&w.done[i]->record, &own) && own.differ == 0); /* gone */
        passed_free(&p);
        passed_free(&own);
        /* Free routing does not follow it, and says so. */
        assert_ok(train_on(&w, &planted, WB_REPLAY_OFF, WB_MISSING_STRICT, &p));
        assert_int_equal(0, lists_off(&w, &w.done[i]->record, p.used));
        assert_true(same_logprobs(&w.done[i]->record, &p) && p.differ == 1);
        passed_free(&p);
        free((void *)(uintptr_t)rows.positions);
    }
    close_world(&w);
}

static void test_what_is_planted_is_seen_followed_and_gone(void **state) {
    (void)state;
    check_planted(false, WB_F32);
    check_planted(false, WB_BF16);
    if (wb_device_count_cuda() > 0) check_planted(true, WB_BF16);
}

int main(int argc, char **argv) {
    take_seed(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_training_has_the_bits_of_the_rollout),
        cmocka_unit_test(test_what_is_planted_is_seen_followed_and_gone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
