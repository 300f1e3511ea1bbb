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
