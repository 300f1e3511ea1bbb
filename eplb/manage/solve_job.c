/* solve_job.c - see solve_job.h. */
#include "solve_job.h"
#include "wb_check.h"
#include "wb_memory.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

struct wb_solve_job {
    wb_placement *current; /* owner: the job, as of all that follows */
    double *loads;         /* [L][E] */
    wb_eplb_options options;
    wb_status (*then)(void *ctx, const wb_placement *found);
    void *ctx;
    pthread_t thread;
    atomic_bool done;
    wb_status status;
    char message[256]; /* of a failure, in the thread that had it */
    wb_placement *found;
};

static void *run(void *ctx) {
    wb_solve_job *job = ctx;
    const wb_placement *from = job->current;
    job->status = wb_eplb_solve(wb_placement_topology(from), wb_placement_layers(from),
                                wb_placement_experts(from), 1, job->loads, &job->options, &job->found);
    if (job->status == WB_OK) job->status = job->then(job->ctx, job->found);
    if (job->status != WB_OK) strncpy(job->message, wb_error_message(), sizeof job->message - 1);
    job->done = true;
    return NULL;
}

static void free_job(wb_solve_job *job) {
    wb_placement_close(job->current);
    free(job->loads);
    free(job);
}

static wb_status fill_job(wb_solve_job *job, const wb_placement *current, const double *loads) {
    const size_t n = (size_t)wb_placement_layers(current) * wb_placement_experts(current);
    WB_TRY(WB_NEW(job->loads, n, "rebalance"));
    memcpy(job->loads, loads, n * sizeof *loads);
    WB_TRY(wb_placement_clone(current, &job->current));
    job->options.current = job->current;
    if (pthread_create(&job->thread, NULL, run, job) == 0) return WB_OK;
    return wb_fail(WB_OUT_OF_MEMORY, "rebalance: no thread for the solver");
}

wb_status wb_solve_job_start(const wb_placement *current, const double *loads, const wb_eplb_options *options,
                             wb_status (*then)(void *ctx, const wb_placement *found), void *ctx,
                             wb_solve_job **job_out) {
    wb_solve_job *job = NULL;
    WB_TRY(WB_NEW(job, 1, "rebalance"));
    job->options = *options;
    job->then = then;
    job->ctx = ctx;
    const wb_status status = fill_job(job, current, loads);
    if (status != WB_OK) {
        free_job(job);
        return status;
    }
    *job_out = job;
    return WB_OK;
}

bool wb_solve_job_done(const wb_solve_job *job) {
    return job->done;
}

wb_status wb_solve_job_end(wb_solve_job *job, wb_placement **placement_out) {
    if (!job) return WB_OK;
    pthread_join(job->thread, NULL);
    const wb_status status = job->status;
    if (status != WB_OK) WB_IGNORE(wb_fail(status, "%s", job->message));
    if (status == WB_OK && placement_out)
        *placement_out = job->found;
    else
        wb_placement_close(job->found);
    free_job(job);
    return status;
}
