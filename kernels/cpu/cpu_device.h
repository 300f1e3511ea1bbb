/* cpu_device.h - the CPU device behind wb_device, and the instruction sets that it can run on.
 *
 * The files of kernels/cpu/ that hold ops are compiled once for each instruction set with WB_CPU_ISA =
 * generic, v3 (x86-64-v3) or v4 (x86-64-v4); WB_CPU(name) gives each build its own symbols. All builds give
 * the same bits. cpu_device.c and cpu_scratch.c are compiled once.
 */
#ifndef WB_CPU_DEVICE_H
#define WB_CPU_DEVICE_H

#include "wb_device.h"

/* base comes first: a wb_device * of this backend points to a wb_cpu_device. */
typedef struct wb_cpu_device {
    wb_device base;
    /* [threads][scratch_bytes], 64-byte aligned; owner: this */
    char *scratch;
    size_t scratch_bytes;
    /* one more buffer, for the op as a whole; owner: this */
    void *shared;
    size_t shared_bytes;
    /* and one for copies of its operands; owner: this */
    void *operands;
    size_t operands_bytes;
} wb_cpu_device;

/* wb_device_open_cpu for one instruction set: "generic", "v3", "v4". UNSUPPORTED when it was not built or
 * this processor lacks it. For tests: every one of them gives the same bits. */
wb_status wb_cpu_open_isa(const char *isa, int threads, wb_device **device_out);

/* Sets the op pointers of one instruction set (all but memory). */
void wb_cpu_generic_table(wb_device *dev);
void wb_cpu_v3_table(wb_device *dev);
void wb_cpu_v4_table(wb_device *dev);

#endif
