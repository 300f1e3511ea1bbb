/* exchange_core.h - what every data plane must do: one test core for self, threads and MPI, with memory that
 * the host may touch and with memory that it must not.
 *
 * exchange_core_run is called by each rank with the same seed and returns its number of failed checks; it
 * never leaves early, so that ranks stay in step. What a rank should have is computed, not communicated. */
#ifndef EXCHANGE_CORE_H
#define EXCHANGE_CORE_H

#include "comm/exchange_checks.h"
#include "support/alloc_fail.h"

/* ---- one work of each kind ----------------------------------------------------------------------- */

/* Between its start, which says how it went, and its check. */
typedef struct core_work {
    wb_exchange_kind kind;
    wb_status status;
    uint64_t topic, number;
    char *send, *recv;         /* one buffer, in `recv`, where the call works in place */
    size_t send_end, recv_end; /* bytes */
    size_t bounds[DEVICE_RANKS + 1];
} core_work;

static size_t part_size(const exchange_core *c, const core_work *w, size_t from, size_t to) {
    return size_of(hash(c, w->topic, from, to));
}

/* Parts with a gap of three bytes behind each, in reverse rank order. */
static void core_start_all_to_all(exchange_core *c, core_work *w) {
    size_t send_bytes[DEVICE_RANKS], recv_bytes[DEVICE_RANKS];
    size_t send_offsets[DEVICE_RANKS], recv_offsets[DEVICE_RANKS];
    w->send_end = w->recv_end = 0;
    for (size_t r = c->ranks; r-- > 0;) {
        send_bytes[r] = part_size(c, w, c->rank, r);
        recv_bytes[r] = part_size(c, w, r, c->rank);
        send_offsets[r] = w->send_end;
        recv_offsets[r] = w->recv_end;
        w->send_end += send_bytes[r] + 3;
        w->recv_end += recv_bytes[r] + 3;
    }
    w->send = core_take(c, w->send_end);
    w->recv = core_take(c, w->recv_end);
    for (size_t r = 0; r < c->ranks; r++)
        core_fill(c, w->send + send_offsets[r], hash(c, w->topic + 1, c->rank, r), send_bytes[r]);
    w->status = wb_exchange_start_all_to_all_v(c->exchange, w->send, send_bytes, send_offsets, w->recv,
                                               recv_bytes, recv_offsets, &w->number);
}

static void core_check_all_to_all(exchange_core *c, const core_work *w) {
    size_t at = 0;
    for (size_t r = c->ranks; r-- > 0;) {
        const size_t bytes = part_size(c, w, r, c->rank);
        CHECK(c, core_bytes_are(c, w->recv + at, hash(c, w->topic + 1, r, c->rank), bytes));
        CHECK(c, poisoned(c, w->recv + at + bytes, 3));
        at += bytes + 3;
    }
    CHECK(c, core_intact(c, w->recv, w->recv_end));
}

/* A gap before the first part. */
static void core_bounds(exchange_core *c, core_work *w, size_t unit) {
    w->bounds[0] = hash(c, w->topic, 1000, 0) % 5;
    for (size_t r = 0; r < c->ranks; r++) w->bounds[r + 1] = w->bounds[r] + part_size(c, w, r, r) / unit;
    w->recv_end = w->bounds[c->ranks] * unit;
    w->recv = core_take(c, w->recv_end);
}

static void core_start_all_gather(exchange_core *c, core_work *w) {
    core_bounds(c, w, 1);
    core_fill(c, w->recv + w->bounds[c->rank], hash(c, w->topic + 1, c->rank, 0),
              w->bounds[c->rank + 1] - w->bounds[c->rank]);
    w->status = wb_exchange_start_all_gather(c->exchange, w->recv, w->bounds, &w->number);
}

static void core_check_all_gather(exchange_core *c, const core_work *w) {
    for (size_t r = 0; r < c->ranks; r++)
        CHECK(c, core_bytes_are(c, w->recv + w->bounds[r], hash(c, w->topic + 1, r, 0),
                                w->bounds[r + 1] - w->bounds[r]));
    CHECK(c, core_intact(c, w->recv, w->recv_end) && poisoned(c, w->recv, w->bounds[0]));
}

/* This rank's summands. */
static void core_fill_values(exchange_core *c, const core_work *w) {
    float *values = (float *)(void *)core_view(c, w->recv);
    for (size_t i = w->bounds[0]; i < w->bounds[c->ranks]; i++) values[i] = value_of(c, w->topic, c->rank, i);
}

/* Elements [begin, end) are the sums, or still this rank's summands. */
static bool core_values_are(const exchange_core *c, const core_work *w, size_t begin, size_t end, bool sums) {
    const float *values = (const float *)(const void *)core_view(c, w->recv);
    for (size_t i = begin; i < end; i++) {
        const float expected = sums ? sum_of(c, w->topic, i) : value_of(c, w->topic, c->rank, i);
        if (memcmp(&expected, &values[i], sizeof expected) != 0) return false;
    }
    return true;
}

static void core_start_reduce_scatter(exchange_core *c, core_work *w) {
    core_bounds(c, w, sizeof(float));
    core_fill_values(c, w);
    w->send_end = wb_exchange_reduce_scratch(c->exchange, w->bounds[c->rank + 1] - w->bounds[c->rank]);
    w->send = core_take(c, w->send_end * sizeof(float));
    w->status = wb_exchange_start_reduce_scatter(c->exchange, (float *)(void *)w->recv, w->bounds,
                                                 (float *)(void *)w->send, &w->number);
}

static void core_check_reduce_scatter(exchange_core *c, const core_work *w) {
    for (size_t r = 0; r < c->ranks; r++)
        CHECK(c, core_values_are(c, w, w->bounds[r], w->bounds[r + 1], r == c->rank));
    CHECK(c, core_intact(c, w->recv, w->recv_end) && core_intact(c, w->send, w->send_end * sizeof(float)));
}

static void core_start_all_reduce(exchange_core *c, core_work *w) {
    const size_t n = part_size(c, w, 0, 0);
    memset(w->bounds, 0, sizeof w->bounds);
    w->bounds[c->ranks] = n;
    w->recv_end = n * sizeof(float);
    w->recv = core_take(c, w->recv_end);
    core_fill_values(c, w);
    w->send_end = wb_exchange_all_reduce_scratch(c->exchange, n);
    w->send = core_take(c, w->send_end * sizeof(float));
    w->status = wb_exchange_start_all_reduce(c->exchange, (float *)(void *)w->recv, n,
                                             (float *)(void *)w->send, &w->number);
}

static void core_check_all_reduce(exchange_core *c, const core_work *w) {
    CHECK(c, core_values_are(c, w, 0, w->bounds[c->ranks], true));
    CHECK(c, core_intact(c, w->recv, w->recv_end) && core_intact(c, w->send, w->send_end * sizeof(float)));
}

/* Up to three transfers from a rank to another or itself, on most pairs none. */
#define CORE_TRANSFERS 3
static size_t n_transfers(const exchange_core *c, const core_work *w, size_t from, size_t to) {
    const uint64_t h = hash(c, w->topic + 2, from, to);
    return h % 3 == 0 ? 0 : (size_t)(h >> 8) % (CORE_TRANSFERS + 1);
}

static size_t transfer_size(const exchange_core *c, const core_work *w, size_t from, size_t to, size_t i) {
    return size_of(hash(c, w->topic + 3 + i, from, to));
}

/* The receives of a rank lie one behind the other, three bytes apart; the list goes up through the ranks on
 * one side and down on the other. */
static void core_start_group(exchange_core *c, core_work *w) {
    wb_transfer transfers[2 * CORE_TRANSFERS * DEVICE_RANKS];
    size_t n = 0;
    w->send = core_take(c, 300000 * CORE_TRANSFERS * c->ranks);
    w->recv = core_take(c, 300000 * CORE_TRANSFERS * c->ranks);
    w->send_end = w->recv_end = 0;
    for (size_t r = 0; r < c->ranks; r++)
        for (size_t i = 0; i < n_transfers(c, w, c->rank, r); i++) {
            const size_t bytes = transfer_size(c, w, c->rank, r, i);
            core_fill(c, w->send + w->send_end, hash(c, w->topic + 10 + i, c->rank, r), bytes);
            transfers[n++] = (wb_transfer){(int)r, false, w->send + w->send_end, bytes};
            w->send_end += bytes;
        }
    for (size_t r = c->ranks; r-- > 0;)
        for (size_t i = 0; i < n_transfers(c, w, r, c->rank); i++) {
            const size_t bytes = transfer_size(c, w, r, c->rank, i);
            transfers[n++] = (wb_transfer){(int)r, true, w->recv + w->recv_end, bytes};
            w->recv_end += bytes + 3;
        }
    w->status = wb_exchange_start_group(c->exchange, transfers, n, &w->number);
}

static void core_check_group(exchange_core *c, const core_work *w) {
    const char *at = w->recv;
    for (size_t r = c->ranks; r-- > 0;)
        for (size_t i = 0; i < n_transfers(c, w, r, c->rank); i++) {
            const size_t bytes = transfer_size(c, w, r, c->rank, i);
            CHECK(c, core_bytes_are(c, at, hash(c, w->topic + 10 + i, r, c->rank), bytes));
            CHECK(c, poisoned(c, at + bytes, 3));
            at += bytes + 3;
        }
    CHECK(c, core_intact(c, w->recv, w->recv_end));
}

/* ---- many at once -------------------------------------------------------------------------------- */

typedef struct core_kind {
    void (*start)(exchange_core *, core_work *);
    void (*check)(exchange_core *, const core_work *);
} core_kind;

static const core_kind core_kinds[WB_EXCHANGE_KINDS] = {
    [WB_EXCHANGE_GROUP] = {core_start_group, core_check_group},
    [WB_EXCHANGE_ALL_TO_ALL_V] = {core_start_all_to_all, core_check_all_to_all},
    [WB_EXCHANGE_ALL_GATHER] = {core_start_all_gather, core_check_all_gather},
    [WB_EXCHANGE_REDUCE_SCATTER] = {core_start_reduce_scatter, core_check_reduce_scatter},
    [WB_EXCHANGE_ALL_REDUCE] = {core_start_all_reduce, core_check_all_reduce}};

#define CORE_WORKS 5

/* Called before each start and wait of a round: whether the rank goes on. */
typedef bool core_step(exchange_core *c, void *context);

static bool core_goes_on(exchange_core *c, void *unused) {
    (void)c, (void)unused;
    return true;
}

/* Some works at once, waited for in an order of their own, until a step does not go on or a call fails, which
 * is returned. */
static wb_status core_round(exchange_core *c, size_t round, core_step *step, void *context) {
    core_work works[CORE_WORKS];
    size_t order[CORE_WORKS];
    const size_t n = 1 + hash(c, 1, round, 0) % CORE_WORKS;
    c->memory->used = 0;
    for (size_t i = 0; i < n; i++) {
        works[i] = (core_work){.kind = (wb_exchange_kind)(hash(c, 2, round, i) % WB_EXCHANGE_KINDS),
                               .topic = 1000 + 100 * (round * CORE_WORKS + i)};
        if (!step(c, context)) return WB_OK;
        core_kinds[works[i].kind].start(c, &works[i]);
        if (works[i].status != WB_OK) return works[i].status;
        const size_t at = hash(c, 3, round, i) % (i + 1);
        order[i] = order[at];
        order[at] = i;
    }
    for (size_t i = 0; i < n; i++) {
        const core_work *const w = &works[order[i]];
        if (!step(c, context)) return WB_OK;
        const wb_status status = core_wait(c, w->number);
        if (status != WB_OK) return status;
        core_kinds[w->kind].check(c, w);
    }
    return WB_OK;
}

/* The sums are those of the control plane, bit for bit; and the order of a sum shows in these values. */
static void core_same_sums(exchange_core *c) {
    const size_t n = 40000;
    float *values = malloc(n * sizeof *values);
    core_work w = {.topic = 77};
    if (!values) abort();
    size_t order_matters = 0;
    for (size_t i = 0; i < n; i++) {
        values[i] = value_of(c, w.topic, c->rank, i);
        float reversed = value_of(c, w.topic, c->ranks - 1, i);
        for (size_t r = c->ranks - 1; r-- > 0;) reversed += value_of(c, w.topic, r, i);
        order_matters += reversed != sum_of(c, w.topic, i);
    }
    c->memory->used = 0;
    w.recv = core_take(c, n * sizeof *values);
    w.send = core_take(c, wb_exchange_all_reduce_scratch(c->exchange, n) * sizeof *values);
    memcpy(core_view(c, w.recv), values, n * sizeof *values);
    CHECK_STATUS(c, WB_OK,
                 wb_exchange_start_all_reduce(c->exchange, (float *)(void *)w.recv, n,
                                              (float *)(void *)w.send, &w.number));
    CHECK_STATUS(c, WB_OK, wb_comm_all_reduce_f32(c->comm, values, n));
    CHECK_STATUS(c, WB_OK, core_wait(c, w.number));
    CHECK(c, memcmp(core_view(c, w.recv), values, n * sizeof *values) == 0);
    if (c->ranks > 2) CHECK(c, order_matters > 0);
    free(values);
}

/* Whether what is below the exchange takes memory of its own in a call, as NCCL does. */
static bool core_foreign_allocations;

/* In the steady state nothing is allocated, whatever the sizes are. */
static void core_rounds(exchange_core *c) {
    const long before = alloc_count_here();
    if (ALLOC_FAIL_WORKS) CHECK(c, before > 0);
    for (size_t round = 0; round < 30; round++)
        CHECK_STATUS(c, WB_OK, core_round(c, round, core_goes_on, NULL));
    if (!core_foreign_allocations) CHECK(c, alloc_count_here() == before);
}

/* ---- the order of streams ------------------------------------------------------------------------ */

/* `root` sends what lies on its stream, and writes there again when it has waited; what the others put on
 * their streams then, which nobody waits for before, sees what was sent. The root receives nothing: a receive
 * may wait for its stream. */
static void core_stream_order(exchange_core *c, size_t root, size_t bytes) {
    const wb_exchange_memory functions = device_memory(c->memory);
    const uint64_t sent = hash(c, 8, root, bytes), before = hash(c, 9, root, bytes);
    const bool sends = c->rank == root;
    wb_transfer transfers[DEVICE_RANKS];
    uint64_t work = 0;
    size_t n = 0;
    c->memory->used = 0;
    char *const at = core_take(c, bytes), *const seen = core_take(c, bytes);
    for (size_t r = 0; r < c->ranks; r++)
        if (sends ? r != root : r == root) transfers[n++] = (wb_transfer){(int)r, !sends, at, bytes};
    core_put(c, at, sends ? sent : before, bytes);
    CHECK_STATUS(c, WB_OK, wb_exchange_start_group(c->exchange, transfers, n, &work));
    CHECK_STATUS(c, WB_OK, wb_exchange_wait(c->exchange, work));
    if (sends) {
        core_put(c, at, before, bytes);
        core_finish(c);
    } else {
        CHECK_STATUS(c, WB_OK, functions.copy(functions.context, seen, at, bytes));
    }
    CHECK_STATUS(c, WB_OK, wb_comm_barrier(c->comm));
    core_finish(c);
    CHECK(c, sends || core_bytes_are(c, seen, sent, bytes));
    CHECK(c, core_intact(c, at, bytes) && core_intact(c, seen, bytes));
}

static int exchange_core_run(wb_comm *comm, bool host_access, uint64_t seed) {
    device memory = device_of(wb_comm_rank(comm), host_access);
    exchange_core state = {.comm = comm,
                           .memory = &memory,
                           .rank = (size_t)wb_comm_rank(comm),
                           .ranks = (size_t)wb_comm_size(comm),
                           .seed = seed};
    exchange_core *c = &state;
    const wb_exchange_memory functions = device_memory(&memory);
    CHECK_STATUS(c, WB_OK, wb_comm_set_timeout(comm, 60));
    if (!CHECK_STATUS(c, WB_OK, wb_exchange_open(comm, &functions, &c->exchange))) return c->failures;
    CHECK_STATUS(c, WB_OK, wb_exchange_reserve(c->exchange, 2 * CORE_TRANSFERS * c->ranks));
    core_rounds(c);
    core_same_sums(c);
    for (size_t root = 0; root < c->ranks; root++) {
        core_stream_order(c, root, 100);
        core_stream_order(c, root, 300000);
    }
    wb_exchange_close(c->exchange);
    CHECK_STATUS(c, WB_OK, wb_comm_barrier(comm));
    return c->failures;
}

#endif
