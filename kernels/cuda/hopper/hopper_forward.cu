/* hopper_forward.cu - the kernels of y = x w^T on sm_90a. See hopper_shapes.h. */
#include "cuda/hopper/hopper_launch.h"

wb_status wb_hopper_forward(wb_device *dev, const char *op, const wb_product &p, wb_tile_size size) {
    if (size == WB_TILE_NARROW) return launch_narrow(dev, op, p);
    if (p.result == WB_PRODUCT_ROWS)
        return launch_sized<WB_PRODUCT_FORWARD, WB_PRODUCT_ROWS, false>(dev, op, p, size);
    if (p.result == WB_PRODUCT_ELEMENTS)
        return launch_sized<WB_PRODUCT_FORWARD, WB_PRODUCT_ELEMENTS, false>(dev, op, p, size);
    if (p.gather) return launch_sized<WB_PRODUCT_FORWARD, WB_PRODUCT_SWIGLU, true>(dev, op, p, size);
    return launch_sized<WB_PRODUCT_FORWARD, WB_PRODUCT_SWIGLU, false>(dev, op, p, size);
}
