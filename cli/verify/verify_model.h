/* verify_model.h - whether the records of a dump are of a model in a directory. */
#ifndef WB_CLI_VERIFY_MODEL_H
#define WB_CLI_VERIFY_MODEL_H

#include "wb_formats.h"

/* MISMATCH where the dump names another model, a row of a hash-routed layer is not the table's, or an indexer
 * of the model cannot have chosen what a record says. *not_compared_out, which is 0 before: so many
 * hash-routed layers were not compared, because the engine does not run the model by its config.json. */
wb_status verify_model(const char *path, const char *dir, uint32_t *not_compared_out);

#endif
