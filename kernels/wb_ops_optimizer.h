/* wb_ops_optimizer.h - the norm of gradients and the update of weights.
 *
 * What all ops have in common is said in wb_kernels.h. */
#ifndef WB_OPS_OPTIMIZER_H
#define WB_OPS_OPTIMIZER_H

#include "wb_operands.h"

#ifdef __cplusplus
extern "C" {
#endif

/* sums[count] (device) = the sum of the squares of each of x[count, n], in f64, in an order that depends on n
 * alone. */
typedef wb_status wb_sum_squares_fn(wb_device *dev, int64_t count, int64_t n, wb_rows x, double *sums);

typedef struct wb_adamw {
    /* weight_decay is decoupled: w -= lr * weight_decay * w */
    float lr, beta1, beta2, eps, weight_decay;
    /* multiplies the gradient first (clipping) */
    float grad_scale;
    /* 1 at the first update: bias correction */
    uint64_t step;
} wb_adamw;

/* w, m, v [n] updated in place from g [n]. rounded: bf16 [n] (=) the new w, or NULL where there is none: w is
 * then the master of a weight that passes see in bf16. Rounding after every update and not the master itself
 * keeps what an update adds below the resolution of bf16. */
typedef wb_status wb_adamw_fn(wb_device *dev, int64_t n, const wb_adamw *hyper, const float *g, float *m,
                              float *v, float *w, uint16_t *rounded);

#ifdef __cplusplus
}
#endif
#endif
