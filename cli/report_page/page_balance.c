/* page_balance.c - see page_balance.h. Owns no figure: placements, and what replicas that share evenly make
 * of loads, are the eplb library's. Refuses: micro-batches, which a sum of loads does not have (`waybill
 * eplb` does). */
#include "report_page/page_balance.h"
#include "command.h"
#include "report_page/page_text.h"
#include "wb_check.h"
#include "wb_simulate.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

static const wb_eplb_algorithm solvers[] = {WB_EPLB_DEEPSEEK, WB_EPLB_BALANCED, WB_EPLB_INCREMENTAL};
enum { N_SOLVERS = sizeof solvers / sizeof solvers[0] };
_Static_assert(N_SOLVERS + 1 == BALANCE_N_SERIES && (int)BALANCE_N_SERIES <= (int)PLOT_MAX_SERIES,
               "a series for each solver and one without");

typedef struct solving {
    const stats *stats;
    double *loads; /* [L][E] choices of experts that have weights */
    cli_progress progress;
    uint32_t n_ranks, point, n_points;
    const char *solver;
} solving;

static void show(void *ctx, uint32_t layers_done, uint32_t n_layers) {
    solving *s = ctx;
    if (!cli_progress_due(&s->progress)) return;
    cli_progress_show(&s->progress, s->point, s->n_points,
                      "%" PRIu32 " ranks, %s, layer %" PRIu32 " of %" PRIu32, s->n_ranks, s->solver,
                      layers_done, n_layers);
}

static wb_status measure(const solving *s, const wb_placement *placement, double *value_out) {
    wb_even_split split;
    WB_TRY(wb_even_split_of(placement, 1, s->loads, &split));
    *value_out = split.balancedness;
    return WB_OK;
}

/* Experts in blocks, one a rank, as `waybill stats --ranks` has them. */
static wb_status without_solver(const solving *s, double *value_out) {
    const uint32_t E = wb_route_weighted(s->stats->model), R = s->n_ranks;
    uint32_t *slots = NULL;
    wb_placement *placement = NULL;
    WB_TRY(WB_NEW(slots, R, "slots of ranks"));
    for (uint32_t r = 0; r < R; r++) slots[r] = wb_block_begin(E, R, r + 1) - wb_block_begin(E, R, r);
    const wb_topology blocks = {.n_ranks = R, .n_nodes = 1, .n_slots = E, .slots_of_rank = slots};
    wb_status status = wb_placement_open(&blocks, s->stats->model->n_moe_layers, E, &placement);
    if (status == WB_OK) status = measure(s, placement, value_out);
    wb_placement_close(placement);
    free(slots);
    return status;
}

/* A shape that the solver does not take is no fault: the figure stays NAN. */
static wb_status with_solver(solving *s, wb_eplb_algorithm algorithm, uint32_t n_slots, double *value_out) {
    const wb_topology topology = {.n_ranks = s->n_ranks, .n_nodes = 1, .n_slots = n_slots};
    wb_eplb_options options = wb_eplb_options_default();
    wb_placement *placement = NULL;
    options.algorithm = algorithm;
    options.progress = show;
    options.progress_ctx = s;
    s->solver = wb_eplb_algorithm_name(algorithm);
    wb_status status =
        wb_eplb_solve_counts(&topology, s->stats->model->n_moe_layers, wb_route_weighted(s->stats->model), 1,
                             s->loads, &options, &placement);
    if (status == WB_INVALID_ARGUMENT || status == WB_UNSUPPORTED) return WB_OK;
    if (status == WB_OK) status = measure(s, placement, value_out);
    wb_placement_close(placement);
    return status;
}

static wb_status solve_all(solving *s, balance *b) {
    const wb_route_model *m = s->stats->model;
    const uint32_t E = wb_route_weighted(m);
    WB_TRY(WB_NEW(s->loads, (size_t)m->n_moe_layers * E, "loads"));
    for (uint32_t l = 0; l < m->n_moe_layers; l++)
        for (uint32_t e = 0; e < E; e++)
            s->loads[(size_t)l * E + e] = (double)s->stats->counts[(size_t)l * m->num_experts + e];
    for (uint32_t i = 0; i < b->n_points; i++) {
        s->point = i;
        s->n_ranks = b->n_ranks[i];
        for (int k = 0; k < BALANCE_N_SERIES; k++) b->values[k][i] = NAN;
        WB_TRY(without_solver(s, &b->values[0][i]));
        for (int k = 0; k < N_SOLVERS; k++)
            WB_TRY(with_solver(s, solvers[k], b->n_slots[i], &b->values[k + 1][i]));
    }
    return WB_OK;
}

/* Each rank has room for its part of the experts and for one replica more. */
int balance_collect(const stats *collected, uint64_t max_ranks, balance *b) {
    const uint32_t E = wb_route_weighted(collected->model);
    *b = (balance){0};
    for (uint32_t R = 2; R <= E && R <= max_ranks && b->n_points < BALANCE_MAX_POINTS; R *= 2) {
        b->n_slots[b->n_points] = R * ((E + R - 1) / R + 1);
        b->n_ranks[b->n_points++] = R;
    }
    solving s = {.stats = collected, .progress = cli_progress_start(), .n_points = b->n_points};
    const wb_status status = solve_all(&s, b);
    cli_progress_end(&s.progress);
    free(s.loads);
    return status == WB_OK ? CLI_OK : cli_fail();
}

void page_balance(FILE *out, const balance *b) {
    plot_label labels[BALANCE_MAX_POINTS] = {{0}};
    plot p = {.id = "balancedness",
              .title = "Balancedness over ranks",
              .x_name = "ranks",
              .n_points = b->n_points,
              .labels = (const plot_label *)labels,
              .n_series = BALANCE_N_SERIES};
    for (uint32_t i = 0; i < b->n_points; i++)
        snprintf(labels[i], PLOT_LABEL_BYTES, "%" PRIu32, b->n_ranks[i]);
    for (int k = 0; k < BALANCE_N_SERIES; k++)
        p.series[k] = (plot_series){k ? wb_eplb_algorithm_name(solvers[k - 1]) : "no solver", b->values[k]};
    page_section_begin(out, "balance", "Balancedness");
    fputs(
        "<p class=\"note\">Mean over the layers of mean / maximum of the ranks&apos; load: 1 is even. No "
        "solver: experts in order, without replicas. The solvers have one slot a rank more than the experts "
        "need; incremental fills slots in order and then changes few of them.</p>\n",
        out);
    page_plot(out, &p);
    page_section_end(out);
}
