/* load_record.c - counting: rows of one layer, or all rows of a captured record, into the pass that is open.
 * Refuses: a record without a layer, ids outside the region, a partly counted call.
 *
 * A call tallies its ids aside, which checks them on the way; only when all of them are good does the
 * tally enter the pass. */
#include "dispatch/routed_rows.h"
#include "load/load_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* ---- tallies -------------------------------------------------------------------------------------- */

static inline uint32_t tally_as(const uint8_t *ids, wb_dtype dtype, uint32_t K, uint32_t limit,
                                uint64_t *tally) {
    for (uint32_t k = 0; k < K; k++) {
        uint32_t id = wb_route_id(ids, dtype, k);
        if (id >= limit) return k;
        tally[id]++;
    }
    return K;
}

/* Adds the K ids of a row to tally [limit]; stops at one that is not below `limit` and returns its number,
 * else K. */
static inline uint32_t tally_ids(const uint8_t *ids, wb_dtype dtype, uint32_t K, uint32_t limit,
                                 uint64_t *tally) {
    return dtype == WB_U8 ? tally_as(ids, WB_U8, K, limit, tally) : tally_as(ids, WB_U16, K, limit, tally);
}

/* A tally of one layer [E] may enter the open pass: no count leaves 32 bits. */
static wb_status check_room(const wb_load *load, const wb_load_table *table, wb_phase phase, uint32_t layer,
                            const uint64_t *tally) {
    uint32_t E = table->shape.n_experts;
    const uint32_t *counts = wb_load_cells(table, load->open, phase) + (size_t)layer * E;
    for (uint32_t e = 0; e < E; e++)
        if (tally[e] > UINT32_MAX - counts[e])
            return wb_fail(WB_CAPACITY,
                           "load of region \"%s\", %s, layer %" PRIu32 ", expert %" PRIu32 ": %" PRIu32
                           " and %" PRIu64 " tokens in one pass, expected at most %" PRIu32 " together",
                           table->shape.name, wb_phase_name(phase), layer, e, counts[e], tally[e],
                           UINT32_MAX);
    return WB_OK;
}

static void take_over(const wb_load *load, const wb_load_table *table, wb_phase phase, uint32_t layer,
                      const uint64_t *tally) {
    uint32_t E = table->shape.n_experts;
    uint32_t *counts = wb_load_cells(table, load->open, phase) + (size_t)layer * E;
    for (uint32_t e = 0; e < E; e++) counts[e] += (uint32_t)tally[e];
    wb_load_filled(table, load->open)[phase] = true;
}

/* ---- rows of one layer ---------------------------------------------------------------------------- */

static wb_status check_layer(const wb_load_table *table, wb_phase phase, int32_t layer) {
    if ((uint32_t)phase >= WB_N_PHASES)
        return wb_fail(WB_INVALID_ARGUMENT, "load of region \"%s\": unknown phase %d", table->shape.name,
                       (int)phase);
    if (layer < 0 || (uint32_t)layer >= table->shape.n_layers)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "load of region \"%s\": layer: a record needs its layer, expected 0..%" PRIu32
                       ", found %" PRId32,
                       table->shape.name, table->shape.n_layers - 1, layer);
    return WB_OK;
}

static wb_status refuse_id(const wb_load_region *shape, const char *where, uint32_t layer, uint32_t choice,
                           uint32_t id) {
    return wb_fail(WB_INVALID_ARGUMENT,
                   "load of region \"%s\": %s, choice %" PRIu32 ", layer %" PRIu32
                   ": expected an expert below %" PRIu32 " (%" PRIu32 " routed, %" PRIu32
                   " shared), found %" PRIu32,
                   shape->name, where, choice, layer, shape->n_experts + shape->n_shared, shape->n_experts,
                   shape->n_shared, id);
}

wb_status wb_load_record(wb_load *load, uint32_t region, wb_phase phase, int32_t layer,
                         const wb_routed_rows *rows) {
    WB_TRY(wb_load_check_region(load, region));
    const wb_load_table *table = &load->regions[region];
    size_t stride = 0;
    WB_TRY(check_layer(table, phase, layer));
    WB_TRY(wb_routed_rows_check(rows, "load", &stride));
    if (!table->on) return WB_OK;

    uint32_t limit = table->shape.n_experts + table->shape.n_shared, K = rows->K;
    bool any = false;
    memset(load->tally, 0, limit * sizeof *load->tally);
    for (uint32_t t = 0; t < rows->T; t++) {
        if (!wb_row_valid(rows->valid, t)) continue;
        const uint8_t *ids = (const uint8_t *)rows->ids + t * stride;
        uint32_t k = tally_ids(ids, rows->dtype, K, limit, load->tally);
        if (k < K) {
            char where[32];
            snprintf(where, sizeof where, "row %" PRIu32, t);
            return refuse_id(&table->shape, where, (uint32_t)layer, k, wb_route_id(ids, rows->dtype, k));
        }
        any = true;
    }
    WB_TRY(check_room(load, table, phase, (uint32_t)layer, load->tally));
    take_over(load, table, phase, (uint32_t)layer, load->tally);
    load->recorded |= any;
    return WB_OK;
}

/* ---- captured records ----------------------------------------------------------------------------- */

static wb_status check_model(const wb_load_region *shape, const wb_route_model *model) {
    WB_TRY(wb_route_model_check(model));
    if (model->n_moe_layers != shape->n_layers || wb_route_weighted(model) != shape->n_experts)
        return wb_fail(WB_MISMATCH,
                       "load of region \"%s\": expected L %" PRIu32 " and E %" PRIu32
                       ", found a record of model %s with L %" PRIu32 " and E %" PRIu32,
                       shape->name, shape->n_layers, shape->n_experts, model->name, model->n_moe_layers,
                       wb_route_weighted(model));
    return WB_OK;
}

/* Tallies one row, all layers, into tally [L][E + n_shared]. */
static wb_status tally_row(const wb_load_region *shape, const wb_route_model *model, const wb_record *record,
                           uint32_t position, const uint8_t *row, uint64_t *tally) {
    wb_dtype dtype = wb_route_dtype(model->num_experts);
    uint32_t limit = shape->n_experts + shape->n_shared;
    const uint8_t *ids = row;
    for (uint32_t l = 0; l < shape->n_layers; ids += wb_route_layer_k(model, l++) * wb_dtype_size(dtype)) {
        const uint32_t K = wb_route_layer_k(model, l);
        uint32_t k = tally_ids(ids, dtype, K, limit, tally + (size_t)l * limit);
        if (k < K) {
            char where[96];
            snprintf(where, sizeof where, "rid %.60s, position %" PRIu32, record->rid, position);
            return refuse_id(shape, where, l, k, wb_route_id(ids, dtype, k));
        }
    }
    return WB_OK;
}

/* Tallies a record: tally [L][E + n_shared] of the prompt's rows (all under replay), after it that of the
 * others. */
static wb_status tally_record(const wb_load_region *shape, const wb_route_model *model,
                              const wb_record *record, bool replay, uint64_t *tally, bool *any_out) {
    size_t half = wb_load_tally_length(shape) / 2;
    *any_out = false;
    for (wb_row_walk walk = wb_rows_of(model, record); wb_row_next(&walk);) {
        bool first = replay || walk.position < record->prompt_len;
        WB_TRY(tally_row(shape, model, record, walk.position, walk.row, first ? tally : tally + half));
        *any_out = true;
    }
    return WB_OK;
}

wb_status wb_load_add_record(wb_load *load, uint32_t region, const wb_route_model *model,
                             const wb_record *record, bool replay) {
    WB_TRY(wb_load_check_region(load, region));
    const wb_load_table *table = &load->regions[region];
    const wb_load_region *shape = &table->shape;
    WB_TRY(check_model(shape, model));
    WB_TRY(wb_record_check(model, record, false));
    if (!table->on) return WB_OK;

    bool any;
    memset(load->tally, 0, wb_load_tally_length(shape) * sizeof *load->tally);
    WB_TRY(tally_record(shape, model, record, replay, load->tally, &any));
    const wb_phase phases[2] = {replay ? WB_PHASE_REPLAY : WB_PHASE_PREFILL, WB_PHASE_DECODE};
    uint32_t width = shape->n_experts + shape->n_shared, n = shape->n_layers;
    for (uint32_t i = 0; i < 2 * n; i++)
        WB_TRY(check_room(load, table, phases[i / n], i % n, load->tally + (size_t)i * width));
    for (uint32_t i = 0; i < 2 * n; i++)
        take_over(load, table, phases[i / n], i % n, load->tally + (size_t)i * width);
    load->recorded |= any;
    return WB_OK;
}
