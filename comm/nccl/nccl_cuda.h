/* nccl_cuda.h - what the adapter asks of CUDA itself (internal): a stream of its own, and events that order
 * it with its caller's.
 *
 * Refuses: CUDA types, so that tests can run the adapter without a GPU. Streams and events cross as
 * void *. */
#ifndef WB_NCCL_CUDA_H
#define WB_NCCL_CUDA_H

#include "wb_base.h"

#define WB_GPU_ID_BYTES 16

/* Makes it the thread's current GPU: what is opened below is opened on it. */
wb_status wb_gpu_use(int gpu);

/* What no other GPU has, on any host. UNSUPPORTED: there is no such GPU. */
wb_status wb_gpu_id(int gpu, unsigned char id_out[WB_GPU_ID_BYTES]);

/* Does not wait for the legacy default stream, nor that for it. */
wb_status wb_gpu_stream_open(void **stream_out);
void wb_gpu_stream_close(void *stream); /* NULL is a no-op */

wb_status wb_gpu_event_open(void **event_out);
void wb_gpu_event_close(void *event); /* NULL is a no-op; what waits for it goes on */

/* The event is what lies on the stream now. INVALID_ARGUMENT: the stream is one of another GPU. */
wb_status wb_gpu_record(void *event, void *stream);

/* What is put on the stream from now on comes after the event as it was last recorded. */
wb_status wb_gpu_wait(void *stream, void *event);

/* Whether the event has come about; does not wait. DEVICE: the GPU failed. */
wb_status wb_gpu_has_come(void *event, bool *come_out);

wb_status wb_gpu_alloc(size_t bytes, void **memory_out);
void wb_gpu_free(void *memory); /* waits for the GPU; NULL is a no-op */

#endif
