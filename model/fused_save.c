/* fused_save.c - see fused_save.h. */
#include "fused_save.h"

#include "elements.h"

#include <string.h>

/* ---- which tensors --------------------------------------------------------------------------- */

static bool is_listed(const wb_fused_save *s, const char *name) {
    for (size_t i = 0; i < s->n; i++)
        if (strcmp(s->tensors[i].place.name, name) == 0) return true;
    return false;
}

/* Those of vectors, or of matrices, by the members of expert 0. */
static void list_tensors(wb_fused_save *s, int32_t n_dims) {
    const wb_model *m = s->model;
    for (int32_t i = 0; i < m->n_tensors; i++) {
        const wb_tensor *t = &m->tensors[i];
        wb_fused_place place;
        if (t->expert != 0 || t->n_dims != n_dims || !wb_fused_place_of(m, t, &place)) continue;
        if (!is_listed(s, place.name))
            s->tensors[s->n++] = (wb_fused_tensor){place, t->dtype, wb_saved_dtype(t, s->as_opened), i};
    }
}

wb_status wb_fused_save_open(wb_model *model, bool as_opened, wb_fused_save *s) {
    int64_t largest = 0;
    *s = (wb_fused_save){.model = model, .as_opened = as_opened};
    if (!model->family->fused_experts) return WB_OK;
    WB_TRY(WB_OWN(&s->memory, s->tensors, (size_t)model->n_tensors, "save"));
    list_tensors(s, 1);
    list_tensors(s, 2);
    for (size_t i = 0; i < s->n; i++)
        if (s->tensors[i].place.part > largest) largest = s->tensors[i].place.part;
    const size_t bytes = (size_t)largest * sizeof(float);
    WB_TRY(WB_OWN(&s->memory, s->part, bytes, "save"));
    WB_TRY(WB_OWN(&s->memory, s->values, bytes, "save"));
    WB_TRY(WB_OWN(&s->memory, s->arrived, bytes, "save"));
    return WB_OWN(&s->memory, s->sizes, 4 * (size_t)model->n_ranks, "save");
}

void wb_fused_save_close(wb_fused_save *s) {
    wb_owner_close(&s->memory);
}

/* ---- an expert's part ------------------------------------------------------------------------ */

/* Elements of `values`, in the order of the tensor, to where the part has them. */
static void place_values(const wb_fused_save *s, const wb_fused_place *p, const wb_tensor *t) {
    const size_t size = wb_dtype_size(t->dtype);
    const int64_t rows = t->shape[0], columns = t->shape[1];
    for (int64_t row = 0; row < rows; row++)
        for (int64_t column = 0; column < columns; column++)
            memcpy(s->part + (size_t)(p->first + row * p->row_stride + column * p->column_stride) * size,
                   s->values + (size_t)(row * columns + column) * size, size);
}

/* The part of an expert whose replica 0 is here: of each of its tensors that belong to it. */
static wb_status make_part(wb_fused_save *s, const wb_fused_tensor *f, int32_t expert) {
    const wb_model *m = s->model;
    for (int32_t i = f->first; i < m->n_tensors && m->tensors[i].layer == m->tensors[f->first].layer; i++) {
        wb_fused_place place;
        if (m->tensors[i].expert != expert || !wb_fused_place_of(m, &m->tensors[i], &place) ||
            strcmp(place.name, f->place.name) != 0)
            continue;
        const wb_tensor t = wb_model_replica(m, i, 0);
        WB_TRY(m->device->to_host(m->device, s->values, t.data, (size_t)t.n * wb_dtype_size(t.dtype)));
        place_values(s, &place, &t);
    }
    return WB_OK;
}

/* A part from the rank that has it to rank 0. */
static wb_status move_part(wb_fused_save *s, int owner, size_t bytes) {
    const wb_model *m = s->model;
    const size_t R = (size_t)m->n_ranks;
    size_t *sends = s->sizes, *from = sends + R, *receives = from + R, *to = receives + R;
    memset(s->sizes, 0, 4 * R * sizeof *s->sizes);
    if (m->rank == owner) sends[0] = bytes;
    if (m->rank == 0) receives[owner] = bytes;
    return wb_comm_all_to_all_v(m->comm, s->part, sends, from, s->arrived, receives, to);
}

/* Expert `expert` of tensor i, in `arrived` of rank 0. A failure of the communicator ends it; one of this
 * rank alone is kept for later. */
static wb_status bring_part(wb_fused_save *s, size_t i, int32_t expert) {
    const wb_fused_tensor *f = &s->tensors[i];
    const wb_tensor *member = &s->model->tensors[f->first];
    const uint32_t layer = (uint32_t)s->model->params[member->param].moe_layer;
    const wb_layer_map map = wb_placement_layer(s->model->placement, layer);
    const int owner = wb_model_rank_of(s->model, map.replicas[map.replica_begin[expert]]);
    if (owner == s->model->rank && s->status == WB_OK) s->status = make_part(s, f, expert);
    s->n_done++;
    return move_part(s, owner, (size_t)f->place.part * wb_dtype_size(f->dtype));
}

wb_status wb_fused_save_write(wb_fused_save *s, size_t i, wb_new_file *file) {
    const wb_fused_tensor *f = &s->tensors[i];
    for (int32_t e = 0; e < wb_config_weighted(&s->model->config); e++) {
        WB_TRY(bring_part(s, i, e));
        WB_TRY(s->status);
        if (f->written != f->dtype) wb_convert(f->place.part, s->arrived, f->dtype, s->values, f->written);
        WB_TRY(wb_new_file_write(file, f->written != f->dtype ? s->values : s->arrived,
                                 (size_t)f->place.part * wb_dtype_size(f->written)));
    }
    return WB_OK;
}

wb_status wb_fused_serve(wb_fused_save *s) {
    const size_t E = (size_t)wb_config_weighted(&s->model->config);
    while (s->n_done < s->n * E) WB_TRY(bring_part(s, s->n_done / E, (int32_t)(s->n_done % E)));
    return s->status;
}
