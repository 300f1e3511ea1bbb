/* import_indexer.c - see import_indexer.h. The field is an array [rows, layers, k] of int32, in base64
 * without a shape; -1 fills a choice of fewer than k. Positions come in any order and are sorted. Refuses:
 * what a choice cannot be for other reasons (wb_record_check). */
#include "import/import_indexer.h"
#include "import/import_payload.h"
#include "wb_check.h"

#include <inttypes.h>
#include <stdlib.h>

/* Where cells lie in the array: of `layers` layers, k positions each. */
typedef struct choices {
    const import_array *array;
    uint32_t rows, layers, k;
} choices;

/* The array's layer that has a column: all hidden layers are there, those of the list, or the columns. */
static uint32_t layer_of(const wb_route_model *m, uint32_t layers, uint32_t column) {
    const uint32_t i = wb_indexer_layer(m, column);
    if (layers == wb_indexer_columns(m)) return column;
    return layers == m->n_indexer_layers ? i : m->indexer_layers[i];
}

static wb_status find_choices(const import_request *r, const wb_route_model *m, uint32_t rows,
                              const import_array *array, choices *out) {
    static const char *const names[] = {"indexer_topk_num_layers", NULL};
    const import_value field = wb_import_field(r, IMPORT_WANT_INTEGER, names, NULL);
    const uint32_t columns = wb_indexer_columns(m);
    const int64_t layers = field.kind == IMPORT_INTEGER ? field.integer
                           : array->n_dims == 3         ? (int64_t)array->shape[1]
                                                        : 0;
    if (field.kind != IMPORT_INTEGER && layers == 0)
        return wb_fail(WB_MISMATCH, "indexer_topk_num_layers: expected a number of layers, found none");
    if (layers != columns && layers != m->n_indexer_layers && layers != m->num_hidden_layers)
        return wb_fail(WB_MISMATCH,
                       "indexer_topk_num_layers: expected %" PRIu32 " hidden layers, %" PRIu32
                       " that use an indexer or %" PRIu32 " that have one, found %" PRId64,
                       m->num_hidden_layers, m->n_indexer_layers, columns, layers);
    const size_t cells = (size_t)rows * (size_t)layers, k = cells > 0 ? array->count / cells : 0;
    if (!wb_import_has_integers(array) || (array->n_dims == 3 && array->shape[0] != rows) || k < 1 ||
        k > m->indexer_k || k * cells != array->count)
        return wb_fail(WB_MISMATCH,
                       "indexer_topk: expected integers of %" PRIu32 " rows, %" PRId64
                       " layers and up to %" PRIu32 " positions, found %zu elements",
                       rows, layers, m->indexer_k, array->count);
    *out = (choices){array, rows, (uint32_t)layers, (uint32_t)k};
    return WB_OK;
}

static int ascending(const void *a, const void *b) {
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* The positions of one cell from element `first` on, sorted; their number goes to *count_out. Which of them
 * the token sees, and how many it should have, is for wb_record_check. */
static wb_status take_cell(const choices *c, size_t first, uint32_t position, uint32_t *positions,
                           uint32_t *count_out) {
    uint32_t n = 0;
    for (uint32_t j = 0; j < c->k; j++) {
        const int64_t found = wb_import_integer(c->array, first + j);
        if (found < -1 || found > INT32_MAX)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "indexer_topk: position %" PRIu32 ": expected -1..%d, found %" PRId64, position,
                           INT32_MAX, found);
        if (found >= 0) positions[n++] = (uint32_t)found;
    }
    qsort(positions, n, sizeof *positions, ascending);
    for (uint32_t j = 1; j < n; j++)
        if (positions[j] == positions[j - 1])
            return wb_fail(WB_INVALID_ARGUMENT,
                           "indexer_topk: position %" PRIu32 ": %" PRIu32 " is chosen twice", position,
                           positions[j]);
    *count_out = n;
    return WB_OK;
}

static wb_status take_rows(const choices *c, const wb_route_model *m, uint32_t start, wb_owner *owner,
                           wb_indexer_rows **rows_out) {
    const uint32_t columns = wb_indexer_columns(m);
    const size_t cells = (size_t)c->rows * columns;
    wb_indexer_rows *rows = NULL;
    uint32_t *counts = NULL, *positions = NULL, *layer = NULL; /* layer: [columns] */
    uint64_t *ends = NULL, at = 0;
    WB_TRY(WB_OWN(owner, rows, 1, "indexer_topk"));
    WB_TRY(WB_OWN(owner, layer, columns, "indexer_topk"));
    WB_TRY(WB_OWN(owner, counts, cells, "indexer_topk"));
    WB_TRY(WB_OWN(owner, ends, cells, "indexer_topk"));
    WB_TRY(WB_OWN_ALLOC(owner, positions, cells * c->k + 1, sizeof *positions, "indexer_topk"));
    for (uint32_t column = 0; column < columns; column++) layer[column] = layer_of(m, c->layers, column);
    for (size_t cell = 0; cell < cells; cell++) {
        const size_t row = cell / columns;
        WB_TRY(take_cell(c, (row * c->layers + layer[cell % columns]) * c->k, start + (uint32_t)row,
                         positions + at, &counts[cell]));
        ends[cell] = at += counts[cell];
    }
    *rows = (wb_indexer_rows){start, c->rows, counts, ends, positions};
    *rows_out = rows;
    return WB_OK;
}

wb_status wb_import_read_indexer(const import_request *request, const wb_route_model *model,
                                 const import_tokens *tokens, uint32_t start, wb_owner *owner,
                                 wb_record *record, bool *left_out) {
    static const char *const names[] = {"indexer_topk", "rollout_indexer_topk", NULL};
    const import_value field = wb_import_field(request, IMPORT_WANT_ANY, names, NULL);
    const uint32_t fed = tokens->n > 0 ? tokens->n - 1 : 0;
    import_payload payload;
    choices c = {0};
    wb_indexer_rows *rows = NULL;
    *left_out = field.kind != IMPORT_NONE && model->n_indexer_layers == 0;
    if (field.kind == IMPORT_NONE || *left_out || start >= fed) return WB_OK;
    const wb_status status = wb_import_open_payload(&field, (import_type){'i', 4, false}, owner, &payload);
    if (status != WB_OK) return wb_fail_context(status, "indexer_topk");
    WB_TRY(find_choices(request, model, fed - start, &payload.array, &c));
    WB_TRY(take_rows(&c, model, start, owner, &rows));
    record->indexer = rows;
    return WB_OK;
}
