/* test_sampling_kept.c - which tokens top-k and top-p keep at their edges, and where they are told: limits
 * that keep all, little room, long tails, ties. */
#include "ops_test.h"

/* A top-k that keeps all is told like any other; no limit tells nothing, whatever room there is. */
static void test_sample_tells_a_limit_that_keeps_all(void **state) {
    (void)state;
    wb_device *dev = open_cpu(1);
    const float z[12] = {0, 3, 1, 2, 0, 3, 1, 2, 0, 3, 1, 2};
    const wb_sample_params params[3] = {{1, 4, 1, 0.5f}, {1, 5, 1, 0.5f}, {1, 0, 1, 0.5f}};
    const int64_t start[4] = {0, 4, 8, 12};
    uint32_t ids[12];
    int32_t counts[3], tokens[3];
    float logprobs[3];
    const wb_sample_kept kept = {start, ids, counts};
    for (int b = 0; b < 3; b++) assert_int_equal(wb_sample_max_kept(params + b, 4), b < 2 ? 4 : 0);
    assert_ok(dev->sample(dev, 3, 4, z, params, &kept, tokens, logprobs));
    assert_true(counts[0] == 4 && counts[1] == 4 && counts[2] == 0);
    for (uint32_t i = 0; i < 8; i++) assert_int_equal(ids[i], i % 4);
    assert_true(tokens[0] == tokens[2] && logprobs[0] == logprobs[2]);
    wb_device_close(dev);
}

/* A greedy row that is told about, one that does not want to be, and one with too little room. */
static void test_sample_room_for_kept(void **state) {
    (void)state;
    wb_device *dev = open_cpu(1);
    const float z[12] = {0, 3, 1, 2, 0, 3, 1, 2, 0, 3, 1, 2};
    const wb_sample_params params[3] = {{0, 0, 1, 0}, {1, 2, 1, 0.5f}, {1, 3, 1, 0.5f}};
    int64_t start[4] = {0, 1, 1, 4};
    uint32_t ids[4];
    int32_t counts[3], tokens[3];
    float logprobs[3];
    const wb_sample_kept kept = {start, ids, counts};
    assert_ok(dev->sample(dev, 3, 4, z, params, &kept, tokens, logprobs));
    assert_true(counts[0] == 1 && counts[1] == 0 && counts[2] == 3);
    const uint32_t expected[4] = {1, 1, 2, 3};
    assert_memory_equal(ids, expected, sizeof ids);
    start[3] = 3;
    assert_int_equal(dev->sample(dev, 3, 4, z, params, &kept, tokens, logprobs), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "row 2: expected room for 3 kept tokens, found 2"));
    wb_device_close(dev);
}

/* Of a tail whose tokens are each less than e^-7 of the largest, but most of the probability together, as
 * many are kept as top-p says: 26706, because 0.9 (e^8 + 30004) - e^8 = 26705.5. They are equal, so that the
 * lowest ids are kept. */
static void test_sample_top_p_reaches_into_a_flat_tail(void **state) {
    (void)state;
    wb_device *dev = open_cpu(1);
    enum { V = 30005, PEAK = 12345, KEPT = 1 + 26706 };
    float *z = floats(V), logprob;
    uint32_t *ids = xalloc(V, sizeof *ids);
    const int64_t start[2] = {0, V};
    int32_t count = 0, token;
    const wb_sample_kept kept = {start, ids, &count};
    const wb_sample_params params = {1, 0, 0.9f, 0.999f};
    z[PEAK] = 8;
    assert_ok(dev->sample(dev, 1, V, z, &params, &kept, &token, &logprob));
    assert_int_equal(count, KEPT);
    for (int32_t i = 0; i < KEPT; i++) assert_int_equal(ids[i], i);
    assert_true(token > KEPT - 100 && token < KEPT);
    free(z), free(ids);
    wb_device_close(dev);
}

/* Half of four equal tokens is two of them, neither one more nor one less, and the lowest ids. */
static void test_sample_top_p_is_exact_on_ties(void **state) {
    (void)state;
    wb_device *dev = open_cpu(1);
    const float z[8] = {3, 3, 3, 3, 3, 3, 3, 3};
    const wb_sample_params params[2] = {{1, 0, 0.5f, 0.25f}, {1, 0, 0.5f, 0.75f}};
    const int64_t start[3] = {0, 4, 8};
    uint32_t ids[8];
    int32_t counts[2], tokens[2];
    float logprobs[2];
    const wb_sample_kept kept = {start, ids, counts};
    assert_ok(dev->sample(dev, 2, 4, z, params, &kept, tokens, logprobs));
    for (int b = 0; b < 2; b++) {
        assert_int_equal(counts[b], 2);
        assert_true(ids[start[b]] == 0 && ids[start[b] + 1] == 1);
        assert_int_equal(tokens[b], b);
        assert_close(logprobs[b], log(0.5), 1e-6, "logprob of one of two", b);
    }
    wb_device_close(dev);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sample_tells_a_limit_that_keeps_all),
        cmocka_unit_test(test_sample_room_for_kept),
        cmocka_unit_test(test_sample_top_p_reaches_into_a_flat_tail),
        cmocka_unit_test(test_sample_top_p_is_exact_on_ties),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
