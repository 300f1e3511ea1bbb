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

static inline void plan_one(wb_replay *r, int32_t n, const wb_segment *segments) {
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
