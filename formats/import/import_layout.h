/* import_layout.h - in what the layouts differ, as a table (internal). */
#ifndef WB_IMPORT_LAYOUT_H
#define WB_IMPORT_LAYOUT_H

#include "import/import_array.h"
#include "import/wb_import.h"

/* What the last of n rows may be, which belongs to a token that was never fed. */
typedef enum import_last_row {
    IMPORT_LAST_NEVER,   /* n rows are refused */
    IMPORT_LAST_MISSING, /* all -1 */
    IMPORT_LAST_ZERO     /* all zeros, or all -1 */
} import_last_row;

/* What `prompt_routed_experts` is. */
typedef enum import_prompt_rows {
    IMPORT_PROMPT_FIRST, /* the rows before those of the new tokens */
    IMPORT_PROMPT_COPY   /* the beginning of the rows, once more */
} import_prompt_rows;

typedef struct import_rules {
    import_type raw; /* of elements that come without a type; kind 0: they are refused */
    bool minus_one_is_missing;
    bool zeros_are_missing; /* where K > 1: with K = 1 zero is an expert */
    bool is_padded;         /* attention_mask says which positions are tokens */
    bool uid_is_group;      /* `uid` is the prompt's, and all of its requests have it */
    import_last_row last_row;
    import_prompt_rows prompt_rows;
} import_rules;

/* NULL for a layout that is none. */
const import_rules *wb_import_rules(wb_import_layout layout);

#endif
