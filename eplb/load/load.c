/* load.c - counts of routed tokens: a ring of passes for each region, phase, layer and expert. Owns: the
 * handle and reading the window. Refuses: counting (load_record.c), the end of a pass
 * (load_pass.c), any allocation after open. */
#include "load/load_internal.h"
#include "wb_options.h"
#include "wb_route_limits.h"
#include "wb_text.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- open and close ------------------------------------------------------------------------------- */

WB_OPTIONS_END(wb_load_options, decay);
void wb_load_options_init(wb_load_options *options_out, size_t size) {
    const wb_load_options defaults = {.window = 100, .decay = 1};
    wb_options_init(options_out, size, &defaults, sizeof defaults);
}

static wb_status check_region(uint32_t i, const wb_load_region *regions) {
    const wb_load_region *r = &regions[i];
    if (!r->name || !*r->name || !wb_text_ok(r->name, strlen(r->name)))
        return wb_fail(WB_INVALID_ARGUMENT, "load region %" PRIu32 ": expected a name in UTF-8", i);
    for (uint32_t other = 0; other < i; other++)
        if (strcmp(regions[other].name, r->name) == 0)
            return wb_fail(WB_INVALID_ARGUMENT, "load regions %" PRIu32 " and %" PRIu32 ": both named \"%s\"",
                           other, i, r->name);
    if (r->n_layers == 0 || r->n_layers > WB_MAX_MODEL_LAYERS)
        return wb_fail(WB_INVALID_ARGUMENT, "load region \"%s\": n_layers: expected 1..%u, found %" PRIu32,
                       r->name, WB_MAX_MODEL_LAYERS, r->n_layers);
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

/* Regions are sound and all that open reserves, *bytes_out, is within the limit, so that no product overflows
 * afterwards. */
static wb_status check_open(uint32_t n_regions, const wb_load_region *regions, const wb_load_options *o,
                            size_t *bytes_out) {
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
        size_t sums = WB_N_PHASES * wb_load_table_cells(&regions[i]) * (sizeof(uint64_t) + sizeof(double));
        size_t kept = wb_load_tally_length(&regions[i]) * sizeof(uint64_t) + sums;
        if (kept > left || (size_t)o->window + 1 > (left - kept) / pass)
            return wb_fail(WB_CAPACITY,
                           "load region \"%s\": %" PRIu32 " passes of %zu bytes are over the limit of %zu",
                           regions[i].name, o->window, pass, WB_LOAD_MAX_BYTES);
        left -= kept + ((size_t)o->window + 1) * pass;
    }
    *bytes_out = WB_LOAD_MAX_BYTES - left;
    return WB_OK;
}

wb_status wb_load_measure(uint32_t n_regions, const wb_load_region *regions, const wb_load_options *options,
                          size_t *bytes_out) {
    wb_load_options o = wb_load_options_default();
    WB_TRY(wb_options_read(&o, sizeof o, options, "load"));
    return check_open(n_regions, regions, &o, bytes_out);
}

static wb_status open_table(wb_owner *memory, const wb_load_region *shape, const wb_load_options *o,
                            wb_load_table *table) {
    const size_t places = (size_t)o->window + 1, cells = WB_N_PHASES * wb_load_table_cells(shape);
    char *name = NULL;
    size_t bytes = strlen(shape->name) + 1;
    table->shape = *shape;
    table->on = true;
    WB_TRY(WB_OWN(memory, name, bytes, "load region"));
    memcpy(name, shape->name, bytes);
    table->shape.name = name;
    WB_TRY(WB_OWN(memory, table->filled, places * WB_N_PHASES, "load window"));
    WB_TRY(WB_OWN(memory, table->sums, cells, "load window"));
    if (o->decay < 1) WB_TRY(WB_OWN(memory, table->decayed, cells, "load window"));
    return WB_OWN(memory, table->counts, places * cells, "load window");
}

static wb_status open_tables(wb_load *load, uint32_t n_regions, const wb_load_region *regions,
                             const wb_load_options *o) {
    size_t tally = 0;
    WB_TRY(WB_OWN(&load->memory, load->regions, n_regions, "load regions"));
    load->n_regions = n_regions;
    for (uint32_t i = 0; i < n_regions; i++) {
        WB_TRY(open_table(&load->memory, &regions[i], o, &load->regions[i]));
        size_t length = wb_load_tally_length(&regions[i]);
        if (length > tally) tally = length;
    }
    return WB_OWN(&load->memory, load->tally, tally, "load tally");
}

wb_status wb_load_open(uint32_t n_regions, const wb_load_region *regions, const wb_load_options *options,
                       wb_load **load_out) {
    wb_load_options o = wb_load_options_default();
    size_t bytes;
    WB_TRY(wb_options_read(&o, sizeof o, options, "load"));
    WB_TRY(check_open(n_regions, regions, &o, &bytes));
    wb_load *load = NULL;
    WB_TRY(WB_NEW(load, 1, "load"));
    load->window = o.window;
    load->decay = o.decay;
    load->last_decay = pow(o.decay, o.window);
    wb_status status = open_tables(load, n_regions, regions, &o);
    if (status != WB_OK) {
        wb_load_close(load);
        return status;
    }
    *load_out = load;
    return WB_OK;
}

void wb_load_close(wb_load *load) {
    if (!load) return;
    wb_owner_close(&load->memory);
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

/* ---- reading the window --------------------------------------------------------------------------- */

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

/* out [n] += the counts of a pass from cell `first` on, for each phase of the set. */
static void add_cells(const wb_load_table *table, uint32_t place, uint32_t phases, size_t first, size_t n,
                      double *out) {
    for (uint32_t phase = 0; phase < WB_N_PHASES; phase++) {
        if (!(phases >> phase & 1)) continue;
        const uint32_t *counts = wb_load_cells(table, place, (wb_phase)phase) + first;
        for (size_t i = 0; i < n; i++) out[i] += counts[i];
    }
}

/* A sum of what has decayed, which subtractions may have left a little beside a true zero. */
static double decayed_sum(uint64_t sum, double decayed) {
    return sum > 0 && decayed > 0 ? decayed : 0;
}

void wb_load_layer_counts(const wb_load_table *table, uint32_t place, uint32_t phases, uint32_t layer,
                          double *out) {
    uint32_t E = table->shape.n_experts;
    memset(out, 0, E * sizeof *out);
    add_cells(table, place, phases, (size_t)layer * E, E, out);
}

wb_status wb_load_counts(const wb_load *load, uint32_t region, uint32_t phases, double *counts_out) {
    WB_TRY(wb_load_check_query(load, region, phases));
    const wb_load_table *table = &load->regions[region];
    size_t cells = wb_load_table_cells(&table->shape);
    memset(counts_out, 0, cells * sizeof *counts_out);
    for (uint32_t phase = 0; phase < WB_N_PHASES; phase++) {
        if (!(phases >> phase & 1)) continue;
        const uint64_t *sums = table->sums + phase * cells;
        const double *decayed = table->decayed ? table->decayed + phase * cells : NULL;
        for (size_t c = 0; c < cells; c++)
            counts_out[c] += decayed ? decayed_sum(sums[c], decayed[c]) : (double)sums[c];
    }
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
    add_cells(table, wb_load_place(load, age), phases, 0, cells, counts_out);
    return WB_OK;
}
