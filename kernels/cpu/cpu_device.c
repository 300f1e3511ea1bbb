/* cpu_device.c - opening and closing a CPU device, and its memory.
 *
 * Owns: which instruction set's table a device gets. Refuses: ops, and the memory that they work in
 * (cpu_scratch.c).
 */
#include "cpu/cpu_device.h"
#include "cpu/cpu_scratch.h"
#include "wb_check.h"
#include "wb_digest_rules.h"
#include "wb_isa.h"
#include "wb_memory.h"

#include <stdlib.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

enum { MAX_THREADS = 1024 };

/* ---- memory -------------------------------------------------------------------------------------- */

static wb_status cpu_mem_alloc(wb_device *dev, size_t bytes, void **device_out) {
    (void)dev;
    return wb_cpu_memory(bytes, device_out);
}

static void cpu_mem_free(wb_device *dev, void *device) {
    (void)dev;
    free(device);
}

/* A copy is done when it returns: there is nothing to wait for, and every event is this one. */
static char done_event;

static wb_status cpu_event_open(wb_device *dev, void **event_out) {
    (void)dev;
    *event_out = &done_event;
    return WB_OK;
}

static void cpu_event_close(wb_device *dev, void *event) {
    (void)dev, (void)event;
}

static wb_status cpu_event_look(wb_device *dev, void *event, bool *come_out) {
    (void)dev, (void)event;
    *come_out = true;
    return WB_OK;
}

static wb_status cpu_event_wait(wb_device *dev, void *event) {
    (void)dev, (void)event;
    return WB_OK;
}

static wb_status cpu_copy(wb_device *dev, void *to, const void *from, size_t bytes) {
    (void)dev;
    if (bytes > 0) memmove(to, from, bytes);
    return WB_OK;
}

static wb_status cpu_start_to_host(wb_device *dev, void *host, const void *device, size_t bytes,
                                   void *event) {
    (void)event;
    return cpu_copy(dev, host, device, bytes);
}

static wb_status cpu_zero(wb_device *dev, void *device, size_t bytes) {
    (void)dev;
    if (bytes > 0) memset(device, 0, bytes);
    return WB_OK;
}

static wb_status cpu_digest(wb_device *dev, const void *data, size_t bytes, uint64_t *digest_out) {
    uint64_t sum = 0;
    (void)dev;
    for (uint64_t i = 0; i < bytes / 8; i++) sum += wb_digest_word(wb_digest_load(data, 8 * (i + 1), i), i);
    if (bytes % 8 > 0) sum += wb_digest_word(wb_digest_load(data, bytes, bytes / 8), bytes / 8);
    *digest_out = sum;
    return WB_OK;
}

/* ---- instruction sets ---------------------------------------------------------------------------- */

/* The best first. */
static const struct {
    const char *isa, *name;
    wb_isa needs;
    void (*table)(wb_device *dev);
} isas[] = {
#ifdef WB_LANES_X86
    {"v4", "cpu x86-64-v4", WB_ISA_V4, wb_cpu_v4_table},
    {"v3", "cpu x86-64-v3", WB_ISA_V3, wb_cpu_v3_table},
#endif
    {"generic", "cpu generic", WB_ISA_GENERIC, wb_cpu_generic_table},
};
enum { ISA_COUNT = sizeof isas / sizeof isas[0] };

/* ---- opening and closing ------------------------------------------------------------------------- */

static int available_threads(void) {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

static void cpu_close(wb_device *dev) {
    wb_cpu_device *cpu = (wb_cpu_device *)dev;
    free(cpu->scratch);
    free(cpu->shared);
    free(cpu->operands);
    free(cpu);
}

static wb_status open_cpu(size_t isa, int threads, wb_device **device_out) {
    if (threads < 0 || threads > MAX_THREADS)
        return wb_fail(WB_INVALID_ARGUMENT, "threads: expected 0..%d, found %d", MAX_THREADS, threads);
    int available = available_threads();
    wb_cpu_device *cpu;
    WB_TRY(WB_NEW(cpu, 1, "CPU device"));
    wb_device *dev = &cpu->base;
    dev->backend = WB_BACKEND_CPU;
    dev->name = isas[isa].name;
    dev->threads = threads > 0 ? threads : available < MAX_THREADS ? available : MAX_THREADS;
    dev->close = cpu_close;
    dev->mem_alloc = cpu_mem_alloc;
    dev->mem_free = cpu_mem_free;
    dev->host_alloc = cpu_mem_alloc;
    dev->host_free = cpu_mem_free;
    dev->to_device = cpu_copy;
    dev->to_host = cpu_copy;
    dev->event_open = cpu_event_open;
    dev->event_close = cpu_event_close;
    dev->start_to_host = cpu_start_to_host;
    dev->event_look = cpu_event_look;
    dev->event_wait = cpu_event_wait;
    dev->copy = cpu_copy;
    dev->zero = cpu_zero;
    dev->digest = cpu_digest;
    isas[isa].table(dev);
    *device_out = dev;
    return WB_OK;
}

wb_status wb_device_open_cpu(int threads, wb_device **device_out) {
    size_t isa = 0;
    while (isas[isa].needs > wb_isa_of_machine()) isa++;
    return open_cpu(isa, threads, device_out);
}

wb_status wb_cpu_open_isa(const char *isa, int threads, wb_device **device_out) {
    for (size_t i = 0; i < ISA_COUNT; i++)
        if (strcmp(isas[i].isa, isa) == 0 && isas[i].needs <= wb_isa_of_machine())
            return open_cpu(i, threads, device_out);
    return wb_fail(WB_UNSUPPORTED, "instruction set %s: not built, or not on this processor", isa);
}
