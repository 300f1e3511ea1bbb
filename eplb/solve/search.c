/* search.c - the state of a search and its moves; see search.h. */
#include "solve/search.h"
#include "solve/heap.h"
#include "wb_random.h"

#include <string.h>

/* ---- memory ---------------------------------------------------------------------------------- */

wb_status wb_search_open(const wb_placement *frame, const double *loads, uint64_t seed, int64_t trials,
                         wb_search *search_out) {
    size_t R = frame->topology.n_ranks, S = frame->topology.n_slots, E = frame->n_experts;
    wb_search s = {.frame = frame, .loads = loads, .random = wb_mix64(seed), .trials = trials};
    s.n_experts = (uint32_t)E;
    s.n_slots = (uint32_t)S;
    s.n_ranks = (uint32_t)R;
    s.state_bytes = (R + E) * sizeof(double) + (2 * E + 3 * S) * sizeof(uint32_t);
    wb_status status = WB_OWN_ALLOC(&s.memory, s.state, 2, s.state_bytes, "placement search");
    if (status == WB_OK) status = WB_OWN(&s.memory, s.live_slots, S, "placement search");
    if (status == WB_OK) status = WB_OWN(&s.memory, s.order, E, "placement search");
    if (status != WB_OK) {
        wb_search_close(&s);
        return status;
    }
    s.snapshot = (char *)s.state + s.state_bytes;
    s.rank_load = s.state;
    s.share = s.rank_load + R;
    s.count = (uint32_t *)(s.share + E);
    s.head = s.count + E;
    s.next = s.head + E;
    s.prev = s.next + S;
    s.expert = (int32_t *)(s.prev + S);
    uint32_t live_ranks = 0;
    double sum = 0;
    for (uint32_t r = 0; r < R; r++) {
        if (frame->dead[r]) continue;
        live_ranks++;
        s.cap += frame->slots_of_rank[r] > 0;
        for (uint32_t i = frame->first_slot[r]; i < frame->first_slot[r + 1]; i++)
            s.live_slots[s.n_live++] = i;
    }
    for (size_t e = 0; e < E; e++) {
        s.share[e] = loads[e];
        sum += loads[e];
    }
    s.mean = sum / live_ranks;
    wb_search_clear(&s);
    *search_out = s;
    return WB_OK;
}

void wb_search_close(wb_search *s) {
    wb_owner_close(&s->memory);
}

void wb_search_clear(wb_search *s) {
    memset(s->rank_load, 0, s->n_ranks * sizeof *s->rank_load);
    for (uint32_t e = 0; e < s->n_experts; e++) s->head[e] = WB_NO_SLOT;
    for (uint32_t i = 0; i < s->n_slots; i++) s->expert[i] = WB_NO_EXPERT;
}

void wb_search_save(wb_search *s) {
    memcpy(s->snapshot, s->state, s->state_bytes);
}

void wb_search_restore(wb_search *s) {
    memcpy(s->state, s->snapshot, s->state_bytes);
}

/* ---- single moves ---------------------------------------------------------------------------- */

bool wb_search_holds(const wb_search *s, uint32_t rank, int32_t expert) {
    if (expert < 0) return false;
    for (uint32_t i = wb_search_begin(s, rank); i < wb_search_end(s, rank); i++)
        if (s->expert[i] == expert) return true;
    return false;
}

/* Into the list of the slot's expert. */
static void link_slot(wb_search *s, uint32_t slot, int32_t expert) {
    s->expert[slot] = expert;
    if (expert < 0) return;
    uint32_t head = s->head[expert];
    s->next[slot] = head;
    s->prev[slot] = WB_NO_SLOT;
    if (head != WB_NO_SLOT) s->prev[head] = slot;
    s->head[expert] = slot;
}

static void unlink_slot(wb_search *s, uint32_t slot) {
    int32_t expert = s->expert[slot];
    if (expert < 0) return;
    uint32_t next = s->next[slot], prev = s->prev[slot];
    if (next != WB_NO_SLOT) s->prev[next] = prev;
    if (prev != WB_NO_SLOT)
        s->next[prev] = next;
    else
        s->head[expert] = next;
}

void wb_search_put(wb_search *s, uint32_t slot, uint32_t expert) {
    link_slot(s, slot, (int32_t)expert);
}

void wb_search_settle(wb_search *s) {
    memset(s->count, 0, s->n_experts * sizeof *s->count);
    memset(s->rank_load, 0, s->n_ranks * sizeof *s->rank_load);
    for (uint32_t i = 0; i < s->n_slots; i++)
        if (s->expert[i] >= 0) s->count[s->expert[i]]++;
    for (uint32_t e = 0; e < s->n_experts; e++)
        s->share[e] = s->count[e] > 0 ? s->loads[e] / s->count[e] : s->loads[e];
    for (uint32_t i = 0; i < s->n_slots; i++) s->rank_load[wb_search_rank(s, i)] += wb_search_share(s, i);
}

void wb_search_swap(wb_search *s, uint32_t a, uint32_t b) {
    int32_t of_a = s->expert[a], of_b = s->expert[b];
    double more_on_b = wb_search_share(s, a) - wb_search_share(s, b);
    unlink_slot(s, a);
    unlink_slot(s, b);
    link_slot(s, a, of_b);
    link_slot(s, b, of_a);
    s->rank_load[wb_search_rank(s, a)] -= more_on_b;
    s->rank_load[wb_search_rank(s, b)] += more_on_b;
}

/* All replicas of the expert go over to a new share. */
static void set_share(wb_search *s, uint32_t expert, double share) {
    double more = share - s->share[expert];
    for (uint32_t i = s->head[expert]; i != WB_NO_SLOT; i = s->next[i])
        s->rank_load[wb_search_rank(s, i)] += more;
    s->share[expert] = share;
}

void wb_search_transfer(wb_search *s, uint32_t slot, uint32_t expert) {
    int32_t old = s->expert[slot];
    double *load = &s->rank_load[wb_search_rank(s, slot)];
    if (old >= 0) {
        *load -= s->share[old];
        unlink_slot(s, slot);
        set_share(s, (uint32_t)old, s->loads[old] / --s->count[old]);
    }
    set_share(s, expert, s->loads[expert] / ++s->count[expert]);
    link_slot(s, slot, (int32_t)expert);
    *load += s->share[expert];
}

void wb_search_vacate(wb_search *s, uint32_t slot) {
    int32_t old = s->expert[slot];
    s->rank_load[wb_search_rank(s, slot)] -= s->share[old];
    unlink_slot(s, slot);
    s->expert[slot] = WB_NO_EXPERT;
    set_share(s, (uint32_t)old, s->loads[old] / --s->count[old]);
}

uint32_t wb_search_hottest(const wb_search *s) {
    uint32_t hottest = 0;
    for (uint32_t r = 1; r < s->n_ranks; r++)
        if (s->rank_load[r] > s->rank_load[hottest]) hottest = r;
    return hottest;
}

/* ---- exchanges ------------------------------------------------------------------------------- */

/* What rank `hot` is to lose to rank `other` for both to end at or below a target. */
typedef struct loss_range {
    double min, max;
} loss_range;

static bool may_swap(const wb_search *s, uint32_t a, uint32_t b) {
    return s->expert[a] != s->expert[b] && !wb_search_holds(s, wb_search_rank(s, a), s->expert[b]) &&
           !wb_search_holds(s, wb_search_rank(s, b), s->expert[a]);
}

/* One slot of `hot` for one of `other`. */
static bool exchange_one(wb_search *s, uint32_t hot, uint32_t other, loss_range loss) {
    for (uint32_t a = wb_search_begin(s, hot); a < wb_search_end(s, hot); a++) {
        double of_a = wb_search_share(s, a);
        for (uint32_t b = wb_search_begin(s, other); b < wb_search_end(s, other); b++) {
            double d = of_a - wb_search_share(s, b);
            s->trials--;
            if (d < loss.min || d > loss.max || !may_swap(s, a, b)) continue;
            wb_search_swap(s, a, b);
            return true;
        }
    }
    return false;
}

/* Tries the other live ranks in turn, from a random one on. */
static bool exchange_two_ranks(wb_search *s, uint32_t hot, double target) {
    uint32_t first = wb_random_below(&s->random, s->n_ranks);
    for (uint32_t k = 0; k < s->n_ranks && s->trials > 0; k++) {
        uint32_t other = first + k < s->n_ranks ? first + k : first + k - s->n_ranks;
        loss_range loss = {s->rank_load[hot] - target, target - s->rank_load[other]};
        if (other == hot || s->frame->dead[other] || loss.max < loss.min) continue;
        if (exchange_one(s, hot, other, loss)) return true;
    }
    return false;
}

/* ---- repartitions of three ranks ------------------------------------------------------------- */

/* Three exchanges, one after the other: two slots of the hot rank for one slot each of two other ranks,
 * then a slot of the one for a slot of the other (none where both are WB_NO_SLOT). For ranks of three
 * slots these are all the ways to deal out the slots of three ranks anew of which one rank gets one of
 * each. */
typedef struct trade {
    uint32_t give[2], take[2], of_first, of_second;
} trade;

/* What a slot holds after the trade. */
static int32_t after(const wb_search *s, const trade *t, uint32_t slot) {
    if (slot == t->of_first || slot == t->of_second) slot ^= t->of_first ^ t->of_second;
    for (int k = 0; k < 2; k++)
        if (slot == t->give[k] || slot == t->take[k]) return s->expert[slot ^ t->give[k] ^ t->take[k]];
    return s->expert[slot];
}

static bool repeats_after(const wb_search *s, const trade *t, uint32_t slot) {
    uint32_t rank = wb_search_rank(s, slot);
    int32_t expert = after(s, t, slot);
    for (uint32_t i = wb_search_begin(s, rank); i < wb_search_end(s, rank) && expert >= 0; i++)
        if (i != slot && after(s, t, i) == expert) return true;
    return false;
}

/* Does the trade unless it would put an expert twice on a rank. */
static bool commit(wb_search *s, const trade *t) {
    const uint32_t moved[] = {t->give[0], t->give[1], t->take[0], t->take[1], t->of_first, t->of_second};
    const int n = t->of_first == WB_NO_SLOT ? 4 : 6;
    for (int k = 0; k < n; k++)
        if (repeats_after(s, t, moved[k])) return false;
    for (int k = 0; k < 2; k++) wb_search_swap(s, t->give[k], t->take[k]);
    if (n == 6) wb_search_swap(s, t->of_first, t->of_second);
    return true;
}

/* Given which slots of the hot rank go where: the third exchange, so that both other ranks end at most at
 * the target. */
static bool finish_trade(wb_search *s, trade t, double target) {
    uint32_t r = wb_search_rank(s, t.take[0]), q = wb_search_rank(s, t.take[1]);
    double a = wb_search_share(s, t.give[0]), b = wb_search_share(s, t.give[1]);
    double load_r = s->rank_load[r] + a - wb_search_share(s, t.take[0]);
    double load_q = s->rank_load[q] + b - wb_search_share(s, t.take[1]);
    loss_range loss = {load_r - target, target - load_q};
    if (loss.max < loss.min) return false;
    t.of_first = t.of_second = WB_NO_SLOT;
    if (load_r <= target && load_q <= target && commit(s, &t)) return true;
    for (uint32_t u = wb_search_begin(s, r); u < wb_search_end(s, r); u++) {
        double of_u = u == t.take[0] ? a : wb_search_share(s, u);
        for (uint32_t v = wb_search_begin(s, q); v < wb_search_end(s, q); v++) {
            double d = of_u - (v == t.take[1] ? b : wb_search_share(s, v));
            s->trials--;
            if (d < loss.min || d > loss.max) continue;
            t.of_first = u, t.of_second = v;
            if (commit(s, &t)) return true;
        }
    }
    return false;
}

/* Replicas of two experts for the two slots given. */
static bool trade_for(wb_search *s, uint32_t hot, trade t, uint32_t e, uint32_t f, double target) {
    for (uint32_t i = s->head[e]; i != WB_NO_SLOT; i = s->next[i])
        for (uint32_t j = s->head[f]; j != WB_NO_SLOT; j = s->next[j]) {
            uint32_t r = wb_search_rank(s, i), q = wb_search_rank(s, j);
            s->trials--;
            if (r == hot || q == hot || r == q) continue;
            t.take[0] = i, t.take[1] = j;
            if (finish_trade(s, t, target)) return true;
        }
    return false;
}

/* All pairs of experts whose shares add up to what the rank may take for the two slots it gives. */
static bool trade_slots(wb_search *s, uint32_t hot, uint32_t a, uint32_t b, double target, double width) {
    double max = target - s->rank_load[hot] + wb_search_share(s, a) + wb_search_share(s, b);
    uint32_t first = s->n_experts;
    for (uint32_t i = 0; i < s->n_experts && s->trials > 0; i++) {
        double of_i = s->share[s->order[i]];
        while (first > 0 && of_i + s->share[s->order[first - 1]] <= max) first--;
        s->trials--;
        for (uint32_t j = first > i ? first : i + 1; j < s->n_experts; j++) {
            if (of_i + s->share[s->order[j]] < max - width) break;
            if (trade_for(s, hot, (trade){.give = {a, b}}, s->order[i], s->order[j], target)) return true;
        }
    }
    return false;
}

static bool exchange_three_ranks(wb_search *s, uint32_t hot, double target) {
    double coldest = target;
    for (uint32_t r = 0; r < s->n_ranks; r++)
        if (!s->frame->dead[r] && s->rank_load[r] < coldest) coldest = s->rank_load[r];
    double width = 2 * (target - coldest) - (s->rank_load[hot] - target);
    if (width < 0) return false;
    for (uint32_t a = wb_search_begin(s, hot); a < wb_search_end(s, hot); a++)
        for (uint32_t b = a + 1; b < wb_search_end(s, hot) && s->trials > 0; b++)
            if (trade_slots(s, hot, a, b, target, width)) return true;
    return false;
}

/* ---- descent --------------------------------------------------------------------------------- */

static bool larger_share(const void *ctx, uint32_t a, uint32_t b) {
    const wb_search *s = ctx;
    return s->share[a] != s->share[b] ? s->share[a] > s->share[b] : a < b;
}

void wb_search_sort(wb_search *s) {
    wb_heap heap = {.items = s->order, .before = larger_share, .ctx = s};
    for (uint32_t e = 0; e < s->n_experts; e++) wb_heap_push(&heap, e);
    wb_heap_sort(&heap);
}

static bool cool(wb_search *s, uint32_t hot, double target) {
    return exchange_two_ranks(s, hot, target) || exchange_three_ranks(s, hot, target);
}

void wb_search_descend(wb_search *s, double goal) {
    bool stuck = false;
    wb_search_sort(s);
    s->trials -= s->n_experts;
    while (s->trials > 0 && !stuck) {
        s->trials -= s->n_ranks;
        double max = s->rank_load[wb_search_hottest(s)];
        if (max <= goal) break;
        /* A twentieth of the way to the goal at least: steps that are too small never arrive. */
        double target = goal + 0.95 * (max - goal);
        for (uint32_t r = 0; r < s->n_ranks && !stuck; r++)
            stuck = s->rank_load[r] > target && !cool(s, r, target);
    }
}

void wb_search_shake(wb_search *s, double max, uint32_t n) {
    for (; n > 0 && s->trials > 0; n--) {
        uint32_t rank = wb_search_rank(s, s->live_slots[wb_random_below(&s->random, s->n_live)]);
        exchange_two_ranks(s, rank, max);
    }
}
