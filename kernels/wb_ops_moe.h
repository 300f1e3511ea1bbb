/* wb_ops_moe.h - routing and the MoE layer: selection, gate, which row goes to which slot, the experts'
 * products, and the way back.
 *
 * What all ops have in common is said in wb_kernels.h. */
#ifndef WB_OPS_MOE_H
#define WB_OPS_MOE_H

#include "wb_operands.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- routing ------------------------------------------------------------------------------------- */

/* The router types of the field. z are a token's logits, C its chosen ids, c the scale; w the weights of the
 * choices, as wb_gate_forward_fn makes them. */
typedef enum wb_router_type {
    /* p = softmax(z) over all E; w = c p_C, not renormalised (olmoe, qwen2_moe) */
    WB_ROUTER_SOFTMAX,
    /* w = c p_C / sum p_C (qwen3_moe, mixtral) */
    WB_ROUTER_SOFTMAX_NORM,
    /* w = c softmax(z_C) (gpt_oss): the same function as SOFTMAX_NORM */
    WB_ROUTER_TOPK_SOFTMAX,
    /* s = sigmoid(z), selection by s + bias; w = c s_C / (sum s_C + 1e-20) (deepseek_v3, glm4) */
    WB_ROUTER_SIGMOID,
    /* s = sqrt(softplus(z)); the rest as SIGMOID (deepseek_v4) */
    WB_ROUTER_SQRTSOFTPLUS,
    /* ids from a table by token id; w as SQRTSOFTPLUS (deepseek_v4's first layers) */
    WB_ROUTER_HASH
} wb_router_type;

/* A description, not an options struct: callers fill every field, and fields are never added, since structs
 * of callers (wb_hooks_options) have it by value. A later setting of routers is a field of whoever has one.
 */
typedef struct wb_router {
    wb_router_type type;
    /* E, 1..65536 */
    int32_t n_experts;
    /* K, 1..min(E, 64) */
    int32_t top_k;
    /* Selection limited to the topk_group best of n_group groups of adjacent experts; n_group <= 1: no
     * limit. SIGMOID and SQRTSOFTPLUS score a group by the sum of its two largest keys, the softmax types by
     * its largest; experts of other groups are never chosen. */
    int32_t n_group, topk_group;
    /* SIGMOID, SQRTSOFTPLUS, HASH: divide by the sum; ignored by the others */
    bool normalize;
    /* c */
    float scale;
} wb_router;

/* "softmax", "softmax_norm", ...; static. "unknown" for a number that is no type. */
WB_API const char *wb_router_name(wb_router_type type);

/* INVALID_ARGUMENT, naming the field, for a router that no op takes. */
WB_API wb_status wb_router_check(const wb_router *router);

/* Expert ids in place in a route tensor: the id of choice k of token t is data[t * stride + k], u8 or u16. A
 * layer l of a tensor [T][L][K] is {base + l * K, dtype, L * K}. */
typedef struct wb_ids {
    /* device; NULL where the view is optional */
    void *data;
    wb_dtype dtype;
    /* in ids */
    int64_t stride;
} wb_ids;

/* Selection. Order of the choices: key descending, then id ascending, NaN last. */
typedef struct wb_topk {
    wb_router router;
    int64_t T;
    /* device [T, E] */
    const float *logits;
    /* device [E], added to the key only (SIGMOID, SQRTSOFTPLUS); or NULL */
    const float *bias;
    /* device [vocabulary, K] and [T]; HASH only */
    const int32_t *table;
    const int32_t *tokens;
    /* device [T] wb_row_direction: a row that is not native keeps its ids; NULL: all rows are native */
    const uint8_t *direction;
    /* in for rows that keep theirs, out for native ones */
    wb_ids ids;
    /* out, optional: what every row, native or not, would select */
    wb_ids native;
} wb_topk;

/* INVALID_ARGUMENT also for HASH without table or tokens, and for a table's id that is no expert's. */
typedef wb_status wb_topk_fn(wb_device *dev, const wb_topk *args);

/* weights[T,K] of the ids as they stand, from the current logits[T,E]; ids forced or selected alike.
 * direction: device [T] wb_row_direction, or NULL: a padding row's weights are zero, whatever its logits, so
 * that nothing that its experts make of it is ever added to anything. An id of E or more is
 * INVALID_ARGUMENT, and on CUDA that choice has a NaN weight and no gradient.
 * Backward: dlogits[T,E] (=) from dweights[T,K], zeros in padding rows. With g = dweights and q, s, p as in
 * wb_router_type:
 *   SOFTMAX        dz_e = [e in C] c g_e p_e - p_e sum_j c g_j p_j         for every e: dense
 *   SOFTMAX_NORM, TOPK_SOFTMAX   dz_j = c q_j (g_j - sum_l g_l q_l)        the chosen only, others 0
 *   SIGMOID        ds_j = (c/Q)(g_j - sum_l g_l s_l / Q), dz_j = ds_j s_j (1 - s_j);  Q = sum s + 1e-20
 *   SQRTSOFTPLUS, HASH           the same ds_j, dz_j = ds_j sigmoid(z_j) / (2 s_j), 0 where s_j = 0
 *   not normalised: ds_j = c g_j.   A repeated id accumulates. */
typedef wb_status wb_gate_forward_fn(wb_device *dev, const wb_router *router, int64_t T, const float *logits,
                                     const uint8_t *direction, wb_ids ids, float *weights);
typedef wb_status wb_gate_backward_fn(wb_device *dev, const wb_router *router, int64_t T, const float *logits,
                                      const uint8_t *direction, wb_ids ids, const float *dweights,
                                      float *dlogits);

/* ids [T, K] of one view into another. INVALID_ARGUMENT for u16 into u8. */
typedef wb_status wb_copy_ids_fn(wb_device *dev, int64_t T, int32_t K, wb_ids from, wb_ids to);

/* What became of planned rows of a MoE layer. */
typedef struct wb_route_check {
    int64_t T;
    int32_t top_k, n_experts;
    wb_ids planned;
    /* where a dispatcher sends the rows, in any order within a row; or data NULL: not looked at */
    wb_ids taken;
    /* device [T, K], or NULL: not looked at */
    const float *weights;
    /* what messages say of row 0 */
    int32_t micro_batch, layer;
    int64_t row;
} wb_route_check;

/* Writes nothing: it finds a row that is taken elsewhere than planned (MISMATCH), an id of `taken` of E or
 * more, and a weight that is no finite number (INVALID_ARGUMENT), and names the row. On CUDA that is a fault:
 * what waits for the device next returns it, a launch of a graph included. */
typedef wb_status wb_check_routes_fn(wb_device *dev, const wb_route_check *args);

/* ---- the MoE layer ------------------------------------------------------------------------------- */

/* Where the tokens of one source rank go in one layer: what wb_dispatch_slot (wb_dispatch_rules.h) reads.
 * wb_dispatch_fill_table (wb_dispatch.h) makes the arrays; they belong to whoever had them made, as device
 * memory for an op and as host memory for what runs on the host. Slots are those of all ranks, 0..S-1. */
typedef struct wb_dispatch_rule {
    /* policy static: [E] the slot of each expert for this rank; NULL under dynamic */
    const int32_t *slot_of_expert;
    /* policy dynamic: expert e has the slots replica_slots[replica_begin[e] .. replica_begin[e + 1] - 1], in
     * replica order; replica_begin is [E + 1]; both NULL under static */
    const int32_t *replica_begin, *replica_slots;
    /* dynamic: the MoE layer, which enters the hash; static: not read */
    uint32_t layer;
} wb_dispatch_rule;

/* Which slot each pair, a (token, choice), goes to, and in which row. Rows lie by slot, then token, then
 * choice, without gaps; padding tokens have no pairs. Everything is device memory: nothing waits for the
 * host. */
typedef struct wb_moe_plan {
    int64_t T;
    /* K and E */
    int32_t top_k, n_experts;
    /* S, those of all ranks */
    int32_t n_slots;
    /* where this rank's tokens go in this layer */
    wb_dispatch_rule rule;
    /* [T] what a DYNAMIC rule goes by; NULL under STATIC */
    const int32_t *tokens, *pos;
    /* [T] wb_row_direction, or NULL: no padding */
    const uint8_t *direction;
    wb_ids ids;
    /* out [T * K]: the row of each pair, -1 for those of padding and of experts without weights */
    int32_t *pair_row;
    /* out [T * K]: the token of each row; from the last row on undefined */
    int32_t *row_token;
    /* out [S + 1]: slot s has the rows [offsets[s], offsets[s + 1]) */
    int32_t *offsets;
    /* How many of the E have no weights, the last ones: a choice of theirs has no row (wb_own_choices). The
     * rule has the others alone. */
    int32_t n_weightless;
} wb_moe_plan;

/* INVALID_ARGUMENT when T * K does not fit an i32, and for an id of E or more. */
typedef wb_status wb_moe_plan_fn(wb_device *dev, const wb_moe_plan *plan);

/* Rows of all ranks arrive by source rank, then slot; experts want them by slot, then source, each source's
 * in its order. All device memory. */
typedef struct wb_moe_group {
    /* R, and the slots of this rank */
    int32_t n_sources, n_slots;
    /* [n_sources][n_slots] rows that arrive */
    const int32_t *counts;
    /* out [n_slots + 1]: slot s has the grouped rows [offsets[s], offsets[s + 1]) */
    int32_t *offsets;
    /* out [offsets[n_slots]]: where a grouped row was received, and the grouped row of a received one */
    int32_t *to_received, *to_grouped;
} wb_moe_group;
typedef wb_status wb_moe_group_fn(wb_device *dev, const wb_moe_group *group);

/* A matrix for each of n_groups groups of adjacent rows: the experts of a rank, one after the other. */
typedef struct wb_grouped {
    int32_t n_groups;
    /* device [n_groups + 1]: group g has the rows [offsets[g], offsets[g + 1]), some or none */
    const int32_t *offsets;
    /* how many rows there may be, for whoever cannot look at offsets */
    int64_t max_rows;
    /* [out, in] of group g, g * out * in elements from w.data on */
    wb_weight w;
    /* device [rows], or NULL. Row i of the input is x[gather[i]], not x[i]. `gathered`, [max_rows, in], is
     * where a backend that does not gather on its way puts the rows, and finds them in the backward. */
    const int32_t *gather;
    wb_rows gathered;
    /* forward with act: y is of no use afterwards, so that it may be left with anything in it */
    bool y_is_scratch;
    /* backward: dw is overwritten, that of a group without rows by zeros, instead of added to */
    bool overwrites;
} wb_grouped;

/* y[rows, out] (=) each row of x with its group's matrix, x w^T. act: NULL data, or [rows, out / 2] (=)
 * silu(gate) * up of y = [gate | up] as it was written, as wb_swiglu_forward_fn. */
typedef wb_status wb_grouped_matmul_fn(wb_device *dev, const wb_grouped *grouped, wb_rows x, wb_rows y,
                                       wb_rows act);

/* dw[n_groups][out][in] (+=, or = where `grouped` overwrites) the rows of each group in ascending order,
 * dx[rows, in] (=), from dy[rows, out] and the x of the forward. gate_up: NULL data; or x is the act of
 * [rows, 2 in] = gate_up, which becomes its own gradient: then dx is scratch. */
typedef wb_status wb_grouped_matmul_backward_fn(wb_device *dev, const wb_grouped *grouped, wb_rows x,
                                                wb_rows dy, float *dw, wb_rows dx, wb_rows gate_up);

/* What experts with biases and a clamped SwiGLU have between their products. Of `grouped`, which is that
 * of the product, only the groups, max_rows and overwrites are read.
 *
 * y[rows, width] += b[group of the row], b: device f32 [n_groups, width]. Backward: db (+=, or = where
 * `grouped` overwrites) the sum of dy over the ascending rows of each group. */
typedef wb_status wb_grouped_bias_forward_fn(wb_device *dev, const wb_grouped *grouped, int64_t width,
                                             const float *b, wb_rows y);
typedef wb_status wb_grouped_bias_backward_fn(wb_device *dev, const wb_grouped *grouped, int64_t width,
                                              wb_rows dy, float *db);

/* g = min(gate, limit), u = up within [-limit, limit]; out = (u + offset) g sigmoid(alpha g): gpt_oss has the
 * alpha 1.702 and the offset 1, deepseek_v4 1 and 0, which is silu(g) u. */
typedef struct wb_clamped_swiglu {
    /* above 0 */
    float limit, alpha;
    float offset;
} wb_clamped_swiglu;

/* gate_up[rows, 2F] = [gate | up]: out[rows, F] (=). Backward: dgate_up (=), may be gate_up; 0 where
 * clamped. `grouped` without offsets (NULL): there are max_rows rows, as in a part that is no expert. */
typedef wb_status wb_grouped_swiglu_forward_fn(wb_device *dev, const wb_grouped *grouped, int64_t F,
                                               const wb_clamped_swiglu *clamp, wb_rows gate_up, wb_rows out);
typedef wb_status wb_grouped_swiglu_backward_fn(wb_device *dev, const wb_grouped *grouped, int64_t F,
                                                const wb_clamped_swiglu *clamp, wb_rows gate_up, wb_rows dout,
                                                wb_rows dgate_up);

/* y[T,H] (=) the sum over ascending choices k of weights[t,k] * rows[pair_row[t,k]]; weights NULL: all 1. A
 * pair whose row is -1 is not there.
 * Backward: drows[pair_row[t,k]] = weights[t,k] * dy[t]; dweights[t,k] = <dy[t], rows[pair_row[t,k]]>, 0 for
 * a pair that is not there, NULL where not wanted; drows may be rows. */
typedef wb_status wb_moe_combine_fn(wb_device *dev, int64_t T, int32_t K, int64_t H, wb_rows rows,
                                    const int32_t *pair_row, const float *weights, wb_rows y);
typedef wb_status wb_moe_combine_backward_fn(wb_device *dev, int64_t T, int32_t K, int64_t H, wb_rows rows,
                                             const int32_t *pair_row, const float *weights, wb_rows dy,
                                             wb_rows drows, float *dweights);

/* Choices of experts without weights, which make of a token the token itself: those of id `first` or more. */
typedef struct wb_own_choices {
    int64_t T, H;
    int32_t K;
    uint32_t first;
    wb_ids ids;
    /* device [T, K]; a choice of weight 0, as all of a padding row are, is not there */
    const float *weights;
} wb_own_choices;

/* y[T,H] (+=) weights[t,k] * x[t] over ascending choices k: one chain from y's element on.
 * Backward: dx[T,H] (+=) weights[t,k] * dy[t] likewise; dweights[t,k] (=) <dy[t], x[t]> of such choices, and
 * nothing is written of others. */
typedef wb_status wb_moe_own_forward_fn(wb_device *dev, const wb_own_choices *own, wb_rows x, wb_rows y);
typedef wb_status wb_moe_own_backward_fn(wb_device *dev, const wb_own_choices *own, wb_rows x, wb_rows dy,
                                         wb_rows dx, float *dweights);

#ifdef __cplusplus
}
#endif
#endif
