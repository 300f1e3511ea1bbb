/* wb_pack.h - on which rank and in which micro-batch each sequence of a replayed step is trained, decided
 * from the routes that will be replayed, before the step runs.
 *
 * Owns: the packing, the loads of its micro-batches, and the records' way to the ranks that train on them.
 * Refuses: placements (wb_eplb_solve takes the loads), models, who runs the forward.
 *
 *   wb_pack_open(comm, sequences)          packs: the same result on every rank
 *   wb_pack_loads -> wb_eplb_solve         microbatch: a placement for these micro-batches
 *   wb_pack_move                           records go to their ranks
 *   wb_replay_begin(..., wb_pack_micro_batches), wb_replay_plan of wb_pack_items ... as in wb_replay.h
 *
 * A token's log-probability does not depend on the batch around it, on ranks or on placements, so that a
 * packed step has those of any other packing, bit for bit; gradients are the same up to the order of their
 * sums. All pointers are to host memory; one handle from one thread at a time.
 */
#ifndef WB_PACK_H
#define WB_PACK_H

#include "wb_comm.h"
#include "wb_formats.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What passes over a micro-batch cost, in any unit: only ratios count. Ranks wait for each other in every MoE
 * layer, so that a micro-batch takes the sum of
 *
 *   the most of a rank's attention: its sequences' rows * per_row + rows * (rows + 1) / 2 * per_pair
 *   experts: per_choice * (L * K * rows of all ranks / R + unevenness)
 *
 * where unevenness, what the rank with the most rows has beyond the mean, summed over layers, is expected of
 * a placement that is even on the whole step: sqrt(2 ln R * L * D / R), D being the squared distance of the
 * micro-batch's counts [L][E] from its share of the step's. It is the largest of R sums of 1 / R of the
 * experts each, whose deviations are normal; for ln R counts the power of two that is not above R. */
typedef struct wb_pack_cost {
    double per_row;    /* a row through everything but experts, all layers together */
    double per_pair;   /* a query with a key, all layers together */
    double per_choice; /* a row through one expert */
} wb_pack_cost;

/* In FLOPs of a forward: projections of a row 4 * hidden * (q_width + kv_width) and a pair 4 * q_width, each
 * times n_layers; a choice 6 * hidden * expert_width. q_width: heads * head_dim; kv_width: kv heads *
 * head_dim; n_layers: all layers with attention. */
WB_API wb_pack_cost wb_pack_cost_of(uint32_t hidden, uint32_t q_width, uint32_t kv_width,
                                    uint32_t expert_width, uint32_t n_layers);

typedef struct wb_pack_options {
    size_t size;        /* of this struct, set by the initialiser */
    int64_t max_rows;   /* of a micro-batch on a rank, 1..2^31 - 1; default 4096 */
    uint32_t n_updates; /* U, 1..: each update has micro-batches of its own; default 1 */
    uint8_t reserved[4];
    wb_pack_cost cost; /* default: wb_pack_cost_of(4096, 4096, 512, 1536, 94), a Qwen3-235B-A22B's */
} wb_pack_options;
/* `size`: sizeof the caller's struct. */
WB_API void wb_pack_options_init(wb_pack_options *options_out, size_t size);
static inline wb_pack_options wb_pack_options_default(void) {
    wb_pack_options options;
    wb_pack_options_init(&options, sizeof options);
    return options;
}

/* A sequence that this rank has. A description that callers fill. */
typedef struct wb_pack_sequence {
    const wb_record *record; /* borrowed until wb_pack_close, and all that it points to */
    uint32_t rows;           /* its first rows tokens are fed, 1..max_rows and at most n_tokens */
    uint32_t update;         /* 0..U - 1 */
} wb_pack_sequence;

typedef struct wb_pack wb_pack;

/* Packs the sequences of all ranks: each of them once, into micro-batches of its update, max_rows on a rank
 * not exceeded, in as few micro-batches as were found; their cost above is lowered by exchanging sequences.
 * Every rank has every micro-batch, with no sequences where there are too few.
 *
 * What is known of a sequence's routes are the counts of its valid rows. Each rank learns of each sequence a
 * sketch of its counts [L][E], L * E numbers but 256 at most: each expert of each layer is added to one of
 * them or taken from it, which keeps distances (a count sketch). In all 4 * (2 + min(L * E, 256)) bytes a
 * sequence in one exchange, one of 8 bytes a rank before it, and a sum of the loads, 8 * M * L * E bytes.
 * While it packs, a rank holds about three times as many bytes for all sequences. CAPACITY beyond 2^30
 * sequences.
 *
 * `model` is that of the records, its list of layers borrowed until wb_pack_close. INVALID_ARGUMENT names the
 * sequence that is not as described, by its rid; PEER where ranks have other options or another model.
 * Collective. */
WB_API wb_status wb_pack_open(wb_comm *comm, const wb_route_model *model, const wb_pack_options *options,
                              uint32_t n, const wb_pack_sequence *sequences, wb_pack **pack_out);
WB_API void wb_pack_close(wb_pack *pack); /* NULL is a no-op */

WB_API int32_t wb_pack_micro_batches(const wb_pack *pack); /* M, of all updates together */
/* The first micro-batch of update 0..U; M for U. */
WB_API int32_t wb_pack_first(const wb_pack *pack, uint32_t update);

/* Where a sequence is trained. */
typedef struct wb_pack_place {
    uint32_t home, index; /* the rank that has it, and its number there */
    uint32_t rank, micro_batch;
    uint32_t rows;
} wb_pack_place;
/* Of all sequences of all ranks, [*n_out], by home and index; the same on every rank. Owner: pack. */
WB_API const wb_pack_place *wb_pack_places(const wb_pack *pack, uint32_t *n_out);

/* [M][L][experts that have weights] (row, choice) pairs for each, exact, the same on every rank: as
 * wb_eplb_solve takes them, which places no others. Owner: pack. */
WB_API const double *wb_pack_loads(const wb_pack *pack);

/* A sequence that is trained on this rank. */
typedef struct wb_pack_item {
    const wb_record *record; /* where it stayed, the caller's own; else one of the pack's */
    uint32_t rows;
    const void *extra; /* extra_bytes of it; NULL where extra_bytes is 0 */
} wb_pack_item;

/* Sends each sequence that is trained elsewhere to its rank: its record, whole, and `extra_bytes` of what
 * belongs to it (a reward, an advantage), from `extras` [n][extra_bytes], in the order of the sequences,
 * which is borrowed until wb_pack_close. Once. Collective. */
WB_API wb_status wb_pack_move(wb_pack *pack, wb_comm *comm, size_t extra_bytes, const void *extras);
/* This rank's sequences of a micro-batch, [*n_out], by home and index; NULL before wb_pack_move. Owner:
 * pack. */
WB_API const wb_pack_item *wb_pack_items(const wb_pack *pack, int32_t micro_batch, uint32_t *n_out);

typedef struct wb_pack_stats {
    double attention; /* balancedness: sum over micro-batches of the mean over the sum of the maximum */
    /* sum over micro-batches of the square root of D above, as the sketches have it, over that of the
     * packing without exchanges; 1 where that is 0 */
    double unevenness;
    uint64_t gathered_bytes;  /* that this rank received of other ranks' sketches */
    uint64_t moved_sequences; /* of all ranks */
    uint64_t moved_bytes;     /* that this rank sent in wb_pack_move */
} wb_pack_stats;
WB_API wb_pack_stats wb_pack_get_stats(const wb_pack *pack);

#ifdef __cplusplus
}
#endif
#endif
