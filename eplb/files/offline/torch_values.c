/* torch_values.c - see torch_values.h and torch_pickle.h. Nothing is called: a name is a number here. */
#include "files/offline/torch_values.h"
#include "wb_check.h"

#include <stdlib.h>
#include <string.h>

/* The names that are known: a storage of each type, then these. */
enum { N_TYPES = WB_TORCH_DOUBLE + 1, ORDERED_DICT = N_TYPES, REBUILD_TENSOR };

/* In the order of the numbers. */
static const struct {
    const char *module, *name;
} globals[] = {
#define X(VALUE, storage, bytes) {"torch", storage},
    WB_TORCH_TYPE_LIST(X)
#undef X
        {"collections", "OrderedDict"},
    {"torch._utils", "_rebuild_tensor_v2"},
};

static bool is_text(const char *text, size_t bytes, const char *expected) {
    return bytes == strlen(expected) && memcmp(text, expected, bytes) == 0;
}

wb_status wb_pickle_global(size_t pos, const char *module, size_t module_bytes, const char *name,
                           size_t name_bytes, int64_t *global_out) {
    for (size_t i = 0; i < sizeof globals / sizeof globals[0]; i++) {
        if (!is_text(module, module_bytes, globals[i].module) || !is_text(name, name_bytes, globals[i].name))
            continue;
        *global_out = (int64_t)i;
        return WB_OK;
    }
    enum { SHOWN = 100 }; /* bytes of a name */
    return wb_fail(WB_UNSUPPORTED,
                   "pickle byte %zu: expected tensors (u8, i16, i32, i64, f32, f64), containers, text and "
                   "numbers, found %.*s.%.*s",
                   pos, module_bytes < SHOWN ? (int)module_bytes : SHOWN, module,
                   name_bytes < SHOWN ? (int)name_bytes : SHOWN, name);
}

/* ---- the values of a tuple ----------------------------------------------------------------------- */

static wb_status corrupt(size_t pos, const char *expected) {
    return wb_fail(WB_CORRUPT, "pickle byte %zu: expected %s", pos, expected);
}

/* The first n values of a tuple that has at least as many. */
static bool read_tuple(const wb_pickle *p, wb_pickle_id tuple, uint32_t n,
                       const wb_pickle_value **values_out) {
    const wb_pickle_value *t = &p->values[tuple];
    if (t->kind != WB_PICKLE_TUPLE || t->as.items.n < n) return false;
    uint32_t item = t->as.items.first;
    for (uint32_t i = 0; i < n; i++) {
        values_out[i] = &p->values[p->items[item].value];
        item = p->items[item].next;
    }
    return true;
}

static bool is_count(const wb_pickle_value *value) {
    return value->kind == WB_PICKLE_INT && value->as.integer >= 0;
}

/* The numbers of a tuple, of which the first WB_PICKLE_MAX_DIMS are kept. */
static bool read_numbers(const wb_pickle *p, const wb_pickle_value *tuple, uint32_t *n_out,
                         uint64_t *numbers_out) {
    if (tuple->kind != WB_PICKLE_TUPLE) return false;
    uint32_t item = tuple->as.items.first;
    for (uint32_t i = 0; i < tuple->as.items.n; i++) {
        const wb_pickle_value *value = &p->values[p->items[item].value];
        if (!is_count(value)) return false;
        if (i < WB_PICKLE_MAX_DIMS) numbers_out[i] = (uint64_t)value->as.integer;
        item = p->items[item].next;
    }
    *n_out = tuple->as.items.n;
    return true;
}

static wb_status add_tensor(wb_pickle *p, wb_pickle_kind kind, wb_torch_tensor tensor,
                            wb_pickle_value *made_out) {
    WB_TRY(WB_GROW(p->tensors, p->n_tensors + 1, &p->room_tensors, "a pickle"));
    p->tensors[p->n_tensors] = tensor;
    *made_out = (wb_pickle_value){.kind = kind, .as.tensor = (uint32_t)p->n_tensors++};
    return WB_OK;
}

/* ---- what is made -------------------------------------------------------------------------------- */

wb_status wb_pickle_storage(wb_pickle *p, size_t pos, wb_pickle_id arguments, wb_pickle_value *made_out) {
    const wb_pickle_value *v[5];
    if (!read_tuple(p, arguments, 5, v) || v[0]->kind != WB_PICKLE_TEXT ||
        !is_text(v[0]->as.text.bytes, v[0]->as.text.n, "storage") || v[1]->kind != WB_PICKLE_GLOBAL ||
        v[1]->as.integer >= N_TYPES || v[2]->kind != WB_PICKLE_TEXT || !is_count(v[4]))
        return corrupt(pos, "the type, key and size of a storage");
    const wb_torch_tensor storage = {.type = (wb_torch_type)v[1]->as.integer,
                                     .key = v[2]->as.text.bytes,
                                     .key_bytes = v[2]->as.text.n,
                                     .storage_elements = (uint64_t)v[4]->as.integer};
    return add_tensor(p, WB_PICKLE_STORAGE, storage, made_out);
}

/* (storage, offset, shape, strides, whether it has a gradient, hooks, ...) */
static wb_status rebuild_tensor(wb_pickle *p, size_t pos, wb_pickle_id arguments, wb_pickle_value *made_out) {
    const wb_pickle_value *v[4];
    uint32_t n_strides = 0;
    if (!read_tuple(p, arguments, 4, v) || v[0]->kind != WB_PICKLE_STORAGE || !is_count(v[1]))
        return corrupt(pos, "the storage, offset, shape and strides of a tensor");
    wb_torch_tensor tensor = p->tensors[v[0]->as.tensor];
    tensor.offset = (uint64_t)v[1]->as.integer;
    if (!read_numbers(p, v[2], &tensor.n_dims, tensor.shape) ||
        !read_numbers(p, v[3], &n_strides, tensor.stride) || n_strides != tensor.n_dims)
        return corrupt(pos, "the shape of a tensor and as many strides");
    return add_tensor(p, WB_PICKLE_TENSOR, tensor, made_out);
}

wb_status wb_pickle_call(wb_pickle *p, size_t pos, wb_pickle_id callable, wb_pickle_id arguments,
                         wb_pickle_value *made_out) {
    const wb_pickle_value *c = &p->values[callable], *a = &p->values[arguments];
    if (c->kind == WB_PICKLE_GLOBAL && c->as.integer == REBUILD_TENSOR)
        return rebuild_tensor(p, pos, arguments, made_out);
    if (c->kind != WB_PICKLE_GLOBAL || c->as.integer != ORDERED_DICT)
        return corrupt(pos, "a call of _rebuild_tensor_v2 or OrderedDict");
    if (a->kind != WB_PICKLE_TUPLE || a->as.items.n != 0)
        return corrupt(pos, "an OrderedDict made empty and filled afterwards");
    *made_out = (wb_pickle_value){.kind = WB_PICKLE_DICT};
    return WB_OK;
}

/* ---- all values ---------------------------------------------------------------------------------- */

void wb_pickle_close(wb_pickle *pickle) {
    free(pickle->values);
    free(pickle->items);
    free(pickle->tensors);
    *pickle = (wb_pickle){0};
}

const wb_pickle_value *wb_pickle_get(const wb_pickle *pickle, const wb_pickle_value *dict, const char *key) {
    const wb_pickle_value *found = NULL;
    if (dict->kind != WB_PICKLE_DICT) return NULL;
    uint32_t item = dict->as.items.first;
    for (uint32_t i = 0; i + 1 < dict->as.items.n; i += 2) {
        const wb_pickle_item k = pickle->items[item], v = pickle->items[k.next];
        const wb_pickle_value *name = &pickle->values[k.value];
        if (name->kind == WB_PICKLE_TEXT && name->as.text.n == strlen(key) &&
            memcmp(name->as.text.bytes, key, name->as.text.n) == 0)
            found = &pickle->values[v.value];
        item = v.next;
    }
    return found;
}
