/* import_payload.h - from the value of a field to the array that it holds (internal).
 *
 * Owns: the envelopes in which arrays travel: base64 of a .npy file or of raw elements, NeMo-RL's, maps and
 * lists of data, shape and type, nested lists. Refuses: what the numbers mean. */
#ifndef WB_IMPORT_PAYLOAD_H
#define WB_IMPORT_PAYLOAD_H

#include "import/import_value.h"

typedef struct import_payload {
    import_array array; /* of one dimension where the envelope has no shape */
    int64_t start;      /* of its first row, where the envelope says it, or -1 */
} import_payload;

/* Elements stay in the document, or are in memory of the owner. `raw` is the type of elements without one,
 * from a field beside the value or the layout; kind 0: they are refused. CORRUPT or UNSUPPORTED, messages
 * without a prefix. */
wb_status wb_import_open_payload(const import_value *value, import_type raw, wb_owner *owner,
                                 import_payload *payload_out);

#endif
