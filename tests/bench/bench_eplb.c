/* bench_eplb.c - quality and time of the placement solvers on synthetic loads: exact, stale and far-off ones,
 * a placement for several micro-batches, uneven ranks, small layers. Prints the tables of README.md here. */
#include "bench/bench_tools.h"
#include "wb_eplb.h"
#include "wb_random.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint32_t n_layers = 8, n_threads = 1, n_trials = 0;
static uint64_t seed = 1;
static const uint32_t *slots_of_rank; /* [R] of the shape at hand; NULL: as even as they go */

typedef struct shape {
    uint32_t E, S, R, N, G;
    double skew;
} shape;

static wb_topology topology_of(const shape *s) {
    return (wb_topology){.n_ranks = s->R, .n_nodes = s->N, .n_slots = s->S, .slots_of_rank = slots_of_rank};
}

/* [M][L][E] log-normal; owner: caller. */
static double *make_loads(const shape *s, uint32_t step, uint32_t M, double noise) {
    double *loads = malloc((size_t)M * n_layers * s->E * sizeof *loads);
    if (!loads) exit(1);
    wb_synthetic synthetic = {
        .kind = WB_SYNTHETIC_LOGNORMAL, .skew = s->skew, .noise = noise, .tokens = 1u << 24, .seed = seed};
    must(wb_synthetic_loads(&synthetic, step, M, n_layers, s->E, loads));
    return loads;
}

/* Sum over layers and batches of mean / max, or (summed) mean over layers of sum of means / sum of maxima. */
static double quality(const wb_placement *p, uint32_t M, const double *loads, bool quota) {
    const wb_topology *t = wb_placement_topology(p);
    uint32_t E = wb_placement_experts(p), R = t->n_ranks;
    double *rank = calloc(R, sizeof *rank), *slot = calloc(t->n_slots, sizeof *slot), all = 0;
    uint32_t *counts = calloc((size_t)R * E, sizeof *counts);
    if (!rank || !slot || !counts) exit(1);
    for (uint32_t l = 0; l < n_layers; l++) {
        double means = 0, maxima = 0;
        for (uint32_t m = 0; m < M; m++) {
            const double *w = loads + ((size_t)m * n_layers + l) * E;
            if (quota) {
                wb_dispatch_traffic traffic;
                for (uint32_t e = 0; e < E; e++)
                    counts[e] = (uint32_t)w[e]; /* all from rank 0: locality does not matter here */
                must(wb_dispatch_loads(p, WB_DISPATCH_QUOTA, l, counts, slot, &traffic));
                memset(rank, 0, R * sizeof *rank);
                for (uint32_t i = 0; i < t->n_slots; i++)
                    rank[wb_placement_rank_of(p, (wb_physical_id){i})] += slot[i];
            } else {
                wb_placement_rank_loads(p, l, w, rank);
            }
            double sum = 0, most = 0;
            for (uint32_t r = 0; r < R; r++) {
                sum += rank[r];
                if (rank[r] > most) most = rank[r];
            }
            means += sum / R;
            maxima += most;
        }
        all += means / maxima;
    }
    free(counts);
    free(slot);
    free(rank);
    return all / n_layers;
}

typedef struct solved {
    wb_placement *placement;
    double ms_per_layer;
} solved;

static solved solve(const shape *s, uint32_t M, const double *loads, wb_eplb_options options) {
    wb_topology t = topology_of(s);
    solved out;
    options.threads = n_threads;
    options.trials = n_trials;
    double start = now();
    must(wb_eplb_solve(&t, n_layers, s->E, M, loads, &options, &out.placement));
    out.ms_per_layer = (now() - start) * 1e3 / n_layers;
    return out;
}

static wb_eplb_options with(wb_eplb_algorithm algorithm) {
    wb_eplb_options options = wb_eplb_options_default();
    options.algorithm = algorithm;
    return options;
}

static void cell(const shape *s, uint32_t M, const double *loads, wb_eplb_options options) {
    solved out = solve(s, M, loads, options);
    printf(" | %.4f %7.3f", quality(out.placement, M, loads, false), out.ms_per_layer);
    wb_placement_close(out.placement);
}

static void print_shape(const shape *s) {
    printf("%4u -> %4u, %4u ranks, %2u nodes, skew %.1f", s->E, s->S, s->R, s->N, s->skew);
}

/* ---- exact loads ----------------------------------------------------------------------------- */

static const shape exact_shapes[] = {
    {256, 256, 32, 4, 8, 0.5},  {256, 288, 32, 4, 8, 0.5},    {256, 288, 32, 4, 8, 1.0},
    {256, 288, 32, 4, 8, 1.5},  {256, 320, 64, 8, 8, 1.0},    {384, 448, 64, 8, 8, 1.0},
    {128, 160, 32, 4, 4, 1.0},  {256, 384, 128, 16, 16, 1.2}, {256, 512, 256, 8, 8, 0.5},
    {256, 512, 256, 8, 8, 1.0}, {256, 512, 256, 8, 8, 1.2},   {256, 512, 256, 8, 8, 1.5},
};

static void bench_exact(void) {
    printf("Exact loads: balancedness and ms a layer\n%-48s | none   | deepseek hier. | deepseek glob. | "
           "balanced\n",
           "");
    for (size_t i = 0; i < sizeof exact_shapes / sizeof exact_shapes[0]; i++) {
        const shape *s = &exact_shapes[i];
        double *loads = make_loads(s, 0, 1, 0);
        wb_topology t = topology_of(s);
        wb_placement *none = NULL;
        must(wb_placement_open(&t, n_layers, s->E, &none));
        print_shape(s);
        printf(" | %.4f", quality(none, 1, loads, false));
        wb_eplb_options hierarchical = with(WB_EPLB_DEEPSEEK);
        hierarchical.n_groups = s->G;
        wb_eplb_options global = with(WB_EPLB_DEEPSEEK);
        cell(s, 1, loads, hierarchical);
        cell(s, 1, loads, global);
        cell(s, 1, loads, with(WB_EPLB_BALANCED));
        printf("\n");
        wb_placement_close(none);
        free(loads);
    }
}

/* ---- stale loads ----------------------------------------------------------------------------- */

static void print_moves(const wb_placement *from, const wb_placement *to) {
    wb_move_plan *plan = NULL;
    must(wb_move_plan_open(from, to, n_layers, NULL, NULL, &plan));
    printf(" %6.1f", (double)plan->n_moves / n_layers);
    wb_move_plan_close(plan);
}

static void bench_stale(void) {
    static const shape shapes[] = {
        {256, 288, 32, 4, 8, 1.0}, {384, 448, 64, 8, 8, 1.0}, {256, 512, 256, 8, 8, 1.2}};
    static const double noises[] = {0.1, 0.4};
    printf("\nLoads that moved by a log-normal factor since the placement was made: balancedness, slots "
           "changed a layer, ms a layer\n"
           "%-48s noise | stale  | stale, quota | deepseek again         | balanced again         | "
           "incremental (target .98)\n",
           "");
    for (size_t i = 0; i < 6; i++) {
        const shape *s = &shapes[i / 2];
        double noise = noises[i % 2];
        double *before = make_loads(s, 0, 1, 0), *after = make_loads(s, 1, 1, noise);
        solved stale = solve(s, 1, before, with(WB_EPLB_BALANCED));
        wb_eplb_options again[] = {with(WB_EPLB_DEEPSEEK), with(WB_EPLB_BALANCED), with(WB_EPLB_INCREMENTAL)};
        print_shape(s);
        printf(" %5.1f | %.4f | %.4f      ", noise, quality(stale.placement, 1, after, false),
               quality(stale.placement, 1, after, true));
        for (int a = 0; a < 3; a++) {
            again[a].current = stale.placement;
            again[a].horizon_steps = 1e6;
            solved next = solve(s, 1, after, again[a]);
            printf(" | %.4f", quality(next.placement, 1, after, false));
            print_moves(stale.placement, next.placement);
            printf(" %7.3f", next.ms_per_layer);
            wb_placement_close(next.placement);
        }
        printf("\n");
        wb_placement_close(stale.placement);
        free(before);
        free(after);
    }
}

/* ---- move plans ------------------------------------------------------------------------------ */

/* Groups at least: one rank receives one expert in each, for which it has one shadow slot. */
static uint64_t groups_bound(const wb_placement *from, const wb_placement *to) {
    uint32_t R = wb_placement_topology(to)->n_ranks;
    uint64_t all = 0;
    for (uint32_t l = 0; l < n_layers; l++) {
        const int32_t *a = wb_placement_layer(from, l).expert_of_slot,
                      *b = wb_placement_layer(to, l).expert_of_slot;
        uint64_t most = 0;
        for (uint32_t r = 0; r < R; r++) {
            uint64_t n = 0;
            for (uint32_t s = wb_placement_first_slot(to, r); s < wb_placement_first_slot(to, r + 1); s++)
                n += a[s] != b[s];
            if (n > most) most = n;
        }
        all += most;
    }
    return all;
}

static void bench_moves(void) {
    static const shape shapes[] = {{256, 288, 32, 4, 8, 1.0},
                                   {256, 512, 256, 8, 8, 1.2},
                                   {256, 4608, 4096, 512, 8, 1.0},
                                   {4096, 4608, 4096, 512, 8, 1.0}};
    static const char *const names[] = {"again", "incremental"};
    printf("\nMove plans to new loads (noise .4): ms, moves and groups of all layers, groups at least, ms "
           "predicted\n");
    for (size_t i = 0; i < 8; i++) {
        const shape *s = &shapes[i / 2];
        double *before = make_loads(s, 0, 1, 0), *after = make_loads(s, 1, 1, 0.4);
        solved stale = solve(s, 1, before, with(WB_EPLB_BALANCED));
        wb_eplb_options again = with(i % 2 == 0 ? WB_EPLB_BALANCED : WB_EPLB_INCREMENTAL);
        again.current = stale.placement;
        again.horizon_steps = 1e6;
        solved next = solve(s, 1, after, again);
        wb_move_plan *plan = NULL;
        double best = 1e9;
        for (int run = 0; run < 5; run++) {
            wb_move_plan_close(plan);
            double start = now();
            must(wb_move_plan_open(stale.placement, next.placement, n_layers, NULL, NULL, &plan));
            if (now() - start < best) best = now() - start;
        }
        print_shape(s);
        printf(" | %-11s | %9.3f ms %8" PRIu64 " moves %6" PRIu32 " groups (%6" PRIu64 ") %9.1f ms\n",
               names[i % 2], best * 1e3, plan->n_moves, plan->n_groups,
               groups_bound(stale.placement, next.placement), plan->seconds * 1e3);
        wb_move_plan_close(plan);
        wb_placement_close(next.placement);
        wb_placement_close(stale.placement);
        free(before);
        free(after);
    }
}

/* ---- micro-batches --------------------------------------------------------------------------- */

/* What no placement exceeds: a rank has the mean at least, and the heaviest expert's share when it has all
 * the replicas. */
static double bound(const shape *s, uint32_t M, const double *loads) {
    uint32_t cap = s->S - s->E + 1 < s->R ? s->S - s->E + 1 : s->R;
    double all = 0;
    for (uint32_t l = 0; l < n_layers; l++) {
        double means = 0, maxima = 0;
        for (uint32_t m = 0; m < M; m++) {
            double sum = 0, most = 0;
            for (uint32_t e = 0; e < s->E; e++) {
                double load = loads[((size_t)m * n_layers + l) * s->E + e];
                sum += load / s->R;
                if (load / cap > most) most = load / cap;
            }
            means += sum;
            maxima += most > sum ? most : sum;
        }
        all += means / maxima;
    }
    return all / n_layers;
}

static void bench_micro_batches(void) {
    static const shape shapes[] = {{256, 288, 32, 4, 8, 1.0},
                                   {384, 448, 64, 8, 8, 1.0},
                                   {128, 160, 32, 4, 4, 1.0},
                                   {128, 128, 8, 1, 1, 1.0}};
    static const double noises[] = {0.2, 0.5};
    static const uint32_t batches[] = {4, 16};
    printf("\nOne placement for M micro-batches: sum of means / sum of maxima over them; with quota "
           "dispatch; ms a layer\n"
           "%-48s noise  M | previous step, deepseek | deepseek on the sum     | balanced on the sum     | "
           "microbatch              | points | at most\n",
           "");
    for (size_t i = 0; i < 16; i++) {
        const shape *s = &shapes[i / 4];
        double noise = noises[i / 2 % 2];
        uint32_t M = batches[i % 2];
        double *before = make_loads(s, 0, M, noise), *loads = make_loads(s, 1, M, noise), deepseek = 0,
               microbatch = 0;
        wb_eplb_algorithm kinds[] = {WB_EPLB_DEEPSEEK, WB_EPLB_DEEPSEEK, WB_EPLB_BALANCED,
                                     WB_EPLB_MICROBATCH};
        print_shape(s);
        printf(" %5.1f %2u", noise, M);
        for (int k = 0; k < 4; k++) {
            solved out = solve(s, M, k == 0 ? before : loads, with(kinds[k]));
            double q = quality(out.placement, M, loads, false);
            printf(" | %.4f %.4f %8.3f", q, quality(out.placement, M, loads, true), out.ms_per_layer);
            if (k == 1) deepseek = q;
            if (k == 3) microbatch = q;
            wb_placement_close(out.placement);
        }
        printf(" | %+5.1f  | %.4f\n", 100 * (microbatch - deepseek), bound(s, M, loads));
        free(before);
        free(loads);
    }
}

/* ---- ranks with different numbers of slots, small layers, far-off starts ----------------------- */

static void bench_uneven(void) {
    static const uint32_t cases[][4] = {{8, 64, 1, 2},   {8, 64, 1, 4},   {8, 64, 1, 8},    {8, 64, 2, 6},
                                        {32, 256, 1, 3}, {64, 256, 1, 8}, {256, 512, 1, 3}, {256, 512, 1, 8}};
    static const double skews[] = {0, 0.5, 1, 1.5};
    uint32_t slots[512];
    slots_of_rank = slots;
    printf("\nDifferent slots a rank: balancedness of balanced and ms a layer, for skew 0, 0.5, 1 and 1.5\n");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        shape s = {.E = cases[i][0], .R = cases[i][1], .N = 1, .G = 1};
        uint64_t random = seed;
        for (uint32_t r = 0; r < s.R; r++)
            s.S += slots[r] = cases[i][2] + wb_random_below(&random, cases[i][3] - cases[i][2] + 1);
        printf("%4u -> %4u, %4u ranks of %u to %u slots", s.E, s.S, s.R, cases[i][2], cases[i][3]);
        for (int k = 0; k < 4; k++) {
            s.skew = skews[k];
            double *loads = make_loads(&s, 0, 1, 0);
            cell(&s, 1, loads, with(WB_EPLB_BALANCED));
            free(loads);
        }
        printf("\n");
    }
    slots_of_rank = NULL;
}

static void bench_small(void) {
    static const shape shapes[] = {{8, 16, 8, 1, 1, 1},  {8, 12, 4, 1, 1, 1},  {16, 16, 4, 1, 1, 1},
                                   {16, 16, 2, 1, 1, 1}, {32, 32, 8, 1, 1, 1}, {6, 18, 6, 1, 1, 1}};
    printf("\nSmall layers: deepseek, balanced\n");
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        double *loads = make_loads(&shapes[i], 0, 1, 0);
        print_shape(&shapes[i]);
        cell(&shapes[i], 1, loads, with(WB_EPLB_DEEPSEEK));
        cell(&shapes[i], 1, loads, with(WB_EPLB_BALANCED));
        printf("\n");
        free(loads);
    }
}

static void bench_far(void) {
    static const uint32_t slots[] = {6144, 8192, 12288, 16384, 36864};
    static const double skews[] = {0.5, 1, 1.5};
    printf("\nFrom experts in turn: balancedness then, of incremental, ms a layer, slots changed, of "
           "balanced\n");
    for (int i = 0; i < 15; i++) {
        const shape s = {.E = 256, .S = slots[i / 3], .R = 4096, .N = 512, .G = 1, .skew = skews[i % 3]};
        double *loads = make_loads(&s, 0, 1, 0);
        wb_topology t = topology_of(&s);
        wb_eplb_options options = with(WB_EPLB_INCREMENTAL);
        wb_placement *current = NULL;
        must(wb_placement_open(&t, n_layers, s.E, &current));
        options.current = current;
        options.horizon_steps = 1e9;
        print_shape(&s);
        printf(" | %.4f", quality(current, 1, loads, false));
        solved out = solve(&s, 1, loads, options);
        printf(" | %.4f %7.1f", quality(out.placement, 1, loads, false), out.ms_per_layer);
        print_moves(current, out.placement);
        cell(&s, 1, loads, with(WB_EPLB_BALANCED));
        printf("\n");
        wb_placement_close(out.placement);
        wb_placement_close(current);
        free(loads);
    }
}

int main(int argc, char **argv) {
    const char *only = "all";
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--layers") == 0 && i + 1 < argc)
            n_layers = (uint32_t)atoi(argv[++i]);
        else if (strcmp(argv[i], "--threads") == 0 && i + 1 < argc)
            n_threads = (uint32_t)atoi(argv[++i]);
        else if (strcmp(argv[i], "--trials") == 0 && i + 1 < argc)
            n_trials = (uint32_t)atoi(argv[++i]);
        else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc)
            seed = strtoull(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "exact") == 0 || strcmp(argv[i], "stale") == 0 ||
                 strcmp(argv[i], "micro-batches") == 0 || strcmp(argv[i], "uneven") == 0 ||
                 strcmp(argv[i], "small") == 0 || strcmp(argv[i], "far") == 0 ||
                 strcmp(argv[i], "moves") == 0)
            only = argv[i];
        else {
            const bool asked = strcmp(argv[i], "--help") == 0;
            fprintf(asked ? stdout : stderr,
                    "usage: bench_eplb [--layers N] [--threads N] [--trials N] [--seed N] [exact | stale | "
                    "moves | micro-batches | uneven | small | far]\n");
            return asked ? 0 : 2;
        }
    }
    printf("%u layers, %u threads, seed %" PRIu64 ", log-normal loads\n\n", n_layers, n_threads, seed);
    bool all = strcmp(only, "all") == 0;
    if (all || strcmp(only, "exact") == 0) bench_exact();
    if (all || strcmp(only, "stale") == 0) bench_stale();
    if (all || strcmp(only, "moves") == 0) bench_moves();
    if (all || strcmp(only, "micro-batches") == 0) bench_micro_batches();
    if (all || strcmp(only, "uneven") == 0) bench_uneven();
    if (all || strcmp(only, "small") == 0) bench_small();
    if (all || strcmp(only, "far") == 0) bench_far();
    return 0;
}
