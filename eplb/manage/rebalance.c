/* rebalance.c - the manager's life: open, count, and at each boundary the next thing to do. Refuses: whether
 * a move pays (rebalance_decide.c), which moves are made together (rebalance_move.c), making them
 * (migrate.c), what options there are (rebalance_options.c). */
#include "load/load_internal.h"
#include "manage/migrate_labels.h"
#include "manage/rebalance_state.h"
#include "move/move_internal.h"
#include "solve/solver.h"
#include "wb_check.h"
#include "wb_options.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- opening and closing ------------------------------------------------------------------------- */

static wb_load_region region_of(uint32_t n_layers, uint32_t n_experts, uint32_t n_weightless) {
    return (wb_load_region){"target", n_layers, n_experts, n_weightless};
}

static wb_status open_arrays(wb_rebalance *m) {
    const size_t n = (size_t)m->n_layers * m->n_experts;
    const wb_load_region region = region_of(m->n_layers, m->n_experts, m->options.n_weightless);
    WB_TRY(WB_OWN(&m->memory, m->counts, n, "rebalance"));
    WB_TRY(WB_OWN(&m->memory, m->usable, m->n_layers, "rebalance"));
    WB_TRY(WB_OWN(&m->memory, m->rank_loads, m->n_ranks, "rebalance"));
    WB_TRY(WB_OWN(&m->memory, m->layers, m->n_layers, "rebalance"));
    WB_TRY(WB_OWN(&m->memory, m->plans, m->n_layers, "rebalance"));
    WB_TRY(WB_OWN(&m->memory, m->next_group, m->n_layers, "rebalance"));
    WB_TRY(WB_OWN(&m->memory, m->round, m->n_layers, "rebalance"));
    WB_TRY(WB_OWN(&m->memory, m->moving, m->n_layers, "rebalance"));
    WB_TRY(WB_OWN(&m->memory, m->sends, m->n_ranks, "rebalance"));
    WB_TRY(WB_OWN(&m->memory, m->receives, m->n_ranks, "rebalance"));
    return wb_load_open(1, &region, &m->options.load, &m->load);
}

/* The next flip is later than any before it. */
static void see_epochs(wb_rebalance *m, const wb_placement *placement) {
    for (uint32_t l = 0; l < m->n_layers; l++)
        if (wb_placement_layer(placement, l).epoch > m->latest_epoch)
            m->latest_epoch = wb_placement_layer(placement, l).epoch;
}

static wb_status open_alone(const wb_expert_store *store, const wb_rebalance_options *options,
                            wb_rebalance *m) {
    WB_TRY(wb_options_read(&m->options, sizeof m->options, options, "rebalance options"));
    WB_TRY(wb_rebalance_check_options(&m->options));
    const wb_placement *placement = store->placement(store->context);
    m->options.solver.progress = NULL;
    m->options.solver.cost = m->options.move.cost;
    WB_TRY(wb_rebalance_check_solver(placement, &m->options));
    m->n_layers = wb_placement_layers(placement);
    m->n_experts = wb_placement_experts(placement);
    m->n_ranks = wb_placement_topology(placement)->n_ranks;
    WB_TRY(open_arrays(m));
    see_epochs(m, placement);
    return wb_migration_open(&m->store, m->options.check_every, m->options.move.n_shadow, &m->migration);
}

/* What an expert weighs is measured: what moves is asked of the store, so nobody else can know. */
static wb_status learn_bytes(wb_rebalance *m) {
    uint64_t bytes = m->migration.slot_bytes;
    WB_TRY(wb_comm_all_reduce_max_u64(m->comm, &bytes));
    m->options.move.cost.expert_bytes = m->options.solver.cost.expert_bytes = (double)bytes;
    return WB_OK;
}

/* What a decision and a plan depend on. What the solver is told is its business: what it finds is
 * compared. */
static wb_status check_peers(const wb_rebalance *m) {
    const wb_rebalance_options *o = &m->options;
    const wb_cost_model *cost = &o->move.cost;
    const double values[] = {o->every,
                             o->enough,
                             o->sigmas,
                             o->horizon_passes,
                             o->phases,
                             (double)o->layers_per_chunk,
                             o->load.window,
                             o->load.decay,
                             o->patience,
                             o->check_every,
                             o->move.n_shadow,
                             o->move.group_moves,
                             cost->seconds_per_token,
                             cost->expert_bytes,
                             cost->node_bytes_per_second,
                             cost->network_bytes_per_second,
                             cost->local_bytes_per_second,
                             cost->seconds_per_group};
    WB_TRY(wb_comm_check_equal(m->comm, values, sizeof values, "rebalance options"));
    return wb_placement_check_equal(m->migration.placement, m->comm);
}

wb_status wb_rebalance_open(const wb_expert_store *store, const wb_rebalance_options *options,
                            wb_rebalance **manager_out) {
    wb_rebalance *m = NULL;
    if (store->size != sizeof *store)
        return wb_fail(WB_INVALID_ARGUMENT, "rebalance: expected a store of %zu bytes, found %zu",
                       sizeof *store, store->size);
    wb_comm *comm = wb_exchange_comm(store->exchange);
    wb_status status = WB_NEW(m, 1, "rebalance");
    if (status == WB_OK) {
        m->store = *store;
        m->comm = comm;
        wb_rebalance_options_init(&m->options, sizeof m->options);
        status = open_alone(store, options, m);
    }
    status = wb_comm_agree(comm, status);
    if (status == WB_OK) status = wb_migration_make_shadows(&m->migration);
    if (status == WB_OK) status = learn_bytes(m);
    if (status == WB_OK) status = check_peers(m);
    if (status != WB_OK) {
        wb_rebalance_close(m);
        return status;
    }
    *manager_out = m;
    return WB_OK;
}

wb_status wb_rebalance_measure(const wb_rebalance_options *options, uint32_t n_layers, uint32_t n_experts,
                               size_t slot_bytes, size_t *device_bytes_out, size_t *host_bytes_out) {
    wb_rebalance_options o = wb_rebalance_options_default();
    size_t counts;
    WB_TRY(wb_options_read(&o, sizeof o, options, "rebalance options"));
    WB_TRY(wb_rebalance_check_options(&o));
    const wb_load_region region = region_of(n_layers, n_experts, o.n_weightless);
    WB_TRY(wb_load_measure(1, &region, &o.load, &counts));
    *device_bytes_out = o.move.n_shadow * slot_bytes;
    *host_bytes_out = counts + (size_t)n_layers * n_experts * sizeof(double);
    return WB_OK;
}

void wb_rebalance_close(wb_rebalance *m) {
    if (!m) return;
    WB_IGNORE(wb_solve_job_end(m->job, NULL));
    wb_rebalance_drop_plans(m);
    wb_migration_close(&m->migration);
    wb_load_close(m->load);
    wb_owner_close(&m->memory);
    free(m);
}

wb_status wb_rebalance_check_shape(const wb_rebalance *m, uint32_t n_layers, uint32_t n_experts) {
    if (m->n_layers == n_layers && m->n_experts == n_experts) return WB_OK;
    return wb_fail(WB_MISMATCH,
                   "rebalance: a manager of %" PRIu32 " layers of %" PRIu32 " experts, expected %" PRIu32
                   " of %" PRIu32,
                   m->n_layers, m->n_experts, n_layers, n_experts);
}

/* ---- counting ------------------------------------------------------------------------------------ */

wb_status wb_rebalance_record(wb_rebalance *m, wb_phase phase, int32_t layer, const wb_routed_rows *rows) {
    return wb_load_record(m->load, 0, phase, layer, rows);
}

const char *wb_rebalance_verdict_name(wb_rebalance_verdict verdict) {
    static const char *const names[] = {
        [WB_REBALANCE_UNDECIDED] = "undecided", [WB_REBALANCE_MOVED] = "moved",
        [WB_REBALANCE_NO_LOAD] = "no load",     [WB_REBALANCE_BALANCED] = "balanced",
        [WB_REBALANCE_NOISE] = "noise",         [WB_REBALANCE_NO_GAIN] = "no gain",
        [WB_REBALANCE_LATE] = "late",           [WB_REBALANCE_FAILED] = "failed"};
    return names[verdict];
}

wb_rebalance_stats wb_rebalance_get_stats(const wb_rebalance *m) {
    wb_rebalance_stats stats = m->stats;
    stats.epoch = m->stats.groups > 0 ? m->latest_epoch : 0;
    stats.bytes = m->migration.received_bytes;
    stats.moves = m->migration.moves;
    stats.failure = m->failure;
    return stats;
}

/* ---- deciding and solving -------------------------------------------------------------------------- */

/* What was going on is over. The plans of a solver that is still at work are its thread's. */
static void end_decision(wb_rebalance *m) {
    if (!m->job) wb_rebalance_drop_plans(m);
    m->stats.stage = WB_REBALANCE_RECORDING;
}

/* Gives up what goes on: the map in force stays. The message is the calling thread's latest. All ranks come
 * here together, unless the communicator is dead: then that is the outcome. */
static wb_status give_up(wb_rebalance *m, wb_rebalance_verdict verdict) {
    snprintf(m->failure, sizeof m->failure, "%s", wb_error_message());
    m->stats.failures++;
    m->stats.verdict = verdict;
    end_decision(m);
    return wb_comm_barrier(m->comm);
}

/* One that was given up may still be at work, on any rank: then the decision waits for the next time. */
static wb_status end_old_job(wb_rebalance *m, bool *free_out) {
    uint64_t busy = m->job && !wb_solve_job_done(m->job);
    if (m->job && !busy) {
        WB_IGNORE(wb_solve_job_end(m->job, NULL));
        m->job = NULL;
        wb_rebalance_drop_plans(m);
    }
    WB_TRY(wb_comm_all_reduce_max_u64(m->comm, &busy));
    *free_out = busy == 0;
    return WB_OK;
}

static wb_status start_solver(wb_rebalance *m) {
    const wb_status started =
        wb_comm_agree(m->comm, wb_solve_job_start(m->migration.placement, m->counts, &m->options.solver,
                                                  wb_rebalance_choose_layers, m, &m->job));
    if (started != WB_OK) return give_up(m, WB_REBALANCE_FAILED); /* a job that has started ends by itself */
    m->solving = 0;
    m->stats.stage = WB_REBALANCE_SOLVING;
    return WB_OK;
}

static wb_status decide(wb_rebalance *m) {
    bool is_free;
    WB_TRY(end_old_job(m, &is_free));
    if (!is_free) {
        m->stats.verdict = WB_REBALANCE_LATE;
        return WB_OK;
    }
    wb_status known = wb_comm_agree(m->comm, wb_migration_follow(&m->migration));
    if (known == WB_OK) known = wb_rebalance_take_counts(m);
    if (known != WB_OK) return give_up(m, WB_REBALANCE_FAILED);
    see_epochs(m, m->migration.placement);
    m->stats.decisions++;
    const wb_rebalance_verdict verdict = wb_rebalance_judge_counts(m);
    if (verdict == WB_REBALANCE_MOVED) return start_solver(m);
    m->stats.verdict = verdict;
    return WB_OK;
}

/* All ranks have a placement, which must be the same one, and so must what is moved of it. */
static wb_status take_found(wb_rebalance *m) {
    wb_placement *found = NULL;
    wb_status status = wb_solve_job_end(m->job, &found);
    m->job = NULL;
    status = wb_comm_agree(m->comm, status);
    if (status == WB_OK) status = wb_placement_check_equal(found, m->comm);
    if (status == WB_OK)
        status = wb_comm_check_equal(m->comm, &m->plans_digest, sizeof m->plans_digest, "moves of experts");
    wb_placement_close(found);
    if (status != WB_OK) return give_up(m, WB_REBALANCE_FAILED);
    m->stats.verdict = m->chosen;
    m->stats.expected_balancedness = m->expected_balancedness;
    m->stats.stage = WB_REBALANCE_MOVING;
    if (m->n_chosen == 0) end_decision(m);
    return WB_OK;
}

static wb_status wait_for_solver(wb_rebalance *m) {
    uint64_t busy = !wb_solve_job_done(m->job);
    WB_TRY(wb_comm_all_reduce_max_u64(m->comm, &busy));
    if (!busy) return take_found(m);
    if (++m->solving < m->options.patience) return WB_OK;
    WB_IGNORE(wb_fail(WB_CAPACITY, "rebalance: the solver has not ended after %" PRIu32 " passes",
                      m->options.patience));
    return give_up(m, WB_REBALANCE_LATE);
}

/* ---- moving -------------------------------------------------------------------------------------- */

static wb_status end_failed_move(wb_rebalance *m, wb_status status, bool dead) {
    if (!dead) return give_up(m, WB_REBALANCE_FAILED);
    wb_comm_abort(m->comm);
    return status;
}

static wb_status start_move(wb_rebalance *m) {
    bool dead;
    const wb_status started = wb_rebalance_start_round(m, &dead);
    return started == WB_OK ? WB_OK : end_failed_move(m, started, dead);
}

static wb_status end_move(wb_rebalance *m) {
    bool done, dead;
    const wb_status moved = wb_rebalance_end_round(m, &done, &dead);
    if (moved != WB_OK) return end_failed_move(m, moved, dead);
    if (!done) return WB_OK;
    m->stats.rebalances++;
    end_decision(m);
    return WB_OK;
}

/* ---- a boundary ---------------------------------------------------------------------------------- */

static wb_status do_next(wb_rebalance *m) {
    switch (m->stats.stage) {
    case WB_REBALANCE_SOLVING:
        return wait_for_solver(m);
    case WB_REBALANCE_MOVING:
        return start_move(m);
    default:
        return m->stats.boundaries % m->options.every == 0 ? decide(m) : WB_OK;
    }
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

wb_status wb_rebalance_begin_boundary(wb_rebalance *m) {
    const double begin = now();
    if (m->begun)
        return wb_fail(WB_INVALID_ARGUMENT, "rebalance: a boundary was begun and not ended before the next");
    /* This rank's tokens alone: sums over ranks are made where they are looked at. */
    wb_load_end_own_pass(m->load);
    m->stats.boundaries++;
    WB_TRY(do_next(m));
    m->begun = true;
    m->pause = now() - begin;
    return WB_OK;
}

wb_status wb_rebalance_end_boundary(wb_rebalance *m) {
    const double begin = now();
    if (!m->begun) return wb_fail(WB_INVALID_ARGUMENT, "rebalance: no boundary was begun");
    m->begun = false;
    if (m->stats.stage == WB_REBALANCE_MOVING) WB_TRY(end_move(m));
    m->pause += now() - begin;
    m->stats.seconds += m->pause;
    if (m->pause > m->stats.longest_pause) m->stats.longest_pause = m->pause;
    return WB_OK;
}

wb_status wb_rebalance_boundary(wb_rebalance *m) {
    WB_TRY(wb_rebalance_begin_boundary(m));
    return wb_rebalance_end_boundary(m);
}
