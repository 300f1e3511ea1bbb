/* open_sizes.h - how large what a run opens is, and what memory that takes: open_sizes.c and
 * memory_plan.c. */
#ifndef GRPO_OPEN_SIZES_H
#define GRPO_OPEN_SIZES_H

#include "grpo.h"

#define GIB 0x1p30 /* bytes */

/* ---- open_sizes.c ---------------------------------------------------------------------------- */

/* Of the policy, and of the reference; placement: NULL for the default one, and for a clone that of its
 * source. */
wb_model_options sizes_policy(const options *o, wb_device *device, wb_comm *comm,
                              const wb_placement *placement);
/* Likewise of the engine's copy of it. */
wb_model_options sizes_rollout(const options *o, wb_device *device, wb_comm *comm,
                               const wb_placement *placement);
/* Of the copy of the policy that --rollout-bits rounds: in f32, whatever training has. */
wb_model_options sizes_rounded(wb_device *device, wb_comm *comm, const wb_placement *placement);
wb_engine_options sizes_engine(const options *o); /* without a manager of experts */
/* A micro-batch has at most --micro-batch-tokens. */
wb_train_options sizes_train(const options *o, const wb_config *config, bool forward_only);
/* Tokens that a sampled one keeps at most; 0: the distribution has no limit. */
int64_t sizes_max_kept(const options *o, const wb_config *config);
/* Of --replay-indexer, else 0: device bytes of what indexers choose in a micro-batch, twice and who chooses;
 * the host has as many; and bytes of it in the record of a sample of `length` tokens. */
size_t sizes_lists(const options *o, const wb_config *config);
size_t sizes_sample_lists(const options *o, const wb_config *config, size_t length);
/* Bytes of what one indexer lists for such a sample: nothing for its first tokens, which choose all that
 * there is. For a model that has indexers. */
size_t sizes_listed(const wb_config *config, size_t length);
/* Tokens of the longest sample, prompt and answer: the model has positions for it, the engine blocks, and it
 * fits a micro-batch. */
int64_t sizes_longest_sample(const options *o, int32_t max_positions);
/* Tokens of the longest prompt, with --max-tokens behind it; CAPACITY where none fits. */
wb_status sizes_max_prompt(const options *o, int32_t max_positions, int64_t *n_out);

/* ---- memory_plan.c --------------------------------------------------------------------------- */

/* Prints what each rank of such a run on o->plan_ranks ranks would take, part by part; nothing is opened and
 * of --model its config.json alone is read. CAPACITY where it is more than o->device_memory. */
wb_status memory_plan_print(const options *o);

#endif
