/* exact.h - the smallest maximum rank load of a small layer, proven by branch and bound. Refuses: layers
 * above its sizes (it proves nothing there); any heuristic (solve_balanced.c). */
#ifndef WB_EXACT_H
#define WB_EXACT_H

#include "solve/search.h"

/* Starts from what the slots hold and leaves the best placement that was found, with its shares and rank
 * loads. Returns true if no placement has a maximum lower by more than a part in 10^9; false when the layer
 * is too large or `nodes` steps were too few: then the slots hold what they held. `full`: a placement must
 * leave no slot empty but where its rank holds all experts; else it may. Steps are counted, not timed, so
 * that the outcome is the same on every rank and machine. */
bool wb_search_prove(wb_search *search, bool full, int64_t nodes);

#endif
