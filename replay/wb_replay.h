/* wb_replay.h - from records to the routes that each micro-batch and layer of a training step is forced
 * down.
 *
 * Owns: the modes off, record (R2) and rollout (R3), the plan of a step keyed by (micro-batch, MoE layer),
 * packing, slices, padding rows, the policy for missing rows, dispatch counts known before the step, and
 * fidelity metrics. Refuses: any model or device; who runs the forward.
 *
 * Life of a step:
 *   wb_replay_add(record) ...                  what the rollout or a dump holds
 *   wb_replay_begin(mode, n micro-batches)     a new plan
 *   wb_replay_plan(micro-batch, segments) ...  with the tokens that will be fed, which are compared
 *   wb_replay_plan_dispatch(comm)              optional: slots, offsets and counts of all ranks
 *   for each pass over each micro-batch, layer by layer or all layers at once:
 *     wb_replay_rows -> forward -> wb_replay_store
 *   wb_replay_end                              checks that every row of every (micro-batch, layer) was
 *                                              told to have gone where the plan says
 * There is no cursor: any (micro-batch, layer) may be asked for in any order, any number of times
 * (activation recompute, 1F1B, interleaved stages). Nothing is process-global. All pointers are to host
 * memory; no call but wb_replay_plan_dispatch is collective; one handle from one thread at a time.
 */
#ifndef WB_REPLAY_H
#define WB_REPLAY_H

#include "wb_comm.h"
#include "wb_dispatch.h"
#include "wb_formats.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wb_replay wb_replay;

/* What to do with a position that the trainer feeds and the record has no valid row for. The last token of
 * a record, which the rollout never fed, has no row by nature: it chooses natively under every policy and
 * does not count as missing. */
typedef enum wb_missing_policy {
    WB_MISSING_STRICT, /* wb_replay_plan fails with MISSING_ROUTES: request id, first position, MoE layer */
    WB_MISSING_NATIVE, /* the row chooses natively; later passes of the step reuse that choice */
    WB_MISSING_DROP    /* as NATIVE, and the segment is reported by wb_replay_dropped: zero its loss mask */
} wb_missing_policy;

typedef struct wb_replay_options {
    size_t size; /* of this struct, set by the initialiser */
    wb_missing_policy missing;
    /* Expert-parallel ranks, to spread padding rows over; 1 when unknown. Not read with a placement. */
    int32_t n_ranks;
    /* This trainer stage's MoE layers [first_layer, first_layer + n_layers) of the model (pipeline
     * stages); n_layers 0: all. Layer arguments below stay indices 0..L-1 of the whole model. */
    int32_t first_layer, n_layers;
    /* Where experts are in each MoE layer of the whole model: what wb_replay_plan_dispatch plans for, and the
     * ranks, those of replicas 0, that padding rows are spread over. Borrowed until the close and read at
     * each begin and each wb_replay_plan_dispatch, as its maps are then. NULL: nothing can be planned, and
     * padding is spread as if rank r held the block [E * r / R, E * (r + 1) / R) in every layer. */
    const wb_placement *placement;
    /* As the model's: WB_DISPATCH_STATIC (default) or WB_DISPATCH_DYNAMIC, by a token's id and position. */
    wb_dispatch_policy dispatch;
    /* True: what indexers chose is replayed too, under the same mode and the same policy for missing rows,
     * for a model that has indexers. False (default): every row chooses there by itself. */
    bool indexer;
    uint8_t reserved[3]; /* zero */
    /* The tables of the model's hash-routed layers (wb_model_hash_routes), with which records are compared
     * when they are added: there a row that is not the table's is of another model, or was damaged. Borrowed
     * until the close. NULL: nothing is compared. */
    const wb_hash_routes *hash;
} wb_replay_options;
/* Strict, 1 rank, all layers, no placement, no indexers. `size`: sizeof the caller's struct. */
WB_API void wb_replay_options_init(wb_replay_options *options_out, size_t size);
static inline wb_replay_options wb_replay_options_default(void) {
    wb_replay_options options;
    wb_replay_options_init(&options, sizeof options);
    return options;
}

/* `model`: the model about to be trained; copied. `options` NULL: the defaults. INVALID_ARGUMENT names the
 * field that is off. */
WB_API wb_status wb_replay_open(const wb_route_model *model, const wb_replay_options *options,
                                wb_replay **replay_out);
WB_API void wb_replay_close(wb_replay *replay); /* NULL is a no-op */
/* The model given to open; owner: replay. */
WB_API const wb_route_model *wb_replay_model(const wb_replay *replay);

/* Makes a record known under its rid. `from`: the model it was recorded with; MISMATCH unless it is the
 * trained one (fingerprint), and for a row that is not that of options.hash: rid, position, layer and token.
 * Ids out of range or repeated within a layer, and a rid added twice, are
 * refused. The record is borrowed: what it points to must stay until wb_replay_clear or close. */
WB_API wb_status wb_replay_add(wb_replay *replay, const wb_route_model *from, const wb_record *record);
/* Forgets records, plan and metrics; an open step is dropped. */
WB_API void wb_replay_clear(wb_replay *replay);

/* ---- the plan -------------------------------------------------------------------------------- */

/* As `layer` of the calls below: all MoE layers of the stage at once. */
#define WB_ALL_LAYERS (-1)

typedef enum wb_replay_mode {
    /* Every row but padding chooses natively in every pass; the metrics still compare its choice with the
     * records, where REPLAY segments are planned. Nothing is kept. A micro-batch need not be planned. */
    WB_REPLAY_OFF,
    /* R2: the step's first pass (the old-logprob forward) chooses, the others are forced to its choice. */
    WB_REPLAY_RECORD,
    /* R3: every pass is forced down the rollout's routes. */
    WB_REPLAY_ROLLOUT
} wb_replay_mode;
WB_API const char *wb_replay_mode_name(wb_replay_mode mode); /* "off", "record", "rollout" */

typedef enum wb_segment_kind {
    WB_SEGMENT_REPLAY, /* rows [start, start + rows) of record rid; refused in mode RECORD */
    WB_SEGMENT_RECORD, /* rows without a record: the first pass chooses, later passes are forced to it */
    /* Forced to distinct ids with combine weight zero. In each layer the rows are spread evenly over the
     * ranks that hold experts, and over each rank's experts; a rank with too few experts for its share of
     * every row's K has all of them in each row, and the others share the rest. */
    WB_SEGMENT_PADDING
} wb_segment_kind;

/* A run of rows of a packed micro-batch. A trainer's context-parallel zigzag is two segments of one rid. A
 * rank that feeds a part of the positions only (context or sequence parallelism) plans that part. */
typedef struct wb_segment {
    wb_segment_kind kind;
    const char *rid; /* REPLAY; else NULL */
    uint32_t start;  /* absolute position of the first row; REPLAY, and RECORD with tokens */
    uint32_t rows;
    /* [rows] ids that the trainer feeds in these rows; borrowed. REPLAY; of RECORD they are optional, and
     * without them a dynamic dispatch cannot be planned; else NULL. */
    const uint32_t *tokens;
} wb_segment;

/* Opens a step in `mode` with a plan of `n_micro_batches`; the plan of the last step, which has ended, and
 * its metrics are dropped. INVALID_ARGUMENT while a step is open, whose plan would be lost: wb_replay_end,
 * wb_replay_abort or wb_replay_clear come first. */
WB_API wb_status wb_replay_begin(wb_replay *replay, wb_replay_mode mode, int32_t n_micro_batches);

/* The segment for rows [start, start + rows) of request `rid` in this step's mode: RECORD in mode RECORD,
 * REPLAY in the others. `rid` and `tokens`, [rows] of what the trainer will feed, are borrowed. */
WB_API wb_segment wb_replay_segment(const wb_replay *replay, const char *rid, uint32_t start, uint32_t rows,
                                    const uint32_t *tokens);

/* Defines micro-batch `micro_batch` as the concatenation of `segments`, T = the sum of their rows.
 * NOT_FOUND for an unknown rid, MISSING_ROUTES under strict, MISMATCH for a REPLAY segment in mode RECORD
 * (it would silently turn R2 into R3) and for a token that is not the record's, with request id, position and
 * both tokens, INVALID_ARGUMENT for rows beyond the record's tokens and for REPLAY without tokens; then
 * nothing is changed. Tokens are compared in mode OFF too, and for the last token, which has no row: a
 * prompt rendered otherwise would shift all rows behind it. A micro-batch is defined once in a plan. Neither
 * rids nor tokens are kept. */
WB_API wb_status wb_replay_plan(wb_replay *replay, int32_t micro_batch, int32_t n_segments,
                                const wb_segment *segments);

/* Plans where every row of the step goes before it runs: for each (micro-batch, layer) of the stage whose
 * rows are all forced or padding, on every rank, the rows of each slot and the counts of all ranks
 * (wb_replay_layer_plan). One exchange of counts for the whole step. *planned_out: how many there are, the
 * same on every rank. A row that is still to choose, on any rank, leaves its (micro-batch, layer) out
 * everywhere, as in mode OFF all are. After every wb_replay_plan of the step; again where rows that chose
 * have been stored since, or the placement has changed: then what was planned before is gone.
 *
 * For each (micro-batch, layer) 4 bytes a slot, and 4 a rank and slot here, on the host, kept for the next
 * step. INVALID_ARGUMENT without a placement, for a number of ranks that is not its, and when no step is
 * open; PEER where placement, stage, policy or number of micro-batches differ. After a failure nothing is
 * planned. Collective. */
WB_API wb_status wb_replay_plan_dispatch(wb_replay *replay, wb_comm *comm, int64_t *planned_out);

/* The plan of MoE layer `layer` of a micro-batch; with WB_ALL_LAYERS an array of those of the stage's layers.
 * NULL where it is, or one of them is, not planned, and for a NULL replay. Owner: replay, until the next
 * wb_replay_plan_dispatch, begin or abort. */
WB_API const wb_planned_layer *wb_replay_layer_plan(const wb_replay *replay, int32_t micro_batch,
                                                    int32_t layer);

/* The most rows, each a (token, choice), that the slots of this rank get from all ranks in a (micro-batch,
 * layer) that is planned: what the step needs of a trainer's max_expert_rows. 0 where nothing is planned, and
 * for a NULL replay. */
WB_API int64_t wb_replay_max_expert_rows(const wb_replay *replay);

/* True once wb_replay_plan has defined the micro-batch; false for a NULL replay. */
WB_API bool wb_replay_planned(const wb_replay *replay, int32_t micro_batch);

/* The MoE layers of this pipeline stage: [first, first + n) of the model's. */
WB_API void wb_replay_stage(const wb_replay *replay, int32_t *first_out, int32_t *n_out);

/* T of a planned micro-batch; 0 for one that is not. */
WB_API uint32_t wb_replay_micro_batch_rows(const wb_replay *replay, int32_t micro_batch);

/* True when segment `segment` of the micro-batch fell under WB_MISSING_DROP. */
WB_API bool wb_replay_dropped(const wb_replay *replay, int32_t micro_batch, int32_t segment);

/* ---- use ------------------------------------------------------------------------------------- */

/* Rows of a micro-batch, of one layer or of all: how a forward is to route them, and what it must tell
 * wb_replay_store. What is pointed to belongs to the replay and stays until the next begin, abort, clear or
 * close; wb_replay_choose and wb_replay_store change it in place. */
typedef struct wb_replay_slice {
    uint32_t rows;
    /* First id of wb_route_dtype(E), not necessarily aligned; row r's ids, [K of the layer] or for all layers
     * a whole row, begin at r * stride. Undefined, but in range, where a row chooses. NULL without a plan. */
    const void *ids;
    int64_t stride;           /* in ids: L * K */
    const uint8_t *direction; /* [rows] wb_row_direction; NULL without a plan: all rows choose */
    bool any_forced;          /* some row is forced or padding */
    bool any_native;          /* some row chooses */
    /* Some row chooses now and is forced to that choice afterwards, so that a backward has to wait for the
     * store. Not in mode OFF, where nothing is kept. */
    bool undecided;
    bool want_chosen; /* wb_replay_choose needs the ids that the rows chose */
    bool want_used;   /* wb_replay_store needs the ids that the rows used: some row is not known to follow */
    bool want_native; /* native ids would feed the metrics; a recompute need not select again */
} wb_replay_slice;

/* Rows [row, row + rows) of MoE layer `layer`: a slice, or the whole when row = 0, rows = T. With
 * WB_ALL_LAYERS a row is native until its choice is known in all layers (a pass asks for all at once or for
 * one after the other, not for both). Nothing is marked: who asks has not followed yet. INVALID_ARGUMENT
 * outside of the plan, except in mode OFF. */
WB_API wb_status wb_replay_rows(wb_replay *replay, int32_t micro_batch, int32_t layer, uint32_t row,
                                uint32_t rows, wb_replay_slice *slice_out);

/* Tells what a forward did with rows [row, row + rows) of one layer or all: `used`, the ids that they were
 * sent to, forced and padding rows too (NULL: not told; rows that chose need it), and `native`, what each
 * would have chosen (NULL: not known). Strides in ids; a row has K ids or, for all layers, L * K. Rows that
 * chose are kept: every later pass of this plan is forced to them. Native ids feed the metrics of the first
 * pass that brings them. In mode OFF nothing is kept, and `used` alone feeds the metrics.
 * The rows of which `used` was told follow the plan from here on, which wb_replay_end asks of every row.
 * MISMATCH when a row was not routed as planned, choices in another order included; INVALID_ARGUMENT for
 * ids out of range or repeated; then nothing is changed. */
WB_API wb_status wb_replay_store(wb_replay *replay, int32_t micro_batch, int32_t layer, uint32_t row,
                                 uint32_t rows, const void *used, int64_t used_stride, const void *native,
                                 int64_t native_stride);

/* wb_replay_store for a gate that hands ids to a dispatcher which is not its own: what the rows chose is kept
 * and measured, but nobody knows yet where they go, so that none follows. wb_replay_store, told by who
 * dispatched them, comes after it. `chosen`: NULL when no row chose. */
WB_API wb_status wb_replay_choose(wb_replay *replay, int32_t micro_batch, int32_t layer, uint32_t row,
                                  uint32_t rows, const void *chosen, int64_t chosen_stride,
                                  const void *native, int64_t native_stride);

/* counts_out[E]: (token, choice) pairs of the rows for each logical expert, known before the step runs: the
 * load of the forced rows. Rows that choose are not in it, and padding, which is no token, never is. */
WB_API wb_status wb_replay_counts(const wb_replay *replay, int32_t micro_batch, int32_t layer, uint32_t row,
                                  uint32_t rows, int64_t *counts_out);

/* ---- what indexers chose --------------------------------------------------------------------- */

/* The calls of this section take layer `i` of the model's indexer_layers. Layers that use one indexer have
 * one plan: what is stored for one of them is the others'. INVALID_ARGUMENT unless options.indexer is set,
 * and outside of the plan. */

/* Host bytes that a plan takes for each row and indexer, beside the positions of rows that choose. */
enum { WB_REPLAY_LISTED_BYTES = 24 };

/* What a forward must tell wb_replay_indexer_store of the rows that it asked for. */
typedef struct wb_replay_indexer_slice {
    bool any_forced, any_native; /* as of wb_replay_slice; a row of padding is neither */
    bool want_used, want_native;
} wb_replay_indexer_slice;

/* How rows [row, row + rows) of a micro-batch choose in layer i. direction_out [rows], wb_row_direction: as
 * of wb_replay_rows. listed_out [rows][indexer_k]: of a forced row its positions, ascending, then -1; of any
 * other -1 throughout. A micro-batch that is not planned, in mode OFF, has native rows. */
WB_API wb_status wb_replay_indexer_rows(wb_replay *replay, int32_t micro_batch, uint32_t i, uint32_t row,
                                        uint32_t rows, int32_t *listed_out, uint8_t *direction_out,
                                        wb_replay_indexer_slice *slice_out);

/* Tells what a forward did with rows [row, row + rows) in layer i: `used`, what they looked at (NULL: not
 * told; rows that chose need it), and `native`, what each would have chosen (NULL: not known), both as
 * listed_out above. As wb_replay_store: rows that chose are forced to it from here on, native choices feed
 * the metrics once, in mode OFF `used` alone does, and wb_replay_end asks of every row that is not padding,
 * in each layer of the stage that has an indexer of its own, that it was told. Of the stage are the model's
 * layers from its first MoE layer on to the next stage's; the first stage has those before too. MISMATCH when
 * a forced row looked elsewhere; INVALID_ARGUMENT for positions that are not ascending or, where the plan
 * knows the row's own, beyond wb_indexer_seen, or another number of them than wb_indexer_count where the rate
 * is known; then nothing is changed. */
WB_API wb_status wb_replay_indexer_store(wb_replay *replay, int32_t micro_batch, uint32_t i, uint32_t row,
                                         uint32_t rows, const int32_t *used, const int32_t *native);

/* Ends the step: MISMATCH naming the first (micro-batch, layer) of this stage of which not every row is known
 * to follow, with the first such row and their number, or a micro-batch that was never planned; the step then
 * stays open. Mode OFF forces nothing and checks nothing. The plan and the metrics stay until the next
 * begin. INVALID_ARGUMENT when no step is open. */
WB_API wb_status wb_replay_end(wb_replay *replay);

/* Drops the open step on purpose, with its plan and metrics; records stay. Without one it does nothing. */
WB_API void wb_replay_abort(wb_replay *replay);

/* ---- fidelity -------------------------------------------------------------------------------- */

/* Adds `n` sampled tokens: log-probabilities at rollout and now. mask [n] (NULL: all) leaves out tokens at
 * 0. */
WB_API wb_status wb_replay_observe_logprobs(wb_replay *replay, size_t n, const float *rollout,
                                            const float *trainer, const uint8_t *mask);

typedef struct wb_replay_layer_metrics {
    double tokens;  /* rows that have ids in the plan and whose native choice is known */
    double overlap; /* mean share of the K forced ids that are among the K native ones (overlap@K) */
    double differ;  /* share of those rows whose native set of ids is not the forced set */
    /* Mean over maximum of the load that those rows make of the experts that have weights, by the forced and
     * by the native ids. */
    double forced_balancedness, native_balancedness;
} wb_replay_layer_metrics;

typedef struct wb_replay_metrics {
    /* Of the plan; forced: rows of REPLAY segments that a record has (in mode OFF they choose all the same);
     * fallback: missing rows that chose natively. */
    double rows, forced_rows, fallback_rows, padding_rows;
    double fallback_share;  /* fallback_rows / (rows - padding_rows) */
    double token_differ;    /* share of forced rows that would have gone elsewhere in at least one layer */
    double decision_differ; /* share of forced (row, layer) decisions likewise */
    double logprobs;        /* tokens given to wb_replay_observe_logprobs */
    /* KL(rollout || trainer): mean of log r, and of exp(-log r) - 1 + log r, log r = rollout - trainer. */
    double kl_k1, kl_k3;
    double ratio_outside; /* share with exp(trainer - rollout) outside [0.5, 2] */
    /* The load of both maps: means over the layers that have a load of what wb_replay_layer_metrics has. */
    double forced_balancedness, native_balancedness;
} wb_replay_metrics;

/* Metrics since wb_replay_begin. Means of nothing are 0. layers_out [L] may be NULL. */
WB_API void wb_replay_get_metrics(const wb_replay *replay, wb_replay_metrics *metrics_out,
                                  wb_replay_layer_metrics *layers_out);

/* The load of both maps in one MoE layer: forced_out[E] and native_out[E], (row, choice) pairs of each
 * logical expert, of the rows that have ids in the plan and whose native choice is known, by the one and by
 * the other. Forced is what training followed, but in mode OFF, which follows the native choice. A statistic
 * under replay is of the forced map unless it says otherwise; wb_replay_counts has that of all forced rows
 * before the step. INVALID_ARGUMENT for a layer that the model has not. */
WB_API wb_status wb_replay_get_load(const wb_replay *replay, int32_t layer, double *forced_out,
                                    double *native_out);

/* As wb_replay_layer_metrics, of an indexer: overlap is of the positions forced; a choice of none is all of
 * it. */
typedef struct wb_replay_indexer_metrics {
    double tokens, overlap, differ;
} wb_replay_indexer_metrics;

/* Since wb_replay_begin. *fallback_rows_out: rows of REPLAY segments that lack what indexers chose.
 * layers_out: [n_indexer_layers], a layer's being those of the indexer that it uses. Either may be NULL.
 * Without options.indexer all are 0. */
WB_API void wb_replay_get_indexer_metrics(const wb_replay *replay, double *fallback_rows_out,
                                          wb_replay_indexer_metrics *layers_out);

/* The sums behind the metrics, *n_out doubles that may be added up over ranks in place (an all-reduce) before
 * wb_replay_get_metrics. Owner: replay. */
WB_API double *wb_replay_metric_sums(wb_replay *replay, size_t *n_out);

#ifdef __cplusplus
}
#endif
#endif
