/* first_packing.c - water-filling and packing; see first_packing.h. */
#include "solve/first_packing.h"

wb_status wb_packing_open(wb_search *s, wb_packing *packing_out) {
    wb_packing p = {.search = s};
    WB_TRY(WB_OWN(&s->memory, p.items, s->n_experts, "packing"));
    WB_TRY(WB_OWN(&s->memory, p.filled, s->n_ranks, "packing"));
    WB_TRY(WB_OWN(&s->memory, p.used, s->n_ranks, "packing"));
    WB_TRY(WB_OWN(&s->memory, p.ranks.items, s->n_ranks, "packing"));
    WB_TRY(WB_OWN(&s->memory, p.alone, s->n_experts, "packing"));
    *packing_out = p;
    return WB_OK;
}

/* ---- how many replicas ----------------------------------------------------------------------- */

bool wb_carries_more(const wb_search *s, uint32_t a, uint32_t b) {
    if (s->share[a] != s->share[b]) return s->share[a] > s->share[b];
    return s->count[a] != s->count[b] ? s->count[a] < s->count[b] : a < b;
}

static bool comes_first(const void *ctx, uint32_t a, uint32_t b) {
    return wb_carries_more(ctx, a, b);
}

void wb_choose_counts(wb_packing *p, uint32_t slots, uint32_t cap) {
    wb_search *s = p->search;
    wb_heap heap = {.items = p->items, .before = comes_first, .ctx = s};
    for (uint32_t e = 0; e < s->n_experts; e++) {
        if (p->alone[e]) continue;
        s->count[e] = 1;
        s->share[e] = s->loads[e];
        wb_heap_push(&heap, e);
    }
    if (cap < 2) return;
    for (uint32_t n = heap.n; n < slots && heap.n > 0; n++) {
        uint32_t e = heap.items[0];
        s->share[e] = s->loads[e] / ++s->count[e];
        if (s->count[e] < cap)
            wb_heap_sink(&heap);
        else
            wb_heap_pop(&heap);
    }
}

/* ---- where they go --------------------------------------------------------------------------- */

/* Of equals the rank with fewer slots: it has less to make up with. */
static bool less_loaded(const void *ctx, uint32_t a, uint32_t b) {
    const wb_search *s = ctx;
    if (s->rank_load[a] != s->rank_load[b]) return s->rank_load[a] < s->rank_load[b];
    uint32_t slots_a = s->frame->slots_of_rank[a], slots_b = s->frame->slots_of_rank[b];
    return slots_a != slots_b ? slots_a < slots_b : a < b;
}

/* Its replicas to the least loaded ranks with room, one each; fewer when there are no more such ranks. */
static void pack_expert(wb_packing *p, uint32_t expert) {
    wb_search *s = p->search;
    uint32_t n_used = 0;
    while (n_used < s->count[expert] && p->ranks.n > 0) {
        uint32_t rank = p->ranks.items[0];
        wb_heap_pop(&p->ranks);
        p->used[n_used++] = rank;
        wb_search_put(s, wb_search_begin(s, rank) + p->filled[rank]++, expert);
        s->rank_load[rank] += s->share[expert];
        if (p->alone[expert]) p->filled[rank] = s->frame->slots_of_rank[rank];
    }
    while (n_used > 0) {
        uint32_t rank = p->used[--n_used];
        if (p->filled[rank] < s->frame->slots_of_rank[rank]) wb_heap_push(&p->ranks, rank);
    }
}

void wb_pack(wb_packing *p) {
    wb_search *s = p->search;
    wb_search_clear(s);
    wb_search_sort(s);
    p->ranks = (wb_heap){.items = p->ranks.items, .before = less_loaded, .ctx = s};
    for (uint32_t r = 0; r < s->n_ranks; r++) {
        p->filled[r] = 0;
        if (!s->frame->dead[r] && s->frame->slots_of_rank[r] > 0) wb_heap_push(&p->ranks, r);
    }
    for (int others = 0; others < 2; others++)
        for (uint32_t i = 0; i < s->n_experts; i++)
            if (p->alone[s->order[i]] == !others) pack_expert(p, s->order[i]);
    wb_search_settle(s);
}

uint32_t wb_fill_empty_slots(wb_search *s, double max) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_live; i++) {
        uint32_t slot = s->live_slots[i], rank = wb_search_rank(s, slot), best = s->n_experts;
        if (s->expert[slot] >= 0) continue;
        for (uint32_t e = 0; e < s->n_experts; e++) {
            if (s->rank_load[rank] + s->loads[e] / (s->count[e] + 1) > max) continue;
            if ((best == s->n_experts || wb_carries_more(s, e, best)) &&
                !wb_search_holds(s, rank, (int32_t)e))
                best = e;
        }
        if (best == s->n_experts) continue;
        wb_search_transfer(s, slot, best);
        n++;
    }
    return n;
}
