/* import_mask.c - see import_mask.h. */
#include "import/import_mask.h"
#include "import/import_numbers.h"
#include "import/import_payload.h"
#include "import/import_tokens.h"
#include "wb_check.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

typedef struct mask {
    uint32_t *ids, *ends; /* ends: [n] of the rows */
    size_t n_ids;
} mask;

static int by_value(const void *a, const void *b) {
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* ---- lists ---------------------------------------------------------------------------------------- */

static wb_status add_row(const import_value *row, size_t i, mask *m) {
    if (row->kind != IMPORT_LIST)
        return wb_fail(WB_CORRUPT, "sampling_mask[%zu]: expected a list of token ids", i);
    for (size_t k = 0; k < row->length; k++) {
        const import_value id = wb_import_at(row, k);
        if (id.kind != IMPORT_INTEGER || id.integer < 0 || id.integer > UINT32_MAX)
            return wb_fail(WB_CORRUPT, "sampling_mask[%zu][%zu]: expected a token id", i, k);
        m->ids[m->n_ids++] = (uint32_t)id.integer;
    }
    m->ends[i] = (uint32_t)m->n_ids;
    return WB_OK;
}

static wb_status read_lists(const import_value *list, wb_owner *owner, mask *m) {
    size_t total = 0;
    for (size_t i = 0; i < list->length; i++) total += wb_import_at(list, i).length;
    if (total > UINT32_MAX) return wb_fail(WB_CORRUPT, "sampling_mask: expected fewer than 2^32 ids");
    WB_TRY(WB_OWN(owner, m->ids, total, "sampling_mask"));
    WB_TRY(WB_OWN(owner, m->ends, list->length, "sampling_mask"));
    for (size_t i = 0; i < list->length; i++) {
        const import_value row = wb_import_at(list, i);
        WB_TRY(add_row(&row, i, m));
    }
    return WB_OK;
}

/* ---- one array ------------------------------------------------------------------------------------ */

/* A list, an array, or an envelope of int32. */
static wb_status numbers_of(const import_value *v, const char *what, wb_owner *owner, uint32_t **out,
                            size_t *n_out) {
    import_value numbers = *v;
    if (v->kind != IMPORT_LIST && v->kind != IMPORT_ARRAY) {
        import_payload payload;
        WB_TRY(wb_import_open_payload(v, (import_type){'i', 4, false}, owner, &payload));
        numbers = wb_import_of_array(&payload.array);
    }
    *n_out = numbers.length;
    return wb_import_u32(&numbers, what, owner, out);
}

static import_value first_of(const import_value *map, const char *const *keys) {
    import_value v = {0};
    for (; *keys && v.kind == IMPORT_NONE; keys++) v = wb_import_get(map, *keys);
    return v;
}

/* Offsets of n + 1 numbers begin with 0; ends of n do not; counts are of each row alone. */
static wb_status set_ends(uint32_t *numbers, size_t n_numbers, bool are_counts, size_t n, mask *m) {
    const bool has_zero = !are_counts && n_numbers == n + 1 && numbers[0] == 0;
    uint64_t end = 0;
    if (n_numbers != n && !has_zero)
        return wb_fail(WB_CORRUPT, "sampling_mask: expected rows of %zu new tokens, found %zu", n, n_numbers);
    m->ends = numbers + has_zero;
    for (size_t i = 0; i < n; i++) {
        const uint64_t next = are_counts ? end + m->ends[i] : m->ends[i];
        if (next < end || next > m->n_ids)
            return wb_fail(WB_CORRUPT,
                           "sampling_mask: row %zu: expected an end of %" PRIu64 "..%zu, found %" PRIu64, i,
                           end, m->n_ids, next);
        m->ends[i] = (uint32_t)(end = next);
    }
    if (end != m->n_ids)
        return wb_fail(WB_CORRUPT, "sampling_mask: expected %zu ids in its rows, found %" PRIu64, m->n_ids,
                       end);
    return WB_OK;
}

static wb_status read_rows(const import_value *map, size_t n, wb_owner *owner, mask *m) {
    static const char *const id_keys[] = {"ids", "indices", "token_ids", "values", NULL},
                             *const end_keys[] = {"indptr", "offsets", "ends", "row_offsets", NULL},
                             *const count_keys[] = {"counts", "lengths", NULL};
    const import_value ids = first_of(map, id_keys), ends = first_of(map, end_keys),
                       counts = first_of(map, count_keys);
    const import_value rows = ends.kind != IMPORT_NONE ? ends : counts;
    uint32_t *numbers = NULL;
    size_t n_numbers = 0;
    if (ids.kind == IMPORT_NONE || rows.kind == IMPORT_NONE)
        return wb_fail(WB_CORRUPT, "sampling_mask: expected lists, or ids and indptr or counts");
    WB_TRY(numbers_of(&ids, "sampling_mask ids", owner, &m->ids, &m->n_ids));
    WB_TRY(numbers_of(&rows, "sampling_mask rows", owner, &numbers, &n_numbers));
    return set_ends(numbers, n_numbers, ends.kind == IMPORT_NONE, n, m);
}

wb_status wb_import_read_mask(const import_request *request, wb_owner *owner, wb_record *record) {
    static const char *const names[] = {"sampling_mask", "sampling_masks", NULL};
    const import_value value = wb_import_field(request, IMPORT_WANT_ANY, names, NULL);
    const uint32_t n = record->n_tokens - record->prompt_len;
    mask m = {0};
    if (value.kind == IMPORT_NONE) return WB_OK;
    if (value.kind == IMPORT_LIST && value.length != n)
        return wb_fail(WB_CORRUPT, "sampling_mask: expected rows of %" PRIu32 " new tokens, found %zu", n,
                       value.length);
    WB_TRY(value.kind == IMPORT_LIST ? read_lists(&value, owner, &m) : read_rows(&value, n, owner, &m));
    if (n == 0) return WB_OK;
    for (uint32_t i = 0, from = 0; i < n; from = m.ends[i++])
        qsort(m.ids + from, m.ends[i] - from, sizeof *m.ids, by_value);
    record->mask_ids = m.ids;
    record->mask_ends = m.ends;
    return WB_OK;
}
