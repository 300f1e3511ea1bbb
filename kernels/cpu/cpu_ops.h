/* cpu_ops.h - the ops of one instruction set (WB_CPU_ISA) and the loop hints that they share.
 *
 * Owns: the names and the declarations. Contracts and shapes are those of wb_kernels.h.
 */
#ifndef WB_CPU_OPS_H
#define WB_CPU_OPS_H

#include "cpu/cpu_scratch.h"
#include "router_rules.h"
#include "wb_check.h"

#define WB_CPU_PASTE_(isa, name) wb_cpu_##isa##_##name
#define WB_CPU_PASTE(isa, name) WB_CPU_PASTE_(isa, name)
#define WB_CPU(name) WB_CPU_PASTE(WB_CPU_ISA, name)

/* The iterations of the next loop touch no element that another one writes (an output may be an input,
 * index for index). */
#if defined(__clang__)
#define WB_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define WB_INDEPENDENT _Pragma("GCC ivdep")
#else
#define WB_INDEPENDENT
#endif

#if defined(__GNUC__)
#define WB_INLINE static inline __attribute__((always_inline))
#else
#define WB_INLINE static inline
#endif

/* The CPU has every op, each of the type of its contract in wb_kernels.h. */
#define WB_CPU_DECLARE(op) extern wb_##op##_fn WB_CPU(op);
WB_COMPUTE_OPS(WB_CPU_DECLARE)
#undef WB_CPU_DECLARE

#endif
