/* option_table.h - the options of waybill-grpo as one table: what command_line.c, which reads and explains
 * them, option_resume.c, which keeps them in a checkpoint, and report.c know of each. */
#ifndef GRPO_OPTION_TABLE_H
#define GRPO_OPTION_TABLE_H

#include "grpo.h"

typedef enum kind { TEXT, INTEGER, SEED, NUMBER, FLAG, CHOICE } kind;

/* What a checkpoint says of an option to the run that resumes from it. */
typedef enum on_resume {
    FREE,  /* nothing: it belongs to the command line */
    KEPT,  /* its value, unless the command line gives another, which is said */
    FIXED, /* its value, and another is refused: it decides which prompts the groups of a step are, or what
            * the optimizer keeps */
} on_resume;

/* What --help lists together. */
typedef enum option_group {
    RUN,
    PROMPTS,
    ROLLOUT,
    REPLAY,
    OBJECTIVE,
    UPDATES,
    EVALUATION,
    OUTPUT,
    PLACES,
    RANKS,
    INSTEAD,
    N_OPTION_GROUPS,
} option_group;
extern const char *const option_group_names[N_OPTION_GROUPS];

typedef struct option_row {
    const char *name;
    option_group group;
    kind kind;
    on_resume on_resume;
    size_t offset;       /* of the field in options */
    double low, high;    /* INTEGER, NUMBER */
    const char *choices; /* CHOICE: names separated by '|', value = index */
    const char *value, *help;
} option_row;

enum { OPTION_TEXT_BYTES = 64 };
extern const option_row option_rows[N_OPTIONS];
extern const options option_defaults;

/* The row of a name, or NULL. */
const option_row *option_find(const char *name);
/* Sets the row's field of `o` from text; FLAG: to true. INVALID_ARGUMENT names option, text and what was
 * expected; a text that is empty is no value of any option. */
wb_status option_set(const option_row *row, options *o, const char *text);
/* The field as the command line would give it, in text [OPTION_TEXT_BYTES] or where it lies; NULL: text that
 * is not set, or a flag that is false. */
const char *option_text(const option_row *row, const options *o, char *text);
/* The name of a CHOICE's value: *length_out bytes of the row's list. */
const char *option_choice(const option_row *row, int value, size_t *length_out);

#endif
