/* import_value.c - see import_value.h. */
#include "import/import_value.h"

#include <stdlib.h>
#include <string.h>

/* ---- values of the three sources ------------------------------------------------------------------ */

import_value wb_import_of_json(const json_t *json) {
    import_value v = {.json = json};
    if (!json) return v;
    switch (json_typeof(json)) {
    case JSON_OBJECT:
        v.kind = IMPORT_MAP;
        v.length = json_object_size(json);
        break;
    case JSON_ARRAY:
        v.kind = IMPORT_LIST;
        v.length = json_array_size(json);
        break;
    case JSON_STRING:
        v.kind = IMPORT_TEXT;
        v.text = json_string_value(json);
        v.length = json_string_length(json);
        break;
    case JSON_INTEGER:
        v.kind = IMPORT_INTEGER;
        v.integer = json_integer_value(json);
        v.real = (double)v.integer;
        break;
    case JSON_REAL:
        v.kind = IMPORT_REAL;
        v.real = json_real_value(json);
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        v.kind = IMPORT_BOOL;
        v.integer = json_is_true(json);
        break;
    default:
        break;
    }
    return v;
}

static import_value of_msgpack_integer(const msgpack_object *o) {
    const bool is_negative = o->type == MSGPACK_OBJECT_NEGATIVE_INTEGER;
    const bool is_large = !is_negative && o->via.u64 > INT64_MAX;
    const int64_t number = is_negative ? o->via.i64 : is_large ? INT64_MAX : (int64_t)o->via.u64;
    return (import_value){.kind = IMPORT_INTEGER, .integer = number, .real = (double)number};
}

import_value wb_import_of_msgpack(const msgpack_object *o) {
    switch (o->type) {
    case MSGPACK_OBJECT_NIL:
        return (import_value){0};
    case MSGPACK_OBJECT_BOOLEAN:
        return (import_value){.kind = IMPORT_BOOL, .integer = o->via.boolean};
    case MSGPACK_OBJECT_POSITIVE_INTEGER:
    case MSGPACK_OBJECT_NEGATIVE_INTEGER:
        return of_msgpack_integer(o);
    case MSGPACK_OBJECT_FLOAT32:
    case MSGPACK_OBJECT_FLOAT64:
        return (import_value){.kind = IMPORT_REAL, .real = o->via.f64};
    case MSGPACK_OBJECT_STR:
        return (import_value){.kind = IMPORT_TEXT, .text = o->via.str.ptr, .length = o->via.str.size};
    case MSGPACK_OBJECT_BIN:
        return (import_value){.kind = IMPORT_BYTES, .text = o->via.bin.ptr, .length = o->via.bin.size};
    case MSGPACK_OBJECT_ARRAY:
        return (import_value){.kind = IMPORT_LIST, .msgpack = o, .length = o->via.array.size};
    case MSGPACK_OBJECT_MAP:
        return (import_value){.kind = IMPORT_MAP, .msgpack = o, .length = o->via.map.size};
    default:
        return (import_value){.kind = IMPORT_OTHER};
    }
}

/* A single number of numpy is a number, a single text is text. */
import_value wb_import_of_array(const import_array *array) {
    import_value v = {.kind = IMPORT_ARRAY, .array = *array};
    if (array->n_dims > 0) {
        v.length = array->shape[0];
    } else if (array->type.kind == 'S') {
        v.kind = IMPORT_TEXT;
        v.text = (const char *)array->data;
        v.length = strnlen(v.text, array->type.bytes);
    } else if (array->type.kind == 0) {
        v.kind = IMPORT_OTHER;
    } else if (wb_import_has_integers(array)) {
        v.kind = IMPORT_INTEGER;
        v.integer = wb_import_integer(array, 0);
        v.real = (double)v.integer;
    } else {
        v.kind = IMPORT_REAL;
        v.real = wb_import_real(array, 0);
    }
    return v;
}

static int compare_names(const char *a, size_t a_length, const char *b, size_t b_length) {
    const int order = memcmp(a, b, a_length < b_length ? a_length : b_length);
    return order ? order : (a_length > b_length) - (a_length < b_length);
}

/* Of two that are called alike the first of the archive is found: names lie in the order of its directory. */
static int by_name(const void *a, const void *b) {
    const import_member *x = a, *y = b;
    const int order = compare_names(x->name, x->length, y->name, y->length);
    return order ? order : (x->name > y->name) - (x->name < y->name);
}

import_value wb_import_of_members(import_member *members, size_t n) {
    qsort(members, n, sizeof *members, by_name);
    return (import_value){.kind = IMPORT_MAP, .members = members, .length = n};
}

/* ---- members -------------------------------------------------------------------------------------- */

import_value wb_import_at(const import_value *list, size_t i) {
    if (list->msgpack) return wb_import_of_msgpack(&list->msgpack->via.array.ptr[i]);
    return wb_import_of_json(json_array_get(list->json, i));
}

static bool is_key(const msgpack_object *key, const char *name) {
    const bool is_text = key->type == MSGPACK_OBJECT_STR || key->type == MSGPACK_OBJECT_BIN;
    return is_text && key->via.str.size == strlen(name) &&
           memcmp(key->via.str.ptr, name, key->via.str.size) == 0;
}

/* The first of that name; NULL: there is none. */
static const import_member *find_member(const import_value *map, const char *key) {
    const size_t length = strlen(key);
    size_t first = 0, end = map->length;
    while (first < end) {
        const size_t middle = first + (end - first) / 2;
        const import_member *m = &map->members[middle];
        if (compare_names(m->name, m->length, key, length) < 0)
            first = middle + 1;
        else
            end = middle;
    }
    const import_member *found = &map->members[first];
    if (first == map->length || compare_names(found->name, found->length, key, length) != 0) return NULL;
    return found;
}

import_value wb_import_get(const import_value *map, const char *key) {
    const import_value none = {0};
    if (map->kind != IMPORT_MAP) return none;
    if (map->json) return wb_import_of_json(json_object_get(map->json, key));
    if (map->msgpack) {
        const msgpack_object_map *m = &map->msgpack->via.map;
        for (uint32_t i = 0; i < m->size; i++)
            if (is_key(&m->ptr[i].key, key)) return wb_import_of_msgpack(&m->ptr[i].val);
        return none;
    }
    const import_member *member = find_member(map, key);
    return member ? wb_import_of_array(&member->array) : none;
}

bool wb_import_next_value(const import_value *map, import_place *place, import_value *value_out) {
    if (map->kind != IMPORT_MAP || map->members || place->next >= map->length) return false;
    const size_t i = place->next++;
    if (map->json) {
        /* The iterator is not written through: jansson has no other for a const object. */
        json_t *object = (json_t *)(uintptr_t)map->json;
        place->json = place->begun ? json_object_iter_next(object, place->json) : json_object_iter(object);
        place->begun = true;
        if (!place->json) return false;
        *value_out = wb_import_of_json(json_object_iter_value(place->json));
    } else {
        *value_out = wb_import_of_msgpack(&map->msgpack->via.map.ptr[i].val);
    }
    return true;
}

const char *wb_import_kind_name(import_kind kind) {
    static const char *const names[] = {
        "none",  "true or false", "an integer", "a real number", "text",
        "bytes", "a list",        "a map",      "an array",      "what is no value here"};
    return names[kind];
}

bool wb_import_is_text(const import_value *value, const char *text) {
    return value->kind == IMPORT_TEXT && value->length == strlen(text) &&
           memcmp(value->text, text, value->length) == 0;
}
