/* hooks_internal.h - the handle of the hooks and one call of a gate, shared by the files of this room
 * (internal). */
#ifndef WB_HOOKS_INTERNAL_H
#define WB_HOOKS_INTERNAL_H

#include "wb_check.h"
#include "wb_train_hooks.h"
#include "wb_workspace.h"

struct wb_hooks {
    wb_hooks_options options;
    wb_dtype dtype;     /* of ids in the plan and in all buffers but wide_host */
    size_t layer_bytes; /* K ids */
    int32_t n_layers;   /* L; INT32_MAX without a replay */
    bool in_step;
    wb_replay_mode mode; /* of the step */
    wb_workspace workspace;
    wb_buffer ids, native, direction;                /* device: [T][K], [T][K], [T] WB_ROW_* */
    wb_host_buffer ids_host, native_host, wide_host; /* host: [T][K]; wide_host in the trainer's dtype */
    wb_host_buffer weights_host;                     /* [T][K], where the device's memory is not the host's */
};

/* Rows [row, row + T) of a (micro-batch, layer), and what the plan says of them. */
typedef struct gate_call {
    int32_t micro_batch, layer;
    uint32_t row, T;
    const float *logits; /* device [T][E] */
    wb_replay_slice slice;
} gate_call;

static inline wb_ids hooks_ids(const wb_hooks *h, const wb_buffer *buffer) {
    return (wb_ids){buffer->data, h->dtype, h->options.router.top_k};
}

/* ---- hooks_gate.c ----------------------------------------------------------------------------- */

/* Checks the arguments of a call on rows [row, row + T) and makes room for them. `what` begins messages. */
wb_status wb_hooks_start_call(wb_hooks *hooks, int32_t micro_batch, int32_t layer, uint32_t row, int64_t T,
                              const char *what, gate_call *call_out);

/* ---- hooks_choose.c --------------------------------------------------------------------------- */

/* Leaves the ids to route by in h->ids, and on the host what the slice wants back: the ids chosen in
 * h->ids_host, the native ones in h->native_host. `table`: a hash router's choice of each row. */
wb_status wb_hooks_choose(wb_hooks *hooks, const gate_call *call, wb_ids table);

/* ---- hooks_ids.c ------------------------------------------------------------------------------ */

/* Whether the trainer's tensor can hold the ids of T rows. `name`: what messages call it. */
wb_status wb_hooks_check_ids(const wb_hooks *hooks, int64_t T, wb_ids ids, const char *name);
/* The trainer's ids into h->native_host, in the plan's dtype; INVALID_ARGUMENT for ids out of range. */
wb_status wb_hooks_read_ids(wb_hooks *hooks, const gate_call *call, wb_ids from, const char *name);
/* h->ids into the trainer's tensor. */
wb_status wb_hooks_write_ids(wb_hooks *hooks, const gate_call *call, wb_ids to);

#endif
