/* mailboxes.h - the mailboxes by which the ranks of a model store rows of experts into each other's devices
 * (wb_mailbox.h).
 *
 * Owns: the sizes of mailboxes, and how long a step may be for them: its rows for one rank all fit. Refuses:
 * devices that do not reach each other; there a model has none, and rows travel by its exchange. */
#ifndef WB_MAILBOXES_H
#define WB_MAILBOXES_H

#include "shared_area.h"
#include "wb_model.h"

/* Zeroed: none. */
typedef struct wb_model_mailboxes {
    wb_mailboxes boxes; /* n_ranks 0: none */
    int64_t max_tokens; /* of a rank in a step */
    wb_shared_area area;
} wb_model_mailboxes;

static inline bool wb_has_mailboxes(const wb_model_mailboxes *mailboxes) {
    return mailboxes->boxes.n_ranks > 0;
}

/* Opened on all ranks or on none; collective. Closing: not. */
wb_status wb_model_open_mailboxes(wb_model *model);
void wb_model_close_mailboxes(wb_model *model);

/* What a mailbox of this model takes of a device that has them; 0: the model wants none. */
size_t wb_model_mailbox_bytes(const wb_model *model);

#endif
