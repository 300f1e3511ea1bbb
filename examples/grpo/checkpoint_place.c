/* checkpoint_place.c - where a run's checkpoint lies and what else may lie there. A checkpoint is written
 * beside the old one, as checkpoint.new, and changes places with it, so a complete one is always there:
 * OUT/checkpoint or, on a file system that cannot exchange names, for a moment OUT/checkpoint.old. Where
 * OUT/checkpoint is a symbolic link, all this happens at the end of it, which may be another disk. Refuses:
 * places with files that are not ours, or with --model. */
#include "checkpoint_place.h"
#include "wb_file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

wb_status checkpoint_path(char *path, const char *dir, const char *name) {
    int n = snprintf(path, PATH_BYTES, "%s/%s", dir, name);
    return n > 0 && n < PATH_BYTES ? WB_OK : wb_fail(WB_INVALID_ARGUMENT, "%s/%s: path too long", dir, name);
}

wb_status checkpoint_place(const options *o, const char *suffix, char *path) {
    char *end = NULL;
    WB_TRY(checkpoint_path(path, o->out_dir, "checkpoint"));
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
    if (checkpoint_path(inner, path, CHECKPOINT_STATE) == WB_OK) unlink(inner);
    for (struct dirent *entry; (entry = readdir(dir));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 &&
            strcmp(entry->d_name, "trainer") != 0 && checkpoint_path(inner, path, entry->d_name) == WB_OK)
            checkpoint_remove(inner);
    closedir(dir);
    if (checkpoint_path(inner, path, "trainer") == WB_OK) checkpoint_remove(inner);
    rmdir(path);
}

/* ---- the place -------------------------------------------------------------------------------- */

static bool has(const char *dir, const char *name) {
    char path[PATH_BYTES];
    return checkpoint_path(path, dir, name) == WB_OK && access(path, R_OK) == 0;
}

/* Whether `path` is `dir` or below it, by whatever links. */
static bool is_inside(const char *path, const char *dir) {
    char *real_path = realpath(path, NULL), *real_dir = realpath(dir, NULL);
    size_t n = real_dir ? strlen(real_dir) : 0;
    bool inside = real_path && real_dir && strncmp(real_path, real_dir, n) == 0 &&
                  (real_path[n] == '\0' || real_path[n] == '/');
    free(real_path);
    free(real_dir);
    return inside;
}

wb_status checkpoint_check_place(const options *o) {
    /* What makes each ours: a save that was killed may have left a part of it beside the checkpoint. */
    static const struct {
        const char *suffix, *mark;
    } places[] = {{"", CHECKPOINT_STATE}, {".new", "trainer"}, {".old", "trainer"}};
    for (int i = 0; i < 3; i++) {
        char path[PATH_BYTES];
        struct stat info;
        WB_TRY(checkpoint_place(o, places[i].suffix, path));
        if (is_inside(o->model_dir, path))
            return wb_fail(WB_INVALID_ARGUMENT,
                           "--model %s is in %s, which the run replaces: expected the model that it started "
                           "from, elsewhere",
                           o->model_dir, path);
        if (stat(path, &info) != 0 || has(path, places[i].mark) || wb_dir_is_empty(path)) continue;
        return wb_fail(WB_INVALID_ARGUMENT,
                       "%s: expected a checkpoint of waybill-grpo or an empty folder, found %s", path,
                       S_ISDIR(info.st_mode) ? "other files in it" : "no folder");
    }
    return WB_OK;
}

static bool is_broken_link(const char *path) {
    struct stat info;
    return lstat(path, &info) == 0 && S_ISLNK(info.st_mode) && stat(path, &info) != 0;
}

bool checkpoint_is_gone(const options *o) {
    char path[PATH_BYTES];
    return checkpoint_path(path, o->out_dir, "checkpoint") == WB_OK && is_broken_link(path);
}

wb_status checkpoint_make_place(const options *o) {
    char path[PATH_BYTES];
    if (!checkpoint_is_gone(o)) return WB_OK;
    WB_TRY(checkpoint_place(o, "", path));
    return wb_dir_create(path);
}

/* ---- finding and replacing ------------------------------------------------------------------- */

wb_status checkpoint_find(const options *o, char **dir_out) {
    static const char *const suffixes[] = {"", ".old"};
    for (int i = 0; i < 2; i++) {
        char path[PATH_BYTES];
        WB_TRY(checkpoint_place(o, suffixes[i], path));
        if (!has(path, CHECKPOINT_STATE)) continue;
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
