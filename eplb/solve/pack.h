/* pack.h - a first placement of one layer: replica counts by water-filling, packing by descending share.
 * Refuses: improving it (search.c, anneal.c). */
#ifndef WB_PACK_H
#define WB_PACK_H

#include "solve/heap.h"
#include "solve/search.h"

typedef struct wb_packing {
    wb_search *search;
    uint32_t *items;  /* [E] scratch */
    uint32_t *filled; /* [R] slots of the rank that are in use or closed */
    wb_heap ranks;    /* live ranks with room, the least loaded first */
    uint32_t *used;   /* [R] ranks off the heap since they got a replica of the expert */
    bool *alone; /* [E] the expert shares its ranks with no other; its count is fixed; none to begin with */
} wb_packing;

/* Memory: the search's. */
wb_status wb_packing_open(wb_search *search, wb_packing *packing_out);

/* Of two experts, does a's share come first? Of equals the one with fewer replicas, then the lower. */
bool wb_carries_more(const wb_search *search, uint32_t a, uint32_t b);

/* Fills count and share: a replica at a time to the expert whose replicas carry most, until `slots` are used
 * or every expert is on each of `cap` ranks. No other counts have a smaller maximum share. Experts that are
 * alone keep their counts, which are not among `slots`. */
void wb_choose_counts(wb_packing *packing, uint32_t slots, uint32_t cap);

/* By the counts as they are, into slots that are emptied before. Uneven slots may leave a replica without a
 * place: then the count is lower. */
void wb_pack(wb_packing *packing);

/* Empty slots get the expert with the largest share of those that their rank does not hold and that do not
 * take it above `max`. Returns how many were filled. */
uint32_t wb_fill_empty_slots(wb_search *search, double max);

#endif
