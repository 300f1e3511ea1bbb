/* layer.h - what a kind of layer is to the rest of the room.
 *
 * A layer is two parts on the residual stream (block.h): a mixer, which lets positions see each other, and a
 * feed-forward part, which works on each token alone. To add a kind: "A layer" in docs/adding.md, which names
 * every file: the kind's own, the end of this one, the family's, needed_ops.c and op_sizes.c.
 *
 * Pointers are device memory unless marked host. */
#ifndef WB_LAYER_H
#define WB_LAYER_H

#include "model_weights.h"
#include "wb_arena.h"

/* ---- a pass over a batch --------------------------------------------------------------------- */

/* Adjacent rows [start, start + n). */
typedef struct wb_row_run {
    int64_t start, n;
} wb_row_run;

/* Different ones of all layers of a model together. */
#define WB_MAX_PERIODS 2

/* Row of each token [T] in tables of a period (wb_state_shape): -1 where no period ends at it. */
typedef struct wb_period_rows {
    int32_t period; /* 0: none */
    const int64_t *rows;
} wb_period_rows;

/* What the layers of one forward or backward have in common. */
typedef struct wb_pass {
    int64_t T;
    const int32_t *tokens;    /* [T] */
    const int32_t *pos, *seq; /* [T] absolute position; row of `blocks`; padding at the end: 0 and -1 */
    const int32_t *blocks;    /* [n_seqs, max_blocks] blocks of each sequence, as wb_attention. In training
                               * [T], block_size 1: `seq` is the sequence's first token and max_blocks is 1,
                               * so that a sequence's row begins at its first token and is as long as it is */
    int32_t max_blocks, block_size;
    const int64_t *state_rows; /* [T] row of each token in the tables of states, -1: padding; or NULL */
    wb_period_rows periods[WB_MAX_PERIODS]; /* in inference */
    bool one_a_sequence; /* as of wb_attention: no two tokens are of one sequence; false: unknown */
    int64_t n_runs;
    const wb_sequence_run *runs; /* [n_runs] of the sequences, in ascending order; padding at the end is in
                                  * none, and behind the others some may be empty, of no sequence. In
                                  * training each begins at position 0 */
    const wb_routing *routing;   /* who chooses the experts of each row */
    const wb_row_run *padding;   /* host [n_padding] rows that are no tokens: their choices weigh nothing */
    int64_t n_padding;
    void *used;          /* host [T][L][K] out, as routing->used; or NULL */
    bool recompute;      /* all rows take routing->ids as an earlier forward left them */
    bool leaves_nothing; /* feed-forward parts: no backward follows before the part is computed again */
    bool starts_grads;   /* backward: the gradients of experts are overwritten, not added to */
    const wb_router_probe *probe; /* or NULL */
    /* Rows that this rank's slots may get at most, where ranks store rows into each other's mailboxes
     * (wb_mailbox.h), and the host learns no count; 0: they travel by the exchange. On all ranks or on
     * none. */
    int64_t mailbox_rows;
} wb_pass;

/* ---- state of a sequence --------------------------------------------------------------------- */

#define WB_MAX_STATE_TABLES 2

/* What a mixer keeps of a sequence from step to step; what stands in it is the layer's alone.
 *
 * By position: in each of n_tables tables one row a position, of width[i] elements of
 * wb_state_dtype. Keys and values are two tables, a latent is one. Which row belongs to which position is
 * decided above (wb_pass). A table may have a row for each `period` positions instead, that of the last one
 * of them.
 *
 * By sequence: sequence_bytes of a fixed size whatever the length, as recurrent layers have. A forward finds
 * that of a run at wb_sequence_state(state, run.state), brings it from the run's first token to behind its
 * last one, and leaves it there. What a layer may rely on:
 * - It is at a multiple of WB_ARENA_ALIGNMENT bytes.
 * - At a run that begins at position 0 all its bytes are zero. At any other it has the bytes that this layer
 *   left behind the token before the run, and the run's positions have no gap. That holds for a number that
 *   another sequence had before, after a preemption and after a step that failed: in these cases the sequence
 *   is fed from position 0 again.
 * - No two runs of a pass have the same state, so that runs may go on beside each other.
 * - Without a state (`state` NULL: training, and what a backward is of) each run is a whole sequence and
 *   begins as if from zeros; what is behind its last token is not kept.
 * What it promises:
 * - The state behind a token, and the token's result, depend on the sequence's tokens up to it and on the
 *   weights that each was fed by, never on how they were cut into runs, on other runs, or on run.state. So a
 *   kernel that takes positions in groups cuts groups at absolute positions, and what it needs of a group
 *   that is not full is part of the state.
 * - The bytes mean the same in another place: they hold no address and no number of a state, block or row.
 *   Whoever owns the pool may copy them, the bytes of all layers of a sequence at once, and go on from the
 *   copy later. That is the only way back to an earlier position.
 * - It touches no other state: those between two steps lie in the same pool. */
typedef struct wb_state_shape {
    int32_t n_tables; /* 0..WB_MAX_STATE_TABLES */
    int64_t width[WB_MAX_STATE_TABLES];
    int32_t period[WB_MAX_STATE_TABLES]; /* 0: a row a position */
    int64_t sequence_bytes;              /* 0..INT32_MAX */
} wb_state_shape;

/* The memory of one layer's states. */
typedef struct wb_state {
    void *tables[WB_MAX_STATE_TABLES];
    wb_dtype dtype;
    char *sequences;         /* of number 0; NULL where sequence_bytes is 0 */
    int64_t sequence_stride; /* bytes from one number to the next */
} wb_state;

static inline wb_rows wb_state_rows(const wb_state *state, int table) {
    return (wb_rows){state->tables[table], state->dtype};
}

static inline void *wb_sequence_state(const wb_state *state, int32_t number) {
    return state->sequences + number * state->sequence_stride;
}

/* NULL: no table has such a period. */
static inline const int64_t *wb_pass_rows(const wb_pass *pass, int32_t period) {
    for (int i = 0; i < WB_MAX_PERIODS; i++)
        if (pass->periods[i].period == period) return pass->periods[i].rows;
    return NULL;
}

/* Rows that a block of `block_size` positions has in a table of a period: of the periods that can end in
 * it. */
static inline int64_t wb_period_block_rows(int32_t block_size, int32_t period) {
    return period > 1 ? ((int64_t)block_size + period - 1) / period : block_size;
}

/* ---- sizes ----------------------------------------------------------------------------------- */

/* What the passes over a workspace need at most; fixed when it is opened. */
typedef struct wb_sizes {
    int64_t tokens;      /* T of a pass */
    int64_t expert_rows; /* rows for the slots of this rank in one MoE layer, from all ranks */
    bool backward;       /* forwards are followed by backwards */
    /* Another worker of the same kind, laid out before, whose scratch this one works in too: only what a
     * forward keeps for its backward is its own. NULL: none. */
    const void *scratch_of;
} wb_sizes;

/* Device memory for activations of the model. */
static inline void wb_place_activations(wb_arena *arena, const wb_model *model, wb_buffer *buffer,
                                        int64_t rows, int64_t width) {
    wb_place(arena, buffer, rows, width, wb_dtype_size(model->activations));
}

/* Likewise for what is of no use after a forward or a backward; other: that of wb_sizes.scratch_of, or
 * NULL. */
static inline void wb_place_scratch(wb_arena *arena, const wb_model *model, wb_buffer *buffer,
                                    const wb_buffer *other, int64_t rows, int64_t width) {
    if (other)
        *buffer = *other;
    else
        wb_place_activations(arena, model, buffer, rows, width);
}

/* ---- a kind ---------------------------------------------------------------------------------- */

typedef struct wb_registry wb_registry;

/* `weights` is a struct of weights_size bytes, one a layer, with the parameters that declare() got from the
 * registry. `worker` is a struct of worker_size bytes, zeroed before layout(): the buffers that a forward
 * needs and that it leaves for the backward of the same layer. One serves all layers of the kind, unless some
 * have workers of their own so that they need not be computed again. */
struct wb_layer_kind {
    size_t weights_size, worker_size;

    /* Declares the tensors of layer l in the order of the checkpoint. Called twice, with the same effect. */
    void (*declare)(wb_registry *registry, int32_t l, void *weights);

    /* Mixers only; a feed-forward part with one is refused by inference. Fills a zeroed struct. NULL: the
     * kind keeps nothing of a sequence. */
    void (*state)(const wb_config *config, wb_state_shape *shape_out);

    /* Places all memory that the passes of the kind's layers need, which is then never moved: a pass
     * allocates nothing. Called twice, with the same effect (wb_arena.h). */
    void (*layout)(void *worker, wb_model *model, const wb_sizes *sizes, wb_arena *arena);

    /* Multiply-adds of a forward of sizes->tokens tokens, taken as one sequence whose choices are spread
     * evenly over the ranks. By their number for each byte that a forward leaves it is decided which layers
     * keep that for the backward (wb_block_keep). */
    double (*work)(const wb_config *config, const wb_sizes *sizes);

    /* y[T,H] (=) from x[T,H], the normalised residual stream. A mixer without `state`: the batch is whole
     * sequences, row t of what would be state by position is token t, and what would be state by sequence
     * begins with zeros. A feed-forward part gets NULL. Collective. */
    wb_status (*forward)(void *worker, const void *weights, const wb_pass *pass, const wb_state *state,
                         wb_rows x, wb_rows y);

    /* Of the worker's latest forward, without state, with its pass and x: dx[T,H] (=) from dy[T,H];
     * grads[param] (+=). Once a forward. Collective. */
    wb_status (*backward)(void *worker, const void *weights, const wb_pass *pass, wb_rows x, wb_rows dy,
                          float *const *grads, wb_rows dx);
};

extern const wb_layer_kind wb_layer_attention_gqa; /* mixer: grouped-query attention */
extern const wb_layer_kind wb_layer_attention_mla; /* mixer: multi-head latent attention */
extern const wb_layer_kind wb_layer_delta_net;     /* mixer: gated delta net */
/* Mixers of keys that are values too: over a window, and in the others over compressed entries besides, all
 * of them or those that an indexer chooses. */
extern const wb_layer_kind wb_layer_attention_window, wb_layer_attention_heavy, wb_layer_attention_sparse;
extern const wb_layer_kind wb_layer_mlp; /* feed-forward: dense SwiGLU */
extern const wb_layer_kind wb_layer_moe; /* feed-forward: a choice of experts */

#endif
