/* test_same_bits.c - in bf16, what a policy rolled out is what its trainer computes, bit for bit: under
 * replay the training forward has the log-probabilities of the engine, so that KL(rollout || trainer) is
 * exactly 0, and chooses by itself the experts that the engine captured; every third model has experts
 * without weights and layers of their own K. With the prefix cache, drafts, prompts in chunks that end
 * anywhere and graphs of steps, on one rank and on two, on the CPU and, where there is one, on a GPU: there
 * with contexts beyond a split of attention and the sizes of the tensor cores' kernels.
 *
 *     test_same_bits [SEED [SEEDS]]
 *
 * Two ranks have a GPU each and NCCL where they can, and else share one. */
#include "engine_rig.h"
#include "support/test_seed.h"
#include "wb_check.h"
#include "wb_replay.h"

#ifdef WB_HAVE_NCCL
#include "wb_comm_nccl.h"
#endif

#include <math.h>
#include <pthread.h>

enum { REQUESTS = 10, MAX_TEXT = 1450, VOCABULARY = 131, MAX_RANKS = 2 };

static uint64_t first_seed, n_seeds = 3;

/* ---- a trial --------------------------------------------------------------------------------------- */

typedef struct sizes {
    int32_t hidden, head_dim, width;
    uint32_t text, tail, new_tokens; /* tokens: of a common beginning, of a prompt's own, sampled */
} sizes;

static const sizes of_cpu = {32, 8, 16, 40, 12, 10}, of_gpu = {256, 128, 128, 1150, 200, 24};

typedef struct request {
    char rid[16];
    uint32_t prompt[MAX_TEXT];
    wb_request request;
} request;

typedef struct rank_run {
    uint64_t seed;
    bool cuda;
    sizes sizes;
    wb_comm *control, *comm;
    wb_device *device;
    wb_model *model;
    request *requests; /* [REQUESTS] */
    wb_completion *done[REQUESTS];
    wb_engine_stats stats;
    int64_t T; /* tokens that the trainer is fed, less one of each record */
    wb_replay_metrics metrics;
    int64_t other_logprobs, other_choices; /* whose bits differ */
    wb_status status;
    char message[256];
} rank_run;

static wb_config config_of_run(const rank_run *run) {
    const wb_family family = run->seed % 2 ? WB_FAMILY_QWEN3_MOE : WB_FAMILY_OLMOE;
    wb_config c = tiny_config(family, 24, 3, 3, family == WB_FAMILY_QWEN3_MOE ? 2 : 0);
    c.hidden_size = run->sizes.hidden;
    c.head_dim = run->sizes.head_dim;
    c.n_heads = family == WB_FAMILY_QWEN3_MOE ? 4 : run->sizes.hidden / run->sizes.head_dim;
    c.n_kv_heads = family == WB_FAMILY_QWEN3_MOE ? 2 : c.n_heads;
    c.expert_width = run->sizes.width;
    c.dense_width = 2 * run->sizes.width;
    c.vocab_size = VOCABULARY;
    c.max_positions = MAX_TEXT + 64;
    if (run->seed % 3 == 0) {
        c.n_weightless = 7;
        memcpy(c.layer_top_k, (const uint32_t[]){3, 1, 2}, 3 * sizeof *c.layer_top_k);
    }
    return c;
}

static wb_status open_run(rank_run *run) {
    const int rank = wb_comm_rank(run->control), gpus = wb_device_count_cuda();
    const wb_config c = config_of_run(run);
    wb_model_options options = wb_model_options_default();
    run->comm = run->control;
#ifdef WB_HAVE_NCCL
    if (run->cuda && wb_comm_size(run->control) > 1 && gpus >= wb_comm_size(run->control))
        WB_TRY(wb_comm_open_nccl(run->control, rank, false, &run->comm));
#endif
    if (run->cuda)
        WB_TRY(wb_device_open_cuda(rank % gpus, NULL, &run->device));
    else
        WB_TRY(wb_device_open_cpu(1, &run->device));
    options.device = run->device;
    options.comm = run->comm;
    options.dtype = options.activations = WB_BF16;
    return wb_model_create(&c, run->seed, 3.0F / sqrtf((float)c.hidden_size), &options, &run->model);
}

static void close_run(rank_run *run) {
    for (int i = 0; i < REQUESTS; i++) wb_completion_free(run->done[i]);
    wb_model_close(run->model);
    if (run->comm != run->control) wb_comm_close(run->comm);
    wb_device_close(run->device);
    free(run->requests);
}

/* ---- rollout --------------------------------------------------------------------------------------- */

/* A token, before each token of the vocabulary and at the end: whatever is sampled next, the last two tokens
 * stand there twice, so that there are drafts. Returns how many tokens. */
static uint32_t list_continuations(dice *d, uint32_t *text) {
    const uint32_t token = pick(d, 0, VOCABULARY - 1);
    for (uint32_t next = 0; next < VOCABULARY; next++) {
        text[2 * next] = token;
        text[2 * next + 1] = next;
    }
    text[2 * VOCABULARY] = token;
    return 2 * VOCABULARY + 1;
}

/* A prompt begins with as much of one of two texts as it likes. The last one, which others are least beside,
 * is sure to have drafts. */
static void make_request(rank_run *run, dice *d, int number, const uint32_t (*texts)[MAX_TEXT]) {
    request *r = &run->requests[number];
    const bool drafted = number == REQUESTS - 1;
    const uint32_t shared = pick(d, run->sizes.text / 2, run->sizes.text);
    uint32_t tail = pick(d, 1, run->sizes.tail);
    snprintf(r->rid, sizeof r->rid, "%d", number);
    memcpy(r->prompt, texts[number % 2], shared * sizeof *r->prompt);
    for (uint32_t t = 0; t < tail; t++) r->prompt[shared + t] = pick(d, 0, VOCABULARY - 1);
    if (drafted) tail = list_continuations(d, r->prompt + shared);
    r->request = wb_request_default();
    r->request.rid = r->rid;
    r->request.n_tokens = shared + tail;
    r->request.tokens = r->prompt;
    r->request.max_tokens = drafted ? run->sizes.new_tokens : pick(d, 1, run->sizes.new_tokens);
    r->request.temperature = number % 3 ? 1.0F : 0.0F;
    r->request.seed = roll(d);
}

static wb_status step_dry(rank_run *run, wb_engine *engine, dice *d) {
    int submitted = 0;
    for (bool busy = true; busy || submitted < REQUESTS;) {
        while (submitted < REQUESTS && (submitted == 0 || pick(d, 0, 2) > 0))
            WB_TRY(wb_engine_submit(engine, &run->requests[submitted++].request));
        WB_TRY(wb_engine_step(engine, &busy));
    }
    for (wb_completion *c; (c = wb_engine_poll(engine));) run->done[atoi(c->record.rid)] = c;
    run->stats = wb_engine_get_stats(engine);
    return WB_OK;
}

static wb_status roll_out(rank_run *run) {
    /* The texts are those of all ranks, the prompts a rank's own. */
    dice d = {run->seed}, own = {run->seed + 1000 * (uint64_t)(1 + wb_comm_rank(run->control))};
    uint32_t texts[2][MAX_TEXT];
    wb_engine_options options = wb_engine_options_default();
    wb_engine *engine = NULL;
    for (int i = 0; i < 2 * MAX_TEXT; i++) texts[i / MAX_TEXT][i % MAX_TEXT] = pick(&d, 0, VOCABULARY - 1);
    run->requests = take(REQUESTS, sizeof *run->requests);
    for (int i = 0; i < REQUESTS; i++) make_request(run, &own, i, (const uint32_t(*)[MAX_TEXT])texts);
    options.block_size = (int32_t)pick(&d, 4, 20);
    options.n_blocks = (int32_t)(6 * (MAX_TEXT / (uint32_t)options.block_size + 2));
    options.max_batch_tokens = (int32_t)pick(&d, run->sizes.text / 8, run->sizes.text);
    options.max_running = 6;
    options.prefix_cache = true;
    options.max_drafts = 3;
    WB_TRY(wb_engine_open(run->model, &options, &engine));
    const wb_status status = step_dry(run, engine, &own);
    wb_engine_close(engine);
    return status;
}

/* ---- training -------------------------------------------------------------------------------------- */

/* All records of a rank, packed. */
typedef struct packed {
    int64_t T;
    int32_t *tokens, *targets, start[REQUESTS + 1];
    float *logprobs;
    uint8_t *native; /* host [T] rows of routes */
    void *device[3]; /* ids, native, used: [T] rows of routes */
    void *direction;
    wb_segment segments[REQUESTS];
} packed;

static wb_status open_packed(rank_run *run, packed *p) {
    const size_t row = wb_route_row_bytes(wb_model_routes(run->model));
    for (int i = 0; i < REQUESTS; i++) {
        p->start[i] = (int32_t)p->T;
        p->T += run->done[i]->record.n_tokens - 1;
    }
    p->start[REQUESTS] = (int32_t)p->T;
    run->T = p->T;
    p->tokens = take((size_t)p->T, sizeof *p->tokens);
    p->targets = take((size_t)p->T, sizeof *p->targets);
    p->logprobs = take((size_t)p->T, sizeof *p->logprobs);
    p->native = take((size_t)p->T, row);
    for (int i = 0; i < 3; i++) WB_TRY(wb_device_alloc(run->device, (size_t)p->T * row, &p->device[i]));
    return wb_device_alloc(run->device, (size_t)p->T, &p->direction);
}

static void close_packed(rank_run *run, packed *p) {
    for (int i = 0; i < 3; i++) wb_device_free(run->device, p->device[i]);
    wb_device_free(run->device, p->direction);
    free(p->tokens);
    free(p->targets);
    free(p->logprobs);
    free(p->native);
}

/* Targets are the tokens that were sampled. */
static void pack(const rank_run *run, packed *p) {
    for (int i = 0; i < REQUESTS; i++) {
        const wb_record *record = &run->done[i]->record;
        const uint32_t n_prompt = run->requests[i].request.n_tokens;
        for (uint32_t t = 0; t + 1 < record->n_tokens; t++) {
            p->tokens[p->start[i] + (int32_t)t] = (int32_t)record->tokens[t];
            p->targets[p->start[i] + (int32_t)t] = t + 1 < n_prompt ? -1 : (int32_t)record->tokens[t + 1];
        }
    }
}

static wb_status plan(rank_run *run, packed *p, wb_replay *replay) {
    int64_t planned;
    for (int i = 0; i < REQUESTS; i++)
        WB_TRY(wb_replay_add(replay, wb_model_routes(run->model), &run->done[i]->record));
    WB_TRY(wb_replay_begin(replay, WB_REPLAY_ROLLOUT, 1));
    for (int i = 0; i < REQUESTS; i++)
        p->segments[i] =
            wb_replay_segment(replay, run->requests[i].rid, 0, (uint32_t)(p->start[i + 1] - p->start[i]),
                              run->done[i]->record.tokens);
    WB_TRY(wb_replay_plan(replay, 0, REQUESTS, p->segments));
    return wb_replay_plan_dispatch(replay, run->comm, &planned);
}

/* The step's one forward, by the plan, and what the replay then says of it. */
static wb_status forward(rank_run *run, packed *p, wb_train *train, wb_replay *replay) {
    const size_t row = wb_route_row_bytes(wb_model_routes(run->model)), bytes = (size_t)p->T * row;
    const wb_train_batch batch = {
        .T = p->T, .tokens = p->tokens, .targets = p->targets, .n_seqs = REQUESTS, .seq_start = p->start};
    wb_replay_slice rows;
    WB_TRY(wb_replay_rows(replay, 0, WB_ALL_LAYERS, 0, (uint32_t)p->T, &rows));
    WB_TRY(wb_device_upload(run->device, p->device[0], rows.ids, bytes));
    WB_TRY(wb_device_upload(run->device, p->direction, rows.direction, (size_t)p->T));
    uint8_t *used = take((size_t)p->T, row);
    const wb_routing routing = {.ids = p->device[0],
                                .direction = p->direction,
                                .native = p->device[1],
                                .used = p->device[2],
                                .planned = wb_replay_layer_plan(replay, 0, WB_ALL_LAYERS)};
    wb_status status = wb_train_forward(train, &batch, &routing, NULL, p->logprobs);
    if (status == WB_OK) status = wb_device_download(run->device, p->native, p->device[1], bytes);
    if (status == WB_OK) status = wb_device_download(run->device, used, p->device[2], bytes);
    if (status == WB_OK)
        status = wb_replay_store(replay, 0, WB_ALL_LAYERS, 0, (uint32_t)p->T, used, rows.stride, p->native,
                                 rows.stride);
    free(used);
    return status;
}

static wb_status compare(rank_run *run, const packed *p, wb_replay *replay) {
    const wb_route_model *routes = wb_model_routes(run->model);
    const size_t row = wb_route_row_bytes(routes);
    for (int i = 0; i < REQUESTS; i++) {
        const wb_record *record = &run->done[i]->record;
        const uint32_t n_prompt = run->requests[i].request.n_tokens, n_new = record->n_tokens - n_prompt;
        const float *found = p->logprobs + p->start[i] + n_prompt - 1;
        for (uint32_t k = 0; k < n_new; k++)
            run->other_logprobs += memcmp(found + k, record->logprobs + k, sizeof *found) != 0;
        for (uint32_t t = 0; t + 1 < record->n_tokens; t++) {
            const void *captured = wb_record_row(routes, record, t);
            const uint8_t *chosen = p->native + ((size_t)p->start[i] + t) * row;
            run->other_choices += !captured || memcmp(captured, chosen, row) != 0;
        }
        WB_TRY(wb_replay_observe_logprobs(replay, n_new, record->logprobs, found, NULL));
    }
    wb_replay_get_metrics(replay, &run->metrics, NULL);
    return WB_OK;
}

static wb_status train_on(rank_run *run) {
    wb_replay_options replaying = wb_replay_options_default();
    wb_train_options training = wb_train_options_default();
    packed p = {0};
    wb_replay *replay = NULL;
    wb_train *train = NULL;
    training.forward_only = true;
    training.max_tokens = REQUESTS * MAX_TEXT;
    replaying.placement = wb_model_placement(run->model);
    wb_status status = open_packed(run, &p);
    if (status == WB_OK) status = wb_train_open(run->model, &training, &train);
    if (status == WB_OK) status = wb_replay_open(wb_model_routes(run->model), &replaying, &replay);
    if (status == WB_OK) {
        pack(run, &p);
        status = plan(run, &p, replay);
    }
    if (status == WB_OK) status = forward(run, &p, train, replay);
    if (status == WB_OK) status = compare(run, &p, replay);
    wb_replay_close(replay);
    wb_train_close(train);
    close_packed(run, &p);
    return status;
}

/* ---- the tests ------------------------------------------------------------------------------------- */

static void *run_rank(void *argument) {
    rank_run *run = argument;
    run->status = open_run(run);
    if (run->status == WB_OK) run->status = roll_out(run);
    if (run->status == WB_OK) run->status = train_on(run);
    if (run->status != WB_OK) {
        snprintf(run->message, sizeof run->message, "%s", wb_error_message());
        wb_comm_abort(run->control);
    }
    close_run(run);
    return NULL;
}

static void assert_run(const rank_run *run) {
    if (run->status != WB_OK) fail_msg("%s", run->message);
    assert_int_equal(run->other_logprobs, 0);
    assert_int_equal(run->other_choices, 0);
    /* Written so that NaN fails. */
    assert_true(run->metrics.logprobs > 0 && run->metrics.kl_k1 == 0 && run->metrics.kl_k3 == 0);
    assert_true(run->metrics.forced_rows == (double)run->T && run->metrics.token_differ == 0);
    assert_true(run->stats.taken_over_tokens > 0 && run->stats.drafts > 0);
}

static void play(uint64_t seed, bool cuda, int ranks) {
    wb_comm *controls[MAX_RANKS];
    rank_run runs[MAX_RANKS];
    pthread_t threads[MAX_RANKS];
    print_message("seed %" PRIu64 ", %s, %d ranks\n", seed, cuda ? "cuda" : "cpu", ranks);
    assert_ok(wb_comm_open_threads(ranks, controls));
    for (int r = 0; r < ranks; r++) {
        runs[r] =
            (rank_run){.seed = seed, .cuda = cuda, .sizes = cuda ? of_gpu : of_cpu, .control = controls[r]};
        assert_int_equal(pthread_create(&threads[r], NULL, run_rank, &runs[r]), 0);
    }
    for (int r = 0; r < ranks; r++) pthread_join(threads[r], NULL);
    for (int r = 0; r < ranks; r++) wb_comm_close(controls[r]);
    for (int r = 0; r < ranks; r++) assert_run(&runs[r]);
}

static void play_seeds(bool cuda, int ranks) {
    for (uint64_t i = 0; i < n_seeds; i++) play(first_seed + i, cuda, ranks);
}

static void test_on_the_cpu(void **state) {
    (void)state;
    play_seeds(false, 1);
    play_seeds(false, 2);
}

static void test_on_a_gpu(void **state) {
    (void)state;
    if (wb_device_count_cuda() == 0) skip();
    play_seeds(true, 1);
}

static void test_on_gpus(void **state) {
    (void)state;
    if (wb_device_count_cuda() == 0) skip();
    play_seeds(true, 2);
}

int main(int argc, char **argv) {
    first_seed = test_seed(argc, argv);
    if (argc > 2) n_seeds = strtoull(argv[2], NULL, 10);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_on_the_cpu), cmocka_unit_test(test_on_a_gpu),
                                       cmocka_unit_test(test_on_gpus)};
    return cmocka_run_group_tests_name("same bits", tests, NULL, NULL);
}
