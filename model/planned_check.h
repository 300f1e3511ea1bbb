/* planned_check.h - a caller's plan of a pass, checked once where it comes in: what follows trusts its
 * numbers as those of the op. */
#ifndef WB_PLANNED_CHECK_H
#define WB_PLANNED_CHECK_H

#include "model_weights.h"

/* planned: [L]; direction: host [T], or NULL: all native. MISMATCH when a layer was planned for another
 * placement; INVALID_ARGUMENT for a native row, another number of tokens, and rows, offsets or counts that do
 * not fit together; names layer, place, expected and found. */
wb_status wb_planned_check(const wb_model *model, int64_t T, const uint8_t *direction,
                           const wb_planned_layer *planned);

#endif
