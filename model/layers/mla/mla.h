/* mla.h - the steps of multi-head latent attention, in its absorbed form. With H the hidden width, d =
 * nope + rope a head's width and W = kv_rank + rope a latent's:
 *
 *   latent of a token  [c | k], one for all heads, with c = norm(Wc x) and k = rope(Wk x)
 *   q of head h        [n_h | rope(r_h)], a part of Wq x, or of Wqb norm(Wqa x)
 *   y = Wo [V_h sum_t p_ht c_t], p_h = softmax(scale <[U_h^T n_h | r_h], [c_t | k_t]>)
 *
 * U_h and V_h are the parts of kv_b_proj that would make keys and values of head h from c: where they stand
 * here they are outside of the sums over tokens, so that attention works on latents, of which all heads have
 * one. kv_a_proj_with_mqa is [Wc ; Wk], kv_b_proj [U_0 ; V_0 ; U_1 ; ...].
 *
 * Training goes through the same ops as inference, so that both have the same bits. Keys and values of each
 * head, which kv_b_proj would make, are the same function with sums in another order: other bits. */
#ifndef WB_MLA_H
#define WB_MLA_H

#include "layers/layer.h"

/* Parameters; -1: the model has none. */
typedef struct wb_mla_weights {
    int32_t q;             /* [nh d, H], or behind q_a and its norm [nh d, q_rank] */
    int32_t q_a, q_norm;   /* [q_rank, H], [q_rank] */
    int32_t kv_a, kv_norm; /* [W, H], [kv_rank] */
    int32_t kv_b, o;       /* [nh (nope + value), kv_rank], [H, nh value] */
} wb_mla_weights;

typedef struct wb_mla {
    wb_model *model;
    bool keeps_steps; /* for a backward */

    /* Kept by a forward for its backward. Without one q_low and c are normed in place. */
    wb_buffer q_low, q_low_normed; /* [T, q_rank] */
    wb_buffer c, c_normed;         /* [T, kv_rank] */
    wb_buffer q;                   /* [T, nh d], rotated */
    wb_buffer q_latent, latent;    /* [T, nh W], [T, W]: the two sides of a score */
    wb_buffer mixed, values;       /* [T, nh kv_rank] sums of c, [T, nh value] */

    wb_buffer dq_low, dq, dq_latent, dmixed, dvalues; /* like what they are gradients of */
    wb_buffer dlatent, dc;                            /* [T, W] as keys, [T, kv_rank] */
    wb_buffer dc_of_keys;                             /* [T, kv_rank] */
} wb_mla;

/* The table of a sequence's state. */
enum { WB_MLA_LATENTS, WB_MLA_N_TABLES };

/* Widths: of a head's q and of a latent, and what all heads have of q, of q and sums on the side of the
 * latents, and of values. */
typedef struct wb_mla_widths {
    int64_t head, latent, q, q_latent, mixed, values;
} wb_mla_widths;

static inline wb_mla_widths wb_mla_widths_of(const wb_config *c) {
    const int64_t n_heads = c->n_heads, head = c->mla.nope_dim + c->mla.rope_dim,
                  latent = c->mla.kv_rank + c->mla.rope_dim;
    return (wb_mla_widths){.head = head,
                           .latent = latent,
                           .q = n_heads * head,
                           .q_latent = n_heads * latent,
                           .mixed = n_heads * c->mla.kv_rank,
                           .values = n_heads * c->mla.value_dim};
}

/* A norm of q_a's or kv_a's output, whose eps is this whatever the model's other norms have. */
static inline wb_norm wb_mla_norm(const wb_model *model, int32_t param) {
    return (wb_norm){wb_model_vector(model, param), 1e-6f, false};
}

/* ---- weights, and a product a head (mla_heads.c) --------------------------------------------- */

/* The parts of kv_a: Wc [kv_rank, H] and Wk [rope, H]. */
wb_status wb_mla_latent_weights(const wb_mla *m, const wb_mla_weights *w, wb_weight *c_out, wb_weight *k_out);

/* Rows that meet a head's part of kv_b, U_h or V_h: `outer` has its nope or value elements of each head,
 * `inner` kv_rank of each. A head's elements begin outer_head and inner_head apart. */
typedef enum wb_mla_part { WB_MLA_KEYS, WB_MLA_VALUES } wb_mla_part;
typedef struct wb_mla_rows {
    wb_mla_part part;
    wb_rows outer, inner;
    int64_t outer_head, inner_head;
} wb_mla_rows;

/* q and q_latent, or their gradients; values and mixed, or theirs. */
wb_mla_rows wb_mla_keys(const wb_mla *m, const wb_buffer *q, const wb_buffer *q_latent);
wb_mla_rows wb_mla_values(const wb_mla *m, const wb_buffer *values, const wb_buffer *mixed);

/* For each head: outer (=) inner W^T; inner (=) outer W; grads (+=) outer^T inner. */
wb_status wb_mla_to_outer(const wb_mla *m, const wb_mla_weights *w, const wb_mla_rows *rows, int64_t T);
wb_status wb_mla_to_inner(const wb_mla *m, const wb_mla_weights *w, const wb_mla_rows *rows, int64_t T);
wb_status wb_mla_to_weight(const wb_mla *m, const wb_mla_weights *w, const wb_mla_rows *rows, int64_t T,
                           float *const *grads);

/* ---- the rotated part of a head -------------------------------------------------------------- */

/* The last rope elements of each of n_heads heads of x, which are `head` wide. */
wb_status wb_mla_rotate(const wb_mla *m, const wb_pass *pass, int32_t n_heads, int64_t head, bool inverse,
                        wb_rows x);

/* Those of all heads, from q to q_latent or the other way. */
wb_status wb_mla_copy_rotated(const wb_mla *m, int64_t T, wb_rows from, int64_t from_head, wb_rows to,
                              int64_t to_head);

/* Attention over the latents of `state` or, where there is none, of the batch. */
wb_attention wb_mla_attention(const wb_mla *m, const wb_pass *pass, const wb_state *state);

/* ---- backward (mla_backward.c) --------------------------------------------------------------- */

/* As wb_layer_kind.backward. */
wb_status wb_mla_backward(void *worker, const void *weights, const wb_pass *pass, wb_rows x, wb_rows dy,
                          float *const *grads, wb_rows dx);

#endif
