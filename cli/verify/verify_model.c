/* verify_model.c - see verify_model.h. */
#include "verify/verify_model.h"
#include "command.h"
#include "wb_check.h"
#include "wb_model.h"

/* A record that the model cannot have made is another model's: MISMATCH, with the dump's name. */
static wb_status check_record(const char *path, wb_dump *dump, uint64_t i, const verify_model *model,
                              bool other_rate, const wb_hash_routes *hash) {
    wb_record record;
    WB_TRY(wb_dump_record(dump, i, &record));
    wb_status status = other_rate ? wb_record_check(&model->routes, &record, false) : WB_OK;
    if (status != WB_OK) status = wb_fail_context(WB_MISMATCH, "indexers of the model");
    if (status == WB_OK) status = wb_record_check_vocabulary(&record, model->vocab_size);
    if (status == WB_OK && hash) status = wb_record_check_hash(&model->routes, hash, &record);
    wb_dump_release(dump, i);
    return status == WB_OK ? WB_OK : wb_fail_context(WB_MISMATCH, "%s", path);
}

/* What wb_dump_verify cannot know: the vocabulary, how many entries a token sees, where the dump does not say
 * so, and the tables; hash: NULL where there is none to compare with. */
static wb_status check_records(const char *path, wb_dump *dump, const verify_model *model,
                               const wb_hash_routes *hash) {
    const uint64_t n = wb_dump_get_info(dump).records;
    const bool other_rate = wb_dump_model(dump)->indexer_rate != model->routes.indexer_rate;
    cli_progress progress = cli_progress_start();
    wb_status status = WB_OK;
    for (uint64_t i = 0; i < n && status == WB_OK; i++) {
        status = check_record(path, dump, i, model, other_rate, hash);
        cli_progress_records(&progress, i + 1, n, 0);
    }
    cli_progress_end(&progress);
    return status;
}

wb_status verify_model_open(const char *dir, verify_model *model_out) {
    *model_out = (verify_model){0};
    WB_TRY(wb_routes_of_folder(dir, model_out->lists, &model_out->routes, &model_out->vocab_size));
    return wb_hash_file_open(dir, &model_out->tables);
}

void verify_model_close(verify_model *model) {
    wb_hash_file_close(model->tables);
}

wb_status verify_model_compare(const verify_model *model, const char *path, uint32_t *not_compared_out) {
    wb_dump *dump = NULL;
    WB_TRY(wb_dump_open(path, &dump));
    const wb_hash_routes *hash = wb_hash_file_routes(model->tables);
    wb_status status = wb_route_model_match(&model->routes, wb_dump_model(dump));
    if (status != WB_OK) status = wb_fail_context(status, "%s", path);
    if (status == WB_OK) status = check_records(path, dump, model, hash);
    /* Where the engine does not run the model it cannot find its tables. */
    if (status == WB_OK && !hash) *not_compared_out = model->routes.n_hash_layers;
    wb_dump_close(dump);
    return status;
}
