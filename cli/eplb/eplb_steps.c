/* eplb_steps.c - each row of `waybill eplb` in each step: solve, plan the move, simulate. Refuses: the cost
 * model and the solvers (the library's). */
#include "eplb/eplb.h"
#include "wb_text.h"

#include <inttypes.h>
#include <math.h>
#include <time.h>

/* ---- progress -------------------------------------------------------------------------------- */

typedef struct run_progress {
    cli_progress line;
    uint32_t step, n_steps;
    const char *what;
} run_progress;

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Time left is told from the steps that are done: the rows of a step differ too much. */
static void show(void *ctx, uint32_t layers_done, uint32_t n_layers) {
    run_progress *p = ctx;
    if (!cli_progress_due(&p->line)) return;
    cli_progress_show(&p->line, p->step, p->n_steps,
                      "step %" PRIu32 " of %" PRIu32 ", %s, layer %" PRIu32 " of %" PRIu32, p->step + 1,
                      p->n_steps, p->what, layers_done, n_layers);
}

static void show_records(void *ctx, uint64_t done, uint64_t total) {
    run_progress *p = ctx;
    if (!cli_progress_due(&p->line)) return;
    /* After the last record of a step there is no telling how long its rows take. */
    cli_progress_show(&p->line, p->step + (double)done / (double)total, done < total ? p->n_steps : 0,
                      "step %" PRIu32 " of %" PRIu32 ", %" PRIu64 " of %" PRIu64 " records", p->step + 1,
                      p->n_steps, done, total);
}

/* Traffic that says which layer is being simulated. */
typedef struct watched_traffic {
    wb_traffic traffic;
    run_progress *progress;
    uint32_t n_layers;
} watched_traffic;

static wb_status fill_watched(void *ctx, uint32_t batch, uint32_t layer, uint32_t *counts_out) {
    const watched_traffic *w = ctx;
    if (layer % 8 == 0) show(w->progress, layer, w->n_layers);
    return w->traffic.fill(w->traffic.ctx, batch, layer, counts_out);
}

/* ---- one row in one step --------------------------------------------------------------------- */

static void add_simulation(eplb_figures *f, const wb_simulation *s) {
    f->balancedness = s->balancedness;
    f->balancedness_time = s->balancedness_time;
    f->min_layer = s->min_layer;
    f->seconds = s->seconds;
    f->bound_seconds = s->bound_seconds;
    f->transfer_node_bytes = s->node_bytes;
    f->transfer_network_bytes = s->network_bytes;
}

/* What the step before left becomes what these loads ask for; figures of the solve and of the move. */
static wb_status replace_placement(const eplb_run *run, eplb_row *row, const double *loads,
                                   run_progress *progress, eplb_figures *f) {
    const eplb_source_info *info = &run->source;
    wb_eplb_options options = run->settings->options;
    wb_move_options moving = wb_move_options_default();
    wb_placement *next = NULL;
    wb_move_plan *plan = NULL;
    options.algorithm = row->algorithm;
    options.current = row->placement;
    options.progress = show;
    options.progress_ctx = progress;
    moving.cost = options.cost;
    double start = seconds_now();
    wb_status status = wb_eplb_solve(&run->settings->topology, info->n_layers, info->n_experts,
                                     info->n_batches, loads, &options, &next);
    f->solve_seconds = seconds_now() - start;
    if (status == WB_OK)
        status = wb_move_plan_open(row->placement, next, info->n_layers, NULL, &moving, &plan);
    if (status != WB_OK) {
        wb_placement_close(next);
        return status;
    }
    f->changed_slots = (double)plan->n_moves;
    f->local_bytes = plan->local_bytes;
    f->node_bytes = plan->node_bytes;
    f->network_bytes = plan->network_bytes;
    f->reload_bytes = plan->reload_bytes;
    f->move_seconds = plan->seconds;
    wb_move_plan_close(plan);
    wb_placement_close(row->placement);
    row->placement = next;
    return WB_OK;
}

/* A shape that the solver does not take is told in its row, unless nothing else was asked for. */
static wb_status refuse(const eplb_run *run, eplb_row *row, wb_status status) {
    if (status != WB_INVALID_ARGUMENT && status != WB_UNSUPPORTED) return status;
    if (run->settings->n_solvers == 1) return status;
    return wb_text_format(&row->refused, "%s", wb_error_message());
}

static wb_status run_row(const eplb_run *run, eplb_row *row, uint32_t step, eplb_source *source,
                         run_progress *progress) {
    watched_traffic watched = {eplb_source_traffic(source), progress, run->source.n_layers};
    wb_traffic traffic = {watched.traffic.n_batches, fill_watched, &watched};
    const wb_cost_model *cost = &run->settings->options.cost;
    eplb_figures *f = &row->steps[step];
    wb_simulation found;
    if (row->refused) return WB_OK;
    progress->what = row->name;
    f->stale = NAN;
    if (row->solves && step > 0) {
        wb_status status = wb_simulate(row->placement, row->dispatch, &traffic, cost, NULL, &found);
        if (status != WB_OK) return status;
        f->stale = found.balancedness;
    }
    if (row->solves) {
        wb_status status = replace_placement(run, row, eplb_source_loads(source), progress, f);
        if (status != WB_OK) return refuse(run, row, status);
    }
    wb_status status = wb_simulate(row->placement, row->dispatch, &traffic, cost, NULL, &found);
    if (status != WB_OK) return status;
    add_simulation(f, &found);
    if (!row->solves && step > 0) f->stale = f->balancedness; /* nothing that ages */
    return WB_OK;
}

wb_status eplb_run_steps(eplb_run *run, eplb_source *source) {
    run_progress p = {.line = cli_progress_start(), .n_steps = run->source.n_steps};
    wb_status status = WB_OK;
    for (p.step = 0; status == WB_OK && p.step < p.n_steps; p.step++) {
        status = eplb_source_take_step(source, p.step, show_records, &p);
        for (uint32_t i = 0; status == WB_OK && i < run->n_rows; i++)
            status = run_row(run, &run->rows[i], p.step, source, &p);
    }
    cli_progress_end(&p.line);
    run->source = eplb_source_get_info(source); /* with the records and rows that were taken */
    return status;
}
