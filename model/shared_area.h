/* shared_area.h - device memory of each rank of a model that the other ranks' devices reach: told, attached
 * and closed in one place. Mailboxes are such memory, and so are shadow slots.
 *
 * Refuses: what lies in it; ranks that do not reach each other, which use the exchange. */
#ifndef WB_SHARED_AREA_H
#define WB_SHARED_AREA_H

#include "wb_comm.h"
#include "wb_device.h"

/* Zeroed: none. */
typedef struct wb_shared_area {
    wb_device *device; /* NULL: none */
    wb_comm *comm;
    void *own; /* device: this rank's */
    /* device: rank r's as this device addresses it, where each of the two reaches the other's; else NULL */
    void *of_rank[WB_MAX_SHARERS];
    wb_shared_memory *shared; /* host [R], what the ranks told */
    size_t bytes;             /* of this rank's */
} wb_shared_area;

/* Memory of `bytes` bytes on this rank, zeroed, another number on others perhaps. Collective. Where a device
 * cannot share, a rank is alone, or there are too many, the area is none; where a rank has no memory for its
 * own, the area is none on that rank, and nobody reaches it. OUT_OF_MEMORY of the host, PEER. */
wb_status wb_shared_area_open(wb_shared_area *area, wb_device *device, wb_comm *comm, size_t bytes);

/* Detaches the others', then frees this rank's. Not collective: others may still have it attached, and are
 * waited for for a moment, and not after a failure; what they still have then stays until the process
 * ends. */
void wb_shared_area_close(wb_shared_area *area);

/* Whether this rank reaches all others and they it. */
bool wb_shared_area_is_whole(const wb_shared_area *area);

#endif
