/* forward_internal.h - the compute side of a model: one layer's block, its MoE part, and their workspaces.
 *
 * Owns: what infer.c and train.c share, so that both run the same code on a token. Refuses: weights
 * (model_internal.h), batches and their checks (infer.c, train.c).
 *
 * Buffers belong to the workspace of the inference or training that runs. Pointers are device memory
 * unless marked host. */
#ifndef WB_FORWARD_INTERNAL_H
#define WB_FORWARD_INTERNAL_H

#include "model_internal.h"
#include "wb_workspace.h"

/* ---- the MoE part of a layer (moe.c) --------------------------------------------------------- */

/* Rows: each of the T * K (token, slot) pairs has one, in the order of its expert's rank, then the
 * expert's slot on that rank, then (t, k). n rows are those of this rank's experts from all ranks: by
 * slot, then source rank, then the source's order. */
typedef struct wb_moe {
    wb_model *model;
    wb_workspace *memory; /* borrowed */

    /* Kept by a forward for its backward. */
    int64_t T, n;
    wb_buffer logits;              /* [T, E] */
    wb_buffer weights;             /* [T, K] */
    wb_buffer slot_row, row_token; /* int32 [T * K], as wb_device.moe_sort */
    wb_buffer sent;                /* [T * K, H] input of each row */
    wb_buffer rows;                /* [T * K, H] its expert's output */
    wb_buffer gate_up, act;        /* [n, 2F], [n, F] */
    wb_buffer input;               /* [n, H]; R > 1 (one rank works on `sent` itself) */

    wb_buffer received, output;               /* [n, H] scratch */
    wb_buffer to_received, to_grouped;        /* int32 [n]: where a grouped row was received, and back */
    wb_buffer dact, dweights, dlogits;        /* [n, F], [T, K], [T, E] */
    wb_host_buffer stage_send, stage_receive; /* where device memory is not host memory */
    wb_host_buffer index;                     /* int32 */
    wb_host_buffer received_counts;           /* int64 [R][n_local] */

    /* Host plan of the latest forward. Positions number the experts by (rank, slot). */
    int32_t *rank_first;                     /* [R + 1] position of each rank's first expert */
    int32_t *order;                          /* [E] expert at a position */
    int64_t *counts;                         /* [E] rows by expert ... */
    int64_t *position_counts;                /* [E] ... and by position */
    int64_t *slot_start;                     /* [E + 1] first of the n rows of each local slot */
    int64_t *send_rows, *receive_rows;       /* [R] */
    size_t *send_bytes, *send_offsets;       /* [R] arguments of all_to_all_v */
    size_t *receive_bytes, *receive_offsets; /* [R] */
    wb_matmul *list;                         /* [2 * E] grouped products */
} wb_moe;

/* Its memory is the workspace's: closing that is all that is needed. */
wb_status wb_moe_open(wb_model *model, wb_workspace *memory, wb_moe *moe);

/* INVALID_ARGUMENT unless routing has ids and every forced id is below E; names token, layer, slot and id. */
wb_status wb_moe_check_routing(wb_moe *moe, int64_t T, const wb_routing *routing);

/* y[T,H] (=) the combined outputs of each token's experts for x[T,H]. `follow`: take routing->ids of every
 * row as they stand (a recompute) instead of routing's own direction. Collective. */
wb_status wb_moe_forward(wb_moe *moe, const wb_layer *layer, int64_t T, const float *x,
                         const wb_routing *routing, bool follow, float *y);

/* Of the latest forward, with its x and ids: dx[T,H] (=) from dy[T,H]; grads[param] (+=). Once a forward.
 * Collective. */
wb_status wb_moe_backward(wb_moe *moe, const wb_layer *layer, const float *x, const wb_routing *routing,
                          const float *dy, float *const *grads, float *dx);

/* ---- a layer (block.c) --------------------------------------------------------------------------- */

/* q, k or v on its way: projection (and bias), norm, clamp, rotation. A step that the model lacks shares
 * the next one's memory. */
typedef struct wb_heads {
    wb_buffer projected, normed, out;
} wb_heads;

typedef struct wb_block {
    wb_model *model;
    wb_workspace *memory; /* borrowed */
    wb_moe moe;

    /* Kept by a forward for its backward. */
    wb_buffer attn_norm;    /* [T, H] */
    wb_heads q, k, v;       /* [T, heads * dh] */
    wb_buffer attn;         /* [T, nh * dh] */
    wb_buffer mid;          /* [T, H] residual stream after attention */
    wb_buffer mlp_norm;     /* [T, H] */
    wb_buffer gate_up, act; /* dense layers: [T, 2I], [T, I] */

    wb_buffer dmid, dnorm, dact; /* [T, H], [T, H], [T, I] */
    wb_buffer dattn, dq, dk, dv; /* [T, heads * dh] */
} wb_block;

/* The tokens of a call, as wb_attention takes them. */
typedef struct wb_block_tokens {
    int64_t T;
    const int32_t *pos, *seq, *blocks;
    int32_t max_blocks, block_size;
} wb_block_tokens;

/* One layer's paged keys and values, and the pool row of each token. */
typedef struct wb_kv_pool {
    void *k, *v;
    wb_dtype dtype;
    const int64_t *rows; /* [T] */
} wb_kv_pool;

wb_status wb_block_open(wb_model *model, wb_workspace *memory, wb_block *block);

/* y[T,H] (=) layer l of x[T,H], y not x. pool NULL: attention reads the call's own keys and values, row t
 * being token t. Collective. */
wb_status wb_block_forward(wb_block *block, int32_t l, const wb_block_tokens *tokens, const wb_kv_pool *pool,
                           const wb_routing *routing, bool follow, const float *x, float *y);

/* Of the latest forward, which had no pool: dx[T,H] := gradient of x, from gradient of y, in place;
 * grads[param] (+=). Collective. */
wb_status wb_block_backward(wb_block *block, int32_t l, const wb_block_tokens *tokens,
                            const wb_routing *routing, const float *x, float *const *grads, float *dx);

#endif
