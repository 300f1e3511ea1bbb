/* hooks_internal.h - the handle of the hooks and one call of a gate, shared by the files of this room
 * (internal). */
#ifndef WB_HOOKS_INTERNAL_H
#define WB_HOOKS_INTERNAL_H

#include "wb_check.h"
#include "wb_train_hooks.h"
#include "wb_workspace.h"

/* A micro-batch of a step of record or replay. */
typedef struct hooks_batch {
    bool resident; /* the plan of this step lies on the device */
    uint32_t T;
    wb_buffer ids, native;         /* device: [T] whole rows: where tokens go and would have gone */
    wb_buffer direction;           /* device: [L + 1][T] WB_ROW_*, of each layer and once all have chosen */
    wb_host_buffer direction_host; /* the same */
    wb_host_buffer noted;          /* [L][T] what calls of this step have done */
} hooks_batch;

struct wb_hooks {
    wb_hooks_options options;
    wb_dtype dtype;   /* of ids in the plan and in all buffers but the wide ones */
    int64_t row_ids;  /* of all layers; 0 without a replay */
    int32_t n_layers; /* L; INT32_MAX without a replay */
    bool in_step;
    bool refused;        /* the device has found something in this step */
    wb_replay_mode mode; /* of the step */
    wb_workspace workspace;
    /* Of one call, K being its layer's: device [T][K], [T][K], [T][K] u16, [T] WB_ROW_* */
    wb_buffer ids, native, wide, direction;
    wb_host_buffer ids_host, native_host, wide_host; /* host: [T][K]; wide_host u16 */
    hooks_batch **batches;                           /* [n_batches] in use; each belongs to the workspace */
    size_t n_batches, made_batches, batch_capacity;
};

/* Rows [row, row + T) of a (micro-batch, layer), and what the plan says of them. */
typedef struct gate_call {
    int32_t micro_batch, layer;
    uint32_t row, T;
    const float *logits; /* device [T][E] */
    wb_router router;    /* with the layer's K */
    size_t layer_bytes;  /* of K ids */
    wb_replay_slice slice;
} gate_call;

static inline wb_ids hooks_ids(const wb_hooks *h, const gate_call *c, const wb_buffer *buffer) {
    return (wb_ids){buffer->data, h->dtype, c->router.top_k};
}

/* What messages say of the rows of a call; nothing is looked at yet. */
static inline wb_route_check wb_hooks_route_check(const gate_call *c) {
    return (wb_route_check){.T = c->T,
                            .top_k = c->router.top_k,
                            .n_experts = c->router.n_experts,
                            .micro_batch = c->micro_batch,
                            .layer = c->layer,
                            .row = c->row};
}

/* ---- hooks_gate.c ----------------------------------------------------------------------------- */

/* Checks the arguments of a call on rows [row, row + T). `what` begins messages. */
wb_status wb_hooks_start_call(wb_hooks *hooks, int32_t micro_batch, int32_t layer, uint32_t row, int64_t T,
                              const char *what, gate_call *call_out);

/* Room for T rows of a call that is not of a resident micro-batch. Buffers only grow: in the steady state a
 * call allocates nothing. */
wb_status wb_hooks_reserve(wb_hooks *hooks, int64_t T);

/* ---- hooks_resident.c ------------------------------------------------------------------------- */

/* Forgets the micro-batches of the step before and makes room for n. */
wb_status wb_hooks_begin_batches(wb_hooks *hooks, int32_t n);
/* *batch_out: the call's micro-batch, its plan on the device; NULL in mode OFF and for a hash router. */
wb_status wb_hooks_find_resident(wb_hooks *hooks, const gate_call *call, hooks_batch **batch_out);
/* A gate's forward and backward, and the check of a dispatcher, of a resident micro-batch. */
wb_status wb_hooks_resident_forward(wb_hooks *hooks, const hooks_batch *batch, const gate_call *call,
                                    wb_ids ids_out, float *weights_out);
wb_status wb_hooks_resident_backward(wb_hooks *hooks, const hooks_batch *batch, const gate_call *call,
                                     const float *dweights, float *dlogits_out);
wb_status wb_hooks_resident_dispatched(wb_hooks *hooks, const hooks_batch *batch, const gate_call *call,
                                       wb_ids ids);

/* ---- hooks_choose.c --------------------------------------------------------------------------- */

/* Leaves the ids to route by in h->ids, and on the host what the slice wants back: the ids chosen in
 * h->ids_host, the native ones in h->native_host. `table`: a hash router's choice of each row. */
wb_status wb_hooks_choose(wb_hooks *hooks, const gate_call *call, wb_ids table);

/* ---- hooks_ids.c ------------------------------------------------------------------------------ */

/* Whether the trainer's tensor can hold the ids of the call's rows. `name`: what messages call it. */
wb_status wb_hooks_check_ids(const wb_hooks *hooks, const gate_call *call, wb_ids ids, const char *name);
/* The trainer's ids into h->native_host, in the plan's dtype; INVALID_ARGUMENT for ids out of range. */
wb_status wb_hooks_read_ids(wb_hooks *hooks, const gate_call *call, wb_ids from, const char *name);

#endif
