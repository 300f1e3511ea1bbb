/* out_place.c - whether a run may use OUT: decided before anything is opened or made, so that a mistake costs
 * no time and leaves nothing behind; and OUT made ready, once the run is sure to start. Refuses: folders that
 * cannot be written, a run that is there and not gone on with or still runs, files that are not ours,
 * --model. */
#include "out_place.h"
#include "checkpoint_place.h"
#include "wb_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- the folder ------------------------------------------------------------------------------ */

/* Takes the last name off `path`; "." and "/" have none. */
static void cut_name(char *path) {
    char *slash = strrchr(path, '/');
    if (!slash)
        strcpy(path, ".");
    else
        slash[slash == path] = '\0';
}

/* OUT or, where it is not there yet, the folder in which it would be made. */
static wb_status nearest_place(const options *o, char *path) {
    struct stat info;
    if (snprintf(path, PATH_BYTES, "%s", o->out_dir) >= PATH_BYTES)
        return wb_fail(WB_INVALID_ARGUMENT, "--out: path too long");
    while (lstat(path, &info) != 0 && strcmp(path, ".") != 0 && strcmp(path, "/") != 0) cut_name(path);
    return WB_OK;
}

/* Whether OUT is a folder that can be written to or, where it is not there yet, can be made in one. */
static wb_status check_folder(const options *o) {
    char path[PATH_BYTES];
    struct stat info;
    WB_TRY(nearest_place(o, path));
    if (stat(path, &info) != 0 || !S_ISDIR(info.st_mode))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "--out %s: expected a folder, or a name for one, but %s is not a folder", o->out_dir,
                       path);
    if (access(path, W_OK | X_OK) != 0) return wb_fail(WB_IO, "%s: cannot be written to: %m", path);
    return WB_OK;
}

/* ---- a run that is there --------------------------------------------------------------------- */

/* Whether OUT/checkpoint is a link that leads nowhere. */
static bool checkpoint_is_gone(const options *o) {
    char path[PATH_BYTES];
    struct stat info;
    return path_join(path, o->out_dir, "checkpoint") == WB_OK && lstat(path, &info) == 0 &&
           S_ISLNK(info.st_mode) && stat(path, &info) != 0;
}

/* A file in OUT that a run from its first step would lose: metrics or dump of another; "": there is none. */
static wb_status find_remains(const options *o, char *path_out) {
    struct stat info;
    WB_TRY(path_join(path_out, o->out_dir, METRICS_FILE));
    if (stat(path_out, &info) == 0 && info.st_size > 0) return WB_OK;
    return dumps_find(o, 0, path_out);
}

/* Another checkpoint of a run than OUT/checkpoint: the run is known to have had one. "": there is none. */
static wb_status find_other_checkpoint(const options *o, char *path_out) {
    WB_TRY(checkpoint_place(o, CHECKPOINT_BEST, path_out));
    if (path_has(path_out, CHECKPOINT_STATE)) return WB_OK;
    return checkpoint_find_kept(o, path_out);
}

/* Lines of OUT/metrics.jsonl: how many steps the run that is there has done. */
static wb_status count_steps(const options *o, int64_t *n_out) {
    char path[PATH_BYTES], *line = NULL;
    size_t bytes = 0;
    int64_t length = 0;
    FILE *file;
    *n_out = 0;
    WB_TRY(path_join(path, o->out_dir, METRICS_FILE));
    if (access(path, F_OK) != 0) return WB_OK;
    WB_TRY(text_open(path, &file));
    wb_status status = WB_OK;
    for (;; ++*n_out) {
        status = text_line(file, path, (size_t)*n_out + 1, &line, &bytes, &length);
        if (status != WB_OK || length < 0) break;
    }
    free(line);
    fclose(file);
    return status;
}

/* Refuses where the run that is there has had a checkpoint, which a new start would lose the rest of. */
static wb_status check_had_none(const options *o) {
    char other[PATH_BYTES];
    int64_t n;
    WB_TRY(find_other_checkpoint(o, other));
    if (other[0] != '\0')
        return wb_fail(WB_NOT_FOUND,
                       "%s is of a run that has had a checkpoint, but %s/checkpoint is not there: expected "
                       "its checkpoint, or another --out",
                       other, o->out_dir);
    WB_TRY(count_steps(o, &n));
    if (o->checkpoint_every == 0 || n <= o->checkpoint_every) return WB_OK;
    return wb_fail(WB_NOT_FOUND,
                   "%s/" METRICS_FILE " has %" PRId64 " steps, more than --checkpoint-every %" PRId64
                   ", but %s/checkpoint is not there: expected its checkpoint, or another --out",
                   o->out_dir, n, o->checkpoint_every, o->out_dir);
}

/* Whether a run may begin with its first step. One that resumes asks for that where it was killed before its
 * first checkpoint, and not where its checkpoint, or the disk of its checkpoints, is gone. */
static wb_status check_anew(const options *o) {
    char path[PATH_BYTES];
    WB_TRY(find_remains(o, path));
    if (path[0] == '\0') return WB_OK;
    if (!o->resume)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "%s is there already, but no checkpoint: --resume starts that run again and removes "
                       "it, another --out starts anew",
                       path);
    if (!checkpoint_is_gone(o)) return check_had_none(o);
    return wb_fail(WB_NOT_FOUND,
                   "%s/checkpoint is a link to what is not there, but %s is of a run: expected its "
                   "checkpoint, or another --out",
                   o->out_dir, path);
}

/* On one rank, before anything in OUT is read. One that is not there has nothing to lose until it is made. */
static wb_status lock_out(const options *o, out_lock **lock) {
    struct stat info;
    return stat(o->out_dir, &info) == 0 ? out_lock_take(o->out_dir, lock) : WB_OK;
}

wb_status out_find_start(const options *o, wb_comm *comm, out_lock **lock, char **checkpoint_out) {
    wb_status status = check_folder(o);
    if (status == WB_OK && wb_comm_rank(comm) == 0) status = lock_out(o, lock);
    WB_TRY(wb_comm_agree(comm, status));
    uint64_t found = checkpoint_find(o, checkpoint_out) == WB_OK;
    WB_TRY(wb_comm_check_equal(comm, &found, sizeof found, "whether there is a checkpoint to resume"));
    if (!found) return wb_comm_agree(comm, check_anew(o));
    if (o->resume) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT,
                   "%s is there already: --resume goes on from it, another --out starts anew",
                   *checkpoint_out);
}

/* ---- what the run reads, and what is not ours ------------------------------------------------ */

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

/* OUT/checkpoint, or what it is a link to, and what a run writes beside it. */
static wb_status check_checkpoints(const options *o) {
    /* What makes each ours: a save that was killed may have left a part of it beside the checkpoint. */
    static const struct {
        const char *suffix, *mark;
    } places[] = {{"", CHECKPOINT_STATE},
                  {".new", "trainer"},
                  {".old", "trainer"},
                  {CHECKPOINT_BEST, "trainer"},
                  {CHECKPOINT_BEST ".new", "trainer"},
                  {CHECKPOINT_BEST ".old", "trainer"}};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        char path[PATH_BYTES];
        struct stat info;
        WB_TRY(checkpoint_place(o, places[i].suffix, path));
        if (is_inside(o->model_dir, path))
            return wb_fail(WB_INVALID_ARGUMENT,
                           "--model %s is in %s, which the run replaces: expected the model that it started "
                           "from, elsewhere",
                           o->model_dir, path);
        if (stat(path, &info) != 0 || path_has(path, places[i].mark) || wb_dir_is_empty(path)) continue;
        return wb_fail(WB_INVALID_ARGUMENT,
                       "%s: expected a checkpoint of waybill-grpo or an empty folder, found %s", path,
                       S_ISDIR(info.st_mode) ? "other files in it" : "no folder");
    }
    return WB_OK;
}

/* A run writes into OUT, which may not be what it reads. */
static wb_status check_model(const options *o) {
    struct stat model, out;
    if (stat(o->model_dir, &model) == 0 && stat(o->out_dir, &out) == 0 && model.st_dev == out.st_dev &&
        model.st_ino == out.st_ino)
        return wb_fail(WB_INVALID_ARGUMENT, "--out %s is --model: expected a folder of its own", o->out_dir);
    char path[PATH_BYTES];
    WB_TRY(nearest_place(o, path));
    if (is_inside(path, o->model_dir))
        return wb_fail(WB_INVALID_ARGUMENT, "--out %s is in --model %s: expected a folder elsewhere",
                       o->out_dir, o->model_dir);
    return check_checkpoints(o);
}

wb_status out_check_model(const options *o, wb_comm *comm) {
    return wb_comm_agree(comm, check_model(o));
}

/* ---- made ready ------------------------------------------------------------------------------ */

/* On one rank. Of two runs that found no OUT, one makes it; the other finds it locked or, where that one has
 * ended since, with its files. */
static wb_status make_locked(const options *o, out_lock **lock) {
    wb_status status = wb_dir_create(o->out_dir);
    char *checkpoint = NULL;
    if (status != WB_OK) return wb_fail_context(status, "--out %s", o->out_dir);
    if (*lock) return WB_OK;
    WB_TRY(out_lock_take(o->out_dir, lock));
    if (checkpoint_find(o, &checkpoint) != WB_OK) return check_anew(o);
    status = wb_fail(WB_INVALID_ARGUMENT, "%s is there now, of a run that began after this one", checkpoint);
    free(checkpoint);
    return status;
}

/* What a save that was killed has left. */
static wb_status remove_parts(const options *o) {
    static const char *const parts[] = {".new", CHECKPOINT_BEST ".new"};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        char path[PATH_BYTES];
        WB_TRY(checkpoint_place(o, parts[i], path));
        checkpoint_remove(path);
    }
    return WB_OK;
}

/* A run that starts again removes what is there of its earlier start. */
static wb_status say_anew(const options *o) {
    char path[PATH_BYTES];
    int64_t n;
    WB_TRY(find_remains(o, path));
    if (path[0] == '\0') return WB_OK;
    WB_TRY(count_steps(o, &n));
    fprintf(stderr, "%s: no checkpoint: starts again with step 1, removes %" PRId64 " steps\n", o->out_dir,
            n);
    return WB_OK;
}

/* On one rank. A path such as new/../model is --model only when it is there, so that is asked again. From
 * the first step on, a link at OUT/checkpoint that leads nowhere is a disk that is gone, and not a run that
 * has no checkpoint yet: the folder that it is to is made here. */
static wb_status make_ready(const options *o, uint64_t first_step, out_lock **lock) {
    char path[PATH_BYTES];
    WB_TRY(make_locked(o, lock));
    WB_TRY(check_model(o));
    WB_TRY(remove_parts(o));
    if (first_step == 0) WB_TRY(say_anew(o));
    if (!o->no_dump) WB_TRY(dumps_check(o, first_step));
    WB_TRY(dumps_remove(o, first_step));
    if (!checkpoint_is_gone(o)) return WB_OK;
    WB_TRY(checkpoint_place(o, "", path));
    return wb_dir_create(path);
}

wb_status out_make(const options *o, wb_comm *comm, uint64_t first_step, out_lock **lock) {
    WB_TRY(wb_comm_agree(comm, wb_comm_rank(comm) == 0 ? make_ready(o, first_step, lock) : WB_OK));
    /* The others see what rank 0 made, or say so. */
    bool written = access(o->out_dir, W_OK) == 0;
    return wb_comm_agree(comm, written ? WB_OK : wb_fail(WB_IO, "%s: cannot be written to: %m", o->out_dir));
}
