/* anneal.c - random moves under an energy that comes nearer to the maximum from stage to stage; see anneal.h.
 *
 * The energy is the sum over ranks of (load / mean)^p, whose p doubles from stage to stage: early on the
 * whole shape counts and later the peaks. In each stage the temperature falls to 0. */
#include "solve/anneal.h"
#include "wb_random.h"

enum { STAGES = 9, KINDS = 4 };        /* p = 2, 4, ... 512 */
static const double TEMPERATURE = 0.3; /* times p: the energy of a peak grows with p */
static const double MAX_SCALED = 3.5;  /* its 512th power is still a number */

typedef struct annealing {
    wb_search *search;
    double unit; /* load that is 1 to the energy */
    int squarings;
    double rise;               /* of the energy that is accepted */
    uint32_t *touched, *stamp; /* [R] ranks that a move changes; when each was last listed */
    uint32_t now, n_touched;
} annealing;

/* ---- the energy of the ranks that a move changes --------------------------------------------- */

static void begin_move(annealing *a) {
    a->n_touched = 0;
    a->now++;
}

static void touch(annealing *a, uint32_t slot) {
    uint32_t rank = wb_search_rank(a->search, slot);
    if (a->stamp[rank] == a->now) return;
    a->stamp[rank] = a->now;
    a->touched[a->n_touched++] = rank;
}

static void touch_replicas(annealing *a, int32_t expert) {
    const wb_search *s = a->search;
    if (expert < 0) return;
    for (uint32_t i = s->head[expert]; i != WB_NO_SLOT; i = s->next[i]) touch(a, i);
}

static double energy(const annealing *a) {
    double sum = 0;
    for (uint32_t k = 0; k < a->n_touched; k++) {
        double v = a->search->rank_load[a->touched[k]] / a->unit;
        if (v > MAX_SCALED) v = MAX_SCALED;
        for (int q = 0; q < a->squarings; q++) v *= v;
        sum += v;
    }
    return sum;
}

/* ---- moves ----------------------------------------------------------------------------------- */

static void give(wb_search *s, uint32_t slot, int32_t expert) {
    if (expert < 0)
        wb_search_vacate(s, slot);
    else
        wb_search_transfer(s, slot, (uint32_t)expert);
}

/* Another expert for the slot, or none (WB_NO_EXPERT). */
static void try_replace(annealing *a, uint32_t slot, int32_t expert) {
    wb_search *s = a->search;
    int32_t old = s->expert[slot];
    if (expert == old || (old >= 0 && s->count[old] < 2)) return;
    if (wb_search_holds(s, wb_search_rank(s, slot), expert)) return;
    begin_move(a);
    touch_replicas(a, old);
    touch_replicas(a, expert);
    touch(a, slot);
    s->trials -= 2 * (int64_t)a->n_touched;
    double before = energy(a);
    give(s, slot, expert);
    if (energy(a) > before + a->rise) give(s, slot, old);
}

static void try_swap(annealing *a, uint32_t i, uint32_t j) {
    wb_search *s = a->search;
    uint32_t of_i = wb_search_rank(s, i), of_j = wb_search_rank(s, j);
    if (of_i == of_j || s->expert[i] == s->expert[j]) return;
    if (wb_search_holds(s, of_i, s->expert[j]) || wb_search_holds(s, of_j, s->expert[i])) return;
    begin_move(a);
    touch(a, i);
    touch(a, j);
    double before = energy(a);
    wb_search_swap(s, i, j);
    if (energy(a) > before + a->rise) wb_search_swap(s, i, j);
}

/* Half of the moves are swaps, a quarter gives a slot to an expert that has many replicas, an eighth each to
 * any expert and to none. */
static void move(annealing *a) {
    wb_search *s = a->search;
    uint32_t i = s->live_slots[wb_random_below(&s->random, s->n_live)];
    uint32_t j = s->live_slots[wb_random_below(&s->random, s->n_live)];
    switch (wb_random_below(&s->random, KINDS)) {
    case 0:
        try_replace(a, i, (int32_t)wb_random_below(&s->random, s->n_experts));
        break;
    case 1:
        try_replace(a, i, wb_random_below(&s->random, KINDS) == 0 ? WB_NO_EXPERT : s->expert[j]);
        break;
    default:
        try_swap(a, i, j);
    }
}

wb_status wb_search_anneal(wb_search *s, int64_t trials) {
    enum { TRIALS_OF_A_MOVE = 4 };
    annealing a = {.search = s, .unit = s->bound > s->mean ? s->bound : s->mean};
    WB_TRY(WB_OWN(&s->memory, a.touched, s->n_ranks, "annealing"));
    WB_TRY(WB_OWN(&s->memory, a.stamp, s->n_ranks, "annealing"));
    const double start = s->rank_load[wb_search_hottest(s)];
    const int64_t of_stage = trials / STAGES;
    wb_search_save(s);
    for (a.squarings = 1; a.squarings <= STAGES; a.squarings++) {
        const double hottest = TEMPERATURE * (1 << a.squarings);
        for (int64_t end = s->trials - of_stage; s->trials > end; s->trials -= TRIALS_OF_A_MOVE) {
            double left = (double)(s->trials - end) / (double)of_stage;
            a.rise = hottest * left * left * left * wb_random_below(&s->random, 1 << 20) * 0x1p-20;
            move(&a);
        }
    }
    wb_search_settle(s); /* without the rounding of many small changes */
    if (s->rank_load[wb_search_hottest(s)] >= start) wb_search_restore(s);
    return WB_OK;
}
