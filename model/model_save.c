/* model_save.c - a model's weights as a Hugging Face checkpoint directory. Each rank writes its own
 * experts, rank 0 also what all ranks hold, the index, the configuration and the small files. Refuses:
 * leaving a directory in which a loader finds weights of two saves. */
#include "config.h"
#include "model_weights.h"
#include "wb_json.h"
#include "wb_tensor_io.h"
#include "wb_text.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK_BYTES ((size_t)4 << 20)
#define SMALL_FILE_BYTES ((size_t)64 << 20)
#define INDEX_NAME "model.safetensors.index.json"

typedef struct shard_name {
    char text[48];
} shard_name;

static shard_name name_of_shard(int rank, int size) {
    shard_name name;
    if (size == 1)
        snprintf(name.text, sizeof name.text, "model.safetensors");
    else
        snprintf(name.text, sizeof name.text, "model-%05d-of-%05d.safetensors", rank + 1, size);
    return name;
}

/* The rank that writes tensor i. */
static int writer_of(const wb_model *m, int32_t i) {
    int32_t expert = m->tensors[i].expert;
    return expert < 0 ? 0 : m->expert_rank[expert];
}

/* Rank 0, and every rank that has experts. */
static bool writes_shard(const wb_model *m, int rank) {
    if (rank == 0) return true;
    for (int32_t e = 0; e < m->config.router.n_experts; e++)
        if (m->expert_rank[e] == rank) return true;
    return false;
}

/* ---- this rank's shard ----------------------------------------------------------------------- */

typedef struct shard {
    const wb_model *model;
    wb_tensor_view *views; /* [n] */
    int32_t *tensors;      /* [n] indices into the registry */
    size_t n;
    void *chunk; /* host [CHUNK_BYTES] */
} shard;

static wb_status emit(void *ctx, size_t i, wb_new_file *file) {
    const shard *s = ctx;
    wb_device *dev = s->model->device;
    wb_tensor t = wb_model_tensor(s->model, s->tensors[i]);
    size_t bytes = s->views[i].bytes;
    for (size_t done = 0; done < bytes; done += CHUNK_BYTES) {
        size_t part = bytes - done < CHUNK_BYTES ? bytes - done : CHUNK_BYTES;
        WB_TRY(dev->to_host(dev, s->chunk, (const char *)t.data + done, part));
        WB_TRY(wb_new_file_write(file, s->chunk, part));
    }
    return WB_OK;
}

static void list_tensors(shard *s) {
    const wb_model *m = s->model;
    for (int32_t i = 0; i < m->n_tensors; i++) {
        if (writer_of(m, i) != wb_comm_rank(m->comm)) continue;
        const wb_tensor *t = &m->tensors[i];
        s->tensors[s->n] = i;
        s->views[s->n++] = (wb_tensor_view){.name = t->name,
                                            .dtype = t->dtype,
                                            .n_dims = t->n_dims,
                                            .shape = {t->shape[0], t->shape[1]},
                                            .bytes = (size_t)t->n * wb_dtype_size(t->dtype)};
    }
}

static wb_status write_shard(const wb_model *m, wb_new_file *file) {
    shard s = {.model = m};
    size_t most = (size_t)m->n_tensors;
    wb_status status = WB_NEW(s.views, most, "shard");
    if (status == WB_OK) status = WB_NEW(s.tensors, most, "shard");
    if (status == WB_OK) status = WB_ALLOC(s.chunk, CHUNK_BYTES, 1, "shard");
    if (status == WB_OK) {
        list_tensors(&s);
        status = wb_safetensors_write_to(file, s.n, s.views, "{\"format\": \"pt\"}", emit, &s);
    }
    if (status == WB_OK) status = wb_new_file_sync(file);
    free(s.views);
    free(s.tensors);
    free(s.chunk);
    return status;
}

/* Writes and syncs the shard under its temporary name; a rank without tensors has none. */
static wb_status prepare_shard(const wb_model *m, const char *dir, wb_new_file *file) {
    char *path = NULL;
    if (!writes_shard(m, wb_comm_rank(m->comm))) return WB_OK;
    WB_TRY(wb_dir_create(dir));
    WB_TRY(wb_text_format(&path, "%s/%s", dir,
                          name_of_shard(wb_comm_rank(m->comm), wb_comm_size(m->comm)).text));
    wb_status status = wb_new_file_open(path, file);
    free(path);
    WB_TRY(status);
    return write_shard(m, file);
}

/* ---- index ----------------------------------------------------------------------------------- */

static json_t *make_index(const wb_model *m) {
    json_t *map = json_object();
    int64_t total = 0;
    for (int32_t i = 0; map && i < m->n_tensors; i++) {
        const wb_tensor *t = &m->tensors[i];
        total += t->n * (int64_t)wb_dtype_size(t->dtype);
        shard_name name = name_of_shard(writer_of(m, i), wb_comm_size(m->comm));
        if (json_object_set_new(map, t->name, json_string(name.text)) != 0) {
            json_decref(map);
            return NULL;
        }
    }
    return json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)total, "weight_map", map);
}

static wb_status write_text(const char *dir, const char *name, const char *text) {
    char *path = NULL;
    WB_TRY(wb_text_format(&path, "%s/%s", dir, name));
    wb_status status = wb_file_replace(path, text, strlen(text));
    free(path);
    return status;
}

static wb_status write_index(const wb_model *m, const char *dir) {
    json_t *index = make_index(m);
    char *text = index ? json_dumps(index, JSON_INDENT(2) | JSON_SORT_KEYS) : NULL;
    json_decref(index);
    if (!text) return wb_fail(WB_OUT_OF_MEMORY, "%s/%s: no memory to write it", dir, INDEX_NAME);
    wb_status status = write_text(dir, INDEX_NAME, text);
    free(text);
    return status;
}

static wb_status write_config(const wb_model *m, const char *dir) {
    char *text = NULL;
    WB_TRY(wb_config_text(&m->config, m->family, m->source_config, m->dtype, &text));
    wb_status status = write_text(dir, "config.json", text);
    free(text);
    return status;
}

/* ---- files of an earlier save ---------------------------------------------------------------- */

static wb_status remove_file(const char *dir, const char *name) {
    char *path = NULL;
    WB_TRY(wb_text_format(&path, "%s/%s", dir, name));
    wb_status status = WB_OK;
    if (unlink(path) != 0 && errno != ENOENT)
        status = wb_fail(WB_IO, "%s: cannot be removed: %s", path, strerror(errno));
    free(path);
    return status;
}

/* "model.safetensors" or "model-00001-of-00002.safetensors", finished or not: what a save writes. */
static bool is_weights(const char *name) {
    static const char pattern[] = "model-#####-of-#####.safetensors";
    size_t n = wb_new_file_stem(name);
    if (n == 0) n = strlen(name);
    if (n == strlen("model.safetensors")) return strncmp(name, "model.safetensors", n) == 0;
    if (n != sizeof pattern - 1) return false;
    for (size_t i = 0; i < n; i++)
        if (pattern[i] == '#' ? !isdigit((unsigned char)name[i]) : name[i] != pattern[i]) return false;
    return true;
}

static bool is_ours(const wb_model *m, const char *name) {
    for (int rank = 0; rank < wb_comm_size(m->comm); rank++)
        if (writes_shard(m, rank) && strcmp(name, name_of_shard(rank, wb_comm_size(m->comm)).text) == 0)
            return true;
    return false;
}

static wb_status remove_stale(const wb_model *m, const char *dir) {
    DIR *list = opendir(dir);
    if (!list) return wb_fail(WB_IO, "%s: %s", dir, strerror(errno));
    wb_status status = WB_OK;
    for (const struct dirent *entry; status == WB_OK && (entry = readdir(list));)
        if (is_weights(entry->d_name) && !is_ours(m, entry->d_name)) status = remove_file(dir, entry->d_name);
    closedir(list);
    return status;
}

/* ---- small files of the source --------------------------------------------------------------- */

static bool ends_with(const char *name, const char *ending) {
    size_t n = strlen(name), m = strlen(ending);
    return n >= m && strcmp(name + n - m, ending) == 0;
}

static bool is_companion(const char *name) {
    if (strcmp(name, "config.json") == 0 || ends_with(name, ".index.json")) return false;
    return strncmp(name, "tokenizer", 9) == 0 || ends_with(name, ".json") || ends_with(name, ".txt") ||
           ends_with(name, ".model") || ends_with(name, ".jinja");
}

static wb_status copy_file(const char *from, const char *to) {
    struct stat info;
    char *text = NULL;
    size_t bytes = 0;
    if (stat(from, &info) != 0) return wb_fail(WB_IO, "%s: %s", from, strerror(errno));
    if (!S_ISREG(info.st_mode) || (uint64_t)info.st_size > SMALL_FILE_BYTES) return WB_OK;
    WB_TRY(wb_file_read(from, SMALL_FILE_BYTES, &text, &bytes));
    wb_status status = wb_file_replace(to, text, bytes);
    free(text);
    return status;
}

static wb_status copy_companion(const char *from_dir, const char *to_dir, const char *name) {
    char *from = NULL, *to = NULL;
    wb_status status = wb_text_format(&from, "%s/%s", from_dir, name);
    if (status == WB_OK) status = wb_text_format(&to, "%s/%s", to_dir, name);
    if (status == WB_OK) status = copy_file(from, to);
    free(from);
    free(to);
    return status;
}

static wb_status copy_companions(const char *from_dir, const char *to_dir) {
    struct stat from, to;
    if (stat(from_dir, &from) != 0) return wb_fail(WB_IO, "%s: %s", from_dir, strerror(errno));
    if (stat(to_dir, &to) != 0) return wb_fail(WB_IO, "%s: %s", to_dir, strerror(errno));
    if (from.st_dev == to.st_dev && from.st_ino == to.st_ino) return WB_OK;
    DIR *list = opendir(from_dir);
    if (!list) return wb_fail(WB_IO, "%s: %s", from_dir, strerror(errno));
    wb_status status = WB_OK;
    for (const struct dirent *entry; status == WB_OK && (entry = readdir(list));)
        if (is_companion(entry->d_name)) status = copy_companion(from_dir, to_dir, entry->d_name);
    closedir(list);
    return status;
}

/* ---- the save -------------------------------------------------------------------------------- */

/* Rank 0, when all shards are in place. The source may be gone by now: its small files come last, when the
 * weights are safe already. */
static wb_status finish(const wb_model *m, const char *dir) {
    WB_TRY(write_config(m, dir));
    if (wb_comm_size(m->comm) > 1)
        WB_TRY(write_index(m, dir));
    else
        WB_TRY(remove_file(dir, INDEX_NAME));
    WB_TRY(remove_stale(m, dir));
    return m->source_dir ? copy_companions(m->source_dir, dir) : WB_OK;
}

/* An interrupted save of several ranks leaves shards without an index, or the whole earlier
 * model.safetensors: never an index over shards of two saves. */
wb_status wb_model_save(wb_model *model, const char *dir) {
    wb_comm *comm = model->comm;
    wb_new_file file = {.fd = -1};
    wb_status status =
        dir ? prepare_shard(model, dir, &file) : wb_fail(WB_INVALID_ARGUMENT, "directory: NULL");
    WB_GOTO(wb_comm_agree(comm, status), discard);
    if (wb_comm_rank(comm) == 0 && wb_comm_size(comm) > 1) status = remove_file(dir, INDEX_NAME);
    WB_GOTO(wb_comm_agree(comm, status), discard);
    if (file.temp) status = wb_new_file_commit(&file);
    WB_GOTO(wb_comm_agree(comm, status), discard);
    if (wb_comm_rank(comm) == 0) status = finish(model, dir);
    return wb_comm_agree(comm, status);
discard:
    wb_new_file_discard(&file);
    return status;
}
