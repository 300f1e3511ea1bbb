/* test_ops_fused.c - ops that make several steps of a row at once have the bits of the ops that make one step
 * each, in f32 and in bf16, and write nothing else: on the CPU and, where there is one, on CUDA. */
#include "cuda_memory.h"
#include "ops_test.h"

enum { GUARD = 5, POOL_ROWS = 40, POSITIONS = 50 };

/* ---- rows of either dtype ------------------------------------------------------------------------ */

/* Elements and GUARD more, which no op may touch. */
static wb_rows random_rows(int64_t n, wb_dtype dtype) {
    wb_rows rows = {xalloc(n + GUARD, wb_dtype_size(dtype)), dtype};
    for (int64_t i = 0; i < n + GUARD; i++) {
        const float value = rng_uniform(-3, 3);
        if (dtype == WB_F32)
            ((float *)rows.data)[i] = value;
        else
            ((uint16_t *)rows.data)[i] = wb_f32_to_bf16(value);
    }
    return rows;
}

static size_t bytes_of(int64_t n, wb_dtype dtype) {
    return (size_t)(n + GUARD) * wb_dtype_size(dtype);
}

static wb_rows copy_of(wb_rows rows, int64_t n) {
    wb_rows copy = {xalloc(n + GUARD, wb_dtype_size(rows.dtype)), rows.dtype};
    memcpy(copy.data, rows.data, bytes_of(n, rows.dtype));
    return copy;
}

static void assert_same_rows(wb_rows expected, wb_rows found, int64_t n, const char *what) {
    same_bits_at(expected.data, found.data, bytes_of(n, expected.dtype), what, __LINE__);
}

/* ---- the residual sum with a norm ---------------------------------------------------------------- */

static void check_add_rmsnorm(wb_device *dev, int64_t n, int64_t width, wb_dtype dtype) {
    const int64_t all = n * width;
    float *w = random_floats(width, -1, 1);
    const wb_norm norm = norm_of(w, rng_range(0, 1) == 1);
    const wb_rows x = random_rows(all, dtype), y = random_rows(all, dtype), normed = random_rows(all, dtype);
    const wb_rows own_x = copy_of(x, all), sum = copy_of(y, all), own_normed = copy_of(normed, all);
    assert_ok(dev->add(dev, all, x, sum));
    assert_ok(dev->rmsnorm_forward(dev, n, width, sum, norm, own_normed));
    assert_ok(dev->add_rmsnorm(dev, n, width, x, y, norm, normed));
    assert_same_rows(sum, y, all, "add_rmsnorm y");
    assert_same_rows(own_normed, normed, all, "add_rmsnorm normed");
    assert_same_rows(own_x, x, all, "add_rmsnorm x");
    free(w), free(x.data), free(y.data), free(normed.data);
    free(own_x.data), free(sum.data), free(own_normed.data);
}

/* ---- q, k and v ---------------------------------------------------------------------------------- */

typedef struct side {
    wb_rows q, k, v, k_cache, v_cache;
} side;

typedef struct heads_case {
    wb_attention_inputs args; /* with `fused`'s rows */
    int64_t q, kv;            /* widths */
    side fused, chain;
    float *norms[2], *cosines, *sines;
    int32_t *pos;
    int64_t *rows;
} heads_case;

/* Rows of the pool, no row twice; every third token is of padding. */
static void fill_places(heads_case *c, int64_t T) {
    const int64_t first = rng_range(0, POOL_ROWS - 1);
    c->pos = xalloc(T, sizeof *c->pos);
    c->rows = xalloc(T, sizeof *c->rows);
    for (int64_t t = 0; t < T; t++) {
        c->pos[t] = (int32_t)rng_range(0, POSITIONS - 1);
        c->rows[t] = t % 3 == 2 ? -1 : (first + 7 * t) % POOL_ROWS; /* 7 and 40 have no common factor */
    }
}

static heads_case open_case(wb_dtype dtype, wb_dtype cache) {
    heads_case c = {.args = {.T = rng_range(0, POOL_ROWS),
                             .n_kv_heads = (int32_t)rng_range(1, 3),
                             .head_dim = (int32_t)rng_range(1, 40),
                             .norm_whole = rng_range(0, 1) == 1,
                             .clip = rng_range(0, 1) == 1 ? 1.7f : 0}};
    wb_attention_inputs *a = &c.args;
    a->n_heads = a->n_kv_heads * (int32_t)rng_range(1, 4);
    a->rot_dim = 2 * (int32_t)rng_range(0, a->head_dim / 2);
    c.q = (int64_t)a->n_heads * a->head_dim, c.kv = (int64_t)a->n_kv_heads * a->head_dim;
    c.fused = (side){random_rows(a->T * c.q, dtype), random_rows(a->T * c.kv, dtype),
                     random_rows(a->T * c.kv, dtype), random_rows(POOL_ROWS * c.kv, cache),
                     random_rows(POOL_ROWS * c.kv, cache)};
    c.chain = (side){copy_of(c.fused.q, a->T * c.q), copy_of(c.fused.k, a->T * c.kv),
                     copy_of(c.fused.v, a->T * c.kv), copy_of(c.fused.k_cache, POOL_ROWS * c.kv),
                     copy_of(c.fused.v_cache, POOL_ROWS * c.kv)};
    c.norms[0] = random_floats(c.q, -1, 1), c.norms[1] = random_floats(c.kv, -1, 1);
    c.cosines = random_floats(POSITIONS * (a->rot_dim / 2), -1, 1);
    c.sines = random_floats(POSITIONS * (a->rot_dim / 2), -1, 1);
    fill_places(&c, a->T);
    const bool has_norm = rng_range(0, 3) > 0;
    a->q = c.fused.q, a->k = c.fused.k, a->v = c.fused.v;
    const bool zero_centered = rng_range(0, 1) == 1;
    a->q_norm = norm_of(has_norm ? c.norms[0] : NULL, zero_centered);
    a->k_norm = norm_of(has_norm ? c.norms[1] : NULL, zero_centered);
    a->pos = c.pos, a->cos_table = c.cosines, a->sin_table = c.sines;
    a->rows = rng_range(0, 4) > 0 ? c.rows : NULL;
    a->k_cache = c.fused.k_cache, a->v_cache = c.fused.v_cache;
    return c;
}

static void close_case(heads_case *c) {
    const side *const sides[] = {&c->fused, &c->chain};
    for (int i = 0; i < 2; i++) {
        const side *s = sides[i];
        free(s->q.data), free(s->k.data), free(s->v.data), free(s->k_cache.data), free(s->v_cache.data);
    }
    free(c->norms[0]), free(c->norms[1]), free(c->cosines), free(c->sines), free(c->pos), free(c->rows);
}

/* q, k or v, step by step. */
static void run_steps(wb_device *dev, const wb_attention_inputs *a, int32_t heads, wb_norm norm, bool rotates,
                      wb_rows x) {
    const int64_t width = (int64_t)heads * a->head_dim, of_norm = a->norm_whole ? width : a->head_dim;
    if (norm.w) assert_ok(dev->rmsnorm_forward(dev, a->T * width / of_norm, of_norm, x, norm, x));
    if (a->clip > 0) assert_ok(dev->clamp(dev, a->T * width, a->clip, x));
    const wb_rope rope = {.T = a->T,
                          .n_heads = heads,
                          .head_dim = a->head_dim,
                          .rot_dim = a->rot_dim,
                          .pos = a->pos,
                          .cos_table = a->cos_table,
                          .sin_table = a->sin_table,
                          .x = x};
    if (rotates) assert_ok(dev->rope(dev, &rope));
}

static void check_prepare(wb_device *dev, wb_dtype dtype, wb_dtype cache) {
    heads_case c = open_case(dtype, cache);
    const wb_attention_inputs *a = &c.args;
    const side *s = &c.chain;
    run_steps(dev, a, a->n_heads, a->q_norm, true, s->q);
    run_steps(dev, a, a->n_kv_heads, a->k_norm, true, s->k);
    run_steps(dev, a, a->n_kv_heads, (wb_norm){0}, false, s->v);
    if (a->rows) {
        assert_ok(dev->kv_write(dev, a->T, c.kv, s->k, a->rows, s->k_cache));
        assert_ok(dev->kv_write(dev, a->T, c.kv, s->v, a->rows, s->v_cache));
    }
    assert_ok(dev->attention_prepare(dev, a));
    assert_same_rows(s->q, a->q, a->T * c.q, "attention_prepare q");
    assert_same_rows(s->k, a->k, a->T * c.kv, "attention_prepare k");
    assert_same_rows(s->v, a->v, a->T * c.kv, "attention_prepare v");
    assert_same_rows(s->k_cache, a->k_cache, POOL_ROWS * c.kv, "attention_prepare k_cache");
    assert_same_rows(s->v_cache, a->v_cache, POOL_ROWS * c.kv, "attention_prepare v_cache");
    close_case(&c);
}

/* ---- all of it ----------------------------------------------------------------------------------- */

static void run_on(wb_device *dev) {
    /* The last is more than 48 KiB a row. */
    static const int64_t widths[] = {1, 15, 16, 17, 64, 300, 1031, 13000};
    for (int half = 0; half < 2; half++) {
        const wb_dtype dtype = half ? WB_BF16 : WB_F32;
        for (size_t i = 0; i < sizeof widths / sizeof widths[0]; i++)
            check_add_rmsnorm(dev, rng_range(0, 9), widths[i], dtype);
        for (int i = 0; i < 40; i++) check_prepare(dev, dtype, half || i % 2 ? WB_BF16 : WB_F32);
    }
}

static void test_fused_ops_have_the_bits_of_their_steps(void **state) {
    (void)state;
    if (cuda) {
        run_on(cuda);
        return;
    }
    for (int threads = 1; threads <= 3; threads += 2) {
        wb_device *dev = open_cpu(threads);
        run_on(dev);
        wb_device_close(dev);
    }
}

static void refuse(wb_device *dev, const wb_attention_inputs *args, const char *message) {
    assert_int_equal(dev->attention_prepare(dev, args), WB_INVALID_ARGUMENT);
    assert_string_equal(wb_error_message(), message);
}

static void test_odd_operands_are_refused(void **state) {
    (void)state;
    wb_device *dev = cuda ? cuda : open_cpu(1);
    heads_case c = open_case(WB_BF16, WB_BF16);
    wb_attention_inputs a = c.args;
    a.rows = c.rows;
    a.rot_dim = a.head_dim + 2 - a.head_dim % 2;
    char text[128];
    snprintf(text, sizeof text, "attention_prepare: rot_dim: expected an even number up to %d, found %d",
             a.head_dim, a.rot_dim);
    refuse(dev, &a, text);
    a.rot_dim = c.args.rot_dim;
    a.k_cache.dtype = WB_F32;
    refuse(dev, &a, "attention_prepare: k_cache: expected bf16 like k, found f32");
    a.k_cache.dtype = WB_BF16, a.v.dtype = WB_F32;
    refuse(dev, &a, "attention_prepare: v: expected bf16 like q, found f32");
    const wb_rows floats_of = wb_f32_rows(c.norms[0]);
    assert_int_equal(dev->add_rmsnorm(dev, 1, 1, floats_of, a.q, norm_of(c.norms[0], false), floats_of),
                     WB_INVALID_ARGUMENT);
    assert_string_equal(wb_error_message(), "add_rmsnorm: y: expected f32 like x, found bf16");
    close_case(&c);
    if (!cuda) wb_device_close(dev);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_fused_ops_have_the_bits_of_their_steps),
                                       cmocka_unit_test(test_odd_operands_are_refused)};
    rng_open(argc, argv);
    open_cuda();
    const int failures = cmocka_run_group_tests(tests, NULL, NULL);
    wb_device_close(cuda);
    return failures;
}
