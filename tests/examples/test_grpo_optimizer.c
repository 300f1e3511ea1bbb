/* test_grpo_optimizer.c - waybill-grpo's optimizer refuses a device that lacks an op when it is opened, by
 * the op's name, and takes a step on a device with no other op. */
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

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_each_op_is_missed_by_name)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
