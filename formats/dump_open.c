/* dump_open.c - opens a dump: maps its files, finds every record by index or by walking, sums up what is
 * lost. Refuses: what is damaged rather than cut, files of several models, a rid twice. */
#include "dump_layout.h"
#include "dump_state.h"
#include "wb_memory.h"
#include "wb_route_limits.h"
#include "wb_text.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

wb_file_bytes wb_dump_bytes(const wb_dump *dump, uint32_t file) {
    const wb_dump_file *f = &dump->files[file];
    return (wb_file_bytes){f->name, f->bytes, f->size};
}

/* ---- records ------------------------------------------------------------------------------------ */

static wb_status add_record(wb_dump *d, uint32_t file, const char *rid, size_t length, uint64_t begin,
                            uint64_t end) {
    uint64_t other;
    if (wb_string_table_find(&d->rids, rid, length, &other))
        return wb_fail(WB_CORRUPT, "%s: byte %" PRIu64 ": rid %.*s is in %s already, at byte %" PRIu64,
                       d->files[file].name, begin, (int)length, rid, d->files[d->records[other].file].name,
                       d->records[other].offset);
    wb_dump_record_place place = {.offset = begin, .bytes = end - begin, .file = file};
    WB_TRY(WB_GROW(d->records, d->n_records + 1, &d->records_capacity, "records of a dump"));
    WB_TRY(wb_string_table_add(&d->rids, rid, length, d->n_records, &place.rid));
    d->records[d->n_records++] = place;
    return WB_OK;
}

/* ---- with an index ------------------------------------------------------------------------------ */

/* The index's offset when the file ends with a trailer that is whole. */
static bool find_trailer(const wb_dump_file *f, uint64_t first, uint64_t *index_out) {
    if (f->size < first + WB_TRAILER_BYTES) return false;
    uint64_t at = f->size - WB_TRAILER_BYTES, index;
    memcpy(&index, f->bytes + at + WB_TRAILER_OFFSET_AT, sizeof index);
    uint8_t expected[WB_TRAILER_BYTES];
    wb_trailer_fill(expected, index);
    if (memcmp(f->bytes + at, expected, sizeof expected) != 0 || index < first || index > at) return false;
    *index_out = index;
    return true;
}

/* Takes one pair of the index: a rid, and the offset of its record, which is in [least, most]. */
static wb_status add_indexed(wb_dump *d, uint32_t file, wb_scan *pairs, uint64_t least, uint64_t most,
                             uint64_t index) {
    size_t length = 0, at = pairs->pos;
    const char *rid = wb_scan_str(pairs, &length);
    uint64_t offset = wb_scan_uint(pairs, most);
    if (offset < least) wb_scan_refuse(pairs, at, "records of the index overlap");
    if (rid && (length == 0 || length > WB_MAX_RID_BYTES || !wb_text_ok(rid, length)))
        wb_scan_refuse(pairs, at, "rid is not 1..1024 bytes of UTF-8");
    wb_file_bytes bytes = wb_dump_bytes(d, file);
    if (pairs->error != WB_SCAN_OK) return wb_parse_fail(&bytes, pairs);
    return add_record(d, file, rid, length, offset, index);
}

/* Records from the index at byte `index`: they tile [first, index), each ending where the next begins. */
static wb_status read_index(wb_dump *d, uint32_t file, uint64_t first, uint64_t index) {
    wb_file_bytes bytes = wb_dump_bytes(d, file);
    uint64_t end = bytes.size - WB_TRAILER_BYTES, walked = 0;
    bool cut = false;
    WB_TRY(wb_object_end(&bytes, index, &walked, &cut));
    if (cut || walked != end)
        return wb_fail(WB_CORRUPT, "%s: byte %" PRIu64 ": the index does not end at the trailer", bytes.name,
                       index);
    wb_scan pairs;
    uint32_t n = 0;
    WB_TRY(wb_parse_index(&bytes, index, end, &pairs, &n));
    if (n == 0 && index != first)
        return wb_fail(WB_CORRUPT, "%s: byte %" PRIu64 ": the index leaves out what is here", bytes.name,
                       first);
    uint64_t least = first, most = first; /* the first record follows the header */
    for (uint32_t i = 0; i < n; i++) {
        WB_TRY(add_indexed(d, file, &pairs, least, most, index));
        wb_dump_record_place *place = &d->records[d->n_records - 1];
        if (i > 0) place[-1].bytes = place->offset - place[-1].offset;
        least = place->offset + WB_RECORD_BYTES_MIN;
        most = index;
    }
    return WB_OK;
}

/* ---- without one -------------------------------------------------------------------------------- */

static void report_lost(wb_dump *d, uint32_t file, uint64_t last_whole, const char *what) {
    const wb_dump_file *f = &d->files[file];
    d->info.lost_bytes += f->size - last_whole;
    if (d->info.lost_where[0] == '\0')
        snprintf(d->info.lost_where, sizeof d->info.lost_where, "%.128s: byte %" PRIu64 ": %s", f->name,
                 last_whole, what);
}

/* An index that is whole in a file without a whole trailer: what follows must be the beginning of its
 * trailer, else it is damage. */
static wb_status check_tail(wb_dump *d, uint32_t file, uint64_t index, uint64_t end) {
    wb_file_bytes bytes = wb_dump_bytes(d, file);
    wb_scan pairs;
    uint32_t n = 0;
    WB_TRY(wb_parse_index(&bytes, index, end, &pairs, &n));
    uint8_t trailer[WB_TRAILER_BYTES];
    wb_trailer_fill(trailer, index);
    uint64_t left = bytes.size - end;
    if (left >= WB_TRAILER_BYTES || memcmp(bytes.bytes + end, trailer, (size_t)left) != 0)
        return wb_fail(WB_CORRUPT,
                       "%s: byte %" PRIu64 ": the trailer is damaged (records before byte %" PRIu64
                       " can be read once the file is cut there)",
                       bytes.name, end, index);
    report_lost(d, file, index, "the file was cut inside its trailer; no record is lost");
    return WB_OK;
}

static wb_status walk_records(wb_dump *d, uint32_t file, uint64_t first) {
    wb_file_bytes bytes = wb_dump_bytes(d, file);
    uint64_t begin = first, end = first;
    d->info.files_without_index++;
    for (; begin < bytes.size; begin = end) {
        bool cut = false;
        WB_TRY(wb_object_end(&bytes, begin, &end, &cut));
        if (cut) {
            report_lost(d, file, begin, "the file was cut inside the object that begins here");
            return WB_OK;
        }
        if (wb_is_index(&bytes, begin, end)) return check_tail(d, file, begin, end);
        wb_stored_record record;
        WB_TRY(wb_parse_record(&bytes, begin, end, &d->model, &record));
        wb_status status = add_record(d, file, record.rid, record.rid_length, begin, end);
        wb_stored_record_free(&record);
        WB_TRY(status);
    }
    return WB_OK;
}

/* ---- files -------------------------------------------------------------------------------------- */

/* Maps the file into an already named slot. */
static wb_status map_file(const char *path, wb_dump_file *f) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return wb_fail(WB_IO, "%s: cannot be opened: %s", path, strerror(errno));
    struct stat info;
    void *bytes = NULL;
    wb_status status = WB_OK;
    if (fstat(fd, &info) != 0) {
        status = wb_fail(WB_IO, "%s: %s", path, strerror(errno));
    } else if (!S_ISREG(info.st_mode)) {
        status = wb_fail(WB_IO, "%s: neither a file nor a directory", path);
    } else if (info.st_size > 0) {
        bytes = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (bytes == MAP_FAILED) status = wb_fail(WB_IO, "%s: cannot be mapped: %s", path, strerror(errno));
    }
    WB_IGNORE(close(fd));
    if (status != WB_OK) return status;
    f->bytes = bytes;
    f->size = (uint64_t)info.st_size;
    return WB_OK;
}

/* Takes the header's model as the dump's, or holds it against it. */
static wb_status take_model(wb_dump *d, uint32_t file, uint64_t header_end) {
    wb_file_bytes bytes = wb_dump_bytes(d, file);
    wb_route_model model;
    WB_TRY(wb_parse_header(&bytes, header_end, &model));
    if (!d->has_model) {
        d->model = model;
        d->has_model = true;
        return WB_OK;
    }
    wb_status status = wb_route_model_match(&d->model, &model);
    wb_header_model_free(&model);
    if (status == WB_OK) return WB_OK;
    return wb_fail_context(status, "%s is of another model than the files before it", bytes.name);
}

static wb_status read_file(wb_dump *d, uint32_t file) {
    wb_dump_file *f = &d->files[file];
    wb_file_bytes bytes = wb_dump_bytes(d, file);
    uint64_t header_end = 0, index = 0;
    bool cut = false;
    WB_TRY(wb_object_end(&bytes, 0, &header_end, &cut));
    d->info.files++;
    d->info.bytes += f->size;
    if (cut) {
        d->info.files_without_index++;
        report_lost(d, file, 0, "the file was cut inside its header");
        return WB_OK;
    }
    WB_TRY(take_model(d, file, header_end));
    if (find_trailer(f, header_end, &index)) return read_index(d, file, header_end, index);
    return walk_records(d, file, header_end);
}

static wb_status join_path(const char *directory, const char *name, char **out) {
    size_t size = strlen(directory) + strlen(name) + 2;
    WB_TRY(WB_NEW(*out, size, "a path"));
    snprintf(*out, size, "%s/%s", directory, name);
    return WB_OK;
}

static bool is_part(const char *name) {
    size_t length = strlen(name), extension = strlen(WB_DUMP_EXTENSION);
    return length > extension && strcmp(name + length - extension, WB_DUMP_EXTENSION) == 0;
}

static wb_status add_name(wb_dump *d, const char *name) {
    wb_dump_file *larger = realloc(d->files, (d->n_files + 1) * sizeof *larger);
    if (!larger) return wb_fail(WB_OUT_OF_MEMORY, "files of a dump: no memory");
    d->files = larger;
    char *copy = NULL;
    WB_TRY(WB_ALLOC(copy, strlen(name) + 1, 1, "a file name"));
    memcpy(copy, name, strlen(name));
    d->files[d->n_files++] = (wb_dump_file){.name = copy};
    return WB_OK;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const wb_dump_file *)a)->name, ((const wb_dump_file *)b)->name);
}

/* Names every *.wbr file of the directory, in name order. */
static wb_status list_directory(wb_dump *d, const char *path) {
    DIR *directory = opendir(path);
    if (!directory) return wb_fail(WB_IO, "%s: cannot be opened: %s", path, strerror(errno));
    wb_status status = WB_OK;
    errno = 0;
    for (struct dirent *entry; status == WB_OK && (entry = readdir(directory)); errno = 0)
        if (is_part(entry->d_name)) status = add_name(d, entry->d_name);
    if (status == WB_OK && errno != 0) status = wb_fail(WB_IO, "%s: %s", path, strerror(errno));
    WB_IGNORE(closedir(directory));
    if (status == WB_OK && d->n_files == 0)
        return wb_fail(WB_NOT_FOUND, "%s: no *%s file in this directory", path, WB_DUMP_EXTENSION);
    if (status == WB_OK) qsort(d->files, d->n_files, sizeof *d->files, by_name);
    return status;
}

static wb_status map_files(wb_dump *d, const char *path) {
    struct stat info;
    if (stat(path, &info) != 0) return wb_fail(WB_IO, "%s: cannot be opened: %s", path, strerror(errno));
    if (!S_ISDIR(info.st_mode)) {
        const char *slash = strrchr(path, '/');
        WB_TRY(add_name(d, slash ? slash + 1 : path));
        return map_file(path, &d->files[0]);
    }
    WB_TRY(list_directory(d, path));
    for (uint32_t i = 0; i < d->n_files; i++) {
        char *full = NULL;
        WB_TRY(join_path(path, d->files[i].name, &full));
        wb_status status = map_file(full, &d->files[i]);
        free(full);
        WB_TRY(status);
    }
    return WB_OK;
}

wb_status wb_dump_open(const char *path, wb_dump **dump_out) {
    if (!path || !dump_out) return wb_fail(WB_INVALID_ARGUMENT, "wb_dump_open: NULL");
    wb_dump *d = NULL;
    wb_status status;
    WB_TRY(WB_NEW(d, 1, "dump"));
    WB_GOTO(map_files(d, path), fail);
    for (uint32_t i = 0; i < d->n_files; i++) WB_GOTO(read_file(d, i), fail);
    if (!d->has_model) {
        status = wb_fail(WB_CORRUPT, "%s: no model is known: %s", path, d->info.lost_where);
        goto fail;
    }
    d->info.records = d->n_records;
    *dump_out = d;
    return WB_OK;
fail:
    wb_dump_close(d);
    return status;
}

void wb_dump_close(wb_dump *d) {
    if (!d) return;
    for (size_t i = 0; i < d->n_records; i++) wb_loaded_free(d->records[i].loaded);
    for (uint32_t i = 0; i < d->n_files; i++) {
        if (d->files[i].bytes) WB_IGNORE(munmap((void *)(uintptr_t)d->files[i].bytes, d->files[i].size));
        free(d->files[i].name);
    }
    wb_header_model_free(&d->model);
    wb_string_table_free(&d->rids);
    free(d->records);
    free(d->files);
    free(d);
}

const wb_route_model *wb_dump_model(const wb_dump *dump) {
    return &dump->model;
}

wb_dump_info wb_dump_get_info(const wb_dump *dump) {
    return dump->info;
}
