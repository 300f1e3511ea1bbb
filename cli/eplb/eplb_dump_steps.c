/* eplb_dump_steps.c - cuts the records of a dump into steps; see the header. The ranks of a step write a file
 * each, so that where versions are known they decide and files do not. */
#include "eplb/eplb_dump_steps.h"
#include "wb_check.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* A record that has rows, and what it may be a step by. */
typedef struct step_key {
    uint64_t record, version, file;
    uint64_t step; /* which it belongs to */
} step_key;

/* What was found in the dump. */
typedef struct step_keys {
    step_key *keys; /* [n], in file order */
    uint64_t n;
    bool versions; /* every one of these records has a version */
} step_keys;

static int by_step(const void *a, const void *b) {
    const step_key *x = a, *y = b;
    if (x->step != y->step) return x->step < y->step ? -1 : 1;
    return (x->record > y->record) - (x->record < y->record);
}

/* Records without valid rows have no tokens to place, and decide nothing: a request that was ended before it
 * was fed has neither rows nor a version. */
static wb_status read_keys(wb_dump *dump, uint64_t n_records, step_keys *found) {
    const char *path = NULL;
    uint64_t file = 0;
    found->versions = true;
    for (uint64_t i = 0; i < n_records; i++) {
        wb_dump_entry e;
        WB_TRY(wb_dump_get_entry(dump, i, &e));
        file += path && path != e.path; /* entries of one file share the string */
        path = e.path;
        if (e.valid_rows == 0) continue;
        found->keys[found->n++] = (step_key){.record = i, .version = e.weight_version, .file = file};
        if (e.n_spans == 0) found->versions = false;
    }
    return WB_OK;
}

/* Sorts the keys by their steps. */
static void choose_steps(step_keys *found, uint64_t step_records, eplb_steps *steps) {
    const uint64_t n = found->n;
    step_key *keys = found->keys;
    for (uint64_t i = 0; i < n; i++)
        keys[i].step = step_records > 0 ? i / step_records : found->versions ? keys[i].version : keys[i].file;
    qsort(keys, n, sizeof *keys, by_step);
    const uint64_t first = keys[0].step, last = keys[n - 1].step;
    steps->by_version = step_records == 0 && found->versions;
    if (step_records > 0)
        snprintf(steps->by, sizeof steps->by, "--step-records %" PRIu64, step_records);
    else if (!found->versions)
        snprintf(steps->by, sizeof steps->by, "file");
    else if (first == last)
        snprintf(steps->by, sizeof steps->by, "weight version %" PRIu64, first);
    else
        snprintf(steps->by, sizeof steps->by, "weight version %" PRIu64 "..%" PRIu64, first, last);
}

static wb_status cut(const step_keys *found, eplb_steps *steps) {
    const step_key *keys = found->keys;
    uint64_t n_steps = 0;
    WB_TRY(WB_NEW(steps->records, found->n, "steps of a dump"));
    WB_TRY(WB_NEW(steps->starts, found->n + 1, "steps of a dump"));
    for (uint64_t i = 0; i < found->n; i++) {
        if (i == 0 || keys[i].step != keys[i - 1].step) steps->starts[n_steps++] = i;
        steps->records[i] = keys[i].record;
    }
    steps->starts[n_steps] = found->n;
    if (n_steps > UINT32_MAX) return wb_fail(WB_INVALID_ARGUMENT, "dump: expected fewer than 2^32 steps");
    steps->n_steps = (uint32_t)n_steps;
    return WB_OK;
}

static wb_status find_steps(wb_dump *dump, uint64_t step_records, step_keys *found, eplb_steps *steps) {
    const uint64_t n_records = wb_dump_get_info(dump).records;
    WB_TRY(WB_NEW(found->keys, n_records, "steps of a dump"));
    WB_TRY(read_keys(dump, n_records, found));
    if (found->n == 0)
        return wb_fail(WB_MISSING_ROUTES, "expected valid rows, found none in %" PRIu64 " records",
                       n_records);
    steps->skipped = n_records - found->n;
    choose_steps(found, step_records, steps);
    return cut(found, steps);
}

wb_status eplb_steps_open(wb_dump *dump, uint64_t step_records, eplb_steps *steps) {
    step_keys found = {0};
    const wb_status status = find_steps(dump, step_records, &found, steps);
    free(found.keys);
    return status;
}

void eplb_steps_close(eplb_steps *steps) {
    free(steps->records);
    free(steps->starts);
}
