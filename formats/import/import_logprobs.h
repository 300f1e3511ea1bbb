/* import_logprobs.h - log-probabilities of new tokens, in the many forms that they have (internal). */
#ifndef WB_IMPORT_LOGPROBS_H
#define WB_IMPORT_LOGPROBS_H

#include "import/import_tokens.h"

/* A number, [number, ..] or {"logprob": number}; false for anything else. */
bool wb_import_logprob(import_value value, float *logprob_out);

/* The list or array of them that the request has; kind NONE: there is none. */
import_value wb_import_logprobs(const import_request *request);

/* Sets logprobs and sampling_logprobs of *record. CORRUPT: there are not as many as new tokens. Owner of the
 * arrays: the one given. */
wb_status wb_import_read_logprobs(const import_request *request, const import_tokens *tokens, wb_owner *owner,
                                  wb_record *record);

#endif
