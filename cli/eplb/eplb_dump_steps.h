/* eplb_dump_steps.h - which records of a dump are a step of `waybill eplb`. */
#ifndef WB_CLI_EPLB_DUMP_STEPS_H
#define WB_CLI_EPLB_DUMP_STEPS_H

#include "wb_formats.h"

/* Step s is records[starts[s] .. starts[s + 1]), numbers of the dump's records. A zeroed struct has none. */
typedef struct eplb_steps {
    uint32_t n_steps;
    uint64_t *records; /* in file order within a step; each has valid rows */
    uint64_t *starts;  /* [n_steps + 1] */
    uint64_t skipped;  /* records of the dump that have no valid row, and are in no step */
    bool by_version;   /* a step is the records of one weight version */
    char by[64];       /* what makes a step: "weight version 3..7", "file", "--step-records 64" */
} eplb_steps;

/* Cuts a dump's records that have rows: with step_records above 0, so many to a step in file order; else
 * those that were finished under one weight version, in the order of versions, or where not every one of them
 * has a version, those of one file. MISSING_ROUTES: none has rows. On failure too the steps are to be
 * closed. */
wb_status eplb_steps_open(wb_dump *dump, uint64_t step_records, eplb_steps *steps);
void eplb_steps_close(eplb_steps *steps);

#endif
