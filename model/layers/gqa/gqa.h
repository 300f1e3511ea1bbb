/* gqa.h - the steps of grouped-query attention with rotary positions:
 *   y = Wo attention(rope(clamp(norm(Wq x))), rope(clamp(norm(Wk x))), clamp(Wv x))
 * Where a family's queries have gates, Wq gives each head its query and then its gate, and what attention
 * finds is multiplied by the gates' sigmoids before Wo. */
#ifndef WB_GQA_H
#define WB_GQA_H

#include "layers/layer.h"

/* Parameters; -1: the model has none. */
typedef struct wb_gqa_weights {
    int32_t q, k, v, o; /* [nh dh, H], with gates [nh 2 dh, H]; [nkv dh, H] twice; [H, nh dh] */
    int32_t q_bias, k_bias, v_bias, o_bias;
    int32_t q_norm, k_norm; /* [dh] per head, [nh dh] and [nkv dh] whole */
    int32_t sinks;          /* [nh] */
    int32_t window;         /* no parameter: of the layer; 0: none */
} wb_gqa_weights;

/* q, k or v on its way: projection (and bias), norm, clamp, rotation. A step that the model does not have
 * has no memory: its result is the next step's. Without a backward, which needs them, no step has: one op
 * makes all of them in `out`. */
typedef struct wb_heads {
    wb_buffer projected, normed, out; /* [T, heads * dh] */
} wb_heads;

typedef struct wb_gqa {
    wb_model *model;
    bool keeps_steps; /* for a backward */

    /* Kept by a forward for its backward. */
    wb_heads q, k, v;
    wb_buffer attn;     /* [T, nh * dh] */
    wb_buffer log_sums; /* f32 [T, nh] */
    /* With gates: [T, nh, 2 dh] what Wq gives each head, in a backward its gradient; and [T, nh * dh] what Wo
     * gets, which without a backward is `attn`. */
    wb_buffer q_gates, gated;

    wb_buffer dattn, dq, dk, dv; /* [T, heads * dh] */
} wb_gqa;

/* The tables of a sequence's state. */
enum { WB_GQA_KEYS, WB_GQA_VALUES, WB_GQA_N_TABLES };

/* What one of q, k, v goes through; parameters, -1: none. */
typedef struct wb_heads_spec {
    int32_t weight, bias, norm, n_heads;
    bool rotate;
    bool gated; /* its projection is wb_gqa.q_gates */
} wb_heads_spec;

/* The gates of all heads, one behind each query. */
static inline wb_rows wb_gqa_gates(const wb_gqa *g) {
    return wb_rows_from(wb_activations(g->model, &g->q_gates), g->model->config.head_dim);
}

static inline wb_heads_spec wb_gqa_q(const wb_model *model, const wb_gqa_weights *w) {
    return (wb_heads_spec){
        w->q, w->q_bias, w->q_norm, model->config.n_heads, true, model->family->query_gate};
}
static inline wb_heads_spec wb_gqa_k(const wb_model *model, const wb_gqa_weights *w) {
    return (wb_heads_spec){w->k, w->k_bias, w->k_norm, model->config.n_kv_heads, true, false};
}
static inline wb_heads_spec wb_gqa_v(const wb_model *model, const wb_gqa_weights *w) {
    return (wb_heads_spec){w->v, w->v_bias, -1, model->config.n_kv_heads, false, false};
}

/* Elements of a token. */
static inline int64_t wb_gqa_width(const wb_model *model, wb_heads_spec spec) {
    return (int64_t)spec.n_heads * model->config.head_dim;
}

/* ---- q, k and v (gqa_heads.c) ---------------------------------------------------------------- */

void wb_gqa_layout_heads(const wb_gqa *g, int64_t T, int64_t width, bool has_norm, wb_heads *h,
                         wb_arena *arena);

/* From x[T,H], keys and values into the state where there is one. */
wb_status wb_gqa_project(wb_gqa *g, const wb_gqa_weights *w, const wb_pass *pass, const wb_state *state,
                         wb_rows x);

/* dout: in, of the result; out, scratch. What are gradients of gates, in their place. Then dx[T,H] (=, or +=
 * with `accumulate`). */
wb_status wb_gqa_heads_backward(const wb_gqa *g, wb_heads_spec spec, const wb_pass *pass, const wb_heads *h,
                                wb_rows x, float *const *grads, wb_rows dout, bool accumulate, wb_rows dx);

#endif
