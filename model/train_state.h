/* train_state.h - a trainer: its gradients, the latest forward, and the steps that its files do for each
 * other. */
#ifndef WB_TRAIN_STATE_H
#define WB_TRAIN_STATE_H

#include "layers/block.h"
#include "layers/head.h"
#include "routing_check.h"
#include "slot_traffic.h"
#include "wb_upload_ring.h"

/* What a forward puts on the device; n_head rows have a target. */
typedef struct wb_train_inputs {
    int64_t T, n_head, n_temperature, n_kept_start, n_kept_ids; /* entries; n_kept_start is n_head + 1 or 0 */
    int64_t n_runs;                                             /* sequences that have a token */
    wb_input tokens, pos, seq, blocks;                          /* int32 [T] */
    wb_input runs;                                              /* wb_sequence_run [n_runs] */
    wb_input head_rows, head_targets;                           /* int32 [n_head] */
    wb_input temperature;                                       /* f32 [n_head] */
    wb_input kept_start, kept_ids; /* int64 [n_head + 1]; uint32 of all rows of the head */
} wb_train_inputs;

/* A place in the replicated gradients, which travel from the last parameter to the first. */
typedef struct grad_place {
    int32_t param;
    int64_t offset;
} grad_place;

/* What travels at once: small gradients share a bucket, large ones are cut and travel from where they are. */
typedef struct grad_bucket {
    grad_place start;
    int64_t n;
    float *floats, *scratch; /* device */
    float *sums;             /* what travels: `floats`, or a part of a gradient */
    uint64_t work;
} grad_bucket;

/* In flight at most: one is filled while the other one travels. */
enum { GRAD_BUCKETS = 2 };

typedef struct grad_reduction {
    int64_t room;            /* elements that a bucket has memory for */
    int64_t bucket_elements; /* of a full bucket, at most as many */
    grad_place at;           /* the first that has not been taken */
    grad_bucket buckets[GRAD_BUCKETS];
    size_t n_started, n_finished;
} grad_reduction;

/* Where weight and gradient of an expert are while its home rank updates it. */
typedef struct expert_at_home {
    const float *grad; /* device */
    wb_rows weight;    /* of the model's dtype */
} expert_at_home;

/* What the gradients and weights of experts need on their way between ranks. */
typedef struct train_experts {
    bool grads_are_old;    /* the next backward overwrites them: zeroing is left out (wb_train_zero_grads) */
    int64_t part_elements; /* of a slot that travel at a time; the same on every rank */
    wb_buffer scratch;     /* [parts][part_elements] f32 */
    expert_at_home *at_home; /* host [E] */
    wb_slot_traffic traffic;
} train_experts;

struct wb_train {
    wb_model *model;
    wb_train_options options;
    wb_sizes sizes;
    wb_workspace memory;
    wb_block block;
    float **grads; /* [n_params] device, as long as the parameter's part held here */

    /* The latest forward. */
    bool forward_only; /* no gradients; the residual stream of two layers is kept, not of all */
    bool forward_done; /* residual and batch below are those of a whole forward */
    bool backward_due; /* and its backward has not been */
    bool logits_kept;  /* logits holds all n_head rows of it: they fitted one chunk */
    int64_t T, n_head; /* tokens; those with a target */
    wb_routing routing;
    wb_pass pass; /* of its layers */
    wb_upload_ring ring;
    wb_train_inputs inputs;
    bool *is_head;      /* host [T] the row has a target and is not padding */
    wb_buffer residual; /* of each wb_train_residual */

    wb_head_rows head_rows;             /* [n] */
    wb_buffer head_x, head_norm, dhead; /* [n, H] */
    wb_buffer mixed;                    /* [chunk_rows, H] of hyper-connections, for logits */
    int64_t chunk_rows;                 /* of the head at most */
    wb_buffer logits, dlogits;          /* [chunk_rows, V]; the latter bf16, where activations are */
    wb_buffer logprobs, dlogprobs;      /* [n_head] */
    float *host_logprobs;               /* host [n_head] both of them */
    wb_buffer dx;                       /* [T, W] */
    wb_buffer buckets;                  /* gradients in transit and scratch for their sums */
    grad_reduction reduction;
    train_experts experts;
    wb_routing_stage routing_stage;
};

/* Input of layer l, [T, W]; of n_layers: the output of the last. */
static inline wb_rows wb_train_residual(const wb_train *train, int32_t l) {
    const int64_t place = train->forward_only ? l % 2 : l;
    return wb_rows_from(wb_activations(train->model, &train->residual),
                        place * train->T * wb_model_stream_width(train->model));
}

/* ---- gradients (train_grads.c) -------------------------------------------------------------------- */

/* The list of the gradients; their memory is laid out by the next. */
wb_status wb_train_open_grads(wb_train *train);

/* INVALID_ARGUMENT for a trainer of forwards only. */
wb_status wb_train_check_has_grads(const wb_train *train);

/* Before they are used: where no backward came after wb_train_zero_grads, those of experts become zero now.
 * INVALID_ARGUMENT for a trainer of forwards only. */
wb_status wb_train_settle_grads(wb_train *train);

/* All of them are zero: at open. */
wb_status wb_train_clear_grads(const wb_train *train);

/* A gradient for every parameter, and what their sum over ranks needs. */
void wb_train_layout_grads(wb_train *train, wb_arena *arena);

/* Elements of scratch for the all-reduce of a bucket of `elements` or fewer: what each rank sums of it, from
 * all the others. No fewer than the bucket has, which is more than a short one needs that is gathered
 * (wb_exchange_all_reduce_scratch). */
int64_t wb_train_bucket_scratch(int64_t elements, int32_t n_ranks);

/* The sum over ranks, in three steps: from here on no gradient has been taken; those from parameter `lowest`
 * on are final, so that full buckets of them start; all are, and the sums are there. The last two are
 * collective. */
void wb_train_start_reduction(wb_train *train);
wb_status wb_train_reduce_ready(wb_train *train, int32_t lowest);
wb_status wb_train_finish_reduction(wb_train *train);

/* ---- parts of slots on their way (train_parts.c) --------------------------------------------------- */

/* Memory for them, whatever the placement; and room in the model's exchange. */
void wb_train_layout_parts(wb_train *train, wb_arena *arena);
wb_status wb_train_open_parts(wb_train *train);

/* Elements [first, first + n) of every slot of one storage. */
typedef struct slot_part {
    const wb_param *param;
    float *grad;      /* device [slots of this rank][slot_elements] */
    wb_rows weight;   /* as long */
    wb_layer_map map; /* of the model's placement */
    int64_t first, n;
} slot_part;

slot_part wb_train_first_part(const wb_train *train, int32_t param);
/* False after the last one. */
bool wb_train_next_part(const wb_train *train, slot_part *part);

/* Where the part of one of this rank's slots begins, in elements. */
static inline int64_t wb_slot_part_first(const wb_model *model, const slot_part *part, wb_physical_id slot) {
    return wb_model_local_slot(model, slot) * part->param->slot_elements + part->first;
}

/* Gradients and weights of the part of one of this rank's slots. */
static inline float *wb_slot_part_grad(const wb_model *model, const slot_part *part, wb_physical_id slot) {
    return part->grad + wb_slot_part_first(model, part, slot);
}
static inline wb_rows wb_slot_part_weight(const wb_model *model, const slot_part *part, wb_physical_id slot) {
    return wb_rows_from(part->weight, wb_slot_part_first(model, part, slot));
}

/* Place i in the scratch, for a part: of gradients or of weights, which are no larger. */
float *wb_train_scratch_part(const wb_train *train, int64_t i);

/* ---- gradients of replicas (train_replicas.c) ------------------------------------------------------ */

/* The gradient of the lead replica of every expert becomes the sum over its replicas. Collective. */
wb_status wb_train_sum_replicas(wb_train *train);

/* ---- a batch (train_batch.c) ---------------------------------------------------------------------- */

/* The ring for batches of the sizes that the options have, and what their routing needs. */
void wb_train_layout_batch(wb_train *train, wb_arena *arena);

/* Checks the batch and puts it on the device: pass and inputs. */
wb_status wb_train_take_batch(wb_train *train, const wb_train_batch *batch, const wb_routing *routing);

/* ---- what targets were sampled from (train_sampling.c) -------------------------------------------- */

wb_status wb_train_check_sampling(const wb_train *train, const wb_train_batch *batch);

/* How many entries of inputs.temperature, kept_start and kept_ids the rows of the head have. CAPACITY for
 * more kept tokens than the trainer is for. */
wb_status wb_train_count_sampling(wb_train *train, const wb_train_batch *batch);

/* Writes these for the rows of the head, in host memory. */
void wb_train_put_sampling(wb_train *train, const wb_train_batch *batch);

/* That of the rows of the head from `start` on; false: all are plain. */
bool wb_train_distribution(const wb_train *train, int64_t start, wb_distribution *distribution_out);

/* ---- the head, in chunks of rows (train_head.c) --------------------------------------------------- */

/* How many rows a chunk has, before the layout: all, so that their logits are there in the backward, where
 * they fit into `bytes` beside what chunks take otherwise. */
void wb_train_keep_logits(wb_train *train, size_t bytes);

/* Memory for all rows. */
void wb_train_layout_head(wb_train *train, wb_arena *arena);

/* logprobs[n_head] (=) from the last layer's output x[T,H]. */
wb_status wb_train_head_forward(wb_train *train, wb_rows x);

/* dx[T,H] (=) the gradient of that x, from dlogprobs[n_head]. */
wb_status wb_train_head_backward(wb_train *train, wb_rows dx);

#endif
