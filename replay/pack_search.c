/* pack_search.c - exchanges of two sequences, and moves of one, that lower the cost of a packing: of each
 * micro-batch the most attention of a rank, and the distance of its counts from its share of the step's. A
 * bin is a micro-batch's part of a rank. Owns: the arithmetic of both. Refuses: libm and time, which
 * differ between ranks. */
#include "pack_search.h"

#include "wb_check.h"
#include "wb_random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    LANES = 8,
    TRIALS_OF_ONE = 200,
    MIN_TRIALS = 20000,
    MAX_TRIALS = 2000000,
    NEIGHBOURS = 16,
    PATIENCE_OF_ONE = 40,
    SHAKES = 4
};

typedef struct packing {
    wb_owner memory;
    const pack_problem *p;
    uint32_t M, n_bins;
    uint32_t *order;   /* [n] sequences by descending rows, then ascending number */
    uint32_t *bins;    /* [n] of each sequence; the caller's */
    double *attention; /* [bins] */
    int64_t *rows;     /* [bins] */
    double *peak;      /* [M] the most attention of a rank */
    double *sum;       /* [padded] of all sketches */
    float *centred;    /* [n][padded] sketch less the sequence's share of the sum of all */
    double *deviation; /* [M][padded] sum of them */
    double *distance;  /* [M] its length */
    size_t padded;     /* width, rounded up to LANES */
    uint64_t random;
    uint32_t *best; /* [n] the bins of the best packing so far */
    double best_cost;
} packing;

double wb_pack_unevenness(double per_choice, uint32_t n_ranks, uint32_t n_layers) {
    if (n_ranks < 2) return 0;
    const double ln = 0.6931471805599453 * (31 - __builtin_clz(n_ranks));
    return per_choice * sqrt(2 * ln * n_layers / n_ranks);
}

/* ---- distances ---------------------------------------------------------------------------------- */

static double sum_of(const double *lanes) {
    double sum = 0;
    for (int i = 0; i < LANES; i++) sum += lanes[i];
    return sum;
}

/* The square of deviation + add - take; either may be NULL. */
static double square(const packing *k, const double *deviation, const float *add, const float *take) {
    double lanes[LANES] = {0};
    for (size_t i = 0; i < k->padded; i += LANES)
        for (size_t j = 0; j < LANES; j++) {
            const double v =
                deviation[i + j] + (add ? (double)add[i + j] : 0) - (take ? (double)take[i + j] : 0);
            lanes[j] += v * v;
        }
    return sum_of(lanes);
}

static const float *centred_of(const packing *k, uint32_t sequence) {
    return k->centred + sequence * k->padded;
}

static double *deviation_of(const packing *k, uint32_t m) {
    return k->deviation + m * k->padded;
}

static void add_to(const packing *k, uint32_t m, uint32_t sequence, double sign) {
    double *deviation = deviation_of(k, m);
    const float *centred = centred_of(k, sequence);
    for (size_t i = 0; i < k->padded; i++) deviation[i] += sign * (double)centred[i];
}

/* Room for the micro-batches that there are. */
static wb_status reserve(packing *k) {
    const char *what = "packing: bins";
    k->n_bins = k->M * k->p->n_ranks;
    k->padded = ((size_t)k->p->width + LANES - 1) / LANES * LANES;
    const size_t row = k->padded * sizeof(double);
    WB_TRY(WB_OWN(&k->memory, k->best, k->p->n, what));
    WB_TRY(WB_OWN(&k->memory, k->attention, k->n_bins, what));
    WB_TRY(WB_OWN(&k->memory, k->rows, k->n_bins, what));
    WB_TRY(WB_OWN(&k->memory, k->peak, k->M, what));
    WB_TRY(WB_OWN(&k->memory, k->distance, k->M, what));
    WB_TRY(WB_OWN_ALLOC(&k->memory, k->deviation, k->M, row, what));
    WB_TRY(WB_OWN(&k->memory, k->sum, k->padded, what));
    return WB_OWN_ALLOC(&k->memory, k->centred, k->p->n, k->padded * sizeof *k->centred, "packing: sketches");
}

static void centre(packing *k) {
    const pack_problem *p = k->p;
    const size_t width = p->width;
    double rows = 0;
    for (uint32_t s = 0; s < p->n; s++) {
        for (size_t i = 0; i < width; i++) k->sum[i] += p->sketches[s * width + i];
        rows += p->rows[s];
    }
    for (uint32_t s = 0; s < p->n; s++)
        for (size_t i = 0; i < width; i++)
            k->centred[s * k->padded + i] =
                (float)(p->sketches[s * width + i] - k->sum[i] * (p->rows[s] / rows));
}

/* The most attention of a rank in a micro-batch, two of its bins left out. */
static double peak_without(const packing *k, uint32_t m, uint32_t bin, uint32_t too) {
    double max = 0;
    for (uint32_t b = m * k->p->n_ranks; b < (m + 1) * k->p->n_ranks; b++)
        if (k->attention[b] > max && b != bin && b != too) max = k->attention[b];
    return max;
}

/* All that follows from the bins alone. */
static void settle(packing *k) {
    memset(k->rows, 0, k->n_bins * sizeof *k->rows);
    memset(k->attention, 0, k->n_bins * sizeof *k->attention);
    for (uint32_t s = 0; s < k->p->n; s++) {
        k->rows[k->bins[s]] += k->p->rows[s];
        k->attention[k->bins[s]] += k->p->attention[s];
    }
    memset(k->deviation, 0, k->M * k->padded * sizeof *k->deviation);
    for (uint32_t s = 0; s < k->p->n; s++) add_to(k, k->bins[s] / k->p->n_ranks, s, 1);
    for (uint32_t m = 0; m < k->M; m++) {
        k->distance[m] = sqrt(square(k, deviation_of(k, m), NULL, NULL));
        k->peak[m] = peak_without(k, m, UINT32_MAX, UINT32_MAX);
    }
}

static double total_distance(const packing *k) {
    double sum = 0;
    for (uint32_t m = 0; m < k->M; m++) sum += k->distance[m];
    return sum;
}

/* ---- exchanges ---------------------------------------------------------------------------------- */

#define NOTHING UINT32_MAX

/* Sequence `ours` leaves bin `from` for bin `to`, and `theirs` (or NOTHING) comes back. */
typedef struct exchange {
    uint32_t ours, theirs, from, to;
    double from_attention, to_attention;                   /* of the bins afterwards */
    double from_peak, to_peak, from_distance, to_distance; /* of their micro-batches */
} exchange;

static bool fits(const packing *k, const exchange *x) {
    const uint32_t *rows = k->p->rows;
    const int64_t more = (int64_t)rows[x->ours] - (x->theirs == NOTHING ? 0 : rows[x->theirs]);
    return k->rows[x->to] + more <= k->p->max_rows && k->rows[x->from] - more <= k->p->max_rows;
}

/* The peak of a micro-batch in which `bin` gets `now`, and `too` (or NOTHING) gets too_now. Other ranks are
 * looked at only where the peak may have fallen. */
static double peak_after(const packing *k, uint32_t m, uint32_t bin, double now, uint32_t too,
                         double too_now) {
    const double max = too != NOTHING && too_now > now ? too_now : now;
    if (max >= k->peak[m]) return max;
    const bool was = k->attention[bin] >= k->peak[m] || (too != NOTHING && k->attention[too] >= k->peak[m]);
    const double others = was ? peak_without(k, m, bin, too) : k->peak[m];
    return max > others ? max : others;
}

/* Fills what comes of it; returns how much the cost rises. */
static double weigh(const packing *k, exchange *x) {
    const pack_problem *p = k->p;
    const double more = p->attention[x->ours] - (x->theirs == NOTHING ? 0 : p->attention[x->theirs]);
    const uint32_t m = x->from / p->n_ranks, n = x->to / p->n_ranks;
    x->from_attention = k->attention[x->from] - more;
    x->to_attention = k->attention[x->to] + more;
    if (m == n) {
        x->from_peak = x->to_peak = peak_after(k, m, x->from, x->from_attention, x->to, x->to_attention);
        x->from_distance = x->to_distance = k->distance[m];
        return x->from_peak - k->peak[m];
    }
    x->from_peak = peak_after(k, m, x->from, x->from_attention, NOTHING, 0);
    x->to_peak = peak_after(k, n, x->to, x->to_attention, NOTHING, 0);
    const double rise = x->from_peak + x->to_peak - k->peak[m] - k->peak[n];
    /* The most that distances could fall by. */
    if (rise >= p->unevenness * (k->distance[m] + k->distance[n])) return rise;
    const float *ours = centred_of(k, x->ours),
                *theirs = x->theirs == NOTHING ? NULL : centred_of(k, x->theirs);
    x->from_distance = sqrt(square(k, deviation_of(k, m), theirs, ours));
    x->to_distance = sqrt(square(k, deviation_of(k, n), ours, theirs));
    return rise + p->unevenness * (x->from_distance + x->to_distance - k->distance[m] - k->distance[n]);
}

static void carry_out(packing *k, const exchange *x) {
    const uint32_t *rows = k->p->rows, m = x->from / k->p->n_ranks, n = x->to / k->p->n_ranks;
    const int64_t more = (int64_t)rows[x->ours] - (x->theirs == NOTHING ? 0 : rows[x->theirs]);
    k->rows[x->from] -= more;
    k->rows[x->to] += more;
    k->attention[x->from] = x->from_attention;
    k->attention[x->to] = x->to_attention;
    k->peak[m] = x->from_peak;
    k->peak[n] = x->to_peak;
    k->bins[x->ours] = x->to;
    if (x->theirs != NOTHING) k->bins[x->theirs] = x->from;
    if (m == n) return;
    k->distance[m] = x->from_distance;
    k->distance[n] = x->to_distance;
    add_to(k, m, x->ours, -1);
    add_to(k, n, x->ours, 1);
    if (x->theirs == NOTHING) return;
    add_to(k, m, x->theirs, 1);
    add_to(k, n, x->theirs, -1);
}

/* A quarter are moves into any bin; the others exchanges, half of them with a sequence of about the same
 * length, which leave attention nearly as it is. */
static exchange propose(packing *k) {
    const uint32_t n = k->p->n, kind = wb_random_below(&k->random, 8), i = wb_random_below(&k->random, n);
    exchange x = {.ours = k->order[i], .theirs = NOTHING};
    x.from = k->bins[x.ours];
    if (kind < 2) {
        x.to = wb_random_below(&k->random, k->n_bins);
        return x;
    }
    uint32_t j = wb_random_below(&k->random, n);
    if (kind < 5) {
        const uint32_t first = i < NEIGHBOURS ? 0 : i - NEIGHBOURS;
        const uint32_t end = i + NEIGHBOURS < n ? i + NEIGHBOURS + 1 : n;
        j = first + wb_random_below(&k->random, end - first);
    }
    x.theirs = k->order[j];
    x.to = k->bins[x.theirs];
    return x;
}

static double cost_of(const packing *k) {
    double cost = k->p->unevenness * total_distance(k);
    for (uint32_t m = 0; m < k->M; m++) cost += k->peak[m];
    return cost;
}

/* Keeps the packing where it is better than the best so far; else goes back to that. */
static void keep_best(packing *k) {
    const double cost = cost_of(k);
    const bool better = cost < k->best_cost;
    memcpy(better ? k->best : k->bins, better ? k->bins : k->best, k->p->n * sizeof *k->bins);
    if (better)
        k->best_cost = cost;
    else
        settle(k);
}

/* Some exchanges that fit, whatever they cost. Distances, which weigh may leave out, are settled at the
 * end. */
static void shake(packing *k) {
    for (int done = 0, tried = 0; done < SHAKES && tried < PATIENCE_OF_ONE; tried++) {
        exchange x = propose(k);
        if (x.from == x.to || !fits(k, &x)) continue;
        weigh(k, &x);
        carry_out(k, &x);
        done++;
    }
    settle(k);
}

/* Exchanges that lower the cost; when there has been none for long, a shake of the best packing. A small step
 * is searched many times over, a large one once. */
static void improve(packing *k) {
    int64_t trials = (int64_t)k->p->n * TRIALS_OF_ONE, idle = 0;
    const int64_t patience = (int64_t)k->p->n * PATIENCE_OF_ONE;
    trials = trials < MIN_TRIALS ? MIN_TRIALS : trials > MAX_TRIALS ? MAX_TRIALS : trials;
    k->best_cost = cost_of(k);
    memcpy(k->best, k->bins, k->p->n * sizeof *k->bins);
    const double least = 1e-12 * k->best_cost; /* less than rounding errors is no gain */
    for (; trials > 0; trials--) {
        exchange x = propose(k);
        const bool gains = x.from != x.to && fits(k, &x) && weigh(k, &x) < -least;
        if (gains) carry_out(k, &x);
        idle = gains ? 0 : idle + 1;
        if (idle < patience) continue;
        keep_best(k);
        shake(k);
        idle = 0;
    }
    keep_best(k);
}

/* Micro-batches that lost all sequences are left out, where room was for fewer. */
static void drop_empty(packing *k) {
    uint32_t kept = 0;
    for (uint32_t m = 0; m < k->M; m++) {
        bool any = false;
        for (uint32_t s = 0; s < k->p->n; s++) {
            const uint32_t bin = k->bins[s];
            if (bin / k->p->n_ranks != m) continue;
            k->bins[s] = kept * k->p->n_ranks + bin % k->p->n_ranks;
            any = true;
        }
        kept += any;
    }
    k->M = kept;
    k->n_bins = kept * k->p->n_ranks;
    settle(k);
}

/* ---- the search --------------------------------------------------------------------------------- */

static wb_status search(packing *k, pack_answer *answer) {
    WB_TRY(WB_OWN(&k->memory, k->order, k->p->n, "packing"));
    WB_TRY(wb_pack_order(k->p, k->order));
    WB_TRY(wb_pack_start(k->p, k->order, k->bins, &k->M));
    WB_TRY(reserve(k));
    centre(k);
    settle(k);
    answer->distance_before = total_distance(k);
    improve(k);
    drop_empty(k);
    answer->n_micro_batches = k->M;
    answer->distance = total_distance(k);
    for (uint32_t b = 0; b < k->n_bins; b++) answer->mean_attention += k->attention[b] / k->p->n_ranks;
    for (uint32_t m = 0; m < k->M; m++) answer->max_attention += k->peak[m];
    return WB_OK;
}

wb_status wb_pack_search(const pack_problem *problem, uint32_t *bins_out, pack_answer *answer_out) {
    packing k = {.p = problem, .bins = bins_out, .random = wb_mix64(problem->seed)};
    pack_answer answer = {0};
    wb_status status = problem->n > 0 ? search(&k, &answer) : WB_OK;
    wb_owner_close(&k.memory);
    if (status == WB_OK) *answer_out = answer;
    return status;
}
