/* test_router.c - selection and the gate of the CPU backend. Ids compare exactly, per row and in the order of
 * the choices, with a naive selection written here; weights and gradients with double precision and finite
 * differences. Ties, NaN, groups, biases, forced rows, views with strides and extreme logits are made on
 * purpose. */
#include "ops_test.h"
#include "wb_formats.h"

enum { TYPES = 6, MAX_CHOICES = 64 };

static wb_router router_of(wb_router_type type, int32_t E, int32_t K) {
    return (wb_router){type, E, K, 0, 0, true, 1.0f};
}

static bool is_softmax(wb_router_type type) {
    return type == WB_ROUTER_SOFTMAX || type == WB_ROUTER_SOFTMAX_NORM || type == WB_ROUTER_TOPK_SOFTMAX;
}

/* ---- a naive selection ----------------------------------------------------------------------- */

/* Whether a comes before b: key descending, id ascending, NaN last. */
static bool before(const float *key, int32_t a, int32_t b) {
    if (isnan(key[a]) || isnan(key[b])) return isnan(key[a]) == isnan(key[b]) ? a < b : isnan(key[b]);
    return key[a] != key[b] ? key[a] > key[b] : a < b;
}

/* The best `count` of the `n` candidates, by repeated search. */
static void best_of(const float *key, const bool *candidate, int32_t n, int32_t count, int32_t *out) {
    bool taken[2048] = {false};
    for (int32_t k = 0; k < count; k++) {
        int32_t best = -1;
        for (int32_t i = 0; i < n; i++)
            if (!taken[i] && candidate[i] && (best < 0 || before(key, i, best))) best = i;
        taken[best] = true;
        out[k] = best;
    }
}

static void select_naively(const wb_router *r, const float *z, const float *bias, int32_t *ids) {
    float key[2048], score[2048];
    bool candidate[2048], group_candidate[2048];
    for (int32_t e = 0; e < r->n_experts; e++) {
        float s = r->type == WB_ROUTER_SIGMOID ? wb_sigmoid(z[e]) : wb_sqrtsoftplus(z[e]);
        key[e] = is_softmax(r->type) ? z[e] : s + (bias ? bias[e] : 0.0f);
        candidate[e] = r->n_group <= 1;
    }
    if (r->n_group > 1) {
        int32_t size = r->n_experts / r->n_group, groups[2048], top[2];
        bool all[2048];
        memset(all, 1, sizeof all);
        for (int32_t g = 0; g < r->n_group; g++) {
            best_of(key + g * size, all, size, size < 2 ? 1 : 2, top);
            float first = key[g * size + top[0]];
            score[g] = is_softmax(r->type) || size < 2 ? first : first + key[g * size + top[1]];
            group_candidate[g] = true;
        }
        best_of(score, group_candidate, r->n_group, r->topk_group, groups);
        for (int32_t i = 0; i < r->topk_group; i++)
            for (int32_t e = 0; e < size; e++) candidate[groups[i] * size + e] = true;
    }
    best_of(key, candidate, r->n_experts, r->top_k, ids);
}

/* Logits with ties and sometimes NaN, infinities and saturated values. */
static void hard_logits(float *z, int64_t count, bool special) {
    int64_t grain = rng_range(1, 40);
    for (int64_t i = 0; i < count; i++) {
        z[i] = (float)rng_range(-grain, grain) / 8.0f;
        int64_t dice = special ? rng_range(0, 30) : 30;
        if (dice == 0) z[i] = NAN;
        if (dice == 1) z[i] = rng_range(0, 1) ? INFINITY : -INFINITY;
        if (dice == 2) z[i] = rng_range(0, 1) ? 100.0f : -100.0f;
        if (dice == 3) z[i] = rng_range(0, 1) ? 0.0f : -0.0f;
    }
}

static uint32_t id_at(wb_ids view, int64_t t, int64_t k) {
    return wb_route_id(view.data, view.dtype, (size_t)(t * view.stride + k));
}

static wb_ids new_view(int64_t T, int32_t E, int64_t stride) {
    wb_ids view = {NULL, E > 256 || rng_range(0, 1) ? WB_U16 : WB_U8, stride};
    view.data = xalloc(T * stride, 2);
    memset(view.data, 0xee, (size_t)(T * stride) * 2);
    return view;
}

static void check_selection(wb_device *dev, wb_router router, int64_t T, bool with_bias, bool special) {
    int32_t E = router.n_experts, K = router.top_k;
    float *z = floats(T * E), *bias = random_floats(E, -0.5f, 0.5f);
    uint8_t *forced = xalloc(T, 1);
    hard_logits(z, T * E, special);
    for (int32_t e = 0; e < E; e++) bias[e] = (float)(int)(bias[e] * 8.0f) / 8.0f; /* ties */
    wb_ids ids = new_view(T, E, K + rng_range(0, 5)), native = new_view(T, E, K + rng_range(0, 5));
    size_t bytes = (size_t)(T * ids.stride) * wb_dtype_size(ids.dtype);
    for (int64_t t = 0; t < T; t++) forced[t] = rng_range(0, 3) == 0;
    void *untouched = xalloc(T * ids.stride, 2);
    memcpy(untouched, ids.data, bytes);
    wb_topk args = {router, T, z, with_bias ? bias : NULL, NULL, NULL, forced, ids, native};
    assert_ok(dev->topk(dev, &args));
    for (int64_t t = 0; t < T; t++) {
        int32_t expected[MAX_CHOICES];
        select_naively(&router, z + t * E, args.bias, expected);
        for (int32_t k = 0; k < K; k++) {
            assert_int_equal(id_at(native, t, k), expected[k]);
            uint32_t kept = id_at((wb_ids){untouched, ids.dtype, ids.stride}, t, k);
            assert_int_equal(id_at(ids, t, k), forced[t] ? kept : (uint32_t)expected[k]);
        }
        for (int64_t k = K; k < ids.stride; k++) /* the layers beside are not ours */
            assert_int_equal(id_at(ids, t, k), id_at((wb_ids){untouched, ids.dtype, ids.stride}, t, k));
    }
    args.direction = NULL, args.native.data = NULL;
    assert_ok(dev->topk(dev, &args));
    for (int64_t t = 0; t < T; t++)
        for (int32_t k = 0; k < K; k++) assert_int_equal(id_at(ids, t, k), id_at(native, t, k));
    free(z), free(bias), free(forced), free(ids.data), free(native.data), free(untouched);
}

static void test_selection(void **state) {
    (void)state;
    const wb_router_type types[] = {WB_ROUTER_SOFTMAX, WB_ROUTER_SOFTMAX_NORM, WB_ROUTER_TOPK_SOFTMAX,
                                    WB_ROUTER_SIGMOID, WB_ROUTER_SQRTSOFTPLUS};
    const int32_t experts[] = {1, 2, 8, 60, 128, 256, 300, 512};
    wb_device *dev = open_cpu(2);
    for (int type = 0; type < 5; type++)
        for (int i = 0; i < 8; i++) {
            int32_t E = experts[i], max_k = E < MAX_CHOICES ? E : MAX_CHOICES;
            check_selection(dev, router_of(types[type], E, (int32_t)rng_range(1, max_k < 8 ? max_k : 8)), 17,
                            true, false);
            check_selection(dev, router_of(types[type], E, max_k), 7, false, true); /* K = E where E <= 64 */
        }
    check_selection(dev, router_of(WB_ROUTER_SOFTMAX_NORM, 128, 8), 700, false,
                    true); /* enough for two threads */
    wb_device_close(dev);
}

static void test_group_limited_selection(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    const wb_router_type types[] = {WB_ROUTER_SOFTMAX, WB_ROUTER_SIGMOID, WB_ROUTER_SQRTSOFTPLUS};
    for (int round = 0; round < 60; round++) {
        int32_t groups = (int32_t)rng_range(2, 8), size = (int32_t)rng_range(1, 9),
                kept = (int32_t)rng_range(1, groups);
        wb_router r = router_of(types[round % 3], groups * size,
                                (int32_t)rng_range(1, kept * size < 8 ? kept * size : 8));
        r.n_group = groups, r.topk_group = kept;
        check_selection(dev, r, 11, round % 2 == 0, round % 4 == 3);
    }
    wb_device_close(dev);
}

static void test_lowest_id_wins_a_tie(void **state) {
    (void)state;
    wb_device *dev = open_cpu(1);
    float z[8] = {1, 2, 2, NAN, 2, -0.0f, 0.0f, NAN};
    uint8_t ids[8];
    wb_topk args = {
        .router = router_of(WB_ROUTER_TOPK_SOFTMAX, 8, 8), .T = 1, .logits = z, .ids = {ids, WB_U8, 8}};
    const uint8_t expected[8] = {1, 2, 4, 0, 5, 6, 3, 7};
    assert_ok(dev->topk(dev, &args));
    assert_memory_equal(ids, expected, 8);
    wb_device_close(dev);
}

static void test_hash_ids_come_from_the_table(void **state) {
    (void)state;
    wb_device *dev = open_cpu(1);
    const int32_t table[6] = {3, 0, 1, 2, 2, 1}, tokens[4] = {2, 0, 1, 2};
    float z[16] = {0};
    uint16_t ids[8], native[8];
    uint8_t forced[4] = {0, 1, 0, 0};
    memset(ids, 0x11, sizeof ids);
    wb_topk args = {router_of(WB_ROUTER_HASH, 4, 2),
                    4,
                    z,
                    NULL,
                    table,
                    tokens,
                    forced,
                    {ids, WB_U16, 2},
                    {native, WB_U16, 2}};
    assert_ok(dev->topk(dev, &args));
    for (int i = 0; i < 8; i++) {
        assert_int_equal(native[i], table[tokens[i / 2] * 2 + i % 2]);
        assert_int_equal(ids[i], forced[i / 2] ? 0x1111 : native[i]);
    }
    const int32_t bad[6] = {3, 0, 1, 4, 2, 1};
    args.table = bad;
    assert_int_equal(dev->topk(dev, &args), WB_INVALID_ARGUMENT);
    args.table = NULL;
    assert_int_equal(dev->topk(dev, &args), WB_INVALID_ARGUMENT);
    wb_device_close(dev);
}

/* ---- the gate -------------------------------------------------------------------------------- */

typedef struct gate_case {
    wb_router router;
    int64_t T;
    wb_ids ids;
    const float *g;
} gate_case;

static double score(wb_router_type type, double z) {
    if (type == WB_ROUTER_SIGMOID) return 1.0 / (1.0 + exp(-z));
    return sqrt(z > 0 ? z + log1p(exp(-z)) : log1p(exp(z)));
}

static double weight(const gate_case *c, const double *z, int64_t t, int64_t k) {
    const wb_router *r = &c->router;
    const double *row = z + t * r->n_experts;
    double mine = row[id_at(c->ids, t, k)], sum = 0.0, scale = (double)r->scale;
    if (r->type == WB_ROUTER_SOFTMAX) {
        for (int32_t e = 0; e < r->n_experts; e++) sum += exp(row[e] - mine);
        return scale / sum;
    }
    if (is_softmax(r->type)) {
        for (int32_t j = 0; j < r->top_k; j++) sum += exp(row[id_at(c->ids, t, j)] - mine);
        return scale / sum;
    }
    for (int32_t j = 0; j < r->top_k; j++) sum += score(r->type, row[id_at(c->ids, t, j)]);
    return scale * score(r->type, mine) / (r->normalize ? sum + 1e-20 : 1.0);
}

static double gate_loss(const double *z, const gate_case *c) {
    double loss = 0.0;
    for (int64_t t = 0; t < c->T; t++)
        for (int32_t k = 0; k < c->router.top_k; k++)
            loss += (double)c->g[t * c->router.top_k + k] * weight(c, z, t, k);
    return loss;
}

/* Any ids: outside of today's top-k as well; `repeat` lets a row have one twice. */
static void check_gate(wb_device *dev, wb_router router, int64_t T, float reach, bool repeat) {
    int32_t E = router.n_experts, K = router.top_k;
    float *z = random_floats(T * E, -reach, reach), *w = floats(T * K), *g = random_floats(T * K, -1, 1);
    float *dz = random_floats(T * E, -9, 9);
    gate_case c = {router, T, new_view(T, E, K + 3), g};
    for (int64_t t = 0; t < T; t++)
        for (int32_t k = 0, step = (int32_t)rng_range(0, E - 1); k < K; k++) {
            int64_t at = t * c.ids.stride + k, id = repeat ? rng_range(0, E - 1) : (step + k) % E;
            if (c.ids.dtype == WB_U8)
                ((uint8_t *)c.ids.data)[at] = (uint8_t)id;
            else
                ((uint16_t *)c.ids.data)[at] = (uint16_t)id;
        }
    assert_ok(dev->gate_forward(dev, &router, T, z, NULL, c.ids, w));
    assert_ok(dev->gate_backward(dev, &router, T, z, NULL, c.ids, g, dz));
    double *point = xalloc(T * E, sizeof(double));
    for (int64_t i = 0; i < T * E; i++) point[i] = (double)z[i];
    for (int64_t i = 0; i < T * K; i++) {
        double expected = weight(&c, point, i / K, i % K);
        /* A score whose exponential is below the normal numbers has few bits, a softplus's root then half
         * as few. */
        double s = score(router.type, point[i / K * E + id_at(c.ids, i / K, i % K)]);
        double faint = is_softmax(router.type) ? 1e-37 : fabs(expected) / s * (s < 1e-18 ? 0x1p-74 : 0.0);
        double rounding = 2e-6 + 2.0 * (double)reach * 0x1p-24; /* of z - max, too */
        assert_close(w[i], expected, rounding * fabs(expected) + faint, wb_router_name(router.type), i);
    }
    for (int64_t i = 0; i < T * E; i++) {
        const double h = 1e-5, at = point[i];
        point[i] = at + h;
        double above = gate_loss(point, &c);
        point[i] = at - h;
        double below = gate_loss(point, &c), expected = (above - below) / (2 * h);
        point[i] = at;
        assert_close(dz[i], expected, 3e-6 * (fabs((double)router.scale) + fabs(expected)),
                     wb_router_name(router.type), i);
        bool chosen = false;
        for (int32_t k = 0; k < K; k++) chosen |= id_at(c.ids, i / E, k) == (uint32_t)(i % E);
        if (!chosen && router.type != WB_ROUTER_SOFTMAX) assert_true(dz[i] == 0.0f);
        if (!chosen && router.type == WB_ROUTER_SOFTMAX && reach < 10.0f && E > 1) assert_true(dz[i] != 0.0f);
    }
    free(z), free(w), free(g), free(dz), free(c.ids.data), free(point);
}

static void test_gate(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    for (int type = 0; type < TYPES; type++)
        for (int normalize = 0; normalize < 2; normalize++) {
            wb_router r = router_of((wb_router_type)type, 24, 5);
            r.normalize = normalize == 1;
            r.scale = 2.5f;
            check_gate(dev, r, 4, 4.0f, false);
            check_gate(dev, r, 4, 100.0f, false); /* logits up to +-100 */
            check_gate(dev, r, 4, 4.0f, true);
            r.n_experts = 5; /* K = E */
            check_gate(dev, r, 3, 3.0f, false);
            r.n_experts = r.top_k = 1;
            check_gate(dev, r, 3, 3.0f, false);
            r.n_experts = 300, r.top_k = 3;
            check_gate(dev, r, 2, 3.0f, false);
        }
    wb_device_close(dev);
}

static void test_gate_stays_finite(void **state) {
    (void)state;
    wb_device *dev = open_cpu(1);
    const float z[4] = {-100.0f, 100.0f, -103.9f, -1000.0f}, g[2] = {1.0f, -1.0f};
    for (int type = 0; type < TYPES; type++)
        for (int a = 0; a < 4; a++)
            for (int b = 0; b < 4; b++) {
                uint8_t ids[2] = {(uint8_t)a, (uint8_t)b};
                float w[2], dz[4];
                wb_router r = router_of((wb_router_type)type, 4, 2);
                assert_ok(dev->gate_forward(dev, &r, 1, z, NULL, (wb_ids){ids, WB_U8, 2}, w));
                assert_ok(dev->gate_backward(dev, &r, 1, z, NULL, (wb_ids){ids, WB_U8, 2}, g, dz));
                for (int i = 0; i < 2; i++) assert_true(w[i] >= 0.0f && w[i] <= 1.0f);
                for (int i = 0; i < 4; i++) assert_true(fabsf(dz[i]) < 1e3f);
            }
    wb_device_close(dev);
}

/* ---- refusals -------------------------------------------------------------------------------- */

static void test_check_names_the_field(void **state) {
    (void)state;
    const wb_router good = {WB_ROUTER_SIGMOID, 8, 2, 4, 2, true, 1.0f};
    assert_ok(wb_router_check(&good));
    struct {
        wb_router router;
        const char *field;
    } bad[] = {
        {good, "type"},  {good, "n_experts"}, {good, "n_experts"},  {good, "top_k"},
        {good, "top_k"}, {good, "n_group"},   {good, "topk_group"}, {good, "topk_group"},
        {good, "top_k"}, {good, "scale"},     {good, "n_group"},
    };
    bad[0].router.type = (wb_router_type)6;
    bad[1].router.n_experts = 0;
    bad[2].router.n_experts = 65537;
    bad[3].router.top_k = 0;
    bad[4].router.top_k = 9;
    bad[5].router.n_group = 3;
    bad[6].router.topk_group = 0;
    bad[7].router.topk_group = 5;
    bad[8].router.top_k = 5; /* only 4 experts in 2 groups */
    bad[9].router.scale = NAN;
    bad[10].router.type = WB_ROUTER_HASH;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(wb_router_check(&bad[i].router), WB_INVALID_ARGUMENT);
        if (!strstr(wb_error_message(), bad[i].field)) fail_msg("%zu: %s", i, wb_error_message());
    }
    for (int type = 0; type < TYPES; type++)
        assert_string_not_equal(wb_router_name((wb_router_type)type), "unknown");
    assert_string_equal(wb_router_name(WB_ROUTER_SOFTMAX_NORM), "softmax_norm");
    assert_string_equal(wb_router_name((wb_router_type)77), "unknown");
}

static void test_bad_ids_are_refused(void **state) {
    (void)state;
    wb_device *dev = open_cpu(1);
    wb_router r = router_of(WB_ROUTER_SOFTMAX_NORM, 4, 2);
    float z[8] = {0}, w[4] = {7, 7, 7, 7}, dz[8] = {7};
    uint8_t ids[4] = {0, 1, 2, 4};
    wb_ids view = {ids, WB_U8, 2};
    assert_int_equal(dev->gate_forward(dev, &r, 2, z, NULL, view, w), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "row 1, choice 1"));
    assert_int_equal(dev->gate_backward(dev, &r, 2, z, NULL, view, w, dz), WB_INVALID_ARGUMENT);
    assert_true(w[0] == 7.0f && dz[0] == 7.0f);
    view.dtype = WB_I32;
    assert_int_equal(dev->gate_forward(dev, &r, 2, z, NULL, view, w), WB_INVALID_ARGUMENT);
    wb_topk args = {
        .router = router_of(WB_ROUTER_SIGMOID, 257, 2), .T = 0, .logits = z, .ids = {ids, WB_U8, 2}};
    assert_int_equal(dev->topk(dev, &args), WB_INVALID_ARGUMENT);
    wb_device_close(dev);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_selection),
        cmocka_unit_test(test_group_limited_selection),
        cmocka_unit_test(test_lowest_id_wins_a_tie),
        cmocka_unit_test(test_hash_ids_come_from_the_table),
        cmocka_unit_test(test_gate),
        cmocka_unit_test(test_gate_stays_finite),
        cmocka_unit_test(test_check_names_the_field),
        cmocka_unit_test(test_bad_ids_are_refused),
    };
    rng_open(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
