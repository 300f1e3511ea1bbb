/* wb_train_hooks.h - what a foreign trainer calls: four calls around its own forward and backward.
 *
 *   wb_hooks_step_begin(hooks, mode, micro-batches)     and wb_replay_plan for each micro-batch
 *     router forward:   wb_hooks_gate_forward(hooks, micro-batch, layer, ..., logits -> ids, weights)
 *     router backward:  wb_hooks_gate_backward(hooks, micro-batch, layer, ..., dweights -> dlogits)
 *   wb_hooks_step_end(hooks, metrics)
 *
 * Owns: the router's gate under off, record (R2) and replay (R3), in place of the trainer's own top-k.
 * Refuses: the model, the rollout engine. The trainer computes the router logits and dispatches to the ids
 * it gets back.
 *
 * Under replay the load that an auxiliary loss or a selection-bias update should see is that of the ids
 * returned here, the forced map; bias itself only selects, so it has no effect on forced rows.
 */
#ifndef WB_TRAIN_HOOKS_H
#define WB_TRAIN_HOOKS_H

#include "wb_kernels.h"
#include "wb_replay.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wb_hooks wb_hooks;

typedef enum wb_replay_mode {
    WB_REPLAY_OFF, /* native choice in every pass; the metrics still compare with the records, where planned */
    WB_REPLAY_RECORD, /* R2: the step's first pass (the old-logprob forward) chooses, the others follow it */
    WB_REPLAY_ROLLOUT /* R3: every pass follows the rollout's routes */
} wb_replay_mode;
WB_API const char *wb_replay_mode_name(wb_replay_mode mode); /* "off", "record", "rollout" */

typedef struct wb_hooks_options {
    wb_device *device; /* where logits, ids and weights live; borrowed */
    /* Records and plan; borrowed. Reference, teacher and critic models get hooks of their own, OFF, with a
     * replay of their own or NULL (no metrics). */
    wb_replay *replay;
    wb_router router;         /* the same for all layers */
    const float *const *bias; /* host [L] of device [E] selection biases, or NULL; borrowed */
} wb_hooks_options;

/* UNSUPPORTED names the op that the device lacks: memory, topk, gate_forward, gate_backward are needed. */
WB_API wb_status wb_hooks_open(const wb_hooks_options *options, wb_hooks **hooks_out);
WB_API void wb_hooks_close(wb_hooks *hooks);

/* Begins a plan of n_micro_batches (wb_replay_begin); the caller then plans each with wb_replay_plan:
 * REPLAY segments under ROLLOUT (and under OFF, to be measured against), RECORD segments under RECORD.
 * Under OFF a micro-batch need not be planned. */
WB_API wb_status wb_hooks_step_begin(wb_hooks *hooks, wb_replay_mode mode, int32_t n_micro_batches);

/* Rows [row, row + T) of the micro-batch in MoE layer `layer`. logits: device [T, E] of this forward.
 * ids_out: device, [T] rows of K ids, dtype and stride as given; weights_out: device [T, K], zero for
 * padding rows. Forward and every recompute of it call this alike. ids_out may be u16 where u8 would do.
 * HASH: ids_out holds on entry what the trainer's table says of each row: the native choice. Under OFF
 * every row but padding goes where its logits say. Errors: INVALID_ARGUMENT outside of a step or plan,
 * MISMATCH for REPLAY segments under RECORD; then no output is written. */
WB_API wb_status wb_hooks_gate_forward(wb_hooks *hooks, int32_t micro_batch, int32_t layer, uint32_t row,
                                       int64_t T, const float *logits, wb_ids ids_out, float *weights_out);

/* dlogits_out: device [T, E] (=) from dweights: device [T, K], at the ids that the forward used: the
 * plan's, which has kept the native choices too; under OFF they are chosen again from `logits`, which are
 * the forward's (HASH under OFF is UNSUPPORTED). Zero for padding rows. INVALID_ARGUMENT before the
 * forward of these rows. */
WB_API wb_status wb_hooks_gate_backward(wb_hooks *hooks, int32_t micro_batch, int32_t layer, uint32_t row,
                                        int64_t T, const float *logits, const float *dweights,
                                        float *dlogits_out);

/* Checks that every (micro-batch, layer) was used (not under OFF, which forces none) and gives the step's
 * metrics; metrics_out may be NULL. */
WB_API wb_status wb_hooks_step_end(wb_hooks *hooks, wb_replay_metrics *metrics_out);

#ifdef __cplusplus
}
#endif
#endif
