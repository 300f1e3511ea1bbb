/* training.c - a run from its start, which may be the checkpoint of an interrupted one, to its last step:
 * opens what it needs, then generates, rewards, trains and hands the new weights to the engine, step by
 * step. */
#include "open_sizes.h"
#include "out_place.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What generates samples and judges them. */
typedef struct rollout_side {
    wb_model *model;       /* the engine's own copy of the weights, in --rollout-dtype */
    wb_rebalance *experts; /* NULL but under --eplb live */
    wb_engine *engine;
    rollout_weights *weights; /* what the policy's become on their way to the engine */
    task *task;
    task *evaluation;        /* NULL without --eval-task */
    reward_program *rewards; /* NULL: the task has its own */
} rollout_side;

static wb_status open_rollout(trainer *t, rollout_side *side) {
    const wb_model_options rollout = sizes_rollout(t->o, t->device, t->comm, NULL);
    WB_TRY(wb_model_clone(t->model, &rollout, &side->model));
    wb_engine_options engine = sizes_engine(t->o);
    if (t->o->eplb == EPLB_LIVE) {
        WB_TRY(live_experts_open(t->o, side->model, &side->experts));
        engine.rebalance = side->experts;
        t->follow = wb_model_placement(side->model);
    }
    wb_status status = WB_OK;
    if (t->o->eplb == EPLB_PLANNED) status = wb_model_reserve_copy(side->model, t->model);
    if (status == WB_OK) status = wb_engine_open(side->model, &engine, &side->engine);
    WB_TRY(wb_comm_agree(t->comm, status));
    WB_TRY(rollout_weights_open(t, &side->weights));
    return rollout_weights_set(side->weights, t, side->engine);
}

/* A model of another shape may be the reference: the two only have to speak of the same tokens. */
static wb_status check_reference(const trainer *t) {
    int32_t expected = wb_model_config(t->model)->vocab_size,
            found = wb_model_config(t->reference)->vocab_size;
    if (found == expected) return WB_OK;
    return wb_fail(WB_MISMATCH,
                   "--model %s as reference: expected the policy's vocabulary of %" PRId32 ", found %" PRId32,
                   t->o->model_dir, expected, found);
}

/* At the start of a run the reference is the policy as it was loaded, without its replicas. */
static wb_status clone_reference(trainer *t) {
    wb_placement *placement;
    options plain = *t->o;
    plain.redundant_experts = 0;
    const wb_config *config = wb_model_config(t->model);
    WB_TRY(wb_comm_agree(t->comm, expert_places_default(&plain, config, wb_comm_size(t->comm), &placement)));
    const wb_model_options reference = sizes_policy(t->o, t->device, t->comm, placement);
    const wb_status status = wb_model_clone(t->model, &reference, &t->reference);
    wb_placement_close(placement);
    return status;
}

/* Later its files are read again. */
static wb_status open_reference(trainer *t, bool resumed) {
    if (t->o->kl_coef <= 0) return WB_OK;
    const wb_model_options reference = sizes_policy(t->o, t->device, t->comm, NULL);
    if (resumed) {
        WB_TRY(wb_model_open(t->o->model_dir, &reference, &t->reference));
        WB_TRY(finite_weights_check(t->reference, t->o->model_dir));
    } else {
        WB_TRY(clone_reference(t));
    }
    WB_TRY(check_reference(t));
    WB_TRY(reference_digest(t->reference, &t->reference_digest));
    const wb_train_options forward_only = sizes_train(t->o, wb_model_config(t->reference), true);
    return wb_comm_agree(t->comm, wb_train_open(t->reference, &forward_only, &t->reference_train));
}

static wb_status open_replay(const trainer *t, wb_missing_policy missing, wb_replay **out) {
    wb_replay_options replay = wb_replay_options_default();
    replay.missing = missing;
    replay.indexer = t->o->replay_indexer;
    replay.placement = wb_model_placement(t->model);
    replay.hash = wb_model_hash_routes(t->model);
    return wb_replay_open(wb_model_routes(t->model), &replay, out);
}

static wb_status place_experts(trainer *t, const char *dir, bool resumed) {
    wb_config config;
    WB_TRY(wb_config_load(dir, &config));
    if (resumed) checkpoint_say_lost_placement(t, dir);
    return expert_places_open(t->o, &config, wb_comm_size(t->comm), resumed ? dir : NULL,
                              wb_comm_rank(t->comm) == 0, &t->placement);
}

/* Everything but the report, from `dir`: the base checkpoint or the one to resume. */
static wb_status open_trainer(trainer *t, const char *dir, bool resumed) {
    WB_TRY(wb_comm_agree(t->comm, place_experts(t, dir, resumed)));
    const wb_model_options model = sizes_policy(t->o, t->device, t->comm, t->placement);
    WB_TRY(wb_model_open(dir, &model, &t->model));
    WB_TRY(finite_weights_check(t->model, dir));
    WB_TRY(bias_check(t));
    WB_TRY(lists_check(t->o, wb_model_config(t->model)));
    const wb_train_options train = sizes_train(t->o, wb_model_config(t->model), false);
    wb_status status = wb_train_open(t->model, &train, &t->train);
    if (status == WB_OK) status = optimizer_open(t->model, t->train, t->device, t->comm, &t->opt);
    if (status == WB_OK) status = open_replay(t, t->o->missing, &t->replay);
    if (status == WB_OK) status = open_replay(t, WB_MISSING_NATIVE, &t->compare);
    WB_TRY(wb_comm_agree(t->comm, status));
    WB_TRY(optimizer_take_masters(&t->opt));
    return open_reference(t, resumed);
}

static void close_trainer(trainer *t) {
    wb_replay_close(t->compare);
    wb_replay_close(t->replay);
    optimizer_close(&t->opt);
    wb_train_close(t->reference_train);
    wb_model_close(t->reference);
    wb_train_close(t->train);
    wb_model_close(t->model);
    wb_placement_close(t->placement);
}

/* The batch, and what its experts did meanwhile. */
static wb_status generate(const trainer *t, const rollout_side *side, report *r, int *signal_out, batch *b,
                          step_metrics *m) {
    const wb_engine_stats engine_before = wb_engine_get_stats(side->engine);
    wb_rebalance_stats before = {0};
    if (side->experts) before = wb_rebalance_get_stats(side->experts);
    WB_TRY(rollouts_generate(side->engine, t->comm, t->o, side->task, t->step, r, signal_out, b));
    if (*signal_out != 0) return WB_OK;
    wb_status status = rollouts_count(side->engine, &engine_before, t->comm, m);
    if (status == WB_OK && side->experts) status = live_experts_report(side->experts, &before, t->comm, r, m);
    if (status == WB_OK)
        status = expert_load_balancedness(t->model, wb_model_placement(side->model), b, &m->balancedness);
    if (status != WB_OK) batch_free(b);
    return status;
}

/* Under the weights that a step has ended with, which the engine has by now. A run that is told to stop
 * meanwhile stops as behind any step that is done. */
static wb_status evaluate(trainer *t, const rollout_side *side, report *r, step_metrics *m) {
    const uint64_t done = t->step + 1;
    const bool due = done % (uint64_t)t->o->eval_every == 0 || done == (uint64_t)t->o->steps;
    if (!side->evaluation || !due) return WB_OK;
    const double start = now_seconds();
    WB_TRY(evaluation_run(side->engine, t->comm, t->o, side->evaluation, side->rewards, t->step, r,
                          &m->evaluated, &m->evaluation));
    m->seconds_evaluation = now_seconds() - start;
    if (m->evaluated && (!t->best.known || m->evaluation.reward > t->best.reward))
        t->best = (best_reward){true, m->evaluation.reward, done, true};
    return WB_OK;
}

/* *signal_out: not 0 when the step was dropped, because some rank was told to stop before it trained. The
 * dump comes before the rewards: what was generated is not lost with a reward program that fails. */
static wb_status one_step(trainer *t, const rollout_side *side, report *r, int *signal_out) {
    batch b = {0};
    step_metrics m = {.long_prompts = task_n_long(side->task)};
    double start = now_seconds();
    WB_TRY(generate(t, side, r, signal_out, &b, &m));
    if (*signal_out != 0) return WB_OK;
    m.seconds_rollout = now_seconds() - start;
    wb_status status = WB_OK;
    if (!t->o->no_dump)
        status = wb_comm_agree(
            t->comm, dumps_write(t->o, wb_model_routes(t->model), wb_comm_rank(t->comm), t->step, &b));
    if (status == WB_OK) status = rollouts_reward(t->comm, t->o, side->task, side->rewards, t->step, &b);
    if (status == WB_OK) status = interrupt_agree(t->comm, signal_out);
    bool dropped = *signal_out != 0;
    start = now_seconds();
    if (status == WB_OK && !dropped) status = train_step(t, &b, r, &m);
    m.seconds_train = now_seconds() - start;
    batch_free(&b);
    if (status != WB_OK || dropped) return status;
    /* Before a checkpoint keeps what the rewards have led to. */
    WB_TRY(wb_comm_agree(t->comm, reward_check(side->rewards)));
    t->weight_version++;
    WB_TRY(rollout_weights_set(side->weights, t, side->engine));
    WB_TRY(evaluate(t, side, r, &m));
    m.epoch += t->epoch_before;
    t->epoch = m.epoch;
    return wb_comm_agree(t->comm, report_step(r, t->step, &m));
}

static wb_status train_loop(trainer *t, const rollout_side *side, report *r, int *signal_out) {
    uint64_t steps = (uint64_t)t->o->steps, every = (uint64_t)t->o->checkpoint_every, saved = t->step;
    while (t->step < steps && *signal_out == 0) {
        WB_TRY(one_step(t, side, r, signal_out));
        bool dropped = *signal_out != 0;
        if (!dropped) {
            t->step++;
            if (t->o->keep_best && t->best.unsaved) WB_TRY(checkpoint_save_best(t));
            t->best.unsaved = false;
            WB_TRY(interrupt_agree(t->comm, signal_out));
        }
        bool due = t->step == steps || (every > 0 && t->step % every == 0) || *signal_out != 0;
        if (due && t->step > saved) {
            WB_TRY(checkpoint_save(t));
            saved = t->step;
        }
        if (*signal_out != 0) report_stopped(t, r, *signal_out, dropped, saved > 0);
    }
    return WB_OK;
}

/* The run is over and saved, so that a program which ends badly now is no failure of it; each rank says its
 * own, also a quiet one. */
static void end_rewards(const trainer *t, const rollout_side *side) {
    if (reward_end(side->rewards) != WB_OK)
        fprintf(stderr, "waybill-grpo: rank %d: after the last step: %s\n", wb_comm_rank(t->comm),
                wb_error_message());
}

/* The task, its prompts looked at before anything is generated, and what ends a sample: as `dir`, the model's
 * checkpoint, has it. */
static wb_status open_task(trainer *t, const char *option, const char *spec, bool in_order, const char *dir,
                           const char **stops_from_out, task **task_out) {
    const wb_config *config = wb_model_config(t->model);
    const options *o = t->o;
    int32_t positions = config->max_positions;
    if (t->reference && wb_model_config(t->reference)->max_positions < positions)
        positions = wb_model_config(t->reference)->max_positions;
    WB_TRY(sizes_max_prompt(o, positions, &t->max_prompt));
    WB_TRY(task_open(option, spec, o->seed, config->vocab_size, task_out));
    wb_status status = task_find_stops(*task_out, o->stop_token, dir, config->vocab_size, stops_from_out);
    if (status == WB_OK) status = task_fit_prompts(*task_out, o->long_prompts, t->max_prompt);
    if (status == WB_OK && in_order) task_take_in_order(*task_out);
    if (status == WB_OK) return WB_OK;
    task_close(*task_out);
    *task_out = NULL;
    return status;
}

static wb_status open_tasks(trainer *t, const char *dir, const char **stops_from_out, rollout_side *side) {
    const char *same;
    WB_TRY(open_task(t, "--task", t->o->task, false, dir, stops_from_out, &side->task));
    return t->o->eval_task ? open_task(t, "--eval-task", t->o->eval_task, true, dir, &same, &side->evaluation)
                           : WB_OK;
}

/* The options of the run: those of the command line, and of the checkpoint where there is one. */
static wb_status settle_options(options *o, wb_comm *comm, const char *checkpoint, json_t **saved_out) {
    wb_status status =
        checkpoint ? checkpoint_options(checkpoint, wb_comm_rank(comm) == 0, o, saved_out) : options_check(o);
    /* From here on the run's, so that one that resumes goes on falling as it did. */
    if (o->lr_steps == 0 && o->schedule != LR_CONSTANT) o->lr_steps = o->steps;
    return wb_comm_agree(comm, status);
}

/* That the prompts are the same on all ranks, and prompts and reference those of the run that goes on. */
static wb_status check_same_run(trainer *t, const rollout_side *side, const char *checkpoint) {
    t->task_digest = task_digest(side->task);
    t->evaluation_digest = side->evaluation ? task_digest(side->evaluation) : 0;
    WB_TRY(wb_comm_check_equal(t->comm, &t->task_digest, sizeof t->task_digest, "the prompts of --task"));
    WB_TRY(wb_comm_check_equal(t->comm, &t->evaluation_digest, sizeof t->evaluation_digest,
                               "the prompts of --eval-task"));
    return checkpoint ? checkpoint_check_same_run(t, checkpoint) : WB_OK;
}

/* A run that resumes without a reference needs nothing of --model but hands its name on, to a later run that
 * may want one: another model than before must be of the checkpoint's kind. A reference may be of another
 * shape (check_reference). Collective. */
static wb_status check_given_model(const trainer *t, const json_t *saved) {
    const char *before = json_string_value(json_object_get(saved, "--model"));
    if (t->reference || !before || strcmp(before, t->o->model_dir) == 0) return WB_OK;
    const wb_model_options model = sizes_policy(t->o, t->device, t->comm, NULL);
    wb_model *given;
    WB_TRY(wb_model_open(t->o->model_dir, &model, &given));
    const char *expected = wb_model_routes(t->model)->fingerprint,
               *found = wb_model_routes(given)->fingerprint;
    wb_status status = WB_OK;
    if (strcmp(expected, found) != 0)
        status =
            wb_fail(WB_MISMATCH,
                    "--model %s: another kind of model than that of the run, which began from %s: expected "
                    "the fingerprint %s, found %s",
                    t->o->model_dir, before, expected, found);
    wb_model_close(given);
    return wb_comm_agree(t->comm, status);
}

/* Whether there is nothing to do; then nothing is removed either, of whatever step. */
static bool is_done(const trainer *t, const char *checkpoint) {
    if (t->step < (uint64_t)t->o->steps) return false;
    char path[PATH_BYTES];
    if (wb_comm_rank(t->comm) != 0) return true;
    fprintf(stderr, "%s has %" PRIu64 " of %" PRId64 " steps: nothing to do\n", checkpoint, t->step,
            t->o->steps);
    if (dumps_find(t->o, t->step, path) == WB_OK && path[0] != '\0')
        fprintf(stderr, "%s is of a step that was not trained on: more --steps do it again\n", path);
    return true;
}

wb_status training_run(const options *given, wb_device *device, wb_comm *comm, int *signal_out) {
    options o = *given;
    trainer t = {.o = &o, .device = device, .comm = comm};
    rollout_side side = {0};
    const char *stops_from = NULL;
    report *r = NULL;
    char *resume_dir = NULL;
    out_lock *lock = NULL;
    json_t *saved = NULL;
    wb_status status;
    WB_GOTO(out_find_start(&o, comm, &lock, &resume_dir), close_all);
    WB_GOTO(settle_options(&o, comm, resume_dir, &saved), close_all);
    WB_GOTO(out_check_model(&o, comm), close_all);
    const char *start_dir = resume_dir ? resume_dir : o.model_dir;
    WB_GOTO(open_trainer(&t, start_dir, resume_dir != NULL), close_all);
    if (resume_dir) WB_GOTO(checkpoint_load(&t, resume_dir), close_all);
    WB_GOTO(check_given_model(&t, saved), close_all);
    WB_GOTO(wb_comm_agree(comm, open_tasks(&t, start_dir, &stops_from, &side)), close_all);
    WB_GOTO(check_same_run(&t, &side, resume_dir), close_all);
    if (is_done(&t, resume_dir)) goto close_all;
    WB_GOTO(open_rollout(&t, &side), close_all);
    WB_GOTO(out_make(&o, comm, t.step, &lock), close_all);
    WB_GOTO(wb_comm_agree(comm, report_open(&o, wb_comm_rank(comm) == 0, t.step, &r)), close_all);
    if (resume_dir) report_line(r, "resuming after step %" PRIu64 " from %s", t.step, resume_dir);
    if (o.reward_cmd) WB_GOTO(wb_comm_agree(comm, reward_open(&o, &side.rewards)), close_all);
    report_ignored(r, t.model);
    report_ignored(r, t.reference);
    report_task(r, &t, side.task, stops_from);
    WB_GOTO(train_loop(&t, &side, r, signal_out), close_all);
    WB_GOTO(report_memory(&t, r), close_all);
    report_summary(r);
    end_rewards(&t, &side);
close_all:
    reward_close(side.rewards);
    report_close(r);
    wb_engine_close(side.engine);
    rollout_weights_close(side.weights);
    wb_rebalance_close(side.experts);
    wb_model_close(side.model);
    task_close(side.evaluation);
    task_close(side.task);
    close_trainer(&t);
    json_decref(saved);
    free(resume_dir);
    out_lock_release(lock);
    return status;
}
