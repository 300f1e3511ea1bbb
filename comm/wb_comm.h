/* wb_comm.h - the transport between ranks: the control plane, in host memory.
 *
 * Owns: rank and size, broadcast, all-reduce, all-gather, all-to-all-v, barrier, and the adapters self
 * (one rank) and threads (ranks are threads of one process). The MPI adapter is a target of its own with
 * the header wb_comm_mpi.h. Refuses: models, policy, mpi.h.
 *
 * Every call is collective: all ranks of the communicator make the same calls in the same order. Buffers
 * are host memory. Sums are taken in rank order 0, 1, ... R-1, so that every rank gets the same bits, the
 * same on every run and for every adapter. A rank that fails makes the others return WB_PEER in bounded time
 * where the adapter can tell (threads: wb_comm_abort; MPI: mpirun ends the job).
 */
#ifndef WB_COMM_H
#define WB_COMM_H

#include "wb_base.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wb_comm wb_comm; /* opaque */

WB_API int wb_comm_rank(const wb_comm *comm);         /* 0..size-1 */
WB_API int wb_comm_size(const wb_comm *comm);         /* R */
WB_API const char *wb_comm_name(const wb_comm *comm); /* the adapter: "self", "threads", "mpi"; static */

/* One rank. Cannot fail but for memory. */
WB_API wb_status wb_comm_open_self(wb_comm **comm_out);

/* `size` ranks for `size` threads of this process; comms_out[r] is used by one thread only and closed by
 * wb_comm_close each; the shared state goes with the last of them. */
WB_API wb_status wb_comm_open_threads(int size, wb_comm **comms_out);

WB_API void wb_comm_close(wb_comm *comm); /* not collective; NULL is a no-op */

/* Tells the peers that this rank gives up: their pending and later calls return WB_PEER (threads), or the
 * job ends with a non-zero exit (MPI). Not collective. */
WB_API void wb_comm_abort(wb_comm *comm);

/* buffer[bytes] of `root` to all ranks. */
WB_API wb_status wb_comm_broadcast(wb_comm *comm, void *buffer, size_t bytes, int root);

/* recv[size * bytes]: rank r's send[bytes] at r * bytes. */
WB_API wb_status wb_comm_all_gather(wb_comm *comm, const void *send, size_t bytes, void *recv);

/* Rank r's send_bytes[s] bytes at send + send_offsets[s] arrive on rank s at recv + recv_offsets[r].
 * Arrays are [size]. recv_bytes[r] on s must equal send_bytes[s] on r: MISMATCH otherwise where the
 * adapter can tell. */
WB_API wb_status wb_comm_all_to_all_v(wb_comm *comm, const void *send, const size_t *send_bytes,
                                      const size_t *send_offsets, void *recv, const size_t *recv_bytes,
                                      const size_t *recv_offsets);

/* buffer[n] := sum over ranks, added in rank order; in place. */
WB_API wb_status wb_comm_all_reduce_f32(wb_comm *comm, float *buffer, size_t n);
WB_API wb_status wb_comm_all_reduce_f64(wb_comm *comm, double *buffer, size_t n);

/* *value := the largest over ranks. */
WB_API wb_status wb_comm_all_reduce_max_u64(wb_comm *comm, uint64_t *value);

/* PEER, naming the first rank that differs, unless bytes[n] is the same on every rank. `what` goes into
 * the message ("model fingerprint", "step"). */
WB_API wb_status wb_comm_check_equal(wb_comm *comm, const void *bytes, size_t n, const char *what);

/* A collective verdict: returns `status` where it is a failure; where it is ok but another rank failed,
 * PEER naming that rank and its status. Lets all ranks leave together after a local failure. */
WB_API wb_status wb_comm_agree(wb_comm *comm, wb_status status);

WB_API wb_status wb_comm_barrier(wb_comm *comm);

/* ---- for a transport of one's own ---------------------------------------------------------------- */

/* What an adapter does. Arguments have been checked: root is a rank, pointers are set where there are
 * bytes, sizes and offsets do not overflow. */
typedef struct wb_comm_ops {
    size_t size;      /* sizeof this struct, as the adapter was compiled */
    const char *name; /* static */
    wb_status (*broadcast)(wb_comm *comm, void *buffer, size_t bytes, int root);
    wb_status (*all_gather)(wb_comm *comm, const void *send, size_t bytes, void *recv);
    wb_status (*all_to_all_v)(wb_comm *comm, const void *send, const size_t *send_bytes,
                              const size_t *send_offsets, void *recv, const size_t *recv_bytes,
                              const size_t *recv_offsets);
    wb_status (*barrier)(wb_comm *comm);
    void (*abort)(wb_comm *comm);
    void (*close)(wb_comm *comm); /* frees the state, then calls wb_comm_delete */
} wb_comm_ops;

/* Makes the communicator of an adapter. `ops` is copied; `state` stays the adapter's. INVALID_ARGUMENT
 * names a function that is missing, and a size that is not this version's. Not collective. */
WB_API wb_status wb_comm_new(const wb_comm_ops *ops, int rank, int size, void *state, wb_comm **comm_out);
WB_API void *wb_comm_state(const wb_comm *comm); /* as given to wb_comm_new */
WB_API void wb_comm_delete(wb_comm *comm);       /* NULL is a no-op */

#ifdef __cplusplus
}
#endif
#endif
