/* eplb_report.h - what `waybill eplb` prints, and the means, ratios and sums that it prints of. */
#ifndef WB_CLI_EPLB_REPORT_H
#define WB_CLI_EPLB_REPORT_H

#include "eplb/eplb.h"

void eplb_print_tables(const eplb_run *run); /* for people (eplb_text.c) */
void eplb_print_json(const eplb_run *run);   /* the same facts for programs, one object (eplb_json.c) */

/* ---- what both print (eplb_means.c) ---------------------------------------------------------- */

/* Over the steps that have the figure; NAN where none has. */
eplb_figures eplb_mean_figures(const eplb_run *run, const eplb_row *row);

/* Seconds against the shortest that any placement could take; 1 when there is nothing to do, NAN for a step
 * without tokens. */
double eplb_ratio_to_bound(const eplb_figures *figures);

/* Mean over slots and passes of what the router asked for. */
double eplb_tokens_per_slot(const eplb_run *run);

bool eplb_pass_has_counts(const eplb_run *run, uint32_t pass); /* of loads */

double eplb_moved_bytes(const eplb_figures *figures); /* of all kinds of moves */

#endif
