/* wb_comm_nccl.h - the NCCL adapter: a communicator whose control plane is another one's and whose data plane
 * (wb_exchange.h) runs between GPUs. Needs no header of CUDA or NCCL.
 *
 *     wb_comm *control, *comm;
 *     WB_TRY(wb_comm_open_mpi(MPI_COMM_WORLD, &control));
 *     WB_TRY(wb_comm_open_nccl(control, gpu, false, &comm));   the device is opened on the same gpu
 *     ...                                                      models are opened with comm
 *     wb_comm_close(comm);
 *     wb_comm_close(control);
 *
 * What a start sends lies on a stream of the communicator's own, after all that lies on memory.stream at that
 * moment; a wait makes memory.stream wait for it and does not wait itself, so that work which the caller puts
 * on its stream between the two runs meanwhile. After a wait, outcome and memory are the caller's in the
 * order of memory.stream: the host has them once it has waited for that stream. Sums are those of
 * wb_exchange.h, in rank order, and not NCCL's.
 *
 * How a wait ends that nobody ends: a thread of the communicator's own looks at what lies on the stream. When
 * it has not ended for as long as the timeout allows, what lies on memory.stream before it included, or when
 * NCCL reports an error, wb_exchange_memory.lose is called, NCCL is aborted, and the stream runs on with
 * contents that are worth nothing: the next call that waits for it returns PEER, as does every later call of
 * the communicator. The message names the ranks of whom the open transfers were. The control plane's own
 * message goes before it, where a rank gave up and said why.
 *
 * NCCL does not see that two ranks disagree on bytes: the transfer, or a later one, hangs until the timeout
 * or has wrong contents. With check_sizes each start compares them over the control plane first, and waits
 * for all ranks: for tests. */
#ifndef WB_COMM_NCCL_H
#define WB_COMM_NCCL_H

#include "wb_comm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One rank on GPU `gpu`, by CUDA's number, of this process or thread; it becomes the thread's current one.
 * `control` stays the caller's, and outlives the communicator; nobody else uses it meanwhile. Collective, and
 * so is wb_comm_close where nothing failed, which waits for the other ranks, for two timeouts and five
 * seconds at most: what one rank takes down, another might still read.
 *
 * UNSUPPORTED, on all ranks alike: no NCCL (libnccl.so.2, from 2.14 on) or no such GPU on some rank, two
 * ranks on one GPU, or with different NCCLs; the message names the rank, and `control` is as before. Other
 * failures of one rank are PEER on the others.
 *
 * The first call sets NCCL_NVLS_ENABLE=0 in the environment unless it is set: NVLink multicast holds
 * resources of the whole host, which an aborted job can leave behind. It is not safe beside a thread that
 * changes the environment. */
WB_API wb_status wb_comm_open_nccl(wb_comm *control, int gpu, bool check_sizes, wb_comm **comm_out);

#ifdef __cplusplus
}
#endif
#endif
