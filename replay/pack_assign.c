/* pack_assign.c - all sequences to their micro-batches and ranks, update by update. Owns: which of a
 * micro-batch's bins is which rank, for which any order costs the same: as many rows as possible stay where
 * they are. */
#include "pack_search.h"
#include "pack_state.h"

#include <stdlib.h>
#include <string.h>

/* One update's sequences. */
typedef struct update_part {
    wb_owner memory;
    uint32_t n;
    uint32_t *places;  /* [n] their numbers */
    uint32_t *rows;    /* [n] */
    double *attention; /* [n] */
    int32_t *sketches; /* [n][width] */
    uint32_t *bins;    /* [n] */
} update_part;

static double attention_of(const wb_pack_cost *cost, uint32_t rows) {
    return rows * cost->per_row + 0.5 * rows * (rows + 1.0) * cost->per_pair;
}

static wb_status part_open(const wb_pack *p, const int32_t *all, int32_t update, update_part *part) {
    const size_t width = p->width, length = PACK_HEADER + width;
    const char *what = "packing: an update";
    for (uint32_t i = 0; i < p->n; i++) part->n += all[i * length + PACK_UPDATE] == update;
    WB_TRY(WB_OWN(&part->memory, part->places, part->n, what));
    WB_TRY(WB_OWN(&part->memory, part->rows, part->n, what));
    WB_TRY(WB_OWN(&part->memory, part->attention, part->n, what));
    WB_TRY(WB_OWN(&part->memory, part->bins, part->n, what));
    WB_TRY(WB_OWN_ALLOC(&part->memory, part->sketches, part->n, width * sizeof *all, what));
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->n; i++) {
        if (all[i * length + PACK_UPDATE] != update) continue;
        part->places[n] = i;
        part->rows[n] = p->places[i].rows;
        part->attention[n] = attention_of(&p->options.cost, part->rows[n]);
        memcpy(part->sketches + n * width, all + i * length + PACK_HEADER, width * sizeof *all);
        n++;
    }
    return WB_OK;
}

/* ---- which rank a bin is ------------------------------------------------------------------------- */

/* Rows that a bin has of a rank's sequences. */
typedef struct stay {
    uint32_t bin, home;
    uint64_t rows;
} stay;

static int by_bin(const void *a, const void *b) {
    const stay *x = a, *y = b;
    if (x->bin != y->bin) return x->bin < y->bin ? -1 : 1;
    return (x->home > y->home) - (x->home < y->home);
}

static int by_rows(const void *a, const void *b) {
    const stay *x = a, *y = b;
    if (x->rows != y->rows) return x->rows < y->rows ? 1 : -1;
    return by_bin(a, b);
}

static uint32_t merge(stay *list, uint32_t n) {
    uint32_t merged = 0;
    qsort(list, n, sizeof *list, by_bin);
    for (uint32_t i = 0; i < n; i++) {
        if (merged > 0 && by_bin(&list[merged - 1], &list[i]) == 0)
            list[merged - 1].rows += list[i].rows;
        else
            list[merged++] = list[i];
    }
    return merged;
}

/* rank_of_bin_out [bins]: in each micro-batch another one for each bin; most rows first. */
static void name_ranks(uint32_t n_ranks, uint32_t n_micro_batches, stay *list, uint32_t n, bool *taken,
                       uint32_t *rank_of_bin_out) {
    for (uint32_t b = 0; b < n_ranks * n_micro_batches; b++) rank_of_bin_out[b] = UINT32_MAX;
    n = merge(list, n);
    qsort(list, n, sizeof *list, by_rows);
    for (uint32_t i = 0; i < n; i++) {
        bool *is_taken = taken + list[i].bin / n_ranks * n_ranks + list[i].home;
        if (*is_taken || rank_of_bin_out[list[i].bin] != UINT32_MAX) continue;
        *is_taken = true;
        rank_of_bin_out[list[i].bin] = list[i].home;
    }
    for (uint32_t m = 0; m < n_micro_batches; m++)
        for (uint32_t i = 0, r = 0; i < n_ranks; i++) {
            uint32_t *rank = &rank_of_bin_out[m * n_ranks + i];
            if (*rank != UINT32_MAX) continue;
            while (taken[m * n_ranks + r]) r++;
            *rank = r++;
        }
}

static wb_status take_bins(wb_pack *p, update_part *part, uint32_t first, uint32_t n_micro_batches) {
    const size_t n_bins = (size_t)n_micro_batches * p->n_ranks;
    uint32_t *rank_of_bin;
    bool *taken;
    stay *list;
    WB_TRY(WB_OWN(&part->memory, rank_of_bin, n_bins, "packing: ranks"));
    WB_TRY(WB_OWN(&part->memory, taken, n_bins, "packing: ranks"));
    WB_TRY(WB_OWN(&part->memory, list, part->n, "packing: ranks"));
    for (uint32_t i = 0; i < part->n; i++)
        list[i] = (stay){part->bins[i], p->places[part->places[i]].home, part->rows[i]};
    name_ranks(p->n_ranks, n_micro_batches, list, part->n, taken, rank_of_bin);
    for (uint32_t i = 0; i < part->n; i++) {
        wb_pack_place *place = &p->places[part->places[i]];
        place->rank = rank_of_bin[part->bins[i]];
        place->micro_batch = first + part->bins[i] / p->n_ranks;
        p->stats.moved_sequences += place->rank != place->home;
    }
    return WB_OK;
}

/* ---- an update ----------------------------------------------------------------------------------- */

static wb_status assign_update(wb_pack *p, uint32_t update, update_part *part, pack_answer *sum) {
    const wb_route_model *model = &p->model;
    const pack_problem problem = {
        .n = part->n,
        .n_ranks = p->n_ranks,
        .max_rows = p->options.max_rows,
        .rows = part->rows,
        .attention = part->attention,
        .width = p->width,
        .sketches = part->sketches,
        .unevenness = wb_pack_unevenness(p->options.cost.per_choice, p->n_ranks, model->n_moe_layers),
        .seed = update};
    pack_answer answer;
    WB_TRY(wb_pack_search(&problem, part->bins, &answer));
    WB_TRY(take_bins(p, part, p->first[update], answer.n_micro_batches));
    p->first[update + 1] = p->first[update] + answer.n_micro_batches;
    sum->mean_attention += answer.mean_attention;
    sum->max_attention += answer.max_attention;
    sum->distance_before += answer.distance_before;
    sum->distance += answer.distance;
    return WB_OK;
}

wb_status wb_pack_assign(wb_pack *p, const int32_t *all) {
    pack_answer sum = {0};
    for (uint32_t u = 0; u < p->options.n_updates; u++) {
        update_part part = {0};
        wb_status status = part_open(p, all, (int32_t)u, &part);
        if (status == WB_OK) status = assign_update(p, u, &part, &sum);
        wb_owner_close(&part.memory);
        WB_TRY(status);
    }
    p->n_micro_batches = p->first[p->options.n_updates];
    p->stats.attention = sum.max_attention > 0 ? sum.mean_attention / sum.max_attention : 1;
    p->stats.unevenness = sum.distance_before > 0 ? sum.distance / sum.distance_before : 1;
    return WB_OK;
}
