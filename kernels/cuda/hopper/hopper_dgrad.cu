/* hopper_dgrad.cu - the kernels of dx = dy w on sm_90a. See hopper_shapes.h. */
#include "cuda/hopper/hopper_launch.h"
#include "cuda/hopper/hopper_shapes.h"

wb_status wb_hopper_dgrad(wb_device *dev, const char *op, const wb_product &p, bool large) {
    if (p.result == WB_PRODUCT_ROWS)
        return launch_either<WB_PRODUCT_DGRAD, WB_PRODUCT_ROWS, false>(dev, op, p, large);
    if (p.result == WB_PRODUCT_ELEMENTS)
        return launch_either<WB_PRODUCT_DGRAD, WB_PRODUCT_ELEMENTS, false>(dev, op, p, large);
    return launch_either<WB_PRODUCT_DGRAD, WB_PRODUCT_DSWIGLU, false>(dev, op, p, large);
}
