/* import_tokens.c - see import_tokens.h. */
#include "import/import_tokens.h"
#include "import/import_names.h"
#include "import/import_numbers.h"
#include "import/import_padded.h"
#include "import/import_stream.h"
#include "wb_check.h"
#include "wb_route_limits.h"

#include <inttypes.h>
#include <string.h>

typedef const char *const names[];

static const char *const whole_names[] = {"tokens", "all_token_ids", NULL};

/* ---- prompt and new tokens ------------------------------------------------------------------------ */

/* SGLang has the new tokens beside their log-probabilities too: [[logprob, id, text], ..]. */
static wb_status ids_of_logprobs(const import_request *r, wb_owner *owner, uint32_t **ids_out,
                                 size_t *n_out) {
    static names pairs = {"output_token_logprobs", NULL};
    const import_value list = wb_import_field(r, IMPORT_WANT_LIST, pairs, NULL);
    uint32_t *ids = NULL;
    if (list.kind != IMPORT_LIST) {
        char found[IMPORT_FOUND_MAX];
        wb_import_say_found(r, wb_import_output_names, found);
        return wb_fail(WB_NOT_FOUND,
                       "expected the new tokens under output_ids, token_ids or a name like these, found %s",
                       found);
    }
    WB_TRY(WB_OWN(owner, ids, list.length, "tokens"));
    for (size_t i = 0; i < list.length; i++) {
        const import_value pair = wb_import_at(&list, i);
        const import_value id =
            pair.kind == IMPORT_LIST && pair.length >= 2 ? wb_import_at(&pair, 1) : (import_value){0};
        if (id.kind != IMPORT_INTEGER || id.integer < 0 || id.integer > UINT32_MAX)
            return wb_fail(WB_CORRUPT, "output_token_logprobs[%zu]: expected [logprob, id, ..]", i);
        ids[i] = (uint32_t)id.integer;
    }
    *ids_out = ids;
    *n_out = list.length;
    return WB_OK;
}

static wb_status join(const uint32_t *prompt, size_t n_prompt, const uint32_t *output, size_t n_output,
                      wb_owner *owner, import_tokens *t) {
    uint32_t *all = NULL;
    if (n_prompt >= WB_MAX_TOKENS || n_output >= WB_MAX_TOKENS - n_prompt)
        return wb_fail(WB_CORRUPT, "expected fewer than %u tokens, found %zu", WB_MAX_TOKENS,
                       n_prompt + n_output);
    WB_TRY(WB_OWN(owner, all, n_prompt + n_output, "tokens"));
    if (n_prompt > 0) memcpy(all, prompt, n_prompt * sizeof *all);
    if (n_output > 0) memcpy(all + n_prompt, output, n_output * sizeof *all);
    *t = (import_tokens){
        .n = (uint32_t)(n_prompt + n_output), .prompt_len = (uint32_t)n_prompt, .tokens = all};
    return WB_OK;
}

/* A whole text beside a number: how much of it is the prompt, or is new. False: no number says it. The
 * numbers of `usage` count the tokens of an answer, which need not be in the list. */
static bool prompt_of_whole(const import_request *r, size_t n, bool with_usage, size_t *prompt_out) {
    static names new_lengths = {"response_length", "completion_length", NULL},
                 prompt_lengths = {"prompt_length", "prompt_len", NULL},
                 new_usage = {"completion_tokens", NULL};
    const import_value sampled = wb_import_field(r, IMPORT_WANT_INTEGER, new_lengths, NULL),
                       prompt = wb_import_field(r, IMPORT_WANT_INTEGER, prompt_lengths, NULL),
                       usage = wb_import_field(r, IMPORT_WANT_INTEGER, new_usage, NULL);
    const import_value *new_one = sampled.kind == IMPORT_INTEGER ? &sampled : &usage;
    if (sampled.kind == IMPORT_NONE && prompt.kind == IMPORT_NONE && !with_usage) return false;
    if (prompt.kind == IMPORT_INTEGER && sampled.kind == IMPORT_NONE) {
        *prompt_out = (size_t)prompt.integer;
        return prompt.integer >= 0 && (uint64_t)prompt.integer <= n;
    }
    if (new_one->kind != IMPORT_INTEGER || new_one->integer < 0 || (uint64_t)new_one->integer > n)
        return false;
    *prompt_out = n - (size_t)new_one->integer;
    return true;
}

/* Nothing else says where the prompt ends: a number that is too large would be as if it were not there. */
static wb_status check_lengths(const import_request *r) {
    static const char *const lengths[][2] = {{"response_length", NULL},
                                             {"completion_length", NULL},
                                             {"prompt_length", NULL},
                                             {"prompt_len", NULL}};
    static names wholes = {"tokens", "all_token_ids", "input_ids", NULL};
    const import_value whole = wb_import_field(r, IMPORT_WANT_NUMBERS, wholes, NULL);
    for (size_t i = 0; whole.kind != IMPORT_NONE && i < sizeof lengths / sizeof lengths[0]; i++) {
        import_value length;
        WB_TRY(wb_import_integer_field(r, lengths[i], &length));
        if (length.kind != IMPORT_NONE && (length.integer < 0 || (uint64_t)length.integer > whole.length))
            return wb_fail(WB_INVALID_ARGUMENT,
                           "%s: expected 0..%zu, as many as there are tokens, found %" PRId64, lengths[i][0],
                           whole.length, length.integer);
    }
    return WB_OK;
}

/* The text as a whole: slime's samples have no other. *found_out false: it is not there, or nothing says
 * where it begins to be new. */
static wb_status read_whole(const import_request *r, const char *const *keys, bool with_usage,
                            wb_owner *owner, import_tokens *t, bool *found_out) {
    const import_value whole = wb_import_field(r, IMPORT_WANT_NUMBERS, keys, NULL);
    size_t prompt = 0;
    uint32_t *all = NULL;
    *found_out = whole.kind != IMPORT_NONE && prompt_of_whole(r, whole.length, with_usage, &prompt);
    if (!*found_out) return WB_OK;
    WB_TRY(wb_import_u32(&whole, "tokens", owner, &all));
    return join(all, prompt, all + prompt, whole.length - prompt, owner, t);
}

bool wb_import_has_all_so_far(const import_request *r, size_t n) {
    static names counts = {"completion_tokens", NULL};
    const import_value count = wb_import_field(r, IMPORT_WANT_INTEGER, counts, NULL);
    return count.kind == IMPORT_INTEGER && count.integer >= 0 && (uint64_t)count.integer == n;
}

/* The new tokens, those that came before in parts of a stream among them. */
static wb_status read_new(const import_request *r, const import_value *output, wb_owner *owner,
                          import_tokens *new_out) {
    const import_parts *parts = r->parts;
    uint32_t *ids = NULL;
    size_t n = output->length;
    if (output->kind != IMPORT_NONE)
        WB_TRY(wb_import_u32(output, "new tokens", owner, &ids));
    else if (!parts)
        WB_TRY(ids_of_logprobs(r, owner, &ids, &n));
    if (!parts || wb_import_has_all_so_far(r, n)) return join(NULL, 0, ids, n, owner, new_out);
    return join(parts->ids, parts->n_ids, ids, n, owner, new_out);
}

static wb_status read_prompt_and_new(const import_request *r, const import_value *output, wb_owner *owner,
                                     import_tokens *t) {
    const import_value prompt = wb_import_field(r, IMPORT_WANT_NUMBERS, wb_import_prompt_names, NULL);
    const bool in_parts = prompt.kind == IMPORT_NONE && r->parts && r->parts->n_prompt > 0;
    uint32_t *first = NULL;
    import_tokens added = {0};
    if (prompt.kind == IMPORT_NONE && !in_parts) {
        char found[IMPORT_FOUND_MAX];
        wb_import_say_found(r, wb_import_prompt_names, found);
        return wb_fail(WB_NOT_FOUND,
                       "expected the prompt's tokens under prompt_token_ids or input_ids, or all "
                       "tokens under tokens beside response_length, found %s",
                       found);
    }
    if (!in_parts) WB_TRY(wb_import_u32(&prompt, "prompt tokens", owner, &first));
    WB_TRY(read_new(r, output, owner, &added));
    if (in_parts) return join(r->parts->prompt, r->parts->n_prompt, added.tokens, added.n, owner, t);
    return join(first, prompt.length, added.tokens, added.n, owner, t);
}

/* verl's prompts and responses, where its input_ids, which are both, are left out. */
static wb_status read_halves(const import_request *r, wb_owner *owner, import_tokens *t) {
    static names prompts = {"prompts", NULL}, responses = {"responses", NULL};
    const import_value first = wb_import_field(r, IMPORT_WANT_NUMBERS, prompts, NULL),
                       second = wb_import_field(r, IMPORT_WANT_NUMBERS, responses, NULL);
    uint32_t *prompt = NULL, *response = NULL;
    if (first.kind == IMPORT_NONE || second.kind == IMPORT_NONE)
        return wb_fail(WB_NOT_FOUND, "expected input_ids, or prompts and responses, beside attention_mask");
    WB_TRY(wb_import_u32(&first, "prompts", owner, &prompt));
    WB_TRY(wb_import_u32(&second, "responses", owner, &response));
    return join(prompt, first.length, response, second.length, owner, t);
}

wb_status wb_import_read_tokens(const import_request *r, const import_rules *rules, wb_owner *owner,
                                import_tokens *tokens_out) {
    static names masks = {"attention_mask", NULL}, inputs = {"input_ids", NULL},
                 pairs = {"output_token_logprobs", NULL};
    import_tokens t = {0};
    bool found = false;
    const import_value mask = wb_import_field(r, IMPORT_WANT_NUMBERS, masks, NULL),
                       ids = wb_import_field(r, IMPORT_WANT_NUMBERS, inputs, NULL),
                       output = wb_import_field(r, IMPORT_WANT_NUMBERS, wb_import_output_names, NULL);
    const bool has_new = output.kind != IMPORT_NONE ||
                         wb_import_field(r, IMPORT_WANT_LIST, pairs, NULL).kind != IMPORT_NONE || r->parts;
    const bool is_padded = rules->is_padded && mask.kind != IMPORT_NONE;
    if (is_padded && ids.kind == IMPORT_NONE && !has_new) {
        WB_TRY(read_halves(r, owner, &t));
        found = true;
    } else if (is_padded && (ids.length == mask.length || !has_new)) {
        WB_TRY(wb_import_read_padded(r, &ids, &mask, owner, &t));
        found = true;
    }
    if (!found && !has_new) WB_TRY(read_whole(r, whole_names, true, owner, &t, &found));
    if (!found && !has_new) WB_TRY(read_whole(r, inputs, false, owner, &t, &found));
    if (!found && !has_new) WB_TRY(check_lengths(r));
    if (!found && !has_new && rules->is_padded && !is_padded && ids.kind != IMPORT_NONE)
        return wb_fail(WB_NOT_FOUND,
                       "expected attention_mask beside input_ids, which says where its tokens are");
    if (!found) WB_TRY(read_prompt_and_new(r, &output, owner, &t));
    if (is_padded && !t.places) WB_TRY(wb_import_find_places(&mask, owner, &t));
    *tokens_out = t;
    return WB_OK;
}

wb_status wb_import_unknown_tokens(const import_request *r, wb_owner *owner, import_tokens *tokens_out) {
    const import_value routes = wb_import_field(r, IMPORT_WANT_ANY, wb_import_route_names, NULL);
    import_tokens t = {.are_unknown = true};
    uint32_t *zeros = NULL;
    if (routes.kind != IMPORT_ARRAY || routes.array.n_dims < 2 || routes.length >= WB_MAX_TOKENS - 1)
        return wb_fail(
            WB_NOT_FOUND,
            "expected routes [rows, layers, choices], whose tokens are as many as rows and one more");
    t.n = t.prompt_len = (uint32_t)routes.length + 1;
    WB_TRY(WB_OWN(owner, zeros, t.n, "tokens"));
    t.tokens = zeros;
    *tokens_out = t;
    return WB_OK;
}
