/* dump_share.h - what the writer remembers so that a group's prompt is stored once (internal).
 *
 * Of each of the latest groups it keeps a copy of one record's first rows, as far as they are valid and in
 * the prompt. A later record of the group whose rows at the same positions are the same bytes refers to
 * them. Equal bytes are all that sharing needs, so tokens are not compared. Memory: at most WB_SHARE_GROUPS
 * groups and WB_SHARE_BYTES bytes of rows; the group used longest ago is forgotten. */
#ifndef WB_DUMP_SHARE_H
#define WB_DUMP_SHARE_H

#include "wb_formats.h"

#define WB_SHARE_GROUPS 64
#define WB_SHARE_BYTES ((size_t)256 << 20)

typedef struct wb_share_base {
    uint64_t group;
    uint64_t record;      /* its index in the file */
    uint32_t start, rows; /* positions [start, start + rows) */
    uint8_t *ids;         /* owned copy; NULL: the place is empty */
    uint64_t used_at;     /* by the clock of wb_share */
} wb_share_base;

typedef struct wb_share {
    wb_share_base bases[WB_SHARE_GROUPS];
    size_t bytes; /* of all ids */
    uint64_t clock;
} wb_share;

/* A zeroed struct is empty. */
void wb_share_free(wb_share *share);

/* How many of the record's first rows are those of an earlier record, and which; 0 when none. */
uint32_t wb_share_find(wb_share *share, size_t row_bytes, const wb_record *record, uint64_t *base_out);

/* Copies what a record offers to later ones; to be kept once the record is written. A record without such
 * rows, or with too many, gives an empty base. */
wb_status wb_share_prepare(size_t row_bytes, const wb_record *record, uint64_t index,
                           wb_share_base *base_out);

/* Takes a prepared base over, in place of the group's former one. */
void wb_share_keep(wb_share *share, size_t row_bytes, wb_share_base base);

#endif
