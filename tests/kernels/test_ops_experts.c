/* test_ops_experts.c - the bias of each expert, the clamped SwiGLU and the sum through a gate, and their
 * backwards, against the plainest loops in double precision and central differences. */
#include "gradient_check.h"
#include "swiglu_rules.h"

static const double u = 0x1p-24;

/* Groups of random sizes, some empty. */
enum { GROUPS = 5, MOST = 6, WIDTH = 19, ROWS = GROUPS * MOST };

typedef struct groups {
    int32_t offsets[GROUPS + 1];
    wb_grouped of;
} groups;

static void make_groups(groups *g) {
    for (int i = 0; i < GROUPS; i++)
        g->offsets[i + 1] = g->offsets[i] + (i == 2 ? 0 : (int32_t)rng_range(0, MOST));
    g->of = (wb_grouped){.n_groups = GROUPS, .offsets = g->offsets, .max_rows = ROWS};
}

static int group_of(const groups *g, int64_t row) {
    int i = 0;
    while (row >= g->offsets[i + 1]) i++;
    return i;
}

static void test_grouped_bias(void **state) {
    (void)state;
    wb_device *dev = open_cpu(3);
    for (int trial = 0; trial < 10; trial++) {
        groups g = {{0}, {0}};
        make_groups(&g);
        const int64_t n = g.offsets[GROUPS];
        float *b = random_floats(GROUPS * WIDTH, -1, 1), *y = random_floats(ROWS * WIDTH, -1, 1);
        float *before = copied(y, ROWS * WIDTH), *db = copied(b, GROUPS * WIDTH);
        assert_ok(dev->grouped_bias_forward(dev, &g.of, WIDTH, b, wb_f32_rows(y)));
        for (int64_t i = 0; i < ROWS * WIDTH; i++) {
            const int64_t row = i / WIDTH;
            const float more = row < n ? b[group_of(&g, row) * WIDTH + i % WIDTH] : 0;
            assert_true(y[i] == before[i] + more); /* rows of no group stay */
        }
        g.of.overwrites = trial % 2 == 1;
        assert_ok(dev->grouped_bias_backward(dev, &g.of, WIDTH, wb_f32_rows(y), db));
        for (int64_t i = 0; i < GROUPS * WIDTH; i++) {
            float sum = g.of.overwrites ? 0 : b[i];
            for (int64_t row = g.offsets[i / WIDTH]; row < g.offsets[i / WIDTH + 1]; row++)
                sum += y[row * WIDTH + i % WIDTH];
            assert_true(db[i] == sum);
        }
        free(b), free(y), free(before), free(db);
    }
    wb_device_close(dev);
}

/* ---- clamped SwiGLU ------------------------------------------------------------------------------ */

typedef struct clamp_case {
    double limit, alpha, offset;
    int64_t n;
    const float *d;
} clamp_case;

static double clamped_element(const clamp_case *c, const double *x, int64_t i) {
    const double *gate = x + i / WIDTH * 2 * WIDTH + i % WIDTH;
    const double g = fmin(gate[0], c->limit), up = fmax(fmin(gate[WIDTH], c->limit), -c->limit);
    return (up + c->offset) * g / (1 + exp(-c->alpha * g));
}

static double clamped_loss(const double *x, const void *context) {
    const clamp_case *c = context;
    double loss = 0;
    for (int64_t i = 0; i < c->n * WIDTH; i++) loss += (double)c->d[i] * clamped_element(c, x, i);
    return loss;
}

/* Some of both are beyond the limit on either side, and none is so close to it that a difference crosses
 * it. */
static float *clamped_inputs(int64_t n, float limit) {
    float *x = random_floats(n, -2 * limit, 2 * limit);
    for (int64_t i = 0; i < n; i++)
        if (fabsf(fabsf(x[i]) - limit) < 1e-3f) x[i] = 0;
    return x;
}

/* `whole`: without offsets, so that all rows are there. */
static void check_clamped_swiglu(wb_clamped_swiglu clamp, bool whole) {
    wb_device *dev = open_cpu(3);
    groups g = {{0}, {0}};
    make_groups(&g);
    const int64_t n = whole ? ROWS : g.offsets[GROUPS];
    if (whole) g.of.offsets = NULL;
    float *x = clamped_inputs(ROWS * 2 * WIDTH, clamp.limit), *d = random_floats(ROWS * WIDTH, -1, 1);
    float *y = floats(ROWS * WIDTH), *dx = floats(ROWS * 2 * WIDTH), *same = copied(x, ROWS * 2 * WIDTH);
    double *wide = doubles(x, ROWS * 2 * WIDTH);
    clamp_case c = {(double)clamp.limit, (double)clamp.alpha, (double)clamp.offset, n, d};
    assert_ok(dev->grouped_swiglu_forward(dev, &g.of, WIDTH, &clamp, wb_f32_rows(x), wb_f32_rows(y)));
    for (int64_t i = 0; i < n * WIDTH; i++) {
        const double expected = clamped_element(&c, wide, i);
        assert_close(y[i], expected, 16 * u * (1 + fabs(expected)), "grouped_swiglu_forward", i);
    }
    for (int64_t i = n * WIDTH; i < ROWS * WIDTH; i++) assert_true(y[i] == 0);
    assert_ok(dev->grouped_swiglu_backward(dev, &g.of, WIDTH, &clamp, wb_f32_rows(x), wb_f32_rows(d),
                                           wb_f32_rows(dx)));
    check_gradient(clamped_loss, &c, x, n * 2 * WIDTH, dx, NULL, 4e-6, "grouped_swiglu_backward");
    assert_ok(dev->grouped_swiglu_backward(dev, &g.of, WIDTH, &clamp, wb_f32_rows(same), wb_f32_rows(d),
                                           wb_f32_rows(same)));
    assert_memory_equal(same, dx, (size_t)(n * 2 * WIDTH) * sizeof(float));
    free(x), free(d), free(y), free(dx), free(same), free(wide);
    wb_device_close(dev);
}

static void test_clamped_swiglu(void **state) {
    (void)state;
    check_clamped_swiglu((wb_clamped_swiglu){.limit = 2.5f, .alpha = 1.702f, .offset = 1}, false);
    check_clamped_swiglu((wb_clamped_swiglu){.limit = 2.5f, .alpha = 1, .offset = 0}, false);
    check_clamped_swiglu((wb_clamped_swiglu){.limit = 1.5f, .alpha = 1, .offset = 0}, true);
}

/* At the limit there is a gradient, beyond it there is none, and a NaN goes through. */
static void test_clamped_swiglu_at_its_limits(void **state) {
    (void)state;
    const wb_clamped_swiglu c = {.limit = 7, .alpha = 1.702f, .offset = 1};
    float dgate, dup;
    wb_clamped_swiglu_gradient(c, 7, -7, 1, &dgate, &dup);
    assert_true(dgate != 0 && dup != 0);
    wb_clamped_swiglu_gradient(c, 7.5f, -7.5f, 1, &dgate, &dup);
    assert_true(dgate == 0 && dup == 0);
    wb_clamped_swiglu_gradient(c, -70, 7.5f, 1, &dgate, &dup);
    assert_true(dup == 0); /* a gate has no lower limit */
    assert_true(wb_clamped_swiglu_of(c, 9, 9) == wb_clamped_swiglu_of(c, 7, 7));
    assert_true(isnan(wb_clamped_swiglu_of(c, NAN, 0)) && isnan(wb_clamped_swiglu_of(c, 1, NAN)));
}

/* ---- through a gate ------------------------------------------------------------------------------ */

typedef struct gated_case {
    const float *dy;
} gated_case;

enum { GATED = 7 };

/* x: rows [GATED, WIDTH], then gates [GATED]. */
static double gated_loss(const double *x, const void *context) {
    const gated_case *c = context;
    double loss = 0;
    for (int64_t i = 0; i < GATED * WIDTH; i++)
        loss += (double)c->dy[i] * x[i] / (1 + exp(-x[GATED * WIDTH + i / WIDTH]));
    return loss;
}

static void test_add_gated(void **state) {
    (void)state;
    wb_device *dev = open_cpu(3);
    const int64_t n = GATED * WIDTH + GATED;
    float *x = random_floats(n, -2, 2), *gate = x + GATED * WIDTH, *y = random_floats(GATED * WIDTH, -1, 1);
    float *before = copied(y, GATED * WIDTH), *dy = random_floats(GATED * WIDTH, -1, 1), *grad = floats(n);
    assert_ok(dev->add_gated_forward(dev, GATED, WIDTH, gate, wb_f32_rows(x), wb_f32_rows(y)));
    for (int64_t i = 0; i < GATED * WIDTH; i++) {
        const double expected = (double)before[i] + (double)x[i] / (1 + exp(-(double)gate[i / WIDTH]));
        assert_close(y[i], expected, 16 * u, "add_gated_forward", i);
    }
    const gated_case c = {dy};
    float *same = copied(x, GATED * WIDTH);
    assert_ok(dev->add_gated_backward(dev, GATED, WIDTH, gate, wb_f32_rows(x), wb_f32_rows(dy),
                                      wb_f32_rows(grad), grad + GATED * WIDTH));
    check_gradient(gated_loss, &c, x, n, grad, NULL, 4e-6, "add_gated_backward");
    assert_ok(dev->add_gated_backward(dev, GATED, WIDTH, gate, wb_f32_rows(same), wb_f32_rows(dy),
                                      wb_f32_rows(same), y));
    assert_memory_equal(same, grad, (size_t)(GATED * WIDTH) * sizeof(float));
    assert_memory_equal(y, grad + GATED * WIDTH, GATED * sizeof(float));
    free(x), free(y), free(before), free(dy), free(grad), free(same);
    wb_device_close(dev);
}

static void test_nothing_to_do(void **state) {
    (void)state;
    wb_device *dev = open_cpu(1);
    static const int32_t offsets[GROUPS + 1];
    const wb_grouped none = {.n_groups = GROUPS, .offsets = offsets};
    const wb_clamped_swiglu clamp = {7, 1.702f, 1};
    float one[2] = {3, 4};
    const wb_rows x = wb_f32_rows(one);
    assert_ok(dev->grouped_bias_forward(dev, &none, 1, one, x));
    assert_ok(dev->grouped_bias_backward(dev, &none, 0, x, one));
    assert_ok(dev->grouped_swiglu_forward(dev, &none, 1, &clamp, x, x));
    assert_ok(dev->grouped_swiglu_backward(dev, &none, 1, &clamp, x, x, x));
    assert_ok(dev->add_gated_forward(dev, 0, 1, one, x, x));
    assert_ok(dev->add_gated_backward(dev, 0, 1, one, x, x, x, one));
    assert_true(one[0] == 3 && one[1] == 4);
    wb_device_close(dev);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grouped_bias),
        cmocka_unit_test(test_clamped_swiglu),
        cmocka_unit_test(test_clamped_swiglu_at_its_limits),
        cmocka_unit_test(test_add_gated),
        cmocka_unit_test(test_nothing_to_do),
    };
    rng_open(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
