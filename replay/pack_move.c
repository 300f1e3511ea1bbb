/* pack_move.c - records on their way to the ranks that train on them. Owns: how a record lies in a block of
 * bytes between ranks of one program. Refuses: files, whose layout is formats'. */
#include "pack_state.h"

#include <string.h>

/* A record as it travels: this, then its arrays, each from a multiple of 8 bytes on. Pointers in it mean
 * something where they are not NULL: the array follows. */
typedef struct letter {
    wb_record record;
    uint64_t rid_bytes, n_mask_ids;
} letter;

typedef enum walk_kind { MEASURE, WRITE, READ } walk_kind;

/* One walk over a letter's arrays measures, writes and reads it. */
typedef struct letter_walk {
    walk_kind kind;
    unsigned char *block; /* WRITE, READ; a multiple of 8 */
    size_t used;
} letter_walk;

/* Where the array lies afterwards: in the block where it is read, else where it was. */
static void *pass(letter_walk *w, const void *array, size_t bytes) {
    if (!array) return NULL;
    const size_t at = w->used;
    w->used += (bytes + 7) / 8 * 8;
    if (w->kind == WRITE) memcpy(w->block + at, array, bytes);
    return w->kind == READ ? w->block + at : (void *)(uintptr_t)array;
}

static void pass_routes(letter_walk *w, const wb_route_model *model, wb_record *r) {
    wb_route_rows *runs = pass(w, r->routes, r->n_routes * sizeof *runs);
    const size_t row_bytes = wb_route_row_bytes(model);
    for (uint32_t i = 0; i < r->n_routes; i++) {
        const void *ids = pass(w, runs[i].ids, runs[i].rows * row_bytes);
        const uint8_t *valid = pass(w, runs[i].valid, ((size_t)runs[i].rows + 7) / 8);
        if (w->kind != READ) continue;
        runs[i].ids = ids;
        runs[i].valid = valid;
    }
    r->routes = runs;
}

static void pass_indexer(letter_walk *w, const wb_route_model *model, wb_record *r) {
    wb_indexer_rows *run = pass(w, r->indexer, sizeof *run);
    r->indexer = run;
    if (!run) return;
    const size_t n = (size_t)run->rows * wb_indexer_columns(model);
    const uint32_t *counts = pass(w, run->counts, n * sizeof *counts);
    const uint64_t *ends = pass(w, run->ends, n * sizeof *ends);
    const uint32_t *positions = pass(w, run->positions, n > 0 ? (size_t)ends[n - 1] * sizeof *positions : 0);
    if (w->kind == READ) *run = (wb_indexer_rows){run->start, run->rows, counts, ends, positions};
}

static void pass_arrays(letter_walk *w, const wb_route_model *model, letter *l) {
    wb_record *r = &l->record;
    const size_t n_new = r->n_tokens - r->prompt_len;
    r->rid = pass(w, r->rid, l->rid_bytes);
    r->tokens = pass(w, r->tokens, r->n_tokens * sizeof *r->tokens);
    r->logprobs = pass(w, r->logprobs, n_new * sizeof *r->logprobs);
    r->spans = pass(w, r->spans, r->n_spans * sizeof *r->spans);
    pass_routes(w, model, r);
    pass_indexer(w, model, r);
    r->sampling = pass(w, r->sampling, sizeof *r->sampling);
    r->sampling_logprobs = pass(w, r->sampling_logprobs, n_new * sizeof *r->sampling_logprobs);
    r->mask_ids = pass(w, r->mask_ids, l->n_mask_ids * sizeof *r->mask_ids);
    r->mask_ends = pass(w, r->mask_ends, n_new * sizeof *r->mask_ends);
}

static letter letter_of(const wb_record *r) {
    const uint32_t n_new = r->n_tokens - r->prompt_len;
    return (letter){.record = *r,
                    .rid_bytes = strlen(r->rid) + 1,
                    .n_mask_ids = r->mask_ends && n_new > 0 ? r->mask_ends[n_new - 1] : 0};
}

/* ---- sending ------------------------------------------------------------------------------------- */

typedef struct journey {
    wb_owner memory;
    unsigned char *sent;                                           /* all letters, by destination */
    size_t *send_bytes, *send_offsets, *recv_bytes, *recv_offsets; /* [R] */
    uint64_t *send_sizes, *recv_sizes;                             /* [R] send_bytes and recv_bytes */
    size_t *eights, *eight_offsets;                                /* [R] 8, and multiples of it */
    size_t extra_bytes;
    const unsigned char *extras;
} journey;

static const wb_pack_place *own_place(const wb_pack *p, uint32_t i) {
    return &p->places[p->home_start[p->rank] + i];
}

/* Bytes of the letter of own sequence i, its extra included; with a block they are written there. */
static size_t put_letter(const wb_pack *p, const journey *j, uint32_t i, unsigned char *block) {
    letter l = letter_of(p->own[i].record);
    letter_walk w = {.kind = block ? WRITE : MEASURE, .block = block};
    pass(&w, &l, sizeof l);
    pass_arrays(&w, &p->model, &l);
    if (j->extra_bytes > 0) pass(&w, j->extras + i * j->extra_bytes, j->extra_bytes);
    return w.used;
}

static wb_status write_letters(const wb_pack *p, journey *j) {
    size_t all = 0, *at = j->recv_offsets; /* free until sizes are known */
    for (uint32_t i = 0; i < p->n_own; i++)
        if (own_place(p, i)->rank != p->rank)
            j->send_bytes[own_place(p, i)->rank] += put_letter(p, j, i, NULL);
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        j->send_offsets[r] = at[r] = all;
        j->send_sizes[r] = j->send_bytes[r];
        all += j->send_bytes[r];
    }
    WB_TRY(WB_OWN(&j->memory, j->sent, all, "packing: records to send"));
    for (uint32_t i = 0; i < p->n_own; i++) {
        const uint32_t to = own_place(p, i)->rank;
        if (to != p->rank) at[to] += put_letter(p, j, i, j->sent + at[to]);
    }
    return WB_OK;
}

static wb_status prepare(wb_pack *p, journey *j) {
    const size_t R = p->n_ranks;
    const char *what = "packing: ranks";
    if (p->items) return wb_fail(WB_INVALID_ARGUMENT, "packing: its records were moved before");
    if (j->extra_bytes > 0 && p->n_own > 0 && !j->extras)
        return wb_fail(WB_INVALID_ARGUMENT, "packing: %zu extra bytes a sequence, NULL", j->extra_bytes);
    WB_TRY(WB_OWN(&j->memory, j->send_bytes, R, what));
    WB_TRY(WB_OWN(&j->memory, j->send_offsets, R, what));
    WB_TRY(WB_OWN(&j->memory, j->recv_bytes, R, what));
    WB_TRY(WB_OWN(&j->memory, j->recv_offsets, R, what));
    WB_TRY(WB_OWN(&j->memory, j->send_sizes, R, what));
    WB_TRY(WB_OWN(&j->memory, j->recv_sizes, R, what));
    WB_TRY(WB_OWN(&j->memory, j->eights, R, what));
    WB_TRY(WB_OWN(&j->memory, j->eight_offsets, R, what));
    for (size_t r = 0; r < R; r++) {
        j->eights[r] = sizeof(uint64_t);
        j->eight_offsets[r] = r * sizeof(uint64_t);
    }
    return write_letters(p, j);
}

/* ---- arriving ------------------------------------------------------------------------------------ */

static wb_status reserve_items(wb_pack *p, wb_pack_item **items_out) {
    uint32_t n = 0;
    WB_TRY(WB_OWN(&p->memory, p->item_start, (size_t)p->n_micro_batches + 1, "packing: items"));
    for (uint32_t i = 0; i < p->n; i++) {
        if (p->places[i].rank != p->rank) continue;
        p->item_start[p->places[i].micro_batch + 1]++;
        n++;
    }
    for (uint32_t m = 0; m < p->n_micro_batches; m++) p->item_start[m + 1] += p->item_start[m];
    return WB_OWN(&p->memory, *items_out, n, "packing: items");
}

static wb_status reserve_received(wb_pack *p, journey *j, unsigned char **received_out,
                                  wb_pack_item **items_out) {
    size_t all = 0;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        j->recv_bytes[r] = (size_t)j->recv_sizes[r];
        j->recv_offsets[r] = all;
        all += j->recv_bytes[r];
    }
    WB_TRY(WB_OWN(&p->memory, *received_out, all, "packing: records received"));
    return reserve_items(p, items_out);
}

/* The next letter at `at`, its pointers made those of here; returns its bytes. */
static size_t take_letter(const wb_pack *p, const journey *j, unsigned char *at, wb_pack_item *item) {
    letter_walk w = {.kind = READ, .block = at};
    letter *l = pass(&w, at, sizeof *l);
    pass_arrays(&w, &p->model, l);
    item->record = &l->record;
    if (j->extra_bytes > 0) item->extra = pass(&w, at, j->extra_bytes);
    return w.used;
}

/* Letters of a rank come in the order of its sequences. A place's item is the next of its micro-batch. */
static wb_status fill_items(wb_pack *p, const journey *j, unsigned char *received, wb_pack_item *items) {
    uint32_t *next;
    WB_TRY(WB_OWN(&p->memory, next, (size_t)p->n_micro_batches + 1, "packing: items"));
    memcpy(next, p->item_start, ((size_t)p->n_micro_batches + 1) * sizeof *next);
    for (uint32_t i = 0; i < p->n; i++) {
        const wb_pack_place *place = &p->places[i];
        if (place->rank != p->rank) continue;
        wb_pack_item *item = &items[next[place->micro_batch]++];
        item->rows = place->rows;
        if (place->home != p->rank) {
            received += take_letter(p, j, received, item);
            continue;
        }
        item->record = p->own[place->index].record;
        if (j->extra_bytes > 0) item->extra = j->extras + place->index * j->extra_bytes;
    }
    return WB_OK;
}

static wb_status travel(wb_pack *p, wb_comm *comm, journey *j) {
    unsigned char *received = NULL;
    wb_pack_item *items = NULL;
    WB_TRY(wb_comm_agree(comm, prepare(p, j)));
    WB_TRY(wb_comm_all_to_all_v(comm, j->send_sizes, j->eights, j->eight_offsets, j->recv_sizes, j->eights,
                                j->eight_offsets));
    WB_TRY(wb_comm_agree(comm, reserve_received(p, j, &received, &items)));
    WB_TRY(wb_comm_all_to_all_v(comm, j->sent, j->send_bytes, j->send_offsets, received, j->recv_bytes,
                                j->recv_offsets));
    WB_TRY(wb_comm_agree(comm, fill_items(p, j, received, items)));
    p->items = items;
    for (uint32_t r = 0; r < p->n_ranks; r++) p->stats.moved_bytes += j->send_bytes[r];
    return WB_OK;
}

wb_status wb_pack_move(wb_pack *p, wb_comm *comm, size_t extra_bytes, const void *extras) {
    if (!p || !comm) return wb_fail(WB_INVALID_ARGUMENT, "packing: pack or comm is NULL");
    journey j = {.extra_bytes = extra_bytes, .extras = extras};
    const wb_status status = travel(p, comm, &j);
    wb_owner_close(&j.memory);
    return status;
}

const wb_pack_item *wb_pack_items(const wb_pack *p, int32_t micro_batch, uint32_t *n_out) {
    *n_out = 0;
    if (!p->items || micro_batch < 0 || (uint32_t)micro_batch >= p->n_micro_batches) return NULL;
    *n_out = p->item_start[micro_batch + 1] - p->item_start[micro_batch];
    return p->items + p->item_start[micro_batch];
}
