/* wb_train_hooks.h - what a foreign trainer calls: five calls around its own forward and backward.
 *
 *   wb_hooks_step_begin(hooks, mode, micro-batches)     and wb_replay_plan for each micro-batch
 *     router forward:   wb_hooks_gate_forward(hooks, micro-batch, layer, ..., logits -> ids, weights)
 *     dispatch:         wb_hooks_dispatched(hooks, micro-batch, layer, ..., ids that tokens were sent to)
 *     router backward:  wb_hooks_gate_backward(hooks, micro-batch, layer, ..., dweights -> dlogits)
 *   wb_hooks_step_end(hooks, metrics)
 *
 * Owns: the router's gate, layer by layer, in place of the trainer's own top-k: what wb_replay says of the
 * rows, and the device's gate ops. Refuses: the model, the rollout engine, what a mode does (wb_replay). The
 * trainer computes the router logits and dispatches to the ids it gets back. No call is collective.
 *
 * A gate that hands out ids cannot know that a dispatcher follows them: a trainer whose dispatcher still has
 * the routing map of its own top-k would train the wrong experts, with nothing to show for it. So step_end
 * wants wb_hooks_dispatched for every row, told where the ids are taken to send tokens, from what is taken:
 * after the gate, from its own output, it would prove nothing.
 *
 * What indexers choose is none of these calls' matter: a trainer whose replay has options.indexer asks
 * wb_replay_indexer_rows where the rows of a layer are to look, and tells wb_replay_indexer_store where they
 * looked, before step_end, which wants that of every row.
 *
 * The load that an auxiliary loss or a selection-bias update should see is that of the ids returned here,
 * without padding rows, which for forced rows is the rollout's; a bias only selects, so it has no effect on
 * forced rows.
 */
#ifndef WB_TRAIN_HOOKS_H
#define WB_TRAIN_HOOKS_H

#include "wb_kernels.h"
#include "wb_replay.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wb_hooks wb_hooks;

typedef struct wb_hooks_options {
    size_t size;       /* of this struct, set by the initialiser */
    wb_device *device; /* where logits, ids and weights live; borrowed; required */
    /* Records and plan; borrowed. Reference, teacher and critic models get hooks of their own, OFF, with a
     * replay of their own or NULL (no metrics). */
    wb_replay *replay;
    /* The same for all layers; required. Where the replay's model has a K for each layer, top_k is the
     * largest, and a layer's calls are of its own. Without a replay all layers have top_k. */
    wb_router router;
    const float *const *bias; /* host [L] of device [E] selection biases, or NULL; borrowed */
} wb_hooks_options;
/* No device, no replay, no router, no bias. `size`: sizeof the caller's struct. */
WB_API void wb_hooks_options_init(wb_hooks_options *options_out, size_t size);
static inline wb_hooks_options wb_hooks_options_default(void) {
    wb_hooks_options options;
    wb_hooks_options_init(&options, sizeof options);
    return options;
}

/* INVALID_ARGUMENT names what is off, a scale of 0 or below, with which all weights would be zero or turn
 * round, included; MISMATCH when the router's type, E or K is not the replay's model's; UNSUPPORTED names the
 * op that the device lacks: memory, topk, gate_forward, gate_backward, copy_ids and check_routes are
 * needed. */
WB_API wb_status wb_hooks_open(const wb_hooks_options *options, wb_hooks **hooks_out);
WB_API void wb_hooks_close(wb_hooks *hooks);

/* Begins a step in `mode` (wb_replay_begin, which says what the modes do); the caller then plans each
 * micro-batch with wb_replay_plan, of segments that wb_replay_segment makes and of padding. Without a replay
 * the mode is OFF. INVALID_ARGUMENT while a step is open, here or of the replay: its plan would be lost. */
WB_API wb_status wb_hooks_step_begin(wb_hooks *hooks, wb_replay_mode mode, int32_t n_micro_batches);

/* Drops the open step on purpose (wb_replay_abort). Without one it does nothing. */
WB_API void wb_hooks_step_abort(wb_hooks *hooks);

/* Rows [row, row + T) of the micro-batch in MoE layer `layer`, K being the layer's. logits: device [T, E] of
 * this forward. ids_out: device, [T] rows of K ids, dtype and stride as given; weights_out: device [T, K],
 * zero for padding rows. Forward and every recompute of it call this alike. ids_out may be u16 where u8
 * would do.
 * HASH: ids_out holds on entry what the trainer's table says of each row: the native choice. Under OFF
 * every row but padding goes where its logits say. INVALID_ARGUMENT outside of a step or plan; then no
 * output is written.
 *
 * INVALID_ARGUMENT names a row, padding apart, that has a weight which is no finite number: NaN or infinite
 * logits, on a forced row as well. weights_out is not to be used then, and of rows that choose nothing is
 * kept. The CPU says it here, of a CUDA device the next call that waits for it, step_end at the latest. */
WB_API wb_status wb_hooks_gate_forward(wb_hooks *hooks, int32_t micro_batch, int32_t layer, uint32_t row,
                                       int64_t T, const float *logits, wb_ids ids_out, float *weights_out);

/* Tells where the trainer's dispatcher sent rows [row, row + T): ids: device [T] rows of K ids, u8 or u16,
 * what the dispatcher took. Their order within a row does not matter here, since a routing map has none:
 * routing_map.nonzero()[:, 1].view(T, K) will do. Padding rows are told like the others. Each row needs it
 * once a step, after its forward; more often, as in a recompute, it is compared again. MISMATCH names a row
 * that was sent elsewhere than the plan says, INVALID_ARGUMENT for ids out of range and before the forward of
 * these rows; then none of them counts as told. The device compares, on its stream: the CPU says here what it
 * finds, of a CUDA device step_end says it. A hash router's ids are copied to the host and compared there.
 * Mode OFF, or no replay: nothing to compare with, nothing is looked at. */
WB_API wb_status wb_hooks_dispatched(wb_hooks *hooks, int32_t micro_batch, int32_t layer, uint32_t row,
                                     int64_t T, wb_ids ids);

/* dlogits_out: device [T, E] (=) from dweights: device [T, K], at the ids that the forward used: the
 * plan's, which has kept the native choices too; under OFF they are chosen again from `logits`, which are
 * the forward's (HASH under OFF is UNSUPPORTED). Zero for padding rows. INVALID_ARGUMENT before the
 * forward of these rows. */
WB_API wb_status wb_hooks_gate_backward(wb_hooks *hooks, int32_t micro_batch, int32_t layer, uint32_t row,
                                        int64_t T, const float *logits, const float *dweights,
                                        float *dlogits_out);

/* Waits for the device and tells the replay what rows have chosen and where they went so far. Until then, or
 * until step_end, which does it first, wb_replay_rows has no ids of rows that chose in this step. What the
 * device has found of weights and dispatched ids is told: MISMATCH or INVALID_ARGUMENT, which name micro-
 * batch, MoE layer and row; the step is then to be aborted, and every later call of this or of step_end
 * refuses it. INVALID_ARGUMENT outside of a step. */
WB_API wb_status wb_hooks_settle(wb_hooks *hooks);

/* Ends the step (wb_replay_end) and gives its metrics, zeros without a replay; metrics_out may be NULL.
 * First it settles (wb_hooks_settle). MISMATCH also names the first (micro-batch, layer) with a row that
 * wb_hooks_dispatched was not told of, the row and how many there are; the step then stays open, to be
 * completed or aborted. */
WB_API wb_status wb_hooks_step_end(wb_hooks *hooks, wb_replay_metrics *metrics_out);

/* ---- a micro-batch as a CUDA graph ----------------------------------------------------------- */

/* Under record and replay the calls above touch only the device once the plan of their micro-batch is there:
 * no copy, no wait, no read of routing by the host. So a stream capture may take them, with the trainer's own
 * work between them:
 *
 *     wb_replay_plan(replay, 0, ...)           once, and again in each step: segments of the same T
 *     wb_hooks_upload(hooks, 0)
 *         cudaStreamBeginCapture, forward, dispatched, backward, cudaStreamEndCapture      in the first step
 *     cudaGraphLaunch(...)
 *     wb_hooks_launched(hooks, 0)              in the later steps, where no calls were made
 *
 * A graph is of use for the micro-batch index that it was captured for, until a micro-batch of that index has
 * more rows; a smaller T needs a graph of its own. Not for a hash router, and not in mode OFF. */

/* Brings the plan of a micro-batch to the device, to where the plan of the last step was; what calls have
 * done for it in this step is forgotten. Without it the first gate does that. INVALID_ARGUMENT in mode OFF
 * and before wb_replay_plan, UNSUPPORTED for a hash router. */
WB_API wb_status wb_hooks_upload(wb_hooks *hooks, int32_t micro_batch);

/* Tells that a graph has been launched in which every row of every layer of the stage went through
 * gate_forward and dispatched: they count as followed, and step_end reads what the device has found. Call it
 * only when that is so. INVALID_ARGUMENT where the micro-batch was not uploaded in this step. */
WB_API wb_status wb_hooks_launched(wb_hooks *hooks, int32_t micro_batch);

#ifdef __cplusplus
}
#endif
#endif
