/* anneal.h - annealing of places and replica counts together, for layers whose ranks have different numbers
 * of slots: there the counts that pack well are not those of water-filling. Refuses: layers to start from
 * (uneven.c). */
#ifndef WB_ANNEAL_H
#define WB_ANNEAL_H

#include "solve/search.h"

/* Swaps, replacements and vacated slots at random, until that many trials are spent. Slots may end empty. The
 * search is left as it was unless its maximum has become lower. */
wb_status wb_search_anneal(wb_search *search, int64_t trials);

#endif
