/* cuda_share.cu - device memory that other devices of the host store into: between processes by CUDA's
 * handles, between threads of one process as it is.
 *
 * A copy into attached memory is put on a stream of its own, where a copy engine makes it. Refuses: devices
 * of other hosts, and those between which there is no peer access. */
#include "cuda/cuda_device.h"
#include "cuda/cuda_ops.h"
#include "wb_check.h"

#include <cuda_runtime.h>
#include <pthread.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

namespace {

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
    void *block; /* the words in front of it and the memory */
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

/* ---- who has it attached ----------------------------------------------------------------------- */

/* In front of shared memory: word r is 1 while rank r has it attached. A word each, since not every pair of
 * devices has atomics. */
struct share_head {
    uint32_t attached[WB_MAX_SHARERS];
};
static_assert(sizeof(share_head) <= WB_SHARED_HEAD, "the words do not fit");

share_head *head_of(void *memory) {
    return reinterpret_cast<share_head *>(static_cast<char *>(memory) - WB_SHARED_HEAD);
}

/* The word is there when it returns, and all that this device had to store. */
wb_status say_attached(wb_device *dev, void *memory, int32_t rank, uint32_t attached) {
    WB_TRY(dev->to_device(dev, head_of(memory)->attached + rank, &attached, sizeof attached));
    return dev->to_host(dev, NULL, NULL, 0);
}

bool is_attached(wb_device *dev, void *memory) {
    share_head head = {};
    if (dev->to_host(dev, &head, head_of(memory), sizeof head) != WB_OK) return true;
    uint32_t any = 0;
    for (int r = 0; r < WB_MAX_SHARERS; r++) any |= head.attached[r];
    return any != 0;
}

/* ---- copies beside the stream -------------------------------------------------------------------- */

wb_status open_puts(wb_cuda_device *cuda) {
    cudaStream_t puts = NULL;
    cudaEvent_t after = NULL;
    if (!cuda->put_after) {
        WB_TRY(wb_cuda_check(cudaEventCreateWithFlags(&after, cudaEventDisableTiming), "memory_put"));
        cuda->put_after = after;
    }
    if (!cuda->puts)
        WB_TRY(wb_cuda_check(cudaStreamCreateWithFlags(&puts, cudaStreamNonBlocking), "memory_put"));
    if (puts) cuda->puts = puts;
    return WB_OK;
}

} // namespace

extern "C" {

wb_status wb_cuda_memory_share(wb_device *dev, size_t bytes, void **memory_out,
                               wb_shared_memory *shared_out) {
    const size_t all = wb_shared_bytes(bytes);
    void *block = NULL;
    share s;
    WB_TRY(share_of(dev, "memory_share", &s));
    WB_TRY(dev->mem_alloc(dev, all, &block));
    wb_status status = dev->zero(dev, block, all);
    if (status == WB_OK) status = dev->to_host(dev, NULL, NULL, 0);
    if (status == WB_OK) status = check_share(cudaIpcGetMemHandle(&s.handle, block), "memory_share");
    if (status != WB_OK) {
        dev->mem_free(dev, block);
        return status;
    }
    s.block = block;
    memset(shared_out, 0, sizeof *shared_out);
    memcpy(shared_out, &s, sizeof s);
    *memory_out = static_cast<char *>(block) + WB_SHARED_HEAD;
    return WB_OK;
}

wb_status wb_cuda_memory_attach(wb_device *dev, const wb_shared_memory *shared, int32_t rank,
                                void **memory_out) {
    share s, own;
    void *block = NULL;
    memcpy(&s, shared, sizeof s);
    WB_TRY(share_of(dev, "memory_attach", &own));
    if (strcmp(s.host, own.host) != 0)
        return wb_fail(WB_UNSUPPORTED, "memory_attach: memory of another host");
    WB_TRY(wb_cuda_use(dev, "memory_attach"));
    if (is_same(s.process, own.process)) {
        WB_TRY(reach(s, index_of(dev)));
        block = s.block;
    } else {
        WB_TRY(check_share(cudaIpcOpenMemHandle(&block, s.handle, cudaIpcMemLazyEnablePeerAccess),
                           "memory_attach"));
    }
    void *memory = static_cast<char *>(block) + WB_SHARED_HEAD;
    const wb_status status = say_attached(dev, memory, rank, 1);
    if (status != WB_OK)
        wb_cuda_memory_detach(dev, shared, rank, memory);
    else
        *memory_out = memory;
    return status;
}

void wb_cuda_memory_detach(wb_device *dev, const wb_shared_memory *shared, int32_t rank, void *memory) {
    share s;
    if (!memory) return; /* then there may be no share */
    memcpy(&s, shared, sizeof s);
    WB_IGNORE(wb_cuda_memory_settle(dev));
    WB_IGNORE(say_attached(dev, memory, rank, 0));
    if (!is_same(s.process, own_name))
        WB_IGNORE(check_share(cudaIpcCloseMemHandle(head_of(memory)), "memory_detach"));
}

void wb_cuda_memory_unshare(wb_device *dev, void *memory, double seconds) {
    enum { LOOKS_OF_A_SECOND = 1000 };
    if (!memory) return;
    bool attached = is_attached(dev, memory);
    for (double left = seconds; attached && left > 0; left -= 1.0 / LOOKS_OF_A_SECOND) {
        usleep(1000000 / LOOKS_OF_A_SECOND);
        attached = is_attached(dev, memory);
    }
    if (!attached) dev->mem_free(dev, head_of(memory));
}

wb_status wb_cuda_memory_put(wb_device *dev, void *to, const void *from, size_t bytes) {
    wb_cuda_device *cuda = reinterpret_cast<wb_cuda_device *>(dev);
    WB_TRY(wb_cuda_use(dev, "memory_put"));
    WB_TRY(open_puts(cuda));
    const cudaStream_t puts = static_cast<cudaStream_t>(cuda->puts);
    const cudaEvent_t after = static_cast<cudaEvent_t>(cuda->put_after);
    WB_TRY(wb_cuda_check(cudaEventRecord(after, static_cast<cudaStream_t>(dev->stream)), "memory_put"));
    WB_TRY(wb_cuda_check(cudaStreamWaitEvent(puts, after, 0), "memory_put"));
    return wb_cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, puts), "memory_put");
}

wb_status wb_cuda_memory_settle(wb_device *dev) {
    wb_cuda_device *cuda = reinterpret_cast<wb_cuda_device *>(dev);
    if (!cuda->puts) return WB_OK;
    WB_TRY(wb_cuda_use(dev, "memory_settle"));
    return wb_cuda_check(cudaStreamSynchronize(static_cast<cudaStream_t>(cuda->puts)),
                         "memory_settle, or an op before it");
}

void wb_cuda_close_puts(wb_cuda_device *cuda) {
    if (cuda->puts) {
        WB_IGNORE(wb_cuda_memory_settle(&cuda->base));
        WB_IGNORE(wb_cuda_check(cudaStreamDestroy(static_cast<cudaStream_t>(cuda->puts)), "close"));
    }
    if (cuda->put_after)
        WB_IGNORE(wb_cuda_check(cudaEventDestroy(static_cast<cudaEvent_t>(cuda->put_after)), "close"));
}
}
