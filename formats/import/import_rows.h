/* import_rows.h - from an array of expert ids to the rows of a record (internal).
 *
 * Owns: which axis is which, which rows are missing, and all that a tape of routes cannot be. Refuses: where
 * the array comes from. */
#ifndef WB_IMPORT_ROWS_H
#define WB_IMPORT_ROWS_H

#include "import/import_layout.h"
#include "import/import_payload.h"
#include "import/import_tokens.h"

/* A run of rows of a tape. */
typedef struct import_tape {
    const import_array *array;
    uint32_t start;     /* position of its first row; of padded arrays a place, not a position */
    size_t rows;        /* that it has to have */
    bool may_have_last; /* one more row is left out, if it is what the rules of the layout say */
    bool drop_last;     /* one more row is left out, whatever it is */
} import_tape;

/* Rows [start, start + rows) of a request's run. */
typedef struct import_rows {
    const wb_route_model *model;
    const import_rules *rules;
    wb_dtype dtype;
    uint8_t *ids;   /* [rows + 1][L][K of the layer]; the last one is scratch */
    uint8_t *valid; /* bits */
    uint32_t start, rows;
    uint32_t missing; /* rows that are not valid */
    uint32_t zeros;   /* of these, those that are zero where that means missing */
} import_rows;

/* Room for rows [start, start + rows), all of them missing. */
wb_status wb_import_rows_open(const wb_route_model *model, const import_rules *rules, uint32_t start,
                              uint32_t rows, wb_owner *owner, import_rows *rows_out);

/* Puts the rows of a tape in; `places` as of import_tokens, or NULL. MISMATCH: shape or type are another
 * model's; INVALID_ARGUMENT: ids that are no experts, rows that are missing in part. Messages name the
 * position. */
wb_status wb_import_rows_fill(import_rows *rows, const import_tape *tape, const import_tokens *tokens);

/* INVALID_ARGUMENT for rows that no router makes: zero throughout, a layer that is, one row throughout while
 * the tokens differ. */
wb_status wb_import_rows_check(const import_rows *rows, const import_tokens *tokens);

#endif
