/* diff.h - the numbers of `waybill diff`: diff_compare.c makes them, diff_report.c prints them.
 *
 * Records are matched by request id, rows by position. A row is compared where both records have the same
 * tokens up to and with that position: after another token the routes are those of another text. */
#ifndef WB_CLI_DIFF_H
#define WB_CLI_DIFF_H

#include "command.h"
#include "wb_formats.h"
#include "wb_memory.h"

/* Bucket 0 has positions below 16, and each one after it goes on to twice the bound of the one before. */
enum { DIFF_N_BUCKETS = 27, DIFF_FIRST_BOUND = 16 };

/* Of rows, or of a layer's parts of rows. */
typedef struct diff_sums {
    uint64_t rows;
    uint64_t exact;  /* the same ids in the same order */
    uint64_t same;   /* the same ids in any order */
    uint64_t common; /* ids of B that are among those of A: K of a layer that is the same */
} diff_sums;

/* Rows of tokens that A fed under one weight version and B under another. */
typedef struct diff_versions {
    bool has_a, has_b; /* a span has the position */
    uint64_t a, b;
    diff_sums sums;
} diff_versions;

/* Of the choices of one indexer, in rows that both records have. */
typedef struct diff_indexer {
    uint64_t rows, same; /* the same positions */
    double overlap;      /* sum of the shares of A's positions that are B's */
} diff_indexer;

/* KL(A || B) from the log-probabilities of the tokens that A sampled. */
typedef struct diff_kl {
    uint64_t tokens, outside;
    double k1, k3; /* sums */
} diff_kl;

/* The first place, in the order of A's records, where both differ. */
typedef struct diff_place {
    char *rid; /* NULL: there is none */
    uint32_t position, layer;
    uint32_t n;      /* K of the layer */
    uint32_t *a, *b; /* [n] ids; of a token: [1], or NULL where the record has ended */
} diff_place;

typedef struct diff {
    const wb_route_model *model;                /* A's, which B's is equal to */
    uint64_t both, only_a, only_b, same_tokens; /* records */
    uint64_t rows_only_a, rows_only_b,
        rows_not_compared; /* valid rows: B or A has none; after other tokens */
    diff_sums all;
    diff_sums *layers; /* [L] */
    diff_sums buckets[DIFF_N_BUCKETS];
    diff_versions *versions; /* [n_versions] ascending by A's version, then B's; owner: free() */
    size_t n_versions, versions_capacity, latest;
    diff_place first, first_token;
    /* What indexers chose: rows in both, and in one of them; [n_indexers] of the layers that have one of
     * their own. Of first_indexer rid, position and layer alone are set. */
    uint64_t indexer_rows, indexer_only_a, indexer_only_b;
    uint32_t n_indexers;
    diff_indexer *indexers;
    diff_place first_indexer;
    diff_kl kl, kl_sampling; /* at temperature 1; of the distributions that were sampled from */
    wb_owner memory;
} diff;

/* Reads both dumps. A failure has been said; the caller closes what is there in any case. */
int diff_compare(wb_dump *a, wb_dump *b, diff *diff_out);
void diff_close(diff *d);

/* ---- what indexers chose (diff_indexer.c) ------------------------------------------------------ */

wb_status diff_open_indexers(diff *d);
/* Of rows at positions [0, n), whose tokens are the same in both. */
wb_status diff_compare_indexers(diff *d, const wb_record *a, const wb_record *b, uint32_t n);
uint32_t diff_indexer_layer(const diff *d, uint32_t column); /* the model's layer */

/* ---- figures of the sums (diff_report.c) -------------------------------------------------------- */

double diff_share(uint64_t part, uint64_t whole); /* NAN of nothing, as are the next two */
double diff_mean(double sum, uint64_t n);
/* Mean share of A's ids that are B's, of `width` ids a row: K of a layer, diff_row_width of whole rows. */
double diff_overlap(const diff_sums *s, uint64_t width);
uint64_t diff_row_width(const diff *d);
/* Bucket b has the positions from diff_bucket_from of b to that of b + 1. */
uint64_t diff_bucket_from(int b);

void diff_print_tables(const diff *d);
void diff_print_json(const diff *d);

#endif
