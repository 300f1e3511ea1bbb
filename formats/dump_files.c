/* dump_files.c - the files of an open dump: named, mapped, unmapped. Refuses: what is in them. */
#include "dump_layout.h"
#include "dump_state.h"
#include "wb_text.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

wb_file_bytes wb_dump_bytes(const wb_dump *dump, size_t file) {
    const wb_dump_file *f = &dump->files[file];
    return (wb_file_bytes){f->name, f->bytes, f->size};
}

/* Maps the file `path` as `f`, which has its name already. */
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

static bool is_part(const char *name) {
    size_t length = strlen(name), extension = strlen(WB_DUMP_EXTENSION);
    return length > extension && strcmp(name + length - extension, WB_DUMP_EXTENSION) == 0;
}

static wb_status add_name(wb_dump *d, const char *name) {
    char *copy = NULL;
    WB_TRY(WB_GROW(d->files, d->n_files + 1, &d->files_capacity, "files of a dump"));
    WB_TRY(WB_OWN(&d->memory, copy, strlen(name) + 1, "a file name"));
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

wb_status wb_dump_map_files(wb_dump *d, const char *path) {
    struct stat info;
    if (stat(path, &info) != 0) return wb_fail(WB_IO, "%s: cannot be opened: %s", path, strerror(errno));
    if (!S_ISDIR(info.st_mode)) {
        const char *slash = strrchr(path, '/');
        WB_TRY(add_name(d, slash ? slash + 1 : path));
        return map_file(path, &d->files[0]);
    }
    WB_TRY(list_directory(d, path));
    for (size_t i = 0; i < d->n_files; i++) {
        char *full = NULL;
        WB_TRY(wb_text_format(&full, "%s/%s", path, d->files[i].name));
        wb_status status = map_file(full, &d->files[i]);
        free(full);
        WB_TRY(status);
    }
    return WB_OK;
}

void wb_dump_unmap_files(wb_dump *d) {
    for (size_t i = 0; i < d->n_files; i++)
        if (d->files[i].bytes) WB_IGNORE(munmap((void *)(uintptr_t)d->files[i].bytes, d->files[i].size));
    free(d->files);
    d->files = NULL;
    d->n_files = d->files_capacity = 0;
}
