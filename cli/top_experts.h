/* top_experts.h - the most chosen experts of a layer, as tables and pages name them. */
#ifndef CLI_TOP_EXPERTS_H
#define CLI_TOP_EXPERTS_H

#include <stdint.h>

/* top_out [n]: the n of E experts with the largest loads [E], the largest first, the lower id first of equal
 * ones; n <= E. */
void cli_top_experts(const double *loads, uint32_t E, uint32_t n, uint32_t *top_out);

#endif
