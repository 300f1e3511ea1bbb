/* infer_state.h - an inference workspace: its pool, its memory, and the batch of the latest step. */
#ifndef WB_INFER_STATE_H
#define WB_INFER_STATE_H

#include "infer_graphs.h"
#include "layers/block.h"
#include "layers/head.h"
#include "routing_check.h"
#include "wb_upload_ring.h"

/* The pool's part of one layer: the tables of its state, [n_blocks * block_size, width] of the model's
 * dtype, and where in a sequence's state its bytes are. */
typedef struct wb_layer_pool {
    wb_state_shape shape;
    wb_buffer tables[WB_MAX_STATE_TABLES];
    int64_t sequence_offset;
} wb_layer_pool;

/* What is known of a sequence's state between two steps. */
typedef struct wb_state_mark {
    uint64_t batch;   /* number of the latest that had it */
    int32_t position; /* of the token that comes next; -1: unknown, after a forward that failed */
} wb_state_mark;

/* States of fixed size, each with the bytes of all layers side by side, so that one operation makes it zero
 * or copies it. */
typedef struct wb_sequence_pool {
    int64_t bytes;        /* of a state, a multiple of WB_ARENA_ALIGNMENT; 0: no layer keeps any */
    wb_buffer states;     /* [n_states, bytes] */
    wb_state_mark *marks; /* host [n_states] */
    uint64_t *seq_marks;  /* host [max_sequences] number of the latest batch that had a run of the row */
    uint64_t n_batches;
} wb_sequence_pool;

/* What a step puts on the device, [T] where nothing else is said. */
typedef struct wb_infer_inputs {
    int64_t T, n_blocks, n_logits; /* entries of all block tables; rows, as many as are computed */
    int64_t n_runs, max_blocks;
    int64_t n_hidden_rows;                 /* T of MTP layers, else 0 */
    wb_input hidden_rows;                  /* int32 [n_hidden_rows] */
    wb_input tokens, pos, seq;             /* int32 */
    wb_input runs;                         /* wb_sequence_run [n_runs] */
    wb_input pool_rows;                    /* int64 */
    int64_t n_period_rows[WB_MAX_PERIODS]; /* T, 0 without such a period */
    wb_input period_rows[WB_MAX_PERIODS];  /* int64 [n_period_rows] */
    wb_input blocks;                       /* int32 [n_blocks] */
    wb_input logit_rows;                   /* int32 [n_logits] */
    wb_input direction;                    /* u8 [T] native, then padding */
    int64_t n_tokens;                      /* without the padding at the end */
} wb_infer_inputs;

typedef struct wb_way_word wb_way_word;

struct wb_infer {
    wb_model *model;
    wb_infer_options options;
    wb_sizes sizes;
    wb_workspace memory;
    wb_block block;
    wb_layer_pool *pools;            /* [n_layers] */
    int32_t periods[WB_MAX_PERIODS]; /* of their tables; 0: none */
    wb_sequence_pool sequences;

    wb_upload_ring ring;
    wb_infer_inputs inputs;
    wb_routing routing;             /* of the latest batch, padding laid over it */
    wb_buffer x, y;                 /* [T, W] residual stream, in turns */
    wb_head_rows head_rows;         /* [n_logits] */
    wb_buffer last, normed, logits; /* [n_logits, H], [n_logits, H], [n_logits, V] */
    wb_infer *mtp;                  /* of the model's MTP layers, in this one's memory; or NULL */
    const wb_infer *decoder;        /* of these: the one that they guess behind; else NULL */
    const wb_infer *hidden_of;  /* of these: whose latest output they go on from, the decoder's or theirs */
    const int32_t *hidden_rows; /* host [T] of these: rows of that output, the caller's */
    wb_buffer hidden;           /* [T, H] of these */
    wb_buffer ids;              /* [T][L][K] of these: their choices, which nobody reads */
    wb_routing_stage routing_stage;
    wb_way_word *words;       /* host [R] */
    wb_graph_size graph_size; /* of the latest batch; zeros: it runs op by op */
    wb_infer_graphs graphs;
};

/* wb_infer_measure over a model that is there, or a blank one. */
wb_status wb_infer_measure_over(wb_model *model, const wb_infer_options *options, wb_memory *memory_out);

/* ---- MTP layers (infer_mtp.c) ---------------------------------------------------------------------- */

wb_status wb_infer_mtp_zero(const wb_infer *mtp); /* its pools */
void wb_infer_mtp_close(wb_infer *mtp);           /* NULL is a no-op */

/* x[T,H] (=) the input of the first of them, of the present batch behind `output`, that of hidden_of. */
wb_status wb_infer_mtp_input(wb_infer *mtp, int64_t T, wb_rows output, wb_rows x);

/* ---- a batch (infer_batch.c) ---------------------------------------------------------------------- */

/* The ring for steps of the sizes that the options have, and what their routing needs. */
void wb_infer_layout_batch(wb_infer *infer, wb_arena *arena);

/* Whether steps over this model can be graphs at all. */
bool wb_infer_has_graphs(const wb_infer *infer);

/* Checks the batch and its routing and puts the batch on the device. */
wb_status wb_infer_take_batch(wb_infer *infer, const wb_infer_batch *batch, const wb_routing *routing,
                              wb_pass *pass_out);

/* ---- the ranks (infer_way.c) ----------------------------------------------------------------------- */

/* Place for what they say. */
wb_status wb_infer_open_way(wb_infer *infer);

/* As wb_comm_agree, of this rank's step of T tokens, taken or not; with pass->mailbox_rows. */
wb_status wb_infer_agree(wb_infer *infer, int64_t T, wb_status taken, wb_pass *pass);

/* ---- its sequences (infer_sequences.c) ------------------------------------------------------------ */

/* One run of each sequence and, where layers keep state by sequence, a state of its own for each that stands
 * where the run begins. *n_runs_out: the runs. */
wb_status wb_infer_check_runs(wb_infer *infer, const wb_infer_batch *batch, int64_t *n_runs_out);

/* runs[n_runs] of a batch that was checked. */
void wb_infer_put_runs(const wb_infer *infer, const wb_infer_batch *batch, wb_sequence_run *runs);

/* Zeros for the states of sequences that begin. Until the end, those of the batch are unknown: a forward that
 * fails leaves them so. */
wb_status wb_infer_begin_states(wb_infer *infer, const wb_infer_batch *batch);
void wb_infer_end_states(wb_infer *infer, const wb_infer_batch *batch);

#endif
