/* hopper_wgrad.cu - the kernels of dw = x^T dy on sm_90a. See hopper_shapes.h. */
#include "cuda/hopper/hopper_launch.h"

wb_status wb_hopper_wgrad(wb_device *dev, const char *op, const wb_product &p, wb_tile_size size) {
    if (p.result == WB_PRODUCT_ELEMENTS)
        return launch_sized<WB_PRODUCT_WGRAD, WB_PRODUCT_ELEMENTS, false>(dev, op, p, size);
    if (p.gather) return launch_sized<WB_PRODUCT_WGRAD, WB_PRODUCT_SUMS, true>(dev, op, p, size);
    return launch_sized<WB_PRODUCT_WGRAD, WB_PRODUCT_SUMS, false>(dev, op, p, size);
}
