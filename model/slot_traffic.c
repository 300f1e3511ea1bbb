/* slot_traffic.c - see slot_traffic.h. */
#include "slot_traffic.h"
#include "wb_check.h"

void wb_slot_send(wb_slot_traffic *traffic, int32_t rank, const void *data, size_t bytes) {
    traffic->transfers[traffic->n++] = (wb_transfer){.peer = rank, .data = (void *)data, .bytes = bytes};
}

void wb_slot_receive(wb_slot_traffic *traffic, int32_t rank, void *data, size_t bytes) {
    traffic->transfers[traffic->n++] =
        (wb_transfer){.peer = rank, .receive = true, .data = data, .bytes = bytes};
}

wb_status wb_slot_traffic_run(wb_slot_traffic *traffic, wb_exchange *exchange) {
    uint64_t work;
    const size_t n = traffic->n;
    traffic->n = 0;
    WB_TRY(wb_exchange_start_group(exchange, traffic->transfers, n, &work));
    return wb_exchange_wait(exchange, work);
}
