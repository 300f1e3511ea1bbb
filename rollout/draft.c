/* draft.c - see draft.h. */
#include "draft.h"

#include <string.h>

/* Looked for among the last WINDOW places: a search takes the time of each step of the device, and text that
 * repeats itself does so soon. */
enum { LONGEST = 3, SHORTEST = 2, WINDOW = 4096 };

/* Where the text goes on behind the latest earlier place with its last `length` tokens; 0: there is none. */
static uint32_t find_continuation(const uint32_t *tokens, uint32_t n, uint32_t length) {
    const uint32_t *end = tokens + n - length;
    const uint32_t first = n - length > WINDOW ? n - length - WINDOW : 0;
    for (uint32_t at = n - length; at-- > first;)
        if (memcmp(tokens + at, end, length * sizeof *tokens) == 0) return at + length;
    return 0;
}

uint32_t wb_draft_find(const uint32_t *tokens, uint32_t n, uint32_t max, uint32_t *drafts_out) {
    uint32_t from = 0;
    for (uint32_t length = LONGEST; max > 0 && length >= SHORTEST && from == 0; length--)
        if (n > length) from = find_continuation(tokens, n, length);
    if (from == 0) return 0;
    const uint32_t n_drafts = n - from < max ? n - from : max;
    memmove(drafts_out, tokens + from, n_drafts * sizeof *drafts_out);
    return n_drafts;
}
