/* cpu_split.h - whether the ops of CPU devices really split their work, which they do from a certain size on
 * (wb_cpu_threads). Included by exactly one file of a test program, which is linked with
 * --wrap=wb_cpu_threads (tests/CMakeLists.txt). */
#ifndef WB_CPU_SPLIT_H
#define WB_CPU_SPLIT_H

#include "wb_device.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

static struct {
    bool always;                  /* split whatever the size: small models are enough */
    _Atomic int64_t split, whole; /* loops of devices of several threads that were and were not split */
    _Atomic int64_t whole_work;   /* of the latest that was not */
} cpu_split;

int __real_wb_cpu_threads(const wb_device *dev, int64_t work);
int __wrap_wb_cpu_threads(const wb_device *dev, int64_t work);
int __wrap_wb_cpu_threads(const wb_device *dev, int64_t work) {
    const int threads = cpu_split.always ? dev->threads : __real_wb_cpu_threads(dev, work);
    if (threads > 1)
        cpu_split.split++;
    else if (dev->threads > 1) {
        cpu_split.whole++;
        cpu_split.whole_work = work;
    }
    return threads;
}

static inline void cpu_split_count_from_here(void) {
    cpu_split.split = cpu_split.whole = 0;
}

#endif
