/* checkpoint_files.c - reading small files whole and writing files that appear only when they are whole.
 * Refuses: what is in them. */
#include "checkpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

wb_status wb_text_format(char **text_out, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int length = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (length < 0) return wb_fail(WB_INVALID_ARGUMENT, "text: cannot be formatted");
    void *text = NULL;
    WB_TRY(wb_alloc((size_t)length + 1, 1, "text", &text));
    va_start(args, format);
    vsnprintf(text, (size_t)length + 1, format, args);
    va_end(args);
    *text_out = text;
    return WB_OK;
}

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

static wb_status read_open(int fd, const char *path, size_t max_bytes, char **text_out, size_t *bytes_out) {
    struct stat info;
    if (fstat(fd, &info) != 0) return wb_fail(WB_IO, "%s: %s", path, strerror(errno));
    if (!S_ISREG(info.st_mode)) return wb_fail(WB_IO, "%s: expected a regular file", path);
    if (info.st_size < 0 || (uint64_t)info.st_size > max_bytes)
        return wb_fail(WB_CORRUPT, "%s: expected at most %zu bytes, found %lld", path, max_bytes,
                       (long long)info.st_size);
    size_t bytes = (size_t)info.st_size;
    void *text = NULL;
    WB_TRY(wb_alloc(bytes + 1, 1, path, &text));
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
    int fd = open(path, O_RDONLY | O_CLOEXEC);
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

static void free_names(wb_new_file *file) {
    free(file->path);
    free(file->temp);
    file->path = file->temp = NULL;
}

wb_status wb_new_file_open(const char *path, wb_new_file *file) {
    *file = (wb_new_file){.fd = -1};
    wb_status status = wb_text_format(&file->path, "%s", path);
    if (status == WB_OK) status = wb_text_format(&file->temp, "%s.tmp", path);
    if (status == WB_OK) {
        file->fd = open(file->temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
        if (file->fd < 0) status = wb_fail(WB_IO, "%s: cannot be written: %s", file->temp, strerror(errno));
    }
    if (status != WB_OK) free_names(file);
    return status;
}

wb_status wb_new_file_write(wb_new_file *file, const void *data, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        ssize_t wrote = write(file->fd, (const char *)data + done, bytes - done);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote < 0)
            return wb_fail(WB_IO, "%s: byte %llu: %s", file->temp, (unsigned long long)file->written,
                           strerror(errno));
        done += (size_t)wrote;
        file->written += (uint64_t)wrote;
    }
    return WB_OK;
}

wb_status wb_new_file_sync(wb_new_file *file) {
    int failed = fsync(file->fd), reason = errno;
    if (close(file->fd) != 0 && !failed) {
        failed = 1;
        reason = errno;
    }
    file->fd = -1;
    return failed ? wb_fail(WB_IO, "%s: cannot be synced: %s", file->temp, strerror(reason)) : WB_OK;
}

/* The rename itself is durable once the directory is synced. */
static wb_status sync_parent(const char *path) {
    char *parent = NULL;
    const char *slash = strrchr(path, '/');
    if (!slash)
        WB_TRY(wb_text_format(&parent, "."));
    else
        WB_TRY(wb_text_format(&parent, "%.*s", (int)(slash - path) + 1, path));
    wb_status status = WB_OK;
    int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) != 0)
        status = wb_fail(WB_IO, "%s: cannot be synced: %s", parent, strerror(errno));
    if (fd >= 0) close(fd);
    free(parent);
    return status;
}

wb_status wb_new_file_commit(wb_new_file *file) {
    wb_status status = WB_OK;
    if (rename(file->temp, file->path) != 0) {
        status = wb_fail(WB_IO, "%s: cannot be renamed: %s", file->temp, strerror(errno));
        unlink(file->temp);
    } else {
        status = sync_parent(file->path);
    }
    free_names(file);
    return status;
}

void wb_new_file_discard(wb_new_file *file) {
    if (!file->temp) return;
    if (file->fd >= 0) close(file->fd);
    file->fd = -1;
    unlink(file->temp);
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

/* ---- JSON ---------------------------------------------------------------------------------------- */

wb_status wb_json_parse(const char *text, size_t bytes, const char *where, json_t **object_out) {
    json_error_t error;
    json_t *object = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    if (!object) {
        if (json_error_code(&error) == json_error_out_of_memory)
            return wb_fail(WB_OUT_OF_MEMORY, "%s: no memory for JSON of %zu bytes", where, bytes);
        return wb_fail(WB_CORRUPT, "%s: JSON line %d, byte %d: %s", where, error.line, error.position,
                       error.text);
    }
    if (!json_is_object(object)) {
        json_decref(object);
        return wb_fail(WB_CORRUPT, "%s: expected a JSON object", where);
    }
    *object_out = object;
    return WB_OK;
}
