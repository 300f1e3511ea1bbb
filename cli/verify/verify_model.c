/* verify_model.c - see verify_model.h. */
#include "verify/verify_model.h"
#include "wb_check.h"
#include "wb_model.h"

static wb_status check_records(wb_dump *dump, const wb_hash_routes *hash) {
    const uint64_t n = wb_dump_get_info(dump).records;
    for (uint64_t i = 0; i < n; i++) {
        wb_record record;
        WB_TRY(wb_dump_record(dump, i, &record));
        const wb_status status = wb_record_check_hash(wb_dump_model(dump), hash, &record);
        wb_dump_release(dump, i);
        WB_TRY(status);
    }
    return WB_OK;
}

/* `routes`: NULL where the engine does not run the model, whose tables it cannot find then. */
static wb_status check_hash_rows(wb_dump *dump, const wb_hash_routes *routes, uint32_t *not_compared_out) {
    if (routes) return check_records(dump, routes);
    *not_compared_out = wb_dump_model(dump)->n_hash_layers;
    return WB_OK;
}

wb_status verify_model(const char *path, const char *dir, uint32_t *not_compared_out) {
    uint32_t layers[WB_ROUTE_LISTS_MAX], vocab_size;
    wb_route_model model;
    wb_dump *dump = NULL;
    wb_hash_file *tables = NULL;
    WB_TRY(wb_routes_of_folder(dir, layers, &model, &vocab_size));
    WB_TRY(wb_dump_open(path, &dump));
    wb_status status = wb_route_model_match(&model, wb_dump_model(dump));
    if (status != WB_OK) status = wb_fail_context(status, "%s", path);
    if (status == WB_OK) status = wb_hash_file_open(dir, &tables);
    if (status == WB_OK) status = check_hash_rows(dump, wb_hash_file_routes(tables), not_compared_out);
    wb_hash_file_close(tables);
    wb_dump_close(dump);
    return status;
}
