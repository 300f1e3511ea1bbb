/* test_grpo_checkpoint.c - a save of waybill-grpo takes no more host memory than a chunk, however large the
 * optimizer's state is, and what it wrote is read back. */
#include "model/model_fixture.h"
#include "support/temp_files.h"

#include "../../examples/grpo/checkpoint.c" /* last: their types have names that are local above */
#include "../../examples/grpo/checkpoint_place.c"
#include "../../examples/grpo/optimizer.c"
#include "../../examples/grpo/option_resume.c"
#include "../../examples/grpo/option_table.c"
#include "../../examples/grpo/paths.c"
#include "../../examples/grpo/text_files.c"

#include <malloc.h>

wb_status options_check(const options *o) {
    (void)o;
    return WB_OK;
}

/* Bytes that malloc has given out, and the most that were seen at a copy to the host. */
static size_t in_use(void) {
    const struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
}

static size_t most_in_use, largest_copy;
static wb_status (*copy_to_host)(wb_device *device, void *to, const void *from, size_t bytes);

static wb_status watched_copy(wb_device *device, void *to, const void *from, size_t bytes) {
    const size_t now = in_use();
    if (now > most_in_use) most_in_use = now;
    if (bytes > largest_copy) largest_copy = bytes;
    return copy_to_host(device, to, from, bytes);
}

/* Moments that are different in each element and from each other. */
static void fill_moments(optimizer *opt) {
    for (int32_t i = 0; i < wb_model_n_tensors(opt->model); i++) {
        const wb_tensor tensor = wb_model_tensor(opt->model, i);
        for (int64_t j = 0; tensor.data && j < tensor.n; j++) {
            ((float *)opt->m[i].data)[j] = (float)(j + i);
            ((float *)opt->v[i].data)[j] = (float)(j + i) + 0.5F;
        }
    }
}

static void assert_same_moments(const optimizer *a, const optimizer *b) {
    for (int32_t i = 0; i < wb_model_n_tensors(a->model); i++) {
        const wb_tensor tensor = wb_model_tensor(a->model, i);
        if (!tensor.data) continue;
        assert_memory_equal(a->m[i].data, b->m[i].data, (size_t)tensor.n * sizeof(float));
        assert_memory_equal(a->v[i].data, b->v[i].data, (size_t)tensor.n * sizeof(float));
    }
}

static void test_moments_cross_in_chunks(void **unused) {
    (void)unused;
    wb_config config = variant_config(VARIANT_FEW);
    config.vocab_size = 70000; /* tensors of more than a chunk, and with an end that is no whole chunk */
    const temp_path out = temp_dir();
    wb_comm *comm;
    MUST(wb_comm_open_self(&comm));
    fixture f = fixture_create(&config, 3, comm, 1);
    const options o = {.out_dir = out.text, .task = "arithmetic"};
    trainer saved = {.o = &o, .device = f.device, .comm = comm, .model = f.model, .step = 7}, loaded = saved;
    MUST(optimizer_open(f.model, f.train, f.device, comm, &saved.opt));
    MUST(optimizer_open(f.model, f.train, f.device, comm, &loaded.opt));
    fill_moments(&saved.opt);

    copy_to_host = f.device->to_host;
    f.device->to_host = watched_copy;
    const size_t before = in_use();
    MUST(checkpoint_save(&saved));
    f.device->to_host = copy_to_host;
    assert_true(largest_copy <= CHUNK_BYTES);
    assert_true(most_in_use <= before + CHUNK_BYTES + (1 << 20)); /* names and headers */

    char *dir;
    loaded.step = 0;
    MUST(checkpoint_find(&o, &dir));
    MUST(checkpoint_load(&loaded, dir));
    assert_true(loaded.step == 7);
    assert_same_moments(&saved.opt, &loaded.opt);
    free(dir);
    optimizer_close(&loaded.opt);
    optimizer_close(&saved.opt);
    fixture_close(&f);
    wb_comm_close(comm);
    temp_remove(out);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_moments_cross_in_chunks)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
