/* verify_model.h - whether the records of a dump are of a model in a directory. */
#ifndef WB_CLI_VERIFY_MODEL_H
#define WB_CLI_VERIFY_MODEL_H

#include "wb_formats.h"

/* MISMATCH where the dump names another model, or a row of a hash-routed layer is not the table's;
 * UNSUPPORTED where it has such layers and the engine does not run it, so that there are no tables. */
wb_status verify_model(const char *path, const char *dir);

#endif
