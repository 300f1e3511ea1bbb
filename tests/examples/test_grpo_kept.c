/* test_grpo_kept.c - which checkpoints stay beside OUT/checkpoint: the last ones of this run's past, of all
 * names in the folder those alone, and what a removal that was cut short has left goes too. */
#include "../../examples/grpo/checkpoint_place.c"
#include "../../examples/grpo/option_table.c"
#include "../../examples/grpo/paths.c"
#include "support/temp_files.h"

static temp_path out;

static void make(const char *name) {
    temp_path dir = temp_in(out.text, name), inner = temp_in(dir.text, "trainer"),
              state = temp_in(inner.text, "state.json");
    assert_int_equal(wb_dir_create(inner.text), WB_OK);
    temp_write(state.text, "{}", 2);
}

static bool there(const char *name) {
    return access(temp_in(out.text, name).text, F_OK) == 0;
}

static void prune(int64_t keep_last, uint64_t step) {
    const options o = {.out_dir = out.text, .keep_last = keep_last};
    if (checkpoint_prune(&o, step) != WB_OK) fail_msg("%s", wb_error_message());
}

static void test_prune(void **state) {
    (void)state;
    static const char *const all[] = {"checkpoint",
                                      "checkpoint.step000002",
                                      "checkpoint.step000010",
                                      "checkpoint.step000009",
                                      "checkpoint.step1000000",
                                      "checkpoint.step000012",
                                      "checkpoint.step000011",
                                      "checkpoint.best"};
    /* What has another name is not ours. */
    static const char *const others[] = {"checkpoint.step2",        "checkpoint.step0000009",
                                         "checkpoint.step",         "checkpoint.step000002x",
                                         "mycheckpoint.step000002", "checkpoint2.step000002"};
    out = temp_dir();
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) make(all[i]);
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) make(others[i]);
    const temp_path part = temp_in(out.text, "checkpoint.step000001/trainer");
    assert_int_equal(wb_dir_create(part.text), WB_OK); /* its state is gone, the removal was cut short */

    prune(1, 12); /* nothing was asked to stay, so that nothing is known to be a run's */
    assert_true(there(all[1]) && there(all[5]));
    prune(3, 12); /* two beside the checkpoint of step 12 */
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        if (there(all[i]) != (i == 0 || i == 2 || i == 6 || i == 7)) fail_msg("%s", all[i]);
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        if (!there(others[i])) fail_msg("%s is gone", others[i]);
    assert_true(!there("checkpoint.step000001"));
    assert_true(there(all[6]));
    options o = {.out_dir = out.text, .keep_last = 1};
    o.given[option_find("--keep-last") - option_rows] = true;
    assert_int_equal(checkpoint_prune(&o, 12), WB_OK); /* asked for on the command line */
    assert_true(!there(all[2]) && !there(all[6]) && there(all[0]) && there(all[7]) && there(others[0]));
    temp_remove(out);
}

/* What is replaced goes where it is to stay, over what was there; without a place it is gone. */
static void test_change_places(void **state) {
    (void)state;
    out = temp_dir();
    const temp_path fresh = temp_in(out.text, "checkpoint.new"), current = temp_in(out.text, "checkpoint"),
                    old = temp_in(out.text, "checkpoint.old"),
                    kept = temp_in(out.text, "checkpoint.step000003");
    make("checkpoint");
    make("checkpoint.new");
    make("checkpoint.step000003");
    temp_write(temp_in(current.text, "first").text, "", 0);
    temp_write(temp_in(fresh.text, "second").text, "", 0);
    assert_int_equal(checkpoint_change_places(fresh.text, current.text, old.text, kept.text), WB_OK);
    assert_true(there("checkpoint/second") && there("checkpoint.step000003/first"));
    assert_true(there("checkpoint.step000003/trainer/state.json") && !there("checkpoint.new"));
    make("checkpoint.new");
    assert_int_equal(checkpoint_change_places(fresh.text, current.text, old.text, ""), WB_OK);
    assert_true(!there("checkpoint/second") && there("checkpoint/trainer") && !there("checkpoint.new"));
    temp_remove(out);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_prune), cmocka_unit_test(test_change_places)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
