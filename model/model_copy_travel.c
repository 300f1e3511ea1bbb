/* model_copy_travel.c - see model_copy_travel.h. */
#include "model_copy_travel.h"
#include "packed_weights.h"
#include "wb_memory.h"

/* Elements of a slot that are rounded at a time lie in scratch of about this many. */
#define SCRATCH_ELEMENTS ((int64_t)1 << 20)

/* ---- whether it can be copied ---------------------------------------------------------------- */

wb_status wb_model_check_copy(const wb_model *to, const wb_model *from) {
    WB_TRY(wb_route_model_match(&from->route_model, &to->route_model));
    if (to->config.n_mtp_layers != from->config.n_mtp_layers)
        return wb_fail(WB_MISMATCH, "copy weights: expected %d MTP layers, found %d",
                       from->config.n_mtp_layers, to->config.n_mtp_layers);
    if (to->rank != from->rank || to->n_ranks != from->n_ranks)
        return wb_fail(WB_MISMATCH, "copy weights: expected rank %d of %d, found rank %d of %d", from->rank,
                       from->n_ranks, to->rank, to->n_ranks);
    if (to->device->backend != from->device->backend)
        return wb_fail(WB_MISMATCH, "copy weights: expected device %s, found %s", from->device->name,
                       to->device->name);
    WB_TRY(wb_model_check_rows(from, "copy weights"));
    if (to->dtype == from->dtype || to->device->cast) return WB_OK;
    return wb_fail(WB_UNSUPPORTED, "copy weights: device %s cannot cast %s to %s", to->device->name,
                   wb_dtype_name(from->dtype), wb_dtype_name(to->dtype));
}

/* ---- the ways of experts --------------------------------------------------------------------- */

/* One way of an expert: from a slot of `from` to one of `to` on another rank. Of an expert's replicas, ranks
 * take turns. */
typedef struct expert_way {
    wb_physical_id from, to;
    int32_t from_rank, to_rank;
} expert_way;

static bool has_expert(const wb_model *m, const wb_layer_map *map, int32_t expert, int32_t rank) {
    for (uint32_t i = map->replica_begin[expert]; i < map->replica_begin[expert + 1]; i++)
        if (wb_model_rank_of(m, map->replicas[i]) == rank) return true;
    return false;
}

/* Whether replica `i` of the layer's list in `to` comes from another rank, and which way. */
static bool find_way(const wb_model *to, const wb_layer_map *t, const wb_model *from, const wb_layer_map *f,
                     int32_t expert, uint32_t i, expert_way *way_out) {
    const int32_t to_rank = wb_model_rank_of(to, t->replicas[i]);
    if (has_expert(from, f, expert, to_rank)) return false;
    const uint32_t begin = f->replica_begin[expert], n = f->replica_begin[expert + 1] - begin;
    const wb_physical_id source = f->replicas[begin + (uint32_t)to_rank % n];
    *way_out = (expert_way){source, t->replicas[i], wb_model_rank_of(from, source), to_rank};
    return true;
}

/* Whether some expert of the layer travels, between any two ranks. */
static bool layer_travels(const wb_model *to, const wb_model *from, uint32_t l) {
    const wb_layer_map t = wb_placement_layer(to->placement, l), f = wb_placement_layer(from->placement, l);
    for (int32_t e = 0; e < wb_config_weighted(&to->config); e++)
        for (uint32_t i = t.replica_begin[e]; i < t.replica_begin[e + 1]; i++) {
            expert_way way;
            if (find_way(to, &t, from, &f, e, i, &way)) return true;
        }
    return false;
}

bool wb_model_copy_travels(const wb_model *to, const wb_model *from) {
    if (wb_model_check_copy(to, from) != WB_OK) return false;
    for (uint32_t l = 0; l < to->route_model.n_moe_layers; l++)
        if (layer_travels(to, from, l)) return true;
    return to->mtp && wb_model_copy_travels(to->mtp, from->mtp);
}

/* ---- memory -------------------------------------------------------------------------------------- */

/* Of each slot, the same on every rank: whole slots where nothing is rounded. */
static int64_t part_of_slot(const wb_model *to, const wb_model *from, const wb_param *param) {
    const wb_topology *topology = wb_placement_topology(from->placement);
    int64_t n_slots = 1;
    if (to->dtype == from->dtype) return param->slot_elements;
    for (uint32_t r = 0; r < topology->n_ranks; r++)
        if (topology->slots_of_rank[r] > n_slots) n_slots = topology->slots_of_rank[r];
    return wb_slot_part(SCRATCH_ELEMENTS, n_slots, param->slot_elements);
}

/* What this rank has rounded at a time, elements: a part of each of its slots of `from`. */
static int64_t scratch_elements(const wb_model *to, const wb_model *from) {
    int64_t part = 0;
    if (to->dtype == from->dtype || to->n_ranks == 1) return 0;
    for (int32_t i = 0; i < to->n_params; i++) {
        if (to->params[i].moe_layer < 0) continue;
        const int64_t of_param = part_of_slot(to, from, &to->params[i]);
        part = of_param > part ? of_param : part;
    }
    return wb_model_local_slots(from) * part;
}

static size_t scratch_bytes(const wb_model *to, const wb_model *from) {
    return (size_t)scratch_elements(to, from) * wb_dtype_size(to->dtype);
}

/* Each slot of `to` is received once at the most. What is taken depends on the numbers of slots alone and not
 * on the maps: what was reserved once is enough for every copy from the model. */
wb_status wb_model_reserve_copy(wb_model *to, const wb_model *from) {
    WB_TRY(wb_model_check_copy(to, from));
    if (to->n_ranks == 1) return WB_OK;
    const size_t n = wb_placement_topology(to->placement)->n_slots;
    const int64_t elements = scratch_elements(to, from);
    WB_TRY(WB_GROW(to->copied.transfers, n, &to->copied.room, "copy of weights"));
    WB_TRY(wb_exchange_reserve(to->exchange, n));
    if (elements > 0)
        WB_TRY(wb_reserve(&to->memory, &to->copy_scratch, elements, 1, wb_dtype_size(to->dtype)));
    return to->mtp ? wb_model_reserve_copy(to->mtp, from->mtp) : WB_OK;
}

wb_status wb_model_measure_copy(const wb_config *config, const wb_model_options *to,
                                const wb_model_options *from, int32_t n_ranks, int32_t rank,
                                size_t *bytes_out) {
    wb_model *t = NULL, *f = NULL;
    wb_status status = wb_model_blank(config, to, n_ranks, rank, &t);
    if (status == WB_OK) status = wb_model_blank(config, from, n_ranks, rank, &f);
    if (status == WB_OK) *bytes_out = scratch_bytes(t, f) + (t->mtp ? scratch_bytes(t->mtp, f->mtp) : 0);
    wb_model_close(f);
    wb_model_close(t);
    return status;
}

/* ---- the copy ------------------------------------------------------------------------------------ */

/* Elements [first, first + n) of every slot of one storage. */
typedef struct copied_part {
    wb_model *to;
    const wb_model *from;
    const wb_param *t, *f;
    int64_t first, n;
} copied_part;

static char *part_at(const wb_model *m, const wb_param *param, wb_physical_id slot, int64_t first) {
    const int64_t local = wb_model_local_slot(m, slot);
    return (char *)param->memory.data +
           (size_t)(local * param->slot_elements + first) * wb_dtype_size(param->dtype);
}

/* What a slot of this rank sends: itself, or what it is when rounded, in its place of the scratch. */
static wb_status send_part(const copied_part *p, const expert_way *way) {
    wb_device *dev = p->to->device;
    char *data = part_at(p->from, p->f, way->from, p->first);
    const size_t size = wb_dtype_size(p->t->dtype);
    if (p->t->dtype != p->f->dtype) {
        const int64_t local = wb_model_local_slot(p->from, way->from);
        char *const rounded = (char *)p->to->copy_scratch.data + (size_t)(local * p->n) * size;
        WB_TRY(dev->cast(dev, p->n, (wb_rows){data, p->f->dtype}, (wb_rows){rounded, p->t->dtype}));
        data = rounded;
    }
    wb_slot_send(&p->to->copied, way->to_rank, data, (size_t)p->n * size);
    return WB_OK;
}

static wb_status copy_part(const copied_part *p) {
    const uint32_t l = (uint32_t)p->t->moe_layer;
    const wb_layer_map t = wb_placement_layer(p->to->placement, l),
                       f = wb_placement_layer(p->from->placement, l);
    for (int32_t e = 0; e < wb_config_weighted(&p->to->config); e++)
        for (uint32_t i = t.replica_begin[e]; i < t.replica_begin[e + 1]; i++) {
            expert_way way;
            if (!find_way(p->to, &t, p->from, &f, e, i, &way)) continue;
            if (way.from_rank == p->to->rank) WB_TRY(send_part(p, &way));
            if (way.to_rank == p->to->rank)
                wb_slot_receive(&p->to->copied, way.from_rank, part_at(p->to, p->t, way.to, p->first),
                                (size_t)p->n * wb_dtype_size(p->t->dtype));
        }
    return wb_slot_traffic_run(&p->to->copied, p->to->exchange);
}

wb_status wb_model_copy_travel(wb_model *to, const wb_model *from) {
    for (int32_t i = 0; i < to->n_params; i++) {
        const wb_param *t = &to->params[i];
        if (t->moe_layer < 0) continue;
        const int64_t part = part_of_slot(to, from, t);
        for (int64_t first = 0; first < t->slot_elements; first += part) {
            const int64_t left = t->slot_elements - first, n = part < left ? part : left;
            const copied_part p = {to, from, t, &from->params[i], first, n};
            WB_TRY(copy_part(&p));
        }
    }
    return to->mtp ? wb_model_copy_travel(to->mtp, from->mtp) : WB_OK;
}
