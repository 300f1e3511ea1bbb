/* host_view.c - see host_view.h. */
#include "host_view.h"
#include "wb_check.h"

static bool is_host_memory(const wb_device *dev) {
    return dev && dev->backend == WB_BACKEND_CPU;
}

void wb_host_view_place(wb_arena *arena, void **stage, int64_t count, size_t size) {
    *stage = is_host_memory(arena->device) ? NULL : wb_place_host(arena, count, size);
}

wb_status wb_host_view_read(wb_device *dev, void *stage, const void *device, size_t bytes,
                            const void **host_out) {
    *host_out = device;
    if (is_host_memory(dev)) return WB_OK;
    WB_TRY(dev->to_host(dev, stage, device, bytes));
    *host_out = stage;
    return WB_OK;
}

void *wb_host_view_write(const wb_device *dev, void *stage, void *device) {
    return is_host_memory(dev) ? device : stage;
}

wb_status wb_host_view_commit(wb_device *dev, void *device, const void *host, size_t bytes) {
    return host == device ? WB_OK : dev->to_device(dev, device, host, bytes);
}
