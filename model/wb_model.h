/* wb_model.h - a Mixture-of-Experts language model: Hugging Face checkpoint in, forward and backward,
 * checkpoint out.
 *
 * Owns: which tensors a model of some configuration (wb_config.h, which it includes) has, the weight
 * registry, inference forward over a paged KV cache, training forward and backward with per-layer recompute,
 * and the one place where experts are chosen (wb_routing). Refuses: scheduling of requests, RL, where routes
 * come from.
 *
 * Parallel layout: every rank of `comm` holds the attention and dense weights and a shard of every MoE
 * layer's experts; each rank feeds its own tokens (data parallel), which travel to their experts by
 * all-to-all and back. Calls marked "collective" must be made by all ranks together, with zero tokens
 * where a rank has none. A token's result is the same bits whatever the number of ranks, the batch around
 * it or the thread count.
 *
 * Formulas and tensor names follow Hugging Face transformers.
 *
 * Errors, besides those named at a call: INVALID_ARGUMENT for arguments out of range, OUT_OF_MEMORY,
 * DEVICE from the device, PEER from a collective call when another rank failed or disagrees. A rank that
 * fails in the middle of a forward, backward or reduction gives up (wb_comm_abort): no rank waits for it, and
 * the communicator is dead. After a failure that could be known before, in arguments or in memory for the
 * rank's own tokens, it lives.
 */
#ifndef WB_MODEL_H
#define WB_MODEL_H

#include "wb_checkpoint.h"
#include "wb_comm.h"
#include "wb_config.h"
#include "wb_dispatch.h"
#include "wb_exchange.h"
#include "wb_formats.h"
#include "wb_kernels.h"
#include "wb_placement.h"
#include "wb_rebalance.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- the model ----------------------------------------------------------------------------------- */

typedef struct wb_model wb_model;

/* From wb_model_options_init; device and comm are required. */
typedef struct wb_model_options {
    size_t size;       /* bytes of this struct */
    wb_device *device; /* stays the caller's; outlives the model */
    wb_comm *comm;     /* likewise */
    wb_dtype dtype;    /* of matrices: WB_F32 (default) or WB_BF16. Vectors (norms, biases) are always f32 */
    /* Of activations, their gradients and, in inference, keys and values: WB_F32 (default), or WB_BF16, which
     * is half the memory and rounds what each step of a layer writes (wb_kernels.h, Numbers). Router logits,
     * gate weights, logits, log-probabilities and gradients of weights are f32 either way; gradients of
     * logits, the router's too, are rounded where they enter products. */
    wb_dtype activations;
    /* Which expert each slot holds, layer by MoE layer; the same on every rank, read during the call and not
     * kept. A dead rank has no experts and its slots stay empty: it feeds sequences of its own like any
     * other, and updates the experts whose home it is. MISMATCH unless L, E and R are the model's. NULL: one
     * slot an expert, rank r having the experts from E r / R to E (r + 1) / R in every layer. */
    const wb_placement *placement;
    /* Which replica of an expert a token goes to: WB_DISPATCH_STATIC (default) by rank, or
     * WB_DISPATCH_DYNAMIC by token, whose key is its id and position. No result depends on it. The same on
     * every rank. */
    wb_dispatch_policy dispatch;
    /* The weights are read by wb_infer alone: false (default), or true, and the device may keep matrices,
     * those of experts and others, in the order in which its products read them. The CPU does, which makes
     * steps of few rows faster; no result depends on it. The model is not trained, saved or copied from,
     * which are UNSUPPORTED; weights are copied to it as to any other, and experts move. What wb_tensor.data
     * of a matrix points to is then in no order that a caller may rely on (wb_model_read). The same on every
     * rank. */
    bool inference_only;
    uint8_t reserved[3]; /* zero */
} wb_model_options;

/* The defaults; `size` is the caller's sizeof. */
WB_API void wb_model_options_init(wb_model_options *options_out, size_t size);

static inline wb_model_options wb_model_options_default(void) {
    wb_model_options options;
    wb_model_options_init(&options, sizeof options);
    return options;
}

/* What such a model takes on rank `rank` of n_ranks, 1..65536, without being opened: nothing is allocated on
 * a device, and `options` need no device and no communicator. Of the host on any device but the CPU.
 * wb_infer_measure and wb_train_measure add what these take. Not collective. */
WB_API wb_status wb_model_measure(const wb_config *config, const wb_model_options *options, int32_t n_ranks,
                                  int32_t rank, wb_memory *memory_out);
/* Bytes of a slot of a MoE layer in such a model, which are all weights of an expert; of the layer where they
 * are most. 0 without MoE layers. */
WB_API wb_status wb_model_measure_slot(const wb_config *config, const wb_model_options *options,
                                       size_t *bytes_out);

/* Bytes of the mailbox that each rank of such a model has on its device, beside the memory above, where these
 * devices are GPUs that all reach each other's memory; 0: on so many ranks there is none. */
WB_API wb_status wb_model_measure_mailbox(const wb_config *config, const wb_model_options *options,
                                          int32_t n_ranks, size_t *bytes_out);

/* Loads a checkpoint directory; every rank reads its own part. f32, bf16 and f16 files, FP8 (e4m3) with a
 * scale a block, a float or a power of two (e8m0), and 4 bits (e2m1) with a power of two for 32 of a row, as
 * gpt_oss and deepseek_v4 have their experts, all widened; expert tensors one by one or fused; names as the
 * family's releases have them or as transformers has them in memory. NOT_FOUND (a file or tensor is
 * missing), MISMATCH (a tensor is surplus or has another shape) and UNSUPPORTED (another dtype) name
 * tensor, shape and file. Collective: ranks check that they opened the same model with the same weights:
 * PEER names tensor and rank where they differ. What all ranks hold is compared whole, of an expert the 4
 * KiB in its middle: a change elsewhere in it is not seen. */
WB_API wb_status wb_model_open(const char *dir, const wb_model_options *options, wb_model **model_out);

/* A new model with random weights: N(0, std) matrices, norms 1, biases 0; the same bits for a seed on any
 * number of ranks. Collective. */
WB_API wb_status wb_model_create(const wb_config *config, uint64_t seed, float std,
                                 const wb_model_options *options, wb_model **model_out);

/* A model like `from`, in memory and with storages of its own: its configuration and its weights, rounded to
 * the dtype of `options`, whose device is of the same backend and whose ranks are the same. options.placement
 * NULL: that of `from`. No file is read. Collective. */
WB_API wb_status wb_model_clone(const wb_model *from, const wb_model_options *options, wb_model **model_out);
WB_API void wb_model_close(wb_model *model); /* NULL is a no-op; not collective */

/* Writes the checkpoint in Hugging Face layout (per-expert tensors, of gpt_oss those of a layer in one,
 * which rank 0 then writes alone; dtype of the model, weights that were quantized too) into `dir`, which
 * is created: model.safetensors on one rank, a shard a rank and an index on several. An expert is written
 * once, by the rank that has its replica 0; MISMATCH names replicas that differ in the 4 KiB in their
 * middle. Other small files of the directory that the model came from (tokenizer, generation_config; up to
 * 64 MiB each, 256 MiB in all) are written along, from memory: that directory may be gone. In that
 * directory itself those that are there stay. Collective. */
WB_API wb_status wb_model_save(wb_model *model, const char *dir);
/* The same, but tensors of f32 that came as bf16, or quantized beside bf16, are written as bf16, to the
 * nearest: a model that is trained in f32 goes on in the dtype that its users have. What is lost, the caller
 * keeps (wb_tensor.file_dtype). */
WB_API wb_status wb_model_save_as_opened(wb_model *model, const char *dir);

WB_API const wb_config *wb_model_config(const wb_model *model);
/* Fingerprint, MoE layers, E, K; owner: model. */
WB_API const wb_route_model *wb_model_routes(const wb_model *model);
/* The tables of its hash-routed layers, with which wb_record_check_hash compares records; NULL where it has
 * no such layers. Owner: model. */
WB_API const wb_hash_routes *wb_model_hash_routes(const wb_model *model);
/* Its layers for multi-token prediction, which stand behind the decoder's in a checkpoint, as a model of
 * their own, whose weights are copied, saved and compared along with those of `model`. Its list of tensors,
 * its routes, its placement and its gradients do not know them. NULL where there are none. Owner: `model`. */
WB_API wb_model *wb_model_mtp(const wb_model *model);
/* Those of its options, still the caller's. */
WB_API wb_device *wb_model_device(const wb_model *model);
WB_API wb_comm *wb_model_comm(const wb_model *model);
/* The data plane over its communicator, for the memory of its device; owner: the model. */
WB_API wb_exchange *wb_model_exchange(const wb_model *model);
/* What was ignored in the files that the model was opened from, and on rank 0 which small files a save will
 * not have, for a person; NULL: nothing. Owner: model. */
WB_API const char *wb_model_note(const wb_model *model);

/* The registry: every tensor of the checkpoint by name, in an order that is the same on every rank. Ask at
 * use: pointers are those of now and may change when experts move.
 *
 * Experts lie in slots: a MoE layer's storages on rank r are [slots of r][...], in slot order, and what an
 * empty slot holds is nobody's. A tensor of an expert is in each slot that the placement gives the expert. */
typedef struct wb_tensor {
    const char *name; /* owner: model */
    int32_t layer;    /* -1: not of a layer */
    int32_t expert;   /* logical id; -1: not per expert */
    int32_t n_dims;   /* 1: a vector, 2: a matrix, 3: the taps of a convolution, [channels, 1, width] */
    int64_t shape[3];
    int64_t n; /* elements */
    wb_dtype dtype;
    /* In the files that the model was opened from, bf16 of what is quantized beside matrices of bf16;
     * elsewhere `dtype`. */
    wb_dtype file_dtype;
    void *data;          /* device; NULL: in a slot of another rank */
    int32_t param;       /* storage that it is part of, and ... */
    int64_t offset;      /* ... where data is not NULL, its first element there (wb_train_grad) */
    int32_t rank;        /* that has it; -1: all have */
    wb_physical_id slot; /* that it is in; WB_NO_SLOT: not of an expert */
    /* No backward writes its gradient, which stays 0, as of an indexer: an optimizer is to leave it alone, or
     * weight decay would take it to 0. */
    bool no_gradient;
} wb_tensor;
WB_API int32_t wb_model_n_tensors(const wb_model *model);
/* 0 <= i < n. Of an expert: its first replica on this rank; where none is, its replica 0. */
WB_API wb_tensor wb_model_tensor(const wb_model *model, int32_t i);
/* host[n] := elements [first, first + n) of a tensor that this rank has, as rows lie, whatever order the
 * device keeps them in (wb_model_options.inference_only). NOT_FOUND for one of another rank,
 * INVALID_ARGUMENT for elements that it does not have. */
WB_API wb_status wb_model_read(const wb_model *model, const wb_tensor *tensor, int64_t first, int64_t n,
                               void *host);
/* How often tensor i is there, over all ranks, and tensor i as its replica k: 0 <= k < n. 1 and the tensor
 * itself where it is not of an expert. */
WB_API int32_t wb_model_n_replicas(const wb_model *model, int32_t i);
WB_API wb_tensor wb_model_replica(const wb_model *model, int32_t i, int32_t k);
/* The home rank of expert 0 <= expert < E among R ranks, which has the optimizer's state of it in every layer
 * and under every placement: the rank r whose block, from E r / R to E (r + 1) / R, has the expert. */
WB_API int32_t wb_home_rank(int32_t n_experts, int32_t n_ranks, int32_t expert);
/* Tensor i as its lead replica, whose gradient becomes the sum over all replicas: of an expert the first one
 * on its home rank; where none is, its replica 0. Of another tensor the tensor itself. */
WB_API wb_tensor wb_model_lead(const wb_model *model, int32_t i);
/* Copies wb_model_tensor(model, i) to the other replicas of it on this rank: for who has written the first.
 * Not collective. */
WB_API wb_status wb_model_fill_replicas(wb_model *model, int32_t i);

/* Where its experts are; owner: the model, changed in place by wb_model_set_placement. */
WB_API const wb_placement *wb_model_placement(const wb_model *model);
/* Takes over the layers of `placement` that are at a later epoch than the model's: all or, after an error,
 * none. Nothing moves: what the slots are to hold, weights, gradients and optimizer's moments, the caller
 * brings before the next pass (wb_model_replica). MISMATCH unless L, E, R, the slots of each rank and the
 * dead ranks are the model's; INVALID_ARGUMENT for a layer at an earlier epoch, or at the same one with
 * another map; PEER where ranks disagree. A device that fails ends the communicator. Not between a forward
 * and its backward. Collective. */
WB_API wb_status wb_model_set_placement(wb_model *model, const wb_placement *placement);

/* Its experts as a manager reaches them (wb_rebalance_open), which flips maps by wb_model_set_placement. The
 * shadow slots are the model's, and taken when the manager opens. The model outlives what uses the store. */
WB_API wb_expert_store wb_model_expert_store(wb_model *model);
/* Memory that moves with the experts of a MoE layer, as weights do, when a manager moves them: `slots`,
 * device, [slots of this rank][slot_bytes], the caller's; the same on all ranks, in the same order. While any
 * is attached, wb_train_update_experts and wb_train_place_experts take no placement but NULL
 * (INVALID_ARGUMENT); after wb_model_set_placement it is the caller's to bring, as weights are. Not
 * collective. */
WB_API wb_status wb_model_attach_slots(wb_model *model, int32_t moe_layer, void *slots, size_t slot_bytes);
WB_API void wb_model_detach_slots(wb_model *model, const void *slots);

/* to's weights := from's, all replicas, rounded to to's dtype, whatever the placements. MISMATCH, with
 * nothing changed, unless configuration and ranks are the same; UNSUPPORTED, likewise, where `from` is for
 * inference only. Collective where experts travel (wb_model_copy_travels), over the communicator of `to`;
 * else of this rank alone. */
WB_API wb_status wb_model_copy_weights(wb_model *to, const wb_model *from);
/* What this rank can refuse a copy for, and the memory that it takes here, which stays with `to`: for a
 * caller that has something to give up before the copy. After it the copy fails by the device or another rank
 * alone. Errors as of the copy. Not collective. */
WB_API wb_status wb_model_prepare_copy(wb_model *to, const wb_model *from);
/* Whether `to`, on any rank, has an expert that this rank does not have in `from`, a model of the same
 * configuration and ranks. */
WB_API bool wb_model_copy_travels(const wb_model *to, const wb_model *from);
/* The memory that a copy whose experts travel takes, which stays with `to`: taken here, or else by the first
 * such copy. It is the same whatever the maps of the two placements. On the device experts are rounded before
 * they travel, and nothing is taken where the dtypes are equal or there is one rank. Errors as of the copy.
 * Not collective. */
WB_API wb_status wb_model_reserve_copy(wb_model *to, const wb_model *from);
/* Device bytes that it takes on rank `rank` of n_ranks, between models that were not opened, as
 * wb_model_measure. Not collective. */
WB_API wb_status wb_model_measure_copy(const wb_config *config, const wb_model_options *to,
                                       const wb_model_options *from, int32_t n_ranks, int32_t rank,
                                       size_t *bytes_out);

/* Moves the selection bias of every router by `rate`: up for an expert that has fewer choices than the
 * mean of its MoE layer's experts, down for one that has more, so that the load becomes even without an
 * auxiliary loss. loads: host [L][E], (token, choice) pairs of all ranks since the last call, the same on
 * every rank. By default, and so in any trainer that replays, they are those of the routes that were
 * followed, which under replay are the forced ones (wb_replay_counts); who wants the bias to follow the
 * router's own choices gives the counts of wb_routing.native. A bias has no gradient, and stands in a
 * weight update as any tensor. A layer without counts stays. INVALID_ARGUMENT for a family without such
 * biases. Not collective. */
WB_API wb_status wb_model_update_selection_bias(wb_model *model, float rate, const int64_t *loads);

/* ---- routing: the one place where experts are chosen ----------------------------------------- */

/* Goes into every forward. A row whose direction[t] is not native sends token t to ids[t] in all MoE layers
 * (weights are recomputed from the current logits, and gradients flow through them); a padding row's
 * weights are zero, it has no gradient from its experts and no target, and its ids only say where its empty
 * work goes; a native row chooses, and its choice is written into ids[t]. So direction NULL records, all rows
 * forced replays, and a mixture leaves in `ids` what each row is to use, which is what the backward and its
 * recompute follow. */
typedef struct wb_routing {
    void *ids;                /* device [T][L][K] of wb_route_dtype(E); required */
    const uint8_t *direction; /* device [T] wb_row_direction, or NULL: all native */
    void *native;             /* device [T][L][K], out: what each row would choose by itself; or NULL */
    /* device [T][L][K], out: the experts that each row was sent to, in the order of its choices; or NULL.
     * Read back from the rows that were laid out for the experts: evidence beside `ids`, not a copy; of
     * padding, which has no rows, the ids. Its price: in every MoE layer the host waits for the device and
     * downloads the rows, 8 T K + 4 (S + 1) bytes, so that the layers of a GPU do not run ahead. NULL where
     * nobody looks. */
    void *used;
    /* host [L]: the rows of all layers, counted before the pass (wb_replay_layer_plan), or NULL: the pass
     * counts on the way, and tells the other ranks. For rows that are all forced or padding; on every rank or
     * on none. MISMATCH when it was made for another placement, INVALID_ARGUMENT when these are not the
     * counts of these rows under the model's dispatch. That is asked of the device before the first layer,
     * which the host waits for; a model of one rank, which needs no count, does not ask. */
    const wb_planned_layer *planned;
    /* What indexers choose, of a model whose routes have layers with indexers: for each column
     * (wb_indexer_columns) the positions that each token looks at, ascending, then -1: device
     * [columns][T][indexer_k]. NULL: every row chooses for itself, and nobody is told. A row whose direction
     * is not native looks at what stands there; a native one chooses, and its choice is written there, as
     * with `ids`: the backward and its recompute follow what is there. No gradient passes through a choice.
     * INVALID_ARGUMENT, found by the device, for positions out of order or beyond what a token may see;
     * before that, for a model without indexers, and for the next two where this one is NULL. */
    int32_t *listed;
    const uint8_t *listed_direction; /* device [columns][T] wb_row_direction, or NULL: all native */
    /* device [columns][T][indexer_k], out: what each row would choose by itself; or NULL */
    int32_t *listed_native;
} wb_routing;

/* ---- inference ----------------------------------------------------------------------------------- */

typedef struct wb_infer wb_infer;

/* From wb_infer_options_init; n_blocks is required. */
typedef struct wb_infer_options {
    size_t size;        /* bytes of this struct */
    int32_t n_blocks;   /* of the pool, at least 1 */
    int32_t block_size; /* tokens a block, at least 1; default 16 */
    /* What a batch may have at most. All memory is taken at open and no step allocates or moves any; a batch
     * beyond is refused with CAPACITY. */
    int64_t max_tokens;    /* T; default 4096 */
    int32_t max_sequences; /* default 256 */
    int32_t max_blocks;    /* of a sequence; 0 (default): those of the model's positions, at most n_blocks */
    int64_t max_logits;    /* rows; default 256 */
    /* With several ranks: rows, each a (token, choice), that the slots of this rank may get in one MoE layer
     * from all ranks; a batch beyond is CAPACITY here and PEER on the others, and the communicator is dead.
     * 0 (default): as many as could come from ranks of the same max_tokens, R * max_tokens * min(K, slots of
     * this rank). */
    int64_t max_expert_rows;
    /* States of fixed size that are kept between steps, one for each sequence that goes on; takes memory only
     * where layers keep some (wb_infer_sequence_bytes). 0 (default): max_sequences. */
    int32_t n_states;
    /* Default false. True: with states and workspace for the model's MTP layers, if it has some
     * (wb_infer_draft), in blocks of the same numbers. */
    bool drafts;
    uint8_t reserved[3]; /* zero */
} wb_infer_options;

/* The defaults; `size` is the caller's sizeof. */
WB_API void wb_infer_options_init(wb_infer_options *options_out, size_t size);

static inline wb_infer_options wb_infer_options_default(void) {
    wb_infer_options options;
    wb_infer_options_init(&options, sizeof options);
    return options;
}

/* A paged KV pool (bf16 where the matrices or the activations of the model are, else f32), states of a fixed
 * size where layers keep such, and workspace over `model`, which it borrows. UNSUPPORTED names the op that
 * the model's device lacks. */
WB_API wb_status wb_infer_open(wb_model *model, const wb_infer_options *options, wb_infer **infer_out);
WB_API void wb_infer_close(wb_infer *infer);

/* What such a workspace takes beside its model, as wb_model_measure. */
WB_API wb_status wb_infer_measure(const wb_config *config, const wb_model_options *model,
                                  const wb_infer_options *options, int32_t n_ranks, int32_t rank,
                                  wb_memory *memory_out);

/* Bytes of state of fixed size that the layers keep of one sequence; 0: all their state is by position. */
WB_API int64_t wb_infer_sequence_bytes(const wb_infer *infer);

/* State `to`, of a fixed size, becomes what state `from` is: the same tokens have been fed to it.
 * INVALID_ARGUMENT for a number that no state has. Not collective. */
WB_API wb_status wb_infer_copy_state(wb_infer *infer, int32_t from, int32_t to);

/* A step's tokens: prefill chunks and decodes mixed. Tokens of one sequence are adjacent, positions
 * ascending; their keys at smaller positions are in the pool already. Host arrays.
 *
 * Where layers keep state of fixed size, each sequence has a state of its own, by its number, from its first
 * token until its caller gives the number to another sequence. At position 0 it is made zero; from then on
 * positions go on without a gap, where the last forward left off. After a forward that failed, on any rank,
 * the sequences that it had begin at position 0 again. INVALID_ARGUMENT names a sequence that does not.
 *
 * The last rows may be of sequence -1: padding, by which a batch is rounded up to a size of its caller's
 * choice. They have no keys, no experts' rows and no logits, their token and position are not looked at,
 * their routing's ids become 0, and its direction, if there is one, says padding. No other row's result
 * depends on them. */
typedef struct wb_infer_batch {
    int64_t T;
    const int32_t *tokens; /* [T] */
    const int32_t *pos;    /* [T] absolute */
    const int32_t *seq;    /* [T] row of `blocks`; -1: padding */
    int32_t n_seqs, max_blocks;
    const int32_t *blocks; /* [n_seqs, max_blocks] block numbers of each sequence */
    const int32_t *states; /* [n_seqs] number of each sequence's state, 0 .. n_states - 1; NULL where
                            * wb_infer_sequence_bytes is 0 */
    int64_t n_logits;
    const int32_t *logit_rows; /* [n_logits] indices t whose logits are wanted */
} wb_infer_batch;

/* The tokens that a step of T, at most max_tokens, is best padded to: where a step is made as a graph of the
 * device, steps of one size share it, after the first: on CUDA, on one rank or where the devices of all ranks
 * reach each other's memory, with no directions, natives, used experts, plan or lists (wb_routing) asked
 * for. Elsewhere T. */
WB_API int64_t wb_infer_padded(const wb_infer *infer, int64_t T);

/* Feeds the batch; *logits_out: device [n_logits, V], valid until the next call. A failure after the last
 * exchange, in the head, is this rank's alone: the caller agrees on it with the others. Collective. */
WB_API wb_status wb_infer_forward(wb_infer *infer, const wb_infer_batch *batch, const wb_routing *routing,
                                  const float **logits_out);

/* Whether wb_infer_draft can be called: the options ask for it, and the model has MTP layers. */
WB_API bool wb_infer_drafts(const wb_infer *infer);

/* Feeds the first MTP layer behind the latest wb_infer_forward: a row for a token of that batch, at its
 * position and with its sequence's blocks, whose token is the one that follows it; *logits_out: device
 * [n_logits, V], of the token after that one, valid until the next call. hidden_rows: host [T], of each row
 * that token's index in that batch. A token's row sees the rows of earlier positions that have been fed, all
 * of which it should have; where one is missing, the guess is the worse. No padding. Collective. */
WB_API wb_status wb_infer_draft(wb_infer *infer, const wb_infer_batch *batch, const int32_t *hidden_rows,
                                const float **logits_out);

/* The same layer behind its own latest call, this one or wb_infer_draft: a row for a token that was guessed
 * there, at the position behind that row's; hidden_rows: that row's index in the batch of that call. What it
 * writes at its position stays until that position is fed again. Collective. */
WB_API wb_status wb_infer_draft_further(wb_infer *infer, const wb_infer_batch *batch,
                                        const int32_t *hidden_rows, const float **logits_out);

/* ---- training ------------------------------------------------------------------------------------ */

typedef struct wb_train wb_train;

/* From wb_train_options_init. */
typedef struct wb_train_options {
    size_t size; /* bytes of this struct */
    /* Default false. True: no gradients, and nothing is kept for a backward, which is refused. */
    bool forward_only;
    uint8_t reserved[7]; /* zero */
    /* What a batch may have at most. All memory is taken at open and no pass allocates or moves any; a batch
     * beyond is refused with CAPACITY. */
    int64_t max_tokens;      /* T; default 4096 */
    int64_t max_kept_ids;    /* of all rows with a target together; 0 (default): 64 * max_tokens */
    int64_t max_expert_rows; /* as in wb_infer_options; default 0 */
    /* Device bytes to keep what a forward leaves for its backward, beyond what one layer needs. The backward
     * then computes fewer parts of layers again, mixers and feed-forward parts each by themselves: those are
     * kept first whose forward is the most multiply-adds for each byte that it leaves, of one kind from the
     * last layer down, as many as fit, and then the logits of max_tokens tokens. A forward is counted as one
     * sequence of max_tokens tokens. The bits are the same, but on CUDA in bf16 for the gradient of the head,
     * to which a backward that has no logits adds a sum for each of several runs of tokens. A feed-forward
     * part that one rank computes again all ranks do. 0 (default): all but the last layer are computed
     * again, and logits are of min(max_tokens, 2048) rows at a time, fewer where those are above 1.34 GB: at
     * V 151,936 1.24 GB in f32, and with bf16 activations 0.62 GB more. */
    uint64_t keep_bytes;
} wb_train_options;

/* The defaults; `size` is the caller's sizeof. */
WB_API void wb_train_options_init(wb_train_options *options_out, size_t size);

static inline wb_train_options wb_train_options_default(void) {
    wb_train_options options;
    wb_train_options_init(&options, sizeof options);
    return options;
}

/* Workspace and, unless forward_only, gradients (f32, zero) over a `model` of matrices and activations of
 * either dtype, which it borrows. options NULL: the defaults. UNSUPPORTED names the op that the model's
 * device lacks. */
WB_API wb_status wb_train_open(wb_model *model, const wb_train_options *options, wb_train **train_out);
WB_API void wb_train_close(wb_train *train);

/* What such a trainer takes beside its model, as wb_model_measure. */
WB_API wb_status wb_train_measure(const wb_config *config, const wb_model_options *model,
                                  const wb_train_options *options, int32_t n_ranks, int32_t rank,
                                  wb_memory *memory_out);

/* Packed sequences, each from its position 0. Host arrays. */
typedef struct wb_train_batch {
    int64_t T;
    const int32_t *tokens;  /* [T] */
    const int32_t *targets; /* [T] token whose log-probability is wanted after t; -1: none */
    int32_t n_seqs;
    const int32_t *seq_start; /* [n_seqs + 1], seq_start[n_seqs] = T */
    /* What the targets were sampled from: logits / temperature over the tokens that top-k and top-p kept, as
     * records have them (wb_sampling, mask_ids). Log-probabilities and gradients are of this distribution.
     *
     * [T], at least WB_MIN_TEMPERATURE where there is a target; NULL: 1 */
    const float *temperature;
    /* [T + 1] from 0 on: row t keeps kept_ids[kept_start[t] .. kept_start[t + 1]), strictly ascending, its
     * target among them; none: the whole vocabulary, and in rows without a target. Both NULL: no row is
     * limited. */
    const uint32_t *kept_ids;
    const int64_t *kept_start;
} wb_train_batch;

/* What a forward's routers saw, for tests and tools: called once a MoE layer l of the list, 0 <= l < L,
 * with host memory. */
typedef struct wb_router_probe {
    void (*call)(void *ctx, int32_t moe_layer, int64_t T, const float *logits, const float *weights);
    void *ctx;
} wb_router_probe;

/* logprobs_out: host [T], 0 where targets[t] < 0 and in padding rows. INVALID_ARGUMENT names a row whose
 * target is not among its kept tokens. `probe` may be NULL. `batch`'s arrays may go on return; `routing`'s
 * must stay until the backward of this forward or the next forward. Collective. */
WB_API wb_status wb_train_forward(wb_train *train, const wb_train_batch *batch, const wb_routing *routing,
                                  const wb_router_probe *probe, float *logprobs_out);

/* The logits of the latest forward, host [T, V]. Not collective. */
WB_API wb_status wb_train_logits(wb_train *train, float *logits_out);

/* Adds the gradient of sum_t dlogprobs[t] * logprobs[t] of the latest forward to the gradients of this
 * rank. dlogprobs: host [T]. Layers are recomputed with the ids that the forward used. Once for each
 * forward, with the weights of that forward. Collective. */
WB_API wb_status wb_train_backward(wb_train *train, const float *dlogprobs);

/* wb_train_backward, and then wb_train_reduce_grads, for the last backward before the optimizer: the same
 * bits, but gradients travel while those of earlier layers are still computed. Collective. */
WB_API wb_status wb_train_backward_last(wb_train *train, const float *dlogprobs);

/* Sums the gradients of replicated weights over ranks, in rank order, and those of an expert's replicas, in
 * replica order, into its lead's (wb_model_lead); the other replicas keep what they had. Once before the
 * optimizer, unless the last backward was wb_train_backward_last. Collective. */
WB_API wb_status wb_train_reduce_grads(wb_train *train);

/* Before the first backward of an update. Gradients are zero; those of experts keep what they have until the
 * next backward, which overwrites them, so that they are to be read, or written, behind it alone. Where none
 * follows, wb_train_reduce_grads and wb_train_update_experts take them for zeros. */
WB_API wb_status wb_train_zero_grads(wb_train *train);

/* How an optimizer updates elements [first, first + n) of tensor i of the registry, of an expert whose home
 * this rank is (wb_home_rank): weight [n], in and out, of the model's dtype, by gradient, device f32 [n]. A
 * tensor may come in several calls, each element in one; the addresses are good for the call alone. Who
 * trains weights of bf16 has their masters in f32, by tensor i, on the home rank. */
typedef wb_status wb_update_fn(void *ctx, int32_t i, int64_t first, int64_t n, const float *gradient,
                               wb_rows weight);

/* Updates all experts, after the gradients were reduced: `update` is called on the home rank of each, with
 * the weight and the gradient of its lead replica, and the outcome goes to every slot that `next` gives the
 * expert. `next` becomes the placement, as by wb_model_set_placement, with its errors before anything is
 * changed; NULL: the present one stays. A failure of `update` ends the communicator. Gradients then belong to
 * nobody (wb_train_zero_grads). Collective. */
WB_API wb_status wb_train_update_experts(wb_train *train, const wb_placement *next, wb_update_fn *update,
                                         void *ctx);

/* `next` becomes the placement without an update: experts go to the slots that did not have them. NULL:
 * nothing happens. Otherwise as wb_train_update_experts. Collective. */
WB_API wb_status wb_train_place_experts(wb_train *train, const wb_placement *next);

/* Gradient of a tensor of the registry, or of one replica of it, that lives here: device f32 [tensor->n];
 * owner: train. NULL when it does not live here, or the trainer is for forwards only. It goes with the slot:
 * a changed placement moves no gradients. */
WB_API float *wb_train_grad(const wb_train *train, const wb_tensor *tensor);

#ifdef __cplusplus
}
#endif
#endif
