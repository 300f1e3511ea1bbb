/* pack_start.c - the packing to begin with: the longest sequence first, into the bin with the least attention
 * that has room; where that leaves one without room, into the fullest bin that has. As few micro-batches as
 * either needs. Refuses: routes. */
#include "pack_search.h"
#include "wb_check.h"

#include <stdlib.h>
#include <string.h>

typedef struct start {
    wb_owner memory;
    const pack_problem *p;
    uint32_t n_bins;
    const uint32_t *order; /* [n] */
    uint32_t *bins;        /* [n] of each sequence; the caller's */
    uint32_t *heap;        /* [n_bins] by attention, then number */
    uint32_t *aside;       /* [n_bins] taken from the heap without room */
    double *attention;     /* [n_bins] */
    int64_t *rows;         /* [n_bins] */
} start;

/* ---- the order ----------------------------------------------------------------------------------- */

typedef struct sort_key {
    uint32_t rows, number;
} sort_key;

static int by_rows(const void *a, const void *b) {
    const sort_key *x = a, *y = b;
    if (x->rows != y->rows) return x->rows < y->rows ? 1 : -1;
    return (x->number > y->number) - (x->number < y->number);
}

wb_status wb_pack_order(const pack_problem *p, uint32_t *order_out) {
    sort_key *keys;
    WB_TRY(WB_NEW(keys, p->n, "packing"));
    for (uint32_t i = 0; i < p->n; i++) keys[i] = (sort_key){p->rows[i], i};
    qsort(keys, p->n, sizeof *keys, by_rows);
    for (uint32_t i = 0; i < p->n; i++) order_out[i] = keys[i].number;
    free(keys);
    return WB_OK;
}

/* ---- the bins ------------------------------------------------------------------------------------ */

static bool is_less(const start *k, uint32_t a, uint32_t b) {
    if (k->attention[a] != k->attention[b]) return k->attention[a] < k->attention[b];
    return a < b;
}

static void sink(start *k, uint32_t n, uint32_t i) {
    const uint32_t bin = k->heap[i];
    for (uint32_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && is_less(k, k->heap[child + 1], k->heap[child])) child++;
        if (!is_less(k, k->heap[child], bin)) break;
        k->heap[i] = k->heap[child];
    }
    k->heap[i] = bin;
}

static void rise(start *k, uint32_t i) {
    const uint32_t bin = k->heap[i];
    for (; i > 0 && is_less(k, bin, k->heap[(i - 1) / 2]); i = (i - 1) / 2) k->heap[i] = k->heap[(i - 1) / 2];
    k->heap[i] = bin;
}

static void put(start *k, uint32_t bin, uint32_t sequence) {
    k->bins[sequence] = bin;
    k->rows[bin] += k->p->rows[sequence];
    k->attention[bin] += k->p->attention[sequence];
}

/* Into the bin with the least attention that has room; false where none has. */
static bool place(start *k, uint32_t sequence) {
    uint32_t n = k->n_bins, n_aside = 0;
    while (n > 0 && k->rows[k->heap[0]] + k->p->rows[sequence] > k->p->max_rows) {
        k->aside[n_aside++] = k->heap[0];
        k->heap[0] = k->heap[--n];
        if (n > 0) sink(k, n, 0);
    }
    if (n > 0) {
        put(k, k->heap[0], sequence);
        sink(k, n, 0);
    }
    for (uint32_t i = 0; i < n_aside; i++) {
        k->heap[n] = k->aside[i];
        rise(k, n++);
    }
    return n > n_aside;
}

/* Into the fullest bin that has room; false where none has. */
static bool squeeze(start *k, uint32_t sequence) {
    const int64_t most = k->p->max_rows - k->p->rows[sequence];
    uint32_t fullest = k->n_bins;
    for (uint32_t b = 0; b < k->n_bins; b++)
        if (k->rows[b] <= most && (fullest == k->n_bins || k->rows[b] > k->rows[fullest])) fullest = b;
    if (fullest == k->n_bins) return false;
    put(k, fullest, sequence);
    return true;
}

static bool all_have_room(start *k, bool (*find_room)(start *k, uint32_t sequence)) {
    memset(k->rows, 0, k->n_bins * sizeof *k->rows);
    memset(k->attention, 0, k->n_bins * sizeof *k->attention);
    for (uint32_t b = 0; b < k->n_bins; b++) k->heap[b] = b;
    for (uint32_t i = 0; i < k->p->n; i++)
        if (!find_room(k, k->order[i])) return false;
    return true;
}

/* Room for that many micro-batches. */
static wb_status reserve_bins(start *k, uint32_t n_micro_batches) {
    const char *what = "packing: bins";
    wb_owner_close(&k->memory);
    k->n_bins = n_micro_batches * k->p->n_ranks;
    WB_TRY(WB_OWN(&k->memory, k->heap, k->n_bins, what));
    WB_TRY(WB_OWN(&k->memory, k->aside, k->n_bins, what));
    WB_TRY(WB_OWN(&k->memory, k->attention, k->n_bins, what));
    return WB_OWN(&k->memory, k->rows, k->n_bins, what);
}

/* From the fewest micro-batches whose rows could hold all sequences, one more until each has found room: at
 * the latest with a bin for each sequence. */
static wb_status find_bins(start *k, uint32_t *n_micro_batches_out) {
    int64_t all = 0;
    for (uint32_t i = 0; i < k->p->n; i++) all += k->p->rows[i];
    const int64_t room = k->p->max_rows * (int64_t)k->p->n_ranks;
    for (uint32_t M = (uint32_t)((all + room - 1) / room);; M++) {
        WB_TRY(reserve_bins(k, M));
        if (!all_have_room(k, place) && !all_have_room(k, squeeze)) continue;
        *n_micro_batches_out = M;
        return WB_OK;
    }
}

wb_status wb_pack_start(const pack_problem *problem, const uint32_t *order, uint32_t *bins_out,
                        uint32_t *n_micro_batches_out) {
    start k = {.p = problem, .order = order, .bins = bins_out};
    const wb_status status = find_bins(&k, n_micro_batches_out);
    wb_owner_close(&k.memory);
    return status;
}
