/* safetensors_read.c - opening .safetensors files, alone or as shards under an index, mapped and checked.
 * Refuses: trusting any number of a header before it is compared with the file; converting elements. */
#include "checkpoint.h"
#include "wb_hash.h"
#include "wb_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define INDEX_MAX_BYTES ((size_t)256 * 1024 * 1024)

typedef struct st_file {
    char *path;
    unsigned char *map;
    size_t bytes;
    size_t data_start; /* byte of the file where offsets count from */
    char *names;       /* of its tensors, NUL-terminated one after another */
} st_file;

typedef struct st_entry {
    const char *name; /* owner: the file's `names` */
    char dtype_name[16];
    bool supported;
    wb_dtype dtype; /* where supported */
    int32_t n_dims; /* may exceed WB_MAX_DIMS where not supported */
    int64_t shape[WB_MAX_DIMS];
    size_t begin, end; /* data offsets, checked */
    size_t file;
} st_entry;

struct wb_safetensors {
    char *path; /* as opened, for messages */
    st_file *files;
    size_t n_files;
    st_entry *entries; /* by name */
    size_t n;
    uint64_t digest;
};

/* ---- one tensor of a header ------------------------------------------------------------------ */

/* Bits of an element of the format's dtypes; what Waybill has none for can be listed but not used. */
static const struct {
    const char *name;
    uint32_t bits;
    bool supported;
    wb_dtype dtype;
} dtypes[] = {
    {"F32", 32, true, WB_F32}, {"BF16", 16, true, WB_BF16}, {"F16", 16, true, WB_F16},
    {"U8", 8, true, WB_U8},    {"U16", 16, true, WB_U16},   {"I32", 32, true, WB_I32},
    {"I64", 64, true, WB_I64}, {"BOOL", 8, false, 0},       {"I8", 8, false, 0},
    {"I16", 16, false, 0},     {"U32", 32, false, 0},       {"U64", 64, false, 0},
    {"F64", 64, false, 0},     {"C64", 64, false, 0},       {"F8_E5M2", 8, false, 0},
    {"F8_E4M3", 8, false, 0},  {"F8_E8M0", 8, false, 0},    {"F6_E2M3", 6, false, 0},
    {"F6_E3M2", 6, false, 0},  {"F4", 4, false, 0},
};
#define N_DTYPES (sizeof dtypes / sizeof dtypes[0])

static wb_status read_dtype(const json_t *value, st_entry *entry, uint32_t *bits_out) {
    const char *name = json_string_value(value);
    if (!name || name[0] == '\0' || strlen(name) >= sizeof entry->dtype_name)
        return wb_fail(WB_CORRUPT, "dtype: expected a string of 1..%zu bytes", sizeof entry->dtype_name - 1);
    memcpy(entry->dtype_name, name, strlen(name) + 1);
    *bits_out = 0;
    for (size_t i = 0; i < N_DTYPES; i++) {
        if (strcmp(name, dtypes[i].name) != 0) continue;
        entry->supported = dtypes[i].supported;
        entry->dtype = dtypes[i].dtype;
        *bits_out = dtypes[i].bits;
    }
    return WB_OK;
}

static wb_status read_size(const json_t *value, const char *what, uint64_t *out) {
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return wb_fail(WB_CORRUPT, "%s: expected an integer of at least 0", what);
    *out = (uint64_t)json_integer_value(value);
    return WB_OK;
}

/* Multiplies the dimensions; 0 anywhere makes 0 only once all have been seen to fit. */
static wb_status read_shape(const json_t *value, st_entry *entry, uint64_t *elements_out) {
    uint64_t product = 1, dim = 0;
    bool empty = false;
    if (!json_is_array(value)) return wb_fail(WB_CORRUPT, "shape: expected a list");
    size_t n = json_array_size(value);
    if (n > INT32_MAX) return wb_fail(WB_CORRUPT, "shape: expected a list, found %zu dimensions", n);
    entry->n_dims = (int32_t)n;
    if (n > WB_MAX_DIMS) entry->supported = false;
    for (size_t d = 0; d < n; d++) {
        WB_TRY(read_size(json_array_get(value, d), "shape", &dim));
        if (d < WB_MAX_DIMS) entry->shape[d] = (int64_t)dim;
        if (dim == 0) {
            empty = true;
        } else if (product > (uint64_t)INT64_MAX / dim) {
            return wb_fail(WB_CORRUPT, "shape: expected a product below 2^63, found an overflow");
        } else {
            product *= dim;
        }
    }
    *elements_out = empty ? 0 : product;
    return WB_OK;
}

static wb_status read_entry(const json_t *value, uint64_t data_bytes, st_entry *entry) {
    uint64_t elements = 0, begin = 0, end = 0;
    uint32_t bits = 0;
    if (!json_is_object(value)) return wb_fail(WB_CORRUPT, "expected an object");
    WB_TRY(read_dtype(json_object_get(value, "dtype"), entry, &bits));
    WB_TRY(read_shape(json_object_get(value, "shape"), entry, &elements));
    const json_t *offsets = json_object_get(value, "data_offsets");
    if (json_array_size(offsets) != 2)
        return wb_fail(WB_CORRUPT, "data_offsets: expected a list of two integers");
    WB_TRY(read_size(json_array_get(offsets, 0), "data_offsets", &begin));
    WB_TRY(read_size(json_array_get(offsets, 1), "data_offsets", &end));
    if (begin > end || end > data_bytes)
        return wb_fail(WB_CORRUPT, "data_offsets: expected begin <= end <= %llu, found [%llu, %llu]",
                       (unsigned long long)data_bytes, (unsigned long long)begin, (unsigned long long)end);
    if (bits > 0 &&
        (elements > UINT64_MAX / bits || elements * bits % 8 != 0 || elements * bits / 8 != end - begin))
        return wb_fail(WB_CORRUPT,
                       "shape: %llu elements of %s, but data_offsets [%llu, %llu] hold %llu bytes",
                       (unsigned long long)elements, entry->dtype_name, (unsigned long long)begin,
                       (unsigned long long)end, (unsigned long long)(end - begin));
    entry->begin = (size_t)begin;
    entry->end = (size_t)end;
    return WB_OK;
}

/* ---- one file -------------------------------------------------------------------------------- */

static wb_status map_file(st_file *file) {
    struct stat info;
    int fd = open(file->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return wb_fail(errno == ENOENT ? WB_NOT_FOUND : WB_IO, "%s: %s", file->path, strerror(errno));
    wb_status status = WB_OK;
    if (fstat(fd, &info) != 0) {
        status = wb_fail(WB_IO, "%s: %s", file->path, strerror(errno));
    } else if (!S_ISREG(info.st_mode)) {
        status = wb_fail(WB_IO, "%s: expected a regular file", file->path);
    } else if (info.st_size < 8) {
        status =
            wb_fail(WB_CORRUPT, "%s: byte 0: expected a header length of 8 bytes, found a file of %lld bytes",
                    file->path, (long long)info.st_size);
    } else {
        void *map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED) {
            status = wb_fail(WB_IO, "%s: cannot be mapped: %s", file->path, strerror(errno));
        } else {
            file->map = map;
            file->bytes = (size_t)info.st_size;
        }
    }
    close(fd);
    return status;
}

/* The length in front of the header, against the file. */
static wb_status read_header_length(st_file *file) {
    uint64_t length = 0;
    for (int i = 0; i < 8; i++) length |= (uint64_t)file->map[i] << (8 * i);
    size_t most = file->bytes - 8 < WB_SAFETENSORS_MAX_HEADER ? file->bytes - 8 : WB_SAFETENSORS_MAX_HEADER;
    if (length > most)
        return wb_fail(WB_CORRUPT, "%s: byte 0: expected a header length of at most %zu, found %llu",
                       file->path, most, (unsigned long long)length);
    file->data_start = 8 + (size_t)length;
    return WB_OK;
}

static wb_status check_metadata(const json_t *metadata, const char *path) {
    const char *key;
    json_t *value;
    if (!json_is_object(metadata)) return wb_fail(WB_CORRUPT, "%s: __metadata__: expected an object", path);
    json_object_foreach((json_t *)(uintptr_t)metadata, key, value) {
        if (!json_is_string(value))
            return wb_fail(WB_CORRUPT, "%s: __metadata__: %s: expected a string", path, key);
    }
    return WB_OK;
}

/* Room for `count` more entries, and for their names in a block of the file's own. */
static wb_status grow_entries(wb_safetensors *st, st_file *file, json_t *header) {
    size_t name_bytes = 0, count = json_object_size(header);
    const char *key;
    json_t *value;
    json_object_foreach(header, key, value) name_bytes += strlen(key) + 1;
    WB_TRY(WB_ALLOC(file->names, name_bytes, 1, file->path));
    if (count > SIZE_MAX / sizeof *st->entries - st->n - 1)
        return wb_fail(WB_OUT_OF_MEMORY, "%s: no memory for %zu tensors", file->path, count);
    st_entry *grown = realloc(st->entries, (st->n + count + 1) * sizeof *grown);
    if (!grown) return wb_fail(WB_OUT_OF_MEMORY, "%s: no memory for %zu tensors", file->path, count);
    st->entries = grown;
    return WB_OK;
}

static int by_offset(const void *a, const void *b) {
    const st_entry *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

/* Tensors lie side by side, from the end of the header to the end of the file. */
static wb_status check_layout(st_file *file, st_entry *entries, size_t n) {
    size_t next = 0;
    if (n > 0) qsort(entries, n, sizeof *entries, by_offset);
    for (size_t i = 0; i < n; i++) {
        if (entries[i].begin != next)
            return wb_fail(WB_CORRUPT,
                           "%s: tensor %s: data_offsets [%zu, %zu]: expected to begin at %zu, where %s",
                           file->path, entries[i].name, entries[i].begin, entries[i].end, next,
                           entries[i].begin < next ? "the tensor before it ends (overlap)" : "a gap is left");
        next = entries[i].end;
    }
    size_t data_bytes = file->bytes - file->data_start;
    if (next != data_bytes)
        return wb_fail(WB_CORRUPT, "%s: byte %zu: expected the end of the file, found %zu bytes of no tensor",
                       file->path, file->data_start + next, data_bytes - next);
    return WB_OK;
}

static wb_status read_entries(wb_safetensors *st, st_file *file, json_t *header) {
    size_t first = st->n, data_bytes = file->bytes - file->data_start;
    const char *key;
    json_t *value;
    WB_TRY(grow_entries(st, file, header));
    char *name = file->names;
    json_object_foreach(header, key, value) {
        if (strcmp(key, "__metadata__") == 0) {
            WB_TRY(check_metadata(value, file->path));
            continue;
        }
        st_entry entry = {.name = name, .file = st->n_files - 1};
        wb_status status = read_entry(value, data_bytes, &entry);
        if (status != WB_OK) return wb_fail_context(status, "%s: tensor %s", file->path, key);
        memcpy(name, key, strlen(key) + 1);
        name += strlen(key) + 1;
        st->entries[st->n++] = entry;
    }
    return check_layout(file, st->entries + first, st->n - first);
}

/* Opens `path` as the next file; `files` has room. What fails is left for wb_safetensors_close. */
static wb_status add_file(wb_safetensors *st, const char *path) {
    st_file *file = &st->files[st->n_files++];
    WB_TRY(wb_text_format(&file->path, "%s", path));
    WB_TRY(map_file(file));
    WB_TRY(read_header_length(file));
    json_t *header = NULL;
    WB_TRY(wb_json_parse((const char *)file->map + 8, file->data_start - 8, file->path, &header));
    wb_status status = read_entries(st, file, header);
    json_decref(header);
    st->digest = wb_hash64_seeded(file->map, file->data_start, st->digest ^ file->bytes);
    return status;
}

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
        wb_status status = add_file(st, path);
        free(path);
        if (status == WB_NOT_FOUND) return wb_fail_context(status, "%s: shard", index_path);
        WB_TRY(status);
    }
    return WB_OK;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const st_entry *)a)->name, ((const st_entry *)b)->name);
}

static wb_status sort_entries(wb_safetensors *st) {
    if (st->n > 0) qsort(st->entries, st->n, sizeof *st->entries, by_name);
    for (size_t i = 1; i < st->n; i++)
        if (strcmp(st->entries[i].name, st->entries[i - 1].name) == 0)
            return wb_fail(WB_CORRUPT, "tensor %s: in both %s and %s", st->entries[i].name,
                           st->files[st->entries[i - 1].file].path, st->files[st->entries[i].file].path);
    return WB_OK;
}

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Every tensor that the index lists is in the shard that it names. */
static wb_status check_index(const wb_safetensors *st, json_t *map, const char *index_path) {
    const char *key;
    json_t *value;
    json_object_foreach(map, key, value) {
        size_t i = wb_safetensors_lookup(st, key);
        const char *shard = json_string_value(value);
        if (i == SIZE_MAX)
            return wb_fail(WB_CORRUPT, "%s: weight_map: tensor %s is not in %s", index_path, key, shard);
        const char *found = base_name(st->files[st->entries[i].file].path);
        if (strcmp(found, shard) != 0)
            return wb_fail(WB_CORRUPT, "%s: weight_map: tensor %s: expected in %s, found in %s", index_path,
                           key, shard, found);
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
    WB_TRY(sort_entries(st));
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

/* ---- open ------------------------------------------------------------------------------------ */

static wb_status open_single(wb_safetensors *st, const char *path) {
    WB_TRY(WB_NEW(st->files, 1, path));
    WB_TRY(add_file(st, path));
    return sort_entries(st);
}

/* <stem>.safetensors where it is there, else the index: the order of the other loaders. */
static wb_status open_dir(wb_safetensors *st, const char *dir, const char *stem) {
    char *single = NULL, *index = NULL;
    wb_status status = wb_text_format(&single, "%s/%s.safetensors", dir, stem);
    if (status == WB_OK) status = wb_text_format(&index, "%s/%s.safetensors.index.json", dir, stem);
    if (status != WB_OK) {
        free(single);
        return status;
    }
    if (access(single, F_OK) == 0)
        status = open_single(st, single);
    else if (access(index, F_OK) == 0)
        status = open_index(st, dir, index);
    else
        status = wb_fail(WB_NOT_FOUND, "%s: neither %s.safetensors nor %s.safetensors.index.json", dir, stem,
                         stem);
    free(single);
    free(index);
    return status;
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

void wb_safetensors_close(wb_safetensors *st) {
    if (!st) return;
    for (size_t i = 0; i < st->n_files; i++) {
        if (st->files[i].map) munmap(st->files[i].map, st->files[i].bytes);
        free(st->files[i].names);
        free(st->files[i].path);
    }
    free(st->files);
    free(st->entries);
    free(st->path);
    free(st);
}

/* ---- use ------------------------------------------------------------------------------------- */

size_t wb_safetensors_count(const wb_safetensors *tensors) {
    return tensors->n;
}

const char *wb_safetensors_name(const wb_safetensors *tensors, size_t i) {
    return tensors->entries[i].name;
}

uint64_t wb_safetensors_digest(const wb_safetensors *tensors) {
    return tensors->digest;
}

size_t wb_safetensors_lookup(const wb_safetensors *st, const char *name) {
    st_entry key = {.name = name};
    const st_entry *found = st->n > 0 ? bsearch(&key, st->entries, st->n, sizeof key, by_name) : NULL;
    return found ? (size_t)(found - st->entries) : SIZE_MAX;
}

wb_status wb_safetensors_get(const wb_safetensors *st, size_t i, wb_tensor_view *view_out) {
    if (i >= st->n)
        return wb_fail(WB_INVALID_ARGUMENT, "%s: tensor index: expected below %zu, found %zu", st->path,
                       st->n, i);
    const st_entry *entry = &st->entries[i];
    const st_file *file = &st->files[entry->file];
    if (!entry->supported)
        return wb_fail(WB_UNSUPPORTED, "%s: tensor %s: dtype %s with %d dimensions is not supported",
                       file->path, entry->name, entry->dtype_name, entry->n_dims);
    wb_tensor_view view = {.name = entry->name,
                           .dtype = entry->dtype,
                           .n_dims = entry->n_dims,
                           .data = file->map + file->data_start + entry->begin,
                           .bytes = entry->end - entry->begin,
                           .file = file->path};
    memcpy(view.shape, entry->shape, sizeof view.shape);
    *view_out = view;
    return WB_OK;
}

wb_status wb_safetensors_find(const wb_safetensors *st, const char *name, wb_tensor_view *view_out) {
    size_t i = wb_safetensors_lookup(st, name);
    if (i == SIZE_MAX) return wb_fail(WB_NOT_FOUND, "%s: no tensor %s", st->path, name);
    return wb_safetensors_get(st, i, view_out);
}
