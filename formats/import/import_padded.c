/* import_padded.c - see import_padded.h. */
#include "import/import_padded.h"
#include "import/import_numbers.h"
#include "wb_check.h"
#include "wb_route_limits.h"

#include <inttypes.h>

typedef const char *const names[];

/* What stands beside input_ids says where the prompt ends. verl's response_ids are padded as responses are,
 * or the new tokens alone. */
typedef struct parts {
    import_value prompts, responses, response_mask, response_ids, length;
} parts;

static parts find_parts(const import_request *r) {
    static names prompts = {"prompts", NULL}, responses = {"responses", NULL},
                 masks = {"response_mask", NULL}, ids = {"response_ids", NULL},
                 lengths = {"prompt_pad", "prompt_length", "prompt_len", NULL};
    return (parts){.prompts = wb_import_field(r, IMPORT_WANT_NUMBERS, prompts, NULL),
                   .responses = wb_import_field(r, IMPORT_WANT_NUMBERS, responses, NULL),
                   .response_mask = wb_import_field(r, IMPORT_WANT_NUMBERS, masks, NULL),
                   .response_ids = wb_import_field(r, IMPORT_WANT_NUMBERS, ids, NULL),
                   .length = wb_import_field(r, IMPORT_WANT_INTEGER, lengths, NULL)};
}

/* How many of the padded positions the prompt has: what the new tokens leave. */
static wb_status padded_prompt(const parts *p, size_t n_padded, size_t *prompt_out) {
    const import_value *response = p->responses.kind != IMPORT_NONE       ? &p->responses
                                   : p->response_mask.kind != IMPORT_NONE ? &p->response_mask
                                                                          : &p->response_ids;
    const import_value *half = p->prompts.kind != IMPORT_NONE ? &p->prompts : response;
    if (half->kind != IMPORT_NONE && half->length > n_padded)
        return wb_fail(WB_CORRUPT, "%s: expected at most %zu places, as many as input_ids has, found %zu",
                       half == response ? "responses" : "prompts", n_padded, half->length);
    if (half != response && response->kind != IMPORT_NONE && response != &p->response_ids &&
        half->length + response->length != n_padded)
        return wb_fail(WB_CORRUPT,
                       "prompts and responses: expected %zu places, as many as input_ids has, found %zu and "
                       "%zu",
                       n_padded, half->length, response->length);
    if (half->kind != IMPORT_NONE)
        *prompt_out = half == response ? n_padded - half->length : half->length;
    else if (p->length.kind == IMPORT_INTEGER && p->length.integer >= 0 &&
             (uint64_t)p->length.integer <= n_padded)
        *prompt_out = (size_t)p->length.integer;
    else if (p->length.kind == IMPORT_INTEGER)
        return wb_fail(WB_INVALID_ARGUMENT, "prompt_length: expected 0..%zu, found %" PRId64, n_padded,
                       p->length.integer);
    else
        return wb_fail(WB_NOT_FOUND,
                       "expected prompts, responses, response_mask or prompt_length beside input_ids");
    return WB_OK;
}

static wb_status read_mask(const import_value *mask, wb_owner *owner, uint32_t **is_token_out) {
    uint32_t *is_token = NULL;
    if (mask->length >= WB_MAX_TOKENS)
        return wb_fail(WB_CORRUPT, "attention_mask: expected fewer than %u numbers, found %zu", WB_MAX_TOKENS,
                       mask->length);
    WB_TRY(wb_import_u32(mask, "attention_mask", owner, &is_token));
    for (size_t i = 0; i < mask->length; i++)
        if (is_token[i] > 1)
            return wb_fail(WB_CORRUPT, "attention_mask[%zu]: expected 0 or 1, found %" PRIu32, i,
                           is_token[i]);
    *is_token_out = is_token;
    return WB_OK;
}

/* The ids [mask's length] of padded places, of which the mask says which are tokens. */
static wb_status take_padded(const uint32_t *ids, const uint32_t *is_token, size_t n, size_t prompt_pad,
                             wb_owner *owner, import_tokens *tokens_out) {
    uint32_t *places = NULL, *tokens = NULL;
    import_tokens t = {.n_padded = n, .prompt_pad = prompt_pad};
    WB_TRY(WB_OWN(owner, places, n, "tokens"));
    WB_TRY(WB_OWN(owner, tokens, n, "tokens"));
    for (uint32_t i = 0; i < n; i++) {
        if (!is_token[i]) continue;
        t.prompt_len += i < prompt_pad;
        places[t.n] = i;
        tokens[t.n++] = ids[i];
    }
    t.tokens = tokens;
    t.places = places;
    *tokens_out = t;
    return WB_OK;
}

/* Number `i` of what also has the tokens of input_ids is one of them. */
static wb_status check_token(const char *what, const import_value *numbers, size_t i, uint32_t id) {
    const import_value v = wb_import_number(numbers, i);
    if (v.kind != IMPORT_INTEGER)
        return wb_fail(WB_CORRUPT, "%s[%zu]: expected an integer, found %s", what, i,
                       wb_import_kind_name(v.kind));
    if (v.integer == (int64_t)id) return WB_OK;
    return wb_fail(WB_CORRUPT, "%s[%zu]: expected %" PRIu32 ", the token of input_ids, found %" PRId64, what,
                   i, id, v.integer);
}

/* A half that is there too has the tokens of its places; what pads it is not looked at. */
static wb_status check_half(const char *what, const import_value *half, const uint32_t *ids,
                            const uint32_t *is_token) {
    for (size_t i = 0; half->kind != IMPORT_NONE && i < half->length; i++)
        if (is_token[i]) WB_TRY(check_token(what, half, i, ids[i]));
    return WB_OK;
}

/* `ids` and `is_token` [n] are the places behind the prompt. New tokens of another number than there are say
 * nothing of places: as if they were not there. */
static wb_status check_response_ids(const import_value *found, const uint32_t *ids, const uint32_t *is_token,
                                    size_t n) {
    size_t n_tokens = 0;
    for (size_t i = 0; i < n; i++) n_tokens += is_token[i];
    if (found->kind != IMPORT_NONE && found->length == n)
        return check_half("response_ids", found, ids, is_token);
    for (size_t i = 0, k = 0; found->kind != IMPORT_NONE && found->length == n_tokens && i < n; i++)
        if (is_token[i]) WB_TRY(check_token("response_ids", found, k++, ids[i]));
    return WB_OK;
}

wb_status wb_import_read_padded(const import_request *r, const import_value *ids, const import_value *mask,
                                wb_owner *owner, import_tokens *tokens_out) {
    const parts p = find_parts(r);
    uint32_t *all = NULL, *is_token = NULL;
    size_t prompt_pad = 0;
    if (ids->length != mask->length)
        return wb_fail(WB_CORRUPT, "attention_mask: expected %zu numbers, as many as input_ids, found %zu",
                       ids->length, mask->length);
    WB_TRY(padded_prompt(&p, ids->length, &prompt_pad));
    WB_TRY(wb_import_u32(ids, "input_ids", owner, &all));
    WB_TRY(read_mask(mask, owner, &is_token));
    WB_TRY(check_half("prompts", &p.prompts, all, is_token));
    WB_TRY(check_half("responses", &p.responses, all + prompt_pad, is_token + prompt_pad));
    WB_TRY(check_response_ids(&p.response_ids, all + prompt_pad, is_token + prompt_pad,
                              ids->length - prompt_pad));
    return take_padded(all, is_token, mask->length, prompt_pad, owner, tokens_out);
}

wb_status wb_import_find_places(const import_value *mask, wb_owner *owner, import_tokens *t) {
    uint32_t *is_token = NULL, *places = NULL;
    size_t n = 0;
    WB_TRY(read_mask(mask, owner, &is_token));
    if (t->n == mask->length) return take_padded(t->tokens, is_token, t->n, t->prompt_len, owner, t);
    WB_TRY(WB_OWN(owner, places, mask->length, "tokens"));
    for (size_t i = 0; i < mask->length; i++)
        if (is_token[i]) places[n++] = (uint32_t)i;
    if (n != t->n)
        return wb_fail(WB_CORRUPT,
                       "attention_mask: expected %" PRIu32 " tokens, as many as there are, found %zu", t->n,
                       n);
    t->places = places;
    t->n_padded = mask->length;
    t->prompt_pad = t->prompt_len < n ? places[t->prompt_len] : mask->length;
    return WB_OK;
}
