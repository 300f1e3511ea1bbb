/* metrics_file.c - OUT/metrics.jsonl where a run begins: what it keeps of an earlier, interrupted one, and
 * the file that it appends to. Refuses: what is in a line (metrics_table.c). */
#include "metrics.h"
#include "wb_file.h"

#include <dirent.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The lines of steps before first_step, those of an earlier, interrupted run, from the open file to `kept`.
 * *n_out: as many as those whose lines are all there. */
static wb_status keep_lines(FILE *old, const char *path, wb_new_file *kept, uint64_t first_step,
                            uint64_t *n_out) {
    wb_status status = WB_OK;
    char *line = NULL;
    size_t bytes = 0;
    int64_t length = 0;
    for (size_t number = 1; status == WB_OK; number++) {
        status = text_line(old, path, number, &line, &bytes, &length);
        if (status != WB_OK || length < 0) break;
        json_t *object = json_loads(line, 0, NULL);
        uint64_t step = (uint64_t)json_integer_value(json_object_get(object, "step"));
        if (object && step < first_step) status = wb_new_file_write(kept, line, (size_t)length);
        if (object && step == *n_out) ++*n_out;
        json_decref(object);
    }
    free(line);
    return status;
}

/* As keep_lines. Lines that are lost are no obstacle, since nothing is computed from them, but they are said:
 * the file no longer has each step. */
static wb_status keep_metrics(const char *path, wb_new_file *kept, uint64_t first_step) {
    uint64_t n = 0;
    FILE *old;
    wb_status status = text_open(path, &old);
    if (status == WB_OK) {
        status = keep_lines(old, path, kept, first_step, &n);
        fclose(old);
    }
    if (status != WB_OK && status != WB_NOT_FOUND) return status;
    if (n < first_step)
        fprintf(stderr,
                "%s: expected a line of each of the %" PRIu64
                " steps that are done, found none of step %" PRIu64 "\n",
                path, first_step, n);
    return WB_OK;
}

static wb_status start_metrics(const char *path, uint64_t first_step) {
    wb_new_file file;
    WB_TRY(wb_new_file_open(path, &file));
    wb_status status = first_step > 0 ? keep_metrics(path, &file, first_step) : WB_OK;
    if (status == WB_OK) status = wb_new_file_sync(&file);
    if (status == WB_OK) return wb_new_file_commit(&file);
    wb_new_file_discard(&file);
    return status;
}

/* What runs that were killed in the middle of start_metrics left: the temporary has the process id in its
 * name, so that no later run writes over it. */
static void remove_temporaries(const char *out) {
    static const char name[] = METRICS_FILE;
    DIR *dir = opendir(out);
    if (!dir) return;
    for (const struct dirent *entry; (entry = readdir(dir));)
        if (wb_new_file_stem(entry->d_name) == strlen(name) &&
            strncmp(entry->d_name, name, strlen(name)) == 0)
            unlinkat(dirfd(dir), entry->d_name, 0);
    closedir(dir);
}

/* The file begins as a whole, with the lines that are kept, and is appended to from there on: a run is
 * watched while it goes, so a step's line has to be in the file when the step is done. */
wb_status metrics_file_open(const options *o, uint64_t first_step, FILE **file_out) {
    char path[PATH_BYTES];
    WB_TRY(path_join(path, o->out_dir, METRICS_FILE));
    remove_temporaries(o->out_dir);
    WB_TRY(start_metrics(path, first_step));
    *file_out = fopen(path, "a");
    return *file_out ? WB_OK : wb_fail(WB_IO, "%s: cannot be written: %m", path);
}
