/* host_view.h - device memory as the host sees it: itself where it is host memory, else a copy in a staging
 * buffer. */
#ifndef WB_HOST_VIEW_H
#define WB_HOST_VIEW_H

#include "wb_workspace.h"

/* device[bytes] for reading. */
wb_status wb_host_view_read(wb_workspace *memory, wb_host_buffer *stage, const void *device, size_t bytes,
                            const void **host_out);

/* Where the host may write what wb_host_view_commit then makes device[bytes]. */
wb_status wb_host_view_write(wb_workspace *memory, wb_host_buffer *stage, void *device, size_t bytes,
                             void **host_out);
wb_status wb_host_view_commit(wb_workspace *memory, void *device, const void *host, size_t bytes);

#endif
