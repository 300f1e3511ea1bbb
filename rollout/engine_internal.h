/* engine_internal.h - how the engine keeps its requests; shared by the files of this folder only.
 *
 * All unfinished requests stand in one list in order of arrival. Those that hold KV blocks ("running") are
 * a prefix of it: the first waiting request is admitted, the last running one is preempted, so that
 * nothing is ever overtaken. */
#ifndef WB_ENGINE_INTERNAL_H
#define WB_ENGINE_INTERNAL_H

#include "wb_check.h"
#include "wb_device.h"
#include "wb_rollout.h"

/* ---- KV blocks (kv_blocks.c) ----------------------------------------------------------------- */

typedef struct wb_kv_blocks {
    int32_t *free; /* [n_blocks], the first n_free are free: a stack */
    int32_t n_free, n_blocks, block_size;
} wb_kv_blocks;

wb_status wb_kv_blocks_open(int32_t n_blocks, int32_t block_size, wb_kv_blocks *pool);
void wb_kv_blocks_close(wb_kv_blocks *pool);

/* Blocks that the keys of n_tokens tokens fill. */
int64_t wb_kv_blocks_for(const wb_kv_blocks *pool, uint64_t n_tokens);

/* n blocks into out[n], or false and none. */
bool wb_kv_blocks_take(wb_kv_blocks *pool, int32_t n, int32_t *out);
void wb_kv_blocks_give(wb_kv_blocks *pool, int32_t n, const int32_t *blocks);

/* ---- sampling (sampling.c) ------------------------------------------------------------------- */

/* The random number in [0, 1) for the token at `position` of a request with `seed`: a function of both and
 * of nothing else. */
float wb_sampling_uniform(uint64_t seed, uint32_t position);

/* NULL, or what is odd about the request's sampling values. */
const char *wb_sampling_fault(const wb_request *request);

/* ---- one request (request.c) ----------------------------------------------------------------- */

/* A request and its growing record. Two marks: the tokens [0, n_in_pool) have keys in the KV pool, which
 * preemption takes back to 0; the tokens [0, n_fed) have been fed at least once, which only grows, and
 * rows and spans grow with it. */
typedef struct wb_sequence {
    wb_completion completion; /* first: the completion that poll hands out is the sequence itself */
    wb_route_rows routes;
    wb_span *spans; /* [spans_capacity] */
    uint32_t spans_capacity;
    uint32_t *tokens;                    /* [max_len]; completion.record.n_tokens of them exist */
    float *logprobs, *sampling_logprobs; /* [max_len - prompt_len] */
    uint8_t *rows;                       /* [max_len - 1 - routes_start] rows; NULL: not asked for */
    uint32_t max_len, routes_start;
    wb_sample_params params; /* its uniform is set at each token */
    uint64_t seed;
    uint32_t n_stop;
    uint32_t *stop_tokens;
    uint32_t n_fed, n_in_pool;
    int32_t *blocks; /* [n_blocks] held, room for max_len - 1 tokens */
    int32_t n_blocks;
    bool running;
    uint32_t n_planned;                  /* tokens that this step feeds */
    struct wb_sequence *previous, *next; /* by arrival; `next` also links finished ones */
    struct wb_sequence *bucket_next;     /* of the rid index */
} wb_sequence;

/* Copies `request`, which has been checked, with room for everything that it can grow to. max_blocks:
 * blocks that it can hold. */
wb_status wb_sequence_create(const wb_request *request, size_t row_bytes, int64_t max_blocks,
                             wb_sequence **sequence_out);
void wb_sequence_free(wb_sequence *sequence);

/* Makes room for one more span, so that the feed which follows cannot fail. */
wb_status wb_sequence_reserve_span(wb_sequence *sequence, uint64_t weight_version);

/* The n_planned tokens have been fed under weight_version; rows: theirs, [n_planned] of row_bytes. What
 * exists already stays. */
void wb_sequence_feed(wb_sequence *sequence, uint64_t weight_version, const uint8_t *rows, size_t row_bytes);

/* Appends the token sampled after the last one; WB_FINISH_NONE unless it is the end. */
wb_finish wb_sequence_append(wb_sequence *sequence, uint32_t token, float logprob, float sampling_logprob);

/* The record as it stands becomes the completion's. */
void wb_sequence_finish(wb_sequence *sequence, wb_finish finish);

static inline uint32_t wb_sequence_length(const wb_sequence *sequence) {
    return sequence->completion.record.n_tokens;
}

/* True when the planned tokens end with the last one: a token is sampled after it. */
static inline bool wb_sequence_samples(const wb_sequence *sequence) {
    return sequence->n_in_pool + sequence->n_planned == wb_sequence_length(sequence);
}

/* Requests by rid. A zeroed struct is an empty index. */
typedef struct wb_rid_index {
    wb_sequence **buckets; /* [n_buckets], a power of two */
    size_t n_buckets, count;
} wb_rid_index;

wb_sequence *wb_rid_index_find(const wb_rid_index *index, const char *rid);
wb_status
wb_rid_index_reserve(wb_rid_index *index); /* room for one more: the add which follows cannot fail */
void wb_rid_index_add(wb_rid_index *index, wb_sequence *sequence);
void wb_rid_index_remove(wb_rid_index *index, wb_sequence *sequence);

/* ---- the engine (engine.c) ------------------------------------------------------------------- */

/* What one step feeds. Host arrays, made at open for the largest step. */
typedef struct wb_step_batch {
    wb_infer_batch infer;        /* points into the arrays below */
    int32_t *tokens, *pos, *seq; /* [max_batch_tokens] */
    int32_t *logit_rows;         /* [max_sequences] */
    int32_t *blocks;             /* [max_sequences, blocks of the longest request] */
    wb_sequence **sequences;     /* [max_sequences]; infer.n_seqs of them are fed, in order of arrival */
    wb_sequence **sampled;       /* [max_sequences]; infer.n_logits of them get a token */
    wb_sample_params *params;    /* [max_sequences], as `sampled` */
    bool with_rows;              /* some fed request wants rows */
} wb_step_batch;

/* What a step leaves on the device, in one piece so that one copy brings it to the host: sampled tokens,
 * their two logprobs ([max_sequences] each), then from ids_offset on the rows of all fed tokens. */
typedef struct wb_step_results {
    void *device, *host;
    size_t logprobs_offset, sampling_logprobs_offset, ids_offset; /* bytes */
} wb_step_results;

struct wb_engine {
    wb_model *model;
    wb_device *device; /* the model's, like comm and route_model */
    wb_comm *comm;
    const wb_route_model *route_model;
    size_t row_bytes;
    wb_infer *infer;
    wb_engine_options options;
    int32_t max_sequences; /* in one step */
    uint64_t weight_version;
    wb_kv_blocks pool;
    wb_rid_index rids;                         /* of unfinished and of finished, not yet polled requests */
    wb_sequence *first, *last, *first_waiting; /* unfinished, by arrival */
    wb_sequence *next_decode; /* whose turn it is when a step cannot hold all decodes; NULL: the first's */
    wb_sequence *first_finished, *last_finished;
    wb_step_batch batch;
    wb_step_results results;
    wb_engine_stats stats;
};

/* Puts the step's tokens into engine->batch, which may be empty; preempts and admits. On failure the batch
 * is empty. */
wb_status wb_schedule_step(wb_engine *engine);

/* Takes a running sequence's blocks. It keeps its place in the list, so it must be the last running one,
 * or leave the list. */
void wb_schedule_release(wb_engine *engine, wb_sequence *sequence);

#endif
