/* stats_report.c - prints the numbers of `waybill stats` as tables or as JSON; see stats.h. */
#include "report/report_json.h"
#include "stats/stats.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

/* Tokens that top-k and top-p kept at a sampled one; there are masked tokens. */
static double mean_kept(const stats *s) {
    return (double)s->kept / (double)s->masked_tokens;
}

/* ---- tables ------------------------------------------------------------------------------------- */

static void print_lengths(const stats *s, const char *name, const uint32_t *sorted, uint64_t sum) {
    printf("%-10s", name);
    for (int q = 0; q < STATS_N_QUANTILES; q++)
        printf(" %8" PRIu32, stats_quantile(s, sorted, stats_quantiles[q]));
    printf(" %10.1f\n", stats_mean(s, sum));
}

static void print_sampling(const stats *s) {
    if (s->with_sampling == 0) return;
    printf("\nsampling of %" PRIu64 " records, kept tokens of %" PRIu64, s->with_sampling, s->with_mask);
    if (s->masked_tokens > 0) printf(" (mean %.1f a sampled token)", mean_kept(s));
    printf("\n");
}

/* Over all layers. */
static void print_weightless(const stats *s) {
    const wb_route_model *m = s->model;
    double sum = 0;
    if (m->n_weightless == 0) return;
    for (uint32_t l = 0; l < m->n_moe_layers; l++) sum += stats_layer_of(s, l).weightless / m->n_moe_layers;
    printf("\nexperts without weights: %" PRIu32 "..%" PRIu32 ", %.2f%% of the choices\n",
           wb_route_weighted(m), m->num_experts - 1, 100 * sum);
}

/* Bounds of the bins as shares of the mean. */
static void print_head(const stats *s) {
    static const char *const bounds[STATS_N_BINS] = {"0", "<1/4", "<1/2", "<1", "<2", "<4", "4.."};
    printf("\n%*s   experts by their load over the mean\n%6s %8s", s->options->ranks ? 24 : 15, "", "layer",
           "repeats");
    if (s->options->ranks) printf(" %8s", "balanced");
    printf("  ");
    for (int b = 0; b < STATS_N_BINS; b++) printf(" %5s", bounds[b]);
    printf("  most chosen\n");
}

static void print_spread(const stats *s, uint32_t l) {
    const stats_layer layer = stats_layer_of(s, l);
    const uint64_t *counts = s->counts + (size_t)l * s->model->num_experts;
    const double total = (double)stats_choices(s, l);
    printf("%6" PRIu32 " %7.2f%%", s->model->moe_layers[l], 100 * layer.repeats);
    if (s->options->ranks) printf(" %8.4f", layer.balancedness);
    printf("  ");
    for (int b = 0; b < STATS_N_BINS; b++) printf(" %5" PRIu32, layer.bins[b]);
    printf(" ");
    for (uint32_t t = 0; t < layer.n_top; t++)
        printf(" %" PRIu32 " %.2f%%%s", layer.top[t], 100 * (double)counts[layer.top[t]] / total,
               t + 1 < layer.n_top ? "," : "");
    printf("%s\n", layer.n_top == 0 ? " -" : "");
}

static void print_indexers(const stats *s) {
    if (s->with_indexer == 0) return;
    printf("\nwhat indexers chose, of %" PRIu64
           " records: positions of a row, and from the first to the last\n"
           "%6s %12s %12s %10s %10s\n",
           s->with_indexer, "layer", "rows", "of none", "listed", "span");
    for (uint32_t column = 0; column < s->n_indexers; column++) {
        const stats_indexer *i = &s->indexers[column];
        printf("%6" PRIu32 " %12" PRIu64 " %12" PRIu64 " %10.2f %10.2f\n", stats_indexer_layer(s, column),
               i->rows, i->empty, stats_mean_listed(i), stats_mean_span(i));
    }
}

void stats_print_tables(const stats *s) {
    printf("records %" PRIu64 ", tokens %" PRIu64 ", valid rows %" PRIu64 "\n", s->records,
           s->prompt_sum + s->sampled_sum, s->rows);
    printf("finish ");
    for (int f = 0; f < STATS_N_FINISH; f++)
        printf(" %s %" PRIu64, wb_finish_name((wb_finish)f), s->finish[f]);
    printf("\n\n%-10s %8s %8s %8s %8s %8s %10s\n", "tokens", "min", "p50", "p90", "p99", "max", "mean");
    print_lengths(s, "prompt", s->prompt, s->prompt_sum);
    print_lengths(s, "sampled", s->sampled, s->sampled_sum);
    print_sampling(s);
    print_weightless(s);
    printf("\n%6s %12s %10s %9s %8s %10s %8s\n", "layer", "choices", "max/mean", "entropy", "top",
           "top share", "unused");
    for (uint32_t l = 0; l < s->model->n_moe_layers; l++) {
        const stats_layer load = stats_layer_of(s, l);
        printf("%6" PRIu32 " %12" PRIu64 " %10.3f %9.4f", s->model->moe_layers[l], stats_choices(s, l),
               load.max_over_mean, load.entropy);
        load.n_top > 0 ? printf(" %8" PRIu32, load.top[0]) : printf(" %8s", "-");
        printf(" %9.2f%% %8" PRIu32 "\n", 100 * load.top_share, load.unused);
    }
    print_head(s);
    for (uint32_t l = 0; l < s->model->n_moe_layers; l++) print_spread(s, l);
    print_indexers(s);
}

/* ---- JSON --------------------------------------------------------------------------------------- */

static void json_lengths(const stats *s, const char *name, const uint32_t *sorted, uint64_t sum) {
    static const char *const keys[STATS_N_QUANTILES] = {"min", "p50", "p90", "p99", "max"};
    printf(",\"%s\":{\"sum\":%" PRIu64, name, sum);
    for (int q = 0; q < STATS_N_QUANTILES; q++)
        printf(",\"%s\":%" PRIu32, keys[q], stats_quantile(s, sorted, stats_quantiles[q]));
    json_pair("mean", stats_mean(s, sum));
    printf("}");
}

static void json_list(const char *key, const uint32_t *numbers, uint64_t n) {
    printf(",\"%s\":[", key);
    for (uint64_t i = 0; i < n; i++) printf("%s%" PRIu32, i ? "," : "", numbers[i]);
    printf("]");
}

static void json_layer(const stats *s, uint32_t l) {
    const stats_layer load = stats_layer_of(s, l);
    printf("%s{\"layer\":%" PRIu32 ",\"choices\":%" PRIu64, l ? "," : "", s->model->moe_layers[l],
           stats_choices(s, l));
    json_pair("max_over_mean", load.max_over_mean);
    json_pair("entropy", load.entropy);
    json_pair("top_expert", load.n_top > 0 ? (double)load.top[0] : (double)NAN);
    json_pair("top_share", load.top_share);
    json_pair("repeats", load.repeats);
    if (s->options->ranks) json_pair("balancedness", load.balancedness);
    if (s->model->n_weightless > 0) json_pair("weightless", load.weightless);
    printf(",\"unused\":%" PRIu32, load.unused);
    json_list("histogram", load.bins, STATS_N_BINS);
    json_list("top", load.top, load.n_top);
    printf(",\"counts\":[");
    for (uint32_t e = 0; e < s->model->num_experts; e++)
        printf("%s%" PRIu64, e ? "," : "", s->counts[(size_t)l * s->model->num_experts + e]);
    printf("]}");
}

/* For a model that has indexers. */
static void json_indexers(const stats *s) {
    if (s->n_indexers == 0) return;
    printf(",\"indexers\":{\"records\":%" PRIu64 ",\"layers\":[", s->with_indexer);
    for (uint32_t column = 0; column < s->n_indexers; column++) {
        const stats_indexer *i = &s->indexers[column];
        printf("%s{\"layer\":%" PRIu32 ",\"rows\":%" PRIu64 ",\"empty\":%" PRIu64, column ? "," : "",
               stats_indexer_layer(s, column), i->rows, i->empty);
        json_pair("mean_listed", stats_mean_listed(i));
        json_pair("mean_span", stats_mean_span(i));
        printf("}");
    }
    printf("]}");
}

void stats_print_json(const stats *s) {
    printf("{\"model\":");
    json_text(s->model->name);
    printf(",\"records\":%" PRIu64 ",\"tokens\":%" PRIu64 ",\"valid_rows\":%" PRIu64 ",\"finish\":{",
           s->records, s->prompt_sum + s->sampled_sum, s->rows);
    for (int f = 0; f < STATS_N_FINISH; f++)
        printf("%s\"%s\":%" PRIu64, f ? "," : "", wb_finish_name((wb_finish)f), s->finish[f]);
    printf("}");
    json_lengths(s, "prompt", s->prompt, s->prompt_sum);
    json_lengths(s, "sampled", s->sampled, s->sampled_sum);
    printf(",\"sampling\":{\"records\":%" PRIu64 ",\"masks\":%" PRIu64, s->with_sampling, s->with_mask);
    if (s->masked_tokens > 0) json_pair("mean_kept", mean_kept(s));
    printf("},\"rows_after_rows\":%" PRIu64, s->pairs);
    if (s->options->ranks) printf(",\"ranks\":%" PRIu64, s->options->ranks);
    printf(",\"layers\":[");
    for (uint32_t l = 0; l < s->model->n_moe_layers; l++) json_layer(s, l);
    printf("]");
    json_indexers(s);
    printf("}\n");
}
