/* cpu_ops.h - the ops of one instruction set (WB_CPU_ISA) and the loop hints that they share.
 *
 * Owns: the names and the declarations. Contracts and shapes are those of wb_kernels.h.
 */
#ifndef WB_CPU_OPS_H
#define WB_CPU_OPS_H

#include "cpu_device.h"
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

wb_status WB_CPU(matmul)(wb_device *dev, int64_t count, const wb_matmul *list);
wb_status WB_CPU(embed_forward)(wb_device *dev, int64_t T, int64_t H, const int32_t *tokens,
                                const void *table, wb_dtype table_dtype, float *y);
wb_status WB_CPU(embed_backward)(wb_device *dev, int64_t T, int64_t H, const int32_t *tokens, const float *dy,
                                 float *dtable);
wb_status WB_CPU(rmsnorm_forward)(wb_device *dev, int64_t n, int64_t width, const float *x, const float *w,
                                  float eps, float *y);
wb_status WB_CPU(rmsnorm_backward)(wb_device *dev, int64_t n, int64_t width, const float *x, const float *w,
                                   float eps, const float *dy, float *dx, float *dw);
wb_status WB_CPU(rope)(wb_device *dev, int64_t T, int32_t n_heads, int32_t head_dim, int32_t rot_dim,
                       const int32_t *pos, const float *cos_table, const float *sin_table, bool inverse,
                       float *x);
wb_status WB_CPU(kv_write)(wb_device *dev, int64_t T, int64_t width, const float *x, const int64_t *rows,
                           void *cache, wb_dtype cache_dtype);
wb_status WB_CPU(attention_forward)(wb_device *dev, const wb_attention *args, float *out);
wb_status WB_CPU(attention_backward)(wb_device *dev, const wb_attention *args, const float *dout, float *dq,
                                     float *dk, float *dv);
wb_status WB_CPU(topk)(wb_device *dev, const wb_topk *args);
wb_status WB_CPU(gate_forward)(wb_device *dev, const wb_router *router, int64_t T, const float *logits,
                               wb_ids ids, float *weights);
wb_status WB_CPU(gate_backward)(wb_device *dev, const wb_router *router, int64_t T, const float *logits,
                                wb_ids ids, const float *dweights, float *dlogits);
wb_status WB_CPU(moe_sort)(wb_device *dev, int64_t T, int32_t K, int32_t E, wb_ids ids, int32_t *slot_row,
                           int32_t *row_token, int64_t *counts);
wb_status WB_CPU(gather_rows)(wb_device *dev, int64_t n, int64_t width, const int32_t *index, const float *in,
                              float *out);
wb_status WB_CPU(moe_combine)(wb_device *dev, int64_t T, int32_t K, int64_t H, const float *rows,
                              const int32_t *slot_row, const float *weights, bool accumulate, float *y);
wb_status WB_CPU(moe_combine_backward)(wb_device *dev, int64_t T, int32_t K, int64_t H, const float *rows,
                                       const int32_t *slot_row, const float *weights, const float *dy,
                                       float *drows, float *dweights);
wb_status WB_CPU(swiglu_forward)(wb_device *dev, int64_t n, int64_t F, const float *gate_up, float *out);
wb_status WB_CPU(swiglu_backward)(wb_device *dev, int64_t n, int64_t F, const float *gate_up,
                                  const float *dout, float *dgate_up);
wb_status WB_CPU(add)(wb_device *dev, int64_t n, const float *x, float *y);
wb_status WB_CPU(bias_forward)(wb_device *dev, int64_t n, int64_t width, const float *b, float *y);
wb_status WB_CPU(bias_backward)(wb_device *dev, int64_t n, int64_t width, const float *dy, float *db);
wb_status WB_CPU(clamp)(wb_device *dev, int64_t n, float limit, float *x);
wb_status WB_CPU(clamp_backward)(wb_device *dev, int64_t n, float limit, const float *x, float *dx);
wb_status WB_CPU(logprob_forward)(wb_device *dev, int64_t T, int64_t V, const float *logits,
                                  const int32_t *targets, float *logprobs);
wb_status WB_CPU(logprob_backward)(wb_device *dev, int64_t T, int64_t V, const float *logits,
                                   const int32_t *targets, const float *dlogprobs, float *dlogits);
wb_status WB_CPU(sample)(wb_device *dev, int64_t B, int64_t V, const float *logits,
                         const wb_sample_params *params, int32_t *tokens, float *logprobs);
wb_status WB_CPU(sum_squares)(wb_device *dev, int64_t n, const float *x, double *sum_out);
wb_status WB_CPU(adamw)(wb_device *dev, int64_t n, const wb_adamw *hyper, const float *g, float *m, float *v,
                        float *w);
wb_status WB_CPU(cast)(wb_device *dev, int64_t n, const void *from, wb_dtype from_dtype, void *to,
                       wb_dtype to_dtype);

#endif
