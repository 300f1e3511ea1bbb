/* op_sizes.h - the largest calls of ops that a pass makes, told to the device when the pass is opened. */
#ifndef WB_OP_SIZES_H
#define WB_OP_SIZES_H

#include "layers/layer.h"

/* Those of passes of `sizes`, in which a query sees `keys` keys at most and whose backward has logits of
 * head_rows rows at a time: for the device's reserve_scratch, so that no pass allocates. A layer that calls
 * larger ops than those of the layers here says so here. */
wb_op_sizes wb_largest_ops(const wb_model *model, const wb_sizes *sizes, int64_t keys, int64_t head_rows);

#endif
