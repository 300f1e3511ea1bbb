/* import_routes.h - the routes of a request (internal). */
#ifndef WB_IMPORT_ROUTES_H
#define WB_IMPORT_ROUTES_H

#include "import/import_rows.h"

/* Reads the rows of a request whose tokens are known; *found_out false: it has none. Owner of the rows: the
 * one given. The errors of wb_import_next. */
wb_status wb_import_read_routes(const import_request *request, const import_rules *rules,
                                const wb_route_model *model, const import_tokens *tokens, wb_owner *owner,
                                import_rows *rows_out, bool *found_out);

#endif
