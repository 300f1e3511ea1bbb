/* initial_placement.c - the placement to begin with: from a file of maps or counts, or from a dump.
 * Owns: what the keys of the file mean. Refuses: bytes (eplb_file.c), the choice of places (solve.c). */
#include "placement/offline/eplb_file.h"
#include "placement/offline/placement_file.h"
#include "placement/placement_internal.h"
#include "wb_solve.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- reading: shapes and numbers ------------------------------------------------------------- */

/* Messages begin with the place in the tree, "logical_count[2][57]"; wb_placement_read puts the path
 * before it. */
typedef struct place {
    char text[80];
} place;

static place at_key(const char *key) {
    place at;
    snprintf(at.text, sizeof at.text, "%s", key);
    return at;
}

static place inside(place at, size_t index) {
    size_t used = strlen(at.text);
    snprintf(at.text + used, sizeof at.text - used, "[%zu]", index);
    return at;
}

static wb_status expect_array(const json_t *node, size_t n, const char *unit, place at) {
    if (!json_is_array(node))
        return wb_fail(WB_CORRUPT, "%s: expected an array of %zu %s, found something else", at.text, n, unit);
    if (json_array_size(node) != n)
        return wb_fail(WB_MISMATCH, "%s has %zu %s, expected %zu", at.text, json_array_size(node), unit, n);
    return WB_OK;
}

static wb_status read_integer(const json_t *node, json_int_t min, place row, size_t i, int32_t *value_out) {
    if (!json_is_integer(node))
        return wb_fail(WB_CORRUPT, "%s[%zu]: expected an integer, found something else", row.text, i);
    json_int_t value = json_integer_value(node);
    if (value < min || value > INT32_MAX)
        return wb_fail(WB_CORRUPT,
                       "%s[%zu]: expected %" JSON_INTEGER_FORMAT "..%" PRId32 ", found %" JSON_INTEGER_FORMAT,
                       row.text, i, min, INT32_MAX, value);
    *value_out = (int32_t)value;
    return WB_OK;
}

/* ---- reading a map --------------------------------------------------------------------------- */

/* The maps of a file. `replicas` NULL: there is none, replicas are in slot order. */
typedef struct map_tree {
    const json_t *slots, *replicas;
} map_tree;

/* Row `layer` into the placement; experts and replicas [S] are scratch. */
static wb_status read_layer(map_tree tree, wb_placement *p, uint32_t layer, int32_t *experts,
                            uint32_t *replicas) {
    const uint32_t S = p->topology.n_slots;
    const json_t *slots_row = json_array_get(tree.slots, layer);
    const json_t *replicas_row = tree.replicas ? json_array_get(tree.replicas, layer) : NULL;
    const place slots_at = inside(at_key(WB_MAP_KEY), layer),
                replicas_at = inside(at_key(WB_REPLICA_KEY), layer);
    WB_TRY(expect_array(slots_row, S, "slots", slots_at));
    if (replicas_row) WB_TRY(expect_array(replicas_row, S, "slots", replicas_at));
    for (uint32_t s = 0; s < S; s++) {
        int32_t number = 0;
        WB_TRY(read_integer(json_array_get(slots_row, s), WB_NO_EXPERT, slots_at, s, &experts[s]));
        if (replicas_row) WB_TRY(read_integer(json_array_get(replicas_row, s), 0, replicas_at, s, &number));
        replicas[s] = (uint32_t)number;
    }
    wb_status status = wb_placement_set_layer(p, layer, experts, replicas_row ? replicas : NULL, 0);
    return status == WB_OK ? WB_OK : wb_fail_context(status, WB_MAP_KEY);
}

static wb_status fill_from_map(map_tree tree, wb_placement *p, wb_owner *scratch) {
    const uint32_t S = p->topology.n_slots;
    WB_TRY(expect_array(tree.slots, p->n_layers, "layers", at_key(WB_MAP_KEY)));
    if (tree.replicas) WB_TRY(expect_array(tree.replicas, p->n_layers, "layers", at_key(WB_REPLICA_KEY)));
    int32_t *experts = NULL;
    uint32_t *replicas = NULL;
    WB_TRY(WB_OWN(scratch, experts, S, WB_MAP_KEY));
    WB_TRY(WB_OWN(scratch, replicas, S, WB_REPLICA_KEY));
    for (uint32_t l = 0; l < p->n_layers; l++) WB_TRY(read_layer(tree, p, l, experts, replicas));
    return WB_OK;
}

static wb_status open_from_map(map_tree tree, const wb_topology *topology, uint32_t n_layers,
                               uint32_t n_experts, wb_placement **placement_out) {
    wb_placement *p = NULL;
    WB_TRY(wb_placement_open(topology, n_layers, n_experts, &p));
    wb_owner scratch = {0};
    wb_status status = fill_from_map(tree, p, &scratch);
    wb_owner_close(&scratch);
    if (status == WB_OK)
        *placement_out = p;
    else
        wb_placement_close(p);
    return status;
}

/* ---- reading counts -------------------------------------------------------------------------- */

/* Adds one [L][E] of the tree; negative counts are refused here, where their sum does not hide them. */
static wb_status add_counts(const json_t *layers, place at, uint32_t L, uint32_t E, double *sums) {
    WB_TRY(expect_array(layers, L, "layers", at));
    for (uint32_t l = 0; l < L; l++) {
        const json_t *row = json_array_get(layers, l);
        const place row_at = inside(at, l);
        WB_TRY(expect_array(row, E, "experts", row_at));
        for (uint32_t e = 0; e < E; e++) {
            const json_t *node = json_array_get(row, e);
            if (!json_is_number(node) || json_number_value(node) < 0)
                return wb_fail(WB_CORRUPT, "%s[%" PRIu32 "]: expected a count, found %s", row_at.text, e,
                               json_is_number(node) ? "a negative number" : "something else");
            sums[(size_t)l * E + e] += json_number_value(node);
        }
    }
    return WB_OK;
}

/* [L][E], or [M][L][E]: then the sum over M, which is all that `balanced` looks at. */
static wb_status sum_counts(const json_t *counts, uint32_t L, uint32_t E, double *sums) {
    const place at = at_key(WB_COUNT_KEY);
    if (json_is_array(counts) && json_array_size(counts) == 0)
        return wb_fail(WB_MISMATCH,
                       "%s is empty, expected [%" PRIu32 "][%" PRIu32 "] counts, of one pass or several",
                       at.text, L, E);
    if (!json_is_array(json_array_get(json_array_get(counts, 0), 0)))
        return add_counts(counts, at, L, E, sums);
    for (size_t m = 0; m < json_array_size(counts); m++)
        WB_TRY(add_counts(json_array_get(counts, m), inside(at, m), L, E, sums));
    return WB_OK;
}

static wb_status open_from_counts(const json_t *counts, const wb_topology *topology, uint32_t n_layers,
                                  uint32_t n_experts, wb_placement **placement_out) {
    WB_TRY(wb_topology_check(topology, n_experts));
    double *sums = NULL;
    WB_TRY(WB_ALLOC(sums, n_layers, n_experts * sizeof *sums, WB_COUNT_KEY));
    wb_status status = sum_counts(counts, n_layers, n_experts, sums);
    if (status == WB_OK) status = wb_eplb_solve(topology, n_layers, n_experts, 1, sums, NULL, placement_out);
    free(sums);
    return status;
}

/* The value of a key; NULL where it is absent or null. */
static const json_t *get(const json_t *root, const char *key) {
    const json_t *node = json_object_get(root, key);
    return json_is_null(node) ? NULL : node;
}

wb_status wb_placement_read(const char *path, const wb_topology *topology, uint32_t n_layers,
                            uint32_t n_experts, wb_placement **placement_out) {
    json_t *root = NULL;
    WB_TRY(wb_tree_read(path, &root));
    const map_tree map = {get(root, WB_MAP_KEY), get(root, WB_REPLICA_KEY)};
    const json_t *counts = get(root, WB_COUNT_KEY);
    wb_status status;
    if (map.slots)
        status = open_from_map(map, topology, n_layers, n_experts, placement_out);
    else if (counts)
        status = open_from_counts(counts, topology, n_layers, n_experts, placement_out);
    else
        status = wb_fail(WB_NOT_FOUND, "expected a key " WB_MAP_KEY " or " WB_COUNT_KEY ", found neither");
    json_decref(root);
    return status == WB_OK ? WB_OK : wb_fail_context(status, "%s", path);
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

static wb_status solve_dump(wb_dump *dump, const wb_topology *topology, wb_owner *scratch,
                            wb_placement **placement_out) {
    const uint32_t L = wb_dump_model(dump)->n_moe_layers, E = wb_dump_model(dump)->num_experts;
    const char *what = "expert counts of a dump";
    uint64_t *counts = NULL;
    double *loads = NULL;
    WB_TRY(WB_OWN_ALLOC(scratch, counts, L, E * sizeof *counts, what));
    WB_TRY(WB_OWN_ALLOC(scratch, loads, L, E * sizeof *loads, what));
    WB_TRY(count_dump(dump, counts));
    for (size_t i = 0; i < (size_t)L * E; i++) loads[i] = (double)counts[i];
    return wb_eplb_solve(topology, L, E, 1, loads, NULL, placement_out);
}

wb_status wb_placement_from_dump(wb_dump *dump, const wb_topology *topology, wb_placement **placement_out) {
    wb_owner scratch = {0};
    wb_status status = solve_dump(dump, topology, &scratch, placement_out);
    wb_owner_close(&scratch);
    return status;
}
