/* verify_model.h - `verify --model`: whether a dump is one of the model in a directory. */
#ifndef WB_CLI_VERIFY_MODEL_H
#define WB_CLI_VERIFY_MODEL_H

#include "wb_model.h"

/* What is known of that model; zeros: none. */
typedef struct verify_model {
    wb_route_model routes;
    uint32_t lists[WB_ROUTE_LISTS_MAX]; /* that `routes` points into */
    uint32_t vocab_size;                /* 0: not known */
    wb_hash_file *tables;
} verify_model;

/* Errors as of wb_routes_of_folder and wb_hash_file_open. */
wb_status verify_model_open(const char *dir, verify_model *model_out);
void verify_model_close(verify_model *model);

/* MISMATCH where the dump names another model, a row of a hash-routed layer is not the table's, or an indexer
 * of the model cannot have chosen what a record says; INVALID_ARGUMENT for a token beyond the vocabulary.
 * *not_compared_out, which is 0 before: so many hash-routed layers were not compared, because the engine does
 * not run the model by its config.json. */
wb_status verify_model_compare(const verify_model *model, const char *path, uint32_t *not_compared_out);

#endif
