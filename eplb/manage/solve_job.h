/* solve_job.h - one run of a solver in a thread of its own, beside the passes. */
#ifndef WB_SOLVE_JOB_H
#define WB_SOLVE_JOB_H

#include "wb_placement.h"
#include "wb_solve.h"

typedef struct wb_solve_job wb_solve_job;

/* Starts solving loads [L][E] for a placement like `current`; both are copied. `then` is called in the thread
 * with what was found, and its failure is the job's. */
wb_status wb_solve_job_start(const wb_placement *current, const double *loads, const wb_eplb_options *options,
                             wb_status (*then)(void *ctx, const wb_placement *found), void *ctx,
                             wb_solve_job **job_out);

/* Whether it has ended. */
bool wb_solve_job_done(const wb_solve_job *job);

/* Waits for the end, frees the job, and gives what it found; placement_out may be NULL. NULL is a no-op. */
wb_status wb_solve_job_end(wb_solve_job *job, wb_placement **placement_out);

#endif
