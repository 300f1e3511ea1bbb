/* bench_planned_simulated.c - a replayed step of many ranks under the cost model: as it comes, with a
 * placement from the step before, with one from its own routes, and packed from its own routes too.
 *
 * Usage: bench_planned_simulated [RANKS [LAYERS [SEED [LOADS]]]]
 *
 * Nothing runs but the packing, the solvers and wb_simulate. Sequences are made up: groups of 8 about one
 * of 16 topics, lengths log-normal about 2048 (256 to 8192), 8 a rank; an expert's share of a sequence is
 * the product of log-normals for the layer (sigma 0.8), its topic (0.8) and the sequence (0.3), counts
 * drawn from it. Prompts of a rank are consecutive, and topics of consecutive prompts come in runs, as of
 * a shuffled file of several sources read in blocks.
 *
 * With LOADS, a file that wb_counts_read reads, the layers' experts are as popular as there.
 *
 * Seconds are of the forward of the layers simulated: of each micro-batch the most attention of a rank in
 * each layer, the experts and transfers of the slowest rank (wb_cost_model_default, DeepSeek-V3's shape; 8
 * ranks a node), and, for a step that is not planned, 20 us a layer for its counts.
 * Attention: 374 MFLOP a row and 82 kFLOP a pair in each layer, at 400 TFLOP/s. A backward is in
 * proportion. */
#include "bench/bench_tools.h"
#include "pack_search.h"
#include "pack_state.h"
#include "support/usage.h"
#include "wb_eplb.h"
#include "wb_random.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { E = 256, K = 8, OF_RANK = 8, GROUP = 8, TOPICS = 16, TOPIC_RUN = 16, MAX_ROWS = 8192 };

typedef struct step {
    uint32_t n;       /* sequences, OF_RANK a rank */
    uint32_t *rows;   /* [n] */
    uint16_t *counts; /* [n][L][E] */
} step;

/* Where sequences are trained. */
typedef struct packing {
    uint32_t M;
    uint32_t *bins; /* [n] micro-batch * R + rank */
} packing;

typedef struct bench {
    uint32_t R, L;
    uint64_t seed;
    step now, before;
    double *popularity; /* [L][E] of the file, or NULL */
    /* Of the row to be printed. */
    const packing *packing;
    bool planned;
    double preparing; /* seconds of the solver */
} bench;

/* ---- sequences that are made up ------------------------------------------------------------------ */

/* weights_out [E] of a layer for each topic: [TOPICS][E]. */
static void topic_weights(const bench *b, uint32_t layer, double *weights_out) {
    uint64_t state = wb_mix64(b->seed * 1000003 + layer);
    double base[E];
    for (int e = 0; e < E; e++)
        base[e] = b->popularity ? log(b->popularity[(size_t)layer * E + (size_t)e]) : 0.8 * normal(&state);
    for (int i = 0; i < TOPICS * E; i++) weights_out[i] = exp(base[i % E] + 0.8 * normal(&state));
}

static uint32_t topic_of(const bench *b, uint32_t number, uint32_t sequence) {
    return (uint32_t)(wb_mix64(b->seed + number * UINT64_C(7919) + sequence / (GROUP * TOPIC_RUN)) % TOPICS);
}

static void draw_counts(const double *weights, uint32_t rows, uint64_t *state, uint16_t *counts_out) {
    double w[E], sum = 0;
    for (int e = 0; e < E; e++) sum += w[e] = weights[e] * exp(0.3 * normal(state));
    for (int e = 0; e < E; e++) {
        double mean = fmin(rows * K * w[e] / sum, rows);
        mean += sqrt(mean * (1 - mean / rows)) * normal(state);
        counts_out[e] = (uint16_t)fmax(0, fmin(rows, floor(mean + 0.5)));
    }
}

static void make_step(const bench *b, uint32_t number, step *s) {
    uint64_t state = wb_mix64(b->seed + number);
    double *weights = take((size_t)b->L * TOPICS * E, sizeof *weights);
    s->n = b->R * OF_RANK;
    s->rows = take(s->n, sizeof *s->rows);
    s->counts = take((size_t)s->n * b->L * E, sizeof *s->counts);
    for (uint32_t l = 0; l < b->L; l++) topic_weights(b, l, weights + (size_t)l * TOPICS * E);
    for (uint32_t i = 0; i < s->n; i++) {
        s->rows[i] = (uint32_t)fmin(MAX_ROWS, fmax(256, 2048 * exp(0.8 * normal(&state))));
        for (uint32_t l = 0; l < b->L; l++)
            draw_counts(weights + ((size_t)l * TOPICS + topic_of(b, number, i)) * E, s->rows[i], &state,
                        s->counts + ((size_t)i * b->L + l) * E);
    }
    free(weights);
}

/* The first layers of a file of loads that say something, over all its passes; what was never chosen
 * counts as once. */
static void read_popularity(bench *b, const char *path) {
    wb_counts *counts;
    must(wb_counts_read(1, &path, NULL, &counts));
    const wb_counts_info info = wb_counts_get_info(counts);
    uint32_t n = 0;
    b->popularity = take((size_t)b->L * E, sizeof *b->popularity);
    for (uint32_t l = 0; l < info.n_layers && n < b->L && info.n_experts == E; l++) {
        if (!info.informed[l]) continue;
        for (uint32_t e = 0; e < E; e++) {
            double sum = 0;
            for (uint32_t p = 0; p < info.n_passes; p++)
                sum += wb_counts_loads(counts)[((size_t)p * info.n_layers + l) * E + e];
            b->popularity[(size_t)n * E + e] = fmax(sum, 1);
        }
        n++;
    }
    wb_counts_close(counts);
    if (n == b->L) return;
    fprintf(stderr, "bench_planned_simulated: %s: expected counts of %u layers of %d experts\n", path, b->L,
            E);
    exit(1);
}

/* ---- packings ------------------------------------------------------------------------------------ */

static const wb_pack_cost cost = {374e6 / 400e12, 82e3 / 400e12, 6.0 * 7168 * 2048 / 400e12};

static double attention_of(uint32_t rows) {
    return rows * cost.per_row + 0.5 * rows * (rows + 1.0) * cost.per_pair;
}

/* Each rank's own sequences in their order. */
static packing as_it_comes(const bench *b, const step *s) {
    packing p = {.bins = take(s->n, sizeof *p.bins)};
    for (uint32_t r = 0; r < b->R; r++)
        for (uint32_t i = 0, m = 0, T = 0; i < OF_RANK; i++) {
            const uint32_t sequence = r * OF_RANK + i;
            if (T > 0 && T + s->rows[sequence] > MAX_ROWS) {
                T = 0;
                m++;
            }
            T += s->rows[sequence];
            p.bins[sequence] = m * b->R + r;
            if (m >= p.M) p.M = m + 1;
        }
    return p;
}

static packing packed(const bench *b, const step *s, pack_answer *answer) {
    packing p = {.bins = take(s->n, sizeof *p.bins)};
    const wb_route_model model = {.n_moe_layers = b->L, .num_experts = E, .top_k = K};
    const uint32_t width = wb_pack_sketch_width(&model);
    int32_t *sketches = take((size_t)s->n * width, sizeof *sketches);
    double *attention = take(s->n, sizeof *attention);
    uint64_t *counts = take((size_t)b->L * E, sizeof *counts);
    for (uint32_t i = 0; i < s->n; i++) {
        for (size_t j = 0; j < (size_t)b->L * E; j++) counts[j] = s->counts[i * (size_t)b->L * E + j];
        wb_pack_sketch(&model, counts, width, sketches + (size_t)i * width);
        attention[i] = b->L * attention_of(s->rows[i]);
    }
    const pack_problem problem = {.n = s->n,
                                  .n_ranks = b->R,
                                  .max_rows = MAX_ROWS,
                                  .rows = s->rows,
                                  .attention = attention,
                                  .width = width,
                                  .sketches = sketches,
                                  .unevenness = wb_pack_unevenness(cost.per_choice, b->R, b->L),
                                  .seed = b->seed};
    must(wb_pack_search(&problem, p.bins, answer));
    p.M = answer->n_micro_batches;
    free(sketches);
    free(attention);
    free(counts);
    return p;
}

static double *loads_of(const bench *b, const step *s, const packing *p) {
    double *loads = take((size_t)p->M * b->L * E, sizeof *loads);
    for (uint32_t i = 0; i < s->n; i++) {
        double *to = loads + (size_t)(p->bins[i] / b->R) * b->L * E;
        for (size_t j = 0; j < (size_t)b->L * E; j++) to[j] += s->counts[i * (size_t)b->L * E + j];
    }
    return loads;
}

/* ---- simulations --------------------------------------------------------------------------------- */

static wb_status fill(void *ctx, uint32_t batch, uint32_t layer, uint32_t *counts_out) {
    const bench *b = ctx;
    memset(counts_out, 0, (size_t)b->R * E * sizeof *counts_out);
    for (uint32_t i = 0; i < b->now.n; i++) {
        if (b->packing->bins[i] / b->R != batch) continue;
        uint32_t *row = counts_out + (size_t)(b->packing->bins[i] % b->R) * E;
        const uint16_t *counts = b->now.counts + ((size_t)i * b->L + layer) * E;
        for (int e = 0; e < E; e++) row[e] += counts[e];
    }
    return WB_OK;
}

/* Seconds of the layers; *balancedness_out: sum of means over sum of maxima. */
static double attention_seconds(const bench *b, const packing *p, double *balancedness_out) {
    double *of_bin = take((size_t)p->M * b->R, sizeof *of_bin), mean = 0, max = 0;
    for (uint32_t i = 0; i < b->now.n; i++) of_bin[p->bins[i]] += attention_of(b->now.rows[i]);
    for (uint32_t m = 0; m < p->M; m++) {
        double most = 0;
        for (uint32_t r = 0; r < b->R; r++) {
            mean += of_bin[m * b->R + r] / b->R;
            most = fmax(most, of_bin[m * b->R + r]);
        }
        max += most;
    }
    free(of_bin);
    *balancedness_out = mean / max;
    return b->L * max;
}

/* A step under a policy; returns its seconds. first: those of the first row, or 0. */
static double print_row(bench *b, const char *name, wb_dispatch_policy policy, const packing *p,
                        const wb_placement *placement, double first) {
    wb_simulation s;
    const wb_cost_model model = wb_cost_model_default();
    const wb_traffic traffic = {p->M, fill, b};
    double even;
    b->packing = p;
    must(wb_simulate(placement, policy, &traffic, &model, NULL, &s));
    const double attention = attention_seconds(b, p, &even);
    const double counts = b->planned ? model.seconds_per_group : p->M * b->L * model.seconds_per_group;
    const double all = attention + s.seconds + counts;
    printf("| %u | %s | %s | %u | %.3f | %.3f | %.3f | %.1f | %.1f | %.2f | %.1f | %.2f | %.1f |\n", b->R,
           name, wb_dispatch_policy_name(policy), p->M, even, s.balancedness, s.balancedness_time,
           1e3 * attention, 1e3 * s.seconds, 1e3 * counts, 1e3 * all, first > 0 ? first / all : 1,
           b->preparing);
    fflush(stdout);
    return all;
}

/* loads NULL: as placements begin. */
static wb_placement *solve(bench *b, wb_eplb_algorithm algorithm, uint32_t M, const double *loads) {
    const uint32_t of_rank = b->R <= 64 ? 5 : 2;
    const wb_topology topology = {.n_ranks = b->R, .n_nodes = (b->R + 7) / 8, .n_slots = b->R * of_rank};
    wb_eplb_options options = wb_eplb_options_default();
    wb_placement *placement;
    options.algorithm = algorithm;
    const double begin = now();
    if (loads)
        must(wb_eplb_solve(&topology, b->L, E, M, loads, &options, &placement));
    else
        must(wb_placement_open(&topology, b->L, E, &placement));
    b->preparing = now() - begin;
    return placement;
}

/* Both policies that a model has: replicas by rank and by token. Closes the placement. */
static void print_rows(bench *b, const char *name, const packing *p, wb_placement *placement, double *first) {
    const double by_rank = print_row(b, name, WB_DISPATCH_STATIC, p, placement, *first);
    if (*first == 0) *first = by_rank;
    print_row(b, name, WB_DISPATCH_DYNAMIC, p, placement, *first);
    wb_placement_close(placement);
}

static void run_as_it_comes(bench *b, const double *history, uint32_t M, double *first) {
    packing p = as_it_comes(b, &b->now);
    double *loads = loads_of(b, &b->now, &p);
    b->planned = false;
    print_rows(b, "as it comes, as placements begin", &p, solve(b, WB_EPLB_BALANCED, 0, NULL), first);
    print_rows(b, "as it comes, placed on the step before", &p, solve(b, WB_EPLB_BALANCED, M, history),
               first);
    b->planned = true;
    print_rows(b, "as it comes, microbatch", &p, solve(b, WB_EPLB_MICROBATCH, p.M, loads), first);
    free(loads);
    free(p.bins);
}

static void run_packed(bench *b, const double *history, uint32_t M, double *first) {
    pack_answer answer;
    const double begin = now();
    packing p = packed(b, &b->now, &answer);
    const double took = now() - begin;
    double *loads = loads_of(b, &b->now, &p);
    print_rows(b, "packed, placed on the step before", &p, solve(b, WB_EPLB_BALANCED, M, history), first);
    wb_placement *placement = solve(b, WB_EPLB_MICROBATCH, p.M, loads);
    print_row(b, "packed, microbatch", WB_DISPATCH_QUOTA, &p, placement, *first);
    print_rows(b, "packed, microbatch", &p, placement, first);
    printf("packing: %.2f s; distance %.3f of that before exchanges\n", took,
           answer.distance_before > 0 ? answer.distance / answer.distance_before : 1);
    free(loads);
    free(p.bins);
}

static void run(bench *b) {
    double first = 0;
    packing before = as_it_comes(b, &b->before);
    double *history = loads_of(b, &b->before, &before);
    run_as_it_comes(b, history, before.M, &first);
    run_packed(b, history, before.M, &first);
    free(history);
    free(before.bins);
}

int main(int argc, char **argv) {
    int code;
    if (usage_ends(argc, argv, 0, 4, "usage: bench_planned_simulated [RANKS [LAYERS [SEED [LOADS]]]]\n",
                   &code))
        return code;
    bench b = {.R = argc > 1 ? (uint32_t)atoi(argv[1]) : 64,
               .L = argc > 2 ? (uint32_t)atoi(argv[2]) : 8,
               .seed = argc > 3 ? strtoull(argv[3], NULL, 10) : 1};
    if (argc > 4) read_popularity(&b, argv[4]);
    make_step(&b, 1, &b.before);
    make_step(&b, 2, &b.now);
    printf("| ranks | step | replicas | M | attention | experts | of time | attention ms | experts ms "
           "| counts ms | all ms | faster | solver s |\n"
           "|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
    run(&b);
    free(b.now.rows);
    free(b.now.counts);
    free(b.before.rows);
    free(b.before.counts);
    free(b.popularity);
    return 0;
}
