/* model_copy.c - the weights of one model into another: what this rank has of both. Refuses: experts that are
 * on other ranks (model_copy_travel.c). */
#include "collective.h"
#include "hash_tables.h"
#include "model_copy_travel.h"
#include "packed_weights.h"

/* ---- where an expert of this rank is --------------------------------------------------------- */

/* [local slots] what a MoE layer's slots of this rank hold. */
static const int32_t *local_experts(const wb_model *m, int32_t moe_layer) {
    return wb_placement_layer(m->placement, (uint32_t)moe_layer).expert_of_slot + wb_model_first_slot(m);
}

/* The local slot that holds the expert: slot `near` where it does, so that neighbours stay neighbours, else
 * the first; -1: none. */
static int64_t slot_of(const wb_model *m, int32_t moe_layer, int32_t expert, int64_t near) {
    const int64_t n = wb_model_local_slots(m), first = wb_model_first_slot(m);
    if (near < n && local_experts(m, moe_layer)[near] == expert) return near;
    const wb_layer_map map = wb_placement_layer(m->placement, (uint32_t)moe_layer);
    for (uint32_t i = map.replica_begin[expert]; i < map.replica_begin[expert + 1]; i++) {
        const int64_t slot = (int64_t)map.replicas[i].slot - first;
        if (slot >= 0 && slot < n) return slot;
    }
    return -1;
}

/* ---- the copy -------------------------------------------------------------------------------- */

static void *element(const wb_param *param, int64_t i) {
    return (uint8_t *)param->memory.data + (size_t)i * wb_dtype_size(param->dtype);
}

/* n elements from to_first and from_first on. */
static wb_status copy_elements(wb_device *dev, const wb_param *to, int64_t to_first, const wb_param *from,
                               int64_t from_first, int64_t n) {
    void *write = element(to, to_first), *read = element(from, from_first);
    if (to->dtype == from->dtype) return dev->copy(dev, write, read, (size_t)n * wb_dtype_size(to->dtype));
    return dev->cast(dev, n, (wb_rows){read, from->dtype}, (wb_rows){write, to->dtype});
}

/* Slots that are neighbours on both sides are copied together: between models of one placement the whole
 * storage is, where no slot is empty. */
static wb_status copy_slots(const wb_model *to, const wb_model *from, int32_t i) {
    const wb_param *t = &to->params[i], *f = &from->params[i];
    const int32_t *experts = local_experts(to, t->moe_layer);
    const int64_t n_slots = wb_model_local_slots(to);
    for (int64_t s = 0, n; s < n_slots; s += n) {
        n = 1;
        if (experts[s] < 0) continue;
        const int64_t source = slot_of(from, t->moe_layer, experts[s], s);
        if (source < 0) continue;
        while (s + n < n_slots && experts[s + n] >= 0 &&
               slot_of(from, t->moe_layer, experts[s + n], s + n) == source + n)
            n++;
        WB_TRY(copy_elements(to->device, t, s * t->slot_elements, f, source * t->slot_elements,
                             n * t->slot_elements));
    }
    return WB_OK;
}

static wb_status copy_local(const wb_model *to, const wb_model *from) {
    for (int32_t i = 0; i < to->n_params; i++) {
        const wb_param *t = &to->params[i];
        if (t->shared) continue;
        WB_TRY(t->moe_layer >= 0 ? copy_slots(to, from, i)
                                 : copy_elements(to->device, t, 0, &from->params[i], 0, t->n));
    }
    WB_TRY(wb_hash_tables_copy(to, from));
    return to->mtp ? copy_local(to->mtp, from->mtp) : WB_OK;
}

/* Rows as they lie come to every slot that has an expert, for each expert has a slot in `from`, here or on
 * another rank; so that all slots can be packed then. What is packed of an empty one is nobody's. */
static wb_status copy_all(wb_model *to, const wb_model *from, bool travels) {
    WB_TRY(copy_local(to, from));
    if (travels) WB_TRY(wb_model_copy_travel(to, from));
    return wb_model_pack_weights(to);
}

wb_status wb_model_prepare_copy(wb_model *to, const wb_model *from) {
    WB_TRY(wb_model_check_copy(to, from));
    WB_TRY(wb_model_reserve_packing(to));
    return wb_model_copy_travels(to, from) ? wb_model_reserve_copy(to, from) : WB_OK;
}

wb_status wb_model_copy_weights(wb_model *to, const wb_model *from) {
    const wb_status status = wb_model_prepare_copy(to, from);
    if (!wb_model_copy_travels(to, from)) return status == WB_OK ? copy_all(to, from, false) : status;
    WB_TRY(wb_comm_agree(to->comm, status));
    WB_TRY(wb_collective_end(to, copy_all(to, from, true)));
    return wb_comm_agree(to->comm, WB_OK);
}
