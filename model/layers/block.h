/* block.h - a layer's two parts on the residual stream, and the workers of all kinds that a model has. */
#ifndef WB_BLOCK_H
#define WB_BLOCK_H

#include "layers/layer.h"

#define WB_MAX_KINDS 8

typedef struct wb_block {
    wb_model *model;
    const wb_layer_kind *kinds[WB_MAX_KINDS];
    void *workers[WB_MAX_KINDS]; /* of each kind */
    int32_t n_kinds;

    /* Kept by a forward for its backward. */
    wb_buffer mixer_norm;        /* [T, H] */
    wb_buffer mid;               /* [T, H] residual stream between the parts */
    wb_buffer feed_forward_norm; /* [T, H] */

    wb_buffer dmid, dnorm; /* [T, H] */
} wb_block;

/* Sizes for passes of max_tokens tokens a rank. max_expert_rows, of several ranks only; 0: as many rows as
 * the tokens of all ranks could send to the slots of this one, R * max_tokens * min(K, slots of this rank).
 * INVALID_ARGUMENT unless both are in their range. */
wb_status wb_block_sizes(const wb_model *model, int64_t max_tokens, int64_t max_expert_rows, bool backward,
                         wb_sizes *sizes_out);

/* Its workers, which are the owner's: closing that is all that is needed. */
wb_status wb_block_open(wb_model *model, wb_owner *owner, wb_block *block);

/* Places the memory for passes through all layers (wb_arena.h). */
void wb_block_layout(wb_block *block, const wb_sizes *sizes, wb_arena *arena);

/* y[T,H] (=) layer l of x[T,H], y not x. Collective. */
wb_status wb_block_forward(wb_block *block, int32_t l, const wb_pass *pass, const wb_state *state, wb_rows x,
                           wb_rows y);

/* Of the latest forward, which had no state: dx[T,H] := gradient of x, from gradient of y, in place;
 * grads[param] (+=). Collective. */
wb_status wb_block_backward(wb_block *block, int32_t l, const wb_pass *pass, wb_rows x, float *const *grads,
                            wb_rows dx);

#endif
