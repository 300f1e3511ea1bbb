/* move_internal.h - what the files of a move plan share: the index of one layer's change (who has an
 * expert, who waits for it) and the memory that is reused from layer to layer, none of which outlives
 * building a plan. */
#ifndef WB_MOVE_INTERNAL_H
#define WB_MOVE_INTERNAL_H

#include "placement/placement_internal.h"
#include "wb_move.h"

#define WB_NO_PLACE UINT32_MAX
enum { WB_MAX_SHADOW = 2 };

/* One expert at one rank, above it the expert at that rank's node, above it the expert in the whole
 * cluster. Places exist only where a copy is or where one is waited for, and only for experts that
 * somebody waits for. */
typedef struct wb_move_place {
    uint32_t parent;                   /* of a rank its node, of a node its cluster; else WB_NO_PLACE */
    uint32_t first_rank, end_rank;     /* places of ranks at or below this one */
    uint32_t first_holder, end_holder; /* the slots that held the expert at first: wb_mover.holders[..] */
    uint32_t copies;  /* slots and shadows with the expert, less those that the present group overwrites */
    uint32_t pending; /* slots that wait for the expert */
    bool lasting;     /* one of the copies stays to the end of the plan */
    uint32_t rank;    /* places of ranks: of which one */
    uint32_t slot;    /* places of ranks: a lasting copy, or WB_NO_SLOT */
    uint32_t shadow;  /* places of ranks: a shadow slot with the expert, or WB_NO_SLOT */
} wb_move_place;

typedef enum wb_slot_state {
    WB_SLOT_LASTING, /* nothing to do: holds for good what it holds */
    WB_SLOT_READY,   /* queued for the next group */
    WB_SLOT_BLOCKED, /* its old content is the last copy in a place that waits for one */
    WB_SLOT_WRITTEN  /* has its new expert, or gets it in the present group */
} wb_slot_state;

typedef struct wb_move_slot {
    uint32_t holds, wants;  /* places of ranks: of the old and of the new expert, or WB_NO_PLACE */
    uint32_t read_in;       /* the last group that reads the slot, 0: none */
    uint32_t next_in_queue; /* in the rank's queue for shadow slots */
    wb_slot_state state;
    bool queued;
} wb_move_slot;

typedef struct wb_move_shadow {
    uint32_t place; /* of what it holds, WB_NO_PLACE: free */
    uint32_t owner; /* the slot it was copied from */
    uint32_t read_in;
} wb_move_shadow;

/* Moves of one rank in the present group. Reloads come in like moves over the network. */
typedef struct wb_rank_traffic {
    uint32_t node_in, node_out, network_in, network_out, local;
} wb_rank_traffic;

typedef struct wb_move_rank {
    wb_rank_traffic now;
    uint32_t sent, entered;             /* in this layer so far: sends; receives from other nodes */
    uint32_t first_queued, last_queued; /* slots that were found blocked, oldest first, or WB_NO_SLOT */
    wb_move_shadow shadow[WB_MAX_SHADOW];
} wb_move_rank;

typedef struct wb_move_source {
    uint32_t place;
    uint32_t sent_now, sent, rank;
} wb_move_source;

typedef struct wb_mover {
    wb_owner memory;
    const wb_placement *frame; /* `to`: topology, first_slot, rank_of_slot */
    const wb_move_options *options;
    uint32_t node_lane, network_lane; /* moves in a group that one rank's link carries in one direction */
    wb_move *moves;                   /* the plan's, with room for two of each changed slot */
    uint64_t n_moves;
    uint32_t n_groups;
    double seconds;

    uint32_t layer;
    int32_t *held, *wanted;           /* [S] what a slot has, what it waits for; or WB_NO_EXPERT */
    uint32_t *holders, *holder_begin; /* [S] slots by (expert held, slot); [E + 1] */
    uint32_t *waiters, *waiter_begin; /* [S] slots by (expert wanted, slot); [E + 1] */
    wb_move_place *places;            /* first clusters: [E]; then nodes, then ranks */
    uint32_t first_node_place, first_rank_place;

    wb_move_slot *slots;    /* [S] */
    wb_move_rank *ranks;    /* [R] */
    uint32_t n_pending;     /* of the layer */
    uint64_t group_begin;   /* the present group's first move; its number from 1 on is n_groups + 1 */
    uint64_t *ready, *next; /* [S] expert << 32 | slot: to try in this group, in the next one */
    uint32_t n_ready, n_next;
    uint32_t *chosen;        /* [S] slots of one node that want the expert of another rank */
    wb_move_source *sources; /* [R] */
} wb_mover;

static inline uint32_t wb_move_present_group(const wb_mover *mover) {
    return mover->n_groups + 1;
}
static inline uint32_t wb_move_rank_of(const wb_mover *mover, uint32_t slot) {
    return mover->frame->rank_of_slot[slot];
}

/* ---- move_slots.c: what the present group does to slots -------------------------------------- */

void wb_move_queue(wb_mover *mover, uint32_t slot); /* for the next group */
/* Whether the present group may overwrite the slot. If not, the slot waits for another group or to be
 * unblocked. */
bool wb_move_may_write(wb_mover *mover, uint32_t slot);

/* Each writes a slot for good: from a copy on its rank, from another rank, from the checkpoint. */
void wb_move_write_inside_rank(wb_mover *mover, uint32_t slot);
void wb_move_write_from(wb_mover *mover, uint32_t slot, wb_move_kind kind, const wb_move_source *source);
void wb_move_reload(wb_mover *mover, uint32_t slot);

/* At the end of a group: what it has written counts as copies from now on, then slots of a rank that are
 * still blocked go into its free shadow slots. */
void wb_move_add_copies(wb_mover *mover);
void wb_move_fill_shadows(wb_mover *mover, uint32_t rank);

/* ---- move_schedule.c ------------------------------------------------------------------------- */

/* Appends the moves of mover->layer, whose index is built, and adds to n_groups and seconds. */
void wb_move_schedule_layer(wb_mover *mover);

#endif
