/* test_grpo_bits.c - --rollout-bits: a row of weights that was rounded has no more values than integers of so
 * many bits, each the nearest one; which tensors are rounded, and that the policy's own are not. */
#include "model/placed_model.h"
#include "support/test_seed.h"

#include "../../examples/grpo/open_sizes.c" /* last: their names may be local above */
#include "../../examples/grpo/rollout_weights.c"

enum { N = 64, ROUNDS = 500 };

static float largest_of(const float *row, int64_t n) {
    float largest = 0;
    for (int64_t i = 0; i < n; i++) largest = fmaxf(largest, fabsf(row[i]));
    return largest;
}

/* Each value is k scale for an integer |k| <= levels, and no further than half of scale from where it was. */
static void expect_rounded(const float *before, const float *after, int64_t n, float levels) {
    const float scale = largest_of(before, n) / levels;
    for (int64_t i = 0; i < n; i++) {
        const float k = scale > 0 ? rintf(after[i] / scale) : 0;
        assert_true(fabsf(k) <= levels && fabsf(after[i] - k * scale) <= 1e-6F * levels * scale);
        assert_true(fabsf(after[i] - before[i]) <= 0.5F * scale * 1.00001F);
    }
}

static void test_rows(void **state) {
    (void)state;
    uint64_t seed = test_seed(0, NULL);
    print_message("seed %" PRIu64 "\n", seed);
    for (int round = 0; round < ROUNDS; round++) {
        const float levels = (float)((1 << (1 + wb_random(&seed) % 7)) - 1);
        float before[N], after[N];
        for (int i = 0; i < N; i++)
            before[i] = round == 0 ? 0 : (float)((double)(wb_random(&seed) >> 11) * 0x1p-52 - 1) * 0.1F;
        memcpy(after, before, sizeof after);
        round_row(after, N, levels);
        expect_rounded(before, after, N, levels);
    }
}

static void test_model(void **state) {
    (void)state;
    const wb_config config = variant_config(VARIANT_FEW);
    wb_comm *comm;
    MUST(wb_comm_open_self(&comm));
    fixture f = fixture_create(&config, 3, comm, 1);
    const options o = {.dtype = WB_F32, .rollout_bits = 4};
    const trainer t = {.o = &o, .device = f.device, .comm = comm, .model = f.model};
    rollout_weights *w;
    MUST(rollout_weights_open(&t, &w));
    MUST(wb_model_copy_weights(w->rounded, f.model));
    MUST(round_all(w));
    int rounded = 0;
    for (int32_t i = 0; i < wb_model_n_tensors(f.model); i++) {
        const wb_tensor before = wb_model_tensor(f.model, i), after = wb_model_tensor(w->rounded, i);
        const bool kept = before.n_dims == 1 || strstr(before.name, "embed") ||
                          strstr(before.name, "lm_head") || strstr(before.name, "mlp.gate.");
        const bool same = memcmp(before.data, after.data, (size_t)before.n * sizeof(float)) == 0;
        if (same != kept) fail_msg("%s: expected %s", before.name, kept ? "its own weights" : "rounded ones");
        rounded += !same;
        for (int64_t row = 0; !kept && row < before.shape[0]; row++)
            expect_rounded((float *)before.data + row * before.shape[1],
                           (float *)after.data + row * before.shape[1], before.shape[1], 7);
    }
    assert_true(rounded > 4);
    rollout_weights_close(w);
    fixture_close(&f);
    wb_comm_close(comm);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rows), cmocka_unit_test(test_model)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
