/* planned_check.c - see planned_check.h. Counts that are not those of the rows would have ranks send and
 * expect different sizes. So on several ranks the plans of all layers are made before the pass by the op that
 * makes them in it, since all ids are there: 10 us a layer, and the host waits for the device once in LAYERS
 * of them, where looking at each row on the host took more than a pass saves. One rank sends nothing: the
 * pass looks at no count of a plan, and nothing is run or read back for it. Refuses: the rows themselves,
 * which the pass makes again. */
#include "planned_check.h"
#include "layers/moe/moe.h"
#include "model_dispatch.h"

#include <inttypes.h>

/* Layers between two waits for the device. */
enum { LAYERS = 16 };

static int64_t offsets_length(const wb_model *model) {
    return wb_model_n_slots(model) + 1;
}

void wb_planned_layout(const wb_model *model, int64_t max_tokens, wb_planned_stage *stage, wb_arena *arena) {
    const int64_t n_pairs = max_tokens * model->config.router.top_k;
    if (!wb_moe_rows_travel(model)) return;
    wb_place(arena, &stage->pair_row, n_pairs, 1, sizeof(int32_t));
    wb_place(arena, &stage->row_token, n_pairs, 1, sizeof(int32_t));
    wb_place(arena, &stage->offsets, LAYERS, offsets_length(model), sizeof(int32_t));
    WB_PLACE_HOST(arena, stage->found, LAYERS * offsets_length(model));
}

/* Of the layers [first, end). */
static wb_status find_offsets(const wb_model *model, const wb_planned_stage *stage, const wb_pass *pass,
                              uint32_t first, uint32_t end) {
    wb_device *dev = model->device;
    for (uint32_t l = first; l < end; l++) {
        wb_moe_plan plan = wb_moe_plan_args(model, pass, (int32_t)l);
        plan.pair_row = stage->pair_row.data;
        plan.row_token = stage->row_token.data;
        plan.offsets = (int32_t *)stage->offsets.data + (l - first) * offsets_length(model);
        WB_TRY(dev->moe_plan(dev, &plan));
    }
    return dev->to_host(dev, stage->found, stage->offsets.data,
                        (end - first) * (size_t)offsets_length(model) * sizeof *stage->found);
}

static wb_status check_offsets(const wb_model *model, uint32_t l, const int32_t *offsets,
                               const int32_t *found) {
    for (int64_t s = 0; s < offsets_length(model); s++)
        if (offsets[s] != found[s])
            return wb_fail(WB_INVALID_ARGUMENT,
                           "planned: MoE layer %" PRIu32 ", slot %" PRId64 ": expected %s %" PRId32
                           ", found %" PRId32,
                           l, s, s == wb_model_n_slots(model) ? "rows in all" : "its first row to be",
                           found[s], offsets[s]);
    return WB_OK;
}

/* What other ranks send cannot be known here, but how many there can be, and what this rank sends itself. */
static wb_status check_received(const wb_model *model, uint32_t l, const wb_planned_layer *p) {
    const int32_t R = model->n_ranks, self = model->rank;
    const int64_t here = wb_model_local_slots(model), first = wb_model_first_slot(model);
    for (int64_t i = 0; i < R * here; i++) {
        const int32_t *own = p->offsets + first + i % here;
        if (p->received[i] < 0 || (i / here == self && p->received[i] != own[1] - own[0]))
            return wb_fail(WB_INVALID_ARGUMENT,
                           "planned: MoE layer %" PRIu32 ": expected %s for slot %" PRId64
                           " from rank %" PRId64 ", found %" PRId32,
                           l, i / here == self ? "this rank's own rows" : "0 or more rows", first + i % here,
                           i / here, p->received[i]);
    }
    return WB_OK;
}

/* What needs no device. */
static wb_status check_layer(const wb_model *model, const wb_pass *pass, uint32_t l) {
    const wb_planned_layer *p = &pass->routing->planned[l];
    const uint64_t hash = wb_placement_hash(model->placement);
    if (p->placement_hash != hash)
        return wb_fail(WB_MISMATCH,
                       "planned: MoE layer %" PRIu32 ": expected a plan for the model's placement %016" PRIx64
                       ", found one for %016" PRIx64,
                       l, hash, p->placement_hash);
    if (p->T != pass->T)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "planned: MoE layer %" PRIu32 ": expected %" PRId64 " tokens, found %" PRId64, l,
                       pass->T, p->T);
    if (!p->offsets || !p->received)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "planned: MoE layer %" PRIu32 ": expected both arrays, found NULL", l);
    return WB_OK;
}

static wb_status check_counts(const wb_model *model, const wb_pass *pass, uint32_t l, const int32_t *found) {
    const wb_planned_layer *p = &pass->routing->planned[l];
    WB_TRY(check_offsets(model, l, p->offsets, found));
    return check_received(model, l, p);
}

wb_status wb_planned_check(const wb_model *model, const wb_planned_stage *stage, const wb_pass *pass) {
    const uint32_t L = model->route_model.n_moe_layers;
    for (uint32_t l = 0; l < L; l++) WB_TRY(check_layer(model, pass, l));
    if (!wb_moe_rows_travel(model)) return WB_OK;
    for (uint32_t first = 0; first < L; first += LAYERS) {
        const uint32_t end = first + LAYERS < L ? first + LAYERS : L;
        WB_TRY(find_offsets(model, stage, pass, first, end));
        for (uint32_t l = first; l < end; l++)
            WB_TRY(check_counts(model, pass, l, stage->found + (l - first) * offsets_length(model)));
    }
    return WB_OK;
}
