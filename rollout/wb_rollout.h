/* wb_rollout.h - the rollout engine: continuous batching over a paged KV cache, every token's routing
 * captured.
 *
 * Owns: requests, scheduling, KV blocks, sampling, per-request capture, weight versions. Refuses:
 * training, replay, files.
 *
 * Rows belong to (request id, absolute position) from the moment they are computed; preemption and
 * re-prefill never change one that exists. A re-prefill is forced down the rows that exist, so that keys
 * and values are those of the experts that the record names, under changed weights too. A request's tokens
 * depend on its prompt, its sampling parameters and seed and on the weights, never on its neighbours, on
 * arrival order, on how its prompt was chunked, on what it took over from another request's prefill, on
 * guesses at its tokens, or on the number of ranks or threads. Where weights change in mid-request, on
 * when they did.
 *
 * An engine that is NULL is refused as INVALID_ARGUMENT; it has nothing to poll and no stats, and pausing
 * it does nothing. */
#ifndef WB_ROLLOUT_H
#define WB_ROLLOUT_H

#include "wb_model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wb_engine wb_engine;

typedef struct wb_engine_options {
    size_t size;        /* bytes of this struct, set by the initialiser */
    int32_t n_blocks;   /* KV blocks of the pool; 1024 */
    int32_t block_size; /* tokens a block; 16 */
    /* tokens fed in one step, the same on all ranks; longer prompts are prefilled in chunks; 512 */
    int32_t max_batch_tokens;
    /* requests that hold KV blocks, and a state where layers keep some of fixed size, at a time; 64 */
    int32_t max_running;
    /* A manager of the model's experts (wb_model_expert_store), which outlives the engine, or NULL, the
     * default. The engine counts the rows of each step and begins each step with the manager's boundary:
     * experts move while it generates, and no result depends on it. On all ranks or on none. */
    wb_rebalance *rebalance;
    /* Default false. True: full blocks of the pool stay known by their tokens, and a request that begins with
     * them takes over their keys and their routes instead of being fed; a request whose first tokens another
     * one is just being fed waits for it. What a request returns does not depend on it. All blocks are of one
     * version: new weights forget them. Blocks that no request holds stay until the pool needs them. Host
     * memory: a row of L * K ids and 4 bytes for each token of the pool. Where layers keep state of a fixed
     * size, which no block has, a request can go on behind blocks alone of which there is a snapshot: at the
     * end of a prompt's full blocks (n_snapshots). */
    bool prefix_cache;
    /* Default false: running requests keep the keys that they have when weights are set, and what they feed
     * from then on attends to keys of both. True: they are fed again from their first token, by the new
     * weights and along the rows that they have. What was recorded stays as it is either way. */
    bool recompute_keys;
    /* Default false. True: requests that wait on one rank are taken by ranks on which none waits, the first
     * of the line first, until these have as many. A request is still polled where it was submitted, and
     * what it returns does not depend on it. A request that another rank runs takes host memory there too,
     * beyond that one's limits, and steps in which requests travel allocate. On all ranks or on none. */
    bool lend_requests;
    /* Default false. True: requests may ask for what the model's indexers chose (return_indexer), for which
     * there is memory then: 4 * indexer_k + 1 bytes for each indexer and token of a step, on the device and
     * on the host. Without effect on a model that has no indexers. The same on all ranks. */
    bool indexer;
    /* Of max_batch_tokens, how many prefills may take in a step in which some rank decodes, so that no rank's
     * prefill keeps the decodes of all ranks waiting for long. 0, the default: all that decodes leave. The
     * same on all ranks. */
    int32_t max_prefill_tokens;
    /* How many tokens a decode may feed behind its own, in what a step has room for: those that the model
     * chooses too are had in one step. Where the model has MTP layers, the first one guesses: it is fed at
     * the end of a step what the step fed, and then its own guesses, a pass for each draft; max_drafts is
     * the same on all ranks then. Else guesses are of the request's text. What is returned does not depend
     * on it: tokens are drawn as without drafts, and rows of drafts that were wrong are in no record. 0, the
     * default: none. Where layers keep state of a fixed size, which cannot take a token back, a state is
     * copied for it, and after a wrong guess the right ones before it are fed again by the next step. If
     * weights are set in between, without recompute_keys, the tokens that were drawn behind the state are
     * taken back and drawn again by the new weights. */
    int32_t max_drafts;
    /* States of a fixed size, where layers keep such, beyond one for each request that runs: for snapshots of
     * prefix_cache and for max_drafts. 0, the default: as many again; without these two options none. */
    int32_t n_snapshots;
    /* What wb_engine_submit refuses beyond, of unfinished requests: how many, their tokens at their longest,
     * and the host bytes that they could take: room for what is returned on request (return_sampling_mask,
     * return_indexer) counts at its most, address space that is never written included. 0, the default: no
     * limit. */
    uint64_t max_unfinished, max_unfinished_tokens, max_unfinished_bytes;
} wb_engine_options;

/* Fills the caller's struct of `size` bytes with the defaults, named above. */
WB_API void wb_engine_options_init(wb_engine_options *options_out, size_t size);
static inline wb_engine_options wb_engine_options_default(void) {
    wb_engine_options options;
    wb_engine_options_init(&options, sizeof options);
    return options;
}

/* An engine over `model`, which it borrows: the model outlives it. options NULL: the defaults. Owner of
 * *engine_out: the caller, wb_engine_close. INVALID_ARGUMENT names the option that is below 1; UNSUPPORTED
 * names the op that the model's device lacks. Not collective. */
WB_API wb_status wb_engine_open(wb_model *model, const wb_engine_options *options, wb_engine **engine_out);
WB_API void wb_engine_close(wb_engine *engine); /* drops unfinished requests; NULL is a no-op */

/* What such an engine takes beside its model, as wb_infer_measure. max_kept: tokens that a sampled one keeps
 * at most (wb_sample_max_kept), 0 where no request wants its sampling mask. Requests take host memory beside
 * it. CAPACITY where the kept tokens of a step are more than memory can have. */
WB_API wb_status wb_engine_measure(const wb_config *config, const wb_model_options *model,
                                   const wb_engine_options *options, int64_t max_kept, int32_t n_ranks,
                                   int32_t rank, wb_memory *memory_out);

/* All pointers are host memory, borrowed for the call to submit. */
typedef struct wb_request {
    size_t size;     /* bytes of this struct, set by the initialiser */
    const char *rid; /* UTF-8, unique among the requests that this engine holds */
    uint64_t group;  /* of the record: GRPO prompt group */
    uint32_t sample; /* of the record: index in the group */
    uint32_t n_tokens;
    const uint32_t *tokens; /* [n_tokens] prompt, at least one token with those of `continues` */
    float temperature;      /* 0: greedy; else at least WB_MIN_TEMPERATURE; default 1 */
    int32_t top_k;          /* 0, the default: no limit */
    float top_p;            /* 1, the default: no limit */
    uint64_t seed;          /* default 0 */
    uint32_t n_stop;
    const uint32_t *stop_tokens; /* [n_stop]; sampling one ends the request; it is the last token */
    uint32_t max_tokens;         /* new tokens at most, at least one */
    /* Default true. The engine keeps all rows either way, for the case that it feeds the request again:
     * [n_tokens + max_tokens - 1] rows of L * K ids. */
    bool return_routes;
    uint32_t routes_start; /* rows before this position are not returned (the caller has them) */
    /* Default false. True: the record has the tokens that top-k and top-p kept at each sampled one, for a
     * trainer that is to take the same distribution. Without a limit there is nothing to record; a top_k that
     * the vocabulary does not reach is one. Room for all that can be kept is made at submit: 4 bytes * kept *
     * max_tokens, kept being top_k or, where top_p alone is the limit, the vocabulary; at most 4 GiB, since a
     * record holds fewer than 2^30 kept tokens. Room that is not used is address space only, but where the
     * system counts it all the same, a top_k beside top_p makes it small. It makes a step's copy small too,
     * which brings the room of each token that is sampled, used or not: 4 bytes * kept. */
    bool return_sampling_mask;
    /* Default false. True: the record says what the model's indexers chose for each token, from routes_start
     * on, for a trainer that is to look at the same; the engine's option `indexer` is to be set. Tokens that
     * are fed again look at what they looked at before. Its price: a step that has such a request is no CUDA
     * graph, and its copy is larger by what all its tokens chose. Room is made at submit: 12 bytes for each
     * indexer and token, and 4 * indexer_k bytes more behind the first tokens, whose choice is all that there
     * is; what is not used of it is address space only. Known blocks of a prefix cache have no choices: the
     * request takes over none that ends behind these first tokens, rate * (indexer_k + 1) - 1 of them with an
     * entry for each `rate` tokens, and of a longer prompt only what another request that asked was fed. */
    bool return_indexer;
    uint8_t reserved[2]; /* zero */
    /* Its place in the line is that of a request of priority 0 that was submitted so many steps earlier, or
     * later where it is negative; default 0. So nothing starves: a request is overtaken by what is submitted
     * within a bounded number of steps after it, and by nothing once it runs. */
    int32_t priority;
    /* New tokens that the caller expects, as of earlier answers to the prompt; 0, the default: not known.
     * Of requests with one place in the line, those that are expected to be longest come first, so that no
     * long one is left to run alone at the end. */
    uint32_t expected_tokens;
    /* An earlier record of this model whose text goes on, or NULL, the default: the prompt is its tokens
     * and then `tokens`, of which there may be none. What it was fed, up to the end of its last span, it
     * has rows for, in one run or in several: it follows them, under whatever weights, and its spans stay.
     * With routes_start at its number of tokens less one, what is returned begins with the row of its last
     * token; who goes on from that once more puts the runs of both records into one. It is taken at its word:
     * with a prefix cache, others may come to share its rows. */
    const wb_record *continues;
} wb_request;

/* Fills the caller's struct of `size` bytes with the defaults; rid, tokens and max_tokens are to be set. */
WB_API void wb_request_init(wb_request *request_out, size_t size);
static inline wb_request wb_request_default(void) {
    wb_request request;
    wb_request_init(&request, sizeof request);
    return request;
}

/* Copies the request into the queue. CAPACITY, with the numbers, when prompt + max_tokens can never fit
 * the KV pool or the model's positions, or a record its sampling mask under top_k alone, or when the
 * unfinished requests would be more than the options allow; INVALID_ARGUMENT for a token outside the
 * vocabulary, an earlier record that lacks a row or a span (at which position), a rid that is in use, odd
 * sampling values, a request that did not come from the initialiser. Not collective. */
WB_API wb_status wb_engine_submit(wb_engine *engine, const wb_request *request);

/* Runs one step: prefill chunks and decodes up to max_batch_tokens. *busy_out: some rank still has work;
 * all ranks step until it is false. A step allocates nothing, but for the driver's memory of a graph, and
 * where requests travel (lend_requests).
 *
 * A step is made on all ranks or on none. A rank that fails returns its own failure (NaN logits: request
 * and position), the others WB_PEER naming it. PEER on all ranks, naming the first that differs from rank
 * 0 and both versions, when ranks have weights of different versions, or different weights by the name of
 * one version (compared by a digest of samples of what all ranks hold alike). All records are then as
 * before the step, but for the rows that a request took over from the prefix cache; it may be tried again:
 * when the request that the message names has been aborted, or the weights set on the rank that lags. A
 * request that another rank lent is named as "of rank N": it is to be aborted there.
 * Where layers keep state of a fixed size, all running requests are preempted. Only a failure inside a
 * forward over several ranks can leave them out of step, and the caller gives up (wb_comm_abort).
 * Collective. */
WB_API wb_status wb_engine_step(wb_engine *engine, bool *busy_out);

/* A finished request. `record` (tokens, logprobs at temperature 1, sampling with sampling_logprobs, spans,
 * rows, finish reason) is complete: N - 1 rows from routes_start on; of an aborted request as many as its
 * spans say. Greedy requests (temperature 0) sample from a point mass: sampling_logprobs are 0 and each mask
 * is the token alone. Owner: the completion. */
typedef struct wb_completion {
    wb_record record;
} wb_completion;

/* The next finished request in order of completion, or NULL when there is none; freed by the caller. Its
 * memory stays after the engine is closed. Not collective. */
WB_API wb_completion *wb_engine_poll(wb_engine *engine);
WB_API void wb_completion_free(wb_completion *completion); /* NULL is a no-op */

/* Ends a request now; it completes with what it has and finish reason abort. One that another rank runs
 * does within three steps, unless it has ended there by then. One that has ended but was not polled yet
 * stays as it is. NOT_FOUND for an unknown rid. Not collective. */
WB_API wb_status wb_engine_abort(wb_engine *engine, const char *rid);

/* Between steps: replaces the model's weights by those of `from` (rounded to the engine's dtype) and names
 * them `version`. Running requests go on; their spans show where the version changed, and their old rows
 * stay. Each rank copies its own shard and names the same version: the next step compares. Where the
 * placement of `from` is another one, experts travel, and the call is collective (wb_model_copy_travels).
 * INVALID_ARGUMENT, and nothing is changed, for other weights by the present version's name while an
 * unfinished request has been fed under it; errors of wb_model_prepare_copy and OUT_OF_MEMORY for the spans
 * to come likewise; after a DEVICE failure the weights are neither and are to be set again. Else not
 * collective. */
WB_API wb_status wb_engine_set_weights(wb_engine *engine, const wb_model *from, uint64_t version);

/* Asks for a pause of all ranks, and ends this rank's part of it. The next step tells the others, and is
 * still made; from then on (wb_engine_stats.paused) no rank feeds anything until the step after the one
 * that finds no rank that asks. What waits or runs stays as it is: between two steps of a pause all ranks
 * stand at the same place, and may be given new weights. Steps of a pause are collective as others are.
 * Not collective. */
WB_API void wb_engine_pause(wb_engine *engine);
WB_API void wb_engine_resume(wb_engine *engine);

typedef struct wb_engine_stats {
    /* Since open, of this rank. Tokens that were taken back (max_drafts) count as often as they were fed. */
    uint64_t steps, prefill_tokens, decode_tokens, preemptions;
    /* Tokens that were taken over from the prefix cache instead of being fed, since open. The hit rate is
     * their share of taken_over_tokens + prefill_tokens, without preemptions and without wrong drafts where
     * layers have a state: what is fed again after these counts as prefill again. */
    uint64_t taken_over_tokens;
    /* Guessed tokens that were fed, and those that were right, which are decode_tokens too; since open. */
    uint64_t drafts, accepted_drafts;
    /* On the clock of the wall, in wb_engine_step since open, the wait for other ranks within: this rank has
     * decode_tokens / step_seconds tokens a second. */
    double step_seconds;
    uint64_t lent;              /* requests that other ranks took, since open */
    uint64_t finished, aborted; /* requests since open; an aborted one is not among the finished ones */
    /* Of the unfinished requests: their tokens at their longest, and the host bytes that they take. */
    uint64_t unfinished_tokens, unfinished_bytes;
    int32_t waiting, running; /* requests on this rank now */
    int32_t away, guests;     /* of this rank, lent now; of others, here now or on their way back */
    int32_t free_blocks;  /* KV blocks now that can be taken, those that are known but not held among them */
    int32_t known_blocks; /* by the prefix cache now, held or not */
    int32_t n_blocks;     /* of the pool */
    bool paused;          /* the next step feeds nothing, on any rank */
} wb_engine_stats;
WB_API wb_engine_stats wb_engine_get_stats(const wb_engine *engine);

#ifdef __cplusplus
}
#endif
#endif
