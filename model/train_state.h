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
    bool forward_only; /* no gradients; the residual stream of two layers is kept, not of all */
    bool forward_done; /* residual and batch below are those of a whole forward */
    bool backward_due; /* and its backward has not been */
    bool logits_kept;  /* logits holds all n_head rows of it: they fitted one chunk */
    int64_t T, n_head; /* tokens; those with a target */
    wb_routing routing;
    wb_pass pass;                       /* of its layers */
    wb_buffer tokens, pos, seq, blocks; /* int32 [T] */
    wb_buffer residual;                 /* of each wb_train_residual */
    wb_buffer head_rows, head_targets;  /* int32 [n_head] */
    wb_host_buffer host_rows;           /* int32 [n_head] */
    bool has_temperature, has_kept; /* the batch has them; else the targets' distribution is the plain one */
    wb_buffer temperature;          /* f32 [n_head] */
    wb_buffer kept_ids, kept_start; /* uint32 of all rows of the head; int64 [n_head + 1] */
    wb_host_buffer host_temperature, host_kept_start, host_kept_ids;

    wb_buffer head_x, head_norm, dhead; /* [n, H] */
    wb_buffer logits;                   /* [chunk, V] */
    wb_buffer logprobs, dlogprobs;      /* [n_head] */
    wb_buffer dx;                       /* [T, H] */
    wb_buffer buckets;                  /* gradients in transit and scratch for their sums */
    wb_host_buffer host_ints, host_floats;
    wb_host_buffer replica_sizes, replica_sent, replica_received; /* of wb_train_sum_replicas */
    wb_buffer replica_scratch;                                    /* one slot of a storage */
    wb_routing_stage routing_stage;
};

/* Input of layer l, [T, H]; of n_layers: the output of the last. */
static inline wb_rows wb_train_residual(const wb_train *train, int32_t l) {
    const int64_t place = train->forward_only ? l % 2 : l;
    return wb_rows_from(wb_activations(train->model, &train->residual),
                        place * train->T * train->model->config.hidden_size);
}

/* ---- gradients (train_grads.c) -------------------------------------------------------------------- */

/* A zero gradient for every parameter. */
wb_status wb_train_open_grads(wb_train *train);

/* ---- gradients of replicas (train_replicas.c) ------------------------------------------------------ */

/* Memory for the next; all that one rank can fail alone. */
wb_status wb_train_prepare_replicas(wb_train *train);

/* The gradient of every replica of an expert becomes the sum over its replicas. Collective. */
wb_status wb_train_sum_replicas(wb_train *train);

/* ---- a batch (train_batch.c) ---------------------------------------------------------------------- */

/* Checks the batch and puts it on the device: pass, tokens, head_rows, head_targets, and what the targets
 * were sampled from. */
wb_status wb_train_take_batch(wb_train *train, const wb_train_batch *batch, const wb_routing *routing);

/* ---- what targets were sampled from (train_sampling.c) -------------------------------------------- */

wb_status wb_train_check_sampling(const wb_train *train, const wb_train_batch *batch);

/* Puts it on the device for the rows of the head, host_rows. */
wb_status wb_train_upload_sampling(wb_train *train, const wb_train_batch *batch);

/* That of the rows of the head from `start` on; false: all are plain. */
bool wb_train_distribution(const wb_train *train, int64_t start, wb_distribution *distribution_out);

/* ---- the head, in chunks of rows (train_head.c) --------------------------------------------------- */

/* Memory for a forward of n_head rows. */
wb_status wb_train_reserve_head(wb_train *train);

/* logprobs[n_head] (=) from the last layer's output x[T,H]. */
wb_status wb_train_head_forward(wb_train *train, wb_rows x);

/* dx[T,H] (=) the gradient of that x, from dlogprobs[n_head]. */
wb_status wb_train_head_backward(wb_train *train, wb_rows dx);

#endif
