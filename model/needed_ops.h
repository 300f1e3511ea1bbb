/* needed_ops.h - the ops that inference and training call, checked when they are opened (internal). */
#ifndef WB_NEEDED_OPS_H
#define WB_NEEDED_OPS_H

#include "wb_device.h"

/* UNSUPPORTED names the op that `device` lacks. The ops of all families are asked for, not only those of one
 * model's layers, so that a device either suits or does not. `backward`: a trainer of forwards only needs
 * none of its ops. */
wb_status wb_infer_check_device(const wb_device *device);
wb_status wb_train_check_device(const wb_device *device, bool backward);

#endif
