/* 02_eplb.c - a placement of experts made from the very routes that are about to be replayed.
 *
 *   example_02_eplb DUMP RANKS SLOTS
 *
 * Deals the records of a dump to micro-batches, counts each, makes one placement for all of them, plans
 * the move from the trivial placement, takes it over, and sends the first micro-batch's tokens to replicas
 * by exact quotas. Exit code 0: every token went to a slot that holds its expert, and each rank got what
 * the quotas say. */
#include "wb_eplb.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MICRO_BATCHES = 4 };

static void check(bool ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "%s: %s\n", what, wb_error_message());
    exit(1);
}

#define CHECK(call) check((call) == WB_OK, #call)

typedef struct step {
    wb_dump *dump;
    const wb_route_model *model;
    uint32_t L, E, M; /* layers, experts, micro-batches */
    double *loads;    /* [M][L][E] */
} step;

/* A pass of the statistics is a micro-batch: records m, m + M, ... of the dump. */
static void count_micro_batches(step *s, uint64_t n_records, wb_comm *comm) {
    wb_load_region target = {.name = "target", .n_layers = s->L, .n_experts = s->E};
    wb_load_options options = wb_load_options_default();
    wb_load *load = NULL;
    CHECK(wb_load_open(1, &target, &options, &load));
    for (uint32_t m = 0; m < MICRO_BATCHES; m++) {
        for (uint64_t i = m; i < n_records; i += MICRO_BATCHES) {
            wb_record record;
            CHECK(wb_dump_record(s->dump, i, &record));
            CHECK(wb_load_add_record(load, 0, s->model, &record, true));
        }
        CHECK(wb_load_end_pass(load, comm)); /* sums over ranks */
    }
    s->M = wb_load_passes(load); /* a micro-batch without rows is none */
    check(s->M > 0, "the dump has no rows");
    s->loads = calloc((size_t)s->M * s->L * s->E, sizeof *s->loads);
    check(s->loads, "memory");
    for (uint32_t m = 0; m < s->M; m++)
        CHECK(wb_load_pass_counts(load, 0, 1u << WB_PHASE_REPLAY, s->M - 1 - m,
                                  s->loads + (size_t)m * s->L * s->E));
    wb_load_close(load);
}

/* Moves to the new placement. `comm` joins the trainer's ranks: all call this, rank 0's solution holds (MPI:
 * wb_comm_mpi.h). */
static void rebalance(const step *s, wb_comm *comm, wb_placement *placement) {
    wb_eplb_options options = wb_eplb_options_default();
    options.algorithm = WB_EPLB_MICROBATCH;
    options.current = placement;
    wb_placement *next = NULL;
    wb_move_plan *plan = NULL;
    CHECK(wb_eplb_solve(wb_placement_topology(placement), s->L, s->E, s->M, s->loads, &options, &next));
    CHECK(wb_placement_broadcast(next, comm, 0));
    CHECK(wb_move_plan_open(placement, next, s->L, NULL, NULL, &plan));
    printf("%" PRIu64 " slots change in %" PRIu32 " groups, %.1f ms\n", plan->n_moves, plan->n_groups,
           plan->seconds * 1e3);
    /* Here the weights of a group move while steps go on. Then, between two of them: */
    for (uint32_t g = 0; g < plan->n_groups; g++) CHECK(wb_move_apply_group(plan, g, g + 1, placement));
    wb_move_plan_close(plan);
    wb_placement_close(next);
}

static void print_balance(const step *s, const wb_placement *placement, const char *name) {
    uint32_t R = wb_placement_topology(placement)->n_ranks;
    double *rank_loads = calloc(R, sizeof *rank_loads), sum = 0;
    check(rank_loads, "memory");
    for (uint32_t i = 0; i < s->M * s->L; i++) {
        wb_placement_rank_loads(placement, i % s->L, s->loads + (size_t)i * s->E, rank_loads);
        sum += wb_placement_balancedness(placement, rank_loads);
    }
    printf("%s: balancedness %.3f\n", name, sum / (s->M * s->L));
    free(rank_loads);
}

/* The first record's rows of one layer, all on rank 0, to the slots that the quotas give. */
static void dispatch_rows(const step *s, const wb_placement *placement, uint32_t layer) {
    wb_record record;
    CHECK(wb_dump_record(s->dump, 0, &record));
    check(record.n_routes > 0 && record.routes[0].rows > 0, "the first record has no rows");
    const wb_route_rows *run = &record.routes[0];
    wb_dtype dtype = wb_route_dtype(s->E);
    uint32_t K = s->model->top_k;
    wb_routed_rows rows = {.ids = (const char *)run->ids + (size_t)layer * K * wb_dtype_size(dtype),
                           .dtype = dtype,
                           .row_stride = wb_route_row_bytes(s->model),
                           .T = run->rows,
                           .K = K,
                           .valid = run->valid};
    uint32_t R = wb_placement_topology(placement)->n_ranks, n = rows.T * K;
    uint32_t *counts = calloc((size_t)R * s->E, sizeof *counts); /* [R][E]: replay knows them for all ranks */
    wb_physical_id *slots = calloc(n, sizeof *slots);
    wb_dispatch *dispatch = NULL;
    check(counts && slots, "memory");
    for (uint32_t i = 0; i < n; i++)
        if (wb_row_valid(run->valid, i / K))
            counts[wb_route_id((const char *)rows.ids + i / K * rows.row_stride, dtype, i % K)]++;
    CHECK(wb_dispatch_open(placement, WB_DISPATCH_QUOTA, 0, &dispatch));
    CHECK(wb_dispatch_set_counts(dispatch, layer, counts));
    CHECK(wb_dispatch_rows(dispatch, layer, &rows, NULL, slots));
    wb_layer_map map = wb_placement_layer(placement, layer);
    for (uint32_t i = 0; i < n; i++) {
        if (slots[i].slot == WB_NO_SLOT) continue;
        uint32_t expert = wb_route_id((const char *)rows.ids + i / K * rows.row_stride, dtype, i % K);
        check(map.expert_of_slot[slots[i].slot] == (int32_t)expert,
              "a token went to a slot that has another expert");
    }
    printf("layer %" PRIu32 ": %" PRIu32 " rows dispatched\n", layer, rows.T);
    wb_dispatch_close(dispatch);
    free(slots);
    free(counts);
}

int main(int argc, char **argv) {
    const bool help = argc == 2 && strcmp(argv[1], "--help") == 0;
    if (argc != 4 || argv[1][0] == '-') {
        fprintf(help ? stdout : stderr, "usage: example_02_eplb DUMP RANKS SLOTS\n");
        return help ? 0 : 2;
    }
    step s = {0};
    wb_comm *comm = NULL;
    wb_placement *placement = NULL;
    wb_topology topology = {
        .n_ranks = (uint32_t)atoi(argv[2]), .n_nodes = 1, .n_slots = (uint32_t)atoi(argv[3])};
    CHECK(wb_dump_open(argv[1], &s.dump));
    s.model = wb_dump_model(s.dump);
    s.L = s.model->n_moe_layers;
    s.E = s.model->num_experts;
    CHECK(wb_comm_open_self(&comm));
    count_micro_batches(&s, wb_dump_get_info(s.dump).records, comm);
    CHECK(wb_placement_open(&topology, s.L, s.E, &placement));
    print_balance(&s, placement, "trivial placement");
    rebalance(&s, comm, placement);
    print_balance(&s, placement, "placement for these micro-batches");
    for (uint32_t l = 0; l < s.L; l++) dispatch_rows(&s, placement, l);
    wb_placement_close(placement);
    wb_comm_close(comm);
    wb_dump_close(s.dump);
    free(s.loads);
    return 0;
}
