/* import_tokens.h - the tokens of a request: its prompt and what was sampled (internal).
 *
 * Owns: the names under which they are written, and which positions of padded arrays are tokens. Refuses: a
 * request whose prompt or new tokens are nowhere. */
#ifndef WB_IMPORT_TOKENS_H
#define WB_IMPORT_TOKENS_H

#include "import/import_request.h"

typedef struct import_tokens {
    uint32_t n, prompt_len;
    const uint32_t *tokens; /* [n]; owner: the one given */
    /* [n] where in padded arrays of n_padded positions the tokens are, ascending; NULL: nothing is padded */
    const uint32_t *places;
    size_t n_padded, prompt_pad; /* positions, of which the prompt has prompt_pad */
    bool are_unknown;            /* tokens are zeros that stand for what nobody said */
} import_tokens;

/* NOT_FOUND: neither prompt nor tokens; CORRUPT: they are no token ids. */
wb_status wb_import_read_tokens(const import_request *request, const import_rules *rules, wb_owner *owner,
                                import_tokens *tokens_out);

/* Zeros for the tokens of a .npy file, which has routes alone: one more than rows, all of the prompt.
 * NOT_FOUND: its shape does not say how many. */
wb_status wb_import_unknown_tokens(const import_request *request, wb_owner *owner, import_tokens *tokens_out);

/* Whether the answer says that there are n new tokens so far: a list of as many has all of them. */
bool wb_import_has_all_so_far(const import_request *request, size_t n);

#endif
