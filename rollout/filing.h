/* filing.h - what a committed step still has in the host's block of results, and the records that it is for.
 *
 * The next step needs of a step the sampled tokens alone; they are in the records when it is committed. Its
 * rows and kept tokens are most of the bytes: they are filed, copied to where the records have room for them,
 * while the device works on the next step. Whoever looks at them before, as a caller who polls does, has them
 * filed first. Refuses: where they belong (sequence.h). */
#ifndef WB_FILING_H
#define WB_FILING_H

#include "wb_memory.h"

typedef struct wb_filed_part {
    void *to;
    /* In the block of results of the latest committed step, or where a part before this one is filed. */
    const void *from;
    size_t bytes;
} wb_filed_part;

/* Zeroed: nothing is to be filed. */
typedef struct wb_filing {
    wb_filed_part *parts; /* [max_parts], n of them, filed in this order */
    size_t n;
} wb_filing;

wb_status wb_filing_open(wb_owner *owner, size_t max_parts, wb_filing *filing);

/* `to` stays where it is until it has been filed. */
void wb_filing_add(wb_filing *filing, void *to, const void *from, size_t bytes);

/* Files what was added; without any, nothing. */
void wb_filing_finish(wb_filing *filing);

#endif
