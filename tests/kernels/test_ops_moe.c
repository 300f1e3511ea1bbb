/* test_ops_moe.c - moe_plan and moe_group against slow restatements of their rules, the grouped products
 * against one product a group, moe_combine and its backward against a reference in double precision. */
#include "gradient_check.h"
#include "wb_dispatch_rules.h"

/* A float's unit roundoff: tolerances are multiples of it, times the size of what is summed. */
static const double u = 0x1p-24;

typedef struct combine_case {
    int64_t T, K, H;
    const int32_t *pair_row;
    const float *dy;
} combine_case;

/* x: rows [T * K, H], then weights [T, K]. */
static double combine_element(const combine_case *c, const double *x, int64_t t, int64_t i) {
    double y = 0.0;
    for (int64_t k = 0; k < c->K; k++) {
        const int32_t row = c->pair_row[t * c->K + k];
        if (row >= 0) y += x[c->T * c->K * c->H + t * c->K + k] * x[row * c->H + i];
    }
    return y;
}

static double combine_loss(const double *x, const void *context) {
    const combine_case *c = context;
    double loss = 0.0;
    for (int64_t i = 0; i < c->T * c->H; i++)
        loss += (double)c->dy[i] * combine_element(c, x, i / c->H, i % c->H);
    return loss;
}

/* ---- plans ----------------------------------------------------------------------------------- */

enum { TOKENS = 37, CHOICES = 3, EXPERTS = 11, SLOTS = 19 };

/* A layer whose experts have one to a few replicas among SLOTS slots, and tokens of which some are
 * padding. */
typedef struct layer {
    uint16_t ids[TOKENS * CHOICES];
    uint8_t direction[TOKENS];
    int32_t tokens[TOKENS], pos[TOKENS];
    int32_t begin[EXPERTS + 1], replicas[SLOTS], first[EXPERTS];
    int32_t pair_row[TOKENS * CHOICES], row_token[TOKENS * CHOICES], offsets[SLOTS + 1];
    wb_moe_plan plan;
} layer;

static void shuffle(int32_t *x, int n) {
    for (int i = n - 1; i > 0; i--) {
        int j = (int)rng_range(0, i);
        int32_t swap = x[i];
        x[i] = x[j], x[j] = swap;
    }
}

static void make_layer(layer *l, bool dynamic) {
    int32_t slots[SLOTS], extra[EXPERTS] = {0};
    for (int s = 0; s < SLOTS; s++) slots[s] = s;
    shuffle(slots, SLOTS);
    for (int i = 0; i < SLOTS - EXPERTS - 1; i++)
        extra[rng_range(0, EXPERTS - 1)]++; /* one slot stays empty */
    l->begin[0] = 0;
    for (int e = 0; e < EXPERTS; e++) {
        l->begin[e + 1] = l->begin[e] + 1 + extra[e];
        l->first[e] = slots[l->begin[e]];
    }
    memcpy(l->replicas, slots, sizeof slots);
    for (int t = 0; t < TOKENS; t++) {
        l->direction[t] = (uint8_t)rng_range(WB_ROW_NATIVE, WB_ROW_PADDING);
        l->tokens[t] = (int32_t)rng_range(0, 999);
        l->pos[t] = t;
        const int64_t start = rng_range(0, EXPERTS - 1);
        for (int k = 0; k < CHOICES; k++) l->ids[t * CHOICES + k] = (uint16_t)((start + 3 * k) % EXPERTS);
    }
    memset(l->row_token, 0x55, sizeof l->row_token);
    wb_dispatch_rule rule = {.layer = 3};
    if (dynamic)
        rule.replica_begin = l->begin, rule.replica_slots = l->replicas;
    else
        rule.slot_of_expert = l->first;
    l->plan = (wb_moe_plan){.T = TOKENS,
                            .top_k = CHOICES,
                            .n_experts = EXPERTS,
                            .n_slots = SLOTS,
                            .rule = rule,
                            .tokens = dynamic ? l->tokens : NULL,
                            .pos = dynamic ? l->pos : NULL,
                            .direction = l->direction,
                            .ids = {l->ids, WB_U16, CHOICES},
                            .pair_row = l->pair_row,
                            .row_token = l->row_token,
                            .offsets = l->offsets};
}

/* Walks slots, tokens and choices in that order: each pair that belongs to the slot has the next row. */
static void check_plan(const layer *l) {
    int32_t row = 0;
    for (int32_t s = 0; s < SLOTS; s++) {
        assert_int_equal(l->offsets[s], row);
        for (int32_t i = 0; i < TOKENS * CHOICES; i++) {
            const int32_t t = i / CHOICES;
            const uint64_t key = wb_dispatch_key(l->tokens[t], l->pos[t]);
            if (l->direction[t] == WB_ROW_PADDING) {
                assert_int_equal(l->pair_row[i], -1);
            } else if (wb_dispatch_slot(&l->plan.rule, l->ids[i], key) == s) {
                assert_int_equal(l->pair_row[i], row);
                assert_int_equal(l->row_token[row++], t);
            }
        }
    }
    assert_int_equal(l->offsets[SLOTS], row);
    if (row < TOKENS * CHOICES) assert_int_equal(l->row_token[row], 0x55555555);
}

static void test_rule_10_plans_have_no_rows_of_padding(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    for (int i = 0; i < 40; i++) {
        layer l;
        make_layer(&l, i % 2 == 1);
        if (i % 5 == 0) l.plan.direction = NULL, memset(l.direction, 0, sizeof l.direction);
        assert_ok(dev->moe_plan(dev, &l.plan));
        check_plan(&l);
    }
    layer l;
    make_layer(&l, false);
    memset(l.offsets, 0x55, sizeof l.offsets);
    l.ids[4] = EXPERTS;
    assert_int_equal(dev->moe_plan(dev, &l.plan), WB_INVALID_ARGUMENT);
    assert_int_equal(l.offsets[0], 0x55555555);
    wb_device_close(dev);
}

/* Both replicas of an expert get tokens under a dynamic rule, and a token goes to the same one again. */
static void test_dynamic_rules_use_all_replicas(void **state) {
    (void)state;
    static const int32_t begin[2] = {0, 3}, slots[3] = {4, 1, 7};
    const wb_dispatch_rule rule = {.replica_begin = begin, .replica_slots = slots, .layer = 1};
    int32_t seen[8] = {0};
    for (int32_t pos = 0; pos < 300; pos++) seen[wb_dispatch_slot(&rule, 0, wb_dispatch_key(17, pos))]++;
    assert_int_equal(seen[1] + seen[4] + seen[7], 300);
    assert_true(seen[1] > 60 && seen[4] > 60 && seen[7] > 60);
}

static void test_moe_group(void **state) {
    (void)state;
    enum { R = 3, HERE = 4, MOST = R * HERE * 5 };
    wb_device *dev = open_cpu(2);
    for (int trial = 0; trial < 20; trial++) {
        int32_t counts[R * HERE], offsets[HERE + 1], to_received[MOST], to_grouped[MOST], row = 0;
        for (int i = 0; i < R * HERE; i++) counts[i] = (int32_t)rng_range(0, 5);
        const wb_moe_group group = {R, HERE, counts, offsets, to_received, to_grouped};
        assert_ok(dev->moe_group(dev, &group));
        for (int s = 0; s < HERE; s++) {
            assert_int_equal(offsets[s], row);
            for (int r = 0; r < R; r++) {
                int32_t arrived = 0;
                for (int i = 0; i < r * HERE + s; i++) arrived += counts[i];
                for (int i = 0; i < counts[r * HERE + s]; i++, row++, arrived++) {
                    assert_int_equal(to_received[row], arrived);
                    assert_int_equal(to_grouped[arrived], row);
                }
            }
        }
        assert_int_equal(offsets[HERE], row);
    }
    wb_device_close(dev);
}

/* ---- products ------------------------------------------------------------------------------------ */

static void assert_same_floats(const float *a, const float *b, int64_t n, const char *what) {
    if (memcmp(a, b, (size_t)n * sizeof *a) != 0) fail_msg("%s: bits differ", what);
}

static wb_weight slot_weight(const wb_weight *all, int32_t s) {
    return (wb_weight){(float *)all->data + s * all->rows * all->cols, all->dtype, all->rows, all->cols,
                       false};
}

/* [gate | up] and down of each slot of a plan against one product a slot. */
static void test_grouped_matmul(void **state) {
    (void)state;
    enum { H = 40, F = 24, N = TOKENS * CHOICES };
    wb_device *dev = open_cpu(2);
    layer l;
    make_layer(&l, true);
    assert_ok(dev->moe_plan(dev, &l.plan));
    const int64_t n = l.offsets[SLOTS];
    float *x = random_floats(TOKENS * H, -1, 1), *up = random_floats(SLOTS * 2 * F * H, -1, 1);
    float *down = random_floats(SLOTS * H * F, -1, 1), *dy = random_floats(N * H, -1, 1),
          *gathered = floats(N * H);
    float *gate_up = floats(N * 2 * F), *act = floats(N * F), *y = floats(N * H), *dact = floats(N * F);
    float *dup = random_floats(SLOTS * 2 * F * H, -1, 1), *ddown = random_floats(SLOTS * H * F, -1, 1);
    float *dx = floats(N * H), *dup2 = copied(dup, SLOTS * 2 * F * H), *ddown2 = copied(ddown, SLOTS * H * F);
    const wb_rows none = {NULL, WB_F32};
    const wb_grouped first = {
        SLOTS, l.offsets, N, {up, WB_F32, 2 * F, H, false}, l.row_token, wb_f32_rows(gathered), false, false};
    const wb_grouped second = {SLOTS, l.offsets, N, {down, WB_F32, H, F, false}, NULL, none, false, false};
    assert_ok(dev->grouped_matmul(dev, &first, wb_f32_rows(x), wb_f32_rows(gate_up), wb_f32_rows(act)));
    assert_ok(dev->grouped_matmul(dev, &second, wb_f32_rows(act), wb_f32_rows(y), none));

    float *rows = floats(N * H), *gate_up2 = floats(N * 2 * F), *act2 = floats(N * F), *y2 = floats(N * H);
    float *dact2 = floats(N * F), *dx2 = floats(N * H);
    assert_ok(dev->gather_rows(dev, n, H, l.row_token, wb_f32_rows(x), wb_f32_rows(rows)));
    for (int32_t s = 0; s < SLOTS; s++) {
        const int64_t at = l.offsets[s], m = l.offsets[s + 1] - at;
        const wb_rows in = wb_f32_rows(rows + at * H), both = wb_f32_rows(gate_up2 + at * 2 * F);
        const wb_rows middle = wb_f32_rows(act2 + at * F), last = wb_f32_rows(y2 + at * H);
        const wb_matmul product = wb_matmul_forward(m, in, slot_weight(&first.w, s), both);
        assert_ok(dev->matmul(dev, 1, &product));
        assert_ok(dev->swiglu_forward(dev, m, F, both, middle));
        const wb_matmul second_product = wb_matmul_forward(m, middle, slot_weight(&second.w, s), last);
        assert_ok(dev->matmul(dev, 1, &second_product));
    }
    assert_same_floats(gate_up, gate_up2, N * 2 * F, "gate_up");
    assert_same_floats(act, act2, N * F, "act");
    assert_same_floats(y, y2, N * H, "y");

    assert_ok(dev->grouped_matmul_backward(dev, &second, wb_f32_rows(act), wb_f32_rows(dy), ddown,
                                           wb_f32_rows(dact), wb_f32_rows(gate_up)));
    assert_ok(dev->grouped_matmul_backward(dev, &first, wb_f32_rows(x), wb_f32_rows(gate_up), dup,
                                           wb_f32_rows(dx), none));
    for (int32_t s = 0; s < SLOTS; s++) {
        const int64_t at = l.offsets[s], m = l.offsets[s + 1] - at;
        const wb_rows in = wb_f32_rows(rows + at * H), both = wb_f32_rows(gate_up2 + at * 2 * F);
        const wb_rows middle = wb_f32_rows(act2 + at * F), dmiddle = wb_f32_rows(dact2 + at * F);
        const wb_rows dlast = wb_f32_rows(dy + at * H);
        const wb_matmul of_down[2] = {wb_matmul_wgrad(m, F, H, dlast, middle, ddown2 + s * H * F),
                                      wb_matmul_dgrad(m, dlast, slot_weight(&second.w, s), dmiddle, false)};
        assert_ok(dev->matmul(dev, 2, of_down));
        assert_ok(dev->swiglu_backward(dev, m, F, both, dmiddle, both));
        const wb_rows din = wb_f32_rows(dx2 + at * H);
        const wb_matmul of_up[2] = {wb_matmul_wgrad(m, H, 2 * F, both, in, dup2 + s * 2 * F * H),
                                    wb_matmul_dgrad(m, both, slot_weight(&first.w, s), din, false)};
        assert_ok(dev->matmul(dev, 2, of_up));
    }
    assert_same_floats(ddown, ddown2, SLOTS * H * F, "gradient of down");
    assert_same_floats(dup, dup2, SLOTS * 2 * F * H, "gradient of gate_up");
    assert_same_floats(dx, dx2, N * H, "dx");
    free(x), free(up), free(down), free(dy), free(gathered), free(gate_up), free(act), free(y), free(dact);
    free(dup), free(ddown), free(dx), free(dup2), free(ddown2), free(rows), free(gate_up2), free(act2),
        free(y2);
    free(dact2), free(dx2);
    wb_device_close(dev);
}

/* A backward that overwrites leaves what one that adds makes of zeros, whatever was there; zeros for a group
 * without rows, and for all where no group has any. */
static void test_overwritten_gradients(void **state) {
    (void)state;
    enum { H = 40, F = 24, N = TOKENS * CHOICES };
    wb_device *dev = open_cpu(2);
    const int64_t n = SLOTS * F * H;
    layer l;
    make_layer(&l, true);
    assert_ok(dev->moe_plan(dev, &l.plan));
    float *x = random_floats(N * H, -1, 1), *w = random_floats(n, -1, 1), *dy = random_floats(N * F, -1, 1);
    float *dx = floats(N * H), *added = floats(n), *written = floats(n);
    wb_grouped g = {.n_groups = SLOTS, .offsets = l.offsets, .max_rows = N, .w = {w, WB_F32, F, H, false}};
    int32_t empty = 0;
    for (int32_t s = 0; s < SLOTS; s++) empty += l.offsets[s] == l.offsets[s + 1];
    assert_true(empty > 0);
    for (int64_t i = 0; i < n; i++) written[i] = NAN;
    assert_ok(dev->grouped_matmul_backward(dev, &g, wb_f32_rows(x), wb_f32_rows(dy), added, wb_f32_rows(dx),
                                           (wb_rows){0}));
    g.overwrites = true;
    assert_ok(dev->grouped_matmul_backward(dev, &g, wb_f32_rows(x), wb_f32_rows(dy), written, wb_f32_rows(dx),
                                           (wb_rows){0}));
    assert_same_floats(written, added, n, "overwritten");

    memset(l.offsets, 0, sizeof l.offsets);
    memset(added, 0, (size_t)n * sizeof *added);
    g.max_rows = 0;
    assert_ok(dev->grouped_matmul_backward(dev, &g, wb_f32_rows(x), wb_f32_rows(dy), written, wb_f32_rows(dx),
                                           (wb_rows){0}));
    assert_same_floats(written, added, n, "overwritten without rows");
    free(x), free(w), free(dy), free(dx), free(added), free(written);
    wb_device_close(dev);
}

/* ---- combine --------------------------------------------------------------------------------- */

static void test_moe_combine(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    const int64_t T = 9, K = 3, H = 19, n = T * K * H + T * K;
    int32_t pair_row[27];
    for (int i = 0; i < 27; i++) pair_row[i] = i;
    shuffle(pair_row, 27);
    for (int k = 0; k < 3; k++) pair_row[4 * 3 + k] = -1; /* token 4 is padding */
    float *x = random_floats(n, -1, 1), *w = x + T * K * H, *y = random_floats(T * H, -1, 1),
          *dy = random_floats(T * H, -1, 1), *grad = floats(n);
    double *x2 = doubles(x, n);
    const wb_rows rows = wb_f32_rows(x), of_y = wb_f32_rows(y), of_dy = wb_f32_rows(dy);
    combine_case c = {T, K, H, pair_row, dy};
    assert_ok(dev->moe_combine(dev, T, (int32_t)K, H, rows, pair_row, w, of_y));
    for (int64_t i = 0; i < T * H; i++)
        assert_close(y[i], combine_element(&c, x2, i / H, i % H), 8 * u * (double)K, "moe_combine", i);
    for (int64_t i = 0; i < H; i++) assert_float_equal(y[4 * H + i], 0, 0);
    assert_ok(dev->moe_combine_backward(dev, T, (int32_t)K, H, rows, pair_row, w, of_dy, wb_f32_rows(grad),
                                        grad + T * K * H));
    check_gradient(combine_loss, &c, x, n, grad, NULL, 2e-6, "moe_combine_backward");
    assert_ok(dev->moe_combine(dev, T, (int32_t)K, H, rows, pair_row, NULL, of_y)); /* weights 1 */
    for (int64_t i = 0; i < T * K; i++) x2[T * K * H + i] = 1.0;
    for (int64_t i = 0; i < T * H; i++)
        assert_close(y[i], combine_element(&c, x2, i / H, i % H), 8 * u * (double)K, "moe_combine of ones",
                     i);
    free(x), free(y), free(dy), free(grad), free(x2);
    wb_device_close(dev);
}

/* ---- experts without weights ----------------------------------------------------------------- */

/* Rule 37: their choices have no rows and go to no slot; the others' lie as they do without them. */
static void test_rule_37_plans_have_no_rows_of_weightless_experts(void **state) {
    (void)state;
    enum { WEIGHTLESS = 3, PAIRS = TOKENS * CHOICES };
    wb_device *dev = open_cpu(2);
    for (int i = 0; i < 20; i++) {
        layer l;
        make_layer(&l, i % 2 == 1);
        uint16_t before[PAIRS];
        int32_t row = 0;
        memcpy(before, l.ids, sizeof before);
        /* About a third of the choices become those of experts that the rule does not know. */
        for (int p = 0; p < PAIRS; p++)
            if (rng_range(0, 2) == 0) l.ids[p] = (uint16_t)(EXPERTS + p % CHOICES % WEIGHTLESS);
        l.plan.n_experts = EXPERTS + WEIGHTLESS;
        l.plan.n_weightless = WEIGHTLESS;
        assert_ok(dev->moe_plan(dev, &l.plan));
        for (int32_t s = 0; s < SLOTS; s++) {
            assert_int_equal(l.offsets[s], row);
            for (int p = 0; p < PAIRS; p++) {
                const int t = p / CHOICES;
                if (l.direction[t] == WB_ROW_PADDING || l.ids[p] >= EXPERTS) {
                    assert_int_equal(l.pair_row[p], -1);
                } else if (wb_dispatch_slot(&l.plan.rule, before[p],
                                            wb_dispatch_key(l.tokens[t], l.pos[t])) == s) {
                    assert_int_equal(l.pair_row[p], row);
                    assert_int_equal(l.row_token[row++], t);
                }
            }
        }
        assert_int_equal(l.offsets[SLOTS], row);
        l.plan.n_experts--;
        assert_int_equal(dev->moe_plan(dev, &l.plan), WB_INVALID_ARGUMENT);
    }
    wb_device_close(dev);
}

enum { OWN_T = 6, OWN_K = 3, OWN_H = 37, OWN_FIRST = 5 };

typedef struct own_case {
    const uint8_t *ids;
    const float *dy;
} own_case;

/* <dy, y> of x[T,H] and weights[T,K] behind it. */
static double own_loss(const double *x, const void *context) {
    const own_case *c = context;
    const double *w = x + OWN_T * OWN_H;
    double loss = 0;
    for (int t = 0; t < OWN_T; t++)
        for (int k = 0; k < OWN_K; k++)
            for (int i = 0; i < OWN_H && c->ids[t * OWN_K + k] >= OWN_FIRST; i++)
                loss += w[t * OWN_K + k] * x[t * OWN_H + i] * (double)c->dy[t * OWN_H + i];
    return loss;
}

static void test_rule_37_a_weightless_expert_gives_the_token_itself(void **state) {
    (void)state;
    enum { N = OWN_T * OWN_H, PAIRS = OWN_T * OWN_K };
    wb_device *dev = open_cpu(2);
    uint8_t ids[PAIRS];
    /* Token 2 has none of them, token 3 all, token 4 is padding. */
    for (int p = 0; p < PAIRS; p++) ids[p] = (uint8_t)((p * 5 + p / OWN_K) % 9);
    memcpy(ids + 6, (const uint8_t[]){0, 1, 4, 5, 6, 8}, 6);
    float *x = random_floats(N + PAIRS, -1, 1), *w = x + N, *y = random_floats(N, -1, 1),
          *before = copied(y, N);
    float *dy = random_floats(N, -1, 1), *grad = floats(N + PAIRS);
    for (int k = 0; k < OWN_K; k++) w[4 * OWN_K + k] = 0;
    const wb_own_choices own = {OWN_T, OWN_H, OWN_K, OWN_FIRST, {ids, WB_U8, OWN_K}, w};
    assert_ok(dev->moe_own_forward(dev, &own, wb_f32_rows(x), wb_f32_rows(y)));
    for (int i = 0; i < N; i++) {
        float sum = before[i];
        for (int k = 0; k < OWN_K; k++)
            if (ids[i / OWN_H * OWN_K + k] >= OWN_FIRST) sum = fmaf(w[i / OWN_H * OWN_K + k], x[i], sum);
        assert_true(y[i] == sum);
    }
    for (int i = 2 * OWN_H; i < 3 * OWN_H; i++) assert_true(y[i] == before[i]);
    own_case c = {ids, dy};
    for (int p = 0; p < PAIRS; p++) grad[N + p] = 0; /* as combine's backward leaves pairs without a row */
    assert_ok(dev->moe_own_backward(dev, &own, wb_f32_rows(x), wb_f32_rows(dy), wb_f32_rows(grad), grad + N));
    for (int k = 0; k < OWN_K; k++) assert_true(grad[N + 4 * OWN_K + k] == 0);
    for (int k = 0; k < OWN_K; k++) ids[4 * OWN_K + k] = 0; /* padding has no gradient, whatever its ids */
    check_gradient(own_loss, &c, x, N + PAIRS, grad, NULL, 2e-6, "moe_own_backward");
    const wb_own_choices none = {0, OWN_H, OWN_K, OWN_FIRST, {ids, WB_U8, OWN_K}, w};
    assert_ok(dev->moe_own_forward(dev, &none, wb_f32_rows(x), wb_f32_rows(y)));
    assert_ok(
        dev->moe_own_backward(dev, &none, wb_f32_rows(x), wb_f32_rows(dy), wb_f32_rows(grad), grad + N));
    free(x), free(y), free(before), free(dy), free(grad);
    wb_device_close(dev);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_10_plans_have_no_rows_of_padding),
        cmocka_unit_test(test_dynamic_rules_use_all_replicas),
        cmocka_unit_test(test_moe_group),
        cmocka_unit_test(test_grouped_matmul),
        cmocka_unit_test(test_overwritten_gradients),
        cmocka_unit_test(test_moe_combine),
        cmocka_unit_test(test_rule_37_plans_have_no_rows_of_weightless_experts),
        cmocka_unit_test(test_rule_37_a_weightless_expert_gives_the_token_itself),
    };
    rng_open(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
