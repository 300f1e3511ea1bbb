/* device.c - opening and closing devices, CPU memory and scratch, the router's names and checks.
 *
 * Owns: which instruction set's table a CPU device gets. Refuses: ops (kernels/cpu/, kernels/cuda/).
 */
#include "cpu_device.h"
#include "wb_check.h"
#include "wb_memory.h"

#ifdef WB_HAVE_CUDA
#include "cuda/cuda_ops.h"
#endif

#include <stdlib.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

enum { MAX_THREADS = 1024, ALIGNMENT = 64 };

/* ---- memory ---------------------------------------------------------------------------------- */

static wb_status aligned_memory(size_t bytes, void **out) {
    if (bytes > SIZE_MAX - ALIGNMENT) return wb_fail(WB_OUT_OF_MEMORY, "device memory: %zu bytes", bytes);
    size_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    void *memory = aligned_alloc(ALIGNMENT, rounded == 0 ? ALIGNMENT : rounded);
    if (memory == NULL) return wb_fail(WB_OUT_OF_MEMORY, "device memory: %zu bytes", bytes);
    *out = memory;
    return WB_OK;
}

static wb_status cpu_mem_alloc(wb_device *dev, size_t bytes, void **device_out) {
    (void)dev;
    return aligned_memory(bytes, device_out);
}

static void cpu_mem_free(wb_device *dev, void *device) {
    (void)dev;
    free(device);
}

static wb_status cpu_copy(wb_device *dev, void *to, const void *from, size_t bytes) {
    (void)dev;
    if (bytes > 0) memmove(to, from, bytes);
    return WB_OK;
}

static wb_status cpu_zero(wb_device *dev, void *device, size_t bytes) {
    (void)dev;
    if (bytes > 0) memset(device, 0, bytes);
    return WB_OK;
}

/* ---- threads and scratch --------------------------------------------------------------------- */

static int max_threads(void) {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

int wb_cpu_threads(const wb_device *dev, int64_t work) {
    return work < WB_CPU_PARALLEL_WORK ? 1 : dev->threads;
}

wb_status wb_cpu_scratch_reserve(wb_device *dev, size_t bytes) {
    wb_cpu_device *cpu = (wb_cpu_device *)dev;
    if (bytes <= cpu->scratch_bytes) return WB_OK;
    size_t rounded = (bytes + 4095) / 4096 * 4096;
    if (rounded < bytes || rounded > SIZE_MAX / (size_t)dev->threads)
        return wb_fail(WB_OUT_OF_MEMORY, "scratch memory: %zu bytes for each of %d threads", bytes,
                       dev->threads);
    void *memory = NULL;
    WB_TRY(aligned_memory(rounded * (size_t)dev->threads, &memory));
    free(cpu->scratch);
    cpu->scratch = memory;
    cpu->scratch_bytes = rounded;
    return WB_OK;
}

void *wb_cpu_scratch(wb_device *dev) {
    wb_cpu_device *cpu = (wb_cpu_device *)dev;
#ifdef _OPENMP
    return cpu->scratch + (size_t)omp_get_thread_num() * cpu->scratch_bytes;
#else
    return cpu->scratch;
#endif
}

wb_status wb_cpu_shared_reserve(wb_device *dev, size_t bytes, void **out) {
    wb_cpu_device *cpu = (wb_cpu_device *)dev;
    if (bytes > cpu->shared_bytes || cpu->shared == NULL) {
        void *memory = NULL;
        WB_TRY(aligned_memory(bytes, &memory));
        free(cpu->shared);
        cpu->shared = memory;
        cpu->shared_bytes = bytes;
    }
    *out = cpu->shared;
    return WB_OK;
}

/* ---- instruction sets ------------------------------------------------------------------------ */

static bool has_generic(void) {
    return true;
}

#ifdef WB_CPU_X86
static bool has_v3(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_v4(void) {
    return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

/* The best first. */
static const struct {
    const char *isa, *name;
    bool (*has)(void);
    void (*table)(wb_device *dev);
} isas[] = {
#ifdef WB_CPU_X86
    {"v4", "cpu x86-64-v4", has_v4, wb_cpu_v4_table},
    {"v3", "cpu x86-64-v3", has_v3, wb_cpu_v3_table},
#endif
    {"generic", "cpu generic", has_generic, wb_cpu_generic_table},
};
enum { ISA_COUNT = sizeof isas / sizeof isas[0] };

static wb_status open_cpu(size_t isa, int threads, wb_device **device_out) {
    if (threads < 0 || threads > MAX_THREADS)
        return wb_fail(WB_INVALID_ARGUMENT, "threads: expected 0..%d, found %d", MAX_THREADS, threads);
    int available = max_threads();
    void *memory = NULL;
    WB_TRY(WB_ALLOC(memory, 1, sizeof(wb_cpu_device), "CPU device"));
    wb_device *dev = &((wb_cpu_device *)memory)->base;
    dev->backend = WB_BACKEND_CPU;
    dev->name = isas[isa].name;
    dev->threads = threads > 0 ? threads : available < MAX_THREADS ? available : MAX_THREADS;
    dev->mem_alloc = cpu_mem_alloc;
    dev->mem_free = cpu_mem_free;
    dev->to_device = cpu_copy;
    dev->to_host = cpu_copy;
    dev->copy = cpu_copy;
    dev->zero = cpu_zero;
    isas[isa].table(dev);
    *device_out = dev;
    return WB_OK;
}

wb_status wb_device_open_cpu(int threads, wb_device **device_out) {
    size_t isa = 0;
    while (!isas[isa].has()) isa++;
    return open_cpu(isa, threads, device_out);
}

wb_status wb_cpu_open_isa(const char *isa, int threads, wb_device **device_out) {
    for (size_t i = 0; i < ISA_COUNT; i++)
        if (strcmp(isas[i].isa, isa) == 0 && isas[i].has()) return open_cpu(i, threads, device_out);
    return wb_fail(WB_UNSUPPORTED, "instruction set %s: not built, or not on this processor", isa);
}

/* ---- CUDA ------------------------------------------------------------------------------------ */

#ifdef WB_HAVE_CUDA
void wb_cuda_device_close(wb_device *device); /* kernels/cuda/ */
#else
wb_status wb_device_open_cuda(int index, wb_device **device_out) {
    (void)index, (void)device_out;
    return wb_fail(WB_UNSUPPORTED, "CUDA: Waybill was built without it");
}
#endif

void wb_device_close(wb_device *device) {
    if (device == NULL) return;
#ifdef WB_HAVE_CUDA
    if (device->backend == WB_BACKEND_CUDA) {
        wb_cuda_close(device);
        return;
    }
#endif
    wb_cpu_device *cpu = (wb_cpu_device *)device;
    free(cpu->scratch);
    free(cpu->shared);
    free(cpu);
}

wb_backend wb_device_backend(const wb_device *device) {
    return device->backend;
}

const char *wb_device_name(const wb_device *device) {
    return device->name;
}

wb_status wb_device_alloc(wb_device *device, size_t bytes, void **device_out) {
    return device->mem_alloc(device, bytes, device_out);
}

void wb_device_free(wb_device *device, void *memory) {
    device->mem_free(device, memory);
}

wb_status wb_device_upload(wb_device *device, void *memory, const void *host, size_t bytes) {
    return device->to_device(device, memory, host, bytes);
}

wb_status wb_device_download(wb_device *device, void *host, const void *memory, size_t bytes) {
    return device->to_host(device, host, memory, bytes);
}

/* ---- routers --------------------------------------------------------------------------------- */

static const char *const router_names[] = {
    [WB_ROUTER_SOFTMAX] = "softmax",           [WB_ROUTER_SOFTMAX_NORM] = "softmax_norm",
    [WB_ROUTER_TOPK_SOFTMAX] = "topk_softmax", [WB_ROUTER_SIGMOID] = "sigmoid",
    [WB_ROUTER_SQRTSOFTPLUS] = "sqrtsoftplus", [WB_ROUTER_HASH] = "hash",
};
enum { ROUTER_TYPES = sizeof router_names / sizeof router_names[0], MAX_EXPERTS = 65536, MAX_TOP_K = 64 };

const char *wb_router_name(wb_router_type type) {
    return (unsigned)type < ROUTER_TYPES ? router_names[type] : "unknown";
}

static wb_status check_groups(const wb_router *router) {
    int32_t E = router->n_experts, n_group = router->n_group, kept = router->topk_group;
    if (router->type == WB_ROUTER_HASH)
        return wb_fail(WB_INVALID_ARGUMENT, "router.n_group: a hash router has no groups, found %d", n_group);
    if (E % n_group != 0)
        return wb_fail(WB_INVALID_ARGUMENT, "router.n_group: expected a divisor of %d experts, found %d", E,
                       n_group);
    if (kept < 1 || kept > n_group)
        return wb_fail(WB_INVALID_ARGUMENT, "router.topk_group: expected 1..%d, found %d", n_group, kept);
    if (router->top_k > kept * (E / n_group))
        return wb_fail(WB_INVALID_ARGUMENT, "router.top_k: expected at most %d (%d groups of %d), found %d",
                       kept * (E / n_group), kept, E / n_group, router->top_k);
    return WB_OK;
}

wb_status wb_router_check(const wb_router *router) {
    int32_t E = router->n_experts, K = router->top_k;
    if ((unsigned)router->type >= ROUTER_TYPES)
        return wb_fail(WB_INVALID_ARGUMENT, "router.type: unknown value %d", (int)router->type);
    if (E < 1 || E > MAX_EXPERTS)
        return wb_fail(WB_INVALID_ARGUMENT, "router.n_experts: expected 1..%d, found %d", MAX_EXPERTS, E);
    int32_t most = E < MAX_TOP_K ? E : MAX_TOP_K;
    if (K < 1 || K > most)
        return wb_fail(WB_INVALID_ARGUMENT, "router.top_k: expected 1..%d, found %d", most, K);
    if (!(router->scale > -3.4e38f && router->scale < 3.4e38f))
        return wb_fail(WB_INVALID_ARGUMENT, "router.scale: expected a finite number, found %g",
                       (double)router->scale);
    return router->n_group > 1 ? check_groups(router) : WB_OK;
}
