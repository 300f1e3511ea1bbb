/* moe.h - the steps of an MoE layer, each with its buffers, in the order in which they run:
 *
 *   choice    logits, ids, weights of a token's choices   (moe_choice.c)
 *   plan      which row goes to which slot                (moe_plan.c)
 *   exchange  rows to the ranks that hold their experts   (moe_exchange.c)
 *   experts   one product an expert over its rows         (moe_experts.c)
 *   combine   a token's rows, in the order of its choices (moe.c)
 *
 * Slots are the placement's; of an expert's replicas, replica 0 gets the rows. Rows: each of the T * K
 * (token, choice) pairs has one, in the order of its slot, then (t, k). n rows are those of this rank's slots
 * from all ranks: by slot, then source rank, then the source's order. Rows move, never sums: a token's result
 * does not depend on the plan.
 *
 * A struct's buffers are kept by a forward for its backward where nothing else is said. Pointers are device
 * memory unless marked host. */
#ifndef WB_MOE_H
#define WB_MOE_H

#include "layers/layer.h"

/* Parameters of one MoE layer, and its place in the route tensor. */
typedef struct wb_moe_weights {
    int32_t moe_index;     /* 0..L-1 */
    int32_t router;        /* [E, H] */
    int32_t gate_up, down; /* this rank's experts, as wb_param */
} wb_moe_weights;

/* ---- choice ---------------------------------------------------------------------------------- */

typedef struct wb_moe_choice {
    wb_model *model;
    wb_workspace *memory;
    wb_buffer logits;            /* [T, E] */
    wb_buffer weights;           /* [T, K] */
    wb_buffer dweights, dlogits; /* [T, K], [T, E] */
    wb_host_buffer probed;       /* logits, then weights, for a probe */
} wb_moe_choice;

/* Memory for T tokens. */
wb_status wb_moe_choice_reserve(wb_moe_choice *choice, int64_t T, bool backward);

/* The ids of MoE layer `moe_index` in a route tensor [T][L][K], of device or host, which may be NULL. */
wb_ids wb_moe_ids(const wb_model *model, void *routes, int32_t moe_index);

/* Logits of x[T,H], then ids by the direction of each row, then the weights of those ids: the one place where
 * experts are chosen. */
wb_status wb_moe_choose(wb_moe_choice *choice, const wb_moe_weights *w, const wb_pass *pass, const float *x);

/* dx[T,H] (+=) and the router's gradient (+=) from dweights. */
wb_status wb_moe_choose_backward(wb_moe_choice *choice, const wb_moe_weights *w, const wb_pass *pass,
                                 const float *x, float *const *grads, float *dx);

/* ---- plan ------------------------------------------------------------------------------------ */

typedef struct wb_moe_exchange wb_moe_exchange;

typedef struct wb_moe_plan {
    wb_model *model;
    wb_workspace *memory;
    int32_t moe_index;               /* of the layer that it is made for; set by its user */
    wb_buffer choice_row, row_token; /* int32 [T * K]: row of a (token, choice); token of a row */
    int64_t n;
    wb_buffer to_received, to_grouped; /* int32 [n]: where a grouped row was received, and back; R > 1 */

    /* Host. */
    int32_t *rank_first;               /* [R + 1] first slot of each rank */
    int32_t *order;                    /* [S] expert whose rows a slot gets; WB_NO_EXPERT: none */
    int64_t *next_row;                 /* [S] scratch */
    int64_t *counts;                   /* [E] rows by expert ... */
    int64_t *slot_counts;              /* [S] ... and by slot */
    int64_t *local_start;              /* [S + 1] first of the n rows of each of this rank's slots */
    int64_t *send_rows, *receive_rows; /* [R]; R > 1 */
    wb_host_buffer received_counts;    /* int64 [R][n_local] rows for each expert by source; R > 1 */
    wb_host_buffer index;              /* int32, scratch */
} wb_moe_plan;

wb_status wb_moe_plan_open(wb_model *model, wb_workspace *memory, wb_moe_plan *plan);

/* Memory for what this rank's T tokens need; how many rows come from other ranks is not known yet. */
wb_status wb_moe_plan_reserve(wb_moe_plan *plan, int64_t T);

/* Where every row of the ids of T tokens goes. Collective. */
wb_status wb_moe_plan_make(wb_moe_plan *plan, wb_moe_exchange *exchange, int64_t T, wb_ids ids);

/* used (=) the expert whose rows each choice of the T tokens is among, read from the rows themselves and not
 * from the ids that they were made of; host memory. CORRUPT when a choice's row is not its token's. */
wb_status wb_moe_plan_used(wb_moe_plan *plan, int64_t T, wb_ids used);

/* Slots of this rank. */
int32_t wb_moe_plan_n_local(const wb_moe_plan *plan);

/* ---- exchange -------------------------------------------------------------------------------- */

/* With R > 1 only. */
struct wb_moe_exchange {
    wb_model *model;
    wb_workspace *memory;
    wb_buffer received;                       /* [n, H] scratch */
    wb_host_buffer stage_send, stage_receive; /* where device memory is not host memory */
    size_t *send_bytes, *send_offsets;        /* host [R]: the arguments of an all-to-all */
    size_t *receive_bytes, *receive_offsets;
};

wb_status wb_moe_exchange_open(wb_model *model, wb_workspace *memory, wb_moe_exchange *exchange);

/* Tells every rank how many rows its experts get from here: received_counts[n_sources][n_local] from
 * slot_counts. Collective. */
wb_status wb_moe_exchange_counts(wb_moe_exchange *exchange, const int32_t *rank_first, int32_t n_local,
                                 const int64_t *slot_counts, int64_t *received_counts);

/* rows[T * K, H] of this rank's tokens -> grouped[n, H] at their experts. Collective. */
wb_status wb_moe_send_to_experts(wb_moe_exchange *exchange, const wb_moe_plan *plan, const float *rows,
                                 float *grouped);
/* The way back. Collective. */
wb_status wb_moe_return_to_tokens(wb_moe_exchange *exchange, const wb_moe_plan *plan, const float *grouped,
                                  float *rows);

/* ---- experts --------------------------------------------------------------------------------- */

typedef struct wb_moe_experts {
    wb_model *model;
    wb_workspace *memory;
    wb_buffer gate_up, act; /* [n, 2F], [n, F] */
    wb_buffer dact;         /* [n, F] */
    wb_matmul *list;        /* host [2 * slots of this rank] products of a call */
} wb_moe_experts;

wb_status wb_moe_experts_open(wb_model *model, wb_workspace *memory, wb_moe_experts *experts);

/* output[n,H] (=) of each row's expert for input[n,H]. */
wb_status wb_moe_experts_forward(wb_moe_experts *experts, const wb_moe_plan *plan, const wb_moe_weights *w,
                                 const float *input, float *output);

/* `grad` [n, H]: in, of the outputs; out, of the inputs. Uses up gate_up. */
wb_status wb_moe_experts_backward(wb_moe_experts *experts, const wb_moe_plan *plan, const wb_moe_weights *w,
                                  const float *input, float *const *grads, float *grad);

#endif
