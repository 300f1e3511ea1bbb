/* nccl_simulated.h - GPUs and NCCL without either: streams are threads that do what lies on them, in order
 * and later, and NCCL's functions are the few that the adapter calls, with their ways: opening and groups are
 * under way when the call returns, a transfer waits on the stream for its other half, whatever comes, until
 * the communicator is aborted. Ranks are threads of one process.
 *
 * It takes the place of nccl_cuda.c and nccl_library.c in the program that includes it. A fault can be set
 * for each rank. */
#ifndef NCCL_SIMULATED_H
#define NCCL_SIMULATED_H

#include "comm/exchange_device.h"
#include "comm/simulated_stream.h"
#include "nccl/nccl_library.h"

typedef enum sim_fault {
    SIM_SOUND,
    SIM_NO_NCCL,      /* no library on this rank */
    SIM_NEVER_OPENS,  /* its communicator stays in progress */
    SIM_NEVER_STARTS, /* its groups do */
    SIM_REMOTE_ERROR  /* NCCL says so once a group is under way */
} sim_fault;

static sim_fault sim_faults[DEVICE_RANKS];

/* Of a group, and groups of a communicator that have not come. */
#define SIM_ITEMS 64
#define SIM_GROUPS 128
#define SIM_HUBS 4096

/* One transfer that waits for its other half. */
typedef struct sim_item {
    struct sim_item *next;
    void *data;
    size_t bytes;
    int peer;
    bool receive, done;
} sim_item;

typedef struct sim_nccl_group {
    struct ncclComm *comm;
    bool open; /* until it has come, or was given up */
    sim_item items[SIM_ITEMS];
    size_t n;
} sim_nccl_group;

struct ncclComm {
    int rank, ranks, hub, polls;
    bool aborted, open;
    size_t n_open; /* groups */
    sim_stream *stream;
    sim_nccl_group groups[SIM_GROUPS];
    sim_nccl_group *pending; /* is not on its stream yet */
};

/* Those of one id: how many have come, and the waiting halves from one rank to another. */
typedef struct sim_hub {
    int arrived;
    sim_item *sends[DEVICE_RANKS][DEVICE_RANKS], *receives[DEVICE_RANKS][DEVICE_RANKS];
} sim_hub;

static struct {
    sim_hub hubs[SIM_HUBS];
    int n_hubs;
    atomic_int aborts; /* so far */
} sim_nccl;

/* The thread's, once it has an item. */
static _Thread_local sim_nccl_group *sim_group;

/* ---- transfers, under the mutex ------------------------------------------------------------------- */

static void sim_append(sim_item **queue, sim_item *item) {
    while (*queue) queue = &(*queue)->next;
    item->next = NULL;
    *queue = item;
}

static void sim_remove(sim_item **queue, sim_item *item) {
    while (*queue && *queue != item) queue = &(*queue)->next;
    if (*queue) *queue = item->next;
}

/* Halves of other sizes wait for ever. */
static void sim_match(sim_hub *hub, int from, int to) {
    sim_item *send, *receive;
    while ((send = hub->sends[from][to]) && (receive = hub->receives[from][to]) &&
           send->bytes == receive->bytes) {
        memcpy(sim_view(receive->data), sim_view(send->data), send->bytes);
        send->done = receive->done = true;
        hub->sends[from][to] = send->next;
        hub->receives[from][to] = receive->next;
        sim_changed();
    }
}

static bool sim_all_done(const sim_nccl_group *group) {
    for (size_t i = 0; i < group->n; i++)
        if (!group->items[i].done) return false;
    return true;
}

static sim_item **sim_queue(sim_hub *hub, int rank, const sim_item *item) {
    return item->receive ? &hub->receives[item->peer][rank] : &hub->sends[rank][item->peer];
}

static void sim_end_group(sim_nccl_group *group) {
    group->open = false;
    group->comm->n_open--;
    sim_changed();
}

/* On its stream. */
static void sim_run_group(void *opaque) {
    sim_nccl_group *group = opaque;
    const struct ncclComm *comm = group->comm;
    sim_hub *hub = &sim_nccl.hubs[comm->hub];
    for (size_t i = 0; i < group->n && !comm->aborted; i++) {
        sim_item *item = &group->items[i];
        sim_append(sim_queue(hub, comm->rank, item), item);
        if (item->receive)
            sim_match(hub, item->peer, comm->rank);
        else
            sim_match(hub, comm->rank, item->peer);
    }
    while (!comm->aborted && !sim_all_done(group)) sim_wait();
    for (size_t i = 0; i < group->n; i++)
        if (!group->items[i].done) sim_remove(sim_queue(hub, comm->rank, &group->items[i]), &group->items[i]);
    sim_end_group(group);
}

/* ---- NCCL's functions ----------------------------------------------------------------------------- */

static ncclResult_t sim_get_version(int *version) {
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

static ncclResult_t sim_get_id(ncclUniqueId *id) {
    sim_lock();
    const int hub = sim_nccl.n_hubs++;
    sim_unlock();
    if (hub >= SIM_HUBS) abort();
    memset(id, 0, sizeof *id);
    memcpy(id->internal, &hub, sizeof hub);
    return ncclSuccess;
}

static ncclResult_t sim_open(ncclComm_t *comm_out, int ranks, ncclUniqueId id, int rank,
                             ncclConfig_t *config) {
    struct ncclComm *comm = sim_allocate(sizeof *comm);
    if (config->blocking != 0) abort();
    comm->rank = rank;
    comm->ranks = ranks;
    memcpy(&comm->hub, id.internal, sizeof comm->hub);
    sim_lock();
    sim_nccl.hubs[comm->hub].arrived += sim_faults[rank] != SIM_NEVER_OPENS;
    sim_unlock();
    *comm_out = comm;
    return ncclInProgress;
}

/* A group comes onto its stream some looks after its end. */
static ncclResult_t sim_state(ncclComm_t comm, ncclResult_t *state) {
    sim_lock();
    comm->open = comm->open || sim_nccl.hubs[comm->hub].arrived == comm->ranks;
    if (comm->pending && sim_faults[comm->rank] != SIM_NEVER_STARTS && ++comm->polls > 3) {
        sim_put_call(comm->stream, sim_run_group, comm->pending);
        comm->pending = NULL;
    }
    *state = !comm->open || comm->pending ? ncclInProgress : ncclSuccess;
    if (comm->n_open > 0 && !comm->pending && sim_faults[comm->rank] == SIM_REMOTE_ERROR)
        *state = ncclRemoteError;
    sim_unlock();
    return ncclSuccess;
}

static ncclResult_t sim_abort(ncclComm_t comm) {
    sim_lock();
    sim_nccl.aborts++;
    comm->aborted = true;
    if (comm->pending) sim_end_group(comm->pending);
    comm->pending = NULL;
    sim_changed();
    while (comm->n_open > 0) sim_wait();
    sim_unlock();
    free(comm);
    return ncclSuccess;
}

static const char *sim_error_string(ncclResult_t code) {
    return code == ncclRemoteError ? "remote error" : "another error";
}

static const char *sim_last_error(ncclComm_t comm) {
    (void)comm;
    return "simulated";
}

static ncclResult_t sim_group_start(void) {
    sim_group = NULL;
    return ncclSuccess;
}

/* Under the mutex. */
static sim_nccl_group *sim_new_group(struct ncclComm *comm) {
    for (size_t i = 0; i < SIM_GROUPS; i++)
        if (!comm->groups[i].open) {
            comm->groups[i].comm = comm;
            comm->groups[i].open = true;
            comm->groups[i].n = 0;
            comm->n_open++;
            return &comm->groups[i];
        }
    abort();
}

static ncclResult_t sim_put_item(void *data, size_t bytes, int peer, bool receive, ncclComm_t comm,
                                 cudaStream_t stream) {
    sim_lock();
    if (bytes == 0 || peer == comm->rank || peer < 0 || peer >= comm->ranks || comm->pending) abort();
    if (!sim_group) sim_group = sim_new_group(comm);
    if (sim_group->n == SIM_ITEMS || sim_group->comm != comm) abort();
    comm->stream = (sim_stream *)stream;
    sim_group->items[sim_group->n++] = (sim_item){NULL, data, bytes, peer, receive, false};
    sim_unlock();
    return ncclSuccess;
}

static ncclResult_t sim_send(const void *data, size_t n, ncclDataType_t type, int peer, ncclComm_t comm,
                             cudaStream_t stream) {
    if (type != ncclInt8) abort();
    return sim_put_item((void *)(uintptr_t)data, n, peer, false, comm, stream);
}

static ncclResult_t sim_receive(void *data, size_t n, ncclDataType_t type, int peer, ncclComm_t comm,
                                cudaStream_t stream) {
    if (type != ncclInt8) abort();
    return sim_put_item(data, n, peer, true, comm, stream);
}

static ncclResult_t sim_group_end(void) {
    if (!sim_group) return ncclSuccess;
    sim_lock();
    sim_group->comm->polls = 0;
    sim_group->comm->pending = sim_group;
    sim_unlock();
    return ncclInProgress;
}

/* ---- in place of nccl_library.c and nccl_cuda.c --------------------------------------------------- */

/* The thread's GPU, which is its rank. */
static _Thread_local int sim_gpu = -1;

wb_status wb_nccl_load(const wb_nccl_library **library_out) {
    static const wb_nccl_library simulated = {
        sim_get_version, sim_get_id,      sim_open,      sim_abort, sim_state,   sim_error_string,
        sim_last_error,  sim_group_start, sim_group_end, sim_send,  sim_receive, NCCL_VERSION_CODE};
    if (sim_gpu >= 0 && sim_faults[sim_gpu] == SIM_NO_NCCL)
        return wb_fail(WB_UNSUPPORTED, "NCCL: libnccl.so.2 is not there");
    *library_out = &simulated;
    return WB_OK;
}

wb_status wb_gpu_use(int gpu) {
    sim_gpu = gpu;
    return WB_OK;
}

wb_status wb_gpu_id(int gpu, unsigned char id_out[WB_GPU_ID_BYTES]) {
    if (gpu < 0 || gpu >= DEVICE_RANKS)
        return wb_fail(WB_UNSUPPORTED, "GPU %d: this machine has %d", gpu, DEVICE_RANKS);
    memset(id_out, gpu + 1, WB_GPU_ID_BYTES);
    return WB_OK;
}

wb_status wb_gpu_alloc(size_t bytes, void **memory_out) {
    *memory_out = malloc(bytes);
    return *memory_out ? WB_OK : wb_fail(WB_OUT_OF_MEMORY, "simulated memory");
}

void wb_gpu_free(void *memory) {
    free(memory);
}

#endif
