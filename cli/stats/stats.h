/* stats.h - the numbers of `waybill stats`: stats_collect.c counts them, stats_report.c prints them. */
#ifndef WB_CLI_STATS_H
#define WB_CLI_STATS_H

#include "wb_formats.h"
#include "wb_memory.h"

enum { STATS_N_FINISH = WB_FINISH_ABORT + 1, STATS_N_QUANTILES = 5, STATS_N_BINS = 7 };

typedef struct stats_options {
    bool json;
    uint64_t ranks, top; /* 0: no ranks */
} stats_options;

/* Of the choices of one indexer. */
typedef struct stats_indexer {
    uint64_t rows;
    uint64_t empty;  /* rows that chose nothing */
    uint64_t listed; /* positions chosen */
    uint64_t span;   /* sum, over the rows that chose something, of positions from the first to the last */
} stats_indexer;

typedef struct stats {
    const wb_route_model *model;
    const stats_options *options;
    uint64_t records, rows; /* valid rows only */
    uint64_t *counts;       /* [L][E] times an expert was chosen */
    uint64_t pairs;         /* valid rows with a valid row at the position before */
    uint64_t *repeats;      /* [L] of these, rows whose experts are those of the row before, in any order */
    uint64_t finish[STATS_N_FINISH];
    uint32_t *prompt, *sampled; /* [records] lengths, ascending */
    uint64_t prompt_sum, sampled_sum;
    /* Records that say how they were sampled, and with which kept tokens. */
    uint64_t with_sampling, with_mask;
    uint64_t kept, masked_tokens; /* kept tokens, of so many sampled ones */
    uint64_t with_indexer;        /* records that say what indexers chose */
    uint32_t n_indexers;          /* layers that have one of their own */
    stats_indexer *indexers;      /* [n_indexers] */
    uint32_t *top;                /* [options.top] scratch of stats_layer_of */
    double *loads;                /* [E] likewise */
    wb_owner memory;
} stats;

typedef struct stats_layer {
    uint64_t max;      /* times that the most chosen expert was chosen */
    uint32_t unused;   /* experts never chosen */
    double weightless; /* share of the choices of experts without weights, of which balancedness has none */
    double max_over_mean, top_share, entropy;
    double balancedness;         /* over the ranks, mean / max of their loads; 1 without load */
    double repeats;              /* share of the pairs */
    uint32_t bins[STATS_N_BINS]; /* experts by their load over the mean: 0, then below the bounds */
    uint32_t n_top;              /* options.top, or fewer where so many were never chosen */
    const uint32_t *top;         /* [n_top] the most chosen experts, the lower id first of equal ones */
} stats_layer;

/* The upper bounds of all bins but the last, in quarters of the mean; bin 0 has loads of 0. */
extern const uint32_t stats_bin_quarters[STATS_N_BINS - 1];
extern const int stats_quantiles[STATS_N_QUANTILES]; /* percent */

/* Reads the whole dump. Returns the exit code; a failure has been said. The memory is the caller's to close,
 * after a failure too. */
int stats_collect(wb_dump *dump, const stats_options *options, stats *stats_out);

/* All choices of MoE layer l. */
uint64_t stats_choices(const stats *s, uint32_t l);

/* Of MoE layer l; `top` is overwritten by the next call. */
stats_layer stats_layer_of(const stats *s, uint32_t l);

/* The bin of an expert that was chosen `count` times, of `total` choices among E experts. */
uint32_t stats_bin_of(uint64_t count, uint64_t total, uint32_t E);

/* The smallest length that `percent` of the records do not exceed; 0 without records. */
uint32_t stats_quantile(const stats *s, const uint32_t *sorted, int percent);
double stats_mean(const stats *s, uint64_t sum); /* over the records; 0 without */

/* Of an indexer: positions of a row, and from its first to its last; 0 of nothing. */
double stats_mean_listed(const stats_indexer *indexer);
double stats_mean_span(const stats_indexer *indexer);
uint32_t stats_indexer_layer(const stats *s, uint32_t column); /* the model's layer */

void stats_print_tables(const stats *s);
void stats_print_json(const stats *s);

#endif
