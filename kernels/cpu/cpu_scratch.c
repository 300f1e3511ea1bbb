/* cpu_scratch.c - see cpu_scratch.h. */
#include "cpu/cpu_scratch.h"
#include "cpu/cpu_device.h"
#include "wb_check.h"

#include <stdlib.h>
#include <sys/mman.h>

#ifdef _OPENMP
#include <omp.h>
#endif

enum { ALIGNMENT = 64, PAGE = 4096, LARGE_PAGE = 2 << 20 };

/* Memory of several large pages begins at one and is asked to be of them: weights are read from beginning to
 * end in every step, which 4 KiB pages slow down by a quarter (translations do not fit their cache). */
static size_t alignment_of(size_t bytes) {
#ifdef MADV_HUGEPAGE
    return bytes >= 2 * (size_t)LARGE_PAGE ? LARGE_PAGE : ALIGNMENT;
#else
    (void)bytes;
    return ALIGNMENT;
#endif
}

/* What is taken is what was asked for, to whole cache lines: callers count it beforehand. */
wb_status wb_cpu_memory(size_t bytes, void **out) {
    const size_t alignment = alignment_of(bytes);
    if (bytes > SIZE_MAX - alignment) return wb_fail(WB_OUT_OF_MEMORY, "device memory: %zu bytes", bytes);
    const size_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    void *memory = NULL;
    if (posix_memalign(&memory, alignment, rounded == 0 ? ALIGNMENT : rounded) != 0)
        return wb_fail(WB_OUT_OF_MEMORY, "device memory: %zu bytes", bytes);
#ifdef MADV_HUGEPAGE
    /* Where the system has none, ordinary pages do. */
    if (alignment == LARGE_PAGE) (void)madvise(memory, bytes / LARGE_PAGE * LARGE_PAGE, MADV_HUGEPAGE);
#endif
    *out = memory;
    return WB_OK;
}

int wb_cpu_threads(const wb_device *dev, int64_t work) {
    return work < WB_CPU_PARALLEL_WORK ? 1 : dev->threads;
}

wb_status wb_cpu_scratch_reserve(wb_device *dev, size_t bytes) {
    wb_cpu_device *cpu = (wb_cpu_device *)dev;
    if (bytes <= cpu->scratch_bytes) return WB_OK;
    size_t rounded = (bytes + PAGE - 1) / PAGE * PAGE;
    if (rounded < bytes || rounded > SIZE_MAX / (size_t)dev->threads)
        return wb_fail(WB_OUT_OF_MEMORY, "scratch memory: %zu bytes for each of %d threads", bytes,
                       dev->threads);
    void *memory = NULL;
    WB_TRY(wb_cpu_memory(rounded * (size_t)dev->threads, &memory));
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

void *wb_cpu_serial_scratch(wb_device *dev) {
    return ((wb_cpu_device *)dev)->scratch;
}

static wb_status reserve(size_t bytes, void **memory, size_t *memory_bytes, void **out) {
    if (bytes > *memory_bytes || !*memory) {
        void *larger = NULL;
        WB_TRY(wb_cpu_memory(bytes, &larger));
        free(*memory);
        *memory = larger;
        *memory_bytes = bytes;
    }
    *out = *memory;
    return WB_OK;
}

wb_status wb_cpu_shared_reserve(wb_device *dev, size_t bytes, void **out) {
    wb_cpu_device *cpu = (wb_cpu_device *)dev;
    return reserve(bytes, &cpu->shared, &cpu->shared_bytes, out);
}

wb_status wb_cpu_operands_reserve(wb_device *dev, size_t bytes, void **out) {
    wb_cpu_device *cpu = (wb_cpu_device *)dev;
    return reserve(bytes, &cpu->operands, &cpu->operands_bytes, out);
}
