/* test_products_cuda.c - products of two matrices of bf16 on CUDA, which tensor cores make: within a bound
 * that follows from how they sum, the same bits from every kernel, for a row in any company, and no row's
 * NaN in another group's gradient. 77 where there is no CUDA device. Argument 1 sets the seed.
 *
 * Where a matrix does not begin at a multiple of 16 bytes the kernels of sm_90a do not take it and the tiles
 * of mma.sync do: so `shifted` below compares the two. */
#include "cuda_memory.h"

#include "ops_test.h"

#include <math.h>

/* ---- matrices of bf16 ------------------------------------------------------------------------ */

static uint16_t *random_bf16(int64_t n) {
    uint16_t *x = xalloc(n + 8, sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = wb_f32_to_bf16(rng_uniform(-1, 1));
    return x;
}

static uint16_t *poisoned_bf16(int64_t n) {
    uint16_t *x = xalloc(n + 8, sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = 0x7fc1; /* a NaN */
    return x;
}

static wb_rows half(const uint16_t *x) {
    return (wb_rows){(void *)x, WB_BF16};
}

/* A copy that begins 2 bytes beyond a multiple of 16; free what `keep` gets. */
static uint16_t *shifted(const uint16_t *x, int64_t n, uint16_t **keep) {
    *keep = xalloc(n + 16, sizeof **keep);
    memcpy(*keep + 1, x, (size_t)n * sizeof *x);
    return *keep + 1;
}

static float at(wb_rows rows, int64_t i) {
    return rows.dtype == WB_F32 ? ((const float *)rows.data)[i]
                                : wb_bf16_to_f32(((const uint16_t *)rows.data)[i]);
}

/* A step takes 16 products and the sum so far, 17 numbers, none above `sizes`, the sum of all products'
 * sizes; it cuts each below 2^-23 of the largest, and its result too: less than 2^-18 of `sizes` for each of
 * 18, and so 2^-17 of it in all with room for the sum itself. What is rounded to bf16 is off by 2^-9 of
 * itself. */
static double bound(int64_t K, double sizes, double result, wb_dtype dtype) {
    return (double)(K / 16 + 2) * 0x1p-17 * sizes + (dtype == WB_BF16 ? 0x1p-8 * fabs(result) : 0) + 1e-30;
}

/* C as it was before, in f32 or bf16. */
typedef struct result {
    wb_rows c;
    float *before;
    int64_t n;
} result;

static result make_result(int64_t n, wb_dtype dtype, bool poisoned) {
    result r = {{xalloc(n + 8, wb_dtype_size(dtype)), dtype}, floats(n), n};
    for (int64_t i = 0; i < n; i++) {
        const float x = poisoned ? NAN : rng_uniform(-1, 1);
        if (dtype == WB_F32)
            ((float *)r.c.data)[i] = x;
        else
            ((uint16_t *)r.c.data)[i] = wb_f32_to_bf16(x);
        r.before[i] = at(r.c, i);
    }
    return r;
}

static void free_result(result *r) {
    free(r->c.data), free(r->before);
}

/* Every element of C, against the sum in f64. */
static void check_product(const wb_matmul *p, const result *r, const char *what) {
    for (int64_t m = 0; m < p->M; m++)
        for (int64_t n = 0; n < p->N; n++) {
            double sum = p->accumulate ? (double)r->before[m * p->ldc + n] : 0, sizes = fabs(sum);
            for (int64_t k = 0; k < p->K; k++) {
                const double x = (double)at(p->a, m * p->a_row + k * p->a_col);
                const double product = x * (double)at(p->b, k * p->b_row + n * p->b_col);
                sum += product, sizes += fabs(product);
            }
            assert_close(at(r->c, m * p->ldc + n), sum, bound(p->K, sizes, sum, r->c.dtype), what,
                         m * p->ldc + n);
        }
}

/* ---- one product ----------------------------------------------------------------------------- */

enum { FORWARD, DGRAD, WGRAD, FORMS };
static const char *const form_names[] = {"forward", "dgrad", "wgrad"};

static wb_matmul product_of(int form, int64_t M, int64_t N, int64_t K, wb_rows a, wb_rows b, wb_rows c,
                            bool accumulate) {
    wb_matmul p = {M, N, K, a, K, 1, b, 1, K, c, N, accumulate, false};
    if (form != FORWARD) p.b_row = N, p.b_col = 1;
    if (form == WGRAD) p.a_row = 1, p.a_col = M;
    return p;
}

static int64_t random_size(int64_t most) {
    const int64_t n = rng_range(1, most);
    return rng_range(0, 3) > 0 ? (n + 7) / 8 * 8 : n;
}

static void test_products_are_within_the_bound(void **state) {
    (void)state;
    for (int round = 0; round < 45; round++) {
        const int form = round % FORMS;
        const int64_t M = random_size(300), N = random_size(300), K = random_size(round % 5 ? 150 : 900);
        const bool accumulate = rng_next() & 1;
        uint16_t *a = random_bf16(M * K), *b = random_bf16(K * N);
        result r = make_result(M * N, rng_next() & 1 ? WB_F32 : WB_BF16, !accumulate);
        const wb_matmul p = product_of(form, M, N, K, half(a), half(b), r.c, accumulate);
        assert_ok(cuda->matmul(cuda, 1, &p));
        check_product(&p, &r, form_names[form]);
        free_result(&r), free(a), free(b);
    }
}

/* Shapes with many tiles of each kind, ends of 8 and of 64, and one row. */
static void test_all_kernels_give_the_same_bits(void **state) {
    (void)state;
    const int64_t shapes[][3] = {{2304, 2056, 200}, {1, 512, 768},    {70, 264, 72},
                                 {129, 2048, 64},   {640, 136, 2048}, {3000, 768, 72}};
    for (int i = 0; i < 6; i++)
        for (int form = 0; form < FORMS; form++)
            for (int dtype = 0; dtype < 2; dtype++) {
                const int64_t M =
                    (shapes[i][0] + (form == WGRAD ? 7 : 0)) / 8 * 8 + (form == WGRAD ? 0 : shapes[i][0] % 8);
                const int64_t N = shapes[i][1], K = shapes[i][2];
                uint16_t *a = random_bf16(M * K), *b = random_bf16(K * N), *keep_a, *keep_b;
                const wb_dtype to = dtype ? WB_BF16 : WB_F32;
                result r = make_result(M * N, to, true), tiles = make_result(M * N, to, true);
                const uint16_t *odd_a = shifted(a, M * K, &keep_a), *odd_b = shifted(b, K * N, &keep_b);
                const wb_matmul p = product_of(form, M, N, K, half(a), half(b), r.c, false);
                const wb_matmul q = product_of(form, M, N, K, half(odd_a), half(odd_b), tiles.c, false);
                assert_ok(cuda->matmul(cuda, 1, &p));
                assert_ok(cuda->matmul(cuda, 1, &q));
                assert_same_bits((char *)r.c.data, (char *)tiles.c.data, M * N * (int64_t)wb_dtype_size(to),
                                 form_names[form]);
                free_result(&r), free_result(&tiles), free(a), free(b), free(keep_a), free(keep_b);
            }
}

static void test_a_row_is_the_same_in_any_company(void **state) {
    (void)state;
    enum { M = 1500, N = 512, K = 264 };
    uint16_t *a = random_bf16(M * K), *b = random_bf16(K * N), *c = poisoned_bf16(M * N);
    uint16_t *part = poisoned_bf16(M * N);
    for (int form = FORWARD; form <= DGRAD; form++) {
        const wb_matmul all = product_of(form, M, N, K, half(a), half(b), half(c), false);
        assert_ok(cuda->matmul(cuda, 1, &all));
        for (int64_t n = 1; n <= M; n = n * 3 + 1) {
            const int64_t first = rng_range(0, M - n);
            const wb_matmul p = product_of(form, n, N, K, half(a + first * K), half(b), half(part), false);
            assert_ok(cuda->matmul(cuda, 1, &p));
            assert_same_bits(part, c + first * N, n * N, form_names[form]);
        }
    }
    free(a), free(b), free(c), free(part);
}

/* ---- products of groups ---------------------------------------------------------------------- */

/* E experts of a layer with some rows each, none of some: H wide, F their width. */
typedef struct layer {
    int64_t T, H, F, rows;
    int32_t E, *offsets, *row_token;
    uint16_t *x, *up, *down, *gate_up, *act, *y, *dy, *dact, *dx, *gathered;
    float *dup, *ddown;
} layer;

static void make_layer(layer *l, int32_t E, int64_t T, int64_t H, int64_t F, int64_t most) {
    *l = (layer){.T = T, .H = H, .F = F, .E = E, .offsets = xalloc(E + 1, sizeof *l->offsets)};
    for (int32_t e = 0; e < E; e++)
        l->offsets[e + 1] = l->offsets[e] + (rng_range(0, 3) ? (int32_t)rng_range(0, most) : 0);
    l->rows = l->offsets[E];
    l->row_token = xalloc(l->rows, sizeof *l->row_token);
    for (int64_t i = 0; i < l->rows; i++) l->row_token[i] = (int32_t)rng_range(0, T - 1);
    l->x = random_bf16(T * H), l->up = random_bf16(E * 2 * F * H), l->down = random_bf16(E * H * F);
    l->gate_up = poisoned_bf16(l->rows * 2 * F), l->act = poisoned_bf16(l->rows * F);
    l->y = poisoned_bf16(l->rows * H), l->dy = random_bf16(l->rows * H), l->dx = poisoned_bf16(l->rows * H);
    l->dact = poisoned_bf16(l->rows * F), l->gathered = poisoned_bf16(l->rows * H);
    l->dup = floats(E * 2 * F * H), l->ddown = floats(E * H * F);
}

static void free_layer(layer *l) {
    free(l->offsets), free(l->row_token), free(l->x), free(l->up), free(l->down), free(l->gate_up);
    free(l->act), free(l->y), free(l->dy), free(l->dact), free(l->dx), free(l->gathered);
    free(l->dup), free(l->ddown);
}

static wb_grouped group_up(const layer *l) {
    return (wb_grouped){.n_groups = l->E,
                        .offsets = l->offsets,
                        .max_rows = l->rows,
                        .w = matrix(l->up, WB_BF16, 2 * l->F, l->H),
                        .gather = l->row_token,
                        .gathered = half(l->gathered)};
}

static wb_grouped group_down(const layer *l) {
    return (wb_grouped){.n_groups = l->E,
                        .offsets = l->offsets,
                        .max_rows = l->rows,
                        .w = matrix(l->down, WB_BF16, l->H, l->F)};
}

static void run_forward(const layer *l) {
    const wb_grouped up = group_up(l), down = group_down(l);
    assert_ok(cuda->grouped_matmul(cuda, &up, half(l->x), half(l->gate_up), half(l->act)));
    assert_ok(cuda->grouped_matmul(cuda, &down, half(l->act), half(l->y), (wb_rows){0}));
}

static void run_backward(const layer *l, bool overwrites) {
    wb_grouped up = group_up(l), down = group_down(l);
    up.overwrites = down.overwrites = overwrites;
    assert_ok(cuda->grouped_matmul_backward(cuda, &down, half(l->act), half(l->dy), l->ddown, half(l->dact),
                                            half(l->gate_up)));
    assert_ok(cuda->grouped_matmul_backward(cuda, &up, half(l->x), half(l->gate_up), l->dup, half(l->dx),
                                            (wb_rows){0}));
}

/* Group e's product alone, as a matmul of the same operands makes it; gathered rows are gathered here. */
static void one_group(const layer *l, int32_t e, int64_t columns, int64_t depth, const uint16_t *a,
                      const uint16_t *b, int form, uint16_t *c) {
    const int64_t n = l->offsets[e + 1] - l->offsets[e];
    const wb_matmul p = product_of(form, n, columns, depth, half(a), half(b), half(c), false);
    assert_ok(cuda->matmul(cuda, 1, &p));
}

static void check_forward(const layer *l) {
    const int64_t H = l->H, F = l->F;
    uint16_t *rows = poisoned_bf16(l->rows * H), *c = poisoned_bf16(l->rows * (2 * F + H));
    for (int64_t i = 0; i < l->rows; i++)
        memcpy(rows + i * H, l->x + l->row_token[i] * H, (size_t)H * sizeof *rows);
    for (int32_t e = 0; e < l->E; e++) {
        const int64_t first = l->offsets[e], n = l->offsets[e + 1] - first;
        one_group(l, e, 2 * F, H, rows + first * H, l->up + e * 2 * F * H, FORWARD, c);
        assert_same_bits(l->gate_up + first * 2 * F, c, n * 2 * F, "gate_up");
        one_group(l, e, H, F, l->act + first * F, l->down + e * H * F, FORWARD, c);
        assert_same_bits(l->y + first * H, c, n * H, "down");
    }
    assert_ok(cuda->swiglu_forward(cuda, l->rows, F, half(l->gate_up), half(c)));
    assert_same_bits(l->act, c, l->rows * F, "act");
    free(rows), free(c);
}

/* dw of group e: beginning at `before`, plus the product; before NULL: the product alone. */
static void check_dw(const layer *l, int32_t e, const char *what, const float *dw, const float *before,
                     int64_t out, int64_t in, const uint16_t *dy, const uint16_t *x) {
    const int64_t n = l->offsets[e + 1] - l->offsets[e];
    result r = make_result(out * in, WB_F32, true);
    const wb_matmul p = product_of(WGRAD, out, in, n, half(dy), half(x), r.c, false);
    assert_ok(cuda->matmul(cuda, 1, &p));
    for (int64_t i = 0; i < out * in; i++) {
        const float begin = before ? before[i] : 0, expected = n > 0 ? begin + at(r.c, i) : begin;
        if (!(dw[i] == expected))
            fail_msg("%s of group %d [%" PRId64 "]: expected %.9g, found %.9g", what, e, i, (double)expected,
                     (double)dw[i]);
    }
    free_result(&r);
}

/* Group e's part of a gradient as it was; NULL where that does not matter. */
static const float *part_of(const float *before, int32_t e, int64_t n) {
    return before ? before + e * n : NULL;
}

/* What is overwritten was NaN. */
static void check_backward(layer *l, bool overwrites) {
    const int64_t H = l->H, F = l->F;
    uint16_t *forward = poisoned_bf16(l->rows * 2 * F), *dact = poisoned_bf16(l->rows * F);
    uint16_t *rows = poisoned_bf16(l->rows * H), *c = poisoned_bf16(l->rows * H);
    for (int64_t i = 0; i < l->E * 2 * F * H; i++) l->dup[i] = overwrites ? NAN : rng_uniform(-1, 1);
    for (int64_t i = 0; i < l->E * H * F; i++) l->ddown[i] = overwrites ? NAN : rng_uniform(-1, 1);
    float *dup = overwrites ? NULL : copied(l->dup, l->E * 2 * F * H),
          *ddown = overwrites ? NULL : copied(l->ddown, l->E * H * F);
    memcpy(forward, l->gate_up, (size_t)(l->rows * 2 * F) * sizeof *forward);
    for (int64_t i = 0; i < l->rows; i++)
        memcpy(rows + i * H, l->x + l->row_token[i] * H, (size_t)H * sizeof *rows);
    run_backward(l, overwrites);
    for (int32_t e = 0; e < l->E; e++) {
        const int64_t first = l->offsets[e], n = l->offsets[e + 1] - first;
        one_group(l, e, F, H, l->dy + first * H, l->down + e * H * F, DGRAD, dact + first * F);
        one_group(l, e, H, 2 * F, l->gate_up + first * 2 * F, l->up + e * 2 * F * H, DGRAD, c);
        assert_same_bits(l->dx + first * H, c, n * H, "dx");
        check_dw(l, e, "dup", l->dup + e * 2 * F * H, part_of(dup, e, 2 * F * H), 2 * F, H,
                 l->gate_up + first * 2 * F, rows + first * H);
        check_dw(l, e, "ddown", l->ddown + e * H * F, part_of(ddown, e, H * F), H, F, l->dy + first * H,
                 l->act + first * F);
    }
    assert_ok(cuda->swiglu_backward(cuda, l->rows, F, half(forward), half(dact), half(forward)));
    assert_same_bits(l->gate_up, forward, l->rows * 2 * F, "gradient of gate and up");
    free(forward), free(dact), free(rows), free(c), free(dup), free(ddown);
}

static void test_groups_are_products_of_their_own(void **state) {
    (void)state;
    for (int round = 0; round < 12; round++) {
        const bool odd = round % 4 == 3;
        const int32_t E = (int32_t)rng_range(1, 9);
        const int64_t H = odd ? rng_range(1, 90) : 8 * rng_range(1, 40),
                      F = odd ? rng_range(1, 70) : 8 * rng_range(1, 30);
        layer l;
        make_layer(&l, E, 64, H, F, round % 3 == 0 ? 400 : 90);
        run_forward(&l);
        check_forward(&l);
        check_backward(&l, round / 4 % 2);
        free_layer(&l);
    }
}

/* So many groups with so many rows that they get the largest tiles, whose last ones hold all numbers of rows;
 * widths with an end within a tile, and that leave one of two blocks without columns. */
static void test_large_tiles_have_the_same_bits(void **state) {
    const int64_t widths[][2] = {{264, 264}, {520, 512}, {776, 392}};
    (void)state;
    for (int i = 0; i < 3; i++) {
        layer l;
        make_layer(&l, 40, 512, widths[i][0], widths[i][1], 500);
        run_forward(&l);
        check_forward(&l);
        check_backward(&l, false);
        run_forward(&l);
        check_backward(&l, true);
        free_layer(&l);
    }
}

/* Where gate and up are of no use, act is the same, and so it is in any company: a row of the second half of
 * the groups alone. */
static void test_act_does_not_depend_on_what_is_kept(void **state) {
    (void)state;
    for (int round = 0; round < 8; round++) {
        const bool large = round % 2;
        layer l;
        make_layer(&l, large ? 40 : 6, 512, 8 * rng_range(1, 60), large ? 264 : 8 * rng_range(1, 30), 400);
        run_forward(&l);
        uint16_t *act = poisoned_bf16(l.rows * l.F);
        wb_grouped up = group_up(&l);
        up.y_is_scratch = true;
        assert_ok(cuda->grouped_matmul(cuda, &up, half(l.x), half(l.gate_up), half(act)));
        assert_same_bits(act, l.act, l.rows * l.F, "act where gate and up are not kept");
        const int32_t g = l.E / 2;
        up.n_groups -= g, up.offsets += g;
        up.w.data = l.up + g * 2 * l.F * l.H;
        memset(act, 0xff, (size_t)(l.rows * l.F) * sizeof *act);
        assert_ok(cuda->grouped_matmul(cuda, &up, half(l.x), half(l.gate_up), half(act)));
        assert_same_bits(act + l.offsets[g] * l.F, l.act + l.offsets[g] * l.F, (l.rows - l.offsets[g]) * l.F,
                         "act of half the groups");
        for (int64_t j = 0; j < l.offsets[g] * l.F; j++) assert_int_equal(0xffff, act[j]);
        free(act);
        free_layer(&l);
    }
}

/* ---- the sigmoid ----------------------------------------------------------------------------- */

/* Off by 2^-20 of the sigmoid, and each result by a rounding more than the CPU's. In the gradient of the gate
 * the sigmoid stands twice, and terms of opposite sign. */
static void test_swiglu_is_within_the_bound(void **state) {
    enum { N = 700, F = 24 };
    wb_device *cpu = open_cpu(1);
    uint16_t *x = random_bf16(N * 2 * F), *d = random_bf16(N * F), *act = poisoned_bf16(N * F);
    uint16_t *expected = poisoned_bf16(N * 2 * F), *dx = poisoned_bf16(N * 2 * F);
    (void)state;
    for (int64_t i = 0; i < N * 2 * F; i++) x[i] = wb_f32_to_bf16(rng_uniform(-1, 1) * (i % 7 ? 8 : 120));
    assert_ok(cpu->swiglu_forward(cpu, N, F, half(x), half(expected)));
    assert_ok(cuda->swiglu_forward(cuda, N, F, half(x), half(act)));
    for (int64_t i = 0; i < N * F; i++) {
        const float e = at(half(expected), i);
        assert_close(at(half(act), i), e, fabs((double)e) * 0x1p-7 + 1e-30, "act", i);
    }
    assert_ok(cpu->swiglu_backward(cpu, N, F, half(x), half(d), half(expected)));
    assert_ok(cuda->swiglu_backward(cuda, N, F, half(x), half(d), half(dx)));
    for (int64_t i = 0; i < N * 2 * F; i++) {
        const int64_t row = i / (2 * F), f = i % F;
        const double e = (double)at(half(expected), i), g = fabs((double)at(half(x), row * 2 * F + f));
        const double size = fabs((double)at(half(d), row * F + f)) *
                            (i % (2 * F) < F ? fabs((double)at(half(x), i + F)) * (1 + g) : g);
        assert_close(at(half(dx), i), e, fabs(e) * 0x1p-7 + size * 0x1p-18 + 1e-30, "gradient", i);
    }
    free(x), free(d), free(act), free(expected), free(dx);
    wb_device_close(cpu);
}

/* Rows of one expert that are NaN, in all that is read. */
static void test_nan_stays_with_its_expert(void **state) {
    (void)state;
    for (int large = 0; large < 2; large++) {
        const int32_t E = 5, bad = 2;
        layer l;
        make_layer(&l, E, 64, large ? 2048 : 72, large ? 1024 : 40, large ? 500 : 50);
        while (l.offsets[bad + 1] == l.offsets[bad]) {
            free_layer(&l);
            make_layer(&l, E, 64, l.H, l.F, large ? 500 : 50);
        }
        run_forward(&l);
        for (int64_t i = l.offsets[bad]; i < l.offsets[bad + 1]; i++) {
            for (int64_t h = 0; h < l.H; h++) l.dy[i * l.H + h] = 0x7fc0;
            for (int64_t f = 0; f < l.F; f++) l.act[i * l.F + f] = 0x7fc0;
        }
        run_backward(&l, false);
        for (int32_t e = 0; e < E; e++)
            for (int64_t i = 0; i < 2 * l.F * l.H; i++) {
                const float found = l.dup[e * 2 * l.F * l.H + i];
                if (isnan(found) != (e == bad))
                    fail_msg("group %d, dup[%" PRId64 "]: %g", e, i, (double)found);
                if (i < l.F * l.H && isnan(l.ddown[e * l.F * l.H + i]) != (e == bad))
                    fail_msg("group %d, ddown[%" PRId64 "]", e, i);
            }
        free_layer(&l);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products_are_within_the_bound),
        cmocka_unit_test(test_all_kernels_give_the_same_bits),
        cmocka_unit_test(test_a_row_is_the_same_in_any_company),
        cmocka_unit_test(test_groups_are_products_of_their_own),
        cmocka_unit_test(test_large_tiles_have_the_same_bits),
        cmocka_unit_test(test_act_does_not_depend_on_what_is_kept),
        cmocka_unit_test(test_nan_stays_with_its_expert),
        cmocka_unit_test(test_swiglu_is_within_the_bound),
    };
    rng_open(argc, argv);
    open_cuda();
    if (!cuda) return 77;
    const int failures = cmocka_run_group_tests(tests, NULL, NULL);
    wb_device_close(cuda);
    return failures;
}
