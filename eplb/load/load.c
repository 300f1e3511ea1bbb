/* load.c - counts of routed tokens: a ring of passes for each region, phase, layer and expert. Owns: the
 * handle, recording, the passes, sums over the window. Refuses: a record without a layer, ids outside the
 * region, a partly counted call, any allocation after open.
 *
 * A call tallies its ids aside, which checks them on the way; only when all of them are good does the
 * tally enter the pass. */
#include "load/load_internal.h"
#include "wb_memory.h"
#include "wb_route_limits.h"
#include "wb_text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- open and close ------------------------------------------------------------------------------- */

wb_load_options wb_load_options_default(void) {
    return (wb_load_options){.window = 100, .decay = 1};
}

static wb_status check_region(uint32_t i, const wb_load_region *regions) {
    const wb_load_region *r = &regions[i];
    if (!r->name || !*r->name || !wb_text_ok(r->name, strlen(r->name)))
        return wb_fail(WB_INVALID_ARGUMENT, "load region %" PRIu32 ": expected a name in UTF-8", i);
    for (uint32_t other = 0; other < i; other++)
        if (strcmp(regions[other].name, r->name) == 0)
            return wb_fail(WB_INVALID_ARGUMENT, "load regions %" PRIu32 " and %" PRIu32 ": both named \"%s\"",
                           other, i, r->name);
    if (r->n_layers == 0 || r->n_layers > WB_MAX_LAYERS)
        return wb_fail(WB_INVALID_ARGUMENT, "load region \"%s\": n_layers: expected 1..%u, found %" PRIu32,
                       r->name, WB_MAX_LAYERS, r->n_layers);
    if (r->n_experts == 0 || r->n_experts > WB_MAX_EXPERTS)
        return wb_fail(WB_INVALID_ARGUMENT, "load region \"%s\": n_experts: expected 1..%u, found %" PRIu32,
                       r->name, WB_MAX_EXPERTS, r->n_experts);
    if (r->n_shared > WB_MAX_EXPERTS - r->n_experts)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "load region \"%s\": n_shared: expected 0..%" PRIu32 " beside %" PRIu32
                       " experts, found %" PRIu32,
                       r->name, WB_MAX_EXPERTS - r->n_experts, r->n_experts, r->n_shared);
    return WB_OK;
}

static size_t tally_length(const wb_load_region *r) {
    return 2 * (size_t)r->n_layers * (r->n_experts + r->n_shared);
}

/* Regions are sound and all that open reserves is within the limit, so that no product overflows
 * afterwards. */
static wb_status check_open(uint32_t n_regions, const wb_load_region *regions, const wb_load_options *o) {
    if (n_regions == 0 || n_regions > WB_LOAD_MAX_REGIONS || !regions)
        return wb_fail(WB_INVALID_ARGUMENT, "load: expected 1..%u regions, found %" PRIu32,
                       WB_LOAD_MAX_REGIONS, regions ? n_regions : 0);
    if (o->window == 0)
        return wb_fail(WB_INVALID_ARGUMENT, "load window: expected 1 or more passes, found 0");
    if (!(o->decay > 0 && o->decay <= 1))
        return wb_fail(WB_INVALID_ARGUMENT, "load decay: expected (0, 1], found %g", o->decay);
    size_t left = WB_LOAD_MAX_BYTES;
    for (uint32_t i = 0; i < n_regions; i++) {
        WB_TRY(check_region(i, regions));
        size_t pass = WB_N_PHASES * wb_load_table_cells(&regions[i]) * sizeof(uint32_t);
        size_t tally = tally_length(&regions[i]) * sizeof(uint64_t);
        if (tally > left || (size_t)o->window + 1 > (left - tally) / pass)
            return wb_fail(WB_CAPACITY,
                           "load region \"%s\": %" PRIu32 " passes of %zu bytes are over the limit of %zu",
                           regions[i].name, o->window, pass, WB_LOAD_MAX_BYTES);
        left -= tally + ((size_t)o->window + 1) * pass;
    }
    return WB_OK;
}

static wb_status open_table(const wb_load_region *shape, uint32_t window, wb_load_table *table) {
    void *name, *counts;
    table->shape = *shape;
    table->shape.name = NULL;
    table->on = true;
    WB_TRY(WB_ALLOC(name, strlen(shape->name) + 1, 1, "load region"));
    memcpy(name, shape->name, strlen(shape->name) + 1);
    table->shape.name = name;
    WB_TRY(WB_ALLOC(counts, ((size_t)window + 1) * WB_N_PHASES * wb_load_table_cells(shape),
                    sizeof *table->counts, "load window"));
    table->counts = counts;
    return WB_OK;
}

wb_status wb_load_open(uint32_t n_regions, const wb_load_region *regions, const wb_load_options *options,
                       wb_load **load_out) {
    wb_load_options o = options ? *options : wb_load_options_default();
    WB_TRY(check_open(n_regions, regions, &o));
    wb_load *load;
    void *block;
    WB_TRY(WB_ALLOC(block, 1, sizeof *load, "load"));
    load = block;
    load->window = o.window;
    load->decay = o.decay;
    wb_status status;
    WB_GOTO(WB_ALLOC(block, n_regions, sizeof *load->regions, "load regions"), close_load);
    load->regions = block;
    size_t tally = 0;
    for (uint32_t i = 0; i < n_regions; i++) {
        load->n_regions = i + 1;
        WB_GOTO(open_table(&regions[i], o.window, &load->regions[i]), close_load);
        if (tally_length(&regions[i]) > tally) tally = tally_length(&regions[i]);
    }
    WB_GOTO(WB_ALLOC(block, tally, sizeof *load->tally, "load tally"), close_load);
    load->tally = block;
    *load_out = load;
    return WB_OK;
close_load:
    wb_load_close(load);
    return status;
}

void wb_load_close(wb_load *load) {
    if (!load) return;
    for (uint32_t i = 0; i < load->n_regions; i++) {
        free((char *)load->regions[i].shape.name);
        free(load->regions[i].counts);
    }
    free(load->regions);
    free(load->tally);
    free(load);
}

wb_status wb_load_check_region(const wb_load *load, uint32_t region) {
    if (region < load->n_regions) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "load: expected a region below %" PRIu32 ", found %" PRIu32,
                   load->n_regions, region);
}

wb_status wb_load_enable(wb_load *load, uint32_t region, bool on) {
    WB_TRY(wb_load_check_region(load, region));
    load->regions[region].on = on;
    return WB_OK;
}

const char *wb_phase_name(wb_phase phase) {
    static const char *const names[] = {"prefill", "decode", "replay"};
    return (size_t)phase < WB_N_PHASES ? names[phase] : "unknown";
}

/* ---- tallies -------------------------------------------------------------------------------------- */

/* Adds the K ids of a row to tally [limit]; stops at one that is not below `limit` and returns its place,
 * else K. */
static inline uint32_t tally_ids(const uint8_t *ids, wb_dtype dtype, uint32_t K, uint32_t limit,
                                 uint64_t *tally) {
    if (dtype == WB_U8) {
        for (uint32_t k = 0; k < K; k++) {
            if (ids[k] >= limit) return k;
            tally[ids[k]]++;
        }
    } else {
        for (uint32_t k = 0; k < K; k++) {
            uint32_t id = (uint32_t)ids[2 * (size_t)k] | (uint32_t)ids[2 * (size_t)k + 1] << 8;
            if (id >= limit) return k;
            tally[id]++;
        }
    }
    return K;
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

static wb_status refuse_id(const wb_load_region *shape, const char *where, uint32_t layer, uint32_t place,
                           uint32_t id) {
    return wb_fail(WB_INVALID_ARGUMENT,
                   "load of region \"%s\": %s, place %" PRIu32 ", layer %" PRIu32
                   ": expected an expert below %" PRIu32 " (%" PRIu32 " routed, %" PRIu32
                   " shared), found %" PRIu32,
                   shape->name, where, place, layer, shape->n_experts + shape->n_shared, shape->n_experts,
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
    if (model->n_moe_layers != shape->n_layers || model->num_experts != shape->n_experts)
        return wb_fail(WB_MISMATCH,
                       "load of region \"%s\": expected L %" PRIu32 " and E %" PRIu32
                       ", found a record of model %s with L %" PRIu32 " and E %" PRIu32,
                       shape->name, shape->n_layers, shape->n_experts, model->name, model->n_moe_layers,
                       model->num_experts);
    return WB_OK;
}

/* Tallies one row, all layers, into tally [L][E + n_shared]. */
static wb_status tally_row(const wb_load_region *shape, const wb_route_model *model, const wb_record *record,
                           uint32_t position, const uint8_t *row, uint64_t *tally) {
    wb_dtype dtype = wb_route_dtype(model->num_experts);
    uint32_t limit = shape->n_experts + shape->n_shared, K = model->top_k;
    size_t layer_bytes = K * wb_dtype_size(dtype);
    for (uint32_t l = 0; l < shape->n_layers; l++) {
        const uint8_t *ids = row + l * layer_bytes;
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
    size_t row_bytes = wb_route_row_bytes(model), half = tally_length(shape) / 2;
    *any_out = false;
    for (uint32_t i = 0; i < record->n_routes; i++) {
        const wb_route_rows *run = &record->routes[i];
        for (uint32_t r = 0; r < run->rows; r++) {
            if (!wb_row_valid(run->valid, r)) continue;
            uint32_t position = run->start + r;
            bool first = replay || position < record->prompt_len;
            WB_TRY(tally_row(shape, model, record, position, (const uint8_t *)run->ids + r * row_bytes,
                             first ? tally : tally + half));
            *any_out = true;
        }
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
    memset(load->tally, 0, tally_length(shape) * sizeof *load->tally);
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

/* ---- passes --------------------------------------------------------------------------------------- */

uint32_t wb_load_passes(const wb_load *load) {
    return load->passes;
}

uint64_t wb_load_passes_seen(const wb_load *load) {
    return load->passes_seen;
}

wb_status wb_load_check_query(const wb_load *load, uint32_t region, uint32_t phases) {
    WB_TRY(wb_load_check_region(load, region));
    if (phases == 0 || (phases & ~WB_PHASES_ALL))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "load: phases: expected a set of bits 1 << phase in 1..%u, found %" PRIu32,
                       WB_PHASES_ALL, phases);
    return WB_OK;
}

/* out [n] += weight x the counts of a pass from cell `first` on, for each phase of the set. */
static void add_cells(const wb_load_table *table, uint32_t place, uint32_t phases, size_t first, size_t n,
                      double weight, double *out) {
    for (uint32_t phase = 0; phase < WB_N_PHASES; phase++) {
        if (!(phases >> phase & 1)) continue;
        const uint32_t *counts = wb_load_cells(table, place, (wb_phase)phase) + first;
        for (size_t i = 0; i < n; i++) out[i] += weight * counts[i];
    }
}

void wb_load_layer_counts(const wb_load_table *table, uint32_t place, uint32_t phases, uint32_t layer,
                          double *out) {
    uint32_t E = table->shape.n_experts;
    memset(out, 0, E * sizeof *out);
    add_cells(table, place, phases, (size_t)layer * E, E, 1, out);
}

wb_status wb_load_counts(const wb_load *load, uint32_t region, uint32_t phases, double *counts_out) {
    WB_TRY(wb_load_check_query(load, region, phases));
    const wb_load_table *table = &load->regions[region];
    size_t cells = wb_load_table_cells(&table->shape);
    double weight = 1;
    memset(counts_out, 0, cells * sizeof *counts_out);
    for (uint32_t age = 0; age < load->passes; age++, weight *= load->decay)
        add_cells(table, wb_load_place(load, age), phases, 0, cells, weight, counts_out);
    return WB_OK;
}

wb_status wb_load_pass_counts(const wb_load *load, uint32_t region, uint32_t phases, uint32_t age,
                              double *counts_out) {
    WB_TRY(wb_load_check_query(load, region, phases));
    if (age >= load->passes)
        return wb_fail(WB_NOT_FOUND, "load: pass of age %" PRIu32 ": the window has %" PRIu32 " passes", age,
                       load->passes);
    const wb_load_table *table = &load->regions[region];
    size_t cells = wb_load_table_cells(&table->shape);
    memset(counts_out, 0, cells * sizeof *counts_out);
    add_cells(table, wb_load_place(load, age), phases, 0, cells, 1, counts_out);
    return WB_OK;
}
