/* page_balance.h - balancedness over rank counts, without a placement and after each solver. */
#ifndef WB_CLI_PAGE_BALANCE_H
#define WB_CLI_PAGE_BALANCE_H

#include "report_page/page_plot.h"
#include "stats/stats.h"
#include "wb_solve.h"

enum { BALANCE_MAX_POINTS = 10 }; /* rank counts 2, 4, .. 1024 */

/* The solvers that place by the sum of all loads, which is all of them but microbatch; `none` comes first. */
enum { BALANCE_N_SERIES = WB_EPLB_N_ALGORITHMS };

typedef struct balance {
    uint32_t n_points;
    uint32_t n_ranks[BALANCE_MAX_POINTS];
    uint32_t n_slots[BALANCE_MAX_POINTS];                /* of the solvers */
    double values[BALANCE_N_SERIES][BALANCE_MAX_POINTS]; /* NAN: the solver refuses the shape */
} balance;

/* Solves for powers of two of ranks, at most max_ranks and at most as many as there are experts. Returns the
 * exit code; a failure has been said. */
int balance_collect(const stats *s, uint64_t max_ranks, balance *balance_out);

void page_balance(FILE *out, const balance *b);

#endif
