/* wb_solve.h - which expert each slot should hold: the placement solvers, and the placement to begin with.
 *
 * Online: the solvers. Offline: the initial placement from a file or a dump. Letters and common rules: as in
 * wb_eplb.h.
 */
#ifndef WB_SOLVE_H
#define WB_SOLVE_H

#include "wb_base.h"
#include "wb_cost_model.h"
#include "wb_formats.h"
#include "wb_placement.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- online: solvers ----------------------------------------------------------------------------- */

/* The solvers, X(VALUE, name): WB_EPLB_<VALUE>, and the name on command lines.
 *
 * DEEPSEEK: the bytes of DeepSeek's eplb.py (float32, ties to the lower index; its torch run with a stable
 * sort), replica order included, for whatever it accepts but NaN and N > R. What it refuses is refused: E % G
 * or S % R not 0, and R % N where hierarchical, which is when G % N == 0; else global. Two replicas of an
 * expert may share a rank. No dead ranks, no uneven slots.
 *
 * BALANCED, the default: minimises the maximum rank load: capped replication, never two replicas of an expert
 * on one rank (slots that nothing could fill without stay empty), packing, swaps, joint search over replica
 * counts and places. Where live ranks have different numbers of slots, a slot also stays empty if a replica
 * in it would raise the maximum. Small layers (at most 32 experts and 16 ranks) get a placement whose maximum
 * is proven to be the lowest, to a part in 10^9, if that takes at most 20,000 steps.
 *
 * INCREMENTAL: from options.current by few changes of slots: at most max_changes a layer, stopping at target
 * balancedness; a layer stays as it is unless the seconds gained over horizon_steps exceed those of the move
 * (cost).
 *
 * MICROBATCH: for routes known beforehand (replay): one placement for M micro-batches that minimises the sum
 * over them of the maximum rank load. */
#define WB_EPLB_ALGORITHM_LIST(X) \
    X(DEEPSEEK, deepseek)         \
    X(BALANCED, balanced)         \
    X(INCREMENTAL, incremental)   \
    X(MICROBATCH, microbatch)

typedef enum wb_eplb_algorithm {
#define X(VALUE, name) WB_EPLB_##VALUE,
    WB_EPLB_ALGORITHM_LIST(X)
#undef X
} wb_eplb_algorithm;
#define X(VALUE, name) +1
enum { WB_EPLB_N_ALGORITHMS = 0 WB_EPLB_ALGORITHM_LIST(X) };
#undef X
WB_API const char *wb_eplb_algorithm_name(wb_eplb_algorithm algorithm); /* "deepseek", ... */
WB_API wb_status wb_eplb_algorithm_parse(const char *name, wb_eplb_algorithm *algorithm_out);

typedef struct wb_eplb_options {
    size_t size;                 /* of this struct; set by the initialiser */
    wb_eplb_algorithm algorithm; /* default: balanced */
    uint32_t n_groups;           /* deepseek: G router groups, 1..; default 1 */
    /* Moves that the search of one layer tries (deepseek has none). 0, the default: balanced 20,000 x S, at
     * most 4,000,000; incremental 500 x S, at least 4,000,000; microbatch 500,000 after 200,000 of
     * balanced. */
    uint32_t trials;
    /* incremental: the placement to start from. balanced, microbatch: experts that stay on their rank keep
     * the slot they have there (wb_placement_keep_slots), and without replicas a layer keeps a map that is as
     * good as the one that was found; NULL, the default: slots as they come. Not read
     * under deepseek, whose bytes are fixed. Borrowed for the call. */
    const wb_placement *current;
    /* incremental: slots a layer that may change, repairs not counted; 0, the default: no limit */
    uint32_t max_changes;
    double target; /* incremental: balancedness at which a layer is good enough, (0, 1]; default 0.98 */
    /* incremental: passes of these loads over which the gain of a move is counted; default 1000 */
    double horizon_steps;
    wb_cost_model cost; /* incremental: what a pass and a move take; default wb_cost_model_default() */
    uint32_t threads;   /* over layers; 0, the default: as many as OpenMP gives */
    void (*progress)(void *ctx, uint32_t layers_done, uint32_t n_layers); /* or NULL; one call at a time */
    void *progress_ctx;
} wb_eplb_options;
WB_API void wb_eplb_options_init(wb_eplb_options *options_out, size_t size);
static inline wb_eplb_options wb_eplb_options_default(void) {
    wb_eplb_options options;
    wb_eplb_options_init(&options, sizeof options);
    return options;
}

/* loads: [M][L][E], tokens routed to each expert in each micro-batch (or pass); all algorithms but
 * microbatch take their sum over M. Exact for counts to 2^53; deepseek rounds to float32 as eplb.py does.
 * INVALID_ARGUMENT, naming batch, layer and expert, for NaN and (but for deepseek) infinite or negative
 * loads. All zero is fine: an even placement. `options` NULL: the defaults. Which layers differ from
 * options.current is seen by comparing maps, or from a move plan's groups. Local: every rank that
 * solves the same loads gets the same placement. */
WB_API wb_status wb_eplb_solve(const wb_topology *topology, uint32_t n_layers, uint32_t n_experts,
                               uint32_t n_batches, const double *loads, const wb_eplb_options *options,
                               wb_placement **placement_out);

/* ---- offline: counts and the placement to begin with ---------------------------------------------- */

/* wb_eplb_solve for counts that may say nothing of a layer: one whose loads are all zero keeps the map
 * that it has in options->current, or the trivial one (rule 33), where that is a map on the live ranks.
 * INCREMENTAL may be asked for without a current placement and starts from the trivial one. */
WB_API wb_status wb_eplb_solve_counts(const wb_topology *topology, uint32_t n_layers, uint32_t n_experts,
                                      uint32_t n_batches, const double *loads, const wb_eplb_options *options,
                                      wb_placement **placement_out);

/* Opens the placement that a file describes: a map as any of wb_map_layout (wb_placement.h; VLLM also as
 * an array [S] alone, for all layers), or counts {"logical_count": [L][E] or [M][L][E]}. The file is JSON,
 * msgpack, plain YAML (maps by indentation, lists of numbers), or for SGLang's keys and for an array what
 * torch.save has written; which it is is told by the content.
 *
 * A map is taken as it is, of a file that has both too; counts are solved as by wb_eplb_solve_counts with
 * `options` (NULL: the defaults); other keys are skipped. `layers` [L]: the hidden layer of each MoE layer,
 * by which TRTLLM numbers them, and by which maps and counts of other layouts may have rows for all hidden
 * layers, of which those are taken; NULL: the rows are the MoE layers, those of TRTLLM in ascending order.
 * ASCEND numbers by hidden layers or from 0. Shapes that do not fit are MISMATCH, with expected and found;
 * NOT_FOUND for a file with no such key and for no file; `path` is named in each message. *layout_out (may be
 * NULL): what was recognised, a static string; "logical_count" for counts. */
WB_API wb_status wb_placement_read(const char *path, const wb_topology *topology, uint32_t n_layers,
                                   uint32_t n_experts, const uint32_t *layers, const wb_eplb_options *options,
                                   const char **layout_out, wb_placement **placement_out);

/* The initial placement from an earlier rollout: wb_eplb_solve_counts on every valid row of the dump.
 * NOT_FOUND when it has none. */
WB_API wb_status wb_placement_from_dump(wb_dump *dump, const wb_topology *topology,
                                        const wb_eplb_options *options, wb_placement **placement_out);

#ifdef __cplusplus
}
#endif
#endif
