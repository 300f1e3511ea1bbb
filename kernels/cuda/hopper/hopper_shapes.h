/* hopper_shapes.h - the launches of each form of product, a .cu file each, since each holds several shapes of
 * the kernel. See hopper_launch.h for
 * the sizes. */
#ifndef WB_HOPPER_SHAPES_H
#define WB_HOPPER_SHAPES_H

#include "cuda/hopper/hopper_call.h"

/* Tiles for few rows and columns, for few rows a group, and for many. */
enum wb_tile_size { WB_TILE_NARROW, WB_TILE_SMALL, WB_TILE_LARGE };

wb_status wb_hopper_forward(wb_device *dev, const char *op, const wb_product &p, wb_tile_size size);
wb_status wb_hopper_dgrad(wb_device *dev, const char *op, const wb_product &p, wb_tile_size size);
wb_status wb_hopper_wgrad(wb_device *dev, const char *op, const wb_product &p, wb_tile_size size);

#endif
