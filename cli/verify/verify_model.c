/* verify_model.c - see verify_model.h. */
#include "verify/verify_model.h"
#include "wb_check.h"
#include "wb_model.h"

/* What wb_dump_verify cannot know: how many entries a token sees, where the dump does not say so, and the
 * tables; hash: NULL where there is none to compare with. */
static wb_status check_records(wb_dump *dump, const wb_route_model *model, const wb_hash_routes *hash) {
    const uint64_t n = wb_dump_get_info(dump).records;
    if (!hash && wb_dump_model(dump)->indexer_rate == model->indexer_rate) return WB_OK;
    for (uint64_t i = 0; i < n; i++) {
        wb_record record;
        WB_TRY(wb_dump_record(dump, i, &record));
        wb_status status = wb_record_check(model, &record, false);
        if (status != WB_OK) status = wb_fail_context(WB_MISMATCH, "indexers of the model");
        if (status == WB_OK && hash) status = wb_record_check_hash(model, hash, &record);
        wb_dump_release(dump, i);
        WB_TRY(status);
    }
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
    if (status == WB_OK) status = check_records(dump, &model, wb_hash_file_routes(tables));
    /* Where the engine does not run the model it cannot find its tables. */
    if (status == WB_OK && !wb_hash_file_routes(tables)) *not_compared_out = model.n_hash_layers;
    wb_hash_file_close(tables);
    wb_dump_close(dump);
    return status;
}
