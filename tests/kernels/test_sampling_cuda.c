/* test_sampling_cuda.c - log-probabilities, their gradient and drawing on CUDA against the CPU, bit for bit,
 * at vocabularies of one part of a sum and of many (sample_rules.h); and that a row's bits do not depend on
 * the rows beside it.
 *
 * A NaN answers a NaN alone, and draws give none. A plain program; 77, with the reason, where there is
 * no CUDA device. argv[1]: the seed. */
#include "cuda_twins.h"

#include <math.h>

enum { CASES = 30 };

typedef struct vocabulary_case {
    int64_t T, V;
    bool nan; /* some rows have NaN, +inf or nothing but -inf; else they have -inf at most */
} vocabulary_case;

static float random_unit(void) {
    return (float)rng_range(0, (1 << 24) - 1) * 0x1p-24f;
}

static vocabulary_case random_case(int number) {
    static const int64_t sizes[] = {1, 7, 128, 2047, 2048, 2049, 4100, 6001, 20000, 70000};
    vocabulary_case c = {rng_range(1, number % 10 == 9 ? 4 : 70), sizes[number % 10], number % 3 == 2};
    return c;
}

/* Rows of several shapes: wide or narrow, with ties, with parts of -inf alone. */
static twin random_logits(const vocabulary_case *c) {
    twin t = make_twin((size_t)(c->T * c->V) * sizeof(float));
    float *z = t.host;
    for (int64_t row = 0; row < c->T; row++) {
        const float scale = (float)rng_range(1, 30);
        const int64_t shape = rng_range(0, 3), lost = rng_range(0, c->V - 1);
        for (int64_t i = 0; i < c->V; i++) {
            float *x = z + row * c->V + i;
            *x = scale * (random_unit() + random_unit() - 1.0f);
            if (shape == 1) *x = (float)(int)*x;
            if (shape == 2 && i >= lost && i < lost + 5000) *x = -INFINITY;
        }
        z[row * c->V + rng_range(0, c->V - 1)] = scale;
        if (!c->nan || rng_range(0, 2) > 0) continue;
        const float odd[] = {NAN, INFINITY};
        z[row * c->V + rng_range(0, c->V - 1)] = odd[rng_range(0, 1)];
        for (int64_t i = 0; row % 5 == 0 && i < c->V; i++) z[row * c->V + i] = -INFINITY;
    }
    upload(&t);
    return t;
}

static void compare_floats(const twin *t, bool nan, const char *what, const vocabulary_case *c) {
    float *found = must_alloc(t->bytes);
    const float *expected = t->host;
    must(cuda->to_host(cuda, found, t->device, t->bytes), "to_host");
    for (size_t i = 0; i < t->bytes / sizeof *found; i++) {
        if (nan && isnan(found[i]) && isnan(expected[i])) continue;
        if (memcmp(found + i, expected + i, sizeof *found) == 0) continue;
        fprintf(stderr, "FAILED: T %" PRId64 " V %" PRId64 ": %s[%zu]: expected %.9g, found %.9g\n", c->T,
                c->V, what, i, (double)expected[i], (double)found[i]);
        exit(1);
    }
    free(found);
}

/* ---- log-probabilities ----------------------------------------------------------------------------- */

typedef struct logprob_twins {
    twin logits, targets, temperature, start, ids, dlogprobs, logprobs, dlogits;
} logprob_twins;

/* Each row keeps all tokens, few, many, or by name all; its target is one of them. */
static int64_t keep_tokens(const vocabulary_case *c, uint32_t *ids, int32_t *target) {
    const int64_t kind = rng_range(0, 3), every = kind == 1 ? c->V / 40 + 1 : kind == 2 ? 2 : 1;
    int64_t n = 0;
    *target = (int32_t)rng_range(0, c->V - 1);
    for (int64_t id = 0; id < c->V && kind > 0; id++)
        if (rng_range(1, every) == 1 || id == *target) ids[n++] = (uint32_t)id;
    if (rng_range(0, 6) == 0) *target = -1;
    return n;
}

static logprob_twins make_logprob_twins(const vocabulary_case *c) {
    const size_t T = (size_t)c->T, V = (size_t)c->V;
    logprob_twins t = {.logits = random_logits(c),
                       .targets = make_twin(T * 4),
                       .temperature = make_twin(T * 4),
                       .start = make_twin((T + 1) * 8),
                       .ids = make_twin(T * V * 4),
                       .dlogprobs = make_twin(T * 4),
                       .logprobs = make_output(c->T),
                       .dlogits = make_output(c->T * c->V)};
    int64_t *start = t.start.host;
    memset(t.ids.host, 0, t.ids.bytes);
    start[0] = 0;
    for (size_t row = 0; row < T; row++) {
        ((float *)t.temperature.host)[row] = rng_range(0, 2) == 0 ? 1.0f : 0.3f + random_unit();
        ((float *)t.dlogprobs.host)[row] = random_unit() - 0.5f;
        start[row + 1] =
            start[row] + keep_tokens(c, (uint32_t *)t.ids.host + start[row], (int32_t *)t.targets.host + row);
    }
    const twin *inputs[] = {&t.targets, &t.temperature, &t.start, &t.ids, &t.dlogprobs};
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++) upload(inputs[i]);
    return t;
}

/* in_place: the gradient takes the logits' place. */
static void run_logprob(wb_device *dev, const vocabulary_case *c, logprob_twins *t, bool limited,
                        bool in_place) {
    const bool on_host = dev == cpu;
#define OF(name) (on_host ? t->name.host : t->name.device)
    const wb_distribution of = {OF(temperature), OF(ids), OF(start)};
    float *dlogits = in_place ? OF(logits) : OF(dlogits);
    must(dev->logprob_forward(dev, c->T, c->V, OF(logits), OF(targets), limited ? &of : NULL, OF(logprobs)),
         "logprob_forward");
    must(dev->logprob_backward(dev, c->T, c->V, OF(logits), OF(targets), limited ? &of : NULL, OF(dlogprobs),
                               dlogits),
         "logprob_backward");
#undef OF
}

static void test_logprob(int number) {
    const vocabulary_case c = random_case(number);
    logprob_twins t = make_logprob_twins(&c);
    for (int round = 0; round < 3; round++) {
        run_logprob(cpu, &c, &t, round != 1, round == 2);
        run_logprob(cuda, &c, &t, round != 1, round == 2);
        compare_floats(&t.logprobs, true, "logprobs", &c);
        compare_floats(&t.dlogits, true, "dlogits", &c);
    }
    compare_floats(&t.logits, true, "dlogits in place", &c);
    twin *all[] = {&t.logits, &t.targets,   &t.temperature, &t.start,
                   &t.ids,    &t.dlogprobs, &t.logprobs,    &t.dlogits};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free_twin(all[i]);
}

/* ---- drawing --------------------------------------------------------------------------------------- */

static wb_sample_params random_params(int64_t V) {
    static const float edges[] = {0.0f, 0x1.fffffep-1f, 0.5f};
    wb_sample_params p = {.temperature = rng_range(0, 5) == 0 ? 0.0f : 0.2f + 2.0f * random_unit(),
                          .top_p = rng_range(0, 1) == 0 ? 1.0f : 0.02f + 0.97f * random_unit(),
                          .uniform = rng_range(0, 3) == 0 ? edges[rng_range(0, 2)] : random_unit()};
    if (rng_range(0, 2) == 0) p.top_k = (int32_t)rng_range(1, rng_range(0, 1) == 0 ? V + 3 : V / 50 + 1);
    return p;
}

static void draw(wb_device *dev, int64_t B, int64_t V, const twin *logits, int64_t first,
                 const wb_sample_params *params, const int64_t *start, const twin outputs[4]) {
    const bool on_host = dev == cpu;
#define OF(t) (on_host ? (t).host : (t).device)
    const wb_sample_kept kept = {start, OF(outputs[2]), OF(outputs[3])};
    const float *z = (const float *)OF(*logits) + first * V;
    must(dev->sample(dev, B, V, z, params + first, &kept, (int32_t *)OF(outputs[0]) + first,
                     (float *)OF(outputs[1]) + first),
         "sample");
#undef OF
}

static void test_sample(int number) {
    vocabulary_case c = random_case(number);
    c.nan = false;
    twin logits = random_logits(&c);
    wb_sample_params *params = must_alloc((size_t)c.T * sizeof *params);
    int64_t *start = must_alloc((size_t)(c.T + 1) * sizeof *start);
    start[0] = 0;
    for (int64_t b = 0; b < c.T; b++) {
        params[b] = random_params(c.V);
        start[b + 1] = start[b] + wb_sample_max_kept(params + b, c.V);
    }
    const twin outputs[4] = {make_output(c.T), make_output(c.T), make_output(start[c.T]), make_output(c.T)};
    draw(cpu, c.T, c.V, &logits, 0, params, start, outputs);
    draw(cuda, c.T, c.V, &logits, 0, params, start, outputs);
    compare(&outputs[0], "tokens", "sample");
    compare_floats(&outputs[1], false, "sampled logprobs", &c);
    compare(&outputs[2], "kept ids", "sample");
    compare(&outputs[3], "kept counts", "sample");
    /* Alone, a row is drawn from as in its batch. */
    const int64_t alone = rng_range(0, c.T - 1), room[2] = {0, start[alone + 1] - start[alone]};
    must(cuda->zero(cuda, outputs[0].device, (size_t)c.T * 4), "zero");
    draw(cuda, 1, c.V, &logits, alone, params, room, outputs);
    for (int64_t b = 0; b < c.T; b++)
        if (b != alone) ((int32_t *)outputs[0].host)[b] = 0;
    compare(&outputs[0], "token of a row alone", "sample");
    compare_floats(&outputs[1], false, "logprob of a row alone", &c);
    for (int i = 0; i < 4; i++) free_twin((twin *)&outputs[i]);
    free_twin(&logits);
    free(params), free(start);
}

static void test_bad_row(void) {
    const vocabulary_case c = {9, 5000, false};
    const wb_sample_params params[9] = {{1, 0, 1, 0.5f},    {0, 0, 1, 0.5f},    {1, 3, 1, 0.5f},
                                        {1, 0, 0.5f, 0.5f}, {1, 0, 1, 0.5f},    {0, 0, 1, 0.5f},
                                        {1, 3, 1, 0.5f},    {1, 0, 0.5f, 0.5f}, {1, 0, 1, 0.1f}};
    const float odd[] = {NAN, INFINITY};
    for (int64_t row = 8; row >= 0; row--) {
        twin logits = random_logits(&c), tokens = make_output(9), logprobs = make_output(9);
        for (int64_t i = row; i < 9; i++)
            ((float *)logits.host)[i * c.V + rng_range(0, c.V - 1)] = odd[i % 2];
        upload(&logits);
        must(cuda->sample(cuda, 9, c.V, logits.device, params, NULL, tokens.device, logprobs.device),
             "sample");
        char name[32];
        snprintf(name, sizeof name, "row %" PRId64, row);
        if (cuda->to_host(cuda, tokens.host, tokens.device, 9 * 4) != WB_INVALID_ARGUMENT ||
            !strstr(wb_error_message(), name)) {
            fprintf(stderr, "FAILED: expected %s to be no distribution, found %s\n", name,
                    wb_error_message());
            exit(1);
        }
        must(cuda->to_host(cuda, tokens.host, tokens.device, 9 * 4), "to_host");
        for (int64_t i = 0; i < 9; i++)
            if ((((int32_t *)tokens.host)[i] == -1) != (i >= row)) exit(1);
        free_twin(&logits), free_twin(&tokens), free_twin(&logprobs);
    }
}

int main(int argc, char **argv) {
    if (!open_twins(argc, argv, 20261127)) return SKIP;
    for (int i = 0; i < CASES; i++) test_logprob(i);
    for (int i = 0; i < CASES; i++) test_sample(i);
    test_bad_row();
    must(cuda->logprob_forward(cuda, 0, 9000, NULL, NULL, NULL, NULL), "logprob_forward of no rows");
    must(cuda->logprob_backward(cuda, 0, 9000, NULL, NULL, NULL, NULL, NULL), "logprob_backward of no rows");
    must(cuda->sample(cuda, 0, 9000, NULL, NULL, NULL, NULL, NULL), "sample of no rows");
    printf("%d vocabularies: the bits of the CPU\n", (int)CASES);
    close_twins();
    return 0;
}
