/* sampling.h - from logits to tokens: each request's random numbers, and the device's ops in their order.
 *
 * The random stream is counter-based: no state advances, so that neither preemption nor the batch around a
 * token can shift it. */
#ifndef WB_SAMPLING_H
#define WB_SAMPLING_H

#include "results.h"
#include "sequence.h"
#include "step_batch.h"
#include "wb_kernels.h"

typedef struct wb_sampler {
    wb_device *device;
    int64_t vocab_size;
    /* Of the rows of the present step: */
    wb_sample_params *params; /* [max_sampled] */
    int64_t *kept_start;      /* [max_sampled + 1] where a row's are in the kept tokens of the results */
} wb_sampler;

/* The device has the ops of sampling (wb_engine_open); the memory belongs to `workspace`. */
wb_status wb_sampler_open(wb_workspace *workspace, int64_t vocab_size, size_t max_sampled,
                          wb_sampler *sampler);

/* Kept tokens of a row of the sequence at most, which a step's results are to have room for; 0: none are
 * wanted. */
int64_t wb_sampler_max_kept(const wb_sampler *sampler, const wb_sequence *sequence);

/* The random number in [0, 1) for the token at `position` of a request with `seed`: a function of both and
 * of nothing else. */
float wb_sampling_uniform(uint64_t seed, uint32_t position);

/* Samples a token after each of batch->sampled from logits [n_sampled, V], in device memory, into
 * `results`; *n_kept_out: kept tokens that there is room for in them. */
wb_status wb_sample_step(wb_sampler *sampler, const wb_step_batch *batch, const float *logits,
                         const wb_step_results *results, size_t *n_kept_out);

/* A step that ended with `failure` after its sampling, perhaps by it, as a backend tells in the sampling or
 * where it is waited for: returns it, with request and position named where a row cannot be sampled. */
wb_status wb_sample_name_failure(const wb_sampler *sampler, const wb_step_batch *batch, const float *logits,
                                 const wb_step_results *results, wb_status failure);

/* Once `results` are on the host: CAPACITY where a record cannot hold the tokens kept at its next one. */
wb_status wb_sample_check_kept(const wb_step_batch *batch, const wb_step_results *results);

#endif
