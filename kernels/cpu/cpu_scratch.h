/* cpu_scratch.h - how many threads an op takes, and the memory that they work in.
 *
 * Owns: memory that grows with the largest op and lasts until the device is closed. An op reserves before it
 * starts its threads; what lies there is lost at the next reserve. Who knows the largest op beforehand has
 * reserve_scratch (cpu_reserve.c) make the memory, so that no op has to.
 */
#ifndef WB_CPU_SCRATCH_H
#define WB_CPU_SCRATCH_H

#include "wb_device.h"

/* Ops below this many elementary operations (multiply-adds, or elements times a small factor) run on one
 * thread: a team costs more than it gains. */
enum { WB_CPU_PARALLEL_WORK = 40000 };

/* Threads for an op of `work` elementary operations: 1 or dev->threads. */
int wb_cpu_threads(const wb_device *dev, int64_t work);

/* Makes sure that each thread of `dev` has `bytes` of scratch. OUT_OF_MEMORY keeps what was there. */
wb_status wb_cpu_scratch_reserve(wb_device *dev, size_t bytes);

/* The scratch of a thread of the op's own team, to be called inside the op's `omp parallel`: outside, the
 * number of the thread is one of its caller's team, which may be larger. 64-byte aligned. */
void *wb_cpu_scratch(wb_device *dev);

/* The scratch of an op that runs on its caller's thread alone, without `omp parallel`. */
void *wb_cpu_serial_scratch(wb_device *dev);

/* `bytes` of memory shared by the threads of one op, valid until the next op. 64-byte aligned. */
wb_status wb_cpu_shared_reserve(wb_device *dev, size_t bytes, void **out);

/* The same, another memory: copies of an op's operands (cpu_operands.h). */
wb_status wb_cpu_operands_reserve(wb_device *dev, size_t bytes, void **out);

/* `bytes` of 64-byte aligned, uninitialised memory, freed with free(); at least one byte. */
wb_status wb_cpu_memory(size_t bytes, void **out);

#endif
