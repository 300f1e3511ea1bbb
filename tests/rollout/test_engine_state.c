/* test_engine_state.c - the engine over a model whose layers keep state of a fixed size: whatever is
 * chunked, preempted, aborted, waits for a state, is taken over behind a snapshot, goes back from a wrong
 * draft or is fed again after a step that failed, every request is what it is alone, and its logprobs are
 * training's.
 *
 * Each round is made from its seed; `test_engine_state --seed N` runs one of them. */
#include "engine.h"
#include "engine_fixture.h"
#include "infer_state.h"
#include "model/made_up_family.h"

#include <pthread.h>

#define N_ROUNDS 150
#define FIRST_SEED 70
#define N_REQUESTS 7
#define MAX_NEW 14
#define MAX_STEPS 3000

/* ---- a model --------------------------------------------------------------------------------------- */

/* A device that fails when samples are drawn: the step's tokens have gone into the states by then. */
static _Thread_local wb_sample_fn *real_sample;
static _Thread_local bool sampling_fails;

static wb_status sample(wb_device *dev, int64_t B, int64_t V, const float *logits,
                        const wb_sample_params *params, const wb_sample_kept *kept, int32_t *tokens,
                        float *logprobs) {
    if (sampling_fails) return wb_fail(WB_DEVICE, "sampling fails on purpose");
    return real_sample(dev, B, V, logits, params, kept, tokens, logprobs);
}

/* comm NULL: a communicator of its own with one rank. */
static rig rig_made_up(uint64_t seed, wb_comm *comm) {
    rig r = {NULL, NULL, NULL};
    wb_config config;
    must(made_up_config(&config), "config");
    must(wb_device_open_cpu(1, &r.device), "device");
    if (!comm) must(wb_comm_open_self(&r.own_comm), "comm");
    const wb_model_options options = {.size = sizeof options,
                                      .device = r.device,
                                      .comm = comm ? comm : r.own_comm,
                                      .dtype = WB_F32,
                                      .activations = WB_F32};
    must(wb_model_new(&config, &made_up_family, &options, &r.model), "model");
    must(wb_model_fill_random(r.model, seed, 0.4f), "weights");
    must(wb_model_open_exchange(r.model), "exchange");
    real_sample = r.device->sample;
    r.device->sample = sample;
    return r;
}

/* NULL, or what differs: logprobs are those of training on the finished record. */
static const char *differs_from_training(wb_model *model, wb_train *train, const wb_record *record) {
    const int32_t T = (int32_t)record->n_tokens, start[2] = {0, T};
    int32_t *tokens = take((size_t)T, sizeof *tokens), *targets = take((size_t)T, sizeof *targets);
    float *logprobs = take((size_t)T, sizeof *logprobs);
    uint8_t *ids = take((size_t)T, wb_route_row_bytes(wb_model_routes(model)));
    for (int32_t t = 0; t < T; t++) {
        tokens[t] = (int32_t)record->tokens[t];
        targets[t] = t + 1 < T ? (int32_t)record->tokens[t + 1] : -1;
    }
    const wb_train_batch batch = {
        .T = T, .tokens = tokens, .targets = targets, .n_seqs = 1, .seq_start = start};
    const wb_routing routing = {.ids = ids};
    must(wb_train_forward(train, &batch, &routing, NULL, logprobs), "training");
    const uint32_t prompt = record->prompt_len;
    const bool same =
        same_bytes(logprobs + prompt - 1, record->logprobs, (record->n_tokens - prompt) * sizeof(float));
    free(tokens);
    free(targets);
    free(logprobs);
    free(ids);
    return same ? NULL : "logprobs of training";
}

/* ---- a round --------------------------------------------------------------------------------------- */

typedef struct tally {
    uint64_t preemptions, failed, waited, aborted, taken_over, accepted, rejected;
} tally;

typedef struct round_state {
    uint64_t seed;
    dice d;
    rig rig;
    ask asks[N_REQUESTS];
    wb_completion *alone[N_REQUESTS];
    wb_engine *engine;
    uint32_t n_submitted, n_done;
    int failures;
} round_state;

static void fail(round_state *r, const char *rid, const char *what) {
    fprintf(stderr, "seed %" PRIu64 ": request %s: %s\n", r->seed, rid, what);
    r->failures++;
}

static void make_round(round_state *r, uint64_t seed) {
    memset(r, 0, sizeof *r);
    r->seed = seed;
    r->d.state = wb_mix64(seed);
    r->rig = rig_made_up(roll(&r->d), NULL);
    uint32_t longest = 1;
    wb_train *train;
    must(wb_train_open(r->rig.model, NULL, &train), "trainer");
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        ask *a = &r->asks[i];
        *a = ask_random(&r->d, i, 31, 16, MAX_NEW);
        const uint32_t n_common = pick(&r->d, 0, 2) == 0 ? 0 : pick(&r->d, 0, a->request.n_tokens);
        for (uint32_t k = 0; k < n_common; k++) a->prompt[k] = k % 4; /* which drafts find again */
        if (pick(&r->d, 0, 1) == 0) a->request.temperature = 0;
        r->alone[i] = run_alone(r->rig.model, a);
        const uint32_t fed = a->request.n_tokens + a->request.max_tokens - 1;
        if (fed > longest) longest = fed;
        const char *what = differs_from_training(r->rig.model, train, &r->alone[i]->record);
        if (what) fail(r, a->rid, what);
    }
    wb_train_close(train);
    const int32_t block_size = (int32_t)pick(&r->d, 1, 5),
                  min_blocks = (int32_t)wb_kv_blocks_for(block_size, longest);
    wb_engine_options options = wb_engine_options_default();
    options.n_blocks = min_blocks + (int32_t)pick(&r->d, 0, 2 * (uint32_t)min_blocks);
    options.block_size = block_size;
    options.max_batch_tokens = (int32_t)pick(&r->d, 1, 20);
    options.max_running = (int32_t)pick(&r->d, 1, N_REQUESTS);
    options.prefix_cache = pick(&r->d, 0, 2) > 0;
    options.max_drafts = pick(&r->d, 0, 1) == 0 ? 0 : (int32_t)pick(&r->d, 1, 4);
    options.n_snapshots = (int32_t)pick(&r->d, 0, 4);
    must(wb_engine_open(r->rig.model, &options, &r->engine), "engine");
}

/* What an aborted request has is the beginning of what it would have become. */
static const char *not_a_beginning(const wb_record *whole, const wb_record *part) {
    if (part->n_tokens > whole->n_tokens) return "too long";
    if (!same_bytes(whole->tokens, part->tokens, part->n_tokens * sizeof(uint32_t))) return "tokens";
    const uint32_t n = part->n_tokens - part->prompt_len;
    return same_bytes(whole->logprobs, part->logprobs, n * sizeof(float)) ? NULL : "logprobs";
}

static void poll(round_state *r, tally *t) {
    for (wb_completion *c = wb_engine_poll(r->engine); c; c = wb_engine_poll(r->engine)) {
        const uint32_t i = (uint32_t)strtoul(c->record.rid + 1, NULL, 10);
        const bool aborted = c->record.finish == WB_FINISH_ABORT;
        const char *what = aborted ? not_a_beginning(&r->alone[i]->record, &c->record)
                                   : difference(wb_model_routes(r->rig.model), r->alone[i], c);
        if (what) fail(r, c->record.rid, what);
        t->aborted += aborted;
        r->n_done++;
        wb_completion_free(c);
    }
}

static void submit_some(round_state *r) {
    while (r->n_submitted < N_REQUESTS && pick(&r->d, 0, 2) > 0)
        must(wb_engine_submit(r->engine, ask_request(&r->asks[r->n_submitted++])), "submit");
}

static void abort_one(round_state *r) {
    if (r->n_submitted == 0 || pick(&r->d, 0, 40) > 0) return;
    /* NOT_FOUND: it has been polled. */
    const wb_status status = wb_engine_abort(r->engine, r->asks[pick(&r->d, 0, r->n_submitted - 1)].rid);
    if (status != WB_NOT_FOUND) must(status, "abort");
}

static int run_round(uint64_t seed, tally *t) {
    static round_state state;
    round_state *r = &state;
    make_round(r, seed);
    for (uint64_t step = 0; r->n_done < N_REQUESTS && r->failures == 0; step++) {
        bool busy;
        submit_some(r);
        abort_one(r);
        const wb_engine_stats before = wb_engine_get_stats(r->engine);
        sampling_fails = pick(&r->d, 0, 11) == 0;
        const wb_status status = wb_engine_step(r->engine, &busy);
        const wb_engine_stats after = wb_engine_get_stats(r->engine);
        if (status != WB_OK && !sampling_fails) fail(r, "of a step", wb_error_message());
        if (status == WB_OK) t->preemptions += after.preemptions - before.preemptions;
        t->failed += status != WB_OK;
        t->waited += after.waiting > 0 && after.running == r->engine->scheduler.max_running;
        sampling_fails = false;
        poll(r, t);
        if (step == MAX_STEPS) fail(r, "of a round", "does not end");
    }
    const wb_engine_stats stats = wb_engine_get_stats(r->engine);
    t->taken_over += stats.taken_over_tokens;
    t->accepted += stats.accepted_drafts;
    t->rejected += stats.drafts - stats.accepted_drafts;
    wb_engine_close(r->engine);
    for (uint32_t i = 0; i < N_REQUESTS; i++) wb_completion_free(r->alone[i]);
    rig_close(&r->rig);
    return r->failures > 0;
}

/* ---- a rank that fails ------------------------------------------------------------------------------ */

typedef struct rank_job {
    wb_comm *comm;
    uint64_t failed, failures;
} rank_job;

enum { RANKS = 2, SEED = 11 };

/* All parts of an engine fit the list: those of inference, of which states are one, and then its results. */
static bool parts_fit(wb_model *model) {
    wb_infer_options options = wb_infer_options_default();
    wb_memory memory;
    bool found = false;
    options.n_blocks = 1;
    must(wb_infer_measure_over(model, &options, &memory), "measure");
    for (int32_t i = 0; i < memory.n_parts; i++)
        found = found || strcmp(memory.parts[i].name, "sequence states") == 0;
    return found && memory.n_parts < WB_MAX_MEMORY_PARTS;
}

/* Its own requests; rank 1 fails every fourth step, and what that step fed is fed again on both. */
static void *run_rank(void *argument) {
    rank_job *job = argument;
    const int32_t rank = wb_comm_rank(job->comm);
    dice d = {wb_mix64((uint64_t)rank)};
    ask asks[N_REQUESTS];
    rig alone = rig_made_up(SEED, NULL), r = rig_made_up(SEED, job->comm);
    wb_engine *engine = engine_of(r.model, 40, 2, 9, 4);
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        asks[i] = ask_random(&d, i, 31, 16, MAX_NEW);
        must(wb_engine_submit(engine, ask_request(&asks[i])), "submit");
    }
    bool busy = true;
    for (int step = 0; busy && step < MAX_STEPS; step++) {
        sampling_fails = rank == 1 && step % 4 == 3;
        const wb_status status = wb_engine_step(engine, &busy);
        if (status != WB_OK && status != (rank == 1 ? WB_DEVICE : WB_PEER)) must(status, "step");
        job->failed += status != WB_OK;
    }
    sampling_fails = false;
    job->failures = N_REQUESTS + !parts_fit(r.model);
    for (wb_completion *c = wb_engine_poll(engine); c; c = wb_engine_poll(engine)) {
        wb_completion *expected = run_alone(alone.model, &asks[strtoul(c->record.rid + 1, NULL, 10)]);
        const char *what = difference(wb_model_routes(r.model), expected, c);
        if (what) fprintf(stderr, "rank %d: request %s: %s\n", rank, c->record.rid, what);
        job->failures -= !what;
        wb_completion_free(expected);
        wb_completion_free(c);
    }
    wb_engine_close(engine);
    rig_close(&r);
    rig_close(&alone);
    return NULL;
}

static int run_ranks(void) {
    wb_comm *comms[RANKS];
    rank_job jobs[RANKS] = {{0}};
    pthread_t thread;
    must(wb_comm_open_threads(RANKS, comms), "threads");
    for (int i = 0; i < RANKS; i++) jobs[i].comm = comms[i];
    if (pthread_create(&thread, NULL, run_rank, &jobs[1]) != 0) abort();
    run_rank(&jobs[0]);
    pthread_join(thread, NULL);
    for (int i = 0; i < RANKS; i++) wb_comm_close(comms[i]);
    return jobs[0].failures + jobs[1].failures > 0 || jobs[0].failed < 3;
}

int main(int argc, char **argv) {
    const bool one = argc == 3 && strcmp(argv[1], "--seed") == 0;
    const uint64_t first = one ? strtoull(argv[2], NULL, 10) : FIRST_SEED, n = one ? 1 : N_ROUNDS;
    tally t = {0};
    int failures = one ? 0 : run_ranks();
    for (uint64_t seed = first; seed < first + n; seed++) failures += run_round(seed, &t);
    printf("test_engine_state: seeds %" PRIu64 "..%" PRIu64 ", %" PRIu64 " preemptions, %" PRIu64
           " steps that failed, %" PRIu64 " in which a request waits for a state, %" PRIu64
           " aborted, %" PRIu64 " tokens taken over, %" PRIu64 " drafts accepted, %" PRIu64
           " rejected, %d of %" PRIu64 " rounds failed\n",
           first, first + n - 1, t.preemptions, t.failed, t.waited, t.aborted, t.taken_over, t.accepted,
           t.rejected, failures, n);
    if (!one && (t.preemptions < n / 2 || t.failed < n || t.waited < n || t.aborted < n / 4 ||
                 t.taken_over < n || t.accepted < n / 8 || t.rejected < n / 8)) {
        printf("expected more of each: the rounds are too easy to show anything\n");
        return 1;
    }
    return failures > 0;
}
