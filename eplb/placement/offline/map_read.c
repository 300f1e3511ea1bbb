/* map_read.c - maps of placements from files, in the layouts of placement_file.h. Owns: what tells the
 * layouts apart, and which layer of a file is which. Refuses: bytes (tree_file.c, torch_file.c), maps that
 * are none (wb_placement_set_layer). */
#include "placement/offline/placement_file.h"
#include "placement/placement_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What is read, and memory to work in. */
typedef struct map_reader {
    const wb_number_file *file;
    const uint32_t *layers; /* [L] or NULL */
    wb_placement *p;
    int32_t *experts;   /* [S] */
    uint32_t *replicas; /* [S] */
    wb_owner memory;
} map_reader;

/* Puts slots [S] of a table into a layer. */
static wb_status set_layer(map_reader *r, uint32_t layer, const double *slots, const double *replicas,
                           const char *what) {
    for (uint32_t s = 0; s < r->p->topology.n_slots; s++) {
        r->experts[s] = (int32_t)slots[s];
        if (replicas) r->replicas[s] = (uint32_t)replicas[s];
    }
    const wb_status status =
        wb_placement_set_layer(r->p, layer, r->experts, replicas ? r->replicas : NULL, 0);
    return status == WB_OK ? WB_OK : wb_fail_context(status, "%s", what);
}

/* ---- SGLang's and vLLM's: one array of all layers ------------------------------------------------ */

static wb_table_wish map_wish(const map_reader *r, const char *name, wb_table_kind kind) {
    return (wb_table_wish){.name = name,
                           .kind = kind,
                           .min_dims = 2,
                           .max_dims = 2,
                           .units = {"layers", "slots"},
                           .shape = {r->layers ? 0 : r->p->n_layers, r->p->topology.n_slots}};
}

/* Rows are those of the MoE layers or, where it is known which these are, of all hidden layers. */
static wb_status check_rows(const map_reader *r, const wb_table *table, const char *what) {
    const uint32_t L = r->p->n_layers;
    if (table->n_dims < 2 || table->shape[0] == L || table->shape[0] > r->layers[L - 1]) return WB_OK;
    return wb_fail(WB_MISMATCH,
                   "%s has %zu layers, expected %" PRIu32
                   " or all hidden layers, of which the last MoE layer is "
                   "%" PRIu32,
                   what, table->shape[0], L, r->layers[L - 1]);
}

static size_t row_of_layer(const map_reader *r, const wb_table *table, uint32_t layer) {
    if (table->n_dims < 2) return 0;
    return table->shape[0] == r->p->n_layers ? layer : r->layers[layer];
}

static wb_status set_layers(map_reader *r, const wb_table *slots, const wb_table *replicas,
                            const char *what) {
    const size_t S = r->p->topology.n_slots;
    WB_TRY(check_rows(r, slots, what));
    if (replicas) WB_TRY(check_rows(r, replicas, WB_REPLICA_KEY));
    for (uint32_t l = 0; l < r->p->n_layers; l++) {
        const double *order = replicas ? replicas->values + row_of_layer(r, replicas, l) * S : NULL;
        WB_TRY(set_layer(r, l, slots->values + row_of_layer(r, slots, l) * S, order, what));
    }
    return WB_OK;
}

static wb_status read_sglang(map_reader *r, wb_number_node map, wb_number_node order) {
    wb_table slots = {0}, replicas = {0};
    const wb_table_wish of_slots = map_wish(r, WB_MAP_KEY, WB_TABLE_EXPERTS),
                        of_replicas = map_wish(r, WB_REPLICA_KEY, WB_TABLE_REPLICAS);
    wb_status status = wb_table_read(r->file, map, &of_slots, &slots);
    const bool ordered = wb_number_is(order);
    if (status == WB_OK && ordered) status = wb_table_read(r->file, order, &of_replicas, &replicas);
    if (status == WB_OK) status = set_layers(r, &slots, ordered ? &replicas : NULL, WB_MAP_KEY);
    free(slots.values);
    free(replicas.values);
    return status;
}

static wb_status read_vllm(map_reader *r, wb_number_node map, const char **layout_out) {
    wb_table slots = {0};
    wb_table_wish wish = map_wish(r, "array", WB_TABLE_EXPERTS);
    wish.min_dims = 1;
    wb_status status = wb_table_read(r->file, map, &wish, &slots);
    if (status == WB_OK) status = set_layers(r, &slots, NULL, "array");
    *layout_out = slots.n_dims == 1 ? "vLLM, one array for all layers" : "vLLM, bare array";
    free(slots.values);
    return status;
}

/* ---- layers by number ---------------------------------------------------------------------------- */

/* One layer of a file, by the number that it has there. */
typedef struct numbered_layer {
    uint32_t number;
    const json_t *value;
} numbered_layer;

static int by_number(const void *a, const void *b) {
    const numbered_layer *x = a, *y = b;
    return (x->number > y->number) - (x->number < y->number);
}

/* Sorts the L layers, so that place l is MoE layer l: numbers are those of `layers`, or where `relative` is
 * set 0..L-1, or where no layers are known any. */
static wb_status sort_layers(const map_reader *r, numbered_layer *list, bool relative, const char *key) {
    const uint32_t L = r->p->n_layers;
    qsort(list, L, sizeof *list, by_number);
    relative &= list[L - 1].number == L - 1;
    for (uint32_t l = 1; l < L; l++)
        if (list[l].number == list[l - 1].number)
            return wb_fail(WB_CORRUPT, "%s: layer %" PRIu32 " is there twice", key, list[l].number);
    for (uint32_t l = 0; l < L && r->layers && !relative; l++)
        if (list[l].number != r->layers[l])
            return wb_fail(WB_MISMATCH,
                           "%s: expected the hidden layer %" PRIu32 " as MoE layer %" PRIu32
                           ", found %" PRIu32,
                           key, r->layers[l], l, list[l].number);
    return WB_OK;
}

/* ---- TensorRT-LLM's ------------------------------------------------------------------------------ */

/* The numbers of an object's keys. */
static wb_status list_keys(const json_t *object, numbered_layer *list) {
    const char *key;
    json_t *value;
    size_t n = 0;
    /* Jansson's loop over an object wants a json_t that is not const, and changes nothing. */
    json_object_foreach((json_t *)(uintptr_t)object, key, value) {
        char *end = NULL;
        const unsigned long number = strtoul(key, &end, 10);
        if (key[0] < '0' || key[0] > '9' || *end != '\0' || number > UINT32_MAX - 1)
            return wb_fail(WB_CORRUPT, WB_ASSIGNMENTS_KEY ": expected numbers of layers, found %.40s", key);
        list[n++] = (numbered_layer){(uint32_t)number, value};
    }
    return WB_OK;
}

static wb_status read_trtllm(map_reader *r, const json_t *layers) {
    const uint32_t L = r->p->n_layers;
    numbered_layer *list = NULL;
    if (!json_is_object(layers))
        return wb_fail(WB_CORRUPT, WB_ASSIGNMENTS_KEY ": expected an object of layers, found something else");
    if (json_object_size(layers) != L)
        return wb_fail(WB_MISMATCH, WB_ASSIGNMENTS_KEY " has %zu layers, expected %" PRIu32,
                       json_object_size(layers), L);
    WB_TRY(WB_OWN(&r->memory, list, L, WB_ASSIGNMENTS_KEY));
    WB_TRY(list_keys(layers, list));
    WB_TRY(sort_layers(r, list, false, WB_ASSIGNMENTS_KEY));
    for (uint32_t l = 0; l < L; l++) {
        char name[64];
        wb_table slots = {0};
        snprintf(name, sizeof name, WB_ASSIGNMENTS_KEY ".%" PRIu32, list[l].number);
        const wb_table_wish wish = {.name = name,
                                    .kind = WB_TABLE_EXPERTS,
                                    .min_dims = 1,
                                    .max_dims = 1,
                                    .units = {"slots"},
                                    .shape = {r->p->topology.n_slots}};
        wb_status status = wb_table_read(r->file, (wb_number_node){.tree = list[l].value}, &wish, &slots);
        if (status == WB_OK) status = set_layer(r, l, slots.values, NULL, WB_ASSIGNMENTS_KEY);
        free(slots.values);
        WB_TRY(status);
    }
    return WB_OK;
}

/* ---- Ascend's ------------------------------------------------------------------------------------ */

/* A whole number of an object, below `end`. */
static wb_status read_below(const json_t *object, const char *key, uint32_t end, const char *at,
                            uint32_t *value_out) {
    const json_t *node = json_object_get(object, key);
    const json_int_t value = json_integer_value(node);
    if (!json_is_integer(node) || value < 0 || value >= (json_int_t)end)
        return wb_fail(WB_CORRUPT, "%s: %s: expected a number below %" PRIu32 ", found %s", at, key, end,
                       json_is_integer(node) ? "another" : "something else");
    *value_out = (uint32_t)value;
    return WB_OK;
}

/* The experts of one device fill its first slots. */
static wb_status read_device(map_reader *r, const json_t *device, const char *at, double *slots,
                             uint8_t *seen) {
    const uint32_t R = r->p->topology.n_ranks;
    uint32_t rank = 0;
    char name[96];
    wb_table experts = {0};
    WB_TRY(read_below(device, "device_id", R, at, &rank));
    if (seen[rank]++) return wb_fail(WB_CORRUPT, "%s: device_id %" PRIu32 " is there twice", at, rank);
    const uint32_t first = r->p->first_slot[rank], room = r->p->first_slot[rank + 1] - first;
    const json_t *list = json_object_get(device, "device_expert");
    if (room == 0 && json_is_array(list) && json_array_size(list) == 0) return WB_OK;
    snprintf(name, sizeof name, "%s, device %" PRIu32 ", device_expert", at, rank);
    const wb_table_wish wish = {
        .name = name, .kind = WB_TABLE_EXPERTS, .min_dims = 1, .max_dims = 1, .units = {"experts"}};
    WB_TRY(wb_table_read(r->file, (wb_number_node){.tree = list}, &wish, &experts));
    const bool fits = experts.shape[0] <= room;
    if (fits) memcpy(slots + first, experts.values, experts.shape[0] * sizeof *slots);
    free(experts.values);
    if (fits) return WB_OK;
    return wb_fail(WB_MISMATCH, "%s has %zu experts, expected at most the %" PRIu32 " slots of the rank",
                   name, experts.shape[0], room);
}

static wb_status read_ascend_layer(map_reader *r, uint32_t layer, const json_t *value, double *slots,
                                   uint8_t *seen) {
    const uint32_t R = r->p->topology.n_ranks;
    const json_t *devices = json_object_get(value, "device_list");
    char at[48];
    snprintf(at, sizeof at, WB_LAYER_LIST_KEY ", MoE layer %" PRIu32, layer);
    if (!json_is_array(devices) || json_array_size(devices) != R)
        return wb_fail(json_is_array(devices) ? WB_MISMATCH : WB_CORRUPT,
                       "%s: device_list: expected an array of %" PRIu32 " devices, found %zu", at, R,
                       json_array_size(devices));
    memset(seen, 0, R);
    for (uint32_t s = 0; s < r->p->topology.n_slots; s++) slots[s] = WB_NO_EXPERT;
    for (uint32_t i = 0; i < R; i++) WB_TRY(read_device(r, json_array_get(devices, i), at, slots, seen));
    return set_layer(r, layer, slots, NULL, WB_LAYER_LIST_KEY);
}

static wb_status read_ascend(map_reader *r, const json_t *layers) {
    const uint32_t L = r->p->n_layers;
    numbered_layer *list = NULL;
    double *slots = NULL;
    uint8_t *seen = NULL;
    if (!json_is_array(layers) || json_array_size(layers) != L)
        return wb_fail(json_is_array(layers) ? WB_MISMATCH : WB_CORRUPT,
                       WB_LAYER_LIST_KEY ": expected an array of %" PRIu32 " layers, found %zu", L,
                       json_array_size(layers));
    WB_TRY(WB_OWN(&r->memory, list, L, WB_LAYER_LIST_KEY));
    WB_TRY(WB_OWN(&r->memory, slots, r->p->topology.n_slots, WB_LAYER_LIST_KEY));
    WB_TRY(WB_OWN(&r->memory, seen, r->p->topology.n_ranks, WB_LAYER_LIST_KEY));
    for (uint32_t i = 0; i < L; i++) {
        list[i].value = json_array_get(layers, i);
        WB_TRY(read_below(list[i].value, "layer_id", UINT32_MAX, WB_LAYER_LIST_KEY, &list[i].number));
    }
    WB_TRY(sort_layers(r, list, true, WB_LAYER_LIST_KEY));
    for (uint32_t l = 0; l < L; l++) WB_TRY(read_ascend_layer(r, l, list[l].value, slots, seen));
    return WB_OK;
}

/* ---- all of them --------------------------------------------------------------------------------- */

static wb_status read_layout(map_reader *r, const char **layout_out) {
    const wb_number_node root = wb_number_root(r->file), map = wb_number_get(r->file, root, WB_MAP_KEY),
                         assignments = wb_number_get(r->file, root, WB_ASSIGNMENTS_KEY),
                         list = wb_number_get(r->file, root, WB_LAYER_LIST_KEY);
    const uint32_t S = r->p->topology.n_slots;
    *layout_out = NULL;
    WB_TRY(WB_OWN(&r->memory, r->experts, S, WB_MAP_KEY));
    WB_TRY(WB_OWN(&r->memory, r->replicas, S, WB_REPLICA_KEY));
    if (wb_number_is_array(root)) return read_vllm(r, root, layout_out);
    if (wb_number_is(map)) {
        *layout_out = "SGLang, " WB_MAP_KEY;
        return read_sglang(r, map, wb_number_get(r->file, root, WB_REPLICA_KEY));
    }
    if (assignments.tree) {
        *layout_out = "TensorRT-LLM, " WB_ASSIGNMENTS_KEY;
        return read_trtllm(r, assignments.tree);
    }
    if (!list.tree) return WB_OK;
    *layout_out = "Ascend, " WB_LAYER_LIST_KEY;
    return read_ascend(r, list.tree);
}

wb_status wb_map_read(const wb_number_file *file, const uint32_t *layers, wb_placement *placement,
                      const char **layout_out) {
    map_reader r = {.file = file, .layers = layers, .p = placement};
    const char *layout = NULL;
    const wb_status status = read_layout(&r, &layout);
    wb_owner_close(&r.memory);
    if (status == WB_OK) *layout_out = layout;
    return status;
}
