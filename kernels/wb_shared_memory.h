/* wb_shared_memory.h - device memory that the devices of other ranks on the same host reach (not installed).
 *
 * Owns: how another rank finds it, who has it attached, and copies into it that no multiprocessor makes.
 * Refuses: what lies in it (wb_mailbox.h, shadow slots), who tells whom (model/shared_area.h).
 *
 * Memory that others have attached must not be freed. So each rank that attaches it says so in a word of its
 * own in front of it, and again when it detaches, and memory_unshare looks at these words. */
#ifndef WB_SHARED_MEMORY_H
#define WB_SHARED_MEMORY_H

#include "wb_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Ranks that share memory; of the bytes in front of it that are the device's own. */
enum { WB_MAX_SHARERS = 16, WB_SHARED_HEAD = 256 };

/* By what another process of the host, or another thread, finds it: plain bytes, which may travel. */
typedef struct wb_shared_memory {
    unsigned char bytes[192];
} wb_shared_memory;

/* What memory_share takes for `bytes` bytes: what lies in front of them, and whole blocks, since smaller
 * allocations may lie in one block of the device's, which others would attach as a whole. */
static inline size_t wb_shared_bytes(size_t bytes) {
    const size_t block = (size_t)2 << 20;
    return (WB_SHARED_HEAD + bytes + block - 1) / block * block;
}

/* Device memory of `bytes` bytes, zeroed, that devices of the same host can write, and what to tell them.
 * Owner of *memory_out: the caller, until memory_unshare. */
typedef wb_status wb_memory_share_fn(wb_device *dev, size_t bytes, void **memory_out,
                                     wb_shared_memory *shared_out);

/* *memory_out: that memory as this device addresses it, until memory_detach. rank: of this one among those
 * that share, 0 .. WB_MAX_SHARERS - 1. UNSUPPORTED: this device does not reach it, as on another host. */
typedef wb_status wb_memory_attach_fn(wb_device *dev, const wb_shared_memory *shared, int32_t rank,
                                      void **memory_out);

/* What this device had to store there has come when it returns. rank: as at the attach. memory NULL is a
 * no-op. */
typedef void wb_memory_detach_fn(wb_device *dev, const wb_shared_memory *shared, int32_t rank, void *memory);

/* Frees memory of memory_share as soon as no rank has it attached, and waits for that `seconds` at most. What
 * is still attached then, as by a rank that died, stays until the process ends. NULL is a no-op. */
typedef void wb_memory_unshare_fn(wb_device *dev, void *memory, double seconds);

/* Starts to[bytes] = from[bytes]: `to` is attached memory, `from` memory of this device. It comes after what
 * lies on the stream now and runs beside what is put there later, by a copy engine. */
typedef wb_status wb_memory_put_fn(wb_device *dev, void *to, const void *from, size_t bytes);

/* Returns when all that this device has put has come; of any thread. */
typedef wb_status wb_memory_settle_fn(wb_device *dev);

#ifdef __cplusplus
}
#endif
#endif
