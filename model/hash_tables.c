/* hash_tables.c - see hash_tables.h. Refuses: what is done with a choice, routes of others
 * (formats/record_hash.c). */
#include "hash_tables.h"
#include "config.h"
#include "registry.h"
#include "tensor_source.h"
#include "wb_hash.h"
#include "wb_random.h"
#include "wb_tensor_io.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static int32_t *table_of(const wb_model *m, uint32_t i) {
    return m->hash_ids + (int64_t)i * wb_hash_table_length(m);
}

/* ---- which there are ------------------------------------------------------------------------- */

wb_status wb_hash_tables_build(wb_model *m) {
    const wb_route_model *routes = &m->route_model;
    const uint32_t n = routes->n_hash_layers;
    if (n == 0) return WB_OK;
    WB_TRY(WB_OWN(&m->memory.host, m->hash_names, n, "hash-routed layers"));
    for (uint32_t i = 0; i < n; i++)
        wb_registry_full_name(m, (int32_t)routes->moe_layers[routes->hash_layers[i]], -1, "mlp.gate.tid2eid",
                              m->hash_names[i]);
    m->hash = (wb_hash_routes){
        .n_hash_layers = n, .hash_layers = routes->hash_layers, .vocab_size = (uint32_t)m->config.vocab_size};
    return WB_OK;
}

void wb_hash_tables_layout(wb_model *m, wb_arena *arena) {
    if (m->hash.n_hash_layers == 0) return;
    const int64_t n = m->hash.n_hash_layers * wb_hash_table_length(m);
    wb_place(arena, &m->hash_tables, n, 1, sizeof(int32_t));
    WB_PLACE_HOST(arena, m->hash_ids, n);
    m->hash.ids = m->hash_ids;
}

const wb_hash_routes *wb_model_hash_routes(const wb_model *m) {
    return m->hash.n_hash_layers > 0 ? &m->hash : NULL;
}

static wb_status upload(const wb_model *m) {
    const size_t bytes = (size_t)(m->hash.n_hash_layers * wb_hash_table_length(m)) * sizeof(int32_t);
    return m->hash.n_hash_layers == 0
               ? WB_OK
               : m->device->to_device(m->device, m->hash_tables.data, m->hash_ids, bytes);
}

uint64_t wb_hash_tables_digest(const wb_model *m) {
    const size_t n = (size_t)(m->hash.n_hash_layers * wb_hash_table_length(m));
    return n == 0 ? 0 : wb_hash64(m->hash_ids, n * sizeof *m->hash_ids);
}

/* ---- from files ------------------------------------------------------------------------------ */

static int64_t element(const wb_tensor_view *view, int64_t i) {
    int64_t wide;
    int32_t narrow;
    const unsigned char *at = (const unsigned char *)view->data + (size_t)i * wb_dtype_size(view->dtype);
    if (view->dtype == WB_I64) {
        memcpy(&wide, at, sizeof wide);
        return wide;
    }
    memcpy(&narrow, at, sizeof narrow);
    return narrow;
}

/* One token's choices: distinct experts. */
static wb_status take_token(const wb_router *router, const wb_tensor_view *view, int32_t token,
                            int32_t *ids) {
    for (int32_t k = 0; k < router->top_k; k++) {
        const int64_t id = element(view, (int64_t)token * router->top_k + k);
        bool repeated = false;
        for (int32_t j = 0; j < k; j++) repeated |= ids[j] == id;
        if (id < 0 || id >= router->n_experts || repeated)
            return wb_fail(WB_CORRUPT,
                           "%s: tensor %s: token %d: expected %d distinct experts below %d, found %" PRId64
                           "%s",
                           view->file, view->name, token, router->top_k, router->n_experts, id,
                           repeated ? " twice" : "");
        ids[k] = (int32_t)id;
    }
    return WB_OK;
}

static wb_status load_table(const wb_model *m, const wb_safetensors *files, size_t at, int32_t *table) {
    const wb_router *router = &m->config.router;
    const int64_t shape[2] = {m->config.vocab_size, router->top_k};
    wb_tensor_view view = {0};
    WB_TRY(wb_safetensors_get(files, at, &view));
    if (view.n_dims != 2 || view.shape[0] != shape[0] || view.shape[1] != shape[1])
        return wb_fail(WB_MISMATCH, "%s: tensor %s: expected shape %s, found %s", view.file, view.name,
                       wb_shape_text(2, shape).text, wb_shape_text(view.n_dims, view.shape).text);
    if (view.dtype != WB_I64 && view.dtype != WB_I32)
        return wb_fail(WB_UNSUPPORTED, "%s: tensor %s: expected dtype i64 or i32, found %s", view.file,
                       view.name, wb_dtype_name(view.dtype));
    for (int32_t token = 0; token < m->config.vocab_size; token++)
        WB_TRY(take_token(router, &view, token, table + (int64_t)token * router->top_k));
    return WB_OK;
}

wb_status wb_hash_tables_read(const wb_model *m, const wb_safetensors *files, const char *dir, bool *used) {
    for (uint32_t i = 0; i < m->hash.n_hash_layers; i++) {
        const wb_tensor named = {.name = m->hash_names[i],
                                 .layer = (int32_t)m->route_model.moe_layers[m->hash.hash_layers[i]],
                                 .expert = -1};
        const size_t at = wb_tensor_lookup(m, files, &named);
        if (at == SIZE_MAX) return wb_fail(WB_NOT_FOUND, "%s: missing tensor %s", dir, named.name);
        if (used) used[at] = true;
        WB_TRY(load_table(m, files, at, table_of(m, i)));
    }
    return WB_OK;
}

wb_status wb_hash_tables_load(wb_model *m, const wb_safetensors *files, const char *dir, bool *used) {
    WB_TRY(wb_hash_tables_read(m, files, dir, used));
    return upload(m);
}

/* ---- made and copied ------------------------------------------------------------------------- */

/* Random experts; where one is taken already, the next that is free. */
static void fill_token(const wb_router *router, uint64_t key, int32_t *ids) {
    for (int32_t k = 0; k < router->top_k; k++) {
        int32_t id = (int32_t)(wb_mix64(key + (uint64_t)k) % (uint64_t)router->n_experts);
        for (int32_t j = 0; j < k;) {
            const bool taken = ids[j] == id;
            if (taken) id = (id + 1) % router->n_experts;
            j = taken ? 0 : j + 1;
        }
        ids[k] = id;
    }
}

wb_status wb_hash_tables_fill(wb_model *m, uint64_t seed) {
    const int32_t K = m->config.router.top_k;
    for (uint32_t i = 0; i < m->hash.n_hash_layers; i++) {
        const uint64_t key = wb_mix64(wb_hash64_seeded(m->hash_names[i], strlen(m->hash_names[i]), seed));
        for (int32_t token = 0; token < m->config.vocab_size; token++)
            fill_token(&m->config.router, key + (uint64_t)token * 64, table_of(m, i) + (int64_t)token * K);
    }
    return upload(m);
}

wb_status wb_hash_tables_copy(const wb_model *to, const wb_model *from) {
    const size_t n = (size_t)(to->hash.n_hash_layers * wb_hash_table_length(to));
    if (n == 0 || memcmp(to->hash_ids, from->hash_ids, n * sizeof *to->hash_ids) == 0) return WB_OK;
    memcpy(to->hash_ids, from->hash_ids, n * sizeof *to->hash_ids);
    return upload(to);
}

/* ---- into files ------------------------------------------------------------------------------ */

wb_tensor_view wb_hash_table_view(const wb_model *m, uint32_t i) {
    return (wb_tensor_view){.name = m->hash_names[i],
                            .dtype = WB_I64,
                            .n_dims = 2,
                            .shape = {m->config.vocab_size, m->config.router.top_k},
                            .bytes = (size_t)wb_hash_table_length(m) * sizeof(int64_t)};
}

wb_status wb_hash_table_write(const wb_model *m, uint32_t i, wb_new_file *file) {
    const int32_t *table = table_of(m, i);
    int64_t wide[512];
    for (int64_t done = 0, n; done < wb_hash_table_length(m); done += n) {
        n = wb_hash_table_length(m) - done < 512 ? wb_hash_table_length(m) - done : 512;
        for (int64_t j = 0; j < n; j++) wide[j] = table[done + j];
        WB_TRY(wb_new_file_write(file, wide, (size_t)n * sizeof *wide));
    }
    return WB_OK;
}
