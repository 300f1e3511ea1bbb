/* weights_digest.h - a number that tells a rank's weights from another version's. Refuses: proof. It reads a
 * few places of the weights that all ranks hold alike, so that it costs next to nothing beside the copy of
 * all of them. */
#ifndef WB_WEIGHTS_DIGEST_H
#define WB_WEIGHTS_DIGEST_H

#include "wb_model.h"

/* Covers, of the tensors that every rank holds, 17 to 32 evenly over the registry (all, where there are no
 * more), and of each the middle 1024 bytes: of a large model some 10,000 weights. Those of matrices, in bf16,
 * lie 1.2e-4 apart where they are 0.02, so that a step of 1e-6 on each, the learning rate of such runs,
 * changes one in 120 of them; norms are f32 and show a step of 1e-7. A change of experts alone, or of a few
 * places, is not seen.
 *
 * Rows are read as they lie, so that a model for inference only has the digest of what it was copied from in
 * the same dtype.
 * The same on every rank of one model, and almost surely another one after an optimizer step, which changes
 * nearly all weights, or for other weights of the same shape. Not collective. */
wb_status wb_weights_digest(const wb_model *model, uint64_t *digest_out);

#endif
