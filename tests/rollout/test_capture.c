/* test_capture.c - the property that the engine is for: what it captures equals the training forward's own
 * choice in f32, bit for bit, and so do its logprobs, for any batch composition, chunking, preemption,
 * arrival order and thread count.
 *
 * Each schedule is made from its seed; `test_capture --seed N` runs one of them. */
#include "engine_fixture.h"
#include "support/cpu_split.h"

#define N_SCHEDULES 200
#define FIRST_SEED 20250
#define MAX_REQUESTS 7
#define MAX_TOKENS 40 /* prompt and new ones of a request */

typedef struct schedule {
    uint64_t seed;
    dice d;
    wb_config config;
    wb_engine_options options;
    int engine_threads, train_threads;
    uint32_t n;
    ask asks[MAX_REQUESTS];
    uint64_t arrival_step[MAX_REQUESTS];
    wb_completion *done[MAX_REQUESTS];
    uint64_t preemptions;
    int failures;
} schedule;

static void fail(schedule *s, const char *rid, const char *what) {
    fprintf(stderr, "seed %" PRIu64 ", request %s: %s (rerun: test_capture --seed %" PRIu64 ")\n", s->seed,
            rid, what, s->seed);
    s->failures++;
}

/* ---- making a schedule --------------------------------------------------------------------------- */

static wb_config random_config(dice *d) {
    const wb_family family = pick_family(d);
    const int32_t n_layers = (int32_t)pick(d, 1, 3);
    const int32_t n_experts = pick(d, 0, 9) == 0 ? (int32_t)pick(d, 257, 300) : (int32_t)pick(d, 2, 24);
    const uint32_t max_k = n_experts < 8 ? (uint32_t)n_experts : 8;
    const uint64_t dense =
        family == WB_FAMILY_QWEN3_MOE && n_layers > 1 ? pick(d, 0, (1u << n_layers) - 2) : 0;
    return tiny_config(family, n_experts, (int32_t)pick(d, 1, max_k), n_layers, dense);
}

static void make_schedule(schedule *s, uint64_t seed) {
    memset(s, 0, sizeof *s);
    s->seed = seed;
    s->d.state = seed;
    dice *d = &s->d;
    s->config = random_config(d);
    s->n = pick(d, 1, MAX_REQUESTS);
    uint32_t longest = 1;
    for (uint32_t i = 0; i < s->n; i++) {
        s->asks[i] = ask_random(d, i, (uint32_t)s->config.vocab_size, MAX_TOKENS / 2, MAX_TOKENS / 2);
        s->arrival_step[i] = pick(d, 0, 20);
        const wb_request *request = &s->asks[i].request;
        if (longest < request->n_tokens + request->max_tokens - 1)
            longest = request->n_tokens + request->max_tokens - 1;
    }
    s->options.block_size = (int32_t)pick(d, 1, 9);
    const int32_t min_blocks =
        (int32_t)longest / s->options.block_size + ((int32_t)longest % s->options.block_size != 0);
    s->options.n_blocks =
        min_blocks + (pick(d, 0, 1) == 0 ? 0 : (int32_t)pick(d, 0, 2 * (uint32_t)min_blocks));
    s->options.max_batch_tokens = (int32_t)(pick(d, 0, 2) == 0 ? pick(d, 1, 4) : pick(d, 1, 64));
    s->options.max_running = (int32_t)pick(d, 1, MAX_REQUESTS);
    static const int threads[] = {1, 2, 3, 5};
    s->engine_threads = threads[pick(d, 0, 3)];
    s->train_threads = threads[pick(d, 0, 3)];
    /* Requests with and without routes share steps; the one that came last often has none. */
    for (uint32_t i = 0; i < s->n; i++)
        s->asks[i].request.return_routes = pick(d, 0, i + 1 == s->n ? 1 : 3) != 0;
}

/* ---- running it ---------------------------------------------------------------------------------- */

static void submit_arrived(schedule *s, wb_engine *engine, uint64_t step) {
    for (uint32_t i = 0; i < s->n; i++)
        if (s->arrival_step[i] == step) must(wb_engine_submit(engine, ask_request(&s->asks[i])), "submit");
}

static void run_engine(schedule *s) {
    rig r = rig_open(&s->config, s->seed, s->engine_threads, NULL);
    wb_engine *engine = engine_of(r.model, s->options.n_blocks, s->options.block_size,
                                  s->options.max_batch_tokens, s->options.max_running);
    bool busy = true;
    for (uint64_t step = 0; step <= 20 || busy; step++) {
        submit_arrived(s, engine, step);
        must(wb_engine_step(engine, &busy), "step");
        if (step > 20000) {
            fail(s, "-", "the engine does not come to an end");
            abort();
        }
    }
    for (wb_completion *c = wb_engine_poll(engine); c; c = wb_engine_poll(engine))
        s->done[strtoul(c->record.rid + 1, NULL, 10)] = c;
    const wb_engine_stats stats = wb_engine_get_stats(engine);
    if (stats.free_blocks != s->options.n_blocks) fail(s, "-", "KV blocks leaked");
    s->preemptions = stats.preemptions;
    wb_engine_close(engine);
    rig_close(&r);
}

/* ---- the training forward of what came out --------------------------------------------------- */

typedef struct packed {
    int32_t tokens[MAX_REQUESTS * MAX_TOKENS], targets[MAX_REQUESTS * MAX_TOKENS];
    int32_t seq_start[MAX_REQUESTS + 1];
    uint32_t request[MAX_REQUESTS];
    float logprobs[MAX_REQUESTS * MAX_TOKENS];
    wb_train_batch batch;
} packed;

/* Sequences request[0 .. n) behind each other; the last token is fed too, as trainers do. */
static void pack(const schedule *s, packed *p, uint32_t n) {
    int32_t T = 0;
    for (uint32_t i = 0; i < n; i++) {
        const wb_record *record = &s->done[p->request[i]]->record;
        p->seq_start[i] = T;
        for (uint32_t t = 0; t < record->n_tokens; t++, T++) {
            p->tokens[T] = (int32_t)record->tokens[t];
            p->targets[T] = t + 1 < record->n_tokens ? (int32_t)record->tokens[t + 1] : -1;
        }
    }
    p->seq_start[n] = T;
    p->batch = (wb_train_batch){
        .T = T, .tokens = p->tokens, .targets = p->targets, .n_seqs = (int32_t)n, .seq_start = p->seq_start};
}

static void compare_sequence(schedule *s, const wb_route_model *model, const packed *p, uint32_t i,
                             const uint8_t *ids) {
    const wb_record *record = &s->done[p->request[i]]->record;
    const size_t row_bytes = wb_route_row_bytes(model), start = (size_t)p->seq_start[i];
    const bool with_routes = s->asks[p->request[i]].request.return_routes;
    if (!with_routes && record->n_routes > 0) fail(s, record->rid, "has routes that it did not ask for");
    for (uint32_t t = 0; with_routes && t + 1 < record->n_tokens; t++) {
        const void *row = wb_record_row(model, record, t);
        if (!row || memcmp(row, ids + (start + t) * row_bytes, row_bytes) != 0) {
            fail(s, record->rid,
                 !row ? "a row is missing" : "captured ids differ from the training forward's");
            break;
        }
    }
    if (!same_bytes(record->logprobs, p->logprobs + start + record->prompt_len - 1,
                    (record->n_tokens - record->prompt_len) * sizeof(float)))
        fail(s, record->rid, "logprobs differ from the training forward's");
}

/* Packs a random number of sequences in random order a forward, until all have been through. */
static void check_against_training(schedule *s, wb_model *model) {
    const wb_route_model *routes = wb_model_routes(model);
    const size_t row_bytes = wb_route_row_bytes(routes);
    wb_train *train = NULL;
    must(wb_train_open(model, NULL, &train), "train");
    uint32_t order[MAX_REQUESTS];
    for (uint32_t i = 0; i < s->n; i++) {
        const uint32_t at = pick(&s->d, 0, i);
        order[i] = order[at];
        order[at] = i;
    }
    packed *p = take(1, sizeof *p);
    uint8_t *ids = take(MAX_REQUESTS * MAX_TOKENS, row_bytes);
    for (uint32_t from = 0, n; from < s->n; from += n) {
        n = pick(&s->d, 1, s->n - from);
        memcpy(p->request, order + from, n * sizeof *order);
        pack(s, p, n);
        memset(ids, 0xee, MAX_REQUESTS * MAX_TOKENS * row_bytes);
        const wb_routing record_native = {.ids = ids}; /* CPU: device memory is host memory */
        must(wb_train_forward(train, &p->batch, &record_native, NULL, p->logprobs), "training forward");
        for (uint32_t i = 0; i < n; i++) compare_sequence(s, routes, p, i, ids);
    }
    free(ids);
    free(p);
    wb_train_close(train);
}

static void check_against_alone(schedule *s, wb_model *model) {
    for (uint32_t i = 0; i < s->n; i++) {
        wb_completion *alone = run_alone(model, &s->asks[i]);
        const char *what = difference(wb_model_routes(model), alone, s->done[i]);
        if (what) {
            fprintf(stderr, "%s: ", what);
            fail(s, s->asks[i].rid, "differs from the request alone");
        }
        wb_completion_free(alone);
    }
}

static void check_records(schedule *s, wb_model *model) {
    for (uint32_t i = 0; i < s->n; i++) {
        if (!s->done[i]) {
            fail(s, s->asks[i].rid, "was lost");
            abort();
        }
        if (wb_record_check(wb_model_routes(model), &s->done[i]->record, true) != WB_OK)
            fail(s, s->asks[i].rid, wb_error_message());
    }
}

static int run_schedule(uint64_t seed, uint64_t *preemptions) {
    schedule *s = take(1, sizeof *s);
    make_schedule(s, seed);
    run_engine(s);
    rig r = rig_open(&s->config, seed, s->train_threads, NULL);
    check_records(s, r.model);
    check_against_training(s, r.model);
    check_against_alone(s, r.model);
    rig_close(&r);
    for (uint32_t i = 0; i < s->n; i++) wb_completion_free(s->done[i]);
    const int failures = s->failures;
    *preemptions += s->preemptions;
    free(s);
    return failures;
}

int main(int argc, char **argv) {
    uint64_t first = FIRST_SEED, n = N_SCHEDULES, preemptions = 0;
    if (argc == 3 && strcmp(argv[1], "--seed") == 0) {
        first = strtoull(argv[2], NULL, 10);
        n = 1;
    } else if (argc != 1) {
        fprintf(stderr, "usage: test_capture [--seed N]\n");
        return 2;
    }
    int failed = 0;
    cpu_split.always = true; /* small models, whose ops would take one thread */
    for (uint64_t seed = first; seed < first + n; seed++) failed += run_schedule(seed, &preemptions) != 0;
    printf("test_capture: seeds %" PRIu64 "..%" PRIu64 ", %" PRIu64 " preemptions, %d of %" PRIu64
           " schedules failed\n",
           first, first + n - 1, preemptions, failed, n);
    const bool too_easy = n > 1 && (preemptions == 0 || cpu_split.split == 0);
    if (too_easy)
        fprintf(stderr, "no schedule preempted anything, or no op was split: the test is too easy\n");
    return failed == 0 && !too_easy ? 0 : 1;
}
