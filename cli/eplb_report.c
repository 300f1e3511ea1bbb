/* eplb_report.c - what `waybill eplb` prints: a table for people, one JSON object for programs, of the
 * same facts. Refuses: computing anything but means, ratios and units. */
#include "eplb.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static uint32_t count_dead(const wb_topology *t) {
    uint32_t n = 0;
    for (uint32_t p = 0; p < t->n_ranks; p++) n += t->dead[p] != 0;
    return n;
}

/* Seconds against the least that any placement could take; 1 when there is nothing to do. */
static double ratio_to_bound(const eplb_figures *f) {
    return f->bound_seconds > 0 ? f->seconds / f->bound_seconds : 1;
}

/* ---- means over steps ------------------------------------------------------------ */

/* Of the steps that have the figure. */
static eplb_figures mean_figures(const eplb_run *run, const eplb_row *row) {
    enum { N = sizeof(eplb_figures) / sizeof(double) };
    double sums[N] = {0};
    uint32_t n[N] = {0};
    for (uint32_t s = 0; s < run->source.n_steps; s++) {
        double values[N];
        memcpy(values, &row->steps[s], sizeof values);
        for (int i = 0; i < N; i++) {
            if (isnan(values[i])) continue;
            sums[i] += values[i];
            n[i]++;
        }
    }
    for (int i = 0; i < N; i++) sums[i] = n[i] ? sums[i] / n[i] : NAN;
    eplb_figures mean;
    memcpy(&mean, sums, sizeof mean);
    return mean;
}

/* Of all kinds of moves. */
static double moved_bytes(const eplb_figures *f) {
    return f->local_bytes + f->node_bytes + f->network_bytes + f->reload_bytes;
}

/* ---- tables ---------------------------------------------------------------------------------- */

static void print_source(const eplb_run *run) {
    const eplb_source_info *i = &run->source;
    const eplb_settings *s = run->settings;
    printf("traffic    %s: %" PRIu32 " MoE layers, %" PRIu32 " of %" PRIu32 " experts, ", i->name,
           i->n_layers, i->top_k, i->n_experts);
    printf("%" PRIu32 " step%s of %" PRIu32 " micro-batch%s\n", i->n_steps, i->n_steps == 1 ? "" : "s",
           i->n_batches, i->n_batches == 1 ? "" : "es");
    if (s->dump)
        printf("           %" PRIu64 " records with %" PRIu64 " valid rows\n", i->records, i->rows);
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
    eplb_figures f = mean_figures(run, row);
    print_cell(8, 4, f.balancedness);
    print_cell(8, 4, f.stale);
    print_cell(9, 4, f.balancedness_time);
    print_cell(7, 4, f.min_layer);
    print_cell(11, 3, 1e3 * f.seconds);
    print_cell(8, 3, ratio_to_bound(&f));
    print_cell(10, 1, row->solves ? f.changed_slots : NAN);
    print_cell(12, 3, row->solves ? 1e-9 * moved_bytes(&f) : NAN);
    print_cell(12, 3, row->solves ? 1e-9 * f.network_bytes : NAN);
    print_cell(10, 3, row->solves ? 1e3 * f.move_seconds : NAN);
    print_cell(10, 3, row->solves ? 1e3 * f.solve_seconds : NAN);
    printf("\n");
}

static void print_bound(const eplb_run *run) {
    eplb_figures f = mean_figures(run, &run->rows[0]);
    printf("%-12s %8s %8s %9s %7s", "bound", "-", "-", "-", "-");
    print_cell(11, 3, 1e3 * f.bound_seconds);
    print_cell(8, 3, 1);
    printf("\n");
}

void eplb_print_tables(const eplb_run *run) {
    print_source(run);
    print_shape(run);
    print_heading();
    for (uint32_t i = 0; i < run->n_rows; i++) print_row(run, &run->rows[i]);
    print_bound(run);
    printf("\nexact: the placement is made from the step's own loads; stale: from those of the step before.\n"
           "Means over steps; the first step's moves start from %s. fake: ranks in turn whatever the router "
           "chose.\n",
           run->settings->init_path ? run->settings->init_path : "the trivial placement");
}

/* ---- JSON ------------------------------------------------------------------------------------ */

static void json_pair(const char *key, double value) {
    printf(",\"%s\":", key);
    cli_json_number(stdout, value);
}

static void json_source(const eplb_run *run) {
    const eplb_source_info *i = &run->source;
    const eplb_settings *s = run->settings;
    printf("{\"traffic\":{\"name\":");
    cli_json_text(stdout, i->name);
    printf(",\"layers\":%" PRIu32 ",\"experts\":%" PRIu32 ",\"top_k\":%" PRIu32 ",\"steps\":%" PRIu32
           ",\"micro_batches\":%" PRIu32,
           i->n_layers, i->n_experts, i->top_k, i->n_steps, i->n_batches);
    if (s->dump) {
        printf(",\"records\":%" PRIu64 ",\"valid_rows\":%" PRIu64, i->records, i->rows);
    } else {
        printf(",\"tokens\":%" PRIu64 ",\"seed\":%" PRIu64, s->synthetic.tokens / i->top_k,
               s->synthetic.seed);
        json_pair("skew", s->synthetic.skew);
        json_pair("noise", s->synthetic.noise);
    }
    printf("}");
}

static void json_shape(const eplb_run *run) {
    const wb_topology *t = run->topology;
    const wb_cost_model *c = &run->settings->options.cost;
    const char *comma = "";
    printf(",\"shape\":{\"ranks\":%" PRIu32 ",\"nodes\":%" PRIu32 ",\"slots\":%" PRIu32 ",\"dead\":[",
           t->n_ranks, t->n_nodes, t->n_slots);
    for (uint32_t p = 0; p < t->n_ranks; p++) {
        if (!t->dead[p]) continue;
        printf("%s%" PRIu32, comma, p);
        comma = ",";
    }
    printf("]},\"dispatch\":\"%s\",\"cost\":{\"seconds_per_token\":",
           wb_dispatch_policy_name(run->settings->dispatch));
    cli_json_number(stdout, c->seconds_per_token);
    json_pair("seconds_per_expert", c->seconds_per_expert);
    json_pair("bytes_per_token", c->bytes_per_token);
    json_pair("expert_bytes", c->expert_bytes);
    json_pair("node_bytes_per_second", c->node_bytes_per_second);
    json_pair("network_bytes_per_second", c->network_bytes_per_second);
    json_pair("local_bytes_per_second", c->local_bytes_per_second);
    json_pair("seconds_per_group", c->seconds_per_group);
    printf("}");
}

static void json_figures(const eplb_row *row, const eplb_figures *f) {
    printf("\"balancedness\":");
    cli_json_number(stdout, f->balancedness);
    json_pair("balancedness_stale", f->stale);
    json_pair("balancedness_time", f->balancedness_time);
    json_pair("min_layer", f->min_layer);
    json_pair("seconds", f->seconds);
    json_pair("bound_seconds", f->bound_seconds);
    json_pair("ratio_to_bound", ratio_to_bound(f));
    json_pair("dispatch_node_bytes", f->transfer_node_bytes);
    json_pair("dispatch_network_bytes", f->transfer_network_bytes);
    if (!row->solves) return;
    json_pair("changed_slots", f->changed_slots);
    json_pair("moved_bytes", moved_bytes(f));
    json_pair("moved_local_bytes", f->local_bytes);
    json_pair("moved_node_bytes", f->node_bytes);
    json_pair("moved_network_bytes", f->network_bytes);
    json_pair("reload_bytes", f->reload_bytes);
    json_pair("move_seconds", f->move_seconds);
    json_pair("solve_seconds", f->solve_seconds);
}

static void json_row(const eplb_run *run, const eplb_row *row) {
    printf("{\"placement\":\"%s\",", row->name);
    if (row->refused) {
        printf("\"refused\":");
        cli_json_text(stdout, row->refused);
        printf("}");
        return;
    }
    eplb_figures mean = mean_figures(run, row);
    json_figures(row, &mean);
    printf(",\"steps\":[");
    for (uint32_t s = 0; s < run->source.n_steps; s++) {
        printf(s ? ",{" : "{");
        json_figures(row, &row->steps[s]);
        printf("}");
    }
    printf("]}");
}

void eplb_print_json(const eplb_run *run) {
    json_source(run);
    json_shape(run);
    printf(",\"rows\":[");
    for (uint32_t i = 0; i < run->n_rows; i++) {
        if (i) printf(",");
        json_row(run, &run->rows[i]);
    }
    eplb_figures f = mean_figures(run, &run->rows[0]);
    printf("],\"bound_seconds\":");
    cli_json_number(stdout, f.bound_seconds);
    printf("}\n");
}
