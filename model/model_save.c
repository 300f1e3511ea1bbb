/* model_save.c - a model's weights as a Hugging Face checkpoint directory. Each rank writes the
 * experts whose replica 0 it has, rank 0 also what all ranks hold, the index, the configuration and the small
 * files. Refuses: leaving a directory in which a loader finds weights of two saves. */
#include "config.h"
#include "elements.h"
#include "fused_save.h"
#include "hash_tables.h"
#include "packed_weights.h"
#include "replica_check.h"
#include "wb_checkpoint_dir.h"
#include "wb_json.h"
#include "wb_tensor_io.h"
#include "wb_text.h"

#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTES ((size_t)4 << 20)

/* The rank that writes tensor i: of an expert, that of its replica 0, or the first one where files hold
 * the experts of a layer in one tensor. */
static int writer_of(const wb_model *m, int32_t i) {
    if (m->family->fused_experts) return 0;
    const int32_t rank = wb_model_replica(m, i, 0).rank;
    return rank < 0 ? 0 : rank;
}

/* Rank 0, and every rank that has some expert's replica 0. */
static bool writes_shard(const wb_model *m, int rank) {
    if (rank == 0) return true;
    for (int32_t i = 0; i < m->n_tensors; i++)
        if (writer_of(m, i) == rank) return true;
    return m->mtp && writes_shard(m->mtp, rank);
}

/* ---- this rank's shard ----------------------------------------------------------------------- */

/* A tensor of a model's registry, or of that of its MTP layers. */
typedef struct listed {
    const wb_model *model;
    int32_t i;
} listed;

typedef struct shard {
    const wb_model *model;
    wb_fused_save *fused;
    wb_tensor_view *views; /* [n], those of fused->tensors, and the tables of hash-routed layers */
    listed *tensors;       /* [n] */
    size_t n, n_tables;
    uint8_t *chunk; /* host [CHUNK_BYTES] */
    wb_owner memory;
} shard;

static wb_status emit(void *ctx, size_t i, wb_new_file *file) {
    const shard *s = ctx;
    const size_t n_floats = s->n + s->fused->n;
    if (i >= n_floats) return wb_hash_table_write(s->model, (uint32_t)(i - n_floats), file);
    if (i >= s->n) return wb_fused_save_write(s->fused, i - s->n, file);
    wb_device *dev = s->model->device;
    const wb_tensor t = wb_model_tensor(s->tensors[i].model, s->tensors[i].i);
    const wb_dtype to = s->views[i].dtype;
    const size_t size = wb_dtype_size(t.dtype), bytes = (size_t)t.n * size;
    /* What is rounded comes to the second half of the chunk and goes to the first. */
    const size_t most = to == t.dtype ? CHUNK_BYTES : CHUNK_BYTES / 2;
    uint8_t *const here = s->chunk + (CHUNK_BYTES - most);
    for (size_t done = 0; done < bytes; done += most) {
        const size_t part = bytes - done < most ? bytes - done : most, n = part / size;
        WB_TRY(dev->to_host(dev, here, (const char *)t.data + done, part));
        if (to != t.dtype) wb_convert((int64_t)n, here, t.dtype, s->chunk, to);
        WB_TRY(wb_new_file_write(file, s->chunk, n * wb_dtype_size(to)));
    }
    return WB_OK;
}

/* Whether tensor i has a place in one of all experts. */
static bool is_fused(const wb_model *m, int32_t i) {
    return m->family->fused_experts && m->tensors[i].expert >= 0;
}

static void list_fused(shard *s) {
    for (size_t i = 0; i < s->fused->n; i++) {
        const wb_fused_tensor *f = &s->fused->tensors[i];
        const size_t n = (size_t)(f->place.shape[0] * f->place.part);
        wb_tensor_view *view = &s->views[s->n + i];
        *view = (wb_tensor_view){.name = f->place.name,
                                 .dtype = f->written,
                                 .n_dims = f->place.n_dims,
                                 .bytes = n * wb_dtype_size(f->written)};
        memcpy(view->shape, f->place.shape, sizeof f->place.shape);
    }
}

/* Rank 0 writes them, behind all else. */
static void list_tables(shard *s) {
    s->n_tables = s->model->rank == 0 ? s->model->hash.n_hash_layers : 0;
    for (size_t i = 0; i < s->n_tables; i++)
        s->views[s->n + s->fused->n + i] = wb_hash_table_view(s->model, (uint32_t)i);
}

static void list_tensors(shard *s, const wb_model *m) {
    for (int32_t i = 0; i < m->n_tensors; i++) {
        if (writer_of(m, i) != m->rank || is_fused(m, i)) continue;
        const wb_tensor *t = &m->tensors[i];
        const wb_dtype dtype = wb_saved_dtype(t, s->fused->as_opened);
        s->tensors[s->n] = (listed){m, i};
        s->views[s->n++] = (wb_tensor_view){.name = t->name,
                                            .dtype = dtype,
                                            .n_dims = t->n_dims,
                                            .shape = {t->shape[0], t->shape[1], t->shape[2]},
                                            .bytes = (size_t)t->n * wb_dtype_size(dtype)};
    }
}

static wb_status write_shard(const wb_model *m, wb_fused_save *fused, wb_new_file *file) {
    shard s = {.model = m, .fused = fused};
    const size_t max =
        (size_t)m->n_tensors + (m->mtp ? (size_t)m->mtp->n_tensors : 0) + m->hash.n_hash_layers;
    wb_status status = WB_OWN(&s.memory, s.views, max, "shard");
    if (status == WB_OK) status = WB_OWN(&s.memory, s.tensors, max, "shard");
    if (status == WB_OK) status = WB_OWN(&s.memory, s.chunk, CHUNK_BYTES, "shard");
    if (status == WB_OK) {
        list_tensors(&s, m);
        if (m->mtp) list_tensors(&s, m->mtp);
        list_fused(&s);
        list_tables(&s);
        status = wb_safetensors_write_to(file, s.n + fused->n + s.n_tables, s.views, "{\"format\": \"pt\"}",
                                         emit, &s);
    }
    if (status == WB_OK) status = wb_new_file_sync(file);
    wb_owner_close(&s.memory);
    return status;
}

/* Writes and syncs the shard under its temporary name; a rank without tensors has none. */
static wb_status prepare_shard(const wb_model *m, wb_fused_save *fused, const char *dir, wb_new_file *file) {
    char *path = NULL;
    if (!writes_shard(m, m->rank)) return WB_OK;
    WB_TRY(wb_dir_create(dir));
    WB_TRY(wb_text_format(&path, "%s/%s", dir, wb_shard_name_of(m->rank, m->n_ranks).text));
    wb_status status = wb_new_file_open(path, file);
    free(path);
    WB_TRY(status);
    return write_shard(m, fused, file);
}

/* ---- index ----------------------------------------------------------------------------------- */

/* Adds the tensors of `m` to the map; non-zero: no memory. */
static int list_in_map(const wb_model *m, bool as_opened, json_t *map, int64_t *total) {
    for (int32_t i = 0; i < m->n_tensors; i++) {
        const wb_tensor *t = &m->tensors[i];
        wb_fused_place place;
        const char *written = wb_fused_place_of(m, t, &place) ? place.name : t->name;
        *total += t->n * (int64_t)wb_dtype_size(wb_saved_dtype(t, as_opened));
        const wb_shard_name name = wb_shard_name_of(writer_of(m, i), m->n_ranks);
        if (json_object_set_new(map, written, json_string(name.text)) != 0) return 1;
    }
    for (uint32_t i = 0; i < m->hash.n_hash_layers; i++) {
        const wb_tensor_view view = wb_hash_table_view(m, i);
        *total += (int64_t)view.bytes;
        if (json_object_set_new(map, view.name, json_string(wb_shard_name_of(0, m->n_ranks).text)) != 0)
            return 1;
    }
    return m->mtp ? list_in_map(m->mtp, as_opened, map, total) : 0;
}

static json_t *make_index(const wb_model *m, bool as_opened) {
    json_t *map = json_object();
    int64_t total = 0;
    if (map && list_in_map(m, as_opened, map, &total)) {
        json_decref(map);
        return NULL;
    }
    return json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)total, "weight_map", map);
}

static wb_status write_index(const wb_model *m, bool as_opened, const char *dir) {
    json_t *index = make_index(m, as_opened);
    char *text = index ? json_dumps(index, JSON_INDENT(2) | JSON_SORT_KEYS) : NULL;
    json_decref(index);
    if (!text) return wb_fail(WB_OUT_OF_MEMORY, "%s/%s: no memory to write it", dir, WB_INDEX_NAME);
    wb_status status = wb_checkpoint_write_text(dir, WB_INDEX_NAME, text);
    free(text);
    return status;
}

/* What config.json says of the whole: bf16 where all matrices are; taps, as vectors, are none. A model that
 * is saved as it was opened may have had some in f32, as checkpoints keep their routers, and is still called
 * bf16. */
static wb_dtype matrix_dtype(const wb_model *m, bool as_opened) {
    bool some = false, all = true;
    for (int32_t i = 0; i < m->n_tensors; i++) {
        if (m->tensors[i].n_dims != 2) continue;
        const bool is_bf16 = wb_saved_dtype(&m->tensors[i], as_opened) == WB_BF16;
        some |= is_bf16;
        all &= is_bf16;
    }
    return (as_opened ? some : all) ? WB_BF16 : m->dtype;
}

static wb_status write_config(const wb_model *m, bool as_opened, const char *dir) {
    char *text = NULL;
    WB_TRY(wb_config_text(&m->config, m->family, m->source_config, matrix_dtype(m, as_opened), &text));
    wb_status status = wb_checkpoint_write_text(dir, "config.json", text);
    free(text);
    return status;
}

/* Whether a rank of this save writes the shard. */
static bool is_ours(const void *model, const char *name) {
    const wb_model *m = model;
    for (int rank = 0; rank < m->n_ranks; rank++)
        if (writes_shard(m, rank) && strcmp(name, wb_shard_name_of(rank, m->n_ranks).text) == 0) return true;
    return false;
}

/* ---- the save -------------------------------------------------------------------------------- */

/* Rank 0, when all shards are in place. What is left of an earlier save in the other layout, one file or an
 * index, goes when ours is whole: a failure before leaves one save that can be opened, or both, which are
 * refused by name. The small files come last, when the weights are safe. */
static wb_status finish(const wb_model *m, bool as_opened, const char *dir) {
    WB_TRY(write_config(m, as_opened, dir));
    if (m->n_ranks > 1)
        WB_TRY(write_index(m, as_opened, dir));
    else
        WB_TRY(wb_checkpoint_remove(dir, WB_INDEX_NAME));
    WB_TRY(wb_checkpoint_remove_stale(dir, is_ours, m));
    return m->companions ? wb_companions_write(m->companions, dir) : WB_OK;
}

/* Every rank's shard under its temporary name. What has to come from other ranks comes whatever fails: a rank
 * that does not write sends all the same. */
static wb_status write_shards(wb_model *m, bool as_opened, const char *dir, wb_new_file *file) {
    wb_fused_save fused;
    wb_status status = wb_comm_agree(m->comm, wb_fused_save_open(m, as_opened, &fused));
    if (status == WB_OK) {
        status = dir ? prepare_shard(m, &fused, dir, file) : wb_fail(WB_INVALID_ARGUMENT, "directory: NULL");
        const wb_status served = wb_fused_serve(&fused);
        if (status == WB_OK) status = served;
        status = wb_comm_agree(m->comm, status);
    }
    wb_fused_save_close(&fused);
    return status;
}

/* An interrupted save of several ranks leaves shards without an index, or the whole earlier
 * model.safetensors: never an index over shards of two saves. */
static wb_status save(wb_model *model, bool as_opened, const char *dir) {
    wb_comm *comm = model->comm;
    wb_new_file file = {.fd = -1};
    WB_TRY(wb_model_check_rows(model, "save"));
    WB_TRY(wb_replicas_check(model));
    wb_status status;
    WB_GOTO(write_shards(model, as_opened, dir, &file), discard);
    if (model->rank == 0 && model->n_ranks > 1) status = wb_checkpoint_remove(dir, WB_INDEX_NAME);
    WB_GOTO(wb_comm_agree(comm, status), discard);
    if (file.temp) status = wb_new_file_commit(&file);
    WB_GOTO(wb_comm_agree(comm, status), discard);
    if (model->rank == 0) status = finish(model, as_opened, dir);
    return wb_comm_agree(comm, status);
discard:
    wb_new_file_discard(&file);
    return status;
}

wb_status wb_model_save(wb_model *model, const char *dir) {
    return save(model, false, dir);
}

wb_status wb_model_save_as_opened(wb_model *model, const char *dir) {
    return save(model, true, dir);
}
