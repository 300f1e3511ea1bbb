/* slot_traffic.h - parts of slots between ranks, listed and then sent together, over the data plane. Refuses:
 * which parts. */
#ifndef WB_SLOT_TRAFFIC_H
#define WB_SLOT_TRAFFIC_H

#include "wb_exchange.h"

/* How many elements of each of n slots are at work at a time, so that all of them are `room` at the most; a
 * part is as long as is worth a message though. */
static inline int64_t wb_slot_part(int64_t room, int64_t n_slots, int64_t slot_elements) {
    const int64_t min = 1024, even = room / n_slots;
    const int64_t part = even > min ? even : min;
    return part < slot_elements ? part : slot_elements;
}

/* Between two ranks both list their parts in the same order. */
typedef struct wb_slot_traffic {
    wb_transfer *transfers; /* host [room]; the owner's of this struct */
    size_t n, room;
} wb_slot_traffic;

void wb_slot_send(wb_slot_traffic *traffic, int32_t rank, const void *data, size_t bytes);
void wb_slot_receive(wb_slot_traffic *traffic, int32_t rank, void *data, size_t bytes);

/* What is listed travels, and the list is empty. Collective. */
wb_status wb_slot_traffic_run(wb_slot_traffic *traffic, wb_exchange *exchange);

#endif
