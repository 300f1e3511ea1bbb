/* test_ops_bf16.c - the contract of bf16 operands (wb_kernels.h, Numbers): every op on bf16 gives what it
 * gives on the widened operands in f32, rounded; for every instruction set and thread count, for rows
 * alone, and on CUDA where there is a device. */
#include "cuda_memory.h"

#include "bf16_cases.h"
#include "support/cpu_split.h"

#include <math.h>

/* ---- one run of a case ----------------------------------------------------------------------- */

/* Operands in memory of their own, each with GUARD elements after it that are nobody's, and `sums`. */
typedef struct run {
    wb_rows rows[MAX_OPERANDS];
    float *sums; /* [W * DEEP] */
} run;

static int64_t count_of(const operand_spec *o) {
    return (o->use & WHOLE ? POOL : T) * o->width + GUARD;
}

/* bf16, and f32 where it has to be, of random values; what is only written begins as NaN. */
static run random_run(const op_case *c) {
    run r = {.sums = random_floats(W * DEEP, -1, 1)};
    for (int i = 0; c->operands[i].width > 0; i++) {
        const operand_spec *o = &c->operands[i];
        const wb_dtype dtype = o->use & FLOAT ? WB_F32 : WB_BF16;
        r.rows[i] = (wb_rows){xalloc(count_of(o), wb_dtype_size(dtype)), dtype};
        for (int64_t j = 0; j < count_of(o); j++) {
            const bool poisoned = !(o->use & IN) && j < count_of(o) - GUARD;
            const float x = poisoned ? NAN : rng_uniform(-4, 4);
            if (o->use & FLOAT)
                ((float *)r.rows[i].data)[j] = x;
            else
                ((uint16_t *)r.rows[i].data)[j] = wb_f32_to_bf16(x);
        }
    }
    return r;
}

static float element(wb_rows rows, int64_t i) {
    return rows.dtype == WB_F32 ? ((const float *)rows.data)[i]
                                : wb_bf16_to_f32(((const uint16_t *)rows.data)[i]);
}

/* A copy of `from`, whose bf16 operands are widened where `wide`. */
static run copy_of(const op_case *c, const run *from, bool wide) {
    run r = {.sums = copied(from->sums, W * DEEP)};
    for (int i = 0; c->operands[i].width > 0; i++) {
        const wb_dtype dtype = wide ? WB_F32 : from->rows[i].dtype;
        const int64_t n = count_of(&c->operands[i]);
        r.rows[i] = (wb_rows){xalloc(n, wb_dtype_size(dtype)), dtype};
        for (int64_t j = 0; j < n; j++) {
            if (dtype == WB_F32)
                ((float *)r.rows[i].data)[j] = element(from->rows[i], j);
            else
                ((uint16_t *)r.rows[i].data)[j] = ((const uint16_t *)from->rows[i].data)[j];
        }
    }
    return r;
}

static void free_run(run *r) {
    for (int i = 0; i < MAX_OPERANDS; i++) free(r->rows[i].data);
    free(r->sums);
}

/* The case over all T rows, up to `step` of them in a call. */
static void compute(const op_case *c, wb_device *dev, int64_t step, run *r) {
    sums = r->sums;
    for (begin = 0; begin < T; begin += step) {
        wb_rows rows[MAX_OPERANDS] = {{0}};
        for (int i = 0; c->operands[i].width > 0; i++)
            rows[i] = c->operands[i].use & WHOLE ? r->rows[i]
                                                 : wb_rows_from(r->rows[i], begin * c->operands[i].width);
        assert_ok(c->run(dev, T - begin < step ? T - begin : step, rows));
    }
}

/* Every operand, what was only read and what lies behind it too: `wide` rounded, bit for bit. */
static void compare(const op_case *c, const wb_device *dev, int64_t step, const run *wide, const run *found) {
    for (int i = 0; c->operands[i].width > 0; i++) {
        const operand_spec *o = &c->operands[i];
        for (int64_t j = 0; j < count_of(o); j++) {
            const float x = element(wide->rows[i], j), y = element(found->rows[i], j);
            const float expected = o->use & FLOAT ? x : wb_bf16_to_f32(wb_f32_to_bf16(x));
            if (!(y == expected) || signbit(y) != signbit(expected))
                fail_msg("%s (case %d), %s, %d threads, %" PRId64 " rows a call: %s[%" PRId64
                         "]: expected %.9g, found %.9g",
                         c->name, (int)(c - cases), dev->name, dev->threads, step, o->name, j,
                         (double)expected, (double)y);
        }
    }
    if (step == T) assert_same_bits(found->sums, wide->sums, W * DEEP, c->name);
}

static void check_case(const op_case *c, wb_device *generic, wb_device *dev) {
    run start = random_run(c), wide = copy_of(c, &start, true);
    compute(c, generic, T, &wide);
    const int64_t steps[] = {T, 1, rng_range(2, 9)};
    for (int i = 0; i < (c->by_row ? 3 : 1); i++) {
        run found = copy_of(c, &start, false);
        compute(c, dev, steps[i], &found);
        compare(c, dev, steps[i], &wide, &found);
        free_run(&found);
    }
    free_run(&start), free_run(&wide);
}

static void test_bf16_is_f32_rounded(void **state) {
    (void)state;
    const char *isas[] = {"generic", "v3", "v4"};
    wb_device *generic = NULL;
    assert_ok(wb_cpu_open_isa("generic", 1, &generic));
    open_sides();
    cpu_split.always = true;
    for (int i = 0; i < 3; i++)
        for (int threads = 1; threads <= 3; threads += 2) {
            wb_device *dev = NULL;
            if (wb_cpu_open_isa(isas[i], threads, &dev) != WB_OK) continue;
            for (int round = 0; round < 3; round++)
                for (int c = 0; c < N_CASES; c++) check_case(&cases[c], generic, dev);
            wb_device_close(dev);
        }
    cpu_split.always = false;
    for (int c = 0; c < N_CASES && cuda; c++)
        if (!cases[c].own_on_cuda) check_case(&cases[c], generic, cuda);
    close_sides();
    wb_device_close(generic);
}

/* ---- sums in parts --------------------------------------------------------------------------- */

static wb_rows random_halves(int64_t n) {
    uint16_t *halves = xalloc(n, sizeof *halves);
    for (int64_t i = 0; i < n; i++) halves[i] = wb_f32_to_bf16(rng_uniform(-4, 4));
    return (wb_rows){halves, WB_BF16};
}

/* Of a norm, or of one with a gate z. */
static void norm_backward(wb_device *dev, bool gated, int64_t n, int64_t width, wb_rows x, const float *scale,
                          wb_rows z, wb_rows dy, wb_rows dx, wb_rows dz, float *dw) {
    const wb_norm norm = norm_of(scale, false);
    if (gated)
        assert_ok(dev->gated_rmsnorm_backward(dev, n, width, x, norm, z, dy, dx, dz, dw));
    else
        assert_ok(dev->rmsnorm_backward(dev, n, width, x, norm, dy, dx, dw));
}

/* On CUDA, the gradient of a norm's weight over more rows than a part has: what the CPU's op makes of each
 * part by itself, the first of which dw begins, added up ascending. */
static void check_norm_parts(wb_device *cpu, bool gated, int64_t n, int64_t width) {
    enum { PART = 128 };
    float *const scale = random_floats(width, -1, 1), *const found = random_floats(width, -1, 1);
    float *const expected = copied(found, width);
    const wb_rows x = random_halves(n * width), dy = random_halves(n * width), dx = random_halves(n * width);
    const wb_rows z = random_halves(n * width), dz = random_halves(n * width);
    for (int64_t at = 0; at < n; at += PART) {
        float *const part = copied(expected, width);
        for (int64_t i = 0; i < width && at > 0; i++) part[i] = 0;
        norm_backward(cpu, gated, n - at < PART ? n - at : PART, width, wb_rows_from(x, at * width), scale,
                      wb_rows_from(z, at * width), wb_rows_from(dy, at * width), dx, dz, part);
        for (int64_t i = 0; i < width; i++) expected[i] = at > 0 ? expected[i] + part[i] : part[i];
        free(part);
    }
    norm_backward(cuda, gated, n, width, x, scale, z, dy, dx, dz, found);
    assert_same_bits(found, expected, width,
                     gated ? "dw of gated_rmsnorm_backward" : "dw of rmsnorm_backward");
    free(scale), free(found), free(expected);
    free(x.data), free(z.data), free(dy.data), free(dx.data), free(dz.data);
}

static void test_a_norms_gradient_is_summed_in_parts_on_cuda(void **state) {
    (void)state;
    if (!cuda) skip();
    wb_device *cpu = open_cpu(1);
    const int64_t widths[] = {1, 38, 128, 300};
    for (int i = 0; i < 24; i++)
        check_norm_parts(cpu, i % 2 == 1, rng_range(1, 128 * (1 + 4 * (i % 3)) + 1), widths[i / 6]);
    wb_device_close(cpu);
}

/* ---- sixteen bytes at a time ----------------------------------------------------------------- */

/* Rows of EIGHTS are of a width and at addresses that CUDA's kernels move and compute eight elements at a
 * time; those that begin ODD elements later are not. */
enum { EIGHTS = 48, EIGHTS_HEADS = 3, EIGHTS_DIM = 16, EIGHTS_POSITIONS = 40, ODD = 3 };

typedef struct eights {
    int64_t n;
    wb_rows x, y;               /* [n, EIGHTS] bf16 */
    float *floats;              /* [n, EIGHTS] */
    float *cosines, *sines;     /* [EIGHTS_POSITIONS, EIGHTS_DIM / 2] */
    int32_t *positions, *index; /* [n] of the tables; [n] a permutation */
} eights;

/* y after each op in turn, from element `at` of all operands on. */
static void run_eights(wb_device *dev, const eights *e, int64_t at, wb_rows y) {
    const wb_rows x = wb_rows_from(e->x, at), to = wb_rows_from(y, at);
    const wb_rows moved = {(uint16_t *)y.data + (e->n + 1) * EIGHTS + at, WB_BF16};
    const wb_rows cast = {(uint16_t *)y.data + 2 * (e->n + 1) * EIGHTS + at, WB_BF16};
    assert_ok(dev->add(dev, e->n * EIGHTS, x, to));
    const wb_rope rope = {.T = e->n,
                          .n_heads = EIGHTS_HEADS,
                          .head_dim = EIGHTS_DIM,
                          .rot_dim = EIGHTS_DIM,
                          .inverse = e->n % 2 == 0,
                          .ratio = e->n % 3 == 0 ? 4 : 0,
                          .pos = e->positions,
                          .cos_table = e->cosines,
                          .sin_table = e->sines,
                          .x = to};
    assert_ok(dev->rope(dev, &rope));
    assert_ok(dev->gather_rows(dev, e->n, EIGHTS, e->index, to, moved));
    assert_ok(dev->scatter_rows(dev, e->n, EIGHTS, e->index, x, to));
    assert_ok(dev->cast(dev, e->n * EIGHTS, wb_f32_rows(e->floats + at), cast));
}

static void check_eights(wb_device *cpu, int64_t n, int64_t at) {
    const int64_t count = 3 * (n + 1) * EIGHTS, angles = EIGHTS_POSITIONS * EIGHTS_DIM / 2;
    eights e = {.n = n,
                .x = random_halves((n + 1) * EIGHTS),
                .y = random_halves(count),
                .floats = random_floats((n + 1) * EIGHTS, -9, 9),
                .cosines = random_floats(angles, -1, 1),
                .sines = random_floats(angles, -1, 1),
                .positions = xalloc(n, sizeof(int32_t)),
                .index = xalloc(n, sizeof(int32_t))};
    const wb_rows expected = random_halves(count);
    for (int64_t t = 0; t < n; t++) {
        e.positions[t] = (int32_t)rng_range(0, EIGHTS_POSITIONS - 1);
        e.index[t] = (int32_t)((t + 5) % n);
    }
    memcpy(expected.data, e.y.data, (size_t)count * sizeof(uint16_t));
    run_eights(cpu, &e, at, expected);
    run_eights(cuda, &e, at, e.y);
    assert_memory_equal(e.y.data, expected.data, (size_t)count * sizeof(uint16_t));
    free(e.x.data), free(e.y.data), free(expected.data), free(e.floats);
    free(e.cosines), free(e.sines), free(e.positions), free(e.index);
}

static void test_eight_elements_a_thread_have_the_bits_of_one(void **state) {
    (void)state;
    if (!cuda) skip();
    wb_device *cpu = open_cpu(1);
    for (int i = 0; i < 6; i++) check_eights(cpu, rng_range(1, 90), i % 2 * ODD);
    wb_device_close(cpu);
}

/* The same bits on both backends, of either dtype, several sums in a call. */
static void test_sums_of_squares_on_cuda(void **state) {
    (void)state;
    if (!cuda) skip();
    wb_device *cpu = open_cpu(1);
    for (int i = 0; i < 6; i++) {
        const int64_t count = rng_range(1, 6), n = rng_range(1, 30000);
        const wb_rows halves = random_halves(count * n);
        const wb_rows floats = wb_f32_rows(random_floats(count * n, -3, 3)), x = i % 2 ? halves : floats;
        double *const found = xalloc(count, sizeof *found), *const expected = xalloc(count, sizeof *expected);
        assert_ok(cpu->sum_squares(cpu, count, n, x, expected));
        assert_ok(cuda->sum_squares(cuda, count, n, x, found));
        assert_memory_equal(found, expected, (size_t)count * sizeof *found);
        free(halves.data), free(floats.data), free(found), free(expected);
    }
    wb_device_close(cpu);
}

/* ---- refusals -------------------------------------------------------------------------------- */

/* The case with operand i said to be of `dtype`: refused by its name, nothing written. */
static void check_refusal(const op_case *c, wb_device *dev, int i, wb_dtype dtype) {
    run start = random_run(c), r = copy_of(c, &start, false);
    wb_rows rows[MAX_OPERANDS];
    memcpy(rows, r.rows, sizeof rows);
    rows[i].dtype = dtype;
    sums = r.sums, begin = 0;
    assert_int_equal(c->run(dev, T, rows), WB_INVALID_ARGUMENT);
    const char *message = wb_error_message();
    const bool named = strstr(message, c->operands[i].name) || i == 0;
    if (!strstr(message, c->name) || !named || !strstr(message, "expected") || !strstr(message, "found"))
        fail_msg("%s, %s: found the message: %s", c->name, c->operands[i].name, message);
    for (int k = 0; c->operands[k].width > 0; k++)
        assert_memory_equal(r.rows[k].data, start.rows[k].data,
                            (size_t)count_of(&c->operands[k]) * wb_dtype_size(r.rows[k].dtype));
    assert_same_bits(r.sums, start.sums, W * DEEP, c->name);
    free_run(&start), free_run(&r);
}

static void check_refusals(wb_device *dev) {
    open_sides();
    for (int c = 0; c < N_CASES; c++)
        for (int i = 0; cases[c].operands[i].width > 0; i++) {
            check_refusal(&cases[c], dev, i, WB_F16);
            const bool others = cases[c].operands[0].width > 0 && cases[c].operands[1].width > 0;
            if (others && !cases[c].any_dtypes) check_refusal(&cases[c], dev, i, WB_F32);
        }
    uint16_t x[1] = {0};
    float cache[1] = {7};
    const wb_rows half = {x, WB_BF16};
    assert_int_equal(dev->kv_write(dev, 1, 1, half, rows_of, wb_f32_rows(cache)), WB_INVALID_ARGUMENT);
    assert_string_equal(wb_error_message(), "kv_write: cache: expected bf16 like x, found f32");
    assert_true(cache[0] == 7);
    close_sides();
}

static void test_other_dtypes_are_refused(void **state) {
    (void)state;
    wb_device *cpu = open_cpu(1);
    check_refusals(cpu);
    if (cuda) check_refusals(cuda);
    wb_device_close(cpu);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bf16_is_f32_rounded),
        cmocka_unit_test(test_a_norms_gradient_is_summed_in_parts_on_cuda),
        cmocka_unit_test(test_eight_elements_a_thread_have_the_bits_of_one),
        cmocka_unit_test(test_sums_of_squares_on_cuda),
        cmocka_unit_test(test_other_dtypes_are_refused),
    };
    rng_open(argc, argv);
    open_cuda();
    const int failures = cmocka_run_group_tests(tests, NULL, NULL);
    wb_device_close(cuda);
    return failures;
}
