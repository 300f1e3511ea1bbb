/* page_load.h - the sections of the report that `waybill stats` has the numbers of. */
#ifndef WB_CLI_PAGE_LOAD_H
#define WB_CLI_PAGE_LOAD_H

#include "stats/stats.h"

#include <stdio.h>

void page_summary(FILE *out, const stats *s);

/* The heat map, layer by expert, with its counts and the figures of each layer as tables. */
void page_load(FILE *out, const stats *s);

#endif
