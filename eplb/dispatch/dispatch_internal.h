/* dispatch_internal.h - what the files of dispatch share: where the replicas of an expert lie, the rule of
 * `static`, the split of `quota`. */
#ifndef WB_DISPATCH_INTERNAL_H
#define WB_DISPATCH_INTERNAL_H

#include "placement/placement_internal.h"
#include "wb_dispatch.h"

/* One layer's replicas in ascending order of slot, so that those of a rank, and those of a node, lie
 * together. */
typedef struct wb_dispatch_frame {
    const wb_placement *placement;
    uint32_t layer;
    /* [E + 1]: expert e has slots[begin[e]] .. slots[begin[e + 1] - 1]; the map's own */
    const uint32_t *begin;
    uint32_t *slots;       /* [S] */
    uint32_t *next;        /* [E] scratch */
    uint32_t *node_begin;  /* [N + 1]: the first rank of each node */
    uint32_t *live_before; /* [R + 1]: live ranks below a rank */
} wb_dispatch_frame;

/* The arrays belong to `memory`. */
wb_status wb_dispatch_frame_open(const wb_placement *placement, wb_owner *memory,
                                 wb_dispatch_frame *frame_out);
/* Reads the layer's map as it is now. */
void wb_dispatch_frame_read(wb_dispatch_frame *frame, uint32_t layer);

wb_status wb_dispatch_check_layer(const wb_placement *placement, uint32_t layer);
/* INVALID_ARGUMENT unless `rank` is there. */
wb_status wb_dispatch_check_rank(const wb_placement *placement, uint32_t rank);
/* tokens_out [E], the sums of counts [R][E] over ranks. INVALID_ARGUMENT for a layer outside [0, L) and for
 * tokens of a dead rank, for which no shares are planned. */
wb_status wb_dispatch_sum_counts(const wb_placement *placement, uint32_t layer, const uint32_t *counts,
                                 uint64_t *tokens_out);

/* Columns of counts [R][E], experts first..first+n-1, as rows: expert first + i has columns_out[i * R .. i
 * * R + R - 1]. Reading a block at a time keeps the whole cache line of each rank's row. */
enum { WB_COLUMN_BLOCK = 16 };
void wb_dispatch_columns(const wb_placement *placement, const uint32_t *counts, uint32_t first, uint32_t n,
                         uint32_t *columns_out);

/* static: the slot for tokens of `expert` on `rank`; and the same for every rank, slots_out [R] (dead:
 * WB_NO_SLOT). */
uint32_t wb_static_slot(const wb_dispatch_frame *frame, uint32_t expert, uint32_t rank);
void wb_static_slots(const wb_dispatch_frame *frame, uint32_t expert, uint32_t *slots_out);

/* quota: shares_out [S], in the order of frame->slots. CAPACITY when an expert has more than 2^31 tokens. */
wb_status wb_quota_shares(const wb_dispatch_frame *frame, const uint32_t *counts, const uint64_t *tokens,
                          uint32_t *shares_out);

/* Which source rank's tokens make up the shares of an expert: first those that stay on their rank, then
 * those that stay on their node, then the rest, each time ranks and slots in ascending order. `send` is
 * called with pieces of one source for frame->slots[j]. Consumes column [R] and shares [S] (the expert's
 * part of it); their sums must be equal. */
typedef void wb_quota_send(void *ctx, uint32_t from_rank, uint32_t j, uint32_t tokens);
void wb_quota_split(const wb_dispatch_frame *frame, uint32_t expert, uint32_t *column, uint32_t *shares,
                    wb_quota_send *send, void *ctx);

#endif
