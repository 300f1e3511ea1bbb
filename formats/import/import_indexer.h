/* import_indexer.h - what indexers chose, in a request (internal): SGLang's `indexer_topk`, which a sample of
 * slime has as `rollout_indexer_topk`. */
#ifndef WB_IMPORT_INDEXER_H
#define WB_IMPORT_INDEXER_H

#include "import/import_tokens.h"

/* Sets record->indexer where the model has indexers and the request says what they chose, of the tokens from
 * position `start` on; in memory of the owner. *left_out: it says so of a model without. MISMATCH for a
 * number of layers or rows that is not the model's or the tokens', INVALID_ARGUMENT for positions that are
 * there twice. */
wb_status wb_import_read_indexer(const import_request *request, const wb_route_model *model,
                                 const import_tokens *tokens, uint32_t start, wb_owner *owner,
                                 wb_record *record, bool *left_out);

#endif
