/* cpu_table.c - puts the ops of one instruction set into a device's table. */
#include "cpu/cpu_device.h"
#include "cpu/cpu_ops.h"

void WB_CPU(table)(wb_device *dev) {
#define SET(op) dev->op = WB_CPU(op);
    WB_COMPUTE_OPS(SET)
    WB_LAYOUT_OPS(SET)
    SET(reserve_scratch)
#undef SET
}
