/* import_logprobs.h - log-probabilities of new tokens, in the many forms that they have (internal). */
#ifndef WB_IMPORT_LOGPROBS_H
#define WB_IMPORT_LOGPROBS_H

#include "import/import_tokens.h"

/* Log-probabilities as a request has them. `names`, a list, has the token of each where the numbers do not
 * say it themselves; kind NONE: nothing does. */
typedef struct import_logprobs {
    import_value numbers, names;
} import_logprobs;

/* Number `at` of the list, which is that of new token i, called *token (NULL: not known): a number,
 * [number, ..], {"logprob": number} or {"<token>": one of these, ..}. CORRUPT for anything else;
 * INVALID_ARGUMENT for what is no logarithm of a probability, not finite or beyond rounding above 0, and
 * where the list names another token ("token_id:12", as vLLM does; other names are text). */
wb_status wb_import_logprob(const import_logprobs *list, size_t at, size_t i, const uint32_t *token,
                            float *logprob_out);

/* SGLang's output_token_logprobs, [[logprob, id, ..], ..], name their tokens: the last of the tokens [n].
 * INVALID_ARGUMENT where one names another, whose log-probability would be taken for this one's. A list that
 * is longer is not looked at. */
wb_status wb_import_check_pairs(const import_request *request, const uint32_t *tokens, size_t n);

/* The list or array of them that the request has; numbers of kind NONE: there is none, or it is empty, as
 * that of an engine that was not asked for them. CORRUPT: the field is none. */
wb_status wb_import_find_logprobs(const import_request *request, import_logprobs *list_out);

/* Sets logprobs and sampling_logprobs of *record. CORRUPT: there are not as many as new tokens; the errors of
 * the calls above. Owner of the
 * arrays: the one given. */
wb_status wb_import_read_logprobs(const import_request *request, const import_tokens *tokens, wb_owner *owner,
                                  wb_record *record);

#endif
