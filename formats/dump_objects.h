/* dump_objects.h - what the header and a record of a dump consist of, packed as dump_layout.h says, but for
 * their seals (internal). Refuses: files, and how rows are encoded (dump_rows_encode.h). */
#ifndef WB_DUMP_OBJECTS_H
#define WB_DUMP_OBJECTS_H

#include "dump_rows_encode.h"

/* `producer`: or NULL. `created` is the time of the call. */
void wb_header_pack(wb_pack *pack, const wb_route_model *model, const char *producer);

/* runs: [n_routes] of the record's rows, but for the `shared` first ones, which are those of record
 * `base_rid`; indexer: of what its indexers chose, read where it has that. */
void wb_record_pack(wb_pack *pack, const wb_record *record, const wb_encoded_run *runs,
                    const wb_encoded_run *indexer, uint32_t shared, const char *base_rid);

#endif
