/* test_packed_step.c - a step packed from its own routes and placed by the loads of its micro-batches,
 * against the step as it came under an even placement: the same log-probabilities bit for bit, each sequence
 * once, gradients equal to the order of their sums, no counts exchanged on the way; on 1 to 4 ranks, with
 * other numbers of sequences on each and routing that differs by sequence. Argument 1 sets the seed. */
#include "placed_model.h"
#include "wb_eplb.h"
#include "wb_pack.h"
#include "wb_replay.h"

enum { MAX_SEQS = 7, MAX_ROWS = 12, BATCH_ROWS = 24, UPDATES = 2, WORDS = 4, ROUNDS = 2 };

/* What travels with a record. */
typedef struct baggage {
    float logprobs[MAX_ROWS]; /* of the step as it came */
    float dlogprobs[MAX_ROWS];
    int32_t from;
} baggage;

typedef struct job {
    rank *r;
    wb_config config;
    fixture f;
    int32_t n;
    wb_record records[MAX_SEQS];
    wb_route_rows runs[MAX_SEQS];
    wb_pack_sequence sequences[MAX_SEQS];
    char rids[MAX_SEQS][32];
    uint32_t tokens[MAX_SEQS][MAX_ROWS + 1];
    uint8_t *ids[MAX_SEQS];
    baggage bags[MAX_SEQS];
    double *gradients; /* of the step as it came, all ranks' */
    int64_t n_gradients;
} job;

/* A sequence has words of its own, so that its experts are few and not those of others. */
static void deal(job *j, uint64_t *state) {
    j->n = random_below(state, MAX_SEQS + 1);
    for (int32_t s = 0; s < j->n; s++) {
        const int32_t rows = 1 + random_below(state, MAX_ROWS), first = random_below(state, 53 - WORDS);
        for (int32_t t = 0; t <= rows; t++) j->tokens[s][t] = (uint32_t)(first + random_below(state, WORDS));
        for (int32_t t = 0; t < rows; t++) j->bags[s].dlogprobs[t] = random_unit(state);
        j->bags[s].from = 100 * j->r->number + s;
        snprintf(j->rids[s], sizeof j->rids[s], "r%d-%d", j->r->number, s);
        j->ids[s] = take(rows, j->f.row_bytes);
        j->runs[s] = (wb_route_rows){0, (uint32_t)rows, j->ids[s], NULL};
        j->records[s] = (wb_record){.rid = j->rids[s],
                                    .n_tokens = (uint32_t)rows + 1,
                                    .tokens = j->tokens[s],
                                    .n_routes = 1,
                                    .routes = &j->runs[s]};
        j->sequences[s] = (wb_pack_sequence){&j->records[s], (uint32_t)rows, (uint32_t)s % UPDATES};
    }
}

/* ---- gradients of all ranks ---------------------------------------------------------------------- */

static void add_gradient(const fixture *f, const wb_tensor *tensor, double *sum) {
    const float *gradient = wb_train_grad(f->train, tensor);
    for (int64_t i = 0; gradient && i < tensor->n; i++) sum[i] += (double)gradient[i];
}

/* Of replicated weights those of rank 0, of an expert those of its lead replica, which has the sum. */
static double *sum_gradients(const fixture *f, int64_t *n_out) {
    int64_t n = 0, at = 0;
    for (int32_t i = 0; i < wb_model_n_tensors(f->model); i++) n += wb_model_tensor(f->model, i).n;
    double *all = take(n, sizeof *all);
    for (int32_t i = 0; i < wb_model_n_tensors(f->model); i++) {
        const wb_tensor tensor = wb_model_lead(f->model, i);
        if (tensor.expert >= 0 || wb_comm_rank(f->comm) == 0) add_gradient(f, &tensor, all + at);
        at += tensor.n;
    }
    MUST(wb_comm_all_reduce_f64(f->comm, all, (size_t)n));
    *n_out = n;
    return all;
}

/* A gradient is a sum of a term a row, in f32: in another order it differs by a rounding of what was summed
 * so far for each. */
static void expect_near(const double *found, const double *expected, int64_t n) {
    double largest = 0;
    for (int64_t i = 0; i < n; i++) largest = fmax(largest, fabs(expected[i]));
    const double tolerance = MAX_RANKS * MAX_SEQS * MAX_ROWS * 0x1p-24 * largest;
    for (int64_t i = 0; i < n; i++) EXPECT(fabs(found[i] - expected[i]) <= tolerance);
}

/* ---- the step as it came ------------------------------------------------------------------------- */

/* A sequence is a micro-batch, and every row chooses. */
static void run_unpacked(job *j) {
    fixture *f = &j->f;
    MUST(wb_train_zero_grads(f->train));
    for (int32_t s = 0; s < MAX_SEQS; s++) {
        const int32_t T = s < j->n ? (int32_t)j->sequences[s].rows : 0, start[] = {0, T};
        uint8_t *ids = take(T, f->row_bytes);
        const wb_train_batch batch = {.T = T,
                                      .tokens = (const int32_t *)j->tokens[s],
                                      .targets = (const int32_t *)j->tokens[s] + 1,
                                      .n_seqs = s < j->n,
                                      .seq_start = start};
        const wb_routing routing = {.ids = s < j->n ? j->ids[s] : ids};
        MUST(wb_train_forward(f->train, &batch, &routing, NULL, j->bags[s].logprobs));
        MUST(wb_train_backward(f->train, j->bags[s].dlogprobs));
        free(ids);
    }
    MUST(wb_train_reduce_grads(f->train));
    j->gradients = sum_gradients(f, &j->n_gradients);
}

static void job_open(rank *r, variant v, job *j) {
    *j = (job){.r = r, .config = variant_config(v)};
    j->f = fixture_create(&j->config, base_seed, r->comm, 1);
    uint64_t own = r->state + (uint64_t)r->number * 1000;
    deal(j, &own);
    run_unpacked(j);
}

static void job_close(job *j) {
    fixture_close(&j->f);
    for (int32_t s = 0; s < j->n; s++) free(j->ids[s]);
    free(j->gradients);
}

/* ---- the packed step ----------------------------------------------------------------------------- */

static wb_placement *place(const job *j, const wb_pack *pack, uint32_t more_slots) {
    const wb_route_model *routes = wb_model_routes(j->f.model);
    const wb_topology topology = {
        .n_ranks = (uint32_t)j->r->of, .n_nodes = 1, .n_slots = wb_route_weighted(routes) + more_slots};
    wb_eplb_options options = wb_eplb_options_default();
    wb_placement *placement;
    options.algorithm = WB_EPLB_MICROBATCH;
    options.trials = 20000;
    options.threads = 1;
    MUST(wb_eplb_solve(&topology, routes->n_moe_layers, wb_route_weighted(routes),
                       (uint32_t)wb_pack_micro_batches(pack), wb_pack_loads(pack), &options, &placement));
    return placement;
}

/* A micro-batch of this rank, as the trainer feeds it. */
typedef struct fed {
    int32_t T, n, start[MAX_RANKS * MAX_SEQS + 1];
    int32_t tokens[BATCH_ROWS], targets[BATCH_ROWS];
    float expected[BATCH_ROWS], dlogprobs[BATCH_ROWS];
    wb_segment segments[MAX_RANKS * MAX_SEQS];
} fed;

static void feed(const wb_replay *replay, const wb_pack *pack, int32_t m, fed *b) {
    uint32_t n;
    const wb_pack_item *items = wb_pack_items(pack, m, &n);
    *b = (fed){.n = (int32_t)n};
    for (uint32_t i = 0; i < n; i++) {
        const wb_record *record = items[i].record;
        const baggage *bag = items[i].extra;
        EXPECT(b->T + (int32_t)items[i].rows <= BATCH_ROWS && items[i].rows == record->n_tokens - 1);
        for (uint32_t t = 0; t < items[i].rows; t++, b->T++) {
            b->tokens[b->T] = (int32_t)record->tokens[t];
            b->targets[b->T] = (int32_t)record->tokens[t + 1];
            b->expected[b->T] = bag->logprobs[t];
            b->dlogprobs[b->T] = bag->dlogprobs[t];
        }
        b->start[i + 1] = b->T;
        b->segments[i] = wb_replay_segment(replay, record->rid, 0, items[i].rows, record->tokens);
    }
}

static void plan_step(const job *j, const wb_pack *pack, wb_replay *replay) {
    const int32_t M = wb_pack_micro_batches(pack);
    int64_t planned = -1;
    fed b;
    for (int32_t m = 0; m < M; m++) {
        uint32_t n;
        const wb_pack_item *items = wb_pack_items(pack, m, &n);
        for (uint32_t i = 0; i < n; i++)
            MUST(wb_replay_add(replay, wb_model_routes(j->f.model), items[i].record));
    }
    MUST(wb_replay_begin(replay, WB_REPLAY_ROLLOUT, M));
    for (int32_t m = 0; m < M; m++) {
        feed(replay, pack, m, &b);
        MUST(wb_replay_plan(replay, m, b.n, b.segments));
    }
    MUST(wb_replay_plan_dispatch(replay, j->f.comm, &planned));
    EXPECT(planned == M * j->f.L);
}

static void run_packed(fixture *f, const wb_pack *pack, wb_replay *replay) {
    fed b;
    float logprobs[BATCH_ROWS];
    const uint64_t told = wb_comm_stats(f->comm).all_to_alls;
    MUST(wb_train_zero_grads(f->train));
    for (int32_t m = 0; m < wb_pack_micro_batches(pack); m++) {
        wb_replay_slice rows;
        feed(replay, pack, m, &b);
        MUST(wb_replay_rows(replay, m, WB_ALL_LAYERS, 0, (uint32_t)b.T, &rows));
        uint8_t *ids = take(b.T, f->row_bytes), *used = take(b.T, f->row_bytes);
        memcpy(ids, rows.ids, (size_t)b.T * f->row_bytes);
        const wb_train_batch batch = {
            .T = b.T, .tokens = b.tokens, .targets = b.targets, .n_seqs = b.n, .seq_start = b.start};
        const wb_routing routing = {.ids = ids,
                                    .direction = rows.direction,
                                    .used = used,
                                    .planned = wb_replay_layer_plan(replay, m, WB_ALL_LAYERS)};
        EXPECT(routing.planned);
        memset(logprobs, POISON, sizeof logprobs);
        MUST(wb_train_forward(f->train, &batch, &routing, NULL, logprobs));
        EXPECT(memcmp(logprobs, b.expected, (size_t)b.T * sizeof *logprobs) == 0);
        MUST(wb_train_backward(f->train, b.dlogprobs));
        MUST(wb_replay_store(replay, m, WB_ALL_LAYERS, 0, (uint32_t)b.T, used,
                             (int64_t)wb_route_row_ids(wb_model_routes(f->model)), NULL, 0));
        free(ids);
        free(used);
    }
    EXPECT(wb_comm_stats(f->comm).all_to_alls == told);
    MUST(wb_replay_end(replay));
    MUST(wb_train_reduce_grads(f->train));
}

/* Rule 38: over all ranks each sequence is there once, in a micro-batch of its update. */
static void expect_each_once(const job *j, const wb_pack *pack) {
    double seen[100 * MAX_RANKS] = {0};
    uint32_t n, all;
    for (int32_t m = 0; m < wb_pack_micro_batches(pack); m++) {
        const wb_pack_item *items = wb_pack_items(pack, m, &n);
        for (uint32_t i = 0; i < n; i++) {
            const int32_t from = ((const baggage *)items[i].extra)->from;
            const uint32_t update = (uint32_t)(from % 100) % UPDATES;
            EXPECT(m >= wb_pack_first(pack, update) && m < wb_pack_first(pack, update + 1));
            seen[from] += 1;
        }
    }
    MUST(wb_comm_all_reduce_f64(j->f.comm, seen, 100 * MAX_RANKS));
    for (int i = 0; i < 100 * MAX_RANKS; i++) EXPECT(seen[i] <= 1);
    for (int32_t s = 0; s < j->n; s++) EXPECT(seen[j->bags[s].from] > 0);
    wb_pack_places(pack, &all);
    for (int i = 0; i < 100 * MAX_RANKS; i++) all -= seen[i] > 0;
    EXPECT(all == 0);
}

static void pack_and_run(job *j, wb_dispatch_policy dispatch, uint32_t more_slots) {
    wb_pack_options options = wb_pack_options_default();
    wb_pack *pack;
    wb_replay *replay;
    options.max_rows = BATCH_ROWS;
    options.n_updates = UPDATES;
    MUST(wb_pack_open(j->f.comm, wb_model_routes(j->f.model), &options, (uint32_t)j->n, j->sequences, &pack));
    MUST(wb_pack_move(pack, j->f.comm, sizeof(baggage), j->bags));
    expect_each_once(j, pack);
    if (wb_pack_micro_batches(pack) == 0) { /* no rank had a sequence */
        wb_pack_close(pack);
        return;
    }
    wb_placement *placement = place(j, pack, more_slots);
    fixture f = fixture_create_placed(&j->config, base_seed, j->f.comm, 1, placement, dispatch);
    wb_replay_options of_replay = wb_replay_options_default();
    of_replay.placement = wb_model_placement(f.model);
    of_replay.dispatch = dispatch;
    MUST(wb_replay_open(wb_model_routes(f.model), &of_replay, &replay));
    plan_step(j, pack, replay);
    run_packed(&f, pack, replay);
    int64_t n;
    double *gradients = sum_gradients(&f, &n);
    expect_near(gradients, j->gradients, n);
    free(gradients);
    wb_replay_close(replay);
    fixture_close(&f);
    wb_placement_close(placement);
    wb_pack_close(pack);
}

static void same_step(rank *r) {
    for (int v = 0; v < N_VARIANTS; v++) {
        job j;
        job_open(r, (variant)v, &j);
        pack_and_run(&j, WB_DISPATCH_STATIC, 0);
        pack_and_run(&j, WB_DISPATCH_DYNAMIC, (uint32_t)r->of + 1);
        job_close(&j);
    }
}

static void test_rule_26_a_packed_step_is_the_step_as_it_came(void **unused) {
    (void)unused;
    for (int i = 0; i < ROUNDS; i++)
        for (int R = 1; R <= MAX_RANKS; R++)
            on_ranks(R, base_seed + (uint64_t)(10 * i + R), same_step, NULL, NULL);
}

int main(int argc, char **argv) {
    placed_model_begin(argc, argv);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rule_26_a_packed_step_is_the_step_as_it_came)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
