/* stats.c - `waybill stats`: expert load of each MoE layer over valid rows, lengths, finish reasons. */
#include "command.h"
#include "report/report_json.h"
#include "wb_check.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>

typedef struct stats_options {
    bool json;
} stats_options;

static const cli_option table[] = {
    {.name = "json",
     .type = CLI_FLAG,
     .offset = offsetof(stats_options, json),
     .help = "one JSON object instead of tables, with the counts of all experts"},
};

enum { N_FINISH = WB_FINISH_ABORT + 1, N_QUANTILES = 5 };
static const int quantiles[N_QUANTILES] = {0, 50, 90, 99, 100}; /* percent */

typedef struct stats {
    const wb_route_model *model;
    uint64_t records, rows; /* valid rows only */
    uint64_t *counts;       /* [L][E] times an expert was chosen */
    uint64_t finish[N_FINISH];
    uint32_t *prompt, *sampled; /* [records] lengths */
    uint64_t prompt_sum, sampled_sum;
    uint64_t with_sampling,
        with_mask;                /* records that say how they were sampled, and with which kept tokens */
    uint64_t kept, masked_tokens; /* kept tokens, of so many sampled ones */
    wb_owner memory;
} stats;

typedef struct layer_load {
    uint64_t max;         /* times that the most chosen expert was chosen */
    uint32_t top, unused; /* that expert; experts never chosen */
    double max_over_mean, top_share, entropy;
} layer_load;

static layer_load load_of(const stats *s, uint32_t l) {
    uint32_t E = s->model->num_experts;
    const uint64_t *counts = s->counts + (size_t)l * E;
    layer_load load = {.entropy = E > 1 ? 0 : 1};
    uint64_t total = s->rows * s->model->top_k;
    for (uint32_t e = 0; e < E; e++) {
        load.unused += counts[e] == 0;
        if (counts[e] > load.max) load.max = counts[load.top = e];
        double share = total ? (double)counts[e] / (double)total : 0;
        if (share > 0 && E > 1) load.entropy -= share * log(share) / log(E);
    }
    load.top_share = total ? (double)load.max / (double)total : 0;
    load.max_over_mean = load.top_share * E;
    return load;
}

/* Ids index the counts, so they are checked first. */
static wb_status count_rows(stats *s, const wb_record *r) {
    WB_TRY(wb_record_check(s->model, r, true));
    s->rows += wb_record_count_rows(r);
    wb_record_count(s->model, r, 0, r->n_tokens, s->counts);
    return WB_OK;
}

static void count_sampling(stats *s, const wb_record *r) {
    const uint32_t n = r->n_tokens - r->prompt_len;
    s->with_sampling += r->sampling != NULL;
    if (!r->mask_ends || n == 0) return;
    s->with_mask++;
    s->kept += r->mask_ends[n - 1];
    s->masked_tokens += n;
}

static wb_status count_record(stats *s, const wb_record *r) {
    s->prompt[s->records] = r->prompt_len;
    s->sampled[s->records] = r->n_tokens - r->prompt_len;
    s->prompt_sum += r->prompt_len;
    s->sampled_sum += r->n_tokens - r->prompt_len;
    s->finish[r->finish]++;
    count_sampling(s, r);
    s->records++;
    return count_rows(s, r);
}

static int by_value(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static int collect(wb_dump *dump, stats *s) {
    cli_progress progress = cli_progress_start();
    uint64_t n = wb_dump_get_info(dump).records;
    wb_status status = WB_OK;
    for (uint64_t i = 0; i < n && status == WB_OK; i++) {
        wb_record r;
        status = wb_dump_record(dump, i, &r);
        if (status == WB_OK) status = count_record(s, &r);
        wb_dump_release(dump, i);
        cli_progress_records(&progress, i + 1, n, s->prompt_sum + s->sampled_sum);
    }
    cli_progress_end(&progress);
    if (status != WB_OK) return cli_fail();
    qsort(s->prompt, s->records, sizeof *s->prompt, by_value);
    qsort(s->sampled, s->records, sizeof *s->sampled, by_value);
    return CLI_OK;
}

/* The smallest length that `percent` of the records do not exceed; 0 without records. */
static uint32_t quantile(const stats *s, const uint32_t *sorted, int percent) {
    if (s->records == 0) return 0;
    return sorted[(s->records - 1) * (uint64_t)percent / 100];
}

/* Tokens that top-k and top-p kept at a sampled one; there are masked tokens. */
static double mean_kept(const stats *s) {
    return (double)s->kept / (double)s->masked_tokens;
}

static double mean(const stats *s, uint64_t sum) {
    return s->records ? (double)sum / (double)s->records : 0;
}

/* ---- tables ------------------------------------------------------------------------------------- */

static void print_lengths(const stats *s, const char *name, const uint32_t *sorted, uint64_t sum) {
    printf("%-10s", name);
    for (int q = 0; q < N_QUANTILES; q++) printf(" %8" PRIu32, quantile(s, sorted, quantiles[q]));
    printf(" %10.1f\n", mean(s, sum));
}

static void print_sampling(const stats *s) {
    if (s->with_sampling == 0) return;
    printf("\nsampling of %" PRIu64 " records, kept tokens of %" PRIu64, s->with_sampling, s->with_mask);
    if (s->masked_tokens > 0) printf(" (mean %.1f a sampled token)", mean_kept(s));
    printf("\n");
}

static void print_tables(const stats *s) {
    printf("records %" PRIu64 ", tokens %" PRIu64 ", valid rows %" PRIu64 "\n", s->records,
           s->prompt_sum + s->sampled_sum, s->rows);
    printf("finish ");
    for (int f = 0; f < N_FINISH; f++) printf(" %s %" PRIu64, wb_finish_name((wb_finish)f), s->finish[f]);
    printf("\n\n%-10s %8s %8s %8s %8s %8s %10s\n", "tokens", "min", "p50", "p90", "p99", "max", "mean");
    print_lengths(s, "prompt", s->prompt, s->prompt_sum);
    print_lengths(s, "sampled", s->sampled, s->sampled_sum);
    print_sampling(s);
    printf("\n%6s %12s %10s %9s %8s %10s %8s\n", "layer", "choices", "max/mean", "entropy", "top",
           "top share", "unused");
    for (uint32_t l = 0; l < s->model->n_moe_layers; l++) {
        layer_load load = load_of(s, l);
        printf("%6" PRIu32 " %12" PRIu64 " %10.3f %9.4f %8" PRIu32 " %9.2f%% %8" PRIu32 "\n",
               s->model->moe_layers[l], s->rows * s->model->top_k, load.max_over_mean, load.entropy, load.top,
               100 * load.top_share, load.unused);
    }
}

/* ---- JSON --------------------------------------------------------------------------------------- */

static void json_lengths(const stats *s, const char *name, const uint32_t *sorted, uint64_t sum) {
    static const char *const keys[N_QUANTILES] = {"min", "p50", "p90", "p99", "max"};
    printf(",\"%s\":{\"sum\":%" PRIu64, name, sum);
    for (int q = 0; q < N_QUANTILES; q++)
        printf(",\"%s\":%" PRIu32, keys[q], quantile(s, sorted, quantiles[q]));
    json_pair("mean", mean(s, sum));
    printf("}");
}

static void json_layer(const stats *s, uint32_t l) {
    layer_load load = load_of(s, l);
    printf("%s{\"layer\":%" PRIu32 ",\"choices\":%" PRIu64, l ? "," : "", s->model->moe_layers[l],
           s->rows * s->model->top_k);
    json_pair("max_over_mean", load.max_over_mean);
    json_pair("entropy", load.entropy);
    printf(",\"top_expert\":%" PRIu32, load.top);
    json_pair("top_share", load.top_share);
    printf(",\"unused\":%" PRIu32 ",\"counts\":[", load.unused);
    for (uint32_t e = 0; e < s->model->num_experts; e++)
        printf("%s%" PRIu64, e ? "," : "", s->counts[(size_t)l * s->model->num_experts + e]);
    printf("]}");
}

static void print_json(const stats *s) {
    printf("{\"model\":");
    json_text(s->model->name);
    printf(",\"records\":%" PRIu64 ",\"tokens\":%" PRIu64 ",\"valid_rows\":%" PRIu64 ",\"finish\":{",
           s->records, s->prompt_sum + s->sampled_sum, s->rows);
    for (int f = 0; f < N_FINISH; f++)
        printf("%s\"%s\":%" PRIu64, f ? "," : "", wb_finish_name((wb_finish)f), s->finish[f]);
    printf("}");
    json_lengths(s, "prompt", s->prompt, s->prompt_sum);
    json_lengths(s, "sampled", s->sampled, s->sampled_sum);
    printf(",\"sampling\":{\"records\":%" PRIu64 ",\"masks\":%" PRIu64, s->with_sampling, s->with_mask);
    if (s->masked_tokens > 0) json_pair("mean_kept", mean_kept(s));
    printf("},\"layers\":[");
    for (uint32_t l = 0; l < s->model->n_moe_layers; l++) json_layer(s, l);
    printf("]}\n");
}

/* ---- the command -------------------------------------------------------------------------------- */

static wb_status open_memory(stats *s, uint64_t n_records) {
    const size_t n_counts = (size_t)s->model->n_moe_layers * s->model->num_experts;
    WB_TRY(WB_OWN(&s->memory, s->counts, n_counts, "stats"));
    WB_TRY(WB_OWN(&s->memory, s->prompt, n_records, "stats"));
    return WB_OWN(&s->memory, s->sampled, n_records, "stats");
}

static int print_stats(wb_dump *dump, bool json) {
    stats s = {.model = wb_dump_model(dump)};
    int code = open_memory(&s, wb_dump_get_info(dump).records) == WB_OK ? collect(dump, &s) : cli_fail();
    if (code == CLI_OK) json ? print_json(&s) : print_tables(&s);
    wb_owner_close(&s.memory);
    return code;
}

static int run(const cli_command *self, const cli_arguments *arguments) {
    (void)self;
    const stats_options *o = arguments->options;
    wb_dump *dump = NULL;
    int code = cli_open_dump(arguments->dump, &dump);
    if (code == CLI_OK) code = print_stats(dump, o->json);
    cli_close_dump(dump);
    return code;
}

const cli_command cli_stats = {
    .name = "stats",
    .summary = "expert load of each layer, lengths, finish reasons",
    .description =
        "Counts the valid rows of every record: per MoE layer the most loaded expert against the "
        "mean, the entropy of the load (1: even), experts never chosen; lengths and finish reasons "
        "of the records.",
    .options = table,
    .n_options = sizeof table / sizeof table[0],
    .options_size = sizeof(stats_options),
    .run = run,
};
