/* test_padding.c - a batch of inference rounded up by padding rows gives all other rows the same bits, and
 * leaves nothing of padding in the pool, on one rank and on two. */
#include "infer_state.h"
#include "support/test_seed.h"
#include "variant_ranks.h"

enum { N_SEQS = 3, LONGEST = 12, MAX_T = 40, BLOCK = 3, BLOCKS = LONGEST / BLOCK, STEPS = 8, MAX_RANKS = 2 };

static uint64_t base_seed;

/* One of two inferences over the same model, one with padding. */
typedef struct side {
    wb_infer *infer;
    uint8_t *ids, direction[MAX_T];
    const float *logits;
} side;

/* A batch before the padding. */
typedef struct step {
    int64_t T, n_logits;
    int32_t tokens[MAX_T], pos[MAX_T], seq[MAX_T], rows[MAX_T];
} step;

static void must_be(bool held, const char *what) {
    if (held) return;
    fprintf(stderr, "seed %" PRIu64 ": expected %s\n", base_seed, what);
    exit(1);
}

static const int32_t blocks[N_SEQS * BLOCKS] = {11, 2, 5, 0, 1, 3, 4, 6, 10, 8, 7, 9};

static void poison_pool(const fixture *f, wb_infer *infer) {
    for (int32_t l = 0; l < wb_model_config(f->model)->n_layers; l++)
        for (int32_t i = 0; i < infer->pools[l].shape.n_tables; i++)
            memset(infer->pools[l].tables[i].data, 0xA5, infer->pools[l].tables[i].bytes);
}

static void must_have_same_pool(const fixture *f, const side *a, const side *b) {
    for (int32_t l = 0; l < wb_model_config(f->model)->n_layers; l++)
        for (int32_t i = 0; i < a->infer->pools[l].shape.n_tables; i++)
            must_be(memcmp(a->infer->pools[l].tables[i].data, b->infer->pools[l].tables[i].data,
                           a->infer->pools[l].tables[i].bytes) == 0,
                    "the same pool with padding");
    const wb_sequence_pool *pool = &a->infer->sequences;
    for (int32_t i = 0; pool->bytes > 0 && i < N_SEQS; i++)
        must_be(pool->marks[i].position <= 0 ||
                    memcmp((const char *)pool->states.data + i * pool->bytes,
                           (const char *)b->infer->sequences.states.data + i * pool->bytes,
                           (size_t)pool->bytes) == 0,
                "the same states with padding");
}

static side side_open(fixture *f) {
    side s = {.ids = take(MAX_T, f->row_bytes)};
    wb_infer_options options = wb_infer_options_default();
    options.n_blocks = N_SEQS * BLOCKS;
    options.block_size = BLOCK;
    options.max_blocks = BLOCKS;
    options.max_tokens = MAX_T;
    MUST(wb_infer_open(f->model, &options, &s.infer));
    poison_pool(f, s.infer);
    return s;
}

static void side_close(side *s) {
    wb_infer_close(s->infer);
    free(s->ids);
}

/* `padding` rows of anything behind the step; 0xFF in their ids. */
static wb_status run(const fixture *f, side *s, const step *from, int64_t padding, bool with_direction) {
    step p = *from;
    memset(s->ids, 0xFF, (size_t)MAX_T * f->row_bytes);
    for (int64_t t = p.T; t < p.T + padding; t++) {
        p.tokens[t] = -7;
        p.pos[t] = 1 << 30;
        p.seq[t] = -1;
    }
    for (int64_t t = 0; t < MAX_T; t++) s->direction[t] = t < p.T ? WB_ROW_NATIVE : WB_ROW_PADDING;
    int32_t states[N_SEQS];
    for (int32_t q = 0; q < N_SEQS; q++) states[q] = N_SEQS - 1 - q;
    const wb_infer_batch batch = {p.T + padding, p.tokens, p.pos,  p.seq,      N_SEQS,
                                  BLOCKS,        blocks,   states, p.n_logits, p.rows};
    const wb_routing routing = {.ids = s->ids, .direction = with_direction ? s->direction : NULL};
    return wb_infer_forward(s->infer, &batch, &routing, &s->logits);
}

/* A piece of each sequence that is not at its end, or nothing at all. */
static step draw_step(const rank_state *s, uint64_t *state, int32_t fed[N_SEQS]) {
    step p = {0};
    for (int32_t q = 0; q < N_SEQS; q++) {
        const int32_t left = LONGEST - fed[q],
                      n = left == 0 ? 0 : random_below(state, left < 4 ? left + 1 : 4);
        for (int32_t i = 0; i < n; i++, p.T++) {
            p.tokens[p.T] = random_below(state, s->config.vocab_size);
            p.pos[p.T] = fed[q]++;
            p.seq[p.T] = q;
            if (random_below(state, 2) == 0) p.rows[p.n_logits++] = (int32_t)p.T;
        }
    }
    return p;
}

static void *run_rank(void *argument) {
    rank_state *s = argument;
    fixture f = fixture_create(&s->config, base_seed, s->comm, 1);
    side plain = side_open(&f), padded = side_open(&f);
    uint64_t state = base_seed + (uint64_t)wb_comm_rank(s->comm);
    int32_t fed[N_SEQS] = {0};
    for (int i = 0; i < STEPS; i++) {
        const step p = draw_step(s, &state, fed);
        const int64_t padding = random_below(&state, (int32_t)(MAX_T - p.T) + 1);
        MUST(run(&f, &plain, &p, 0, false));
        MUST(run(&f, &padded, &p, padding, random_below(&state, 2) == 0));
        must_be(memcmp(plain.logits, padded.logits,
                       (size_t)(p.n_logits * s->config.vocab_size) * sizeof(float)) == 0,
                "the same logits with padding");
        must_be(all_finite(p.n_logits * s->config.vocab_size, padded.logits), "logits");
        must_be(memcmp(plain.ids, padded.ids, (size_t)p.T * f.row_bytes) == 0, "the same ids with padding");
        must_have_same_pool(&f, &plain, &padded);
    }
    side_close(&padded);
    side_close(&plain);
    fixture_close(&f);
    return NULL;
}

static void test_padding_changes_nothing(void **unused) {
    (void)unused;
    on_every_variant(MAX_RANKS, run_rank);
}

static void must_refuse(wb_status found, const char *text) {
    assert_int_equal(found, WB_INVALID_ARGUMENT);
    if (!strstr(wb_error_message(), text)) fail_msg("expected %s, found %s", text, wb_error_message());
}

static void test_padding_elsewhere_is_refused(void **unused) {
    (void)unused;
    wb_comm *comm;
    MUST(wb_comm_open_self(&comm));
    const wb_config config = variant_config(VARIANT_QWEN3);
    fixture f = fixture_create(&config, base_seed, comm, 1);
    side s = side_open(&f);
    step p = {.T = 3, .n_logits = 1, .tokens = {1, 2, 3}, .pos = {0, 0, 0}, .seq = {0, -1, 1}};
    must_refuse(run(&f, &s, &p, 0, false), "token 2: expected padding to the end, found sequence 1");
    p.seq[2] = -1;
    p.rows[0] = 1;
    must_refuse(run(&f, &s, &p, 0, false), "logit row 0");
    p.rows[0] = 0;
    must_refuse(run(&f, &s, &p, 2, true), "expected padding from token 1 on");
    MUST(run(&f, &s, &p, 2, false));
    side_close(&s);
    fixture_close(&f);
    wb_comm_close(comm);
}

int main(int argc, char **argv) {
    base_seed = test_seed(argc, argv);
    printf("seed %" PRIu64 "\n", base_seed);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_padding_changes_nothing),
                                       cmocka_unit_test(test_padding_elsewhere_is_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
