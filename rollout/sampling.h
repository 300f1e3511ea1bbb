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
    wb_workspace *workspace;
    size_t max_sampled;
    /* Of the rows of the present step: */
    wb_sample_params *params; /* [max_sampled] */
    int64_t *kept_start;      /* [max_sampled + 1] where the tokens kept for a row are in `kept_ids` */
    wb_buffer kept_ids;       /* device u32, as much as the requests so far can need in a step */
} wb_sampler;

/* The device has the ops of sampling (wb_engine_open); the memory belongs to `workspace`. */
wb_status wb_sampler_open(wb_workspace *workspace, int64_t vocab_size, size_t max_sampled,
                          wb_sampler *sampler);

/* Room on the device for the tokens kept of a sequence in any batch, so that a step makes none: once for each
 * sequence, between steps. */
wb_status wb_sampler_make_room(wb_sampler *sampler, const wb_sequence *sequence);

/* The random number in [0, 1) for the token at `position` of a request with `seed`: a function of both and
 * of nothing else. */
float wb_sampling_uniform(uint64_t seed, uint32_t position);

/* Samples a token after each of batch->sampled from logits [n_sampled, V], in device memory, into
 * `results`. A failure names the request and the position. */
wb_status wb_sample_step(wb_sampler *sampler, const wb_step_batch *batch, const float *logits,
                         const wb_step_results *results);

/* Once the counts of `results` are on the host: the kept tokens of each row that wants them go to its
 * sequence, which has not been appended to yet. */
wb_status wb_sample_take_kept(const wb_sampler *sampler, const wb_step_batch *batch,
                              const wb_step_results *results);

#endif
