/* initial_placement.c - the placement to begin with: from a file of maps or counts, or from a dump.
 * Owns: which of the two a file holds, and that a layer without counts keeps its map. Refuses: maps and their
 * layouts (map_read.c), the choice of places (solve.c). */
#include "load/offline/counts_file.h"
#include "placement/offline/placement_file.h"
#include "placement/placement_internal.h"
#include "wb_options.h"
#include "wb_solve.h"

#include <inttypes.h>
#include <stdlib.h>

/* ---- counts -------------------------------------------------------------------------------------- */

static bool is_zero(const double *loads, uint32_t n_batches, uint32_t n_layers, uint32_t n_experts,
                    uint32_t layer) {
    for (uint32_t m = 0; m < n_batches; m++)
        for (uint32_t e = 0; e < n_experts; e++)
            if (loads[((size_t)m * n_layers + layer) * n_experts + e] != 0) return false;
    return true;
}

/* Layers without a load take their map from `kept`, where it is one on the ranks that are live now. */
static wb_status keep_layers(const wb_placement *kept, uint32_t n_batches, const double *loads,
                             wb_placement *p) {
    WB_TRY(wb_placement_check_shape(p, kept));
    for (uint32_t l = 0; l < p->n_layers; l++) {
        const wb_layer_map map = wb_placement_layer(kept, l);
        if (!is_zero(loads, n_batches, p->n_layers, p->n_experts, l)) continue;
        const wb_status status = wb_placement_set_layer(p, l, map.expert_of_slot, map.replica_of_slot, 0);
        if (status != WB_OK && status != WB_INVALID_ARGUMENT) return status;
    }
    return WB_OK;
}

wb_status wb_eplb_solve_counts(const wb_topology *topology, uint32_t n_layers, uint32_t n_experts,
                               uint32_t n_batches, const double *loads, const wb_eplb_options *options,
                               wb_placement **placement_out) {
    wb_eplb_options o = wb_eplb_options_default();
    wb_placement *trivial = NULL, *p = NULL;
    WB_TRY(wb_options_read(&o, sizeof o, options, "solve"));
    if (!o.current) {
        WB_TRY(wb_placement_open(topology, n_layers, n_experts, &trivial));
        if (o.algorithm == WB_EPLB_INCREMENTAL) o.current = trivial;
    }
    wb_status status = wb_eplb_solve(topology, n_layers, n_experts, n_batches, loads, &o, &p);
    if (status == WB_OK) status = keep_layers(trivial ? trivial : o.current, n_batches, loads, p);
    wb_placement_close(trivial);
    if (status == WB_OK)
        *placement_out = p;
    else
        wb_placement_close(p);
    return status;
}

/* ---- from a file --------------------------------------------------------------------------------- */

static wb_status open_from_counts(const wb_number_file *file, const wb_topology *topology, uint32_t n_layers,
                                  uint32_t n_experts, const uint32_t *layers, const wb_eplb_options *options,
                                  wb_placement **placement_out) {
    const wb_moe_layers moe = {.n_moe = n_layers, .layers = layers};
    wb_counts *counts = NULL;
    WB_TRY(wb_topology_check(topology, n_experts));
    WB_TRY(wb_counts_from_file(file, layers ? &moe : NULL, n_layers, n_experts, &counts));
    const wb_status status =
        wb_eplb_solve_counts(topology, n_layers, n_experts, wb_counts_get_info(counts).n_passes,
                             wb_counts_loads(counts), options, placement_out);
    wb_counts_close(counts);
    return status;
}

static wb_status open_from_map(const wb_number_file *file, const wb_topology *topology, uint32_t n_layers,
                               uint32_t n_experts, const uint32_t *layers, const char **layout_out,
                               wb_placement **placement_out) {
    wb_placement *p = NULL;
    WB_TRY(wb_placement_open(topology, n_layers, n_experts, &p));
    const wb_status status = wb_map_read(file, layers, p, layout_out);
    if (status == WB_OK && *layout_out)
        *placement_out = p;
    else
        wb_placement_close(p);
    return status;
}

static wb_status open_from_file(const wb_number_file *file, const wb_topology *topology, uint32_t n_layers,
                                uint32_t n_experts, const uint32_t *layers, const wb_eplb_options *options,
                                const char **layout_out, wb_placement **placement_out) {
    const wb_number_node counts = wb_number_get(file, wb_number_root(file), WB_COUNT_KEY);
    WB_TRY(open_from_map(file, topology, n_layers, n_experts, layers, layout_out, placement_out));
    if (*layout_out) return WB_OK;
    if (!wb_number_is(counts))
        return wb_fail(WB_NOT_FOUND, "expected an array, or a key " WB_ASSIGNMENTS_KEY ", " WB_LAYER_LIST_KEY
                                     ", " WB_MAP_KEY " or " WB_COUNT_KEY ", found neither");
    *layout_out = WB_COUNT_KEY;
    return open_from_counts(file, topology, n_layers, n_experts, layers, options, placement_out);
}

wb_status wb_placement_read(const char *path, const wb_topology *topology, uint32_t n_layers,
                            uint32_t n_experts, const uint32_t *layers, const wb_eplb_options *options,
                            const char **layout_out, wb_placement **placement_out) {
    wb_number_file file = {0};
    const char *layout = NULL;
    WB_TRY(wb_number_file_open(path, &file));
    const wb_status status =
        open_from_file(&file, topology, n_layers, n_experts, layers, options, &layout, placement_out);
    wb_number_file_close(&file);
    if (status != WB_OK) return wb_fail_context(status, "%s", path);
    if (layout_out) *layout_out = layout;
    return WB_OK;
}

/* ---- from a dump ----------------------------------------------------------------------------- */

/* Adds every record's rows to counts [L][E], one record in memory at a time. */
static wb_status count_dump(wb_dump *dump, uint64_t *counts) {
    const wb_route_model *m = wb_dump_model(dump);
    const uint64_t n_records = wb_dump_get_info(dump).records;
    for (uint64_t i = 0; i < n_records; i++) {
        wb_record record;
        WB_TRY(wb_dump_record(dump, i, &record));
        wb_status status = wb_record_check(m, &record, true);
        if (status == WB_OK) wb_record_count(m, &record, 0, UINT32_MAX, counts);
        wb_dump_release(dump, i);
        WB_TRY(status);
    }
    /* Each row has K choices in each layer: layer 0 tells whether there was one. */
    for (uint32_t e = 0; e < m->num_experts; e++)
        if (counts[e] > 0) return WB_OK;
    return wb_fail(WB_NOT_FOUND, "dump: expected rows of routes, found none in %" PRIu64 " records",
                   n_records);
}

static wb_status solve_dump(wb_dump *dump, const wb_topology *topology, const wb_eplb_options *options,
                            wb_owner *scratch, wb_placement **placement_out) {
    const wb_route_model *m = wb_dump_model(dump);
    const uint32_t L = m->n_moe_layers, E = wb_route_weighted(m);
    const char *what = "expert counts of a dump";
    uint64_t *counts = NULL;
    double *loads = NULL;
    WB_TRY(WB_OWN_ALLOC(scratch, counts, L, m->num_experts * sizeof *counts, what));
    WB_TRY(WB_OWN_ALLOC(scratch, loads, L, E * sizeof *loads, what));
    WB_TRY(count_dump(dump, counts));
    for (size_t i = 0; i < (size_t)L * E; i++) loads[i] = (double)counts[i / E * m->num_experts + i % E];
    return wb_eplb_solve_counts(topology, L, E, 1, loads, options, placement_out);
}

wb_status wb_placement_from_dump(wb_dump *dump, const wb_topology *topology, const wb_eplb_options *options,
                                 wb_placement **placement_out) {
    wb_owner scratch = {0};
    wb_status status = solve_dump(dump, topology, options, &scratch, placement_out);
    wb_owner_close(&scratch);
    return status;
}
