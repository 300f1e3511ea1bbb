/* free_list.c - see free_list.h. */
#include "free_list.h"
#include "wb_check.h"

wb_status wb_free_list_open(wb_owner *owner, int32_t n, const char *what, wb_free_list *list) {
    WB_TRY(WB_OWN(owner, list->free, (size_t)n, what));
    for (int32_t i = 0; i < n; i++) list->free[i] = n - 1 - i;
    list->n_free = list->n = n;
    return WB_OK;
}

bool wb_free_list_take(wb_free_list *list, int32_t n, int32_t *out) {
    if (n > list->n_free) return false;
    for (int32_t i = 0; i < n; i++) out[i] = list->free[--list->n_free];
    return true;
}

void wb_free_list_give(wb_free_list *list, int32_t n, const int32_t *numbers) {
    for (int32_t i = 0; i < n; i++) list->free[list->n_free++] = numbers[i];
}
