/* import_stream.h - answers that came in parts: what the parts before the last one said (internal).
 *
 * A streaming engine sends routes in its last part and new tokens in each: as they come, or all so far
 * again. The parts of a request are known by its id and choice.
 *
 * Owns: the tokens and log-probabilities of requests whose routes have not come. Refuses: what they mean. */
#ifndef WB_IMPORT_STREAM_H
#define WB_IMPORT_STREAM_H

#include "import/import_layout.h"
#include "import/import_request.h"

typedef struct import_parts import_parts;
struct import_parts {
    import_parts *next;
    char *rid; /* as the record will be called */
    uint32_t *prompt, *ids;
    size_t n_prompt, n_ids, prompt_room, ids_room;
    float *logprobs; /* [n_logprobs], which is n_ids or 0 */
    size_t n_logprobs, logprobs_room;
    wb_finish finish;
};

typedef struct import_stream {
    import_parts *first;
} import_stream;

void wb_import_stream_close(import_stream *stream);

/* Whether the request is a part of which more follow: it has no routes, and is marked as one or has not
 * ended. */
bool wb_import_is_part(const import_request *request, bool of_events);

/* Adds what a part says. CORRUPT for tokens that are none. */
wb_status wb_import_stream_add(import_stream *stream, const import_request *request, const char *rid);

/* The parts of a request, taken out of the stream; NULL: there were none. Freed with wb_import_parts_free. */
import_parts *wb_import_stream_take(import_stream *stream, const char *rid);
void wb_import_parts_free(import_parts *parts);

#endif
