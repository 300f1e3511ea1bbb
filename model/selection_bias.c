/* selection_bias.c - the rule by which selection biases of routers follow the load of the experts.
 * Refuses: which routes are counted. */
#include "layers/moe/moe.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

/* One step towards an even load: up for an expert below the mean, down for one above it. */
static void move_biases(int32_t n_experts, float rate, const int64_t *loads, float *bias) {
    double sum = 0;
    for (int32_t e = 0; e < n_experts; e++) sum += (double)loads[e];
    const double mean = sum / n_experts;
    for (int32_t e = 0; e < n_experts; e++) {
        if ((double)loads[e] < mean) bias[e] += rate;
        if ((double)loads[e] > mean) bias[e] -= rate;
    }
}

static wb_status check_loads(const wb_model *model, const int64_t *loads) {
    const int64_t L = model->route_model.n_moe_layers, E = model->config.router.n_experts;
    for (int64_t i = 0; i < L * E; i++)
        if (loads[i] < 0)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "selection bias: load of expert %" PRId64 " in MoE layer %" PRId64
                           ": expected at least 0, found %" PRId64,
                           i % E, i / E, loads[i]);
    return WB_OK;
}

static wb_status update_layer(const wb_model *model, const wb_moe_weights *w, float rate,
                              const int64_t *loads, float *bias) {
    wb_device *dev = model->device;
    const int32_t E = model->config.router.n_experts;
    void *device = model->params[w->selection_bias].memory.data;
    WB_TRY(dev->to_host(dev, bias, device, (size_t)E * sizeof *bias));
    move_biases(E, rate, loads + (int64_t)w->moe_index * E, bias);
    return dev->to_device(dev, device, bias, (size_t)E * sizeof *bias);
}

wb_status wb_model_update_selection_bias(wb_model *model, float rate, const int64_t *loads) {
    float *bias = NULL;
    if (!model->family->selection_bias)
        return wb_fail(WB_INVALID_ARGUMENT, "selection bias: expected a family that has one, found %s",
                       model->family->model_type);
    if (!(isfinite(rate) && rate >= 0))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "selection bias: rate: expected a finite number of at least 0, found %g",
                       (double)rate);
    if (!loads) return wb_fail(WB_INVALID_ARGUMENT, "selection bias: loads: expected counts, found NULL");
    WB_TRY(check_loads(model, loads));
    WB_TRY(WB_NEW(bias, (size_t)model->config.router.n_experts, "selection bias"));
    wb_status status = WB_OK;
    for (int32_t l = 0; status == WB_OK && l < model->config.n_layers; l++) {
        const wb_part *part = &model->layers[l].feed_forward;
        const wb_moe_weights *w = part->weights;
        if (part->kind == &wb_layer_moe && w->selection_bias >= 0)
            status = update_layer(model, w, rate, loads, bias);
    }
    free(bias);
    return status;
}
