/* exchange_parts.c - what groups are made of: transfers, the parts of a gather, and sums in rank order,
 * whatever way their parts travel. Refuses: the sums of an adapter, whose order is not fixed. */
#include "exchange_state.h"
#include "wb_check.h"

void wb_exchange_put(wb_exchange_work *work, wb_transfer transfer) {
    wb_exchange_group *group = &work->group;
    group->items[group->n++] = (wb_exchange_item){.transfer = transfer, .group = group};
}

wb_status wb_exchange_copy(wb_exchange *exchange, void *to, const void *from, size_t bytes) {
    if (bytes == 0) return WB_OK;
    return exchange->memory.copy(exchange->memory.context, to, from, bytes);
}

/* ---- gathers -------------------------------------------------------------------------------------- */

void wb_exchange_put_gather(const wb_exchange *exchange, wb_exchange_work *work, void *buffer,
                            const size_t *bounds, size_t unit) {
    const size_t *const own = bounds + exchange->rank;
    for (int i = 1; i < exchange->ranks; i++) {
        const int from = wb_exchange_receive_peer(exchange, i), to = wb_exchange_send_peer(exchange, i);
        wb_exchange_put(work, (wb_transfer){from, true, wb_exchange_offset(buffer, bounds[from] * unit),
                                            (bounds[from + 1] - bounds[from]) * unit});
        wb_exchange_put(work, (wb_transfer){to, false, wb_exchange_offset(buffer, own[0] * unit),
                                            (own[1] - own[0]) * unit});
    }
}

/* ---- sums ---------------------------------------------------------------------------------------- */

size_t wb_exchange_even_part(const wb_exchange *exchange, size_t n) {
    const size_t ranks = (size_t)exchange->ranks;
    return n / ranks + (n % ranks > 0);
}

void wb_exchange_even_bounds(wb_exchange *exchange, size_t n) {
    const size_t part = wb_exchange_even_part(exchange, n);
    exchange->bounds[0] = 0;
    for (int r = 0; r < exchange->ranks; r++) {
        const size_t start = exchange->bounds[r];
        exchange->bounds[r + 1] = n - start < part ? n : start + part;
    }
}

/* own = rank 0's + rank 1's + ... in that order, this rank's in its place: the first rows of scratch are the
 * lower ranks', of which row 0 takes the sum. */
static wb_status add_parts(wb_exchange *exchange, const wb_exchange_sums *sums) {
    const wb_exchange_memory *memory = &exchange->memory;
    float *const into = exchange->rank == 0 ? sums->own : sums->scratch;
    for (int r = 1; r < exchange->ranks; r++) {
        const float *const from = r == exchange->rank  ? sums->own
                                  : r < exchange->rank ? sums->scratch + (size_t)r * sums->n
                                                       : sums->scratch + (size_t)(r - 1) * sums->n;
        WB_TRY(memory->add(memory->context, sums->n, from, into));
    }
    return into == sums->own ? WB_OK : wb_exchange_copy(exchange, sums->own, into, sums->n * sizeof(float));
}

wb_status wb_exchange_add_up(wb_exchange *exchange, wb_exchange_work *work, bool *more_out) {
    if (work->sums.own) WB_TRY(add_parts(exchange, &work->sums));
    *more_out = work->sums.n_total > 0;
    if (!*more_out) return WB_OK;
    work->group.n = 0;
    wb_exchange_even_bounds(exchange, work->sums.n_total);
    wb_exchange_put_gather(exchange, work, work->sums.buffer, exchange->bounds, sizeof(float));
    return WB_OK;
}
