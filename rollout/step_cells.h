/* step_cells.h - what indexers choose in a step (wb_routing.listed): memory for it on the device and on the
 * host, which it crosses to in steps that have a request which asks for it. Of such requests the tokens that
 * are fed again look at what they looked at before, as they go to the experts that their rows name
 * (step_forcing.h). Refuses: what a request keeps of it (cells.h). */
#ifndef WB_STEP_CELLS_H
#define WB_STEP_CELLS_H

#include "cells.h"
#include "sequence.h"
#include "step_batch.h"
#include "wb_workspace.h"

typedef struct wb_step_cells {
    wb_workspace *workspace;
    uint32_t n_columns;  /* 0: no request asks */
    uint32_t k;          /* numbers of a list */
    wb_buffer listed;    /* device int32 [n_columns][n_rows][k] */
    wb_buffer direction; /* device [n_columns][n_rows] wb_row_direction */
    int32_t *host;       /* of host_alloc, as `listed` */
    uint8_t *host_direction;
    void *arrival; /* event: the copy to the host is done */
    bool started;  /* a copy, and not waited for */
    bool wanted;   /* some request of the present step asks */
    bool forced;   /* and feeds tokens again */
    size_t n_rows; /* of the present step */
} wb_step_cells;

/* Bytes on the device of steps of max_tokens; the host has as many. */
wb_status wb_step_cells_bytes(uint32_t n_columns, uint32_t k, size_t max_tokens, size_t *bytes_out);

/* Makes the memory in a zeroed struct; the device's is the workspace's. On failure too it is to be closed,
 * before the workspace. Without columns there is none. */
wb_status wb_step_cells_open(wb_workspace *workspace, uint32_t n_columns, uint32_t k, size_t max_tokens,
                             wb_step_cells *cells);
void wb_step_cells_close(wb_step_cells *cells);

/* The present step feeds `batch`, without padding where it is wanted. */
wb_status wb_step_cells_begin(wb_step_cells *cells, const wb_step_batch *batch);

/* Adds to the routing of the step's forward where the lists are, if they are wanted. */
void wb_step_cells_route(const wb_step_cells *cells, wb_routing *routing);

/* Starts the copy to the host, behind what is on the stream; and waits for it. */
wb_status wb_step_cells_start(wb_step_cells *cells);
wb_status wb_step_cells_wait(wb_step_cells *cells);

/* Of a committed step: n tokens of the sequence, which are the rows from `row` on, were fed for the first
 * time. */
void wb_step_cells_take(const wb_step_cells *cells, wb_sequence *sequence, size_t row, uint32_t n);

#endif
