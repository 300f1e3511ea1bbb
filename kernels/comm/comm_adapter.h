/* comm_adapter.h - what a transport adapter needs of comm.c (not installed; exported all the same, because an
 * adapter may be a library of its own).
 *
 * Owns: making and freeing the wb_comm object. comm.c keeps its scratch memory next to the public struct, so
 * an adapter never allocates a wb_comm itself. Arguments that reach an adapter's functions have been checked:
 * root is a rank, pointers are set where there are bytes, sizes and offsets do not overflow. */
#ifndef WB_COMM_ADAPTER_H
#define WB_COMM_ADAPTER_H

#include "wb_comm.h"

/* `state` stays the adapter's: its ops->close frees it and then calls wb_comm_delete. */
WB_API wb_status wb_comm_new(const wb_comm_ops *ops, int rank, int size, void *state, wb_comm **comm_out);

WB_API void wb_comm_delete(wb_comm *comm); /* NULL is a no-op */

#endif
