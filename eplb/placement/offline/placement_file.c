/* placement_file.c - a placement as a file. Refuses: bytes (eplb_file_write.c), reading a file of maps
 * or counts (solve/offline/initial_placement.c: counts have to be solved). */
#include "placement/offline/placement_file.h"
#include "placement/offline/eplb_file.h"
#include "placement/placement_internal.h"

static bool in_slot_order(const wb_placement *p) {
    for (uint32_t l = 0; l < p->n_layers; l++) {
        wb_layer_map map = wb_placement_layer(p, l);
        for (uint32_t e = 0; e < p->n_experts; e++)
            for (uint32_t i = map.replica_begin[e]; i + 1 < map.replica_begin[e + 1]; i++)
                if (map.replicas[i].slot > map.replicas[i + 1].slot) return false;
    }
    return true;
}

/* [L][S] as a tree, of one of the two arrays; NULL for want of memory. */
static json_t *matrix_of(const wb_placement *p, bool replicas) {
    json_t *matrix = json_array();
    bool failed = !matrix;
    for (uint32_t l = 0; l < p->n_layers && !failed; l++) {
        wb_layer_map map = wb_placement_layer(p, l);
        json_t *row = json_array();
        failed = json_array_append_new(matrix, row) != 0;
        for (uint32_t s = 0; s < p->topology.n_slots && !failed; s++) {
            json_int_t value = replicas ? (json_int_t)map.replica_of_slot[s] : map.expert_of_slot[s];
            failed = json_array_append_new(row, json_integer(value)) != 0;
        }
    }
    if (!failed) return matrix;
    json_decref(matrix);
    return NULL;
}

static json_t *tree_of(const wb_placement *p) {
    json_t *root = json_object();
    bool failed = json_object_set_new(root, "n_ranks", json_integer(p->topology.n_ranks)) != 0 ||
                  json_object_set_new(root, "n_nodes", json_integer(p->topology.n_nodes)) != 0 ||
                  json_object_set_new(root, "n_experts", json_integer(p->n_experts)) != 0 ||
                  json_object_set_new(root, WB_MAP_KEY, matrix_of(p, false)) != 0;
    if (!failed && !in_slot_order(p))
        failed = json_object_set_new(root, WB_REPLICA_KEY, matrix_of(p, true)) != 0;
    if (!failed) return root;
    json_decref(root);
    return NULL;
}

wb_status wb_placement_save(const wb_placement *placement, const char *path) {
    json_t *root = tree_of(placement);
    if (!root) return wb_fail(WB_OUT_OF_MEMORY, "%s: no memory for a placement's tree", path);
    wb_status status = wb_tree_write(path, root);
    json_decref(root);
    return status;
}
