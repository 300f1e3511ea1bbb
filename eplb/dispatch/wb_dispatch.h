/* wb_dispatch.h - which replica a token goes to: expert ids of rows in, physical slots out, and what a policy
 * makes of the counts of all ranks.
 *
 * Online. Letters and common rules: as in wb_eplb.h.
 */
#ifndef WB_DISPATCH_H
#define WB_DISPATCH_H

#include "wb_base.h"
#include "wb_placement.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum wb_dispatch_policy {
    /* By rank: the replica on this rank, else on this node, else any. Ranks that are equally near several
     * replicas are spread evenly over them. */
    WB_DISPATCH_STATIC,
    /* By token: a hash of (key, layer, expert) picks the replica. Every rank picks the same one, so it is
     * right where tokens are replicated over ranks. */
    WB_DISPATCH_DYNAMIC,
    /* Exact integer shares for each micro-batch: the smallest possible maximum rank load; of the splits that
     * reach it, one that keeps as many tokens as possible on their rank, then on their node. */
    WB_DISPATCH_QUOTA,
    /* Ranks in turn whatever the router chose: wrong results, the upper bound of what balance can give. */
    WB_DISPATCH_FAKE
} wb_dispatch_policy;
WB_API const char *wb_dispatch_policy_name(wb_dispatch_policy policy); /* "static", ... */
WB_API wb_status wb_dispatch_policy_parse(const char *name, wb_dispatch_policy *policy_out);

/* ---- rows of one rank ---------------------------------------------------------------------------- */

/* T rows of one layer as routed: ids [T][K] of logical experts. A description that callers fill; the arrays
 * are theirs, host memory, read during a call. */
typedef struct wb_routed_rows {
    const void *ids;   /* u8 or u16, any alignment */
    wb_dtype dtype;    /* WB_U8 or WB_U16 */
    size_t row_stride; /* bytes from a row to the next: L * K * size in a route tensor; 0: K * size */
    uint32_t T, K;     /* tokens; choices of each */
    /* [(T + 7) / 8] bits, LSB first: 0 is padding or a rejected draft; NULL: all valid */
    const uint8_t *valid;
} wb_routed_rows;

typedef struct wb_dispatch wb_dispatch;

/* For tokens of rank `rank`, which may be dead: then they all go to others. `placement` is borrowed until the
 * close and read at each call: after an update of its layers the next call goes by the new map (tables are
 * rebuilt when a layer has changed, whatever its epoch). INVALID_ARGUMENT for an unknown policy and a rank
 * that is not there. */
WB_API wb_status wb_dispatch_open(const wb_placement *placement, wb_dispatch_policy policy, uint32_t rank,
                                  wb_dispatch **dispatch_out);
WB_API void wb_dispatch_close(wb_dispatch *dispatch); /* NULL is a no-op */

/* static: this rank's table of a layer, [E]: the slot for each expert. Owner: dispatch, until the layer's
 * map changes. INVALID_ARGUMENT under other policies. */
WB_API wb_status wb_dispatch_table(wb_dispatch *dispatch, uint32_t layer, const wb_physical_id **table_out);

/* quota: before a micro-batch, each layer. counts [R][E]: tokens of each source rank for each expert, the
 * same on every rank (replay knows them; else all-gather them). At most 2^31 tokens an expert in all (more:
 * CAPACITY), none of dead ranks (INVALID_ARGUMENT). Also restarts the layer's token count. To be repeated
 * after the layer's map changed: until then its rows are a MISMATCH. */
WB_API wb_status wb_dispatch_set_counts(wb_dispatch *dispatch, uint32_t layer, const uint32_t *counts);

/* out [T][K]: the slots of a layer's rows; WB_NO_SLOT where a row is not valid. keys [T]: one u64 a token,
 * the same wherever the token is known: wb_dispatch_token_key for the slots that the model's tokens go to
 * (dynamic; others: NULL). quota: calls for one micro-batch go on where the last one ended; tokens beyond
 * the announced counts are a MISMATCH, rows before any counts INVALID_ARGUMENT. An id >= E is
 * INVALID_ARGUMENT naming row, choice and layer. Nothing is written on failure. */
WB_API wb_status wb_dispatch_rows(wb_dispatch *dispatch, uint32_t layer, const wb_routed_rows *rows,
                                  const uint64_t *keys, wb_physical_id *out);

/* The key by which the model, its ops and the plans of a replayed step choose under dynamic dispatch: the
 * token's id in the upper 32 bits and its absolute position in the lower, which every rank knows before the
 * step as in it. Equal tokens at equal positions of two requests go to the same replica. */
WB_API uint64_t wb_dispatch_token_key(int32_t token, int32_t position);

/* ---- tables for kernels --------------------------------------------------------------------------- */

/* How many numbers (int32) the table of one layer has: static E, dynamic E + 1 + S. INVALID_ARGUMENT for
 * quota, fake and unknown policies: there a token's slot hangs on the tokens before it, which no table
 * tells. */
WB_API wb_status wb_dispatch_table_length(const wb_placement *placement, wb_dispatch_policy policy,
                                          size_t *length_out);

/* table_out [wb_dispatch_table_length], host: what tokens of `rank` go by in one layer, from its map as it is
 * now. It is the caller's, to be uploaded, and to be made again when the layer's map has changed. Tokens go
 * where wb_dispatch_rows sends them.
 *   static   [E] the slot for each expert
 *   dynamic  [E + 1] where each expert's slots begin in what follows, then [S] the slots, each expert's in
 *            replica order, -1 from the last expert's on; the same for every rank
 * Errors as in wb_dispatch_open and wb_dispatch_table_length, and INVALID_ARGUMENT for a layer that is not
 * there. */
WB_API wb_status wb_dispatch_fill_table(const wb_placement *placement, wb_dispatch_policy policy,
                                        uint32_t rank, uint32_t layer, int32_t *table_out);

/* ---- a layer planned before its pass -------------------------------------------------------------- */

/* How many rows of this rank's T tokens go to each slot in one MoE layer of one pass, and how many come from
 * other ranks: known before the pass runs, where the experts of all its tokens are. Each choice of a token
 * that is no padding has a row, in the order of its slot, then token and choice. Which row it is, a device
 * finds out by the op moe_plan in less time than it takes to bring it. Host memory, the maker's. */
typedef struct wb_planned_layer {
    uint64_t placement_hash; /* wb_placement_hash of the placement that it was made for */
    int64_t T;
    const int32_t *offsets;  /* [S + 1] slot s has the rows [offsets[s], offsets[s + 1]) */
    const int32_t *received; /* [R][slots of this rank] rows that each rank sends to each slot here */
} wb_planned_layer;

/* ---- counts of all ranks ------------------------------------------------------------------------- */

/* Tokens between ranks in one pass of one layer, dispatch only (combine sends as many back). */
typedef struct wb_dispatch_traffic {
    double node_tokens;      /* that leave their rank but not their node */
    double network_tokens;   /* that leave their node */
    double max_rank_node;    /* of node_tokens, the larger of what one rank receives and sends, its maximum */
    double max_rank_network; /* the same of network_tokens */
} wb_dispatch_traffic;

/* What a policy makes of counts [R][E] of one layer: slot_tokens_out [S] (static, quota: exact; dynamic,
 * fake: the expectation) and the traffic. Needs no dispatch handle. Errors as in wb_dispatch_set_counts. */
WB_API wb_status wb_dispatch_loads(const wb_placement *placement, wb_dispatch_policy policy, uint32_t layer,
                                   const uint32_t *counts, double *slot_tokens_out,
                                   wb_dispatch_traffic *traffic_out);

/* The integer shares of `quota`: shares_out [S], summing over an expert's replicas to its tokens in counts
 * [R][E], with the smallest possible maximum rank load and, among those, as many tokens as possible that
 * stay on their rank, then on their node. Errors as in wb_dispatch_set_counts. */
WB_API wb_status wb_dispatch_quota(const wb_placement *placement, uint32_t layer, const uint32_t *counts,
                                   uint32_t *shares_out);

#ifdef __cplusplus
}
#endif
#endif
