/* test_checkpoint.c - what a model holds is what the files hold, at any number of ranks, and what it saves
 * is what it holds; a checkpoint that does not fit, or ranks that disagree, end in an error on every rank. */
#include "config.h"
#include "elements.h"
#include "expert_placement.h"
#include "layers/moe/moe.h"
#include "support/temp_files.h"
#include "wb_json.h"
#include "wb_text.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>

#define MAX_RANKS 8

static temp_path dir;

static int setup(void **state) {
    (void)state;
    dir = temp_dir();
    return 0;
}

static int teardown(void **state) {
    (void)state;
    temp_remove(dir);
    return 0;
}

static temp_path golden(const char *family) {
    return temp_in(WB_TEST_DATA, family);
}

/* ---- a job that runs on R ranks, each a thread ----------------------------------------------- */

typedef struct job {
    const char *open[MAX_RANKS]; /* directory a rank opens; NULL: creates from `config` */
    const wb_config *config;
    uint64_t seed;
    wb_dtype dtype;
    const char *expect; /* directory that the tensors must equal bit for bit, or NULL */
    const char *save;   /* directory to save to, or NULL */
    /* out */
    wb_status status[MAX_RANKS];
    char message[MAX_RANKS][1024];
    int32_t n_tensors[MAX_RANKS];
    int32_t differing[MAX_RANKS]; /* tensors here that are not those of `expect` */
    int32_t owned[MAX_RANKS];     /* expert tensors here */
    char fingerprint[MAX_RANKS][33];
} job;

typedef struct rank_args {
    job *job;
    wb_comm *comm;
} rank_args;

/* Tensors that live here and are not, bit for bit, what the files say. */
static wb_status compare(const wb_model *model, const char *expect, int32_t *differing, int32_t *owned) {
    wb_safetensors *st = NULL;
    wb_status status = wb_safetensors_open(expect, NULL, &st);
    for (int32_t i = 0; status == WB_OK && i < wb_model_n_tensors(model); i++) {
        wb_tensor t = wb_model_tensor(model, i);
        wb_tensor_view view;
        if (!t.data) continue;
        *owned += t.expert >= 0;
        status = wb_safetensors_find(st, t.name, &view);
        if (status != WB_OK) break;
        void *host = malloc(view.bytes);
        bool same = host && t.dtype == view.dtype && view.bytes == (size_t)t.n * wb_dtype_size(t.dtype) &&
                    model->device->to_host(model->device, host, t.data, view.bytes) == WB_OK &&
                    memcmp(host, view.data, view.bytes) == 0;
        *differing += !same;
        free(host);
    }
    wb_safetensors_close(st);
    return status;
}

static wb_status rank_work(job *j, wb_comm *comm, wb_device *device) {
    wb_model_options options = {.size = sizeof(wb_model_options),
                                .device = device,
                                .comm = comm,
                                .dtype = j->dtype,
                                .activations = WB_F32};
    wb_model *model = NULL;
    int r = wb_comm_rank(comm);
    wb_status status = j->open[r] ? wb_model_open(j->open[r], &options, &model)
                                  : wb_model_create(j->config, j->seed, 0.02f, &options, &model);
    if (status != WB_OK) return status;
    j->n_tensors[r] = wb_model_n_tensors(model);
    memcpy(j->fingerprint[r], wb_model_routes(model)->fingerprint, 33);
    if (j->expect) status = compare(model, j->expect, &j->differing[r], &j->owned[r]);
    if (status == WB_OK && j->save) status = wb_model_save(model, j->save);
    wb_model_close(model);
    return status;
}

static void *rank_main(void *arg) {
    rank_args *args = arg;
    wb_device *device = NULL;
    int r = wb_comm_rank(args->comm);
    wb_status status = wb_device_open_cpu(1, &device);
    if (status == WB_OK) status = rank_work(args->job, args->comm, device);
    args->job->status[r] = status;
    snprintf(args->job->message[r], sizeof args->job->message[r], "%s", status ? wb_error_message() : "");
    wb_device_close(device);
    return NULL;
}

static void run_job(job *j, int ranks) {
    wb_comm *comms[MAX_RANKS];
    pthread_t threads[MAX_RANKS];
    rank_args args[MAX_RANKS];
    assert_int_equal(wb_comm_open_threads(ranks, comms), WB_OK);
    for (int r = 0; r < ranks; r++) {
        args[r] = (rank_args){j, comms[r]};
        assert_int_equal(pthread_create(&threads[r], NULL, rank_main, &args[r]), 0);
    }
    for (int r = 0; r < ranks; r++) pthread_join(threads[r], NULL);
    for (int r = 0; r < ranks; r++) wb_comm_close(comms[r]);
}

static job open_job(const char *path, wb_dtype dtype) {
    job j = {.dtype = dtype};
    for (int r = 0; r < MAX_RANKS; r++) j.open[r] = path;
    return j;
}

static void expect_all_ok(const job *j, int ranks) {
    for (int r = 0; r < ranks; r++) {
        if (j->status[r] != WB_OK) fail_msg("rank %d of %d: %s", r, ranks, j->message[r]);
        if (j->differing[r] != 0) fail_msg("rank %d of %d: %d tensors differ", r, ranks, j->differing[r]);
        assert_int_equal(j->n_tensors[r], j->n_tensors[0]);
        assert_string_equal(j->fingerprint[r], j->fingerprint[0]);
    }
}

/* Opens `path` on `ranks` ranks, where it must equal `expect`, and saves it. */
static void open_expect_save(const char *path, wb_dtype dtype, int ranks, const char *expect,
                             const char *save) {
    job j = open_job(path, dtype);
    j.expect = expect;
    j.save = save;
    run_job(&j, ranks);
    expect_all_ok(&j, ranks);
}

/* One rank, an error with `status` and `part` in its message. */
static void expect_open_fails(const char *path, wb_status status, const char *part) {
    job j = open_job(path, WB_F32);
    run_job(&j, 1);
    if (j.status[0] != status || !strstr(j.message[0], part))
        fail_msg("expected status %d and '%s', found %d: %s", (int)status, part, (int)j.status[0],
                 j.message[0]);
}

/* ---- checkpoints made from golden ones ------------------------------------------------------- */

typedef struct edit {
    wb_safetensors *st;
    wb_tensor_view views[512];
    size_t n;
    temp_path out;
} edit;

/* A directory `name` with the config.json of `from`, and all of its tensors as views to change. */
static edit *edit_begin_from(const char *from, const char *name) {
    edit *e = calloc(1, sizeof *e);
    assert_non_null(e);
    assert_int_equal(wb_safetensors_open(from, NULL, &e->st), WB_OK);
    e->n = wb_safetensors_count(e->st);
    assert_true(e->n < 500);
    for (size_t i = 0; i < e->n; i++) assert_int_equal(wb_safetensors_get(e->st, i, &e->views[i]), WB_OK);
    e->out = temp_in(dir.text, name);
    assert_int_equal(mkdir(e->out.text, 0777), 0);
    temp_copy(temp_in(from, "config.json").text, temp_in(e->out.text, "config.json").text);
    return e;
}

static edit *edit_begin(const char *family, const char *name) {
    return edit_begin_from(golden(family).text, name);
}

static wb_tensor_view *edit_find(edit *e, const char *name) {
    for (size_t i = 0; i < e->n; i++)
        if (strcmp(e->views[i].name, name) == 0) return &e->views[i];
    fail_msg("no tensor %s", name);
    return NULL;
}

static void edit_remove(edit *e, const char *name) {
    wb_tensor_view *view = edit_find(e, name);
    *view = e->views[--e->n];
}

static temp_path edit_end(edit *e, const char *metadata) {
    temp_path out = e->out, file = temp_in(out.text, "model.safetensors");
    assert_int_equal(wb_safetensors_write(file.text, e->n, e->views, metadata), WB_OK);
    wb_safetensors_close(e->st);
    free(e);
    return out;
}

/* ---- opening --------------------------------------------------------------------------------- */

static const char *const families[] = {"qwen3_moe", "olmoe"};

static void test_tensors_equal_the_file_at_any_rank_count(void **state) {
    (void)state;
    static const int rank_counts[] = {1, 2, 3, 4};
    for (size_t f = 0; f < 2; f++) {
        for (size_t i = 0; i < 4; i++) {
            temp_path path = golden(families[f]);
            int ranks = rank_counts[i], owned = 0;
            job j = open_job(path.text, WB_F32);
            j.expect = path.text;
            run_job(&j, ranks);
            expect_all_ok(&j, ranks);
            assert_int_equal(j.n_tensors[0], 174);
            for (int r = 0; r < ranks; r++) owned += j.owned[r];
            assert_int_equal(owned, 3 * 16 * 3); /* each expert on exactly one rank */
        }
    }
}

static wb_model *open_one(const char *path, wb_dtype dtype, wb_device **device, wb_comm **comm) {
    wb_model *model = NULL;
    assert_int_equal(wb_device_open_cpu(1, device), WB_OK);
    assert_int_equal(wb_comm_open_self(comm), WB_OK);
    wb_model_options options = {.size = sizeof(wb_model_options),
                                .device = *device,
                                .comm = *comm,
                                .dtype = dtype,
                                .activations = WB_F32};
    if (wb_model_open(path, &options, &model) != WB_OK) fail_msg("%s", wb_error_message());
    return model;
}

static void close_one(wb_model *model, wb_device *device, wb_comm *comm) {
    wb_model_close(model);
    wb_comm_close(comm);
    wb_device_close(device);
}

/* The registry describes the storages: names, layers, experts, offsets inside params. */
static void test_registry_describes_the_storages(void **state) {
    (void)state;
    wb_device *device;
    wb_comm *comm;
    wb_model *m = open_one(golden("qwen3_moe").text, WB_F32, &device, &comm);
    bool gate = false, down = false;
    for (int32_t i = 0; i < wb_model_n_tensors(m); i++) {
        wb_tensor t = wb_model_tensor(m, i);
        const wb_param *p = &m->params[t.param];
        assert_int_equal(t.n, t.shape[0] * t.shape[1]);
        assert_true(t.offset >= 0 && t.offset + t.n <= p->n);
        assert_ptr_equal(t.data, (char *)p->memory.data + (size_t)t.offset * 4);
        if (strcmp(t.name, "model.layers.1.mlp.experts.5.up_proj.weight") == 0) {
            gate = true;
            assert_int_equal(t.layer, 1);
            assert_int_equal(t.expert, 5);
            assert_int_equal(t.param, ((const wb_moe_weights *)m->layers[1].feed_forward.weights)->gate_up);
            assert_int_equal(t.offset, 5 * 2 * 16 * 32 + 16 * 32);
        }
        if (strcmp(t.name, "model.layers.2.mlp.experts.15.down_proj.weight") == 0) {
            down = true;
            assert_int_equal(t.param, ((const wb_moe_weights *)m->layers[2].feed_forward.weights)->down);
            assert_int_equal(t.offset, 15 * 32 * 16);
            assert_int_equal(t.shape[0], 32);
            assert_int_equal(t.shape[1], 16);
        }
    }
    assert_true(gate && down);
    assert_int_equal(m->lm_head == m->embed, 0);
    const wb_route_model *routes = wb_model_routes(m);
    assert_string_equal(routes->name, "qwen3_moe");
    assert_string_equal(routes->router, "softmax_norm");
    assert_int_equal(routes->n_moe_layers, 3);
    assert_int_equal(routes->num_experts, 16);
    assert_int_equal(routes->top_k, 4);
    close_one(m, device, comm);
}

static void test_rope_tables(void **state) {
    (void)state;
    wb_device *device;
    wb_comm *comm;
    wb_model *m = open_one(golden("qwen3_moe").text, WB_F32, &device, &comm);
    float *host = malloc(512 * 8 * sizeof *host);
    for (int s = 0; s < 2; s++) {
        assert_int_equal(
            device->to_host(device, host, s ? m->sin_table.data : m->cos_table.data, 512 * 8 * sizeof *host),
            WB_OK);
        for (int p = 0; p < 512; p++) {
            for (int i = 0; i < 8; i++) {
                double angle = p * pow(10000.0, -2.0 * i / 16.0), expected = s ? sin(angle) : cos(angle);
                assert_true(fabs((double)host[p * 8 + i] - expected) <= 1e-4);
            }
        }
    }
    free(host);
    close_one(m, device, comm);
}

/* olmoe with a layer's experts in one tensor, as transformers 5 keeps them; with and without ".weight". */
static temp_path with_fused_experts(const char *folder, const char *suffix) {
    edit *e = edit_begin("olmoe", folder);
    float *gate_up = malloc(3 * 16 * 2 * 16 * 32 * sizeof *gate_up),
          *down = malloc(3 * 16 * 32 * 16 * sizeof *down);
    char names[6][96];
    for (int l = 0; l < 3; l++) {
        float *gu = gate_up + l * 16 * 2 * 512, *d = down + l * 16 * 512;
        for (int x = 0; x < 16; x++) {
            static const char *const parts[] = {"gate_proj", "up_proj", "down_proj"};
            float *targets[] = {gu + x * 1024, gu + x * 1024 + 512, d + x * 512};
            for (int k = 0; k < 3; k++) {
                char name[96];
                snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%d.%s.weight", l, x, parts[k]);
                memcpy(targets[k], edit_find(e, name)->data, 512 * 4);
                edit_remove(e, name);
            }
        }
        snprintf(names[2 * l], 96, "model.layers.%d.mlp.experts.gate_up_proj%s", l, suffix);
        snprintf(names[2 * l + 1], 96, "model.layers.%d.mlp.experts.down_proj%s", l, suffix);
        e->views[e->n++] = (wb_tensor_view){.name = names[2 * l],
                                            .dtype = WB_F32,
                                            .n_dims = 3,
                                            .shape = {16, 32, 32},
                                            .data = gu,
                                            .bytes = 16 * 1024 * 4};
        e->views[e->n++] = (wb_tensor_view){.name = names[2 * l + 1],
                                            .dtype = WB_F32,
                                            .n_dims = 3,
                                            .shape = {16, 32, 16},
                                            .data = d,
                                            .bytes = 16 * 512 * 4};
    }
    temp_path fused = edit_end(e, NULL);
    free(gate_up);
    free(down);
    return fused;
}

static void test_fused_experts_give_the_same_model(void **state) {
    (void)state;
    for (int suffix = 0; suffix < 2; suffix++) {
        temp_path fused = with_fused_experts(suffix ? "fused_weight" : "fused", suffix ? ".weight" : "");
        open_expect_save(fused.text, WB_F32, 1, golden("olmoe").text, NULL);
        open_expect_save(fused.text, WB_F32, 3, golden("olmoe").text, NULL);
    }
}

/* ---- dtypes ---------------------------------------------------------------------------------- */

/* The f32 nearest to x among those whose low 16 bits are zero, ties to even; by search, not by bit tricks. */
static float round_to_bf16(float x) {
    uint32_t bits, low, high;
    float a, b;
    memcpy(&bits, &x, 4);
    if (isnan(x) || isinf(x)) return x;
    low = bits & 0xffff0000u;
    high = low + 0x10000u;
    memcpy(&a, &low, 4);
    memcpy(&b, &high, 4);
    double to_a = fabs((double)x - (double)a), to_b = fabs((double)b - (double)x);
    if (isinf(b)) to_b = ldexp(1, 128) - fabs((double)x);
    if (to_a != to_b) return to_a < to_b ? a : b;
    return low >> 16 & 1u ? b : a;
}

static void test_wide_weights_are_rounded_to_nearest_even(void **state) {
    (void)state;
    wb_device *device;
    wb_comm *comm;
    wb_model *wide = open_one(golden("qwen3_moe").text, WB_F32, &device, &comm);
    wb_model_options options = {.size = sizeof(wb_model_options),
                                .device = device,
                                .comm = comm,
                                .dtype = WB_BF16,
                                .activations = WB_F32};
    wb_model *narrow = NULL, *copy = NULL;
    assert_int_equal(wb_model_open(golden("qwen3_moe").text, &options, &narrow), WB_OK);
    assert_int_equal(wb_model_create(wb_model_config(wide), 1, 0.5f, &options, &copy), WB_OK);
    assert_int_equal(wb_model_copy_weights(copy, wide), WB_OK);
    assert_string_equal(wb_model_routes(wide)->fingerprint, wb_model_routes(narrow)->fingerprint);
    for (int32_t i = 0; i < wb_model_n_tensors(wide); i++) {
        wb_tensor w = wb_model_tensor(wide, i), n = wb_model_tensor(narrow, i), c = wb_model_tensor(copy, i);
        assert_string_equal(w.name, n.name);
        assert_int_equal(n.dtype, w.n_dims == 1 ? WB_F32 : WB_BF16);
        assert_memory_equal(n.data, c.data, (size_t)n.n * wb_dtype_size(n.dtype));
        for (int64_t k = 0; k < w.n; k++) {
            float from = ((const float *)w.data)[k], to,
                  expected = w.n_dims == 1 ? from : round_to_bf16(from);
            uint32_t bits = n.n_dims == 1 ? 0 : (uint32_t)((const uint16_t *)n.data)[k] << 16;
            memcpy(&to, n.n_dims == 1 ? (const void *)((const float *)n.data + k) : &bits, 4);
            assert_true(to == expected);
        }
    }
    wb_model_close(copy);
    wb_model_close(narrow);
    close_one(wide, device, comm);
}

static void test_conversion_of_every_half(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        uint16_t half = (uint16_t)h, back;
        float from_f16, from_bf16;
        wb_convert(1, &half, WB_F16, &from_f16, WB_F32);
        wb_convert(1, &half, WB_BF16, &from_bf16, WB_F32);
        int exponent = (int)(h >> 10 & 31), fraction = (int)(h & 1023);
        double expected = exponent == 0    ? ldexp(fraction, -24)
                          : exponent == 31 ? (fraction ? NAN : INFINITY)
                                           : ldexp(1024 + fraction, exponent - 25);
        if (h & 0x8000) expected = -expected;
        if (isnan(expected)) {
            assert_true(isnan(from_f16));
        } else {
            assert_true((double)from_f16 == expected);
            assert_int_equal(signbit(from_f16) != 0, h >> 15);
        }
        wb_convert(1, &from_bf16, WB_F32, &back, WB_BF16);
        if (isnan(from_bf16))
            assert_int_equal(back & 0x7fc0, 0x7fc0); /* quiet */
        else
            assert_int_equal(back, half);
    }
}

static void test_rounding_at_the_edges(void **state) {
    (void)state;
    static const uint32_t cases[][2] = {
        {0x3f808000, 0x3f80}, /* tie to even, down */
        {0x3f818000, 0x3f82}, /* tie to even, up */
        {0x3f808001, 0x3f81}, {0x3f807fff, 0x3f80}, {0x7f7fffff, 0x7f80},
        {0xff7fffff, 0xff80}, {0x7f800000, 0x7f80}, {0x7f800001, 0x7fc0},
        {0x00008000, 0x0000}, {0x00008001, 0x0001}, {0x80000000, 0x8000},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint16_t found;
        wb_convert(1, &cases[i][0], WB_F32, &found, WB_BF16);
        assert_int_equal(found, cases[i][1]);
    }
}

/* bf16 and f16 files are widened exactly, NaN and infinity included. */
static void test_narrow_files_are_widened(void **state) {
    (void)state;
    static const wb_dtype dtypes[] = {WB_BF16, WB_F16};
    for (size_t d = 0; d < 2; d++) {
        edit *e = edit_begin("qwen3_moe", d ? "f16" : "bf16");
        static uint16_t storage[4096], expected_storage[4096];
        for (size_t k = 0; k < 4096; k++) storage[k] = expected_storage[k] = (uint16_t)(k * 16 + k / 256);
        wb_tensor_view *view = edit_find(e, "model.embed_tokens.weight");
        view->dtype = dtypes[d];
        view->data = storage;
        view->bytes = sizeof storage;
        temp_path out = edit_end(e, NULL);
        wb_device *device;
        wb_comm *comm;
        wb_model *m = open_one(out.text, WB_F32, &device, &comm);
        float *host = malloc(4096 * sizeof *host), *expected = malloc(4096 * sizeof *expected);
        assert_int_equal(
            device->to_host(device, host, wb_model_weight(m, m->embed).data, 4096 * sizeof *host), WB_OK);
        wb_convert(4096, expected_storage, dtypes[d], expected, WB_F32);
        assert_memory_equal(host, expected, 4096 * sizeof *host);
        free(host);
        free(expected);
        close_one(m, device, comm);
    }
}

/* ---- saving ---------------------------------------------------------------------------------- */

static void expect_same_tensors(const char *a_dir, const char *b_dir) {
    wb_safetensors *a = NULL, *b = NULL;
    wb_tensor_view x, y;
    assert_int_equal(wb_safetensors_open(a_dir, NULL, &a), WB_OK);
    assert_int_equal(wb_safetensors_open(b_dir, NULL, &b), WB_OK);
    assert_int_equal(wb_safetensors_count(a), wb_safetensors_count(b));
    for (size_t i = 0; i < wb_safetensors_count(a); i++) {
        assert_int_equal(wb_safetensors_get(a, i, &x), WB_OK);
        assert_int_equal(wb_safetensors_get(b, i, &y), WB_OK);
        assert_string_equal(x.name, y.name);
        assert_int_equal(x.dtype, y.dtype);
        assert_int_equal(x.n_dims, y.n_dims);
        assert_memory_equal(x.shape, y.shape, (size_t)x.n_dims * sizeof x.shape[0]);
        assert_memory_equal(x.data, y.data, x.bytes);
    }
    wb_safetensors_close(a);
    wb_safetensors_close(b);
}

static void test_save_and_reopen_with_other_rank_counts(void **state) {
    (void)state;
    static const int rank_counts[] = {1, 2, 4};
    for (size_t i = 0; i < 3; i++) {
        temp_path out = temp_in(dir.text, "saved"), from = golden(families[i % 2]);
        open_expect_save(from.text, WB_F32, rank_counts[i], from.text, out.text);
        expect_same_tensors(from.text, out.text);
        for (size_t k = 0; k < 3; k++) open_expect_save(out.text, WB_F32, rank_counts[k], from.text, NULL);
        size_t bytes, other;
        char *a = temp_read(temp_in(out.text, "config.json").text, &bytes);
        char *b = temp_read(temp_in(from.text, "config.json").text, &other);
        assert_string_equal(a, b);
        free(a);
        free(b);
        assert_true(temp_exists(temp_in(out.text, "generation_config.json").text));
    }
}

static void test_index_of_several_ranks(void **state) {
    (void)state;
    temp_path out = temp_in(dir.text, "parents/are/made");
    open_expect_save(golden("qwen3_moe").text, WB_F32, 2, NULL, out.text);
    json_t *index = json_load_file(temp_in(out.text, "model.safetensors.index.json").text, 0, NULL);
    assert_non_null(index);
    json_t *map = json_object_get(index, "weight_map");
    assert_int_equal(json_object_size(map), 174);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(index, "metadata"), "total_size")),
                     408832);
    assert_string_equal(
        json_string_value(json_object_get(map, "model.layers.0.mlp.experts.7.up_proj.weight")),
        "model-00001-of-00002.safetensors");
    assert_string_equal(
        json_string_value(json_object_get(map, "model.layers.0.mlp.experts.8.up_proj.weight")),
        "model-00002-of-00002.safetensors");
    assert_string_equal(json_string_value(json_object_get(map, "lm_head.weight")),
                        "model-00001-of-00002.safetensors");
    json_decref(index);
}

/* A directory holds one save: files of an earlier one with another rank count go, other files stay. */
static void test_stale_files_of_an_earlier_save_go(void **state) {
    (void)state;
    temp_path out = temp_in(dir.text, "reused");
    temp_path single = temp_in(out.text, "model.safetensors"),
              index = temp_in(out.text, "model.safetensors.index.json");
    temp_path first = temp_in(out.text, "model-00001-of-00004.safetensors");
    temp_path second = temp_in(out.text, "model-00002-of-00002.safetensors");
    temp_path left = temp_in(out.text, "model-00009-of-00009.safetensors.123.tmp");
    temp_path other = temp_in(out.text, "model-notes.safetensors");
    open_expect_save(golden("qwen3_moe").text, WB_F32, 4, NULL, out.text);
    assert_true(temp_exists(first.text) && temp_exists(index.text) && !temp_exists(single.text));
    temp_write(left.text, "x", 1);
    temp_write(other.text, "x", 1);
    open_expect_save(golden("qwen3_moe").text, WB_F32, 1, NULL, out.text);
    assert_true(!temp_exists(first.text) && !temp_exists(index.text) && temp_exists(single.text));
    assert_true(!temp_exists(left.text) && temp_exists(other.text));
    open_expect_save(golden("qwen3_moe").text, WB_F32, 2, NULL, out.text);
    assert_true(!temp_exists(single.text) && temp_exists(index.text) && temp_exists(second.text));
    expect_same_tensors(golden("qwen3_moe").text, out.text);
}

static void test_save_over_the_source(void **state) {
    (void)state;
    temp_path out = temp_in(dir.text, "in_place");
    open_expect_save(golden("olmoe").text, WB_F32, 1, NULL, out.text);
    temp_write(temp_in(out.text, "tokenizer.json").text, "{}", 2);
    open_expect_save(out.text, WB_F32, 2, golden("olmoe").text, out.text);
    expect_same_tensors(golden("olmoe").text, out.text);
    assert_true(temp_exists(temp_in(out.text, "tokenizer.json").text));
}

static void expect_text(temp_path folder, const char *name, const char *expected) {
    char *text = temp_read(temp_in(folder.text, name).text, NULL);
    assert_string_equal(text, expected);
    free(text);
}

static void test_small_files_come_along(void **state) {
    (void)state;
    static const char *const copied[] = {"tokenizer.json", "tokenizer.bin", "vocab.txt", "spiece.model",
                                         "chat.jinja"};
    static const char *const left[] = {"notes.md", "other.safetensors", "pytorch_model.bin.index.json"};
    temp_path from = temp_in(dir.text, "with_tokenizer"), out = temp_in(dir.text, "with_tokenizer_saved");
    open_expect_save(golden("olmoe").text, WB_F32, 1, NULL, from.text);
    for (size_t i = 0; i < 5; i++)
        temp_write(temp_in(from.text, copied[i]).text, copied[i], strlen(copied[i]));
    for (size_t i = 0; i < 3; i++) temp_write(temp_in(from.text, left[i]).text, "x", 1);
    open_expect_save(from.text, WB_BF16, 1, NULL, out.text);
    for (size_t i = 0; i < 5; i++) expect_text(out, copied[i], copied[i]);
    for (size_t i = 0; i < 3; i++) assert_false(temp_exists(temp_in(out.text, left[i]).text));
    json_t *config = json_load_file(temp_in(out.text, "config.json").text, 0, NULL);
    assert_string_equal(json_string_value(json_object_get(config, "dtype")), "bfloat16");
    json_decref(config);
    open_expect_save(out.text, WB_BF16, 1, out.text, NULL);
}

static void test_unwritable_directory(void **state) {
    (void)state;
    temp_path file = temp_in(dir.text, "a_file"), out = temp_in(file.text, "below");
    temp_write(file.text, "x", 1);
    for (int ranks = 1; ranks <= 2; ranks++) {
        job j = open_job(golden("olmoe").text, WB_F32);
        j.save = out.text;
        run_job(&j, ranks);
        for (int r = 0; r < ranks; r++) {
            assert_int_equal(j.status[r], WB_IO);
            assert_non_null(strstr(j.message[r], "a_file"));
        }
    }
}

/* One rank cannot write: all leave with an error, and the save that was there is as it was. */
static void test_failed_save_keeps_the_earlier_one(void **state) {
    (void)state;
    temp_path out = temp_in(dir.text, "kept"), block;
    char name[64];
    snprintf(name, sizeof name, "model-00003-of-00004.safetensors.%d.tmp", (int)getpid());
    block = temp_in(out.text, name);
    open_expect_save(golden("qwen3_moe").text, WB_F32, 4, NULL, out.text);
    assert_int_equal(mkdir(block.text, 0777), 0);
    wb_config config;
    assert_int_equal(wb_config_load(golden("qwen3_moe").text, &config), WB_OK);
    job j = {.config = &config, .seed = 5, .dtype = WB_F32, .save = out.text};
    run_job(&j, 4);
    for (int r = 0; r < 4; r++) {
        assert_int_equal(j.status[r], r == 2 ? WB_IO : WB_PEER);
        assert_non_null(strstr(j.message[r], r == 2 ? "model-00003-of-00004" : "rank 2"));
        snprintf(name, sizeof name, "model-%05d-of-00004.safetensors.%d.tmp", r + 1, (int)getpid());
        assert_int_equal(temp_exists(temp_in(out.text, name).text), r == 2);
    }
    expect_same_tensors(golden("qwen3_moe").text, out.text);
}

/* The library's renames come here: one to refused_rename fails. */
static const char *refused_rename;
int rename(const char *from, const char *to) {
    if (refused_rename && strcmp(to, refused_rename) == 0) {
        errno = EIO;
        return -1;
    }
    return renameat(AT_FDCWD, from, AT_FDCWD, to);
}

/* One rank cannot put its shard in place while another did: no index is left over shards of two saves. */
static void test_half_done_save_has_no_index(void **state) {
    (void)state;
    temp_path out = temp_in(dir.text, "half"), block = temp_in(out.text, "model-00002-of-00002.safetensors");
    open_expect_save(golden("qwen3_moe").text, WB_F32, 2, NULL, out.text);
    job j = open_job(golden("qwen3_moe").text, WB_F32);
    j.save = out.text;
    refused_rename = block.text;
    run_job(&j, 2);
    refused_rename = NULL;
    assert_int_equal(j.status[0], WB_PEER);
    assert_int_equal(j.status[1], WB_IO);
    assert_non_null(strstr(j.message[1], "cannot be renamed"));
    expect_open_fails(out.text, WB_NOT_FOUND, "neither model.safetensors nor model.safetensors.index.json");
    open_expect_save(golden("qwen3_moe").text, WB_F32, 2, NULL, out.text);
    expect_same_tensors(golden("qwen3_moe").text, out.text);
}

/* An index or a single file that cannot be put in place leaves the earlier save, which can be opened. */
static void test_failed_change_of_layout_keeps_the_earlier_one(void **state) {
    (void)state;
    for (int ranks = 1; ranks <= 2; ranks++) {
        temp_path out = temp_in(dir.text, ranks == 1 ? "to_one" : "to_shards");
        temp_path last = temp_in(out.text, ranks == 1 ? "model.safetensors" : "model.safetensors.index.json");
        open_expect_save(golden("qwen3_moe").text, WB_F32, 3 - ranks, NULL, out.text);
        wb_config config;
        assert_int_equal(wb_config_load(golden("qwen3_moe").text, &config), WB_OK);
        job j = {.config = &config, .seed = 5, .dtype = WB_F32, .save = out.text};
        refused_rename = last.text;
        run_job(&j, ranks);
        refused_rename = NULL;
        assert_int_equal(j.status[0], WB_IO);
        open_expect_save(out.text, WB_F32, 1, golden("qwen3_moe").text, NULL);
    }
}

/* ---- creating -------------------------------------------------------------------------------- */

static void create_save(const wb_config *config, uint64_t seed, wb_dtype dtype, int ranks, const char *save) {
    job j = {.config = config, .seed = seed, .dtype = dtype, .save = save};
    run_job(&j, ranks);
    expect_all_ok(&j, ranks);
}

static void test_a_seed_gives_the_same_model_at_any_rank_count(void **state) {
    (void)state;
    wb_config config;
    temp_path one = temp_in(dir.text, "seed_one"), many = temp_in(dir.text, "seed_many");
    assert_int_equal(wb_config_load(golden("qwen3_moe").text, &config), WB_OK);
    config.router.n_experts = 3; /* fewer than ranks */
    config.router.top_k = 2;
    create_save(&config, 7, WB_F32, 1, one.text);
    for (int ranks = 2; ranks <= 5; ranks++) {
        create_save(&config, 7, WB_F32, ranks, many.text);
        expect_same_tensors(one.text, many.text);
        open_expect_save(many.text, WB_F32, 6 - ranks, one.text, NULL);
    }
}

/* All that a configuration can switch on: dense layers, biases, tied embeddings. */
static void test_created_models_read_back(void **state) {
    (void)state;
    wb_config config;
    temp_path out = temp_in(dir.text, "created");
    assert_int_equal(wb_config_load(golden("qwen3_moe").text, &config), WB_OK);
    config.moe_layer_mask[0] = 5;
    config.attention_bias = true;
    config.tie_word_embeddings = true;
    create_save(&config, 1, WB_F32, 2, out.text);
    open_expect_save(out.text, WB_F32, 1, out.text, NULL);
    wb_safetensors *st = NULL;
    wb_tensor_view view;
    assert_int_equal(wb_safetensors_open(out.text, NULL, &st), WB_OK);
    assert_int_equal(wb_safetensors_find(st, "lm_head.weight", &view), WB_NOT_FOUND);
    assert_int_equal(wb_safetensors_find(st, "model.layers.1.mlp.gate.weight", &view), WB_NOT_FOUND);
    assert_int_equal(wb_safetensors_find(st, "model.layers.1.mlp.up_proj.weight", &view), WB_OK);
    assert_int_equal(view.shape[0], 48);
    assert_int_equal(wb_safetensors_find(st, "model.layers.2.self_attn.q_proj.bias", &view), WB_OK);
    for (size_t b = 0; b < view.bytes; b++) assert_int_equal(((const unsigned char *)view.data)[b], 0);
    assert_int_equal(wb_safetensors_find(st, "model.norm.weight", &view), WB_OK);
    float first;
    memcpy(&first, view.data, 4);
    assert_true(first == 1.0f);
    wb_safetensors_close(st);
    assert_int_equal(wb_config_load(golden("olmoe").text, &config), WB_OK);
    config.clip_qkv = 2;
    create_save(&config, 2, WB_BF16, 1, out.text);
    open_expect_save(out.text, WB_BF16, 3, out.text, NULL);
}

static void test_created_weights_are_normal_and_differ_by_seed_and_name(void **state) {
    (void)state;
    wb_device *device;
    wb_comm *comm;
    wb_model *golden_model = open_one(golden("olmoe").text, WB_F32, &device, &comm), *a = NULL, *b = NULL;
    wb_config config = *wb_model_config(golden_model);
    wb_model_options options = {.size = sizeof(wb_model_options),
                                .device = device,
                                .comm = comm,
                                .dtype = WB_F32,
                                .activations = WB_F32};
    assert_int_equal(wb_model_create(&config, 1, 0.5f, &options, &a), WB_OK);
    assert_int_equal(wb_model_create(&config, 2, 0.5f, &options, &b), WB_OK);
    double sum = 0, squares = 0, beyond = 0, n = 0;
    for (int32_t i = 0; i < wb_model_n_tensors(a); i++) {
        wb_tensor t = wb_model_tensor(a, i), u = wb_model_tensor(b, i);
        if (t.n_dims == 1) continue;
        assert_memory_not_equal(t.data, u.data, (size_t)t.n * 4);
        if (i > 0 && wb_model_tensor(a, i - 1).n == t.n)
            assert_memory_not_equal(t.data, wb_model_tensor(a, i - 1).data, (size_t)t.n * 4);
        for (int64_t k = 0; k < t.n; k++) {
            double x = (double)((const float *)t.data)[k] / 0.5;
            sum += x;
            squares += x * x;
            beyond += fabs(x) > 2;
            n++;
        }
    }
    assert_true(fabs(sum / n) <= 5 / sqrt(n));
    assert_true(fabs(squares / n - 1) <= 0.02);
    assert_true(fabs(beyond / n - 0.0455) <= 0.004); /* of a normal distribution */
    assert_int_equal(wb_model_create(&config, 2, NAN, &options, &golden_model), WB_INVALID_ARGUMENT);
    wb_model_close(a);
    wb_model_close(b);
    close_one(golden_model, device, comm);
}

static void test_copy_weights_needs_the_same_model(void **state) {
    (void)state;
    wb_device *device;
    wb_comm *comm;
    wb_model *qwen = open_one(golden("qwen3_moe").text, WB_F32, &device, &comm), *olmoe = NULL, *fresh = NULL;
    wb_model_options options = {.size = sizeof(wb_model_options),
                                .device = device,
                                .comm = comm,
                                .dtype = WB_F32,
                                .activations = WB_F32};
    assert_int_equal(wb_model_open(golden("olmoe").text, &options, &olmoe), WB_OK);
    assert_int_equal(wb_model_copy_weights(olmoe, qwen), WB_MISMATCH);
    assert_int_equal(wb_model_create(wb_model_config(qwen), 3, 0.1f, &options, &fresh), WB_OK);
    assert_int_equal(wb_model_copy_weights(fresh, qwen), WB_OK);
    int32_t differing = 0, owned = 0;
    assert_int_equal(compare(fresh, golden("qwen3_moe").text, &differing, &owned), WB_OK);
    assert_int_equal(differing, 0);
    /* Two experts changed places: a copy storage by storage would give each the other's weights. */
    int32_t expert_of_slot[256];
    for (int32_t e = 0; e < 256; e++) expert_of_slot[e] = e < 2 ? 1 - e : e;
    assert_true(wb_model_config(qwen)->router.n_experts <= 256);
    assert_int_equal(wb_expert_placement_set(fresh, expert_of_slot), WB_OK);
    assert_int_equal(wb_model_copy_weights(fresh, qwen), WB_MISMATCH);
    assert_message_has("experts are placed differently");
    wb_model_close(fresh);
    wb_model_close(olmoe);
    close_one(qwen, device, comm);
}

/* ---- fingerprint ----------------------------------------------------------------------------- */

static void fingerprint_of(const wb_config *config, char out[33]) {
    wb_device *device;
    wb_comm *comm;
    wb_model *model = NULL;
    assert_int_equal(wb_device_open_cpu(1, &device), WB_OK);
    assert_int_equal(wb_comm_open_self(&comm), WB_OK);
    wb_model_options options = {.size = sizeof(wb_model_options),
                                .device = device,
                                .comm = comm,
                                .dtype = WB_F32,
                                .activations = WB_F32};
    if (wb_model_create(config, 1, 0.1f, &options, &model) != WB_OK) fail_msg("%s", wb_error_message());
    memcpy(out, wb_model_routes(model)->fingerprint, 33);
    close_one(model, device, comm);
}

/* Dumps of other machines carry these: they must never change. */
static void test_fingerprint_is_a_function_of_the_architecture(void **state) {
    (void)state;
    wb_config config, changed[16];
    char seen[17][33];
    assert_int_equal(wb_config_load(golden("olmoe").text, &config), WB_OK);
    fingerprint_of(&config, seen[0]);
    assert_string_equal(seen[0], "643c184014a65c244dfa610011c5ba4b");
    assert_int_equal(wb_config_load(golden("qwen3_moe").text, &config), WB_OK);
    fingerprint_of(&config, seen[0]);
    assert_string_equal(seen[0], "016f76ce122bebcf4a28480bbf32819f");
    for (size_t i = 0; i < 16; i++) changed[i] = config;
    changed[0].hidden_size = 34;
    changed[1].n_layers = 2;
    changed[1].moe_layer_mask[0] = 3;
    changed[2].n_heads = 6;
    changed[3].n_kv_heads = 1;
    changed[4].head_dim = 8;
    changed[5].expert_width = 8;
    changed[6].moe_layer_mask[0] = 3;
    changed[7].vocab_size = 64;
    changed[8].norm_eps = 1e-5f;
    changed[9].rope_theta = 1e6;
    changed[10].tie_word_embeddings = true;
    changed[11].attention_bias = true;
    changed[12].router.type = WB_ROUTER_SOFTMAX;
    changed[13].router.n_experts = 8;
    changed[14].router.top_k = 2;
    changed[15].moe_layer_mask[0] = 3;
    changed[15].dense_width = 24;
    for (size_t i = 0; i < 16; i++) {
        fingerprint_of(&changed[i], seen[i + 1]);
        for (size_t k = 0; k <= i; k++) assert_string_not_equal(seen[i + 1], seen[k]);
    }
    config.max_positions = 64;
    config.dense_width = 999; /* no layer is dense */
    fingerprint_of(&config, seen[1]);
    assert_string_equal(seen[1], seen[0]);
}

/* What no family of today has: the fields are set behind the check of a configuration. */
static void test_fingerprint_names_groups_and_normalization(void **state) {
    (void)state;
    static const wb_router fields[] = {
        {.type = WB_ROUTER_SOFTMAX_NORM},
        {.type = WB_ROUTER_SOFTMAX_NORM, .n_group = 4, .topk_group = 2},
        {.type = WB_ROUTER_SOFTMAX_NORM, .n_group = 4, .topk_group = 3},
        {.type = WB_ROUTER_SOFTMAX_NORM, .n_group = 8, .topk_group = 2},
        {.type = WB_ROUTER_SIGMOID},
        {.type = WB_ROUTER_SIGMOID, .normalize = true},
        /* as the first: no limit, and a type that does not look at it */
        {.type = WB_ROUTER_SOFTMAX_NORM, .n_group = 1, .topk_group = 1, .normalize = true},
    };
    enum { N = sizeof fields / sizeof fields[0] };
    wb_device *device;
    wb_comm *comm;
    char seen[N][33];
    wb_model *model = open_one(golden("qwen3_moe").text, WB_F32, &device, &comm);
    const wb_router router = model->config.router;
    for (int i = 0; i < N; i++) {
        model->config.router = fields[i];
        model->config.router.n_experts = router.n_experts;
        model->config.router.top_k = router.top_k;
        model->config.router.scale = router.scale;
        assert_int_equal(wb_model_describe_routes(model), WB_OK);
        memcpy(seen[i], model->route_model.fingerprint, sizeof seen[i]);
        for (int k = 0; k < i && i < N - 1; k++) assert_string_not_equal(seen[i], seen[k]);
    }
    assert_string_equal(seen[0], "016f76ce122bebcf4a28480bbf32819f");
    assert_string_equal(seen[N - 1], seen[0]);
    close_one(model, device, comm);
}

/* ---- checkpoints that do not fit ------------------------------------------------------------- */

static void test_missing_tensor(void **state) {
    (void)state;
    edit *e = edit_begin("qwen3_moe", "missing");
    edit_remove(e, "model.layers.1.mlp.experts.3.up_proj.weight");
    temp_path out = edit_end(e, NULL);
    expect_open_fails(out.text, WB_NOT_FOUND,
                      "missing: missing tensor model.layers.1.mlp.experts.3.up_proj.weight [16, 32]");
}

/* The rank that has nothing to do with the tensor notices as well. */
static void test_missing_tensor_of_another_rank(void **state) {
    (void)state;
    edit *e = edit_begin("qwen3_moe", "missing_far");
    edit_remove(e, "model.layers.1.mlp.experts.15.up_proj.weight");
    temp_path out = edit_end(e, NULL);
    job j = open_job(out.text, WB_F32);
    run_job(&j, 4);
    for (int r = 0; r < 4; r++) assert_int_equal(j.status[r], WB_NOT_FOUND);
}

static void test_surplus_tensor(void **state) {
    (void)state;
    edit *e = edit_begin("olmoe", "surplus");
    wb_tensor_view extra = e->views[0];
    extra.name = "model.layers.7.self_attn.q_proj.weight";
    e->views[e->n++] = extra;
    temp_path out = edit_end(e, NULL);
    expect_open_fails(out.text, WB_MISMATCH,
                      "surplus tensor model.layers.7.self_attn.q_proj.weight [128, 32]");
}

/* What checkpoints carry and nobody needs. */
static void test_harmless_extras(void **state) {
    (void)state;
    edit *e = edit_begin("olmoe", "harmless");
    wb_tensor_view extra = {.name = "model.layers.0.self_attn.rotary_emb.inv_freq",
                            .dtype = WB_I64,
                            .n_dims = 1,
                            .shape = {4},
                            .data = e->views[0].data,
                            .bytes = 32};
    e->views[e->n++] = extra;
    json_t *root = json_load_file(temp_in(e->out.text, "config.json").text, 0, NULL);
    json_object_set_new(root, "tie_word_embeddings", json_true());
    assert_int_equal(json_dump_file(root, temp_in(e->out.text, "config.json").text, 0), 0);
    json_decref(root);
    temp_path out = edit_end(e, NULL); /* lm_head.weight is there though tied */
    open_expect_save(out.text, WB_F32, 1, golden("olmoe").text, NULL);
}

static void test_wrong_shape(void **state) {
    (void)state;
    edit *e = edit_begin("qwen3_moe", "shape");
    wb_tensor_view *view = edit_find(e, "model.layers.0.self_attn.q_proj.weight");
    view->shape[0] = 32;
    view->shape[1] = 64;
    temp_path out = edit_end(e, NULL);
    expect_open_fails(
        out.text, WB_MISMATCH,
        "shape/model.safetensors: tensor model.layers.0.self_attn.q_proj.weight: expected shape [64, 32], "
        "found [32, 64]");
    e = edit_begin("qwen3_moe", "dims");
    view = edit_find(e, "model.norm.weight");
    view->n_dims = 2;
    view->shape[1] = 1;
    out = edit_end(e, NULL);
    expect_open_fails(out.text, WB_MISMATCH, "model.norm.weight: expected shape [32], found [32, 1]");
}

static void test_wrong_dtype(void **state) {
    (void)state;
    edit *e = edit_begin("qwen3_moe", "dtype");
    wb_tensor_view *view = edit_find(e, "model.norm.weight");
    view->dtype = WB_I32;
    temp_path out = edit_end(e, NULL);
    expect_open_fails(
        out.text, WB_UNSUPPORTED,
        "dtype/model.safetensors: tensor model.norm.weight [32]: expected dtype f32, bf16 or f16, found "
        "i32");
}

static void test_missing_files(void **state) {
    (void)state;
    temp_path empty = temp_in(dir.text, "nothing");
    assert_int_equal(mkdir(empty.text, 0777), 0);
    expect_open_fails(temp_in(dir.text, "no_such_folder").text, WB_NOT_FOUND, "/no_such_folder/config.json");
    expect_open_fails(empty.text, WB_NOT_FOUND, "nothing/config.json");
    temp_copy(temp_in(golden("olmoe").text, "config.json").text, temp_in(empty.text, "config.json").text);
    expect_open_fails(empty.text, WB_NOT_FOUND, "model.safetensors");
}

static void test_bad_options(void **state) {
    (void)state;
    wb_device *device;
    wb_comm *comm;
    wb_model *model = open_one(golden("olmoe").text, WB_F32, &device, &comm), *out = NULL;
    wb_model_options options = {.size = sizeof(wb_model_options),
                                .device = device,
                                .comm = comm,
                                .dtype = WB_F16,
                                .activations = WB_F32};
    assert_int_equal(wb_model_open(golden("olmoe").text, &options, &out), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_model_open(golden("olmoe").text, NULL, &out), WB_INVALID_ARGUMENT);
    options.comm = NULL;
    assert_int_equal(wb_model_create(wb_model_config(model), 1, 1, &options, &out), WB_INVALID_ARGUMENT);
    options = (wb_model_options){.size = sizeof(wb_model_options),
                                 .device = device,
                                 .comm = comm,
                                 .dtype = WB_F32,
                                 .activations = WB_F32};
    assert_int_equal(wb_model_open(NULL, &options, &out), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_model_create(NULL, 1, 1, &options, &out), WB_INVALID_ARGUMENT);
    options.activations = WB_F16;
    assert_int_equal(wb_model_open(golden("olmoe").text, &options, &out), WB_INVALID_ARGUMENT);
    assert_message_has("activations: expected f32 or bf16, found f16");
    options.activations = WB_F32;
    options.size = 0; /* not from the initialiser */
    assert_int_equal(wb_model_open(golden("olmoe").text, &options, &out), WB_INVALID_ARGUMENT);
    assert_message_has("model options");
    struct {
        wb_model_options known;
        int64_t later;
    } longer = {.known = {.size = sizeof longer,
                          .device = device,
                          .comm = comm,
                          .dtype = WB_F32,
                          .activations = WB_F32},
                .later = 1};
    assert_int_equal(wb_model_open(golden("olmoe").text, &longer.known, &out), WB_INVALID_ARGUMENT);
    assert_message_has("model options");
    assert_int_equal(wb_model_save(model, NULL), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_model_save(model, ""), WB_INVALID_ARGUMENT);
    assert_null(out);
    wb_model_close(NULL);
    close_one(model, device, comm);
}

/* ---- ranks that disagree --------------------------------------------------------------------- */

static void expect_two_disagree(const char *first, const char *second, const char *what) {
    job j = open_job(first, WB_F32);
    j.open[1] = second;
    run_job(&j, 2);
    for (int r = 0; r < 2; r++) {
        assert_int_equal(j.status[r], WB_PEER);
        if (!strstr(j.message[r], what)) fail_msg("rank %d: '%s' has no '%s'", r, j.message[r], what);
    }
}

static void expect_disagreement(const char *second, const char *what) {
    expect_two_disagree(golden("qwen3_moe").text, second, what);
}

/* The model of `from` with element `at` of tensor `name` changed by a bit; name NULL: with none. */
static temp_path with_other_bit(const char *from, const char *folder, const char *name, size_t at) {
    edit *e = edit_begin_from(from, folder);
    if (!name) return edit_end(e, NULL);
    wb_tensor_view *view = edit_find(e, name);
    uint32_t *copy = malloc(view->bytes);
    assert_non_null(copy);
    assert_true(at < view->bytes / 4);
    memcpy(copy, view->data, view->bytes);
    copy[at] ^= 1;
    view->data = copy;
    temp_path out = edit_end(e, NULL);
    free(copy);
    return out;
}

/* Of what all ranks hold, every bit is compared, and so is every bit of an expert of 4 KiB. */
static void test_ranks_with_other_weights_of_the_same_shape(void **state) {
    (void)state;
    static const char *const names[] = {"model.layers.1.self_attn.q_proj.weight",
                                        "model.layers.0.mlp.experts.3.up_proj.weight"};
    temp_path same = with_other_bit(golden("qwen3_moe").text, "bits_same", NULL, 0);
    for (size_t i = 0; i < 2; i++) {
        temp_path other = with_other_bit(same.text, i ? "bits_expert" : "bits_attention", names[i], 5);
        expect_two_disagree(same.text, other.text, names[i]);
        expect_two_disagree(other.text, same.text, "rank 1");
    }
    job j = open_job(same.text, WB_F32);
    run_job(&j, 2);
    expect_all_ok(&j, 2);
}

/* Of an expert above 4 KiB the middle is compared: whoever trained it has changed that as well. */
static void test_ranks_with_other_large_experts(void **state) {
    (void)state;
    static const char name[] = "model.layers.2.mlp.experts.15.down_proj.weight";
    const size_t n = 32 * 96;
    temp_path made = temp_in(dir.text, "large_made");
    wb_config config;
    assert_int_equal(wb_config_load(golden("qwen3_moe").text, &config), WB_OK);
    config.expert_width = 96;
    create_save(&config, 3, WB_F32, 1, made.text);
    temp_path same = with_other_bit(made.text, "large_same", NULL, 0);
    expect_two_disagree(same.text, with_other_bit(same.text, "large_middle", name, n / 2).text, name);
}

/* Every expert of a fused tensor is compared, not the tensor's middle alone. */
static void test_ranks_with_other_fused_experts(void **state) {
    (void)state;
    temp_path same = with_other_bit(with_fused_experts("fused_made", "").text, "fused_same", NULL, 0);
    temp_path first = with_other_bit(same.text, "fused_first", "model.layers.0.mlp.experts.gate_up_proj", 7);
    temp_path last =
        with_other_bit(same.text, "fused_last", "model.layers.2.mlp.experts.down_proj", 15 * 512 + 256);
    expect_two_disagree(same.text, first.text, "model.layers.0.mlp.experts.0.gate_proj.weight");
    expect_two_disagree(same.text, last.text, "model.layers.2.mlp.experts.15.down_proj.weight");
}

/* The directory that a model came from is not needed any more. */
static void test_a_base_that_is_gone_takes_nothing_along(void **state) {
    (void)state;
    temp_path base = temp_in(dir.text, "base_gone"), out = temp_in(dir.text, "base_gone_saved");
    wb_device *device;
    wb_comm *comm;
    open_expect_save(golden("olmoe").text, WB_F32, 1, NULL, base.text);
    temp_write(temp_in(base.text, "tokenizer.json").text, "words", 5);
    wb_model *model = open_one(base.text, WB_F32, &device, &comm);
    assert_int_equal(rename(base.text, temp_in(dir.text, "base_elsewhere").text), 0);
    if (wb_model_save(model, out.text) != WB_OK) fail_msg("%s", wb_error_message());
    expect_text(out, "tokenizer.json", "words");
    close_one(model, device, comm);
    open_expect_save(out.text, WB_F32, 1, golden("olmoe").text, NULL);
}

/* A run that resumes from its checkpoint saves into a new directory, which takes the place of the one that it
 * came from. File systems give the new one the number of one that is gone. */
static void test_a_base_that_is_replaced_again_and_again(void **state) {
    (void)state;
    temp_path base = temp_in(dir.text, "replaced"), fresh = temp_in(dir.text, "replaced_new");
    wb_device *device;
    wb_comm *comm;
    open_expect_save(golden("olmoe").text, WB_F32, 1, NULL, base.text);
    temp_write(temp_in(base.text, "tokenizer.json").text, "words", 5);
    wb_model *model = open_one(base.text, WB_F32, &device, &comm);
    for (int i = 0; i < 4; i++) {
        if (wb_model_save(model, fresh.text) != WB_OK) fail_msg("%s", wb_error_message());
        temp_remove(base);
        assert_int_equal(rename(fresh.text, base.text), 0);
        expect_text(base, "tokenizer.json", "words");
    }
    close_one(model, device, comm);
}

/* Saved where it is from: what is there is somebody's, and newer; what is missing comes back. */
static void test_small_files_where_the_model_is_from(void **state) {
    (void)state;
    temp_path base = temp_in(dir.text, "from_here"), vocab = temp_in(base.text, "vocab.txt");
    wb_device *device;
    wb_comm *comm;
    open_expect_save(golden("olmoe").text, WB_F32, 1, NULL, base.text);
    temp_write(temp_in(base.text, "tokenizer.json").text, "words", 5);
    temp_write(vocab.text, "a b c", 5);
    wb_model *model = open_one(base.text, WB_F32, &device, &comm);
    temp_write(temp_in(base.text, "tokenizer.json").text, "newer", 5);
    assert_int_equal(unlink(vocab.text), 0);
    if (wb_model_save(model, base.text) != WB_OK) fail_msg("%s", wb_error_message());
    expect_text(base, "tokenizer.json", "newer");
    expect_text(base, "vocab.txt", "a b c");
    close_one(model, device, comm);
}

/* What cannot be kept does not stop a model from being opened, and is said. */
static void test_small_files_that_stay_behind(void **state) {
    (void)state;
    temp_path base = temp_in(dir.text, "too_large"), out = temp_in(dir.text, "too_large_saved");
    temp_path large = temp_in(base.text, "large.json");
    wb_device *device;
    wb_comm *comm;
    open_expect_save(golden("olmoe").text, WB_F32, 1, NULL, base.text);
    temp_write(temp_in(base.text, "tokenizer.json").text, "words", 5);
    temp_write(large.text, "x", 1);
    assert_int_equal(truncate(large.text, ((off_t)64 << 20) + 1), 0);
    assert_int_equal(symlink("nowhere", temp_in(base.text, "vocab.txt").text), 0);
    wb_model *model = open_one(base.text, WB_F32, &device, &comm);
    assert_non_null(wb_model_note(model));
    assert_non_null(strstr(wb_model_note(model), "too_large"));
    assert_non_null(
        strstr(wb_model_note(model), "large.json: expected at most 67108864 bytes, found 67108865"));
    assert_non_null(strstr(wb_model_note(model), "vocab.txt"));
    assert_null(strstr(wb_model_note(model), "tokenizer.json"));
    if (wb_model_save(model, out.text) != WB_OK) fail_msg("%s", wb_error_message());
    expect_text(out, "tokenizer.json", "words");
    assert_false(temp_exists(temp_in(out.text, "large.json").text));
    close_one(model, device, comm);
}

static void expect_same_text(temp_path a, temp_path b, const char *name) {
    char *expected = temp_read(temp_in(a.text, name).text, NULL);
    char *found = temp_read(temp_in(b.text, name).text, NULL);
    assert_string_equal(expected, found);
    free(expected);
    free(found);
}

/* A clone outlives what it was made from, and its checkpoint has all that the other one's would have. */
static void test_a_clone_saves_what_the_original_would(void **state) {
    (void)state;
    temp_path base = temp_in(dir.text, "cloned"),
              out[2] = {temp_in(dir.text, "cloned_original"), temp_in(dir.text, "cloned_clone")};
    wb_model *model, *clone;
    wb_model_options options = wb_model_options_default();
    open_expect_save(golden("olmoe").text, WB_F32, 1, NULL, base.text);
    temp_write(temp_in(base.text, "tokenizer.json").text, "words", 5);
    char *config = temp_read(temp_in(base.text, "config.json").text, NULL), longer[8192];
    const int n = snprintf(longer, sizeof longer, "{\"unknown_to_us\": 7, %s", strchr(config, '{') + 1);
    free(config);
    temp_write(temp_in(base.text, "config.json").text, longer, (size_t)n);
    assert_int_equal(wb_device_open_cpu(1, &options.device), WB_OK);
    assert_int_equal(wb_comm_open_self(&options.comm), WB_OK);
    assert_int_equal(wb_model_open(base.text, &options, &model), WB_OK);
    assert_int_equal(wb_model_clone(model, &options, &clone), WB_OK);
    assert_int_equal(wb_model_save(model, out[0].text), WB_OK);
    wb_model_close(model);
    assert_int_equal(wb_model_save(clone, out[1].text), WB_OK);
    wb_model_close(clone);
    wb_comm_close(options.comm);
    wb_device_close(options.device);
    expect_same_tensors(out[0].text, out[1].text);
    expect_same_text(out[0], out[1], "config.json");
    expect_same_text(base, out[1], "tokenizer.json");
}

static void test_ranks_that_open_different_models(void **state) {
    (void)state;
    edit *e = edit_begin("qwen3_moe", "other_header");
    temp_path other = edit_end(e, "{\"format\":\"pt\",\"from\":\"elsewhere\"}");
    expect_disagreement(golden("olmoe").text, "model fingerprint");
    expect_disagreement(other.text, "source of the weights");
}

static void test_a_failure_on_one_rank_ends_all(void **state) {
    (void)state;
    job j = open_job(golden("qwen3_moe").text, WB_F32);
    const temp_path missing = temp_in(dir.text, "no_such_folder");
    j.open[2] = missing.text;
    run_job(&j, 4);
    for (int r = 0; r < 4; r++) {
        assert_int_equal(j.status[r], r == 2 ? WB_NOT_FOUND : WB_PEER);
        assert_non_null(strstr(j.message[r], r == 2 ? missing.text : "rank 2"));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tensors_equal_the_file_at_any_rank_count),
        cmocka_unit_test(test_registry_describes_the_storages),
        cmocka_unit_test(test_rope_tables),
        cmocka_unit_test(test_fused_experts_give_the_same_model),
        cmocka_unit_test(test_wide_weights_are_rounded_to_nearest_even),
        cmocka_unit_test(test_conversion_of_every_half),
        cmocka_unit_test(test_rounding_at_the_edges),
        cmocka_unit_test(test_narrow_files_are_widened),
        cmocka_unit_test(test_save_and_reopen_with_other_rank_counts),
        cmocka_unit_test(test_index_of_several_ranks),
        cmocka_unit_test(test_stale_files_of_an_earlier_save_go),
        cmocka_unit_test(test_save_over_the_source),
        cmocka_unit_test(test_small_files_come_along),
        cmocka_unit_test(test_unwritable_directory),
        cmocka_unit_test(test_failed_save_keeps_the_earlier_one),
        cmocka_unit_test(test_half_done_save_has_no_index),
        cmocka_unit_test(test_failed_change_of_layout_keeps_the_earlier_one),
        cmocka_unit_test(test_a_seed_gives_the_same_model_at_any_rank_count),
        cmocka_unit_test(test_created_models_read_back),
        cmocka_unit_test(test_created_weights_are_normal_and_differ_by_seed_and_name),
        cmocka_unit_test(test_copy_weights_needs_the_same_model),
        cmocka_unit_test(test_fingerprint_is_a_function_of_the_architecture),
        cmocka_unit_test(test_fingerprint_names_groups_and_normalization),
        cmocka_unit_test(test_missing_tensor),
        cmocka_unit_test(test_missing_tensor_of_another_rank),
        cmocka_unit_test(test_surplus_tensor),
        cmocka_unit_test(test_harmless_extras),
        cmocka_unit_test(test_wrong_shape),
        cmocka_unit_test(test_wrong_dtype),
        cmocka_unit_test(test_missing_files),
        cmocka_unit_test(test_bad_options),
        cmocka_unit_test(test_a_clone_saves_what_the_original_would),
        cmocka_unit_test(test_ranks_that_open_different_models),
        cmocka_unit_test(test_ranks_with_other_weights_of_the_same_shape),
        cmocka_unit_test(test_ranks_with_other_large_experts),
        cmocka_unit_test(test_ranks_with_other_fused_experts),
        cmocka_unit_test(test_a_base_that_is_gone_takes_nothing_along),
        cmocka_unit_test(test_a_base_that_is_replaced_again_and_again),
        cmocka_unit_test(test_small_files_where_the_model_is_from),
        cmocka_unit_test(test_small_files_that_stay_behind),
        cmocka_unit_test(test_a_failure_on_one_rank_ends_all),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
