/* eplb_dump_steps.c - cuts the records of a dump into steps; see the header. The ranks of a step write a file
 * each, so that where versions are known they decide and files do not. */
#include "eplb/eplb_dump_steps.h"
#include "wb_check.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* Which step a record belongs to, and its place there. */
typedef struct step_key {
    uint64_t step, record;
} step_key;

static int by_step(const void *a, const void *b) {
    const step_key *x = a, *y = b;
    if (x->step != y->step) return x->step < y->step ? -1 : 1;
    return (x->record > y->record) - (x->record < y->record);
}

/* keys[i].step becomes the version of record i, or with use_files the number of its file. *known_out: whether
 * every record has a version. */
static wb_status read_keys(wb_dump *dump, uint64_t n, bool use_files, step_key *keys, bool *known_out) {
    const char *path = NULL;
    uint64_t file = 0;
    *known_out = true;
    for (uint64_t i = 0; i < n; i++) {
        wb_dump_entry e;
        WB_TRY(wb_dump_get_entry(dump, i, &e));
        file += path && path != e.path; /* entries of one file share the string */
        path = e.path;
        keys[i] = (step_key){use_files ? file : e.weight_version, i};
        if (e.n_spans == 0) *known_out = false;
    }
    return WB_OK;
}

static wb_status cut(const step_key *keys, uint64_t n, eplb_steps *steps) {
    uint64_t n_steps = 0;
    WB_TRY(WB_NEW(steps->records, n, "steps of a dump"));
    WB_TRY(WB_NEW(steps->starts, n + 1, "steps of a dump"));
    for (uint64_t i = 0; i < n; i++) {
        if (i == 0 || keys[i].step != keys[i - 1].step) steps->starts[n_steps++] = i;
        steps->records[i] = keys[i].record;
    }
    steps->starts[n_steps] = n;
    if (n_steps > UINT32_MAX) return wb_fail(WB_INVALID_ARGUMENT, "dump: expected fewer than 2^32 steps");
    steps->n_steps = (uint32_t)n_steps;
    return WB_OK;
}

static wb_status find_keys(wb_dump *dump, uint64_t n, step_key *keys, char *by_out, size_t by_bytes) {
    bool known = false;
    WB_TRY(read_keys(dump, n, false, keys, &known));
    if (!known) {
        snprintf(by_out, by_bytes, "file");
        return read_keys(dump, n, true, keys, &known);
    }
    qsort(keys, n, sizeof *keys, by_step);
    const uint64_t first = keys[0].step, last = keys[n - 1].step;
    if (first == last)
        snprintf(by_out, by_bytes, "weight version %" PRIu64, first);
    else
        snprintf(by_out, by_bytes, "weight version %" PRIu64 "..%" PRIu64, first, last);
    return WB_OK;
}

wb_status eplb_steps_open(wb_dump *dump, uint64_t step_records, eplb_steps *steps, char *by_out,
                          size_t by_bytes) {
    const uint64_t n = wb_dump_get_info(dump).records;
    step_key *keys = NULL;
    wb_status status = WB_NEW(keys, n, "steps of a dump");
    if (status == WB_OK && step_records > 0) {
        snprintf(by_out, by_bytes, "--step-records %" PRIu64, step_records);
        for (uint64_t i = 0; i < n; i++) keys[i] = (step_key){i / step_records, i};
    } else if (status == WB_OK) {
        status = find_keys(dump, n, keys, by_out, by_bytes);
    }
    if (status == WB_OK) status = cut(keys, n, steps);
    free(keys);
    return status;
}

void eplb_steps_close(eplb_steps *steps) {
    free(steps->records);
    free(steps->starts);
}
