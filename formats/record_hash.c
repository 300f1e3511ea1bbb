/* record_hash.c - whether the rows of a record go, in hash-routed layers, where the tables of the model send
 * its tokens. Refuses: where tables come from. */
#include "wb_check.h"
#include "wb_formats.h"

#include <inttypes.h>
#include <stdio.h>

/* "1 2 3" of K ids, cut where there is no more room. */
typedef struct id_list {
    char text[256];
} id_list;

static void add_id(id_list *list, size_t *used, uint32_t id) {
    const size_t room = sizeof list->text - *used;
    const int n = snprintf(list->text + *used, room, *used > 0 ? " %" PRIu32 : "%" PRIu32, id);
    if (n > 0) *used += (size_t)n < room ? (size_t)n : room - 1;
}

static wb_status wrong_row(const wb_route_model *m, const wb_hash_routes *hash, uint32_t i,
                           const wb_row_walk *walk, const int32_t *expected) {
    const wb_record *record = walk->record;
    const uint32_t l = hash->hash_layers[i];
    id_list found = {""}, by_table = {""};
    size_t n_found = 0, n_expected = 0;
    for (uint32_t k = 0; k < wb_route_layer_k(m, l); k++) {
        add_id(&found, &n_found,
               wb_route_id(walk->row, wb_route_dtype(m->num_experts), wb_route_layer_first(m, l) + k));
        add_id(&by_table, &n_expected, (uint32_t)expected[k]);
    }
    return wb_fail(WB_MISMATCH,
                   "record %s: position %" PRIu32 ", MoE layer %" PRIu32 " (model layer %" PRIu32
                   "), which is routed by a table: expected experts %s for token %" PRIu32 ", found %s",
                   record->rid, walk->position, l, m->moe_layers[l], by_table.text,
                   record->tokens[walk->position], found.text);
}

static bool follows(const wb_route_model *m, uint32_t l, const void *row, const int32_t *expected) {
    const size_t first = wb_route_layer_first(m, l);
    for (uint32_t k = 0; k < wb_route_layer_k(m, l); k++)
        if (wb_route_id(row, wb_route_dtype(m->num_experts), first + k) != (uint32_t)expected[k])
            return false;
    return true;
}

wb_status wb_record_check_hash(const wb_route_model *m, const wb_hash_routes *hash, const wb_record *record) {
    for (wb_row_walk walk = wb_rows_of(m, record); wb_row_next(&walk);) {
        const uint32_t token = record->tokens[walk.position];
        if (token >= hash->vocab_size)
            return wb_fail(WB_MISMATCH,
                           "record %s: position %" PRIu32 ": expected a token below %" PRIu32
                           ", found %" PRIu32,
                           record->rid, walk.position, hash->vocab_size, token);
        for (uint32_t i = 0; i < hash->n_hash_layers; i++) {
            const int32_t *expected = hash->ids + ((size_t)i * hash->vocab_size + token) * m->top_k;
            if (!follows(m, hash->hash_layers[i], walk.row, expected))
                return wrong_row(m, hash, i, &walk, expected);
        }
    }
    return WB_OK;
}
