/* dispatch_handle.h - the handle of one rank: what is made of each layer's map, and at which version of
 * it. */
#ifndef WB_DISPATCH_HANDLE_H
#define WB_DISPATCH_HANDLE_H

#include "dispatch/dispatch_internal.h"

/* quota: this rank's tokens of one slot. */
typedef struct wb_quota_part {
    uint32_t slot, tokens;
} wb_quota_part;

/* quota: how far the tokens of an expert are. */
typedef struct wb_quota_progress {
    uint32_t at;   /* the part they come from next */
    uint32_t left; /* tokens left of that part */
    uint32_t announced, remaining;
} wb_quota_progress;

/* One layer, made at `version` of its map. Arrays are slices of the handle's. */
typedef struct wb_dispatch_layer {
    bool made;
    uint64_t version;
    /* static, dynamic: as wb_dispatch_fill_table makes it. fake: the slots that hold an expert, by rank */
    int32_t *table;
    uint32_t *rank_begin; /* fake: [n_ranks + 1] where the slots of each rank that has any begin in table */
    uint32_t n_ranks;
    uint64_t turn;        /* fake: tokens sent so far, from this rank's number on: ranks do not start alike */
    wb_quota_part *parts; /* quota: [S] */
    wb_quota_progress *progress; /* quota: [E] */
} wb_dispatch_layer;

struct wb_dispatch {
    wb_owner memory;
    const wb_placement *placement; /* borrowed */
    wb_dispatch_policy policy;
    uint32_t rank;
    wb_dispatch_layer *layers;   /* [L] */
    int32_t *tables;             /* static: [L][E]. dynamic: [L][E + 1 + S]. fake: [L][S] */
    uint32_t *rank_begins;       /* fake: [L][R + 1] */
    wb_quota_part *parts;        /* quota: [L][S] */
    wb_quota_progress *progress; /* quota: [L][E] */
    uint32_t *tally;             /* quota: [E] tokens of the present call, all zero between calls */
    wb_dispatch_frame frame;     /* static, quota: scratch */
};

/* wb_dispatch_rows under static and dynamic, where ids E .. E + n_weightless - 1 are of experts that lie
 * nowhere: they get WB_NO_SLOT. */
wb_status wb_dispatch_weighted_rows(wb_dispatch *dispatch, uint32_t layer, const wb_routed_rows *rows,
                                    const uint64_t *keys, uint32_t n_weightless, wb_physical_id *out);

/* static, dynamic, fake: the layer's table, by the map as it is now. */
const wb_dispatch_layer *wb_dispatch_layer_table(wb_dispatch *dispatch, uint32_t layer);

#endif
