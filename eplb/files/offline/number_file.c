/* number_file.c - see number_file.h. An array of JSON or msgpack is walked twice: for its shape, which its
 * first rows say, and for its values, which have to be of that shape throughout. */
#include "files/offline/number_file.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the file ------------------------------------------------------------------------------------ */

wb_status wb_number_file_open(const char *path, wb_number_file *file_out) {
    wb_number_file file = {0};
    WB_TRY(wb_torch_file_is(path) ? wb_torch_file_open(path, &file.torch) : wb_tree_read(path, &file.tree));
    *file_out = file;
    return WB_OK;
}

void wb_number_file_close(wb_number_file *file) {
    json_decref(file->tree);
    wb_torch_file_close(&file->torch);
    file->tree = NULL;
}

wb_number_node wb_number_root(const wb_number_file *file) {
    if (file->tree) return (wb_number_node){.tree = file->tree};
    return (wb_number_node){.torch = &file->torch.pickle.values[file->torch.pickle.root]};
}

bool wb_number_is(wb_number_node node) {
    return node.tree || node.torch;
}

static bool is_list(const wb_pickle_value *value) {
    return value->kind == WB_PICKLE_LIST || value->kind == WB_PICKLE_TUPLE;
}

bool wb_number_is_array(wb_number_node node) {
    if (node.tree) return json_is_array(node.tree);
    return node.torch && (node.torch->kind == WB_PICKLE_TENSOR || is_list(node.torch));
}

wb_number_node wb_number_get(const wb_number_file *file, wb_number_node map, const char *key) {
    wb_number_node node = {0};
    if (map.tree) node.tree = json_object_get(map.tree, key);
    if (map.torch) node.torch = wb_pickle_get(&file->torch.pickle, map.torch, key);
    if (json_is_null(node.tree) || (node.torch && node.torch->kind == WB_PICKLE_NONE))
        node = (wb_number_node){0};
    return node;
}

/* ---- places and values --------------------------------------------------------------------------- */

/* Messages begin with the place in the file, "logical_count[2][57]". */
typedef struct place {
    char text[160];
} place;

static place inside(place at, size_t index) {
    const size_t used = strlen(at.text);
    snprintf(at.text + used, sizeof at.text - used, "[%zu]", index);
    return at;
}

static place at_name(const char *name) {
    place at;
    snprintf(at.text, sizeof at.text, "%.80s", name);
    return at;
}

static wb_status check_value(wb_table_kind kind, double value, place row, size_t i) {
    const int min = kind == WB_TABLE_EXPERTS ? -1 : 0;
    if (kind == WB_TABLE_COUNTS && !(isfinite(value) && value >= 0))
        return wb_fail(WB_CORRUPT, "%s[%zu]: expected a count, found %s", row.text, i,
                       value < 0 ? "a negative number" : "NaN or an infinity");
    if (kind != WB_TABLE_COUNTS && (value < min || value > INT32_MAX))
        return wb_fail(WB_CORRUPT, "%s[%zu]: expected %d..%" PRId32 ", found %.0f", row.text, i, min,
                       INT32_MAX, value);
    return WB_OK;
}

/* ---- arrays of JSON and msgpack ------------------------------------------------------------------ */

static uint32_t depth_of(const json_t *node, uint32_t max) {
    uint32_t depth = 0;
    for (; depth < max && json_is_array(node); depth++) node = json_array_get(node, 0);
    return depth;
}

static wb_status check_array(const json_t *node, size_t n, const char *unit, place at) {
    if (!json_is_array(node) && n == 0)
        return wb_fail(WB_CORRUPT, "%s: expected an array of %s, found something else", at.text, unit);
    if (!json_is_array(node))
        return wb_fail(WB_CORRUPT, "%s: expected an array of %zu %s, found something else", at.text, n, unit);
    if (n == 0 && json_array_size(node) == 0)
        return wb_fail(WB_MISMATCH, "%s is empty, expected 1 and more %s", at.text, unit);
    if (n != 0 && json_array_size(node) != n)
        return wb_fail(WB_MISMATCH, "%s has %zu %s, expected %zu", at.text, json_array_size(node), unit, n);
    return WB_OK;
}

/* The shape that the first rows have, where none is asked for. */
static wb_status measure_tree(const json_t *node, const wb_table_wish *wish, uint32_t first_dim,
                              wb_table *table) {
    place at = at_name(wish->name);
    for (uint32_t d = 0; d < table->n_dims; d++) {
        WB_TRY(check_array(node, wish->shape[first_dim + d], wish->units[first_dim + d], at));
        table->shape[d] = json_array_size(node);
        node = json_array_get(node, 0);
        at = inside(at, 0);
    }
    return WB_OK;
}

static wb_status read_row(const json_t *row, const wb_table_wish *wish, place at, double *values) {
    for (size_t i = 0; i < json_array_size(row); i++) {
        const json_t *node = json_array_get(row, i);
        if (wish->kind != WB_TABLE_COUNTS ? !json_is_integer(node) : !json_is_number(node))
            return wb_fail(WB_CORRUPT, "%s[%zu]: expected %s, found something else", at.text, i,
                           wish->kind != WB_TABLE_COUNTS ? "an integer" : "a count");
        WB_TRY(check_value(wish->kind, json_number_value(node), at, i));
        if (values) values[i] = json_number_value(node);
    }
    return WB_OK;
}

/* Dimension d and those inside of it: checked and, unless `values` is NULL, put into values [shape[d]]
 * [shape[d + 1]] ... Memory is asked for between the two walks: before the first, the shape is only what
 * the first rows say, and the others may be far shorter. */
static wb_status walk_tree(const json_t *node, const wb_table_wish *wish, uint32_t d, place at,
                           wb_table *table, double *values) {
    const char *unit = wish->units[wish->max_dims - table->n_dims + d];
    size_t cells = 1;
    WB_TRY(check_array(node, table->shape[d], unit, at));
    if (d + 1 >= table->n_dims || d + 1 >= WB_TABLE_MAX_DIMS) return read_row(node, wish, at, values);
    for (uint32_t k = d + 1; k < table->n_dims && k < WB_TABLE_MAX_DIMS; k++) cells *= table->shape[k];
    for (size_t i = 0; i < table->shape[d]; i++)
        WB_TRY(walk_tree(json_array_get(node, i), wish, d + 1, inside(at, i), table,
                         values ? values + i * cells : NULL));
    return WB_OK;
}

static wb_status alloc_values(const wb_table_wish *wish, wb_table *table) {
    size_t cells = 1;
    for (uint32_t d = 1; d < table->n_dims; d++) {
        if (table->shape[d] > SIZE_MAX / sizeof(double) / cells)
            return wb_fail(WB_OUT_OF_MEMORY, "%s: no memory for its numbers", wish->name);
        cells *= table->shape[d];
    }
    return WB_ALLOC(table->values, table->shape[0], cells * sizeof *table->values, wish->name);
}

static wb_status read_tree(const json_t *node, const wb_table_wish *wish, wb_table *table) {
    table->n_dims = depth_of(node, wish->max_dims);
    if (table->n_dims < wish->min_dims) table->n_dims = wish->min_dims;
    WB_TRY(measure_tree(node, wish, wish->max_dims - table->n_dims, table));
    WB_TRY(walk_tree(node, wish, 0, at_name(wish->name), table, NULL));
    WB_TRY(alloc_values(wish, table));
    return walk_tree(node, wish, 0, at_name(wish->name), table, table->values);
}

/* ---- tensors, and lists of a pickle ------------------------------------------------------------- */

/* The shape of a tensor, or of lists inside of each other around numbers or tensors, which the first of each
 * list says. A list that holds itself has more dimensions than are asked for. */
static wb_status measure_value(const wb_torch_file *file, const wb_pickle_value *value,
                               const wb_table_wish *wish, wb_table *table) {
    const wb_pickle *p = &file->pickle;
    uint32_t n = 0;
    for (; is_list(value) && n < wish->max_dims; n++) {
        if (value->as.items.n == 0)
            return wb_fail(WB_MISMATCH, "%s: expected lists of 1 and more, found an empty one", wish->name);
        table->shape[n] = value->as.items.n;
        value = &p->values[p->items[value->as.items.first].value];
    }
    const wb_torch_tensor *t = value->kind == WB_PICKLE_TENSOR ? &p->tensors[value->as.tensor] : NULL;
    table->n_dims = n + (is_list(value) ? 1 : t ? t->n_dims : 0);
    if (table->n_dims < wish->min_dims || table->n_dims > wish->max_dims)
        return wb_fail(WB_MISMATCH,
                       "%s: expected a tensor of %" PRIu32 "..%" PRIu32 " dimensions, found %" PRIu32,
                       wish->name, wish->min_dims, wish->max_dims, table->n_dims);
    for (uint32_t d = n; d < table->n_dims; d++) table->shape[d] = (size_t)t->shape[d - n];
    for (uint32_t d = 0; d < table->n_dims; d++) {
        const uint32_t k = wish->max_dims - table->n_dims + d;
        if (wish->shape[k] != 0 && wish->shape[k] != table->shape[d])
            return wb_fail(WB_MISMATCH, "%s has %zu %s, expected %zu", wish->name, table->shape[d],
                           wish->units[k], wish->shape[k]);
    }
    return WB_OK;
}

/* Row `row` of the innermost dimension: the numbers of the outer ones follow from it. */
static uint64_t row_offset(const wb_torch_tensor *t, size_t row, place *at) {
    uint64_t offset = 0;
    size_t index[WB_TABLE_MAX_DIMS] = {0};
    for (uint32_t d = t->n_dims - 1; d-- > 0;) {
        index[d] = row % (size_t)t->shape[d];
        row /= (size_t)t->shape[d];
        offset += index[d] * t->stride[d];
    }
    for (uint32_t d = 0; d + 1 < t->n_dims; d++) *at = inside(*at, index[d]);
    return offset;
}

/* A tensor of the dimensions from d on into values; NULL: its shape and place are checked alone. */
static wb_status read_tensor(const wb_torch_file *file, const wb_torch_tensor *t, const wb_table_wish *wish,
                             uint32_t d, place where, const wb_table *table, double *values) {
    const uint8_t *bytes = NULL;
    size_t rows = 1;
    bool same = t->n_dims == table->n_dims - d;
    for (uint32_t k = 0; same && k < t->n_dims; k++) same = t->shape[k] == table->shape[d + k];
    if (!same) return wb_fail(WB_MISMATCH, "%s: expected a tensor of the shape of the first", where.text);
    if (wish->kind != WB_TABLE_COUNTS && t->type >= WB_TORCH_FLOAT)
        return wb_fail(WB_CORRUPT, "%s: expected integers, found a tensor of floats", where.text);
    WB_TRY(wb_torch_file_elements(file, t, &bytes));
    if (!values) return WB_OK;
    const uint32_t inner = t->n_dims - 1;
    const size_t n = (size_t)t->shape[inner];
    for (uint32_t k = 0; k < inner; k++) rows *= (size_t)t->shape[k];
    for (size_t row = 0; row < rows; row++) {
        place at = where;
        const uint64_t offset = row_offset(t, row, &at);
        for (size_t i = 0; i < n; i++, values++) {
            *values = wb_torch_element(t->type, bytes, offset + i * t->stride[inner]);
            WB_TRY(check_value(wish->kind, *values, at, i));
        }
    }
    return WB_OK;
}

static wb_status read_number(const wb_pickle_value *value, const wb_table_wish *wish, place row, size_t i,
                             double *number_out) {
    const bool whole = value->kind == WB_PICKLE_INT;
    if (!whole && (wish->kind != WB_TABLE_COUNTS || value->kind != WB_PICKLE_FLOAT))
        return wb_fail(WB_CORRUPT, "%s[%zu]: expected %s, found something else", row.text, i,
                       wish->kind != WB_TABLE_COUNTS ? "an integer" : "a count");
    const double number = whole ? (double)value->as.integer : value->as.real;
    WB_TRY(check_value(wish->kind, number, row, i));
    if (number_out) *number_out = number;
    return WB_OK;
}

/* As walk_tree. */
static wb_status walk_value(const wb_torch_file *file, const wb_pickle_value *value,
                            const wb_table_wish *wish, uint32_t d, place at, const wb_table *table,
                            double *values) {
    const wb_pickle *p = &file->pickle;
    const bool last = d + 1 >= table->n_dims || d + 1 >= WB_TABLE_MAX_DIMS;
    size_t cells = 1;
    if (value->kind == WB_PICKLE_TENSOR)
        return read_tensor(file, &p->tensors[value->as.tensor], wish, d, at, table, values);
    if (!is_list(value) || value->as.items.n != table->shape[d])
        return wb_fail(WB_MISMATCH, "%s: expected a list of %zu %s as in the first", at.text, table->shape[d],
                       wish->units[wish->max_dims - table->n_dims + d]);
    for (uint32_t k = d + 1; k < table->n_dims && k < WB_TABLE_MAX_DIMS; k++) cells *= table->shape[k];
    uint32_t item = value->as.items.first;
    for (size_t i = 0; i < table->shape[d]; i++, item = p->items[item].next) {
        const wb_pickle_value *inner = &p->values[p->items[item].value];
        double *to = values ? values + i * cells : NULL;
        WB_TRY(last ? read_number(inner, wish, at, i, to)
                    : walk_value(file, inner, wish, d + 1, inside(at, i), table, to));
    }
    return WB_OK;
}

/* A pickle may name one list or tensor over and over: rather than numbers without end, at most one a byte of
 * the file. */
static wb_status check_cells(const wb_torch_file *file, const wb_table_wish *wish, const wb_table *table) {
    size_t left = file->zip.size;
    for (uint32_t d = 0; d < table->n_dims; d++) left /= table->shape[d] > 0 ? table->shape[d] : 1;
    if (left > 0) return WB_OK;
    return wb_fail(WB_CORRUPT, "%s: expected at most a number for each of the file's %zu bytes", wish->name,
                   file->zip.size);
}

static wb_status read_torch(const wb_torch_file *file, const wb_pickle_value *value,
                            const wb_table_wish *wish, wb_table *table) {
    WB_TRY(measure_value(file, value, wish, table));
    if (is_list(value)) WB_TRY(check_cells(file, wish, table));
    WB_TRY(walk_value(file, value, wish, 0, at_name(wish->name), table, NULL));
    WB_TRY(alloc_values(wish, table));
    return walk_value(file, value, wish, 0, at_name(wish->name), table, table->values);
}

wb_status wb_table_read(const wb_number_file *file, wb_number_node node, const wb_table_wish *wish,
                        wb_table *table_out) {
    wb_table table = {0};
    wb_status status;
    if (node.tree)
        status = read_tree(node.tree, wish, &table);
    else if (wb_number_is_array(node))
        status = read_torch(&file->torch, node.torch, wish, &table);
    else
        status = wb_fail(WB_CORRUPT, "%s: expected a tensor or a list, found something else", wish->name);
    if (status == WB_OK)
        *table_out = table;
    else
        free(table.values);
    return status;
}
