/* test_grpo_checkpoint.c - a save of waybill-grpo takes no more host memory than a chunk, however large the
 * optimizer's state is, and neither does a load; what was written is read back, masters of bf16 weights among
 * it, on other numbers of ranks and under other placements too. */
#include "model/placed_model.h"

#include "../../examples/grpo/checkpoint.c" /* last: their types have names that are local above */
#include "../../examples/grpo/checkpoint_place.c"
#include "../../examples/grpo/checkpoint_state.c"
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

/* Bytes that malloc has given out, and the most that were seen at a copy between device and host. */
static size_t in_use(void) {
    const struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
}

static size_t most_in_use, largest_copy;
static wb_status (*copy_to_host)(wb_device *device, void *to, const void *from, size_t bytes);
static wb_status (*copy_to_device)(wb_device *device, void *to, const void *from, size_t bytes);

static void watch(size_t bytes) {
    const size_t now = in_use();
    if (now > most_in_use) most_in_use = now;
    if (bytes > largest_copy) largest_copy = bytes;
}

static wb_status watched_to_host(wb_device *device, void *to, const void *from, size_t bytes) {
    watch(bytes);
    return copy_to_host(device, to, from, bytes);
}

static wb_status watched_to_device(wb_device *device, void *to, const void *from, size_t bytes) {
    watch(bytes);
    return copy_to_device(device, to, from, bytes);
}

static void watch_copies(wb_device *device) {
    copy_to_host = device->to_host;
    copy_to_device = device->to_device;
    device->to_host = watched_to_host;
    device->to_device = watched_to_device;
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

/* The weights, as they are and rounded: beside the model itself there are names, headers and a chunk. */
static void expect_small_open(const fixture *f, const char *dir) {
    for (int i = 0; i < 2; i++) {
        wb_model_options own = wb_model_options_default();
        wb_model *model;
        wb_memory memory;
        own.device = f->device;
        own.comm = f->comm;
        own.dtype = i == 0 ? WB_F32 : WB_BF16;
        MUST(wb_model_measure(wb_model_config(f->model), &own, 1, 0, &memory));
        most_in_use = 0;
        const size_t before = in_use();
        MUST(wb_model_open(dir, &own, &model));
        assert_true(most_in_use <= before + memory.device_bytes + CHECKPOINT_CHUNK_BYTES + (1 << 20));
        wb_model_close(model);
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
    trainer saved = {.o = &o, .device = f.device, .comm = comm, .model = f.model, .step = 7, .epoch = 5},
            loaded = saved;
    MUST(optimizer_open(f.model, f.train, f.device, comm, &saved.opt));
    MUST(optimizer_open(f.model, f.train, f.device, comm, &loaded.opt));
    fill_moments(&saved.opt);

    watch_copies(f.device);
    const size_t before = in_use();
    MUST(checkpoint_save(&saved));
    assert_true(largest_copy > 0 && largest_copy <= CHECKPOINT_CHUNK_BYTES);
    assert_true(most_in_use <= before + CHECKPOINT_CHUNK_BYTES + (1 << 20)); /* names and headers */

    char *dir;
    loaded.step = loaded.epoch = 0;
    MUST(checkpoint_find(&o, &dir));
    most_in_use = largest_copy = 0;
    const size_t before_load = in_use();
    MUST(checkpoint_load(&loaded, dir));
    assert_true(largest_copy > CHECKPOINT_CHUNK_BYTES); /* from the file, which is mapped */
    assert_true(most_in_use <= before_load + (1 << 20));
    expect_small_open(&f, dir);
    assert_true(loaded.step == 7 && loaded.epoch == 5 && loaded.epoch_before == 5);
    assert_same_moments(&saved.opt, &loaded.opt);
    free(dir);
    optimizer_close(&loaded.opt);
    optimizer_close(&saved.opt);
    fixture_close(&f);
    wb_comm_close(comm);
    temp_remove(out);
}

/* ---- on other numbers of ranks, under other placements ---------------------------------------------- */

/* A model under a random placement with replicas: as it is created, or from the checkpoint `dir`. */
static trainer trainer_open(rank *r, const options *o, const char *dir) {
    const wb_config config = variant_config(VARIANT_QWEN3);
    wb_placement *placement = placement_random(2, config.router.n_experts, r->of, &r->state, true);
    const wb_model_options model_options = options_of(r, placement);
    trainer t = {.o = o, .device = r->device, .comm = r->comm};
    if (dir)
        MUST(wb_model_open(dir, &model_options, &t.model));
    else
        MUST(wb_model_create(&config, 5, 0.25F, &model_options, &t.model));
    wb_placement_close(placement);
    MUST(wb_train_open(t.model, NULL, &t.train));
    MUST(optimizer_open(t.model, t.train, r->device, r->comm, &t.opt));
    return t;
}

static void trainer_close(trainer *t) {
    optimizer_close(&t->opt);
    wb_train_close(t->train);
    wb_model_close(t->model);
}

/* Element j of tensor i's first moment, whoever has it; its master has a bit more. */
static float moment_of(int32_t i, int64_t j) {
    return (float)(7 * i + 1) + (float)j / 1024;
}

static optimizer_part part_here(const rank *r, const trainer *t, int32_t i) {
    const wb_tensor tensor = wb_model_tensor(t->model, i);
    return optimizer_part_of(wb_model_config(t->model), &tensor, r->number, r->of);
}

static bool is_rounded(const trainer *t, int32_t i) {
    return wb_model_tensor(t->model, i).dtype == WB_BF16;
}

static void save_parts(rank *r) {
    const options o = {.out_dir = r->save, .task = "arithmetic", .eplb = EPLB_STATIC};
    trainer t = trainer_open(r, &o, NULL);
    for (int32_t i = 0; i < wb_model_n_tensors(t.model); i++) {
        const optimizer_part part = part_here(r, &t, i);
        for (int64_t j = 0; j < part.n; j++) {
            ((float *)t.opt.m[i].data)[j] = moment_of(i, part.first + j);
            ((float *)t.opt.v[i].data)[j] = -moment_of(i, part.first + j);
            if (is_rounded(&t, i)) ((float *)t.opt.master[i].data)[j] = 0.5F + moment_of(i, part.first + j);
        }
    }
    MUST(checkpoint_save(&t));
    trainer_close(&t);
}

static void expect_created_weights(rank *r, const wb_model *model) {
    const wb_model_options alone = whole_options(r);
    wb_model *whole;
    MUST(wb_model_create(wb_model_config(model), 5, 0.25F, &alone, &whole));
    expect_weights(model, whole);
    wb_model_close(whole);
}

static void load_parts(rank *r) {
    const options o = {.out_dir = r->save, .task = "arithmetic", .eplb = EPLB_STATIC};
    char *dir;
    MUST(checkpoint_find(&o, &dir));
    trainer t = trainer_open(r, &o, dir);
    expect_created_weights(r, t.model);
    MUST(checkpoint_load(&t, dir));
    for (int32_t i = 0; i < wb_model_n_tensors(t.model); i++) {
        const optimizer_part part = part_here(r, &t, i);
        for (int64_t j = 0; j < part.n; j++) {
            EXPECT(((float *)t.opt.m[i].data)[j] == moment_of(i, part.first + j));
            EXPECT(((float *)t.opt.v[i].data)[j] == -moment_of(i, part.first + j));
            if (is_rounded(&t, i))
                EXPECT(((float *)t.opt.master[i].data)[j] == 0.5F + moment_of(i, part.first + j));
        }
    }
    free(dir);
    trainer_close(&t);
}

/* Without an element missing or twice, whatever the numbers of ranks, slots and replicas. */
static void test_a_checkpoint_comes_back_wherever_experts_are(void **unused) {
    (void)unused;
    static const int ranks[][2] = {{1, 3}, {3, 1}, {2, 3}, {4, 2}, {3, 4}, {2, 2}};
    for (size_t i = 0; i < 2 * sizeof ranks / sizeof ranks[0]; i++) {
        const int *of = ranks[i / 2];
        const temp_path out = temp_dir();
        fixture_dtype = fixture_activations = i % 2 == 0 ? WB_F32 : WB_BF16;
        on_ranks(of[0], base_seed + i, save_parts, NULL, out.text);
        on_ranks(of[1], base_seed + 100 + i, load_parts, NULL, out.text);
        temp_remove(out);
    }
    fixture_dtype = fixture_activations = WB_F32;
}

int main(int argc, char **argv) {
    placed_model_begin(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_moments_cross_in_chunks),
        cmocka_unit_test(test_a_checkpoint_comes_back_wherever_experts_are),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
