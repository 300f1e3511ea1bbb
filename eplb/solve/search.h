/* search.h - one layer's placement while a solver improves it: which expert each slot holds, each expert's
 * share (load over replicas), each rank's load, and the exchanges that lower the most loaded rank. Shared
 * by solve_balanced.c, solve_incremental.c and solve_microbatch.c. Refuses: layers, options, messages. */
#ifndef WB_SEARCH_H
#define WB_SEARCH_H

#include "placement/placement_internal.h"

#define WB_NO_RANK UINT32_MAX

typedef struct wb_search {
    wb_owner memory;
    const wb_placement *frame; /* topology; not its maps */
    const double *loads;       /* [E] */
    uint32_t n_experts, n_slots, n_ranks;
    uint32_t cap;         /* replicas an expert may have: the live ranks that have slots */
    uint32_t n_live;      /* live slots */
    uint32_t *live_slots; /* [n_live] */
    uint32_t *order;      /* [E] experts by descending share, after wb_search_sort */
    double bound;         /* no placement has a lower maximum rank load, as far as the solver knows */
    double mean;          /* load of a live rank */
    uint64_t random;      /* state of wb_random */
    int64_t trials;       /* exchanges that may still be tried */

    /* The state proper, one block, so that a snapshot is one copy. */
    void *state, *snapshot;
    size_t state_bytes;
    double *rank_load;     /* [R] */
    double *share;         /* [E] loads / count */
    uint32_t *count;       /* [E] replicas */
    uint32_t *head;        /* [E] first slot of the expert's list, or WB_NO_SLOT */
    uint32_t *next, *prev; /* [S] */
    int32_t *expert;       /* [S]; WB_NO_EXPERT: empty */
} wb_search;

/* All slots empty, shares as of one replica each. `seed` differs by layer. */
wb_status wb_search_open(const wb_placement *frame, const double *loads, uint64_t seed, int64_t trials,
                         wb_search *search_out);
void wb_search_close(wb_search *search);

void wb_search_clear(wb_search *search); /* all slots empty; counts and shares stay */

void wb_search_save(wb_search *search);
void wb_search_restore(wb_search *search);

static inline double wb_search_share(const wb_search *s, uint32_t slot) {
    return s->expert[slot] < 0 ? 0 : s->share[s->expert[slot]];
}
static inline uint32_t wb_search_rank(const wb_search *s, uint32_t slot) {
    return s->frame->rank_of_slot[slot];
}
static inline uint32_t wb_search_begin(const wb_search *s, uint32_t rank) {
    return s->frame->first_slot[rank];
}
static inline uint32_t wb_search_end(const wb_search *s, uint32_t rank) {
    return s->frame->first_slot[rank + 1];
}

bool wb_search_holds(const wb_search *search, uint32_t rank, int32_t expert); /* false for WB_NO_EXPERT */

/* Puts a replica into an empty slot, counts and rank load as they are: for building a placement; then
 * wb_search_settle. */
void wb_search_put(wb_search *search, uint32_t slot, uint32_t expert);
/* Counts, shares and rank loads from the slots alone. */
void wb_search_settle(wb_search *search);

/* Exchanges what two slots of different ranks hold. */
void wb_search_swap(wb_search *search, uint32_t a, uint32_t b);
/* The slot gets a replica of `expert`; what it held loses one (it has another, or the slot is empty). */
void wb_search_transfer(wb_search *search, uint32_t slot, uint32_t expert);

/* The slot becomes empty; its expert has another. */
void wb_search_vacate(wb_search *search, uint32_t slot);

void wb_search_sort(wb_search *search); /* fills `order` */

uint32_t wb_search_hottest(const wb_search *search); /* the lowest of the most loaded ranks */

/* Exchanges between the most loaded ranks and others until none is above `goal`, nothing found helps, or
 * no trials are left. */
void wb_search_descend(wb_search *search, double goal);

/* Tries n exchanges of random ranks that leave no rank above `max`: other contents, no worse. */
void wb_search_shake(wb_search *search, double max, uint32_t n);

#endif
