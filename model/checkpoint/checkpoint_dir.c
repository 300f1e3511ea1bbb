/* checkpoint_dir.c - see wb_checkpoint_dir.h. Refuses: what is in the files. */
#include "wb_check.h"
#include "wb_checkpoint_dir.h"
#include "wb_file.h"
#include "wb_text.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SMALL_FILE_BYTES ((size_t)64 << 20)

/* ---- names ----------------------------------------------------------------------------------- */

wb_shard_name wb_shard_name_of(int shard, int n_shards) {
    wb_shard_name name;
    if (n_shards == 1)
        snprintf(name.text, sizeof name.text, "model.safetensors");
    else
        snprintf(name.text, sizeof name.text, "model-%05d-of-%05d.safetensors", shard + 1, n_shards);
    return name;
}

wb_status wb_checkpoint_write_text(const char *dir, const char *name, const char *text) {
    char *path = NULL;
    WB_TRY(wb_text_format(&path, "%s/%s", dir, name));
    wb_status status = wb_file_replace(path, text, strlen(text));
    free(path);
    return status;
}

/* ---- files of an earlier save ---------------------------------------------------------------- */

wb_status wb_checkpoint_remove(const char *dir, const char *name) {
    char *path = NULL;
    WB_TRY(wb_text_format(&path, "%s/%s", dir, name));
    wb_status status = WB_OK;
    if (unlink(path) != 0 && errno != ENOENT)
        status = wb_fail(WB_IO, "%s: cannot be removed: %s", path, strerror(errno));
    free(path);
    return status;
}

/* "model.safetensors" or "model-00001-of-00002.safetensors", finished or not: what a save writes. */
static bool is_weights(const char *name) {
    static const char pattern[] = "model-#####-of-#####.safetensors";
    size_t n = wb_new_file_stem(name);
    if (n == 0) n = strlen(name);
    if (n == strlen("model.safetensors")) return strncmp(name, "model.safetensors", n) == 0;
    if (n != sizeof pattern - 1) return false;
    for (size_t i = 0; i < n; i++)
        if (pattern[i] == '#' ? !isdigit((unsigned char)name[i]) : name[i] != pattern[i]) return false;
    return true;
}

wb_status wb_checkpoint_remove_stale(const char *dir, wb_keep_shard keep, const void *ctx) {
    DIR *list = opendir(dir);
    if (!list) return wb_fail(WB_IO, "%s: %s", dir, strerror(errno));
    wb_status status = WB_OK;
    for (const struct dirent *entry; status == WB_OK && (entry = readdir(list));)
        if (is_weights(entry->d_name) && !keep(ctx, entry->d_name))
            status = wb_checkpoint_remove(dir, entry->d_name);
    closedir(list);
    return status;
}

/* ---- small files of the source --------------------------------------------------------------- */

static bool ends_with(const char *name, const char *ending) {
    size_t n = strlen(name), m = strlen(ending);
    return n >= m && strcmp(name + n - m, ending) == 0;
}

static bool is_companion(const char *name) {
    if (strcmp(name, "config.json") == 0 || ends_with(name, ".index.json")) return false;
    return strncmp(name, "tokenizer", 9) == 0 || ends_with(name, ".json") || ends_with(name, ".txt") ||
           ends_with(name, ".model") || ends_with(name, ".jinja");
}

static wb_status copy_file(const char *from, const char *to) {
    struct stat info;
    char *text = NULL;
    size_t bytes = 0;
    if (stat(from, &info) != 0) return wb_fail(WB_IO, "%s: %s", from, strerror(errno));
    if (!S_ISREG(info.st_mode) || (uint64_t)info.st_size > SMALL_FILE_BYTES) return WB_OK;
    WB_TRY(wb_file_read(from, SMALL_FILE_BYTES, &text, &bytes));
    wb_status status = wb_file_replace(to, text, bytes);
    free(text);
    return status;
}

static wb_status copy_companion(const char *from_dir, const char *to_dir, const char *name) {
    char *from = NULL, *to = NULL;
    wb_status status = wb_text_format(&from, "%s/%s", from_dir, name);
    if (status == WB_OK) status = wb_text_format(&to, "%s/%s", to_dir, name);
    if (status == WB_OK) status = copy_file(from, to);
    free(from);
    free(to);
    return status;
}

wb_status wb_checkpoint_copy_companions(const char *from_dir, const char *to_dir) {
    struct stat from, to;
    if (stat(from_dir, &from) != 0) return wb_fail(WB_IO, "%s: %s", from_dir, strerror(errno));
    if (stat(to_dir, &to) != 0) return wb_fail(WB_IO, "%s: %s", to_dir, strerror(errno));
    if (from.st_dev == to.st_dev && from.st_ino == to.st_ino) return WB_OK;
    DIR *list = opendir(from_dir);
    if (!list) return wb_fail(WB_IO, "%s: %s", from_dir, strerror(errno));
    wb_status status = WB_OK;
    for (const struct dirent *entry; status == WB_OK && (entry = readdir(list));)
        if (is_companion(entry->d_name)) status = copy_companion(from_dir, to_dir, entry->d_name);
    closedir(list);
    return status;
}
