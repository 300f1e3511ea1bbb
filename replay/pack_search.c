/* pack_search.c - sequences into micro-batches and over ranks. First the longest sequence into the bin, one
 * a micro-batch and rank, that has the least attention and room for it; then exchanges of two sequences and
 * moves of one that lower the cost: of each micro-batch the most attention of a rank, and the distance of its
 * counts from its share of the step's. Owns: the arithmetic of both. Refuses: libm and time, which differ
 * between ranks. */
#include "pack_search.h"

#include "wb_check.h"
#include "wb_random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LANES = 8, TRIALS_OF_ONE = 200, MIN_TRIALS = 20000, MAX_TRIALS = 2000000, NEIGHBOURS = 16 };

typedef struct packing {
    wb_owner memory;
    const pack_problem *p;
    uint32_t M, n_bins;
    uint32_t *order;   /* [n] sequences by descending rows, then ascending number */
    uint32_t *bins;    /* [n] of each sequence; the caller's */
    uint32_t *heap;    /* [bins] by attention, then number */
    uint32_t *aside;   /* [bins] taken from the heap without room */
    double *attention; /* [bins] */
    int64_t *rows;     /* [bins] */
    double *peak;      /* [M] the most attention of a rank */
    float *centred;    /* [n][padded] sketch less the sequence's share of the sum of all */
    double *deviation; /* [M][padded] sum of them */
    double *distance;  /* [M] its length */
    size_t padded;     /* width, rounded up to LANES */
    uint64_t random;
} packing;

double wb_pack_unevenness(double per_choice, uint32_t n_ranks, uint32_t n_layers) {
    if (n_ranks < 2) return 0;
    const double ln = 0.6931471805599453 * (31 - __builtin_clz(n_ranks));
    return per_choice * sqrt(2 * ln * n_layers / n_ranks);
}

/* ---- the packing to begin with ------------------------------------------------------------------ */

static bool is_less(const packing *k, uint32_t a, uint32_t b) {
    if (k->attention[a] != k->attention[b]) return k->attention[a] < k->attention[b];
    return a < b;
}

static void sink(packing *k, uint32_t n, uint32_t i) {
    const uint32_t bin = k->heap[i];
    for (uint32_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && is_less(k, k->heap[child + 1], k->heap[child])) child++;
        if (!is_less(k, k->heap[child], bin)) break;
        k->heap[i] = k->heap[child];
    }
    k->heap[i] = bin;
}

static void rise(packing *k, uint32_t i) {
    const uint32_t bin = k->heap[i];
    for (; i > 0 && is_less(k, bin, k->heap[(i - 1) / 2]); i = (i - 1) / 2) k->heap[i] = k->heap[(i - 1) / 2];
    k->heap[i] = bin;
}

static void put(packing *k, uint32_t bin, uint32_t sequence) {
    k->bins[sequence] = bin;
    k->rows[bin] += k->p->rows[sequence];
    k->attention[bin] += k->p->attention[sequence];
}

/* Into the bin with the least attention that has room; false where none has. */
static bool place(packing *k, uint32_t sequence) {
    uint32_t n = k->n_bins, n_aside = 0;
    while (n > 0 && k->rows[k->heap[0]] + k->p->rows[sequence] > k->p->max_rows) {
        k->aside[n_aside++] = k->heap[0];
        k->heap[0] = k->heap[--n];
        if (n > 0) sink(k, n, 0);
    }
    if (n > 0) {
        put(k, k->heap[0], sequence);
        sink(k, n, 0);
    }
    for (uint32_t i = 0; i < n_aside; i++) {
        k->heap[n] = k->aside[i];
        rise(k, n++);
    }
    return n > n_aside;
}

static bool place_all(packing *k) {
    memset(k->rows, 0, k->n_bins * sizeof *k->rows);
    memset(k->attention, 0, k->n_bins * sizeof *k->attention);
    for (uint32_t b = 0; b < k->n_bins; b++) k->heap[b] = b;
    for (uint32_t i = 0; i < k->p->n; i++)
        if (!place(k, k->order[i])) return false;
    return true;
}

typedef struct sort_key {
    uint32_t rows, number;
} sort_key;

static int by_rows(const void *a, const void *b) {
    const sort_key *x = a, *y = b;
    if (x->rows != y->rows) return x->rows < y->rows ? 1 : -1;
    return (x->number > y->number) - (x->number < y->number);
}

static wb_status sort_sequences(packing *k) {
    sort_key *keys;
    WB_TRY(WB_NEW(keys, k->p->n, "packing"));
    for (uint32_t i = 0; i < k->p->n; i++) keys[i] = (sort_key){k->p->rows[i], i};
    qsort(keys, k->p->n, sizeof *keys, by_rows);
    for (uint32_t i = 0; i < k->p->n; i++) k->order[i] = keys[i].number;
    free(keys);
    return WB_OK;
}

static wb_status reserve_bins(packing *k) {
    const char *what = "packing: bins";
    k->n_bins = k->M * k->p->n_ranks;
    WB_TRY(WB_OWN(&k->memory, k->heap, k->n_bins, what));
    WB_TRY(WB_OWN(&k->memory, k->aside, k->n_bins, what));
    WB_TRY(WB_OWN(&k->memory, k->attention, k->n_bins, what));
    WB_TRY(WB_OWN(&k->memory, k->rows, k->n_bins, what));
    return WB_OK;
}

/* From the fewest micro-batches whose rows could hold all sequences, one more until each has found room: at
 * the latest with a bin for each sequence. */
static wb_status start(packing *k) {
    int64_t all = 0;
    for (uint32_t i = 0; i < k->p->n; i++) all += k->p->rows[i];
    const int64_t room = k->p->max_rows * (int64_t)k->p->n_ranks;
    for (k->M = (uint32_t)((all + room - 1) / room);; k->M++) {
        WB_TRY(reserve_bins(k));
        if (place_all(k)) return WB_OK;
    }
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

static wb_status centre(packing *k) {
    const pack_problem *p = k->p;
    double *sum, rows = 0;
    k->padded = ((size_t)p->width + LANES - 1) / LANES * LANES;
    WB_TRY(WB_OWN(&k->memory, sum, k->padded, "packing: sketch"));
    WB_TRY(WB_OWN_ALLOC(&k->memory, k->centred, p->n, k->padded * sizeof *k->centred, "packing: sketches"));
    WB_TRY(
        WB_OWN_ALLOC(&k->memory, k->deviation, k->M, k->padded * sizeof *k->deviation, "packing: sketches"));
    WB_TRY(WB_OWN(&k->memory, k->distance, k->M, "packing: distances"));
    WB_TRY(WB_OWN(&k->memory, k->peak, k->M, "packing: peaks"));
    for (uint32_t s = 0; s < p->n; s++) {
        for (size_t i = 0; i < p->width; i++) sum[i] += p->sketches[s * (size_t)p->width + i];
        rows += p->rows[s];
    }
    for (uint32_t s = 0; s < p->n; s++)
        for (size_t i = 0; i < p->width; i++)
            k->centred[s * k->padded + i] =
                (float)(p->sketches[s * (size_t)p->width + i] - sum[i] * (p->rows[s] / rows));
    return WB_OK;
}

/* The most attention of a rank in a micro-batch, two of its bins left out. */
static double peak_without(const packing *k, uint32_t m, uint32_t bin, uint32_t too) {
    double max = 0;
    for (uint32_t b = m * k->p->n_ranks; b < (m + 1) * k->p->n_ranks; b++)
        if (k->attention[b] > max && b != bin && b != too) max = k->attention[b];
    return max;
}

static void settle(packing *k) {
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

static void improve(packing *k) {
    int64_t trials = (int64_t)k->p->n * TRIALS_OF_ONE;
    trials = trials < MIN_TRIALS ? MIN_TRIALS : trials > MAX_TRIALS ? MAX_TRIALS : trials;
    double cost = k->p->unevenness * total_distance(k);
    for (uint32_t m = 0; m < k->M; m++) cost += k->peak[m];
    while (trials-- > 0) {
        exchange x = propose(k);
        if (x.from == x.to || !fits(k, &x)) continue;
        /* Less than rounding errors is no gain. */
        if (weigh(k, &x) < -1e-12 * cost) carry_out(k, &x);
    }
}

/* ---- the search --------------------------------------------------------------------------------- */

static wb_status search(packing *k, pack_answer *answer) {
    WB_TRY(WB_OWN(&k->memory, k->order, k->p->n, "packing"));
    WB_TRY(sort_sequences(k));
    WB_TRY(start(k));
    WB_TRY(centre(k));
    settle(k);
    answer->distance_before = total_distance(k);
    improve(k);
    settle(k);
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
