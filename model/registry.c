/* registry.c - see registry.h; and the tensors of a model for its users. Refuses: which tensors a layer has
 * (layers/), files. */
#include "registry.h"
#include "packed_weights.h"

#include <stdio.h>
#include <string.h>

/* ---- names ----------------------------------------------------------------------------------- */

const char *wb_registry_name(const wb_model *model, const char *name) {
    for (const wb_rename *r = model->family->renames; r && r->usual; r++)
        if (strcmp(r->usual, name) == 0) return r->own;
    return name;
}

/* What the names of layers begin with. */
static const char *layers_name(const wb_model *model) {
    return wb_model_own_mtp_names(model) ? "mtp.layers" : wb_registry_name(model, "model.layers");
}

void wb_registry_full_name(const wb_model *model, int32_t layer, int32_t expert, const char *name,
                           char full_out[WB_TENSOR_NAME_BYTES]) {
    const size_t size = WB_TENSOR_NAME_BYTES;
    const char *own = wb_registry_name(model, name);
    const char *layers = layers_name(model);
    layer += layer >= 0 ? wb_model_first_layer(model) : 0;
    if (expert >= 0)
        snprintf(full_out, size, "%s.%d.%s.%d.%s", layers, layer, wb_registry_name(model, "mlp.experts"),
                 expert, own);
    else if (layer >= 0)
        snprintf(full_out, size, "%s.%d.%s", layers, layer, own);
    else
        snprintf(full_out, size, "%s", own);
}

static const char *usual_name(const wb_model *model, const char *own) {
    for (const wb_rename *r = model->family->renames; r && r->usual; r++)
        if (strcmp(r->own, own) == 0) return r->usual;
    return own;
}

/* What follows so many dots of a name. */
static const char *behind_dots(const char *name, int dots) {
    for (; dots > 0; dots--) name = strchr(name, '.') + 1;
    return name;
}

static int count_dots(const char *name) {
    int n = 0;
    for (; *name; name++) n += *name == '.';
    return n;
}

void wb_registry_usual_name(const wb_model *model, const wb_tensor *t, char usual_out[WB_TENSOR_NAME_BYTES]) {
    const size_t size = WB_TENSOR_NAME_BYTES;
    const char *layers = wb_model_own_mtp_names(model) ? "mtp.layers" : "model.layers";
    const int in_layer = count_dots(layers_name(model)) + 2,
              in_expert = in_layer + count_dots(wb_registry_name(model, "mlp.experts")) + 2,
              layer = t->layer + wb_model_first_layer(model);
    if (t->expert >= 0)
        snprintf(usual_out, size, "%s.%d.mlp.experts.%d.%s", layers, layer, t->expert,
                 usual_name(model, behind_dots(t->name, in_expert)));
    else if (t->layer >= 0)
        snprintf(usual_out, size, "%s.%d.%s", layers, layer,
                 usual_name(model, behind_dots(t->name, in_layer)));
    else
        snprintf(usual_out, size, "%s", usual_name(model, t->name));
}

static const char *released(const wb_model *model, const char *own) {
    for (const wb_rename *r = model->family->released; r && r->usual; r++)
        if (strcmp(r->usual, own) == 0) return r->own;
    return own;
}

void wb_registry_released_name(const wb_model *model, const wb_tensor *t,
                               char released_out[WB_TENSOR_NAME_BYTES]) {
    const char *layers = wb_registry_name(model, "model.layers");
    if (t->layer < 0)
        snprintf(released_out, WB_TENSOR_NAME_BYTES, "%s", released(model, t->name));
    else
        snprintf(released_out, WB_TENSOR_NAME_BYTES, "%s.%d.%s", released(model, layers),
                 t->layer + wb_model_first_layer(model),
                 released(model, behind_dots(t->name, count_dots(layers) + 2)));
}

/* ---- declarations ---------------------------------------------------------------------------- */

int32_t wb_registry_storage(wb_registry *registry, wb_dtype dtype, int64_t rows, int64_t cols) {
    if (registry->fill)
        registry->model->params[registry->n_params] =
            (wb_param){.dtype = dtype, .rows = rows, .cols = cols, .n = rows * cols, .moe_layer = -1};
    return registry->n_params++;
}

int32_t wb_registry_shared(wb_registry *registry, int32_t param) {
    if (registry->fill) {
        wb_param *own = &registry->model->params[registry->n_params];
        *own = registry->model->decoder->params[param];
        own->shared = &registry->model->decoder->params[param];
    }
    return registry->n_params++;
}

int32_t wb_registry_slots(wb_registry *registry, int32_t moe_layer, wb_dtype dtype, int64_t rows,
                          int64_t cols) {
    const wb_model *model = registry->model;
    const int64_t all_rows = wb_model_local_slots(model) * rows;
    if (registry->fill)
        model->params[registry->n_params] = (wb_param){.dtype = dtype,
                                                       .rows = all_rows,
                                                       .cols = cols,
                                                       .n = all_rows * cols,
                                                       .moe_layer = moe_layer,
                                                       .slot_elements = rows * cols,
                                                       .packed = wb_model_packs(model, rows, cols)};
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
                                    .shape = {rows, cols > 0 ? cols : 1, 1},
                                    .n = rows * (cols > 0 ? cols : 1),
                                    .dtype = model->params[param].dtype,
                                    .file_dtype = model->params[param].dtype,
                                    .data = NULL,
                                    .param = param,
                                    .offset = offset,
                                    .rank = -1,
                                    .slot = {WB_NO_SLOT}};
}

int32_t wb_registry_matrix(wb_registry *registry, int32_t layer, const char *name, int64_t rows,
                           int64_t cols) {
    const int32_t param = wb_registry_storage(registry, registry->model->dtype, rows, cols);
    wb_registry_tensor(registry, layer, -1, name, rows, cols, param, 0);
    return param;
}

void wb_registry_multiplied(wb_registry *registry, int32_t param) {
    if (!registry->fill) return;
    wb_param *p = &registry->model->params[param];
    p->packed = wb_model_packs(registry->model, p->rows, p->cols);
}

int32_t wb_registry_linear(wb_registry *registry, int32_t layer, const char *name, int64_t rows,
                           int64_t cols) {
    const int32_t param = wb_registry_matrix(registry, layer, name, rows, cols);
    wb_registry_multiplied(registry, param);
    return param;
}

int32_t wb_registry_vector(wb_registry *registry, int32_t layer, const char *name, int64_t n) {
    const int32_t param = wb_registry_storage(registry, WB_F32, n, 1);
    wb_registry_tensor(registry, layer, -1, name, n, 0, param, 0);
    return param;
}

int32_t wb_registry_taps(wb_registry *registry, int32_t layer, const char *name, int64_t channels,
                         int64_t width) {
    const int32_t param = wb_registry_storage(registry, WB_F32, channels, width);
    wb_registry_tensor(registry, layer, -1, name, channels, width, param, 0);
    if (!registry->fill) return param;
    wb_tensor *tensor = &registry->model->tensors[registry->n_tensors - 1];
    tensor->n_dims = 3;
    tensor->shape[1] = 1;
    tensor->shape[2] = width;
    return param;
}

void wb_registry_no_gradient(wb_registry *registry, int32_t first) {
    for (int32_t i = first; registry->fill && i < registry->n_tensors; i++)
        registry->model->tensors[i].no_gradient = true;
}

/* ---- use ------------------------------------------------------------------------------------- */

int32_t wb_model_n_tensors(const wb_model *model) {
    return model->n_tensors;
}

int32_t wb_model_n_replicas(const wb_model *model, int32_t i) {
    const wb_tensor *tensor = &model->tensors[i];
    if (tensor->expert < 0) return 1;
    const int32_t layer = model->params[tensor->param].moe_layer;
    const uint32_t *begin = wb_placement_layer(model->placement, (uint32_t)layer).replica_begin;
    return (int32_t)(begin[tensor->expert + 1] - begin[tensor->expert]);
}

/* `tensor` of an expert, in the slot of its replica k. */
static void put_in_slot(const wb_model *model, int32_t k, wb_tensor *tensor) {
    const wb_param *param = &model->params[tensor->param];
    const wb_layer_map map = wb_placement_layer(model->placement, (uint32_t)param->moe_layer);
    tensor->slot = map.replicas[map.replica_begin[tensor->expert] + (uint32_t)k];
    tensor->rank = wb_model_rank_of(model, tensor->slot);
    tensor->offset += wb_model_local_slot(model, tensor->slot) * param->slot_elements;
}

wb_tensor wb_model_replica(const wb_model *model, int32_t i, int32_t k) {
    wb_tensor tensor = model->tensors[i];
    if (tensor.expert >= 0) put_in_slot(model, k, &tensor);
    if (tensor.rank < 0 || tensor.rank == model->rank)
        tensor.data = (uint8_t *)model->params[tensor.param].memory.data +
                      (size_t)tensor.offset * wb_dtype_size(tensor.dtype);
    return tensor;
}

wb_tensor wb_model_tensor(const wb_model *model, int32_t i) {
    const int32_t n = wb_model_n_replicas(model, i);
    for (int32_t k = 0; k < n; k++) {
        const wb_tensor tensor = wb_model_replica(model, i, k);
        if (tensor.data) return tensor;
    }
    return wb_model_replica(model, i, 0);
}

wb_status wb_model_fill_replicas(wb_model *model, int32_t i) {
    const wb_tensor first = wb_model_tensor(model, i);
    const size_t bytes = (size_t)first.n * wb_dtype_size(first.dtype);
    const int32_t n = wb_model_n_replicas(model, i);
    for (int32_t k = 0; k < n; k++) {
        const wb_tensor other = wb_model_replica(model, i, k);
        if (other.data && other.data != first.data)
            WB_TRY(model->device->copy(model->device, other.data, first.data, bytes));
    }
    return WB_OK;
}
