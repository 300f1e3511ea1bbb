/* wb_eplb.h - where experts live: load statistics, placements with redundant experts, dispatch, move
 * plans.
 *
 * Owns: counting loads from captured routes, the placement solvers (deepseek, balanced, incremental,
 * microbatch), the maps between logical experts and physical slots, the choice of a replica for each
 * token, the plan that turns one placement into another, and the simulator that compares them. Refuses:
 * models, weights (a plan names what moves; it moves nothing), MPI and CUDA.
 *
 *     captured routes --wb_load_*--> loads [M][L][E] --wb_eplb_solve--> placement --wb_placement_broadcast--> all ranks
 *                                                                        |  |
 *                       tokens' expert ids --wb_dispatch_rows------------+  +--wb_move_plan_open--> copies and sends
 *
 * Letters: L MoE layers, E logical experts, S physical slots (E and the redundant ones), R ranks, N nodes,
 * K top-k, M micro-batches (or passes). A slot holds the weights of one expert; an expert in several slots
 * has that many *replicas*, and solvers take its tokens to be split evenly among them. The load of a rank
 * is the sum over its slots, balancedness is mean / max of the loads of live ranks, 1 being perfect.
 *
 * Everything here is deterministic: the same bytes from the same input for any number of threads and on
 * every rank. All memory is host memory. Calls are local to the rank unless their comment says collective.
 * Pointers in structs are borrowed for the call, unless said otherwise. Errors, outputs and threads: as in
 * wb_formats.h.
 */
#ifndef WB_EPLB_H
#define WB_EPLB_H

#include "wb_comm.h"
#include "wb_formats.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- ranks, nodes and slots ------------------------------------------------------------------ */

/* A physical expert: slot 0..S-1. A type of its own, so that the compiler refuses to map an id twice or to
 * index logical tables by it. Logical ids are plain numbers, as in the route tensor. */
typedef struct wb_physical_id {
    uint32_t slot;
} wb_physical_id;

#define WB_NO_SLOT UINT32_MAX /* .slot of a token that is padding */
#define WB_NO_EXPERT (-1)     /* what an empty slot holds */

/* Slots are numbered by rank: rank 0's first, dead ranks' included. Any R, N and S will do. */
typedef struct wb_topology {
    uint32_t n_ranks; /* R, 1..65536 */
    uint32_t n_nodes; /* N, 1..R */
    uint32_t n_slots; /* S, 1..2^24 */
    /* [R], summing to S, 0 allowed; NULL: S / R each, the first S % R one more */
    const uint32_t *slots_of_rank;
    /* [R], ascending from 0 to N - 1; NULL: R / N each, the first R % N one more */
    const uint32_t *node_of_rank;
    /* [R], nonzero: the rank has failed, its slots hold nothing; NULL: all live */
    const uint8_t *dead;
} wb_topology;

/* INVALID_ARGUMENT, naming the field, unless the topology is as described and its live slots hold E
 * experts. */
WB_API wb_status wb_topology_check(const wb_topology *topology, uint32_t n_experts);

/* ---- placements: the maps -------------------------------------------------------------------- */

/* For each of L layers: which expert each slot holds and, the other way round, the slots of each expert in
 * replica order. Every expert has a replica on a live rank; slots of dead ranks are empty. Opaque; owns a
 * copy of its topology, which never changes: when a rank dies, solve under a topology that says so with
 * the present placement as options.current (incremental repairs and leaves the rest), plan the move, go on
 * with the new placement. Layers, ranks and slots handed to the functions below must exist; WB_NO_SLOT
 * does not. */
typedef struct wb_placement wb_placement;

/* One layer's maps. Owner: the placement; valid until its close, updated in place by set_layer,
 * copy_layers, broadcast. */
typedef struct wb_layer_map {
    /* [S] physical -> logical; WB_NO_EXPERT: empty */
    const int32_t *expert_of_slot;
    /* [S] which replica of its expert the slot holds, from 0 (eplb.py's phyrank); 0 where empty */
    const uint32_t *replica_of_slot;
    /* [E + 1]: expert e has replicas[begin[e]] .. replicas[begin[e + 1] - 1], so that many */
    const uint32_t *replica_begin;
    /* [replica_begin[E]] logical -> physical, each expert's in replica order */
    const wb_physical_id *replicas;
    uint64_t epoch; /* as given with the last change of the layer; 0: as opened */
} wb_layer_map;

/* The trivial placement: live slots hold experts 0, 1, ... E-1, 0, 1, ... in turn; what a rank has beyond
 * E slots stays empty. */
WB_API wb_status wb_placement_open(const wb_topology *topology, uint32_t n_layers, uint32_t n_experts,
                                   wb_placement **placement_out);
WB_API wb_status wb_placement_clone(const wb_placement *placement, wb_placement **placement_out);
WB_API void wb_placement_close(wb_placement *placement); /* NULL is a no-op */

WB_API uint32_t wb_placement_layers(const wb_placement *placement);
WB_API uint32_t wb_placement_experts(const wb_placement *placement);
/* With all three arrays filled in; owner: the placement. */
WB_API const wb_topology *wb_placement_topology(const wb_placement *placement);
WB_API uint32_t wb_placement_rank_of(const wb_placement *placement, wb_physical_id id);
WB_API uint32_t wb_placement_first_slot(const wb_placement *placement, uint32_t rank); /* rank R: S */
WB_API wb_layer_map wb_placement_layer(const wb_placement *placement, uint32_t layer);

/* rank_loads_out[R] of one layer whose experts' loads [E] are split evenly over replicas. */
WB_API void wb_placement_rank_loads(const wb_placement *placement, uint32_t layer, const double *loads,
                                    double *rank_loads_out);
/* mean / max over live ranks of rank_loads [R]; 1 when all are 0. */
WB_API double wb_placement_balancedness(const wb_placement *placement, const double *rank_loads);

/* Puts a map into one layer and sets its epoch. expert_of_slot [S]; replica_of_slot [S], or NULL: replicas
 * in slot order. Refused, naming layer and slot, with nothing changed: an id outside [0, E), an expert
 * without a live replica, a dead rank's slot that is not empty, replica numbers that are not 0..count-1. */
WB_API wb_status wb_placement_set_layer(wb_placement *placement, uint32_t layer,
                                        const int32_t *expert_of_slot, const uint32_t *replica_of_slot,
                                        uint64_t epoch);

/* Takes over n layers of `from` in place (layers NULL: the first n), each at epoch `epoch`, which must be
 * above the layer's present one: a late or repeated update is refused (set_layer and broadcast take any
 * epoch). All layers or none; n 0 is a no-op. MISMATCH on other shapes. */
WB_API wb_status wb_placement_copy_layers(wb_placement *placement, const wb_placement *from, uint32_t n,
                                          const uint32_t *layers, uint64_t epoch);

/* xxh3 over shape, topology and the maps of all layers; epochs do not enter. */
WB_API uint64_t wb_placement_hash(const wb_placement *placement);

/* Collective. The maps and epochs of `root` replace those of every rank, then the hashes are compared on
 * every rank. All ranks have opened placements of one shape: otherwise PEER names the rank, and nothing
 * has changed anywhere. */
WB_API wb_status wb_placement_broadcast(wb_placement *placement, wb_comm *comm, int root);

/* Collective. PEER, naming the first rank that differs, unless all ranks hold the same maps and epochs. */
WB_API wb_status wb_placement_check_equal(const wb_placement *placement, wb_comm *comm);

/* In the layout of eplb.py, for code that expects it: log2phy_out [L][E][X] padded with -1, X =
 * wb_placement_max_replicas, logcnt_out [L][E]. Either may be NULL. */
WB_API uint32_t wb_placement_max_replicas(const wb_placement *placement);
WB_API void wb_placement_export(const wb_placement *placement, int32_t *log2phy_out, int32_t *logcnt_out);

/* Order of slots within a rank is free. Renumbers those of `placement` so that an expert that `current`
 * has on the same rank keeps its slot: fewer copies. Replica order is kept. MISMATCH on other shapes. */
WB_API wb_status wb_placement_keep_slots(wb_placement *placement, const wb_placement *current);

/* A file holds a map or counts, as JSON or as msgpack (told apart by the content), with SGLang's keys:
 *   {"physical_to_logical_map": [L][S]}            and "replica_of_slot": [L][S] where the order is not that of slots
 *   {"logical_count": [L][E] or [M][L][E]}
 * Other keys are skipped. Writing: *.json is JSON, any other name msgpack; the file appears whole or not
 * at all. */
WB_API wb_status wb_placement_save(const wb_placement *placement, const char *path);
/* Opens the placement that a file describes: a map as it is, counts through `balanced`. Shapes that do not
 * fit are MISMATCH, with expected and found; `path` is named in each message. */
WB_API wb_status wb_placement_read(const char *path, const wb_topology *topology, uint32_t n_layers,
                                   uint32_t n_experts, wb_placement **placement_out);
/* The initial placement from an earlier rollout: `balanced` on the loads of every valid row of the dump. */
WB_API wb_status wb_placement_from_dump(wb_dump *dump, const wb_topology *topology,
                                        wb_placement **placement_out);

/* ---- the cost model -------------------------------------------------------------------------- */

/* Seconds and bytes of one forward pass of a MoE layer on one rank:
 *   compute              = tokens x seconds_per_token + experts that got a token x seconds_per_expert
 *                          (of an expected part of a token, as under dynamic and fake, that part, rounded up a rank)
 *   dispatch and combine = 2 x bytes_per_token x tokens sent off the rank / bytes per second of the link
 * In and out, inside the node and out of it go on at the same time. A layer ends with its slowest rank; a
 * step is the sum over layers and micro-batches. */
typedef struct wb_cost_model {
    double seconds_per_token;  /* one token through one expert */
    double seconds_per_expert; /* reading its weights, once a pass in which it has tokens */
    double bytes_per_token;    /* one token's hidden state, one way */
    double expert_bytes;       /* all tensors of one expert */
    double node_bytes_per_second, network_bytes_per_second; /* of one rank: inside its node, out of it */
    double local_bytes_per_second;                          /* copies inside a rank */
    double seconds_per_group;                               /* latency of a group of transfers */
} wb_cost_model;
/* DeepSeek-V3's expert (3 x 7168 x 2048, bf16) forward on an H200: 400 TFLOP/s, 4.3 TB/s, NVLink 400 GB/s,
 * network 50 GB/s. */
WB_API wb_cost_model wb_cost_model_default(void);

/* ---- solvers --------------------------------------------------------------------------------- */

typedef enum wb_eplb_algorithm {
    /* The bytes of DeepSeek's eplb.py (float32, ties to the lower index; its torch run with a stable
     * sort), replica order included, for whatever it accepts but NaN and N > R. What it refuses is
     * refused: E % G or S % R not 0, and R % N where hierarchical, which is when G % N == 0; else global.
     * Two replicas of an expert may share a rank. No dead ranks, no uneven slots. */
    WB_EPLB_DEEPSEEK,
    /* The default. Least maximum rank load: capped replication, never two replicas of an expert on one
     * rank (slots that nothing could fill without stay empty), packing, swaps, joint search over replica
     * counts and places. */
    WB_EPLB_BALANCED,
    /* From options.current by few changes of slots: at most max_changes a layer, stopping at target
     * balancedness; a layer stays as it is unless the seconds gained over horizon_steps exceed those of
     * the move (cost). */
    WB_EPLB_INCREMENTAL,
    /* For routes known beforehand (replay): one placement for M micro-batches, least sum over them of the
     * maximum rank load. */
    WB_EPLB_MICROBATCH
} wb_eplb_algorithm;

typedef struct wb_eplb_options {
    wb_eplb_algorithm algorithm;
    uint32_t n_groups; /* deepseek: G router groups, 1.. */
    uint32_t trials;   /* but deepseek: moves tried in the search of one layer; 0: a good number */
    /* incremental: where to start. balanced, microbatch: slots that can stay do (wb_placement_keep_slots),
     * or NULL. Not read under deepseek, whose bytes are fixed. */
    const wb_placement *current;
    uint32_t max_changes; /* incremental: slots a layer that may change, repairs not counted; 0: no limit */
    double target;        /* incremental: balancedness at which a layer is good enough, (0, 1] */
    double horizon_steps; /* incremental: passes of these loads over which a move pays */
    wb_cost_model cost;   /* incremental: what a pass and a move take */
    uint32_t threads;     /* over layers; 0: as many as OpenMP gives */
    void (*progress)(void *ctx, uint32_t layers_done, uint32_t n_layers); /* or NULL; one call at a time */
    void *progress_ctx;
} wb_eplb_options;
/* balanced; G 1, no limit, target .98, horizon 1000, the default cost model. */
WB_API wb_eplb_options wb_eplb_options_default(void);

WB_API const char *wb_eplb_algorithm_name(wb_eplb_algorithm algorithm); /* "deepseek", ... */
WB_API wb_status wb_eplb_algorithm_parse(const char *name, wb_eplb_algorithm *algorithm_out);

/* loads: [M][L][E], tokens routed to each expert in each micro-batch (or pass); all algorithms but
 * microbatch take their sum over M. Exact for counts to 2^53; deepseek rounds to float32 as eplb.py does.
 * Refused, naming batch, layer and expert: NaN and (but for deepseek) infinite or negative loads. All zero
 * is fine: an even placement. `options` NULL: the defaults. Which layers differ from options.current is
 * seen by comparing maps, or from a move plan's changed_slots. */
WB_API wb_status wb_eplb_solve(const wb_topology *topology, uint32_t n_layers, uint32_t n_experts,
                               uint32_t n_batches, const double *loads, const wb_eplb_options *options,
                               wb_placement **placement_out);

/* ---- dispatch: which replica a token goes to ------------------------------------------------- */

typedef enum wb_dispatch_policy {
    /* By rank: the replica on this rank, else on this node, else any. Ranks that are equally near several
     * replicas are spread evenly over them. */
    WB_DISPATCH_STATIC,
    /* By token: a hash of (key, layer, expert) picks the replica. Every rank picks the same one, so it is
     * right where tokens are replicated over ranks. */
    WB_DISPATCH_DYNAMIC,
    /* Exact integer shares for each micro-batch: least maximum rank load, nearness only as tie break. */
    WB_DISPATCH_QUOTA,
    /* Ranks in turn whatever the router chose: wrong results, the upper bound of what balance can give. */
    WB_DISPATCH_FAKE
} wb_dispatch_policy;
WB_API const char *wb_dispatch_policy_name(wb_dispatch_policy policy); /* "static", ... */
WB_API wb_status wb_dispatch_policy_parse(const char *name, wb_dispatch_policy *policy_out);

/* T rows of one layer as routed: ids [T][K] of logical experts. */
typedef struct wb_routed_rows {
    const void *ids;   /* u8 or u16, any alignment */
    wb_dtype dtype;    /* WB_U8 or WB_U16 */
    size_t row_stride; /* bytes from a row to the next: L * K * size in a route tensor; 0: K * size */
    uint32_t T, K;
    /* [(T + 7) / 8] bits, LSB first: 0 is padding or a rejected draft; NULL: all valid */
    const uint8_t *valid;
} wb_routed_rows;

typedef struct wb_dispatch wb_dispatch;

/* For tokens of rank `rank`, which is live. `placement` is borrowed and read at each call: after an update
 * of its layers the next call goes by the new map (tables are rebuilt when a layer has changed, whatever
 * its epoch). */
WB_API wb_status wb_dispatch_open(const wb_placement *placement, wb_dispatch_policy policy, uint32_t rank,
                                  wb_dispatch **dispatch_out);
WB_API void wb_dispatch_close(wb_dispatch *dispatch); /* NULL is a no-op */

/* static: this rank's table of a layer, [E]: the slot for each expert. Owner: dispatch, until the layer's
 * map changes. INVALID_ARGUMENT under other policies. */
WB_API wb_status wb_dispatch_table(wb_dispatch *dispatch, uint32_t layer, const wb_physical_id **table_out);

/* quota: before a micro-batch, each layer. counts [R][E]: tokens of each source rank for each expert, the
 * same on every rank (replay knows them; else all-gather them). Tokens up to 2^31 an expert in all (more:
 * CAPACITY), none of dead ranks (INVALID_ARGUMENT). Also restarts the layer's token count. To be repeated
 * after the layer's map changed: until then its rows are a MISMATCH. */
WB_API wb_status wb_dispatch_set_counts(wb_dispatch *dispatch, uint32_t layer, const uint32_t *counts);

/* out [T][K]: the slots of a layer's rows; WB_NO_SLOT where a row is not valid. keys [T]: one u64 a token,
 * the same wherever the token is known, say wb_token_key (dynamic; others: NULL). quota: calls for one
 * micro-batch go on where the last one ended; tokens beyond the announced counts are a MISMATCH, rows
 * before any counts INVALID_ARGUMENT. An id >= E is INVALID_ARGUMENT naming row, place and layer. Nothing
 * is written on failure. */
WB_API wb_status wb_dispatch_rows(wb_dispatch *dispatch, uint32_t layer, const wb_routed_rows *rows,
                                  const uint64_t *keys, wb_physical_id *out);

/* What a policy makes of counts [R][E] of one layer: slot_tokens_out [S] (static, quota: exact; dynamic,
 * fake: the expectation), and of these the tokens that leave their rank but not their node, and those that
 * leave their node. Needs no dispatch handle. */
typedef struct wb_dispatch_traffic {
    double node_tokens, network_tokens;     /* off their rank inside the node; out of the node */
    double max_rank_node, max_rank_network; /* of these, the most that one rank receives or sends */
} wb_dispatch_traffic;
WB_API wb_status wb_dispatch_loads(const wb_placement *placement, wb_dispatch_policy policy, uint32_t layer,
                                   const uint32_t *counts, double *slot_tokens_out,
                                   wb_dispatch_traffic *traffic_out);

/* The integer shares of `quota`: shares_out [S], summing over an expert's replicas to its tokens in counts
 * [R][E], with the least possible maximum rank load and, among those, the most tokens that stay on their
 * rank, then on their node. */
WB_API wb_status wb_dispatch_quota(const wb_placement *placement, uint32_t layer, const uint32_t *counts,
                                   uint32_t *shares_out);

/* ---- load statistics ------------------------------------------------------------------------- */

typedef enum wb_phase { WB_PHASE_PREFILL, WB_PHASE_DECODE, WB_PHASE_REPLAY } wb_phase;
enum { WB_N_PHASES = 3 };
#define WB_PHASES_ALL 7u /* a set of phases: bit 1 << phase */

/* A model whose routers are counted: the target, and e.g. a draft model, each with layers of its own. */
typedef struct wb_load_region {
    const char *name;   /* "target", "draft" */
    uint32_t n_layers;  /* L of this model's routers */
    uint32_t n_experts; /* E routed experts */
    uint32_t n_shared;  /* shared experts fused into the ids as E..E+n_shared-1: not counted */
} wb_load_region;

typedef struct wb_load_options {
    /* Passes kept, 1..; memory: (window + 1) x 3 phases x L x E x 4 bytes, all of it reserved at open. */
    uint32_t window;
    double decay; /* weight of a pass against the next one, (0, 1]; 1: plain sum over the window */
} wb_load_options;
WB_API wb_load_options wb_load_options_default(void); /* 100 passes, 1 */

/* Counts of routed tokens, exact, in a ring of passes. One handle a rank; wb_load_end_pass sums over
 * ranks. */
typedef struct wb_load wb_load;

/* 1..64 regions of different names, which are copied; `options` NULL: the defaults. CAPACITY beyond 16
 * GiB. After it, counting, closing passes (but for what the comm needs) and reading counts allocate
 * nothing. */
WB_API wb_status wb_load_open(uint32_t n_regions, const wb_load_region *regions,
                              const wb_load_options *options, wb_load **load_out);
WB_API void wb_load_close(wb_load *load); /* NULL is a no-op */

/* A region that is off records nothing and is otherwise as it was; the others do not notice. All start on. */
WB_API wb_status wb_load_enable(wb_load *load, uint32_t region, bool on);

/* Counts rows of one layer into the pass that is open; rows that are not valid are left out. `layer` is
 * 0..L-1 of the region: there is no default, -1 is an error. K may differ from call to call; u8 and u16
 * are both taken (with shared experts ids may need u16 though E <= 256). INVALID_ARGUMENT for an id that
 * is neither routed nor shared, naming row, place and layer; CAPACITY for a count that would leave 32 bits
 * within the pass, naming layer and expert: nothing is counted then. */
WB_API wb_status wb_load_record(wb_load *load, uint32_t region, wb_phase phase, int32_t layer,
                                const wb_routed_rows *rows);

/* Counts every valid row of a captured record: rows of the prompt as prefill and the others as decode, or
 * all as replay. MISMATCH unless L and E are the region's; ids as in wb_load_record. Counting into the
 * open pass; the record itself stays the per-token detail. */
WB_API wb_status wb_load_add_record(wb_load *load, uint32_t region, const wb_route_model *model,
                                    const wb_record *record, bool replay);

/* Closes the pass: it enters the window and, the window being full, the oldest leaves. A pass without a
 * valid row in any region (a dummy pass of idle ranks) does not enter. With a comm the call is collective:
 * the counts are summed over the ranks, so that every rank's window is that of all tokens, pass by pass,
 * and the pass enters on all ranks if it has a row on any. NULL: this rank's tokens only, which do not add
 * up to passes of other ranks. CAPACITY, with nothing changed, if a sum might leave 32 bits; PEER, naming
 * the rank, if the ranks count different regions. */
WB_API wb_status wb_load_end_pass(wb_load *load, wb_comm *comm);
WB_API uint32_t wb_load_passes(const wb_load *load);      /* closed passes in the window */
WB_API uint64_t wb_load_passes_seen(const wb_load *load); /* ever closed; a file keeps the number */

/* counts_out [L][E]: over the window, of the phases in the set, each pass weighted decay^age (the newest
 * has age 0). Zero when the window is empty. Here and below INVALID_ARGUMENT for a set that is empty or
 * has other bits than the phases'. */
WB_API wb_status wb_load_counts(const wb_load *load, uint32_t region, uint32_t phases, double *counts_out);
/* counts_out [L][E] of the pass `age` passes ago (0: the newest closed), not weighted. NOT_FOUND when the
 * window has no such pass. */
WB_API wb_status wb_load_pass_counts(const wb_load *load, uint32_t region, uint32_t phases, uint32_t age,
                                     double *counts_out);

/* Under a placement, over the newest `passes` passes (0: the whole window): by_layer_out [L], mean over
 * the passes with tokens of mean / max; *mean_out the mean of that over layers (SGLang's figure);
 * *weighted_out sum of means / sum of maxima over passes and layers (of the time). Dead ranks do not
 * enter; a layer without tokens is given as 1 and enters none of the means. `passes` beyond the window is
 * the window. Any output may be NULL. MISMATCH on a placement of other L or E, NOT_FOUND when no pass has
 * tokens. */
WB_API wb_status wb_load_balancedness(const wb_load *load, uint32_t region, uint32_t phases, uint32_t passes,
                                      const wb_placement *placement, double *by_layer_out, double *mean_out,
                                      double *weighted_out);

/* The key of a token for dynamic dispatch: xxh3 (64 bits) of the rid's bytes with the position as its
 * seed. */
WB_API uint64_t wb_token_key(const char *rid, uint32_t position);

/* Per token: of a captured record's valid rows, how many distinct ranks and nodes hold the K chosen
 * experts, when `policy` picks for tokens of rank `rank` (static or dynamic). ranks_out, nodes_out: [rows
 * of all runs][L], or NULL; 0 for rows that are not valid, 255 for 255 and more. Under dynamic a token's
 * key is wb_token_key. MISMATCH on a placement of other L or E; the record is checked, ids too. */
WB_API wb_status wb_load_token_spread(const wb_placement *placement, wb_dispatch_policy policy, uint32_t rank,
                                      const wb_route_model *model, const wb_record *record,
                                      uint8_t *ranks_out, uint8_t *nodes_out);

/* The window as a file of passes: {"logical_count": [passes][L][E]} of the first region as in
 * wb_placement_read, and what restores the handle, switches of regions included. The open pass is not part
 * of the file: end it first. The file appears whole or not at all, JSON or msgpack by name as in
 * wb_placement_save. CAPACITY beyond 89 million numbers: a smaller window fits. */
WB_API wb_status wb_load_save(const wb_load *load, const char *path);
/* UNSUPPORTED for other files and versions; CORRUPT, naming the place, for what a handle could not have
 * written. */
WB_API wb_status wb_load_read(const char *path, wb_load **load_out);

/* ---- the move plan --------------------------------------------------------------------------- */

typedef enum wb_move_kind {
    WB_MOVE_LOCAL,   /* copy inside a rank */
    WB_MOVE_NODE,    /* between ranks of a node */
    WB_MOVE_NETWORK, /* between nodes: an expert enters a node at most once a layer */
    WB_MOVE_RELOAD   /* no live rank has the expert: from the checkpoint; `from` is WB_NO_SLOT */
} wb_move_kind;

/* All moves of a group may run at the same time, each group after the one before. */
typedef struct wb_move {
    uint32_t group, layer, expert;
    wb_move_kind kind;
    wb_physical_id from, to; /* slots; S + rank * n_shadow + i is shadow slot i of a rank */
} wb_move;

typedef struct wb_move_options {
    uint32_t n_shadow; /* spare slots of each rank, 1 or 2, shared by all layers: they break cycles */
    /* Sends and receives (reloads too) that one rank has in a group at most, 1.. Also, one way over one
     * link go no more than take as long as seconds_per_group, or one: even groups end sooner. */
    uint32_t group_moves;
    wb_cost_model cost;
} wb_move_options;
WB_API wb_move_options wb_move_options_default(void); /* 1 shadow slot, 32, the default cost model */

typedef struct wb_move_plan {
    uint64_t n_moves;
    const wb_move *moves; /* [n_moves] by layer, then group; groups are numbered through */
    uint32_t n_groups;
    uint64_t changed_slots; /* live slots that get another expert */
    double local_bytes, node_bytes, network_bytes, reload_bytes;
    double seconds; /* sum over groups of the slowest rank and the latency; reloads at network speed */
} wb_move_plan;

/* What turns `from` into `to`, for n layers (NULL: the first n; 0: no moves; listed twice is an error).
 * `options` NULL: the defaults. Ranks that are dead in `to` neither send nor receive. MISMATCH on other
 * shapes; ranks that died since `from` are the one difference allowed. In a group no slot is written
 * twice, none is both read and written. What a rank holds when its layer begins is not sent to it, what a
 * node holds does not enter it, a lost expert is reloaded once; slots that become empty are left as they
 * are. */
WB_API wb_status wb_move_plan_open(const wb_placement *from, const wb_placement *to, uint32_t n,
                                   const uint32_t *layers, const wb_move_options *options,
                                   wb_move_plan **plan_out);
WB_API void wb_move_plan_close(wb_move_plan *plan); /* NULL is a no-op */

/* ---- the simulator --------------------------------------------------------------------------- */

/* The routed tokens of one optimiser step, batch by batch. `fill` writes counts [R][E]: tokens of each
 * source rank for each expert. It is called once for each (batch, layer), one call at a time, but by any
 * thread and in any order within a batch. */
typedef struct wb_traffic {
    uint32_t n_batches; /* M */
    wb_status (*fill)(void *ctx, uint32_t batch, uint32_t layer, uint32_t *counts_out);
    void *ctx;
} wb_traffic;

typedef struct wb_simulation {
    double balancedness;      /* mean over (batch, layer) with tokens of mean / max */
    double balancedness_time; /* sum of means / sum of maxima */
    double min_layer;         /* the worst layer's mean over batches */
    double seconds;           /* of the step: sum of compute and transfers of each layer's slowest rank */
    /* No placement and dispatch can be faster: tokens even over live ranks, each expert with tokens read
     * once, no transfers. */
    double bound_seconds;
    double node_bytes, network_bytes; /* of dispatch and combine */
} wb_simulation;

/* Sends a step's tokens through a placement and a dispatch policy. rank_tokens_out [R]: tokens of each
 * rank summed over batches and layers, or NULL. */
WB_API wb_status wb_simulate(const wb_placement *placement, wb_dispatch_policy policy,
                             const wb_traffic *traffic, const wb_cost_model *cost, double *rank_tokens_out,
                             wb_simulation *simulation_out);

typedef enum wb_synthetic_kind {
    WB_SYNTHETIC_ZIPF,      /* the i-th most popular expert ~ (i + 1)^-skew, shuffled for each layer */
    WB_SYNTHETIC_LOGNORMAL, /* exp(skew x normal) */
    WB_SYNTHETIC_DRIFT      /* log-normal whose base moves by `noise` from step to step */
} wb_synthetic_kind;

typedef struct wb_synthetic {
    wb_synthetic_kind kind;
    double skew;     /* see the kinds */
    double noise;    /* each (batch, expert) times exp(noise x normal) */
    uint64_t tokens; /* routed (token, slot) pairs of a batch and layer, before rounding */
    uint64_t seed;
} wb_synthetic;
/* loads_out [M][L][E] of step `step`: whole numbers. The same for the same arguments everywhere. */
WB_API wb_status wb_synthetic_loads(const wb_synthetic *synthetic, uint32_t step, uint32_t n_batches,
                                    uint32_t n_layers, uint32_t n_experts, double *loads_out);

#ifdef __cplusplus
}
#endif
#endif
