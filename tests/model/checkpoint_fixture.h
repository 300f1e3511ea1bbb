/* checkpoint_fixture.h - for the tests of checkpoints: a folder of their own, jobs of several ranks that
 * open, compare and save, and checkpoints that are made from the golden ones by edits. */
#ifndef WB_CHECKPOINT_FIXTURE_H
#define WB_CHECKPOINT_FIXTURE_H

#include "model_weights.h"
#include "support/temp_files.h"
#include "wb_json.h"

#include <pthread.h>

#define MAX_RANKS 8

static temp_path dir;

static inline int setup(void **state) {
    (void)state;
    dir = temp_dir();
    return 0;
}

static inline int teardown(void **state) {
    (void)state;
    temp_remove(dir);
    return 0;
}

static inline temp_path golden(const char *family) {
    return temp_in(WB_TEST_DATA, family);
}

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
static inline wb_status compare(const wb_model *model, const char *expect, int32_t *differing,
                                int32_t *owned) {
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

static inline wb_status rank_work(job *j, wb_comm *comm, wb_device *device) {
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

static inline void *rank_main(void *arg) {
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

static inline void run_job(job *j, int ranks) {
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

static inline job open_job(const char *path, wb_dtype dtype) {
    job j = {.dtype = dtype};
    for (int r = 0; r < MAX_RANKS; r++) j.open[r] = path;
    return j;
}

static inline void expect_all_ok(const job *j, int ranks) {
    for (int r = 0; r < ranks; r++) {
        if (j->status[r] != WB_OK) fail_msg("rank %d of %d: %s", r, ranks, j->message[r]);
        if (j->differing[r] != 0) fail_msg("rank %d of %d: %d tensors differ", r, ranks, j->differing[r]);
        assert_int_equal(j->n_tensors[r], j->n_tensors[0]);
        assert_string_equal(j->fingerprint[r], j->fingerprint[0]);
    }
}

/* Opens `path` on `ranks` ranks, where it must equal `expect`, and saves it. */
static inline void open_expect_save(const char *path, wb_dtype dtype, int ranks, const char *expect,
                                    const char *save) {
    job j = open_job(path, dtype);
    j.expect = expect;
    j.save = save;
    run_job(&j, ranks);
    expect_all_ok(&j, ranks);
}

/* One rank, an error with `status` and `part` in its message. */
static inline void expect_open_fails(const char *path, wb_status status, const char *part) {
    job j = open_job(path, WB_F32);
    run_job(&j, 1);
    if (j.status[0] != status || !strstr(j.message[0], part))
        fail_msg("expected status %d and '%s', found %d: %s", (int)status, part, (int)j.status[0],
                 j.message[0]);
}

typedef struct edit {
    wb_safetensors *st;
    wb_tensor_view views[512];
    size_t n;
    temp_path out;
} edit;

/* A directory `name` with the config.json of `from`, and all of its tensors as views to change. */
static inline edit *edit_begin_from(const char *from, const char *name) {
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

static inline edit *edit_begin(const char *family, const char *name) {
    return edit_begin_from(golden(family).text, name);
}

static inline wb_tensor_view *edit_find(edit *e, const char *name) {
    for (size_t i = 0; i < e->n; i++)
        if (strcmp(e->views[i].name, name) == 0) return &e->views[i];
    fail_msg("no tensor %s", name);
    return NULL;
}

static inline void edit_remove(edit *e, const char *name) {
    wb_tensor_view *view = edit_find(e, name);
    *view = e->views[--e->n];
}

static inline temp_path edit_end(edit *e, const char *metadata) {
    temp_path out = e->out, file = temp_in(out.text, "model.safetensors");
    assert_int_equal(wb_safetensors_write(file.text, e->n, e->views, metadata), WB_OK);
    wb_safetensors_close(e->st);
    free(e);
    return out;
}

static const char *const families[] = {"qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3"};
enum { N_FAMILIES = sizeof families / sizeof families[0] };

static inline wb_model *open_one(const char *path, wb_dtype dtype, wb_device **device, wb_comm **comm) {
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

static inline void close_one(wb_model *model, wb_device *device, wb_comm *comm) {
    wb_model_close(model);
    wb_comm_close(comm);
    wb_device_close(device);
}

/* olmoe with a layer's experts in one tensor, as transformers 5 keeps them; with and without ".weight". */
static inline temp_path with_fused_experts(const char *folder, const char *suffix) {
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

static inline void expect_same_tensors(const char *a_dir, const char *b_dir) {
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

static inline void create_save(const wb_config *config, uint64_t seed, wb_dtype dtype, int ranks,
                               const char *save) {
    job j = {.config = config, .seed = seed, .dtype = dtype, .save = save};
    run_job(&j, ranks);
    expect_all_ok(&j, ranks);
}

#endif
