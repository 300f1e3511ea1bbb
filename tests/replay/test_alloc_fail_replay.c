/* test_alloc_fail_replay.c - every allocation of a replayed step fails once: the call says OUT_OF_MEMORY,
 * what was there stays usable, and nothing leaks. */
#include "replay_fixture.h"

#include "support/alloc_fail.h"
#include "wb_device.h"
#include "wb_train_hooks.h"

enum {
    E = 16,
    K = 2,
    L = 2,
    TOKENS = 6,
    PADDING = 2,
    T = TOKENS + PADDING,
    RECORDS = 70,
    PATIENCE = 10000,
    MANY = 100
};

static wb_route_model model;
static fixture_record records[RECORDS]; /* more than the tables hold at first */
static float logits[T * E];
static wb_placement *placement;
static wb_comm *comm;

/* All rows of a layer go where the plan says; those that choose, to experts 1 and 2. */
static wb_status follow_all(wb_replay *r, int32_t mb, int32_t l, uint32_t rows) {
    uint8_t used[T + TOKENS][K];
    wb_replay_slice slice;
    wb_status status = wb_replay_rows(r, mb, l, 0, rows, &slice);
    for (uint32_t t = 0; t < rows && status == WB_OK; t++) {
        const uint8_t *planned = (const uint8_t *)slice.ids + t * (size_t)slice.stride;
        memcpy(used[t], slice.direction[t] == WB_ROW_NATIVE ? (const uint8_t[K]){1, 2} : planned, K);
    }
    return status == WB_OK ? wb_replay_store(r, mb, l, 0, rows, used, K, NULL, 0) : status;
}

/* open .. begin .. plan .. store; close in any case. */
static wb_status replay_step(void) {
    wb_replay_options options = wb_replay_options_default();
    options.placement = placement;
    wb_replay *r = NULL;
    int64_t planned;
    wb_status status = wb_replay_open(&model, &options, &r);
    for (int i = 0; i < RECORDS && status == WB_OK; i++)
        status = wb_replay_add(r, &model, &records[i].record);
    for (int32_t step = 1; step < 4 && status == WB_OK; step++) {
        status = wb_replay_begin(r, WB_REPLAY_ROLLOUT, step);
        for (int32_t mb = 0; mb < step && status == WB_OK; mb++) {
            wb_segment s[3] = {fixture_segment(&records[mb], 0, TOKENS),
                               {WB_SEGMENT_PADDING, NULL, 0, PADDING, NULL}};
            s[2] = s[0];
            status = wb_replay_plan(r, mb, step == 3 ? 3 : 2, s);
        }
        if (status == WB_OK) status = wb_replay_plan_dispatch(r, comm, &planned);
        for (int32_t i = 0; i < step * L && status == WB_OK; i++)
            status = follow_all(r, i / L, i % L, step == 3 ? T + TOKENS : T);
        if (status == WB_OK) status = wb_replay_end(r);
    }
    wb_replay_close(r);
    return status;
}

static wb_status hooked_step(wb_device *dev, wb_replay *r) {
    wb_hooks *h = NULL;
    wb_hooks_options options = wb_hooks_options_default();
    options.device = dev;
    options.replay = r;
    options.router = (wb_router){WB_ROUTER_SOFTMAX_NORM, E, K, 1, 1, true, 1};
    uint16_t ids[T * K];
    float weights[T * K], dlogits[T * E];
    wb_segment s[2] = {fixture_segment(&records[0], 0, TOKENS), {WB_SEGMENT_PADDING, NULL, 0, PADDING, NULL}};
    wb_status status = wb_hooks_open(&options, &h);
    if (status == WB_OK) status = wb_hooks_step_begin(h, WB_REPLAY_ROLLOUT, 1);
    if (status == WB_OK) status = wb_replay_plan(r, 0, 2, s);
    for (int32_t l = 0; l < L && status == WB_OK; l++) {
        status = wb_hooks_gate_forward(h, 0, l, 0, T, logits, (wb_ids){ids, WB_U16, K}, weights);
        if (status == WB_OK) status = wb_hooks_dispatched(h, 0, l, 0, T, (wb_ids){ids, WB_U16, K});
        if (status == WB_OK) status = wb_hooks_gate_backward(h, 0, l, 0, T, logits, weights, dlogits);
    }
    if (status == WB_OK) status = wb_hooks_step_end(h, NULL);
    wb_hooks_close(h);
    return status;
}

/* The device's ops are paused over: OpenMP's runtime ends the process when it gets no memory. */
static wb_device *device;
static struct wb_device real;

static wb_status paused_topk(wb_device *dev, const wb_topk *args) {
    bool armed = alloc_fail.armed;
    alloc_fail.armed = false;
    wb_status status = real.topk(dev, args);
    alloc_fail.armed = armed;
    return status;
}

static wb_status paused_gate_forward(wb_device *dev, const wb_router *router, int64_t n, const float *z,
                                     const uint8_t *direction, wb_ids ids, float *weights) {
    bool armed = alloc_fail.armed;
    alloc_fail.armed = false;
    wb_status status = real.gate_forward(dev, router, n, z, direction, ids, weights);
    alloc_fail.armed = armed;
    return status;
}

static wb_status paused_gate_backward(wb_device *dev, const wb_router *router, int64_t n, const float *z,
                                      const uint8_t *direction, wb_ids ids, const float *dweights,
                                      float *dlogits) {
    bool armed = alloc_fail.armed;
    alloc_fail.armed = false;
    wb_status status = real.gate_backward(dev, router, n, z, direction, ids, dweights, dlogits);
    alloc_fail.armed = armed;
    return status;
}

static wb_status hooks_step(void) {
    wb_replay *r = NULL;
    wb_status status = wb_replay_open(&model, NULL, &r);
    if (status == WB_OK) status = wb_replay_add(r, &model, &records[0].record);
    if (status == WB_OK) status = hooked_step(device, r);
    wb_replay_close(r);
    return status;
}

static void fail_each(wb_status (*body)(void)) {
    OK(body()); /* what libraries allocate once and keep is not counted */
    for (int ever_after = 0; ever_after < 2; ever_after++) {
        bool failed = true;
        long n = 0;
        for (; failed && n < PATIENCE; n++) {
            long live = -1;
            alloc_fail_arm(n, ever_after);
            wb_status status = body();
            failed = alloc_fail_disarm(&live);
            assert_int_equal(status, failed ? WB_OUT_OF_MEMORY : WB_OK);
            assert_int_equal(live, 0);
        }
        assert_true(n > 5 && n < PATIENCE);
    }
}

static void test_replay_survives_each_failed_allocation(void **unused) {
    (void)unused;
    fail_each(replay_step);
}

static void test_hooks_survive_each_failed_allocation(void **unused) {
    (void)unused;
    OK(wb_device_open_cpu(1, &device));
    real = *device;
    device->topk = paused_topk;
    device->gate_forward = paused_gate_forward;
    device->gate_backward = paused_gate_backward;
    fail_each(hooks_step);
    wb_device_close(device);
}

/* The same handle goes on after a failed call as if it had not been made. */
static void test_a_failed_plan_changes_nothing(void **unused) {
    (void)unused;
    wb_replay *r = NULL;
    OK(wb_replay_open(&model, NULL, &r));
    OK(wb_replay_add(r, &model, &records[0].record));
    OK(wb_replay_begin(r, WB_REPLAY_ROLLOUT, 1));
    wb_segment s = fixture_segment(&records[0], 0, TOKENS);
    long live;
    for (long n = 0; n < 2; n++) {
        alloc_fail_arm(n, false);
        wb_status status = wb_replay_plan(r, 0, 1, &s);
        assert_true(alloc_fail_disarm(&live));
        assert_int_equal(status, WB_OUT_OF_MEMORY);
        assert_false(wb_replay_planned(r, 0));
    }
    OK(wb_replay_plan(r, 0, 1, &s));
    for (int32_t l = 0; l < L; l++) OK(follow_all(r, 0, l, TOKENS));
    OK(wb_replay_end(r));
    alloc_fail_arm(0, false);
    wb_status status = wb_replay_begin(r, WB_REPLAY_ROLLOUT, MANY); /* the plan of the last step is there */
    assert_true(alloc_fail_disarm(&live));
    assert_int_equal(status, WB_OUT_OF_MEMORY);
    wb_replay_metrics metrics;
    wb_replay_get_metrics(r, &metrics, NULL);
    assert_true(metrics.rows == TOKENS);
    wb_replay_abort(r);

    alloc_fail_arm(0, false); /* the next step of the same shape needs no memory */
    OK(wb_replay_begin(r, WB_REPLAY_ROLLOUT, 1));
    OK(wb_replay_plan(r, 0, 1, &s));
    assert_false(alloc_fail_disarm(&live));
    wb_replay_close(r);
}

/* Memory is kept from step to step, over other sizes in between too. */
static void test_a_step_of_known_size_is_planned_without_memory(void **unused) {
    (void)unused;
    wb_replay_options options = wb_replay_options_default();
    options.placement = placement;
    wb_replay *r = NULL;
    int64_t planned = 0;
    long live;
    OK(wb_replay_open(&model, &options, &r));
    for (int i = 0; i < 3; i++) OK(wb_replay_add(r, &model, &records[i].record));
    for (int step = 0; step < 4; step++) {
        if (step > 0) alloc_fail_arm(0, true);
        OK(wb_replay_begin(r, WB_REPLAY_ROLLOUT, step == 1 ? 1 : 3));
        for (int32_t mb = 0; mb < (step == 1 ? 1 : 3); mb++) {
            const wb_segment s = fixture_segment(&records[mb], 0, TOKENS - 1);
            OK(wb_replay_plan(r, mb, 1, &s));
        }
        OK(wb_replay_plan_dispatch(r, comm, &planned));
        if (step > 0) assert_false(alloc_fail_disarm(&live));
        assert_int_equal(planned, (step == 1 ? 1 : 3) * L);
        wb_replay_abort(r);
    }
    wb_replay_close(r);
}

int main(void) {
    if (!ALLOC_FAIL_WORKS) {
        print_message("skipped: a sanitizer owns the allocator\n");
        return 77;
    }
    model = fixture_model(E, K, L);
    for (uint64_t i = 0; i < RECORDS; i++) fixture_complete(&records[i], &model, i, TOKENS);
    for (int i = 0; i < T * E; i++) logits[i] = (float)(i * 7 % 13);
    const wb_topology topology = {.n_ranks = 1, .n_nodes = 1, .n_slots = E + 2};
    if (wb_placement_open(&topology, L, E, &placement) != WB_OK || wb_comm_open_self(&comm) != WB_OK)
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replay_survives_each_failed_allocation),
        cmocka_unit_test(test_hooks_survive_each_failed_allocation),
        cmocka_unit_test(test_a_failed_plan_changes_nothing),
        cmocka_unit_test(test_a_step_of_known_size_is_planned_without_memory),
    };
    int failures = cmocka_run_group_tests(tests, NULL, NULL);
    for (int i = 0; i < RECORDS; i++) fixture_close(&records[i]);
    wb_comm_close(comm);
    wb_placement_close(placement);
    return failures;
}
