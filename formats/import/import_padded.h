/* import_padded.h - tokens of padded arrays: a mask says which places have one (internal).
 *
 * Owns: where in them the prompt ends, and that what says one thing twice says the same. Refuses: a mask of
 * anything but 0 and 1, which would be numbers of packed sequences. */
#ifndef WB_IMPORT_PADDED_H
#define WB_IMPORT_PADDED_H

#include "import/import_tokens.h"

/* `ids`, input_ids, has prompt and new tokens, each padded, and `mask`, attention_mask, as many places.
 * CORRUPT: prompts, responses or their mask beside them are of other tokens, or of other places. */
wb_status wb_import_read_padded(const import_request *request, const import_value *ids,
                                const import_value *mask, wb_owner *owner, import_tokens *tokens_out);

/* Prompt and new tokens one after the other, whose rows are padded: they are padded too where they are as
 * many as the mask is long, else they are where the mask says. */
wb_status wb_import_find_places(const import_value *mask, wb_owner *owner, import_tokens *tokens);

#endif
