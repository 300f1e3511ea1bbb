/* dumps.c - OUT/dump: a file a step and rank, step<step>-rank<rank>.wbr, which together are one dump. A step
 * that was interrupted is done again, perhaps by other ranks: its files are removed before, so that each
 * sample is in the dump once. Refuses: touching a file of another name. */
#include "grpo.h"
#include "wb_file.h"
#include "wb_memory.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATH_BYTES = 4096, NAME_BYTES = 64 };

static void file_name(char *name, uint64_t step, int rank) {
    snprintf(name, NAME_BYTES, "step%06" PRIu64 "-rank%d.wbr", step, rank);
}

/* Whether a file of OUT/dump is one of dumps_write's, and of which step. */
static bool is_ours(const char *name, uint64_t *step_out) {
    char expected[NAME_BYTES];
    int rank;
    if (sscanf(name, "step%" SCNu64 "-rank%d.wbr", step_out, &rank) != 2 || rank < 0) return false;
    file_name(expected, *step_out, rank);
    return strcmp(name, expected) == 0;
}

static wb_status dump_dir(const options *o, char *path) {
    int length = snprintf(path, PATH_BYTES, "%s/dump", o->out_dir);
    if (length < 0 || length > PATH_BYTES - NAME_BYTES)
        return wb_fail(WB_INVALID_ARGUMENT, "--out: path too long");
    return WB_OK;
}

/* Calls `visit` with each file of a step from first_step on, until it fails. */
static wb_status for_each(const char *path, uint64_t first_step,
                          wb_status (*visit)(const char *path, const char *name)) {
    uint64_t step;
    DIR *dir = opendir(path);
    if (!dir) return errno == ENOENT ? WB_OK : wb_fail(WB_IO, "%s: cannot be read: %m", path);
    wb_status status = WB_OK;
    for (const struct dirent *entry; status == WB_OK && (entry = readdir(dir));)
        if (is_ours(entry->d_name, &step) && step >= first_step) status = visit(path, entry->d_name);
    closedir(dir);
    return status;
}

static wb_status remove_file(const char *path, const char *name) {
    char file[PATH_BYTES + NAME_BYTES];
    snprintf(file, sizeof file, "%s/%s", path, name);
    return unlink(file) == 0 ? WB_OK : wb_fail(WB_IO, "%s: cannot be removed: %m", file);
}

static wb_status refuse_file(const char *path, const char *name) {
    return wb_fail(
        WB_INVALID_ARGUMENT,
        "%s/%s is there already, but no checkpoint: --resume starts that run again and removes it, "
        "another --out starts anew",
        path, name);
}

wb_status dumps_start(const options *o, uint64_t first_step) {
    char path[PATH_BYTES];
    WB_TRY(dump_dir(o, path));
    return for_each(path, first_step, o->resume ? remove_file : refuse_file);
}

wb_status dumps_write(const options *o, const wb_route_model *model, int rank, uint64_t step,
                      const batch *b) {
    char path[PATH_BYTES], name[NAME_BYTES];
    WB_TRY(dump_dir(o, path));
    WB_TRY(wb_dir_create(path));
    file_name(name, step, rank);
    strcat(strcat(path, "/"), name);
    wb_dump_options dump = wb_dump_options_default();
    dump.codec = o->codec;
    dump.producer = "waybill-grpo";
    dump.trust_ids = true; /* the engine's own */
    wb_dump_writer *writer;
    WB_TRY(wb_dump_create(path, model, &dump, &writer));
    wb_status status = WB_OK;
    for (int64_t i = 0; status == WB_OK && i < b->n_samples; i++)
        status = wb_dump_append(writer, &b->samples[i].completion->record);
    wb_status finished = wb_dump_finish(writer);
    return status != WB_OK ? status : finished;
}
