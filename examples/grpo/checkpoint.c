/* checkpoint.c - what is in a checkpoint: the model in Hugging Face layout and, under trainer/, what a
 * bit-for-bit resume needs: optimizer-<rank>.safetensors (exp_avg and exp_avg_sq of each tensor, by its name,
 * and the f32 master of one that the model or its file has in bf16) and state.json (checkpoint_state.c).
 * Saving copies CHECKPOINT_CHUNK_BYTES at a time to the host. Refuses: where it lies (checkpoint_place.c). */
#include "checkpoint_place.h"
#include "wb_file.h"
#include "wb_memory.h"
#include "wb_tensor_io.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_BYTES = 512 };

/* ---- saving ---------------------------------------------------------------------------------- */

typedef struct optimizer_file {
    wb_device *device;
    wb_owner memory; /* owns the arrays */
    size_t n;
    wb_tensor_view *views; /* [n] `data` is on the device */
    char (*names)[NAME_BYTES];
    uint8_t *chunk; /* host [CHECKPOINT_CHUNK_BYTES] */
} optimizer_file;

/* A whole tensor has its shape, a part of one is a vector. */
static void add_part(optimizer_file *f, const wb_tensor *tensor, int64_t n, const char *suffix,
                     const wb_buffer *state) {
    const size_t i = f->n++;
    wb_tensor_view *view = &f->views[i];
    snprintf(f->names[i], NAME_BYTES, "%s.%s", tensor->name, suffix);
    *view = (wb_tensor_view){f->names[i], WB_F32, 1, {n}, state->data, (size_t)n * sizeof(float), NULL};
    if (n < tensor->n) return;
    view->n_dims = tensor->n_dims;
    for (int32_t d = 0; d < tensor->n_dims; d++) view->shape[d] = tensor->shape[d];
}

/* The state of a large model does not fit the host beside it: it crosses in chunks. */
static wb_status emit_part(void *ctx, size_t i, wb_new_file *file) {
    const optimizer_file *f = ctx;
    const char *data = f->views[i].data;
    for (size_t done = 0, part; done < f->views[i].bytes; done += part) {
        part = f->views[i].bytes - done < CHECKPOINT_CHUNK_BYTES ? f->views[i].bytes - done
                                                                 : CHECKPOINT_CHUNK_BYTES;
        WB_TRY(f->device->to_host(f->device, f->chunk, data + done, part));
        WB_TRY(wb_new_file_write(file, f->chunk, part));
    }
    return WB_OK;
}

static optimizer_part own_part(const trainer *t, const wb_tensor *tensor) {
    return optimizer_part_of(wb_model_config(t->model), tensor, wb_comm_rank(t->comm), wb_comm_size(t->comm));
}

/* Whether the model's file has less than the weight, which is then its own master: one of f32 that came as
 * bf16. */
static bool loses_bits(const wb_tensor *tensor) {
    return tensor->dtype == WB_F32 && tensor->file_dtype == WB_BF16;
}

/* Of an expert whole, by the rank that has its replica 0; of a replicated tensor this rank's part. */
static void add_rounded(const trainer *t, int32_t i, optimizer_file *f) {
    const wb_tensor tensor = wb_model_replica(t->model, i, 0);
    const optimizer_part whole = {0, tensor.data ? tensor.n : 0};
    const optimizer_part part = tensor.expert >= 0 ? whole : own_part(t, &tensor);
    const wb_buffer weight = {.data = tensor.data ? (float *)tensor.data + part.first : NULL};
    if (loses_bits(&tensor) && part.n > 0) add_part(f, &tensor, part.n, "master", &weight);
}

/* Experts are saved by their home rank, of replicated tensors each rank saves its part. */
static wb_status collect_parts(const trainer *t, optimizer_file *f) {
    int32_t n = wb_model_n_tensors(t->model);
    WB_TRY(WB_OWN(&f->memory, f->views, 3 * (size_t)n, "optimizer state"));
    WB_TRY(WB_OWN(&f->memory, f->names, 3 * (size_t)n, "optimizer state"));
    WB_TRY(WB_OWN(&f->memory, f->chunk, CHECKPOINT_CHUNK_BYTES, "optimizer state"));
    f->device = t->device;
    for (int32_t i = 0; i < n; i++) {
        const wb_tensor tensor = wb_model_tensor(t->model, i);
        const int64_t part = own_part(t, &tensor).n;
        add_rounded(t, i, f);
        if (part == 0 && tensor.expert >= 0) continue;
        add_part(f, &tensor, part, "exp_avg", &t->opt.m[i]);
        add_part(f, &tensor, part, "exp_avg_sq", &t->opt.v[i]);
        if (tensor.dtype != WB_F32) add_part(f, &tensor, part, "master", &t->opt.master[i]);
    }
    return WB_OK;
}

static wb_status save_optimizer(const trainer *t, const char *dir) {
    char path[PATH_BYTES], name[64];
    snprintf(name, sizeof name, "optimizer-%d.safetensors", wb_comm_rank(t->comm));
    WB_TRY(path_join(path, dir, name));
    optimizer_file f = {0};
    wb_new_file file;
    wb_status status;
    WB_GOTO(collect_parts(t, &f), close_file);
    WB_GOTO(wb_new_file_open(path, &file), close_file);
    status = wb_safetensors_write_to(&file, f.n, f.views, NULL, emit_part, &f);
    if (status == WB_OK) status = wb_new_file_sync(&file);
    if (status == WB_OK) status = wb_new_file_commit(&file);
    if (status != WB_OK) wb_new_file_discard(&file);
close_file:
    wb_owner_close(&f.memory);
    return status;
}

/* Where the experts are, for a run that resumes; the model's files name experts alone. */
static wb_status save_placement(const trainer *t, const char *dir) {
    char path[PATH_BYTES];
    if (t->o->eplb == EPLB_OFF) return WB_OK;
    WB_TRY(path_join(path, dir, PLACEMENT_FILE));
    return wb_placement_save(wb_model_placement(t->model), path, WB_MAP_SGLANG, NULL);
}

/* Paths of the checkpoint that is called `name`. */
typedef struct save_places {
    char current[PATH_BYTES], fresh[PATH_BYTES], old[PATH_BYTES], inner[PATH_BYTES], kept[PATH_BYTES];
} save_places;

static wb_status find_places(const trainer *t, const char *name, save_places *p) {
    char suffix[CHECKPOINT_SUFFIX_BYTES];
    WB_TRY(checkpoint_place(t->o, name, p->current));
    snprintf(suffix, sizeof suffix, "%s.new", name);
    WB_TRY(checkpoint_place(t->o, suffix, p->fresh));
    snprintf(suffix, sizeof suffix, "%s.old", name);
    WB_TRY(checkpoint_place(t->o, suffix, p->old));
    WB_TRY(path_join(p->inner, p->fresh, "trainer"));
    if (wb_comm_rank(t->comm) != 0) return WB_OK;
    checkpoint_remove(p->fresh);
    WB_TRY(wb_dir_create(p->fresh));
    return wb_dir_create(p->inner);
}

/* On rank 0: the new one is whole. */
static wb_status take_place(const trainer *t, const char *name, save_places *p) {
    p->kept[0] = '\0';
    if (*name == '\0') WB_TRY(checkpoint_place_of_replaced(t, p->current, p->kept));
    WB_TRY(checkpoint_change_places(p->fresh, p->current, p->old, p->kept));
    return *name == '\0' ? checkpoint_prune(t->o, t->step) : WB_OK;
}

/* The new one, beside the old. Collective. */
static wb_status fill_fresh(const trainer *t, const save_places *p) {
    WB_TRY(wb_model_save_as_opened(t->model, p->fresh));
    wb_status status = save_optimizer(t, p->inner);
    if (status == WB_OK && wb_comm_rank(t->comm) == 0) status = save_placement(t, p->fresh);
    if (status == WB_OK && wb_comm_rank(t->comm) == 0) status = checkpoint_save_state(t, p->inner);
    return wb_comm_agree(t->comm, status);
}

static wb_status save_as(const trainer *t, const char *name) {
    save_places p;
    WB_TRY(wb_comm_agree(t->comm, find_places(t, name, &p)));
    wb_status status = fill_fresh(t, &p);
    /* A disk that is full is not to stay so by what it had no room for. */
    if (status != WB_OK && wb_comm_rank(t->comm) == 0) checkpoint_remove(p.fresh);
    WB_TRY(status);
    if (wb_comm_rank(t->comm) == 0) status = take_place(t, name, &p);
    return wb_comm_agree(t->comm, status);
}

wb_status checkpoint_save(const trainer *t) {
    return save_as(t, "");
}

wb_status checkpoint_save_best(const trainer *t) {
    return save_as(t, CHECKPOINT_BEST);
}

/* ---- loading --------------------------------------------------------------------------------- */

/* The optimizer files of a checkpoint, one of each rank that saved it. */
typedef struct optimizer_files {
    wb_safetensors **files; /* [n] */
    int n;
} optimizer_files;

/* The elements of one kind of state that a file has, which is this rank's part, or all (as before 0.4, and of
 * experts). NOT_FOUND where it has none. */
static wb_status find_part(const trainer *t, const optimizer_files *saved, int file, const wb_tensor *tensor,
                           const char *suffix, wb_tensor_view *view_out, optimizer_part *part_out) {
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s.%s", tensor->name, suffix);
    WB_TRY(wb_safetensors_find(saved->files[file], name, view_out));
    const optimizer_part whole = {0, tensor->n};
    const optimizer_part part =
        tensor->expert >= 0 ? whole : optimizer_part_of(wb_model_config(t->model), tensor, file, saved->n);
    const bool is_whole = view_out->bytes == (size_t)whole.n * sizeof(float);
    *part_out = is_whole ? whole : part;
    if (view_out->dtype == WB_F32 && view_out->bytes == (size_t)part_out->n * sizeof(float)) return WB_OK;
    return wb_fail(WB_MISMATCH, "%s: %s: expected %" PRId64 " f32, found %zu bytes of %s", view_out->file,
                   name, part.n, view_out->bytes, wb_dtype_name(view_out->dtype));
}

/* What `part` of the file's state has of `wanted`, to its place in `state`, whose first element is
 * wanted.first. */
static wb_status copy_overlap(wb_device *device, const wb_tensor_view *view, optimizer_part part,
                              optimizer_part wanted, float *state, int64_t *copied) {
    const int64_t first = part.first > wanted.first ? part.first : wanted.first;
    const int64_t part_end = part.first + part.n, wanted_end = wanted.first + wanted.n;
    const int64_t end = part_end < wanted_end ? part_end : wanted_end;
    if (first >= end) return WB_OK;
    *copied += end - first;
    return device->to_device(device, state + (first - wanted.first),
                             (const float *)view->data + (first - part.first),
                             (size_t)(end - first) * sizeof(float));
}

/* This rank's part of a moment or a master, from the files that have it: as many ranks may have saved it as
 * there are now or not. */
static wb_status load_part(const trainer *t, const optimizer_files *saved, const wb_tensor *tensor,
                           const char *suffix, float *state) {
    const optimizer_part wanted = own_part(t, tensor);
    int64_t copied = 0;
    for (int file = 0; file < saved->n && copied < wanted.n; file++) {
        wb_tensor_view view;
        optimizer_part part;
        const wb_status status = find_part(t, saved, file, tensor, suffix, &view, &part);
        if (status == WB_NOT_FOUND) continue;
        WB_TRY(status);
        WB_TRY(copy_overlap(t->device, &view, part, wanted, state, &copied));
    }
    if (copied == wanted.n) return WB_OK;
    return wb_fail(WB_NOT_FOUND,
                   "optimizer state: %s.%s: expected %" PRId64
                   " elements in the files of %d ranks, found %" PRId64,
                   tensor->name, suffix, wanted.n, saved->n, copied);
}

/* Where the files have the weight whole, from however many parts, all of it becomes the tensor that is here;
 * those of a model that came in f32 have none. */
static wb_status load_rounded(const trainer *t, const optimizer_files *saved, int32_t i) {
    const wb_tensor tensor = wb_model_tensor(t->model, i);
    const optimizer_part whole = {0, tensor.n};
    int64_t copied = 0;
    if (!loses_bits(&tensor) || !tensor.data) return WB_OK;
    for (int file = 0; file < saved->n && copied < whole.n; file++) {
        wb_tensor_view view;
        optimizer_part part;
        const wb_status status = find_part(t, saved, file, &tensor, "master", &view, &part);
        if (status == WB_NOT_FOUND) continue;
        WB_TRY(status);
        WB_TRY(copy_overlap(t->device, &view, part, whole, tensor.data, &copied));
    }
    if (copied == 0) return WB_OK;
    if (copied == whole.n) return wb_model_fill_replicas(t->model, i);
    return wb_fail(WB_NOT_FOUND,
                   "optimizer state: %s.master: expected %" PRId64
                   " elements in the files of %d ranks, found %" PRId64,
                   tensor.name, whole.n, saved->n, copied);
}

static wb_status load_optimizer(trainer *t, const optimizer_files *saved) {
    for (int32_t i = 0; i < wb_model_n_tensors(t->model); i++) {
        const wb_tensor tensor = wb_model_tensor(t->model, i);
        WB_TRY(load_part(t, saved, &tensor, "exp_avg", t->opt.m[i].data));
        WB_TRY(load_part(t, saved, &tensor, "exp_avg_sq", t->opt.v[i].data));
        if (tensor.dtype != WB_F32) WB_TRY(load_part(t, saved, &tensor, "master", t->opt.master[i].data));
        WB_TRY(load_rounded(t, saved, i));
    }
    return WB_OK;
}

static wb_status load_local(trainer *t, const char *dir) {
    int ranks = 0;
    WB_TRY(checkpoint_load_state(t, dir, &ranks));
    optimizer_files saved = {0};
    WB_TRY(WB_NEW(saved.files, (size_t)ranks, "optimizer files"));
    wb_status status = WB_OK;
    for (; status == WB_OK && saved.n < ranks; saved.n += status == WB_OK) {
        char path[PATH_BYTES], name[64];
        snprintf(name, sizeof name, "trainer/optimizer-%d.safetensors", saved.n);
        status = path_join(path, dir, name);
        if (status == WB_OK) status = wb_safetensors_open(path, NULL, &saved.files[saved.n]);
    }
    if (status == WB_OK) status = load_optimizer(t, &saved);
    while (saved.n > 0) wb_safetensors_close(saved.files[--saved.n]);
    free(saved.files);
    return status;
}

wb_status checkpoint_load(trainer *t, const char *dir) {
    return wb_comm_agree(t->comm, load_local(t, dir));
}
