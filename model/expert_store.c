/* expert_store.c - a model's experts as a rebalance reaches them (wb_rebalance.h): the registry's storages of
 * slots, and what others have attached to them, asked for at each move. Refuses: deciding, moving. */
#include "exchange_memory.h"
#include "model_weights.h"

#include <inttypes.h>
#include <stdlib.h>

/* ---- what others keep by slot ------------------------------------------------------------------ */

wb_status wb_model_attach_slots(wb_model *model, int32_t moe_layer, void *slots, size_t slot_bytes) {
    if (moe_layer < 0 || moe_layer >= (int32_t)model->route_model.n_moe_layers)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "attach slots: MoE layer: expected 0..%" PRIu32 ", found %" PRId32,
                       model->route_model.n_moe_layers - 1, moe_layer);
    WB_TRY(WB_GROW(model->attached, model->n_attached + 1, &model->max_attached, "attached slots"));
    model->attached[model->n_attached++] = (wb_attached_slots){moe_layer, slots, slot_bytes};
    return WB_OK;
}

void wb_model_detach_slots(wb_model *model, const void *slots) {
    size_t n = 0;
    for (size_t i = 0; i < model->n_attached; i++)
        if (model->attached[i].slots != slots) model->attached[n++] = model->attached[i];
    model->n_attached = n;
}

/* ---- the store ----------------------------------------------------------------------------------- */

static const wb_placement *placement_of(void *context) {
    const wb_model *model = context;
    return model->placement;
}

/* The parts of a slot on their way to whoever asked. */
typedef struct part_list {
    wb_expert_part *parts; /* [max] */
    size_t n, max;
} part_list;

static void add_part(part_list *list, void *data, size_t bytes) {
    if (list->n < list->max) list->parts[list->n] = (wb_expert_part){data, bytes};
    list->n++;
}

static wb_status slot_of(void *context, uint32_t layer, wb_physical_id slot, size_t max,
                         wb_expert_part *parts_out, size_t *n_out) {
    const wb_model *model = context;
    const int64_t at = wb_model_local_slot(model, slot);
    part_list list = {parts_out, 0, max};
    for (int32_t i = 0; i < model->n_params; i++) {
        const wb_param *p = &model->params[i];
        const size_t bytes = (size_t)p->slot_elements * wb_dtype_size(p->dtype);
        if (p->moe_layer == (int32_t)layer)
            add_part(&list, (char *)p->memory.data + at * (int64_t)bytes, bytes);
    }
    for (size_t i = 0; i < model->n_attached; i++) {
        const wb_attached_slots *a = &model->attached[i];
        if (a->moe_layer == (int32_t)layer)
            add_part(&list, (char *)a->slots + at * (int64_t)a->slot_bytes, a->slot_bytes);
    }
    *n_out = list.n;
    return WB_OK;
}

/* Shared with the ranks whose devices reach it; where nobody's can, this rank's alone. */
static wb_status shadow_of(void *context, size_t bytes, void **shadow_out, bool *reached_out) {
    wb_model *model = context;
    wb_shared_area *area = &model->shared_shadow;
    wb_shared_area_close(area);
    WB_TRY(wb_shared_area_open(area, model->device, model->comm, bytes));
    for (int32_t r = 0; r < model->n_ranks; r++) reached_out[r] = area->device && area->of_rank[r];
    *shadow_out = area->own;
    if (area->device) return WB_OK;
    WB_TRY(wb_reserve(&model->memory, &model->shadow_slots, (int64_t)bytes, 1, 1));
    *shadow_out = model->shadow_slots.data;
    return WB_OK;
}

static wb_status put(void *context, uint32_t rank, size_t offset, const void *data, size_t bytes) {
    const wb_model *model = context;
    char *const there = model->shared_shadow.of_rank[rank];
    return model->device->memory_put(model->device, there + offset, data, bytes);
}

static wb_status settle(void *context) {
    const wb_model *model = context;
    return model->device->memory_settle(model->device);
}

static wb_status digest_of(void *context, const void *data, size_t bytes, uint64_t *digest_out) {
    const wb_model *model = context;
    return model->device->digest(model->device, data, bytes, digest_out);
}

static wb_status take(void *context, const wb_placement *placement) {
    return wb_model_set_placement(context, placement);
}

wb_expert_store wb_model_expert_store(wb_model *model) {
    return (wb_expert_store){.size = sizeof(wb_expert_store),
                             .context = model,
                             .exchange = model->exchange,
                             .memory = wb_device_exchange_memory(model->device),
                             .placement = placement_of,
                             .slot = slot_of,
                             .shadow = shadow_of,
                             .put = put,
                             .settle = settle,
                             .digest = digest_of,
                             .take = take};
}
