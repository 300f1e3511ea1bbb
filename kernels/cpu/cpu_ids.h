/* cpu_ids.h - reading, writing and checking expert ids in place, for the ops that take a wb_ids and for the
 * plan of a step. */
#ifndef WB_CPU_IDS_H
#define WB_CPU_IDS_H

#include "device_fault.h"
#include "wb_check.h"

#include <inttypes.h>

enum { MAX_K = 64, MAX_U8_EXPERTS = 256 };

static inline uint32_t id_get(wb_ids ids, int64_t t, int32_t k) {
    int64_t index = t * ids.stride + k;
    return ids.dtype == WB_U8 ? ((const uint8_t *)ids.data)[index] : ((const uint16_t *)ids.data)[index];
}

static inline void id_set(wb_ids ids, int64_t t, int32_t k, uint32_t id) {
    int64_t index = t * ids.stride + k;
    if (ids.dtype == WB_U8)
        ((uint8_t *)ids.data)[index] = (uint8_t)id;
    else
        ((uint16_t *)ids.data)[index] = (uint16_t)id;
}

static inline wb_status check_view(const char *what, wb_ids ids, int32_t E) {
    if (ids.dtype != WB_U16 && (ids.dtype != WB_U8 || E > MAX_U8_EXPERTS))
        return wb_fail(WB_INVALID_ARGUMENT, "%s: expected %s ids for %d experts, found %s", what,
                       E > MAX_U8_EXPERTS ? "u16" : "u8 or u16", E, wb_dtype_name(ids.dtype));
    return WB_OK;
}

/* Every id of op's view `ids` below E. */
static inline wb_status check_ids(wb_op op, const char *what, wb_ids ids, int64_t T, int32_t K, int32_t E) {
    WB_TRY(check_view(what, ids, E));
    for (int64_t t = 0; t < T; t++)
        for (int32_t k = 0; k < K; k++) {
            const wb_fault fault = {
                .kind = WB_FAULT_ID, .op = op, .row = t, .choice = k, .limit = E, .found = id_get(ids, t, k)};
            if (fault.found >= E) return wb_fault_report(&fault);
        }
    return WB_OK;
}

#endif
