/* lending.c - see lending.h. */
#include "lending.h"
#include "wb_check.h"

#include <stdlib.h>

/* ---- lists ------------------------------------------------------------------------------------- */

void wb_sequence_list_append(wb_sequence_list *list, wb_sequence *s) {
    s->next = NULL;
    *(list->last ? &list->last->next : &list->first) = s;
    list->last = s;
    list->n++;
}

wb_sequence *wb_sequence_list_pop(wb_sequence_list *list) {
    wb_sequence *s = list->first;
    if (!s) return NULL;
    list->first = s->next;
    if (!list->first) list->last = NULL;
    list->n--;
    return s;
}

void wb_sequence_list_free(wb_sequence_list *list) {
    for (wb_sequence *s; (s = wb_sequence_list_pop(list));) wb_sequence_free(s);
}

/* ---- open and close ------------------------------------------------------------------------------ */

wb_status wb_lending_open(wb_owner *owner, bool on, int n_ranks, wb_lending *lending) {
    static const char what[] = "engine lending";
    const size_t R = (size_t)n_ranks;
    lending->on = on && n_ranks > 1;
    if (!lending->on) return WB_OK;
    WB_TRY(WB_OWN(owner, lending->left, R, what));
    WB_TRY(WB_OWN(owner, lending->gives, R, what));
    WB_TRY(WB_OWN(owner, lending->sizes, R * R, what));
    WB_TRY(WB_OWN(owner, lending->received, R, what));
    WB_TRY(WB_OWN(owner, lending->received_at, R, what));
    WB_TRY(WB_OWN(owner, lending->sent, R, what));
    return WB_OWN(owner, lending->sent_at, R, what);
}

void wb_lending_close(wb_lending *lending) {
    wb_sequence_list_free(&lending->lent);
    wb_sequence_list_free(&lending->ended);
    wb_sequence_list_free(&lending->arrived);
    free(lending->out);
    free(lending->in);
}
