/* finite_weights.c - the weights of a model that was opened are numbers. A NaN among them would be found as a
 * NaN of some request's logits, which says nothing about where it came from. Refuses: values that are odd but
 * finite. */
#include "grpo.h"

#include <math.h>

/* The first of this rank's tensors whose sum of squares, which of finite f32 is always finite, is not. */
static wb_status check_local(wb_model *model, const char *dir) {
    wb_device *device = wb_model_device(model);
    for (int32_t i = 0; i < wb_model_n_tensors(model); i++) {
        const wb_tensor tensor = wb_model_tensor(model, i);
        double squares = 0;
        if (!tensor.data) continue;
        WB_TRY(device->sum_squares(device, tensor.n, tensor.data, &squares));
        if (!isfinite(squares))
            return wb_fail(WB_CORRUPT, "%s: %s: expected finite weights, found a NaN or an infinity", dir,
                           tensor.name);
    }
    return WB_OK;
}

wb_status finite_weights_check(wb_model *model, const char *dir) {
    return wb_comm_agree(wb_model_comm(model), check_local(model, dir));
}
