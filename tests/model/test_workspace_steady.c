/* test_workspace_steady.c - from the first step on, forwards and backwards of any sizes up to those of the
 * options take no memory, on host or device, and a batch beyond is refused with both numbers before anything
 * is sent. */
#include "model_fixture.h"
#include "support/alloc_fail.h"
#include "support/test_seed.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <unistd.h>

enum { MAX_T = 24, MAX_SEQS = 5, BLOCK = 4, STEPS = 14, MAX_RANKS = 2, MAX_KEPT = 3 };

static uint64_t base_seed;
static long taken; /* by the latest steps of all ranks */
static size_t taken_bytes;
static pthread_barrier_t meeting;

/* ---- one rank ------------------------------------------------------------------------------------ */

/* Memory of the steps, which is the caller's. */
typedef struct rank_state {
    wb_comm *comm;
    wb_config config;
    int threads;
    int64_t max_expert_rows;
    fixture f;
    wb_train *train;
    wb_infer *infer;
    uint8_t *ids, *native, *used, direction[MAX_T];
    float *logits, logprobs[MAX_T], temperature[MAX_T];
    int32_t tokens[MAX_T], targets[MAX_T], start[MAX_SEQS + 1], pos[MAX_T], seq[MAX_T], rows[MAX_T], *blocks;
    int64_t kept_start[MAX_T + 1];
    uint32_t kept_ids[MAX_T * MAX_KEPT];
    int32_t max_blocks;
} rank_state;

/* T tokens in n sequences, the last rows padding now and then. */
static int64_t draw_batch(rank_state *s, uint64_t *state, int step) {
    const int32_t V = s->config.vocab_size, E = s->config.router.n_experts;
    const int32_t T = step == 0 ? MAX_T : step == 1 ? 0 : random_below(state, MAX_T + 1);
    const int32_t padding = random_below(state, 4);
    for (int32_t i = 1; i < MAX_SEQS; i++)
        s->start[i] = s->start[i - 1] + random_below(state, T - s->start[i - 1] + 1);
    s->start[MAX_SEQS] = T;
    for (int32_t t = 0; t < T; t++) {
        s->tokens[t] = random_below(state, V);
        s->temperature[t] = 1 + 0.5F * random_unit(state);
        s->direction[t] = (uint8_t)(t >= T - padding ? WB_ROW_PADDING : random_below(state, 2));
        s->targets[t] = s->direction[t] == WB_ROW_PADDING ? -1 : random_below(state, V - MAX_KEPT);
        s->kept_start[t + 1] = s->kept_start[t] + (s->targets[t] < 0 ? 0 : MAX_KEPT);
        for (int32_t i = 0; i < MAX_KEPT && s->targets[t] >= 0; i++)
            s->kept_ids[s->kept_start[t] + i] = (uint32_t)(s->targets[t] + i);
    }
    for (int64_t i = 0; i < (int64_t)((size_t)T * s->f.row_bytes); i++)
        s->ids[i] = (uint8_t)(s->f.ids_dtype == WB_U8 ? i % E : 0);
    return T;
}

static void train_step(rank_state *s, uint64_t *state, int step) {
    const int64_t T = draw_batch(s, state, step);
    const bool plain = random_below(state, 2) == 0;
    const wb_train_batch batch = {.T = T,
                                  .tokens = s->tokens,
                                  .targets = s->targets,
                                  .n_seqs = MAX_SEQS,
                                  .seq_start = s->start,
                                  .temperature = plain ? NULL : s->temperature,
                                  .kept_ids = plain ? NULL : s->kept_ids,
                                  .kept_start = plain ? NULL : s->kept_start};
    const wb_routing routing = {
        .ids = s->ids, .direction = s->direction, .native = s->native, .used = s->used};
    MUST(wb_train_forward(s->train, &batch, &routing, NULL, s->logprobs));
    if (random_below(state, 2) == 0) MUST(wb_train_logits(s->train, s->logits));
    MUST(wb_train_backward(s->train, s->logprobs));
    if (step % 4 != 3) return;
    MUST(wb_train_reduce_grads(s->train));
    MUST(wb_train_zero_grads(s->train));
}

/* Each sequence is fed from its beginning. */
static void infer_step(rank_state *s, uint64_t *state, int step) {
    const int64_t T = draw_batch(s, state, step);
    int32_t states[MAX_SEQS];
    for (int32_t i = 0; i < MAX_SEQS; i++) {
        states[i] = i;
        for (int32_t t = s->start[i]; t < s->start[i + 1]; t++) {
            s->pos[t] = t - s->start[i];
            s->seq[t] = i;
            s->rows[t] = t;
        }
    }
    const wb_infer_batch batch = {
        T,      s->tokens, s->pos, s->seq, MAX_SEQS, s->max_blocks, s->blocks, states, step == 0 ? T : T / 2,
        s->rows};
    const wb_routing routing = {.ids = s->ids, .native = s->native, .used = s->used};
    const float *logits;
    MUST(wb_infer_forward(s->infer, &batch, &routing, &logits));
}

static void open_workspaces(rank_state *s) {
    wb_train_options train = wb_train_options_default();
    wb_infer_options infer = wb_infer_options_default();
    train.max_tokens = infer.max_tokens = infer.max_logits = MAX_T;
    train.max_expert_rows = infer.max_expert_rows = s->max_expert_rows;
    train.max_kept_ids = MAX_T * MAX_KEPT;
    infer.max_sequences = MAX_SEQS;
    infer.block_size = BLOCK;
    infer.max_blocks = s->max_blocks;
    infer.n_blocks = MAX_SEQS * s->max_blocks;
    MUST(wb_train_open(s->f.model, &train, &s->train));
    MUST(wb_infer_open(s->f.model, &infer, &s->infer));
}

static void close_workspaces(rank_state *s) {
    wb_infer_close(s->infer);
    wb_train_close(s->train);
}

static void run_steps(rank_state *s) {
    uint64_t state = base_seed + (uint64_t)wb_comm_rank(s->comm);
    for (int step = 0; step < STEPS; step++) {
        train_step(s, &state, step);
        infer_step(s, &state, step);
    }
}

/* The fixture's trainer is not used, and is not to make the memory that the steps' own ones should. */
static void rank_open(rank_state *s) {
    s->f = fixture_create(&s->config, base_seed, s->comm, s->threads);
    s->max_blocks = (MAX_T + BLOCK - 1) / BLOCK;
    s->blocks = take(MAX_SEQS * s->max_blocks, sizeof *s->blocks);
    for (int32_t i = 0; i < MAX_SEQS * s->max_blocks; i++) s->blocks[i] = i;
    uint8_t **const rows[] = {&s->ids, &s->native, &s->used};
    for (int i = 0; i < 3; i++) *rows[i] = take(MAX_T, s->f.row_bytes);
    s->logits = take(MAX_T * s->config.vocab_size, sizeof(float));
}

static void rank_close(rank_state *s) {
    void *const arrays[] = {s->blocks, s->ids, s->native, s->used, s->logits};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) free(arrays[i]);
    fixture_close(&s->f);
}

/* ---- all ranks ----------------------------------------------------------------------------------- */

static void *run_rank(void *argument) {
    rank_state *s = argument;
    const bool is_first = wb_comm_rank(s->comm) == 0;
    rank_open(s);
    open_workspaces(s);
    pthread_barrier_wait(&meeting);
    if (is_first) alloc_count_start();
    pthread_barrier_wait(&meeting);
    run_steps(s);
    pthread_barrier_wait(&meeting);
    if (is_first) taken = alloc_count_stop(&taken_bytes);
    pthread_barrier_wait(&meeting);
    close_workspaces(s);
    rank_close(s);
    return NULL;
}

static void on_ranks(int n_ranks, variant v, int threads, void *(*body)(void *)) {
    static rank_state ranks[MAX_RANKS];
    wb_comm *comms[MAX_RANKS];
    pthread_t running[MAX_RANKS];
    MUST(wb_comm_open_threads(n_ranks, comms));
    assert_int_equal(0, pthread_barrier_init(&meeting, NULL, (unsigned)n_ranks));
    for (int r = 0; r < n_ranks; r++) {
        ranks[r] = (rank_state){.comm = comms[r], .config = variant_config(v), .threads = threads};
        assert_int_equal(0, pthread_create(&running[r], NULL, body, &ranks[r]));
    }
    for (int r = 0; r < n_ranks; r++) pthread_join(running[r], NULL);
    for (int r = 0; r < n_ranks; r++) wb_comm_close(comms[r]);
    pthread_barrier_destroy(&meeting);
}

static void steps_take_no_memory(wb_dtype activations) {
    fixture_activations = activations;
    for (int v = 0; v < N_VARIANTS; v++)
        for (int n_ranks = 1; n_ranks <= MAX_RANKS; n_ranks++) {
            taken = -1;
            on_ranks(n_ranks, (variant)v, n_ranks == 1 ? 3 : 1, run_rank);
            if (taken != 0)
                fail_msg("variant %d on %d ranks, %s, seed %" PRIu64
                         ": expected no allocation in %d steps, found %ld, the latest of %zu bytes",
                         v, n_ranks, wb_dtype_name(activations), base_seed, STEPS, taken, taken_bytes);
        }
    fixture_activations = WB_F32;
}

static void test_steps_take_no_memory(void **unused) {
    (void)unused;
    steps_take_no_memory(WB_F32);
}

static void test_steps_of_bf16_take_no_memory(void **unused) {
    (void)unused;
    steps_take_no_memory(WB_BF16);
}

/* ---- batches beyond ------------------------------------------------------------------------------ */

static void must_refuse(wb_status expected, wb_status found, const char *text) {
    if (found == expected && strstr(wb_error_message(), text)) return;
    fprintf(stderr, "expected %s with \"%s\", found %s: %s\n", wb_status_string(expected), text,
            wb_status_string(found), found == WB_OK ? "" : wb_error_message());
    exit(1);
}

/* Rank 1 asks for too much; the others are told, and nobody has sent anything: the communicator lives. */
static void *refuse_sizes(void *argument) {
    rank_state *s = argument;
    const bool wrong = wb_comm_rank(s->comm) == 1;
    int32_t tokens[MAX_T + 1] = {0}, targets[MAX_T + 1] = {0}, start[2] = {0, MAX_T + 1};
    float logprobs[MAX_T + 1];
    uint8_t ids[(MAX_T + 1) * 64];
    const wb_routing routing = {.ids = ids};
    rank_open(s);
    open_workspaces(s);
    wb_train_batch batch = {
        .T = start[1], .tokens = tokens, .targets = targets, .n_seqs = 1, .seq_start = start};
    if (!wrong) batch.T = start[1] = MAX_T;
    must_refuse(wrong ? WB_CAPACITY : WB_PEER, wb_train_forward(s->train, &batch, &routing, NULL, logprobs),
                wrong ? "expected 0..24 tokens (max_tokens), found 25" : "rank 1");
    const int32_t pos[MAX_T + 1] = {0}, blocks[2 * MAX_SEQS * MAX_T] = {0};
    const struct {
        wb_infer_batch batch;
        const char *text;
    } cases[] = {
        {{.T = MAX_T + 1}, "tokens: expected 0..24, found 25"},
        {{.n_seqs = MAX_SEQS + 1}, "sequences: expected 0..5, found 6"},
        {{.n_seqs = 1, .max_blocks = s->max_blocks + 1}, "blocks of a sequence: expected 0..6, found 7"},
        {{.n_logits = MAX_T + 1}, "logit rows: expected 0..24, found 25"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        wb_infer_batch step = wrong ? cases[i].batch : (wb_infer_batch){0};
        const float *logits;
        step.tokens = tokens, step.pos = pos, step.seq = pos, step.blocks = blocks,
        step.states = fixture_states, step.logit_rows = pos;
        must_refuse(wrong ? WB_CAPACITY : WB_PEER, wb_infer_forward(s->infer, &step, &routing, &logits),
                    wrong ? cases[i].text : "rank 1");
    }
    MUST(wb_comm_barrier(s->comm));
    close_workspaces(s);
    rank_close(s);
    return NULL;
}

static void test_a_batch_beyond_is_refused_before_anything_is_sent(void **unused) {
    (void)unused;
    on_ranks(2, VARIANT_QWEN3_TIED, 1, refuse_sizes);
}

/* All tokens go to expert 0, which rank 0 has; its workspace is for fewer rows than they are. */
static void *refuse_rows(void *argument) {
    rank_state *s = argument;
    const bool is_full = wb_comm_rank(s->comm) == 0;
    uint64_t state = base_seed;
    s->max_expert_rows = MAX_T;
    rank_open(s);
    open_workspaces(s);
    const int64_t T = draw_batch(s, &state, 0);
    memset(s->direction, WB_ROW_FORCED, sizeof s->direction);
    for (int64_t i = 0; i < T * s->f.L * s->f.K; i++) s->ids[i] = (uint8_t)(i % s->f.K);
    const wb_train_batch batch = {
        .T = T, .tokens = s->tokens, .targets = s->targets, .n_seqs = MAX_SEQS, .seq_start = s->start};
    const wb_routing routing = {.ids = s->ids, .direction = s->direction};
    must_refuse(
        is_full ? WB_CAPACITY : WB_PEER, wb_train_forward(s->train, &batch, &routing, NULL, s->logprobs),
        is_full ? "max_expert_rows: rows for the slots of rank 0: expected at most 24, found 144" : "rank 0");
    close_workspaces(s);
    rank_close(s);
    return NULL;
}

static void test_more_rows_than_a_rank_has_room_for(void **unused) {
    (void)unused;
    on_ranks(2, VARIANT_QWEN3_TIED, 1, refuse_rows);
}

int main(int argc, char **argv) {
    if (!ALLOC_FAIL_WORKS) {
        fprintf(stderr, "skipped: a sanitizer replaces malloc\n");
        return 77;
    }
    wb_train_options smallest = wb_train_options_default();
    smallest.max_tokens = 1;
    fixture_train_options = &smallest;
    base_seed = test_seed(argc, argv);
    printf("seed %" PRIu64 "\n", base_seed);
    alarm(120);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steps_take_no_memory),
        cmocka_unit_test(test_steps_of_bf16_take_no_memory),
        cmocka_unit_test(test_a_batch_beyond_is_refused_before_anything_is_sent),
        cmocka_unit_test(test_more_rows_than_a_rank_has_room_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
