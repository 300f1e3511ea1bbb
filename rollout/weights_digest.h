/* weights_digest.h - a number that tells a rank's weights from another version's. Refuses: proof. It reads a
 * few places of the weights that all ranks hold alike, so that it costs next to nothing beside the copy of
 * all of them. */
#ifndef WB_WEIGHTS_DIGEST_H
#define WB_WEIGHTS_DIGEST_H

#include "wb_model.h"

/* The same on every rank of one model, and almost surely another one after an optimizer step, which changes
 * nearly all weights, or for other weights of the same shape. Not collective. */
wb_status wb_weights_digest(const wb_model *model, uint64_t *digest_out);

#endif
