/* finite_weights.c - the weights of a model that was opened are numbers. A NaN among them would be found as a
 * NaN of some request's logits, which says nothing about where it came from. Refuses: values that are odd but
 * finite. */
#include "grpo.h"

#include <math.h>

/* squares_out[n], host, of the n tensors as far as they are here; made in squares[n], device. */
static wb_status read_squares(wb_model *model, int32_t n, double *squares, double *squares_out) {
    wb_device *device = wb_model_device(model);
    const size_t bytes = (size_t)n * sizeof(double);
    WB_TRY(device->zero(device, squares, bytes));
    for (int32_t i = 0; i < n; i++) {
        const wb_tensor tensor = wb_model_tensor(model, i);
        const wb_rows weights = {tensor.data, tensor.dtype};
        if (weights.data) WB_TRY(device->sum_squares(device, 1, tensor.n, weights, squares + i));
    }
    return device->to_host(device, squares_out, squares, bytes);
}

/* The first of this rank's tensors whose sum of squares, which of finite weights is always finite, is not. */
static wb_status check_local(wb_model *model, const char *dir) {
    const int32_t n = wb_model_n_tensors(model);
    wb_workspace workspace = {.device = wb_model_device(model)};
    wb_buffer on_device = {0};
    double *squares = NULL;
    wb_status status = WB_OWN(&workspace.host, squares, (size_t)n, "sums of squares");
    if (status == WB_OK) status = wb_reserve(&workspace, &on_device, n, 1, sizeof(double));
    if (status == WB_OK) status = read_squares(model, n, on_device.data, squares);
    for (int32_t i = 0; i < n && status == WB_OK; i++)
        if (!isfinite(squares[i]))
            status = wb_fail(WB_CORRUPT, "%s: %s: expected finite weights, found a NaN or an infinity", dir,
                             wb_model_tensor(model, i).name);
    wb_workspace_close(&workspace);
    return status;
}

wb_status finite_weights_check(wb_model *model, const char *dir) {
    return wb_comm_agree(wb_model_comm(model), check_local(model, dir));
}
