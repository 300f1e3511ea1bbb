/* solve_incremental.c - a few changes of the current placement instead of a new one: repairs what dead
 * ranks took, then takes the exchange or the replica move that lowers the hottest rank most for each slot
 * changed, until the layer is balanced enough or the budget is spent; and drops it all unless it pays. */
#include "solve/heap.h"
#include "solve/search.h"
#include "solve/solver.h"

#include <string.h>

enum {
    MIN_DEFAULT_TRIALS = 4000000,
    TRIALS_OF_A_SLOT = 500,
    FEW_PARTNERS = 64,
    MIN_PARTNERS = 4,
    WIDER = 8,
    TRIALS_PER_REPLICA = 4,
    PARTNERS_LAST = 16
};

typedef struct change {
    enum { NO_CHANGE, SWAP, TRANSFER } kind;
    uint32_t slot;  /* SWAP: of the hottest rank; TRANSFER: the slot that gets a replica */
    uint32_t other; /* SWAP: the slot of another rank; TRANSFER: the expert */
    int32_t slots;  /* by how many more slots differ from the current placement then */
    double score;   /* load taken off the hottest rank for each slot changed */
} change;

typedef struct incremental {
    wb_search search;
    const int32_t *current;  /* [S] */
    double goal;             /* rank load at which the layer is balanced enough */
    int64_t changed, limit;  /* slots that differ from the current placement and may */
    wb_heap partners;        /* the coolest live ranks, where changes are looked for; the most loaded first */
    uint32_t *partner_ranks; /* [R] its memory */
    uint32_t few_partners;   /* ranks that are looked at first */
    double *harm;            /* [slots of a partner] harm_to_others, or below 0: not known yet */
    double *taken;           /* [slots of the hottest rank] excess_taken by one more replica of its expert */
    bool by_excess;          /* what is above the goal on all ranks counts, not the hottest rank alone */
    uint32_t *seen;          /* [E] scratch of move_seconds */
} incremental;

/* ---- what was there -------------------------------------------------------------------------- */

static void take_current(incremental *in) {
    wb_search *s = &in->search;
    for (uint32_t i = 0; i < s->n_live; i++) {
        uint32_t slot = s->live_slots[i];
        if (in->current[slot] >= 0) wb_search_put(s, slot, (uint32_t)in->current[slot]);
    }
    wb_search_settle(s);
}

/* Experts whose ranks all died get the slot that costs least: an empty one or one whose expert has others.
 * There is one, since the live slots are at least as many as the experts. */
static void restore_lost_experts(wb_search *s) {
    for (uint32_t e = 0; e < s->n_experts; e++) {
        if (s->count[e] > 0) continue;
        uint32_t best = WB_NO_SLOT;
        double min_cost = 0;
        for (uint32_t i = 0; i < s->n_live; i++) {
            uint32_t slot = s->live_slots[i];
            int32_t old = s->expert[slot];
            if (old >= 0 && s->count[old] < 2) continue;
            double cost =
                s->rank_load[wb_search_rank(s, slot)] + (old < 0 ? 0 : s->share[old] / (s->count[old] - 1));
            if (best != WB_NO_SLOT && cost >= min_cost) continue;
            best = slot;
            min_cost = cost;
        }
        wb_search_transfer(s, best, e);
    }
}

/* ---- the best next change -------------------------------------------------------------------- */

/* +1, 0 or -1: how the number of changed slots goes when `slot` gets `expert`. */
static int32_t changes(const incremental *in, uint32_t slot, int32_t expert) {
    return (in->current[slot] != expert) - (in->current[slot] != in->search.expert[slot]);
}

/* Keeps a candidate that ends with the ranks concerned at `after` if it is the best so far and within the
 * budget. */
static bool better(const incremental *in, const change *best, double max, double after, double gain,
                   int32_t slots, double *score_out) {
    if (in->changed + slots > in->limit) return false;
    if (in->by_excess ? gain <= max * 1e-9 : after >= max * (1 - 1e-9)) return false;
    if (!in->by_excess) gain = max - (after > in->goal ? after : in->goal);
    *score_out = gain / (slots > 0 ? slots : 0.5); /* a change that is taken back is the cheapest */
    return best->kind == NO_CHANGE || *score_out > best->score;
}

static double above_goal(const incremental *in, double load) {
    return load > in->goal ? load - in->goal : 0;
}

/* By how much the ranks of an expert come nearer to the goal when each of its replicas carries `less`. */
static double excess_taken(incremental *in, int32_t expert, double less) {
    wb_search *s = &in->search;
    double sum = 0;
    for (uint32_t i = s->head[expert]; i != WB_NO_SLOT; i = s->next[i]) {
        double load = s->rank_load[wb_search_rank(s, i)];
        sum += above_goal(in, load) - above_goal(in, load - less);
    }
    s->trials -= s->count[expert] / TRIALS_PER_REPLICA;
    return sum;
}

static void consider_swaps(incremental *in, uint32_t hot, uint32_t rank, change *best) {
    wb_search *s = &in->search;
    double max = s->rank_load[hot], score;
    for (uint32_t a = wb_search_begin(s, hot); a < wb_search_end(s, hot); a++)
        for (uint32_t b = wb_search_begin(s, rank); b < wb_search_end(s, rank); b++) {
            double d = wb_search_share(s, a) - wb_search_share(s, b), theirs = s->rank_load[rank] + d;
            s->trials--;
            if (d <= 0) continue;
            int32_t slots = changes(in, a, s->expert[b]) + changes(in, b, s->expert[a]);
            double gain = above_goal(in, max) - above_goal(in, max - d) - above_goal(in, theirs);
            if (!better(in, best, max, theirs > max - d ? theirs : max - d, gain, slots, &score)) continue;
            if (wb_search_holds(s, hot, s->expert[b]) || wb_search_holds(s, rank, s->expert[a])) continue;
            *best = (change){SWAP, a, b, slots, score};
        }
}

/* What becomes of the other ranks that have f after one of its replicas has gone and they took its tokens
 * over: the load of the most loaded, or, by excess, how much more of them is above the goal. */
static double harm_to_others(const incremental *in, int32_t f, uint32_t gone) {
    const wb_search *s = &in->search;
    double peak = 0, more = f < 0 ? 0 : s->loads[f] / (s->count[f] - 1) - s->share[f];
    for (uint32_t i = f < 0 ? WB_NO_SLOT : s->head[f]; i != WB_NO_SLOT; i = s->next[i]) {
        double load = s->rank_load[wb_search_rank(s, i)] + more;
        if (i == gone) continue;
        if (in->by_excess)
            peak += above_goal(in, load) - above_goal(in, load - more);
        else if (load > peak)
            peak = load;
    }
    return peak;
}

/* Another replica of an expert of the hottest rank, in place of one that its expert can spare. */
static void consider_transfers(incremental *in, uint32_t hot, uint32_t rank, change *best) {
    wb_search *s = &in->search;
    double max = s->rank_load[hot], score;
    for (uint32_t b = wb_search_begin(s, rank); b < wb_search_end(s, rank); b++)
        in->harm[b - wb_search_begin(s, rank)] = -1;
    for (uint32_t a = wb_search_begin(s, hot); a < wb_search_end(s, hot); a++) {
        int32_t e = s->expert[a];
        if (e < 0 || s->count[e] >= s->cap) continue;
        double share = s->loads[e] / (s->count[e] + 1), ours = max - (s->share[e] - share);
        double taken = in->by_excess ? in->taken[a - wb_search_begin(s, hot)] : 0;
        for (uint32_t b = wb_search_begin(s, rank); b < wb_search_end(s, rank); b++) {
            int32_t f = s->expert[b], slots = changes(in, b, e);
            double after = s->rank_load[rank] + share - wb_search_share(s, b);
            double gain = taken - above_goal(in, after);
            s->trials--;
            if (after < ours) after = ours;
            if (f == e || (f >= 0 && s->count[f] < 2) || !better(in, best, max, after, gain, slots, &score))
                continue;
            double *others_of = in->harm + (b - wb_search_begin(s, rank));
            if (*others_of < 0) *others_of = harm_to_others(in, f, b);
            const double others = *others_of;
            if (in->by_excess ? !better(in, best, max, after, gain - others, slots, &score)
                              : others > after && !better(in, best, max, others, gain, slots, &score))
                continue;
            if (!wb_search_holds(s, rank, e)) *best = (change){TRANSFER, b, (uint32_t)e, slots, score};
        }
    }
}

static bool more_loaded(const void *ctx, uint32_t a, uint32_t b) {
    const wb_search *s = ctx;
    return s->rank_load[a] != s->rank_load[b] ? s->rank_load[a] > s->rank_load[b] : a > b;
}

static void choose_partners(incremental *in, uint32_t limit) {
    const wb_search *s = &in->search;
    wb_heap *partners = &in->partners;
    *partners = (wb_heap){.items = in->partner_ranks, .before = more_loaded, .ctx = s};
    for (uint32_t r = 0; r < s->n_ranks; r++) {
        if (s->frame->dead[r]) continue;
        if (partners->n < limit) {
            wb_heap_push(partners, r);
        } else if (more_loaded(s, partners->items[0], r)) {
            partners->items[0] = r;
            wb_heap_sink(partners);
        }
    }
}

static change best_change(incremental *in, uint32_t hot) {
    const wb_search *s = &in->search;
    change best = {.kind = NO_CHANGE};
    const uint32_t first = wb_search_begin(s, hot);
    for (uint32_t a = first; a < wb_search_end(s, hot) && in->by_excess; a++) {
        int32_t e = s->expert[a];
        in->taken[a - first] = e < 0 ? 0 : excess_taken(in, e, s->share[e] - s->loads[e] / (s->count[e] + 1));
    }
    for (uint32_t i = 0; i < in->partners.n; i++) {
        uint32_t rank = in->partners.items[i];
        if (rank == hot) continue;
        consider_swaps(in, hot, rank, &best);
        consider_transfers(in, hot, rank, &best);
    }
    return best;
}

/* Looks among a few cool ranks, which are chosen anew after some changes, and among more, in the end all,
 * when those do not help. */
static change find_change(incremental *in, uint32_t hot, int *age) {
    change best = {.kind = NO_CHANGE};
    if (*age < PARTNERS_LAST) best = best_change(in, hot);
    for (uint32_t n = in->few_partners; best.kind == NO_CHANGE; n *= WIDER) {
        choose_partners(in, n);
        *age = 0;
        best = best_change(in, hot);
        if (n >= in->search.n_ranks) break;
    }
    ++*age;
    return best;
}

/* Where the trials do not suffice to look among many partners once for each slot, as on thousands of ranks,
 * fewer partners are looked at. On many ranks the hottest alone is a bad guide: a swap that hands its load on
 * looks better than a replica that relieves all ranks of its expert. Where few changes are allowed, they are
 * better spent on the hottest ranks. */
static void set_pace(incremental *in) {
    const wb_search *s = &in->search;
    const double slots = (double)s->n_live / s->n_ranks, of_partner = 2 * slots * slots * s->n_live;
    const double affordable = (double)s->trials / of_partner;
    in->by_excess = s->n_ranks > FEW_PARTNERS && in->limit == INT64_MAX;
    in->few_partners = affordable >= FEW_PARTNERS || !in->by_excess ? FEW_PARTNERS
                       : affordable > MIN_PARTNERS                  ? (uint32_t)affordable
                                                                    : MIN_PARTNERS;
}

static void improve(incremental *in) {
    wb_search *s = &in->search;
    int age = PARTNERS_LAST;
    set_pace(in);
    while (s->trials > 0) {
        uint32_t hot = wb_search_hottest(s);
        if (s->rank_load[hot] <= in->goal) return;
        change c = find_change(in, hot, &age);
        if (c.kind == NO_CHANGE && !in->by_excess) return;
        /* The excess of all ranks falls no more; that of the hottest still may. */
        if (c.kind == NO_CHANGE) in->by_excess = false;
        if (c.kind == SWAP) wb_search_swap(s, c.slot, c.other);
        if (c.kind == TRANSFER) wb_search_transfer(s, c.slot, c.other);
        in->changed += c.slots;
    }
}

/* ---- does it pay? ---------------------------------------------------------------------------- */

/* Seconds until the rank that receives most has its experts, one in each group of moves, each copied from a
 * shadow slot; the plan proper is wb_move_plan_open's. seen [E], zeroed: 1 + the last node that was found to
 * hold the expert. */
static double move_seconds(const wb_placement *frame, const int32_t *from, const int32_t *to,
                           const wb_cost_model *cost, uint32_t *seen) {
    const uint32_t *node_of_rank = frame->node_of_rank, *first_slot = frame->first_slot;
    uint32_t R = frame->topology.n_ranks, node_end = 0;
    double slowest = 0;
    for (uint32_t r = 0; r < R; r++) {
        uint32_t node = node_of_rank[r];
        for (; node_end < R && node_of_rank[node_end] == node; node_end++)
            for (uint32_t i = first_slot[node_end]; i < first_slot[node_end + 1]; i++)
                if (from[i] >= 0) seen[from[i]] = node + 1;
        double seconds = 0;
        for (uint32_t i = first_slot[r]; i < first_slot[r + 1]; i++) {
            if (to[i] == from[i] || to[i] < 0) continue;
            bool near = seen[to[i]] == node + 1;
            double rate = near ? cost->node_bytes_per_second : cost->network_bytes_per_second;
            seconds += cost->expert_bytes / rate + cost->expert_bytes / cost->local_bytes_per_second +
                       cost->seconds_per_group;
        }
        if (seconds > slowest) slowest = seconds;
    }
    return slowest;
}

static wb_status solve(incremental *in, const wb_eplb_options *options, int32_t *experts_out) {
    wb_search *s = &in->search;
    WB_TRY(WB_OWN(&s->memory, in->partner_ranks, s->n_ranks, "incremental"));
    WB_TRY(WB_OWN(&s->memory, in->seen, s->n_experts, "incremental"));
    uint32_t max_slots = 0;
    for (uint32_t r = 0; r < s->n_ranks; r++)
        if (s->frame->slots_of_rank[r] > max_slots) max_slots = s->frame->slots_of_rank[r];
    WB_TRY(WB_OWN(&s->memory, in->taken, max_slots, "incremental"));
    WB_TRY(WB_OWN(&s->memory, in->harm, max_slots, "incremental"));
    take_current(in);
    restore_lost_experts(s);
    for (uint32_t i = 0; i < s->n_slots; i++)
        in->changed += s->expert[i] != in->current[i] && s->expert[i] >= 0;
    in->goal = s->mean / options->target;
    in->limit = options->max_changes > 0 ? in->changed + options->max_changes : INT64_MAX;
    size_t bytes = s->n_slots * sizeof *experts_out;
    memcpy(experts_out, s->expert, bytes);
    double before = s->rank_load[wb_search_hottest(s)];
    improve(in);
    double gained = (before - s->rank_load[wb_search_hottest(s)]) * options->cost.seconds_per_token *
                    options->horizon_steps;
    if (gained > move_seconds(s->frame, experts_out, s->expert, &options->cost, in->seen))
        memcpy(experts_out, s->expert, bytes);
    return WB_OK;
}

wb_status wb_solve_incremental(const wb_layer_problem *problem, int32_t *expert_of_slot_out,
                               uint32_t *replica_of_slot_out) {
    (void)replica_of_slot_out; /* in slot order */
    incremental in = {.current = problem->current};
    int64_t trials = problem->options->trials,
            by_slots = TRIALS_OF_A_SLOT * (int64_t)problem->frame->topology.n_slots;
    if (trials == 0) trials = by_slots > MIN_DEFAULT_TRIALS ? by_slots : MIN_DEFAULT_TRIALS;
    WB_TRY(wb_search_open(problem->frame, problem->loads, problem->layer, trials, &in.search));
    wb_status status = solve(&in, problem->options, expert_of_slot_out);
    wb_search_close(&in.search);
    return status;
}
