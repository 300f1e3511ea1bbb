/* import_rows.c - see import_rows.h: shapes, and ids into the type of E. What no router makes is in
 * import_doubt.c. */
#include "import/import_rows.h"
#include "wb_check.h"

#include <inttypes.h>
#include <string.h>

wb_status wb_import_rows_open(const wb_route_model *model, const import_rules *rules, uint32_t start,
                              uint32_t rows, wb_owner *owner, import_rows *rows_out) {
    import_rows r = {.model = model, .rules = rules, .start = start, .rows = rows, .missing = rows};
    r.dtype = wb_route_dtype(model->num_experts);
    WB_TRY(WB_OWN_ALLOC(owner, r.ids, rows + (size_t)1, wb_route_row_bytes(model), "rows"));
    WB_TRY(WB_OWN(owner, r.valid, (rows + 7u) / 8, "rows"));
    *rows_out = r;
    return WB_OK;
}

/* ---- which axis is which -------------------------------------------------------------------------- */

/* How a tape lies in its array: row r, layer l, choice k is element (r * layers + l) * K + k. */
typedef struct tape_shape {
    size_t rows, layers;
} tape_shape;

static wb_status refuse_shape(const import_rows *r, const import_tape *t, const char *what) {
    char text[IMPORT_SHAPE_TEXT];
    wb_import_show_shape(t->array, text);
    return wb_fail(WB_MISMATCH,
                   "%s: expected [%zu rows, %" PRIu32 " hidden or %" PRIu32 " MoE layers, %" PRIu32
                   " choices], found %s",
                   what, t->rows, r->model->num_hidden_layers, r->model->n_moe_layers, r->model->top_k, text);
}

static bool has_rows(const import_tape *t, size_t rows) {
    return rows == t->rows || ((t->may_have_last || t->drop_last) && rows == t->rows + 1);
}

/* Without a shape the number of elements has to be that of the rows. */
static bool split_flat(const import_rows *r, const import_tape *t, size_t layers, tape_shape *shape_out) {
    const size_t row = layers * r->model->top_k;
    if (t->array->count % row != 0 || !has_rows(t, t->array->count / row)) return false;
    *shape_out = (tape_shape){t->array->count / row, layers};
    return true;
}

static wb_status find_shape(const import_rows *r, const import_tape *t, tape_shape *shape_out) {
    const wb_route_model *m = r->model;
    const import_array *a = t->array;
    const size_t *shape = a->shape, K = m->top_k;
    uint32_t n_dims = a->n_dims;
    if (n_dims == 4 && shape[0] == 1) {
        shape++;
        n_dims--;
    }
    if (n_dims == 1) {
        if (split_flat(r, t, m->num_hidden_layers, shape_out) || split_flat(r, t, m->n_moe_layers, shape_out))
            return WB_OK;
        return refuse_shape(r, t, "elements without a shape");
    }
    if (n_dims < 2 || n_dims > 3) return refuse_shape(r, t, "dimensions");
    const size_t layers = n_dims == 3 ? shape[1] : shape[1] / K;
    if (n_dims == 3 ? shape[2] != K : shape[1] % K != 0) return refuse_shape(r, t, "choices of a row");
    if (layers != m->num_hidden_layers && layers != m->n_moe_layers) return refuse_shape(r, t, "layers");
    if (!has_rows(t, shape[0])) return refuse_shape(r, t, "rows");
    *shape_out = (tape_shape){shape[0], layers};
    return WB_OK;
}

static wb_status check_type(const import_rows *r, const import_array *a) {
    const uint32_t E = r->model->num_experts;
    if (wb_import_has_integers(a) && a->type.kind != 'b' && wb_import_type_max(a->type) >= (int64_t)E - 1)
        return WB_OK;
    return wb_fail(WB_MISMATCH, "expected integers that hold experts 0..%" PRIu32 ", found %s", E - 1,
                   wb_import_type_name(a->type));
}

/* ---- ids ------------------------------------------------------------------------------------------ */

typedef struct row_look {
    bool all_minus_one, all_zero;
} row_look;

static size_t layer_of(const import_rows *r, tape_shape shape, uint32_t l) {
    return shape.layers == r->model->n_moe_layers ? l : r->model->moe_layers[l];
}

/* Behind the choices of a layer that has fewer than others stands -1, or the zeros of a missing row. */
static wb_status check_filler(const import_rows *r, const import_array *a, size_t first, uint32_t l,
                              uint32_t position) {
    const uint32_t K = wb_route_layer_k(r->model, l);
    for (uint32_t k = K; k < r->model->top_k; k++) {
        const int64_t found = wb_import_integer(a, first + k);
        if (found == -1 || (found == 0 && r->rules->zeros_are_missing)) continue;
        return wb_fail(WB_INVALID_ARGUMENT,
                       "position %" PRIu32 ", MoE layer %" PRIu32 " (model layer %" PRIu32
                       "): expected -1 behind its %" PRIu32 " choices, found %" PRId64,
                       position, l, r->model->moe_layers[l], K, found);
    }
    return WB_OK;
}

/* Writes row `row` of the array to `out` and says how it looks; ids that are no experts are refused, -1 not
 * yet. */
static wb_status take_row(const import_rows *r, const import_array *a, tape_shape shape, size_t row,
                          uint32_t position, uint8_t *out, row_look *look_out) {
    const uint32_t E = r->model->num_experts;
    size_t to = 0;
    bool any_minus_one = false, any_id = false, any_other = false;
    for (uint32_t l = 0; l < r->model->n_moe_layers; l++) {
        const size_t first = (row * shape.layers + layer_of(r, shape, l)) * r->model->top_k;
        WB_TRY(check_filler(r, a, first, l, position));
        for (uint32_t k = 0; k < wb_route_layer_k(r->model, l); k++) {
            const int64_t id = wb_import_integer(a, first + k);
            const bool is_missing = id == -1 && r->rules->minus_one_is_missing;
            if (!is_missing && (id < 0 || id >= E))
                return wb_fail(WB_INVALID_ARGUMENT,
                               "position %" PRIu32 ", MoE layer %" PRIu32 " (model layer %" PRIu32
                               "): expected experts 0..%" PRIu32 ", found %" PRId64,
                               position, l, r->model->moe_layers[l], E - 1, id);
            any_minus_one |= is_missing;
            any_id |= !is_missing;
            any_other |= !is_missing && id != 0;
            wb_route_id_set(out, r->dtype, to++, is_missing ? 0 : (uint32_t)id);
        }
    }
    if (any_minus_one && any_id)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "position %" PRIu32
                       ": expected a row that is there or all -1, found one that is -1 in part",
                       position);
    *look_out = (row_look){!any_id, any_id && !any_other};
    return WB_OK;
}

static wb_status put_row(import_rows *r, const import_array *a, tape_shape shape, size_t row,
                         uint32_t position) {
    const size_t at = position - r->start;
    row_look look;
    WB_TRY(take_row(r, a, shape, row, position, r->ids + at * wb_route_row_bytes(r->model), &look));
    const bool is_zero = look.all_zero && r->rules->zeros_are_missing && r->model->top_k > 1;
    r->zeros += is_zero;
    if (is_zero || look.all_minus_one) return WB_OK;
    wb_row_set_valid(r->valid, at, true);
    r->missing--;
    return WB_OK;
}

/* The row of the token that was never fed. */
static wb_status check_last(const import_rows *r, const import_tape *t, tape_shape shape, size_t row,
                            uint32_t position) {
    uint8_t *scratch = r->ids + r->rows * wb_route_row_bytes(r->model);
    row_look look;
    WB_TRY(take_row(r, t->array, shape, row, position, scratch, &look));
    if (look.all_minus_one || (look.all_zero && r->rules->last_row == IMPORT_LAST_ZERO)) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT,
                   "position %" PRIu32 ": expected no row of the last token, which was never fed, found one",
                   position);
}

/* Rows of padded arrays lie where the tokens do. */
static wb_status fill_padded(import_rows *r, const import_tape *t, tape_shape shape,
                             const import_tokens *tokens) {
    for (uint32_t p = r->start; p < r->start + r->rows; p++)
        WB_TRY(put_row(r, t->array, shape, tokens->places[p], p));
    const size_t last = tokens->n > 0 ? tokens->places[tokens->n - 1] : shape.rows;
    return last < shape.rows ? check_last(r, t, shape, last, tokens->n - 1) : WB_OK;
}

wb_status wb_import_rows_fill(import_rows *rows, const import_tape *tape, const import_tokens *tokens) {
    tape_shape shape = {0};
    WB_TRY(check_type(rows, tape->array));
    WB_TRY(find_shape(rows, tape, &shape));
    if (tokens->places) return fill_padded(rows, tape, shape, tokens);
    const uint32_t n = (uint32_t)tape->rows;
    for (uint32_t i = 0; i < n; i++) WB_TRY(put_row(rows, tape->array, shape, i, tape->start + i));
    if (shape.rows == tape->rows || tape->drop_last) return WB_OK;
    return check_last(rows, tape, shape, n, tape->start + n);
}
