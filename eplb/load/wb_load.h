/* wb_load.h - how many tokens each expert gets: counted online in a ring of passes, offline from a dump.
 *
 * Online: the handle, what it counts and what it says under a placement. Offline: the file of a window,
 * counts from files of other engines, and the counts of a dump. Letters and common rules: as in wb_eplb.h. */
#ifndef WB_LOAD_H
#define WB_LOAD_H

#include "wb_base.h"
#include "wb_comm.h"
#include "wb_dispatch.h"
#include "wb_formats.h"
#include "wb_placement.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- online: the handle -------------------------------------------------------------------------- */

/* What a rank was at when it fed a token. Prefill: a prompt, and whatever is fed again, after a preemption or
 * behind a state that went back, with the last token that is fed in one pass with it. Decode: the one token
 * of a request in a step, and drafts. Replay: a training forward. A token that is fed again is a load again,
 * and one that is taken over from a prefix cache is none. Records do not say so: each has its row once, and
 * wb_load_add_record tells prompt from answer by position. So the counts of a dump are those of the engine
 * that wrote it where it fed every token once. */
typedef enum wb_phase { WB_PHASE_PREFILL, WB_PHASE_DECODE, WB_PHASE_REPLAY } wb_phase;
enum { WB_N_PHASES = 3 };
#define WB_PHASES_ALL 7u /* a set of phases: bit 1 << phase */

/* A model whose routers are counted: the target, and e.g. a draft model, each with layers of its own. A
 * description that callers fill. */
typedef struct wb_load_region {
    const char *name;   /* "target", "draft" */
    uint32_t n_layers;  /* L of this model's routers */
    uint32_t n_experts; /* E routed experts that have weights */
    /* Ids E..E+n_shared-1 that are not counted: shared experts fused into the ids, experts without weights */
    uint32_t n_shared;
} wb_load_region;

typedef struct wb_load_options {
    size_t size; /* of this struct; set by the initialiser */
    /* Passes kept, 1..; default 100. All memory is reserved at open: (window + 1) x 3 phases x L x E x 4
     * bytes a region, and their sums. */
    uint32_t window;
    double decay; /* weight of a pass against the next one, (0, 1]; default 1: plain sum over the window */
} wb_load_options;
WB_API void wb_load_options_init(wb_load_options *options_out, size_t size);
static inline wb_load_options wb_load_options_default(void) {
    wb_load_options options;
    wb_load_options_init(&options, sizeof options);
    return options;
}

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

/* ---- online: counting ---------------------------------------------------------------------------- */

/* Counts rows of one layer into the pass that is open; rows that are not valid are left out. `layer` is
 * 0..L-1 of the region: there is no default, -1 is an error. K may differ from call to call; u8 and u16
 * are both taken (with shared experts ids may need u16 though E <= 256). INVALID_ARGUMENT for an id that
 * is neither routed nor shared, naming row, choice and layer; CAPACITY for a count that would leave 32 bits
 * within the pass, naming layer and expert: nothing is counted then. */
WB_API wb_status wb_load_record(wb_load *load, uint32_t region, wb_phase phase, int32_t layer,
                                const wb_routed_rows *rows);

/* Counts every valid row of a captured record: rows of the prompt as prefill and the others as decode, or all
 * as replay. MISMATCH unless L and E, of experts that have weights, are the region's; ids as in
 * wb_load_record. Counting into the open pass; the record itself stays the per-token detail. */
WB_API wb_status wb_load_add_record(wb_load *load, uint32_t region, const wb_route_model *model,
                                    const wb_record *record, bool replay);

/* Closes the pass: it enters the window and, the window being full, the oldest leaves. A pass without a
 * valid row in any region (a dummy pass of idle ranks) does not enter. With a comm the call is collective:
 * the counts are summed over the ranks, so that every rank's window is that of all tokens, pass by pass,
 * and the pass enters on all ranks if it has a row on any. NULL: this rank's tokens only, which do not add
 * up to passes of other ranks. CAPACITY, with nothing changed, if a sum might leave 32 bits; PEER, naming
 * the rank, if the ranks count different regions. */
WB_API wb_status wb_load_end_pass(wb_load *load, wb_comm *comm);
/* Closes the pass on this rank alone; it enters, with rows or without, so that windows of ranks that close
 * their passes together have the same passes, and sums over ranks can wait until they are looked at. */
WB_API void wb_load_end_own_pass(wb_load *load);
WB_API uint32_t wb_load_passes(const wb_load *load);      /* closed passes in the window */
WB_API uint64_t wb_load_passes_seen(const wb_load *load); /* ever closed; a file keeps the number */

/* ---- online: reading ----------------------------------------------------------------------------- */

/* counts_out [L][E]: over the window, of the phases in the set, each pass weighted decay^age (the newest
 * has age 0). Zero when the window is empty. A long window takes no longer than a short one. Here and below
 * INVALID_ARGUMENT for a set that is empty or has other bits than the phases'. */
WB_API wb_status wb_load_counts(const wb_load *load, uint32_t region, uint32_t phases, double *counts_out);
/* counts_out [L][E] of the pass `age` passes ago (0: the newest closed), not weighted. NOT_FOUND when the
 * window has no such pass. */
WB_API wb_status wb_load_pass_counts(const wb_load *load, uint32_t region, uint32_t phases, uint32_t age,
                                     double *counts_out);

/* Under a placement, over the newest `passes` passes (0: the whole window): by_layer_out [L], mean over
 * the passes with tokens of mean / max; *mean_out the mean of that over layers (SGLang's figure);
 * *weighted_out sum of means / sum of maxima over passes and layers (of the time). Dead ranks do not
 * enter; the figure of a layer without tokens is 1, and it enters none of the means. `passes` beyond the
 * window is the window. Any output may be NULL. MISMATCH on a placement of other L or E, NOT_FOUND when no
 * pass has tokens. */
WB_API wb_status wb_load_balancedness(const wb_load *load, uint32_t region, uint32_t phases, uint32_t passes,
                                      const wb_placement *placement, double *by_layer_out, double *mean_out,
                                      double *weighted_out);

/* Whether all counts [E] of a layer lie in one of n_blocks equal blocks of experts, [E b / n, E (b + 1) /
 * n) each: what one of n ranks sees that counts its own experts, and no load of all ranks (rule 33). Then
 * *block_out is which. False for one block, for blocks of less than an expert, and for no counts at all. */
WB_API bool wb_load_in_one_block(uint32_t n_experts, const double *counts, uint32_t n_blocks,
                                 uint32_t *block_out);

/* ---- offline: the window as a file --------------------------------------------------------------- */

/* A file of passes: {"logical_count": [passes][L][E]} of the first region as in wb_placement_read, and what
 * restores the handle, switches of regions included. The open pass is not part of the file: end it first.
 * Written as by wb_placement_save. CAPACITY beyond 89 million numbers: a smaller window fits. */
WB_API wb_status wb_load_save(const wb_load *load, const char *path);
/* UNSUPPORTED for other files and versions; CORRUPT, naming the place, for what a handle could not have
 * written. */
WB_API wb_status wb_load_read(const char *path, wb_load **load_out);

/* ---- offline: counts of other engines -------------------------------------------------------------- */

/* Tokens of each expert in each MoE layer, in one pass or several, from files of any origin. Opaque. */
typedef struct wb_counts wb_counts;

/* Which of a model's hidden layers are MoE layers. A description that callers fill. */
typedef struct wb_moe_layers {
    uint32_t n_hidden;      /* hidden layers of the model; 0: not known */
    uint32_t n_moe;         /* MoE layers, 1.. */
    const uint32_t *layers; /* [n_moe] ascending numbers of hidden layers, from 0 */
} wb_moe_layers;

/* Reads files of counts, 1.., and sums them, pass by pass: the ranks' files of one recording. A file is
 *
 *   {"logical_count": [L][E] or [passes][L][E], ...} or the array alone, as JSON or msgpack
 *   such a dict, as SGLang's recorder writes it, or the tensor alone, from torch.save; in place of a
 *   tensor a list of lists of numbers or of tensors
 *
 * told apart by the content. Tensors are of u8, i16, i32, i64, f32 or f64; their file is read without torch,
 * and nothing in it is ever run. The rows of a pass are those of the MoE layers or of all hidden layers, when
 * `layers` says which of these are MoE; NULL: each row is an MoE layer. A row that is all zero is no
 * information and not a load (rule 33): see wb_counts_info.informed. MISMATCH for rows that are neither, for
 * a hidden layer with counts that is no MoE layer, and for files of different shapes; CORRUPT and UNSUPPORTED
 * as the formats are, naming the path and the place, in a pickle the name of what is not read. */
WB_API wb_status wb_counts_read(uint32_t n_paths, const char *const *paths, const wb_moe_layers *layers,
                                wb_counts **counts_out);
WB_API void wb_counts_close(wb_counts *counts); /* NULL is a no-op */

/* Owner of the arrays: the counts. */
typedef struct wb_counts_info {
    uint32_t n_passes, n_layers, n_experts; /* L: MoE layers */
    const uint32_t *layers;  /* [L] the hidden layer of each; the row of the file where not known */
    const uint8_t *informed; /* [L] nonzero: it has a count in some pass */
    const char *layout;      /* what was recognised, of the first file; a static string */
} wb_counts_info;
WB_API wb_counts_info wb_counts_get_info(const wb_counts *counts);

/* [n_passes][L][E], as wb_eplb_solve reads them; owner: the counts. */
WB_API const double *wb_counts_loads(const wb_counts *counts);

/* wb_load_in_one_block of a layer, over all passes. */
WB_API bool wb_counts_in_one_block(const wb_counts *counts, uint32_t layer, uint32_t n_blocks,
                                   uint32_t *block_out);

/* Experts side by side, the first one following the last. */
typedef struct wb_counts_run {
    uint32_t first, n_experts;
    uint32_t n_layers; /* whose counts all lie in it; 0: there is no such run */
} wb_counts_run;

/* The experts that one rank alone has counted, whatever ranks and slots the recording engine had: a run of at
 * most E / 2 experts in which all counts lie in 9 of 10 layers with counts or more, over all passes. */
WB_API wb_status wb_counts_find_run(const wb_counts *counts, wb_counts_run *run_out);

/* ---- offline: a step of a dump ---------------------------------------------------------------------- */

/* The routes of one step of a dump, counted once by micro-batch, source rank, layer and expert: what solvers
 * and as many simulations as one likes read afterwards without touching the dump. Opaque. */
typedef struct wb_dump_counts wb_dump_counts;

/* Counts the valid rows of the dump's records of these numbers ([n_records], in this order; NULL: the first
 * n_records), in n_batches (M, 1..) micro-batches. Micro-batch b takes the records whose middle row lies in
 * the b-th part of the step's rows; its records are dealt to the live ranks of the topology in turn, the
 * first record to the first live rank. Ids are counted by as many threads as OpenMP gives the caller
 * (omp_set_num_threads, OMP_NUM_THREADS), those of a small step by one; the result does not depend on it.
 *
 * All records of the step are held meanwhile and released at the end; afterwards memory is 4 x L x E bytes
 * for each pair of micro-batch and rank that has a record, and 8 x M x L x E. Records are checked, ids too,
 * and the first that is at fault is reported (with the status of wb_dump_record or wb_record_check).
 * `progress` (may be NULL) is called with its ctx while this goes on, `done` of `total` records: by any
 * thread, one at a time.
 * INVALID_ARGUMENT for records that the dump does not have, no records, no micro-batches, and a topology that
 * does not hold the model's experts; CAPACITY when a rank has 2^32 or more rows in a micro-batch. */
WB_API wb_status wb_dump_counts_open(wb_dump *dump, const uint64_t *records, uint64_t n_records,
                                     uint32_t n_batches, const wb_topology *topology,
                                     void (*progress)(void *ctx, uint64_t done, uint64_t total),
                                     void *progress_ctx, wb_dump_counts **counts_out);
WB_API void wb_dump_counts_close(wb_dump_counts *counts); /* NULL is a no-op */

WB_API uint64_t wb_dump_counts_rows(const wb_dump_counts *counts); /* valid rows counted; 0 is no error */
/* [M][L][E] tokens, as wb_eplb_solve reads them; owner: the counts. */
WB_API const double *wb_dump_counts_loads(const wb_dump_counts *counts);
/* counts_out [R][E]: tokens of each source rank for each expert in one micro-batch and layer, which must
 * exist. `counts` is a wb_dump_counts *: the signature is that of wb_traffic.fill, which it is made for. It
 * cannot fail and may be called by several threads. */
WB_API wb_status wb_dump_counts_fill(void *counts, uint32_t batch, uint32_t layer, uint32_t *counts_out);

#ifdef __cplusplus
}
#endif
#endif
