/* dumps.c - OUT/dump: a file a step and rank, step<step>-rank<rank>.wbr, which together are one dump. A step
 * that was interrupted is done again, perhaps by other ranks: its files are removed before, so that each
 * sample is in the dump once. Refuses: going on where samples of a step that is done are missing, touching a
 * file of another name. */
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

enum { NAME_BYTES = 64 };

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

/* The next file of `dir`, of a step from first_step on; NULL at the end. */
static const char *next_file(DIR *dir, uint64_t first_step) {
    uint64_t step;
    for (const struct dirent *entry; (entry = readdir(dir));)
        if (is_ours(entry->d_name, &step) && step >= first_step) return entry->d_name;
    return NULL;
}

/* *dir_out: OUT/dump, NULL where there is none. */
static wb_status open_dump(const options *o, char *path, DIR **dir_out) {
    WB_TRY(dump_dir(o, path));
    *dir_out = opendir(path);
    return *dir_out || errno == ENOENT ? WB_OK : wb_fail(WB_IO, "%s: cannot be read: %m", path);
}

wb_status dumps_find(const options *o, uint64_t first_step, char *path_out) {
    char path[PATH_BYTES];
    DIR *dir;
    WB_TRY(open_dump(o, path, &dir));
    const char *name = dir ? next_file(dir, first_step) : NULL;
    path_out[0] = '\0';
    wb_status status = name ? path_join(path_out, path, name) : WB_OK;
    if (dir) closedir(dir);
    return status;
}

/* The records of a file; those that it lost are none. */
static wb_status count_records(const char *dir, const char *name, uint64_t *n) {
    char path[PATH_BYTES];
    wb_dump *dump;
    WB_TRY(path_join(path, dir, name));
    wb_status status = wb_dump_open(path, &dump);
    if (status != WB_OK) return status;
    *n += wb_dump_get_info(dump).records;
    wb_dump_close(dump);
    return WB_OK;
}

/* samples: [n_steps], added to. */
static wb_status count_samples(const char *path, DIR *dir, uint64_t n_steps, uint64_t *samples) {
    uint64_t step;
    for (const struct dirent *entry; (entry = readdir(dir));)
        if (is_ours(entry->d_name, &step) && step < n_steps)
            WB_TRY(count_records(path, entry->d_name, &samples[step]));
    return WB_OK;
}

wb_status dumps_check(const options *o, uint64_t n_steps) {
    char path[PATH_BYTES];
    DIR *dir;
    uint64_t *samples, expected = (uint64_t)(o->prompts * o->samples);
    WB_TRY(open_dump(o, path, &dir));
    wb_status status = WB_NEW(samples, (size_t)n_steps, "samples by step");
    if (status == WB_OK && dir) status = count_samples(path, dir, n_steps, samples);
    for (uint64_t step = 0; status == WB_OK && step < n_steps; step++)
        if (samples[step] != expected)
            status = wb_fail(WB_NOT_FOUND,
                             "%s: step %" PRIu64 ", of %" PRIu64 " that are done: expected its %" PRIu64
                             " samples, found %" PRIu64 ": put its files back, or go on with --no-dump",
                             path, step, n_steps, expected, samples[step]);
    free(samples);
    if (dir) closedir(dir);
    return status;
}

wb_status dumps_remove(const options *o, uint64_t first_step) {
    char path[PATH_BYTES];
    DIR *dir;
    WB_TRY(open_dump(o, path, &dir));
    if (!dir) return WB_OK;
    wb_status status = WB_OK;
    for (const char *name; status == WB_OK && (name = next_file(dir, first_step));)
        if (unlinkat(dirfd(dir), name, 0) != 0)
            status = wb_fail(WB_IO, "%s/%s: cannot be removed: %m", path, name);
    closedir(dir);
    return status;
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
        status = wb_dump_append(writer, b->samples[i].record);
    wb_status finished = wb_dump_finish(writer);
    return status != WB_OK ? status : finished;
}
