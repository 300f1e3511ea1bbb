/* infer_state.h - an inference workspace: its pool, its memory, and the batch of the latest step. */
#ifndef WB_INFER_STATE_H
#define WB_INFER_STATE_H

#include "layers/block.h"
#include "routing_check.h"
#include "wb_upload_ring.h"

/* The pool's part of one layer: the tables of its state, [n_blocks * block_size, width] of the model's
 * dtype. */
typedef struct wb_layer_pool {
    wb_state_shape shape;
    wb_buffer tables[WB_MAX_STATE_TABLES];
} wb_layer_pool;

/* What a step puts on the device, [T] where nothing else is said. */
typedef struct wb_infer_inputs {
    int64_t T, n_blocks, n_logits; /* entries of all block tables; rows */
    wb_input tokens, pos, seq;     /* int32 */
    wb_input pool_rows;            /* int64 */
    wb_input blocks;               /* int32 [n_blocks] */
    wb_input logit_rows;           /* int32 [n_logits] */
    wb_input direction;            /* u8 [T] native, then padding */
    int64_t n_tokens;              /* without the padding at the end */
} wb_infer_inputs;

struct wb_infer {
    wb_model *model;
    wb_infer_options options;
    wb_sizes sizes;
    wb_workspace memory;
    wb_block block;
    wb_layer_pool *pools; /* [n_layers] */

    wb_upload_ring ring;
    wb_infer_inputs inputs;
    wb_routing routing;             /* of the latest batch, padding laid over it */
    wb_buffer x, y;                 /* [T, H] residual stream, in turns */
    wb_buffer last, normed, logits; /* [n_logits, H], [n_logits, H], [n_logits, V] */
    wb_routing_stage routing_stage;
};

/* ---- a batch (infer_batch.c) ---------------------------------------------------------------------- */

/* The ring for steps of the sizes that the options have. */
void wb_infer_place_ring(wb_infer *infer, wb_arena *arena);

/* Checks the batch and its routing and puts the batch on the device. */
wb_status wb_infer_take_batch(wb_infer *infer, const wb_infer_batch *batch, const wb_routing *routing,
                              wb_pass *pass_out);

#endif
