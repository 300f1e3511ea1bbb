/* placement_file.h - the keys of a placement's file, SGLang's where it has them. */
#ifndef WB_PLACEMENT_FILE_H
#define WB_PLACEMENT_FILE_H

#define WB_MAP_KEY "physical_to_logical_map"
#define WB_REPLICA_KEY "replica_of_slot"
#define WB_COUNT_KEY "logical_count"

#endif
