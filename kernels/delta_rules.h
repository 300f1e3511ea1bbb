/* delta_rules.h - the gates of the gated delta rule, as both backends make them, and where a token's heads
 * lie among its rows, and its matrix in a state. Refuses: sums, reading and writing of rows. */
#ifndef WB_DELTA_RULES_H
#define WB_DELTA_RULES_H

#include "wb_exact_math.h"
#include "wb_ops_recurrent.h"

/* Of the squares of a query's and a key's length. */
#define WB_DELTA_EPS 1e-6f

/* g, by whose exponential a state fades from one token to the next. */
static WB_HD float wb_delta_log_decay(float A_log, float dt_bias, float a) {
    return wb_mul(-wb_expf(A_log), wb_softplus(wb_add(a, dt_bias)));
}

/* The gradient of a, and of dt_bias, from that of g. */
static WB_HD float wb_delta_gradient_of_a(float A_log, float dt_bias, float a, float dg) {
    return wb_mul(wb_mul(dg, -wb_expf(A_log)), wb_sigmoid(wb_add(a, dt_bias)));
}

/* What a query or a key is multiplied by, from the sum of its squares. */
static WB_HD float wb_delta_inverse_length(float squares) {
    return wb_div(1.0f, wb_sqrt(wb_add(squares, WB_DELTA_EPS)));
}

/* What a query is multiplied by besides. */
static WB_HD float wb_delta_query_scale(int32_t key_dim) {
    return wb_div(1.0f, wb_sqrt((float)key_dim));
}

/* Elements of qkv before the query, the key and the value of a token's head. A token has wb_delta_width,
 * which is of the host alone. */
static WB_HD int64_t wb_delta_query_at(wb_delta_heads h, int64_t t, int64_t key_head) {
    const int64_t width = 2 * (int64_t)h.n_key * h.key_dim + (int64_t)h.n_value * h.value_dim;
    return t * width + key_head * h.key_dim;
}
static WB_HD int64_t wb_delta_key_at(wb_delta_heads h, int64_t t, int64_t key_head) {
    return wb_delta_query_at(h, t, h.n_key + key_head);
}
static WB_HD int64_t wb_delta_value_at(wb_delta_heads h, int64_t t, int64_t head) {
    return wb_delta_query_at(h, t, 2 * (int64_t)h.n_key) + head * h.value_dim;
}

/* Floats of a state before the row of value j of a head: S^T lies head by head. */
static WB_HD int64_t wb_delta_state_at(wb_delta_heads h, int64_t head, int64_t j) {
    return (head * h.value_dim + j) * h.key_dim;
}

#endif
