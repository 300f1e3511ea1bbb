/* pack.c - the packing of a step: what ranks tell each other of their sequences, and its results. */
#include "pack_state.h"
#include "wb_hash.h"
#include "wb_options.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

WB_OPTIONS_END(wb_pack_options, cost);

wb_pack_cost wb_pack_cost_of(uint32_t hidden, uint32_t q_width, uint32_t kv_width, uint32_t expert_width,
                             uint32_t n_layers) {
    return (wb_pack_cost){.per_row = 4.0 * hidden * ((double)q_width + kv_width) * n_layers,
                          .per_pair = 4.0 * q_width * n_layers,
                          .per_choice = 6.0 * hidden * expert_width};
}

static wb_pack_options defaults(void) {
    return (wb_pack_options){.size = sizeof(wb_pack_options),
                             .max_rows = 4096,
                             .n_updates = 1,
                             .cost = wb_pack_cost_of(4096, 4096, 512, 1536, 94)};
}

void wb_pack_options_init(wb_pack_options *options_out, size_t size) {
    const wb_pack_options own = defaults();
    wb_options_init(options_out, size, &own, sizeof own);
}

/* ---- what one rank can fail alone ---------------------------------------------------------------- */

static bool is_cost(double cost) {
    return isfinite(cost) && cost >= 0;
}

static wb_status check_options(const wb_pack_options *o) {
    WB_TRY(wb_options_check_reserved(o->reserved, sizeof o->reserved, "packing"));
    if (o->max_rows < 1 || o->max_rows > INT32_MAX)
        return wb_fail(WB_INVALID_ARGUMENT, "packing: max_rows: expected 1..%d, found %" PRId64, INT32_MAX,
                       o->max_rows);
    if (o->n_updates < 1 || o->n_updates > INT32_MAX)
        return wb_fail(WB_INVALID_ARGUMENT, "packing: n_updates: expected 1..%d, found %" PRIu32, INT32_MAX,
                       o->n_updates);
    if (!is_cost(o->cost.per_row) || !is_cost(o->cost.per_pair) || !is_cost(o->cost.per_choice))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "packing: cost: expected finite numbers of 0 or more, found %g, %g and %g",
                       o->cost.per_row, o->cost.per_pair, o->cost.per_choice);
    return WB_OK;
}

static wb_status check_sequence(const wb_pack *p, uint32_t i) {
    const wb_pack_sequence *s = &p->own[i];
    if (!s->record) return wb_fail(WB_INVALID_ARGUMENT, "packing: sequence %" PRIu32 ": record is NULL", i);
    WB_TRY(wb_record_check(&p->model, s->record, true));
    if (s->update >= p->options.n_updates)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "packing: request %s: update: expected 0..%" PRIu32 ", found %" PRIu32, s->record->rid,
                       p->options.n_updates - 1, s->update);
    if (s->rows < 1 || s->rows > p->options.max_rows || s->rows > s->record->n_tokens)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "packing: request %s of %" PRIu32 " tokens: expected 1..%" PRId64
                       " rows, as many as a micro-batch has on a rank, found %" PRIu32,
                       s->record->rid, s->record->n_tokens, p->options.max_rows, s->rows);
    if ((uint64_t)s->rows * wb_route_row_ids(&p->model) > INT32_MAX)
        return wb_fail(WB_CAPACITY,
                       "packing: request %s: %" PRIu32 " rows of %zu choices are more than 2^31 - 1",
                       s->record->rid, s->rows, wb_route_row_ids(&p->model));
    return WB_OK;
}

/* ---- what ranks tell each other ------------------------------------------------------------------ */

enum { MOST_SEQUENCES = 1 << 30 };

/* What lives only while the packing is made. */
typedef struct gathering {
    wb_owner memory;
    int32_t *own;                                                  /* [n_own][sketch_length] */
    int32_t *all;                                                  /* [n][sketch_length] */
    uint64_t *n_of_rank;                                           /* [R] */
    size_t *send_bytes, *send_offsets, *recv_bytes, *recv_offsets; /* [R] */
} gathering;

static size_t sketch_length(const wb_pack *p) {
    return PACK_HEADER + p->width;
}

static wb_status sketch_own(const wb_pack *p, gathering *g) {
    const size_t n = (size_t)p->model.n_moe_layers * p->model.num_experts;
    uint64_t *counts;
    WB_TRY(
        WB_OWN_ALLOC(&g->memory, g->own, p->n_own, sketch_length(p) * sizeof *g->own, "packing: sketches"));
    WB_TRY(WB_OWN(&g->memory, counts, n, "packing: counts"));
    for (uint32_t i = 0; i < p->n_own; i++) {
        int32_t *sketch = g->own + i * sketch_length(p);
        memset(counts, 0, n * sizeof *counts);
        wb_record_count(&p->model, p->own[i].record, 0, p->own[i].rows, counts);
        sketch[PACK_ROWS] = (int32_t)p->own[i].rows;
        sketch[PACK_UPDATE] = (int32_t)p->own[i].update;
        wb_pack_sketch(&p->model, counts, p->width, sketch + PACK_HEADER);
    }
    return WB_OK;
}

static wb_status prepare(wb_pack *p, const wb_pack_options *options, const wb_pack_sequence *sequences,
                         gathering *g) {
    WB_TRY(wb_options_read(&p->options, sizeof p->options, options, "packing"));
    WB_TRY(check_options(&p->options));
    WB_TRY(wb_route_model_check(&p->model));
    p->width = wb_pack_sketch_width(&p->model);
    if (p->n_own > 0 && !sequences)
        return wb_fail(WB_INVALID_ARGUMENT, "packing: %" PRIu32 " sequences, NULL", p->n_own);
    WB_TRY(WB_OWN(&p->memory, p->own, p->n_own, "packing: sequences"));
    if (p->n_own > 0) memcpy(p->own, sequences, p->n_own * sizeof *sequences);
    for (uint32_t i = 0; i < p->n_own; i++) WB_TRY(check_sequence(p, i));
    const size_t R = p->n_ranks;
    WB_TRY(WB_OWN(&p->memory, p->home_start, R + 1, "packing: ranks"));
    WB_TRY(WB_OWN(&p->memory, p->first, (size_t)p->options.n_updates + 1, "packing: updates"));
    WB_TRY(WB_OWN(&g->memory, g->n_of_rank, R, "packing: ranks"));
    WB_TRY(WB_OWN(&g->memory, g->send_bytes, R, "packing: ranks"));
    WB_TRY(WB_OWN(&g->memory, g->send_offsets, R, "packing: ranks"));
    WB_TRY(WB_OWN(&g->memory, g->recv_bytes, R, "packing: ranks"));
    WB_TRY(WB_OWN(&g->memory, g->recv_offsets, R, "packing: ranks"));
    return sketch_own(p, g);
}

/* Costs decide the packing, and the model what its numbers mean. */
static wb_status check_ranks_agree(const wb_pack *p, wb_comm *comm) {
    const wb_pack_options *o = &p->options;
    const uint64_t same[] = {(uint64_t)o->max_rows,
                             o->n_updates,
                             p->model.n_moe_layers,
                             p->model.num_experts,
                             p->model.top_k,
                             wb_hash64(&o->cost, sizeof o->cost),
                             wb_hash64(p->model.fingerprint, strlen(p->model.fingerprint))};
    return wb_comm_check_equal(comm, same, sizeof same, "packing: max_rows, n_updates, cost and model");
}

/* Room for what all ranks have, whose numbers are known. */
static wb_status reserve_all(wb_pack *p, gathering *g) {
    const size_t bytes = sketch_length(p) * sizeof(int32_t);
    uint64_t n = 0;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        p->home_start[r] = (uint32_t)n;
        g->send_bytes[r] = p->n_own * bytes;
        g->recv_offsets[r] = n * bytes;
        g->recv_bytes[r] = g->n_of_rank[r] * bytes;
        n += g->n_of_rank[r];
        if (n > MOST_SEQUENCES)
            return wb_fail(WB_CAPACITY, "packing: expected at most %d sequences, found more", MOST_SEQUENCES);
    }
    p->home_start[p->n_ranks] = p->n = (uint32_t)n;
    p->stats.gathered_bytes = (n - p->n_own) * bytes;
    WB_TRY(WB_OWN(&p->memory, p->places, n, "packing: sequences"));
    return WB_OWN_ALLOC(&g->memory, g->all, n, bytes, "packing: sketches");
}

static void place_at_home(wb_pack *p, const gathering *g) {
    for (uint32_t r = 0; r < p->n_ranks; r++)
        for (uint32_t i = p->home_start[r]; i < p->home_start[r + 1]; i++)
            p->places[i] = (wb_pack_place){.home = r,
                                           .index = i - p->home_start[r],
                                           .rows = (uint32_t)g->all[i * sketch_length(p) + PACK_ROWS]};
}

static wb_status gather(wb_pack *p, wb_comm *comm, gathering *g) {
    const uint64_t n_own = p->n_own;
    WB_TRY(check_ranks_agree(p, comm));
    WB_TRY(wb_comm_all_gather(comm, &n_own, sizeof n_own, g->n_of_rank));
    WB_TRY(wb_comm_agree(comm, reserve_all(p, g)));
    WB_TRY(wb_comm_all_to_all_v(comm, g->own, g->send_bytes, g->send_offsets, g->all, g->recv_bytes,
                                g->recv_offsets));
    place_at_home(p, g);
    WB_TRY(wb_comm_agree(comm, wb_pack_assign(p, g->all)));
    WB_TRY(wb_comm_check_equal(comm, p->places, p->n * sizeof *p->places, "packing"));
    return wb_pack_sum_loads(p, comm);
}

/* ---- opening and results ------------------------------------------------------------------------- */

static wb_status create(wb_comm *comm, const wb_route_model *model, uint32_t n, wb_pack **pack_out) {
    wb_pack *p;
    WB_TRY(WB_NEW(p, 1, "packing"));
    *p = (wb_pack){.model = *model,
                   .options = defaults(),
                   .rank = (uint32_t)wb_comm_rank(comm),
                   .n_ranks = (uint32_t)wb_comm_size(comm),
                   .n_own = n};
    *pack_out = p;
    return WB_OK;
}

wb_status wb_pack_open(wb_comm *comm, const wb_route_model *model, const wb_pack_options *options, uint32_t n,
                       const wb_pack_sequence *sequences, wb_pack **pack_out) {
    if (!comm || !model || !pack_out)
        return wb_fail(WB_INVALID_ARGUMENT, "packing: comm, model or pack_out is NULL");
    wb_pack *p = NULL;
    gathering g = {0};
    wb_status status = create(comm, model, n, &p);
    if (status == WB_OK) status = prepare(p, options, sequences, &g);
    status = wb_comm_agree(comm, status);
    if (status == WB_OK) status = gather(p, comm, &g);
    wb_owner_close(&g.memory);
    if (status != WB_OK) {
        wb_pack_close(p);
        return status;
    }
    *pack_out = p;
    return WB_OK;
}

void wb_pack_close(wb_pack *p) {
    if (!p) return;
    wb_owner_close(&p->memory);
    free(p);
}

int32_t wb_pack_micro_batches(const wb_pack *p) {
    return (int32_t)p->n_micro_batches;
}

int32_t wb_pack_first(const wb_pack *p, uint32_t update) {
    return (int32_t)p->first[update];
}

const wb_pack_place *wb_pack_places(const wb_pack *p, uint32_t *n_out) {
    *n_out = p->n;
    return p->places;
}

const double *wb_pack_loads(const wb_pack *p) {
    return p->loads;
}

wb_pack_stats wb_pack_get_stats(const wb_pack *p) {
    return p->stats;
}
