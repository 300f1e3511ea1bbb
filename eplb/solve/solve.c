/* solve.c - what all solvers have in common: options, the check of loads, one call of a solver for each
 * layer, in threads. Refuses: any choice of a place (solve_deepseek.c, solve_balanced.c,
 * solve_incremental.c, solve_microbatch.c). */
#include "cost/cost_model.h"
#include "solve/keep_current.h"
#include "solve/solver.h"
#include "wb_options.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

static const struct {
    const char *name;
    wb_layer_solver *solve;
} algorithms[] = {
#define X(VALUE, name) [WB_EPLB_##VALUE] = {#name, wb_solve_##name},
    WB_EPLB_ALGORITHM_LIST(X)
#undef X
};

const char *wb_eplb_algorithm_name(wb_eplb_algorithm algorithm) {
    return (unsigned)algorithm < WB_EPLB_N_ALGORITHMS ? algorithms[algorithm].name : "unknown algorithm";
}

wb_status wb_eplb_algorithm_parse(const char *name, wb_eplb_algorithm *algorithm_out) {
    for (int i = 0; i < WB_EPLB_N_ALGORITHMS; i++)
        if (strcmp(name, algorithms[i].name) == 0) {
            *algorithm_out = (wb_eplb_algorithm)i;
            return WB_OK;
        }
#define X(VALUE, name) " " #name ","
    return wb_fail(WB_INVALID_ARGUMENT, "algorithm: expected one of" WB_EPLB_ALGORITHM_LIST(X) " found %s",
                   name);
#undef X
}

WB_OPTIONS_END(wb_eplb_options, progress_ctx);
void wb_eplb_options_init(wb_eplb_options *options_out, size_t size) {
    const wb_eplb_options defaults = {.algorithm = WB_EPLB_BALANCED,
                                      .n_groups = 1,
                                      .target = 0.98,
                                      .horizon_steps = 1000,
                                      .cost = wb_cost_model_default()};
    wb_options_init(options_out, size, &defaults, sizeof defaults);
}

/* ---- checks ---------------------------------------------------------------------------------- */

static wb_status check_options(const wb_eplb_options *o) {
    if ((unsigned)o->algorithm >= WB_EPLB_N_ALGORITHMS)
        return wb_fail(WB_INVALID_ARGUMENT, "solve: algorithm: expected 0..%d, found %d",
                       WB_EPLB_N_ALGORITHMS - 1, (int)o->algorithm);
    if (o->algorithm != WB_EPLB_INCREMENTAL) return WB_OK;
    if (!o->current) return wb_fail(WB_INVALID_ARGUMENT, "solve: incremental needs the current placement");
    if (!(o->target > 0 && o->target <= 1))
        return wb_fail(WB_INVALID_ARGUMENT, "solve: target: expected above 0 and at most 1, found %g",
                       o->target);
    if (!(o->horizon_steps >= 0))
        return wb_fail(WB_INVALID_ARGUMENT, "solve: horizon_steps: expected 0 or more, found %g",
                       o->horizon_steps);
    return wb_cost_model_check(&o->cost, "solve");
}

static wb_status check_loads(uint32_t M, uint32_t L, uint32_t E, const double *loads, bool any_number) {
    if (!loads) return wb_fail(WB_INVALID_ARGUMENT, "solve: loads is NULL");
    for (uint32_t m = 0; m < M; m++)
        for (uint32_t l = 0; l < L; l++)
            for (uint32_t e = 0; e < E; e++) {
                double load = loads[((size_t)m * L + l) * E + e];
                if (any_number ? !isnan(load) : load >= 0 && isfinite(load)) continue;
                return wb_fail(WB_INVALID_ARGUMENT,
                               "solve: load %g of batch %" PRIu32 " layer %" PRIu32 " expert %" PRIu32
                               ", expected %s",
                               load, m, l, e, any_number ? "a number" : "a finite number, 0 or more");
            }
    return WB_OK;
}

wb_status wb_solve_check_options(const wb_topology *topology, uint32_t L, uint32_t E, uint32_t M,
                                 const wb_eplb_options *options) {
    WB_TRY(wb_topology_check(topology, E));
    WB_TRY(check_options(options));
    if (L < 1 || M < 1)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "solve: expected 1 or more layers and batches, found %" PRIu32 " and %" PRIu32, L, M);
    if (options->algorithm != WB_EPLB_DEEPSEEK) return WB_OK;
    return wb_solve_deepseek_check(topology, E, options->n_groups);
}

static wb_status check(const wb_topology *topology, uint32_t L, uint32_t E, uint32_t M, const double *loads,
                       const wb_eplb_options *options) {
    WB_TRY(wb_solve_check_options(topology, L, E, M, options));
    return check_loads(M, L, E, loads, options->algorithm == WB_EPLB_DEEPSEEK);
}

/* ---- one layer ------------------------------------------------------------------------------- */

typedef struct solve_job {
    wb_placement *placement; /* frame and result */
    const wb_eplb_options *options;
    uint32_t n_batches;
    const double *loads; /* [M][L][E] */
} solve_job;

/* What a solver of one layer reads: [M][E], or [E] summed over the batches. */
static uint32_t gather_loads(const solve_job *job, uint32_t layer, double *loads_out) {
    size_t E = job->placement->n_experts, L = job->placement->n_layers;
    bool each_batch = job->options->algorithm == WB_EPLB_MICROBATCH;
    for (size_t m = 0; m < job->n_batches; m++) {
        const double *from = job->loads + (m * L + layer) * E;
        double *to = loads_out + (each_batch ? m * E : 0);
        for (size_t e = 0; e < E; e++) to[e] = each_batch || m == 0 ? from[e] : to[e] + from[e];
    }
    return each_batch ? job->n_batches : 1;
}

/* Sums over batches and experts must not leave the numbers either. */
static wb_status check_sums(const solve_job *job, uint32_t layer, uint32_t n_batches, const double *loads) {
    uint32_t E = job->placement->n_experts;
    bool any_number = job->options->algorithm == WB_EPLB_DEEPSEEK;
    double sum = 0;
    for (size_t i = 0; i < (size_t)n_batches * E; i++) {
        sum += loads[i];
        if (any_number ? !isnan(loads[i]) : isfinite(sum)) continue;
        return wb_fail(
            WB_INVALID_ARGUMENT,
            "solve: layer %" PRIu32 ": the loads up to expert %" PRIu32 " add up to %g, expected %s", layer,
            (uint32_t)(i % E), any_number ? loads[i] : sum, any_number ? "a number" : "a finite number");
    }
    return WB_OK;
}

static void keep_what_is_as_good(const wb_layer_problem *problem, int32_t *experts) {
    const wb_placement *current = problem->options->current;
    if (!current) return;
    const int32_t *now = wb_placement_experts_of(current, problem->layer);
    if (wb_keep_current(problem, now, experts))
        memcpy(experts, now, current->topology.n_slots * sizeof *experts);
}

static wb_status solve_layer(const solve_job *job, uint32_t layer, wb_owner *scratch) {
    wb_placement *p = job->placement;
    size_t S = p->topology.n_slots, E = p->n_experts;
    const wb_eplb_options *options = job->options;
    size_t n_batches = options->algorithm == WB_EPLB_MICROBATCH ? job->n_batches : 1;
    bool deepseek = options->algorithm == WB_EPLB_DEEPSEEK;
    double *loads = NULL;
    int32_t *experts = NULL;
    uint32_t *replica = NULL;
    WB_TRY(WB_OWN_ALLOC(scratch, loads, n_batches, E * sizeof *loads, "solve"));
    WB_TRY(WB_OWN(scratch, experts, S, "solve"));
    WB_TRY(WB_OWN(scratch, replica, S, "solve"));
    wb_layer_problem problem = {.frame = p,
                                .options = options,
                                .layer = layer,
                                .n_batches = gather_loads(job, layer, loads),
                                .loads = loads,
                                .current = options->algorithm == WB_EPLB_INCREMENTAL
                                               ? wb_placement_experts_of(options->current, layer)
                                               : NULL};
    WB_TRY(check_sums(job, layer, problem.n_batches, loads));
    WB_TRY(algorithms[options->algorithm].solve(&problem, experts, replica));
    if (options->algorithm == WB_EPLB_BALANCED || options->algorithm == WB_EPLB_MICROBATCH)
        keep_what_is_as_good(&problem, experts);
    return wb_placement_set_layer(p, layer, experts, deepseek ? replica : NULL, 0);
}

/* How far the layers are, shared by the threads, and the first that failed with its thread's message. */
typedef struct solve_state {
    uint32_t done, failed_layer;
    wb_status status;
    char message[1024];
} solve_state;

static wb_status solve_one(const solve_job *job, uint32_t layer) {
    wb_owner scratch = {0};
    const wb_status status = solve_layer(job, layer, &scratch);
    wb_owner_close(&scratch);
    return status;
}

/* By the thread that solved the layer, one thread at a time. */
static void note_solved(const solve_job *job, uint32_t layer, wb_status status, solve_state *state) {
    if (status != WB_OK && (state->status == WB_OK || layer < state->failed_layer)) {
        state->status = status;
        state->failed_layer = layer;
        snprintf(state->message, sizeof state->message, "%s", wb_error_message());
    }
    state->done++;
    if (job->options->progress)
        job->options->progress(job->options->progress_ctx, state->done, job->placement->n_layers);
}

static int count_threads(const wb_eplb_options *options, uint32_t n_layers) {
    uint32_t n = options->threads;
#ifdef _OPENMP
    /* More threads than cores gain nothing and may not start. */
    uint32_t cores = (uint32_t)omp_get_num_procs();
    if (n == 0) n = (uint32_t)omp_get_max_threads();
    if (n > cores) n = cores;
#endif
    return (int)(n < n_layers ? n : n_layers);
}

static wb_status solve_layers(const solve_job *job) {
    solve_state state = {.status = WB_OK};
    uint32_t L = job->placement->n_layers;
    int threads = count_threads(job->options, L);
    if (threads > 1) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
        for (uint32_t l = 0; l < L; l++) {
            const wb_status status = solve_one(job, l);
#pragma omp critical(wb_solve)
            note_solved(job, l, status, &state);
        }
    } else {
        /* Without OpenMP, not even its lock: its runtime ends the process when it has no memory for a team of
         * one, and a thread that it did not start, as a manager's, cannot be watched by a sanitizer in it. */
        for (uint32_t l = 0; l < L; l++) note_solved(job, l, solve_one(job, l), &state);
    }
    if (state.status != WB_OK) return wb_fail(state.status, "%s", state.message);
    return WB_OK;
}

wb_status wb_eplb_solve(const wb_topology *topology, uint32_t n_layers, uint32_t n_experts,
                        uint32_t n_batches, const double *loads, const wb_eplb_options *options,
                        wb_placement **placement_out) {
    wb_eplb_options own = wb_eplb_options_default();
    WB_TRY(wb_options_read(&own, sizeof own, options, "solve"));
    WB_TRY(check(topology, n_layers, n_experts, n_batches, loads, &own));
    wb_placement *p = NULL;
    WB_TRY(wb_placement_open(topology, n_layers, n_experts, &p));
    solve_job job = {.placement = p, .options = &own, .n_batches = n_batches, .loads = loads};
    const wb_placement *current = own.algorithm == WB_EPLB_DEEPSEEK ? NULL : own.current;
    wb_status status = current ? wb_placement_check_shape(p, current) : WB_OK;
    if (status != WB_OK) status = wb_fail_context(status, "solve: options.current");
    if (status == WB_OK) status = solve_layers(&job);
    if (status == WB_OK && current) status = wb_placement_keep_slots(p, current);
    if (status != WB_OK) {
        wb_placement_close(p);
        return status;
    }
    *placement_out = p;
    return WB_OK;
}
