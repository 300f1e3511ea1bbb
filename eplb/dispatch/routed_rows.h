/* routed_rows.h - the check of rows of expert ids that callers hand in, for statistics and dispatch alike. */
#ifndef WB_ROUTED_ROWS_H
#define WB_ROUTED_ROWS_H

#include "wb_dispatch.h"

/* INVALID_ARGUMENT, naming the field, unless the rows can be read; *stride_out: bytes from one to the next.
 * The ids are not looked at: each reader has limits of its own. */
wb_status wb_routed_rows_check(const wb_routed_rows *rows, const char *what, size_t *stride_out);

#endif
