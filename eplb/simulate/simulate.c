/* simulate.c - what a placement and a dispatch policy make of a step's tokens: balancedness, predicted
 * seconds, bytes, and the lower bound that no placement goes below. Owns: the arithmetic of a pass under
 * the cost model. Refuses: choosing replicas (dispatch does) and keeping the counts of all layers: a few
 * [R][E] at a time, one a thread, are large enough. */
#include "cost/cost_model.h"
#include "simulate/bound.h"
#include "wb_check.h"
#include "wb_memory.h"
#include "wb_simulate.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

/* One pass of one layer: what a thread needs for it, and what came of it. */
typedef struct layer_pass {
    uint32_t layer;
    uint32_t *counts;    /* [R][E] */
    uint64_t *routed;    /* [E] tokens of each expert in counts */
    double *slot_tokens; /* [S] */
    double *rank_tokens; /* [R] */
    uint64_t tokens;     /* routed (token, slot) pairs */
    uint32_t experts;    /* that got one */
    double mean, max;    /* tokens of a live rank */
    double balancedness; /* mean / max */
    double compute;      /* seconds of the slowest rank */
    double hottest;      /* tokens of one expert that some rank gets at least */
    double sent_min;     /* tokens that some rank sends to others at least */
    uint32_t *top;       /* [slots of a rank] to work in */
    wb_dispatch_traffic sent;
    wb_status status;
    char message[512]; /* of its thread, when it failed */
} layer_pass;

enum { MAX_PASSES = 16, FEW_PAIRS = 1 << 15, MANY_PAIRS = 1 << 26 };

/* The whole step: what it needs and what has been summed up. */
typedef struct simulation {
    wb_owner memory;
    const wb_placement *placement;
    const wb_cost_model *cost;
    wb_dispatch_policy policy;
    uint32_t n_ranks, n_live, n_live_slots, n_layers, n_experts;
    uint32_t max_slots;            /* of a rank */
    double send_rate;              /* bytes a second out of a rank, over all of its links */
    uint32_t n_passes, n_threads;  /* passes between two sums */
    layer_pass passes[MAX_PASSES]; /* zero beyond n_passes */
    double *rank_sums;             /* [R] over batches and layers */
    double *layer_sums;            /* [L] of balancedness */
    uint32_t *layer_n;             /* [L] batches with tokens */
    double means, maxima;
    wb_simulation out;
} simulation;

/* How many threads, and how many passes between two sums: some for each thread, unless a pass is too small
 * to be worth a thread or too large for the memory. */
static void choose_passes(simulation *s, uint64_t pairs) {
    uint64_t threads = 1, passes;
#ifdef _OPENMP
    if (pairs > FEW_PAIRS) threads = (uint64_t)omp_get_max_threads();
#endif
    passes = threads > 1 ? 4 * threads : 1;
    if (passes > MAX_PASSES) passes = MAX_PASSES;
    if (passes > MANY_PAIRS / pairs) passes = MANY_PAIRS / pairs;
    s->n_passes = passes > 0 ? (uint32_t)passes : 1;
    s->n_threads = threads < s->n_passes ? (uint32_t)threads : s->n_passes;
}

static wb_status simulation_open(simulation *s) {
    const wb_topology *t = wb_placement_topology(s->placement);
    size_t pairs = (size_t)t->n_ranks * s->n_experts; /* at most 2^32 */
    WB_TRY(WB_OWN(&s->memory, s->rank_sums, t->n_ranks, "ranks"));
    WB_TRY(WB_OWN(&s->memory, s->layer_sums, s->n_layers, "layers"));
    WB_TRY(WB_OWN(&s->memory, s->layer_n, s->n_layers, "layers"));
    choose_passes(s, pairs);
    for (uint32_t i = 0; i < s->n_passes; i++) {
        layer_pass *p = &s->passes[i];
        WB_TRY(WB_OWN(&s->memory, p->counts, pairs, "counts of a layer"));
        WB_TRY(WB_OWN(&s->memory, p->routed, s->n_experts, "experts"));
        WB_TRY(WB_OWN(&s->memory, p->slot_tokens, t->n_slots, "slots"));
        WB_TRY(WB_OWN(&s->memory, p->rank_tokens, t->n_ranks, "ranks"));
        WB_TRY(WB_OWN(&s->memory, p->top, s->max_slots, "slots of a rank"));
    }
    return WB_OK;
}

/* ---- one pass, in any thread ----------------------------------------------------------------- */

/* Tokens, and experts that got one, in counts. */
static void count_routed(const simulation *s, layer_pass *pass) {
    memset(pass->routed, 0, s->n_experts * sizeof *pass->routed);
    pass->tokens = pass->experts = 0;
    for (uint32_t r = 0; r < s->n_ranks; r++) {
        const uint32_t *row = pass->counts + (size_t)r * s->n_experts;
        for (uint32_t e = 0; e < s->n_experts; e++) pass->routed[e] += row[e];
    }
    for (uint32_t e = 0; e < s->n_experts; e++) {
        pass->tokens += pass->routed[e];
        pass->experts += pass->routed[e] > 0;
    }
}

/* Tokens and seconds of each rank. Two replicas of an expert on one rank are two reads of weights; the
 * slots of dead ranks are empty. Where a policy gives expectations (dynamic, fake), a slot may expect
 * less than one token: it counts as that part of a read. A rank reads whole experts, so its sum of reads
 * is rounded up; less the rounding errors of the sum, which would make a whole number the next one. */
static void measure_ranks(const simulation *s, layer_pass *pass) {
    double sum = 0;
    pass->max = pass->compute = 0;
    for (uint32_t r = 0; r < s->n_ranks; r++) {
        uint32_t end = wb_placement_first_slot(s->placement, r + 1);
        double tokens = 0, reads = 0;
        for (uint32_t i = wb_placement_first_slot(s->placement, r); i < end; i++) {
            tokens += pass->slot_tokens[i];
            reads += fmin(pass->slot_tokens[i], 1);
        }
        pass->rank_tokens[r] = tokens;
        sum += tokens;
        pass->max = fmax(pass->max, tokens);
        double seconds =
            tokens * s->cost->seconds_per_token + ceil(reads - 1e-9) * s->cost->seconds_per_expert;
        pass->compute = fmax(pass->compute, seconds);
    }
    pass->mean = sum / s->n_live;
    pass->balancedness = wb_placement_balancedness(s->placement, pass->rank_tokens);
}

static uint32_t slots_of(const simulation *s, uint32_t rank) {
    return wb_placement_first_slot(s->placement, rank + 1) - wb_placement_first_slot(s->placement, rank);
}

/* Fake dispatch sends tokens to other experts than theirs: these are no bounds for it. */
static void measure_bounds(const simulation *s, layer_pass *pass) {
    uint64_t max = 0;
    for (uint32_t r = 0; r < s->n_ranks; r++) {
        const uint32_t *row = pass->counts + (size_t)r * s->n_experts;
        const uint64_t sent = wb_bound_of_sent(s->n_experts, row, slots_of(s, r), pass->top);
        max = sent > max ? sent : max;
    }
    pass->sent_min = (double)max;
    pass->hottest = wb_bound_of_hottest(s->n_experts, pass->routed, s->n_live_slots, s->n_live);
}

static wb_status measure_pass(const simulation *s, layer_pass *pass) {
    count_routed(s, pass);
    if (pass->tokens == 0) return WB_OK;
    WB_TRY(wb_dispatch_loads(s->placement, s->policy, pass->layer, pass->counts, pass->slot_tokens,
                             &pass->sent));
    measure_ranks(s, pass);
    if (s->policy != WB_DISPATCH_FAKE) measure_bounds(s, pass);
    return WB_OK;
}

/* `fill` knows nothing of threads: one call at a time, while other threads work on what they have. */
static void run_pass(const simulation *s, const wb_traffic *traffic, uint32_t batch, layer_pass *pass) {
#pragma omp critical(wb_simulate_fill)
    pass->status = traffic->fill(traffic->ctx, batch, pass->layer, pass->counts);
    if (pass->status == WB_OK) pass->status = measure_pass(s, pass);
    if (pass->status != WB_OK) snprintf(pass->message, sizeof pass->message, "%s", wb_error_message());
}

/* ---- sums, in the order of batches and layers ------------------------------------------------ */

/* The slowest rank is at least as slow as the mean one. Over live ranks, whatever the placement and the
 * dispatch, tokens sum to those routed, and reads of weights to at least one for each expert that got a
 * token: so the mean rank takes tokens / live x seconds_per_token + experts / live x seconds_per_expert.
 * Some rank also reads a whole number of experts, at least experts / live rounded up; it need not be the
 * one with the most tokens, so that is a second bound beside the first and cannot replace its term: with 3
 * experts on 2 ranks, the rank that reads 1 may take the tokens that make up. A third: the rank with the
 * hottest replica takes its tokens and reads it. To the longest of them comes sending what a rank cannot
 * keep. */
static double bound_of(const simulation *s, const layer_pass *pass) {
    const double token = s->cost->seconds_per_token, expert = s->cost->seconds_per_expert;
    double mean_tokens = (double)pass->tokens / s->n_live, mean_reads = (double)pass->experts / s->n_live;
    double bound = fmax(mean_tokens * token + mean_reads * expert, ceil(mean_reads) * expert);
    if (pass->hottest > 0) bound = fmax(bound, pass->hottest * token + expert);
    return bound + 2 * s->cost->bytes_per_token * pass->sent_min / s->send_rate;
}

/* Links inside the node and out of it work at the same time; combine sends back what dispatch has sent. */
static double transfer_of(const wb_cost_model *cost, const wb_dispatch_traffic *sent) {
    return 2 * cost->bytes_per_token *
           fmax(sent->max_rank_node / cost->node_bytes_per_second,
                sent->max_rank_network / cost->network_bytes_per_second);
}

static wb_status add_pass(simulation *s, const layer_pass *pass) {
    if (pass->status != WB_OK) return wb_fail(pass->status, "%s", pass->message);
    if (pass->tokens == 0) return WB_OK;
    s->out.seconds += pass->compute + transfer_of(s->cost, &pass->sent);
    s->out.bound_seconds += bound_of(s, pass);
    s->out.node_bytes += 2 * s->cost->bytes_per_token * pass->sent.node_tokens;
    s->out.network_bytes += 2 * s->cost->bytes_per_token * pass->sent.network_tokens;
    s->means += pass->mean;
    s->maxima += pass->max;
    s->layer_sums[pass->layer] += pass->balancedness;
    s->layer_n[pass->layer]++;
    for (uint32_t r = 0; r < s->n_ranks; r++) s->rank_sums[r] += pass->rank_tokens[r];
    return WB_OK;
}

/* All (batch, layer), some at a time; sums are taken in their order. */
static wb_status simulate_layers(simulation *s, const wb_traffic *traffic, uint32_t batch, uint32_t first,
                                 uint32_t n) {
    for (uint32_t i = 0; i < n; i++) s->passes[i].layer = first + i;
    if (n == 1) {
        run_pass(s, traffic, batch, &s->passes[0]);
    } else {
#pragma omp parallel for schedule(dynamic) num_threads((int)s->n_threads)
        for (uint32_t i = 0; i < n; i++) run_pass(s, traffic, batch, &s->passes[i]);
    }
    for (uint32_t i = 0; i < n; i++) WB_TRY(add_pass(s, &s->passes[i]));
    return WB_OK;
}

/* Means from sums; a step without tokens is perfectly balanced. */
static void finish(simulation *s) {
    double sum = 0, worst = 1;
    uint64_t n = 0;
    for (uint32_t l = 0; l < s->n_layers; l++) {
        if (s->layer_n[l] == 0) continue;
        sum += s->layer_sums[l];
        n += s->layer_n[l];
        worst = fmin(worst, s->layer_sums[l] / s->layer_n[l]);
    }
    s->out.balancedness = n ? sum / (double)n : 1;
    s->out.balancedness_time = s->maxima > 0 ? s->means / s->maxima : 1;
    s->out.min_layer = worst;
}

static void take_topology(simulation *s, const wb_topology *t) {
    for (uint32_t r = 0; r < t->n_ranks; r++) {
        const uint32_t slots = slots_of(s, r);
        s->max_slots = slots > s->max_slots ? slots : s->max_slots;
        s->n_live += !t->dead[r];
        s->n_live_slots += t->dead[r] ? 0 : slots;
    }
    if (t->n_nodes < t->n_ranks) s->send_rate += s->cost->node_bytes_per_second;
    if (t->n_nodes > 1) s->send_rate += s->cost->network_bytes_per_second;
    if (t->n_ranks == 1) s->send_rate = s->cost->node_bytes_per_second; /* nothing is sent */
}

wb_status wb_simulate(const wb_placement *placement, wb_dispatch_policy policy, const wb_traffic *traffic,
                      const wb_cost_model *cost, double *rank_tokens_out, wb_simulation *simulation_out) {
    if (!placement || !traffic || !traffic->fill || !cost || !simulation_out)
        return wb_fail(WB_INVALID_ARGUMENT, "simulate: a pointer is NULL");
    WB_TRY(wb_cost_model_check(cost, "simulate"));
    const wb_topology *topology = wb_placement_topology(placement);
    simulation s = {.placement = placement,
                    .cost = cost,
                    .policy = policy,
                    .n_ranks = topology->n_ranks,
                    .n_layers = wb_placement_layers(placement),
                    .n_experts = wb_placement_experts(placement)};
    take_topology(&s, topology);
    wb_status status = simulation_open(&s);
    for (uint32_t b = 0; status == WB_OK && b < traffic->n_batches; b++)
        for (uint32_t l = 0, n; status == WB_OK && l < s.n_layers; l += n) {
            n = s.n_layers - l < s.n_passes ? s.n_layers - l : s.n_passes;
            status = simulate_layers(&s, traffic, b, l, n);
        }
    if (status == WB_OK) {
        finish(&s);
        if (rank_tokens_out) memcpy(rank_tokens_out, s.rank_sums, s.n_ranks * sizeof *rank_tokens_out);
        *simulation_out = s.out;
    }
    wb_owner_close(&s.memory);
    return status;
}
