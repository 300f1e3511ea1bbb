/* train_state.h - a trainer: its gradients, the latest forward, and the steps that its files do for each
 * other. */
#ifndef WB_TRAIN_STATE_H
#define WB_TRAIN_STATE_H

#include "layers/block.h"
#include "routing_check.h"

struct wb_train {
    wb_model *model;
    wb_workspace memory;
    wb_block block;
    wb_buffer *grad_memory; /* [n_params] */
    float **grads;          /* [n_params] device, as long as the parameter's part held here */

    /* The latest forward. */
    bool forward_done; /* residual and batch below are those of a whole forward */
    bool backward_due; /* and its backward has not been */
    bool logits_kept;  /* logits holds all n_head rows of it: they fitted one chunk */
    int64_t T, n_head; /* tokens; those with a target */
    wb_routing routing;
    wb_pass pass;                       /* of its layers */
    wb_buffer tokens, pos, seq, blocks; /* int32 [T] */
    wb_buffer residual;                 /* [n_layers + 1][T, H] input of each layer, output of the last */
    wb_buffer head_rows, head_targets;  /* int32 [n_head] */
    wb_host_buffer host_rows;           /* int32 [n_head] */

    wb_buffer head_x, head_norm, dhead; /* [n, H] */
    wb_buffer logits;                   /* [chunk, V] */
    wb_buffer logprobs, dlogprobs;      /* [n_head] */
    wb_buffer dx;                       /* [T, H] */
    wb_host_buffer host_ints, host_floats;
    wb_routing_stage routing_stage;
};

/* ---- gradients (train_grads.c) -------------------------------------------------------------------- */

/* A zero gradient for every parameter. */
wb_status wb_train_open_grads(wb_train *train);

/* ---- a batch (train_batch.c) ---------------------------------------------------------------------- */

/* Checks the batch and puts it on the device: pass, tokens, head_rows, head_targets. */
wb_status wb_train_take_batch(wb_train *train, const wb_train_batch *batch, const wb_routing *routing);

/* ---- the head, in chunks of rows (train_head.c) --------------------------------------------------- */

/* Memory for a forward of n_head rows. */
wb_status wb_train_reserve_head(wb_train *train);

/* logprobs[n_head] (=) from the last layer's output x[T,H]. */
wb_status wb_train_head_forward(wb_train *train, const float *x);

/* dx[T,H] (=) the gradient of that x, from dlogprobs[n_head]. */
wb_status wb_train_head_backward(wb_train *train, float *dx);

#endif
