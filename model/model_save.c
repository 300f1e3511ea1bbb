/* model_save.c - a model's weights as a Hugging Face checkpoint directory. Each rank writes the
 * experts whose replica 0 it has, rank 0 also what all ranks hold, the index, the configuration and the small
 * files. Refuses: leaving a directory in which a loader finds weights of two saves. */
#include "config.h"
#include "elements.h"
#include "model_weights.h"
#include "replica_check.h"
#include "wb_checkpoint_dir.h"
#include "wb_json.h"
#include "wb_tensor_io.h"
#include "wb_text.h"

#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTES ((size_t)4 << 20)

/* The rank that writes tensor i: of an expert, that of its replica 0. */
static int writer_of(const wb_model *m, int32_t i) {
    const int32_t rank = wb_model_replica(m, i, 0).rank;
    return rank < 0 ? 0 : rank;
}

/* Rank 0, and every rank that has some expert's replica 0. */
static bool writes_shard(const wb_model *m, int rank) {
    if (rank == 0) return true;
    for (int32_t i = 0; i < m->n_tensors; i++)
        if (writer_of(m, i) == rank) return true;
    return false;
}

/* ---- this rank's shard ----------------------------------------------------------------------- */

typedef struct shard {
    const wb_model *model;
    bool as_opened;
    wb_tensor_view *views; /* [n] */
    int32_t *tensors;      /* [n] indices into the registry */
    size_t n;
    uint8_t *chunk; /* host [CHUNK_BYTES] */
    wb_owner memory;
} shard;

/* What a tensor is written as: never wider than it is here. */
static wb_dtype saved_dtype(const wb_tensor *t, bool as_opened) {
    return as_opened && t->file_dtype == WB_BF16 ? WB_BF16 : t->dtype;
}

static wb_status emit(void *ctx, size_t i, wb_new_file *file) {
    const shard *s = ctx;
    wb_device *dev = s->model->device;
    const wb_tensor t = wb_model_tensor(s->model, s->tensors[i]);
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

static void list_tensors(shard *s) {
    const wb_model *m = s->model;
    for (int32_t i = 0; i < m->n_tensors; i++) {
        if (writer_of(m, i) != m->rank) continue;
        const wb_tensor *t = &m->tensors[i];
        const wb_dtype dtype = saved_dtype(t, s->as_opened);
        s->tensors[s->n] = i;
        s->views[s->n++] = (wb_tensor_view){.name = t->name,
                                            .dtype = dtype,
                                            .n_dims = t->n_dims,
                                            .shape = {t->shape[0], t->shape[1]},
                                            .bytes = (size_t)t->n * wb_dtype_size(dtype)};
    }
}

static wb_status write_shard(const wb_model *m, bool as_opened, wb_new_file *file) {
    shard s = {.model = m, .as_opened = as_opened};
    const size_t max = (size_t)m->n_tensors;
    wb_status status = WB_OWN(&s.memory, s.views, max, "shard");
    if (status == WB_OK) status = WB_OWN(&s.memory, s.tensors, max, "shard");
    if (status == WB_OK) status = WB_OWN(&s.memory, s.chunk, CHUNK_BYTES, "shard");
    if (status == WB_OK) {
        list_tensors(&s);
        status = wb_safetensors_write_to(file, s.n, s.views, "{\"format\": \"pt\"}", emit, &s);
    }
    if (status == WB_OK) status = wb_new_file_sync(file);
    wb_owner_close(&s.memory);
    return status;
}

/* Writes and syncs the shard under its temporary name; a rank without tensors has none. */
static wb_status prepare_shard(const wb_model *m, bool as_opened, const char *dir, wb_new_file *file) {
    char *path = NULL;
    if (!writes_shard(m, m->rank)) return WB_OK;
    WB_TRY(wb_dir_create(dir));
    WB_TRY(wb_text_format(&path, "%s/%s", dir, wb_shard_name_of(m->rank, m->n_ranks).text));
    wb_status status = wb_new_file_open(path, file);
    free(path);
    WB_TRY(status);
    return write_shard(m, as_opened, file);
}

/* ---- index ----------------------------------------------------------------------------------- */

static json_t *make_index(const wb_model *m, bool as_opened) {
    json_t *map = json_object();
    int64_t total = 0;
    for (int32_t i = 0; map && i < m->n_tensors; i++) {
        const wb_tensor *t = &m->tensors[i];
        total += t->n * (int64_t)wb_dtype_size(saved_dtype(t, as_opened));
        const wb_shard_name name = wb_shard_name_of(writer_of(m, i), m->n_ranks);
        if (json_object_set_new(map, t->name, json_string(name.text)) != 0) {
            json_decref(map);
            return NULL;
        }
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

/* What config.json says of the whole: bf16 where all matrices are. */
static wb_dtype matrix_dtype(const wb_model *m, bool as_opened) {
    for (int32_t i = 0; i < m->n_tensors; i++)
        if (m->tensors[i].n_dims > 1 && saved_dtype(&m->tensors[i], as_opened) != WB_BF16) return m->dtype;
    return WB_BF16;
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

/* An interrupted save of several ranks leaves shards without an index, or the whole earlier
 * model.safetensors: never an index over shards of two saves. */
static wb_status save(wb_model *model, bool as_opened, const char *dir) {
    wb_comm *comm = model->comm;
    wb_new_file file = {.fd = -1};
    WB_TRY(wb_replicas_check(model));
    wb_status status =
        dir ? prepare_shard(model, as_opened, dir, &file) : wb_fail(WB_INVALID_ARGUMENT, "directory: NULL");
    WB_GOTO(wb_comm_agree(comm, status), discard);
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
