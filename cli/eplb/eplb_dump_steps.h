/* eplb_dump_steps.h - which records of a dump are a step of `waybill eplb`. */
#ifndef WB_CLI_EPLB_DUMP_STEPS_H
#define WB_CLI_EPLB_DUMP_STEPS_H

#include "wb_formats.h"

/* Step s is records[starts[s] .. starts[s + 1]), numbers of the dump's records. A zeroed struct has none. */
typedef struct eplb_steps {
    uint32_t n_steps;
    uint64_t *records; /* [records of the dump], in file order within a step */
    uint64_t *starts;  /* [n_steps + 1] */
} eplb_steps;

/* Cuts a dump that has records: with step_records above 0, so many to a step in file order; else those that
 * were finished under one weight version, in the order of versions, or where not every record has one, those
 * of one file. What was done goes to by_out [by_bytes]. On failure too the steps are to be closed. */
wb_status eplb_steps_open(wb_dump *dump, uint64_t step_records, eplb_steps *steps, char *by_out,
                          size_t by_bytes);
void eplb_steps_close(eplb_steps *steps);

#endif
