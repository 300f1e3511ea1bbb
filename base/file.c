/* file.c - see wb_file.h. Refuses: what is in the files. */
#include "wb_check.h"
#include "wb_file.h"
#include "wb_memory.h"
#include "wb_text.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- reading ------------------------------------------------------------------------------------- */

static wb_status read_all(int fd, const char *path, char *text, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        ssize_t got = read(fd, text + done, bytes - done);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return wb_fail(WB_IO, "%s: byte %zu: %s", path, done, strerror(errno));
        if (got == 0) return wb_fail(WB_IO, "%s: expected %zu bytes, found %zu", path, bytes, done);
        done += (size_t)got;
    }
    return WB_OK;
}

static const char *kind_of(mode_t mode) {
    return S_ISDIR(mode)    ? "a directory"
           : S_ISFIFO(mode) ? "a pipe: write it to a file first"
                            : "a device or socket";
}

static wb_status read_open(int fd, const char *path, size_t max_bytes, char **text_out, size_t *bytes_out) {
    struct stat info;
    if (fstat(fd, &info) != 0) return wb_fail(WB_IO, "%s: %s", path, strerror(errno));
    if (!S_ISREG(info.st_mode))
        return wb_fail(WB_IO, "%s: expected a regular file, whose size is known before it is read, found %s",
                       path, kind_of(info.st_mode));
    if (info.st_size < 0 || (uint64_t)info.st_size > max_bytes)
        return wb_fail(WB_CORRUPT, "%s: expected at most %zu bytes, found %jd", path, max_bytes,
                       (intmax_t)info.st_size);
    size_t bytes = (size_t)info.st_size;
    char *text = NULL;
    WB_TRY(WB_NEW(text, bytes + 1, path));
    wb_status status = read_all(fd, path, text, bytes);
    if (status != WB_OK) {
        free(text);
        return status;
    }
    *text_out = text;
    *bytes_out = bytes;
    return WB_OK;
}

wb_status wb_file_read(const char *path, size_t max_bytes, char **text_out, size_t *bytes_out) {
    /* A named pipe without a writer is refused like any other, not waited for. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && errno == ENOTDIR)
        return wb_fail(WB_IO, "%s: expected a directory before the last /, found a file", path);
    if (fd < 0) return wb_fail(errno == ENOENT ? WB_NOT_FOUND : WB_IO, "%s: %s", path, strerror(errno));
    wb_status status = read_open(fd, path, max_bytes, text_out, bytes_out);
    close(fd);
    return status;
}

/* ---- writing ------------------------------------------------------------------------------------- */

static wb_status make_dir(const char *path) {
    struct stat info;
    if (mkdir(path, 0777) == 0) return WB_OK;
    int reason = errno;
    if (reason == EEXIST && stat(path, &info) == 0 && S_ISDIR(info.st_mode)) return WB_OK;
    return wb_fail(WB_IO, "%s: cannot be made a directory: %s", path, strerror(reason));
}

wb_status wb_dir_create(const char *dir) {
    char *path = NULL;
    if (dir[0] == '\0') return wb_fail(WB_INVALID_ARGUMENT, "directory: expected a path, found \"\"");
    WB_TRY(wb_text_format(&path, "%s", dir));
    wb_status status = WB_OK;
    for (char *slash = strchr(path + 1, '/'); slash && status == WB_OK; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        status = make_dir(path);
        *slash = '/';
    }
    if (status == WB_OK) status = make_dir(path);
    free(path);
    return status;
}

bool wb_dir_is_empty(const char *path) {
    DIR *dir = opendir(path);
    if (!dir) return false;
    bool empty = true;
    for (const struct dirent *entry; empty && (entry = readdir(dir));)
        empty = strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0;
    closedir(dir);
    return empty;
}

static void free_names(wb_new_file *file) {
    free(file->path);
    free(file->temp);
    file->path = file->temp = NULL;
}

enum { MAX_LINKS = 40 }; /* as many as Linux follows */

/* The path that a symbolic link at `path` points to; NULL when `path` is no link or is not there. */
static wb_status read_link(const char *path, char **target_out) {
    char target[4096];
    ssize_t length = readlink(path, target, sizeof target);
    *target_out = NULL;
    if (length < 0 && (errno == EINVAL || errno == ENOENT)) return WB_OK;
    if (length < 0) return wb_fail(WB_IO, "%s: %s", path, strerror(errno));
    if ((size_t)length == sizeof target) return wb_fail(WB_IO, "%s: the link is too long", path);
    while (length > 1 && target[length - 1] == '/') length--; /* a name at its end could be a link too */
    const char *slash = strrchr(path, '/');
    int parent = target[0] == '/' || !slash ? 0 : (int)(slash - path) + 1;
    return wb_text_format(target_out, "%.*s%.*s", parent, path, (int)length, target);
}

/* The open file that a name like /dev/fd/3 stands for, or -1. Such a name is a link, but what it points to
 * need not have a path, and where it has one the owner of the descriptor is writing there. */
static int descriptor_of(const char *path) {
    static const char *const folders[] = {"/proc/self/fd/", "/dev/fd/"};
    for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) {
        const size_t length = strlen(folders[i]);
        if (strncmp(path, folders[i], length) != 0 || path[length] < '0' || path[length] > '9') continue;
        char *end = NULL;
        const long fd = strtol(path + length, &end, 10);
        if (*end == '\0' && fd <= INT_MAX) return (int)fd;
    }
    return -1;
}

wb_status wb_follow_links(const char *path, char **end_out) {
    char *here = NULL;
    WB_TRY(wb_text_format(&here, "%s", path));
    for (int i = 0; i < MAX_LINKS; i++) {
        char *next = NULL;
        wb_status status = descriptor_of(here) < 0 ? read_link(here, &next) : WB_OK;
        if (status == WB_OK && !next) {
            *end_out = here;
            return WB_OK;
        }
        free(here);
        if (status != WB_OK) return status;
        here = next;
    }
    free(here);
    return wb_fail(WB_IO, "%s: too many symbolic links", path);
}

wb_status wb_is_descriptor(const char *path, bool *is_out) {
    char *end = NULL;
    WB_TRY(wb_follow_links(path, &end));
    *is_out = descriptor_of(end) >= 0;
    free(end);
    return WB_OK;
}

static bool same_inode(const struct stat *a, const struct stat *b) {
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* The directory of `path`, with a slash at its end, or "./"; freed with free(). */
static wb_status parent_of(const char *path, char **parent_out) {
    const char *slash = strrchr(path, '/');
    return slash ? wb_text_format(parent_out, "%.*s", (int)(slash - path) + 1, path)
                 : wb_text_format(parent_out, "./");
}

static const char *last_part(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Of two ends of links that are not there: the same name in the same directory. */
static wb_status same_place(const char *a, const char *b, bool *same_out) {
    char *parent_a = NULL, *parent_b = NULL;
    struct stat at_a, at_b;
    WB_TRY(parent_of(a, &parent_a));
    wb_status status = parent_of(b, &parent_b);
    if (status == WB_OK)
        *same_out = strcmp(last_part(a), last_part(b)) == 0 && stat(parent_a, &at_a) == 0 &&
                    stat(parent_b, &at_b) == 0 && same_inode(&at_a, &at_b);
    free(parent_a);
    free(parent_b);
    return status;
}

wb_status wb_same_file(const char *a, const char *b, bool *same_out) {
    struct stat at_a, at_b;
    const bool a_exists = stat(a, &at_a) == 0, b_exists = stat(b, &at_b) == 0;
    if (a_exists || b_exists) {
        *same_out = a_exists && b_exists && same_inode(&at_a, &at_b) &&
                    (S_ISREG(at_a.st_mode) || S_ISDIR(at_a.st_mode));
        return WB_OK;
    }
    char *end_a = NULL, *end_b = NULL;
    WB_TRY(wb_follow_links(a, &end_a));
    wb_status status = wb_follow_links(b, &end_b);
    if (status == WB_OK) status = same_place(end_a, end_b, same_out);
    free(end_a);
    free(end_b);
    return status;
}

/* What stands at `path` decides: a device or a pipe is written directly, a file is replaced by one of the
 * same permissions, and where nothing stands a new file comes. */
static wb_status look_at(const char *path, bool *direct_out, mode_t *mode_out) {
    struct stat info;
    *direct_out = false;
    *mode_out = 0; /* of a new file */
    if (stat(path, &info) != 0)
        return errno == ENOENT ? WB_OK : wb_fail(WB_IO, "%s: cannot be written: %s", path, strerror(errno));
    *direct_out = S_ISCHR(info.st_mode) || S_ISFIFO(info.st_mode);
    *mode_out = info.st_mode & 07777;
    if (*direct_out || S_ISREG(info.st_mode)) return WB_OK;
    return wb_fail(WB_IO, "%s: cannot be written: expected a file, a device or a pipe, found %s", path,
                   S_ISDIR(info.st_mode) ? "a directory" : "something else");
}

static wb_status open_temp(wb_new_file *file, mode_t mode) {
    WB_TRY(wb_text_format(&file->temp, "%s.%ld.tmp", file->path, (long)getpid()));
    file->fd = open(file->temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (file->fd >= 0 && mode != 0) WB_IGNORE(fchmod(file->fd, mode)); /* another's file keeps what it can */
    return WB_OK;
}

static wb_status open_new(const char *path, wb_new_file *file) {
    bool direct = false;
    mode_t mode = 0;
    WB_TRY(wb_follow_links(path, &file->path));
    const int descriptor = descriptor_of(file->path);
    if (descriptor < 0) WB_TRY(look_at(file->path, &direct, &mode));
    if (descriptor >= 0)
        file->fd = fcntl(descriptor, F_DUPFD_CLOEXEC, 0); /* so it goes on where its owner is */
    else if (direct)
        file->fd = open(file->path, O_WRONLY | O_CLOEXEC);
    else
        WB_TRY(open_temp(file, mode));
    return file->fd >= 0 ? WB_OK : wb_fail(WB_IO, "%s: cannot be written: %s", path, strerror(errno));
}

wb_status wb_new_file_open(const char *path, wb_new_file *file) {
    *file = (wb_new_file){.fd = -1};
    wb_status status = open_new(path, file);
    if (status != WB_OK) free_names(file);
    return status;
}

wb_status wb_new_file_write(wb_new_file *file, const void *data, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        ssize_t wrote = write(file->fd, (const char *)data + done, bytes - done);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote < 0)
            return wb_fail(WB_IO, "%s: byte %" PRIu64 ": %s", file->path, file->written, strerror(errno));
        done += (size_t)wrote;
        file->written += (uint64_t)wrote;
    }
    return WB_OK;
}

wb_status wb_new_file_sync(wb_new_file *file) {
    int failed = file->temp ? fsync(file->fd) : 0; /* what is written directly is not ours to sync */
    int reason = errno;
    if (close(file->fd) != 0 && !failed) {
        failed = 1;
        reason = errno;
    }
    file->fd = -1;
    return failed ? wb_fail(WB_IO, "%s: cannot be synced: %s", file->path, strerror(reason)) : WB_OK;
}

/* The rename itself is durable once the directory is synced. */
static wb_status sync_parent(const char *path) {
    char *parent = NULL;
    WB_TRY(parent_of(path, &parent));
    wb_status status = WB_OK;
    int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) != 0)
        status = wb_fail(WB_IO, "%s: cannot be synced: %s", parent, strerror(errno));
    if (fd >= 0) close(fd);
    free(parent);
    return status;
}

wb_status wb_file_move(const char *from, const char *to) {
    if (rename(from, to) == 0) return sync_parent(to);
    return wb_fail(WB_IO, "%s: cannot be renamed to %s: %s", from, to, strerror(errno));
}

wb_status wb_new_file_commit(wb_new_file *file) {
    wb_status status = file->temp ? wb_file_move(file->temp, file->path) : WB_OK;
    /* A temporary that was renamed is not there any more. */
    if (status != WB_OK && file->temp) unlink(file->temp);
    free_names(file);
    return status;
}

void wb_new_file_discard(wb_new_file *file) {
    if (!file->path) return;
    if (file->fd >= 0) close(file->fd);
    file->fd = -1;
    if (file->temp) unlink(file->temp);
    free_names(file);
}

wb_status wb_file_replace(const char *path, const char *text, size_t bytes) {
    wb_new_file file;
    WB_TRY(wb_new_file_open(path, &file));
    wb_status status = wb_new_file_write(&file, text, bytes);
    if (status == WB_OK) status = wb_new_file_sync(&file);
    if (status == WB_OK) status = wb_new_file_commit(&file);
    if (status != WB_OK) wb_new_file_discard(&file);
    return status;
}

size_t wb_new_file_stem(const char *name) {
    size_t length = strlen(name), end = length > 4 ? length - 4 : 0;
    if (end == 0 || strcmp(name + end, ".tmp") != 0) return 0;
    while (end > 0 && name[end - 1] >= '0' && name[end - 1] <= '9') end--;
    bool has_process_id = end + 4 < length && end > 1 && name[end - 1] == '.';
    return has_process_id ? end - 1 : 0;
}
