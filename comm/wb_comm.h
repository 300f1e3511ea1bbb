/* wb_comm.h - the transport between ranks: the control plane, in host memory.
 *
 * Owns: rank and size, broadcast, all-reduce, all-gather, all-to-all-v, barrier, the verdicts, and the
 * adapters self (one rank) and threads (ranks are threads of one process). The MPI adapter is a library of
 * its own with the header wb_comm_mpi.h; another transport is made of a struct of functions (at the end of
 * this header), and wb_comm_nccl.h puts a data plane between GPUs over any of them. Refuses: models, policy,
 * mpi.h, device memory.
 *
 * A program of R ranks opens one communicator a rank and uses each from one thread at a time:
 *
 *     wb_comm *comm;
 *     WB_TRY(wb_comm_open_self(&comm));             or wb_comm_open_threads, or wb_comm_open_mpi
 *     wb_status status = read_my_part(...);         what one rank does alone can fail on that rank alone
 *     status = wb_comm_agree(comm, status);         now all ranks know, and leave together or go on together
 *     if (status == WB_OK) status = wb_comm_all_reduce_f32(comm, gradient, n);
 *     wb_comm_close(comm);
 *
 * Collective: all ranks of a communicator make the same call, with the same sizes, in the same order; a call
 * returns when this rank's part is done. Every call below is collective unless it says that it is not.
 * Buffers are host memory, belong to the caller and are not kept. Sums are taken in rank order 0, 1, ...
 * R-1, so that every rank gets the same bits, the same on every run and with every adapter.
 *
 * The wait is bounded: a call in which another rank is waited for ends with PEER at once when a rank gave up
 * (wb_comm_abort), and when the wait has lasted as long as wb_comm_set_timeout allows; the message names the
 * ranks that gave up, did not come or made another call. From then on the communicator is dead: every later
 * call returns PEER at once, on all ranks, and what is left is to close it.
 *
 * Errors: INVALID_ARGUMENT is found before anything is sent, on the rank that passed the argument. PEER: a
 * rank gave up, is late or is gone, or MPI failed. MISMATCH: the ranks' calls or sizes do not fit together;
 * nothing is written outside of what this rank expects, and no message is left for the next call.
 * OUT_OF_MEMORY: an all-reduce has no memory for its scratch; all ranks return then, the others with PEER,
 * and the communicator lives. After a failure outputs hold anything.
 */
#ifndef WB_COMM_H
#define WB_COMM_H

#include "wb_base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One rank's end of the transport. */
typedef struct wb_comm wb_comm;
struct wb_exchange;
struct wb_exchange_memory;

/* ---- opening and closing ------------------------------------------------------------------------- */

/* One rank, alone. OUT_OF_MEMORY is the only failure. */
WB_API wb_status wb_comm_open_self(wb_comm **comm_out);

/* `size` ranks for `size` threads of this process: comms_out, [size], is filled by one call. comms_out[r] is
 * used by one thread at a time and closed by wb_comm_close; what the ranks share is freed with the last of
 * them. INVALID_ARGUMENT: size below 1. Not collective. */
WB_API wb_status wb_comm_open_threads(int size, wb_comm **comms_out);

/* Frees this rank's communicator and never waits, but see wb_comm_nccl.h. Ranks that wait for it, or will,
 * get PEER: at once with threads, at the end of their timeout with MPI. NULL is a no-op. Not collective. */
WB_API void wb_comm_close(wb_comm *comm);

/* Tells the others that this rank gives up, and why: their pending and later calls return PEER, and so do
 * this rank's. The reason that they are told is the message of the calling thread's latest failure
 * (wb_error_message). Whoever has failed alone where the others go on to a collective call, and cannot agree
 * on it (wb_comm_agree), calls this. The process goes on: to end a whole MPI job is the program's own
 * decision (MPI_Abort). With threads any thread may call it, a watchdog for example; with MPI the thread that
 * uses the communicator. NULL is a no-op. Not collective. */
WB_API void wb_comm_abort(wb_comm *comm);

/* Whether another rank has given up, as far as this one can hear without waiting: PEER then, and the
 * communicator is dead. For who waits for other ranks by himself. Not collective. */
WB_API wb_status wb_comm_look(wb_comm *comm);

/* How long a call of this rank waits for the others, in seconds: above 0, at most 1e9; 1800 unless set.
 * INVALID_ARGUMENT otherwise. Longer than the longest work that one rank does between two collective calls.
 * Where GPUs store rows of inference into each other's memory (mailboxes), a rank that fails by itself in the
 * middle of a step leaves the others' streams waiting for its rows. The engine listens while it waits for the
 * results of a step: all its ranks stop at once, with the reason. Who calls wb_infer_forward himself and then
 * waits for the stream does not: there it is noticed at the end of this time only, and without its reason.
 * Not collective, but ranks should have the same: the shortest decides for all. */
WB_API wb_status wb_comm_set_timeout(wb_comm *comm, double seconds);
WB_API double wb_comm_timeout(const wb_comm *comm);

/* This rank, 0..R-1; how many there are, R; the adapter's name: "self", "threads", "mpi", "nccl", a static
 * string. Not collective. */
WB_API int wb_comm_rank(const wb_comm *comm);
WB_API int wb_comm_size(const wb_comm *comm);
WB_API const char *wb_comm_name(const wb_comm *comm);

/* Calls of this rank since it was opened, by what the adapter did: other calls are made of these. */
typedef struct wb_comm_count {
    uint64_t broadcasts, all_gathers, all_to_alls, barriers;
} wb_comm_count;

/* Not collective. */
WB_API wb_comm_count wb_comm_stats(const wb_comm *comm);

/* ---- moving bytes -------------------------------------------------------------------------------- */

/* buffer, `bytes` bytes: read on rank `root`, written on all others. */
WB_API wb_status wb_comm_broadcast(wb_comm *comm, void *buffer, size_t bytes, int root);

/* send: `bytes` bytes, the same number on every rank. recv: [R][bytes], rank r's at r * bytes; does not
 * overlap `send`. */
WB_API wb_status wb_comm_all_gather(wb_comm *comm, const void *send, size_t bytes, void *recv);

/* Each rank sends a part to each rank, itself included. The send_bytes[s] bytes at send + send_offsets[s] go
 * to rank s; the part from rank r arrives at recv + recv_offsets[r]. The four arrays are [R], in bytes.
 * recv_bytes[r] on rank s must be send_bytes[s] on rank r: MISMATCH on both otherwise.
 * send and recv do not overlap. */
WB_API wb_status wb_comm_all_to_all_v(wb_comm *comm, const void *send, const size_t *send_bytes,
                                      const size_t *send_offsets, void *recv, const size_t *recv_bytes,
                                      const size_t *recv_offsets);

/* Returns when all ranks have come to it. */
WB_API wb_status wb_comm_barrier(wb_comm *comm);

/* ---- reductions ---------------------------------------------------------------------------------- */

/* buffer, [n], in/out: each element becomes the sum of that element of all ranks, added in rank order. */
WB_API wb_status wb_comm_all_reduce_f32(wb_comm *comm, float *buffer, size_t n);
WB_API wb_status wb_comm_all_reduce_f64(wb_comm *comm, double *buffer, size_t n);

/* *value, in/out: becomes the largest of all ranks. */
WB_API wb_status wb_comm_all_reduce_max_u64(wb_comm *comm, uint64_t *value);

/* ---- verdicts ------------------------------------------------------------------------------------ */

/* OK on all ranks when bytes, [n], is the same on every rank; else PEER on all ranks, with a message that
 * names the first rank that differs from rank 0. n may differ too: that is a difference. `what` begins the
 * message ("model fingerprint", "step"). */
WB_API wb_status wb_comm_check_equal(wb_comm *comm, const void *bytes, size_t n, const char *what);

/* Makes a local failure known: returns `status`, its message kept, where it is a failure; where it is OK but
 * another rank failed, PEER with a message that names the first such rank and its status. All ranks call it
 * after what each has done alone, and so leave together or go on together. */
WB_API wb_status wb_comm_agree(wb_comm *comm, wb_status status);

/* ---- for a transport of one's own ---------------------------------------------------------------- */

/* What an adapter does: the collective calls above, from which all others are built. Arguments have been
 * checked: root is a rank, pointers are set where there are bytes, sizes and offsets do not overflow. A call
 * waits no longer than wb_comm_timeout, and returns PEER after a failure of the transport. None but the last
 * two may be NULL. */
typedef struct wb_comm_ops {
    size_t size;      /* sizeof(wb_comm_ops), as the adapter was compiled */
    const char *name; /* static */
    wb_status (*broadcast)(wb_comm *comm, void *buffer, size_t bytes, int root);
    wb_status (*all_gather)(wb_comm *comm, const void *send, size_t bytes, void *recv);
    wb_status (*all_to_all_v)(wb_comm *comm, const void *send, const size_t *send_bytes,
                              const size_t *send_offsets, void *recv, const size_t *recv_bytes,
                              const size_t *recv_offsets);
    wb_status (*barrier)(wb_comm *comm);
    void (*abort)(wb_comm *comm);
    void (*close)(wb_comm *comm); /* frees the adapter's state, then calls wb_comm_delete */
    /* wb_exchange_open of this transport (wb_exchange.h), collective; NULL: it has no data plane, and who
     * needs one gets UNSUPPORTED */
    wb_status (*open_exchange)(wb_comm *comm, const struct wb_exchange_memory *memory,
                               struct wb_exchange **exchange_out);
    /* wb_comm_look; NULL: nothing is heard before the next call */
    wb_status (*look)(wb_comm *comm);
} wb_comm_ops;

/* Makes one rank's communicator, 0 <= rank < size. `ops` is copied; `state` stays the adapter's, which finds
 * it with wb_comm_state. INVALID_ARGUMENT names a member of ops that is NULL, or the size of ops when it is
 * not this version's. Not collective. */
WB_API wb_status wb_comm_new(const wb_comm_ops *ops, int rank, int size, void *state, wb_comm **comm_out);
WB_API void *wb_comm_state(const wb_comm *comm);

/* Frees what wb_comm_new made, and not `state`: the end of an adapter's `close`. NULL is a no-op. */
WB_API void wb_comm_delete(wb_comm *comm);

#ifdef __cplusplus
}
#endif
#endif
