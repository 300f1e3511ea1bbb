/* cuda_device.h - the CUDA device behind wb_device, and what each of its calls begins and ends with.
 *
 * Refuses: CUDA types; a stream crosses as void *, an error code as int.
 */
#ifndef WB_CUDA_DEVICE_H
#define WB_CUDA_DEVICE_H

#include "device_fault.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Counters that kernels draw their work from. */
enum { WB_CUDA_DRAWS = 2 };

/* What host and kernels tell each other, in pinned host memory that both address. */
typedef struct wb_cuda_words {
    wb_fault fault;
    int32_t lost; /* wb_device.lose was called, and nobody was told yet */
} wb_cuda_words;

/* base comes first: a wb_device * of this backend points to a wb_cuda_device. */
typedef struct wb_cuda_device {
    wb_device base;
    int index;
    /* the stream ends with the device; false where the caller owns it */
    bool owns_stream;
    /* and where kernels see them; owner: this */
    wb_cuda_words *words, *words_on_device;
    /* wb_device.lose: why, which is written before `lost` is set, by one thread at a time */
    char why_lost[400];
    /* cudaStream_t and cudaEvent_t of memory_put, made by the first one */
    void *puts, *put_after;
    int multiprocessors, capability; /* the major number */
    /* device [WB_CUDA_DRAWS + 2 multiprocessors], zeros between the kernels that draw their work from the
     * first and that wait for each other's blocks by the others; a digest lies behind them */
    int32_t *counters;
    /* of ops (cuda_scratch.h) */
    void *scratch;
    size_t scratch_bytes;
} wb_cuda_device;

/* Makes `dev` this thread's current CUDA device; every call begins with it. `op` names the call in the
 * message. */
wb_status wb_cuda_use(wb_device *dev, const char *op);

/* code: a cudaError_t. WB_OK for cudaSuccess, else DEVICE with CUDA's words for it after `what`. */
wb_status wb_cuda_check(int code, const char *what);

/* *digest, device, is the digest of data[bytes] in the order of the stream (cuda_digest.cu). */
wb_status wb_cuda_start_digest(wb_device *dev, const void *data, size_t bytes, uint64_t *digest);

/* Frees what memory_put made (cuda_share.cu). */
void wb_cuda_close_puts(wb_cuda_device *cuda);

/* wb_device.graph_begin and its kin (cuda_graph.cu). */
wb_status wb_cuda_graph_begin(wb_device *dev);
wb_status wb_cuda_graph_end(wb_device *dev, void **graph_out);
wb_status wb_cuda_graph_launch(wb_device *dev, void *graph);
void wb_cuda_graph_free(wb_device *dev, void *graph);

#ifdef __cplusplus
}
#endif
#endif
