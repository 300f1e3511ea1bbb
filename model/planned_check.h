/* planned_check.h - a caller's plan of a pass, checked once where it comes in: what follows trusts its
 * counts as those that it would have found. */
#ifndef WB_PLANNED_CHECK_H
#define WB_PLANNED_CHECK_H

#include "layers/layer.h"

/* Where the rows of some layers are found out, to be compared with the plan; with one rank nothing is. */
typedef struct wb_planned_stage {
    wb_buffer pair_row, row_token; /* int32 [T * K] of the latest layer; nobody reads them */
    wb_buffer offsets;             /* int32 [layers][S + 1] */
    int32_t *found;                /* host [layers][S + 1] the same */
} wb_planned_stage;

void wb_planned_layout(const wb_model *model, int64_t max_tokens, wb_planned_stage *stage, wb_arena *arena);

/* pass->routing->planned, [L], of a pass whose ids were checked and whose tokens are on the device; no row is
 * native. MISMATCH when a layer was planned for another placement; INVALID_ARGUMENT for another number of
 * tokens, and on several ranks for counts that are not those of its rows; names layer, place, expected and
 * found. On several ranks it waits for the stream. */
wb_status wb_planned_check(const wb_model *model, const wb_planned_stage *stage, const wb_pass *pass);

#endif
