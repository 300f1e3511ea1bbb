/* test_attention_long_cuda.c - attention of bf16 on CUDA over contexts of up to 32,768 keys: within the
 * bound, and the same bits in one prefill, in chunks, in batches of 1 to 300 single tokens that share their
 * pages, beside chunks, in a graph, and under pages of 1, 16, 48, 64 and 256 rows. 77 where there is no CUDA
 * device. Argument 1 sets the seed. */
#include "cuda_memory.h"

#include "attention_problem.h"

/* Lengths on both sides of a block of 128 keys and of a split of 1,024. */
static void make_long(problem *p, int round) {
    static const int32_t shapes[][3] = {{2, 1, 128}, {4, 2, 64}, {12, 1, 128}, {3, 1, 64}, {20, 1, 64}};
    const int32_t *shape = shapes[round % 5];
    const int32_t longest = round == 0 ? 1 << 15 : (int32_t)rng_range(3000, 9000);
    const int32_t edge = (int32_t)rng_range(1, 4) * 1024 + (int32_t)rng_range(-1, 1);
    const int32_t lengths[] = {longest, edge, (int32_t)rng_range(1, 300), 1};
    *p = (problem){.n = 4, .heads = shape[0], .kv_heads = shape[1], .D = shape[2], .V = shape[2]};
    for (int s = 0; s < p->n; s++) p->lengths[s] = lengths[s], p->starts[s + 1] = p->starts[s] + lengths[s];
    const int64_t tokens = p->starts[p->n];
    p->scale = 1 / sqrtf((float)p->D);
    p->q = random_bf16(tokens * p->heads * p->D, 3), p->dout = xalloc(tokens * p->heads * p->D, 2);
    p->k = random_bf16(tokens * p->kv_heads * p->D, 1), p->v = random_bf16(tokens * p->kv_heads * p->D, 1);
    make_view(p, round, 3000);
}

static void check_some(const problem *p, const uint16_t *out) {
    for (int s = 0; s < p->n; s++) {
        const int32_t last = p->lengths[s] - 1, head = (int32_t)rng_range(0, p->heads - 1);
        check_query(p, out, s, last, head);
        for (int32_t edge = 1023; edge <= 1024; edge++)
            if (edge < last) check_query(p, out, s, edge, head);
    }
}

/* Chunks of the ends of all sequences, of one token and of many, in one call. */
static void expect_chunks(const problem *p, const pool *l, const uint16_t *whole) {
    batch b;
    open_batch(p, l, 2000, &b);
    for (int s = 0; s < p->n; s++) {
        const int32_t most = p->lengths[s] < 400 ? p->lengths[s] : 400;
        const int32_t n = rng_range(0, 1) ? (int32_t)rng_range(1, most) : 1, end = p->lengths[s];
        for (int32_t i = end - n; i < end; i++) add_token(p, s, i, &b);
        if (rng_range(0, 1)) add_token(p, -1, 0, &b);
    }
    uint16_t *out = forward(p, &b);
    expect_rows(p, &b, out, whole);
    free(out), close_batch(&b);
}

static int32_t seq_of(const problem *p, int64_t token) {
    int32_t s = 0;
    while (token >= p->starts[s + 1]) s++;
    return s;
}

/* n single tokens, or padding, of sequences of their own that share the pages of the problem's. Returns their
 * table of pages. */
static int32_t *open_singles(const problem *p, const pool *l, int32_t n, batch *b) {
    int32_t *blocks = xalloc((int64_t)n * l->max_blocks, sizeof *blocks);
    open_batch(p, l, n, b);
    for (int32_t i = 0; i < n; i++) {
        const int32_t s = (int32_t)rng_range(0, p->n - 1);
        const bool padding = rng_range(0, 7) == 0;
        add_token(p, padding ? -1 : s, (int32_t)rng_range(0, p->lengths[s] - 1), b);
        memcpy(blocks + (int64_t)i * l->max_blocks, l->blocks + (int64_t)s * l->max_blocks,
               (size_t)l->max_blocks * sizeof *blocks);
        if (!padding) b->seq[i] = i;
    }
    b->args.blocks = blocks;
    return blocks;
}

static void expect_singles(const problem *p, const pool *l, int32_t n, const uint16_t *whole) {
    batch b;
    int32_t *blocks = open_singles(p, l, n, &b);
    uint16_t *out = forward(p, &b);
    expect_rows(p, &b, out, whole);
    free(out), free(blocks), close_batch(&b);
}

/* Single tokens on both sides of a chunk of the longest sequence, more tokens than a chunk of few has. */
static void expect_mixed(const problem *p, const pool *l, const uint16_t *whole) {
    batch b, singles;
    const int32_t n = (int32_t)rng_range(2, 100), end = p->lengths[0], middle = (int32_t)rng_range(1, n - 1);
    const int32_t chunk = (int32_t)rng_range(1, end < 4000 ? end : 4000);
    int32_t *few = open_singles(p, l, n, &singles);
    int32_t *blocks = xalloc((int64_t)(n + 1) * l->max_blocks, sizeof *blocks);
    memcpy(blocks, few, (size_t)n * (size_t)l->max_blocks * sizeof *blocks);
    memcpy(blocks + (int64_t)n * l->max_blocks, l->blocks, (size_t)l->max_blocks * sizeof *blocks);
    open_batch(p, l, n + chunk, &b);
    for (int32_t i = 0; i < n; i++) {
        for (int32_t j = end - chunk; i == middle && j < end; j++) {
            add_token(p, 0, j, &b);
            b.seq[b.T - 1] = n;
        }
        const int32_t s = singles.token[i] < 0 ? -1 : seq_of(p, singles.token[i]);
        add_token(p, s, singles.pos[i], &b);
        if (s >= 0) b.seq[b.T - 1] = i;
    }
    b.args.blocks = blocks;
    uint16_t *out = forward(p, &b);
    expect_rows(p, &b, out, whole);
    free(out), free(blocks), free(few), close_batch(&b), close_batch(&singles);
}

static void test_long_contexts_are_the_same_in_any_company(void **state) {
    (void)state;
    for (int round = 0; round < 8; round++) {
        static const int32_t sizes[] = {64, 16, 256, 48, 1};
        problem p;
        pool in_order;
        batch b;
        make_long(&p, round);
        make_pool_in(&p, 1, true, &in_order);
        open_whole(&p, &in_order, &b);
        uint16_t *whole = forward(&p, &b);
        float *log_sums = b.log_sums;
        b.log_sums = xalloc(b.T * p.heads, sizeof *b.log_sums);
        p.log_sums = log_sums;
        check_some(&p, whole);
        for (int way = 0; way < 5; way++) {
            pool l;
            make_pool(&p, sizes[way], &l);
            b.args.k.data = l.k, b.args.v.data = l.v, b.args.blocks = l.blocks;
            b.args.max_blocks = l.max_blocks, b.args.block_size = l.size;
            uint16_t *out = way < 2 || way == 4 ? forward(&p, &b) : NULL;
            if (out) expect_rows(&p, &b, out, whole);
            expect_chunks(&p, &l, whole);
            expect_mixed(&p, &l, whole);
            static const int32_t batches[] = {1, 3, 17, 64, 300};
            for (int i = 0; i < 5; i++) expect_singles(&p, &l, batches[i], whole);
            if (out) free(out);
            free_pool(&l);
        }
        free(whole), free(log_sums), close_batch(&b), free_pool(&in_order), free_problem(&p);
    }
}

/* A graph of decoding, launched again with other positions. */
static void test_a_graph_gives_the_same(void **state) {
    (void)state;
    enum { N = 40 };
    problem p;
    pool l;
    batch b, all;
    void *graph = NULL;
    make_long(&p, 1);
    make_pool(&p, 16, &l);
    open_whole(&p, &l, &all);
    const int64_t width = p.heads * p.D;
    uint16_t *whole = forward(&p, &all), *out = poisoned(N * width);
    int32_t *blocks = open_singles(&p, &l, N, &b);
    p.log_sums = all.log_sums, b.args.log_sums = b.log_sums;
    /* the first call makes scratch */
    assert_ok(cuda->attention_forward(cuda, &b.args, (wb_rows){out, WB_BF16}));
    assert_int_equal(cuda->graph_begin(cuda), WB_OK);
    assert_int_equal(cuda->attention_forward(cuda, &b.args, (wb_rows){out, WB_BF16}), WB_OK);
    assert_ok(cuda->graph_end(cuda, &graph));
    for (int round = 0; round < 5; round++) {
        for (int64_t i = 0; i < N; i++) {
            if (b.token[i] < 0) continue;
            const int64_t to = rng_range(b.token[i] - b.pos[i], b.token[i]);
            b.pos[i] += (int32_t)(to - b.token[i]), b.token[i] = to;
            memcpy(b.q + i * width, p.q + to * width, (size_t)width * 2);
        }
        for (int64_t i = 0; i < N * width; i++) out[i] = 0x7fc3;
        for (int64_t i = 0; i < N * p.heads; i++) b.log_sums[i] = NAN;
        assert_ok(cuda->graph_launch(cuda, graph));
        expect_rows(&p, &b, out, whole);
    }
    cuda->graph_free(cuda, graph);
    free(out), free(whole), free(blocks), close_batch(&b), close_batch(&all), free_pool(&l);
    free_problem(&p);
}

/* The kernel of single tokens begins before the one before it has ended, and reads what that one writes only
 * behind its end: each call has the results of the one before as its queries. */
static void test_a_chain_of_calls_waits(void **state) {
    (void)state;
    enum { N = 200, CALLS = 4 };
    problem p;
    pool l;
    batch b;
    void *graph = NULL;
    uint16_t *out[CALLS], *expected[CALLS];
    make_long(&p, 1);
    make_pool(&p, 16, &l);
    const int64_t size = N * p.heads * p.D;
    int32_t *blocks = open_singles(&p, &l, N, &b);
    wb_attention calls[CALLS];
    for (int i = 0; i < CALLS; i++) {
        out[i] = poisoned(size), expected[i] = xalloc(size, sizeof *expected[i]);
        calls[i] = b.args, calls[i].one_a_sequence = true;
        if (i > 0) calls[i].q.data = out[i - 1];
        assert_ok(cuda->attention_forward(cuda, &calls[i], (wb_rows){out[i], WB_BF16}));
        memcpy(expected[i], out[i], (size_t)size * sizeof *out[i]);
    }
    assert_int_equal(cuda->graph_begin(cuda), WB_OK);
    for (int i = 0; i < CALLS; i++)
        assert_int_equal(cuda->attention_forward(cuda, &calls[i], (wb_rows){out[i], WB_BF16}), WB_OK);
    assert_ok(cuda->graph_end(cuda, &graph));
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < CALLS; i++) memset(out[i], 0xff, (size_t)size * sizeof *out[i]);
        assert_ok(cuda->graph_launch(cuda, graph));
        for (int i = 0; i < CALLS; i++)
            assert_memory_equal(out[i], expected[i], (size_t)size * sizeof *out[i]);
    }
    cuda->graph_free(cuda, graph);
    for (int i = 0; i < CALLS; i++) free(out[i]), free(expected[i]);
    free(blocks), close_batch(&b), free_pool(&l), free_problem(&p);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_long_contexts_are_the_same_in_any_company),
        cmocka_unit_test(test_a_graph_gives_the_same),
        cmocka_unit_test(test_a_chain_of_calls_waits),
    };
    rng_open(argc, argv);
    open_cuda();
    if (!cuda) return 77;
    const int failures = cmocka_run_group_tests(tests, NULL, NULL);
    wb_device_close(cuda);
    return failures;
}
