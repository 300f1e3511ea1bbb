/* page_indexer.h - what the indexers of attention layers chose, which `waybill stats` and `waybill diff` have
 * the numbers of. */
#ifndef WB_CLI_PAGE_INDEXER_H
#define WB_CLI_PAGE_INDEXER_H

#include "diff/diff.h"
#include "stats/stats.h"

/* `d`: of a second dump; NULL: there is none. */
void page_indexer(FILE *out, const stats *s, const diff *d);

#endif
