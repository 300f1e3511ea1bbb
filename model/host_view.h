/* host_view.h - device memory as the host sees it: itself where it is host memory, else a copy in a stage,
 * which is host memory of the same size. */
#ifndef WB_HOST_VIEW_H
#define WB_HOST_VIEW_H

#include "wb_arena.h"

/* The stage of a device buffer of `count` elements of `size` bytes; NULL where none is needed. */
void wb_host_view_place(wb_arena *arena, void **stage, int64_t count, size_t size);

/* device[bytes] for reading. */
wb_status wb_host_view_read(wb_device *dev, void *stage, const void *device, size_t bytes,
                            const void **host_out);

/* Where the host may write what wb_host_view_commit then makes device[bytes]. */
void *wb_host_view_write(const wb_device *dev, void *stage, void *device);
wb_status wb_host_view_commit(wb_device *dev, void *device, const void *host, size_t bytes);

#endif
