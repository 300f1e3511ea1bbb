/* wb_route_limits.h - the bounds that keep sizes in 64 bits and files in msgpack's limits (not installed). */
#ifndef WB_ROUTE_LIMITS_H
#define WB_ROUTE_LIMITS_H

#include <stddef.h>

#define WB_MAX_EXPERTS 65536u
#define WB_MAX_LAYERS 65536u
#define WB_MAX_ROW_BYTES ((size_t)1 << 30) /* one row fits a chunk */
#define WB_MAX_RID_BYTES 1024u
#define WB_MAX_TOKENS (1u << 30) /* 4 bytes each fit one msgpack bin; exclusive */

#endif
