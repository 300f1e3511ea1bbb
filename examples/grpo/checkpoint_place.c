/* checkpoint_place.c - where a run's checkpoint lies. It is written beside the old one, as checkpoint.new,
 * and changes places with it, so a complete one is always there: OUT/checkpoint or, on a file system that
 * cannot exchange names, for a moment OUT/checkpoint.old. Where OUT/checkpoint is a symbolic link, all this
 * happens at the end of it, which may be another disk. Refuses: whether it may lie there (out_place.c). */
#include "checkpoint_place.h"
#include "wb_file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

wb_status checkpoint_place(const options *o, const char *suffix, char *path) {
    char *end = NULL;
    WB_TRY(path_join(path, o->out_dir, "checkpoint"));
    WB_TRY(wb_follow_links(path, &end));
    int n = snprintf(path, PATH_BYTES, "%s%s", end, suffix);
    free(end);
    return n > 0 && n < PATH_BYTES ? WB_OK
                                   : wb_fail(WB_INVALID_ARGUMENT, "%s/checkpoint: path too long", o->out_dir);
}

void checkpoint_remove(const char *path) {
    char inner[PATH_BYTES];
    if (unlink(path) == 0 || errno != EISDIR) return;
    DIR *dir = opendir(path);
    if (!dir) return;
    if (path_join(inner, path, CHECKPOINT_STATE) == WB_OK) unlink(inner);
    for (struct dirent *entry; (entry = readdir(dir));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 &&
            strcmp(entry->d_name, "trainer") != 0 && path_join(inner, path, entry->d_name) == WB_OK)
            checkpoint_remove(inner);
    closedir(dir);
    if (path_join(inner, path, "trainer") == WB_OK) checkpoint_remove(inner);
    rmdir(path);
}

wb_status checkpoint_find(const options *o, char **dir_out) {
    static const char *const suffixes[] = {"", ".old"};
    for (int i = 0; i < 2; i++) {
        char path[PATH_BYTES];
        WB_TRY(checkpoint_place(o, suffixes[i], path));
        if (!path_has(path, CHECKPOINT_STATE)) continue;
        char *dir = strdup(path);
        if (!dir) return wb_fail(WB_OUT_OF_MEMORY, "path");
        *dir_out = dir;
        return WB_OK;
    }
    return wb_fail(WB_NOT_FOUND, "%s: no checkpoint to resume from", o->out_dir);
}

wb_status checkpoint_change_places(const char *fresh, const char *current, const char *old) {
    int dir = open(fresh, O_RDONLY | O_DIRECTORY);
    if (dir >= 0) {
        syncfs(dir);
        close(dir);
    }
    if (renameat2(AT_FDCWD, fresh, AT_FDCWD, current, RENAME_EXCHANGE) == 0) {
        checkpoint_remove(fresh);
    } else {
        if (access(current, F_OK) == 0) {
            checkpoint_remove(old);
            if (rename(current, old) != 0)
                return wb_fail(WB_IO, "%s: cannot be renamed to %s: %m", current, old);
        }
        if (rename(fresh, current) != 0)
            return wb_fail(WB_IO, "%s: cannot be renamed to %s: %m", fresh, current);
    }
    checkpoint_remove(old);
    return WB_OK;
}
