/* test_batch_invariance.c - the bits of a row do not depend on the rows beside it, on how a prompt is cut
 * into calls, on where its keys lie in the pool, or on the number of threads. */
#include "all_ops.h"
#include "support/cpu_split.h"

#ifdef _OPENMP
#include <omp.h>
#endif

/* Threads that a team of `n` really gets here; without OpenMP there is nothing to see. */
static int team_of(int n) {
    int found = n;
#ifdef _OPENMP
#pragma omp parallel num_threads(n)
#pragma omp single
    found = omp_get_num_threads();
#endif
    return found;
}

/* Every loop since cpu_split_count_from_here was split over the threads of its device. */
static void assert_all_split(int64_t min_loops) {
    if (cpu_split.whole > 0)
        fail_msg("an op of %" PRId64 " operations ran on one thread: the shapes are too small",
                 (int64_t)cpu_split.whole_work);
    assert_true(cpu_split.split >= min_loops);
}

static void test_thread_count_changes_no_bit(void **state) {
    (void)state;
    const int threads[] = {2, 3, 5};
#define COUNT(op) +1
    const int64_t n_ops = 0 WB_COMPUTE_OPS(COUNT);
#undef COUNT
    uint64_t seed = rng_next();
    wb_device *one = open_cpu(1);
    for (int large = 0; large < 2; large++) {
        outputs expected = run_all_ops(one, seed, large == 1);
        for (int i = 0; i < 3; i++) {
            wb_device *dev = open_cpu(threads[i]);
            cpu_split_count_from_here();
            outputs found = run_all_ops(dev, seed, large == 1);
            /* All but moe_sort, which counts on one thread. */
            if (large == 1) assert_all_split(n_ops - 1);
            assert_int_equal(dev->threads, team_of(dev->threads));
            assert_same_outputs(&expected, &found, "1 thread", "more threads");
            free(found.bytes);
            wb_device_close(dev);
        }
        free(expected.bytes);
    }
    wb_device_close(one);
}

/* ---- rows alone and together ----------------------------------------------------------------- */

enum { T = 37, W = 70 };

/* One op on rows [begin, begin + n) of shared inputs; out: [T][W]. */
typedef void (*row_op)(wb_device *dev, int64_t begin, int64_t n, float *out);

static float *x, *d, *w; /* [T, W], [T, W], [W, W] */
static uint16_t *w_half; /* [W, W] */
static int32_t targets[T];

static void matmul_rows(wb_device *dev, int64_t begin, int64_t n, float *out) {
    wb_matmul m = wb_matmul_forward(n, wb_f32_rows(x + begin * W), matrix(w, WB_F32, W, W),
                                    wb_f32_rows(out + begin * W));
    assert_ok(dev->matmul(dev, 1, &m));
}

static void matmul_bf16_rows(wb_device *dev, int64_t begin, int64_t n, float *out) {
    wb_matmul m = wb_matmul_forward(n, wb_f32_rows(x + begin * W), matrix(w_half, WB_BF16, W, W),
                                    wb_f32_rows(out + begin * W));
    assert_ok(dev->matmul(dev, 1, &m));
}

static void dgrad_rows(wb_device *dev, int64_t begin, int64_t n, float *out) {
    wb_matmul m = wb_matmul_dgrad(n, wb_f32_rows(d + begin * W), matrix(w, WB_F32, W, W),
                                  wb_f32_rows(out + begin * W), false);
    assert_ok(dev->matmul(dev, 1, &m));
}

static void norm_rows(wb_device *dev, int64_t begin, int64_t n, float *out) {
    assert_ok(dev->rmsnorm_forward(dev, n, W, wb_f32_rows(x + begin * W), norm_of(w, false),
                                   wb_f32_rows(out + begin * W)));
}

static void norm_backward_rows(wb_device *dev, int64_t begin, int64_t n, float *out) {
    assert_ok(dev->rmsnorm_backward(dev, n, W, wb_f32_rows(x + begin * W), norm_of(w, false),
                                    wb_f32_rows(d + begin * W), wb_f32_rows(out + begin * W), NULL));
}

static void swiglu_rows(wb_device *dev, int64_t begin, int64_t n, float *out) {
    assert_ok(
        dev->swiglu_forward(dev, n, W / 2, wb_f32_rows(x + begin * W), wb_f32_rows(out + begin * W / 2)));
}

static void swiglu_backward_rows(wb_device *dev, int64_t begin, int64_t n, float *out) {
    assert_ok(dev->swiglu_backward(dev, n, W / 2, wb_f32_rows(x + begin * W), wb_f32_rows(d + begin * W / 2),
                                   wb_f32_rows(out + begin * W)));
}

static void logprob_rows(wb_device *dev, int64_t begin, int64_t n, float *out) {
    assert_ok(dev->logprob_forward(dev, n, W, x + begin * W, targets + begin, NULL, out + begin));
}

static void logprob_backward_rows(wb_device *dev, int64_t begin, int64_t n, float *out) {
    assert_ok(
        dev->logprob_backward(dev, n, W, x + begin * W, targets + begin, NULL, d + begin, out + begin * W));
}

/* Rows begin .. begin + n of a distribution in which every third row keeps all tokens, and the others the
 * target, token 1 and token W - 2. */
static void distributed_rows(wb_device *dev, int64_t begin, int64_t n, float *out, bool backward) {
    float temperature[T];
    uint32_t ids[3 * T];
    int64_t start[T + 1] = {0};
    for (int64_t i = 0; i < n; i++) {
        const uint32_t target = targets[begin + i] < 0 ? 0 : (uint32_t)targets[begin + i];
        temperature[i] = 0.5f + (float)((begin + i) % 4) * 0.25f;
        int64_t at = start[i];
        for (uint32_t id = 0; id < W && (begin + i) % 3 != 0; id++)
            if (id == target || id == 1 || id == W - 2) ids[at++] = id;
        start[i + 1] = at;
    }
    const wb_distribution of = {temperature, ids, start};
    const float *rows = x + begin * W;
    if (backward)
        assert_ok(dev->logprob_backward(dev, n, W, rows, targets + begin, &of, d + begin, out + begin * W));
    else
        assert_ok(dev->logprob_forward(dev, n, W, rows, targets + begin, &of, out + begin));
}

static void distributed_logprob_rows(wb_device *dev, int64_t begin, int64_t n, float *out) {
    distributed_rows(dev, begin, n, out, false);
}

static void distributed_logprob_backward_rows(wb_device *dev, int64_t begin, int64_t n, float *out) {
    distributed_rows(dev, begin, n, out, true);
}

static void sample_rows(wb_device *dev, int64_t begin, int64_t n, float *out) {
    wb_sample_params params[T];
    int32_t tokens[T];
    for (int i = 0; i < T; i++) params[i] = (wb_sample_params){0.7f, i % 3 * 10, 0.9f, (float)i / (float)T};
    assert_ok(dev->sample(dev, n, W, x + begin * W, params + begin, NULL, tokens, out + begin * 2));
    for (int64_t i = n - 1; i >= 0; i--) {
        out[(begin + i) * 2] = out[begin * 2 + i];
        out[(begin + i) * 2 + 1] = (float)tokens[i];
    }
}

static void router_rows(wb_device *dev, int64_t begin, int64_t n, float *out, wb_router_type type) {
    enum { K = 6 };
    uint8_t ids[T * K];
    wb_router r = {type, W, K, 0, 0, true, 1.0f};
    wb_topk topk = {.router = r, .T = n, .logits = x + begin * W, .ids = {ids, WB_U8, K}};
    float weights[T * K];
    assert_ok(dev->topk(dev, &topk));
    assert_ok(dev->gate_forward(dev, &r, n, x + begin * W, NULL, topk.ids, weights));
    assert_ok(dev->gate_backward(dev, &r, n, x + begin * W, NULL, topk.ids, weights, out + begin * W));
    for (int64_t i = 0; i < n * K; i++) /* dz says little about large weights: mix them in */
        out[(begin + i / K) * W + i % K] += weights[i] + (float)ids[i];
}

static void softmax_router_rows(wb_device *dev, int64_t begin, int64_t n, float *out) {
    router_rows(dev, begin, n, out, WB_ROUTER_SOFTMAX);
}

static void sigmoid_router_rows(wb_device *dev, int64_t begin, int64_t n, float *out) {
    router_rows(dev, begin, n, out, WB_ROUTER_SIGMOID);
}

static void test_a_row_alone_or_in_any_batch(void **state) {
    (void)state;
    const struct {
        const char *name;
        row_op op;
    } ops[] = {
        {"matmul", matmul_rows},
        {"matmul bf16", matmul_bf16_rows},
        {"matmul dgrad", dgrad_rows},
        {"rmsnorm_forward", norm_rows},
        {"rmsnorm_backward", norm_backward_rows},
        {"swiglu_forward", swiglu_rows},
        {"swiglu_backward", swiglu_backward_rows},
        {"logprob_forward", logprob_rows},
        {"logprob_backward", logprob_backward_rows},
        {"logprob_forward of a distribution", distributed_logprob_rows},
        {"logprob_backward of a distribution", distributed_logprob_backward_rows},
        {"sample", sample_rows},
        {"router softmax", softmax_router_rows},
        {"router sigmoid", sigmoid_router_rows},
    };
    wb_device *one = open_cpu(1), *three = open_cpu(3);
    cpu_split.always = true;
    cpu_split_count_from_here();
    x = random_floats(T * W, -4, 4), d = random_floats(T * W, -1, 1), w = random_floats(W * W, -1, 1);
    w_half = xalloc(W * W, 2);
    for (int i = 0; i < W * W; i++) w_half[i] = wb_f32_to_bf16(w[i]);
    for (int t = 0; t < T; t++) targets[t] = (int32_t)rng_range(-1, W - 1);
    float *together = floats(T * W), *apart = floats(T * W);
    for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++) {
        memset(together, 0, T * W * sizeof(float)), memset(apart, 0, T * W * sizeof(float));
        ops[i].op(three, 0, T, together);
        for (int64_t t = 0; t < T; t++) ops[i].op(one, t, 1, apart);
        assert_same_bits(together, apart, T * W, ops[i].name);
        memset(apart, 0, T * W * sizeof(float));
        for (int64_t t = 0, n; t < T; t += n) {
            n = rng_range(1, T - t < 13 ? T - t : 13);
            ops[i].op(one, t, n, apart);
        }
        assert_same_bits(together, apart, T * W, ops[i].name);
    }
    assert_all_split(sizeof ops / sizeof ops[0]);
    cpu_split.always = false;
    free(x), free(d), free(w), free(w_half), free(together), free(apart);
    wb_device_close(one), wb_device_close(three);
}

/* ---- attention ------------------------------------------------------------------------------- */

enum { LENGTH = 700, HEADS = 4, KV_HEADS = 2, DIM = 20, KV_WIDTH = KV_HEADS * DIM };

static const float some_sinks[HEADS] = {0.5f, -3, 4, -INFINITY};

/* What beside the keys decides about an output. */
static const struct view {
    int32_t window;
    const float *sinks;
} views[] = {{0, NULL}, {1, NULL}, {100, some_sinks}, {LENGTH, some_sinks}};
enum { N_VIEWS = sizeof views / sizeof views[0] };

/* Keys of positions 0.. of sequence `seq` in a pool of the given block size with shuffled blocks. */
typedef struct paged {
    float *k, *v;
    int32_t *blocks, max_blocks, block_size;
} paged;

static paged new_paged(const float *k, const float *v, int seqs, int32_t block_size) {
    paged p = {.max_blocks = (LENGTH + block_size - 1) / block_size + 1, .block_size = block_size};
    int64_t n = (int64_t)seqs * p.max_blocks;
    p.blocks = xalloc(n, sizeof *p.blocks);
    for (int64_t i = 0; i < n; i++) {
        int64_t j = rng_range(0, i);
        p.blocks[i] = p.blocks[j], p.blocks[j] = (int32_t)i;
    }
    p.k = random_floats(n * block_size * KV_WIDTH, 1e30f, 2e30f); /* rows of nobody must not be read */
    p.v = random_floats(n * block_size * KV_WIDTH, 1e30f, 2e30f);
    for (int64_t s = 0; s < seqs; s++)
        for (int64_t j = 0; j < LENGTH; j++) {
            int64_t row = (int64_t)p.blocks[s * p.max_blocks + j / block_size] * block_size + j % block_size;
            memcpy(p.k + row * KV_WIDTH, k + (s * LENGTH + j) * KV_WIDTH, KV_WIDTH * sizeof(float));
            memcpy(p.v + row * KV_WIDTH, v + (s * LENGTH + j) * KV_WIDTH, KV_WIDTH * sizeof(float));
        }
    return p;
}

static void attend(wb_device *dev, const paged *p, const struct view *view, int64_t count, const float *q,
                   const int32_t *seq, const int32_t *pos, float *out) {
    const wb_attention a = {.T = count,
                            .n_heads = HEADS,
                            .n_kv_heads = KV_HEADS,
                            .head_dim = DIM,
                            .value_dim = DIM,
                            .scale = 0.4f,
                            .window = view->window,
                            .sinks = view->sinks,
                            .q = wb_f32_rows(q),
                            .k = wb_f32_rows(p->k),
                            .v = wb_f32_rows(p->v),
                            .seq = seq,
                            .pos = pos,
                            .blocks = p->blocks,
                            .max_blocks = p->max_blocks,
                            .block_size = p->block_size};
    assert_ok(dev->attention_forward(dev, &a, wb_f32_rows(out)));
}

/* Keys [begin, end) of the first sequence become NaN. */
static void spoil_keys(const paged *p, int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; j++)
        for (int i = 0; i < KV_WIDTH; i++) {
            const int64_t row = (int64_t)p->blocks[j / p->block_size] * p->block_size + j % p->block_size;
            p->k[row * KV_WIDTH + i] = p->v[row * KV_WIDTH + i] = NAN;
        }
}

static void check_cuts(const struct view *view) {
    enum { SEQS = 2, QUERIES = SEQS * LENGTH, ROW = HEADS * DIM };
    wb_device *one = open_cpu(1), *three = open_cpu(3);
    float *k = random_floats(QUERIES * KV_WIDTH, -1, 1), *v = random_floats(QUERIES * KV_WIDTH, -1, 1);
    float *q = random_floats(QUERIES * ROW, -3, 3), *whole = floats(QUERIES * ROW),
          *cut = floats(QUERIES * ROW);
    int32_t *seq = xalloc(QUERIES, 4), *pos = xalloc(QUERIES, 4);
    for (int i = 0; i < QUERIES; i++) seq[i] = i / LENGTH, pos[i] = i % LENGTH;
    paged plain = new_paged(k, v, SEQS, 1), blocked = new_paged(k, v, SEQS, 16),
          odd = new_paged(k, v, SEQS, 7);
    attend(three, &plain, view, QUERIES, q, seq, pos, whole);
    attend(one, &blocked, view, QUERIES, q, seq, pos, cut);
    assert_same_bits(whole, cut, QUERIES * ROW, "other blocks");
    memset(cut, 0, QUERIES * ROW * sizeof(float));
    for (int64_t t = 0, n; t < QUERIES; t += n) { /* chunks of a prompt, some over the end of a sequence */
        n = rng_range(1, QUERIES - t < 90 ? QUERIES - t : 90);
        attend(three, &odd, view, n, q + t * ROW, seq + t, pos + t, cut + t * ROW);
    }
    assert_same_bits(whole, cut, QUERIES * ROW, "chunks");
    for (int i = 0; i < 40; i++) { /* decode: one query of each sequence */
        int32_t at[SEQS], in_seq[SEQS] = {0, 1};
        float two[SEQS * ROW], found[SEQS * ROW];
        for (int s = 0; s < SEQS; s++) {
            at[s] = (int32_t)rng_range(0, LENGTH - 1);
            memcpy(two + s * ROW, q + ((int64_t)s * LENGTH + at[s]) * ROW, ROW * sizeof(float));
        }
        attend(one, &odd, view, SEQS, two, in_seq, at, found);
        for (int s = 0; s < SEQS; s++)
            assert_same_bits(found + s * ROW, whole + ((int64_t)s * LENGTH + at[s]) * ROW, ROW, "decode");
    }
    /* What a query does not see has no influence, be it a NaN: keys after it, and those before its window. */
    spoil_keys(&plain, 300, LENGTH);
    attend(three, &plain, view, LENGTH, q, seq, pos, cut);
    assert_same_bits(whole, cut, 300 * ROW, "keys after the query");
    for (int i = 300 * ROW; i < 301 * ROW; i++) assert_true(isnan(cut[i]));
    if (view->window > 0 && view->window < 200) {
        spoil_keys(&odd, 0, 401);
        const int64_t first = 401 + view->window - 1;
        attend(three, &odd, view, LENGTH - first, q + first * ROW, seq + first, pos + first,
               cut + first * ROW);
        assert_same_bits(whole + first * ROW, cut + first * ROW, (LENGTH - first) * ROW,
                         "keys before the window");
    }
    free(k), free(v), free(q), free(whole), free(cut), free(seq), free(pos);
    free(plain.k), free(plain.v), free(plain.blocks), free(blocked.k), free(blocked.v), free(blocked.blocks);
    free(odd.k), free(odd.v), free(odd.blocks);
    wb_device_close(one), wb_device_close(three);
}

static void test_attention_however_it_is_cut(void **state) {
    (void)state;
    for (int i = 0; i < N_VIEWS; i++) check_cuts(&views[i]);
}

/* Gradients of one sequence do not depend on the others in the call; those of sinks go over all of them, in
 * order. */
static void check_gradients(const struct view *view) {
    enum { N = 90, ROW = HEADS * DIM };
    wb_device *one = open_cpu(1), *three = open_cpu(3);
    cpu_split.always = true;
    float *k = random_floats(N * KV_WIDTH, -1, 1), *v = random_floats(N * KV_WIDTH, -1, 1);
    float *q = random_floats(N * ROW, -1, 1), *dout = random_floats(N * ROW, -1, 1);
    float *grad[2], dsinks[2][HEADS] = {{0}};
    int32_t seq[N], pos[N], blocks[2 * N];
    for (int i = 0; i < N; i++)
        seq[i] = i >= 37, pos[i] = i < 37 ? i : i - 37, blocks[seq[i] * N + pos[i]] = i;
    for (int run = 0; run < 2; run++) {
        float *g = grad[run] = floats(N * (ROW + 2 * KV_WIDTH));
        wb_attention a = {.T = N,
                          .n_heads = HEADS,
                          .n_kv_heads = KV_HEADS,
                          .head_dim = DIM,
                          .value_dim = DIM,
                          .scale = 0.4f,
                          .window = view->window,
                          .sinks = view->sinks,
                          .q = wb_f32_rows(q),
                          .k = wb_f32_rows(k),
                          .v = wb_f32_rows(v),
                          .seq = seq,
                          .pos = pos,
                          .blocks = blocks,
                          .max_blocks = N,
                          .block_size = 1};
        if (run == 0) {
            assert_ok(three->attention_backward(
                three, &a, wb_f32_rows(dout), wb_f32_rows(g), wb_f32_rows(g + N * ROW),
                wb_f32_rows(g + N * (ROW + KV_WIDTH)), view->sinks ? dsinks[run] : NULL));
            continue;
        }
        for (int begin = 0; begin < N; begin += begin == 0 ? 37 : N) {
            a.T = begin == 0 ? 37 : N - 37;
            a.q = wb_f32_rows(q + begin * ROW), a.seq = seq + begin, a.pos = pos + begin;
            assert_ok(one->attention_backward(one, &a, wb_f32_rows(dout + begin * ROW),
                                              wb_f32_rows(g + begin * ROW), wb_f32_rows(g + N * ROW),
                                              wb_f32_rows(g + N * (ROW + KV_WIDTH)),
                                              view->sinks ? dsinks[run] : NULL));
        }
    }
    cpu_split.always = false;
    assert_same_bits(grad[0], grad[1], N * (ROW + 2 * KV_WIDTH), "attention_backward");
    assert_same_bits(dsinks[0], dsinks[1], HEADS, "gradients of sinks");
    free(k), free(v), free(q), free(dout), free(grad[0]), free(grad[1]);
    wb_device_close(one), wb_device_close(three);
}

static void test_attention_backward_of_one_sequence(void **state) {
    (void)state;
    for (int i = 0; i < N_VIEWS; i++) check_gradients(&views[i]);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_thread_count_changes_no_bit),
        cmocka_unit_test(test_a_row_alone_or_in_any_batch),
        cmocka_unit_test(test_attention_however_it_is_cut),
        cmocka_unit_test(test_attention_backward_of_one_sequence),
    };
    rng_open(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
