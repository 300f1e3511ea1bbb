/* bench_delta.c - the gated delta rule and the short convolution on the CPU, at the heads of
 * Qwen3-Next-80B-A3B (16 key heads and 32 value heads of 128): microseconds a token of a prompt, of decode
 * and of training, on one thread, of processor time, so that other programs count for little.
 *
 * Usage: bench_delta [MILLISECONDS for each case]
 */
#include "bench/bench_tools.h"
#include "support/usage.h"
#include "wb_device.h"

static const wb_delta_heads heads = {16, 32, 128, 128};
enum { CONV_WIDTH = 4 };

/* n_runs sequences of n tokens each, from states or from nothing. */
typedef struct bench_case {
    const char *what;
    int32_t n_runs, n;
    bool has_states, backward;
} bench_case;

static const bench_case cases[] = {
    {"decode, 1 sequence", 1, 1, true, false},
    {"decode, 16 sequences", 16, 1, true, false},
    {"a prompt of 512", 1, 512, true, false},
    {"4 prompts of 128", 4, 128, true, false},
    {"training forward, 4 of 128", 4, 128, false, false},
    {"training backward, 4 of 128", 4, 128, false, true},
};

static float *random_numbers(int64_t n) {
    float *x = take((size_t)n, sizeof *x);
    uint64_t state = 7;
    for (int64_t i = 0; i < n; i++) x[i] = (float)(2 * uniform(&state) - 1);
    return x;
}

/* What the ops of a case work on. */
typedef struct problem {
    wb_short_conv conv;
    wb_gated_delta delta;
    wb_rows u, o, db, da;
    float *dw, *of_heads;
} problem;

static problem open_problem(const bench_case *c, wb_sequence_run *runs) {
    const int64_t T = (int64_t)c->n_runs * c->n, width = wb_delta_width(heads), gates = T * heads.n_value;
    const int64_t conv_state = (CONV_WIDTH - 1) * width,
                  state = conv_state + (int64_t)heads.n_value * heads.value_dim * heads.key_dim;
    for (int32_t i = 0; i < c->n_runs; i++) runs[i] = (wb_sequence_run){i * c->n, c->n, i};
    float *states = c->has_states ? take((size_t)(c->n_runs * state), sizeof *states) : NULL;
    wb_sequences of = {T, c->n_runs, runs, (char *)states, state * (int64_t)sizeof(float)};
    problem p = {.conv = {of, (int32_t)width, CONV_WIDTH, random_numbers(width * CONV_WIDTH),
                          wb_f32_rows(random_numbers(T * width))},
                 .u = wb_f32_rows(random_numbers(T * width)),
                 .o = wb_f32_rows(random_numbers(gates * heads.value_dim)),
                 .db = wb_f32_rows(random_numbers(gates)),
                 .da = wb_f32_rows(random_numbers(gates)),
                 .dw = random_numbers(width * CONV_WIDTH),
                 .of_heads = random_numbers(4 * heads.n_value)};
    if (states) of.states += conv_state * (int64_t)sizeof(float);
    p.delta = (wb_gated_delta){.of = of,
                               .heads = heads,
                               .qkv = wb_f32_rows(random_numbers(T * width)),
                               .b = wb_f32_rows(random_numbers(gates)),
                               .a = wb_f32_rows(random_numbers(gates)),
                               .A_log = p.of_heads,
                               .dt_bias = p.of_heads + heads.n_value};
    if (!states) p.delta.checkpoints = take((size_t)wb_delta_checkpoint_floats(T, heads), sizeof(float));
    return p;
}

static void close_problem(const problem *p) {
    void *const memory[] = {(void *)p->conv.w, p->conv.x.data,  p->conv.of.states,    p->delta.qkv.data,
                            p->delta.b.data,   p->delta.a.data, p->delta.checkpoints, p->u.data,
                            p->o.data,         p->db.data,      p->da.data,           p->dw,
                            p->of_heads};
    for (size_t i = 0; i < sizeof memory / sizeof memory[0]; i++) free(memory[i]);
}

static void run_conv(wb_device *dev, const bench_case *c, const problem *p) {
    if (c->backward)
        must(dev->short_conv_backward(dev, &p->conv, p->delta.qkv, p->u, p->dw));
    else
        must(dev->short_conv_forward(dev, &p->conv, p->u));
}

static void run_delta(wb_device *dev, const bench_case *c, const problem *p) {
    if (c->backward)
        must(dev->gated_delta_backward(dev, &p->delta, p->o, p->u, p->db, p->da,
                                       p->of_heads + 2 * heads.n_value, p->of_heads + 3 * heads.n_value));
    else
        must(dev->gated_delta_forward(dev, &p->delta, p->o));
}

/* Seconds of this processor's work. */
static double worked(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Of the fastest call. */
static double best_of(wb_device *dev, const bench_case *c, const problem *p, double budget_s,
                      void (*run)(wb_device *, const bench_case *, const problem *)) {
    double best = 1e30;
    run(dev, c, p);
    for (const double begin = worked(); worked() - begin < budget_s;) {
        const double start = worked();
        run(dev, c, p);
        const double took = worked() - start;
        best = took < best ? took : best;
    }
    return best;
}

static void bench(wb_device *dev, const bench_case *c, double budget_s) {
    wb_sequence_run runs[16];
    const problem p = open_problem(c, runs);
    const double T = (double)c->n_runs * c->n;
    const double conv = best_of(dev, c, &p, budget_s, run_conv),
                 delta = best_of(dev, c, &p, budget_s, run_delta);
    printf("%-28s gated delta rule %8.1f us a token, short convolution %6.1f\n", c->what, delta / T * 1e6,
           conv / T * 1e6);
    close_problem(&p);
}

int main(int argc, char **argv) {
    wb_device *dev = NULL;
    int code;
    if (usage_ends(argc, argv, 0, 1, "usage: bench_delta [MILLISECONDS for each case]\n", &code)) return code;
    must(wb_device_open_cpu(1, &dev));
    const double budget_s = argc > 1 ? atof(argv[1]) * 1e-3 : 0.5;
    printf("%s, one thread\n", dev->name);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) bench(dev, cases + i, budget_s);
    wb_device_close(dev);
    return 0;
}
