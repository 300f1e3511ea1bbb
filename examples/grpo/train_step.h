/* train_step.h - a rollout batch packed into micro-batches, and the forwards over them: what packing.c,
 * passes.c and train_step.c share. */
#ifndef GRPO_TRAIN_STEP_H
#define GRPO_TRAIN_STEP_H

#include "grpo.h"
#include "wb_workspace.h"

/* Sequences packed into one forward. A sequence of N tokens feeds N - 1: row t predicts token t + 1. */
typedef struct micro_batch {
    int64_t T, n_seqs;
    const sample **samples; /* [n_seqs] */
    int32_t *seq_start;     /* [n_seqs + 1] first row of each */
    int32_t *tokens;        /* [T] */
    int32_t *targets;       /* [T] -1 in the prompt */
    /* What targets were sampled from, as in wb_train_batch; kept_* NULL: from the whole vocabulary. */
    float *temperature;
    uint32_t *kept_ids;
    int64_t *kept_start;
    float *old, *reference; /* [T] log-probabilities of the first forward and of the reference model */
} micro_batch;

/* Of --replay-indexer, of the micro-batch at hand: which entries each of `columns` indexers has chosen for
 * each of T rows. */
typedef struct packed_lists {
    int64_t columns, k;                  /* 0: without the option */
    wb_buffer listed, native, direction; /* device int32 [columns][T][k] twice, u8 [columns][T] */
    int32_t *host_listed, *host_native;  /* the same */
    uint8_t *host_direction;
    bool want_native;
    wb_replay_indexer_metrics *metrics; /* of a replay's, one for each layer that uses an indexer */
} packed_lists;

typedef struct packed_batch {
    wb_workspace workspace; /* owns everything below but `pack` */
    wb_pack *pack;          /* who trains on what, under --eplb planned; else NULL: each rank on its own */
    int32_t n;              /* micro-batches */
    micro_batch *list;      /* [n] */
    int32_t *update_start;  /* [updates + 1] first micro-batch of each minibatch */
    int64_t largest;        /* T */
    int64_t stride;         /* ids of a row: L * K */
    size_t row_bytes;
    /* Of the micro-batch at hand, device: ids, native and used [T][L][K], direction [T]; and the ids of the
     * reference, which are [T] of its own L and K. */
    wb_buffer ids, native, used, direction, reference_ids;
    /* used and native on the host, and [T] each. */
    void *host_ids, *host_native;
    packed_lists lists;
    float *logprobs, *gradients;
    double *trained; /* [prompts * samples] how often each sample of the step was trained on */
    double *loads;   /* [L][E] of the present update (bias_update.c); NULL without --bias-rate */
} packed_batch;

static inline const wb_record *record_of(const sample *s) {
    return s->record;
}

/* Rows of the sample: its last token is never fed. */
static inline int64_t fed_tokens(const sample *s) {
    return (int64_t)record_of(s)->n_tokens - 1;
}

/* Tokens of the first n micro-batches. */
static inline int64_t tokens_until(const packed_batch *p, int32_t n) {
    int64_t tokens = 0;
    for (int32_t m = 0; m < n; m++) tokens += p->list[m].T;
    return tokens;
}

/* ---- packing.c ------------------------------------------------------------------------------- */

/* A zeroed `p` is needed; packed_close also after a failure. What planning took goes into m. Collective. */
wb_status packed_open(trainer *t, const batch *b, packed_batch *p, step_metrics *m);
void packed_close(packed_batch *p);

/* ---- planned_step.c -------------------------------------------------------------------------- */

/* --eplb planned: packs the samples of all ranks by their routes, solves a placement for the micro-batches
 * and puts the policy's experts there, and sends samples to the ranks that train on them. Collective. */
wb_status planned_open(trainer *t, const batch *b, packed_batch *p, step_metrics *m);

/* The samples that this rank trains on in micro-batch m: *samples_out [*n_out], owned by p. */
wb_status planned_samples(packed_batch *p, int32_t m, const sample **samples_out, int64_t *n_out);

/* ---- distribution.c -------------------------------------------------------------------------- */

/* MISMATCH, with rid and both values, where the record was not sampled as the options say, or lacks what its
 * distribution needs: the kept tokens of a top-k or top-p below `vocab_size`. */
wb_status distribution_check(const options *o, int64_t vocab_size, const wb_record *record);
/* temperature and kept_* of a micro-batch whose samples, checked, are there. */
wb_status distribution_fill(wb_owner *owner, micro_batch *mb);

/* ---- trained_once.c -------------------------------------------------------------------------- */

/* Counts the samples of a micro-batch, which is trained on now, in trained [prompts * samples]. */
void trained_count(const trainer *t, const micro_batch *mb, double *trained);
/* MISMATCH names the first sample of the step that was not trained on once. `trained` becomes the sum over
 * all ranks. Collective. */
wb_status trained_check(const trainer *t, double *trained);

/* ---- bias_update.c --------------------------------------------------------------------------- */

/* Zeros for the counts of an update; *loads_out: NULL without --bias-rate. */
wb_status bias_open(const trainer *t, wb_owner *owner, double **loads_out);
/* Counts the experts that the rows of a micro-batch, which was fed just now, were sent to. */
void bias_count(const trainer *t, const packed_batch *p, const micro_batch *mb);
/* Moves the biases by what all ranks have counted since the last call. Collective. */
wb_status bias_update(const trainer *t, packed_batch *p);

/* ---- expert_load.c --------------------------------------------------------------------------- */

/* Mean over maximum of the ranks' load in training, under the policy's placement: sums over micro-batches and
 * MoE layers; 1 where no row is known. Collective. */
wb_status expert_load_training(const trainer *t, const packed_batch *p, double *balancedness_out);

/* ---- lists.c ------------------------------------------------------------------------------ */

struct row_count;

/* Memory of p->lists, once the largest micro-batch is known. */
wb_status lists_open(const trainer *t, packed_batch *p);
/* A forward of micro-batch m: who chooses as `replay` says, and where what was chosen goes; then, behind it,
 * what was chosen is told to `replay`, and is in host_listed. */
wb_status lists_ask(const trainer *t, wb_replay *replay, packed_batch *p, int32_t m, wb_routing *routing);
wb_status lists_store(const trainer *t, wb_replay *replay, packed_batch *p, int32_t m);
/* Adds the (row, indexer) pairs that records have, and those of them that looked elsewhere in training. */
void lists_count(const trainer *t, const packed_batch *p, const micro_batch *mb, struct row_count *count);
/* But for `differently`, of a replay whose sums are of all ranks. */
void lists_metrics(const trainer *t, const wb_replay *replay, packed_batch *p, list_metrics *out);

/* ---- passes.c -------------------------------------------------------------------------------- */

/* Rows that a record has, and how many of them went to other experts than in the rollout. */
typedef struct row_count {
    double rows, differ;
} row_count;

/* The same of what indexers chose. */
typedef struct pass_count {
    row_count routes, lists;
} pass_count;

/* Plans every micro-batch in `mode` and makes the batch's records known to `replay`, which borrows them. */
wb_status plan_batch(const trainer *t, wb_replay *replay, wb_replay_mode mode, const packed_batch *p);
/* Where the rows of the micro-batches go, before they run: as far as all ranks know it by now and have not
 * planned it. Its share becomes m->planned. Collective. */
wb_status plan_dispatch(const trainer *t, const packed_batch *p, step_metrics *m);
/* A forward of micro-batch m, routed as t->replay says; p->logprobs are its results. Collective. */
wb_status policy_forward(trainer *t, packed_batch *p, int32_t m, pass_count *count);
/* The same over all micro-batches, whose log-probabilities become `old`. Collective. */
wb_status first_forward(trainer *t, packed_batch *p, report *r, pass_count *count);
/* The same batch and weights routed as t->compare says: free. Collective. */
wb_status compare_forward(trainer *t, packed_batch *p, report *r);
/* The reference model, which never follows the policy's routes. Collective. */
wb_status reference_forward(trainer *t, packed_batch *p, report *r);

#endif
