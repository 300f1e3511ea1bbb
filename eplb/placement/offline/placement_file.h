/* placement_file.h - the keys of files of maps and counts, each engine's own, and the reader of maps.
 *
 * Own and SGLang's: {"physical_to_logical_map": [L][S]}, with "replica_of_slot": [L][S] where replicas are
 * not in slot order.
 *
 * vLLM's: [L][S], or [S] for all layers.
 *
 * TensorRT-LLM's: {"initial_global_assignments": {"<hidden layer>": [S], ...}, "num_slots": S}.
 *
 * Ascend's: {"moe_layer_count": L, "layer_list": [{"layer_id", "device_count": R, "device_list":
 * [{"device_id", "device_expert": [experts]}, ...]}, ...]}.
 *
 * Refuses: counts, which have to be solved. */
#ifndef WB_PLACEMENT_FILE_H
#define WB_PLACEMENT_FILE_H

#include "files/offline/number_file.h"
#include "wb_placement.h"

#define WB_MAP_KEY "physical_to_logical_map"
#define WB_REPLICA_KEY "replica_of_slot"
#define WB_COUNT_KEY "logical_count"
#define WB_ASSIGNMENTS_KEY "initial_global_assignments"
#define WB_LAYER_LIST_KEY "layer_list"

/* Fills a placement from the map of a file. *layout_out: what was recognised, a static string; NULL, with
 * nothing changed, when the file has no map. `layers` as in wb_placement_read. */
wb_status wb_map_read(const wb_number_file *file, const uint32_t *layers, wb_placement *placement,
                      const char **layout_out);

#endif
