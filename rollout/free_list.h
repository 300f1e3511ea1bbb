/* free_list.h - which numbers of a pool are free: blocks of the KV pool, states of sequences. Refuses: what
 * stands in them. */
#ifndef WB_FREE_LIST_H
#define WB_FREE_LIST_H

#include "wb_base.h"
#include "wb_memory.h"

typedef struct wb_free_list {
    int32_t *free; /* [n], the first n_free are free: a stack; owner: as given at open */
    int32_t n_free, n;
} wb_free_list;

/* The numbers 0 .. n - 1, all free. */
wb_status wb_free_list_open(wb_owner *owner, int32_t n, const char *what, wb_free_list *list);

/* n numbers into out[n], or false and none. */
bool wb_free_list_take(wb_free_list *list, int32_t n, int32_t *out);
void wb_free_list_give(wb_free_list *list, int32_t n, const int32_t *numbers);

#endif
