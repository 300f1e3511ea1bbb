/* 01_train_hooks.c - routing replay in a trainer that is not Waybill's: five calls around its own router.
 *
 *   example_01_train_hooks [DUMP]
 *
 * Takes a record (made by hand, or the first of a dump), packs it with padding into two micro-batches and
 * runs one step as a pipeline would: both forwards, then for each micro-batch recompute and backward. The
 * trainer's dispatcher works with a routing map, and what that map says is compared with the plan. Exit code
 * 0: every row went down the experts of the rollout, in the recompute too. */
#include "wb_train_hooks.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MICRO_BATCHES = 2, PADDING = 3 };

static void check(bool ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "%s: %s\n", what, wb_error_message());
    exit(1);
}

#define CHECK(call) check((call) == WB_OK, #call)

/* Five tokens through two MoE layers, 2 of 8 experts each: four rows, for the last token was never fed. */
static const uint32_t moe_layers[2] = {1, 2}, tokens[5] = {11, 12, 13, 14, 15};
static const uint8_t routes[4][2][2] = {
    {{7, 0}, {1, 2}}, {{3, 4}, {5, 6}}, {{0, 1}, {2, 3}}, {{6, 2}, {4, 0}}};
static const wb_route_rows runs[1] = {{0, 4, routes, NULL}};
static const wb_route_model hand_model = {.name = "tiny_moe",
                                          .fingerprint = "0123456789abcdef0123456789abcdef",
                                          .router = "softmax_norm",
                                          .num_hidden_layers = 3,
                                          .n_moe_layers = 2,
                                          .moe_layers = moe_layers,
                                          .num_experts = 8,
                                          .top_k = 2};
static const wb_record hand_record = {
    .rid = "by-hand", .prompt_len = 2, .n_tokens = 5, .tokens = tokens, .n_routes = 1, .routes = runs};

static wb_router router_of(const wb_route_model *model) {
    wb_router router = {WB_ROUTER_SOFTMAX, (int32_t)model->num_experts, (int32_t)model->top_k, 1, 1, true, 1};
    while (router.type < WB_ROUTER_HASH && strcmp(wb_router_name(router.type), model->router) != 0)
        router.type++;
    check(router.type < WB_ROUTER_HASH, "this trainer has no such router");
    return router;
}

/* What the trainer computes from its own weights; here, any numbers. */
static void router_logits(int32_t micro_batch, int32_t layer, uint32_t n, float *logits) {
    for (uint32_t i = 0; i < n; i++)
        logits[i] = 3 * sinf((float)(i * 37 + (uint32_t)(layer * 11 + micro_batch)));
}

/* One gate of one micro-batch: host arrays, for the device is the CPU. */
typedef struct gate {
    float *logits, *weights, *dweights, *dlogits; /* [T][E], [T][K], [T][K], [T][E] */
    uint16_t *ids;                                /* [T][K] */
} gate;

static void gate_alloc(gate *g, size_t T, size_t E, size_t K) {
    g->logits = calloc(T * E, sizeof(float));
    g->weights = calloc(T * K, sizeof(float));
    g->dweights = calloc(T * K, sizeof(float));
    g->dlogits = calloc(T * E, sizeof(float));
    g->ids = calloc(T * K, sizeof(uint16_t));
    check(g->logits && g->weights && g->dweights && g->dlogits && g->ids, "out of memory");
    for (size_t i = 0; i < T * K; i++) g->dweights[i] = 1 + (float)(i % 3);
}

/* A dispatcher of the Megatron kind: map[t][e] is 1 where row t goes to expert e, and no order is left. Gives
 * the ids that the map sends each row to, as routing_map.nonzero() would. */
static void ids_of_map(const uint8_t *map, size_t T, size_t E, uint16_t *ids) {
    for (size_t i = 0; i < T * E; i++)
        if (map[i]) *ids++ = (uint16_t)(i % E);
}

static void dispatch(wb_hooks *hooks, int32_t mb, int32_t l, const gate *g, size_t T, size_t E, size_t K) {
    uint8_t *map = calloc(T * E, sizeof *map);
    uint16_t *sent = calloc(T * K, sizeof *sent);
    check(map && sent, "out of memory");
    for (size_t i = 0; i < T * K; i++) map[i / K * E + g->ids[i]] = 1;
    /* Here the trainer would send its tokens, with g->weights, to the experts of the map. */
    ids_of_map(map, T, E, sent);
    CHECK(wb_hooks_dispatched(hooks, mb, l, 0, (int64_t)T, (wb_ids){sent, WB_U16, (int64_t)K}));
    free(map);
    free(sent);
}

static void gate_free(gate *g) {
    free(g->logits);
    free(g->weights);
    free(g->dweights);
    free(g->dlogits);
    free(g->ids);
}

/* Rows that a record forces went where it says; padding has neither weight nor gradient. */
static void check_rows(const wb_route_model *m, const wb_record *record, uint32_t start, uint32_t rows,
                       uint32_t layer, const gate *g) {
    size_t K = m->top_k, E = m->num_experts;
    for (uint32_t t = 0; t < rows; t++) {
        const void *row = wb_record_row(m, record, start + t);
        for (size_t k = 0; row && k < K; k++)
            check(wb_route_id(row, wb_route_dtype(m->num_experts), layer * K + k) == g->ids[t * K + k],
                  "a row did not follow the rollout");
    }
    for (size_t i = rows * K; i < (rows + PADDING) * K; i++) check(g->weights[i] == 0, "padding has weight");
    for (size_t i = rows * E; i < (rows + PADDING) * E; i++)
        check(g->dlogits[i] == 0, "padding has gradient");
}

/* The trainer and its step: half of the record in each micro-batch, padding behind it. */
typedef struct trainer {
    const wb_route_model *model;
    wb_record record;
    wb_device *device;
    wb_replay *replay;
    wb_hooks *hooks;
    uint32_t start[MICRO_BATCHES], rows[MICRO_BATCHES]; /* of the record */
    gate *gates;                                        /* [MICRO_BATCHES][L] */
} trainer;

static void trainer_open(trainer *t) {
    wb_replay_options replay_options = wb_replay_options_default();
    replay_options.missing = WB_MISSING_NATIVE;
    CHECK(wb_replay_open(t->model, &replay_options, &t->replay));
    CHECK(wb_replay_add(t->replay, t->model, &t->record));
    CHECK(wb_device_open_cpu(0, &t->device));
    wb_hooks_options hooks_options = wb_hooks_options_default();
    hooks_options.device = t->device;
    hooks_options.replay = t->replay;
    hooks_options.router = router_of(t->model);
    CHECK(wb_hooks_open(&hooks_options, &t->hooks));
    uint32_t half = t->record.n_tokens / MICRO_BATCHES;
    t->start[0] = 0, t->rows[0] = half;
    t->start[1] = half, t->rows[1] = t->record.n_tokens - half;
    t->gates = calloc(MICRO_BATCHES * (size_t)t->model->n_moe_layers, sizeof *t->gates);
    check(t->gates, "out of memory");
}

static void trainer_close(trainer *t) {
    free(t->gates);
    wb_hooks_close(t->hooks);
    wb_replay_close(t->replay);
    wb_device_close(t->device);
}

static gate *gate_of(const trainer *t, int32_t mb, int32_t l) {
    return &t->gates[mb * (int32_t)t->model->n_moe_layers + l];
}

static void begin_step(const trainer *t) {
    CHECK(wb_hooks_step_begin(t->hooks, WB_REPLAY_ROLLOUT, MICRO_BATCHES));
    for (int32_t mb = 0; mb < MICRO_BATCHES; mb++) {
        /* The tokens are those of the trainer's own batch; this trainer has only the record's. */
        const uint32_t *fed = t->record.tokens + t->start[mb];
        wb_segment segments[2] = {wb_replay_segment(t->replay, t->record.rid, t->start[mb], t->rows[mb], fed),
                                  {WB_SEGMENT_PADDING, NULL, 0, PADDING, NULL}};
        CHECK(wb_replay_plan(t->replay, mb, 2, segments));
    }
}

static void forward(const trainer *t, int32_t mb, int32_t l) {
    gate *g = gate_of(t, mb, l);
    const size_t E = t->model->num_experts, K = t->model->top_k;
    const uint32_t T = t->rows[mb] + PADDING;
    gate_alloc(g, T, E, K);
    router_logits(mb, l, T * t->model->num_experts, g->logits);
    CHECK(wb_hooks_gate_forward(t->hooks, mb, l, 0, T, g->logits, (wb_ids){g->ids, WB_U16, (int64_t)K},
                                g->weights));
    dispatch(t->hooks, mb, l, g, T, E, K);
}

static void recompute_and_backward(const trainer *t, int32_t mb, int32_t l) {
    gate *g = gate_of(t, mb, l), again;
    const size_t E = t->model->num_experts, K = t->model->top_k;
    const uint32_t T = t->rows[mb] + PADDING;
    gate_alloc(&again, T, E, K);
    CHECK(wb_hooks_gate_forward(t->hooks, mb, l, 0, T, g->logits, (wb_ids){again.ids, WB_U16, (int64_t)K},
                                again.weights));
    dispatch(t->hooks, mb, l, &again, T, E, K);
    check(memcmp(again.ids, g->ids, T * K * sizeof *g->ids) == 0, "the recompute went elsewhere");
    check(memcmp(again.weights, g->weights, T * K * sizeof(float)) == 0, "other weights in recompute");
    CHECK(wb_hooks_gate_backward(t->hooks, mb, l, 0, T, g->logits, g->dweights, g->dlogits));
    check_rows(t->model, &t->record, t->start[mb], t->rows[mb], (uint32_t)l, g);
    gate_free(&again);
    gate_free(g);
}

static void check_usage(int argc, char **argv) {
    const bool help = argc == 2 && strcmp(argv[1], "--help") == 0;
    if (argc <= 2 && (argc < 2 || argv[1][0] != '-')) return;
    fprintf(help ? stdout : stderr, "usage: example_01_train_hooks [DUMP]\n");
    exit(help ? 0 : 2);
}

int main(int argc, char **argv) {
    wb_dump *dump = NULL;
    check_usage(argc, argv);
    trainer t = {.model = &hand_model, .record = hand_record};
    if (argc > 1) {
        CHECK(wb_dump_open(argv[1], &dump));
        CHECK(wb_dump_record(dump, 0, &t.record));
        t.model = wb_dump_model(dump);
    }
    check(t.record.n_tokens >= MICRO_BATCHES, "the record is too short");
    trainer_open(&t);

    const int32_t L = (int32_t)t.model->n_moe_layers;
    begin_step(&t);
    for (int32_t mb = 0; mb < MICRO_BATCHES; mb++)
        for (int32_t l = 0; l < L; l++) forward(&t, mb, l);
    for (int32_t mb = 0; mb < MICRO_BATCHES; mb++)
        for (int32_t l = L - 1; l >= 0; l--) recompute_and_backward(&t, mb, l);
    wb_replay_metrics metrics;
    CHECK(wb_hooks_step_end(t.hooks, &metrics));

    printf("request %s: %.0f rows, %.0f forced, %.0f chose natively for want of a route, %.0f padding\n",
           t.record.rid, metrics.rows, metrics.forced_rows, metrics.fallback_rows, metrics.padding_rows);
    printf("without replay %.1f %% of the tokens and %.1f %% of the decisions would have gone elsewhere\n",
           100 * metrics.token_differ, 100 * metrics.decision_differ);
    trainer_close(&t);
    wb_dump_close(dump);
    return 0;
}
