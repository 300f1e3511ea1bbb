/* uneven.c - starts for ranks with different numbers of slots; see uneven.h.
 *
 * A rank of one slot is as loaded as the others only under a share as large as the mean, which few experts
 * have. So each start sets a maximum, gives the ranks of one slot to those experts whose shares come nearest
 * to it, and deals the others out to the other ranks, to more or fewer of their slots. */
#include "solve/uneven.h"

#include <math.h>

enum { TARGETS = 10, FILLS = 8 };
static const double STEP = 0.015;                     /* from one maximum to the next, in means */
static const double ROUNDING = 1e-9, ENOUGH = 0.9998; /* balancedness that needs no other start */

typedef struct starts {
    wb_packing *packing;
    int64_t end;          /* trials at which to stop */
    double best;          /* the lowest maximum so far; its packing is saved in the search */
    uint32_t n_single;    /* ranks of one slot */
    uint32_t *ranks;      /* [cap] live ranks with slots, those of fewest first */
    uint32_t *candidates; /* [E] experts, those that waste least first */
    double *waste;        /* [E] what a rank with one share of the expert lacks to the maximum */
} starts;

bool wb_uneven(const wb_search *s) {
    const uint32_t *slots = s->frame->slots_of_rank;
    uint32_t live = WB_NO_RANK;
    for (uint32_t r = 0; r < s->n_ranks; r++) {
        if (s->frame->dead[r]) continue;
        if (live != WB_NO_RANK && slots[r] != slots[live]) return true;
        live = r;
    }
    return false;
}

/* ---- one start ------------------------------------------------------------------------------- */

static void keep_better(starts *st) {
    wb_search *s = st->packing->search;
    double max = s->rank_load[wb_search_hottest(s)];
    s->trials -= s->n_live;
    if (max >= st->best) return;
    st->best = max;
    wb_search_save(s);
    if (max <= s->mean / ENOUGH) st->end = INT64_MAX;
}

static bool wastes_less(const void *ctx, uint32_t a, uint32_t b) {
    const double *waste = ctx;
    return waste[a] != waste[b] ? waste[a] < waste[b] : a < b;
}

/* The replicas that an expert needs under the maximum, which is 0 where there is no load. */
static uint32_t needed(const wb_search *s, uint32_t expert, double max) {
    const double n = max > 0 ? ceil(s->loads[expert] / max * (1 - ROUNDING)) : 1;
    return n < 1 ? 1 : n > s->cap ? s->cap : (uint32_t)n;
}

/* Marks experts until their replicas take the ranks of one slot; returns the ranks that they take. One rank
 * at least is left for the others. */
static uint32_t choose_alone(starts *st, double max, uint32_t *n_alone_out) {
    wb_search *s = st->packing->search;
    wb_heap heap = {.items = st->candidates, .before = wastes_less, .ctx = st->waste};
    uint32_t taken = 0, n_alone = 0;
    for (uint32_t e = 0; e < s->n_experts; e++) {
        st->waste[e] = max - s->loads[e] / needed(s, e, max);
        wb_heap_push(&heap, e);
    }
    for (; heap.n > 0 && taken < st->n_single; wb_heap_pop(&heap)) {
        uint32_t e = heap.items[0], n = needed(s, e, max);
        if (taken + n >= s->cap) continue;
        st->packing->alone[e] = true;
        s->count[e] = n;
        s->share[e] = s->loads[e] / n;
        taken += n;
        n_alone++;
    }
    *n_alone_out = n_alone;
    return taken;
}

/* Packs the experts that are not alone into the other ranks, first into all their slots, in the end into one
 * of a rank. */
static void deal_others(starts *st, uint32_t taken, uint32_t n_others) {
    wb_packing *p = st->packing;
    wb_search *s = p->search;
    uint32_t slots = 0, ranks = s->cap - taken;
    for (uint32_t i = taken; i < s->cap; i++) slots += s->frame->slots_of_rank[st->ranks[i]];
    const uint32_t min = n_others > ranks ? n_others : ranks;
    if (slots < min) return;
    for (uint32_t i = 0; i <= FILLS && s->trials > st->end; i++) {
        wb_choose_counts(p, slots - (uint32_t)((uint64_t)(slots - min) * i / FILLS), ranks);
        wb_pack(p);
        keep_better(st);
    }
}

static void start_at(starts *st, double max) {
    wb_packing *p = st->packing;
    const uint32_t E = p->search->n_experts;
    uint32_t n_alone = 0, taken = choose_alone(st, max, &n_alone);
    deal_others(st, taken, E - n_alone);
    for (uint32_t e = 0; e < E; e++) p->alone[e] = false;
}

/* ---- all of them ----------------------------------------------------------------------------- */

static bool fewer_slots(const void *ctx, uint32_t a, uint32_t b) {
    const uint32_t *slots = ctx;
    return slots[a] != slots[b] ? slots[a] < slots[b] : a < b;
}

static void sort_ranks(starts *st) {
    const wb_search *s = st->packing->search;
    const uint32_t *slots = s->frame->slots_of_rank;
    wb_heap heap = {.items = st->ranks, .before = fewer_slots, .ctx = slots};
    for (uint32_t r = 0; r < s->n_ranks; r++) {
        if (s->frame->dead[r] || slots[r] == 0) continue;
        st->n_single += slots[r] == 1;
        wb_heap_push(&heap, r);
    }
    wb_heap_sort(&heap);
}

wb_status wb_place_uneven(wb_packing *p, int64_t trials) {
    wb_search *s = p->search;
    starts st = {.packing = p, .end = s->trials - trials, .best = INFINITY};
    WB_TRY(WB_OWN(&s->memory, st.ranks, s->n_ranks, "uneven"));
    WB_TRY(WB_OWN(&s->memory, st.candidates, s->n_experts, "uneven"));
    WB_TRY(WB_OWN(&s->memory, st.waste, s->n_experts, "uneven"));
    sort_ranks(&st);
    keep_better(&st);
    deal_others(&st, 0, s->n_experts);
    for (int i = 0; i < TARGETS && st.n_single > 0; i++) start_at(&st, s->mean * (1 + STEP * i));
    wb_search_restore(s);
    return WB_OK;
}
