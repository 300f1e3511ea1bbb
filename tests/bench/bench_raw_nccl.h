/* bench_raw_nccl.h - raw sends and receives of NCCL, which what moves bytes here is compared with: a
 * communicator of NCCL's default kind, which blocks, and one stream of its own. */
#ifndef WB_BENCH_RAW_NCCL_H
#define WB_BENCH_RAW_NCCL_H

#include "nccl/nccl_library.h"

#include <cuda_runtime_api.h>
#include <mpi.h>
#include <stdio.h>
#include <string.h>

typedef struct raw_nccl {
    const wb_nccl_library *nccl;
    ncclComm_t comm;
    cudaStream_t stream;
    int rank, ranks;
} raw_nccl;

static inline void raw_must(bool held, const char *why) {
    if (held) return;
    fprintf(stderr, "raw NCCL: %s\n", why);
    MPI_Abort(MPI_COMM_WORLD, 1);
}

static inline void raw_check(const raw_nccl *raw, ncclResult_t code) {
    raw_must(code == ncclSuccess, code == ncclSuccess ? "" : raw->nccl->GetErrorString(code));
}

/* On the thread's current GPU. Collective over MPI_COMM_WORLD. */
static inline void raw_open(raw_nccl *raw) {
    ncclUniqueId id;
    memset(&id, 0, sizeof id);
    MPI_Comm_rank(MPI_COMM_WORLD, &raw->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &raw->ranks);
    raw_must(wb_nccl_load(&raw->nccl) == WB_OK, wb_error_message());
    if (raw->rank == 0) raw_check(raw, raw->nccl->GetUniqueId(&id));
    MPI_Bcast(&id, (int)sizeof id, MPI_BYTE, 0, MPI_COMM_WORLD);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 1;
    raw_check(raw, raw->nccl->CommInitRankConfig(&raw->comm, raw->ranks, id, raw->rank, &config));
    raw_must(cudaStreamCreateWithFlags(&raw->stream, cudaStreamNonBlocking) == cudaSuccess, "stream");
}

static inline void raw_close(raw_nccl *raw) {
    MPI_Barrier(MPI_COMM_WORLD);
    raw_check(raw, raw->nccl->CommAbort(raw->comm));
    raw_must(cudaStreamDestroy(raw->stream) == cudaSuccess, "stream");
}

/* One group: `bytes` to each other rank and as many from it; rank r's lie at r * bytes. */
static inline void raw_call(const raw_nccl *raw, char *send, char *recv, size_t bytes) {
    raw_check(raw, raw->nccl->GroupStart());
    for (int i = 1; i < raw->ranks; i++) {
        const int to = (raw->rank + i) % raw->ranks, from = (raw->rank - i + raw->ranks) % raw->ranks;
        raw_check(
            raw, raw->nccl->Recv(recv + (size_t)from * bytes, bytes, ncclInt8, from, raw->comm, raw->stream));
        raw_check(raw,
                  raw->nccl->Send(send + (size_t)to * bytes, bytes, ncclInt8, to, raw->comm, raw->stream));
    }
    raw_check(raw, raw->nccl->GroupEnd());
}

static inline void raw_wait(const raw_nccl *raw) {
    raw_must(cudaStreamSynchronize(raw->stream) == cudaSuccess, "stream");
}

#endif
