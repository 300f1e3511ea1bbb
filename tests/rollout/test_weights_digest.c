/* test_weights_digest.c - that the digest of an engine in bf16 sees an optimizer step, and which places it
 * reads; and that packed weights have the digest of their rows. */
#include "engine_rig.h"
#include "weights_digest.h"

enum { N_SEEDS = 8, N_LAYERS = 6, LEAST_TENSORS = 17, BYTES = 1024 };

static uint64_t digest_of(const wb_model *model) {
    uint64_t digest = 0;
    assert_ok(wb_weights_digest(model, &digest));
    return digest;
}

/* The first step of AdamW moves each weight by the learning rate, up or down. */
static void optimizer_step(rig *r, float lr, dice *d) {
    const wb_adamw hyper = {
        .lr = lr, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .grad_scale = 1, .step = 1};
    for (int32_t i = 0; i < wb_model_n_tensors(r->model); i++) {
        const wb_tensor tensor = wb_model_tensor(r->model, i);
        float *g = take((size_t)tensor.n, sizeof *g), *m = take((size_t)tensor.n, sizeof *m),
              *v = take((size_t)tensor.n, sizeof *v);
        for (int64_t k = 0; k < tensor.n; k++) g[k] = roll(d) % 2 == 0 ? 1.0f : -1.0f;
        assert_ok(r->device->adamw(r->device, tensor.n, &hyper, g, m, v, tensor.data, NULL));
        free(g);
        free(m);
        free(v);
    }
}

/* At the learning rate of such runs. */
static void test_a_step_in_bf16_is_seen(void **state) {
    (void)state;
    const wb_config c = tiny_config(WB_FAMILY_QWEN3_MOE, 12, 3, N_LAYERS, 0);
    for (uint64_t seed = 1; seed <= N_SEEDS; seed++) {
        dice d = {seed};
        rig trainer = rig_open(&c, seed, 1, NULL), engine = rig_open_as(&c, 1, 1, NULL, WB_BF16);
        assert_ok(wb_model_copy_weights(engine.model, trainer.model));
        const uint64_t before = digest_of(engine.model);
        assert_ok(wb_model_copy_weights(engine.model, trainer.model));
        assert_true(digest_of(engine.model) == before);
        optimizer_step(&trainer, 1e-6f, &d);
        assert_ok(wb_model_copy_weights(engine.model, trainer.model));
        if (digest_of(engine.model) == before) fail_msg("seed %d: the step is not seen", (int)seed);
        rig_close(&engine);
        rig_close(&trainer);
    }
}

/* Or weights that an engine has would be others than those of the model that it was cloned from. */
static void test_packed_weights_have_the_digest_of_their_rows(void **state) {
    (void)state;
    const wb_config c = tiny_config(WB_FAMILY_QWEN3_MOE, 12, 3, N_LAYERS, 0);
    for (int i = 0; i < 2; i++) {
        const wb_dtype dtype = i == 0 ? WB_F32 : WB_BF16;
        wb_device *device = NULL;
        assert_ok(wb_device_open_cpu(1, &device));
        rig rows = rig_open_as(&c, 5, 1, NULL, dtype),
            packed = rig_open_with(&c, 5, device, NULL, dtype, WB_F32, true);
        int64_t n_elsewhere = 0;
        for (int32_t t = 0; t < wb_model_n_tensors(rows.model); t++) {
            const wb_tensor a = wb_model_tensor(rows.model, t), b = wb_model_tensor(packed.model, t);
            const size_t size = (size_t)a.n * wb_dtype_size(a.dtype);
            void *read = take(size, 1);
            assert_ok(wb_model_read(packed.model, &b, 0, b.n, read));
            assert_memory_equal(read, a.data, size);
            n_elsewhere += b.expert < 0 && memcmp(a.data, b.data, size) != 0;
            free(read);
        }
        assert_true(n_elsewhere > N_LAYERS);
        assert_true(digest_of(packed.model) == digest_of(rows.model));
        rig_close(&packed);
        rig_close(&rows);
    }
}

/* Whether another weight at byte `at` is another digest. */
static bool reads(const wb_model *model, const wb_tensor *tensor, size_t at) {
    unsigned char *byte = (unsigned char *)tensor->data + at;
    const uint64_t before = digest_of(model);
    *byte ^= 1;
    const bool seen = digest_of(model) != before;
    *byte ^= 1;
    return seen;
}

/* What a step must be seen by: more than half of the most tensors that are read, over all of the registry,
 * and of each the middle 1024 bytes. */
static void test_the_places_that_are_read(void **state) {
    (void)state;
    const wb_config c = tiny_config(WB_FAMILY_QWEN3_MOE, 12, 3, N_LAYERS, 0);
    rig engine = rig_open_as(&c, 1, 1, NULL, WB_BF16);
    int n_read = 0, n_bf16 = 0;
    uint64_t layers = 0;
    for (int32_t i = 0; i < wb_model_n_tensors(engine.model); i++) {
        const wb_tensor tensor = wb_model_tensor(engine.model, i);
        const size_t size = (size_t)tensor.n * wb_dtype_size(tensor.dtype);
        const size_t n = size < BYTES ? size : BYTES, start = (size - n) / 2;
        if (!reads(engine.model, &tensor, size / 2)) continue;
        assert_true(tensor.expert < 0);
        for (size_t at = 0; at < n; at++) assert_true(reads(engine.model, &tensor, start + at));
        n_read++;
        n_bf16 += tensor.dtype == WB_BF16;
        if (tensor.layer >= 0) layers |= (uint64_t)1 << tensor.layer;
    }
    assert_true(n_read >= LEAST_TENSORS && n_bf16 > 0);
    assert_int_equal(layers, ((uint64_t)1 << N_LAYERS) - 1);
    rig_close(&engine);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_a_step_in_bf16_is_seen),
                                       cmocka_unit_test(test_packed_weights_have_the_digest_of_their_rows),
                                       cmocka_unit_test(test_the_places_that_are_read)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
