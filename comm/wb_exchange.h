/* wb_exchange.h - the data plane between ranks: rows, gradients and weights in device memory.
 *
 * Owns: all-to-all-v, all-gather, reduce-scatter and all-reduce of f32, groups of sends and receives, each as
 * a start and a wait; what was sent, counted. It is opened over a communicator, whose ranks, timeout and
 * abort are its own too. Refuses: the control plane (wb_comm.h), allocating device memory, how a device is
 * driven: its memory comes in as a struct of functions.
 *
 *     wb_exchange *exchange;
 *     WB_TRY(wb_exchange_open(comm, &memory, &exchange));
 *     uint64_t rows, sums;
 *     WB_TRY(wb_exchange_start_all_reduce(exchange, gradient, n, scratch, &sums));
 *     WB_TRY(wb_exchange_start_all_to_all_v(exchange, ..., &rows));
 *     WB_TRY(wb_exchange_wait(exchange, rows));     the rows are there
 *     WB_TRY(wb_exchange_wait(exchange, sums));     the sums are there
 *     wb_exchange_close(exchange);                  before wb_comm_close
 *
 * Collective: starts come in the same order on all ranks, and so do waits, which need not be in the order of
 * the starts; calls of the communicator have the same place among them. Up to WB_EXCHANGE_IN_FLIGHT may be
 * started and not yet waited for. Sizes are known to both sides, so that nothing but the data travels. In the
 * steady state nothing is allocated.
 *
 * Memory: `data` and buffers are memory of the device, the caller's, and left alone from the start on (what
 * is read may be read by others meanwhile) until wait has returned, well or not, or the exchange is closed.
 * Arrays of sizes and offsets are host memory and may go when start has returned. Streams: what lies on
 * memory.stream before a start is seen by the exchange, and what is put there after a wait sees its outcome.
 * The adapters "threads" and "mpi" wait on the host; work goes on in starts and waits alone. "nccl"
 * (wb_comm_nccl.h) waits on the stream: after a wait, outcome and memory are the caller's in its order.
 *
 * Sums are taken in rank order 0, 1, ... R-1 from the value of rank 0 on, in f32: the same bits on all ranks,
 * on every run, with every adapter and every cut into parts, and those of wb_comm_all_reduce_f32.
 *
 * Errors: INVALID_ARGUMENT, before anything is sent, is of this rank alone, as is OUT_OF_MEMORY; a caller
 * that cannot undo it on all ranks calls wb_comm_abort. Every other failure ends the exchange and its
 * communicator, on all ranks, in the time that wb_comm_set_timeout allows, and later calls return PEER.
 * MISMATCH, on the rank that sees it: sender and receiver disagree on bytes; the message names both and the
 * other ranks are told. PEER: a rank gave up, is late or is gone. DEVICE: memory's own. After a failure
 * outputs hold anything, and nothing outside of them was written.
 */
#ifndef WB_EXCHANGE_H
#define WB_EXCHANGE_H

#include "wb_comm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One rank's end of the data plane. Used by one thread at a time, that of its communicator. */
typedef struct wb_exchange wb_exchange;

/* Started and not yet waited for, at most. */
#define WB_EXCHANGE_IN_FLIGHT 32

/* ---- the memory of a device ---------------------------------------------------------------------- */

/* How the exchange reaches device memory. The functions work on `stream`, in its order; `context` is their
 * first argument. Pointers named host are host memory, the others device memory. All but the last are set. */
typedef struct wb_exchange_memory {
    size_t size;   /* sizeof(wb_exchange_memory), as the caller was compiled */
    void *context; /* the caller's; it outlives the exchange */
    void *stream;  /* cudaStream_t; NULL where the device has none */
    /* The host may read and write this memory itself once the stream has been waited for: then MPI sends from
     * it and receives into it. Where not, data pass through one buffer of host_alloc. */
    bool host_access;
    /* Host memory that to_host and to_device are fastest with, such as pinned memory: 64-byte aligned, not
     * initialised. host_free, of NULL too, gives it back; after a failure MPI may still write there, and it
     * is kept until the process ends. */
    wb_status (*host_alloc)(void *context, size_t bytes, void **host_out);
    void (*host_free)(void *context, void *host);
    /* to_host returns when the copy is done, and with it all that lay on the stream before; of 0 bytes, with
     * NULL, it waits for the stream. to_device returns when `host` has been read. */
    wb_status (*to_host)(void *context, void *host, const void *device, size_t bytes);
    wb_status (*to_device)(void *context, void *device, const void *host, size_t bytes);
    /* to[bytes] = from[bytes]; they do not overlap. Between threads `from` is memory of another rank. */
    wb_status (*copy)(void *context, void *to, const void *from, size_t bytes);
    /* y[n] += x[n] */
    wb_status (*add)(void *context, size_t n, const float *x, float *y);
    /* What lies on the stream is worth nothing, for the reason `why`: the next call that waits for the stream
     * returns PEER, once. Of any thread, also beside other calls; it waits for nothing. Where an exchange
     * waits on the host it is never called, and may be NULL. */
    void (*lose)(void *context, const char *why);
} wb_exchange_memory;

/* ---- opening and closing ------------------------------------------------------------------------- */

/* The data plane of comm's adapter; several may be opened over one communicator. `memory` is copied. `comm`
 * outlives the exchange. Collective. UNSUPPORTED: comm is a transport of one's own without open_exchange.
 * INVALID_ARGUMENT: a member of memory that is NULL, or its size. OUT_OF_MEMORY: the other ranks get PEER. */
WB_API wb_status wb_exchange_open(wb_comm *comm, const wb_exchange_memory *memory,
                                  wb_exchange **exchange_out);

/* Never waits for other ranks. With work that was not waited for, or after a failure, it takes the caller's
 * memory back first, and the communicator is dead afterwards. NULL is a no-op. Not collective. */
WB_API void wb_exchange_close(wb_exchange *exchange);

WB_API wb_comm *wb_exchange_comm(const wb_exchange *exchange);

/* ---- starting and waiting ------------------------------------------------------------------------ */

/* Each start writes the number of its work, above 0, to *work_out, host; wait takes it. */

/* Each rank sends a part to each rank, itself included: the send_bytes[s] bytes at send + send_offsets[s] go
 * to rank s, and recv_bytes[r] bytes from rank r arrive at recv + recv_offsets[r]. The four arrays are host
 * [R], in bytes. send and the parts of recv do not overlap. */
WB_API wb_status wb_exchange_start_all_to_all_v(wb_exchange *exchange, const void *send,
                                                const size_t *send_bytes, const size_t *send_offsets,
                                                void *recv, const size_t *recv_bytes,
                                                const size_t *recv_offsets, uint64_t *work_out);

/* buffer, in place: part r, the bytes [bounds[r], bounds[r + 1]), is read on rank r and written on all
 * others. bounds: host [R + 1], rising, the same on all ranks; parts may be empty. */
WB_API wb_status wb_exchange_start_all_gather(wb_exchange *exchange, void *buffer, const size_t *bounds,
                                              uint64_t *work_out);

/* buffer, f32, in place: part r, the elements [bounds[r], bounds[r + 1]), becomes on rank r the sum of that
 * part of all ranks; the other parts are read and stay. bounds: as above, in elements. scratch: device,
 * wb_exchange_reduce_scratch floats for this rank's part. */
WB_API wb_status wb_exchange_start_reduce_scatter(wb_exchange *exchange, float *buffer, const size_t *bounds,
                                                  float *scratch, uint64_t *work_out);

/* buffer, f32 [n], in place: each element becomes the sum of that element of all ranks. scratch: device,
 * wb_exchange_all_reduce_scratch(exchange, n) floats. It is a reduce-scatter whose sums are gathered, the
 * second half starting in wait; a short one is gathered first and summed by every rank. */
WB_API wb_status wb_exchange_start_all_reduce(wb_exchange *exchange, float *buffer, size_t n, float *scratch,
                                              uint64_t *work_out);

/* Floats of scratch for a part of n elements that this rank sums: (R - 1) * n; and for an all-reduce of n
 * elements or fewer, which may be more than n. */
WB_API size_t wb_exchange_reduce_scratch(const wb_exchange *exchange, size_t n);
WB_API size_t wb_exchange_all_reduce_scratch(const wb_exchange *exchange, size_t n);

/* One send to `peer`, or one receive from it, of `bytes` bytes at `data`. */
typedef struct wb_transfer {
    int peer;     /* 0..R-1; this rank too */
    bool receive; /* or send */
    void *data;   /* device; a send only reads it */
    size_t bytes; /* 0 is a transfer too, which its peer lists as well */
} wb_transfer;

/* Sends and receives, transfers: host [n], in any order; their memory does not overlap. The k-th send from
 * rank r to rank s is met by the k-th receive of rank s from rank r in the group that s starts with the same
 * number. A rank without transfers starts an empty group. No memory is taken where n is at most what
 * wb_exchange_reserve was given, or 2 R. */
WB_API wb_status wb_exchange_start_group(wb_exchange *exchange, const wb_transfer *transfers, size_t n,
                                         uint64_t *work_out);

/* Makes room for groups of n transfers, on this rank. Nothing may be in flight. Not collective. */
WB_API wb_status wb_exchange_reserve(wb_exchange *exchange, size_t n);

/* Ends a work: its outcome is there, and its memory is the caller's. INVALID_ARGUMENT: a number that is not
 * in flight. */
WB_API wb_status wb_exchange_wait(wb_exchange *exchange, uint64_t work);

/* ---- counting ------------------------------------------------------------------------------------ */

typedef enum wb_exchange_kind {
    WB_EXCHANGE_GROUP,
    WB_EXCHANGE_ALL_TO_ALL_V,
    WB_EXCHANGE_ALL_GATHER,
    WB_EXCHANGE_REDUCE_SCATTER,
    WB_EXCHANGE_ALL_REDUCE,
    WB_EXCHANGE_KINDS
} wb_exchange_kind;

/* Since the exchange was opened, on this rank. */
typedef struct wb_exchange_count {
    uint64_t calls; /* starts */
    uint64_t sends; /* transfers to other ranks, those of 0 bytes too */
    uint64_t bytes; /* of those */
} wb_exchange_count;

/* What was started, by kind: count_out is one struct. Not collective. */
WB_API wb_status wb_exchange_stats(const wb_exchange *exchange, wb_exchange_kind kind,
                                   wb_exchange_count *count_out);

/* ---- for a transport of one's own ---------------------------------------------------------------- */

/* A group of sends and receives to and from other ranks, as an adapter sees it. It and its items are the
 * exchange's and stay where they are until the adapter has set `left` to 0, or dropped them. */
typedef struct wb_exchange_item {
    wb_transfer transfer;
    struct wb_exchange_group *group;
    /* the adapter's, zeroed at the start: its next in a queue, and bytes that have been moved */
    struct wb_exchange_item *next;
    size_t moved;
} wb_exchange_item;

typedef struct wb_exchange_group {
    uint64_t number;         /* from 1, without a gap: the same on all ranks */
    size_t left;             /* items that are not done: n at the start, counted down by the adapter */
    size_t n;                /* items */
    wb_exchange_item *items; /* [n] */
} wb_exchange_group;

/* What an adapter does: groups; the exchange makes everything else of them. None may be NULL. Failures are
 * told to the other ranks by the exchange (wb_comm_abort). */
typedef struct wb_exchange_ops {
    size_t size; /* sizeof(wb_exchange_ops), as the adapter was compiled */
    /* Queues the items and does not wait for other ranks. Items between two ranks go in the order of their
     * groups, and in that of the items in a group. */
    wb_status (*start)(void *state, wb_exchange_group *group);
    /* Returns when left is 0, or, where the adapter works in the order of the stream, when the stream waits
     * for it. Other groups may make progress, and must where this one could not otherwise end. */
    wb_status (*wait)(void *state, wb_exchange_group *group);
    /* After a failure, and before close where there is work: no memory of a group is read or written any
     * more, by this rank or another. */
    void (*drop)(void *state);
    void (*close)(void *state); /* frees the state */
} wb_exchange_ops;

/* Makes one rank's exchange; `ops` and `memory` are copied, `state` is closed with it, and stays the caller's
 * on failure. Called by wb_comm_ops.open_exchange. Not collective. */
WB_API wb_status wb_exchange_new(const wb_exchange_ops *ops, wb_comm *comm, const wb_exchange_memory *memory,
                                 void *state, wb_exchange **exchange_out);

#ifdef __cplusplus
}
#endif
#endif
