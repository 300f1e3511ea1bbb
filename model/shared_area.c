/* shared_area.c - see shared_area.h. */
#include "shared_area.h"
#include "wb_check.h"
#include "wb_workspace.h"

#include <stdlib.h>

/* Ranks close what they have one soon after the other; one that does so much later, or never, is not waited
 * for. */
#define CLOSE_SECONDS 2.0

/* What a rank tells the others. */
typedef struct offer {
    int32_t status; /* OK: it has memory */
    wb_shared_memory shared;
} offer;

static void attach_all(wb_shared_area *area, const offer *offers) {
    const int32_t rank = wb_comm_rank(area->comm), R = wb_comm_size(area->comm);
    for (int32_t r = 0; r < R; r++) {
        area->shared[r] = offers[r].shared;
        if (r == rank || offers[r].status != WB_OK || !area->own) continue;
        WB_IGNORE(area->device->memory_attach(area->device, &area->shared[r], rank, &area->of_rank[r]));
    }
}

static void detach(wb_shared_area *area, int32_t r) {
    area->device->memory_detach(area->device, &area->shared[r], wb_comm_rank(area->comm), area->of_rank[r]);
    area->of_rank[r] = NULL;
}

/* A pair reaches each other both ways or not at all. Collective. attached: [R][R], of each rank whom it
 * reaches. */
static wb_status keep_pairs(wb_shared_area *area, uint8_t *attached) {
    const int32_t rank = wb_comm_rank(area->comm), R = wb_comm_size(area->comm);
    uint8_t mine[WB_MAX_SHARERS];
    for (int32_t r = 0; r < R; r++) mine[r] = area->of_rank[r] ? 1 : 0;
    WB_TRY(wb_comm_all_gather(area->comm, mine, (size_t)R, attached));
    for (int32_t r = 0; r < R; r++)
        if (!attached[r * R + rank]) detach(area, r);
    return WB_OK;
}

/* Collective. offers: [R]; attached: [R][R]. */
static wb_status meet(wb_shared_area *area, offer *offers, uint8_t *attached) {
    offer mine = {0};
    mine.status = (int32_t)area->device->memory_share(area->device, area->bytes, &area->own, &mine.shared);
    if (mine.status == WB_OK)
        wb_count_held(area->device, wb_shared_bytes(area->bytes));
    else
        area->own = NULL;
    WB_TRY(wb_comm_all_gather(area->comm, &mine, sizeof mine, offers));
    attach_all(area, offers);
    return keep_pairs(area, attached);
}

wb_status wb_shared_area_open(wb_shared_area *area, wb_device *device, wb_comm *comm, size_t bytes) {
    const size_t R = (size_t)wb_comm_size(comm);
    offer *offers = NULL;
    uint8_t *attached = NULL;
    *area = (wb_shared_area){0};
    if (!device->memory_share || R < 2 || R > WB_MAX_SHARERS) return WB_OK;
    *area = (wb_shared_area){.device = device, .comm = comm, .bytes = bytes};
    wb_status status = WB_NEW(offers, R, "shared memory");
    if (status == WB_OK) status = WB_NEW(attached, R * R, "shared memory");
    if (status == WB_OK) status = WB_NEW(area->shared, R, "shared memory");
    status = wb_comm_agree(comm, status);
    if (status == WB_OK) status = meet(area, offers, attached);
    free(offers);
    free(attached);
    if (status != WB_OK || !area->own) wb_shared_area_close(area);
    return status;
}

/* After a failure others may still be at a step, and store: then nothing is waited for. */
void wb_shared_area_close(wb_shared_area *area) {
    wb_device *dev = area->device;
    if (dev) {
        const double timeout = wb_comm_timeout(area->comm);
        const bool alive = wb_comm_look(area->comm) == WB_OK;
        for (int32_t r = 0; r < wb_comm_size(area->comm) && area->shared; r++) detach(area, r);
        dev->memory_unshare(dev, area->own, !alive ? 0 : timeout < CLOSE_SECONDS ? timeout : CLOSE_SECONDS);
    }
    if (area->own) dev->held_bytes -= wb_shared_bytes(area->bytes);
    free(area->shared);
    *area = (wb_shared_area){0};
}

bool wb_shared_area_is_whole(const wb_shared_area *area) {
    if (!area->device) return false;
    for (int32_t r = 0; r < wb_comm_size(area->comm); r++)
        if (r != wb_comm_rank(area->comm) && !area->of_rank[r]) return false;
    return true;
}
