/* exchange.c - the data plane over any adapter: made, closed, its works in flight, their groups and their
 * end, and how it dies. Refuses: what a group is made of (exchange_ops.c, exchange_parts.c), how its items
 * travel (adapters). */
#include "comm_state.h"
#include "exchange_state.h"
#include "wb_check.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the object ---------------------------------------------------------------------------------- */

static wb_status check_memory(const wb_exchange_memory *memory) {
    if (memory->size != sizeof *memory)
        return wb_fail(WB_INVALID_ARGUMENT, "exchange: expected a memory of %zu bytes, found %zu",
                       sizeof *memory, memory->size);
    if (!memory->host_alloc || !memory->host_free)
        return wb_fail(WB_INVALID_ARGUMENT, "exchange: memory: host_alloc or host_free is NULL");
    if (!memory->to_host || !memory->to_device || !memory->copy || !memory->add)
        return wb_fail(WB_INVALID_ARGUMENT, "exchange: memory: to_host, to_device, copy or add is NULL");
    return WB_OK;
}

static wb_status check_ops(const wb_exchange_ops *ops) {
    if (ops->size != sizeof *ops)
        return wb_fail(WB_INVALID_ARGUMENT, "exchange: expected ops of %zu bytes, found %zu", sizeof *ops,
                       ops->size);
    if (!ops->start || !ops->wait || !ops->drop || !ops->close)
        return wb_fail(WB_INVALID_ARGUMENT, "exchange: ops: start, wait, drop or close is NULL");
    return WB_OK;
}

wb_status wb_exchange_open(wb_comm *comm, const wb_exchange_memory *memory, wb_exchange **exchange_out) {
    if (!comm || !memory || !exchange_out) return wb_fail(WB_INVALID_ARGUMENT, "wb_exchange_open: NULL");
    WB_TRY(check_memory(memory));
    if (!comm->ops.open_exchange)
        return wb_fail(WB_UNSUPPORTED, "exchange: transport %s has no data plane (open_exchange is NULL)",
                       comm->ops.name);
    return comm->ops.open_exchange(comm, memory, exchange_out);
}

/* Frees what wb_exchange_new made, and not the adapter's state. */
static void free_exchange(wb_exchange *exchange) {
    free(exchange->items);
    free(exchange->bounds);
    free(exchange);
}

wb_status wb_exchange_new(const wb_exchange_ops *ops, wb_comm *comm, const wb_exchange_memory *memory,
                          void *state, wb_exchange **exchange_out) {
    if (!ops || !comm || !memory || !exchange_out)
        return wb_fail(WB_INVALID_ARGUMENT, "wb_exchange_new: NULL");
    WB_TRY(check_ops(ops));
    WB_TRY(check_memory(memory));
    wb_status status;
    wb_exchange *exchange = NULL;
    WB_TRY(WB_NEW(exchange, 1, "exchange"));
    exchange->ops = *ops;
    exchange->memory = *memory;
    exchange->comm = comm;
    exchange->state = state;
    exchange->rank = wb_comm_rank(comm);
    exchange->ranks = wb_comm_size(comm);
    WB_GOTO(WB_NEW(exchange->bounds, (size_t)exchange->ranks + 1, "exchange parts"), free_exchange);
    WB_GOTO(wb_exchange_reserve(exchange, 2 * (size_t)exchange->ranks), free_exchange);
    *exchange_out = exchange;
    return WB_OK;

free_exchange:
    free_exchange(exchange);
    return status;
}

static bool in_flight(const wb_exchange *exchange) {
    for (size_t i = 0; i < WB_EXCHANGE_IN_FLIGHT; i++)
        if (exchange->works[i].number > 0) return true;
    return false;
}

void wb_exchange_close(wb_exchange *exchange) {
    if (!exchange) return;
    if (in_flight(exchange))
        WB_IGNORE(wb_exchange_end(
            exchange, wb_fail(WB_PEER, "it closed its exchange before it waited for all that it started")));
    exchange->ops.close(exchange->state);
    free_exchange(exchange);
}

wb_comm *wb_exchange_comm(const wb_exchange *exchange) {
    return exchange->comm;
}

wb_status wb_exchange_reserve(wb_exchange *exchange, size_t n) {
    if (n <= exchange->item_room) return WB_OK;
    if (in_flight(exchange))
        return wb_fail(WB_INVALID_ARGUMENT, "exchange: room for %zu transfers: work is in flight", n);
    if (n > SIZE_MAX / WB_EXCHANGE_IN_FLIGHT)
        return wb_fail(WB_INVALID_ARGUMENT, "exchange: %zu transfers overflow", n);
    wb_exchange_item *items = NULL;
    WB_TRY(WB_NEW(items, n * WB_EXCHANGE_IN_FLIGHT, "exchange transfers"));
    free(exchange->items);
    exchange->items = items;
    exchange->item_room = n;
    for (size_t i = 0; i < WB_EXCHANGE_IN_FLIGHT; i++) exchange->works[i].group.items = items + i * n;
    return WB_OK;
}

/* ---- how it dies --------------------------------------------------------------------------------- */

wb_status wb_exchange_end(wb_exchange *exchange, wb_status status) {
    if (status == WB_OK) return WB_OK;
    if (!exchange->dead) {
        exchange->dead = true;
        snprintf(exchange->failure, sizeof exchange->failure, "%s", wb_error_message());
        wb_comm_abort(exchange->comm);
        exchange->ops.drop(exchange->state);
        for (size_t i = 0; i < WB_EXCHANGE_IN_FLIGHT; i++) exchange->works[i].number = 0;
    }
    return wb_fail(status, "%s", exchange->failure);
}

static wb_status check_alive(const wb_exchange *exchange) {
    return exchange->dead ? wb_fail(WB_PEER, "exchange: it ended before: %s", exchange->failure) : WB_OK;
}

/* ---- works --------------------------------------------------------------------------------------- */

wb_status wb_exchange_begin(wb_exchange *exchange, wb_exchange_kind kind, size_t n,
                            wb_exchange_work **work_out) {
    WB_TRY(check_alive(exchange));
    WB_TRY(wb_exchange_reserve(exchange, n));
    wb_exchange_work *work = exchange->works;
    const wb_exchange_work *const end = work + WB_EXCHANGE_IN_FLIGHT;
    while (work < end && work->number > 0) work++;
    if (work == end)
        return wb_fail(WB_INVALID_ARGUMENT, "exchange: expected at most %d works in flight, found one more",
                       WB_EXCHANGE_IN_FLIGHT);
    work->kind = kind;
    work->sums = (wb_exchange_sums){0};
    work->group.n = 0;
    *work_out = work;
    return WB_OK;
}

static wb_status start_group(wb_exchange *exchange, wb_exchange_work *work) {
    wb_exchange_group *group = &work->group;
    wb_exchange_count *count = &exchange->counts[work->kind];
    group->number = ++exchange->n_groups;
    group->left = group->n;
    for (size_t i = 0; i < group->n; i++) {
        if (group->items[i].transfer.receive) continue;
        count->sends++;
        count->bytes += group->items[i].transfer.bytes;
    }
    return exchange->ops.start(exchange->state, group);
}

wb_status wb_exchange_launch(wb_exchange *exchange, wb_exchange_work *work, uint64_t *work_out) {
    work->number = ++exchange->n_works;
    exchange->counts[work->kind].calls++;
    WB_TRY(wb_exchange_end(exchange, start_group(exchange, work)));
    *work_out = work->number;
    return WB_OK;
}

static wb_status finish(wb_exchange *exchange, wb_exchange_work *work) {
    bool more = false;
    WB_TRY(exchange->ops.wait(exchange->state, &work->group));
    WB_TRY(wb_exchange_add_up(exchange, work, &more));
    if (!more) return WB_OK;
    WB_TRY(start_group(exchange, work));
    return exchange->ops.wait(exchange->state, &work->group);
}

wb_status wb_exchange_wait(wb_exchange *exchange, uint64_t number) {
    WB_TRY(check_alive(exchange));
    wb_exchange_work *work = exchange->works;
    const wb_exchange_work *const end = work + WB_EXCHANGE_IN_FLIGHT;
    while (work < end && work->number != number) work++;
    if (number == 0 || work == end)
        return wb_fail(WB_INVALID_ARGUMENT, "exchange: wait: work %" PRIu64 " is not in flight", number);
    WB_TRY(wb_exchange_end(exchange, finish(exchange, work)));
    work->number = 0;
    return WB_OK;
}

/* ---- counting ------------------------------------------------------------------------------------ */

wb_status wb_exchange_stats(const wb_exchange *exchange, wb_exchange_kind kind,
                            wb_exchange_count *count_out) {
    if ((int)kind < 0 || kind >= WB_EXCHANGE_KINDS)
        return wb_fail(WB_INVALID_ARGUMENT, "exchange: kind: expected 0..%d, found %d", WB_EXCHANGE_KINDS - 1,
                       (int)kind);
    *count_out = exchange->counts[kind];
    return WB_OK;
}
