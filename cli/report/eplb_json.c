/* eplb_json.c - the JSON object of `waybill eplb --json`. */
#include "report/eplb_report.h"
#include "report/report_json.h"

#include <inttypes.h>
#include <math.h>

static void json_files(const cli_list *files) {
    printf(",\"files\":[");
    for (uint32_t f = 0; f < files->n; f++) {
        if (f) printf(",");
        json_text(files->items[f]);
    }
    printf("]");
}

/* What loads do not say: layers and passes without a count, and those of one rank's view (rule 33). */
static void json_missing(const eplb_run *run) {
    const wb_counts_info info = wb_counts_get_info(run->counts);
    const char *comma = "";
    printf(",\"skipped_layers\":[");
    for (uint32_t l = 0; l < info.n_layers; l++) {
        if (info.informed[l]) continue;
        printf("%s%" PRIu32, comma, info.layers[l]);
        comma = ",";
    }
    printf("],\"skipped_passes\":[");
    comma = "";
    for (uint32_t p = 0; p < info.n_passes; p++) {
        if (eplb_pass_has_counts(run, p)) continue;
        printf("%s%" PRIu32, comma, p);
        comma = ",";
    }
    printf("],\"one_rank_layers\":[");
    comma = "";
    for (uint32_t l = 0; l < info.n_layers; l++) {
        uint32_t rank;
        if (!wb_counts_in_one_block(run->counts, l, run->topology->n_ranks, &rank)) continue;
        printf("%s{\"layer\":%" PRIu32 ",\"rank\":%" PRIu32 "}", comma, info.layers[l], rank);
        comma = ",";
    }
    printf("],\"one_rank_experts\":");
    if (run->one_rank.n_layers > 0)
        printf("{\"first\":%" PRIu32 ",\"experts\":%" PRIu32 ",\"layers\":%" PRIu32 "}", run->one_rank.first,
               run->one_rank.n_experts, run->one_rank.n_layers);
    else
        printf("null");
}

static void json_init(const eplb_run *run) {
    if (!run->init_layout) return;
    printf(",\"init\":{\"path\":");
    json_text(run->settings->init_path);
    printf(",\"layout\":");
    json_text(run->init_layout);
    printf(",\"solved_by\":");
    run->init_solved ? json_text(wb_eplb_algorithm_name(run->settings->init_algorithm))
                     : (void)printf("null");
    printf("}");
}

static void json_source(const eplb_run *run) {
    const eplb_source_info *i = &run->source;
    const eplb_settings *s = run->settings;
    printf("{\"traffic\":{\"name\":");
    json_text(i->name);
    printf(",\"layers\":%" PRIu32 ",\"experts\":%" PRIu32, i->n_layers, i->n_experts);
    json_pair("top_k", i->top_k > 0 ? (double)i->top_k : (double)NAN);
    printf(",\"steps\":%" PRIu32 ",\"micro_batches\":%" PRIu32, i->n_steps, i->n_batches);
    if (run->counts) {
        json_files(s->loads);
        printf(",\"passes\":%" PRIu32, i->n_passes);
        json_pair("pass_tokens", i->pass_tokens);
    } else if (s->dump) {
        printf(",\"records\":%" PRIu64 ",\"records_skipped\":%" PRIu64 ",\"valid_rows\":%" PRIu64
               ",\"steps_by\":",
               i->records, i->skipped, i->rows);
        json_text(i->steps_by);
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
    json_number(c->seconds_per_token);
    json_pair("seconds_per_expert", c->seconds_per_expert);
    json_pair("bytes_per_token", c->bytes_per_token);
    json_pair("expert_bytes", c->expert_bytes);
    json_pair("node_bytes_per_second", c->node_bytes_per_second);
    json_pair("network_bytes_per_second", c->network_bytes_per_second);
    json_pair("local_bytes_per_second", c->local_bytes_per_second);
    json_pair("seconds_per_group", c->seconds_per_group);
    printf(",\"hidden\":%" PRIu32 ",\"expert_width\":%" PRIu32 ",\"sizes_assumed\":%s}",
           run->settings->hidden, run->settings->expert_width, run->settings->sizes_given ? "false" : "true");
    json_pair("tokens_per_slot", eplb_tokens_per_slot(run));
}

static void json_figures(const eplb_run *run, const eplb_row *row, const eplb_figures *f) {
    printf("\"balancedness\":");
    json_number(f->balancedness);
    if (run->counts) {
        json_pair("max_over_mean", f->max_over_mean);
        json_pair("max_over_mean_worst", f->max_layer);
    }
    json_pair("balancedness_stale", f->stale);
    json_pair("balancedness_time", f->balancedness_time);
    json_pair("min_layer", f->min_layer);
    json_pair("seconds", f->seconds);
    json_pair("bound_seconds", f->bound_seconds);
    json_pair("ratio_to_bound", eplb_ratio_to_bound(f));
    json_pair("dispatch_node_bytes", f->transfer_node_bytes);
    json_pair("dispatch_network_bytes", f->transfer_network_bytes);
    if (!row->solves) return;
    json_pair("changed_slots", f->changed_slots);
    json_pair("moved_bytes", eplb_moved_bytes(f));
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
        json_text(row->refused);
        printf("}");
        return;
    }
    eplb_figures mean = eplb_mean_figures(run, row);
    json_figures(run, row, &mean);
    printf(",\"steps\":[");
    for (uint32_t s = 0; s < run->source.n_steps; s++) {
        printf(s ? ",{" : "{");
        json_figures(run, row, &row->steps[s]);
        printf("}");
    }
    printf("]}");
}

void eplb_print_json(const eplb_run *run) {
    json_source(run);
    json_shape(run);
    json_init(run);
    if (run->counts) json_missing(run);
    printf(",\"rows\":[");
    for (uint32_t i = 0; i < run->n_rows; i++) {
        if (i) printf(",");
        json_row(run, &run->rows[i]);
    }
    eplb_figures f = eplb_mean_figures(run, &run->rows[0]);
    printf("],\"bound_seconds\":");
    json_number(f.bound_seconds);
    printf("}\n");
}
