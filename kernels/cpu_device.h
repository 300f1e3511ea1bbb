/* cpu_device.h - the CPU device behind wb_device and what its ops share (internal, not installed).
 *
 * Owns: the scratch memory of a device, the choice of threads, the list of instruction sets. Refuses: ops.
 *
 * Every file of kernels/cpu/ is compiled once for each instruction set with WB_CPU_ISA = generic, v3
 * (x86-64-v3) or v4 (x86-64-v4); WB_CPU(name) gives each build its own symbols. All builds give the same
 * bits.
 */
#ifndef WB_CPU_DEVICE_H
#define WB_CPU_DEVICE_H

#include "wb_device.h"

typedef struct wb_cpu_device {
    wb_device base;
    char *scratch; /* [threads][scratch_bytes], 64-byte aligned; owner: this */
    size_t scratch_bytes;
    void *shared; /* one more buffer for the op as a whole; owner: this */
    size_t shared_bytes;
} wb_cpu_device;

/* Ops below this many elementary operations (multiply-adds, or elements times a small factor) run on one
 * thread: a team costs more than it gains. */
enum { WB_CPU_PARALLEL_WORK = 40000 };

/* Threads for an op of `work` elementary operations: 1 or dev->threads. */
int wb_cpu_threads(const wb_device *dev, int64_t work);

/* Makes sure that each thread of `dev` has `bytes` of scratch; the contents are lost when it grows. */
wb_status wb_cpu_scratch_reserve(wb_device *dev, size_t bytes);

/* The calling OpenMP thread's scratch, 64-byte aligned. */
void *wb_cpu_scratch(wb_device *dev);

/* `bytes` of memory shared by the threads of one op, valid until the next op. Result 64-byte aligned. */
wb_status wb_cpu_shared_reserve(wb_device *dev, size_t bytes, void **out);

/* wb_device_open_cpu for one instruction set: "generic", "v3", "v4". UNSUPPORTED when it was not built or
 * this processor lacks it. For tests: every one of them gives the same bits. */
wb_status wb_cpu_open_isa(const char *isa, int threads, wb_device **device_out);

/* Sets the op pointers of one instruction set (all but memory). */
void wb_cpu_generic_table(wb_device *dev);
void wb_cpu_v3_table(wb_device *dev);
void wb_cpu_v4_table(wb_device *dev);

#endif
