/* solve_balanced.c - the default solver: the smallest maximum rank load that a bounded search finds. Replicas
 * by water-filling with a cap, packing by descending share, exchanges between ranks; where these are
 * stuck, exchanges that leave the maximum as it is, then a replica moved from one expert to another at
 * random. Ranks of at most two slots leave exchanges little to do: there the counts are annealed before
 * packing. Refuses: the moves themselves (search.c). */
#include "solve/anneal.h"
#include "solve/exact.h"
#include "solve/first_packing.h"
#include "solve/search.h"
#include "solve/solver.h"
#include "solve/uneven.h"
#include "wb_random.h"

#include <math.h>

/* Balancedness at which the search ends: at once, and after a sixteenth of its trials. */
static const double GOAL = 0.9998, MODEST_GOAL = 0.9995;
enum {
    MAX_TRIALS = 4000000, /* by default, and fewer for few slots */
    TRIALS_OF_A_SLOT = 20000,
    EXACT_NODES = 20000,
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

static bool at_most_two_slots(const wb_search *s) {
    for (uint32_t r = 0; r < s->n_ranks; r++)
        if (!s->frame->dead[r] && s->frame->slots_of_rank[r] > 2) return false;
    return true;
}

/* Water-filling: the largest share is then a bound. */
static void choose_counts(wb_packing *p) {
    wb_search *s = p->search;
    wb_choose_counts(p, s->n_live, s->cap);
    for (uint32_t e = 0; e < s->n_experts; e++)
        if (s->share[e] > s->bound) s->bound = s->share[e];
}

static void pack(wb_packing *p) {
    wb_pack(p);
    wb_fill_empty_slots(p->search, INFINITY);
}

static wb_status place(wb_search *s, bool sparse) {
    wb_packing p;
    WB_TRY(wb_packing_open(s, &p));
    choose_counts(&p);
    pack(&p);
    if (s->n_live > s->n_experts && at_most_two_slots(s)) {
        double before = s->rank_load[wb_search_hottest(s)];
        choose_counts(&p); /* filling empty slots changes counts */
        anneal_counts(s, sparse ? s->trials / 2 : s->trials / 8 * 7);
        pack(&p);
        if (s->rank_load[wb_search_hottest(s)] > before) { /* two replicas would have met on a rank */
            choose_counts(&p);
            pack(&p);
        }
    }
    if (sparse) return wb_place_uneven(&p, s->trials / 8);
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

/* Replicas that leave the maximum as it is: a dispatch by quotas has use for them. */
static void fill_what_fits(wb_search *s) {
    const double max = s->rank_load[wb_search_hottest(s)];
    while (wb_fill_empty_slots(s, max) > 0) {
    }
}

static wb_status search(wb_search *s, bool sparse, int64_t trials) {
    if (wb_search_prove(s, !sparse, trials < EXACT_NODES ? trials : EXACT_NODES)) return WB_OK;
    if (sparse && s->rank_load[wb_search_hottest(s)] > load_at(s, GOAL))
        WB_TRY(wb_search_anneal(s, s->trials / 8 * 7));
    refine(s);
    return WB_OK;
}

wb_status wb_solve_balanced(const wb_layer_problem *problem, int32_t *expert_of_slot_out,
                            uint32_t *replica_of_slot_out) {
    (void)replica_of_slot_out; /* in slot order */
    int64_t trials = problem->options->trials,
            by_slots = TRIALS_OF_A_SLOT * (int64_t)problem->frame->topology.n_slots;
    if (trials == 0) trials = by_slots < MAX_TRIALS ? by_slots : MAX_TRIALS;
    wb_search s;
    WB_TRY(wb_search_open(problem->frame, problem->loads, problem->layer, trials, &s));
    /* Slots may stay empty where ranks have different numbers of them: see uneven.h. */
    const bool sparse = s.n_live > s.n_experts && wb_uneven(&s);
    wb_status status = place(&s, sparse);
    if (status == WB_OK) status = search(&s, sparse, trials);
    if (status == WB_OK) {
        mix(&s, trials);
        if (sparse) fill_what_fits(&s);
        for (uint32_t i = 0; i < s.n_slots; i++) expert_of_slot_out[i] = s.expert[i];
    }
    wb_search_close(&s);
    return status;
}
