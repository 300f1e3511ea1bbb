/* hopper_dgrad.cu - the kernels of dx = dy w on sm_90a. See hopper_shapes.h. */
#include "cuda/hopper/hopper_launch.h"

wb_status wb_hopper_dgrad(wb_device *dev, const char *op, const wb_product &p, wb_tile_size size) {
    if (p.result == WB_PRODUCT_ROWS)
        return launch_sized<WB_PRODUCT_DGRAD, WB_PRODUCT_ROWS, false>(dev, op, p, size);
    if (p.result == WB_PRODUCT_ELEMENTS)
        return launch_sized<WB_PRODUCT_DGRAD, WB_PRODUCT_ELEMENTS, false>(dev, op, p, size);
    return launch_sized<WB_PRODUCT_DGRAD, WB_PRODUCT_DSWIGLU, false>(dev, op, p, size);
}
