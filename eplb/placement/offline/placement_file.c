/* placement_file.c - a placement as a file, in the layouts of placement_file.h. Refuses: bytes
 * (tree_file_write.c), reading (map_read.c). */
#include "placement/offline/placement_file.h"
#include "placement/placement_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const char *const layouts[] = {
#define X(VALUE, name) [WB_MAP_##VALUE] = #name,
    WB_MAP_LAYOUT_LIST(X)
#undef X
};
enum { N_LAYOUTS = sizeof layouts / sizeof layouts[0] };

const char *wb_map_layout_name(wb_map_layout layout) {
    return (unsigned)layout < N_LAYOUTS ? layouts[layout] : "unknown layout";
}

wb_status wb_map_layout_parse(const char *name, wb_map_layout *layout_out) {
    for (int i = 0; i < N_LAYOUTS; i++)
        if (strcmp(name, layouts[i]) == 0) {
            *layout_out = (wb_map_layout)i;
            return WB_OK;
        }
#define X(VALUE, name) " " #name ","
    return wb_fail(WB_INVALID_ARGUMENT, "layout: expected one of" WB_MAP_LAYOUT_LIST(X) " found %s", name);
#undef X
}

/* ---- trees --------------------------------------------------------------------------------------- */

/* What is written. Functions that make a part of the tree return NULL for want of memory, as Jansson's do,
 * and its setters take NULL for that and fail. */
typedef struct map_writer {
    const wb_placement *p;
    const uint32_t *layers; /* [L] or NULL */
} map_writer;

static bool put(json_t *object, const char *key, json_t *value) {
    return json_object_set_new(object, key, value) == 0;
}

static bool append(json_t *array, json_t *value) {
    return json_array_append_new(array, value) == 0;
}

/* The tree, or NULL where it is not whole. */
static json_t *whole(json_t *tree, bool done) {
    if (tree && done) return tree;
    json_decref(tree);
    return NULL;
}

/* Slots [first, end) of a layer: their experts, or which replicas they are. */
static json_t *row_of(const wb_placement *p, uint32_t layer, uint32_t first, uint32_t end, bool replicas) {
    const wb_layer_map map = wb_placement_layer(p, layer);
    json_t *row = json_array();
    bool done = true;
    for (uint32_t s = first; s < end && done; s++) {
        const json_int_t value = replicas ? (json_int_t)map.replica_of_slot[s] : map.expert_of_slot[s];
        done = append(row, json_integer(value));
    }
    return whole(row, done);
}

/* [L][S] */
static json_t *matrix_of(const wb_placement *p, bool replicas) {
    json_t *matrix = json_array();
    bool done = true;
    for (uint32_t l = 0; l < p->n_layers && done; l++)
        done = append(matrix, row_of(p, l, 0, p->topology.n_slots, replicas));
    return whole(matrix, done);
}

static bool in_slot_order(const wb_placement *p) {
    for (uint32_t l = 0; l < p->n_layers; l++) {
        wb_layer_map map = wb_placement_layer(p, l);
        for (uint32_t e = 0; e < p->n_experts; e++)
            for (uint32_t i = map.replica_begin[e]; i + 1 < map.replica_begin[e + 1]; i++)
                if (map.replicas[i].slot > map.replicas[i + 1].slot) return false;
    }
    return true;
}

static json_t *sglang_tree(const map_writer *w) {
    const wb_placement *p = w->p;
    json_t *root = json_object();
    const bool done = put(root, "n_ranks", json_integer(p->topology.n_ranks)) &&
                      put(root, "n_nodes", json_integer(p->topology.n_nodes)) &&
                      put(root, "n_experts", json_integer(p->n_experts)) &&
                      put(root, WB_MAP_KEY, matrix_of(p, false)) &&
                      (in_slot_order(p) || put(root, WB_REPLICA_KEY, matrix_of(p, true)));
    return whole(root, done);
}

static json_t *vllm_tree(const map_writer *w) {
    return matrix_of(w->p, false);
}

static json_t *trtllm_tree(const map_writer *w) {
    const wb_placement *p = w->p;
    json_t *root = json_object(), *layers = json_object();
    bool done = true;
    for (uint32_t l = 0; l < p->n_layers && done; l++) {
        char key[16];
        snprintf(key, sizeof key, "%" PRIu32, w->layers ? w->layers[l] : l);
        done = put(layers, key, row_of(p, l, 0, p->topology.n_slots, false));
    }
    done = put(root, WB_ASSIGNMENTS_KEY, layers) && done; /* takes `layers` over, whole or not */
    done = done && put(root, "num_slots", json_integer(p->topology.n_slots)) &&
           put(root, "layer_updates_per_iter", json_integer(0));
    return whole(root, done);
}

static json_t *ascend_device(const wb_placement *p, uint32_t layer, uint32_t rank) {
    json_t *device = json_object();
    const bool done =
        put(device, "device_id", json_integer(rank)) &&
        put(device, "device_expert", row_of(p, layer, p->first_slot[rank], p->first_slot[rank + 1], false));
    return whole(device, done);
}

static json_t *ascend_layer(const wb_placement *p, uint32_t layer) {
    const uint32_t R = p->topology.n_ranks;
    json_t *object = json_object(), *devices = json_array();
    bool done = true;
    for (uint32_t r = 0; r < R && done; r++) done = append(devices, ascend_device(p, layer, r));
    done = put(object, "device_list", devices) && done;
    done =
        done && put(object, "layer_id", json_integer(layer)) && put(object, "device_count", json_integer(R));
    return whole(object, done);
}

static json_t *ascend_tree(const map_writer *w) {
    const wb_placement *p = w->p;
    json_t *root = json_object(), *layers = json_array();
    bool done = true;
    for (uint32_t l = 0; l < p->n_layers && done; l++) done = append(layers, ascend_layer(p, l));
    done = put(root, WB_LAYER_LIST_KEY, layers) && done;
    done = done && put(root, "moe_layer_count", json_integer(p->n_layers));
    return whole(root, done);
}

/* ---- the file ------------------------------------------------------------------------------------ */

static wb_status check_full(const wb_placement *p, wb_map_layout layout) {
    if (layout != WB_MAP_TRTLLM && layout != WB_MAP_ASCEND) return WB_OK;
    for (uint32_t l = 0; l < p->n_layers; l++)
        for (uint32_t s = 0; s < p->topology.n_slots; s++)
            if (wb_placement_experts_of(p, l)[s] == WB_NO_EXPERT)
                return wb_fail(WB_UNSUPPORTED,
                               "layout %s: expected an expert in every slot, found layer %" PRIu32
                               " slot %" PRIu32 " empty",
                               wb_map_layout_name(layout), l, s);
    return WB_OK;
}

wb_status wb_placement_save(const wb_placement *placement, const char *path, wb_map_layout layout,
                            const uint32_t *layers) {
    static json_t *(*const trees[])(const map_writer *) = {[WB_MAP_SGLANG] = sglang_tree,
                                                           [WB_MAP_VLLM] = vllm_tree,
                                                           [WB_MAP_TRTLLM] = trtllm_tree,
                                                           [WB_MAP_ASCEND] = ascend_tree};
    const map_writer w = {placement, layers};
    if ((unsigned)layout >= N_LAYOUTS)
        return wb_fail(WB_INVALID_ARGUMENT, "%s: layout: expected 0..%d, found %d", path, N_LAYOUTS - 1,
                       (int)layout);
    wb_status status = check_full(placement, layout);
    if (status != WB_OK) return wb_fail_context(status, "%s", path);
    json_t *root = trees[layout](&w);
    if (!root) return wb_fail(WB_OUT_OF_MEMORY, "%s: no memory for a placement's tree", path);
    status = layout == WB_MAP_SGLANG   ? wb_tree_write(path, root)
             : layout == WB_MAP_TRTLLM ? wb_tree_write_yaml(path, root)
                                       : wb_tree_write_json(path, root);
    json_decref(root);
    return status;
}
