/* solve_balanced.c - the default solver: the smallest maximum rank load that a bounded search finds. Replicas
 * by water-filling with a cap, packing by descending share, exchanges between ranks; where these are
 * stuck, exchanges that leave the maximum as it is, then a replica moved from one expert to another at
 * random. Ranks of at most two slots leave exchanges little to do: there the counts are annealed before
 * packing. Refuses: the moves themselves (search.c). */
#include "solve/heap.h"
#include "solve/search.h"
#include "solve/solver.h"
#include "wb_random.h"

#include <math.h>

/* Balancedness at which the search ends: at once, and after a sixteenth of its trials. */
static const double GOAL = 0.9998, MODEST_GOAL = 0.9995;
enum {
    MAX_TRIALS = 4000000, /* by default, and fewer for few slots */
    TRIALS_OF_A_SLOT = 20000,
    TRIALS_OF_A_FOLD = 16,
    TRIALS_OF_A_KICK = 100,
    ROUNDS_OF_A_KICK = 4,
    MIX_TRIALS = 256,
    MIX_EXCHANGES = 4 /* of a slot */
};

/* The maximum rank load that stands for a balancedness; no placement is below the largest share of
 * water-filling. */
static double load_at(const wb_search *s, double balancedness) {
    double load = s->mean / balancedness;
    return load > s->bound ? load : s->bound;
}

/* ---- how many replicas ----------------------------------------------------------------------- */

/* The expert whose replicas carry most; of equals the one with fewer replicas, then the lower. */
static bool carries_more(const void *ctx, uint32_t a, uint32_t b) {
    const wb_search *s = ctx;
    if (s->share[a] != s->share[b]) return s->share[a] > s->share[b];
    return s->count[a] != s->count[b] ? s->count[a] < s->count[b] : a < b;
}

/* Fills count and share: a replica at a time to the expert whose replicas carry most, until the live
 * slots are used or every expert is on every rank. No other counts have a smaller maximum share. `items`
 * [E] is scratch. */
static void choose_counts(wb_search *s, uint32_t *items) {
    wb_heap heap = {.items = items, .before = carries_more, .ctx = s};
    for (uint32_t e = 0; e < s->n_experts; e++) {
        s->count[e] = 1;
        s->share[e] = s->loads[e];
    }
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
    for (uint32_t e = 0; e < s->n_experts; e++)
        if (s->share[e] > s->bound) s->bound = s->share[e];
}

/* ---- how many replicas, for ranks of at most two slots --------------------------------------- */

/* What a packing of ranks of two slots comes to. */
typedef struct fold {
    double max;    /* maximum rank load */
    double excess; /* sum over ranks of (load - mean)^2 where above the mean */
} fold;

/* With given counts the best is the largest share with the smallest, and so on inwards. A rank's missing
 * second slot counts as a share of 0. Ends early once the excess is above the limit. `order` is sorted. */
static fold fold_shares(wb_search *s, double limit) {
    uint32_t i = 0, j = s->n_experts, n_i = 0, n_j = 2 * s->cap, m;
    fold f = {0, 0};
    s->trials -= TRIALS_OF_A_FOLD; /* what it takes besides the ranks looked at */
    double of_i = 0, of_j = 0;
    for (uint32_t e = 0; e < s->n_experts; e++) n_j -= s->count[e];
    for (uint32_t pairs = s->cap; pairs > 0 && f.excess <= limit; pairs -= m) {
        if (n_i == 0) n_i = s->count[s->order[i]], of_i = s->share[s->order[i++]];
        if (n_j == 0) n_j = s->count[s->order[--j]], of_j = s->share[s->order[j]];
        m = n_i < n_j ? n_i : n_j;
        if (m > pairs) m = pairs;
        double load = of_i + of_j, over = load - s->mean;
        if (load > f.max) f.max = load;
        if (over > 0) f.excess += m * over * over;
        n_i -= m;
        n_j -= m;
        s->trials--;
    }
    return f;
}

/* Another count for an expert, which moves to its new place in `order`. */
static void recount(wb_search *s, uint32_t expert, uint32_t count) {
    uint32_t i = 0;
    s->count[expert] = count;
    s->share[expert] = s->loads[expert] / count;
    while (s->order[i] != expert) i++;
    for (; i > 0 && s->share[s->order[i - 1]] < s->share[expert]; i--) s->order[i] = s->order[i - 1];
    for (; i + 1 < s->n_experts && s->share[s->order[i + 1]] > s->share[expert]; i++)
        s->order[i] = s->order[i + 1];
    s->order[i] = expert;
}

/* Annealing: a replica goes from one expert to another at random, which stays so if the excess rises by no
 * more than a random part of a temperature that falls to 0. The counts of the smallest maximum are kept. */
static void anneal_counts(wb_search *s, int64_t trials) {
    const int64_t end = s->trials - trials;
    const double first = 4e-3 * s->mean * s->mean, goal = load_at(s, GOAL);
    wb_search_sort(s);
    fold now = fold_shares(s, INFINITY);
    double best = now.max;
    wb_search_save(s);
    while (best > goal && s->trials > end) {
        double left = (double)(s->trials - end) / (double)trials;
        double rise =
            first * left * left * left * left * (double)wb_random_below(&s->random, 1 << 20) * 0x1p-20;
        uint32_t loser = wb_random_below(&s->random, s->n_experts);
        uint32_t winner = wb_random_below(&s->random, s->n_experts);
        s->trials--;
        if (loser == winner || s->count[loser] < 2 || s->count[winner] >= s->cap) continue;
        if (s->loads[loser] / (s->count[loser] - 1) > s->mean) continue;
        recount(s, loser, s->count[loser] - 1);
        recount(s, winner, s->count[winner] + 1);
        fold next = fold_shares(s, now.excess + rise);
        if (next.excess <= now.excess + rise) {
            now = next;
            if (now.max < best) {
                best = now.max;
                wb_search_save(s);
            }
        } else {
            recount(s, loser, s->count[loser] + 1);
            recount(s, winner, s->count[winner] - 1);
        }
    }
    wb_search_restore(s);
}

/* ---- where they go --------------------------------------------------------------------------- */

typedef struct packing {
    wb_search *search;
    uint32_t *filled; /* [R] slots of the rank in use */
    wb_heap ranks;    /* live ranks with room, the least loaded first */
    uint32_t *used;   /* [R] ranks off the heap since they got a replica of the expert */
} packing;

/* Of equals the rank with fewer slots: it has less to make up with. */
static bool less_loaded(const void *ctx, uint32_t a, uint32_t b) {
    const wb_search *s = ctx;
    if (s->rank_load[a] != s->rank_load[b]) return s->rank_load[a] < s->rank_load[b];
    uint32_t slots_a = s->frame->slots_of_rank[a], slots_b = s->frame->slots_of_rank[b];
    return slots_a != slots_b ? slots_a < slots_b : a < b;
}

/* Its replicas to the least loaded ranks with room, one each; fewer when there are no more such ranks. */
static void pack_expert(packing *p, uint32_t expert) {
    wb_search *s = p->search;
    uint32_t n_used = 0;
    while (n_used < s->count[expert] && p->ranks.n > 0) {
        uint32_t rank = p->ranks.items[0];
        wb_heap_pop(&p->ranks);
        p->used[n_used++] = rank;
        wb_search_put(s, wb_search_begin(s, rank) + p->filled[rank]++, expert);
        s->rank_load[rank] += s->share[expert];
    }
    while (n_used > 0) {
        uint32_t rank = p->used[--n_used];
        if (p->filled[rank] < s->frame->slots_of_rank[rank]) wb_heap_push(&p->ranks, rank);
    }
}

/* Uneven slots may leave a replica without a place, and its slot empty: the expert with the largest share
 * that the rank does not hold gets it. */
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

/* By the counts as they are, into slots that are emptied before. */
static void pack(packing *p) {
    wb_search *s = p->search;
    wb_search_clear(s);
    wb_search_sort(s);
    p->ranks.n = 0;
    for (uint32_t r = 0; r < s->n_ranks; r++) {
        p->filled[r] = 0;
        if (!s->frame->dead[r] && s->frame->slots_of_rank[r] > 0) wb_heap_push(&p->ranks, r);
    }
    for (uint32_t i = 0; i < s->n_experts; i++) pack_expert(p, s->order[i]);
    wb_search_settle(s);
    fill_empty_slots(s);
}

static bool at_most_two_slots(const wb_search *s) {
    for (uint32_t r = 0; r < s->n_ranks; r++)
        if (!s->frame->dead[r] && s->frame->slots_of_rank[r] > 2) return false;
    return true;
}

static wb_status place(wb_search *s) {
    size_t R = s->n_ranks;
    packing p = {.search = s, .ranks = {.before = less_loaded, .ctx = s}};
    WB_TRY(WB_OWN(&s->memory, p.filled, R, "balanced"));
    WB_TRY(WB_OWN(&s->memory, p.used, R, "balanced"));
    WB_TRY(WB_OWN(&s->memory, p.ranks.items, R, "balanced"));
    choose_counts(s, s->order);
    pack(&p);
    if (s->n_live > s->n_experts && at_most_two_slots(s)) {
        double before = s->rank_load[wb_search_hottest(s)];
        choose_counts(s, s->order); /* filling empty slots changes counts */
        anneal_counts(s, s->trials / 8 * 7);
        pack(&p);
        if (s->rank_load[wb_search_hottest(s)] > before) { /* two replicas would have met on a rank */
            choose_counts(s, s->order);
            pack(&p);
        }
    }
    return WB_OK;
}

/* ---- out of a local minimum ----------------------------------------------------------------------- */

/* Gives a random slot of an expert that has others (or an empty slot) to an expert of the hottest rank, or
 * in the end to any; false when nothing of the kind was found. */
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

/* Where the most loaded rank finds no exchange, other ranks get other contents under the same maximum;
 * after some rounds of that in vain, an expert gets another count. */
static void refine(wb_search *s) {
    const int64_t patient = s->trials - s->trials / 16;
    const double goal = load_at(s, GOAL), modest_goal = load_at(s, MODEST_GOAL);
    double best = INFINITY;
    for (uint32_t stale = 0;; stale++) {
        if (stale > 0 && stale % ROUNDS_OF_A_KICK == 0) {
            wb_search_restore(s);
            if (!kick(s)) break;
        } else if (stale > 0) {
            wb_search_shake(s, s->rank_load[wb_search_hottest(s)], s->n_ranks / 2);
        }
        wb_search_descend(s, goal);
        double max = s->rank_load[wb_search_hottest(s)];
        if (max < best) {
            best = max;
            stale = 0;
            wb_search_save(s);
        }
        if (best <= (s->trials < patient ? modest_goal : goal) || s->trials <= 0) break;
    }
    wb_search_restore(s);
}

/* Packing puts replicas of the same experts side by side on rank after rank, and then a dispatch by quotas
 * can move tokens among few ranks only. Exchanges that leave the maximum as it is mix them: with 8192
 * slots on 4096 ranks, quotas for micro-batches with noise .2 reach .88 instead of .83. */
static void mix(wb_search *s, int64_t trials) {
    wb_search_settle(s); /* without the rounding of many small changes */
    wb_search_save(s);
    double max = s->rank_load[wb_search_hottest(s)];
    int64_t enough = MIX_TRIALS * (int64_t)s->n_live;
    s->trials = enough < trials ? enough : trials;
    wb_search_shake(s, max, MIX_EXCHANGES * s->n_live);
    wb_search_settle(s);
    if (s->rank_load[wb_search_hottest(s)] > max) wb_search_restore(s);
}

wb_status wb_solve_balanced(const wb_layer_problem *problem, int32_t *expert_of_slot_out,
                            uint32_t *replica_of_slot_out) {
    (void)replica_of_slot_out; /* in slot order */
    int64_t trials = problem->options->trials,
            by_slots = TRIALS_OF_A_SLOT * (int64_t)problem->frame->topology.n_slots;
    if (trials == 0) trials = by_slots < MAX_TRIALS ? by_slots : MAX_TRIALS;
    wb_search s;
    WB_TRY(wb_search_open(problem->frame, problem->loads, problem->layer, trials, &s));
    wb_status status = place(&s);
    if (status == WB_OK) {
        refine(&s);
        mix(&s, trials);
        for (uint32_t i = 0; i < s.n_slots; i++) expert_of_slot_out[i] = s.expert[i];
    }
    wb_search_close(&s);
    return status;
}
