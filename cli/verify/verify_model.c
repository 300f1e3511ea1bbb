/* verify_model.c - see verify_model.h. */
#include "verify/verify_model.h"
#include "wb_check.h"
#include "wb_model.h"

#include <inttypes.h>

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

/* Rows of hash-routed layers that nothing was compared with are not verified. `routes`: NULL where the engine
 * does not run the model, whose tables are not read then. */
static wb_status check_hash_rows(wb_dump *dump, const char *dir, const wb_hash_routes *routes) {
    const uint32_t n = wb_dump_model(dump)->n_hash_layers;
    if (routes) return check_records(dump, routes);
    if (n == 0) return WB_OK;
    return wb_fail(WB_UNSUPPORTED,
                   "%s: expected a model that the engine runs, to compare rows of its %" PRIu32
                   " hash-routed layers with their tables, found one that it does not",
                   dir, n);
}

wb_status verify_model(const char *path, const char *dir) {
    uint32_t layers[3072], vocab_size;
    wb_route_model model;
    wb_dump *dump = NULL;
    wb_hash_file *tables = NULL;
    WB_TRY(wb_routes_of_folder(dir, layers, &model, &vocab_size));
    WB_TRY(wb_dump_open(path, &dump));
    wb_status status = wb_route_model_match(&model, wb_dump_model(dump));
    if (status != WB_OK) status = wb_fail_context(status, "%s", path);
    if (status == WB_OK) status = wb_hash_file_open(dir, &tables);
    if (status == WB_OK) status = check_hash_rows(dump, dir, wb_hash_file_routes(tables));
    wb_hash_file_close(tables);
    wb_dump_close(dump);
    return status;
}
