/* command_line.c - the command line of waybill-grpo: read, explained, and looked at as a whole. */
#include "option_table.h"
#include "wb_threads.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static void print_choice(const option_row *row, int value) {
    size_t length;
    const char *name = option_choice(row, value, &length);
    printf(" (%.*s) [%s]", (int)length, name, row->choices);
}

/* With its default. */
static void print_option(const option_row *row) {
    char left[64];
    const char *field = (const char *)&option_defaults + row->offset;
    snprintf(left, sizeof left, "%s %s", row->name, row->value);
    printf("  %-26s %s", left, row->help);
    if (row->kind == INTEGER && *(const int64_t *)field >= 0)
        printf(" (%" PRId64 ")", *(const int64_t *)field);
    if (row->kind == NUMBER) printf(" (%g)", *(const double *)field);
    if (row->kind == SEED) printf(" (%" PRIu64 ")", *(const uint64_t *)field);
    if (row->kind == CHOICE) print_choice(row, *(const int *)field);
    printf("\n");
}

static void print_help(void) {
    printf("usage: mpirun -n RANKS waybill-grpo --model DIR --out DIR [options]\n"
           "       mpirun -n RANKS waybill-grpo --make-base DIR [options]\n"
           "       waybill-grpo --model DIR --plan-memory RANKS [options]\n\n"
           "GRPO training of a Mixture-of-Experts model under routing replay: every token's experts are "
           "recorded during\n"
           "rollout and forced in the training forward. Experts are sharded over the ranks.\n"
           "A value is the next word or stands behind '=': --lr 1e-4, --lr=1e-4.\n\n");
    for (int g = 0; g < N_OPTION_GROUPS; g++) {
        printf("%s%s:\n", g > 0 ? "\n" : "", option_group_names[g]);
        for (int i = 0; i < N_OPTIONS; i++)
            if (option_rows[i].group == (option_group)g) print_option(&option_rows[i]);
    }
    printf("\nOther:\n");
    printf("  %-26s %s\n", "--version", "the version");
    printf(
        "\nExit status: 0 done, 1 a failure (its message names what and where), 2 a wrong command line, "
        "128 + N "
        "stopped by signal N:\n"
        "SIGINT, SIGTERM or SIGUSR1 on any rank drop a rollout or finish the step that trains, save a "
        "checkpoint "
        "and end the run;\n"
        "the second one ends it at once. mpirun passes on SIGUSR1 as it comes, and turns Ctrl-C into SIGTERM "
        "after a second and SIGKILL\n"
        "after another, or N seconds with --mca odls_base_sigkill_timeout N.\n");
}

/* The row that "--name" or "--name=value" names; *value_out is the text after "=", or NULL. */
static const option_row *find_row(const char *word, const char **value_out) {
    const char *equals = strchr(word, '=');
    size_t length = equals ? (size_t)(equals - word) : strlen(word);
    *value_out = equals ? equals + 1 : NULL;
    for (int i = 0; i < N_OPTIONS; i++)
        if (length == strlen(option_rows[i].name) && memcmp(word, option_rows[i].name, length) == 0)
            return &option_rows[i];
    return NULL;
}

/* Takes one option with its value; *i is the last word used. */
static wb_status take_option(int argc, char **argv, int *i, options *o) {
    const char *value;
    const option_row *row = find_row(argv[*i], &value);
    if (!row) return wb_fail(WB_INVALID_ARGUMENT, "unknown option %s (see --help)", argv[*i]);
    if (row->kind == FLAG && value)
        return wb_fail(WB_INVALID_ARGUMENT, "%s: expected no value, found '%s'", row->name, value);
    if (row->kind != FLAG && !value) {
        if (*i + 1 == argc) return wb_fail(WB_INVALID_ARGUMENT, "%s needs a value (see --help)", row->name);
        value = argv[++*i];
    }
    WB_TRY(option_set(row, o, value));
    o->given[row - option_rows] = true;
    return WB_OK;
}

static wb_status check_live(const options *o) {
    static const char *const names[] = {"--rebalance-every", "--layers-per-chunk"};
    for (size_t i = 0; i < sizeof names / sizeof names[0] && o->eplb != EPLB_LIVE; i++)
        if (options_given(o, names[i]))
            return wb_fail(WB_INVALID_ARGUMENT, "%s: expected --eplb live beside it", names[i]);
    return WB_OK;
}

static wb_status check_evaluation(const options *o) {
    static const char *const names[] = {"--eval-every", "--eval-temperature", "--keep-best"};
    for (size_t i = 0; i < sizeof names / sizeof names[0] && !o->eval_task; i++)
        if (options_given(o, names[i]))
            return wb_fail(WB_INVALID_ARGUMENT, "%s: expected --eval-task beside it", names[i]);
    if (!o->eval_task) return WB_OK;
    WB_TRY(task_check_spec("--eval-task", o->eval_task));
    if (strcmp(o->eval_task, "arithmetic") != 0 && !o->reward_cmd)
        return wb_fail(WB_INVALID_ARGUMENT, "--eval-task %s needs --reward-cmd", o->eval_task);
    return WB_OK;
}

wb_status options_check(const options *o) {
    if (!o->model_dir)
        return wb_fail(WB_INVALID_ARGUMENT, "--model is needed: there is no checkpoint to resume from");
    WB_TRY(task_check_spec("--task", o->task));
    WB_TRY(stop_tokens_check(o->stop_token));
    if (strcmp(o->task, "arithmetic") != 0 && !o->reward_cmd)
        return wb_fail(WB_INVALID_ARGUMENT, "--task %s needs --reward-cmd", o->task);
    /* Not a bound of the table, so that the message can say why; as the f32 that a request has. */
    if ((float)o->temperature < WB_MIN_TEMPERATURE)
        return wb_fail(
            WB_INVALID_ARGUMENT,
            "--temperature %g: expected at least %g: a greedy sample is a point mass, all samples of a "
            "prompt are the same and their gradient is zero",
            o->temperature, (double)WB_MIN_TEMPERATURE);
    if (o->eplb == EPLB_OFF && o->redundant_experts > 0)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "--redundant-experts %" PRId64 ": expected 0 under --eplb off, which has no replicas",
                       o->redundant_experts);
    if (o->eplb == EPLB_OFF && o->init_placement)
        return wb_fail(WB_INVALID_ARGUMENT, "--init-placement %s: expected none under --eplb off",
                       o->init_placement);
    WB_TRY(check_live(o));
    WB_TRY(check_evaluation(o));
    if (o->schedule == LR_CONSTANT && options_given(o, "--lr-end"))
        return wb_fail(
            WB_INVALID_ARGUMENT,
            "--lr-end %g: expected --lr-schedule linear or cosine beside it: a constant rate falls "
            "to nothing else",
            o->lr_end);
    if (o->rollout_bits == 1)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "--rollout-bits 1: expected 0, or 2 to 8 bits: one is for a sign");
    if (o->tis_cap > 0 && o->ratio == RATIO_SEQUENCE)
        return wb_fail(
            WB_INVALID_ARGUMENT,
            "--tis-cap %g: expected --ratio token beside it: a sequence has one ratio for all tokens",
            o->tis_cap);
    if (o->prompts % o->updates != 0)
        return wb_fail(WB_INVALID_ARGUMENT, "--prompts %" PRId64 " is not a multiple of --updates %" PRId64,
                       o->prompts, o->updates);
    return WB_OK;
}

/* An option that --make-base does not look at was meant for something else. */
static wb_status check_make_base(const options *o) {
    static const char *const taken[] = {"--make-base",    "--family",    "--warmup-steps", "--seed",
                                        "--weight-decay", "--grad-clip", "--threads",      "--peer-timeout",
                                        "--quiet",        "--device"};
    for (int i = 0; i < N_OPTIONS; i++) {
        bool known = !o->given[i];
        for (size_t j = 0; !known && j < sizeof taken / sizeof taken[0]; j++)
            known = strcmp(option_rows[i].name, taken[j]) == 0;
        if (!known)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "%s: expected none beside --make-base, which does not train from a model",
                           option_rows[i].name);
    }
    return WB_OK;
}

/* What a resumed run takes from its checkpoint is not known. */
static wb_status check_plan(const options *o) {
    if (o->resume) return wb_fail(WB_INVALID_ARGUMENT, "--resume: expected none beside --plan-memory");
    if (!o->model_dir) return wb_fail(WB_INVALID_ARGUMENT, "--plan-memory: expected --model beside it");
    return options_check(o);
}

/* A run that resumes has its other options from the checkpoint, and is checked when they are known. */
static wb_status check_together(const options *o) {
    if (o->make_base) return check_make_base(o);
    if (o->plan_ranks > 0) return check_plan(o);
    if (o->device_memory > 0)
        return wb_fail(WB_INVALID_ARGUMENT, "--device-memory: expected --plan-memory beside it");
    if (!o->out_dir || (!o->model_dir && !o->resume))
        return wb_fail(WB_INVALID_ARGUMENT, "--model and --out are needed (or --make-base DIR)");
    return o->resume ? WB_OK : options_check(o);
}

wb_status options_parse(int argc, char **argv, bool loud, options *o, int *action_out) {
    *o = option_defaults;
    *action_out = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            if (loud) print_help();
            *action_out = 1;
            return WB_OK;
        }
        if (strcmp(argv[i], "--version") == 0) {
            if (loud) printf("waybill-grpo %s\n", wb_version());
            *action_out = 1;
            return WB_OK;
        }
        WB_TRY(take_option(argc, argv, &i, o));
    }
    WB_TRY(wb_threads_check((uint64_t)o->threads, "--threads"));
    return check_together(o);
}
