/* migrate_walk.h - the moves of a round one by one, as the files of a migration go through them: who takes
 * part, into which shadow slot, and what an expert consists of now. Refuses: sending and comparing. */
#ifndef WB_MIGRATE_WALK_H
#define WB_MIGRATE_WALK_H

#include "manage/migrate.h"

typedef struct wb_move_place {
    uint32_t from_rank, to_rank;
    uint32_t shadow; /* of to_rank */
    bool checked;
} wb_move_place;

/* Calls `visit` for each move of the round in which this rank takes part. */
typedef wb_status wb_visit_fn(wb_migration *migration, const wb_move *move, const wb_move_place *place);
wb_status wb_migrate_visit(wb_migration *migration, wb_visit_fn *visit);

/* migration->parts (=) those of a slot of this rank, as they are now; *bytes_out: of a shadow slot for
 * them. */
wb_status wb_migrate_find_parts(wb_migration *migration, uint32_t layer, wb_physical_id slot,
                                size_t *bytes_out);

/* Where parts lie one behind the other: each begins at a multiple of 256 bytes. */
static inline size_t wb_migrate_aligned(size_t bytes) {
    return (bytes + 255) / 256 * 256;
}

static inline char *wb_migrate_shadow(const wb_migration *migration, const wb_move_place *place) {
    return migration->shadows + place->shadow * migration->shadow_bytes;
}

/* Moves of the round, of all ranks. */
static inline uint64_t wb_migrate_n_moves(const wb_migration *migration) {
    uint64_t n = 0;
    for (uint32_t i = 0; i < migration->n_groups; i++) {
        const wb_move_group *group = &migration->groups[i].plan->groups[migration->groups[i].group];
        n += group->end - group->begin;
    }
    return n;
}

#endif
