/* replay_expect.h - what the tests of replay plan with and look at: directions and forced ids of a row, by
 * layer and over all layers. */
#ifndef WB_REPLAY_EXPECT_H
#define WB_REPLAY_EXPECT_H

#include "replay_fixture.h"
#include "replay_state.h"

static inline wb_replay *open_replay(const wb_route_model *m, wb_missing_policy missing) {
    wb_replay_options o = wb_replay_options_default();
    o.missing = missing;
    wb_replay *r = NULL;
    OK(wb_replay_open(m, &o, &r));
    return r;
}

/* A step of one micro-batch; an open one is dropped. */
static inline void plan_one(wb_replay *r, int32_t n, const wb_segment *segments) {
    wb_replay_abort(r);
    OK(wb_replay_begin(r, WB_REPLAY_ROLLOUT, 1));
    OK(wb_replay_plan(r, 0, n, segments));
}

/* Row t of layer l is forced to the ids of `f` at `position`. */
static inline void expect_forced(wb_replay *r, int32_t mb, uint32_t t, const fixture_record *f,
                                 uint32_t position) {
    const wb_route_model *m = wb_replay_model(r);
    for (uint32_t l = 0; l < m->n_moe_layers; l++) {
        wb_replay_slice slice;
        OK(wb_replay_rows(r, mb, (int32_t)l, t, 1, &slice));
        assert_int_equal(slice.direction[0], WB_ROW_FORCED);
        for (uint32_t k = 0; k < m->top_k; k++)
            assert_int_equal(wb_route_id(slice.ids, r->dtype, k), fixture_id(m, f->seed, position, l, k));
    }
}

/* What a forward tells that sent rows [row, row + rows) of a layer where the plan says. Rows that choose do
 * so by choice k = expert k. */
static inline wb_status follow(wb_replay *r, int32_t mb, int32_t layer, uint32_t row, uint32_t rows) {
    enum { IDS_MAX = 4096 };
    const uint32_t K = wb_replay_model(r)->top_k;
    uint8_t used[IDS_MAX];
    wb_replay_slice slice;
    wb_status status = wb_replay_rows(r, mb, layer, row, rows, &slice);
    if (status != WB_OK) return status;
    assert_true((size_t)rows * K * 2 <= sizeof used);
    for (size_t i = 0; i < (size_t)rows * K; i++) {
        bool chooses = slice.direction[i / K] == WB_ROW_NATIVE;
        size_t planned = i / K * (size_t)slice.stride + i % K;
        wb_route_id_set(used, r->dtype, i,
                        chooses ? (uint32_t)(i % K) : wb_route_id(slice.ids, r->dtype, planned));
    }
    return wb_replay_store(r, mb, layer, row, rows, used, K, NULL, 0);
}

static inline int layer_direction(wb_replay *r, int32_t mb, int32_t layer, uint32_t t) {
    wb_replay_slice slice;
    OK(wb_replay_rows(r, mb, layer, t, 1, &slice));
    assert_int_equal(slice.any_native, slice.direction[0] == WB_ROW_NATIVE);
    assert_int_equal(slice.any_forced, slice.direction[0] != WB_ROW_NATIVE);
    return slice.direction[0];
}

static inline int row_direction(wb_replay *r, int32_t mb, uint32_t t) {
    return layer_direction(r, mb, WB_ALL_LAYERS, t);
}

#endif
