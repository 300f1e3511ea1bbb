/* uneven.h - where the search begins on a layer whose ranks have different numbers of slots. Refuses: moving
 * anything afterwards (anneal.c, search.c). */
#ifndef WB_UNEVEN_H
#define WB_UNEVEN_H

#include "solve/first_packing.h"

bool wb_uneven(const wb_search *search); /* do live ranks differ in their slots? */

/* Packs by several choices of counts and keeps the lowest maximum, that of what the search holds included.
 * Slots may end empty: as many shares as slots would all be about as large, and a rank of few slots could not
 * carry what one of many must. Spends up to `trials`. */
wb_status wb_place_uneven(wb_packing *packing, int64_t trials);

#endif
