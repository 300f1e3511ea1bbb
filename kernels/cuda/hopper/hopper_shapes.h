/* hopper_shapes.h - the launches of each form of product, a .cu file each, since each holds several shapes of
 * the kernel. `large`: many rows a group (hopper_launch.h). */
#ifndef WB_HOPPER_SHAPES_H
#define WB_HOPPER_SHAPES_H

#include "cuda/hopper/hopper_call.h"

wb_status wb_hopper_forward(wb_device *dev, const char *op, const wb_product &p, bool large);
wb_status wb_hopper_dgrad(wb_device *dev, const char *op, const wb_product &p, bool large);
wb_status wb_hopper_wgrad(wb_device *dev, const char *op, const wb_product &p, bool large);

#endif
