/* test_replay_dispatch.c - where the rows of a step go before it runs: against eplb's own dispatch of rows,
 * on 1 to 4 ranks, for a stage of the model's layers; what is planned, and what all ranks have to agree on.
 * Ranks are threads: a failure ends the process, and the test is then red. Argument 1 sets the seed. */
#include "replay_ranks.h"
#include "support/test_seed.h"

enum { L = 4, FIRST = 1, STAGE = 2, MICRO_BATCHES = 3, TOKENS = 7, PADDING = 3 };
enum { T_MAX = TOKENS - 1 + PADDING };

/* Other maps in every layer: slot s has a random expert, but each expert is somewhere. */
static void deal_maps(wb_placement *p, uint64_t *state) {
    const uint32_t S = wb_placement_topology(p)->n_slots, E = wb_placement_experts(p);
    int32_t *experts = malloc(S * sizeof *experts);
    for (uint32_t l = 0; l < L; l++) {
        const uint32_t turn = wb_random_below(state, S);
        for (uint32_t s = 0; s < S; s++) {
            const uint32_t expert = s < E ? s : wb_random_below(state, E);
            experts[(s * 7 + turn) % S] = (int32_t)expert;
        }
        MUST(wb_placement_set_layer(p, l, experts, NULL, 1));
    }
    free(experts);
}

/* S has no factor 7: deal_maps goes round. */
static wb_placement *open_placement(rank *r, uint32_t E) {
    uint32_t S = E + wb_random_below(&r->state, E);
    if (S % 7 == 0) S++;
    const wb_topology topology = {.n_ranks = (uint32_t)r->of, .n_nodes = 1, .n_slots = S};
    wb_placement *p;
    MUST(wb_placement_open(&topology, L, E, &p));
    deal_maps(p, &r->state);
    return p;
}

typedef struct job {
    wb_route_model model;
    wb_placement *placement;
    wb_replay *replay;
    fixture_record records[MICRO_BATCHES]; /* other ones on each rank */
    wb_dispatch_policy dispatch;
} job;

/* In place: records point into themselves. */
static void job_open(rank *r, uint32_t E, uint32_t K, wb_dispatch_policy dispatch, job *j) {
    *j = (job){.model = fixture_model(E, K, L), .placement = open_placement(r, E), .dispatch = dispatch};
    wb_replay_options options = wb_replay_options_default();
    options.placement = j->placement;
    options.dispatch = dispatch;
    options.first_layer = FIRST;
    options.n_layers = STAGE;
    MUST(wb_replay_open(&j->model, &options, &j->replay));
    for (int32_t m = 0; m < MICRO_BATCHES; m++)
        fixture_complete(&j->records[m], &j->model, (uint64_t)(r->number * MICRO_BATCHES + m + 1), TOKENS);
}

static void job_add(job *j) {
    for (int32_t m = 0; m < MICRO_BATCHES; m++)
        MUST(wb_replay_add(j->replay, &j->model, &j->records[m].record));
}

static void job_close(job *j) {
    wb_replay_close(j->replay);
    wb_placement_close(j->placement);
    for (int32_t m = 0; m < MICRO_BATCHES; m++) fixture_close(&j->records[m]);
}

/* Padding, then the record from position 1 on. */
static void plan_segments(job *j, wb_replay_mode mode, int32_t n) {
    MUST(wb_replay_begin(j->replay, mode, n));
    for (int32_t m = 0; m < n; m++) {
        const fixture_record *f = &j->records[m];
        const wb_segment segments[] = {{WB_SEGMENT_PADDING, NULL, 0, (uint32_t)m % (PADDING + 1), NULL},
                                       wb_replay_segment(j->replay, f->rid, 1, TOKENS - 2, f->tokens + 1)};
        MUST(wb_replay_plan(j->replay, m, 2, segments));
    }
}

/* ---- where rows go ------------------------------------------------------------------------------- */

/* The slots of a layer's rows by wb_dispatch_rows: [T][K]. */
static void dispatch_rows(rank *r, const job *j, int32_t m, uint32_t l, wb_physical_id *slots) {
    const uint32_t K = j->model.top_k, n_padding = (uint32_t)m % (PADDING + 1), T = n_padding + TOKENS - 2;
    wb_replay_slice slice;
    uint64_t keys[T_MAX] = {0};
    uint8_t valid[(T_MAX + 7) / 8] = {0};
    for (uint32_t t = n_padding; t < T; t++) {
        const uint32_t position = 1 + t - n_padding;
        keys[t] = wb_dispatch_token_key((int32_t)j->records[m].tokens[position], (int32_t)position);
        wb_row_set_valid(valid, t, true);
    }
    MUST(wb_replay_rows(j->replay, m, (int32_t)l, 0, T, &slice));
    const wb_dtype dtype = wb_route_dtype(j->model.num_experts);
    const wb_routed_rows rows = {.ids = slice.ids,
                                 .dtype = dtype,
                                 .row_stride = L * K * wb_dtype_size(dtype),
                                 .T = T,
                                 .K = K,
                                 .valid = valid};
    wb_dispatch *dispatch;
    MUST(wb_dispatch_open(j->placement, j->dispatch, (uint32_t)r->number, &dispatch));
    MUST(wb_dispatch_rows(dispatch, l, &rows, keys, slots));
    wb_dispatch_close(dispatch);
}

/* Each slot has the rows that go there, and padding has none. */
static void expect_rows(const job *j, const wb_planned_layer *plan, const wb_physical_id *slots) {
    const int32_t n_pairs = (int32_t)plan->T * (int32_t)j->model.top_k;
    const uint32_t S = wb_placement_topology(j->placement)->n_slots;
    int32_t row = 0;
    for (uint32_t s = 0; s < S; s++) {
        EXPECT(plan->offsets[s] == row);
        for (int32_t i = 0; i < n_pairs; i++) row += slots[i].slot == s;
    }
    EXPECT(plan->offsets[S] == row);
}

/* What this rank gets is what the others' offsets say that they send. */
static void expect_received(rank *r, const job *j, const wb_planned_layer *plan) {
    const uint32_t S = wb_placement_topology(j->placement)->n_slots;
    const uint32_t first = wb_placement_first_slot(j->placement, (uint32_t)r->number);
    const uint32_t here = wb_placement_first_slot(j->placement, (uint32_t)r->number + 1) - first;
    int32_t *all = malloc((size_t)r->of * (S + 1) * sizeof *all);
    MUST(wb_comm_all_gather(r->comm, plan->offsets, (S + 1) * sizeof *all, all));
    for (int from = 0; from < r->of; from++)
        for (uint32_t i = 0; i < here; i++) {
            const int32_t *at = all + (size_t)from * (S + 1) + first + i;
            EXPECT(plan->received[(uint32_t)from * here + i] == at[1] - at[0]);
        }
    free(all);
}

/* Rows that come to this rank. */
static int64_t rows_here(rank *r, const job *j, const wb_planned_layer *plan) {
    const uint32_t own = (uint32_t)r->number, first = wb_placement_first_slot(j->placement, own);
    const uint32_t n = (uint32_t)r->of * (wb_placement_first_slot(j->placement, own + 1) - first);
    int64_t rows = 0;
    for (uint32_t i = 0; i < n; i++) rows += plan->received[i];
    return rows;
}

static void expect_plans(rank *r, job *j, int32_t n) {
    wb_physical_id slots[T_MAX * 16];
    int64_t most = 0;
    for (int32_t m = 0; m < n; m++) {
        const wb_planned_layer *all = wb_replay_layer_plan(j->replay, m, WB_ALL_LAYERS);
        EXPECT(all && !wb_replay_layer_plan(j->replay, m, FIRST - 1));
        EXPECT(!wb_replay_layer_plan(j->replay, m, FIRST + STAGE));
        for (uint32_t l = FIRST; l < FIRST + STAGE; l++) {
            const wb_planned_layer *plan = wb_replay_layer_plan(j->replay, m, (int32_t)l);
            EXPECT(plan == all + (l - FIRST) && plan->T == m % (PADDING + 1) + TOKENS - 2);
            EXPECT(plan->placement_hash == wb_placement_hash(j->placement));
            dispatch_rows(r, j, m, l, slots);
            expect_rows(j, plan, slots);
            expect_received(r, j, plan);
            if (rows_here(r, j, plan) > most) most = rows_here(r, j, plan);
        }
    }
    EXPECT(wb_replay_max_expert_rows(j->replay) == most);
    EXPECT(!wb_replay_layer_plan(j->replay, n, WB_ALL_LAYERS) && !wb_replay_layer_plan(NULL, 0, FIRST));
}

static void plan_and_compare(rank *r) {
    static const uint32_t sizes[][2] = {{16, 2}, {5, 5}, {300, 8}};
    for (int i = 0; i < 6; i++) {
        const wb_dispatch_policy dispatch = i % 2 == 0 ? WB_DISPATCH_STATIC : WB_DISPATCH_DYNAMIC;
        job j;
        job_open(r, sizes[i / 2][0], sizes[i / 2][1], dispatch, &j);
        job_add(&j);
        for (int32_t n = 0; n <= MICRO_BATCHES; n++) {
            int64_t planned = -1;
            plan_segments(&j, WB_REPLAY_ROLLOUT, n);
            if (n == 2) deal_maps(j.placement, &r->state); /* the maps that count are those of now */
            MUST(wb_replay_plan_dispatch(j.replay, r->comm, &planned));
            EXPECT(planned == n * STAGE);
            expect_plans(r, &j, n);
            wb_replay_abort(j.replay);
            EXPECT(!wb_replay_layer_plan(j.replay, 0, WB_ALL_LAYERS));
            EXPECT(wb_replay_max_expert_rows(j.replay) == 0 && wb_replay_max_expert_rows(NULL) == 0);
        }
        job_close(&j);
    }
}

static void test_rule_15_rows_are_planned_where_eplb_sends_them(void **unused) {
    (void)unused;
    for (int R = 1; R <= MAX_RANKS; R++) on_ranks(R, base_seed + (uint64_t)R, plan_and_compare);
}

/* ---- what is planned ----------------------------------------------------------------------------- */

/* Sends every row of a layer where it is told to; those that choose, to the record's experts. */
static void follow_layer(job *j, int32_t m, int32_t l) {
    const uint32_t K = j->model.top_k, n_padding = (uint32_t)m % (PADDING + 1), T = n_padding + TOKENS - 2;
    wb_replay_slice slice;
    uint8_t used[T_MAX][16];
    MUST(wb_replay_rows(j->replay, m, l, 0, T, &slice));
    for (uint32_t t = 0; t < T; t++)
        for (uint32_t k = 0; k < K; k++)
            used[t][k] =
                t < n_padding || slice.direction[t] == WB_ROW_FORCED
                    ? ((const uint8_t *)slice.ids)[t * (size_t)slice.stride + k]
                    : (uint8_t)fixture_id(&j->model, j->records[m].seed, 1 + t - n_padding, (uint32_t)l, k);
    MUST(wb_replay_store(j->replay, m, l, 0, T, used, 16, NULL, 0));
}

/* In mode record the first pass chooses, layer by layer: what has been chosen on all ranks can be planned. */
static void plan_after_the_first_pass(rank *r) {
    job j;
    job_open(r, 16, 2, r->of % 2 == 0 ? WB_DISPATCH_DYNAMIC : WB_DISPATCH_STATIC, &j);
    int64_t planned = -1;
    plan_segments(&j, WB_REPLAY_RECORD, 2);
    MUST(wb_replay_plan_dispatch(j.replay, r->comm, &planned));
    EXPECT(planned == 0 && !wb_replay_layer_plan(j.replay, 0, FIRST));
    follow_layer(&j, 0, FIRST);
    follow_layer(&j, 1, FIRST);
    if (r->number == 0) follow_layer(&j, 1, FIRST + 1);
    MUST(wb_replay_plan_dispatch(j.replay, r->comm, &planned));
    EXPECT(planned == (r->of == 1 ? 3 : 2) && wb_replay_layer_plan(j.replay, 0, FIRST));
    EXPECT(!wb_replay_layer_plan(j.replay, 0, FIRST + 1));
    EXPECT(!wb_replay_layer_plan(j.replay, 0, WB_ALL_LAYERS));
    EXPECT((wb_replay_layer_plan(j.replay, 1, FIRST + 1) != NULL) == (r->of == 1));
    follow_layer(&j, 0, FIRST + 1);
    if (r->number != 0) follow_layer(&j, 1, FIRST + 1);
    MUST(wb_replay_plan_dispatch(j.replay, r->comm, &planned));
    EXPECT(planned == 2 * STAGE);
    expect_plans(r, &j, 2);
    job_close(&j);
}

static void test_what_the_first_pass_chose_is_planned(void **unused) {
    (void)unused;
    for (int R = 1; R <= MAX_RANKS; R++) on_ranks(R, base_seed + (uint64_t)R, plan_after_the_first_pass);
}

/* A dynamic choice of replicas goes by tokens: without them nothing is planned. */
static void without_tokens(rank *r) {
    for (int i = 0; i < 2; i++) {
        job j;
        job_open(r, 16, 2, i == 0 ? WB_DISPATCH_STATIC : WB_DISPATCH_DYNAMIC, &j);
        int64_t planned = -1;
        const wb_segment segment = {WB_SEGMENT_RECORD, NULL, 0, TOKENS - 2, NULL};
        MUST(wb_replay_begin(j.replay, WB_REPLAY_RECORD, 1));
        MUST(wb_replay_plan(j.replay, 0, 1, &segment));
        for (int32_t l = FIRST; l < FIRST + STAGE; l++) follow_layer(&j, 0, l);
        MUST(wb_replay_plan_dispatch(j.replay, r->comm, &planned));
        EXPECT(planned == (i == 0 ? STAGE : 0));
        job_close(&j);
    }
}

static void test_dynamic_dispatch_needs_tokens(void **unused) {
    (void)unused;
    on_ranks(2, base_seed, without_tokens);
}

/* ---- refused ------------------------------------------------------------------------------------- */

/* Each fails on all ranks, and nothing is planned or told. */
static void disagree(rank *r) {
    job j;
    job_open(r, 16, 2, WB_DISPATCH_STATIC, &j);
    int64_t planned = -7;
    job_add(&j);
    EXPECT(wb_replay_plan_dispatch(j.replay, r->comm, &planned) == WB_INVALID_ARGUMENT);
    plan_segments(&j, WB_REPLAY_ROLLOUT, r->number == 1 ? 2 : 1);
    EXPECT(wb_replay_plan_dispatch(j.replay, r->comm, &planned) == WB_PEER);
    EXPECT(strstr(wb_error_message(), "rank 1 differs from rank 0"));
    wb_replay_abort(j.replay);

    plan_segments(&j, WB_REPLAY_ROLLOUT, 2);
    MUST(wb_replay_plan_dispatch(j.replay, r->comm, &(int64_t){0}));
    if (r->number == 1) deal_maps(j.placement, &r->state);
    EXPECT(wb_replay_plan_dispatch(j.replay, r->comm, &planned) == WB_PEER);
    EXPECT(strstr(wb_error_message(), "rank 1 differs from rank 0"));
    EXPECT(!wb_replay_layer_plan(j.replay, 0, FIRST));

    wb_comm *self;
    MUST(wb_comm_open_self(&self));
    EXPECT(wb_replay_plan_dispatch(j.replay, self, &planned) == WB_INVALID_ARGUMENT);
    EXPECT(strstr(wb_error_message(), "expected the placement's 3 ranks, found 1"));
    wb_comm_close(self);
    wb_replay *without;
    MUST(wb_replay_open(&j.model, NULL, &without));
    MUST(wb_replay_begin(without, WB_REPLAY_ROLLOUT, 0));
    EXPECT(wb_replay_plan_dispatch(without, r->comm, &planned) == WB_INVALID_ARGUMENT);
    EXPECT(strstr(wb_error_message(), "opened without a placement"));
    wb_replay_close(without);
    EXPECT(planned == -7);
    job_close(&j);
}

/* Rank 1 opened its replay with other options than the others: all are told, and nothing is planned. */
static void expect_options_differ(rank *r, const job *j, const wb_replay_options *others,
                                  const wb_replay_options *of_rank_1) {
    wb_replay *replay;
    int64_t planned = -7;
    MUST(wb_replay_open(&j->model, r->number == 1 ? of_rank_1 : others, &replay));
    MUST(wb_replay_begin(replay, WB_REPLAY_ROLLOUT, 1));
    const wb_segment padding = {WB_SEGMENT_PADDING, NULL, 0, PADDING, NULL};
    MUST(wb_replay_plan(replay, 0, 1, &padding));
    EXPECT(wb_replay_plan_dispatch(replay, r->comm, &planned) == WB_PEER);
    EXPECT(strstr(wb_error_message(), "dispatch, stage"));
    EXPECT(strstr(wb_error_message(), "rank 1 differs from rank 0"));
    EXPECT(planned == -7 && !wb_replay_layer_plan(replay, 0, WB_ALL_LAYERS));
    wb_replay_close(replay);
}

static void disagree_on_options(rank *r) {
    job j;
    job_open(r, 16, 2, WB_DISPATCH_STATIC, &j);
    wb_replay_options others = wb_replay_options_default();
    others.placement = j.placement;
    others.first_layer = FIRST;
    others.n_layers = STAGE;
    wb_replay_options policy = others, first_layer = others, n_layers = others;
    policy.dispatch = WB_DISPATCH_DYNAMIC;
    first_layer.first_layer = FIRST - 1;
    n_layers.n_layers = STAGE + 1;
    expect_options_differ(r, &j, &others, &policy);
    expect_options_differ(r, &j, &others, &first_layer);
    expect_options_differ(r, &j, &others, &n_layers);
    job_close(&j);
}

static void test_ranks_agree_on_what_is_planned(void **unused) {
    (void)unused;
    on_ranks(3, base_seed, disagree);
    on_ranks(3, base_seed, disagree_on_options);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_15_rows_are_planned_where_eplb_sends_them),
        cmocka_unit_test(test_what_the_first_pass_chose_is_planned),
        cmocka_unit_test(test_dynamic_dispatch_needs_tokens),
        cmocka_unit_test(test_ranks_agree_on_what_is_planned),
    };
    base_seed = test_seed(argc, argv);
    printf("seed %" PRIu64 "\n", base_seed);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
