/* cpu_ops.h - the ops of one instruction set (WB_CPU_ISA), and the loop hints and bounds that they share.
 *
 * Owns: the names and the declarations. Contracts and shapes are those of wb_ops_*.h.
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

static inline int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static inline int64_t max64(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* The CPU has every op, each of the type of its contract in wb_ops_*.h. */
#define WB_CPU_DECLARE(op) extern wb_##op##_fn WB_CPU(op);
WB_COMPUTE_OPS(WB_CPU_DECLARE)
WB_LAYOUT_OPS(WB_CPU_DECLARE)
WB_CPU_DECLARE(reserve_scratch)
#undef WB_CPU_DECLARE

/* Bytes that a thread needs in an op: what the op reserves, and reserve_scratch before it. */
size_t WB_CPU(topk_bytes)(const wb_router *router);
size_t WB_CPU(sample_bytes)(int64_t V);
/* Of args the heads alone are read. */
size_t WB_CPU(attention_forward_bytes)(const wb_attention *args, int64_t keys);
size_t WB_CPU(attention_backward_bytes)(const wb_attention *args, int64_t keys);
size_t WB_CPU(entry_attention_forward_bytes)(const wb_attention *heads, int64_t keys);
size_t WB_CPU(entry_attention_backward_bytes)(const wb_attention *heads, int64_t keys);
size_t WB_CPU(indexer_bytes)(int64_t n_heads, int64_t head_dim, int64_t entries);
size_t WB_CPU(delta_forward_bytes)(wb_delta_heads heads);
size_t WB_CPU(delta_backward_bytes)(wb_delta_heads heads);

/* And that the threads of an op share. In the memory of operands: entries of the call, keys of a query. */
size_t WB_CPU(entry_attention_shared_bytes)(const wb_attention *heads, int64_t T, int64_t entries,
                                            int64_t keys);
/* In its own. Of attention, n_heads: those of a backward with sinks, 0 of others. */
static inline size_t wb_cpu_attention_plan_bytes(int64_t T, int64_t n_heads) {
    return (size_t)T * 2 * sizeof(int64_t) + (size_t)(T * n_heads) * sizeof(float);
}
/* Terms of the gradients of sinks. */
static inline size_t wb_cpu_sink_bytes(int64_t T, int64_t n_heads) {
    return (size_t)(T * n_heads) * sizeof(float);
}
static inline size_t wb_cpu_hyper_bytes(int64_t T, int64_t M) {
    return (size_t)(T * (M + 3)) * sizeof(float);
}
static inline size_t wb_cpu_group_bytes(int64_t n_products) {
    return (size_t)n_products * sizeof(wb_matmul) + (size_t)(n_products + 1) * sizeof(int64_t);
}
/* Of the backward of a gated delta rule. */
static inline size_t wb_cpu_delta_bytes(int64_t T, wb_delta_heads heads) {
    return (size_t)(T * heads.n_value) * sizeof(float);
}
enum { WB_CPU_SUM_BLOCK = 8192 };
static inline size_t wb_cpu_sum_bytes(int64_t n) {
    return (size_t)((n + WB_CPU_SUM_BLOCK - 1) / WB_CPU_SUM_BLOCK) * sizeof(double);
}

#endif
