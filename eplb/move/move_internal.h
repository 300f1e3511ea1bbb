/* move_internal.h - what the files of a move plan share: the state of one layer while its groups are made,
 * in memory that is used again for the next layer. */
#ifndef WB_MOVE_INTERNAL_H
#define WB_MOVE_INTERNAL_H

#include "placement/placement_internal.h"
#include "wb_move.h"

enum { WB_MAX_SHADOW = 2 };
#define WB_NO_RANK UINT32_MAX

/* The copies of an expert, and the ranks that wait for one, each as often as it waits for a copy. */
typedef struct wb_move_expert {
    uint32_t begin;      /* its first element of wb_mover.holders and wb_mover.waiters */
    uint32_t n_old;      /* slots that hold it before the present group */
    uint32_t n_new;      /* slots that the group writes, behind the old ones */
    uint32_t n_replaced; /* of the old ones, those that the group overwrites */
    uint32_t n_waiters;
} wb_move_expert;

typedef struct wb_move_rank {
    uint32_t n_wishes; /* experts that it waits for: wb_mover.wishes[first_slot ..] */
    uint32_t n_spare;  /* slots that it may overwrite: wb_mover.spare[first_slot ..] */
    uint32_t sent;     /* in this layer */
    /* The rest is of the present group. By link: 0 node, 1 network, over which reloads come in too. */
    uint32_t sends[2], receives[2], local;
    uint32_t n_staged;   /* moves to it: wb_mover.staged[rank x WB_MAX_SHADOW ..] */
    bool stuck;          /* nothing makes room on it */
    uint32_t path_index; /* 1 + its place in wb_mover.path; 0: none */
} wb_move_rank;

/* A rank of a chain, and the spare slot that it overwrites when another rank gets the slot's expert. */
typedef struct wb_move_link {
    uint32_t rank, slot;
    uint32_t spare; /* the slot's index into the rank's spare slots */
} wb_move_link;

typedef struct wb_mover {
    wb_owner memory;
    const wb_placement *frame; /* `to`: topology, first_slot, rank_of_slot */
    const wb_move_options *options;
    uint32_t lanes[2]; /* sends of one rank in a group, by link */
    wb_move *moves;    /* the plan's, with room for one of each changed slot */
    uint64_t n_moves;
    wb_move_group *groups; /* the plan's */
    size_t n_groups, groups_capacity;
    double seconds;

    uint32_t layer;
    int32_t *held;           /* [S] what each slot has before the present group; a row of the plan */
    bool *replaced;          /* [S] the present group overwrites it */
    uint32_t *wishes;        /* [S] experts, by rank */
    uint32_t *spare;         /* [S] slots, by rank: those with an expert that is to go, then empty ones */
    wb_move_expert *experts; /* [E] */
    uint32_t *holders;       /* [2 S] slots, by expert */
    uint32_t *waiters;       /* [2 S] ranks, by expert */
    wb_move_rank *ranks;     /* [R] */
    wb_move *staged;         /* [R][WB_MAX_SHADOW] the present group, by rank that receives */
    uint32_t *order, *old;   /* [R] ranks with wishes, those with most first; the order of the group before */
    uint32_t *count;         /* [max(S, E) + 1] scratch */
    wb_move_link *path;      /* [R] */
} wb_mover;

static inline uint32_t wb_move_rank_of(const wb_mover *mover, uint32_t slot) {
    return mover->frame->rank_of_slot[slot];
}
static inline uint32_t wb_move_node_of(const wb_mover *mover, uint32_t slot) {
    return mover->frame->node_of_rank[mover->frame->rank_of_slot[slot]];
}

/* ---- move_plan.c ----------------------------------------------------------------------------- */

/* INVALID_ARGUMENT, naming the field, unless plans can be made with them. */
wb_status wb_move_check_options(const wb_move_options *options);

/* ---- move_index.c ---------------------------------------------------------------------------- */

/* What the change of mover->layer from mover->held to `to` asks of each rank. */
void wb_move_index_layer(wb_mover *mover);
/* After the layer's moves: mover->held becomes what `to` has, up to the order of slots within ranks.
 * replica_out [S]. */
void wb_move_finish_layer(wb_mover *mover, uint32_t *replica_out);

/* ---- move_stage.c: what one move of the present group needs and does ------------------------- */

typedef struct wb_move_source {
    wb_move_kind kind;
    uint32_t slot; /* WB_NO_SLOT: the checkpoint */
} wb_move_source;

static inline bool wb_move_can_send(const wb_mover *mover, uint32_t rank, wb_move_kind kind) {
    const wb_move_rank *r = &mover->ranks[rank];
    uint32_t link = kind == WB_MOVE_NETWORK;
    return r->sends[link] < mover->lanes[link] && r->sends[0] + r->sends[1] < mover->options->group_moves;
}
static inline bool wb_move_can_receive(const wb_mover *mover, uint32_t rank) {
    return mover->ranks[rank].n_staged < mover->options->n_shadow && mover->ranks[rank].n_wishes > 0;
}

/* Whether a rank of the node waits for the expert. */
bool wb_move_is_awaited(const wb_mover *mover, uint32_t expert, uint32_t node);

/* An index into the rank's spare slots: one that may be overwritten, with what the group has staged; or
 * n_spare. */
uint32_t wb_move_find_room(const wb_mover *mover, uint32_t rank);
/* Where the rank can get the expert from in the present group; false: from nowhere. */
bool wb_move_find_source(const wb_mover *mover, uint32_t rank, uint32_t expert, wb_move_source *source_out);
/* The rank gets the expert in its spare slot of that index. */
void wb_move_stage(wb_mover *mover, uint32_t rank, uint32_t expert, wb_move_source source, uint32_t spare);
/* Appends the group: the next one begins with what it has made. */
wb_status wb_move_end_group(wb_mover *mover);

/* ---- move_schedule.c ------------------------------------------------------------------------- */

/* Appends all groups of the layer, which has been indexed. */
wb_status wb_move_schedule_layer(wb_mover *mover);

#endif
