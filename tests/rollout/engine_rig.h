/* engine_rig.h - one small model for the cmocka tests of the engine, and what they assert of a request. */
#ifndef WB_ENGINE_RIG_H
#define WB_ENGINE_RIG_H

#include "engine_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define assert_ok(call) assert_int_equal(WB_OK, call)
#define assert_message(text) assert_non_null(strstr(wb_error_message(), text))

static inline wb_config config(void) {
    return tiny_config(WB_FAMILY_QWEN3_MOE, 12, 3, 3, 2);
}

static inline rig open_rig(void) {
    const wb_config c = config();
    return rig_open(&c, 5, 1, NULL);
}

/* The first number of the embedding of `token`: where it is NaN, who has the token in its prompt gets NaN
 * logits. */
static inline float *embedding_of(wb_model *model, uint32_t token) {
    for (int32_t i = 0; i < wb_model_n_tensors(model); i++) {
        const wb_tensor tensor = wb_model_tensor(model, i);
        if (strcmp(tensor.name, "model.embed_tokens.weight") == 0)
            return (float *)tensor.data + (int64_t)token * tensor.shape[1];
    }
    abort();
}

static inline bool step(wb_engine *engine) {
    bool busy = false;
    assert_ok(wb_engine_step(engine, &busy));
    return busy;
}

static inline wb_completion *complete(wb_engine *engine, ask *a) {
    assert_ok(wb_engine_submit(engine, ask_request(a)));
    run_dry(engine, 5000);
    wb_completion *c = wb_engine_poll(engine);
    assert_non_null(c);
    assert_string_equal(a->rid, c->record.rid);
    return c;
}

static inline void assert_same(wb_model *model, const wb_completion *expected, const wb_completion *found) {
    const char *what = difference(wb_model_routes(model), expected, found);
    if (what) fail_msg("request %s: %s differ", expected->record.rid, what);
}

static inline void assert_record_good(wb_model *model, const wb_completion *c) {
    assert_ok(wb_record_check(wb_model_routes(model), &c->record, true));
}

#endif
