/* indexer.h - the check of a record's indexer rows (internal). */
#ifndef WB_INDEXER_H
#define WB_INDEXER_H

#include "wb_formats.h"

/* OK, or INVALID_ARGUMENT with rid, position and model layer. The rest of the record was checked. */
wb_status wb_indexer_check(const wb_route_model *model, const wb_record *record);

#endif
