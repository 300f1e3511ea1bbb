/* load_internal.h - what the load files share: the ring of passes of each region and where a pass lies
 * in it. */
#ifndef WB_LOAD_INTERNAL_H
#define WB_LOAD_INTERNAL_H

#include "wb_check.h"
#include "wb_load.h"
#include "wb_memory.h"

/* Everything that one handle reserves; more is refused before it is asked for. */
#define WB_LOAD_MAX_BYTES ((size_t)16 << 30)
#define WB_LOAD_MAX_REGIONS 64u

typedef struct wb_load_table {
    wb_load_region shape; /* with a name of its own */
    bool on;
    /* [window + 1][WB_N_PHASES][L][E]: a ring of the closed passes and the one that is open */
    uint32_t *counts;
    bool *filled; /* [window + 1][WB_N_PHASES] whether any count there may differ from zero */
    /* [WB_N_PHASES][L][E] of the closed passes, kept from pass to pass: a window is too long to be added up
     * while others wait. Whole numbers, so exact, whatever has entered and left. */
    uint64_t *sums;
    /* The same, each pass weighted by its age; NULL without decay. Rounded at each pass: where nothing is
     * left in the window, `sums` says so. */
    double *decayed;
} wb_load_table;

struct wb_load {
    wb_owner memory;
    uint32_t n_regions;
    wb_load_table *regions; /* [n_regions] */
    uint32_t window;
    double decay, last_decay; /* of a pass; of one that has left the window: decay to the power of window */
    uint32_t open;            /* place of the open pass in the rings */
    uint32_t passes;          /* closed ones in the window: those just before it */
    uint64_t passes_seen;     /* ever closed */
    bool recorded;            /* the open pass has a row */
    /* [2][L][E + n_shared] of the largest region: what one call counts, before it is taken over */
    uint64_t *tally;
};

static inline size_t wb_load_table_cells(const wb_load_region *shape) {
    return (size_t)shape->n_layers * shape->n_experts;
}

/* u64 cells of a tally: the prompt's rows and the others, shared experts included. */
static inline size_t wb_load_tally_length(const wb_load_region *shape) {
    return 2 * (size_t)shape->n_layers * (shape->n_experts + shape->n_shared);
}

/* [L][E] of one pass and phase. */
static inline uint32_t *wb_load_cells(const wb_load_table *table, uint32_t place, wb_phase phase) {
    return table->counts + ((size_t)place * WB_N_PHASES + (size_t)phase) * wb_load_table_cells(&table->shape);
}

/* Of [WB_N_PHASES]. */
static inline bool *wb_load_filled(const wb_load_table *table, uint32_t place) {
    return table->filled + (size_t)place * WB_N_PHASES;
}

/* Where the closed pass of an age lies; age < passes. */
static inline uint32_t wb_load_place(const wb_load *load, uint32_t age) {
    uint64_t ring = (uint64_t)load->window + 1;
    return (uint32_t)((load->open + ring - 1 - age) % ring);
}

/* Host bytes of such a handle; with the errors of wb_load_open. */
wb_status wb_load_measure(uint32_t n_regions, const wb_load_region *regions, const wb_load_options *options,
                          size_t *bytes_out);

/* The sums of a window whose passes were put there one by one (load_file.c). */
void wb_load_sum_window(wb_load *load);

/* INVALID_ARGUMENT unless the region exists. */
wb_status wb_load_check_region(const wb_load *load, uint32_t region);
/* And the phases are a set that has one at least. */
wb_status wb_load_check_query(const wb_load *load, uint32_t region, uint32_t phases);

const char *wb_phase_name(wb_phase phase); /* "prefill", ... */

/* out [E] = counts of one layer of the pass at `place`, summed over a set of phases. */
void wb_load_layer_counts(const wb_load_table *table, uint32_t place, uint32_t phases, uint32_t layer,
                          double *out);

#endif
