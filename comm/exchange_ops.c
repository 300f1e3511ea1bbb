/* exchange_ops.c - the calls of the data plane, each as a group of sends and receives: all-to-all-v,
 * all-gather, sums whose parts travel to their owner, groups. What a rank has for itself is copied at the
 * start, while the rest travels. Refuses: adding up (exchange_parts.c). */
#include "comm_state.h"
#include "exchange_state.h"
#include "wb_check.h"

#include <string.h>

static size_t room_of_all(const wb_exchange *exchange) {
    return 2 * (size_t)exchange->ranks;
}

/* ---- all-to-all-v -------------------------------------------------------------------------------- */

wb_status wb_exchange_start_all_to_all_v(wb_exchange *exchange, const void *send, const size_t *send_bytes,
                                         const size_t *send_offsets, void *recv, const size_t *recv_bytes,
                                         const size_t *recv_offsets, uint64_t *work_out) {
    WB_TRY(wb_comm_check_parts(exchange->ranks, "send", send, send_bytes, send_offsets));
    WB_TRY(wb_comm_check_parts(exchange->ranks, "recv", recv, recv_bytes, recv_offsets));
    const int me = exchange->rank;
    if (send_bytes[me] != recv_bytes[me])
        return wb_fail(WB_INVALID_ARGUMENT, "all_to_all_v: rank %d to itself: expected %zu bytes, found %zu",
                       me, recv_bytes[me], send_bytes[me]);
    wb_exchange_work *work;
    WB_TRY(wb_exchange_begin(exchange, WB_EXCHANGE_ALL_TO_ALL_V, room_of_all(exchange), &work));
    for (int i = 1; i < exchange->ranks; i++) {
        const int from = wb_exchange_receive_peer(exchange, i), to = wb_exchange_send_peer(exchange, i);
        wb_exchange_put(
            work, (wb_transfer){from, true, wb_exchange_offset(recv, recv_offsets[from]), recv_bytes[from]});
        wb_exchange_put(work,
                        (wb_transfer){to, false, wb_exchange_offset(send, send_offsets[to]), send_bytes[to]});
    }
    uint64_t number;
    WB_TRY(wb_exchange_launch(exchange, work, &number));
    const wb_status copied = wb_exchange_copy(exchange, wb_exchange_offset(recv, recv_offsets[me]),
                                              wb_exchange_offset(send, send_offsets[me]), send_bytes[me]);
    WB_TRY(wb_exchange_end(exchange, copied));
    *work_out = number;
    return WB_OK;
}

/* ---- all-gather ---------------------------------------------------------------------------------- */

static wb_status check_bounds(const wb_exchange *exchange, const char *call, const void *buffer,
                              const size_t *bounds, size_t unit) {
    if (!bounds) return wb_fail(WB_INVALID_ARGUMENT, "%s: bounds: NULL", call);
    for (int r = 0; r < exchange->ranks; r++)
        if (bounds[r] > bounds[r + 1])
            return wb_fail(WB_INVALID_ARGUMENT, "%s: bounds: expected rising ones, found %zu after %zu", call,
                           bounds[r + 1], bounds[r]);
    const size_t end = bounds[exchange->ranks];
    if (end > SIZE_MAX / unit / (size_t)exchange->ranks)
        return wb_fail(WB_INVALID_ARGUMENT, "%s: %zu elements on each of %d ranks overflow", call, end,
                       exchange->ranks);
    return wb_comm_check_buffer(call, "buffer", buffer, (end - bounds[0]) * unit);
}

wb_status wb_exchange_start_all_gather(wb_exchange *exchange, void *buffer, const size_t *bounds,
                                       uint64_t *work_out) {
    WB_TRY(check_bounds(exchange, "all_gather", buffer, bounds, 1));
    wb_exchange_work *work;
    WB_TRY(wb_exchange_begin(exchange, WB_EXCHANGE_ALL_GATHER, room_of_all(exchange), &work));
    wb_exchange_put_gather(exchange, work, buffer, bounds, 1);
    return wb_exchange_launch(exchange, work, work_out);
}

/* ---- sums ---------------------------------------------------------------------------------------- */

size_t wb_exchange_reduce_scratch(const wb_exchange *exchange, size_t n) {
    return n * (size_t)(exchange->ranks - 1);
}

/* Up to this many elements each rank sums everything itself, which is one step instead of two: as long as
 * all of them are fewer bytes than WB_GATHER_BYTES. */
static size_t max_gathered(const wb_exchange *exchange) {
    return WB_GATHER_BYTES / sizeof(float) / (size_t)exchange->ranks;
}

size_t wb_exchange_all_reduce_scratch(const wb_exchange *exchange, size_t n) {
    const size_t gathered = n < max_gathered(exchange) ? n : max_gathered(exchange);
    const size_t part = wb_exchange_even_part(exchange, n);
    return wb_exchange_reduce_scratch(exchange, part > gathered ? part : gathered);
}

/* A work that adds up on this rank the n elements at `own`, of which the other ranks send theirs. */
static wb_status begin_sums(wb_exchange *exchange, wb_exchange_kind kind, float *own, size_t n,
                            float *scratch, wb_exchange_work **work_out) {
    const size_t needed = wb_exchange_reduce_scratch(exchange, n) * sizeof(float);
    WB_TRY(wb_comm_check_buffer("sums over ranks", "scratch", scratch, needed));
    WB_TRY(wb_exchange_begin(exchange, kind, room_of_all(exchange), work_out));
    (*work_out)->sums = (wb_exchange_sums){.own = n > 0 ? own : NULL, .scratch = scratch, .n = n};
    return WB_OK;
}

/* The i-th receive of summands, for which each other rank has a row of scratch, and the i-th send. */
static void put_summands(const wb_exchange *exchange, wb_exchange_work *work, int i, float *send,
                         size_t n_send) {
    const int from = wb_exchange_receive_peer(exchange, i), to = wb_exchange_send_peer(exchange, i);
    const size_t row = (size_t)(from < exchange->rank ? from : from - 1);
    const size_t bytes = work->sums.n * sizeof(float);
    wb_exchange_put(work,
                    (wb_transfer){from, true, wb_exchange_offset(work->sums.scratch, row * bytes), bytes});
    wb_exchange_put(work, (wb_transfer){to, false, send, n_send * sizeof(float)});
}

/* Each part travels to its owner. */
static wb_status start_parts(wb_exchange *exchange, wb_exchange_kind kind, float *buffer,
                             const size_t *bounds, float *scratch, wb_exchange_work **work_out) {
    const size_t *const own = bounds + exchange->rank;
    wb_exchange_work *work;
    WB_TRY(begin_sums(exchange, kind, wb_exchange_offset(buffer, own[0] * sizeof(float)), own[1] - own[0],
                      scratch, &work));
    for (int i = 1; i < exchange->ranks; i++) {
        const size_t *const to = bounds + wb_exchange_send_peer(exchange, i);
        put_summands(exchange, work, i, wb_exchange_offset(buffer, to[0] * sizeof(float)), to[1] - to[0]);
    }
    *work_out = work;
    return WB_OK;
}

wb_status wb_exchange_start_reduce_scatter(wb_exchange *exchange, float *buffer, const size_t *bounds,
                                           float *scratch, uint64_t *work_out) {
    WB_TRY(check_bounds(exchange, "reduce_scatter", buffer, bounds, sizeof(float)));
    wb_exchange_work *work;
    WB_TRY(start_parts(exchange, WB_EXCHANGE_REDUCE_SCATTER, buffer, bounds, scratch, &work));
    return wb_exchange_launch(exchange, work, work_out);
}

/* Everything travels to every rank. */
static wb_status start_gathered(wb_exchange *exchange, float *buffer, size_t n, float *scratch,
                                uint64_t *work_out) {
    wb_exchange_work *work;
    WB_TRY(begin_sums(exchange, WB_EXCHANGE_ALL_REDUCE, buffer, n, scratch, &work));
    for (int i = 1; i < exchange->ranks; i++) put_summands(exchange, work, i, buffer, n);
    return wb_exchange_launch(exchange, work, work_out);
}

wb_status wb_exchange_start_all_reduce(wb_exchange *exchange, float *buffer, size_t n, float *scratch,
                                       uint64_t *work_out) {
    wb_exchange_even_bounds(exchange, n);
    WB_TRY(check_bounds(exchange, "all_reduce", buffer, exchange->bounds, sizeof(float)));
    if (n <= max_gathered(exchange)) return start_gathered(exchange, buffer, n, scratch, work_out);
    wb_exchange_work *work;
    WB_TRY(start_parts(exchange, WB_EXCHANGE_ALL_REDUCE, buffer, exchange->bounds, scratch, &work));
    work->sums.buffer = buffer;
    work->sums.n_total = n;
    return wb_exchange_launch(exchange, work, work_out);
}

/* ---- groups -------------------------------------------------------------------------------------- */

static wb_status check_transfers(const wb_exchange *exchange, const wb_transfer *transfers, size_t n) {
    if (n > 0 && !transfers) return wb_fail(WB_INVALID_ARGUMENT, "group: %zu transfers, found NULL", n);
    for (size_t i = 0; i < n; i++) {
        if (transfers[i].peer < 0 || transfers[i].peer >= exchange->ranks)
            return wb_fail(WB_INVALID_ARGUMENT, "group: transfer %zu: peer: expected 0..%d, found %d", i,
                           exchange->ranks - 1, transfers[i].peer);
        WB_TRY(wb_comm_check_buffer("group", "data", transfers[i].data, transfers[i].bytes));
    }
    return WB_OK;
}

/* The next transfer of this rank with itself from *at on; NULL when there is none. */
static const wb_transfer *next_own(const wb_exchange *exchange, const wb_transfer *transfers, size_t n,
                                   bool receive, size_t *at) {
    while (*at < n) {
        const wb_transfer *const transfer = &transfers[(*at)++];
        if (transfer->peer == exchange->rank && transfer->receive == receive) return transfer;
    }
    return NULL;
}

/* What this rank sends itself; before anything is copied or sent all of it is checked. */
static wb_status copy_own(wb_exchange *exchange, const wb_transfer *transfers, size_t n, bool check) {
    size_t sent = 0, received = 0;
    for (;;) {
        const wb_transfer *const send = next_own(exchange, transfers, n, false, &sent);
        const wb_transfer *const receive = next_own(exchange, transfers, n, true, &received);
        if (!send && !receive) return WB_OK;
        if (check && (!send || !receive || send->bytes != receive->bytes))
            return wb_fail(WB_INVALID_ARGUMENT, "group: rank %d to itself: expected %zu bytes, found %zu",
                           exchange->rank, receive ? receive->bytes : 0, send ? send->bytes : 0);
        if (!check) WB_TRY(wb_exchange_copy(exchange, receive->data, send->data, send->bytes));
    }
}

wb_status wb_exchange_start_group(wb_exchange *exchange, const wb_transfer *transfers, size_t n,
                                  uint64_t *work_out) {
    WB_TRY(check_transfers(exchange, transfers, n));
    WB_TRY(copy_own(exchange, transfers, n, true));
    wb_exchange_work *work;
    WB_TRY(wb_exchange_begin(exchange, WB_EXCHANGE_GROUP, n, &work));
    for (size_t i = 0; i < n; i++)
        if (transfers[i].peer != exchange->rank) wb_exchange_put(work, transfers[i]);
    uint64_t number;
    WB_TRY(wb_exchange_launch(exchange, work, &number));
    WB_TRY(wb_exchange_end(exchange, copy_own(exchange, transfers, n, false)));
    *work_out = number;
    return WB_OK;
}
