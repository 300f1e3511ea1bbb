/* migrate.h - one round of moves, groups of one layer or of several, made with the weights that there are:
 * sent into shadow slots, checked, agreed, copied into the slots, and the maps flipped. A pass may run while
 * they are under way.
 *
 * Refuses: which moves there are (move/), when they are made (rebalance.c). */
#ifndef WB_MIGRATE_H
#define WB_MIGRATE_H

#include "wb_memory.h"
#include "wb_rebalance.h"

/* What a sender says of an expert before it sends it. */
typedef struct wb_move_label {
    uint64_t shape;    /* of its parts: how many, of how many bytes */
    uint64_t checksum; /* of the moves that are checked; else 0 */
} wb_move_label;

/* A group of a plan. Those of a round are of different layers, and no rank sends for two of them or receives
 * for two: each does what one group may ask of it. */
typedef struct wb_round_group {
    const wb_move_plan *plan;
    uint32_t group;
} wb_round_group;

/* A part on its way into the shadow memory of a rank that is reached. */
typedef struct wb_move_put {
    uint32_t rank;
    size_t offset; /* there */
    const void *data;
    size_t bytes;
} wb_move_put;

typedef struct wb_migration {
    const wb_expert_store *store;
    wb_comm *comm;
    uint32_t rank, n_ranks;
    uint32_t check_every;
    /* The maps that are in force, and those after the present round: this rank's copies. */
    wb_placement *placement, *next;
    wb_owner memory;
    const wb_round_group *groups; /* [n_groups] the present round; the caller's */
    uint32_t n_groups;
    wb_expert_part *parts; /* [max_parts] of the slot that was asked for last */
    size_t n_parts, max_parts;
    /* Of the present round: what goes by the exchange, and what is put; its work, and how the puts began. */
    wb_transfer *transfers; /* [max_transfers] */
    size_t n_transfers, max_transfers;
    wb_move_put *puts; /* [max_puts] */
    size_t n_puts, max_puts;
    uint64_t work;
    wb_status put_status;
    char *shadows;      /* device, of the store */
    bool *reached;      /* [R] by puts */
    uint32_t n_shadows; /* of a rank that has slots */
    /* Of one shadow slot, its parts aligned, the same on all ranks; 0: to be asked for. */
    size_t shadow_bytes;
    size_t needed_bytes; /* the same, of what this rank has had to do with */
    size_t slot_bytes;   /* of the largest slot of this rank at open; 0: it has none */
    /* Labels between two ranks, in the order of their moves: [R] bytes to and from each, where they begin,
     * and the next one. */
    size_t *to_bytes, *to_offsets, *from_bytes, *from_offsets, *cursor;
    wb_move_label *sent, *received; /* [max_sent], [max_received] */
    size_t max_sent, max_received;
    uint64_t moves, received_bytes; /* so far: of all ranks; of this one */
} wb_migration;

/* `store` outlives it. Allocates what does not depend on a plan. */
wb_status wb_migration_open(const wb_expert_store *store, uint32_t check_every, uint32_t n_shadow,
                            wb_migration *migration);
void wb_migration_close(wb_migration *migration);

/* Has the store make the shadow slots, as the ranks need them together. Collective. */
wb_status wb_migration_make_shadows(wb_migration *migration);

/* Takes the store's maps where they are other ones than the last round's: somebody else has changed them. All
 * or, after an error, none. Not between two rounds of a plan. */
wb_status wb_migration_follow(wb_migration *migration);

/* Starts a round, and ends it; its layers are at `epoch` afterwards. Until the end the groups and the weights
 * that they move stay as they are. *dead_out: the communicator is of no use any more. After another failure,
 * one of which is that the store has other maps than after the last round, the round is over, and all ranks
 * have the maps that they had, and their weights. Collective. */
wb_status wb_migrate_start(wb_migration *migration, uint32_t n_groups, const wb_round_group *groups,
                           uint64_t epoch, bool *dead_out);
wb_status wb_migrate_end(wb_migration *migration, bool *dead_out);

#endif
