/* cells.h - what indexers chose for the tokens of one request (wb_indexer_rows), as it grows with its rows.
 * Refuses: a step's lists (step_cells.h), who is asked for them (request.c).
 *
 * A token chooses all positions that it sees where they are no more than indexer_k (wb_indexer_count). Of
 * such a choice a record has the count alone, so that what the first tokens of a sequence chose is known of
 * any sequence, and takes no room. */
#ifndef WB_CELLS_H
#define WB_CELLS_H

#include "wb_formats.h"
#include "wb_memory.h"

/* Tokens of a sequence that choose all that there is, the first ones. The rate is known. */
static inline uint64_t wb_cells_n_whole(const wb_route_model *model) {
    return (uint64_t)model->indexer_rate * ((uint64_t)model->indexer_k + 1) - 1;
}

/* Those of one request, of its tokens 0 .. n_rows - 1. */
typedef struct wb_cells {
    const wb_route_model *model; /* whose rate is known; NULL without columns */
    uint32_t n_columns;          /* wb_indexer_columns; 0: not asked for */
    uint32_t n_rows;
    uint32_t *counts; /* [tokens][n_columns], as wb_indexer_rows; the owner's, as `ends` */
    uint64_t *ends;
    uint32_t *positions; /* [room], of which what is not written takes no memory of the machine */
    size_t room;
    wb_indexer_rows returned;
} wb_cells;

/* Room for the positions of so many tokens, freed with free(); `model`, `n_columns`, `counts` and `ends` are
 * set. */
wb_status wb_cells_open(wb_cells *cells, uint32_t n_tokens);

/* Positions of all cells together. */
uint64_t wb_cells_n_positions(const wb_cells *cells);

/* n tokens more, the first ones that there are none of yet: of column c those at lists[c][0 .. n - 1][k],
 * whose columns are `stride` tokens apart, each ascending and then -1. */
void wb_cells_append(wb_cells *cells, const int32_t *lists, size_t stride, uint32_t n);

/* Likewise n tokens that choose all that there is. */
void wb_cells_append_whole(wb_cells *cells, uint32_t n);

/* Likewise the first n tokens of a record that wb_cells_check has passed. */
void wb_cells_append_record(wb_cells *cells, const wb_record *record, uint32_t n);

/* INVALID_ARGUMENT where a record, which wb_record_check has passed by this model, does not have all cells of
 * its first n tokens, or has all that there is one by one, which there is no room for; `rid` is of the
 * request that goes on with it. */
wb_status wb_cells_check(const wb_route_model *model, const wb_record *record, uint32_t n, const char *rid);

/* The list [k] of a token in a column. */
void wb_cells_list(const wb_cells *cells, uint32_t token, uint32_t column, int32_t *list_out);

/* What a record has of them, from token `start` on; NULL: nothing. Nothing is appended after it. */
const wb_indexer_rows *wb_cells_return(wb_cells *cells, uint32_t start);

#endif
