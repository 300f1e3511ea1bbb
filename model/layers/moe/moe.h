/* moe.h - the steps of an MoE layer, each with its buffers, in the order in which they run:
 *
 *   choice    logits, ids, weights of a token's choices   (moe_choice.c)
 *   plan      which row goes to which slot                (moe_plan.c)
 *   exchange  rows to the ranks of their slots            (moe_exchange.c)
 *   experts   each row times its expert's matrices        (moe_experts.c)
 *   combine   a token's rows, in the order of its choices (moe.c)
 *   shared    what every token goes through besides      (moe_shared.c)
 *
 * Rows: each of the T * K pairs, a (token, choice), has one, in the order of its slot, then (t, k); padding
 * has none. n rows are those of this rank's slots from all ranks: by slot, then source rank, then the
 * source's order. Rows move, never sums: a token's result does not depend on placement or plan.
 *
 * With one rank the host waits for nothing here, but for what a caller asks to see of each layer:
 * wb_routing.used (three downloads, four where some experts have no weights) and a probe (two). With several
 * ranks it learns the counts of a layer that was not planned (one), unless rows go by mailboxes
 * (wb_pass.mailbox_rows).
 *
 * A struct's buffers are kept by a forward for its backward where nothing else is said; scratch may be that
 * of another worker (wb_sizes.scratch_of), whose struct is then `other`. Pointers are device memory unless
 * marked host. */
#ifndef WB_MOE_H
#define WB_MOE_H

#include "layers/layer.h"
#include "layers/swiglu.h"

typedef struct wb_moe_shared_weights {
    wb_swiglu_weights mlp; /* of shared_width; not declared where that is 0 */
    int32_t gate;          /* [1, H]; -1: none */
} wb_moe_shared_weights;

/* Parameters of one MoE layer, and its place in the route tensor; -1: the model has none. */
typedef struct wb_moe_weights {
    int32_t moe_index;                   /* 0..L-1 */
    int32_t router;                      /* [E, H] */
    int32_t router_bias, selection_bias; /* [E] */
    int32_t gate_up_bias, down_bias;     /* [slots of this rank][2F] and [H], as wb_param */
    wb_moe_shared_weights shared;
    bool hashed;           /* its choices are a table by token id (hash_tables.h) */
    int32_t gate_up, down; /* [slots of this rank][2F, H] and [H, F], as wb_param */
} wb_moe_weights;

/* Whether rows travel to other ranks at all. */
static inline bool wb_moe_rows_travel(const wb_model *model) {
    return model->n_ranks > 1;
}

/* ---- choice ---------------------------------------------------------------------------------- */

typedef struct wb_moe_choice {
    wb_model *model;
    wb_buffer logits;                 /* [T, E] */
    wb_buffer weights;                /* [T, K] */
    wb_buffer dweights, dlogits;      /* [T, K], [T, E]; scratch */
    wb_buffer rounded;                /* [T, E] dlogits in bf16, where activations are; scratch */
    void *host_logits, *host_weights; /* host view of both, for a probe */
} wb_moe_choice;

void wb_moe_choice_layout(wb_moe_choice *choice, const wb_moe_choice *other, wb_model *model,
                          const wb_sizes *sizes, wb_arena *arena);

/* The ids of MoE layer `moe_index` in a route tensor [T][L][K], of device or host, which may be NULL. */
wb_ids wb_moe_ids(const wb_model *model, void *routes, int32_t moe_index);

/* Logits of x[T,H], then ids by the direction of each row, then the weights of those ids: the one place where
 * experts are chosen. */
wb_status wb_moe_choose(wb_moe_choice *choice, const wb_moe_weights *w, const wb_pass *pass, wb_rows x);

/* dx[T,H] (+=) and the router's gradient (+=) from dweights. */
wb_status wb_moe_choose_backward(wb_moe_choice *choice, const wb_moe_weights *w, const wb_pass *pass,
                                 wb_rows x, float *const *grads, wb_rows dx);

/* ---- plan ------------------------------------------------------------------------------------ */

typedef struct wb_moe_exchange wb_moe_exchange;

typedef struct wb_moe_rows {
    wb_model *model;
    int64_t T;
    int64_t max_rows;              /* for this rank's slots; more are CAPACITY */
    wb_buffer pair_row, row_token; /* int32 [T * K]: row of a pair, -1 for padding; token of a row */
    wb_buffer offsets;             /* int32 [S + 1] first row of each slot, those of all ranks */

    /* Of the slots' rows, what the experts read, which lies elsewhere: a row's token, or its place in the
     * mailbox. NULL: they lie in this order. */
    const int32_t *gather;

    /* R > 1; with one rank the rows of the tokens are those of the slots. */
    /* host: rows of this rank's tokens; rows of this rank's slots, by mailboxes at most */
    int64_t n_sent, n;
    int64_t *send_rows, *receive_rows; /* host [R] */
    int32_t *host_offsets;             /* host [S + 1] */
    int32_t *sent;                     /* host [S] rows by slot */
    int32_t *received;                 /* host [R][slots of this rank] rows by source */
    wb_buffer counts,
        grouped_offsets; /* int32: `received`; [slots of this rank + 1] first of the n rows of each */
    /* int32 [n]: where a grouped row was received, in the mailbox too, and back */
    wb_buffer to_received, to_grouped;

    /* Host views of pair_row, row_token and offsets. */
    void *host_pair_row, *host_row_token, *host_used_offsets;
    /* Of a pass's ids, all layers'; where some experts have no weights. */
    void *host_ids;
} wb_moe_rows;

void wb_moe_rows_layout(wb_moe_rows *plan, const wb_moe_rows *other, wb_model *model, const wb_sizes *sizes,
                        wb_arena *arena);

/* What says where the rows of this rank's tokens go in MoE layer `moe_index` of a pass; where that is written
 * is to be filled in. */
wb_moe_plan wb_moe_plan_args(const wb_model *model, const wb_pass *pass, int32_t moe_index);

/* Where every row of a pass goes in MoE layer `moe_index`; counts as pass->routing->planned says, or found
 * with an exchange of them; by mailboxes, those of this rank's tokens alone. CAPACITY when this
 * rank's slots get more rows than the workspace is for. Collective. */
wb_status wb_moe_rows_make(wb_moe_rows *plan, wb_moe_exchange *exchange, const wb_pass *pass,
                           int32_t moe_index);

/* pass->used (=) the expert whose rows each choice of a pass's tokens is among, read from the rows themselves
 * and not from the ids that they were made of. A padding token has no rows: nothing is written for it. Waits
 * for the stream. CORRUPT when a choice's row is not its token's. */
wb_status wb_moe_rows_used(wb_moe_rows *plan, const wb_pass *pass, int32_t moe_index);

/* ---- exchange -------------------------------------------------------------------------------- */

/* With R > 1 only; all of it is scratch. */
struct wb_moe_exchange {
    wb_model *model;
    wb_buffer received;                /* [n, H] rows as they arrive, or leave for the way back */
    size_t *send_bytes, *send_offsets; /* host [R]: the arguments of an all-to-all */
    size_t *receive_bytes, *receive_offsets;
};

void wb_moe_exchange_layout(wb_moe_exchange *exchange, wb_model *model, const wb_sizes *sizes,
                            wb_arena *arena);

/* Tells every rank how many rows its slots get from here: received[R][slots of this rank] from counts[S],
 * both host. Collective. */
wb_status wb_moe_exchange_counts(wb_moe_exchange *exchange, const int32_t *counts, int32_t *received);

/* rows[n_sent, H] of this rank's tokens -> exchange->received[n, H]. Collective. */
wb_status wb_moe_send_to_experts(wb_moe_exchange *exchange, const wb_moe_rows *plan, wb_rows rows);
/* grouped[n, H] of this rank's slots -> rows[n_sent, H] of its tokens. Collective. */
wb_status wb_moe_return_to_tokens(wb_moe_exchange *exchange, const wb_moe_rows *plan, wb_rows grouped,
                                  wb_rows rows);

/* ---- experts --------------------------------------------------------------------------------- */

typedef struct wb_moe_experts {
    wb_model *model;
    wb_buffer input;        /* [n, H] the rows that the experts got */
    wb_buffer gate_up, act; /* [n, 2F], [n, F] */
    wb_buffer dact;         /* [n, F] scratch */
} wb_moe_experts;

void wb_moe_experts_layout(wb_moe_experts *experts, const wb_moe_experts *other, wb_model *model,
                           const wb_sizes *sizes, wb_arena *arena);

/* output[n,H] (=) of each row's expert for the rows that `plan` takes from x: the tokens' [T, H], or with R >
 * 1 what was received, by the exchange or in the mailbox. leaves_nothing: as in wb_pass. */
wb_status wb_moe_experts_forward(wb_moe_experts *experts, const wb_moe_rows *plan, const wb_moe_weights *w,
                                 bool leaves_nothing, wb_rows x, wb_rows output);

/* `grad` [n, H]: in, of the outputs; out, of the inputs. x: the tokens' [T, H], not read with R > 1.
 * starts_grads: as in wb_pass. Uses up gate_up. */
wb_status wb_moe_experts_backward(wb_moe_experts *experts, const wb_moe_rows *plan, const wb_moe_weights *w,
                                  bool starts_grads, wb_rows x, float *const *grads, wb_rows grad);

/* ---- shared experts -------------------------------------------------------------------------- */

typedef struct wb_moe_shared {
    wb_model *model;
    wb_swiglu mlp;            /* width 0: there are none, and nothing below is placed */
    wb_buffer output;         /* [T, H]; scratch where there is no gate */
    wb_buffer gate;           /* f32 [T] logits */
    wb_buffer dgate, rounded; /* f32 [T], and in bf16 where activations are; scratch */
} wb_moe_shared;

void wb_moe_shared_declare(wb_registry *registry, int32_t l, wb_moe_shared_weights *weights_out);
void wb_moe_shared_layout(wb_moe_shared *shared, const wb_moe_shared *other, wb_model *model,
                          const wb_sizes *sizes, wb_arena *arena);

/* y[T,H] (+=) from x[T,H]. */
wb_status wb_moe_shared_forward(wb_moe_shared *shared, const wb_moe_shared_weights *w, int64_t T, wb_rows x,
                                wb_rows y);
/* dx[T,H] (+=) from dy[T,H]; grads[param] (+=). Once a forward. */
wb_status wb_moe_shared_backward(wb_moe_shared *shared, const wb_moe_shared_weights *w, int64_t T, wb_rows x,
                                 wb_rows dy, float *const *grads, wb_rows dx);

#endif
