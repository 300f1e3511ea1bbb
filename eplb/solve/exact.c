/* exact.c - branch and bound over replica counts and, for given counts, over packings; see exact.h. */
#include "solve/exact.h"

#include <math.h>
#include <string.h>

enum { MAX_EXPERTS = 32, MAX_RANKS = 16 };

/* A placement counts as better when its maximum is lower by more than this part of it: rounding must not
 * look like progress. */
static const double PART = 1e-9;

typedef struct bin {
    double load;
    uint32_t room, rank, held; /* held: bit e, the e-th expert of the packing order */
} bin;

typedef struct proof {
    wb_search *search;
    bool full, even; /* even: all ranks have as many slots */
    int64_t nodes;   /* left */
    double target;   /* only placements with a maximum at or below it count */
    double total, best;
    uint32_t E, R;                 /* experts; live ranks with slots */
    uint32_t by_load[MAX_EXPERTS]; /* experts by descending load */
    uint32_t room[MAX_RANKS], rank[MAX_RANKS];
    uint32_t count[MAX_EXPERTS], guess[MAX_EXPERTS]; /* in the order of by_load */

    /* One packing: experts by descending share. */
    uint32_t order[MAX_EXPERTS], replicas[MAX_EXPERTS];
    double share[MAX_EXPERTS], before[MAX_EXPERTS + 1]; /* before[i]: sum of the first i shares */
    bin dealt[MAX_EXPERTS + 1][MAX_RANKS]; /* after the first i experts, in the order of dealing */
    bin bins[MAX_EXPERTS + 1][MAX_RANKS];  /* the same, the least loaded first */
    uint32_t best_count[MAX_EXPERTS], best_held[MAX_RANKS]; /* held: bit e, the e-th of by_load */
} proof;

/* ---- packings of given counts ---------------------------------------------------------------- */

/* What a rank carries in the end, at most: the next experts, one replica of each. */
static double max_load(const proof *p, const bin *b, uint32_t next) {
    uint32_t n = p->E - next < b->room ? p->E - next : b->room;
    return b->load + p->before[next + n] - p->before[next];
}

/* And at least, which is the last experts where no slot stays empty; infinite when these are too few. */
static double min_load(const proof *p, const bin *b, uint32_t next) {
    if (!p->full) return b->load;
    return b->room > p->E - next ? INFINITY : b->load + p->before[p->E] - p->before[p->E - b->room];
}

/* Ranks that must stay below the target leave this much of it unused; all of them together may leave
 * R * target - total. */
static double waste(const proof *p, const bin *b, uint32_t next) {
    double unused = p->target - max_load(p, b, next);
    return unused > 0 ? unused : 0;
}

static void record(proof *p) {
    p->best = 0;
    for (uint32_t r = 0; r < p->R; r++) {
        const bin *b = &p->bins[p->E][r];
        if (b->load > p->best) p->best = b->load;
        uint32_t held = 0;
        for (uint32_t i = 0; i < p->E; i++)
            if (b->held >> i & 1) held |= 1u << p->order[i];
        p->best_held[b->rank] = held;
    }
    memcpy(p->best_count, p->count, sizeof p->best_count);
}

static bool pack_from(proof *p, uint32_t next);

/* Deals `left` replicas of expert i of the packing order to the bins from r on, the least loaded first. Bins
 * that look alike are interchangeable, since replicas of one expert are dealt out at once: the later one
 * gets a replica only if the earlier one does. */
static bool deal(proof *p, uint32_t i, uint32_t r, uint32_t left, double wasted) {
    if (--p->nodes < 0 || wasted > p->R * p->target - p->total + PART * p->target) return false;
    if (r == p->R) return left == 0 && pack_from(p, i + 1);
    if (left > p->R - r) return false;
    bin *b = &p->dealt[i + 1][r];
    const bin before = p->bins[i][r];
    const bool skipped_twin = r > 0 && p->bins[i][r - 1].load == before.load &&
                              p->bins[i][r - 1].room == before.room &&
                              p->dealt[i + 1][r - 1].room == before.room;
    if (left > 0 && before.room > 0 && !skipped_twin) {
        *b = (bin){before.load + p->share[i], before.room - 1, before.rank, before.held | 1u << i};
        if (min_load(p, b, i + 1) <= p->target && deal(p, i, r + 1, left - 1, wasted + waste(p, b, i + 1)))
            return true;
    }
    *b = before;
    return min_load(p, b, i + 1) <= p->target && deal(p, i, r + 1, left, wasted + waste(p, b, i + 1));
}

static bool comes_first(const bin *a, const bin *b) {
    return a->load != b->load   ? a->load < b->load
           : a->room != b->room ? a->room < b->room
                                : a->rank < b->rank;
}

/* True when a packing at or below the target was found, and recorded. */
static bool pack_from(proof *p, uint32_t next) {
    const bin *dealt = p->dealt[next];
    bin *bins = p->bins[next];
    for (uint32_t r = 0; r < p->R; r++) {
        uint32_t k = r;
        for (; k > 0 && comes_first(&dealt[r], &bins[k - 1]); k--) bins[k] = bins[k - 1];
        bins[k] = dealt[r];
    }
    if (next < p->E) return deal(p, next, 0, p->replicas[next], 0);
    record(p);
    return true;
}

/* The shares of the counts, in descending order. */
static void sort_shares(proof *p) {
    for (uint32_t i = 0; i < p->E; i++) {
        double share = p->search->loads[p->by_load[i]] / p->count[i];
        uint32_t k = i;
        for (; k > 0 && p->share[k - 1] < share; k--) {
            p->share[k] = p->share[k - 1];
            p->order[k] = p->order[k - 1];
        }
        p->share[k] = share;
        p->order[k] = i;
    }
    for (uint32_t i = 0; i < p->E; i++) {
        p->before[i + 1] = p->before[i] + p->share[i];
        p->replicas[i] = p->count[p->order[i]];
    }
}

static void lower_target(proof *p) {
    p->target = p->best * (1 - PART);
}

static bool finished(const proof *p) {
    return p->nodes < 0 || p->target * p->R < p->total;
}

/* False only if no packing into full ranks of n slots each is at or below the target. The ranks that hold the
 * j largest replicas, and others to make them j, hold j (n - 1) more, so j targets are at least the j largest
 * and the j (n - 1) smallest. With two slots, some rank carries the j-th largest replica and one that is no
 * smaller than the j-th smallest. */
static bool may_fit(const proof *p) {
    const uint32_t n = p->room[0];
    uint32_t i = 0, j = p->E, left_i = 0, left_j = 0;
    double sum = 0;
    for (uint32_t r = 0; r < p->R; r++) {
        if (left_i == 0) left_i = p->replicas[i++];
        left_i--;
        sum += p->share[i - 1];
        for (uint32_t k = 1; k < n; k++) {
            if (left_j == 0) left_j = p->replicas[--j];
            left_j--;
            sum += p->share[j];
        }
        if (sum > (r + 1) * p->target * (1 + PART)) return false;
        if (n == 2 && p->share[i - 1] + p->share[j] > p->target) return false;
    }
    return true;
}

static void pack_counts(proof *p) {
    p->nodes -= p->E;
    sort_shares(p);
    do {
        for (uint32_t r = 0; r < p->R; r++) p->dealt[0][r] = (bin){0, p->room[r], r, 0};
        if (p->share[0] > p->target || (p->full && p->even && !may_fit(p)) || !pack_from(p, 0)) return;
        lower_target(p);
    } while (!finished(p));
}

/* ---- replica counts -------------------------------------------------------------------------- */

/* Replicas that keep the share of the i-th expert by load at or below the target. */
static uint32_t needed(const proof *p, uint32_t i) {
    double load = p->search->loads[p->by_load[i]], n = ceil(load / p->target * (1 - PART));
    return n < 1 ? 1 : n > p->R ? p->R + 1 : (uint32_t)n;
}

/* Counts of the experts from the i-th on for `slots` slots, those near the heuristic's first. Experts of the
 * same load are interchangeable: their counts do not rise. */
static void choose_counts(proof *p, uint32_t i, uint32_t slots) {
    if (--p->nodes < 0) return;
    if (i == p->E) {
        pack_counts(p);
        return;
    }
    const double *loads = p->search->loads;
    bool twin = i > 0 && loads[p->by_load[i]] == loads[p->by_load[i - 1]];
    uint32_t max = twin ? p->count[i - 1] : p->R, rest = p->E - i - 1;
    for (uint32_t step = 0; step <= 2 * p->R && !finished(p); step++) {
        int64_t n = (int64_t)p->guess[i] + (step % 2 ? 1 : -1) * (int64_t)((step + 1) / 2);
        uint64_t later = 0;
        if (n < 1 || n > max || n < needed(p, i)) continue;
        for (uint32_t k = i + 1; k < p->E; k++) later += needed(p, k);
        if ((uint64_t)n + later > slots || (p->full && (uint64_t)n + (uint64_t)rest * p->R < slots)) continue;
        p->count[i] = (uint32_t)n;
        choose_counts(p, i + 1, slots - (uint32_t)n);
    }
}

/* ---- to and from the search ------------------------------------------------------------------ */

static bool read_search(const wb_search *s, proof *p) {
    uint32_t E = p->E;
    for (uint32_t r = 0; r < s->n_ranks; r++) {
        uint32_t slots = s->frame->slots_of_rank[r];
        if (s->frame->dead[r] || slots == 0) continue;
        if (p->R == MAX_RANKS) return false;
        p->rank[p->R] = r;
        p->room[p->R++] = slots < E ? slots : E;
    }
    p->even = true;
    for (uint32_t r = 1; r < p->R; r++) p->even = p->even && p->room[r] == p->room[0];
    for (uint32_t e = 0; e < E; e++) {
        uint32_t k = e;
        for (; k > 0 && s->loads[p->by_load[k - 1]] < s->loads[e]; k--) p->by_load[k] = p->by_load[k - 1];
        p->by_load[k] = e;
        p->total += s->loads[e];
    }
    for (uint32_t i = 0; i < E; i++) p->guess[i] = s->count[p->by_load[i]];
    return true;
}

static void write_search(const proof *p) {
    wb_search *s = p->search;
    wb_search_clear(s);
    for (uint32_t r = 0; r < p->R; r++) {
        uint32_t slot = wb_search_begin(s, p->rank[r]);
        for (uint32_t i = 0; i < p->E; i++)
            if (p->best_held[r] >> i & 1) wb_search_put(s, slot++, p->by_load[i]);
    }
    wb_search_settle(s);
}

bool wb_search_prove(wb_search *s, bool full, int64_t nodes) {
    proof p = {.search = s, .full = full, .nodes = nodes, .E = s->n_experts};
    if (p.E > MAX_EXPERTS || !read_search(s, &p)) return false;
    const double start = p.best = s->rank_load[wb_search_hottest(s)];
    uint32_t slots = 0;
    for (uint32_t r = 0; r < p.R; r++) slots += p.room[r];
    if (start <= 0) return true;
    lower_target(&p);
    if (!finished(&p)) choose_counts(&p, 0, slots);
    if (p.nodes < 0) return false;
    if (p.best < start) write_search(&p);
    return true;
}
