/* test_planned_step.c - a step whose plans replay made before it, against a native step with the same routes:
 * the same bits, on 1 to 4 ranks, under random placements with replicas, with padding rows, replicas chosen
 * by rank and by token; one exchange of counts for the step and none in it. A plan that is not of these rows
 * or of this placement is refused. Argument 1 sets the seed. */
#include "planned_fixture.h"

enum { ROUNDS = 2 };

/* ---- the same bits ------------------------------------------------------------------------------- */

/* Layers run forward, recomputes included: the last layer is not computed again. */
static int64_t forwards(const step *s) {
    const wb_config *config = wb_model_config(s->f.model);
    return MICRO_BATCHES * (2 * s->f.L - wb_config_is_moe(config, config->n_layers - 1));
}

static void same_bits(rank *r, variant v, wb_dispatch_policy dispatch) {
    step s;
    int64_t n = -1, before;
    step_open(r, v, dispatch, &s);
    for (int i = 0; i < 2; i++) {
        MUST(wb_replay_begin(s.replay, WB_REPLAY_ROLLOUT, MICRO_BATCHES));
        for (int32_t m = 0; m < MICRO_BATCHES; m++) plan_batch_of(&s, m, false);
        before = exchanges(&s);
        MUST(wb_replay_plan_dispatch(s.replay, s.comm, &n));
        EXPECT(n == MICRO_BATCHES * s.f.L);
        EXPECT(exchanges(&s) == before + 1);

        before = exchanges(&s);
        run_replayed(&s, true);
        MUST(wb_replay_end(s.replay));
        /* With several ranks a native forward of a layer tells its counts once. */
        EXPECT(exchanges(&s) == before + s.exchanges - (r->of > 1 ? forwards(&s) : 0));
        MUST(wb_train_reduce_grads(s.f.train));
        expect_same_gradients(&s.f, s.gradients);
    }
    before = exchanges(&s);
    run_replayed(&s, false);
    EXPECT(exchanges(&s) == before + s.exchanges);
    MUST(wb_train_reduce_grads(s.f.train));
    expect_same_gradients(&s.f, s.gradients);
    step_close(&s);
}

static void same_bits_of_variants(rank *r) {
    for (int v = 0; v < N_VARIANTS; v++) {
        same_bits(r, (variant)v, WB_DISPATCH_STATIC);
        same_bits(r, (variant)v, WB_DISPATCH_DYNAMIC);
    }
}

static void test_rule_15_a_planned_step_is_the_native_step(void **unused) {
    (void)unused;
    for (int i = 0; i < ROUNDS; i++)
        for (int R = 1; R <= MAX_RANKS; R++)
            on_ranks(R, base_seed + (uint64_t)(10 * i + R), same_bits_of_variants, NULL, NULL);
}

/* ---- rows that choose ---------------------------------------------------------------------------- */

/* Some micro-batches have a sequence that chooses, on one rank: no rank has a plan of them, until what was
 * chosen has been stored. */
static void native_rows(rank *r) {
    step s;
    int64_t n = -1, n_native = 0;
    step_open(r, (variant)random_below(&r->state, N_VARIANTS),
              r->of % 2 == 0 ? WB_DISPATCH_DYNAMIC : WB_DISPATCH_STATIC, &s);
    MUST(wb_replay_begin(s.replay, WB_REPLAY_ROLLOUT, MICRO_BATCHES));
    uint64_t native[MICRO_BATCHES] = {0};
    for (int32_t m = 0; m < MICRO_BATCHES; m++) {
        const bool chooses = random_below(&r->state, r->of) == r->number && m != 1;
        native[m] = chooses && s.batches[m].n_seqs > 0;
        plan_batch_of(&s, m, chooses);
        MUST(wb_comm_all_reduce_max_u64(r->comm, &native[m]));
        n_native += native[m] != 0;
    }
    MUST(wb_replay_plan_dispatch(s.replay, s.comm, &n));
    EXPECT(n == (MICRO_BATCHES - n_native) * s.f.L);
    for (int32_t m = 0; m < MICRO_BATCHES; m++)
        for (int32_t l = WB_ALL_LAYERS; l < s.f.L; l++)
            EXPECT((wb_replay_layer_plan(s.replay, m, l) == NULL) == (native[m] != 0));
    run_replayed(&s, true);
    MUST(wb_train_reduce_grads(s.f.train));
    expect_same_gradients(&s.f, s.gradients);

    MUST(wb_replay_plan_dispatch(s.replay, s.comm, &n));
    EXPECT(n == MICRO_BATCHES * s.f.L);
    run_replayed(&s, true);
    MUST(wb_train_reduce_grads(s.f.train));
    expect_same_gradients(&s.f, s.gradients);
    step_close(&s);
}

static void test_a_row_that_chooses_on_one_rank_leaves_its_micro_batch_native(void **unused) {
    (void)unused;
    for (int i = 0; i < 4 * ROUNDS; i++)
        on_ranks(1 + i % MAX_RANKS, base_seed + 100 + (uint64_t)i, native_rows, NULL, NULL);
}

/* ---- on one rank ----------------------------------------------------------------------------------- */

static int n_read, n_planned;
static wb_to_host_fn *to_host;
static wb_moe_plan_fn *moe_plan;

static wb_status counted_to_host(wb_device *dev, void *to, const void *from, size_t bytes) {
    n_read++;
    return to_host(dev, to, from, bytes);
}

static wb_status counted_moe_plan(wb_device *dev, const wb_moe_plan *plan) {
    n_planned++;
    return moe_plan(dev, plan);
}

/* The host reads nothing back, and the device does nothing, that it would not without the plan. */
static void nothing_for_the_plan(rank *r) {
    step s;
    int64_t n;
    int reads[2], plans[2];
    step_open(r, VARIANT_QWEN3_TIED, WB_DISPATCH_STATIC, &s);
    to_host = s.f.device->to_host, moe_plan = s.f.device->moe_plan;
    s.f.device->to_host = counted_to_host, s.f.device->moe_plan = counted_moe_plan;
    for (int planned = 0; planned < 2; planned++) {
        MUST(wb_replay_begin(s.replay, WB_REPLAY_ROLLOUT, MICRO_BATCHES));
        for (int32_t m = 0; m < MICRO_BATCHES; m++) plan_batch_of(&s, m, false);
        MUST(wb_replay_plan_dispatch(s.replay, s.comm, &n));
        n_read = n_planned = 0;
        run_replayed(&s, planned);
        reads[planned] = n_read, plans[planned] = n_planned;
        MUST(wb_replay_end(s.replay));
    }
    EXPECT(reads[0] > 0 && reads[0] == reads[1] && plans[0] > 0 && plans[0] == plans[1]);
    s.f.device->to_host = to_host, s.f.device->moe_plan = moe_plan;
    step_close(&s);
}

static void test_one_rank_reads_nothing_back_for_a_plan(void **unused) {
    (void)unused;
    on_ranks(1, base_seed + 400, nothing_for_the_plan, NULL, NULL);
}

/* ---- refused ------------------------------------------------------------------------------------- */

/* A pass of micro-batch m with the plan of another hand. */
static wb_status pass_with(step *s, int32_t m, const wb_planned_layer *planned, const uint8_t *directions) {
    const step_batch *b = &s->batches[m];
    pass_results found = {.used = take(b->T, s->f.row_bytes)};
    wb_replay_slice rows;
    MUST(wb_replay_rows(s->replay, m, WB_ALL_LAYERS, 0, (uint32_t)b->T, &rows));
    uint8_t *ids = take(b->T, s->f.row_bytes);
    memcpy(ids, rows.ids, (size_t)b->T * s->f.row_bytes);
    const wb_routing routing = {.ids = ids, .direction = directions, .planned = planned};
    const wb_status status = try_pass(&s->f, b, &routing, &found);
    free(found.used);
    free(ids);
    return status;
}

static void plan_all(step *s) {
    int64_t n = -1;
    MUST(wb_replay_begin(s->replay, WB_REPLAY_ROLLOUT, MICRO_BATCHES));
    for (int32_t m = 0; m < MICRO_BATCHES; m++) plan_batch_of(s, m, false);
    MUST(wb_replay_plan_dispatch(s->replay, s->comm, &n));
    EXPECT(n == MICRO_BATCHES * s->f.L);
}

/* Experts move after the plan was made. */
static void stale_placement(rank *r) {
    step s;
    wb_replay_slice rows;
    step_open(r, VARIANT_QWEN3_TIED, WB_DISPATCH_STATIC, &s);
    plan_all(&s);
    const wb_planned_layer *plan = wb_replay_layer_plan(s.replay, 0, WB_ALL_LAYERS);
    wb_placement *next = placement_next(s.f.model, &r->state, true);
    MUST(wb_model_set_placement(s.f.model, next));
    MUST(wb_replay_rows(s.replay, 0, WB_ALL_LAYERS, 0, (uint32_t)s.batches[0].T, &rows));
    EXPECT(pass_with(&s, 0, plan, rows.direction) == WB_MISMATCH);
    EXPECT_MESSAGE("planned: MoE layer 0: expected a plan for the model's placement");

    /* Planned again it is of the new maps; the weights have not moved, so that only the experts are seen. */
    int64_t n = -1;
    MUST(wb_replay_plan_dispatch(s.replay, s.comm, &n));
    EXPECT(n == MICRO_BATCHES * s.f.L);
    plan = wb_replay_layer_plan(s.replay, 0, WB_ALL_LAYERS);
    EXPECT(plan->placement_hash == wb_placement_hash(next));
    MUST(pass_with(&s, 0, plan, rows.direction));
    wb_replay_abort(s.replay);
    EXPECT(!wb_replay_layer_plan(s.replay, 0, 0));
    wb_placement_close(next);
    step_close(&s);
}

static void test_rule_15_a_plan_of_another_placement_is_refused(void **unused) {
    (void)unused;
    for (int R = 1; R <= MAX_RANKS; R++)
        on_ranks(R, base_seed + 200 + (uint64_t)R, stale_placement, NULL, NULL);
}

/* A copy of the plan of one layer that may be written. */
typedef struct plan_copy {
    wb_planned_layer layers[8];
    int32_t *offsets, *received;
    int32_t S, n_received;
} plan_copy;

static int32_t *copy_ints(const int32_t *from, int64_t n) {
    int32_t *copy = take(n + 2, sizeof *copy);
    if (n > 0) memcpy(copy, from, (size_t)n * sizeof *copy);
    return copy;
}

static plan_copy copy_plan(const step *s, const wb_planned_layer *plan) {
    const wb_placement *p = wb_model_placement(s->f.model);
    plan_copy c = {.S = (int32_t)wb_placement_topology(p)->n_slots};
    c.n_received = (int32_t)(wb_model_local_slots(s->f.model) * wb_comm_size(s->comm));
    memcpy(c.layers, plan, (size_t)s->f.L * sizeof *plan);
    wb_planned_layer *last = &c.layers[s->f.L - 1];
    last->offsets = c.offsets = copy_ints(plan[s->f.L - 1].offsets, c.S + 1);
    last->received = c.received = copy_ints(plan[s->f.L - 1].received, c.n_received);
    return c;
}

enum { N_DAMAGES = 8 };

/* Where damage number `kind` of the last layer is done, and what it writes; NULL: there is nothing that it
 * could damage. */
static int32_t *damaged_place(const step *s, plan_copy *c, int kind, int32_t *value_out) {
    const int32_t n = c->offsets[c->S], own = wb_comm_rank(s->comm) * c->n_received / wb_comm_size(s->comm);
    const struct {
        bool possible;
        int32_t *place, value;
    } damages[N_DAMAGES - 2] = {{true, &c->offsets[0], -1},
                                {true, &c->offsets[c->S], n + 1},
                                {c->S > 1, &c->offsets[c->S / 2], n + 1},
                                {c->S > 1, &c->offsets[c->S / 2], c->offsets[c->S / 2] + 1},
                                {c->S > 1, &c->offsets[c->S / 2], c->offsets[c->S / 2] - 1},
                                {c->n_received > 0, &c->received[own], c->received[own] + 1}};
    *value_out = damages[kind].value;
    return damages[kind].possible ? damages[kind].place : NULL;
}

static bool damage(const step *s, plan_copy *c, int kind) {
    wb_planned_layer *last = &c->layers[s->f.L - 1];
    if (kind == N_DAMAGES - 1) last->T++;
    if (kind == N_DAMAGES - 2) last->received = NULL;
    if (kind >= N_DAMAGES - 2) return true;
    int32_t value, *place = damaged_place(s, c, kind, &value);
    if (place) *place = value;
    return place != NULL;
}

/* Each damage of the plan on every rank where it can be done: refused before anything is exchanged. One rank
 * looks at no count. */
static void damaged_plans(rank *r) {
    step s;
    step_open(r, (variant)random_below(&r->state, N_VARIANTS), WB_DISPATCH_DYNAMIC, &s);
    plan_all(&s);
    for (int kind = 0; kind <= N_DAMAGES; kind++)
        for (int32_t m = 0; m < MICRO_BATCHES; m++) {
            const step_batch *b = &s.batches[m];
            plan_copy c = copy_plan(&s, wb_replay_layer_plan(s.replay, m, WB_ALL_LAYERS));
            wb_replay_slice rows;
            MUST(wb_replay_rows(s.replay, m, WB_ALL_LAYERS, 0, (uint32_t)b->T, &rows));
            const uint8_t *directions = kind == N_DAMAGES ? b->direction : rows.direction;
            const bool seen = r->of > 1 || kind >= N_DAMAGES - 2;
            const bool bad = kind == N_DAMAGES ? b->n_tokens > 0 : damage(&s, &c, kind) && seen;
            uint64_t any = bad;
            MUST(wb_comm_all_reduce_max_u64(r->comm, &any));
            const int64_t before = exchanges(&s);
            const wb_status status = pass_with(&s, m, c.layers, directions);
            EXPECT(status == (bad ? WB_INVALID_ARGUMENT : any ? WB_PEER : WB_OK));
            if (bad) EXPECT_MESSAGE("planned: ");
            if (any) EXPECT(exchanges(&s) == before);
            free(c.offsets);
            free(c.received);
        }
    wb_replay_abort(s.replay);
    step_close(&s);
}

static void test_a_plan_that_is_not_of_these_rows_is_refused(void **unused) {
    (void)unused;
    for (int i = 0; i < 2 * ROUNDS; i++)
        on_ranks(1 + i % MAX_RANKS, base_seed + 300 + (uint64_t)i, damaged_plans, NULL, NULL);
}

int main(int argc, char **argv) {
    placed_model_begin(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_15_a_planned_step_is_the_native_step),
        cmocka_unit_test(test_a_row_that_chooses_on_one_rank_leaves_its_micro_batch_native),
        cmocka_unit_test(test_rule_15_a_plan_of_another_placement_is_refused),
        cmocka_unit_test(test_one_rank_reads_nothing_back_for_a_plan),
        cmocka_unit_test(test_a_plan_that_is_not_of_these_rows_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
