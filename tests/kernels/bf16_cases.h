/* bf16_cases.h - every op that takes rows, as a case that test_ops_bf16 can run on operands of either dtype:
 * which operands it has, how it uses them, and what it takes beside them. Included by that test alone. */
#ifndef WB_BF16_CASES_H
#define WB_BF16_CASES_H

#include "ops_test.h"

enum { T = 23, W = 38, DEEP = 300, V = 9, POOL = 32, GUARD = 5, MAX_OPERANDS = 7 };
enum { FIRST_LENGTH = 14, HEADS = 2, HEAD_DIM = W / HEADS, VALUE_DIM = 11, ROT = 14 };

/* ---- what ops take beside rows --------------------------------------------------------------- */

static float *weights, *vector;    /* [W, DEEP], [DEEP] */
static uint16_t *half_weights;     /* [W, DEEP] */
static float *sums;                /* [W * DEEP] out: gradients of weights, which begin at random */
static float *cosines, *sines;     /* [T, ROT / 2] */
static int32_t *tokens, *index_of; /* [T]: below V; each of 0..T - 1 once */
static int32_t *seq, *pos;         /* [T]: two sequences */
static int32_t *single, *blocks;   /* [2 * T], [2]: their rows in a pool of blocks of 1, and of 16 */
static int64_t *rows_of;           /* [T]: their rows in the pool of blocks of 1 */
/* Two choices of each token, [T * CHOICES], whose rows lie backwards; where the one group begins and ends. */
enum { CHOICES = 2 };
static int32_t *pair_row, *offsets;
static float *choice_weights;
static uint8_t *own_ids; /* [T * CHOICES]: every second choice is of an expert without weights */
/* Two sequences and two tokens of padding, for the ops of recurrent layers and of compressors, and the heads
 * of a gated delta rule. */
enum { N_RUNS = 2, CONV_WIDTH = 4, KEY_DIM = 6, DELTA_DIM = 13, VALUES = 2 * DELTA_DIM };
static const wb_delta_heads delta_heads = {1, 2, KEY_DIM, DELTA_DIM}; /* W wide */
static wb_sequence_run *runs;
static float *checkpoints;

static void open_sides(void) {
    weights = random_floats(W * DEEP, -1, 1), vector = random_floats(DEEP, -1, 1);
    half_weights = xalloc(W * DEEP, sizeof *half_weights);
    for (int i = 0; i < W * DEEP; i++) half_weights[i] = wb_f32_to_bf16(weights[i]);
    cosines = random_floats(T * ROT / 2, -1, 1), sines = random_floats(T * ROT / 2, -1, 1);
    tokens = xalloc(T, sizeof *tokens), index_of = xalloc(T, sizeof *index_of);
    seq = xalloc(T, sizeof *seq), pos = xalloc(T, sizeof *pos), rows_of = xalloc(T, sizeof *rows_of);
    single = xalloc(2 * T, sizeof *single), blocks = xalloc(2, sizeof *blocks);
    pair_row = xalloc(T * CHOICES, sizeof *pair_row), choice_weights = floats(T * CHOICES);
    offsets = xalloc(2, sizeof *offsets), own_ids = xalloc(T * CHOICES, sizeof *own_ids);
    for (int i = 0; i < T * CHOICES; i++) own_ids[i] = (uint8_t)(i % 2);
    runs = xalloc(N_RUNS, sizeof *runs), checkpoints = floats(wb_delta_checkpoint_floats(T, delta_heads));
    runs[0] = (wb_sequence_run){0, FIRST_LENGTH, -1};
    runs[1] = (wb_sequence_run){FIRST_LENGTH, T - 2 - FIRST_LENGTH, -1};
    blocks[0] = 1, blocks[1] = 0;
    for (int t = 0; t < T; t++) {
        tokens[t] = (int32_t)rng_range(0, V - 1);
        index_of[t] = t * 9 % T; /* 9 and 23 have no common factor */
        seq[t] = t >= FIRST_LENGTH, pos[t] = t - seq[t] * FIRST_LENGTH;
        rows_of[t] = single[seq[t] * T + pos[t]] = index_of[t];
    }
}

static void close_sides(void) {
    free(weights), free(vector), free(half_weights), free(cosines), free(sines);
    free(tokens), free(index_of), free(seq), free(pos), free(rows_of), free(single), free(blocks);
    free(pair_row), free(choice_weights), free(offsets), free(own_ids), free(runs), free(checkpoints);
}

/* ---- the ops --------------------------------------------------------------------------------- */

/* n rows of the T, from row `begin` on, of which operands r begin. */
typedef wb_status run_fn(wb_device *dev, int64_t n, const wb_rows *r);

static int64_t begin;

static wb_weight float_matrix(void) {
    return matrix(weights, WB_F32, W, DEEP);
}

static wb_status one_product(wb_device *dev, wb_matmul m) {
    return dev->matmul(dev, 1, &m);
}

#define OP(name) static wb_status run_##name(wb_device *dev, int64_t n, const wb_rows *r)

OP(product) {
    return one_product(dev, wb_matmul_forward(n, r[0], float_matrix(), r[1]));
}
OP(half_product) {

    return one_product(dev, wb_matmul_forward(n, r[0], matrix(half_weights, WB_BF16, W, DEEP), r[1]));
}
OP(dgrad) {
    return one_product(dev, wb_matmul_dgrad(n, r[0], float_matrix(), r[1], false));
}
OP(dgrad_on_top) {
    return one_product(dev, wb_matmul_dgrad(n, r[0], float_matrix(), r[1], true));
}
OP(wgrad) {
    return one_product(dev, wb_matmul_wgrad(n, DEEP, W, r[0], r[1], sums));
}
OP(embed) {
    return dev->embed_forward(dev, n, tokens + begin, matrix(weights, WB_F32, V, W), r[0]);
}
OP(embed_backward) {
    return dev->embed_backward(dev, n, W, tokens + begin, r[0], sums);
}
OP(norm) {
    return dev->rmsnorm_forward(dev, n, W, r[0], norm_of(vector, false), r[1]);
}
OP(norm_zero_centered) {
    return dev->rmsnorm_forward(dev, n, W, r[0], norm_of(vector, true), r[1]);
}
OP(norm_in_place) {
    return dev->rmsnorm_forward(dev, n, W, r[0], norm_of(vector, false), r[0]);
}
OP(norm_backward) {

    return dev->rmsnorm_backward(dev, n, W, r[0], norm_of(vector, false), r[1], r[2], n == T ? sums : NULL);
}
OP(norm_backward_in_place) {

    return dev->rmsnorm_backward(dev, n, W, r[0], norm_of(vector, true), r[1], r[1], n == T ? sums : NULL);
}
static inline wb_rope rope_args(int64_t n, wb_rows x) {
    return (wb_rope){.T = n,
                     .n_heads = HEADS,
                     .head_dim = HEAD_DIM,
                     .rot_dim = ROT,
                     .pos = pos + begin,
                     .cos_table = cosines,
                     .sin_table = sines,
                     .x = x};
}
OP(rope) {
    const wb_rope args = rope_args(n, r[0]);
    return dev->rope(dev, &args);
}
OP(rope_back) {
    wb_rope args = rope_args(n, r[0]);
    args.inverse = true;
    return dev->rope(dev, &args);
}
OP(rope_pairs) {
    wb_rope args = rope_args(n, r[0]);
    args.interleaved = true;
    args.first = HEAD_DIM - ROT;
    return dev->rope(dev, &args);
}
OP(copy_columns) {
    return dev->copy_columns(dev, n, W - 3, wb_rows_from(r[0], 2), W, wb_rows_from(r[1], 1), W);
}
OP(copy_heads) {
    const wb_copy_heads args = {.T = n,
                                .n_heads = 2,
                                .width = 3,
                                .from = wb_rows_from(r[0], 1),
                                .from_row = W,
                                .from_head = 5,
                                .to = r[1],
                                .to_row = W,
                                .to_head = 4};
    return dev->copy_heads(dev, &args);
}
OP(gather) {
    return dev->gather_rows(dev, n, W, index_of + begin, r[0], r[1]);
}
OP(scatter) {
    return dev->scatter_rows(dev, n, W, index_of + begin, r[0], r[1]);
}
OP(kv_write) {
    return dev->kv_write(dev, n, W, r[0], rows_of + begin, r[1]);
}
OP(swiglu) {
    return dev->swiglu_forward(dev, n, W, r[0], r[1]);
}
OP(swiglu_backward) {
    return dev->swiglu_backward(dev, n, W, r[0], r[1], r[2]);
}
OP(swiglu_backward_in_place) {
    return dev->swiglu_backward(dev, n, W, r[0], r[1], r[0]);
}
OP(add) {
    return dev->add(dev, n * W, r[0], r[1]);
}
OP(bias) {
    return dev->bias_forward(dev, n, W, vector, r[0]);
}
OP(bias_backward) {
    return dev->bias_backward(dev, n, W, r[0], sums);
}
OP(clamp) {
    return dev->clamp(dev, n * W, 1.3f, r[0]);
}
OP(clamp_backward) {
    return dev->clamp_backward(dev, n * W, 1.3f, r[0], r[1]);
}

static wb_attention attention_of(int64_t n, const wb_rows *r, bool blocked) {
    return (wb_attention){.T = n,
                          .n_heads = HEADS,
                          .n_kv_heads = 1,
                          .head_dim = HEAD_DIM,
                          .value_dim = HEAD_DIM,
                          .scale = 0.37f,
                          .q = r[0],
                          .k = r[1],
                          .v = r[2],
                          .seq = seq + begin,
                          .pos = pos + begin,
                          .blocks = blocked ? blocks : single,
                          .max_blocks = blocked ? 1 : T,
                          .block_size = blocked ? 16 : 1};
}

OP(attention) {
    const wb_attention a = attention_of(n, r, false);
    return dev->attention_forward(dev, &a, r[3]);
}
OP(attention_in_blocks) {
    const wb_attention a = attention_of(n, r, true);
    return dev->attention_forward(dev, &a, r[3]);
}
OP(attention_backward) {
    const wb_attention a = attention_of(n, r, false);
    return dev->attention_backward(dev, &a, r[3], r[4], r[5], r[6], NULL);
}

/* With a window, sinks, and values that are narrower than keys. */
static wb_attention narrow_attention_of(int64_t n, const wb_rows *r) {
    wb_attention a = attention_of(n, r, false);
    a.value_dim = VALUE_DIM, a.window = 5, a.sinks = vector;
    return a;
}
OP(narrow_attention) {
    const wb_attention a = narrow_attention_of(n, r);
    return dev->attention_forward(dev, &a, r[3]);
}
OP(narrow_attention_backward) {
    const wb_attention a = narrow_attention_of(n, r);
    return dev->attention_backward(dev, &a, r[3], r[4], r[5], r[6], sums);
}

/* ---- streams and entries ----------------------------------------------------------------------- */

enum { STREAMS = 2, STREAM = W / STREAMS, MIX = STREAMS * (STREAMS + 2), RATIO = 4, LISTED = 2 };

static wb_hyper hyper_of(int64_t n, wb_rows x) {
    return (wb_hyper){.T = n,
                      .H = STREAM,
                      .n_streams = STREAMS,
                      .iterations = 3,
                      .norm_eps = 1e-6f,
                      .eps = 1e-6f,
                      .x = x,
                      .products = weights + begin * MIX,
                      .scale = vector,
                      .base = vector + 3};
}
OP(hyper_pre) {
    const wb_hyper args = hyper_of(n, r[0]);
    return dev->hyper_pre_forward(dev, &args, r[1], sums + begin * MIX);
}
OP(hyper_pre_backward) {
    const wb_hyper args = hyper_of(n, r[0]);
    float *base = sums + T * MIX;
    return dev->hyper_pre_backward(dev, &args, r[1], vector + begin * MIX, r[2], sums + begin * MIX,
                                   base + MIX, base);
}
OP(hyper_post) {
    return dev->hyper_post_forward(dev, n, STREAMS, STREAM, weights + begin * MIX, r[0], r[1], r[2]);
}
OP(hyper_post_in_place) {
    return dev->hyper_post_forward(dev, n, STREAMS, STREAM, weights + begin * MIX, r[0], r[1], r[0]);
}
OP(hyper_post_backward) {
    return dev->hyper_post_backward(dev, n, STREAMS, STREAM, weights + begin * MIX, r[0], r[1], r[2], r[3],
                                    r[4], sums + begin * MIX);
}
OP(hyper_post_backward_in_place) {
    return dev->hyper_post_backward(dev, n, STREAMS, STREAM, weights + begin * MIX, r[0], r[1], r[2], r[3],
                                    r[2], sums + begin * MIX);
}

static wb_compress compress_of(int64_t n, const wb_rows *r) {
    return (wb_compress){.of = {.T = n, .n_runs = N_RUNS, .runs = runs},
                         .width = W / 2,
                         .ratio = RATIO,
                         .overlaps = true,
                         .values = r[0],
                         .gates = r[1],
                         .bias = weights,
                         .pos = pos};
}
OP(compress) {
    const wb_compress args = compress_of(n, r);
    return dev->compress_forward(dev, &args, r[2]);
}
OP(compress_backward) {
    const wb_compress args = compress_of(n, r);
    return dev->compress_backward(dev, &args, r[2], r[3], r[4], sums);
}

OP(indexer) {
    const wb_indexer args = {.T = n,
                             .n_heads = HEADS,
                             .head_dim = HEAD_DIM,
                             .top_k = LISTED,
                             .q = r[0],
                             .weights = weights + begin * HEADS,
                             .keys = {RATIO, r[1], HEAD_DIM},
                             .seq = seq + begin,
                             .pos = pos + begin,
                             .blocks = single,
                             .max_blocks = T,
                             .block_size = 1,
                             .max_entries = T / RATIO,
                             .listed = (int32_t *)(void *)sums + begin * LISTED};
    return dev->indexer_topk(dev, &args);
}

/* r: q, k, entries */
static wb_entry_attention entry_attention_of(int64_t n, const wb_rows *r) {
    wb_entry_attention a = {attention_of(n, r, false), {RATIO, r[2], HEAD_DIM}, NULL, 0};
    a.raw.v = a.raw.k, a.raw.window = 5, a.raw.sinks = vector;
    return a;
}
OP(entry_attention) {
    const wb_entry_attention a = entry_attention_of(n, r);
    return dev->entry_attention_forward(dev, &a, r[3]);
}
OP(entry_attention_backward) {
    const wb_entry_attention a = entry_attention_of(n, r);
    return dev->entry_attention_backward(dev, &a, r[3], r[4], r[5], r[6], sums);
}

static void fill_pairs(int64_t n) {
    for (int64_t i = 0; i < n * CHOICES; i++) {
        pair_row[i] = (int32_t)(n * CHOICES - 1 - i);
        choice_weights[i] = vector[i % W];
    }
}
OP(combine) {
    fill_pairs(n);
    return dev->moe_combine(dev, n, CHOICES, W, r[0], pair_row, choice_weights, r[1]);
}
OP(combine_backward) {
    fill_pairs(n);
    return dev->moe_combine_backward(dev, n, CHOICES, W, r[0], pair_row, choice_weights, r[1], r[2], NULL);
}

static wb_own_choices own_choices(int64_t n) {
    fill_pairs(n);
    return (wb_own_choices){n, W, CHOICES, 1, {own_ids, WB_U8, CHOICES}, choice_weights};
}
OP(own) {
    const wb_own_choices own = own_choices(n);
    return dev->moe_own_forward(dev, &own, r[0], r[1]);
}
OP(own_backward) {
    const wb_own_choices own = own_choices(n);
    return dev->moe_own_backward(dev, &own, r[0], r[1], r[2], sums);
}

static wb_grouped one_group(int64_t n) {
    offsets[1] = (int32_t)n;
    return (wb_grouped){.n_groups = 1, .offsets = offsets, .max_rows = n, .w = float_matrix()};
}
OP(grouped) {
    const wb_grouped g = one_group(n);
    return dev->grouped_matmul(dev, &g, r[0], r[1], (wb_rows){0});
}
OP(grouped_backward) {
    const wb_grouped g = one_group(n);
    return dev->grouped_matmul_backward(dev, &g, r[0], r[1], sums, r[2], (wb_rows){0});
}

static const wb_clamped_swiglu swiglu_clamp = {1.3f, 1.702f, 1};

OP(grouped_bias) {
    const wb_grouped g = one_group(n);
    return dev->grouped_bias_forward(dev, &g, W, vector, r[0]);
}
OP(grouped_bias_backward) {
    const wb_grouped g = one_group(n);
    return dev->grouped_bias_backward(dev, &g, W, r[0], sums);
}
OP(grouped_swiglu) {
    const wb_grouped g = one_group(n);
    return dev->grouped_swiglu_forward(dev, &g, W, &swiglu_clamp, r[0], r[1]);
}
OP(grouped_swiglu_backward) {
    const wb_grouped g = one_group(n);
    return dev->grouped_swiglu_backward(dev, &g, W, &swiglu_clamp, r[0], r[1], r[2]);
}
OP(grouped_swiglu_in_place) {
    const wb_grouped g = one_group(n);
    return dev->grouped_swiglu_backward(dev, &g, W, &swiglu_clamp, r[0], r[1], r[0]);
}
OP(add_gated) {
    return dev->add_gated_forward(dev, n, W, vector + begin, r[0], r[1]);
}
OP(add_gated_backward) {
    return dev->add_gated_backward(dev, n, W, vector + begin, r[0], r[1], r[2], sums);
}
OP(add_gated_in_place) {
    return dev->add_gated_backward(dev, n, W, vector + begin, r[0], r[1], r[0], sums);
}

OP(gated_norm) {
    return dev->gated_rmsnorm_forward(dev, n, W, r[0], norm_of(vector, false), r[1], r[2]);
}
OP(gated_norm_backward) {
    return dev->gated_rmsnorm_backward(dev, n, W, r[0], norm_of(vector, true), r[1], r[2], r[3], r[4],
                                       n == T ? sums : NULL);
}
OP(gated_norm_in_place) {
    return dev->gated_rmsnorm_backward(dev, n, W, r[0], norm_of(vector, false), r[1], r[2], r[2], r[1], NULL);
}
OP(sigmoid_gate) {
    return dev->sigmoid_gate_forward(dev, n, W, r[0], r[1], 2 * W, r[2]);
}
OP(sigmoid_gate_backward) {
    return dev->sigmoid_gate_backward(dev, n, W, r[0], r[1], 2 * W, r[2], r[3], r[4]);
}

static wb_sequences sequences_of(int64_t n) {
    return (wb_sequences){.T = n, .n_runs = N_RUNS, .runs = runs};
}
OP(short_conv) {
    const wb_short_conv args = {sequences_of(n), W, CONV_WIDTH, weights, r[0]};
    return dev->short_conv_forward(dev, &args, r[1]);
}
OP(short_conv_backward) {
    const wb_short_conv args = {sequences_of(n), W, CONV_WIDTH, weights, r[0]};
    return dev->short_conv_backward(dev, &args, r[1], r[2], sums);
}

static wb_gated_delta delta_of(int64_t n, const wb_rows *r) {
    return (wb_gated_delta){.of = sequences_of(n),
                            .heads = delta_heads,
                            .qkv = r[0],
                            .b = r[1],
                            .a = r[2],
                            .A_log = vector,
                            .dt_bias = vector + 2,
                            .checkpoints = checkpoints};
}
OP(gated_delta) {
    const wb_gated_delta args = delta_of(n, r);
    return dev->gated_delta_forward(dev, &args, r[3]);
}
OP(gated_delta_backward) {
    const wb_gated_delta args = delta_of(n, r);
    return dev->gated_delta_backward(dev, &args, r[3], r[4], r[5], r[6], sums, sums + 2);
}

/* IN is read, OUT written, SUM both. WHOLE: POOL rows, not one of T; FLOAT: f32 whatever the others are. */
enum { IN = 1, OUT = 2, SUM = IN | OUT, WHOLE = 4, FLOAT = 8 };

typedef struct operand_spec {
    const char *name;
    int64_t width;
    int use;
} operand_spec;

typedef struct op_case {
    const char *name;
    run_fn *run;
    bool by_row, any_dtypes; /* rows may come in several calls; operands may be of unlike dtypes */
    /* a product of two matrices of bf16 or a sigmoid, which CUDA has its own of: test_products_cuda */
    bool own_on_cuda;
    operand_spec operands[MAX_OPERANDS + 1]; /* up to width 0 */
} op_case;

#define KV                         \
    {"k", HEAD_DIM, IN | WHOLE}, { \
        "v", HEAD_DIM, IN | WHOLE  \
    }
// clang-format off: an op a line
static const op_case cases[] = {
    {"matmul", run_product, true, true, false, {{"a", DEEP, IN}, {"c", W, OUT}}},
    {"matmul", run_product, true, true, false, {{"a", DEEP, IN}, {"c", W, OUT | FLOAT}}},
    {"matmul", run_half_product, true, true, true, {{"a", DEEP, IN}, {"c", W, OUT}}},
    {"matmul", run_dgrad, true, true, false, {{"a", W, IN}, {"c", DEEP, OUT}}},
    {"matmul", run_dgrad, true, true, false, {{"a", W, IN | FLOAT}, {"c", DEEP, OUT}}},
    {"matmul", run_dgrad_on_top, true, true, false, {{"a", W, IN}, {"c", DEEP, SUM}}},
    {"matmul", run_wgrad, false, true, true, {{"a", W, IN}, {"b", DEEP, IN}}},
    {"matmul", run_wgrad, false, true, false, {{"a", W, IN | FLOAT}, {"b", DEEP, IN}}},
    {"embed_forward", run_embed, true, false, false, {{"y", W, OUT}}},
    {"embed_backward", run_embed_backward, false, false, false, {{"dy", W, IN}}},
    {"rmsnorm_forward", run_norm, true, false, false, {{"x", W, IN}, {"y", W, OUT}}},
    {"rmsnorm_forward", run_norm_zero_centered, true, false, false, {{"x", W, IN}, {"y", W, OUT}}},
    {"rmsnorm_forward", run_norm_in_place, true, false, false, {{"x", W, SUM}}},
    {"rmsnorm_backward",
     run_norm_backward,
     true,
     false,
     false,
     {{"x", W, IN}, {"dy", W, IN}, {"dx", W, OUT}}},
    {"rmsnorm_backward", run_norm_backward_in_place, true, false, false, {{"x", W, IN}, {"dy", W, SUM}}},
    {"rope", run_rope, true, false, false, {{"x", W, SUM}}},
    {"rope", run_rope_back, true, false, false, {{"x", W, SUM}}},
    {"rope", run_rope_pairs, true, false, false, {{"x", W, SUM}}},
    {"copy_columns", run_copy_columns, true, false, false, {{"from", W, IN}, {"to", W, SUM}}},
    {"copy_heads", run_copy_heads, true, false, false, {{"from", W, IN}, {"to", W, SUM}}},
    {"gather_rows", run_gather, true, false, false, {{"in", W, IN | WHOLE}, {"out", W, OUT}}},
    {"scatter_rows", run_scatter, true, false, false, {{"in", W, IN}, {"out", W, SUM | WHOLE}}},
    {"kv_write", run_kv_write, true, true, false, {{"x", W, IN}, {"cache", W, SUM | WHOLE}}},
    {"swiglu_forward", run_swiglu, true, false, true, {{"gate_up", 2 * W, IN}, {"out", W, OUT}}},
    {"swiglu_backward",
     run_swiglu_backward,
     true,
     false,
     true,
     {{"gate_up", 2 * W, IN}, {"dout", W, IN}, {"dgate_up", 2 * W, OUT}}},
    {"swiglu_backward",
     run_swiglu_backward_in_place,
     true,
     false,
     true,
     {{"gate_up", 2 * W, SUM}, {"dout", W, IN}}},
    {"add", run_add, true, false, false, {{"x", W, IN}, {"y", W, SUM}}},
    {"bias_forward", run_bias, true, false, false, {{"y", W, SUM}}},
    {"bias_backward", run_bias_backward, false, false, false, {{"dy", W, IN}}},
    {"clamp", run_clamp, true, false, false, {{"x", W, SUM}}},
    {"clamp_backward", run_clamp_backward, true, false, false, {{"x", W, IN}, {"dx", W, SUM}}},
    {"moe_combine", run_combine, false, false, false, {{"rows", CHOICES *W, IN}, {"y", W, OUT}}},
    {"moe_combine_backward",
     run_combine_backward,
     false,
     false,
     false,
     {{"rows", CHOICES *W, IN}, {"dy", W, IN}, {"drows", CHOICES *W, OUT}}},
    {"moe_own_forward", run_own, false, false, false, {{"x", W, IN}, {"y", W, SUM}}},
    {"moe_own_backward",
     run_own_backward,
     false,
     false,
     false,
     {{"x", W, IN}, {"dy", W, IN}, {"dx", W, SUM}}},
    {"grouped_matmul", run_grouped, true, false, false, {{"x", DEEP, IN}, {"y", W, OUT}}},
    {"grouped_matmul_backward",
     run_grouped_backward,
     false,
     false,
     true,
     {{"x", DEEP, IN}, {"dy", W, IN}, {"dx", DEEP, OUT}}},
    {"grouped_bias_forward", run_grouped_bias, true, false, false, {{"y", W, SUM}}},
    {"grouped_bias_backward", run_grouped_bias_backward, false, false, false, {{"dy", W, IN}}},
    {"grouped_swiglu_forward",
     run_grouped_swiglu,
     true,
     false,
     false,
     {{"gate_up", 2 * W, IN}, {"out", W, OUT}}},
    {"grouped_swiglu_backward",
     run_grouped_swiglu_backward,
     true,
     false,
     false,
     {{"gate_up", 2 * W, IN}, {"dout", W, IN}, {"dgate_up", 2 * W, OUT}}},
    {"grouped_swiglu_backward",
     run_grouped_swiglu_in_place,
     true,
     false,
     false,
     {{"gate_up", 2 * W, SUM}, {"dout", W, IN}}},
    {"add_gated_forward", run_add_gated, true, false, false, {{"x", W, IN}, {"y", W, SUM}}},
    {"add_gated_backward",
     run_add_gated_backward,
     false,
     false,
     false,
     {{"x", W, IN}, {"dy", W, IN}, {"dx", W, OUT}}},
    {"add_gated_backward", run_add_gated_in_place, false, false, false, {{"x", W, SUM}, {"dy", W, IN}}},
    {"gated_rmsnorm_forward",
     run_gated_norm,
     true,
     false,
     false,
     {{"x", W, IN}, {"z", W, IN}, {"y", W, OUT}}},
    {"gated_rmsnorm_backward",
     run_gated_norm_backward,
     true,
     false,
     false,
     {{"x", W, IN}, {"z", W, IN}, {"dy", W, IN}, {"dx", W, OUT}, {"dz", W, OUT}}},
    {"gated_rmsnorm_backward",
     run_gated_norm_in_place,
     true,
     false,
     false,
     {{"x", W, IN}, {"z", W, SUM}, {"dy", W, SUM}}},
    {"sigmoid_gate_forward",
     run_sigmoid_gate,
     true,
     false,
     false,
     {{"x", W, IN}, {"gate", 2 * W, IN}, {"y", W, OUT}}},
    {"sigmoid_gate_backward",
     run_sigmoid_gate_backward,
     true,
     false,
     false,
     {{"x", W, IN}, {"gate", 2 * W, IN}, {"dy", W, IN}, {"dx", W, OUT}, {"dgate", 2 * W, SUM}}},
    {"short_conv_forward", run_short_conv, false, false, false, {{"x", W, IN}, {"y", W, OUT}}},
    {"short_conv_backward",
     run_short_conv_backward,
     false,
     false,
     false,
     {{"x", W, IN}, {"dy", W, IN}, {"dx", W, OUT}}},
    {"gated_delta_forward",
     run_gated_delta,
     false,
     false,
     false,
     {{"qkv", W, IN}, {"b", 2, IN}, {"a", 2, IN}, {"o", VALUES, OUT}}},
    {"gated_delta_backward",
     run_gated_delta_backward,
     false,
     false,
     false,
     {{"qkv", W, IN},
      {"b", 2, IN},
      {"a", 2, IN},
      {"dout", VALUES, IN},
      {"dqkv", W, OUT},
      {"db", 2, OUT},
      {"da", 2, OUT}}},
    {"attention_forward", run_attention, true, false, false, {{"q", W, IN}, KV, {"out", W, OUT}}},
    {"attention_forward", run_attention_in_blocks, true, false, false, {{"q", W, IN}, KV, {"out", W, OUT}}},
    {"attention_forward",
     run_narrow_attention,
     true,
     false,
     false,
     {{"q", W, IN},
      {"k", HEAD_DIM, IN | WHOLE},
      {"v", VALUE_DIM, IN | WHOLE},
      {"out", HEADS *VALUE_DIM, OUT}}},
    {"attention_backward",
     run_narrow_attention_backward,
     false,
     false,
     false,
     {{"q", W, IN},
      {"k", HEAD_DIM, IN | WHOLE},
      {"v", VALUE_DIM, IN | WHOLE},
      {"dout", HEADS *VALUE_DIM, IN},
      {"dq", W, OUT},
      {"dk", HEAD_DIM, SUM | WHOLE},
      {"dv", VALUE_DIM, SUM | WHOLE}}},
    {"attention_backward",
     run_attention_backward,
     false,
     false,
     false,
     {{"q", W, IN},
      KV,
      {"dout", W, IN},
      {"dq", W, OUT},
      {"dk", HEAD_DIM, SUM | WHOLE},
      {"dv", HEAD_DIM, SUM | WHOLE}}},
    {"hyper_pre_forward", run_hyper_pre, true, false, false, {{"x", W, IN}, {"in", STREAM, OUT}}},
    {"hyper_pre_backward",
     run_hyper_pre_backward,
     true,
     false,
     false,
     {{"x", W, IN}, {"din", STREAM, IN}, {"dx", W, SUM}}},
    {"hyper_post_forward",
     run_hyper_post,
     true,
     false,
     false,
     {{"x", W, IN}, {"out", STREAM, IN}, {"y", W, OUT}}},
    {"hyper_post_forward", run_hyper_post_in_place, true, false, false, {{"x", W, SUM}, {"out", STREAM, IN}}},
    {"hyper_post_backward",
     run_hyper_post_backward,
     true,
     false,
     false,
     {{"x", W, IN}, {"out", STREAM, IN}, {"dy", W, IN}, {"dout", STREAM, OUT}, {"dx", W, OUT}}},
    {"hyper_post_backward",
     run_hyper_post_backward_in_place,
     true,
     false,
     false,
     {{"x", W, IN}, {"out", STREAM, IN}, {"dy", W, SUM}, {"dout", STREAM, OUT}}},
    {"compress_forward",
     run_compress,
     false,
     false,
     false,
     {{"values", W, IN}, {"gates", W, IN}, {"entries", W / 2, OUT}}},
    {"compress_backward",
     run_compress_backward,
     false,
     false,
     false,
     {{"values", W, IN}, {"gates", W, IN}, {"dentries", W / 2, IN}, {"dvalues", W, OUT}, {"dgates", W, OUT}}},
    {"indexer_topk", run_indexer, true, true, false, {{"q", W, IN}, {"keys", HEAD_DIM, IN | WHOLE}}},
    {"entry_attention_forward",
     run_entry_attention,
     true,
     false,
     false,
     {{"q", W, IN}, {"k", HEAD_DIM, IN | WHOLE}, {"entries", HEAD_DIM, IN | WHOLE}, {"out", W, OUT}}},
    {"entry_attention_backward",
     run_entry_attention_backward,
     false,
     false,
     false,
     {{"q", W, IN},
      {"k", HEAD_DIM, IN | WHOLE},
      {"entries", HEAD_DIM, IN | WHOLE},
      {"dout", W, IN},
      {"dq", W, OUT},
      {"dk", HEAD_DIM, SUM | WHOLE},
      {"dentries", HEAD_DIM, SUM | WHOLE}}},
};
// clang-format on
enum { N_CASES = sizeof cases / sizeof cases[0] };

#endif
