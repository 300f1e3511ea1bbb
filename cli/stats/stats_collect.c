/* stats_collect.c - counts what `waybill stats` prints, a record at a time; see stats.h. */
#include "command.h"
#include "stats/stats.h"
#include "top_experts.h"
#include "wb_check.h"
#include "wb_placement.h"

#include <math.h>
#include <stdlib.h>

const uint32_t stats_bin_quarters[STATS_N_BINS - 1] = {0, 1, 2, 4, 8, 16};
const int stats_quantiles[STATS_N_QUANTILES] = {0, 50, 90, 99, 100};

/* ---- a layer ------------------------------------------------------------------------------------ */

uint64_t stats_choices(const stats *s, uint32_t l) {
    return s->rows * wb_route_layer_k(s->model, l);
}

/* Experts in blocks, one a rank, as they lie without a placement; those without weights lie nowhere. */
static double balancedness_of(const stats *s, const uint64_t *counts) {
    const uint32_t R = (uint32_t)s->options->ranks, E = wb_route_weighted(s->model);
    uint64_t max = 0, total = 0;
    for (uint32_t r = 0; r < R; r++) {
        uint64_t load = 0;
        for (uint32_t e = wb_block_begin(E, R, r); e < wb_block_begin(E, R, r + 1); e++) load += counts[e];
        total += load;
        max = load > max ? load : max;
    }
    return max > 0 ? (double)total / (double)R / (double)max : 1;
}

/* Compares 4 * count with quarters * mean in whole numbers: mean = total / E. */
uint32_t stats_bin_of(uint64_t count, uint64_t total, uint32_t E) {
    uint32_t bin = count > 0;
    while (bin > 0 && bin < STATS_N_BINS - 1 &&
           4 * (double)count * E >= (double)stats_bin_quarters[bin] * (double)total)
        bin++;
    return bin;
}

stats_layer stats_layer_of(const stats *s, uint32_t l) {
    const uint32_t E = s->model->num_experts;
    const uint64_t *counts = s->counts + (size_t)l * E, total = stats_choices(s, l);
    uint64_t weightless = 0;
    stats_layer layer = {.entropy = E > 1 ? 0 : 1, .top = s->top};
    for (uint32_t e = 0; e < E; e++) {
        layer.unused += counts[e] == 0;
        if (e >= wb_route_weighted(s->model)) weightless += counts[e];
        layer.bins[stats_bin_of(counts[e], total, E)]++;
        s->loads[e] = (double)counts[e];
        if (counts[e] > layer.max) layer.max = counts[e];
        const double share = total ? (double)counts[e] / (double)total : 0;
        if (share > 0 && E > 1) layer.entropy -= share * log(share) / log(E);
    }
    layer.top_share = total ? (double)layer.max / (double)total : 0;
    layer.weightless = total ? (double)weightless / (double)total : 0;
    layer.max_over_mean = layer.top_share * E;
    layer.repeats = s->pairs ? (double)s->repeats[l] / (double)s->pairs : 0;
    if (s->options->ranks > 0) layer.balancedness = balancedness_of(s, counts);
    layer.n_top = (uint32_t)s->options->top < E - layer.unused ? (uint32_t)s->options->top : E - layer.unused;
    cli_top_experts(s->loads, E, layer.n_top, s->top);
    return layer;
}

/* ---- records ------------------------------------------------------------------------------------ */

/* Ids index the counts, so they are checked first. */
static wb_status count_rows(stats *s, const wb_record *r) {
    WB_TRY(wb_record_check(s->model, r, true));
    s->rows += wb_record_count_rows(r);
    wb_record_count(s->model, r, 0, r->n_tokens, s->counts);
    s->pairs += wb_record_count_repeats(s->model, r, s->repeats);
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

static void count_indexer(stats *s, const wb_record *r) {
    s->with_indexer += r->indexer != NULL;
    for (uint32_t t = 0; r->indexer && t < r->indexer->rows; t++)
        for (uint32_t column = 0; column < s->n_indexers; column++) {
            stats_indexer *to = &s->indexers[column];
            wb_indexer_choice choice = {0};
            (void)wb_indexer_at(s->model, r->indexer, r->indexer->start + t, column, &choice);
            to->rows++;
            to->empty += choice.count == 0;
            to->listed += choice.count;
            if (choice.count > 0)
                to->span +=
                    wb_indexer_position(&choice, choice.count - 1) - wb_indexer_position(&choice, 0) + 1;
        }
}

static wb_status count_record(stats *s, const wb_record *r) {
    s->prompt[s->records] = r->prompt_len;
    s->sampled[s->records] = r->n_tokens - r->prompt_len;
    s->prompt_sum += r->prompt_len;
    s->sampled_sum += r->n_tokens - r->prompt_len;
    s->finish[r->finish]++;
    count_sampling(s, r);
    s->records++;
    WB_TRY(count_rows(s, r));
    count_indexer(s, r);
    return WB_OK;
}

static int by_value(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static int read_records(wb_dump *dump, stats *s) {
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

/* ---- all of them -------------------------------------------------------------------------------- */

/* The smallest length that `percent` of the records do not exceed; 0 without records. */
uint32_t stats_quantile(const stats *s, const uint32_t *sorted, int percent) {
    if (s->records == 0) return 0;
    return sorted[(s->records - 1) * (uint64_t)percent / 100];
}

double stats_mean(const stats *s, uint64_t sum) {
    return s->records ? (double)sum / (double)s->records : 0;
}

double stats_mean_listed(const stats_indexer *i) {
    return i->rows > 0 ? (double)i->listed / (double)i->rows : 0;
}

double stats_mean_span(const stats_indexer *i) {
    return i->rows > i->empty ? (double)i->span / (double)(i->rows - i->empty) : 0;
}

uint32_t stats_indexer_layer(const stats *s, uint32_t column) {
    return s->model->indexer_layers[wb_indexer_layer(s->model, column)];
}

static wb_status open_memory(stats *s, uint64_t n_records) {
    const size_t L = s->model->n_moe_layers;
    s->n_indexers = wb_indexer_columns(s->model);
    WB_TRY(WB_OWN(&s->memory, s->indexers, s->n_indexers, "stats"));
    WB_TRY(WB_OWN(&s->memory, s->counts, L * s->model->num_experts, "stats"));
    WB_TRY(WB_OWN(&s->memory, s->repeats, L, "stats"));
    WB_TRY(WB_OWN(&s->memory, s->top, s->options->top, "stats"));
    WB_TRY(WB_OWN(&s->memory, s->loads, s->model->num_experts, "stats"));
    WB_TRY(WB_OWN(&s->memory, s->prompt, n_records, "stats"));
    return WB_OWN(&s->memory, s->sampled, n_records, "stats");
}

int stats_collect(wb_dump *dump, const stats_options *options, stats *s) {
    *s = (stats){.model = wb_dump_model(dump), .options = options};
    if (open_memory(s, wb_dump_get_info(dump).records) != WB_OK) return cli_fail();
    return read_records(dump, s);
}
