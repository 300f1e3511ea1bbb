/* test_grpo_optimizer.c - waybill-grpo's optimizer refuses a device that lacks an op when it is opened, by
 * the op's name, and takes a step on a device with no other op; what has no gradient stays as it is. */
#include "model/model_fixture.h"
#include "support/missing_op.h"

#include "../../examples/grpo/optimizer.c" /* last: its types have names that are local above */

static wb_status open_optimizer(void *context) {
    const fixture *f = context;
    optimizer opt;
    WB_TRY(optimizer_open(f->model, f->train, f->device, f->comm, &opt));
    optimizer_close(&opt);
    return WB_OK;
}

static void step_of(const fixture *f) {
    const options o = {.weight_decay = 0.1, .grad_clip = 1};
    double norm = -1;
    optimizer opt;
    MUST(optimizer_open(f->model, f->train, f->device, f->comm, &opt));
    MUST(optimizer_step(&opt, &o, 1e-3, NULL, &norm));
    assert_true(norm == 0 && opt.step == 1);
    optimizer_close(&opt);
}

static void test_each_op_is_missed_by_name(void **unused) {
    (void)unused;
    const wb_config config = variant_config(VARIANT_FEW);
    wb_comm *comm;
    MUST(wb_comm_open_self(&comm));
    fixture f = fixture_create(&config, 3, comm, 1);
    MUST(wb_train_zero_grads(f.train));
    const wb_device whole = *f.device;
    bool needed[WB_OP_COUNT];
    missing_op_try_all(f.device, "optimizer", open_optimizer, &f, needed);
    assert_true(needed[WB_OP_sum_squares] && needed[WB_OP_adamw] && !needed[WB_OP_matmul]);
    missing_op_keep(f.device, needed);
    step_of(&f);
    *f.device = whole;
    fixture_close(&f);
    wb_comm_close(comm);
}

/* Gradients of 0, so that a step is weight decay alone. */
static void test_an_indexer_is_left_alone(void **unused) {
    (void)unused;
    const wb_config config = variant_config(VARIANT_ENTRIES);
    wb_comm *comm;
    MUST(wb_comm_open_self(&comm));
    fixture f = fixture_create(&config, 3, comm, 1);
    MUST(wb_train_zero_grads(f.train));
    int n_indexer = 0;
    const int32_t n = wb_model_n_tensors(f.model);
    float **before = calloc((size_t)n, sizeof *before);
    for (int32_t i = 0; i < n; i++) {
        const wb_tensor t = wb_model_tensor(f.model, i);
        before[i] = malloc((size_t)t.n * sizeof **before);
        assert_true(t.dtype == WB_F32);
        memcpy(before[i], t.data, (size_t)t.n * sizeof **before);
    }
    step_of(&f);
    for (int32_t i = 0; i < n; i++) {
        const wb_tensor t = wb_model_tensor(f.model, i);
        const bool alone = strstr(t.name, "indexer") != NULL;
        const bool same = memcmp(before[i], t.data, (size_t)t.n * sizeof **before) == 0;
        if (t.no_gradient != alone || (t.n_dims > 1 && same != alone))
            fail_msg("%s: no gradient %d, the same %d", t.name, t.no_gradient, same);
        n_indexer += alone;
        free(before[i]);
    }
    assert_true(n_indexer > 0);
    free(before);
    fixture_close(&f);
    wb_comm_close(comm);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_each_op_is_missed_by_name),
                                       cmocka_unit_test(test_an_indexer_is_left_alone)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
