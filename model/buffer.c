/* buffer.c - growing blocks of device memory. Refuses: shrinking, keeping the contents over a growth. */
#include "model_internal.h"

wb_status wb_buffer_reserve(wb_device *device, wb_buffer *buffer, size_t bytes) {
    if (buffer->data && bytes <= buffer->bytes) return WB_OK;
    void *data = NULL;
    WB_TRY(device->mem_alloc(device, bytes, &data));
    device->mem_free(device, buffer->data);
    buffer->data = data;
    buffer->bytes = bytes;
    return WB_OK;
}

void wb_buffer_free(wb_device *device, wb_buffer *buffer) {
    device->mem_free(device, buffer->data);
    buffer->data = NULL;
    buffer->bytes = 0;
}
