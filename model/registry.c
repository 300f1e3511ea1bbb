/* registry.c - see registry.h; and the tensors of a model for its users. Refuses: which tensors a layer has
 * (layers/), files. */
#include "registry.h"

#include <stdio.h>
#include <string.h>

/* ---- names ----------------------------------------------------------------------------------- */

const char *wb_registry_name(const wb_model *model, const char *name) {
    for (const wb_rename *r = model->family->renames; r && r->usual; r++)
        if (strcmp(r->usual, name) == 0) return r->own;
    return name;
}

void wb_registry_full_name(const wb_model *model, int32_t layer, int32_t expert, const char *name,
                           char full_out[WB_TENSOR_NAME_BYTES]) {
    const size_t size = WB_TENSOR_NAME_BYTES;
    const char *own = wb_registry_name(model, name);
    const char *layers = wb_registry_name(model, "model.layers");
    if (expert >= 0)
        snprintf(full_out, size, "%s.%d.%s.%d.%s", layers, layer, wb_registry_name(model, "mlp.experts"),
                 expert, own);
    else if (layer >= 0)
        snprintf(full_out, size, "%s.%d.%s", layers, layer, own);
    else
        snprintf(full_out, size, "%s", own);
}

/* ---- declarations ---------------------------------------------------------------------------- */

int32_t wb_registry_storage(wb_registry *registry, wb_dtype dtype, int64_t rows, int64_t cols, bool sharded) {
    if (registry->fill)
        registry->model->params[registry->n_params] =
            (wb_param){.dtype = dtype, .rows = rows, .cols = cols, .n = rows * cols, .sharded = sharded};
    return registry->n_params++;
}

void wb_registry_tensor(wb_registry *registry, int32_t layer, int32_t expert, const char *name, int64_t rows,
                        int64_t cols, int32_t param, int64_t offset) {
    const int32_t i = registry->n_tensors++;
    if (!registry->fill) return;
    wb_model *model = registry->model;
    char *full = registry->names + (size_t)i * WB_TENSOR_NAME_BYTES;
    wb_registry_full_name(model, layer, expert, name, full);
    model->tensors[i] = (wb_tensor){.name = full,
                                    .layer = layer,
                                    .expert = expert,
                                    .n_dims = cols > 0 ? 2 : 1,
                                    .shape = {rows, cols > 0 ? cols : 1},
                                    .n = rows * (cols > 0 ? cols : 1),
                                    .dtype = model->params[param].dtype,
                                    .data = NULL,
                                    .param = param,
                                    .offset = offset};
}

int32_t wb_registry_matrix(wb_registry *registry, int32_t layer, const char *name, int64_t rows,
                           int64_t cols) {
    const int32_t param = wb_registry_storage(registry, registry->model->dtype, rows, cols, false);
    wb_registry_tensor(registry, layer, -1, name, rows, cols, param, 0);
    return param;
}

int32_t wb_registry_vector(wb_registry *registry, int32_t layer, const char *name, int64_t n) {
    const int32_t param = wb_registry_storage(registry, WB_F32, n, 1, false);
    wb_registry_tensor(registry, layer, -1, name, n, 0, param, 0);
    return param;
}

/* ---- use ------------------------------------------------------------------------------------- */

int32_t wb_model_n_tensors(const wb_model *model) {
    return model->n_tensors;
}

wb_tensor wb_model_tensor(const wb_model *model, int32_t i) {
    wb_tensor tensor = model->tensors[i];
    const bool here = tensor.expert < 0 || model->expert_rank[tensor.expert] == wb_comm_rank(model->comm);
    if (here)
        tensor.data = (uint8_t *)model->params[tensor.param].memory.data +
                      (size_t)tensor.offset * wb_dtype_size(tensor.dtype);
    return tensor;
}
