/* cuda_tiles.h - the products that every GPU can make: two operands of bf16 by tensor cores (cuda_mma.h), all
 * others in f32 with the CPU's bits. Faster ones for sm_90a are in hopper/.
 *
 * Shapes are not empty; dtypes and strides have been checked. `op` names the caller in messages. */
#ifndef WB_CUDA_TILES_H
#define WB_CUDA_TILES_H

#include "cuda/cuda_device.h"

#ifdef __cplusplus
extern "C" {
#endif

wb_status wb_cuda_tiled_product(wb_device *dev, const wb_matmul *p);

/* Of each group: y (=) x w^T, dx (=) dy w, dw (+=) dy^T x. x are rows in their order: what there is to gather
 * has been. */
wb_status wb_cuda_tiled_forward(wb_device *dev, const char *op, const wb_grouped *g, wb_rows x, wb_rows y);
wb_status wb_cuda_tiled_dgrad(wb_device *dev, const char *op, const wb_grouped *g, wb_rows dy, wb_rows dx);
wb_status wb_cuda_tiled_wgrad(wb_device *dev, const char *op, const wb_grouped *g, wb_rows x, wb_rows dy,
                              float *dw);

#ifdef __cplusplus
}
#endif
#endif
