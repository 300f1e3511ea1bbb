/* checkpoint_place.c - where a run's checkpoint lies. It is written beside the old one, as checkpoint.new,
 * and changes places with it, so a complete one is always there: OUT/checkpoint or, on a file system that
 * cannot exchange names, for a moment OUT/checkpoint.old. Where OUT/checkpoint is a symbolic link, all this
 * happens at the end of it, which may be another disk. Others stay beside it: the best one, and those before
 * it. Refuses: whether it may lie there (out_place.c). */
#include "checkpoint_place.h"
#include "wb_file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
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

/* What a new checkpoint has taken the place of, now at `path`. */
static wb_status put_away(const char *path, const char *kept) {
    if (kept[0] == '\0') {
        checkpoint_remove(path);
        return WB_OK;
    }
    checkpoint_remove(kept);
    return rename(path, kept) == 0 ? WB_OK : wb_fail(WB_IO, "%s: cannot be renamed to %s: %m", path, kept);
}

wb_status checkpoint_change_places(const char *fresh, const char *current, const char *old,
                                   const char *kept) {
    int dir = open(fresh, O_RDONLY | O_DIRECTORY);
    if (dir >= 0) {
        syncfs(dir);
        close(dir);
    }
    const char *replaced = fresh;
    if (renameat2(AT_FDCWD, fresh, AT_FDCWD, current, RENAME_EXCHANGE) != 0) {
        replaced = old;
        if (access(current, F_OK) == 0) {
            checkpoint_remove(old);
            if (rename(current, old) != 0)
                return wb_fail(WB_IO, "%s: cannot be renamed to %s: %m", current, old);
        }
        if (rename(fresh, current) != 0)
            return wb_fail(WB_IO, "%s: cannot be renamed to %s: %m", fresh, current);
    }
    if (access(replaced, F_OK) == 0) WB_TRY(put_away(replaced, kept));
    checkpoint_remove(old);
    return WB_OK;
}

/* ---- those that stay ------------------------------------------------------------------------- */

void checkpoint_step_suffix(uint64_t step, char *suffix) {
    snprintf(suffix, CHECKPOINT_SUFFIX_BYTES, ".step%06" PRIu64, step);
}

/* Whether `name`, in the folder of the checkpoint `current`, is one that stays, of which step. */
static bool is_kept(const char *current, const char *name, uint64_t *step_out) {
    char suffix[CHECKPOINT_SUFFIX_BYTES];
    const char *slash = strrchr(current, '/'), *base = slash ? slash + 1 : current;
    const size_t n = strlen(base);
    if (strncmp(name, base, n) != 0 || sscanf(name + n, ".step%" SCNu64, step_out) != 1) return false;
    checkpoint_step_suffix(*step_out, suffix);
    return strcmp(name + n, suffix) == 0;
}

/* How many there are of steps before `step`, and the first of them; and one of a later step, or of `step`. 0:
 * there is none. */
typedef struct kept_steps {
    int64_t n;
    uint64_t first, later;
} kept_steps;

static wb_status find_kept(const char *current, uint64_t step, kept_steps *found) {
    char parent[PATH_BYTES];
    snprintf(parent, sizeof parent, "%s", current);
    char *slash = strrchr(parent, '/');
    if (slash) slash[slash == parent] = '\0';
    DIR *dir = opendir(slash ? parent : ".");
    if (!dir) return wb_fail(WB_IO, "%s: cannot be read: %m", slash ? parent : ".");
    uint64_t of;
    for (const struct dirent *entry; (entry = readdir(dir));) {
        if (!is_kept(current, entry->d_name, &of)) continue;
        if (of >= step) {
            found->later = of;
            continue;
        }
        if (found->n++ == 0 || of < found->first) found->first = of;
    }
    closedir(dir);
    return WB_OK;
}

wb_status checkpoint_find_kept(const options *o, char *path_out) {
    char current[PATH_BYTES], suffix[CHECKPOINT_SUFFIX_BYTES];
    kept_steps found = {0};
    WB_TRY(checkpoint_place(o, "", current));
    path_out[0] = '\0';
    if (find_kept(current, 0, &found) != WB_OK || found.later == 0) return WB_OK;
    checkpoint_step_suffix(found.later, suffix);
    return checkpoint_place(o, suffix, path_out);
}

wb_status checkpoint_prune(const options *o, uint64_t step) {
    char current[PATH_BYTES], path[PATH_BYTES], suffix[CHECKPOINT_SUFFIX_BYTES];
    if (o->keep_last < 2 && !options_given(o, "--keep-last")) return WB_OK;
    WB_TRY(checkpoint_place(o, "", current));
    for (;;) {
        kept_steps found = {0};
        WB_TRY(find_kept(current, step, &found));
        if (found.later == 0 && found.n < o->keep_last) return WB_OK;
        checkpoint_step_suffix(found.later > 0 ? found.later : found.first, suffix);
        WB_TRY(checkpoint_place(o, suffix, path));
        checkpoint_remove(path);
        if (access(path, F_OK) == 0) return wb_fail(WB_IO, "%s: cannot be removed", path);
    }
}
