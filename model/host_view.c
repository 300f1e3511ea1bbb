/* host_view.c - see host_view.h. */
#include "host_view.h"
#include "wb_check.h"

wb_status wb_host_view_read(wb_workspace *memory, wb_host_buffer *stage, const void *device, size_t bytes,
                            const void **host_out) {
    wb_device *dev = memory->device;
    *host_out = device;
    if (dev->backend == WB_BACKEND_CPU) return WB_OK;
    WB_TRY(wb_reserve_host(memory, stage, (int64_t)bytes, 1, "staging"));
    WB_TRY(dev->to_host(dev, stage->data, device, bytes));
    *host_out = stage->data;
    return WB_OK;
}

wb_status wb_host_view_write(wb_workspace *memory, wb_host_buffer *stage, void *device, size_t bytes,
                             void **host_out) {
    *host_out = device;
    if (memory->device->backend == WB_BACKEND_CPU) return WB_OK;
    WB_TRY(wb_reserve_host(memory, stage, (int64_t)bytes, 1, "staging"));
    *host_out = stage->data;
    return WB_OK;
}

wb_status wb_host_view_commit(wb_workspace *memory, void *device, const void *host, size_t bytes) {
    wb_device *dev = memory->device;
    return host == device ? WB_OK : dev->to_device(dev, device, host, bytes);
}
