/* block.h - a layer's two parts on the residual stream, and the workers of all kinds that a model has. W are
 * the elements of a token's stream: H, or S H with hyper-connections (layers/hyper.h). */
#ifndef WB_BLOCK_H
#define WB_BLOCK_H

#include "layers/hyper.h"

#define WB_MAX_KINDS 8

/* The parts of a layer. */
enum { WB_MIXER, WB_FEED_FORWARD, WB_N_PARTS };

/* What the forward of one part of a layer leaves for its backward. */
typedef struct wb_kept {
    void *worker;
    wb_buffer input; /* [T, H] of the part, normalised */
    wb_buffer mid;   /* [T, W] mixers: the residual stream behind the part */
    wb_hyper_kept hyper;
    int32_t layer; /* whose forward it is of, if its worker is of that layer's kind; -1: none */
} wb_kept;

typedef struct wb_block {
    wb_model *model;
    const wb_layer_kind *kinds[WB_MAX_KINDS];
    void *workers[WB_MAX_KINDS]; /* of each kind, for the layers without one of their own */
    int32_t n_kinds;

    wb_kept shared[WB_N_PARTS]; /* by all parts that are not kept; the workers are those of the kinds */
    wb_kept *own[WB_N_PARTS];   /* [n_layers]; worker NULL: the layer's part is not kept */
    /* host [n_layers] on how many ranks what the feed-forward part left is there at the end */
    double *n_there;
    bool agreed;     /* n_there is of all ranks */
    bool runs_ahead; /* a layer leaves the next one's mixer its input: without backwards */
    int32_t ready;   /* the layer whose mixer has its input; -1: none */

    wb_buffer dmid, dnorm;    /* [T, W], [T, H] */
    wb_buffer dout, dweights; /* of hyper-connections: [T, H], f32 [T, M] */
} wb_block;

/* Sizes for passes of max_tokens tokens a rank. max_expert_rows, of several ranks only; 0: as many rows as
 * the tokens of all ranks could send to the slots of this one, R * max_tokens * min(K, slots of this rank).
 * INVALID_ARGUMENT unless both are in their range. */
wb_status wb_block_sizes(const wb_model *model, int64_t max_tokens, int64_t max_expert_rows, bool backward,
                         wb_sizes *sizes_out);

/* Its workers, which are the owner's: closing that is all that is needed. */
wb_status wb_block_open(wb_model *model, wb_owner *owner, wb_block *block);

/* Which parts keep what their forward leaves, so that the backward need not compute it again. In the order of
 * their forward's work for each byte that it leaves, of one kind from the last layer down, each is kept that
 * fits into what is left of `bytes`. For blocks with backwards, before the layout. *left_out: what then is
 * left of `bytes`. */
wb_status wb_block_keep(wb_block *block, wb_owner *owner, const wb_sizes *sizes, size_t bytes,
                        size_t *left_out);

/* Whether what the forward of layer l's feed-forward part left is still there when all layers are through: in
 * a worker of its own, or in the shared one if no later layer had that. */
bool wb_block_is_there(const wb_block *block, int32_t l);

/* The worker of a kind, for parts without one of their own. */
void *wb_block_shared_worker(const wb_block *block, const wb_layer_kind *kind);

/* `which`: WB_MIXER or WB_FEED_FORWARD. */
static inline const wb_part *wb_block_part(const wb_block *block, int32_t l, int which) {
    const wb_layer *layer = &block->model->layers[l];
    return which == WB_MIXER ? &layer->mixer : &layer->feed_forward;
}

/* Places the memory for passes through all layers (wb_arena.h). */
void wb_block_layout(wb_block *block, const wb_sizes *sizes, wb_arena *arena);

/* y[T,W] (=) layer l of x[T,W], y not x. Collective. */
wb_status wb_block_forward(wb_block *block, int32_t l, const wb_pass *pass, const wb_state *state, wb_rows x,
                           wb_rows y);

/* Which feed-forward parts no rank computes again; once, before the first recompute. Collective. */
wb_status wb_block_agree(wb_block *block);

/* What the backward of layer l needs from x[T,W] and is not there any more; y[T,W] may be written again, by
 * the same bits. Collective. */
wb_status wb_block_recompute(wb_block *block, int32_t l, const wb_pass *pass, wb_rows x, wb_rows y);

/* Of the latest forward or recompute of layer l, which had no state: dx[T,W] := gradient of x, from gradient
 * of y, in place; grads[param] (+=). Collective. */
wb_status wb_block_backward(wb_block *block, int32_t l, const wb_pass *pass, wb_rows x, float *const *grads,
                            wb_rows dx);

#endif
