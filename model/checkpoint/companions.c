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

#define SMALL_FILE_BYTES ((size_t)64 << 20)

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

static wb_status read_file(wb_companions *companions, const char *path, const char *name) {
    struct stat info;
    if (stat(path, &info) != 0) return wb_fail(WB_IO, "%s: %s", path, strerror(errno));
    if (!S_ISREG(info.st_mode) || (uint64_t)info.st_size > SMALL_FILE_BYTES) return WB_OK;
    WB_TRY(WB_GROW(companions->files, companions->n + 1, &companions->capacity, path));
    companion *file = &companions->files[companions->n++];
    *file = (companion){0};
    WB_TRY(wb_text_format(&file->name, "%s", name));
    return wb_file_read(path, SMALL_FILE_BYTES, &file->text, &file->bytes);
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
    free(companions);
}

wb_status wb_companions_write(const wb_companions *companions, const char *dir) {
    struct stat info;
    if (stat(dir, &info) != 0) return wb_fail(WB_IO, "%s: %s", dir, strerror(errno));
    if (info.st_dev == companions->device && info.st_ino == companions->inode) return WB_OK;
    for (size_t i = 0; i < companions->n; i++) {
        char *path = NULL;
        WB_TRY(wb_text_format(&path, "%s/%s", dir, companions->files[i].name));
        const wb_status status = wb_file_replace(path, companions->files[i].text, companions->files[i].bytes);
        free(path);
        WB_TRY(status);
    }
    return WB_OK;
}
