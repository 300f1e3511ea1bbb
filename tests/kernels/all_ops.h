/* all_ops.h - runs every op of a CPU device once on inputs made from a seed and gathers all outputs, so
 * that two devices (instruction sets, thread counts) can be compared bit for bit. */
#ifndef WB_ALL_OPS_H
#define WB_ALL_OPS_H

#include "compressed_ops.h"
#include "recurrent_problem.h"

/* Log-probabilities at temperatures, of rows that keep every other token from the target's parity on. */
static inline void all_distributions(wb_device *dev, int64_t T, int64_t V, const float *x,
                                     const int32_t *tokens, outputs *o) {
    float *temperature = random_floats(T, 0.3f, 2.0f), *logprobs = floats(T), *dx = floats(T * V);
    uint32_t *ids = xalloc(T * V, sizeof *ids);
    int64_t *start = xalloc(T + 1, sizeof *start), n = start[0] = 0;
    for (int64_t t = 0; t < T; t++) {
        for (int64_t id = tokens[t] % 2; id < V && t % 3 != 0; id += 2) ids[n++] = (uint32_t)id;
        start[t + 1] = n;
    }
    const wb_distribution of = {temperature, ids, start};
    assert_ok(dev->logprob_forward(dev, T, V, x, tokens, &of, logprobs));
    assert_ok(dev->logprob_backward(dev, T, V, x, tokens, &of, logprobs, dx));
    keep_floats(o, logprobs, T, "logprob_forward of a distribution");
    keep_floats(o, dx, T * V, "logprob_backward of a distribution");
    free(temperature), free(ids), free(start);
}

static inline void all_rows(wb_device *dev, int64_t T, int64_t H, outputs *o) {
    const int64_t V = 11;
    float *x = random_floats(T * H, -9, 9), *w = random_floats(H, -1, 1), *d = random_floats(T * H, -1, 1);
    float *table = random_floats(V * H, -1, 1), *y = floats(T * H), *dx = floats(T * H), *dw = copied(w, H);
    uint16_t *half = xalloc(T * H, sizeof *half);
    int32_t *tokens = xalloc(T, sizeof *tokens);
    for (int64_t t = 0; t < T; t++) tokens[t] = (int32_t)rng_range(0, V - 1);
    assert_ok(dev->cast(dev, T * H, (wb_rows){x, WB_F32}, (wb_rows){half, WB_BF16}));
    keep(o, half, (size_t)(T * H) * 2, "cast");
    assert_ok(dev->embed_forward(dev, T, tokens, matrix(table, WB_F32, V, H), wb_f32_rows(y)));
    assert_ok(dev->embed_backward(dev, T, H, tokens, wb_f32_rows(d), table));
    keep_floats(o, table, V * H, "embed_backward");
    keep_floats(o, y, T * H, "embed_forward");
    y = floats(T * H);
    assert_ok(dev->rmsnorm_forward(dev, T, H, wb_f32_rows(x), norm_of(w, false), wb_f32_rows(y)));
    assert_ok(dev->rmsnorm_backward(dev, T, H, wb_f32_rows(x), norm_of(w, false), wb_f32_rows(d),
                                    wb_f32_rows(dx), dw));
    keep_floats(o, y, T * H, "rmsnorm_forward");
    float *sum = copied(d, T * H), *normed = floats(T * H);
    assert_ok(dev->add_rmsnorm(dev, T, H, wb_f32_rows(x), wb_f32_rows(sum), norm_of(w, false),
                               wb_f32_rows(normed)));
    keep_floats(o, sum, T * H, "add_rmsnorm y");
    keep_floats(o, normed, T * H, "add_rmsnorm normed");
    keep_floats(o, dx, T * H, "rmsnorm_backward dx");
    keep_floats(o, dw, H, "rmsnorm_backward dw");
    y = floats(T * H), dx = floats(T * H);
    assert_ok(dev->rmsnorm_forward(dev, T, H, wb_f32_rows(x), norm_of(w, true), wb_f32_rows(y)));
    assert_ok(dev->rmsnorm_backward(dev, T, H, wb_f32_rows(x), norm_of(w, true), wb_f32_rows(d),
                                    wb_f32_rows(dx), NULL));
    keep_floats(o, y, T * H, "rmsnorm_forward, zero-centered");
    keep_floats(o, dx, T * H, "rmsnorm_backward dx, zero-centered");
    y = floats(T * H / 2), dx = floats(T * H);
    assert_ok(dev->swiglu_forward(dev, T, H / 2, wb_f32_rows(x), wb_f32_rows(y)));
    assert_ok(dev->swiglu_backward(dev, T, H / 2, wb_f32_rows(x), wb_f32_rows(d), wb_f32_rows(dx)));
    keep_floats(o, y, T * H / 2, "swiglu_forward");
    keep_floats(o, dx, T * H, "swiglu_backward");
    float *logprobs = floats(T);
    assert_ok(dev->logprob_forward(dev, T, H, x, tokens, NULL, logprobs));
    keep(o, logprobs, (size_t)T * sizeof(float), "logprob_forward");
    dx = floats(T * H);
    assert_ok(dev->logprob_backward(dev, T, H, x, tokens, NULL, logprobs, dx));
    keep_floats(o, dx, T * H, "logprob_backward");
    all_distributions(dev, T, H, x, tokens, o);
    wb_sample_params *params = xalloc(T, sizeof *params);
    for (int64_t t = 0; t < T; t++)
        params[t] = (wb_sample_params){rng_uniform(0.0f, 2.0f), (int32_t)rng_range(0, H),
                                       rng_uniform(0.3f, 1.0f), rng_uniform(0.0f, 1.0f)};
    assert_ok(dev->sample(dev, T, H, x, params, NULL, tokens, logprobs));
    keep(o, tokens, (size_t)T * sizeof *tokens, "sample");
    keep_floats(o, logprobs, T, "sample logprobs");
    double *squares = xalloc(1, sizeof *squares);
    assert_ok(dev->sum_squares(dev, 1, T * H, wb_f32_rows(x), squares));
    keep(o, squares, sizeof *squares, "sum_squares");
    assert_ok(dev->sum_squares(dev, 1, T * H, (wb_rows){half, WB_BF16}, squares));
    keep(o, squares, sizeof *squares, "sum_squares of bf16");
    free(squares);
    wb_adamw hyper = {1e-3f, 0.9f, 0.99f, 1e-8f, 0.1f, 0.7f, 3};
    float *m = copied(d, T * H), *v = copied(d, T * H);
    for (int64_t i = 0; i < T * H; i++) v[i] *= v[i];
    assert_ok(dev->adamw(dev, T * H, &hyper, x, m, v, d, NULL));
    assert_ok(dev->adamw(dev, T * H, &hyper, x, m, v, d, half));
    keep(o, half, (size_t)(T * H) * 2, "adamw rounded");
    keep_floats(o, m, T * H, "adamw m");
    keep_floats(o, v, T * H, "adamw v");
    assert_ok(dev->bias_forward(dev, T, H, w, wb_f32_rows(d)));
    assert_ok(dev->bias_backward(dev, T, H, wb_f32_rows(x), w));
    assert_ok(dev->add(dev, T * H, wb_f32_rows(x), wb_f32_rows(d)));
    assert_ok(dev->clamp_backward(dev, T * H, 2.0f, wb_f32_rows(x), wb_f32_rows(d)));
    assert_ok(dev->clamp(dev, T * H, 2.0f, wb_f32_rows(x)));
    keep_floats(o, d, T * H, "adamw w, bias_forward, add, clamp_backward");
    keep_floats(o, x, T * H, "clamp");
    keep_floats(o, w, H, "bias_backward");
    free(half), free(tokens), free(params);
}

/* Queries of four heads, and keys and values of two, which go to `rows` of a pool. */
static inline void all_inputs(wb_device *dev, int64_t T, int64_t hd, const int32_t *pos, const int64_t *rows,
                              const float *c, const float *s, outputs *o) {
    const int64_t nh = 4, nkv = 2, pool = 3 * T * nkv * hd;
    float *q = random_floats(T * nh * hd, -2, 2), *k = random_floats(T * nkv * hd, -2, 2),
          *v = random_floats(T * nkv * hd, -2, 2), *w = random_floats(hd, -1, 1), *keys = floats(pool),
          *values = floats(pool);
    const wb_attention_inputs args = {.T = T,
                                      .n_heads = (int32_t)nh,
                                      .n_kv_heads = (int32_t)nkv,
                                      .head_dim = (int32_t)hd,
                                      .rot_dim = (int32_t)hd / 2 * 2,
                                      .q = wb_f32_rows(q),
                                      .k = wb_f32_rows(k),
                                      .v = wb_f32_rows(v),
                                      .q_norm = norm_of(w, false),
                                      .k_norm = norm_of(w, true),
                                      .clip = 0.9f,
                                      .pos = pos,
                                      .cos_table = c,
                                      .sin_table = s,
                                      .rows = rows,
                                      .k_cache = wb_f32_rows(keys),
                                      .v_cache = wb_f32_rows(values)};
    assert_ok(dev->attention_prepare(dev, &args));
    keep_floats(o, q, T * nh * hd, "attention_prepare q");
    keep_floats(o, keys, pool, "attention_prepare keys");
    keep_floats(o, values, pool, "attention_prepare values");
    free(k), free(v), free(w);
}

/* Attention of f32 with a pool of so many rows, forward and backward. */
static inline void all_attention_ops(wb_device *dev, const wb_attention *a, int64_t pool_rows, outputs *o) {
    const int64_t n_out = a->T * a->n_heads * a->value_dim, n_q = a->T * a->n_heads * a->head_dim;
    const int64_t n_k = pool_rows * a->n_kv_heads * a->head_dim,
                  n_v = pool_rows * a->n_kv_heads * a->value_dim;
    float *out = floats(n_out), *d = random_floats(n_out, -1, 1), *dq = floats(n_q);
    float *dk = random_floats(n_k, -1, 1), *dv = random_floats(n_v, -1, 1),
          *dsinks = random_floats(a->n_heads, -1, 1);
    assert_ok(dev->attention_forward(dev, a, wb_f32_rows(out)));
    assert_ok(dev->attention_backward(dev, a, wb_f32_rows(d), wb_f32_rows(dq), wb_f32_rows(dk),
                                      wb_f32_rows(dv), a->sinks ? dsinks : NULL));
    keep_floats(o, out, n_out, "attention_forward");
    keep_floats(o, dq, n_q, "attention_backward dq");
    keep_floats(o, dk, n_k, "attention_backward dk");
    keep_floats(o, dv, n_v, "attention_backward dv");
    keep_floats(o, dsinks, a->n_heads, "attention_backward dsinks");
    free(d);
}

static inline void all_attention(wb_device *dev, int64_t T, int64_t hd, outputs *o) {
    const int64_t nh = 4, nkv = 2, half = hd / 2;
    int32_t *seq = xalloc(T, sizeof *seq), *pos = xalloc(T, sizeof *pos),
            *blocks = xalloc(2 * T, sizeof *blocks);
    int64_t *rows = xalloc(T, sizeof *rows), first = T / 3;
    for (int64_t t = 0; t < T; t++) {
        seq[t] = t < first ? 0 : 1, pos[t] = (int32_t)(t < first ? t : t - first);
        rows[t] = blocks[seq[t] * T + pos[t]] = (int32_t)(t * 3 % (3 * T)); /* distinct */
    }
    float *x = random_floats(T * nh * hd, -1, 1), *c = random_floats(T * half, -1, 1),
          *s = random_floats(T * half, -1, 1);
    all_inputs(dev, T, hd, pos, rows, c, s, o);
    wb_rope rope = {.T = T,
                    .n_heads = (int32_t)nh,
                    .head_dim = (int32_t)hd,
                    .rot_dim = (int32_t)half * 2,
                    .pos = pos,
                    .cos_table = c,
                    .sin_table = s,
                    .x = wb_f32_rows(x)};
    assert_ok(dev->rope(dev, &rope));
    rope.interleaved = true, rope.ratio = 4;
    assert_ok(dev->rope(dev, &rope));
    assert_ok(
        dev->copy_columns(dev, T, nh * hd / 2, wb_rows_from(rope.x, nh * hd / 2), nh * hd, rope.x, nh * hd));
    /* The halves of two heads change places. */
    float *turned = floats(T * nh * hd);
    const wb_copy_heads heads = {.T = T,
                                 .n_heads = nh,
                                 .width = hd / 2,
                                 .from = wb_rows_from(rope.x, hd / 2),
                                 .from_row = nh * hd,
                                 .from_head = hd,
                                 .to = wb_f32_rows(turned),
                                 .to_row = nh * hd,
                                 .to_head = hd / 2};
    assert_ok(dev->copy_heads(dev, &heads));
    keep_floats(o, turned, T * nh * hd, "heads in another order");
    float *fresh = random_floats(T * nkv * hd, -1, 1), *k = floats(3 * T * nkv * hd),
          *v = floats(3 * T * nkv * hd);
    uint16_t *k_half = xalloc(3 * T * nkv * hd, 2);
    assert_ok(dev->kv_write(dev, T, nkv * hd, wb_f32_rows(fresh), rows, (wb_rows){k, WB_F32}));
    assert_ok(dev->kv_write(dev, T, nkv * hd, wb_f32_rows(fresh), rows, (wb_rows){k_half, WB_BF16}));
    free(fresh);
    fresh = random_floats(T * nkv * hd, -1, 1);
    assert_ok(dev->kv_write(dev, T, nkv * hd, wb_f32_rows(fresh), rows, (wb_rows){v, WB_F32}));
    wb_attention a = {.T = T,
                      .n_heads = (int32_t)nh,
                      .n_kv_heads = (int32_t)nkv,
                      .head_dim = (int32_t)hd,
                      .value_dim = (int32_t)hd,
                      .scale = 0.3f,
                      .q = wb_f32_rows(x),
                      .k = wb_f32_rows(k),
                      .v = wb_f32_rows(v),
                      .seq = seq,
                      .pos = pos,
                      .blocks = blocks,
                      .max_blocks = (int32_t)T,
                      .block_size = 1};
    all_attention_ops(dev, &a, 3 * T, o);
    a.window = (int32_t)T / 3 + 1, a.value_dim = (int32_t)hd - 3, a.sinks = s;
    all_attention_ops(dev, &a, 3 * T, o);
    float *out = floats(T * nh * hd);
    a.k = a.v = (wb_rows){k_half, WB_BF16}; /* values in keys */
    assert_ok(dev->attention_forward(dev, &a, wb_f32_rows(out)));
    keep_floats(o, out, T * nh * a.value_dim, "attention_forward bf16");
    keep_floats(o, x, T * nh * hd, "rope");
    free(seq), free(pos), free(blocks), free(rows), free(c), free(s), free(fresh), free(k), free(v),
        free(k_half);
}

/* The experts' products of a plan with one matrix a slot: [gate | up] with its SwiGLU, then down. */
static inline void all_grouped(wb_device *dev, const wb_moe_plan *plan, int64_t H, outputs *o) {
    const int64_t S = plan->n_slots, n = plan->T * plan->top_k, F = 24;
    float *x = random_floats(plan->T * H, -1, 1), *up = random_floats(S * 2 * F * H, -1, 1);
    float *down = random_floats(S * H * F, -1, 1), *gathered = floats(n * H), *gate_up = floats(n * 2 * F);
    float *act = floats(n * F), *y = floats(n * H), *dy = random_floats(n * H, -1, 1), *dact = floats(n * F);
    float *dup = random_floats(S * 2 * F * H, -1, 1), *ddown = random_floats(S * H * F, -1, 1),
          *dx = floats(n * H);
    const wb_rows none = {NULL, WB_F32};
    wb_grouped first = {(int32_t)S,      plan->offsets,         n,     {up, WB_F32, 2 * F, H, false},
                        plan->row_token, wb_f32_rows(gathered), false, false};
    wb_grouped second = {(int32_t)S, plan->offsets, n, {down, WB_F32, H, F, false}, NULL, none, false, false};
    assert_ok(dev->grouped_matmul(dev, &first, wb_f32_rows(x), wb_f32_rows(gate_up), wb_f32_rows(act)));
    assert_ok(dev->grouped_matmul(dev, &second, wb_f32_rows(act), wb_f32_rows(y), none));
    keep(o, gate_up, (size_t)(n * 2 * F) * sizeof(float), "grouped_matmul gate_up");
    keep(o, act, (size_t)(n * F) * sizeof(float), "grouped_matmul act");
    keep_floats(o, y, n * H, "grouped_matmul down");
    assert_ok(dev->grouped_matmul_backward(dev, &second, wb_f32_rows(act), wb_f32_rows(dy), ddown,
                                           wb_f32_rows(dact), wb_f32_rows(gate_up)));
    assert_ok(dev->grouped_matmul_backward(dev, &first, wb_f32_rows(x), wb_f32_rows(gate_up), dup,
                                           wb_f32_rows(dx), none));
    first.overwrites = true;
    float *over = floats(S * 2 * F * H);
    for (int64_t i = 0; i < S * 2 * F * H; i++) over[i] = NAN;
    assert_ok(dev->grouped_matmul_backward(dev, &first, wb_f32_rows(x), wb_f32_rows(gate_up), over,
                                           wb_f32_rows(dx), none));
    keep_floats(o, ddown, S * H * F, "grouped_matmul_backward down");
    keep_floats(o, dup, S * 2 * F * H, "grouped_matmul_backward gate_up");
    keep_floats(o, dx, n * H, "grouped_matmul_backward dx");
    keep_floats(o, over, S * 2 * F * H, "grouped_matmul_backward gate_up, overwritten");
    free(act), free(gate_up), free(x), free(up), free(down), free(gathered), free(dy), free(dact);
}

/* What experts with biases have between these products, and a shared expert's gate. */
static inline void all_experts(wb_device *dev, const wb_moe_plan *plan, int64_t H, outputs *o) {
    const int64_t S = plan->n_slots, n = plan->T * plan->top_k, F = 24;
    const wb_grouped rows = {.n_groups = (int32_t)S, .offsets = plan->offsets, .max_rows = n};
    const wb_clamped_swiglu clamp = {1.5f, 1.702f, 1};
    float *b = random_floats(S * 2 * F, -1, 1), *gate_up = random_floats(n * 2 * F, -3, 3),
          *act = floats(n * F);
    float *db = random_floats(S * 2 * F, -1, 1), *gate = random_floats(n, -2, 2), *dgate = floats(n);
    float *x = random_floats(n * H, -1, 1), *y = random_floats(n * H, -1, 1);
    const wb_rows of_gate_up = wb_f32_rows(gate_up), of_act = wb_f32_rows(act);
    assert_ok(dev->grouped_bias_forward(dev, &rows, 2 * F, b, of_gate_up));
    keep(o, gate_up, (size_t)(n * 2 * F) * sizeof(float), "grouped_bias_forward");
    assert_ok(dev->grouped_swiglu_forward(dev, &rows, F, &clamp, of_gate_up, of_act));
    keep(o, act, (size_t)(n * F) * sizeof(float), "grouped_swiglu_forward");
    assert_ok(dev->grouped_swiglu_backward(dev, &rows, F, &clamp, of_gate_up, of_act, of_gate_up));
    assert_ok(dev->grouped_bias_backward(dev, &rows, 2 * F, of_gate_up, db));
    assert_ok(dev->add_gated_forward(dev, n, H, gate, wb_f32_rows(x), wb_f32_rows(y)));
    keep(o, y, (size_t)(n * H) * sizeof(float), "add_gated_forward");
    assert_ok(
        dev->add_gated_backward(dev, n, H, gate, wb_f32_rows(x), wb_f32_rows(y), wb_f32_rows(x), dgate));
    keep_floats(o, gate_up, n * 2 * F, "grouped_swiglu_backward");
    keep_floats(o, db, S * 2 * F, "grouped_bias_backward");
    keep_floats(o, x, n * H, "add_gated_backward dx");
    keep_floats(o, dgate, n, "add_gated_backward dgate");
    free(b), free(act), free(gate), free(y);
}

/* The clamped SwiGLU of rows that all are there, as of a dense layer: an odd number of elements, so that the
 * last threads of a device have none, and what lies behind the outputs stays. */
static inline void all_clamped_rows(wb_device *dev, int64_t n, outputs *o) {
    enum { F = 23, BEHIND = 2 * 1024 };
    const int64_t rows = n - (n % 2 == 0), n_act = rows * F + BEHIND, n_up = rows * 2 * F + BEHIND;
    const wb_grouped all = {.max_rows = rows};
    const wb_clamped_swiglu clamp = {1.5f, 1, 0};
    float *gate_up = random_floats(n_up, -3, 3), *act = random_floats(n_act, -1, 1),
          *dgate_up = random_floats(n_up, -1, 1);
    const wb_rows of_gate_up = wb_f32_rows(gate_up), of_act = wb_f32_rows(act);
    assert_ok(dev->grouped_swiglu_forward(dev, &all, F, &clamp, of_gate_up, of_act));
    assert_ok(dev->grouped_swiglu_backward(dev, &all, F, &clamp, of_gate_up, of_act, wb_f32_rows(dgate_up)));
    keep_floats(o, act, n_act, "grouped_swiglu_forward of all rows");
    keep_floats(o, dgate_up, n_up, "grouped_swiglu_backward of all rows");
    free(gate_up);
}

static inline void all_routing(wb_device *dev, int64_t T, int32_t E, int32_t K, int64_t H, outputs *o) {
    float *z = random_floats(T * E, -4, 4), *bias = random_floats(E, -1, 1), *g = random_floats(T * K, -1, 1);
    uint16_t *ids = xalloc(T * K, 2);
    float *rows = random_floats(T * K * H, -1, 1), *dy = random_floats(T * H, -1, 1);
    int32_t *pair_row = xalloc(T * K, 4), *row_token = xalloc(T * K, 4), tokens[1] = {0};
    for (int type = 0; type < WB_ROUTER_HASH; type++) {
        wb_router r = {(wb_router_type)type, E, K, 0, 0, true, 1.5f};
        wb_ids view = {ids, WB_U16, K};
        wb_topk topk = {r, T, z, bias, NULL, tokens, NULL, view, {NULL, WB_U16, 0}};
        float *w = floats(T * K), *dz = floats(T * E);
        assert_ok(dev->topk(dev, &topk));
        keep(o, ids, (size_t)(T * K) * 2, "topk");
        assert_ok(dev->gate_forward(dev, &r, T, z, NULL, view, w));
        assert_ok(dev->gate_backward(dev, &r, T, z, NULL, view, g, dz));
        /* Between rows the copy leaves what was there. */
        uint16_t *apart = xalloc(T * (K + 2), 2);
        memset(apart, 0x5a, (size_t)(T * (K + 2)) * 2);
        const wb_ids copied = {apart, WB_U16, K + 2};
        const wb_route_check check = {
            .T = T, .top_k = K, .n_experts = E, .planned = view, .taken = copied, .weights = w};
        assert_ok(dev->copy_ids(dev, T, K, view, copied));
        assert_ok(dev->check_routes(dev, &check));
        keep(o, apart, (size_t)(T * (K + 2)) * 2, "copy_ids");
        keep_floats(o, w, T * K, "gate_forward");
        keep_floats(o, dz, T * E, "gate_backward");
    }
    int32_t *slots = xalloc(E, 4), *offsets = xalloc(E + 1, 4);
    for (int32_t e = 0; e < E; e++) slots[e] = E - 1 - e;
    wb_moe_plan plan = {.T = T,
                        .top_k = K,
                        .n_experts = E,
                        .n_slots = E,
                        .rule = {.slot_of_expert = slots},
                        .ids = {ids, WB_U16, K},
                        .pair_row = pair_row,
                        .row_token = row_token,
                        .offsets = offsets};
    assert_ok(dev->moe_plan(dev, &plan));
    keep(o, pair_row, (size_t)(T * K) * 4, "moe_plan pair_row");
    keep(o, row_token, (size_t)(T * K) * 4, "moe_plan row_token");
    float *gathered = floats(T * K * H), *y = floats(T * H), *dg = floats(T * K);
    const wb_rows of_rows = wb_f32_rows(rows), of_y = wb_f32_rows(y), of_dy = wb_f32_rows(dy);
    assert_ok(dev->gather_rows(dev, T * K, H, row_token, of_dy, wb_f32_rows(gathered)));
    assert_ok(dev->moe_combine(dev, T, K, H, of_rows, pair_row, g, of_y));
    keep(o, gathered, (size_t)(T * K * H) * sizeof(float), "gather_rows");
    /* A permutation. */
    assert_ok(dev->scatter_rows(dev, T * K, H, pair_row, of_rows, wb_f32_rows(gathered)));
    keep_floats(o, gathered, T * K * H, "scatter_rows");
    keep_floats(o, y, T * H, "moe_combine");
    assert_ok(dev->moe_combine_backward(dev, T, K, H, of_rows, pair_row, g, of_dy, of_rows, dg));
    keep_floats(o, rows, T * K * H, "moe_combine_backward rows");
    keep_floats(o, dg, T * K, "moe_combine_backward weights");
    /* What is kept is gone. */
    const wb_own_choices own = {T, H, K, (uint32_t)E / 2, {ids, WB_U16, K}, g};
    float *own_y = floats(T * H), *own_dx = floats(T * H), *own_dg = floats(T * K);
    assert_ok(dev->moe_own_forward(dev, &own, of_dy, wb_f32_rows(own_y)));
    assert_ok(dev->moe_own_backward(dev, &own, of_dy, wb_f32_rows(own_y), wb_f32_rows(own_dx), own_dg));
    keep_floats(o, own_y, T * H, "moe_own_forward");
    keep_floats(o, own_dx, T * H, "moe_own_backward dx");
    keep_floats(o, own_dg, T * K, "moe_own_backward dweights");
    all_grouped(dev, &plan, H, o);
    all_experts(dev, &plan, H, o);
    all_clamped_rows(dev, T * K, o);
    free(z), free(bias), free(g), free(ids), free(dy), free(pair_row), free(row_token), free(slots),
        free(offsets);
}

static inline void all_matmuls(wb_device *dev, int64_t T, int64_t in, int64_t out, outputs *o) {
    float *x = random_floats(T * in, -1, 1), *w = random_floats(out * in, -1, 1),
          *dy = random_floats(T * out, -1, 1);
    float *y = floats(T * out), *dx = floats(T * in), *dw = random_floats(out * in, -1, 1);
    wb_matmul list[3] = {
        wb_matmul_forward(T, wb_f32_rows(x), matrix(w, WB_F32, out, in), wb_f32_rows(y)),
        wb_matmul_dgrad(T, wb_f32_rows(dy), matrix(w, WB_F32, out, in), wb_f32_rows(dx), false),
        wb_matmul_wgrad(T, in, out, wb_f32_rows(dy), wb_f32_rows(x), dw)};
    assert_ok(dev->matmul(dev, 3, list));
    keep_floats(o, y, T * out, "matmul forward");
    keep_floats(o, dx, T * in, "matmul dgrad");
    keep_floats(o, dw, out * in, "matmul wgrad");
    free(x), free(w), free(dy);
}

/* The short convolution, what goes through a gate, and the gated delta rule: whole sequences, forward and
 * backward, and then the same as runs that begin with a state. */
static inline void all_recurrent(wb_device *dev, int64_t shortest, wb_delta_heads h, outputs *o) {
    const batch b = random_batch(3, shortest, 2 * shortest);
    const int64_t T = b.T, width = wb_delta_width(h), n = T * width, gates = T * h.n_value, W = 4;
    const int64_t n_o = gates * h.value_dim, state = (int64_t)h.n_value * h.value_dim * h.key_dim;
    float *x = random_floats(n, -1, 1), *w = random_floats(width * W, -1, 1), *dw = copied(w, width * W);
    float *qkv = random_floats(n, -1, 1), *dqkv = random_floats(n, -1, 1), *dx = random_floats(n, -1, 1);
    float *gate = random_floats(2 * gates, -1, 1), *dgate = random_floats(2 * gates, -1, 1);
    float *of_head = random_floats(2 * h.n_value, -1, 1), *d_of_head = copied(of_head, 2 * h.n_value);
    float *out = random_floats(n_o, -1, 1), *d = random_floats(n_o, -1, 1), *z = random_floats(n_o, -2, 2);
    float *y = floats(n_o), *dz = floats(n_o), *checkpoints = floats(wb_delta_checkpoint_floats(T, h));
    float *norm = random_floats(h.value_dim, -1, 1), *dnorm = copied(norm, h.value_dim);
    wb_short_conv conv = {whole_of(&b), (int32_t)width, (int32_t)W, w, wb_f32_rows(x)};
    wb_gated_delta delta = {.of = whole_of(&b),
                            .heads = h,
                            .qkv = wb_f32_rows(qkv),
                            .b = wb_f32_rows(gate),
                            .a = wb_f32_rows(gate + gates),
                            .A_log = of_head,
                            .dt_bias = of_head + h.n_value,
                            .checkpoints = checkpoints};
    const wb_rows of_out = wb_f32_rows(out), of_z = wb_f32_rows(z), of_d = wb_f32_rows(d);
    assert_ok(dev->short_conv_forward(dev, &conv, wb_f32_rows(qkv)));
    assert_ok(dev->gated_delta_forward(dev, &delta, of_out));
    assert_ok(dev->gated_rmsnorm_forward(dev, gates, h.value_dim, of_out, norm_of(norm, false), of_z,
                                         wb_f32_rows(y)));
    keep(o, qkv, (size_t)n * sizeof *qkv, "short_conv_forward");
    keep(o, out, (size_t)n_o * sizeof *out, "gated_delta_forward");
    keep_floats(o, y, n_o, "gated_rmsnorm_forward");
    assert_ok(dev->gated_rmsnorm_backward(dev, gates, h.value_dim, of_out, norm_of(norm, true), of_z, of_d,
                                          of_d, wb_f32_rows(dz), dnorm));
    assert_ok(dev->gated_delta_backward(dev, &delta, of_d, wb_f32_rows(dqkv), wb_f32_rows(dgate),
                                        wb_f32_rows(dgate + gates), d_of_head, d_of_head + h.n_value));
    assert_ok(dev->short_conv_backward(dev, &conv, wb_f32_rows(dqkv), wb_f32_rows(dx), dw));
    keep(o, d, (size_t)n_o * sizeof *d, "gated_rmsnorm_backward dx");
    keep_floats(o, dnorm, h.value_dim, "gated_rmsnorm_backward dw");
    keep_floats(o, dqkv, n, "gated_delta_backward dqkv");
    keep_floats(o, dgate, 2 * gates, "gated_delta_backward db, da");
    keep_floats(o, d_of_head, 2 * h.n_value, "gated_delta_backward dA_log, ddt_bias");
    keep_floats(o, dx, n, "short_conv_backward dx");
    keep_floats(o, dw, width * W, "short_conv_backward dw");
    assert_ok(dev->sigmoid_gate_forward(dev, gates, h.value_dim, of_d, of_z, h.value_dim, of_d));
    assert_ok(dev->sigmoid_gate_backward(dev, gates, h.value_dim, of_out, of_z, h.value_dim, of_d,
                                         wb_f32_rows(dz), of_z));
    keep_floats(o, dz, n_o, "sigmoid_gate_backward dx");
    keep_floats(o, z, n_o, "sigmoid_gate_backward dgate");
    keep_floats(o, d, n_o, "sigmoid_gate_forward");
    const int64_t kept = (W - 1) * width + state, stride = kept * (int64_t)sizeof(float);
    float *states = random_floats(b.n_runs * kept, -1, 1);
    for (int64_t i = 0; i < b.n_runs; i++) b.runs[i].state = (int32_t)(b.n_runs - 1 - i);
    conv.of.states = (char *)states, delta.of.states = (char *)(states + (W - 1) * width);
    conv.of.state_stride = delta.of.state_stride = stride;
    assert_ok(dev->short_conv_forward(dev, &conv, wb_f32_rows(qkv)));
    assert_ok(dev->gated_delta_forward(dev, &delta, of_out));
    keep_floats(o, qkv, n, "short_conv_forward from states");
    keep_floats(o, out, n_o, "gated_delta_forward from states");
    keep_floats(o, states, b.n_runs * kept, "states");
    free(x), free(w), free(gate), free(of_head), free(checkpoints), free(norm), free(b.runs);
}

/* `large`: enough work that every op uses all threads. */
static inline outputs run_all_ops(wb_device *dev, uint64_t seed, bool large) {
    outputs o = {0};
    rng_state = seed;
    all_matmuls(dev, large ? 90 : 13, large ? 300 : 37, large ? 200 : 21, &o);
    all_rows(dev, large ? 120 : 7, large ? 500 : 38, &o);
    all_attention(dev, large ? 700 : 19, large ? 32 : 10, &o);
    all_recurrent(dev, large ? 150 : 5,
                  large ? (wb_delta_heads){2, 4, 37, 50} : (wb_delta_heads){1, 2, 16, 5}, &o);
    all_routing(dev, large ? 1000 : 9, large ? 64 : 20, 5, large ? 90 : 21, &o);
    all_plain_norms(dev, large ? 120 : 7, large ? 500 : 38, &o);
    all_streams(dev, large ? 300 : 5, large ? 130 : 9, &o);
    all_compressed(dev, large ? 300 : 21, large ? 70 : 5, &o);
    all_entries(dev, large ? 300 : 30, 3, large ? 40 : 6, &o);
    return o;
}

/* What a GPU does in another way than with the shapes of run_all_ops: heads of a delta net and of attention
 * as wide as released ones, or wider than a power of 2, and more heads than one step over them takes. Of few
 * tokens, so that not every op uses all threads. */
static inline outputs run_wide_ops(wb_device *dev, uint64_t seed) {
    outputs o = {0};
    rng_state = seed;
    all_recurrent(dev, 66, (wb_delta_heads){1, 2, 128, 128}, &o);
    all_recurrent(dev, 66, (wb_delta_heads){1, 1, 200, 20}, &o);
    all_entries(dev, 24, 3, 200, &o);
    all_entries(dev, 24, 130, 6, &o);
    return o;
}

#endif
