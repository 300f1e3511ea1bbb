/* dump_share.c - see the header. */
#include "dump_share.h"
#include "wb_check.h"
#include "wb_memory.h"

#include <stdlib.h>
#include <string.h>

void wb_share_free(wb_share *share) {
    for (size_t i = 0; i < WB_SHARE_GROUPS; i++) free(share->bases[i].ids);
    memset(share, 0, sizeof *share);
}

static wb_share_base *base_of_group(wb_share *share, uint64_t group) {
    for (size_t i = 0; i < WB_SHARE_GROUPS; i++)
        if (share->bases[i].ids && share->bases[i].group == group) return &share->bases[i];
    return NULL;
}

/* Leading rows of the record's first run that are valid and in the prompt. */
static uint32_t prompt_rows(const wb_record *record) {
    if (record->n_routes == 0 || record->routes[0].start >= record->prompt_len) return 0;
    const wb_route_rows *run = &record->routes[0];
    uint32_t rows = record->prompt_len - run->start;
    if (rows > run->rows) rows = run->rows;
    return rows > 0 && wb_row_valid(run->valid, 0) ? wb_row_stretch(run->valid, 0, rows) : 0;
}

uint32_t wb_share_find(wb_share *share, size_t row_bytes, const wb_record *record, uint64_t *base_out) {
    uint32_t max = prompt_rows(record), n = 0;
    wb_share_base *base = max > 0 ? base_of_group(share, record->group) : NULL;
    if (!base) return 0;
    uint32_t start = record->routes[0].start;
    if (start < base->start || start - base->start >= base->rows) return 0;
    uint32_t skip = start - base->start;
    if (max > base->rows - skip) max = base->rows - skip;
    const uint8_t *mine = record->routes[0].ids, *theirs = base->ids + (size_t)skip * row_bytes;
    while (n < max && memcmp(mine + n * row_bytes, theirs + n * row_bytes, row_bytes) == 0) n++;
    if (n == 0) return 0;
    base->used_at = ++share->clock;
    *base_out = base->record;
    return n;
}

wb_status wb_share_prepare(size_t row_bytes, const wb_record *record, uint64_t index,
                           wb_share_base *base_out) {
    wb_share_base base = {.group = record->group, .record = index, .rows = prompt_rows(record)};
    if (base.rows > 0 && base.rows <= WB_SHARE_BYTES / row_bytes) {
        base.start = record->routes[0].start;
        WB_TRY(WB_ALLOC(base.ids, base.rows, row_bytes, "rows of a shared prompt"));
        memcpy(base.ids, record->routes[0].ids, base.rows * row_bytes);
    }
    *base_out = base;
    return WB_OK;
}

static void forget(wb_share *share, size_t row_bytes, wb_share_base *base) {
    if (base->ids) share->bytes -= base->rows * row_bytes;
    free(base->ids);
    *base = (wb_share_base){0};
}

/* An empty place, or else the one used longest ago. */
static wb_share_base *oldest(wb_share *share, bool in_use) {
    wb_share_base *found = NULL;
    for (size_t i = 0; i < WB_SHARE_GROUPS; i++) {
        wb_share_base *b = &share->bases[i];
        if (in_use && !b->ids) continue;
        if (!found || b->used_at < found->used_at) found = b;
    }
    return found;
}

void wb_share_keep(wb_share *share, size_t row_bytes, wb_share_base base) {
    if (!base.ids) return;
    wb_share_base *place = base_of_group(share, base.group);
    if (!place) place = oldest(share, false);
    forget(share, row_bytes, place);
    while (share->bytes + base.rows * row_bytes > WB_SHARE_BYTES)
        forget(share, row_bytes, oldest(share, true));
    base.used_at = ++share->clock;
    share->bytes += base.rows * row_bytes;
    *place = base;
}
