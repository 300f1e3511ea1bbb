/* companions.c - the small files that a checkpoint has beside its weights, kept in memory: see
 * wb_checkpoint_dir.h. Refuses: what is in them. */
#include "wb_check.h"
#include "wb_checkpoint_dir.h"
#include "wb_file.h"
#include "wb_memory.h"
#include "wb_text.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SMALL_FILE_BYTES ((size_t)64 << 20)
#define ALL_FILES_BYTES ((size_t)256 << 20)
#define LEFT_NAMED 8 /* files that the note names */

typedef struct companion {
    char *name, *text;
    size_t bytes;
} companion;

struct wb_companions {
    int32_t owners; /* of one thread */
    dev_t device;   /* of the directory that they are from */
    ino_t inode;
    companion *files; /* [n] */
    size_t n, capacity;
    size_t bytes;  /* of all files */
    size_t n_left; /* files that are not kept */
    char *note;    /* wb_companions_note; NULL: all are kept */
};

static bool ends_with(const char *name, const char *ending) {
    size_t n = strlen(name), m = strlen(ending);
    return n >= m && strcmp(name + n - m, ending) == 0;
}

static bool is_companion(const char *name) {
    if (strcmp(name, "config.json") == 0 || ends_with(name, ".index.json")) return false;
    return strncmp(name, "tokenizer", 9) == 0 || ends_with(name, ".json") || ends_with(name, ".txt") ||
           ends_with(name, ".model") || ends_with(name, ".jinja");
}

/* The latest error is why a file is not kept. It has nothing to do with the weights, so the model is opened
 * without it, and a person is told. */
static wb_status leave_file(wb_companions *companions) {
    const char *before = companions->note ? companions->note : "small files that a save will not have: ";
    char *note = NULL;
    if (companions->n_left++ >= LEFT_NAMED) return WB_OK;
    WB_TRY(wb_text_format(&note, "%s%s%s", before, companions->note ? "; " : "", wb_error_message()));
    free(companions->note);
    companions->note = note;
    return WB_OK;
}

static wb_status read_file(wb_companions *companions, const char *path, const char *name) {
    const size_t room = ALL_FILES_BYTES - companions->bytes;
    companion file = {0};
    WB_TRY(WB_GROW(companions->files, companions->n + 1, &companions->capacity, path));
    wb_status status =
        wb_file_read(path, room < SMALL_FILE_BYTES ? room : SMALL_FILE_BYTES, &file.text, &file.bytes);
    if (status == WB_OUT_OF_MEMORY) return status;
    if (status != WB_OK) return leave_file(companions);
    status = wb_text_format(&file.name, "%s", name);
    if (status != WB_OK) {
        free(file.text);
        return status;
    }
    companions->files[companions->n++] = file;
    companions->bytes += file.bytes;
    return WB_OK;
}

static wb_status read_dir(wb_companions *companions, const char *dir) {
    struct stat info;
    DIR *list = opendir(dir);
    if (!list || stat(dir, &info) != 0) {
        wb_status status = wb_fail(WB_IO, "%s: %s", dir, strerror(errno));
        if (list) closedir(list);
        return status;
    }
    companions->device = info.st_dev;
    companions->inode = info.st_ino;
    wb_status status = WB_OK;
    for (const struct dirent *entry; status == WB_OK && (entry = readdir(list));) {
        char *path = NULL;
        if (!is_companion(entry->d_name)) continue;
        status = wb_text_format(&path, "%s/%s", dir, entry->d_name);
        if (status == WB_OK) status = read_file(companions, path, entry->d_name);
        free(path);
    }
    closedir(list);
    return status;
}

wb_status wb_companions_read(const char *dir, wb_companions **companions_out) {
    wb_companions *companions;
    WB_TRY(WB_NEW(companions, 1, dir));
    companions->owners = 1;
    const wb_status status = read_dir(companions, dir);
    if (status == WB_OK)
        *companions_out = companions;
    else
        wb_companions_close(companions);
    return status;
}

wb_companions *wb_companions_share(wb_companions *companions) {
    if (companions) companions->owners++;
    return companions;
}

void wb_companions_close(wb_companions *companions) {
    if (!companions || --companions->owners > 0) return;
    for (size_t i = 0; i < companions->n; i++) {
        free(companions->files[i].name);
        free(companions->files[i].text);
    }
    free(companions->files);
    free(companions->note);
    free(companions);
}

size_t wb_companions_bytes(const wb_companions *companions) {
    return companions->bytes;
}

const char *wb_companions_note(const wb_companions *companions) {
    return companions ? companions->note : NULL;
}

static wb_status write_file(const companion *file, const char *dir, bool keep) {
    char *path = NULL;
    WB_TRY(wb_text_format(&path, "%s/%s", dir, file->name));
    wb_status status = WB_OK;
    if (!keep || access(path, F_OK) != 0) status = wb_file_replace(path, file->text, file->bytes);
    free(path);
    return status;
}

/* Where they are from, what is there stays: somebody may have changed it since. The directory is known by its
 * number, which a new one may have been given since: so that says nothing about what is in it. */
wb_status wb_companions_write(const wb_companions *companions, const char *dir) {
    struct stat info;
    if (stat(dir, &info) != 0) return wb_fail(WB_IO, "%s: %s", dir, strerror(errno));
    const bool source = info.st_dev == companions->device && info.st_ino == companions->inode;
    for (size_t i = 0; i < companions->n; i++) WB_TRY(write_file(&companions->files[i], dir, source));
    return WB_OK;
}
