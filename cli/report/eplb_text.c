/* eplb_text.c - the tables of `waybill eplb`. Refuses: computing anything but units. */
#include "report/eplb_report.h"

#include <inttypes.h>
#include <math.h>

static uint32_t count_dead(const wb_topology *t) {
    uint32_t n = 0;
    for (uint32_t p = 0; p < t->n_ranks; p++) n += t->dead[p] != 0;
    return n;
}

static void print_records(const eplb_source_info *i) {
    printf("           %" PRIu64 " records with %" PRIu64 " valid rows, steps by %s\n", i->records, i->rows,
           i->steps_by);
    if (i->skipped > 0)
        printf("           skipped: %" PRIu64 " record%s without valid rows\n", i->skipped,
               i->skipped == 1 ? "" : "s");
}

/* "0-2, 7": the layers that have none. */
static void print_skipped(const wb_counts_info *info) {
    const char *comma = "           no counts, and so no figures and no change, in layers ";
    for (uint32_t l = 0, end; l < info->n_layers; l = end + 1) {
        for (end = l; end < info->n_layers && !info->informed[end]; end++) {
        }
        if (end == l) continue;
        printf("%s%" PRIu32, comma, info->layers[l]);
        if (end > l + 1) printf("-%" PRIu32, info->layers[end - 1]);
        comma = ", ";
    }
    if (comma[0] == ',') printf("\n");
}

static void print_empty(const eplb_run *run, const wb_counts_info *info) {
    uint32_t n = 0;
    for (uint32_t p = 0; p < info->n_passes; p++) n += !eplb_pass_has_counts(run, p);
    if (n > 0)
        printf("           %" PRIu32 " of %" PRIu32 " passes without counts, which are in no figure\n", n,
               info->n_passes);
}

static void print_counts(const eplb_run *run) {
    const cli_list *files = run->settings->loads;
    const wb_counts_info info = wb_counts_get_info(run->counts);
    printf("           %s", files->items[0]);
    if (files->n > 1) printf(" and %" PRIu32 " more, summed", files->n - 1);
    printf(": %" PRIu32 " pass%s, %.4g choices in a pass and layer\n", info.n_passes,
           info.n_passes == 1 ? "" : "es", run->source.pass_tokens);
    print_empty(run, &info);
    print_skipped(&info);
}

static void print_init(const eplb_run *run) {
    if (!run->init_layout) return;
    printf("init       %s: %s", run->settings->init_path, run->init_layout);
    if (run->init_solved) printf(", solved by %s", wb_eplb_algorithm_name(run->settings->init_algorithm));
    printf("\n");
}

static void print_source(const eplb_run *run) {
    const eplb_source_info *i = &run->source;
    const eplb_settings *s = run->settings;
    printf("traffic    %s: %" PRIu32 " MoE layers, ", i->name, i->n_layers);
    if (i->top_k > 0) printf("%" PRIu32 " of ", i->top_k);
    printf("%" PRIu32 " experts", i->n_experts);
    if (i->n_weightless > 0)
        printf(" (and %" PRIu32 " without weights, which no slot holds)", i->n_weightless);
    printf(", ");
    printf("%" PRIu32 " step%s of %" PRIu32 " micro-batch%s\n", i->n_steps, i->n_steps == 1 ? "" : "s",
           i->n_batches, i->n_batches == 1 ? "" : "es");
    if (run->counts)
        print_counts(run);
    else if (s->dump)
        print_records(i);
    else
        printf("           %" PRIu64 " tokens a micro-batch, skew %g, noise %g, seed %" PRIu64 "\n",
               s->synthetic.tokens / i->top_k, s->synthetic.skew, s->synthetic.noise, s->synthetic.seed);
}

static void print_shape(const eplb_run *run) {
    const wb_topology *t = run->topology;
    const wb_cost_model *c = &run->settings->options.cost;
    printf("shape      %" PRIu32 " ranks (%" PRIu32 " dead) on %" PRIu32 " node%s, %" PRIu32
           " slots a layer\n",
           t->n_ranks, count_dead(t), t->n_nodes, t->n_nodes == 1 ? "" : "s", t->n_slots);
    printf("dispatch   %s\n", wb_dispatch_policy_name(run->settings->dispatch));
    printf("expert     hidden size %" PRIu32 ", width %" PRIu32 "%s\n", run->settings->hidden,
           run->settings->expert_width,
           run->settings->sizes_given ? "" : ": assumed, DeepSeek-V3's (see --hidden, --expert-width)");
    printf("cost       %.4g us a token, %.4g us an expert, %.6g bytes a token, %.6g bytes an expert,\n",
           1e6 * c->seconds_per_token, 1e6 * c->seconds_per_expert, c->bytes_per_token, c->expert_bytes);
    printf("           %.4g GB/s in the node and %.4g GB/s out of it a rank, %.4g us a group of moves\n\n",
           1e-9 * c->node_bytes_per_second, 1e-9 * c->network_bytes_per_second, 1e6 * c->seconds_per_group);
}

static void print_heading(void) {
    printf("%-12s %-27s %7s %11s %-35s %19s %10s\n", "", "balancedness (mean / max)", "worst", "step ms",
           "  moved from the placement before", "", "solve");
    printf("%-12s %8s %8s %9s %7s %11s %8s %10s %12s %12s %10s %10s\n", "placement", "exact", "stale",
           "of time", "layer", "predicted", "/ bound", "slots", "GB", "GB network", "ms", "ms");
}

/* A number, or "-" where there is none. */
static void print_cell(int width, int decimals, double value) {
    if (isnan(value))
        printf(" %*s", width, "-");
    else
        printf(" %*.*f", width, decimals, value);
}

static void print_row(const eplb_run *run, const eplb_row *row) {
    printf("%-12s", row->name);
    if (row->refused) {
        printf(" refused: %s\n", row->refused);
        return;
    }
    eplb_figures f = eplb_mean_figures(run, row);
    print_cell(8, 4, f.balancedness);
    print_cell(8, 4, f.stale);
    print_cell(9, 4, f.balancedness_time);
    print_cell(7, 4, f.min_layer);
    print_cell(11, 3, 1e3 * f.seconds);
    print_cell(8, 3, eplb_ratio_to_bound(&f));
    print_cell(10, 1, row->solves ? f.changed_slots : NAN);
    print_cell(12, 3, row->solves ? 1e-9 * eplb_moved_bytes(&f) : NAN);
    print_cell(12, 3, row->solves ? 1e-9 * f.network_bytes : NAN);
    print_cell(10, 3, row->solves ? 1e3 * f.move_seconds : NAN);
    print_cell(10, 3, row->solves ? 1e3 * f.solve_seconds : NAN);
    printf("\n");
}

/* The figure of published tables. */
static void print_max_over_mean(const eplb_run *run) {
    const char *comma = "\nmax / mean of ranks, replicas sharing evenly, and of the worst layer: ";
    for (uint32_t i = 0; i < run->n_rows; i++) {
        const eplb_row *row = &run->rows[i];
        const eplb_figures f = eplb_mean_figures(run, row);
        if (row->refused || isnan(f.max_over_mean)) continue;
        printf("%s%s %.4f (%.4f)", comma, row->name, f.max_over_mean, f.max_layer);
        comma = ", ";
    }
    printf("\n");
}

static void print_bound(const eplb_run *run) {
    eplb_figures f = eplb_mean_figures(run, &run->rows[0]);
    printf("%-12s %8s %8s %9s %7s", "bound", "-", "-", "-", "-");
    print_cell(11, 3, 1e3 * f.bound_seconds);
    print_cell(8, 3, 1);
    printf("\n");
}

/* What the figures cannot show where the shape is far from what solvers are for. */
static void print_notes(const eplb_run *run) {
    const wb_topology *t = run->topology;
    const wb_cost_model *c = &run->settings->options.cost;
    const double tokens = eplb_tokens_per_slot(run);
    if (tokens * c->seconds_per_token < c->seconds_per_expert)
        printf("note: a slot gets %.3g tokens in a pass, and reading its expert takes as long as %.3g: time "
               "is that "
               "of the experts\n"
               "      that a rank reads. Solvers balance tokens and may be slower than none; fewer --slots "
               "are faster.\n",
               tokens, c->seconds_per_expert / c->seconds_per_token);
    if (t->n_slots / t->n_ranks > run->source.n_experts)
        printf("note: a rank has more slots than the %" PRIu32
               " experts: replicas beside each other do not help.\n",
               run->source.n_experts);
}

void eplb_print_tables(const eplb_run *run) {
    print_source(run);
    print_init(run);
    print_shape(run);
    print_heading();
    for (uint32_t i = 0; i < run->n_rows; i++) print_row(run, &run->rows[i]);
    print_bound(run);
    if (run->counts) print_max_over_mean(run);
    printf("\nexact: the placement is made from the step's own loads; stale: from those of the step before.\n"
           "Means over steps with tokens; the first step's moves start from %s.\n"
           "fake: ranks in turn whatever the router chose.\n",
           run->settings->init_path ? run->settings->init_path : "the trivial placement");
    printf("bound: no placement on these slots is faster; for fake, of even tokens alone.\n");
    print_notes(run);
}
