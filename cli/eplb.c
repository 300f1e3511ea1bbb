/* eplb.c - `waybill eplb`: sends the tokens of each step through the placements of the solvers and says
 * what comes of it. Owns: the order of solving and simulating. Refuses: the cost model and the solvers
 * (the library's), the options (eplb_args.c), where tokens come from (eplb_traffic.c), how results look
 * (eplb_report.c, eplb_chart.c). */
#include "eplb.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- progress: one line on a terminal, when the work is long --------------------------------- */

typedef struct progress_line {
    bool on, shown;
    double start;
    uint32_t step, n_steps;
    const char *what;
} progress_line;

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void progress_show(void *ctx, uint32_t layers_done, uint32_t n_layers) {
    progress_line *p = ctx;
    if (!p->on || seconds_now() - p->start < 1) return;
    fprintf(stderr, "\rstep %" PRIu32 " of %" PRIu32 ", %s: layer %" PRIu32 " of %" PRIu32 "   ", p->step + 1,
            p->n_steps, p->what, layers_done, n_layers);
    p->shown = true;
}

static void progress_end(const progress_line *p) {
    if (p->shown) fprintf(stderr, "\r%70s\r", "");
}

/* Traffic that says which layer is being simulated. */
typedef struct watched_traffic {
    wb_traffic traffic;
    progress_line *progress;
    uint32_t n_layers;
} watched_traffic;

static wb_status fill_watched(void *ctx, uint32_t batch, uint32_t layer, uint32_t *counts_out) {
    const watched_traffic *w = ctx;
    if (layer % 8 == 0) progress_show(w->progress, layer, w->n_layers);
    return w->traffic.fill(w->traffic.ctx, batch, layer, counts_out);
}

/* ---- rows ------------------------------------------------------------------------------------ */

static wb_status no_memory(void) {
    return wb_fail(WB_OUT_OF_MEMORY, "eplb: no memory for results");
}

static wb_status add_row(eplb_run *run, eplb_row row, const wb_placement *first) {
    row.steps = calloc(run->source.n_steps, sizeof *row.steps);
    if (!row.steps) return no_memory();
    wb_status status = wb_placement_clone(first, &row.placement);
    if (status != WB_OK) {
        free(row.steps);
        return status;
    }
    run->rows[run->n_rows++] = row;
    return WB_OK;
}

/* What an earlier rollout says: a .wbr file or a directory of them. */
static wb_status open_from_dump(const char *path, const wb_topology *topology, const eplb_source_info *info,
                                wb_placement **first_out) {
    wb_dump *dump = NULL;
    wb_status status = wb_dump_open(path, &dump);
    if (status != WB_OK) return status;
    const wb_route_model *m = wb_dump_model(dump);
    if (m->n_moe_layers != info->n_layers || m->num_experts != info->n_experts)
        status =
            wb_fail(WB_MISMATCH,
                    "%s: %" PRIu32 " MoE layers of %" PRIu32 " experts, expected %" PRIu32 " of %" PRIu32,
                    path, m->n_moe_layers, m->num_experts, info->n_layers, info->n_experts);
    if (status == WB_OK) status = wb_placement_from_dump(dump, topology, first_out);
    wb_dump_close(dump);
    return status;
}

static bool is_dump(const char *path) {
    struct stat about;
    size_t length = strlen(path);
    return (length > 4 && strcmp(path + length - 4, ".wbr") == 0) ||
           (stat(path, &about) == 0 && S_ISDIR(about.st_mode));
}

/* The placement to start from, of the time before ranks failed. */
static wb_status open_first(const eplb_settings *s, const eplb_source_info *info, wb_placement **first_out) {
    wb_topology before = s->topology;
    before.dead = NULL;
    if (!s->init_path) return wb_placement_open(&before, info->n_layers, info->n_experts, first_out);
    if (is_dump(s->init_path)) return open_from_dump(s->init_path, &before, info, first_out);
    return wb_placement_read(s->init_path, &before, info->n_layers, info->n_experts, first_out);
}

/* The same after ranks have failed: only experts that they alone had are placed anew. */
static wb_status repair_first(const eplb_settings *s, const eplb_source_info *info, const wb_placement *first,
                              wb_placement **none_out) {
    if (!s->topology.dead) return wb_placement_clone(first, none_out);
    wb_eplb_options options = wb_eplb_options_default();
    options.algorithm = WB_EPLB_INCREMENTAL;
    options.current = first;
    options.horizon_steps = 0;
    double *no_loads = calloc((size_t)info->n_layers * info->n_experts, sizeof *no_loads);
    if (!no_loads) return no_memory();
    wb_status status =
        wb_eplb_solve(&s->topology, info->n_layers, info->n_experts, 1, no_loads, &options, none_out);
    free(no_loads);
    return status;
}

static wb_status open_rows(eplb_run *run) {
    const eplb_settings *s = run->settings;
    const eplb_source_info *info = &run->source;
    wb_placement *first = NULL, *none = NULL;
    wb_status status = open_first(s, info, &first);
    if (status == WB_OK) status = repair_first(s, info, first, &none);
    if (status == WB_OK) status = add_row(run, (eplb_row){.name = "none", .dispatch = s->dispatch}, none);
    for (uint32_t i = 0; status == WB_OK && i < s->n_solvers; i++)
        status = add_row(run,
                         (eplb_row){.name = wb_eplb_algorithm_name(s->solvers[i]),
                                    .solves = true,
                                    .algorithm = s->solvers[i],
                                    .dispatch = s->dispatch},
                         first);
    if (status == WB_OK)
        status = add_row(run, (eplb_row){.name = "fake", .dispatch = WB_DISPATCH_FAKE}, none);
    if (status == WB_OK) run->topology = wb_placement_topology(run->rows[0].placement);
    wb_placement_close(none);
    wb_placement_close(first);
    return status;
}

static void close_rows(eplb_run *run) {
    for (uint32_t i = 0; i < run->n_rows; i++) {
        wb_placement_close(run->rows[i].placement);
        free(run->rows[i].steps);
        free(run->rows[i].refused);
    }
}

/* The row whose placement is saved and drawn: the last solver that took the shape; none without solvers. */
static eplb_row *result_row(eplb_run *run) {
    eplb_row *found = &run->rows[0];
    for (uint32_t i = 1; i < run->n_rows; i++)
        if (run->rows[i].solves && !run->rows[i].refused) found = &run->rows[i];
    return found;
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
                                   progress_line *progress, eplb_figures *f) {
    const eplb_source_info *info = &run->source;
    wb_eplb_options options = run->settings->options;
    wb_move_options moving = wb_move_options_default();
    wb_placement *next = NULL;
    wb_move_plan *plan = NULL;
    options.algorithm = row->algorithm;
    options.current = row->placement;
    options.progress = progress_show;
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
    f->changed_slots = (double)plan->changed_slots;
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
    row->refused = strdup(wb_error_message());
    return row->refused ? WB_OK : no_memory();
}

static wb_status run_row(const eplb_run *run, eplb_row *row, uint32_t step, eplb_source *source,
                         progress_line *progress) {
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

static wb_status run_steps(eplb_run *run, eplb_source *source) {
    progress_line p = {.on = isatty(STDERR_FILENO), .start = seconds_now(), .n_steps = run->source.n_steps};
    wb_status status = WB_OK;
    for (p.step = 0; status == WB_OK && p.step < p.n_steps; p.step++) {
        status = eplb_source_take_step(source, p.step);
        for (uint32_t i = 0; status == WB_OK && i < run->n_rows; i++)
            status = run_row(run, &run->rows[i], p.step, source, &p);
    }
    progress_end(&p);
    run->source = eplb_source_get_info(source); /* with the records and rows that were taken */
    return status;
}

/* ---- the chart: the last step, all layers and the one that is worst without balancing -------- */

/* Tokens of each rank in one layer, summed over micro-batches. counts [P][E] and slots [R] are memory to
 * use. */
static wb_status layer_tokens(const eplb_row *row, uint32_t layer, const wb_traffic *traffic,
                              uint32_t *counts, double *slots, double *rank_tokens_out) {
    const wb_topology *t = wb_placement_topology(row->placement);
    memset(rank_tokens_out, 0, t->n_ranks * sizeof *rank_tokens_out);
    for (uint32_t b = 0; b < traffic->n_batches; b++) {
        wb_dispatch_traffic sent;
        wb_status status = traffic->fill(traffic->ctx, b, layer, counts);
        if (status == WB_OK)
            status = wb_dispatch_loads(row->placement, row->dispatch, layer, counts, slots, &sent);
        if (status != WB_OK) return status;
        for (uint32_t i = 0; i < t->n_slots; i++)
            rank_tokens_out[wb_placement_rank_of(row->placement, (wb_physical_id){i})] += slots[i];
    }
    return WB_OK;
}

/* What the chart shows of one row. */
typedef struct drawn {
    const eplb_row *row;
    double *all, *worst; /* [P] over all layers, of the worst layer of `none` */
} drawn;

/* Fills both rows' loads; *layer_out is the layer with the least balancedness in the first row. */
static wb_status draw_loads(const eplb_run *run, eplb_source *source, drawn *rows, uint32_t *counts,
                            double *slots, double *ranks, uint32_t *layer_out) {
    wb_traffic traffic = eplb_source_traffic(source);
    uint32_t P = run->topology->n_ranks;
    double least = 2;
    for (int r = 0; r < 2; r++) {
        for (uint32_t l = 0; l < run->source.n_layers; l++) {
            wb_status status = layer_tokens(rows[r].row, l, &traffic, counts, slots, ranks);
            if (status != WB_OK) return status;
            for (uint32_t p = 0; p < P; p++) rows[r].all[p] += ranks[p];
            double even = wb_placement_balancedness(rows[r].row->placement, ranks);
            if (r == 0 && even < least) {
                least = even;
                *layer_out = l;
            }
            if (l == *layer_out) memcpy(rows[r].worst, ranks, P * sizeof *ranks);
        }
    }
    return WB_OK;
}

static eplb_series series_of(const drawn *d, const double *loads) {
    return (eplb_series){.name = d->row->name,
                         .loads = loads,
                         .balancedness = wb_placement_balancedness(d->row->placement, loads)};
}

static wb_status write_chart(eplb_run *run, eplb_source *source) {
    const wb_topology *t = run->topology;
    drawn rows[2] = {{.row = &run->rows[0]}, {.row = result_row(run)}};
    double *ranks = calloc(5 * (size_t)t->n_ranks, sizeof *ranks), *slots = calloc(t->n_slots, sizeof *slots);
    uint32_t *counts = calloc((size_t)t->n_ranks * run->source.n_experts, sizeof *counts), worst = 0;
    wb_status status = ranks && slots && counts ? WB_OK : no_memory();
    for (int r = 0; status == WB_OK && r < 2; r++) {
        rows[r].all = ranks + (size_t)(1 + 2 * r) * t->n_ranks;
        rows[r].worst = rows[r].all + t->n_ranks;
    }
    if (status == WB_OK) status = draw_loads(run, source, rows, counts, slots, ranks, &worst);
    if (status == WB_OK) {
        char title[96];
        snprintf(title, sizeof title, "MoE layer %" PRIu32 " (of 0..%" PRIu32 "), the least balanced before",
                 worst, run->source.n_layers - 1);
        const eplb_panel panels[2] = {
            {"All layers together", series_of(&rows[0], rows[0].all), series_of(&rows[1], rows[1].all)},
            {title, series_of(&rows[0], rows[0].worst), series_of(&rows[1], rows[1].worst)}};
        status = eplb_chart_write(run->settings->chart_path, t->n_ranks, t->dead, 2, panels);
    }
    free(ranks);
    free(slots);
    free(counts);
    return status;
}

/* ---- the command ----------------------------------------------------------------------------- */

static wb_status write_files(eplb_run *run, eplb_source *source) {
    const eplb_settings *s = run->settings;
    if (s->save_path) {
        wb_status status = wb_placement_save(result_row(run)->placement, s->save_path);
        if (status != WB_OK) return status;
    }
    return s->chart_path ? write_chart(run, source) : WB_OK;
}

static int run_source(const cli_command *self, const eplb_settings *settings, eplb_source *source) {
    eplb_run run = {.settings = settings, .source = eplb_source_get_info(source)};
    if (wb_topology_check(&settings->topology, run.source.n_experts) != WB_OK)
        return cli_usage_error(self, "%s", wb_error_message());
    wb_status status = open_rows(&run);
    if (status == WB_OK) status = run_steps(&run, source);
    if (status == WB_OK) {
        settings->json ? eplb_print_json(&run) : eplb_print_tables(&run);
        status = write_files(&run, source);
    }
    int code = status == WB_OK ? CLI_OK : cli_fail();
    close_rows(&run);
    return code;
}

int cli_eplb(const cli_command *self, int argc, char **argv) {
    eplb_settings settings;
    eplb_source *source = NULL;
    int code;
    if (!eplb_settings_read(self, argc, argv, &settings, &code)) return code;
    if (eplb_source_open(&settings, &source) != WB_OK)
        code = cli_fail();
    else
        code = run_source(self, &settings, source);
    eplb_source_close(source);
    eplb_settings_free(&settings);
    return code;
}
