/* routed_rows.c - see the header. */
#include "dispatch/routed_rows.h"
#include "wb_check.h"

#include <inttypes.h>

wb_status wb_routed_rows_check(const wb_routed_rows *rows, const char *what, size_t *stride_out) {
    if (rows->dtype != WB_U8 && rows->dtype != WB_U16)
        return wb_fail(WB_INVALID_ARGUMENT, "%s rows: dtype: expected u8 or u16, found %s", what,
                       wb_dtype_name(rows->dtype));
    if (rows->K == 0) return wb_fail(WB_INVALID_ARGUMENT, "%s rows: K: expected 1 or more, found 0", what);
    if (rows->T > 0 && !rows->ids) return wb_fail(WB_INVALID_ARGUMENT, "%s rows: ids: NULL", what);
    size_t min_stride = rows->K * wb_dtype_size(rows->dtype);
    size_t stride = rows->row_stride ? rows->row_stride : min_stride;
    if (stride < min_stride || (rows->T > 0 && stride > SIZE_MAX / rows->T))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "%s rows: row_stride: expected %zu..%zu bytes for %" PRIu32 " rows, found %zu", what,
                       min_stride, SIZE_MAX / (rows->T ? rows->T : 1), rows->T, stride);
    *stride_out = stride;
    return WB_OK;
}
