/* pack_search.h - sequences into micro-batches and over ranks: the problem without ranks to talk to and
 * without records (internal). */
#ifndef WB_PACK_SEARCH_H
#define WB_PACK_SEARCH_H

#include "wb_memory.h"

/* The sequences of one update. */
typedef struct pack_problem {
    uint32_t n, n_ranks;
    int64_t max_rows;
    const uint32_t *rows;    /* [n] 1..max_rows */
    const double *attention; /* [n] ascending with rows */
    uint32_t width;          /* numbers of a sketch */
    const int32_t *sketches; /* [n][width] */
    double unevenness;       /* cost of a distance from the step's counts */
    uint64_t seed;
} pack_problem;

typedef struct pack_answer {
    uint32_t n_micro_batches;
    double mean_attention, max_attention; /* sums over micro-batches, of ranks */
    double distance_before, distance;     /* sums over micro-batches: of the packing to begin with, and now */
} pack_answer;

/* ---- pack_start.c ----------------------------------------------------------------------------- */

/* order_out [n]: sequences by descending rows, then ascending number. */
wb_status wb_pack_order(const pack_problem *problem, uint32_t *order_out);
/* A packing that does not look at sketches: bins_out [n] as wb_pack_search's. */
wb_status wb_pack_start(const pack_problem *problem, const uint32_t *order, uint32_t *bins_out,
                        uint32_t *n_micro_batches_out);

/* ---- pack_search.c ---------------------------------------------------------------------------- */

/* bins_out [n]: micro-batch * n_ranks + rank. The same on every machine. OUT_OF_MEMORY is the only
 * failure. */
wb_status wb_pack_search(const pack_problem *problem, uint32_t *bins_out, pack_answer *answer_out);

/* The cost of a distance under `per_choice`: that of wb_pack_cost. */
double wb_pack_unevenness(double per_choice, uint32_t n_ranks, uint32_t n_layers);

#endif
