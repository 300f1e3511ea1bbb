/* import_mask.h - the tokens that top-k and top-p kept at each new token (internal). */
#ifndef WB_IMPORT_MASK_H
#define WB_IMPORT_MASK_H

#include "import/import_request.h"

/* Sets mask_ids and mask_ends of *record, whose tokens are set, from `sampling_mask` where the request has
 * it: a list of ids for each new token, or the same in one array {ids, indptr} or {ids, counts}. CORRUPT
 * where it does not fit the tokens. Owner of the arrays: the one given. */
wb_status wb_import_read_mask(const import_request *request, wb_owner *owner, wb_record *record);

#endif
