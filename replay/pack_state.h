/* pack_state.h - the handle of a packing, shared by its files (internal). */
#ifndef WB_PACK_STATE_H
#define WB_PACK_STATE_H

#include "wb_check.h"
#include "wb_memory.h"
#include "wb_pack.h"

/* A sequence as ranks tell it each other: these numbers, then its sketch. */
enum { PACK_ROWS, PACK_UPDATE, PACK_HEADER };

struct wb_pack {
    wb_owner memory; /* all arrays */
    wb_route_model model;
    wb_pack_options options;
    uint32_t rank, n_ranks;

    uint32_t n_own;           /* sequences of this rank */
    wb_pack_sequence *own;    /* [n_own] */
    uint32_t n;               /* of all ranks */
    uint32_t *home_start;     /* [R + 1] where each rank's begin */
    wb_pack_place *places;    /* [n] */
    uint32_t width;           /* numbers of a sketch */
    uint32_t n_micro_batches; /* M */
    uint32_t *first;          /* [U + 1] micro-batches of each update */
    double *loads;            /* [M][L][E] */

    wb_pack_item *items;  /* of this rank, by micro-batch; NULL before the move */
    uint32_t *item_start; /* [M + 1] */
    wb_pack_stats stats;
};

/* ---- pack_counts.c ---------------------------------------------------------------------------- */

/* Numbers of a sketch: min(L * E, 256). */
uint32_t wb_pack_sketch_width(const wb_route_model *model);
/* The sketch of counts [L][E] into sketch_out [width]. */
void wb_pack_sketch(const wb_route_model *model, const uint64_t *counts, uint32_t width, int32_t *sketch_out);
/* Fills `loads`: this rank's counts, summed over ranks. Collective. */
wb_status wb_pack_sum_loads(wb_pack *pack, wb_comm *comm);

/* ---- pack_assign.c ---------------------------------------------------------------------------- */

/* Fills rank and micro_batch of all places, and first. all: [n][PACK_HEADER + width]. */
wb_status wb_pack_assign(wb_pack *pack, const int32_t *all);

#endif
