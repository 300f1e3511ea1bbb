/* grpo.h - the pieces of waybill-grpo, the trainer that mpirun launches, and what passes between them.
 *
 *   options -> task -> rollouts -> rewards -> train_step -> optimizer -> weights to the engine
 *                         |-> dump                |-> report
 *
 * A sample is a completion of the engine with its record, its reward and its advantage.
 *
 * Parallel layout: a step's prompt groups wait in one queue, from which each rank takes what it has room for,
 * and a rank trains on the groups that it generated; experts are sharded over all ranks.
 */
#ifndef GRPO_H
#define GRPO_H

#include "wb_check.h"
#include "wb_comm.h"
#include "wb_device.h"
#include "wb_formats.h"
#include "wb_load.h"
#include "wb_model.h"
#include "wb_pack.h"
#include "wb_rebalance.h"
#include "wb_replay.h"
#include "wb_rollout.h"
#include "wb_solve.h"
#include "wb_workspace.h"

#include <jansson.h>
#include <stdio.h>

/* ---- paths.c --------------------------------------------------------------------------------- */

enum { PATH_BYTES = 4096 };
/* In OUT. */
#define METRICS_FILE "metrics.jsonl"
#define EVENTS_FOLDER "tensorboard"

/* DIR/name into path [PATH_BYTES]. */
wb_status path_join(char *path, const char *dir, const char *name);
/* Whether DIR has a file of that name that can be read. */
bool path_has(const char *dir, const char *name);

/* ---- text_files.c ---------------------------------------------------------------------------- */

/* For text_line; the caller's, closed with fclose. NOT_FOUND; INVALID_ARGUMENT where it is no regular file
 * and no pipe. */
wb_status text_open(const char *path, FILE **file_out);
/* The next line, `number` in messages, with its end into *line, grown as WB_GROW does. *length_out: -1 after
 * the last one. CAPACITY for a line of more than 64 MiB. */
wb_status text_line(FILE *file, const char *path, size_t number, char **line, size_t *capacity,
                    int64_t *length_out);
/* A regular file of JSON of at most 64 MiB; the caller's reference. NOT_FOUND, CORRUPT. */
wb_status text_json(const char *path, json_t **object_out);

/* ---- command_line.c -------------------------------------------------------------------------- */

typedef enum ratio_kind { RATIO_TOKEN, RATIO_SEQUENCE } ratio_kind;
typedef enum eplb_mode { EPLB_OFF, EPLB_STATIC, EPLB_LIVE, EPLB_PLANNED } eplb_mode;
/* Of the engine's weights and KV cache; SAME: as in training. */
typedef enum rollout_dtype { ROLLOUT_SAME, ROLLOUT_F32, ROLLOUT_BF16 } rollout_dtype;
typedef enum long_prompts { LONG_PROMPTS_ERROR, LONG_PROMPTS_SKIP, LONG_PROMPTS_CUT } long_prompts;

/* How the learning rate falls. */
typedef enum lr_schedule { LR_CONSTANT, LR_LINEAR, LR_COSINE } lr_schedule;

enum { N_OPTIONS = 67 }; /* rows of the table (option_table.c) */

typedef struct options {
    const char *model_dir; /* base checkpoint */
    const char *out_dir;   /* gets checkpoint/, dump/, metrics.jsonl */
    const char *make_base; /* write a base checkpoint here by supervised warm-up, and stop */
    wb_family family;      /* of --make-base */
    const char *task;      /* "arithmetic" or "jsonl:FILE" */
    const char *reward_cmd;
    wb_replay_mode replay;
    wb_missing_policy missing;
    wb_dtype dtype; /* of matrices and activations in training */
    rollout_dtype rollout_dtype;
    int64_t rollout_bits; /* of the engine's matrices; 0: they are not quantised */
    wb_backend device;
    int64_t steps, prompts, samples, max_tokens, updates, micro_batch_tokens;
    const char *stop_token; /* NULL: the task's */
    long_prompts long_prompts;
    int64_t warmup_steps, checkpoint_every, compare_every, peer_timeout, reward_timeout, threads, top_k;
    int64_t kv_blocks, block_size, max_batch_tokens, max_running, max_drafts; /* of the engine */
    uint64_t seed;
    double keep_memory; /* GiB a rank, beyond what one layer needs in a backward */
    double temperature, top_p;
    double lr, weight_decay, grad_clip, clip_low, clip_high, kl_coef, tis_cap;
    lr_schedule schedule;
    int64_t lr_warmup, lr_steps; /* steps */
    double lr_end;               /* share of lr */
    double bias_rate;            /* of selection biases; 0: they stay */
    ratio_kind ratio;
    const char *eval_task; /* as task; NULL: nothing is evaluated */
    int64_t eval_every;
    double eval_temperature;
    int64_t keep_last; /* checkpoints, with the newest one */
    eplb_mode eplb;
    int64_t redundant_experts;
    const char *init_placement;                /* NULL: by expert_places.c */
    int64_t rebalance_every, layers_per_chunk; /* of --eplb live; -1: all layers */
    wb_codec codec;
    bool resume, no_dump, quiet, tensorboard, keep_best;
    bool replay_indexer;   /* what indexers choose is recorded and followed as routes are */
    int64_t plan_ranks;    /* of --plan-memory; -1: train */
    double device_memory;  /* of --plan-memory, GiB a rank; 0: not told */
    bool given[N_OPTIONS]; /* option i of the table is on the command line */
} options;

/* Fills `o` from the command line. *action_out: 0 go on, 1 --help or --version was printed. INVALID_ARGUMENT
 * says what is off. `loud`: this rank prints. */
wb_status options_parse(int argc, char **argv, bool loud, options *o, int *action_out);
/* Whether the options fit together; called by options_parse, but for a run that resumes, whose options are
 * known when options_resume has been called. */
wb_status options_check(const options *o);
/* Whether the command line has the option of that name. */
bool options_given(const options *o, const char *name);
/* What a checkpoint keeps of the options; the caller's reference, NULL without memory. */
json_t *options_to_json(const options *o);
/* Takes from `saved`, an object of options_to_json, what the command line does not give. What it gives
 * otherwise is said where `loud`, or refused (MISMATCH) where the run would no longer be the same; `where`
 * names the checkpoint. Texts stay `saved`'s. */
wb_status options_resume(options *o, const json_t *saved, const char *where, bool loud);

/* ---- stop_tokens.c --------------------------------------------------------------------------- */

enum { MAX_STOP_TOKENS = 64 };
/* Tokens that end a sample. */
typedef struct stop_tokens {
    uint32_t n, ids[MAX_STOP_TOKENS];
} stop_tokens;

/* The form of --stop-token; NULL: it is not given. */
wb_status stop_tokens_check(const char *option);
/* Of `option` ("none", or ids with commas) where it is not NULL; else `own`, where a task has one; else
 * eos_token_id of generation_config.json or config.json in `dir`. *where_out: whence. */
wb_status stop_tokens_find(const char *option, const uint32_t *own, const char *dir, int32_t vocab_size,
                           stop_tokens *stops_out, const char **where_out);

/* ---- task.c ---------------------------------------------------------------------------------- */

typedef struct task task;

/* option: which it is of, for messages; kept. spec: of task_check_spec,
 * "arithmetic", or "jsonl:FILE" with an object a line:
 * {"prompt": [token ids], ...}. vocab_size: prompts are checked. */
wb_status task_open(const char *option, const char *spec, uint64_t seed, int32_t vocab_size, task **task_out);
void task_close(task *t);
/* The form of an option's value, of which no model is known yet. */
wb_status task_check_spec(const char *option, const char *spec);
/* From here on the task is an evaluation set: its groups are the lines of the file, in order, or as many sums
 * that are the same in every step. */
void task_take_in_order(task *t);
bool task_is_evaluation(const task *t);
int64_t task_n_prompts(const task *t); /* of an evaluation set */
/* Prompt of group `group` of step `step`: *tokens_out [n] malloc'ed. The same on every rank and on every
 * resume. */
wb_status task_prompt(const task *t, uint64_t step, uint64_t group, uint32_t **tokens_out, uint32_t *n_out);
/* The built-in reward: 1 for the right answer, a part for right leading digits. UNSUPPORTED for jsonl. */
wb_status task_reward(const task *t, const wb_record *record, double *reward_out);
/* The line of the file that group came from, or NULL (arithmetic); owner: task. */
const char *task_item(const task *t, uint64_t step, uint64_t group);
/* A supervised example: prompt and answer (arithmetic only); *prompt_len_out tokens are the prompt. */
uint32_t task_arithmetic_example(uint64_t seed, uint64_t index, uint32_t *tokens, uint32_t *prompt_len_out);
enum { TASK_VOCABULARY = 16, TASK_STOP = 15, TASK_MAX_TOKENS = 16, TASK_MAX_PROMPT = 6 };
/* What happens to prompts of more than `max` tokens, before anything is generated: an error that names the
 * line, or they are left out, or their beginning is. */
wb_status task_fit_prompts(task *t, long_prompts policy, int64_t max);
int64_t task_n_long(const task *t); /* how many such prompts there were */
/* stop_tokens_find for the task. */
wb_status task_find_stops(task *t, const char *option, const char *dir, int32_t vocab_size,
                          const char **where_out);
const uint32_t *task_stop_tokens(const task *t, uint32_t *n_out); /* owner: task */
/* A number of all prompts that groups can come from, and of their lines. */
uint64_t task_digest(const task *t);

/* ---- reward.c -------------------------------------------------------------------------------- */

/* --reward-cmd: a program that reads a JSON line a record from its standard input and writes a number a line
 * to its standard output, each as soon as it is known. A process a rank, from the first batch to the end. */
typedef struct reward_program reward_program;
wb_status reward_open(const options *o, reward_program **program_out);
/* Ends the program: its input is closed, and it has ten seconds. The status is how it ended, or that it
 * answered too much. NULL is OK. */
wb_status reward_end(reward_program *program);
void reward_close(reward_program *program); /* kills what is still there */
/* The rewards of n records of a step, [n]. Fails when the program ends, takes longer than --reward-timeout
 * for the next line, answers too much, or something that is not a finite number; the message names the
 * request and where the batch's dump is. Where this rank was told to stop (interrupt_signal) the program is
 * killed and rewards may be missing. */
wb_status reward_batch(reward_program *program, const task *t, uint64_t step, int64_t n,
                       const wb_record *const *records, double *rewards_out);
/* Fails where it has answered more than it was asked by now. NULL is OK. */
wb_status reward_check(reward_program *program);

/* ---- group_queue.c --------------------------------------------------------------------------- */

/* How many groups of `samples` a rank could run at once beside its unfinished requests. */
int64_t group_queue_room(int64_t max_running, int64_t unfinished, int64_t samples);
/* The rank that gets the next group, the first of those with most room, which becomes one less; -1: none has
 * room. room: in/out, [n_ranks]. */
int group_queue_next(int n_ranks, int64_t *room);

/* ---- data_plane.c ---------------------------------------------------------------------------- */

/* Collective over control: *comm_out is a communicator over it whose data plane runs between the GPUs, to be
 * closed before it; NULL where the one of `control` serves, because ranks compute on CPUs, or there is one,
 * or they have no GPUs of their own, or no NCCL. Rank 0 says on standard error which it is between GPUs. */
wb_status data_plane_open(wb_backend backend, int gpu, wb_comm *control, wb_comm **comm_out);

/* ---- interrupt.c ----------------------------------------------------------------------------- */

/* From here on SIGINT, SIGTERM and SIGUSR1 ask the run to stop; the second one ends the process at once. */
void interrupt_watch(void);
/* The signal that this rank was asked to stop by, or 0. */
int interrupt_signal(void);
/* The same of any rank: signals come to single ranks, or to all at different moments. Collective. */
wb_status interrupt_agree(wb_comm *comm, int *signal_out);

/* ---- out_lock.c ------------------------------------------------------------------------------ */

typedef struct out_lock out_lock;
#define LOCK_FILE "waybill-grpo.lock" /* in the folder that is locked */
/* The only run in `dir`, which is there, from here to the release, or to the end of this process however it
 * ends. INVALID_ARGUMENT names the process that is in it. On one rank. */
wb_status out_lock_take(const char *dir, out_lock **lock_out);
void out_lock_release(out_lock *lock);   /* removes the file; NULL is a no-op */
bool out_lock_is_alone(const char *dir); /* whether there is no other file in it */

/* ---- expert_places.c ------------------------------------------------------------------------- */

#define PLACEMENT_FILE "trainer/placement.json" /* in a checkpoint */

/* Where the experts of a run on n_ranks ranks are at its start: *placement_out, the caller's, NULL under
 * --eplb off. Of --init-placement; else of `checkpoint`, the folder of a run that resumes, where its
 * placement has as many slots; else each rank has its block of experts and, in its other slots, experts of
 * other ranks in turn. `loud`: this rank says where a run that resumes begins anew. Not collective. */
wb_status expert_places_open(const options *o, const wb_config *config, int n_ranks, const char *checkpoint,
                             bool loud, wb_placement **placement_out);
/* The last of these, whatever --init-placement says. */
wb_status expert_places_default(const options *o, const wb_config *config, int n_ranks,
                                wb_placement **placement_out);

/* ---- rollouts.c ------------------------------------------------------------------------------ */

typedef struct sample {
    wb_completion *completion; /* owner: this; NULL in a copy that trains */
    const wb_record *record;   /* of the completion, or of one that came from another rank */
    double reward, advantage;
} sample;

typedef struct batch {
    int64_t n_groups;  /* prompt groups of this rank */
    int64_t *groups;   /* [n_groups] their numbers in the step, ascending */
    int64_t n_samples; /* n_groups * G, group-major */
    sample *samples;
} batch;

struct report;
struct step_metrics;
/* Generates this rank's samples of `step`. Where some rank was told to stop, *signal_out is by which signal
 * and there is no batch; else it is 0. Collective. */
wb_status rollouts_generate(wb_engine *engine, wb_comm *comm, const options *o, const task *t, uint64_t step,
                            struct report *report, int *signal_out, batch *batch_out);
/* What the engines of all ranks have counted since `before` into m. Collective. */
wb_status rollouts_count(const wb_engine *engine, const wb_engine_stats *before, wb_comm *comm,
                         struct step_metrics *m);
/* How many groups of the batch have a number below `group`: where it is when this rank has it. */
int64_t batch_first_group(const batch *b, int64_t group);
/* Rewards, then advantages normalised within each group. Collective verdict. */
wb_status rollouts_reward(wb_comm *comm, const options *o, const task *t, reward_program *program,
                          uint64_t step, batch *b);
void batch_free(batch *b);

/* ---- evaluation.c ---------------------------------------------------------------------------- */

/* Of a batch's samples, over all ranks. */
typedef struct answer_metrics {
    double reward, reward_std, samples, response_tokens;
    double entropy; /* nats, of the distribution that tokens were drawn from: estimated by those drawn */
} answer_metrics;
/* Collective. */
wb_status answers_measure(wb_comm *comm, const batch *b, answer_metrics *metrics_out);
/* Answers the evaluation set under the engine's weights and rewards it. *evaluated_out: whether it came to an
 * end; false where some rank was told to stop. Collective. */
wb_status evaluation_run(wb_engine *engine, wb_comm *comm, const options *o, const task *set,
                         reward_program *program, uint64_t step, struct report *report, bool *evaluated_out,
                         answer_metrics *metrics_out);

/* ---- expert_load.c --------------------------------------------------------------------------- */

/* Mean over the MoE layers of mean / max of the ranks' load, in the batch over all ranks, under `placement`;
 * 1 where no row is known (of training: train_step.h). Collective. */
wb_status expert_load_balancedness(const wb_model *model, const wb_placement *placement, const batch *b,
                                   double *balancedness_out);

/* ---- dumps.c --------------------------------------------------------------------------------- */

/* The path of a file of dumps_write in OUT/dump, of a step from first_step on, into path_out [PATH_BYTES]; ""
 * where there is none. */
wb_status dumps_find(const options *o, uint64_t first_step, char *path_out);
/* NOT_FOUND names the first of the n_steps steps that does not have all its samples there. */
wb_status dumps_check(const options *o, uint64_t n_steps);
/* Removes those of steps from first_step on, which an interrupted run left. */
wb_status dumps_remove(const options *o, uint64_t first_step);
/* Writes the samples' records to OUT/dump/step<step>-rank<rank>.wbr. */
wb_status dumps_write(const options *o, const wb_route_model *model, int rank, uint64_t step, const batch *b);

/* ---- loss.c ---------------------------------------------------------------------------------- */

typedef struct loss_options {
    ratio_kind ratio;
    double clip_low, clip_high; /* the ratio is clipped to [1 - low, 1 + high] */
    double kl_coef;             /* of KL(policy || reference), estimator k3 */
    double token_scale;         /* of a token's loss, by token: 1 / response tokens of the minibatch */
    double sequence_scale;      /* of a sequence's loss, by sequence: 1 / sequences of the minibatch */
    double tis_cap;             /* of a token's importance weight; used where `rollout` is given */
} loss_options;

typedef struct loss_sums {
    double loss, clipped, tokens, kl_reference;
} loss_sums;

/* The log-probabilities [n] of the response tokens of one sequence: of the policy, of the first forward, of
 * the reference (NULL: none), and those that the rollout sampled with (NULL: tokens have no importance
 * weight; else truncated importance sampling, by token). */
typedef struct loss_logprobs {
    const float *now, *old, *reference, *rollout;
} loss_logprobs;

/* One sequence of n response tokens: dlogprobs_out[n] = d loss / d logprobs->now; sums are added to. */
void loss_sequence(const loss_options *o, size_t n, const loss_logprobs *logprobs, double advantage,
                   float *dlogprobs_out, loss_sums *sums);

/* ---- learning_rate.c ------------------------------------------------------------------------- */

/* Of all updates of a step, which is counted from 0. o->lr_steps is known (training.c) where the rate
 * falls. */
double learning_rate(const options *o, uint64_t step);

/* ---- optimizer.c ----------------------------------------------------------------------------- */

/* A gradient on this rank, f32 [n] on the device, and the tensor that it is of. */
typedef struct tensor_gradient {
    const float *data;
    int64_t n;
    int32_t tensor;
} tensor_gradient;

/* AdamW over the registry's tensors. Weights of f32 are their own masters; one of bf16 is what its f32 master
 * rounds to. Moments and masters belong to a tensor and not to the slot or the address that it has at the
 * time: those of an expert to its home rank (wb_home_rank), once, however many replicas there are; those of a
 * replicated tensor are cut over the ranks. */
typedef struct optimizer {
    wb_model *model;
    wb_train *train;
    wb_device *device;
    wb_comm *comm;
    wb_workspace workspace; /* owns moments and masters */
    wb_buffer *m, *v;       /* [n_tensors] f32 of this rank's part of the tensor */
    wb_buffer *master;      /* [n_tensors] likewise, of tensors of bf16 */
    uint64_t step;
    wb_adamw hyper;  /* of the present step, for matrices */
    double *squares; /* [n_tensors] of a tensor's gradient */
    /* [n_tensors] the gradients that are here, by their places in memory, and the sums of their squares */
    tensor_gradient *gradients;
    double *sums;
    wb_buffer *device_squares; /* one, f64 [n_tensors], where they are made; like the others not in here, so
                                * that this struct may move */
    /* The gathers of updated weights: those started, those waited for, and the numbers of those on their
     * way. */
    uint64_t n_started, n_done, works[WB_EXCHANGE_IN_FLIGHT];
    size_t *bounds; /* [R + 1] of one */
} optimizer;

/* The elements of a tensor whose moments and master a rank has: of an expert all on its home rank, of a
 * replicated tensor one of n_ranks parts that differ by one element at most. */
typedef struct optimizer_part {
    int64_t first, n;
} optimizer_part;
optimizer_part optimizer_part_of(const wb_config *config, const wb_tensor *tensor, int of_rank, int n_ranks);

/* Device bytes of the moments, with a sum of squares a tensor, and of the masters that rank `of_rank` of
 * n_ranks has beside a model whose matrices are of `dtype`, without one. */
wb_status optimizer_measure(const wb_config *config, wb_dtype dtype, int32_t n_ranks, int32_t of_rank,
                            size_t *moments_out, size_t *masters_out);

/* Moments of zero; masters have no values yet. Not collective. */
wb_status optimizer_open(wb_model *model, wb_train *train, wb_device *device, wb_comm *comm,
                         optimizer *opt_out);
void optimizer_close(optimizer *opt);
/* The masters become the model's weights, as they are in bf16. Uses up the gradients. Collective. */
wb_status optimizer_take_masters(optimizer *opt);
/* Clips the global gradient norm to o->grad_clip (0: no limit) and updates. `next`, if not NULL, becomes the
 * model's placement (wb_train_update_experts). Collective. */
wb_status optimizer_step(optimizer *opt, const options *o, double lr, const wb_placement *next,
                         double *grad_norm_out);

/* ---- train_step.c ---------------------------------------------------------------------------- */

/* Of the evaluations so far, the first of those with the highest reward. */
typedef struct best_reward {
    bool known;
    double reward;
    uint64_t step; /* how many were done */
    bool unsaved;  /* of the step that has just been done */
} best_reward;

typedef struct trainer {
    const options *o;
    wb_device *device;
    wb_comm *comm;
    wb_placement *placement; /* to begin with; NULL: the default one */
    wb_model *model;         /* trained, in --dtype */
    wb_train *train;
    wb_model *reference; /* NULL unless kl_coef > 0 */
    wb_train *reference_train;
    /* Under --eplb live that of the rollout, which the policy takes over with the last update of a step;
     * NULL: experts stay where they are. */
    const wb_placement *follow;
    wb_replay *replay;  /* the plan that is followed */
    wb_replay *compare; /* the same records, measured against free routing */
    optimizer opt;
    uint64_t step, weight_version;
    /* `epoch` of the metrics: of the last step that is done, and of the checkpoint that this run resumes. */
    uint64_t epoch, epoch_before;
    best_reward best;
    int64_t max_prompt; /* tokens of a prompt that fits */
    uint64_t task_digest;
    uint64_t evaluation_digest,
        reference_digest; /* 0 without an evaluation set; where there is a reference */
} trainer;

/* Of --replay-indexer, else 0: the share of (row, indexer) pairs that records have which looked elsewhere
 * than in the rollout; of those to follow, which would have by themselves; and the share of rows that have
 * none. */
typedef struct list_metrics {
    double differently, native_differ, fallback_share;
} list_metrics;

/* What OUT/metrics.jsonl has of a step; keys, units and meanings: docs/metrics.md. */
typedef struct step_metrics {
    answer_metrics answers;
    int64_t long_prompts;     /* of the task, that did not fit (--long-prompts) */
    wb_replay_metrics replay; /* of the first forward of the batch, as trained */
    /* Share of rows whose experts in training are not the rollout's: in the first forward, and over all
     * forwards of the updates. */
    double routed_differently, routed_differently_updates;
    list_metrics lists; /* of the first forward too */
    double planned;     /* share of the (micro-batch, MoE layer)s of the updates that were planned before */
    double prefill_tokens, taken_over_tokens; /* that the rollout fed, and took over from its prefix cache */
    double preemptions;
    double drafts, accepted_drafts; /* tokens that the rollout guessed, and those of them that were right */
    bool compared;
    wb_replay_metrics off; /* the same batch and weights, routing free: what --replay off would have seen */
    list_metrics lists_off;
    double loss, lr, clip_share, kl_reference, grad_norm;
    bool evaluated; /* under the weights that the step ended with */
    answer_metrics evaluation;
    /* Of the batch in the rollout, under the placement at its start, and of its micro-batches in training. */
    double balancedness, balancedness_training;
    /* Of the placement, the rollout's or that of training, that changed last; counted from the resume on
     * until the step is done. */
    uint64_t epoch;
    /* What changing places took: bytes that ranks sent each other, and seconds, which is all of planning. */
    double moved_bytes, seconds_rebalance;
    double seconds_rollout, seconds_train, seconds_evaluation;
} step_metrics;

/* One rollout batch: first forward, comparison, updates. Collective. */
wb_status train_step(trainer *t, const batch *b, struct report *report, step_metrics *m);

/* ---- bias_update.c --------------------------------------------------------------------------- */

/* INVALID_ARGUMENT for --bias-rate with a model whose routers have no selection bias. */
wb_status bias_check(const trainer *t);

/* ---- lists.c ------------------------------------------------------------------------------- */

/* INVALID_ARGUMENT for --replay-indexer with a model that has no indexers. */
wb_status lists_check(const options *o, const wb_config *config);

/* ---- rollout_weights.c ----------------------------------------------------------------------- */

typedef struct rollout_weights rollout_weights;
/* Collective. */
wb_status rollout_weights_open(const trainer *t, rollout_weights **weights_out);
void rollout_weights_close(rollout_weights *weights);
/* The engine's weights become the policy's of t->weight_version, quantised under --rollout-bits.
 * Collective. */
wb_status rollout_weights_set(rollout_weights *weights, const trainer *t, wb_engine *engine);

/* ---- live_experts.c -------------------------------------------------------------------------- */

/* --eplb live: a manager of the experts of `rollout`, for the engine over it. Collective. */
wb_status live_experts_open(const options *o, wb_model *rollout, wb_rebalance **manager_out);
/* What it takes beside a rollout of these options: of the device shadow slots, of the host counts. */
wb_status live_experts_measure(const options *o, const wb_config *config, const wb_model_options *rollout,
                               size_t *device_bytes_out, size_t *host_bytes_out);
/* What the manager did since `before` into m, summed over ranks; a failure of it, after which experts stay
 * where they were, is said. Collective. */
wb_status live_experts_report(const wb_rebalance *manager, const wb_rebalance_stats *before, wb_comm *comm,
                              struct report *r, step_metrics *m);

/* ---- checkpoint.c ---------------------------------------------------------------------------- */

/* What a save copies to the host at a time. */
enum { CHECKPOINT_CHUNK_BYTES = 4 << 20 };

/* OUT/checkpoint (Hugging Face layout, trainer/ beside it), replaced as a whole: there is always one
 * complete. What it replaces stays as --keep-last says. Collective. */
wb_status checkpoint_save(const trainer *t);
/* The same, whole in itself, as OUT/checkpoint.best. Collective. */
wb_status checkpoint_save_best(const trainer *t);
/* Into `o`, what the run that wrote the checkpoint `dir` was given and this command line leaves open
 * (options_resume). *saved_out owns the texts among them, to be released by the caller. Not collective. */
wb_status checkpoint_options(const char *dir, bool loud, options *o, json_t **saved_out);
/* Says, on rank 0, where a run that had placed its experts begins anew because `dir` lacks the placement. */
void checkpoint_say_lost_placement(const trainer *t, const char *dir);
/* Optimizer and counters of `dir` into `t`, whose model was opened from it. Collective. */
wb_status checkpoint_load(trainer *t, const char *dir);
/* MISMATCH where the digests of `t` are not those of the run that wrote `dir`. t->best is forgotten where the
 * evaluation is another, and is that of OUT/checkpoint.best where that is of a later step. Collective. */
wb_status checkpoint_check_same_run(trainer *t, const char *dir);

/* ---- reference_digest.c ---------------------------------------------------------------------- */

/* A number of all weights, the same on every rank and on any number of ranks. Collective. */
wb_status reference_digest(wb_model *model, uint64_t *digest_out);

/* ---- finite_weights.c ------------------------------------------------------------------------ */

/* CORRUPT with the first tensor of a model that holds a NaN or an infinity; `dir`: where the model is
 * from. Collective. */
wb_status finite_weights_check(wb_model *model, const char *dir);

/* ---- report.c -------------------------------------------------------------------------------- */

typedef struct report report;
/* `loud`: this rank writes OUT/metrics.jsonl and the progress display; the others are silent. Lines of
 * steps >= first_step (an earlier, interrupted run) are dropped. */
wb_status report_open(const options *o, bool loud, uint64_t first_step, report **report_out);
void report_close(report *r);
/* How far this rank is in a phase of a step, in tokens, with speed and time left: on a terminal a line that
 * changes, elsewhere one every ten seconds. phase: a static string. */
void report_progress(report *r, uint64_t step, const char *phase, int64_t done, int64_t total);
wb_status report_step(report *r, uint64_t step, const step_metrics *m);
void report_line(report *r, const char *format, ...) WB_PRINTF(2, 3);
void report_summary(const report *r); /* the table at the end, on standard output */
/* Says this rank's failure and its message on standard error, if no failure was said yet: where one rank
 * fails while the others are at work for long, it is said at once, and not again when the run ends of it. */
void report_failure(int rank, wb_status status);
double now_seconds(void); /* of a clock that only goes forward */

/* ---- run_notes.c ----------------------------------------------------------------------------- */

/* What of the files of `model` does not count; NULL: there is no such model. */
void report_ignored(report *r, const wb_model *model);
/* Which tokens end a sample (*stops_from: stop_tokens_find), and prompts that do not fit. */
void report_task(report *r, const trainer *t, const task *task_, const char *stops_from);
void report_stopped(const trainer *t, report *r, int signal, bool dropped, bool saved);
/* What the rank that took most has had, of a quiet run too: --plan-memory says the first number before.
 * Collective. */
wb_status report_memory(const trainer *t, report *r);

/* ---- training.c ------------------------------------------------------------------------------ */

/* Trains as the options say, from --model or, resuming, from OUT's checkpoint. *signal_out: 0, or the signal
 * that ended the run early, its checkpoint saved. Collective. */
wb_status training_run(const options *o, wb_device *device, wb_comm *comm, int *signal_out);

/* ---- warmup.c -------------------------------------------------------------------------------- */

/* A tiny model trained on the arithmetic task until it is right now and then, saved to o->make_base, which is
 * left as it was found where this fails or is stopped. *signal_out: 0, or the signal that ended it early.
 * Collective. */
wb_status warmup_make_base(const options *o, wb_device *device, wb_comm *comm, report *r, int *signal_out);

#endif
