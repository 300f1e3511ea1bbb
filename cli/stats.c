/* stats.c - `waybill stats`: expert load of each MoE layer over valid rows, lengths, finish reasons. */
#include "cli.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

enum { N_FINISH = WB_FINISH_ABORT + 1, N_QUANTILES = 5 };
static const int quantiles[N_QUANTILES] = {0, 50, 90, 99, 100}; /* percent */

typedef struct stats {
    const wb_route_model *model;
    uint64_t records, rows; /* valid rows only */
    uint64_t *counts;       /* [L][E] times an expert was chosen */
    uint64_t finish[N_FINISH];
    uint32_t *prompt, *sampled; /* [records] lengths */
    uint64_t prompt_sum, sampled_sum;
} stats;

typedef struct layer_load {
    uint64_t most;
    uint32_t top, unused; /* the most chosen expert; experts never chosen */
    double max_over_mean, top_share, entropy;
} layer_load;

static layer_load load_of(const stats *s, uint32_t l) {
    uint32_t E = s->model->num_experts;
    const uint64_t *counts = s->counts + (size_t)l * E;
    layer_load load = {.entropy = E > 1 ? 0 : 1};
    uint64_t total = s->rows * s->model->top_k;
    for (uint32_t e = 0; e < E; e++) {
        load.unused += counts[e] == 0;
        if (counts[e] > load.most) load.most = counts[load.top = e];
        double share = total ? (double)counts[e] / (double)total : 0;
        if (share > 0 && E > 1) load.entropy -= share * log(share) / log(E);
    }
    load.top_share = total ? (double)load.most / (double)total : 0;
    load.max_over_mean = load.top_share * E;
    return load;
}

static wb_status count_rows(stats *s, const wb_record *r) {
    const wb_route_model *m = s->model;
    wb_dtype dtype = wb_route_dtype(m->num_experts);
    wb_status status = wb_record_check(m, r, true); /* ids index the counts */
    if (status != WB_OK) return status;
    for (uint32_t i = 0; i < r->n_routes; i++) {
        for (uint32_t t = 0; t < r->routes[i].rows; t++) {
            const void *row = wb_record_row(m, r, r->routes[i].start + t);
            if (!row) continue;
            s->rows++;
            for (uint32_t l = 0; l < m->n_moe_layers; l++)
                for (uint32_t k = 0; k < m->top_k; k++)
                    s->counts[(size_t)l * m->num_experts +
                              wb_route_id(row, dtype, (size_t)l * m->top_k + k)]++;
        }
    }
    return WB_OK;
}

static wb_status count_record(stats *s, const wb_record *r) {
    s->prompt[s->records] = r->prompt_len;
    s->sampled[s->records] = r->n_tokens - r->prompt_len;
    s->prompt_sum += r->prompt_len;
    s->sampled_sum += r->n_tokens - r->prompt_len;
    s->finish[r->finish]++;
    s->records++;
    return count_rows(s, r);
}

static int by_value(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static int collect(wb_dump *dump, stats *s) {
    uint64_t n = wb_dump_get_info(dump).records;
    for (uint64_t i = 0; i < n; i++) {
        wb_record r;
        if (wb_dump_record(dump, i, &r) != WB_OK || count_record(s, &r) != WB_OK) return cli_fail();
        wb_dump_release(dump, i);
    }
    qsort(s->prompt, s->records, sizeof *s->prompt, by_value);
    qsort(s->sampled, s->records, sizeof *s->sampled, by_value);
    return CLI_OK;
}

/* The least length that `percent` of the records do not exceed; 0 without records. */
static uint32_t quantile(const stats *s, const uint32_t *sorted, int percent) {
    if (s->records == 0) return 0;
    return sorted[(s->records - 1) * (uint64_t)percent / 100];
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

static void print_tables(const stats *s) {
    printf("records %" PRIu64 ", tokens %" PRIu64 ", valid rows %" PRIu64 "\n", s->records,
           s->prompt_sum + s->sampled_sum, s->rows);
    printf("finish ");
    for (int f = 0; f < N_FINISH; f++) printf(" %s %" PRIu64, wb_finish_name((wb_finish)f), s->finish[f]);
    printf("\n\n%-10s %8s %8s %8s %8s %8s %10s\n", "tokens", "min", "p50", "p90", "p99", "max", "mean");
    print_lengths(s, "prompt", s->prompt, s->prompt_sum);
    print_lengths(s, "sampled", s->sampled, s->sampled_sum);
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

static void json_pair(const char *key, double value) {
    printf(",\"%s\":", key);
    cli_json_number(stdout, value);
}

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
    cli_json_text(stdout, s->model->name);
    printf(",\"records\":%" PRIu64 ",\"tokens\":%" PRIu64 ",\"valid_rows\":%" PRIu64 ",\"finish\":{",
           s->records, s->prompt_sum + s->sampled_sum, s->rows);
    for (int f = 0; f < N_FINISH; f++)
        printf("%s\"%s\":%" PRIu64, f ? "," : "", wb_finish_name((wb_finish)f), s->finish[f]);
    printf("}");
    json_lengths(s, "prompt", s->prompt, s->prompt_sum);
    json_lengths(s, "sampled", s->sampled, s->sampled_sum);
    printf(",\"layers\":[");
    for (uint32_t l = 0; l < s->model->n_moe_layers; l++) json_layer(s, l);
    printf("]}\n");
}

int cli_stats(const cli_command *self, int argc, char **argv) {
    bool json = false;
    const cli_option options[] = {{.name = "json", .flag = &json}, {0}};
    const char *path = NULL;
    int code;
    if (!cli_parse(self, argc, argv, options, &path, &code)) return code;
    wb_dump *dump = NULL;
    if (wb_dump_open(path, &dump) != WB_OK) return cli_fail();
    wb_dump_info info = wb_dump_get_info(dump);
    stats s = {.model = wb_dump_model(dump)};
    s.counts = calloc((size_t)s.model->n_moe_layers * s.model->num_experts, sizeof *s.counts);
    s.prompt = calloc(info.records + 1, sizeof *s.prompt);
    s.sampled = calloc(info.records + 1, sizeof *s.sampled);
    if (!s.counts || !s.prompt || !s.sampled) {
        wb_fail(WB_OUT_OF_MEMORY, "stats: no memory");
        code = cli_fail();
    } else {
        code = collect(dump, &s);
    }
    if (code == CLI_OK) json ? print_json(&s) : print_tables(&s);
    if (code == CLI_OK && info.lost_bytes > 0)
        fprintf(stderr, "waybill: cut: %" PRIu64 " bytes are lost, first in %s\n", info.lost_bytes,
                info.lost_where);
    free(s.counts);
    free(s.prompt);
    free(s.sampled);
    wb_dump_close(dump);
    return code;
}
