/* upload_ring.c - see wb_upload_ring.h. Refuses: waiting for a copy, which is the device's. */
#include "wb_check.h"
#include "wb_upload_ring.h"

void wb_place_input(wb_arena *step, wb_input *input, int64_t count, size_t size) {
    const size_t offset = step->device_bytes;
    wb_buffer device;
    wb_place(step, &device, count, 1, size);
    input->device = device.data;
    input->host = step->host_base && device.data ? step->host_base + offset : NULL;
}

void wb_place_ring(wb_arena *arena, wb_upload_ring *ring, wb_layout_fn *inputs, void *user) {
    wb_arena most = {.device = arena->device};
    inputs(user, &most);
    if (arena->status == WB_OK) arena->status = most.status;
    ring->bytes = most.device_bytes;
    wb_place(arena, &ring->device, (int64_t)ring->bytes, 1, 1);
    for (int i = 0; i < 2; i++) ring->host[i] = wb_place_host(arena, (int64_t)ring->bytes, 1);
}

wb_status wb_upload_begin(wb_upload_ring *ring, wb_layout_fn *inputs, void *user) {
    const int turn = 1 - ring->turn;
    wb_arena step = {.device_base = ring->device.data, .host_base = ring->host[turn]};
    inputs(user, &step);
    WB_TRY(step.status);
    if (step.device_bytes > ring->bytes)
        return wb_fail(WB_CAPACITY, "inputs of a step: expected at most %zu bytes, found %zu", ring->bytes,
                       step.device_bytes);
    ring->turn = turn;
    ring->used = step.device_bytes;
    return WB_OK;
}

wb_status wb_upload_send(wb_upload_ring *ring, wb_device *dev) {
    return dev->to_device(dev, ring->device.data, ring->host[ring->turn], ring->used);
}
