/* workspace.c - see wb_workspace.h. Refuses: shrinking, keeping the contents over a growth. */
#include "wb_check.h"
#include "wb_workspace.h"

#include <inttypes.h>

wb_status wb_workspace_bytes(int64_t rows, int64_t width, size_t size, size_t *bytes_out) {
    const size_t limit = (size_t)PTRDIFF_MAX / size;
    if (rows < 0 || width < 0 || (width > 0 && (size_t)rows > limit / (size_t)width))
        return wb_fail(WB_CAPACITY,
                       "workspace: %" PRId64 " rows of %" PRId64 " elements of %zu bytes overflow", rows,
                       width, size);
    *bytes_out = (size_t)rows * (size_t)width * size;
    return WB_OK;
}

void wb_count_held(wb_device *dev, size_t bytes) {
    dev->held_bytes += bytes;
    if (dev->held_bytes > dev->peak_bytes) dev->peak_bytes = dev->held_bytes;
}

static void release(wb_device *dev, wb_buffer *buffer) {
    dev->mem_free(dev, buffer->data);
    dev->held_bytes -= buffer->bytes;
}

wb_status wb_reserve(wb_workspace *workspace, wb_buffer *buffer, int64_t rows, int64_t width, size_t size) {
    wb_device *dev = workspace->device;
    size_t bytes = 0;
    WB_TRY(wb_workspace_bytes(rows, width, size, &bytes));
    if (bytes < size) bytes = size;
    if (buffer->data && bytes <= buffer->bytes) return WB_OK;
    void *data = NULL;
    WB_TRY(dev->mem_alloc(dev, bytes, &data));
    wb_count_held(dev, bytes);
    if (buffer->data) {
        release(dev, buffer);
    } else {
        buffer->next = workspace->first;
        workspace->first = buffer;
    }
    buffer->data = data;
    buffer->bytes = bytes;
    return WB_OK;
}

wb_status wb_upload(wb_workspace *workspace, wb_buffer *buffer, const void *host, int64_t count,
                    size_t size) {
    wb_device *dev = workspace->device;
    WB_TRY(wb_reserve(workspace, buffer, count, 1, size));
    return count == 0 ? WB_OK : dev->to_device(dev, buffer->data, host, (size_t)count * size);
}

wb_status wb_reserve_host(wb_workspace *workspace, wb_host_buffer *buffer, int64_t count, size_t size,
                          const char *what) {
    size_t bytes = 0;
    WB_TRY(wb_workspace_bytes(count, 1, size, &bytes));
    return wb_host_reserve(&workspace->host, buffer, bytes, 1, what);
}

void wb_workspace_close(wb_workspace *workspace) {
    for (wb_buffer *b = workspace->first, *next; b; b = next) {
        next = b->next;
        release(workspace->device, b);
        *b = (wb_buffer){0};
    }
    workspace->first = NULL;
    wb_owner_close(&workspace->host);
}
