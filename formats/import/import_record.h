/* import_record.h - what a request says besides its routes: id, group, log-probabilities, how it ended,
 * spans of weight versions, kept tokens (internal). */
#ifndef WB_IMPORT_RECORD_H
#define WB_IMPORT_RECORD_H

#include "import/import_tokens.h"

/* The request's id: the answer's, with its choice where there are several, or one made from `number`. Owner:
 * the one given. */
wb_status wb_import_read_rid(const import_request *request, uint64_t number, wb_owner *owner,
                             const char **rid_out);

/* NOT_FOUND, with its words, for a request that has neither routes nor new tokens and says that it failed. As
 * a part of a stream that says nothing it would be passed over. */
wb_status wb_import_check_error(const import_request *request);

/* How the request ended; NONE where it does not say. */
wb_finish wb_import_finish(const import_request *request);

/* Fills group, sample, logprobs, finish, spans, sampling and the mask of *record, whose tokens are set.
 * Arrays are in memory of the owner. CORRUPT where they do not fit the tokens. */
wb_status wb_import_read_extras(const import_request *request, const import_rules *rules,
                                const import_tokens *tokens, wb_owner *owner, wb_record *record);

#endif
