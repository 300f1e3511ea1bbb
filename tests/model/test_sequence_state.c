/* test_sequence_state.c - state of a fixed size that layers keep of sequences: whatever batches a sequence is
 * fed in, whoever had its state before and however often it begins again, the bits are those of training.
 *
 * Each round is made from its seed; `test_sequence_state --seed N` runs one of them. */
#include "support/temp_files.h"

#include "infer_state.h"
#include "made_up_fixture.h"

enum { N_SEQS = 7, LONGEST = 30, BLOCK = 4, BLOCKS = 8, MAX_T = 64, N_ROUNDS = 60, FIRST_SEED = 900 };

static uint64_t first_seed = FIRST_SEED, n_rounds = N_ROUNDS;

/* ---- a model, sequences, and training's logits ---------------------------------------------------- */

typedef struct rig {
    uint64_t seed; /* of the round */
    wb_comm *comm;
    wb_config config;
    fixture f;
    corpus c;
    results r; /* all sequences, packed, every row choosing */
    wb_infer *infer;
    int32_t n_states;
    int32_t blocks[N_SEQS * BLOCKS]; /* those of each sequence, which it keeps */
    uint8_t *ids;
} rig;

static void open_infer(rig *g, int32_t n_states) {
    wb_infer_options options = wb_infer_options_default();
    options.n_blocks = N_SEQS * BLOCKS;
    options.block_size = BLOCK;
    options.max_sequences = N_SEQS;
    options.max_tokens = options.max_logits = MAX_T;
    options.n_states = g->n_states = n_states;
    MUST(wb_infer_open(g->f.model, &options, &g->infer));
}

static rig rig_open(uint64_t *state) {
    const int32_t order[N_SEQS] = {3, 0, 6, 1, 5, 2, 4};
    rig g = {0};
    MUST(made_up_config(&g.config));
    MUST(wb_comm_open_self(&g.comm));
    g.f = made_up_fixture(g.comm, &g.config, random_bits(state), NULL);
    g.c = corpus_random(&g.config, N_SEQS, LONGEST, state);
    g.r = results_new(&g.f, &g.c);
    train_pass(&g.f, &g.c, N_SEQS, order, (direction){NULL, NULL}, NULL, &g.r);
    for (int32_t i = 0; i < N_SEQS * BLOCKS; i++) g.blocks[i] = i;
    shuffle(state, N_SEQS * BLOCKS, g.blocks);
    g.ids = take(MAX_T, g.f.row_bytes);
    return g;
}

static void rig_close(rig *g) {
    wb_infer_close(g->infer);
    free(g->ids);
    results_free(&g->r);
    corpus_free(&g->c);
    fixture_close(&g->f);
    wb_comm_close(g->comm);
}

/* ---- batches -------------------------------------------------------------------------------------- */

/* Rows of a batch; logits of all tokens are wanted. */
typedef struct step {
    int64_t T, n_logits;
    int32_t tokens[MAX_T], pos[MAX_T], seq[MAX_T], rows[MAX_T], of_corpus[MAX_T];
    int32_t states[N_SEQS];
} step;

/* n tokens of sequence s from position `start` on, whose state has this number. */
static void add(const rig *g, step *p, int32_t s, int32_t start, int32_t n, int32_t number) {
    for (int32_t i = start; i < start + n; i++) {
        const int64_t t = p->T++;
        p->of_corpus[t] = g->c.start[s] + i;
        p->tokens[t] = g->c.tokens[p->of_corpus[t]];
        p->pos[t] = i;
        p->seq[t] = s;
        p->rows[p->n_logits++] = (int32_t)t;
    }
    p->states[s] = number;
}

static wb_status feed(rig *g, const step *p, const float **logits_out) {
    const wb_infer_batch batch = {.T = p->T,
                                  .tokens = p->tokens,
                                  .pos = p->pos,
                                  .seq = p->seq,
                                  .n_seqs = N_SEQS,
                                  .max_blocks = BLOCKS,
                                  .blocks = g->blocks,
                                  .states = p->states,
                                  .n_logits = p->n_logits,
                                  .logit_rows = p->rows};
    const wb_routing routing = {.ids = g->ids};
    return wb_infer_forward(g->infer, &batch, &routing, logits_out);
}

/* Training's bits for each token. */
static void must_feed(rig *g, const step *p) {
    const int64_t V = g->config.vocab_size;
    const float *logits;
    MUST(feed(g, p, &logits));
    for (int64_t t = 0; t < p->n_logits; t++)
        if (memcmp(logits + t * V, g->r.logits + p->of_corpus[t] * V, (size_t)V * sizeof(float)) != 0)
            fail_msg("seed %" PRIu64 ": sequence %d, position %d, state %d: the logits are not training's",
                     g->seed, p->seq[t], p->pos[t], p->states[p->seq[t]]);
}

/* ---- random rounds -------------------------------------------------------------------------------- */

/* Who has which state, and how far it is. */
typedef struct round_state {
    uint64_t state;
    rig g;
    int32_t n_free, free[N_SEQS], number[N_SEQS], fed[N_SEQS], n_ended;
    bool has_state[N_SEQS], ended[N_SEQS];
    int32_t n_reused, n_again;
    bool used[N_SEQS]; /* states that somebody had before */
} round_state;

static int32_t length(const round_state *r, int32_t s) {
    return r->g.c.start[s + 1] - r->g.c.start[s];
}

static void release(round_state *r, int32_t s) {
    r->has_state[s] = false;
    r->free[r->n_free++] = r->number[s];
    r->fed[s] = 0;
}

/* A sequence without a state gets any of those that are free; now and then one loses its own. */
static bool holds_state(round_state *r, int32_t s) {
    if (r->ended[s]) return false;
    if (r->has_state[s] && random_below(&r->state, 12) == 0) {
        r->n_again += r->fed[s] > 0;
        release(r, s);
        return false;
    }
    if (r->has_state[s]) return true;
    if (r->n_free == 0) return false;
    const int32_t i = random_below(&r->state, r->n_free), number = r->free[i];
    r->free[i] = r->free[--r->n_free];
    r->n_reused += r->used[number];
    r->used[number] = r->has_state[s] = true;
    r->number[s] = number;
    return true;
}

/* Pieces of some sequences in any order, and padding. */
static void draw_step(round_state *r, step *p) {
    int32_t order[N_SEQS];
    memset(p, 0, sizeof *p);
    for (int32_t s = 0; s < N_SEQS; s++) order[s] = s;
    shuffle(&r->state, N_SEQS, order);
    for (int32_t i = 0; i < N_SEQS; i++) {
        const int32_t s = order[i], room = MAX_T - (int32_t)p->T;
        if (random_below(&r->state, 3) == 0 || !holds_state(r, s) || room == 0) continue;
        const int32_t left = length(r, s) - r->fed[s];
        int32_t n = 1 + (random_below(&r->state, 2) == 0 ? 0 : random_below(&r->state, left));
        if (n > room) n = room;
        add(&r->g, p, s, r->fed[s], n, r->number[s]);
        r->fed[s] += n;
    }
    for (int32_t n = random_below(&r->state, 4); n > 0 && p->T < MAX_T; n--) p->seq[p->T++] = -1;
}

static void run_round(uint64_t seed, int32_t *n_reused, int32_t *n_again) {
    round_state r = {.state = wb_mix64(seed)};
    r.g = rig_open(&r.state);
    r.g.seed = seed;
    open_infer(&r.g, 1 + random_below(&r.state, N_SEQS));
    for (int32_t i = 0; i < r.g.n_states; i++) r.free[r.n_free++] = i;
    while (r.n_ended < N_SEQS) {
        step p;
        draw_step(&r, &p);
        must_feed(&r.g, &p);
        for (int32_t s = 0; s < N_SEQS; s++) {
            if (!r.has_state[s] || r.fed[s] < length(&r, s)) continue;
            release(&r, s);
            r.ended[s] = true;
            r.n_ended++;
        }
    }
    *n_reused += r.n_reused;
    *n_again += r.n_again;
    rig_close(&r.g);
}

static void test_any_batches_give_the_bits_of_training(void **unused) {
    int32_t n_reused = 0, n_again = 0;
    (void)unused;
    for (uint64_t i = 0; i < n_rounds; i++) run_round(first_seed + i, &n_reused, &n_again);
    if (n_rounds == N_ROUNDS) assert_true(n_reused > N_ROUNDS && n_again > N_ROUNDS);
}

/* ---- batches that are refused --------------------------------------------------------------------- */

static void refuse(rig *g, const step *p, const char *text) {
    const float *logits;
    assert_int_equal(feed(g, p, &logits), WB_INVALID_ARGUMENT);
    assert_message_has(text);
}

/* Sequences of a length that the cases need. */
static rig rig_for_cases(void) {
    uint64_t state = 12;
    rig g = rig_open(&state);
    while (g.c.start[2] - g.c.start[1] < 12 || g.c.start[1] < 12) {
        rig_close(&g);
        g = rig_open(&state);
    }
    open_infer(&g, 3);
    return g;
}

static void test_states_that_do_not_fit_are_named(void **unused) {
    (void)unused;
    rig g = rig_for_cases();
    step p = {0};
    add(&g, &p, 0, 0, 4, 3);
    refuse(&g, &p, "sequence 0: expected a state in 0..2, found 3");
    p.states[0] = 2;
    add(&g, &p, 1, 0, 2, 2);
    refuse(&g, &p, "sequence 1: expected a state of its own, found 2, which another sequence has");
    p.states[1] = 0;
    p.pos[2] = 7;
    p.pos[3] = 8;
    refuse(&g, &p, "token 2 of sequence 0: expected position 2, since its state leaves none out, found 7");
    p.pos[2] = 2;
    p.pos[3] = 3;
    must_feed(&g, &p);

    step next = {0};
    add(&g, &next, 0, 5, 1, 2);
    refuse(&g, &next, "sequence 0: expected position 0 or 4, where its state 2 stands, found 5");
    next = (step){0};
    add(&g, &next, 0, 4, 1, 2);
    add(&g, &next, 1, 2, 1, 0);
    add(&g, &next, 0, 5, 1, 2);
    refuse(&g, &next, "token 2: expected the tokens of sequence 0 side by side");
    next.T = next.n_logits = 2;
    must_feed(&g, &next); /* what was refused has changed nothing */
    rig_close(&g);
}

static void test_a_batch_without_states_is_refused(void **unused) {
    (void)unused;
    rig g = rig_for_cases();
    const int32_t zero = 0;
    const wb_infer_batch batch = {.T = 1,
                                  .tokens = &zero,
                                  .pos = &zero,
                                  .seq = &zero,
                                  .n_seqs = 1,
                                  .max_blocks = BLOCKS,
                                  .blocks = g.blocks};
    const wb_routing routing = {.ids = g.ids};
    const float *logits;
    assert_int_equal(wb_infer_forward(g.infer, &batch, &routing, &logits), WB_INVALID_ARGUMENT);
    assert_message_has("batch: states: expected 1, since layers keep 256 bytes of each sequence, found NULL");
    rig_close(&g);
}

/* A state that was fed is not what its caller believes it to be: no token of the failed step may be taken
 * twice, and sequences that were not in it go on. */
static void test_after_a_failure_a_sequence_begins_again(void **unused) {
    (void)unused;
    rig g = rig_for_cases();
    step p = {0}, failing = {0}, again = {0};
    add(&g, &p, 0, 0, 3, 1);
    add(&g, &p, 1, 0, 3, 0);
    must_feed(&g, &p);
    add(&g, &failing, 0, 3, 2, 1);
    uint8_t *const ids = g.ids;
    const float *logits;
    g.ids = NULL;
    assert_int_equal(feed(&g, &failing, &logits), WB_INVALID_ARGUMENT);
    g.ids = ids;
    refuse(&g, &failing, "sequence 0: expected position 0, since a forward with its state 1 failed, found 3");
    add(&g, &again, 1, 3, 5, 0);
    add(&g, &again, 0, 0, 5, 1);
    must_feed(&g, &again);
    rig_close(&g);
}

/* ---- memory --------------------------------------------------------------------------------------- */

static size_t part(const wb_memory *memory, const char *name) {
    for (int32_t i = 0; i < memory->n_parts; i++)
        if (strcmp(memory->parts[i].name, name) == 0) return memory->parts[i].bytes;
    return 0;
}

static void test_memory_is_measured_as_a_part_of_its_own(void **unused) {
    (void)unused;
    rig g = rig_for_cases();
    const wb_config usual = variant_config(VARIANT_QWEN3);
    wb_infer_options options = wb_infer_options_default();
    wb_memory memory;
    options.n_blocks = 1;
    options.max_sequences = 5;
    assert_int_equal(wb_infer_sequence_bytes(g.infer), 2 * 128); /* 17 floats in each of two layers */
    MUST(wb_infer_measure_over(g.f.model, &options, &memory));
    assert_int_equal(part(&memory, "sequence states"), 5 * 256);
    options.n_states = 9;
    MUST(wb_infer_measure_over(g.f.model, &options, &memory));
    assert_int_equal(part(&memory, "sequence states"), 9 * 256);
    wb_infer_close(g.infer);
    MUST(wb_infer_open(g.f.model, &options, &g.infer));
    assert_int_equal(memory.device_bytes, g.infer->memory.arena.bytes);

    const wb_model_options model = wb_model_options_default();
    MUST(wb_infer_measure(&usual, &model, &options, 1, 0, &memory));
    for (int32_t i = 0; i < memory.n_parts; i++)
        assert_string_not_equal(memory.parts[i].name, "sequence states");
    options.n_states = -1;
    assert_int_equal(wb_infer_measure_over(g.f.model, &options, &memory), WB_INVALID_ARGUMENT);
    assert_message_has("n_states: expected at least 0, found -1");
    rig_close(&g);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_batches_give_the_bits_of_training),
        cmocka_unit_test(test_states_that_do_not_fit_are_named),
        cmocka_unit_test(test_a_batch_without_states_is_refused),
        cmocka_unit_test(test_after_a_failure_a_sequence_begins_again),
        cmocka_unit_test(test_memory_is_measured_as_a_part_of_its_own),
    };
    if (argc == 3 && strcmp(argv[1], "--seed") == 0) {
        first_seed = strtoull(argv[2], NULL, 10);
        n_rounds = 1;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
