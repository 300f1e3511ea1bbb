/* wb_workspace.h - the memory that a forward or a backward works in: device and host buffers with one
 * owner (not installed).
 *
 * A buffer is listed once, as a field of its user; the first reserve tells the workspace about it, and
 * closing the workspace frees all that it knows. Buffers only grow, so that a steady state allocates
 * nothing. Growing loses the content.
 *
 * Fixed host arrays belong to a workspace as well: WB_OWN(&workspace->host, ...). Buffers whose sizes are
 * known at open are placed in one arena (wb_arena.h), which does not grow. */
#ifndef WB_WORKSPACE_H
#define WB_WORKSPACE_H

#include "wb_device.h"
#include "wb_memory.h"

/* A zeroed struct is empty. Its address must not change once it has been reserved. */
typedef struct wb_buffer {
    void *data; /* device */
    size_t bytes;
    struct wb_buffer *next; /* of the same workspace */
} wb_buffer;

/* {.device = device}, all else zero, is an empty workspace. */
typedef struct wb_workspace {
    wb_device *device;
    wb_buffer *first;
    wb_owner host;
    wb_buffer arena; /* of wb_arena_open */
} wb_workspace;

/* rows * width * size; CAPACITY for a negative number and where the product overflows. */
wb_status wb_workspace_bytes(int64_t rows, int64_t width, size_t size, size_t *bytes_out);

/* A device has `bytes` bytes more of its memory. */
void wb_count_held(wb_device *dev, size_t bytes);

/* Device memory for [rows, width] elements of `size` bytes, at least one; CAPACITY where the product
 * overflows. */
wb_status wb_reserve(wb_workspace *workspace, wb_buffer *buffer, int64_t rows, int64_t width, size_t size);

/* Reserve, then to_device of host[count]. */
wb_status wb_upload(wb_workspace *workspace, wb_buffer *buffer, const void *host, int64_t count, size_t size);

/* Host memory for `count` elements of `size` bytes. */
wb_status wb_reserve_host(wb_workspace *workspace, wb_host_buffer *buffer, int64_t count, size_t size,
                          const char *what);

/* Frees all buffers. A workspace without a device, as after a failed open, has none. */
void wb_workspace_close(wb_workspace *workspace);

#endif
