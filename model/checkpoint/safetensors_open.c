/* safetensors_open.c - opening a .safetensors file, or a directory of one, or of shards listed by an index.
 * Refuses: an index that does not say where each tensor lies. */
#include "safetensors_table.h"
#include "wb_check.h"
#include "wb_file.h"
#include "wb_json.h"
#include "wb_memory.h"
#include "wb_text.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define INDEX_MAX_BYTES ((size_t)256 * 1024 * 1024)

/* ---- shards ---------------------------------------------------------------------------------- */

static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The distinct file names of weight_map, sorted. Strings stay the map's. */
static wb_status shard_names(json_t *map, const char *path, const char ***names_out, size_t *n_out) {
    const char **names = NULL, *key;
    json_t *value;
    size_t n = 0, unique = 0;
    WB_TRY(WB_NEW(names, json_object_size(map), path));
    json_object_foreach(map, key, value) {
        const char *name = json_string_value(value);
        if (!name || name[0] == '\0' || strchr(name, '/') || strcmp(name, "..") == 0) {
            free(names);
            return wb_fail(WB_CORRUPT,
                           "%s: weight_map: %s: expected the name of a file in the same directory", path,
                           key);
        }
        names[n++] = name;
    }
    if (n > 0) qsort(names, n, sizeof *names, by_text);
    for (size_t i = 0; i < n; i++)
        if (i == 0 || strcmp(names[i], names[unique - 1]) != 0) names[unique++] = names[i];
    *names_out = names;
    *n_out = unique;
    return WB_OK;
}

static wb_status open_shards(wb_safetensors *st, const char *dir, const char *index_path, const char **names,
                             size_t n) {
    WB_TRY(WB_NEW(st->files, n, index_path));
    for (size_t i = 0; i < n; i++) {
        char *path = NULL;
        WB_TRY(wb_text_format(&path, "%s/%s", dir, names[i]));
        wb_status status = wb_tensor_file_add(st, path);
        free(path);
        if (status == WB_NOT_FOUND) return wb_fail_context(status, "%s: shard", index_path);
        WB_TRY(status);
    }
    return WB_OK;
}

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* The index decides: a tensor is taken from the shard that it is listed in, and neither a copy of it in
 * another shard nor a tensor that is not listed is the model's. Releases have both. */
static wb_status keep_listed(wb_safetensors *st, json_t *map) {
    size_t kept = 0, n = st->n;
    st_entry first = {0};
    for (size_t i = 0; i < n; i++) {
        st_entry entry = st->entries[i];
        const char *shard = json_string_value(json_object_get(map, entry.name));
        if (shard && strcmp(base_name(st->files[entry.file].path), shard) == 0)
            st->entries[kept++] = entry;
        else if (!first.name)
            first = entry;
    }
    st->n = kept;
    if (!first.name) return WB_OK;
    return wb_text_format(&st->note,
                          "%s: tensor %s: the index does not list it there, ignored (%zu such tensors)",
                          st->files[first.file].path, first.name, n - kept);
}

/* Every tensor that the index lists is in the shard that it names. */
static wb_status check_index(const wb_safetensors *st, json_t *map, const char *index_path) {
    const char *key;
    json_t *value;
    json_object_foreach(map, key, value) {
        if (wb_safetensors_lookup(st, key) == SIZE_MAX)
            return wb_fail(WB_CORRUPT, "%s: weight_map: tensor %s is not in %s", index_path, key,
                           json_string_value(value));
    }
    return WB_OK;
}

static wb_status open_weight_map(wb_safetensors *st, const char *dir, const char *index_path, json_t *map) {
    const char **names = NULL;
    size_t n = 0;
    if (!json_is_object(map)) return wb_fail(WB_CORRUPT, "%s: weight_map: expected an object", index_path);
    WB_TRY(shard_names(map, index_path, &names, &n));
    wb_status status = open_shards(st, dir, index_path, names, n);
    free(names);
    WB_TRY(status);
    WB_TRY(keep_listed(st, map));
    WB_TRY(wb_safetensors_sort(st));
    return check_index(st, map, index_path);
}

static wb_status open_index(wb_safetensors *st, const char *dir, const char *index_path) {
    char *text = NULL;
    size_t bytes;
    json_t *index = NULL;
    WB_TRY(wb_file_read(index_path, INDEX_MAX_BYTES, &text, &bytes));
    wb_status status = wb_json_parse(text, bytes, index_path, &index);
    free(text);
    WB_TRY(status);
    status = open_weight_map(st, dir, index_path, json_object_get(index, "weight_map"));
    json_decref(index);
    return status;
}

/* ---- files that are not the model's ----------------------------------------------------------- */

static bool is_opened(const wb_safetensors *st, const char *name) {
    for (size_t i = 0; i < st->n_files; i++)
        if (strcmp(base_name(st->files[i].path), name) == 0) return true;
    return false;
}

static bool is_tensor_file(const char *name) {
    static const char ending[] = ".safetensors";
    const size_t n = strlen(name), m = sizeof ending - 1;
    return n > m && strcmp(name + n - m, ending) == 0;
}

/* *first_out: the first by name of the tensor files in `dir` that were not opened, freed with free(); NULL:
 * there are none. */
static wb_status find_unopened(const wb_safetensors *st, const char *dir, char **first_out, size_t *n_out) {
    DIR *list = opendir(dir);
    if (!list) return wb_fail(WB_IO, "%s: %s", dir, strerror(errno));
    wb_status status = WB_OK;
    char *first = NULL;
    size_t n = 0;
    for (const struct dirent *entry; status == WB_OK && (entry = readdir(list));) {
        if (!is_tensor_file(entry->d_name) || is_opened(st, entry->d_name)) continue;
        n++;
        if (first && strcmp(entry->d_name, first) > 0) continue;
        free(first);
        first = NULL;
        status = wb_text_format(&first, "%s", entry->d_name);
    }
    closedir(list);
    WB_TRY(status);
    *first_out = first;
    *n_out = n;
    return WB_OK;
}

/* Weights of another save, or an adapter: whoever put them there may expect that they count. */
static wb_status note_unopened(wb_safetensors *st, const char *dir) {
    char *first = NULL, *note = NULL;
    size_t n = 0;
    WB_TRY(find_unopened(st, dir, &first, &n));
    if (!first) return WB_OK;
    const wb_status status = wb_text_format(&note, "%s%s%s/%s: not of this model, ignored (%zu such files)",
                                            st->note ? st->note : "", st->note ? "; " : "", dir, first, n);
    free(first);
    WB_TRY(status);
    free(st->note);
    st->note = note;
    return WB_OK;
}

/* ---- open ------------------------------------------------------------------------------------ */

static wb_status open_single(wb_safetensors *st, const char *path) {
    WB_TRY(WB_NEW(st->files, 1, path));
    WB_TRY(wb_tensor_file_add(st, path));
    return wb_safetensors_sort(st);
}

/* <stem>.safetensors, or the index. Where both are there nothing says which of them is the model: other
 * loaders differ in it. */
static wb_status open_dir(wb_safetensors *st, const char *dir, const char *stem) {
    char *single = NULL, *index = NULL;
    wb_status status = wb_text_format(&single, "%s/%s.safetensors", dir, stem);
    if (status == WB_OK) status = wb_text_format(&index, "%s/%s.safetensors.index.json", dir, stem);
    if (status != WB_OK) {
        free(single);
        return status;
    }
    if (access(single, F_OK) == 0 && access(index, F_OK) == 0)
        status = wb_fail(WB_INVALID_ARGUMENT,
                         "%s: expected one of %s.safetensors and %s.safetensors.index.json, "
                         "found both",
                         dir, stem, stem);
    else if (access(single, F_OK) == 0)
        status = open_single(st, single);
    else if (access(index, F_OK) == 0)
        status = open_index(st, dir, index);
    else
        status = wb_fail(WB_NOT_FOUND, "%s: neither %s.safetensors nor %s.safetensors.index.json", dir, stem,
                         stem);
    free(single);
    free(index);
    return status == WB_OK ? note_unopened(st, dir) : status;
}

wb_status wb_safetensors_open(const char *path, const char *stem, wb_safetensors **tensors_out) {
    struct stat info;
    wb_safetensors *st = NULL;
    if (!path) return wb_fail(WB_INVALID_ARGUMENT, "safetensors: path is NULL");
    if (stat(path, &info) != 0)
        return wb_fail(errno == ENOENT ? WB_NOT_FOUND : WB_IO, "%s: %s", path, strerror(errno));
    WB_TRY(WB_NEW(st, 1, path));
    wb_status status = wb_text_format(&st->path, "%s", path);
    if (status == WB_OK)
        status = S_ISDIR(info.st_mode) ? open_dir(st, path, stem ? stem : "model") : open_single(st, path);
    if (status != WB_OK) {
        wb_safetensors_close(st);
        return status;
    }
    *tensors_out = st;
    return WB_OK;
}
