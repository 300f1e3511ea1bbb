/* verify_model.c - see verify_model.h. */
#include "verify/verify_model.h"
#include "wb_check.h"
#include "wb_model.h"

wb_status verify_model_open(const char *dir, verify_model *model_out) {
    *model_out = (verify_model){0};
    WB_TRY(wb_routes_of_folder(dir, model_out->lists, &model_out->routes, &model_out->vocab_size));
    return wb_hash_file_open(dir, &model_out->tables);
}

void verify_model_close(verify_model *model) {
    wb_hash_file_close(model->tables);
}

wb_status verify_model_match(const verify_model *model, const char *path, const wb_dump *dump) {
    const wb_status status = wb_route_model_match(&model->routes, wb_dump_model(dump));
    return status == WB_OK ? WB_OK : wb_fail_context(status, "%s", path);
}

/* A record that the model cannot have made is another model's: MISMATCH, with the dump's name. */
wb_status verify_model_record(const verify_model *model, const char *path, const wb_dump *dump,
                              const wb_record *record) {
    const wb_hash_routes *hash = wb_hash_file_routes(model->tables);
    const bool other_rate = wb_dump_model(dump)->indexer_rate != model->routes.indexer_rate;
    wb_status status = other_rate ? wb_record_check(&model->routes, record, false) : WB_OK;
    if (status != WB_OK) status = wb_fail_context(WB_MISMATCH, "indexers of the model");
    if (status == WB_OK) status = wb_record_check_vocabulary(record, model->vocab_size);
    if (status == WB_OK && hash) status = wb_record_check_hash(&model->routes, hash, record);
    return status == WB_OK ? WB_OK : wb_fail_context(WB_MISMATCH, "%s", path);
}

/* Where the engine does not run the model it cannot find its tables. */
uint32_t verify_model_not_compared(const verify_model *model) {
    return wb_hash_file_routes(model->tables) ? 0 : model->routes.n_hash_layers;
}
