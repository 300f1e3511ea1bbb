/* tensor_file.c - one .safetensors file: mapped, its header checked, its tensors appended to the table.
 * Refuses: trusting any number of the header before it is compared with the file; converting elements. */
#include "safetensors_table.h"
#include "wb_check.h"
#include "wb_hash.h"
#include "wb_json.h"
#include "wb_memory.h"
#include "wb_text.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- one tensor of a header ------------------------------------------------------------------ */

/* Bits of an element of the format's dtypes; what Waybill has none for can be listed but not used. */
static const struct {
    const char *name;
    uint32_t bits;
    bool supported;
    wb_dtype dtype;
} dtypes[] = {
    {"F32", 32, true, WB_F32},
    {"BF16", 16, true, WB_BF16},
    {"F16", 16, true, WB_F16},
    {"U8", 8, true, WB_U8},
    {"U16", 16, true, WB_U16},
    {"I32", 32, true, WB_I32},
    {"I64", 64, true, WB_I64},
    {"BOOL", 8, false, 0},
    {"I8", 8, true, WB_I8},
    {"I16", 16, false, 0},
    {"U32", 32, false, 0},
    {"U64", 64, false, 0},
    {"F64", 64, false, 0},
    {"C64", 64, false, 0},
    {"F8_E5M2", 8, false, 0},
    {"F8_E4M3", 8, true, WB_F8_E4M3},
    {"F8_E8M0", 8, true, WB_F8_E8M0},
    {"F6_E2M3", 6, false, 0},
    {"F6_E3M2", 6, false, 0},
    {"F4", 4, false, 0},
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
        return wb_fail(WB_CORRUPT,
                       "data_offsets: expected begin <= end <= %" PRIu64 ", found [%" PRIu64 ", %" PRIu64 "]",
                       data_bytes, begin, end);
    if (bits > 0 &&
        (elements > UINT64_MAX / bits || elements * bits % 8 != 0 || elements * bits / 8 != end - begin))
        return wb_fail(WB_CORRUPT,
                       "shape: %" PRIu64 " elements of %s, but data_offsets [%" PRIu64 ", %" PRIu64
                       "] hold %" PRIu64 " bytes",
                       elements, entry->dtype_name, begin, end, (end - begin));
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
        status = wb_fail(WB_CORRUPT,
                         "%s: byte 0: expected a header length of 8 bytes, found a file of %" PRId64 " bytes",
                         file->path, (int64_t)info.st_size);
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
    const size_t max =
        file->bytes - 8 < WB_SAFETENSORS_MAX_HEADER ? file->bytes - 8 : WB_SAFETENSORS_MAX_HEADER;
    if (length > max)
        return wb_fail(WB_CORRUPT, "%s: byte 0: expected a header length of at most %zu, found %" PRIu64,
                       file->path, max, length);
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
    WB_TRY(WB_NEW(file->names, name_bytes, file->path));
    return WB_GROW(st->entries, st->n + count, &st->capacity, file->path);
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
wb_status wb_tensor_file_add(wb_safetensors *st, const char *path) {
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
