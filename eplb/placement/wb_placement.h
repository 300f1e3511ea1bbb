/* wb_placement.h - where experts live: ranks, nodes and slots, and the maps between logical experts and
 * physical slots.
 *
 * Online: everything but the files at the end. Letters and common rules: as in wb_eplb.h.
 */
#ifndef WB_PLACEMENT_H
#define WB_PLACEMENT_H

#include "wb_base.h"
#include "wb_comm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- ranks, nodes and slots ---------------------------------------------------------------------- */

/* A physical expert: slot 0..S-1. A type of its own, so that the compiler refuses to map an id twice or to
 * index logical tables by it. Logical ids are plain numbers, as in the route tensor. */
typedef struct wb_physical_id {
    uint32_t slot;
} wb_physical_id;

#define WB_NO_SLOT UINT32_MAX /* .slot of a token that is padding */
#define WB_NO_EXPERT (-1)     /* what an empty slot holds */

/* Slots are numbered by rank: rank 0's first, dead ranks' included. R, N and S need not divide each other.
 *
 * A description, not an options struct: callers fill every field (NULL and 0 are values), and fields are
 * never added. The arrays are the caller's, host memory, read during a call and not kept. */
typedef struct wb_topology {
    uint32_t n_ranks; /* R, 1..65536 */
    uint32_t n_nodes; /* N, 1..R */
    uint32_t n_slots; /* S, 1..2^24 */
    /* [R], summing to S, 0 allowed; NULL: S / R each, the first S % R one more */
    const uint32_t *slots_of_rank;
    /* [R], ascending from 0 to N - 1; NULL: R / N each, the first R % N one more */
    const uint32_t *node_of_rank;
    /* [R], nonzero: no expert is ever there, the slots hold nothing: the rank has failed, or it is to feed
     * tokens only; NULL: all live */
    const uint8_t *dead;
} wb_topology;

/* INVALID_ARGUMENT, naming the field, unless the topology is as described and its live slots hold E
 * experts. */
WB_API wb_status wb_topology_check(const wb_topology *topology, uint32_t n_experts);

/* ---- blocks -------------------------------------------------------------------------------------- */

/* Where experts are without a placement: n of them in contiguous blocks, one a rank, whose sizes differ by 1
 * at the most. Block b has the experts from wb_block_begin of b to that of b + 1; with more blocks than
 * experts some are empty. */
static inline uint32_t wb_block_begin(uint32_t n, uint32_t n_blocks, uint32_t block) {
    return (uint32_t)((uint64_t)n * block / n_blocks);
}

/* The block that expert i < n is in. */
static inline uint32_t wb_block_of(uint32_t n, uint32_t n_blocks, uint32_t i) {
    return (uint32_t)((((uint64_t)i + 1) * n_blocks - 1) / n);
}

/* ---- placements: the maps ------------------------------------------------------------------------ */

/* For each of L layers: which expert each slot holds and, the other way round, the slots of each expert in
 * replica order. Every expert has a replica on a live rank; slots of dead ranks are empty.
 *
 * Opaque; owns a copy of its topology, which never changes. When a rank dies, solve under a topology that
 * says so with the present placement as options.current (incremental repairs and leaves the rest), plan the
 * move, and go on with the new placement.
 *
 * Layers, ranks and slots handed to the functions below must exist (they are not checked unless a function
 * says so); WB_NO_SLOT is not a slot that exists. */
typedef struct wb_placement wb_placement;

/* One layer's maps. Owner: the placement; valid until its close, updated in place by set_layer,
 * copy_layers, broadcast and keep_slots. */
typedef struct wb_layer_map {
    /* [S] physical -> logical; WB_NO_EXPERT: empty */
    const int32_t *expert_of_slot;
    /* [S] which replica of its expert the slot holds, from 0 (eplb.py's phyrank); 0 where empty */
    const uint32_t *replica_of_slot;
    /* [E + 1]: expert e has replicas[begin[e]] .. replicas[begin[e + 1] - 1], so that many */
    const uint32_t *replica_begin;
    /* [replica_begin[E]] logical -> physical, each expert's in replica order */
    const wb_physical_id *replicas;
    uint64_t epoch; /* the number that came with the last change of the layer; 0: as opened */
} wb_layer_map;

/* The trivial placement: live slots hold experts 0, 1, ... E-1, 0, 1, ... in turn; slots of a rank beyond
 * its first E stay empty. INVALID_ARGUMENT as in wb_topology_check and for 0 layers. */
WB_API wb_status wb_placement_open(const wb_topology *topology, uint32_t n_layers, uint32_t n_experts,
                                   wb_placement **placement_out);
WB_API wb_status wb_placement_clone(const wb_placement *placement, wb_placement **placement_out);
WB_API void wb_placement_close(wb_placement *placement); /* NULL is a no-op */

WB_API uint32_t wb_placement_layers(const wb_placement *placement);  /* L */
WB_API uint32_t wb_placement_experts(const wb_placement *placement); /* E */
/* With all three arrays filled in; owner: the placement. */
WB_API const wb_topology *wb_placement_topology(const wb_placement *placement);
WB_API uint32_t wb_placement_rank_of(const wb_placement *placement, wb_physical_id id);
/* The first slot of a rank, 0..R; S for rank R, so that a rank's slots end where the next one's begin. */
WB_API uint32_t wb_placement_first_slot(const wb_placement *placement, uint32_t rank);
WB_API wb_layer_map wb_placement_layer(const wb_placement *placement, uint32_t layer);

/* rank_loads_out [R]: the load of each rank in one layer when the experts' loads [E] (tokens) are split
 * evenly over replicas. */
WB_API void wb_placement_rank_loads(const wb_placement *placement, uint32_t layer, const double *loads,
                                    double *rank_loads_out);
/* mean / max over live ranks of rank_loads [R]; 1 when all are 0. */
WB_API double wb_placement_balancedness(const wb_placement *placement, const double *rank_loads);

/* ---- changing a placement ------------------------------------------------------------------------ */

/* Puts a map into one layer and sets its epoch. expert_of_slot [S]; replica_of_slot [S], or NULL: replicas
 * in slot order. INVALID_ARGUMENT, naming layer and slot, with nothing changed, for: a layer outside [0, L),
 * an id outside [0, E), an expert without a live replica, a dead rank's slot that is not empty, replica
 * numbers that are not 0..count-1. */
WB_API wb_status wb_placement_set_layer(wb_placement *placement, uint32_t layer,
                                        const int32_t *expert_of_slot, const uint32_t *replica_of_slot,
                                        uint64_t epoch);

/* Takes over n layers of `from` in place (layers [n]; NULL: the first n), each at epoch `epoch`, which must
 * be above the layer's present one: a late or repeated update is refused (set_layer and broadcast take any
 * epoch). All layers or none; n 0 is a no-op. MISMATCH on other shapes. */
WB_API wb_status wb_placement_copy_layers(wb_placement *placement, const wb_placement *from, uint32_t n,
                                          const uint32_t *layers, uint64_t epoch);

/* The order of slots within a rank is free: this renumbers those of `placement` so that an expert that
 * `current` has on the same rank keeps its slot, and a move copies less. Replica order is kept. MISMATCH on
 * other shapes. */
WB_API wb_status wb_placement_keep_slots(wb_placement *placement, const wb_placement *current);

/* ---- the same on every rank ---------------------------------------------------------------------- */

/* xxh3 over shape, topology and the maps of all layers; epochs do not enter. */
WB_API uint64_t wb_placement_hash(const wb_placement *placement);

/* Collective. The maps and epochs of `root` replace those of every rank, then the hashes are compared on
 * every rank. All ranks have opened placements of one shape: otherwise PEER names the rank, and nothing
 * has changed anywhere. */
WB_API wb_status wb_placement_broadcast(wb_placement *placement, wb_comm *comm, int root);

/* Collective. PEER, naming the first rank that differs, unless all ranks hold the same maps and epochs. */
WB_API wb_status wb_placement_check_equal(const wb_placement *placement, wb_comm *comm);

/* ---- for other code ------------------------------------------------------------------------------ */

/* In the layout of eplb.py, for code that expects it: log2phy_out [L][E][X] padded with -1, X =
 * wb_placement_max_replicas, logcnt_out [L][E]. Either may be NULL. Both are the caller's. */
WB_API uint32_t wb_placement_max_replicas(const wb_placement *placement);
WB_API void wb_placement_export(const wb_placement *placement, int32_t *log2phy_out, int32_t *logcnt_out);

/* ---- offline: maps as files ---------------------------------------------------------------------- */

/* Whose file it is, X(VALUE, name): WB_MAP_<VALUE>, and the name on command lines.
 *
 * SGLANG, which is also this library's own: {"physical_to_logical_map": [L][S]}, and "replica_of_slot":
 * [L][S] where replicas are not in slot order. *.json is JSON, any other name msgpack.
 *
 * VLLM: the array [L][S] alone. TRTLLM: {"initial_global_assignments": {"<hidden layer>": [S], ...}}. ASCEND:
 * {"moe_layer_count": L, "layer_list": [{"layer_id": 0.., "device_list": [{"device_id": rank,
 * "device_expert": [experts]}, ...]}, ...]}. TRTLLM is YAML, with numbers for keys, unless the name is
 * *.json; the other two are JSON always. These three know no order of replicas but that of slots. */
#define WB_MAP_LAYOUT_LIST(X) \
    X(SGLANG, sglang)         \
    X(VLLM, vllm)             \
    X(TRTLLM, trtllm)         \
    X(ASCEND, ascend)

typedef enum wb_map_layout {
#define X(VALUE, name) WB_MAP_##VALUE,
    WB_MAP_LAYOUT_LIST(X)
#undef X
} wb_map_layout;
WB_API const char *wb_map_layout_name(wb_map_layout layout); /* "sglang", ... */
WB_API wb_status wb_map_layout_parse(const char *name, wb_map_layout *layout_out);

/* Writes the maps as a file that wb_placement_read (wb_solve.h) reads in each layout. `layers` [L]: the
 * hidden layer of each MoE layer, for TRTLLM; NULL: 0..L-1. A regular file appears whole or not at all; a
 * symbolic link is followed, a device or pipe is written directly. IO on failure, naming the path;
 * UNSUPPORTED for an empty slot in TRTLLM and ASCEND, whose readers know none. */
WB_API wb_status wb_placement_save(const wb_placement *placement, const char *path, wb_map_layout layout,
                                   const uint32_t *layers);

#ifdef __cplusplus
}
#endif
#endif
