/* solve_microbatch.c - one placement for M micro-batches whose routes are known: the smallest sum
 * over them of the maximum rank load.
 *
 * Starts from `balanced` on the sum, then anneals twice. First random swaps and replica moves under the
 * energy sum over micro-batches and ranks of (load / mean)^p, whose p doubles from stage to stage (a
 * maximum is the limit of p-norms), so that early on the whole shape counts and later the peaks. Then
 * swaps under the sum of the maxima itself. A rank's loads are a vector [M]. */
#include "solve/search.h"
#include "solve/solver.h"
#include "wb_memory.h"
#include "wb_random.h"

#include <stdlib.h>
#include <string.h>

enum {
    DEFAULT_TRIALS = 500000, /* of which a part for the norms */
    NORM_PARTS = 2,
    ALL_PARTS = 5,
    START_TRIALS = 200000, /* for the balanced placement to start from */
    STAGES = 5,            /* p = 2, 4, ... 32 */
    COOLINGS = 7,          /* in each stage the temperature halves six times */
    PEAK_COOLINGS = 6
};
static const double START_TEMPERATURE = 0.01;        /* times p: the energy of a peak grows with p */
static const double START_PEAK_TEMPERATURE = 0.0025; /* in means of a micro-batch */

typedef struct annealing {
    wb_search search; /* the map: who holds what; its own shares and loads are those of the sum */
    uint32_t M;
    const double *loads;       /* [M][E] */
    double *mean;              /* [M] of a live rank; 0: the micro-batch is empty and counts for nothing */
    double *weight;            /* [M] mean / average mean */
    double *scaled;            /* [E][M] loads / mean */
    double *share;             /* [E][M] scaled / replicas */
    double *load;              /* [R][M] of the rank, as multiples of the mean */
    double *cost;              /* [R] the rank's part of the energy */
    double *peak;              /* [M] of the most loaded rank, for the second annealing */
    double *delta, *powers;    /* [M] scratch */
    uint32_t *touched, *stamp; /* [R] ranks that a move changes; when each was last listed */
    uint32_t now, n_touched;
    double *saved; /* [R][M] their loads before it */
    int squarings; /* p = 2^squarings */
    double temperature;
} annealing;

/* ---- memory ---------------------------------------------------------------------------------- */

static wb_status open_annealing(annealing *a) {
    size_t M = a->M, E = a->search.n_experts, R = a->search.n_ranks;
    wb_owner *memory = &a->search.memory;
    const char *what = "microbatch";
    WB_TRY(WB_OWN(memory, a->mean, M, what));
    WB_TRY(WB_OWN(memory, a->weight, M, what));
    WB_TRY(WB_OWN(memory, a->peak, M, what));
    WB_TRY(WB_OWN(memory, a->delta, M, what));
    WB_TRY(WB_OWN(memory, a->powers, M, what));
    WB_TRY(WB_OWN_ALLOC(memory, a->scaled, E, M * sizeof(double), what));
    WB_TRY(WB_OWN_ALLOC(memory, a->share, E, M * sizeof(double), what));
    WB_TRY(WB_OWN_ALLOC(memory, a->load, R, M * sizeof(double), what));
    WB_TRY(WB_OWN_ALLOC(memory, a->saved, R, M * sizeof(double), what));
    WB_TRY(WB_OWN(memory, a->cost, R, what));
    WB_TRY(WB_OWN(memory, a->touched, R, what));
    return WB_OWN(memory, a->stamp, R, what);
}

static void scale_loads(annealing *a) {
    size_t M = a->M, E = a->search.n_experts;
    double all = 0;
    uint32_t live = 0;
    for (uint32_t r = 0; r < a->search.n_ranks; r++) live += !a->search.frame->dead[r];
    for (size_t m = 0; m < M; m++) {
        double sum = 0;
        for (size_t e = 0; e < E; e++) sum += a->loads[m * E + e];
        a->mean[m] = sum / live;
        all += a->mean[m];
    }
    for (size_t m = 0; m < M; m++) {
        a->weight[m] = all > 0 ? a->mean[m] / all * (double)M : 0;
        for (size_t e = 0; e < E; e++)
            a->scaled[e * M + m] = a->mean[m] > 0 ? a->loads[m * E + e] / a->mean[m] : 0;
    }
}

static void set_share(annealing *a, uint32_t expert) {
    size_t M = a->M;
    double part = 1.0 / a->search.count[expert];
    for (size_t m = 0; m < M; m++) a->share[expert * M + m] = a->scaled[expert * M + m] * part;
}

/* to += sign * share of the expert; nothing for an empty slot. */
static void add_share(const annealing *a, double *to, int32_t expert, double sign) {
    if (expert < 0) return;
    const double *share = a->share + (size_t)expert * a->M;
    for (uint32_t m = 0; m < a->M; m++) to[m] += sign * share[m];
}

/* Shares and rank loads from the map alone. */
static void settle(annealing *a) {
    wb_search *s = &a->search;
    for (uint32_t e = 0; e < s->n_experts; e++) set_share(a, e);
    memset(a->load, 0, (size_t)s->n_ranks * a->M * sizeof *a->load);
    for (uint32_t i = 0; i < s->n_slots; i++)
        add_share(a, a->load + (size_t)wb_search_rank(s, i) * a->M, s->expert[i], 1);
}

/* The most loaded rank of a micro-batch, ranks `without` left out (WB_NO_RANK: none). */
static double peak_of(const annealing *a, uint32_t m, uint32_t without, uint32_t without_too) {
    double max = 0;
    for (uint32_t r = 0; r < a->search.n_ranks; r++) {
        double load = a->load[(size_t)r * a->M + m];
        if (load > max && r != without && r != without_too) max = load;
    }
    return max;
}

/* Fills peak; returns the sum over micro-batches of the maximum rank load, weighted: in means of a
 * micro-batch. */
static double find_peaks(annealing *a) {
    double sum = 0;
    for (uint32_t m = 0; m < a->M; m++) {
        a->peak[m] = peak_of(a, m, WB_NO_RANK, WB_NO_RANK);
        sum += a->weight[m] * a->peak[m];
    }
    return sum;
}

/* ---- energy ---------------------------------------------------------------------------------- */

/* The energy of a rank with loads + sign * delta; delta NULL: as it is. */
static double energy(annealing *a, const double *loads, const double *delta, double sign) {
    uint32_t M = a->M;
    double *v = a->powers, sum = 0;
    for (uint32_t m = 0; m < M; m++) v[m] = delta ? loads[m] + sign * delta[m] : loads[m];
    for (int k = 0; k < a->squarings; k++)
        for (uint32_t m = 0; m < M; m++) v[m] *= v[m];
    for (uint32_t m = 0; m < M; m++) sum += a->weight[m] * v[m];
    return sum;
}

/* Metropolis: always when the energy falls, else with a probability of about exp(-rise / temperature). The
 * exponential deviate comes from the bits of a random number (leading zeros, then linear within the
 * octave): no libm, whose last bits differ between machines. */
static bool accept(annealing *a, double rise) {
    if (rise <= 0) return true;
    uint64_t bits = wb_random(&a->search.random) | 1;
    int zeros = __builtin_clzll(bits);
    double fraction = (double)((bits << zeros << 1) >> 11) * 0x1p-53;
    return rise < a->temperature * 0.6931471805599453 * (zeros + 1 - fraction);
}

/* ---- moves ----------------------------------------------------------------------------------- */

static uint32_t random_slot(annealing *a) {
    return a->search.live_slots[wb_random_below(&a->search.random, a->search.n_live)];
}

/* delta = what rank of slot i gains, and that of slot j loses, when the slots are swapped; false when that
 * is nothing. */
static bool propose_swap(annealing *a, uint32_t i, uint32_t j) {
    const wb_search *s = &a->search;
    if (wb_search_rank(s, i) == wb_search_rank(s, j) || s->expert[i] == s->expert[j]) return false;
    memset(a->delta, 0, a->M * sizeof *a->delta);
    add_share(a, a->delta, s->expert[j], 1);
    add_share(a, a->delta, s->expert[i], -1);
    return true;
}

/* Does the proposed swap, unless an expert would be twice on a rank. */
static bool do_swap(annealing *a, uint32_t i, uint32_t j) {
    wb_search *s = &a->search;
    uint32_t of_i = wb_search_rank(s, i), of_j = wb_search_rank(s, j);
    if (wb_search_holds(s, of_i, s->expert[j]) || wb_search_holds(s, of_j, s->expert[i])) return false;
    wb_search_swap(s, i, j);
    double *ours = a->load + (size_t)of_i * a->M, *theirs = a->load + (size_t)of_j * a->M;
    for (uint32_t m = 0; m < a->M; m++) {
        ours[m] += a->delta[m];
        theirs[m] -= a->delta[m];
    }
    return true;
}

static void try_swap(annealing *a) {
    wb_search *s = &a->search;
    uint32_t i = random_slot(a), j = random_slot(a), of_i = wb_search_rank(s, i), of_j = wb_search_rank(s, j);
    s->trials--;
    if (!propose_swap(a, i, j)) return;
    double our_cost = energy(a, a->load + (size_t)of_i * a->M, a->delta, 1);
    double their_cost = energy(a, a->load + (size_t)of_j * a->M, a->delta, -1);
    if (!accept(a, our_cost + their_cost - a->cost[of_i] - a->cost[of_j]) || !do_swap(a, i, j)) return;
    a->cost[of_i] = our_cost;
    a->cost[of_j] = their_cost;
}

/* The same under the sum of the peaks. Other ranks are looked at only where a peak of one of the two
 * falls. */
static void try_swap_of_peaks(annealing *a) {
    wb_search *s = &a->search;
    uint32_t i = random_slot(a), j = random_slot(a), of_i = wb_search_rank(s, i), of_j = wb_search_rank(s, j);
    const double *ours = a->load + (size_t)of_i * a->M, *theirs = a->load + (size_t)of_j * a->M;
    double rise = 0, *peak = a->powers;
    s->trials--;
    if (!propose_swap(a, i, j)) return;
    for (uint32_t m = 0; m < a->M; m++) {
        double our_load = ours[m] + a->delta[m], their_load = theirs[m] - a->delta[m];
        double max = our_load > their_load ? our_load : their_load;
        bool falls = max < a->peak[m] && (ours[m] >= a->peak[m] || theirs[m] >= a->peak[m]);
        double others = falls ? peak_of(a, m, of_i, of_j) : max < a->peak[m] ? a->peak[m] : 0;
        peak[m] = max > others ? max : others;
        rise += a->weight[m] * (peak[m] - a->peak[m]);
    }
    if (accept(a, rise) && do_swap(a, i, j)) memcpy(a->peak, peak, a->M * sizeof *peak);
}

static void touch(annealing *a, uint32_t rank) {
    if (a->stamp[rank] == a->now) return;
    a->stamp[rank] = a->now;
    memcpy(a->saved + (size_t)a->n_touched * a->M, a->load + (size_t)rank * a->M, a->M * sizeof *a->load);
    a->touched[a->n_touched++] = rank;
}

/* Adds sign * share to every rank that has the expert, once for each replica. */
static void add_to_holders(annealing *a, int32_t expert, double sign) {
    wb_search *s = &a->search;
    if (expert < 0) return;
    for (uint32_t i = s->head[expert]; i != WB_NO_SLOT; i = s->next[i]) {
        touch(a, wb_search_rank(s, i));
        add_share(a, a->load + (size_t)wb_search_rank(s, i) * a->M, expert, sign);
    }
}

/* The slot's replica goes from its expert (or none: -1) to `expert` (or back to none); rank loads follow,
 * costs do not. */
static void move_replica(annealing *a, uint32_t slot, int32_t expert) {
    wb_search *s = &a->search;
    int32_t old = s->expert[slot];
    add_to_holders(a, old, -1);
    add_to_holders(a, expert, -1);
    wb_search_transfer(s, slot, (uint32_t)expert);
    if (old >= 0) set_share(a, (uint32_t)old);
    set_share(a, (uint32_t)expert);
    add_to_holders(a, old, 1);
    add_to_holders(a, expert, 1);
}

/* Back to the loads, shares and lists of before. */
static void undo_move(annealing *a, uint32_t slot, int32_t old, int32_t expert) {
    wb_search_transfer(&a->search, slot, (uint32_t)old);
    set_share(a, (uint32_t)old);
    set_share(a, (uint32_t)expert);
    for (uint32_t i = 0; i < a->n_touched; i++)
        memcpy(a->load + (size_t)a->touched[i] * a->M, a->saved + (size_t)i * a->M, a->M * sizeof *a->load);
}

/* A random slot of an expert that has others gets a replica of a random other one. */
static void try_transfer(annealing *a) {
    wb_search *s = &a->search;
    uint32_t slot = random_slot(a);
    int32_t old = s->expert[slot], expert = s->expert[random_slot(a)];
    s->trials--;
    if (old < 0 || s->count[old] < 2 || expert < 0 || expert == old || s->count[expert] >= s->cap) return;
    if (wb_search_holds(s, wb_search_rank(s, slot), expert)) return;
    a->now++;
    a->n_touched = 0;
    move_replica(a, slot, expert);
    double rise = 0;
    for (uint32_t i = 0; i < a->n_touched; i++)
        rise += energy(a, a->load + (size_t)a->touched[i] * a->M, NULL, 0) - a->cost[a->touched[i]];
    s->trials -= a->n_touched / 2;
    if (!accept(a, rise)) {
        undo_move(a, slot, old, expert);
        return;
    }
    for (uint32_t i = 0; i < a->n_touched; i++)
        a->cost[a->touched[i]] = energy(a, a->load + (size_t)a->touched[i] * a->M, NULL, 0);
}

static void anneal_norms(annealing *a, int64_t trials) {
    wb_search *s = &a->search;
    for (int step = 0; step < STAGES * COOLINGS; step++) {
        a->squarings = 1 + step / COOLINGS;
        a->temperature = START_TEMPERATURE * (1 << a->squarings) / (1 << step % COOLINGS);
        for (uint32_t r = 0; r < s->n_ranks; r++) a->cost[r] = energy(a, a->load + (size_t)r * a->M, NULL, 0);
        for (s->trials = trials / (STAGES * COOLINGS); s->trials > 0;) {
            if (wb_random_below(&s->random, 4) == 0)
                try_transfer(a);
            else
                try_swap(a);
        }
        settle(a); /* what rounding left of many small changes */
    }
}

static void anneal_peaks(annealing *a, int64_t trials) {
    wb_search *s = &a->search;
    for (int step = 0; step < PEAK_COOLINGS; step++) {
        a->temperature = START_PEAK_TEMPERATURE / (1 << step);
        find_peaks(a);
        for (s->trials = trials / PEAK_COOLINGS; s->trials > 0;) try_swap_of_peaks(a);
        settle(a);
    }
}

/* ---- the solver ------------------------------------------------------------------------------ */

static wb_status start_from_balanced(const wb_layer_problem *problem, const double *sum,
                                     int32_t *experts_out) {
    wb_eplb_options options = *problem->options;
    options.trials = START_TRIALS;
    wb_layer_problem start = *problem;
    start.options = &options;
    start.n_batches = 1;
    start.loads = sum;
    return wb_solve_balanced(&start, experts_out, NULL);
}

static wb_status solve(annealing *a, const wb_layer_problem *problem, int32_t *experts_out) {
    wb_search *s = &a->search;
    WB_TRY(open_annealing(a));
    scale_loads(a);
    for (uint32_t i = 0; i < s->n_slots; i++)
        if (experts_out[i] >= 0) wb_search_put(s, i, (uint32_t)experts_out[i]);
    wb_search_settle(s);
    settle(a);
    double before = find_peaks(a);
    int64_t trials = problem->options->trials > 0 ? problem->options->trials : DEFAULT_TRIALS;
    anneal_norms(a, trials * NORM_PARTS / ALL_PARTS);
    anneal_peaks(a, trials - trials * NORM_PARTS / ALL_PARTS);
    if (find_peaks(a) < before) memcpy(experts_out, s->expert, s->n_slots * sizeof *experts_out);
    return WB_OK;
}

wb_status wb_solve_microbatch(const wb_layer_problem *problem, int32_t *expert_of_slot_out,
                              uint32_t *replica_of_slot_out) {
    (void)replica_of_slot_out; /* in slot order */
    uint32_t E = problem->frame->n_experts;
    double *sum = NULL;
    WB_TRY(WB_NEW(sum, E, "microbatch"));
    for (uint32_t m = 0; m < problem->n_batches; m++)
        for (uint32_t e = 0; e < E; e++) sum[e] += problem->loads[(size_t)m * E + e];
    annealing a = {.M = problem->n_batches, .loads = problem->loads};
    wb_status status = start_from_balanced(problem, sum, expert_of_slot_out);
    if (status == WB_OK) status = wb_search_open(problem->frame, sum, problem->layer, 0, &a.search);
    if (status == WB_OK) {
        status = solve(&a, problem, expert_of_slot_out);
        wb_search_close(&a.search);
    }
    free(sum);
    return status;
}
