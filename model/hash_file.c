/* hash_file.c - the tables of hash-routed layers from a checkpoint whose model is not opened. Refuses: what
 * is in a table (hash_tables.c). */
#include "config.h"
#include "hash_tables.h"
#include "wb_memory.h"

#include <stdlib.h>

struct wb_hash_file {
    wb_model *blank; /* owns what the tables are called, and not the tables */
    int32_t *ids;
};

static wb_status read_folder(const char *dir, wb_hash_file *file) {
    wb_model *m = file->blank;
    wb_safetensors *files = NULL;
    const size_t n = (size_t)(m->hash.n_hash_layers * wb_hash_table_length(m));
    if (n == 0) return WB_OK;
    WB_TRY(WB_NEW(file->ids, n, "tables of hash-routed layers"));
    m->hash.ids = m->hash_ids = file->ids;
    WB_TRY(wb_safetensors_open(dir, NULL, &files));
    const wb_status status = wb_hash_tables_read(m, files, dir, NULL);
    wb_safetensors_close(files);
    return status;
}

/* *runs_out false: the engine does not run the model, or cannot by this file, of which the routes can be read
 * all the same. */
static wb_status read_config(const char *dir, wb_config *config_out, bool *runs_out) {
    uint32_t layers[WB_ROUTE_LISTS_MAX], vocab_size;
    wb_route_model routes;
    const wb_status status = wb_config_load_unquantized(dir, config_out);
    *runs_out = status == WB_OK;
    if (status != WB_UNSUPPORTED && status != WB_CORRUPT) return status;
    return wb_routes_of_folder(dir, layers, &routes, &vocab_size);
}

wb_status wb_hash_file_open(const char *dir, wb_hash_file **file_out) {
    const wb_model_options options = wb_model_options_default();
    wb_hash_file *file = NULL;
    wb_config config;
    bool runs = false;
    WB_TRY(read_config(dir, &config, &runs));
    WB_TRY(WB_NEW(file, 1, "tables of hash-routed layers"));
    wb_status status = WB_OK;
    if (runs) status = wb_model_blank(&config, &options, 1, 0, &file->blank);
    if (status == WB_OK && file->blank) status = read_folder(dir, file);
    if (status != WB_OK) {
        wb_hash_file_close(file);
        return status;
    }
    *file_out = file;
    return WB_OK;
}

void wb_hash_file_close(wb_hash_file *file) {
    if (!file) return;
    wb_model_close(file->blank);
    free(file->ids);
    free(file);
}

const wb_hash_routes *wb_hash_file_routes(const wb_hash_file *file) {
    return file->blank ? wb_model_hash_routes(file->blank) : NULL;
}
