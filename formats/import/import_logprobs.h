/* import_logprobs.h - log-probabilities of new tokens, in the many forms that they have (internal). */
#ifndef WB_IMPORT_LOGPROBS_H
#define WB_IMPORT_LOGPROBS_H

#include "import/import_tokens.h"

/* That of new token i: a number, [number, ..] or {"logprob": number}. CORRUPT for anything else,
 * INVALID_ARGUMENT for what is no logarithm of a probability: not finite, or beyond rounding above 0. */
wb_status wb_import_logprob(import_value value, size_t i, float *logprob_out);

/* SGLang's output_token_logprobs, [[logprob, id, ..], ..], name their tokens: the last of the tokens [n].
 * INVALID_ARGUMENT where one names another, whose log-probability would be taken for this one's. A list that
 * is longer is not looked at. */
wb_status wb_import_check_pairs(const import_request *request, const uint32_t *tokens, size_t n);

/* The list or array of them that the request has; kind NONE: there is none. CORRUPT: the field is none. */
wb_status wb_import_logprobs(const import_request *request, import_value *list_out);

/* Sets logprobs and sampling_logprobs of *record. CORRUPT: there are not as many as new tokens; the errors of
 * the calls above. Owner of the
 * arrays: the one given. */
wb_status wb_import_read_logprobs(const import_request *request, const import_tokens *tokens, wb_owner *owner,
                                  wb_record *record);

#endif
