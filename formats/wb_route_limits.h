/* wb_route_limits.h - the bounds of a model and a record, which keep sizes in 64 bits and files within what
 * msgpack can hold (not installed). */
#ifndef WB_ROUTE_LIMITS_H
#define WB_ROUTE_LIMITS_H

#include <stddef.h>

#define WB_MAX_EXPERTS 65536u
#define WB_MAX_MODEL_LAYERS 65536u
/* One row fits a chunk of a dump. */
#define WB_MAX_ROW_BYTES ((size_t)1 << 30)
#define WB_MAX_RID_BYTES 1024u
/* Exclusive. The 4 bytes of each token fit one msgpack bin, which has less than 4 GiB. */
#define WB_MAX_TOKENS (1u << 30)

#endif
