/* rid_table.h - request ids in order of arrival, found by text (internal). Owns copies of them.
 * Refuses: a rid twice (the caller looks first). */
#ifndef WB_RID_TABLE_H
#define WB_RID_TABLE_H

#include "wb_check.h"

typedef struct wb_rid_table {
    char *text; /* all rids, each NUL-terminated */
    size_t text_size, text_capacity;
    size_t *at;      /* [count] offset of rid i in text */
    uint64_t *slots; /* [n_slots] i + 1, 0 for empty; a power of two, at most 2/3 full */
    size_t count, at_capacity, n_slots;
} wb_rid_table;

/* A zeroed struct is an empty table. */
void wb_rid_table_free(wb_rid_table *table);

bool wb_rid_table_find(const wb_rid_table *table, const char *rid, size_t length, uint64_t *index_out);

/* Makes room for one more rid of `length` bytes, so that the add which follows cannot fail. */
wb_status wb_rid_table_reserve(wb_rid_table *table, size_t length);
/* Adds a rid that is not in the table; its index is the count before. Needs the reserve. */
void wb_rid_table_add(wb_rid_table *table, const char *rid, size_t length);

/* Rid i; valid until the next reserve or free. */
const char *wb_rid_table_get(const wb_rid_table *table, uint64_t i);

#endif
