/* import_fuzz.h - the fuzz target of each importer: any bytes as answers of LAYOUT are refused with a
 * message that names the file, or give records that pass the deep check; and the import comes to an end. */
#ifndef IMPORT_FUZZ_H
#define IMPORT_FUZZ_H

#include "wb_import.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool holds) {
    if (!holds) abort();
}

/* The models of the golden answers: of one K and with indexers, and one whose layers differ in K. */
static const uint32_t moe_layers[] = {1, 2, 3}, layer_top_k[] = {3, 1, 2}, indexers[] = {1, 3};
#define FUZZ_MODEL                                                                                   \
    .name = "fuzz_moe", .fingerprint = "0123456789abcdef0123456789abcdef", .router = "softmax_norm", \
    .num_hidden_layers = 4, .n_moe_layers = 3, .moe_layers = moe_layers, .num_experts = 8
static const wb_route_model fuzz_models[] = {{FUZZ_MODEL, .top_k = 2, .n_indexer_layers = 2, .indexer_k = 3,
                                              .indexer_rate = 4, .indexer_layers = indexers,
                                              .indexer_source = indexers},
                                             {FUZZ_MODEL, .top_k = 3, .layer_top_k = layer_top_k}};

static void import_all(const wb_route_model *model, const uint8_t *data, size_t size) {
    wb_import *import = NULL;
    if (wb_import_open("answers", data, size, LAYOUT, model, &import) != WB_OK) {
        require(!import && strstr(wb_error_message(), "answers"));
        return;
    }
    /* Each call takes a request: none takes less than a byte, or is a row of an array that is there. */
    size_t calls = 0;
    for (bool found = true; found; calls++) {
        wb_record record;
        if (wb_import_next(import, &record, &found) != WB_OK)
            require(strstr(wb_error_message(), "answers") != NULL);
        else if (found)
            require(wb_record_check(model, &record, true) == WB_OK);
        require(calls < 1000000);
    }
    require(wb_import_bytes_read(import) == size);
    wb_import_close(import);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    import_all(&fuzz_models[0], data, size);
    import_all(&fuzz_models[1], data, size);
    return 0;
}

#endif
