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

/* Whether the dump at `path` names the model; MISMATCH otherwise. */
wb_status verify_model_match(const verify_model *model, const char *path, const wb_dump *dump);

/* What the dump cannot know of a record of its, which has passed wb_dump_verify_record: the vocabulary, how
 * many entries a token sees, where the dump does not say so, and the tables. MISMATCH where the model cannot
 * have made it. */
wb_status verify_model_record(const verify_model *model, const char *path, const wb_dump *dump,
                              const wb_record *record);

/* So many hash-routed layers are not compared, because the engine does not run the model by its
 * config.json. */
uint32_t verify_model_not_compared(const verify_model *model);

#endif
