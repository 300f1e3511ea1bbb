/* diff_indexer.c - compares what the indexers of two dumps chose, a pair of records at a time; see diff.h.
 * Refuses: experts (diff_compare.c). */
#include "diff/diff.h"
#include "wb_check.h"

#include <string.h>

wb_status diff_open_indexers(diff *d) {
    d->n_indexers = wb_indexer_columns(d->model);
    return WB_OWN(&d->memory, d->indexers, d->n_indexers, "sums of indexers");
}

uint32_t diff_indexer_layer(const diff *d, uint32_t column) {
    return d->model->indexer_layers[wb_indexer_layer(d->model, column)];
}

static wb_status note(diff *d, const wb_record *r, uint32_t position, uint32_t column) {
    diff_place *place = &d->first_indexer;
    if (place->rid) return WB_OK;
    WB_TRY(WB_OWN(&d->memory, place->rid, strlen(r->rid) + 1, "a difference"));
    memcpy(place->rid, r->rid, strlen(r->rid));
    place->position = position;
    place->layer = diff_indexer_layer(d, column);
    return WB_OK;
}

/* A choice of nothing is all of it in the other one. */
static wb_status compare_row(diff *d, const wb_record *a, const wb_record *b, uint32_t p) {
    for (uint32_t s = 0; s < d->n_indexers; s++) {
        wb_indexer_choice x = {0}, y = {0};
        (void)wb_indexer_at(d->model, a->indexer, p, s, &x);
        (void)wb_indexer_at(d->model, b->indexer, p, s, &y);
        const uint32_t common = wb_indexer_common(x, y);
        const bool same = wb_indexer_same(x, y);
        d->indexers[s].rows++;
        d->indexers[s].same += same;
        d->indexers[s].overlap += x.count > 0 ? (double)common / (double)x.count : 1;
        if (!same) WB_TRY(note(d, a, p, s));
    }
    return WB_OK;
}

static bool has_row(const wb_record *r, uint32_t p) {
    return r->indexer && p >= r->indexer->start && p - r->indexer->start < r->indexer->rows;
}

wb_status diff_compare_indexers(diff *d, const wb_record *a, const wb_record *b, uint32_t n) {
    for (uint32_t p = 0; d->n_indexers > 0 && p < n; p++) {
        const bool of_a = has_row(a, p), of_b = has_row(b, p);
        d->indexer_only_a += of_a && !of_b;
        d->indexer_only_b += of_b && !of_a;
        d->indexer_rows += of_a && of_b;
        if (of_a && of_b) WB_TRY(compare_row(d, a, b, p));
    }
    return WB_OK;
}
