/* eplb_steps.c - each row of `waybill eplb` in each step: solve, plan the move, simulate. Refuses: the cost
 * model and the solvers (the library's). */
#include "eplb/eplb.h"
#include "wb_text.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>
#include <time.h>

/* ---- progress -------------------------------------------------------------------------------- */

typedef struct run_progress {
    cli_progress line;
    uint32_t step, n_steps;
    bool aged; /* a step before this one had tokens, so that its placement is one to be stale */
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

/* Of loads, balancedness is of replicas that share evenly, as solvers and published tables mean it: a
 * count is no token that a dispatch could send. Ranks in turn do not look at replicas. */
static wb_status measure(const eplb_run *run, const eplb_row *row, const wb_traffic *traffic,
                         const eplb_source *source, wb_simulation *found, wb_even_split *even) {
    const double scale = eplb_source_scale(source);
    const wb_status status =
        wb_simulate(row->placement, row->dispatch, traffic, &run->settings->options.cost, NULL, found);
    *even = (wb_even_split){.max_over_mean = NAN, .max_layer = NAN};
    if (status != WB_OK || !run->counts) return status;
    found->seconds *= scale;
    found->bound_seconds *= scale;
    found->node_bytes *= scale;
    found->network_bytes *= scale;
    if (row->dispatch == WB_DISPATCH_FAKE) return WB_OK;
    const wb_status split =
        wb_even_split_of(row->placement, run->source.n_batches, eplb_source_loads(source), even);
    if (split != WB_OK) return split;
    found->balancedness = even->balancedness;
    found->balancedness_time = even->balancedness_time;
    found->min_layer = even->min_layer;
    return WB_OK;
}

static void add_simulation(eplb_figures *f, const wb_simulation *s, const wb_even_split *even) {
    f->max_over_mean = even->max_over_mean;
    f->max_layer = even->max_layer;
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
    wb_status status = wb_eplb_solve_counts(&run->settings->topology, info->n_layers, info->n_experts,
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
    eplb_figures *f = &row->steps[step];
    wb_simulation found;
    wb_even_split even;
    if (row->refused) return WB_OK;
    progress->what = row->name;
    f->stale = NAN;
    if (row->solves && progress->aged) {
        wb_status status = measure(run, row, &traffic, source, &found, &even);
        if (status != WB_OK) return status;
        f->stale = found.balancedness;
    }
    if (row->solves) {
        wb_status status = replace_placement(run, row, eplb_source_loads(source), progress, f);
        if (status != WB_OK) return refuse(run, row, status);
    }
    wb_status status = measure(run, row, &traffic, source, &found, &even);
    if (status != WB_OK) return status;
    add_simulation(f, &found, &even);
    if (!row->solves && progress->aged) f->stale = f->balancedness; /* nothing that ages */
    return WB_OK;
}

/* ---- steps without tokens ---------------------------------------------------------------------- */

bool eplb_any_load(const double *loads, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (loads[i] > 0) return true;
    return false;
}

/* A recording that is a ring has a tail of zeros until it is full. They are no information (rule 33): counted
 * as steps of no time and perfect balance they would make every mean better than it is. */
static void leave_out(eplb_run *run, uint32_t step) {
    enum { N = sizeof(eplb_figures) / sizeof(double) };
    double none[N];
    for (int i = 0; i < N; i++) none[i] = NAN;
    for (uint32_t i = 0; i < run->n_rows; i++) memcpy(&run->rows[i].steps[step], none, sizeof none);
}

static wb_status run_rows(eplb_run *run, uint32_t step, eplb_source *source, run_progress *progress) {
    wb_status status = WB_OK;
    for (uint32_t i = 0; status == WB_OK && i < run->n_rows; i++)
        status = run_row(run, &run->rows[i], step, source, progress);
    progress->aged = true;
    return status;
}

wb_status eplb_run_steps(eplb_run *run, eplb_source *source) {
    run_progress p = {.line = cli_progress_start(), .n_steps = run->source.n_steps};
    const size_t cells = (size_t)run->source.n_batches * run->source.n_layers * run->source.n_experts;
    wb_status status = WB_OK;
    uint32_t last = 0;
    for (p.step = 0; status == WB_OK && p.step < p.n_steps; p.step++) {
        status = eplb_source_take_step(source, p.step, show_records, &p);
        if (status != WB_OK) break;
        if (!eplb_any_load(eplb_source_loads(source), cells)) {
            leave_out(run, p.step);
            continue;
        }
        last = p.step;
        status = run_rows(run, p.step, source, &p);
    }
    /* What is drawn is the last step that has tokens. */
    if (status == WB_OK && run->counts && last + 1 < p.n_steps)
        status = eplb_source_take_step(source, last, show_records, &p);
    cli_progress_end(&p.line);
    run->source = eplb_source_get_info(source); /* with the records and rows that were taken */
    return status;
}
