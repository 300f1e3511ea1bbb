/* torch_sum.h - sums of floats with the bits of torch.sum, which eplb.py's placements depend on. */
#ifndef WB_TORCH_SUM_H
#define WB_TORCH_SUM_H

#include <stddef.h>
#include <stdint.h>

/* torch.sum of a contiguous float32 vector of n numbers. */
float wb_torch_sum(const float *x, size_t n);

#endif
