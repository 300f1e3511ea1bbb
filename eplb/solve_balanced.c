/* solve_balanced.c - the default solver: the least maximum rank load that a bounded search finds. Replicas by water-filling
 * with a cap, packing by descending share, exchanges between ranks; where that does not reach the goal, replicas are moved
 * from one expert to another at random and the exchanges run again, keeping what is better. */
#include "heap.h"
#include "search.h"

#include <stdlib.h>

/* Balancedness at which the search ends. */
static const double GOAL = 0.9998;
enum { DEFAULT_TRIALS = 4000000, TRIALS_OF_A_KICK = 100 };

/* ---- how many replicas ------------------------------------------------------------------------------------ */

/* The expert whose replicas carry most; of equals the one with fewer replicas, then the lower. */
static bool carries_more(const void *ctx, uint32_t a, uint32_t b) {
    const wb_search *s = ctx;
    if (s->share[a] != s->share[b]) return s->share[a] > s->share[b];
    return s->count[a] != s->count[b] ? s->count[a] < s->count[b] : a < b;
}

/* Fills count and share: a replica at a time to the expert whose replicas carry most, until the live slots are used or
 * every expert is on every rank. This has the least maximum share. `items` [E] is scratch. */
static void choose_counts(wb_search *s, uint32_t *items) {
    wb_heap heap = {.items = items, .before = carries_more, .ctx = s};
    for (uint32_t e = 0; e < s->n_experts; e++) s->count[e] = 1;
    if (s->cap > 1)
        for (uint32_t e = 0; e < s->n_experts; e++) wb_heap_push(&heap, e);
    for (uint32_t n = s->n_experts; n < s->n_live && heap.n > 0; n++) {
        uint32_t e = heap.items[0];
        s->share[e] = s->loads[e] / ++s->count[e];
        if (s->count[e] < s->cap)
            wb_heap_sink(&heap);
        else
            wb_heap_pop(&heap);
    }
}

/* ---- where they go ------------------------------------------------------------------------------------------ */

typedef struct packing {
    wb_search *search;
    uint32_t *filled;  /* [P] slots of the rank in use */
    uint32_t *order;   /* [E] experts by descending share */
    wb_heap ranks;     /* live ranks with room, the least loaded first */
    uint32_t *refused; /* [P] ranks taken off the heap since they hold the expert */
} packing;

static bool less_loaded(const void *ctx, uint32_t a, uint32_t b) {
    const wb_search *s = ctx;
    return s->rank_load[a] != s->rank_load[b] ? s->rank_load[a] < s->rank_load[b] : a < b;
}

/* One replica to the least loaded rank with room that has none; false when there is no such rank. */
static bool pack_replica(packing *p, uint32_t expert) {
    wb_search *s = p->search;
    uint32_t n_refused = 0;
    while (p->ranks.n > 0 && wb_search_holds(s, p->ranks.items[0], (int32_t)expert)) {
        p->refused[n_refused++] = p->ranks.items[0];
        wb_heap_pop(&p->ranks);
    }
    bool found = p->ranks.n > 0;
    if (found) {
        uint32_t rank = p->ranks.items[0];
        wb_search_put(s, wb_search_begin(s, rank) + p->filled[rank]++, expert);
        s->rank_load[rank] += s->share[expert];
        if (p->filled[rank] < s->frame->slots_of_rank[rank])
            wb_heap_sink(&p->ranks);
        else
            wb_heap_pop(&p->ranks);
    }
    while (n_refused > 0) wb_heap_push(&p->ranks, p->refused[--n_refused]);
    return found;
}

/* Uneven slots may leave a replica without a place, and its slot empty: the expert with the largest share that the rank
 * does not hold gets it. */
static void fill_empty_slots(wb_search *s) {
    for (uint32_t i = 0; i < s->n_live; i++) {
        uint32_t slot = s->live_slots[i], rank = wb_search_rank(s, slot), best = s->n_experts;
        if (s->expert[slot] >= 0) continue;
        for (uint32_t e = 0; e < s->n_experts; e++)
            if ((best == s->n_experts || carries_more(s, e, best)) && !wb_search_holds(s, rank, (int32_t)e))
                best = e;
        if (best < s->n_experts) wb_search_transfer(s, slot, best);
    }
}

static void pack(packing *p) {
    wb_search *s = p->search;
    wb_heap by_share = {.items = p->order, .before = carries_more, .ctx = s};
    for (uint32_t e = 0; e < s->n_experts; e++) wb_heap_push(&by_share, e);
    wb_heap_sort(&by_share);
    for (uint32_t r = 0; r < s->n_ranks; r++)
        if (!s->frame->dead[r] && s->frame->slots_of_rank[r] > 0) wb_heap_push(&p->ranks, r);
    for (uint32_t i = 0; i < s->n_experts; i++)
        for (uint32_t k = 0; k < s->count[p->order[i]]; k++)
            if (!pack_replica(p, p->order[i])) break;
    wb_search_settle(s);
    fill_empty_slots(s);
}

static wb_status place(wb_search *s) {
    size_t P = s->n_ranks;
    uint32_t *memory = NULL;
    WB_TRY(wb_alloc(3 * P + s->n_experts, sizeof *memory, "balanced", (void **)&memory));
    packing p = {.search = s,
                 .filled = memory,
                 .refused = memory + 2 * P,
                 .order = memory + 3 * P,
                 .ranks = {.items = memory + P, .before = less_loaded, .ctx = s}};
    choose_counts(s, p.order);
    pack(&p);
    free(memory);
    return WB_OK;
}

/* ---- the search over replica counts ------------------------------------------------------------------------ */

/* Gives a random slot of an expert that has others (or an empty slot) to an expert of the hottest rank, or in the end to
 * any; false when nothing of the kind was found. */
static bool kick(wb_search *s) {
    uint32_t hot = wb_search_hottest(s);
    for (int i = 0; i < TRIALS_OF_A_KICK; i++) {
        uint32_t slot = s->live_slots[wb_random_below(&s->random, s->n_live)];
        uint32_t from =
            i < TRIALS_OF_A_KICK / 2
                ? wb_search_begin(s, hot) + wb_random_below(&s->random, s->frame->slots_of_rank[hot])
                : s->live_slots[wb_random_below(&s->random, s->n_live)];
        int32_t loser = s->expert[slot], winner = s->expert[from];
        s->trials--;
        if (winner < 0 || winner == loser || s->count[winner] >= s->cap) continue;
        if (loser >= 0 && (s->count[loser] < 2 || s->loads[loser] / (s->count[loser] - 1) > s->mean))
            continue;
        if (wb_search_holds(s, wb_search_rank(s, slot), winner)) continue;
        wb_search_transfer(s, slot, (uint32_t)winner);
        return true;
    }
    return false;
}

static void refine(wb_search *s) {
    int64_t trials = s->trials;
    double goal = s->mean / GOAL;
    for (uint32_t e = 0; e < s->n_experts; e++)
        if (s->share[e] > goal) goal = s->share[e]; /* no placement is below the largest share */
    wb_search_descend(s, goal, trials);
    wb_search_save(s);
    double best = s->rank_load[wb_search_hottest(s)];
    while (best > goal && s->trials > 0 && kick(s)) {
        wb_search_descend(s, goal, trials / 20);
        double most = s->rank_load[wb_search_hottest(s)];
        if (most < best) {
            best = most;
            wb_search_save(s);
        } else {
            wb_search_restore(s);
        }
    }
    wb_search_restore(s);
}

wb_status wb_solve_balanced(const wb_layer_problem *problem, int32_t *expert_of_slot_out,
                            uint32_t *replica_of_slot_out) {
    (void)replica_of_slot_out; /* in slot order */
    uint32_t trials = problem->options->trials;
    wb_search s;
    WB_TRY(wb_search_open(problem->frame, problem->loads, problem->layer,
                          trials > 0 ? trials : DEFAULT_TRIALS, &s));
    wb_status status = place(&s);
    if (status == WB_OK) {
        refine(&s);
        for (uint32_t i = 0; i < s.n_slots; i++) expert_of_slot_out[i] = s.expert[i];
    }
    wb_search_close(&s);
    return status;
}
