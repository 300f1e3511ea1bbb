/* page_mismatch.h - how the routes of a second dump differ, which `waybill diff` has the numbers of. */
#ifndef WB_CLI_PAGE_MISMATCH_H
#define WB_CLI_PAGE_MISMATCH_H

#include "diff/diff.h"

/* `against` is the path of the second dump. OUT_OF_MEMORY. */
wb_status page_mismatch(FILE *out, const diff *d, const char *against);

#endif
