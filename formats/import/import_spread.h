/* import_spread.h - the requests of a document: choices, the rows of a batch of arrays, numbered fields
 * (internal). */
#ifndef WB_IMPORT_SPREAD_H
#define WB_IMPORT_SPREAD_H

#include "import/import_request.h"

typedef struct import_spread {
    import_value document, choices; /* choices: kind NONE where there is no list of them */
    size_t next, n;                 /* requests */
    size_t n_batch;                 /* as in import_request */
    bool is_numbered;
} import_spread;

import_spread wb_import_spread_of(const import_value *document);

/* False: there is none left. */
bool wb_import_spread_next(import_spread *spread, import_request *request_out);

#endif
