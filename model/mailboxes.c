/* mailboxes.c - mailboxes, opened by all ranks or by none. Refuses: what is stored in them. */
#include "model_weights.h"
#include "wb_memory.h"

#include <stdlib.h>

/* A mailbox has places for this many tokens of all ranks together: longer steps are bound by what they
 * compute. */
enum { TOKENS_OF_ALL = 1024, TOKENS_OF_A_RANK = 512 };

/* What a rank tells the others. */
typedef struct offer {
    int32_t status; /* OK: it has a mailbox */
    wb_shared_memory shared;
} offer;

static wb_mailboxes describe(const wb_model *m, int64_t max_tokens) {
    wb_mailboxes boxes = {.rank = m->rank,
                          .n_ranks = m->n_ranks,
                          .max_rows = max_tokens * m->config.router.top_k,
                          .width = m->config.hidden_size,
                          .dtype = m->activations,
                          .timeout = wb_comm_timeout(m->comm)};
    for (int32_t r = 0; r <= m->n_ranks; r++)
        boxes.first_slot[r] = (int32_t)wb_placement_first_slot(m->placement, (uint32_t)r);
    return boxes;
}

static wb_status attach_all(wb_model *m) {
    wb_model_mailboxes *rows = &m->mailboxes;
    for (int32_t r = 0; r < m->n_ranks; r++)
        if (r != m->rank)
            WB_TRY(m->device->memory_attach(m->device, &rows->shared[r], &rows->boxes.mailbox[r]));
    return WB_OK;
}

/* Collective. *all_out: every rank has its own mailbox, and those of the others. offers: [R]. */
static wb_status meet(wb_model *m, offer *offers, bool *all_out) {
    wb_model_mailboxes *rows = &m->mailboxes;
    offer mine = {0};
    uint64_t failed = 0;
    mine.status = (int32_t)m->device->memory_share(m->device, wb_mailbox_bytes(&rows->boxes),
                                                   &rows->boxes.mailbox[m->rank], &mine.shared);
    WB_TRY(wb_comm_all_gather(m->comm, &mine, sizeof mine, offers));
    for (int32_t r = 0; r < m->n_ranks; r++) {
        failed |= offers[r].status != WB_OK;
        rows->shared[r] = offers[r].shared;
    }
    if (!failed) failed = attach_all(m) != WB_OK;
    WB_TRY(wb_comm_all_reduce_max_u64(m->comm, &failed));
    *all_out = !failed;
    return WB_OK;
}

static void detach_all(wb_model *m) {
    wb_model_mailboxes *rows = &m->mailboxes;
    for (int32_t r = 0; r < rows->boxes.n_ranks; r++) {
        if (r == m->rank || !rows->boxes.mailbox[r]) continue;
        m->device->memory_detach(m->device, &rows->shared[r], rows->boxes.mailbox[r]);
        rows->boxes.mailbox[r] = NULL;
    }
}

/* After a failure others may still be at a step, and store: then the mailbox stays until the process ends.
 * Else all that they had to store has come, since a step waits for it. A close is no collective call, so that
 * others may still have this mailbox attached when it is freed: nobody reads or writes it any more, but what
 * CUDA does with memory that was freed before all detached, it does not say. */
void wb_model_close_mailboxes(wb_model *m) {
    wb_model_mailboxes *rows = &m->mailboxes;
    const bool has = wb_has_mailboxes(rows), alive = has && wb_comm_look(m->comm) == WB_OK;
    detach_all(m);
    if (alive) m->device->mem_free(m->device, rows->boxes.mailbox[m->rank]);
    free(rows->shared);
    *rows = (wb_model_mailboxes){0};
}

wb_status wb_model_open_mailboxes(wb_model *m) {
    const int64_t R = m->n_ranks, even = TOKENS_OF_ALL / R;
    offer *offers = NULL;
    bool all = false;
    if (!m->device->memory_share || R < 2 || R > WB_MAX_MAILBOXES || m->route_model.n_moe_layers == 0)
        return WB_OK;
    m->mailboxes.max_tokens = even < TOKENS_OF_A_RANK ? even : TOKENS_OF_A_RANK;
    m->mailboxes.boxes = describe(m, m->mailboxes.max_tokens);
    wb_status status = WB_NEW(offers, (size_t)R, "mailboxes");
    if (status == WB_OK) status = WB_NEW(m->mailboxes.shared, (size_t)R, "mailboxes");
    status = wb_comm_agree(m->comm, status);
    if (status == WB_OK) status = meet(m, offers, &all);
    free(offers);
    if (status == WB_OK && all) return WB_OK;
    /* All are here: a mailbox is freed when the others have detached it. */
    detach_all(m);
    status = wb_comm_agree(m->comm, status);
    wb_model_close_mailboxes(m);
    return status;
}
