/* scratch_cases.h - every op that works in scratch, at the sizes that its device was told of, and random
 * sizes. For the tests of reserve_scratch: after it, none of these calls makes more. */
#ifndef SCRATCH_CASES_H
#define SCRATCH_CASES_H

#include "ops_test.h"

#define BACKWARD(t, call)                        \
    do {                                         \
        if ((t)->most.backward) assert_ok(call); \
    } while (0)

/* Zeroed memory that the operands of one op after the other lie in. */
static char *pool;
static size_t pool_used;
static const size_t pool_bytes = (size_t)1 << 30;

enum { BLOCK = 16, SAMPLED = 3, WINDOW = 8, RATIO = 4, LEAST_RATIO = 2, ITERATIONS = 3 };

static void *zeros(int64_t n, size_t size) {
    const size_t bytes = ((size_t)n * size + 63) / 64 * 64;
    assert_true(bytes <= pool_bytes - pool_used);
    pool_used += bytes;
    return memset(pool + pool_used - bytes, 0, bytes);
}

/* What a trial works with: the device and the sizes that it was told. */
typedef struct trial {
    wb_device *dev;
    wb_op_sizes most;
    int64_t q, kv; /* widths of queries, and of keys or values */
} trial;

static wb_rows rows_of(const trial *t, int64_t n, int64_t width) {
    return (wb_rows){zeros(n * width, wb_dtype_size(t->most.dtype)), t->most.dtype};
}

static wb_weight weight_of(int64_t out, int64_t in) {
    return matrix(zeros(out * in, sizeof(float)), WB_F32, out, in);
}

/* ---- ops, family by family ----------------------------------------------------------------------- */

static void run_rows(const trial *t) {
    wb_device *dev = t->dev;
    const int64_t T = t->most.tokens, H = t->most.hidden;
    const wb_rows x = rows_of(t, T, H), y = rows_of(t, T, H), q = rows_of(t, T, t->q);
    float *vector = zeros(H + t->q, sizeof(float));
    const int32_t *index = zeros(T, sizeof *index);
    const float *table = zeros(t->most.head_dim, sizeof *table);
    assert_ok(dev->embed_forward(dev, T, index, weight_of(3, H), x));
    BACKWARD(t, dev->embed_backward(dev, T, H, index, x, zeros(3 * H, sizeof(float))));
    assert_ok(dev->rmsnorm_forward(dev, T, H, x, norm_of(vector, false), y));
    BACKWARD(t, dev->rmsnorm_backward(dev, T, H, x, norm_of(vector, false), y, y, vector));
    for (int whole = 0; whole < 2; whole++) {
        const int64_t n = whole ? T : T * t->most.n_heads, width = whole ? t->q : t->most.head_dim;
        assert_ok(dev->rmsnorm_forward(dev, n, width, q, norm_of(vector, false), q));
        BACKWARD(t, dev->rmsnorm_backward(dev, n, width, q, norm_of(vector, false), q, q, vector));
    }
    const wb_rope rope = {.T = T,
                          .n_heads = t->most.n_heads,
                          .head_dim = t->most.head_dim,
                          .rot_dim = t->most.head_dim / 2 * 2,
                          .pos = index,
                          .cos_table = table,
                          .sin_table = table,
                          .x = q};
    assert_ok(dev->rope(dev, &rope));
    assert_ok(dev->add(dev, T * H, x, y));
    assert_ok(dev->add_rmsnorm(dev, T, H, x, y, norm_of(vector, false), rows_of(t, T, H)));
    const wb_attention_inputs inputs = {.T = T,
                                        .n_heads = t->most.n_heads,
                                        .n_kv_heads = t->most.n_kv_heads,
                                        .head_dim = t->most.head_dim,
                                        .rot_dim = t->most.head_dim / 2 * 2,
                                        .q = q,
                                        .k = rows_of(t, T, t->kv),
                                        .v = rows_of(t, T, t->kv),
                                        .pos = index,
                                        .cos_table = table,
                                        .sin_table = table};
    assert_ok(dev->attention_prepare(dev, &inputs));
    assert_ok(dev->clamp(dev, T * t->q, 1, q));
    BACKWARD(t, dev->clamp_backward(dev, T * t->q, 1, q, q));
    assert_ok(dev->bias_forward(dev, T, t->q, vector, q));
    BACKWARD(t, dev->bias_backward(dev, T, t->q, q, vector));
}

static void run_products(const trial *t) {
    wb_device *dev = t->dev;
    const int64_t T = t->most.tokens, H = t->most.hidden, I = t->most.dense_width;
    const wb_rows x = rows_of(t, T, H), q = rows_of(t, T, t->q), k = rows_of(t, T, t->kv),
                  v = rows_of(t, T, t->kv), gate_up = rows_of(t, T, 2 * I), act = rows_of(t, T, I);
    const wb_weight to_q = weight_of(t->q, H), to_kv = weight_of(t->kv, H), up = weight_of(2 * I, H),
                    down = weight_of(H, I);
    const wb_matmul project[] = {wb_matmul_forward(T, x, to_q, q), wb_matmul_forward(T, x, to_kv, k),
                                 wb_matmul_forward(T, x, to_kv, v)};
    const wb_matmul back[] = {wb_matmul_wgrad(T, H, t->q, q, x, zeros(t->q * H, sizeof(float))),
                              wb_matmul_dgrad(T, q, to_q, x, true)};
    const wb_matmul first = wb_matmul_forward(T, x, up, gate_up), second = wb_matmul_forward(T, act, down, x);
    const wb_matmul up_back[] = {wb_matmul_wgrad(T, H, 2 * I, gate_up, x, zeros(2 * I * H, sizeof(float))),
                                 wb_matmul_dgrad(T, gate_up, up, x, false)};
    const wb_matmul down_back[] = {wb_matmul_wgrad(T, I, H, x, act, zeros(H * I, sizeof(float))),
                                   wb_matmul_dgrad(T, x, down, act, false)};
    const wb_weight router = weight_of(t->most.router.n_experts, H);
    const wb_rows logits = rows_of(t, T, router.rows);
    const wb_matmul router_back[] = {
        wb_matmul_wgrad(T, H, router.rows, logits, x, zeros(router.rows * H, sizeof(float))),
        wb_matmul_dgrad(T, logits, router, x, true)};
    assert_ok(dev->matmul(dev, 3, project));
    BACKWARD(t, dev->matmul(dev, 2, router_back));
    BACKWARD(t, dev->matmul(dev, 2, back));
    assert_ok(dev->matmul(dev, 1, &first));
    assert_ok(dev->swiglu_forward(dev, T, I, gate_up, act));
    assert_ok(dev->matmul(dev, 1, &second));
    BACKWARD(t, dev->matmul(dev, 2, down_back));
    BACKWARD(t, dev->swiglu_backward(dev, T, I, gate_up, act, gate_up));
    BACKWARD(t, dev->matmul(dev, 2, up_back));
}

/* The gradient of the head's logits. */
static void run_head(const trial *t) {
    wb_device *dev = t->dev;
    const int64_t n = t->most.head_rows, H = t->most.hidden, V = t->most.vocab_size;
    const wb_rows x = rows_of(t, n, H), logits = rows_of(t, n, V);
    const wb_weight head = weight_of(V, H);
    const wb_matmul back[] = {wb_matmul_wgrad(n, H, V, logits, x, zeros(V * H, sizeof(float))),
                              wb_matmul_dgrad(n, logits, head, x, false)};
    BACKWARD(t, dev->matmul(dev, 2, back));
}

/* One sequence, of which the tokens are the last. */
static void run_attention(const trial *t) {
    wb_device *dev = t->dev;
    const int64_t T = t->most.tokens < t->most.keys ? t->most.tokens : t->most.keys;
    const int32_t n_blocks = (int32_t)((t->most.keys + BLOCK - 1) / BLOCK);
    const int64_t out_width = (int64_t)t->most.n_heads * t->most.value_dim,
                  v_width = (int64_t)t->most.n_kv_heads * t->most.value_dim;
    int32_t *pos = zeros(T, sizeof *pos), *blocks = zeros(n_blocks, sizeof *blocks);
    for (int32_t i = 0; i < n_blocks; i++) blocks[i] = i;
    for (int64_t i = 0; i < T; i++) pos[i] = (int32_t)(t->most.keys - T + i);
    const wb_attention args = {.T = T,
                               .n_heads = t->most.n_heads,
                               .n_kv_heads = t->most.n_kv_heads,
                               .head_dim = t->most.head_dim,
                               .value_dim = t->most.value_dim,
                               .scale = 1,
                               .sinks = zeros(t->most.n_heads, sizeof(float)),
                               .q = rows_of(t, T, t->q),
                               .k = rows_of(t, n_blocks * BLOCK, t->kv),
                               .v = rows_of(t, n_blocks * BLOCK, v_width),
                               .seq = zeros(T, sizeof(int32_t)),
                               .pos = pos,
                               .blocks = blocks,
                               .max_blocks = n_blocks,
                               .block_size = BLOCK};
    const wb_rows out = rows_of(t, T, out_width), dk = rows_of(t, n_blocks * BLOCK, t->kv),
                  dv = rows_of(t, n_blocks * BLOCK, v_width);
    assert_ok(dev->attention_forward(dev, &args, out));
    BACKWARD(t, dev->attention_backward(dev, &args, out, rows_of(t, T, t->q), dk, dv,
                                        zeros(t->most.n_heads, sizeof(float))));
}

/* Streams of T tokens. */
static void run_streams(const trial *t) {
    wb_device *dev = t->dev;
    const int32_t S = t->most.n_streams;
    const int64_t T = t->most.tokens, H = t->most.hidden, M = wb_hyper_width(S, ITERATIONS);
    const wb_rows x = rows_of(t, T, S * H), y = rows_of(t, T, S * H), in = rows_of(t, T, H);
    const wb_weight fn = weight_of(M, S * H);
    float *products = zeros(T * M, sizeof(float)), *weights = zeros(T * M, sizeof(float));
    const wb_matmul forward = wb_matmul_forward(T, x, fn, wb_f32_rows(products));
    const wb_matmul back[] = {
        wb_matmul_wgrad(T, S * H, M, wb_f32_rows(products), x, zeros(M * S * H, sizeof(float))),
        wb_matmul_dgrad(T, wb_f32_rows(products), fn, y, true)};
    const wb_hyper args = {.T = T,
                           .H = H,
                           .n_streams = S,
                           .iterations = ITERATIONS,
                           .eps = 1e-6f,
                           .norm_eps = 1e-6f,
                           .x = x,
                           .products = products,
                           .scale = zeros(3, sizeof(float)),
                           .base = zeros(M, sizeof(float))};
    assert_ok(dev->matmul(dev, 1, &forward));
    assert_ok(dev->hyper_pre_forward(dev, &args, in, weights));
    assert_ok(dev->hyper_post_forward(dev, T, S, H, weights, x, in, y));
    BACKWARD(t, dev->hyper_post_backward(dev, T, S, H, weights, x, in, y, rows_of(t, T, H), y, weights));
    BACKWARD(t, dev->hyper_pre_backward(dev, &args, in, weights, y, weights, zeros(3, sizeof(float)),
                                        zeros(M, sizeof(float))));
    BACKWARD(t, dev->matmul(dev, 2, back));
}

/* One sequence, whose rows and entries lie at the rows of its tokens. Attention sees more entries, of fewer
 * positions each, than an indexer chooses from. */
static void run_entries(const trial *t) {
    wb_device *dev = t->dev;
    const int64_t T = t->most.tokens, C = t->most.compress_channels, hd = t->most.head_dim;
    int32_t *pos = zeros(T, sizeof *pos), *blocks = zeros(T, sizeof *blocks), *seq = zeros(T, sizeof *seq);
    wb_sequence_run *runs = zeros(1, sizeof *runs);
    float *sinks = zeros(t->most.n_heads, sizeof *sinks);
    runs[0] = (wb_sequence_run){0, (int32_t)T, -1};
    for (int32_t i = 0; i < T; i++) blocks[i] = pos[i] = i;
    const wb_compress compress = {.of = {.T = T, .n_runs = 1, .runs = runs},
                                  .width = C / 2,
                                  .ratio = RATIO,
                                  .overlaps = true,
                                  .values = rows_of(t, T, C),
                                  .gates = rows_of(t, T, C),
                                  .bias = zeros(RATIO * C, sizeof(float)),
                                  .pos = pos};
    const wb_indexer indexer = {.T = T,
                                .n_heads = t->most.index_heads,
                                .head_dim = t->most.index_dim,
                                .top_k = 2,
                                .q = rows_of(t, T, (int64_t)t->most.index_heads * t->most.index_dim),
                                .weights = zeros(T * t->most.index_heads, sizeof(float)),
                                .keys = {RATIO, rows_of(t, T, t->most.index_dim), t->most.index_dim},
                                .seq = seq,
                                .pos = pos,
                                .blocks = blocks,
                                .max_blocks = (int32_t)T,
                                .block_size = 1,
                                .max_entries = t->most.ranked_entries,
                                .listed = zeros(T * 2, sizeof(int32_t))};
    const wb_rows q = rows_of(t, T, t->q), k = rows_of(t, T, hd), entries = rows_of(t, T, hd);
    const wb_entry_attention attention = {.raw = {.T = T,
                                                  .n_heads = t->most.n_heads,
                                                  .n_kv_heads = 1,
                                                  .head_dim = (int32_t)hd,
                                                  .value_dim = (int32_t)hd,
                                                  .scale = 1,
                                                  .window = WINDOW,
                                                  .sinks = sinks,
                                                  .q = q,
                                                  .k = k,
                                                  .v = k,
                                                  .seq = seq,
                                                  .pos = pos,
                                                  .blocks = blocks,
                                                  .max_blocks = (int32_t)T,
                                                  .block_size = 1},
                                          .entries = {LEAST_RATIO, entries, hd}};
    const wb_rows made = rows_of(t, T, C / 2), d = rows_of(t, T, C), out = rows_of(t, T, t->q);
    assert_ok(dev->compress_forward(dev, &compress, made));
    BACKWARD(t, dev->compress_backward(dev, &compress, made, d, rows_of(t, T, C),
                                       zeros(RATIO * C, sizeof(float))));
    assert_ok(dev->indexer_topk(dev, &indexer));
    assert_ok(dev->entry_attention_forward(dev, &attention, out));
    BACKWARD(t, dev->entry_attention_backward(dev, &attention, out, rows_of(t, T, t->q), k, entries, sinks));
}

/* The router of T tokens, and where their rows go: ids[k] = k for all, spread over the slots. */
static void run_router(const trial *t) {
    wb_device *dev = t->dev;
    const wb_router *router = &t->most.router;
    const int64_t T = t->most.tokens, K = router->top_k, E = router->n_experts, H = t->most.hidden;
    const wb_ids ids = {zeros(T * K, sizeof(uint16_t)), WB_U16, K};
    int32_t *slots = zeros(E, sizeof *slots), *pair_row = zeros(T * K, sizeof *pair_row);
    float *logits = zeros(T * E, sizeof *logits), *weights = zeros(T * K, sizeof *weights);
    for (int64_t e = 0; e < E; e++) slots[e] = (int32_t)(e % t->most.n_slots);
    const wb_topk topk = {.router = *router, .T = T, .logits = logits, .ids = ids};
    const wb_moe_plan plan = {.T = T,
                              .top_k = (int32_t)K,
                              .n_experts = (int32_t)E,
                              .n_slots = t->most.n_slots,
                              .rule = {.slot_of_expert = slots},
                              .ids = ids,
                              .pair_row = pair_row,
                              .row_token = zeros(T * K, sizeof(int32_t)),
                              .offsets = zeros(t->most.n_slots + 1, sizeof(int32_t))};
    const wb_moe_group group = {.n_sources = 1,
                                .n_slots = t->most.n_groups,
                                .counts = zeros(t->most.n_groups, sizeof(int32_t)),
                                .offsets = zeros(t->most.n_groups + 1, sizeof(int32_t))};
    const wb_rows rows = rows_of(t, T * K, H), y = rows_of(t, T, H);
    assert_ok(dev->topk(dev, &topk));
    assert_ok(dev->gate_forward(dev, router, T, logits, NULL, ids, weights));
    BACKWARD(t, dev->gate_backward(dev, router, T, logits, NULL, ids, weights, zeros(T * E, sizeof(float))));
    assert_ok(dev->moe_plan(dev, &plan));
    assert_ok(dev->moe_group(dev, &group));
    assert_ok(dev->moe_combine(dev, T, (int32_t)K, H, rows, pair_row, weights, y));
    BACKWARD(t, dev->moe_combine_backward(dev, T, (int32_t)K, H, rows, pair_row, weights, y, rows,
                                          zeros(T * K, sizeof(float))));
}

static void run_experts(const trial *t) {
    wb_device *dev = t->dev;
    const int64_t n = t->most.expert_rows, H = t->most.hidden, F = t->most.expert_width, S = t->most.n_groups;
    int32_t *offsets = zeros(S + 1, sizeof *offsets);
    for (int64_t s = 0; s <= S; s++) offsets[s] = (int32_t)(n * s / S);
    const wb_grouped up = {.n_groups = (int32_t)S,
                           .offsets = offsets,
                           .max_rows = n,
                           .w = {zeros(S * 2 * F * H, sizeof(float)), WB_F32, 2 * F, H, false},
                           .gather = zeros(n, sizeof(int32_t)),
                           .gathered = rows_of(t, n, H)};
    const wb_grouped down = {.n_groups = (int32_t)S,
                             .offsets = offsets,
                             .max_rows = n,
                             .w = {zeros(S * F * H, sizeof(float)), WB_F32, H, F, false}};
    const wb_rows x = rows_of(t, n, H), gate_up = rows_of(t, n, 2 * F), act = rows_of(t, n, F), none = {0};
    assert_ok(dev->grouped_matmul(dev, &up, x, gate_up, act));
    assert_ok(dev->grouped_matmul(dev, &down, act, x, none));
    assert_ok(
        dev->grouped_matmul_backward(dev, &down, act, x, zeros(S * F * H, sizeof(float)), act, gate_up));
    assert_ok(
        dev->grouped_matmul_backward(dev, &up, x, gate_up, zeros(S * 2 * F * H, sizeof(float)), x, none));
}

/* Of experts with biases, and of a shared one's gate. */
static void run_other_experts(const trial *t) {
    wb_device *dev = t->dev;
    const int64_t n = t->most.expert_rows, F = t->most.expert_width, T = t->most.tokens, H = t->most.hidden;
    int32_t *offsets = zeros(2, sizeof *offsets);
    offsets[1] = (int32_t)n;
    const wb_grouped rows = {.n_groups = 1, .offsets = offsets, .max_rows = n};
    const wb_clamped_swiglu clamp = {7, 1.702f, 1};
    const wb_rows gate_up = rows_of(t, n, 2 * F), act = rows_of(t, n, F), x = rows_of(t, T, H),
                  y = rows_of(t, T, H);
    float *gate = zeros(T, sizeof *gate), *bias = zeros(2 * F, sizeof *bias);
    assert_ok(dev->grouped_bias_forward(dev, &rows, 2 * F, bias, gate_up));
    assert_ok(dev->grouped_bias_backward(dev, &rows, 2 * F, gate_up, bias));
    assert_ok(dev->grouped_swiglu_forward(dev, &rows, F, &clamp, gate_up, act));
    assert_ok(dev->grouped_swiglu_backward(dev, &rows, F, &clamp, gate_up, act, gate_up));
    assert_ok(dev->add_gated_forward(dev, T, H, gate, x, y));
    assert_ok(dev->add_gated_backward(dev, T, H, gate, x, y, x, gate));
}

/* One sequence. */
static void run_recurrent(const trial *t) {
    wb_device *dev = t->dev;
    const wb_delta_heads h = t->most.delta;
    const int64_t T = t->most.tokens, width = wb_delta_width(h), rows = T * h.n_value;
    wb_sequence_run *run = zeros(1, sizeof *run);
    *run = (wb_sequence_run){0, (int32_t)T, -1};
    const wb_sequences of = {.T = T, .n_runs = 1, .runs = run};
    const wb_rows qkv = rows_of(t, T, width), gate = rows_of(t, T, h.n_value),
                  o = rows_of(t, rows, h.value_dim), z = rows_of(t, rows, h.value_dim);
    float *vector = zeros(4 * width, sizeof *vector);
    const wb_short_conv conv = {of, (int32_t)width, 4, vector, qkv};
    const wb_gated_delta delta = {.of = of,
                                  .heads = h,
                                  .qkv = qkv,
                                  .b = gate,
                                  .a = gate,
                                  .A_log = vector,
                                  .dt_bias = vector,
                                  .checkpoints = zeros(wb_delta_checkpoint_floats(T, h), sizeof(float))};
    assert_ok(dev->short_conv_forward(dev, &conv, rows_of(t, T, width)));
    BACKWARD(t, dev->short_conv_backward(dev, &conv, qkv, rows_of(t, T, width), vector));
    assert_ok(dev->gated_delta_forward(dev, &delta, o));
    BACKWARD(t, dev->gated_delta_backward(dev, &delta, o, rows_of(t, T, width), rows_of(t, T, h.n_value),
                                          rows_of(t, T, h.n_value), vector, vector));
    assert_ok(dev->gated_rmsnorm_forward(dev, rows, h.value_dim, o, norm_of(vector, false), z, o));
    BACKWARD(t, dev->gated_rmsnorm_backward(dev, rows, h.value_dim, o, norm_of(vector, false), z, o, o, z,
                                            vector));
    assert_ok(dev->sigmoid_gate_forward(dev, rows, h.value_dim, o, z, h.value_dim, o));
    BACKWARD(t, dev->sigmoid_gate_backward(dev, rows, h.value_dim, o, z, h.value_dim, o, o, z));
}

static void run_sampling(const trial *t) {
    enum { ROWS = SAMPLED };
    wb_device *dev = t->dev;
    const int64_t V = t->most.vocab_size;
    float *temperature = zeros(ROWS, sizeof *temperature), *logprobs = zeros(ROWS, sizeof *logprobs);
    for (int i = 0; i < ROWS; i++) temperature[i] = 0.5f + (float)i;
    const wb_distribution of = {.temperature = temperature};
    float *logits = zeros(ROWS * V, sizeof *logits);
    int32_t *tokens = zeros(ROWS, sizeof *tokens);
    double *sum = zeros(1, sizeof *sum);
    const wb_sample_params params[ROWS] = {
        {.temperature = 1, .top_p = 0.9f, .uniform = 0.5f}, {.top_p = 1}, {.temperature = 1, .top_p = 1}};
    assert_ok(dev->logprob_forward(dev, ROWS, V, logits, tokens, &of, logprobs));
    BACKWARD(t, dev->logprob_backward(dev, ROWS, V, logits, tokens, &of, logprobs, logits));
    if (t->most.sampled > 0) assert_ok(dev->sample(dev, ROWS, V, logits, params, NULL, tokens, logprobs));
    assert_ok(dev->sum_squares(dev, 1, t->most.summed, rows_of(t, t->most.summed, 1), sum));
}

/* ---- sizes --------------------------------------------------------------------------------------- */

/* Each trial has one size that is large, so that each op's need is once more than the others'. */
static wb_op_sizes random_sizes(int number) {
    enum { TOKENS, KEYS, EXPERTS, VOCABULARY, SUMMED, GROUPS, STATES, N_LARGE };
    const int large = number % N_LARGE;
    const int32_t kv = (int32_t)rng_range(1, 3), E = (int32_t)rng_range(4, large == EXPERTS ? 65536 : 40);
    /* And one width that is, or those of an expert's rows. */
    const int64_t wide = rng_range(0, 4);
#define WIDTH(i) (wide == (i) || (wide == 4 && (i) % 2 == 0) ? rng_range(100, 200) : rng_range(1, 12))
    /* Larger heads of a delta net do not fit the 99 KiB of shared memory that small cards have. */
    const int32_t key_heads = (int32_t)rng_range(1, 3), most_dim = large == STATES ? 128 : 12;
    const bool grouped = large == EXPERTS && rng_range(0, 1) == 1;
    wb_op_sizes s = {.tokens = rng_range(1, large == TOKENS ? 600 : 30),
                     .hidden = WIDTH(0),
                     .dense_width = WIDTH(1),
                     .expert_width = WIDTH(2),
                     .n_heads = kv * (int32_t)rng_range(1, 3),
                     .n_kv_heads = kv,
                     .head_dim = 2 * (int32_t)WIDTH(3) / 4 + 2,
                     .value_dim = (int32_t)WIDTH(3) / 4 + 1,
                     .delta = {key_heads, key_heads * (int32_t)rng_range(1, 3),
                               (int32_t)rng_range(1, most_dim), (int32_t)rng_range(1, most_dim)},
                     .keys = rng_range(1, large == KEYS ? 6000 : 40),
                     .index_heads = (int32_t)rng_range(1, 4),
                     .index_dim = (int32_t)WIDTH(3) / 4 + 1,
                     .n_streams = (int32_t)rng_range(1, 4),
                     .compress_channels = 2 * WIDTH(1),
                     .router = {.type = WB_ROUTER_SIGMOID, .n_experts = E, .top_k = 1, .scale = 1},
                     .n_sources = 1,
                     .n_slots = (int32_t)rng_range(1, large == GROUPS ? 5000 : 60),
                     .vocab_size = rng_range(2, large == VOCABULARY ? 150000 : 100),
                     .sampled = SAMPLED,
                     .head_rows = rng_range(1, 8),
                     .summed = rng_range(0, large == SUMMED ? 4000000 : 100),
                     .dtype = number / N_LARGE % 2 == 0 ? WB_F32 : WB_BF16,
                     .backward = number / N_LARGE / 2 % 2 == 0};
#undef WIDTH
    if (grouped) s.router.n_experts = E / 4 * 4, s.router.n_group = E / 4, s.router.topk_group = 2;
    s.router.top_k = (int32_t)rng_range(1, 4);
    s.n_groups = (int32_t)rng_range(1, large == GROUPS ? 400 : s.n_slots);
    s.ranked_entries = s.tokens / RATIO;
    s.call_entries = s.tokens / LEAST_RATIO;
    s.entry_keys = (s.tokens < WINDOW ? s.tokens : WINDOW) + s.call_entries;
    s.expert_rows = rng_range(0, 4 * s.tokens * s.router.top_k);
    return s;
}

/* All of them, one after the other, and how many they are. */
typedef void scratch_family(const trial *t);
static scratch_family *const families[] = {run_rows,          run_products,  run_head,    run_attention,
                                           run_streams,       run_entries,   run_router,  run_experts,
                                           run_other_experts, run_recurrent, run_sampling};
enum { N_FAMILIES = sizeof families / sizeof families[0] };

static inline trial random_trial(int number) {
    trial t = {.most = random_sizes(number)};
    t.q = (int64_t)t.most.n_heads * t.most.head_dim;
    t.kv = (int64_t)t.most.n_kv_heads * t.most.head_dim;
    return t;
}

#endif
