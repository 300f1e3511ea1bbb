/* block.h - a layer's two parts on the residual stream, and the workers of all kinds that a model has. */
#ifndef WB_BLOCK_H
#define WB_BLOCK_H

#include "layers/layer.h"

#define WB_MAX_KINDS 8

typedef struct wb_block {
    wb_model *model;
    wb_workspace *memory; /* borrowed */
    const wb_layer_kind *kinds[WB_MAX_KINDS];
    void *workers[WB_MAX_KINDS]; /* of each kind */
    int32_t n_kinds;

    /* Kept by a forward for its backward. */
    wb_buffer mixer_norm;        /* [T, H] */
    wb_buffer mid;               /* [T, H] residual stream between the parts */
    wb_buffer feed_forward_norm; /* [T, H] */

    wb_buffer dmid, dnorm; /* [T, H] */
} wb_block;

/* Its memory is the workspace's: closing that is all that is needed. */
wb_status wb_block_open(wb_model *model, wb_workspace *memory, wb_block *block);

/* Memory for a forward of T tokens through all layers, and with `backward` for its backward. */
wb_status wb_block_reserve(wb_block *block, int64_t T, bool backward);

/* y[T,H] (=) layer l of x[T,H], y not x. Collective. */
wb_status wb_block_forward(wb_block *block, int32_t l, const wb_pass *pass, const wb_state *state, wb_rows x,
                           wb_rows y);

/* Of the latest forward, which had no state: dx[T,H] := gradient of x, from gradient of y, in place;
 * grads[param] (+=). Collective. */
wb_status wb_block_backward(wb_block *block, int32_t l, const wb_pass *pass, wb_rows x, float *const *grads,
                            wb_rows dx);

#endif
