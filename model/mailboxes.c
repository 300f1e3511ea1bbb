/* mailboxes.c - mailboxes, opened by all ranks or by none. Refuses: what is stored in them, how ranks reach
 * each other's (shared_area.c). */
#include "mailboxes.h"
#include "model_weights.h"

/* A mailbox has places for this many tokens of all ranks together: longer steps are bound by what they
 * compute. */
enum { TOKENS_OF_ALL = 1024, TOKENS_OF_A_RANK = 512 };

/* All but the addresses and how long a wait takes, which is known with the step. */
static wb_mailboxes describe(const wb_model *m, int64_t max_tokens) {
    wb_mailboxes boxes = {.rank = m->rank,
                          .n_ranks = m->n_ranks,
                          .max_rows = max_tokens * m->config.router.top_k,
                          .width = m->config.hidden_size,
                          .dtype = m->activations};
    for (int32_t r = 0; r <= m->n_ranks; r++)
        boxes.first_slot[r] = (int32_t)wb_placement_first_slot(m->placement, (uint32_t)r);
    return boxes;
}

/* A rank's even part of what all have together. */
static int64_t most_tokens(int64_t R) {
    const int64_t even = TOKENS_OF_ALL / R;
    return even < TOKENS_OF_A_RANK ? even : TOKENS_OF_A_RANK;
}

static bool wants_mailboxes(const wb_model *m) {
    return m->n_ranks >= 2 && m->n_ranks <= WB_MAX_MAILBOXES && m->route_model.n_moe_layers > 0;
}

/* MTP layers run between two steps of their decoder and use its mailboxes, for slots of their own. A mailbox
 * has room for them: its size follows from ranks, choices, width and dtype, which are the decoder's, and from
 * the number of slots, of which MTP layers have one for each expert and no placement has fewer. */
static void lend_to_mtp(const wb_model *m, wb_model *mtp) {
    const wb_model_mailboxes *own = &m->mailboxes;
    mtp->mailboxes = (wb_model_mailboxes){.max_tokens = own->max_tokens};
    mtp->mailboxes.boxes = describe(mtp, own->max_tokens);
    for (int32_t r = 0; r < m->n_ranks; r++) mtp->mailboxes.boxes.mailbox[r] = own->boxes.mailbox[r];
}

wb_status wb_model_open_mailboxes(wb_model *m) {
    wb_model_mailboxes *own = &m->mailboxes;
    if (!wants_mailboxes(m)) return WB_OK;
    own->max_tokens = most_tokens(m->n_ranks);
    own->boxes = describe(m, own->max_tokens);
    WB_TRY(wb_shared_area_open(&own->area, m->device, m->comm, wb_mailbox_bytes(&own->boxes)));
    uint64_t lacks = !wb_shared_area_is_whole(&own->area);
    WB_TRY(wb_comm_all_reduce_max_u64(m->comm, &lacks));
    if (lacks) wb_model_close_mailboxes(m);
    for (int32_t r = 0; r < own->boxes.n_ranks; r++)
        own->boxes.mailbox[r] = r == m->rank ? own->area.own : own->area.of_rank[r];
    if (m->mtp && !lacks) lend_to_mtp(m, m->mtp);
    return WB_OK;
}

void wb_model_close_mailboxes(wb_model *m) {
    wb_shared_area_close(&m->mailboxes.area);
    m->mailboxes = (wb_model_mailboxes){0};
}

size_t wb_model_mailbox_bytes(const wb_model *m) {
    if (!wants_mailboxes(m)) return 0;
    const wb_mailboxes boxes = describe(m, most_tokens(m->n_ranks));
    return wb_shared_bytes(wb_mailbox_bytes(&boxes));
}
