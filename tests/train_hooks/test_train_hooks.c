/* test_train_hooks.c - a foreign trainer's gate under off, record and replay, on the CPU: ids exactly,
 * weights against the formulas in double, gradients against finite differences of them. Tests are named
 * after the rule they hold. */
#include "replay/replay_fixture.h"
#include "support/test_seed.h"

#include "wb_device.h"
#include "wb_train_hooks.h"

#include <math.h>

enum { K = 4, L = 2, REPLAYED = 6, PADDED = 3, T = REPLAYED + PADDED };

static uint64_t seed;

/* A trainer of L layers: logits of its own, one micro-batch of T rows of which the last PADDED are
 * padding. */
typedef struct trainer {
    wb_route_model model;
    wb_device *dev;
    wb_replay *replay;
    wb_hooks *hooks;
    fixture_record record; /* REPLAYED tokens: the last one of the segment has no row */
    wb_router router;
    float *logits[L];     /* [T][E] */
    float *bias[L];       /* [E] */
    uint16_t table[T][K]; /* what a hash router's table says, in every layer */
} trainer;

static float uniform(uint64_t *state) {
    return wb_random_unit(wb_random(state));
}

static void shake_logits(trainer *f, uint64_t *state) {
    for (int l = 0; l < L; l++)
        for (uint32_t i = 0; i < T * f->model.num_experts; i++) f->logits[l][i] = 6 * uniform(state) - 3;
}

static wb_hooks_options hook_options(const trainer *f) {
    wb_hooks_options options = wb_hooks_options_default();
    options.device = f->dev;
    options.replay = f->replay;
    options.router = f->router;
    return options;
}

static void open_trainer(trainer *f, wb_router_type type, uint32_t E, wb_missing_policy missing) {
    uint64_t state = seed + (uint64_t)type;
    memset(f, 0, sizeof *f);
    f->model = fixture_model(E, K, L);
    strcpy(f->model.router, wb_router_name(type));
    f->router = (wb_router){type, (int32_t)E, K, 1, 1, true, 1.5f};
    fixture_complete(&f->record, &f->model, 5, REPLAYED);
    wb_replay_options o = wb_replay_options_default();
    o.missing = missing;
    o.n_ranks = 4;
    OK(wb_device_open_cpu(1, &f->dev));
    OK(wb_replay_open(&f->model, &o, &f->replay));
    OK(wb_replay_add(f->replay, &f->model, &f->record.record));
    for (int l = 0; l < L; l++) {
        f->logits[l] = malloc(T * E * sizeof(float));
        f->bias[l] = malloc(E * sizeof(float));
        for (uint32_t e = 0; e < E; e++) f->bias[l][e] = uniform(&state) - 0.5f;
    }
    for (uint32_t t = 0; t < T; t++)
        for (uint32_t k = 0; k < K; k++) f->table[t][k] = (uint16_t)((t * 7 + k * 3 + 1) % E);
    shake_logits(f, &state);
    wb_hooks_options options = hook_options(f);
    options.bias = (const float *const *)f->bias;
    OK(wb_hooks_open(&options, &f->hooks));
}

static void close_trainer(trainer *f) {
    wb_hooks_close(f->hooks);
    wb_replay_close(f->replay);
    wb_device_close(f->dev);
    fixture_close(&f->record);
    for (int l = 0; l < L; l++) {
        free(f->logits[l]);
        free(f->bias[l]);
    }
}

static void begin(trainer *f, wb_replay_mode mode) {
    wb_hooks_step_abort(f->hooks);
    wb_segment s[2] = {fixture_segment(&f->record, 0, REPLAYED), {WB_SEGMENT_PADDING, NULL, 0, PADDED, NULL}};
    if (mode == WB_REPLAY_RECORD) s[0] = (wb_segment){WB_SEGMENT_RECORD, NULL, 0, REPLAYED, NULL};
    OK(wb_hooks_step_begin(f->hooks, mode, 1));
    OK(wb_replay_plan(f->replay, 0, 2, s));
}

typedef struct gate_out {
    uint16_t ids[T][K];
    float weights[T][K];
} gate_out;

static wb_status dispatch(trainer *f, int32_t l, uint32_t row, uint32_t rows, gate_out *out) {
    return wb_hooks_dispatched(f->hooks, 0, l, row, rows, (wb_ids){out->ids[row], WB_U16, K});
}

/* The gate, and a dispatcher that follows it. */
static gate_out forward(trainer *f, int32_t l) {
    gate_out out;
    memcpy(out.ids, f->table, sizeof out.ids); /* in for HASH, overwritten by the others */
    memset(out.weights, 0x7f, sizeof out.weights);
    OK(wb_hooks_gate_forward(f->hooks, 0, l, 0, T, f->logits[l], (wb_ids){out.ids, WB_U16, K},
                             &out.weights[0][0]));
    OK(dispatch(f, l, 0, T, &out));
    return out;
}

/* ---- the formulas, in double ----------------------------------------------------------------- */

static double score(wb_router_type type, double z) {
    return type == WB_ROUTER_SIGMOID ? 1 / (1 + exp(-z)) : sqrt(log1p(exp(z)));
}

static bool is_softmax(wb_router_type type) {
    return type == WB_ROUTER_SOFTMAX || type == WB_ROUTER_SOFTMAX_NORM || type == WB_ROUTER_TOPK_SOFTMAX;
}

static void expected_weights(const wb_router *r, const double *z, const uint16_t *ids, double *w) {
    double sum = 0;
    for (int k = 0; k < K; k++) {
        w[k] = is_softmax(r->type) ? exp(z[ids[k]]) : score(r->type, z[ids[k]]);
        sum += w[k];
    }
    if (r->type == WB_ROUTER_SOFTMAX) {
        sum = 0;
        for (int e = 0; e < r->n_experts; e++) sum += exp(z[e]);
    } else if (!is_softmax(r->type)) {
        sum = r->normalize ? sum + 1e-20 : 1;
    }
    for (int k = 0; k < K; k++) w[k] *= (double)r->scale / sum;
}

static double expected_loss(const wb_router *r, const double *z, const uint16_t *ids, const float *g) {
    double w[K], loss = 0;
    expected_weights(r, z, ids, w);
    for (int k = 0; k < K; k++) loss += (double)g[k] * w[k];
    return loss;
}

/* What the row would choose: K times the largest key that is left. */
static void expected_native(const trainer *f, int l, uint32_t t, uint16_t *ids) {
    if (f->router.type == WB_ROUTER_HASH) {
        memcpy(ids, f->table[t], sizeof f->table[t]);
        return;
    }
    uint32_t E = f->model.num_experts;
    const float *z = f->logits[l] + t * E;
    for (int k = 0; k < K; k++) {
        double best = -INFINITY;
        for (uint32_t e = 0; e < E; e++) {
            bool taken = false;
            for (int j = 0; j < k; j++) taken |= ids[j] == e;
            double z_e = (double)z[e];
            double key =
                is_softmax(f->router.type) ? z_e : score(f->router.type, z_e) + (double)f->bias[l][e];
            if (taken || !(key > best)) continue;
            best = key;
            ids[k] = (uint16_t)e;
        }
    }
}

static void check_weights(const trainer *f, int l, const gate_out *out) {
    uint32_t E = f->model.num_experts;
    double *z = malloc(E * sizeof *z), w[K];
    for (uint32_t t = 0; t < T; t++) {
        for (uint32_t e = 0; e < E; e++) z[e] = (double)f->logits[l][t * E + e];
        expected_weights(&f->router, z, out->ids[t], w);
        for (int k = 0; k < K; k++) {
            double expected = t < REPLAYED ? w[k] : 0; /* padding */
            if (!(fabs((double)out->weights[t][k] - expected) <= (t < REPLAYED ? 2e-6 : 0)))
                fail_msg("type %d, row %u, choice %d: weight %g, expected %g", f->router.type, t, k,
                         (double)out->weights[t][k], expected);
        }
    }
    free(z);
}

static void check_gradient(const trainer *f, int l, const gate_out *out, const float *g,
                           const float *dlogits) {
    const double h = 1e-5;
    uint32_t E = f->model.num_experts;
    double *z = malloc(E * sizeof *z);
    for (uint32_t t = 0; t < T; t++) {
        for (uint32_t e = 0; e < E; e++) z[e] = (double)f->logits[l][t * E + e];
        for (uint32_t e = 0; e < E; e++) {
            double kept = z[e], slope = 0;
            if (t < REPLAYED) {
                z[e] = kept + h;
                slope = expected_loss(&f->router, z, out->ids[t], g + t * K);
                z[e] = kept - h;
                slope = (slope - expected_loss(&f->router, z, out->ids[t], g + t * K)) / (2 * h);
                z[e] = kept;
            }
            double found = (double)dlogits[t * E + e];
            if (!(fabs(found - slope) <= (t < REPLAYED ? 3e-6 : 0)))
                fail_msg("type %d, row %u, expert %u: gradient %g, expected %g", f->router.type, t, e, found,
                         slope);
        }
    }
    free(z);
}

static void check_ids(const trainer *f, wb_replay_mode mode, int l, const gate_out *out) {
    for (uint32_t t = 0; t < REPLAYED; t++) {
        uint16_t native[K] = {0};
        expected_native(f, l, t, native);
        bool forced = mode == WB_REPLAY_ROLLOUT && t < REPLAYED - 1;
        for (uint32_t k = 0; k < K; k++)
            assert_int_equal(out->ids[t][k],
                             forced ? fixture_id(&f->model, f->record.seed, t, (uint32_t)l, k) : native[k]);
    }
    for (uint32_t t = REPLAYED; t < T; t++)
        for (int k = 0; k < K; k++) {
            assert_true(out->ids[t][k] < f->model.num_experts);
            for (int j = 0; j < k; j++) assert_int_not_equal(out->ids[t][k], out->ids[t][j]);
        }
}

static void check_backward(trainer *f, wb_replay_mode mode, int l, const gate_out *out, uint64_t *state) {
    uint32_t E = f->model.num_experts;
    float g[T * K], *dlogits = malloc(T * E * sizeof *dlogits);
    memset(dlogits, 0x7f, T * E * sizeof *dlogits);
    for (int i = 0; i < T * K; i++) g[i] = 2 * uniform(state) - 1; /* on padding rows too */
    wb_status status = wb_hooks_gate_backward(f->hooks, 0, l, 0, T, f->logits[l], g, dlogits);
    if (mode == WB_REPLAY_OFF && f->router.type == WB_ROUTER_HASH) {
        assert_int_equal(status, WB_UNSUPPORTED);
    } else {
        OK(status);
        check_gradient(f, l, out, g, dlogits);
    }
    free(dlogits);
}

static void test_rule_14_weights_and_gradients_at_the_ids_used(void **unused) {
    (void)unused;
    uint64_t state = seed;
    const uint32_t experts[] = {32, 256, 512};
    for (int type = WB_ROUTER_SOFTMAX; type <= WB_ROUTER_HASH; type++)
        for (int mode = WB_REPLAY_OFF; mode <= WB_REPLAY_ROLLOUT; mode++)
            for (int size = 0; size < (type == WB_ROUTER_SOFTMAX_NORM ? 3 : 1); size++) {
                trainer f;
                open_trainer(&f, (wb_router_type)type, experts[size], WB_MISSING_STRICT);
                begin(&f, (wb_replay_mode)mode);
                gate_out out[L];
                for (int l = 0; l < L; l++) {
                    out[l] = forward(&f, l);
                    check_ids(&f, (wb_replay_mode)mode, l, &out[l]);
                    check_weights(&f, l, &out[l]);
                }
                for (int l = L - 1; l >= 0; l--) { /* recompute and backward */
                    gate_out again = forward(&f, l);
                    assert_memory_equal(&again, &out[l], sizeof again);
                    check_backward(&f, (wb_replay_mode)mode, l, &again, &state);
                }
                shake_logits(&f, &state); /* after an update */
                for (int l = 0; l < L; l++) {
                    gate_out later = forward(&f, l);
                    if (mode == WB_REPLAY_OFF)
                        check_ids(&f, (wb_replay_mode)mode, l, &later);
                    else
                        assert_memory_equal(later.ids, out[l].ids, sizeof later.ids);
                    check_weights(&f, l, &later);
                    check_backward(&f, (wb_replay_mode)mode, l, &later, &state);
                }
                OK(wb_hooks_step_end(f.hooks, NULL));
                close_trainer(&f);
            }
}

static void test_rule_14_without_normalisation(void **unused) {
    (void)unused;
    uint64_t state = seed;
    trainer f;
    open_trainer(&f, WB_ROUTER_SIGMOID, 32, WB_MISSING_STRICT);
    wb_hooks_close(f.hooks);
    f.router.normalize = false;
    wb_hooks_options options = hook_options(&f);
    OK(wb_hooks_open(&options, &f.hooks));
    begin(&f, WB_REPLAY_ROLLOUT);
    for (int l = 0; l < L; l++) {
        gate_out out = forward(&f, l);
        check_weights(&f, l, &out);
        check_backward(&f, WB_REPLAY_ROLLOUT, l, &out, &state);
    }
    OK(wb_hooks_step_end(f.hooks, NULL));
    close_trainer(&f);
}

static void test_rule_3_expert_255_is_forced(void **unused) {
    (void)unused;
    trainer f;
    open_trainer(&f, WB_ROUTER_SOFTMAX, 256, WB_MISSING_STRICT);
    uint8_t *ids = f.record.blocks[0] + 1;
    memcpy(ids, (uint8_t[K]){255, 0, 128, 254}, K);
    begin(&f, WB_REPLAY_ROLLOUT);
    uint8_t out[T][K];
    float weights[T][K];
    OK(wb_hooks_gate_forward(f.hooks, 0, 0, 0, T, f.logits[0], (wb_ids){out, WB_U8, K}, &weights[0][0]));
    assert_memory_equal(out[0], ids, K);
    double sum = 0;
    for (int e = 0; e < 256; e++) sum += exp((double)f.logits[0][e]);
    assert_true(fabs((double)weights[0][0] - 1.5 * exp((double)f.logits[0][255]) / sum) <= 1e-7);
    close_trainer(&f);
}

/* ids_out in place in a tensor [T][L][K]: the other layers' ids stay. */
static void test_ids_are_written_where_the_trainer_keeps_them(void **unused) {
    (void)unused;
    trainer f;
    open_trainer(&f, WB_ROUTER_SOFTMAX_NORM, 64, WB_MISSING_STRICT);
    begin(&f, WB_REPLAY_ROLLOUT);
    uint8_t narrow[T][L][K];
    uint16_t wide[T][L][K];
    float weights[T][K];
    memset(narrow, 0xee, sizeof narrow);
    memset(wide, 0xee, sizeof wide);
    OK(wb_hooks_gate_forward(f.hooks, 0, 1, 0, T, f.logits[1], (wb_ids){narrow[0][1], WB_U8, L * K},
                             &weights[0][0]));
    OK(wb_hooks_gate_forward(f.hooks, 0, 1, 0, T, f.logits[1], (wb_ids){wide[0][1], WB_U16, L * K},
                             &weights[0][0]));
    gate_out out = forward(&f, 1);
    for (int t = 0; t < T; t++)
        for (int k = 0; k < K; k++) {
            assert_int_equal(narrow[t][0][k], 0xee);
            assert_int_equal(wide[t][0][k], 0xeeee);
            assert_int_equal(narrow[t][1][k], out.ids[t][k]);
            assert_int_equal(wide[t][1][k], out.ids[t][k]);
        }
    close_trainer(&f);
}

static void test_bug_47_slices_give_the_rows_of_the_whole(void **unused) {
    (void)unused;
    trainer whole, parts;
    open_trainer(&whole, WB_ROUTER_SIGMOID, 32, WB_MISSING_STRICT);
    open_trainer(&parts, WB_ROUTER_SIGMOID, 32, WB_MISSING_STRICT);
    begin(&whole, WB_REPLAY_ROLLOUT);
    begin(&parts, WB_REPLAY_ROLLOUT);
    gate_out expected = forward(&whole, 1), found;
    const uint32_t cuts[] = {4, 0, 4, 0, T}; /* in any order; a slice of none */
    for (int i = 0; i < 4; i++) {
        uint32_t row = cuts[i], end = i == 0 ? T : i == 1 ? 4 : row;
        OK(wb_hooks_gate_forward(parts.hooks, 0, 1, row, end - row, parts.logits[1] + row * 32,
                                 (wb_ids){found.ids[row], WB_U16, K}, found.weights[row]));
    }
    assert_memory_equal(&found, &expected, sizeof found);
    close_trainer(&whole);
    close_trainer(&parts);
}

static void test_rule_16_strict_failure_leaves_nothing_changed(void **unused) {
    (void)unused;
    trainer f;
    open_trainer(&f, WB_ROUTER_SOFTMAX_NORM, 32, WB_MISSING_STRICT);
    fixture_invalidate(&f.record, 2);
    wb_replay_clear(f.replay);
    OK(wb_replay_add(f.replay, &f.model, &f.record.record));
    OK(wb_hooks_step_begin(f.hooks, WB_REPLAY_ROLLOUT, 1));
    wb_segment s = fixture_segment(&f.record, 0, REPLAYED);
    assert_int_equal(wb_replay_plan(f.replay, 0, 1, &s), WB_MISSING_ROUTES);
    HAS_MESSAGE("position 2");
    gate_out out, poison;
    memset(&poison, 0x7f, sizeof poison);
    out = poison;
    assert_int_equal(wb_hooks_gate_forward(f.hooks, 0, 0, 0, REPLAYED, f.logits[0],
                                           (wb_ids){out.ids, WB_U16, K}, &out.weights[0][0]),
                     WB_INVALID_ARGUMENT);
    HAS_MESSAGE("not planned");
    assert_memory_equal(&out, &poison, sizeof out);
    wb_replay_metrics metrics = {.rows = -1};
    assert_int_equal(wb_hooks_step_end(f.hooks, &metrics), WB_MISMATCH);
    assert_true(metrics.rows == -1);
    close_trainer(&f);
}

static void test_rule_16_fallback_rows_follow_their_first_choice(void **unused) {
    (void)unused;
    uint64_t state = seed;
    trainer f;
    open_trainer(&f, WB_ROUTER_SIGMOID, 32, WB_MISSING_NATIVE);
    fixture_invalidate(&f.record, 2);
    wb_replay_clear(f.replay);
    OK(wb_replay_add(f.replay, &f.model, &f.record.record));
    begin(&f, WB_REPLAY_ROLLOUT);
    gate_out first[L];
    for (int l = 0; l < L; l++) {
        uint16_t native[K] = {0};
        expected_native(&f, l, 2, native);
        first[l] = forward(&f, l);
        assert_memory_equal(first[l].ids[2], native, sizeof native);
    }
    shake_logits(&f, &state);
    for (int l = 0; l < L; l++) {
        gate_out later = forward(&f, l);
        assert_memory_equal(later.ids, first[l].ids, sizeof later.ids);
        check_weights(&f, l, &later);
        check_backward(&f, WB_REPLAY_ROLLOUT, l, &later, &state);
    }
    wb_replay_metrics metrics;
    OK(wb_hooks_step_end(f.hooks, &metrics));
    assert_true(metrics.fallback_rows == 1 && metrics.forced_rows == REPLAYED - 2);
    assert_true(fabs(metrics.fallback_share - 1.0 / REPLAYED) <= 1e-15);
    close_trainer(&f);
}

/* Metrics of replay and of off agree: both compare the native choice with the record. */
static void test_rule_18_fidelity_under_replay_and_off(void **unused) {
    (void)unused;
    for (int type = WB_ROUTER_SOFTMAX; type <= WB_ROUTER_HASH; type++)
        for (int mode = WB_REPLAY_OFF; mode <= WB_REPLAY_ROLLOUT; mode += 2) {
            trainer f;
            open_trainer(&f, (wb_router_type)type, 32, WB_MISSING_STRICT);
            begin(&f, (wb_replay_mode)mode);
            double overlap[L] = {0}, differ = 0;
            for (int l = 0; l < L; l++)
                for (uint32_t t = 0; t < REPLAYED - 1; t++) {
                    uint16_t native[K] = {0};
                    expected_native(&f, l, t, native);
                    int common = 0;
                    for (uint32_t k = 0; k < K; k++)
                        for (int j = 0; j < K; j++)
                            common += native[j] == fixture_id(&f.model, 5, t, (uint32_t)l, k);
                    overlap[l] += (double)common / K / (REPLAYED - 1);
                    differ += (common < K) / (double)(L * (REPLAYED - 1));
                }
            for (int pass = 0; pass < 2; pass++)
                for (int l = 0; l < L; l++) forward(&f, l);
            wb_replay_metrics metrics;
            wb_replay_layer_metrics layers[L];
            OK(wb_hooks_step_end(f.hooks, &metrics));
            wb_replay_get_metrics(f.replay, &metrics, layers);
            assert_true(fabs(metrics.decision_differ - differ) <= 1e-12);
            for (int l = 0; l < L; l++) {
                assert_true(layers[l].tokens == REPLAYED - 1);
                assert_true(fabs(layers[l].overlap - overlap[l]) <= 1e-12);
            }
            close_trainer(&f);
        }
}

static void test_rule_19_modes_and_what_they_need(void **unused) {
    (void)unused;
    trainer f;
    open_trainer(&f, WB_ROUTER_SOFTMAX_NORM, 32, WB_MISSING_STRICT);
    gate_out out;
    wb_ids ids = {out.ids, WB_U16, K};
    float *w = &out.weights[0][0], g[T * K] = {0};
    assert_int_equal(wb_hooks_gate_forward(f.hooks, 0, 0, 0, T, f.logits[0], ids, w), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("outside of a step");
    assert_int_equal(wb_hooks_step_end(f.hooks, NULL), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_hooks_step_begin(f.hooks, (wb_replay_mode)3, 1), WB_INVALID_ARGUMENT);

    begin(&f, WB_REPLAY_ROLLOUT);
    float *dlogits = malloc(T * 32 * sizeof(float));
    assert_int_equal(wb_hooks_gate_backward(f.hooks, 0, 0, 0, T, f.logits[0], g, dlogits),
                     WB_INVALID_ARGUMENT); /* the last token has chosen nothing yet */
    HAS_MESSAGE("no forward");
    assert_int_equal(wb_hooks_gate_forward(f.hooks, 0, L, 0, T, f.logits[0], ids, w), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_hooks_gate_forward(f.hooks, 0, 0, 1, T, f.logits[0], ids, w), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_hooks_gate_forward(f.hooks, 0, 0, 0, -1, f.logits[0], ids, w), WB_INVALID_ARGUMENT);
    wb_ids narrow = {out.ids, WB_U16, K - 1}, odd = {out.ids, WB_I32, K};
    assert_int_equal(wb_hooks_gate_forward(f.hooks, 0, 0, 0, T, f.logits[0], narrow, w), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_hooks_gate_forward(f.hooks, 0, 0, 0, T, f.logits[0], odd, w), WB_INVALID_ARGUMENT);
    forward(&f, 0);
    assert_int_equal(wb_hooks_step_end(f.hooks, NULL), WB_MISMATCH); /* bug 41: layer 1 was never hooked */
    HAS_MESSAGE("MoE layer 1");

    wb_segment s = fixture_segment(&f.record, 0, REPLAYED);
    wb_hooks_step_abort(f.hooks);
    OK(wb_hooks_step_begin(f.hooks, WB_REPLAY_RECORD, 1));
    assert_int_equal(wb_replay_plan(f.replay, 0, 1, &s), WB_MISMATCH);
    HAS_MESSAGE("mode record");
    assert_int_equal(wb_hooks_gate_forward(f.hooks, 0, 0, 0, REPLAYED, f.logits[0], ids, w),
                     WB_INVALID_ARGUMENT);
    HAS_MESSAGE("not planned");
    assert_string_equal(wb_replay_mode_name(WB_REPLAY_OFF), "off");
    assert_string_equal(wb_replay_mode_name(WB_REPLAY_RECORD), "record");
    assert_string_equal(wb_replay_mode_name(WB_REPLAY_ROLLOUT), "rollout");
    free(dlogits);
    close_trainer(&f);
}

static void test_bug_55_a_reference_model_never_replays(void **unused) {
    (void)unused;
    uint64_t state = seed;
    trainer f;
    open_trainer(&f, WB_ROUTER_SIGMOID, 32, WB_MISSING_STRICT);
    wb_hooks *reference = NULL;
    wb_hooks_options options = hook_options(&f);
    options.replay = NULL;
    options.bias = (const float *const *)f.bias;
    OK(wb_hooks_open(&options, &reference));
    assert_int_equal(wb_hooks_step_begin(reference, WB_REPLAY_ROLLOUT, 1), WB_INVALID_ARGUMENT);
    begin(&f, WB_REPLAY_ROLLOUT);
    OK(wb_hooks_step_begin(reference, WB_REPLAY_OFF, 1)); /* in the middle of the policy's step */
    gate_out out;
    OK(wb_hooks_gate_forward(reference, 0, 0, 0, REPLAYED, f.logits[0], (wb_ids){out.ids, WB_U16, K},
                             &out.weights[0][0]));
    for (uint32_t t = 0; t < REPLAYED; t++) {
        uint16_t native[K] = {0};
        expected_native(&f, 0, t, native);
        assert_memory_equal(out.ids[t], native, sizeof native);
    }
    float g[T * K], *dlogits = malloc(T * 32 * sizeof(float));
    for (int i = 0; i < T * K; i++) g[i] = uniform(&state);
    OK(wb_hooks_gate_backward(reference, 0, 0, 0, REPLAYED, f.logits[0], g, dlogits));
    wb_replay_metrics metrics;
    OK(wb_hooks_step_end(reference, &metrics));
    assert_true(metrics.rows == 0);
    for (int l = 0; l < L; l++) {
        gate_out policy = forward(&f, l);
        check_ids(&f, WB_REPLAY_ROLLOUT, l, &policy);
    }
    OK(wb_hooks_step_end(f.hooks, NULL));
    free(dlogits);
    wb_hooks_close(reference);
    close_trainer(&f);
}

static void test_open_checks_the_router_against_the_model(void **unused) {
    (void)unused;
    trainer f;
    open_trainer(&f, WB_ROUTER_SIGMOID, 32, WB_MISSING_STRICT);
    wb_hooks *h = NULL;
    wb_hooks_options options = hook_options(&f);
    options.router.n_experts = 64;
    assert_int_equal(wb_hooks_open(&options, &h), WB_MISMATCH);
    options = hook_options(&f);
    options.router.type = WB_ROUTER_SOFTMAX_NORM;
    assert_int_equal(wb_hooks_open(&options, &h), WB_MISMATCH);
    HAS_MESSAGE("expected type sigmoid as the replay's model (test_moe), found softmax_norm");
    const float scales[] = {0, -0.0f, -1.5f, NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < sizeof scales / sizeof scales[0]; i++) {
        options = hook_options(&f);
        options.router.scale = scales[i];
        assert_int_equal(wb_hooks_open(&options, &h), WB_INVALID_ARGUMENT);
        HAS_MESSAGE("router.scale");
    }
    options.router.n_experts = 0;
    assert_int_equal(wb_hooks_open(&options, &h), WB_INVALID_ARGUMENT);
    options = hook_options(&f);
    options.device = NULL;
    assert_int_equal(wb_hooks_open(&options, &h), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("device");
    assert_int_equal(wb_hooks_open(NULL, &h), WB_INVALID_ARGUMENT);
    options = hook_options(&f);
    options.size = 0;
    assert_int_equal(wb_hooks_open(&options, &h), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("initialiser");
    assert_null(h);
    wb_hooks_close(NULL);
    close_trainer(&f);
}

static void test_settling_tells_the_replay_what_rows_chose(void **unused) {
    (void)unused;
    trainer f;
    open_trainer(&f, WB_ROUTER_SOFTMAX_NORM, 32, WB_MISSING_STRICT);
    assert_int_equal(wb_hooks_settle(f.hooks), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("outside of a step");
    begin(&f, WB_REPLAY_RECORD);
    for (int l = 0; l < L; l++) {
        wb_replay_slice slice;
        const gate_out out = forward(&f, l);
        OK(wb_replay_rows(f.replay, 0, l, 0, T, &slice));
        assert_true(slice.any_native);
        OK(wb_hooks_settle(f.hooks));
        OK(wb_replay_rows(f.replay, 0, l, 0, T, &slice));
        assert_false(slice.any_native);
        for (uint32_t t = 0; t < REPLAYED; t++)
            for (uint32_t k = 0; k < K; k++)
                assert_int_equal(
                    wb_route_id((const uint8_t *)slice.ids + (size_t)(t * slice.stride), WB_U8, k),
                    out.ids[t][k]);
    }
    OK(wb_hooks_step_end(f.hooks, NULL));
    close_trainer(&f);
}

static int device_allocations, device_selections;
static wb_status (*real_mem_alloc)(wb_device *, size_t, void **);
static wb_status (*real_topk)(wb_device *, const wb_topk *);

static wb_status counting_mem_alloc(wb_device *dev, size_t bytes, void **out) {
    device_allocations++;
    return real_mem_alloc(dev, bytes, out);
}

static wb_status counting_topk(wb_device *dev, const wb_topk *args) {
    device_selections++;
    return real_topk(dev, args);
}

static void test_a_recompute_neither_allocates_nor_selects(void **unused) {
    (void)unused;
    trainer f;
    open_trainer(&f, WB_ROUTER_SOFTMAX_NORM, 32, WB_MISSING_STRICT);
    real_mem_alloc = f.dev->mem_alloc;
    real_topk = f.dev->topk;
    f.dev->mem_alloc = counting_mem_alloc;
    f.dev->topk = counting_topk;
    begin(&f, WB_REPLAY_ROLLOUT);
    for (int l = 0; l < L; l++) forward(&f, l);
    assert_true(device_allocations > 0);
    assert_int_equal(device_selections, L); /* the metrics, and the last token's choice */
    device_allocations = 0;
    for (int l = 0; l < L; l++) forward(&f, l);
    assert_int_equal(device_allocations, 0);
    assert_int_equal(device_selections, L);
    close_trainer(&f);
}

int main(int argc, char **argv) {
    seed = test_seed(argc, argv);
    print_message("seed %" PRIu64 "\n", seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_14_weights_and_gradients_at_the_ids_used),
        cmocka_unit_test(test_rule_14_without_normalisation),
        cmocka_unit_test(test_rule_3_expert_255_is_forced),
        cmocka_unit_test(test_ids_are_written_where_the_trainer_keeps_them),
        cmocka_unit_test(test_bug_47_slices_give_the_rows_of_the_whole),
        cmocka_unit_test(test_rule_16_strict_failure_leaves_nothing_changed),
        cmocka_unit_test(test_rule_16_fallback_rows_follow_their_first_choice),
        cmocka_unit_test(test_rule_18_fidelity_under_replay_and_off),
        cmocka_unit_test(test_rule_19_modes_and_what_they_need),
        cmocka_unit_test(test_bug_55_a_reference_model_never_replays),
        cmocka_unit_test(test_open_checks_the_router_against_the_model),
        cmocka_unit_test(test_settling_tells_the_replay_what_rows_chose),
        cmocka_unit_test(test_a_recompute_neither_allocates_nor_selects),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
