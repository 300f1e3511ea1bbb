/* cuda_share.cu - device memory that other devices of the host store into: between processes by CUDA's
 * handles, between threads of one process as it is.
 *
 * Refuses: devices of other hosts, and those between which there is no peer access. */
#include "cuda/cuda_device.h"
#include "cuda/cuda_ops.h"
#include "wb_check.h"

#include <cuda_runtime.h>
#include <pthread.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

namespace {

/* Smaller allocations may lie in one block, which a handle would show as a whole. */
const size_t BLOCK_BYTES = static_cast<size_t>(2) << 20;

/* Says which process this is, and is drawn once: two containers of a host may have its name and process
 * numbers alike. */
struct process_name {
    unsigned char bytes[16];
};

process_name own_name;
bool is_drawn;
pthread_once_t drawing = PTHREAD_ONCE_INIT;

void draw_name() {
    is_drawn = getrandom(own_name.bytes, sizeof own_name.bytes, 0) == sizeof own_name.bytes;
}

/* What wb_shared_memory holds. */
struct share {
    char host[64]; /* the beginning of its name */
    process_name process;
    void *memory;
    int32_t device;
    cudaIpcMemHandle_t handle;
};
static_assert(sizeof(share) <= sizeof(wb_shared_memory), "a share does not fit");

int index_of(const wb_device *dev) {
    return reinterpret_cast<const wb_cuda_device *>(dev)->index;
}

/* A share whose memory is not known yet. */
wb_status share_of(const wb_device *dev, const char *what, share *share_out) {
    share s = {};
    if (pthread_once(&drawing, draw_name) != 0 || !is_drawn)
        return wb_fail(WB_UNSUPPORTED, "%s: the system gives no random bytes", what);
    (void)gethostname(s.host, sizeof s.host - 1);
    s.process = own_name;
    s.device = index_of(dev);
    *share_out = s;
    return WB_OK;
}

bool is_same(const process_name &a, const process_name &b) {
    return memcmp(a.bytes, b.bytes, sizeof a.bytes) == 0;
}

wb_status check_share(cudaError_t error, const char *what) {
    if (error == cudaSuccess) return WB_OK;
    (void)cudaGetLastError();
    return wb_fail(WB_UNSUPPORTED, "%s: CUDA: %s (%s)", what, cudaGetErrorString(error),
                   cudaGetErrorName(error));
}

/* Memory of this process. */
wb_status reach(const share &s, int index) {
    int can = 0;
    if (s.device == index) return WB_OK;
    WB_TRY(check_share(cudaDeviceCanAccessPeer(&can, index, s.device), "memory_attach"));
    if (!can)
        return wb_fail(WB_UNSUPPORTED, "memory_attach: CUDA device %d does not reach device %d", index,
                       s.device);
    const cudaError_t error = cudaDeviceEnablePeerAccess(s.device, 0);
    if (error != cudaErrorPeerAccessAlreadyEnabled) return check_share(error, "memory_attach");
    (void)cudaGetLastError();
    return WB_OK;
}

} // namespace

extern "C" {

wb_status wb_cuda_memory_share(wb_device *dev, size_t bytes, void **memory_out,
                               wb_shared_memory *shared_out) {
    void *memory = NULL;
    share s;
    WB_TRY(share_of(dev, "memory_share", &s));
    WB_TRY(dev->mem_alloc(dev, (bytes + BLOCK_BYTES - 1) / BLOCK_BYTES * BLOCK_BYTES, &memory));
    wb_status status = dev->zero(dev, memory, bytes);
    if (status == WB_OK) status = dev->to_host(dev, NULL, NULL, 0);
    if (status == WB_OK) status = check_share(cudaIpcGetMemHandle(&s.handle, memory), "memory_share");
    if (status != WB_OK) {
        dev->mem_free(dev, memory);
        return status;
    }
    s.memory = memory;
    memset(shared_out, 0, sizeof *shared_out);
    memcpy(shared_out, &s, sizeof s);
    *memory_out = memory;
    return WB_OK;
}

wb_status wb_cuda_memory_attach(wb_device *dev, const wb_shared_memory *shared, void **memory_out) {
    share s, own;
    void *memory = NULL;
    memcpy(&s, shared, sizeof s);
    WB_TRY(share_of(dev, "memory_attach", &own));
    if (strcmp(s.host, own.host) != 0)
        return wb_fail(WB_UNSUPPORTED, "memory_attach: memory of another host");
    WB_TRY(wb_cuda_use(dev, "memory_attach"));
    if (is_same(s.process, own.process)) {
        WB_TRY(reach(s, index_of(dev)));
        memory = s.memory;
    } else {
        WB_TRY(check_share(cudaIpcOpenMemHandle(&memory, s.handle, cudaIpcMemLazyEnablePeerAccess),
                           "memory_attach"));
    }
    *memory_out = memory;
    return WB_OK;
}

void wb_cuda_memory_detach(wb_device *dev, const wb_shared_memory *shared, void *memory) {
    share s;
    if (!memory) return; /* then there may be no share */
    memcpy(&s, shared, sizeof s);
    if (is_same(s.process, own_name)) return;
    WB_IGNORE(dev->to_host(dev, NULL, NULL, 0));
    WB_IGNORE(check_share(cudaIpcCloseMemHandle(memory), "memory_detach"));
}
}
