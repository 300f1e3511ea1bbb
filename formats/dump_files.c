/* dump_files.c - the files of an open dump: named, and in memory while somebody needs them. Owns: how many
 * are mapped at a time. A file that has no user stays mapped until its place is needed; when all places have
 * users, or a file system cannot map, its bytes are read into memory. Refuses: what is in them. */
#include "dump_layout.h"
#include "dump_state.h"
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

/* ---- the bytes of one file ---------------------------------------------------------------------- */

wb_file_bytes wb_dump_bytes(const wb_dump *dump, size_t file) {
    const wb_dump_file *f = &dump->files[file];
    return (wb_file_bytes){f->path, f->bytes, f->size};
}

/* The file that is open now is the one that was opened first, and has the bytes that it had then. */
static wb_status check_identity(wb_dump_file *f, const struct stat *info) {
    if (!S_ISREG(info->st_mode)) return wb_fail(WB_IO, "%s: neither a file nor a directory", f->path);
    if (!f->known) {
        f->size = (uint64_t)info->st_size;
        f->device = (uint64_t)info->st_dev;
        f->inode = (uint64_t)info->st_ino;
        f->known = true;
    }
    if (f->device != (uint64_t)info->st_dev || f->inode != (uint64_t)info->st_ino)
        return wb_fail(WB_IO, "%s: is another file than when the dump was opened", f->path);
    if ((uint64_t)info->st_size < f->size)
        return wb_fail(WB_IO,
                       "%s: has shrunk since the dump was opened: expected %" PRIu64 " bytes, found %jd",
                       f->path, f->size, (intmax_t)info->st_size);
    return WB_OK;
}

static wb_status read_copy(int fd, wb_dump_file *f) {
    uint8_t *bytes = NULL;
    WB_TRY(WB_ALLOC(bytes, f->size, 1, "a file of a dump"));
    for (uint64_t done = 0; done < f->size;) {
        ssize_t got = pread(fd, bytes + done, f->size - done, (off_t)done);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            free(bytes);
            return wb_fail(WB_IO, "%s: byte %" PRIu64 ": %s", f->path, done,
                           got < 0 ? strerror(errno) : "the file ends");
        }
        done += (uint64_t)got;
    }
    f->bytes = bytes;
    f->copied = true;
    return WB_OK;
}

/* ---- places for maps ---------------------------------------------------------------------------- */

static void unmap(wb_dump_file *f) {
    if (f->bytes) WB_IGNORE(munmap((void *)(uintptr_t)f->bytes, f->size));
    f->bytes = NULL;
}

/* A place in `mapped` for one more file: a new one, or that of a file without users, which is unmapped. False
 * when there is none. */
static bool find_place(wb_dump *d, size_t *place_out) {
    if (d->n_mapped < d->max_maps) {
        *place_out = d->n_mapped++;
        return true;
    }
    if (d->n_mapped_used == d->n_mapped) return false;
    while (d->files[d->mapped[d->hand]].users > 0) d->hand = (d->hand + 1) % d->n_mapped;
    unmap(&d->files[d->mapped[d->hand]]);
    *place_out = d->hand;
    d->hand = (d->hand + 1) % d->n_mapped;
    return true;
}

/* Fills the place with the file, which has no users yet; an empty place is closed. */
static bool map_at(wb_dump *d, size_t place, size_t file, int fd) {
    wb_dump_file *f = &d->files[file];
    void *bytes = mmap(NULL, f->size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (bytes == MAP_FAILED) {
        d->mapped[place] = d->mapped[--d->n_mapped];
        d->hand = 0;
        return false;
    }
    d->mapped[place] = (uint32_t)file;
    f->bytes = bytes;
    f->copied = false;
    f->passed_begin = f->passed_end = 0;
    return true;
}

static wb_status bring_in(wb_dump *d, size_t file, int fd) {
    wb_dump_file *f = &d->files[file];
    struct stat info;
    size_t place = 0;
    if (fstat(fd, &info) != 0) return wb_fail(WB_IO, "%s: %s", f->path, strerror(errno));
    WB_TRY(check_identity(f, &info));
    if (f->size == 0 || (find_place(d, &place) && map_at(d, place, file, fd))) return WB_OK;
    return read_copy(fd, f);
}

wb_status wb_dump_file_use(wb_dump *d, size_t file) {
    wb_dump_file *f = &d->files[file];
    if (!f->bytes) {
        /* A named pipe without a writer is refused like any other, not waited for. */
        int fd = d->directory < 0 ? open(f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
                                  : openat(d->directory, f->name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (fd < 0) return wb_fail(WB_IO, "%s: cannot be opened: %s", f->path, strerror(errno));
        wb_status status = bring_in(d, file, fd);
        WB_IGNORE(close(fd));
        WB_TRY(status);
    }
    if (f->users++ == 0 && f->bytes && !f->copied) d->n_mapped_used++;
    return WB_OK;
}

void wb_dump_file_drop(wb_dump *d, size_t file) {
    wb_dump_file *f = &d->files[file];
    if (--f->users > 0 || !f->bytes) return;
    if (!f->copied) {
        d->n_mapped_used--;
        return;
    }
    free((void *)(uintptr_t)f->bytes);
    f->bytes = NULL;
    f->copied = false;
}

/* Less than FORGET_BYTES is not worth a call of the system for each record. Where a page is read the system maps
 * those around it that it has, in blocks of AROUND_BYTES, other records' too. */
enum { FORGET_BYTES = 1 << 20, AROUND_BYTES = 64 << 10 };

/* The blocks that what was passed lies in, as far as they are the file's. */
static void forget_passed(wb_dump_file *f) {
    const uintptr_t file = (uintptr_t)f->bytes, file_end = file + f->size;
    uintptr_t begin = (file + f->passed_begin) / AROUND_BYTES * AROUND_BYTES;
    uintptr_t end = (file + f->passed_end + AROUND_BYTES - 1) / AROUND_BYTES * AROUND_BYTES;
    if (begin < file) begin = file;
    if (end > file_end) end = file_end;
    if (f->passed_end > f->passed_begin) WB_IGNORE(madvise((void *)begin, end - begin, MADV_DONTNEED));
    f->passed_begin = f->passed_end;
}

void wb_dump_file_forget(wb_dump *d, size_t file, uint64_t begin, uint64_t end) {
    wb_dump_file *f = &d->files[file];
    if (!f->bytes || f->copied) return;
    if (begin != f->passed_end) {
        forget_passed(f);
        f->passed_begin = begin;
    }
    f->passed_end = end;
    if (end - f->passed_begin >= FORGET_BYTES) forget_passed(f);
}

/* ---- names -------------------------------------------------------------------------------------- */

static bool is_part(const char *name) {
    size_t length = strlen(name), extension = strlen(WB_DUMP_EXTENSION);
    return length > extension && strcmp(name + length - extension, WB_DUMP_EXTENSION) == 0;
}

/* The file `name` of the directory `folder`; with folder "", the file whose path is `name`. */
static wb_status add_file(wb_dump *d, const char *folder, const char *name) {
    char *path = NULL;
    size_t length = strlen(folder), bytes = length + 1 + strlen(name) + 1;
    const char *between = length == 0 || folder[length - 1] == '/' ? "" : "/";
    WB_TRY(WB_GROW(d->files, d->n_files + 1, &d->files_capacity, "files of a dump"));
    WB_TRY(WB_OWN(&d->memory, path, bytes, "a file name"));
    snprintf(path, bytes, "%s%s%s", folder, between, name);
    const char *slash = strrchr(path, '/');
    d->files[d->n_files++] = (wb_dump_file){.path = path, .name = slash ? slash + 1 : path};
    return WB_OK;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const wb_dump_file *)a)->name, ((const wb_dump_file *)b)->name);
}

/* Names every *.wbr file of the directory, in name order. */
static wb_status list_directory(wb_dump *d, const char *path, DIR *directory) {
    wb_status status = WB_OK;
    errno = 0;
    for (struct dirent *entry; status == WB_OK && (entry = readdir(directory)); errno = 0)
        if (is_part(entry->d_name)) status = add_file(d, path, entry->d_name);
    if (status == WB_OK && errno != 0) status = wb_fail(WB_IO, "%s: %s", path, strerror(errno));
    if (status == WB_OK && d->n_files == 0)
        return wb_fail(WB_NOT_FOUND, "%s: no *%s file in this directory", path, WB_DUMP_EXTENSION);
    if (status == WB_OK) qsort(d->files, d->n_files, sizeof *d->files, by_name);
    return status;
}

/* The descriptor is kept: files are found in the directory also when the process has changed its own. */
static wb_status open_directory(wb_dump *d, const char *path) {
    DIR *directory = opendir(path);
    if (!directory) return wb_fail(WB_IO, "%s: cannot be opened: %s", path, strerror(errno));
    d->directory = fcntl(dirfd(directory), F_DUPFD_CLOEXEC, 0);
    wb_status status = d->directory < 0 ? wb_fail(WB_IO, "%s: %s", path, strerror(errno))
                                        : list_directory(d, path, directory);
    WB_IGNORE(closedir(directory));
    return status;
}

wb_status wb_dump_list_files(wb_dump *d, const char *path) {
    struct stat info;
    if (stat(path, &info) != 0) return wb_fail(WB_IO, "%s: cannot be opened: %s", path, strerror(errno));
    WB_TRY(S_ISDIR(info.st_mode) ? open_directory(d, path) : add_file(d, "", path));
    if (d->max_maps > d->n_files) d->max_maps = d->n_files;
    return WB_NEW(d->mapped, d->max_maps, "maps of a dump");
}

void wb_dump_free_files(wb_dump *d) {
    for (size_t i = 0; i < d->n_mapped; i++) unmap(&d->files[d->mapped[i]]);
    free(d->mapped);
    free(d->files);
    if (d->directory >= 0) WB_IGNORE(close(d->directory));
}
