/* import_fixture.h - the golden answers of other systems, their manifest and its models (header only).
 * usage: import_manifest_open() once, then import_model_of and the arrays of the manifest. */
#ifndef IMPORT_FIXTURE_H
#define IMPORT_FIXTURE_H

#include "dump_fixture.h"
#include "wb_import.h"

#include <jansson.h>

#define IMPORT_GOLDEN WB_TEST_DATA "/import/"

static inline json_t *import_manifest_open(void) {
    json_t *manifest = json_load_file(IMPORT_GOLDEN "manifest.json", 0, NULL);
    if (!manifest) abort();
    return manifest;
}

static inline const char *import_text(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    if (!text) abort();
    return text;
}

static inline uint32_t import_number(const json_t *object, const char *key) {
    return (uint32_t)json_integer_value(json_object_get(object, key));
}

/* `list`: NULL is an empty one. */
static inline void import_take_list(const json_t *list, uint32_t *numbers_out) {
    for (size_t i = 0; i < json_array_size(list); i++)
        numbers_out[i] = (uint32_t)json_integer_value(json_array_get(list, i));
}

/* The model of a file of the manifest. */
static inline void import_model_of(const json_t *manifest, const json_t *file, fixture_model *f) {
    const json_t *m = json_object_get(json_object_get(manifest, "models"), import_text(file, "model"));
    const json_t *moe = json_object_get(m, "moe");
    fixture_model_init(f, (uint32_t)json_array_size(moe), import_number(m, "E"), import_number(m, "K"));
    f->model.num_hidden_layers = import_number(m, "hidden");
    import_take_list(moe, f->layers);
    import_take_list(json_object_get(m, "layer_K"), f->layer_top_k);
    if (json_object_get(m, "layer_K")) f->model.layer_top_k = f->layer_top_k;
    const json_t *indexer = json_object_get(m, "indexer"), *indexed = json_object_get(indexer, "layers");
    if (!indexer) return;
    import_take_list(indexed, f->indexer_layers);
    import_take_list(indexed, f->indexer_source);
    f->model.n_indexer_layers = (uint32_t)json_array_size(indexed);
    f->model.indexer_k = import_number(indexer, "k");
    f->model.indexer_rate = import_number(indexer, "rate");
    f->model.indexer_layers = f->indexer_layers;
    f->model.indexer_source = f->indexer_source;
}

/* The file's bytes; freed with free(). */
static inline uint8_t *import_file(const json_t *file, size_t *size) {
    char path[512];
    snprintf(path, sizeof path, IMPORT_GOLDEN "%s", import_text(file, "file"));
    return fixture_read_file(path, size);
}

static inline wb_import_layout import_layout_of(const json_t *file) {
    wb_import_layout layout;
    if (wb_import_layout_find(import_text(file, "layout"), &layout) != WB_OK) abort();
    return layout;
}

#endif
