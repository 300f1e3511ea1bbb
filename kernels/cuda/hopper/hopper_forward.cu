/* hopper_forward.cu - the kernels of y = x w^T on sm_90a. See hopper_shapes.h. */
#include "cuda/hopper/hopper_launch.h"
#include "cuda/hopper/hopper_shapes.h"

wb_status wb_hopper_forward(wb_device *dev, const char *op, const wb_product &p, bool large) {
    if (p.result == WB_PRODUCT_ROWS)
        return launch_either<WB_PRODUCT_FORWARD, WB_PRODUCT_ROWS, false>(dev, op, p, large);
    if (p.result == WB_PRODUCT_ELEMENTS)
        return launch_either<WB_PRODUCT_FORWARD, WB_PRODUCT_ELEMENTS, false>(dev, op, p, large);
    if (p.gather) return launch_either<WB_PRODUCT_FORWARD, WB_PRODUCT_SWIGLU, true>(dev, op, p, large);
    return launch_either<WB_PRODUCT_FORWARD, WB_PRODUCT_SWIGLU, false>(dev, op, p, large);
}
