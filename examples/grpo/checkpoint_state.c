/* checkpoint_state.c - trainer/state.json of a checkpoint: counters, the options of the run, digests of its
 * prompts and its reference, its best evaluation; written, and taken over by a run that resumes. */
#include "checkpoint_place.h"
#include "wb_file.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- written --------------------------------------------------------------------------------- */

enum { DIGEST_BYTES = 17 };

static const char *digest_text(uint64_t digest, char *text) {
    snprintf(text, DIGEST_BYTES, "%016" PRIx64, digest);
    return text;
}

wb_status checkpoint_save_state(const trainer *t, const char *dir) {
    char path[PATH_BYTES];
    WB_TRY(path_join(path, dir, "state.json"));
    char prompts[DIGEST_BYTES], reference[DIGEST_BYTES], evaluation[DIGEST_BYTES];
    json_t *state = json_pack(
        "{s:I, s:I, s:I, s:I, s:i, s:s, s:s, s:I, s:s*, s:s, s:o*, s:o}", "step", (json_int_t)t->step,
        "epoch", (json_int_t)t->epoch, "weight_version", (json_int_t)t->weight_version, "optimizer_step",
        (json_int_t)t->opt.step, "ranks", wb_comm_size(t->comm), "fingerprint",
        wb_model_routes(t->model)->fingerprint, "prompts", digest_text(t->task_digest, prompts), "max_prompt",
        (json_int_t)t->max_prompt, "reference",
        t->reference ? digest_text(t->reference_digest, reference) : NULL, "evaluation",
        digest_text(t->evaluation_digest, evaluation), "best",
        t->best.known ? json_pack("{s:f, s:I}", "reward", t->best.reward, "step", (json_int_t)t->best.step)
                      : NULL,
        "options", options_to_json(t->o));
    char *text = state ? json_dumps(state, JSON_INDENT(1)) : NULL;
    json_decref(state);
    if (!text) return wb_fail(WB_OUT_OF_MEMORY, "%s: the trainer's state", path);
    wb_status status = wb_file_replace(path, text, strlen(text));
    free(text);
    return status;
}

/* ---- read ------------------------------------------------------------------------------------ */

static wb_status read_state(const char *dir, char *path, json_t **state_out) {
    WB_TRY(path_join(path, dir, CHECKPOINT_STATE));
    return text_json(path, state_out);
}

wb_status checkpoint_place_of_replaced(const trainer *t, const char *current, char *kept_out) {
    char path[PATH_BYTES], suffix[CHECKPOINT_SUFFIX_BYTES];
    json_t *state;
    kept_out[0] = '\0';
    if (t->o->keep_last < 2 || !path_has(current, CHECKPOINT_STATE)) return WB_OK;
    WB_TRY(read_state(current, path, &state));
    const json_int_t step = json_integer_value(json_object_get(state, "step"));
    json_decref(state);
    if (step < 1 || (uint64_t)step >= t->step) return WB_OK;
    checkpoint_step_suffix((uint64_t)step, suffix);
    return checkpoint_place(t->o, suffix, kept_out);
}

wb_status checkpoint_options(const char *dir, bool loud, options *o, json_t **saved_out) {
    char path[PATH_BYTES];
    json_t *state = NULL;
    WB_TRY(read_state(dir, path, &state));
    json_t *saved = json_object_get(state, "options");
    wb_status status = WB_OK;
    if (json_is_object(saved))
        status = options_resume(o, saved, dir, loud);
    else if (loud)
        fprintf(stderr, "%s: has no options, as those before 0.3: taken from the command line alone\n", path);
    if (status == WB_OK) status = options_check(o);
    if (status == WB_OK) *saved_out = json_incref(saved);
    json_decref(state);
    return status;
}

/* Whether the run that saved it placed its experts, by the options that it keeps. */
static bool placed_experts(const char *dir) {
    char path[PATH_BYTES];
    json_t *state = NULL;
    if (read_state(dir, path, &state) != WB_OK) return false;
    const char *eplb = json_string_value(json_object_get(json_object_get(state, "options"), "--eplb"));
    const bool placed = eplb && strcmp(eplb, "off") != 0;
    json_decref(state);
    return placed;
}

void checkpoint_say_lost_placement(const trainer *t, const char *dir) {
    const options *o = t->o;
    if (wb_comm_rank(t->comm) != 0 || o->eplb == EPLB_OFF || o->init_placement) return;
    if (path_has(dir, PLACEMENT_FILE) || !placed_experts(dir)) return;
    fprintf(stderr,
            "%s/" PLACEMENT_FILE ": expected the run's placement, found none: experts are placed anew\n",
            dir);
}

/* A checkpoint of a run that evaluates nothing has none. */
static best_reward best_of(const json_t *state) {
    const json_t *best = json_object_get(state, "best");
    const json_int_t step = json_integer_value(json_object_get(best, "step"));
    if (!best || step < 0) return (best_reward){0};
    return (best_reward){true, json_number_value(json_object_get(best, "reward")), (uint64_t)step, false};
}

/* Whether rewards of that run's evaluations can be compared with those of this one: of the same prompts, by
 * the same program. A checkpoint without the digest is one of before it was kept. */
static bool same_evaluation(const trainer *t, const json_t *state) {
    char now[DIGEST_BYTES];
    const char *set = json_string_value(json_object_get(state, "evaluation"));
    const char *program =
        json_string_value(json_object_get(json_object_get(state, "options"), "--reward-cmd"));
    if (set && strcmp(set, digest_text(t->evaluation_digest, now)) != 0) return false;
    return program && t->o->reward_cmd ? strcmp(program, t->o->reward_cmd) == 0
                                       : !program == !t->o->reward_cmd;
}

/* A run that was killed has saved its best of a step that is done again now. That stays the best, since the
 * one before it is gone. */
static wb_status take_later_best(trainer *t) {
    char dir[PATH_BYTES], path[PATH_BYTES];
    json_t *state = NULL;
    WB_TRY(checkpoint_place(t->o, CHECKPOINT_BEST, dir));
    if (!t->o->keep_best || !path_has(dir, CHECKPOINT_STATE)) return WB_OK;
    WB_TRY(read_state(dir, path, &state));
    const best_reward saved = best_of(state);
    const bool same = same_evaluation(t, state);
    json_decref(state);
    if (!saved.known || !same || saved.step <= t->step) return WB_OK;
    t->best = saved;
    if (wb_comm_rank(t->comm) == 0)
        fprintf(stderr, "%s: of step %" PRIu64 ", which is done again: its reward %g is the best so far\n",
                dir, saved.step, saved.reward);
    return WB_OK;
}

/* What the checkpoint knows as its best, where the evaluation is still the same. */
static wb_status take_best(trainer *t, const char *dir, const json_t *state) {
    if (t->best.known && !same_evaluation(t, state)) {
        t->best = (best_reward){0};
        if (wb_comm_rank(t->comm) == 0)
            fprintf(stderr,
                    "%s: the best reward is of another --eval-task or --reward-cmd, and is forgotten\n", dir);
    }
    return take_later_best(t);
}

wb_status checkpoint_load_state(trainer *t, const char *dir, int *ranks_out) {
    char path[PATH_BYTES];
    json_t *state = NULL;
    WB_TRY(read_state(dir, path, &state));
    json_int_t step, version, optimizer_step, epoch = 0; /* older ones have none */
    const char *fingerprint, *expected = wb_model_routes(t->model)->fingerprint;
    wb_status status = WB_OK;
    if (json_unpack(state, "{s:I, s?I, s:I, s:I, s:i, s:s}", "step", &step, "epoch", &epoch, "weight_version",
                    &version, "optimizer_step", &optimizer_step, "ranks", ranks_out, "fingerprint",
                    &fingerprint) != 0 ||
        step < 0 || epoch < 0 || version < 0 || optimizer_step < 0 || *ranks_out < 1) {
        status = wb_fail(WB_CORRUPT,
                         "%s: expected step, weight_version, optimizer_step, ranks and fingerprint", path);
    } else if (strcmp(fingerprint, expected) != 0) {
        status = wb_fail(WB_MISMATCH, "%s: expected the model's fingerprint %s, found %s", path, expected,
                         fingerprint);
    } else {
        t->step = (uint64_t)step;
        t->epoch = t->epoch_before = (uint64_t)epoch;
        t->weight_version = (uint64_t)version;
        t->opt.step = (uint64_t)optimizer_step;
        t->best = best_of(state);
    }
    json_decref(state);
    return status;
}

/* What the options do not name by its content: a file of prompts and a folder of weights may have changed. A
 * checkpoint that has no digest is one of before they were kept, or of a run without reference. */
static wb_status check_digests(const trainer *t, const char *dir, const json_t *state) {
    char now[DIGEST_BYTES];
    const char *prompts = json_string_value(json_object_get(state, "prompts"));
    const char *reference = json_string_value(json_object_get(state, "reference"));
    bool same_prompts = !prompts || strcmp(prompts, digest_text(t->task_digest, now)) == 0;
    json_int_t max_prompt = json_integer_value(json_object_get(state, "max_prompt"));
    if (!same_prompts && t->o->long_prompts != LONG_PROMPTS_ERROR && max_prompt != t->max_prompt)
        return wb_fail(
            WB_MISMATCH,
            "--task %s: the run in %s had prompts of at most %" PRId64 " tokens, now %" PRId64
            ": expected --max-tokens, --kv-blocks, --block-size and --micro-batch-tokens as they were",
            t->o->task, dir, (int64_t)max_prompt, t->max_prompt);
    if (!same_prompts)
        return wb_fail(WB_MISMATCH,
                       "--task %s: other prompts than those of the run in %s: expected digest %s, found %s",
                       t->o->task, dir, prompts, now);
    if (t->reference && reference && strcmp(reference, digest_text(t->reference_digest, now)) != 0)
        return wb_fail(
            WB_MISMATCH,
            "--model %s: other weights than the reference of the run in %s: expected digest %s, found %s",
            t->o->model_dir, dir, reference, now);
    return WB_OK;
}

wb_status checkpoint_check_same_run(trainer *t, const char *dir) {
    char path[PATH_BYTES];
    json_t *state = NULL;
    wb_status status = read_state(dir, path, &state);
    if (status == WB_OK) status = check_digests(t, dir, state);
    if (status == WB_OK) status = take_best(t, dir, state);
    json_decref(state);
    return wb_comm_agree(t->comm, status);
}
