/* wb_string_table.h - strings with a number each, found by text (not installed). Owns copies of the strings.
 * Refuses: a string twice (the caller looks first). */
#ifndef WB_STRING_TABLE_H
#define WB_STRING_TABLE_H

#include "wb_base.h"

/* A zeroed struct is an empty table. */
typedef struct wb_string_table {
    struct wb_string_entry *entries; /* [n_places] open addressing, a power of two, at most 2/3 full */
    size_t n_places, count;
} wb_string_table;

void wb_string_table_free(wb_string_table *table);

bool wb_string_table_find(const wb_string_table *table, const char *text, size_t length, uint64_t *value_out);

/* Adds a string that is not in the table. *text_out (may be NULL): the table's own copy, NUL-terminated,
 * at the same address until it is removed. OUT_OF_MEMORY changes nothing. */
wb_status wb_string_table_add(wb_string_table *table, const char *text, size_t length, uint64_t value,
                              const char **text_out);

/* Removes a string if it is there; undoes an add. */
void wb_string_table_remove(wb_string_table *table, const char *text, size_t length);

#endif
