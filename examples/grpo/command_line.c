/* command_line.c - the command line of waybill-grpo: one table says each option's name, kind, bounds and
 * help. */
#include "grpo.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum kind { TEXT, INTEGER, SEED, NUMBER, FLAG, CHOICE } kind;

typedef struct option_row {
    const char *name;
    kind kind;
    size_t offset;       /* of the field in options */
    double low, high;    /* INTEGER, NUMBER */
    const char *choices; /* CHOICE: names separated by '|', value = index */
    const char *value, *help;
} option_row;

#define FIELD(field) offsetof(options, field)
#define MANY 1e9
/* Of a request, too (wb_rollout.h). Not a bound of the table, so that the message can say why. */
#define MIN_TEMPERATURE 1e-6

static const option_row rows[] = {
    {"--model", TEXT, FIELD(model_dir), 0, 0, NULL, "DIR", "checkpoint to train, Hugging Face layout"},
    {"--out", TEXT, FIELD(out_dir), 0, 0, NULL, "DIR", "gets checkpoint/, dump/ and metrics.jsonl"},
    {"--resume", FLAG, FIELD(resume), 0, 0, NULL, "", "go on from OUT/checkpoint where there is one"},
    {"--task", TEXT, FIELD(task), 0, 0, NULL, "TASK",
     "arithmetic, or jsonl:FILE with {\"prompt\": [token ids]} a line"},
    {"--reward-cmd", TEXT, FIELD(reward_cmd), 0, 0, NULL, "CMD",
     "reads completions as JSON lines, answers a number a line"},
    {"--replay", CHOICE, FIELD(replay), 0, 0, "off|record|rollout", "MODE",
     "routes of training: free (off), of the first training forward (record, R2), of the rollout (rollout, "
     "R3)"},
    {"--missing", CHOICE, FIELD(missing), 0, 0, "strict|native|drop", "POLICY",
     "a position without routes: fail, choose freely, drop the sample"},
    {"--rollout-dtype", CHOICE, FIELD(rollout_dtype), 0, 0, "f32|bf16", "DTYPE",
     "weights and KV cache of the rollout engine; training is f32"},
    {"--steps", INTEGER, FIELD(steps), 1, MANY, NULL, "N", "rollout batches"},
    {"--prompts", INTEGER, FIELD(prompts), 1, MANY, NULL, "N", "prompts a batch, over all ranks"},
    {"--samples", INTEGER, FIELD(samples), 2, MANY, NULL, "G", "samples a prompt (the GRPO group)"},
    {"--max-tokens", INTEGER, FIELD(max_tokens), 1, MANY, NULL, "N", "new tokens a sample at most"},
    {"--stop-token", INTEGER, FIELD(stop_token), 0, MANY, NULL, "N",
     "token that ends a sample; without it jsonl samples have --max-tokens tokens, arithmetic knows its own"},
    {"--temperature", NUMBER, FIELD(temperature), 0, 100, NULL, "X",
     "sampling temperature, above 0; training takes the same"},
    {"--top-k", INTEGER, FIELD(top_k), 0, MANY, NULL, "N", "sample from the N likeliest tokens; 0: all"},
    {"--top-p", NUMBER, FIELD(top_p), 1e-6, 1, NULL, "X", "sample from the likeliest tokens that reach X"},
    {"--updates", INTEGER, FIELD(updates), 1, MANY, NULL, "N", "minibatch updates a rollout batch"},
    {"--micro-batch-tokens", INTEGER, FIELD(micro_batch_tokens), 1, MANY, NULL, "N",
     "tokens packed into one forward"},
    {"--lr", NUMBER, FIELD(lr), 0, 10, NULL, "X", "AdamW learning rate"},
    {"--weight-decay", NUMBER, FIELD(weight_decay), 0, 10, NULL, "X",
     "AdamW decoupled weight decay of matrices"},
    {"--grad-clip", NUMBER, FIELD(grad_clip), 0, MANY, NULL, "X", "largest gradient norm; 0: no limit"},
    {"--clip-low", NUMBER, FIELD(clip_low), 0, 1, NULL, "X", "ratio clipped at 1 - X"},
    {"--clip-high", NUMBER, FIELD(clip_high), 0, MANY, NULL, "X", "ratio clipped at 1 + X"},
    {"--kl-coef", NUMBER, FIELD(kl_coef), 0, MANY, NULL, "X",
     "weight of KL(policy || --model), estimator k3; 0: no reference"},
    {"--ratio", CHOICE, FIELD(ratio), 0, 0, "token|sequence", "LEVEL",
     "importance ratio by token (GRPO) or by sequence (GSPO)"},
    {"--compare-every", INTEGER, FIELD(compare_every), 0, MANY, NULL, "N",
     "every N steps run the batch with free routing too and report what replay changed; 0: never"},
    {"--checkpoint-every", INTEGER, FIELD(checkpoint_every), 0, MANY, NULL, "N",
     "steps between checkpoints; 0: at the end only"},
    {"--dump-codec", CHOICE, FIELD(codec), 0, 0, "raw|zstd", "CODEC", "of the routes in OUT/dump"},
    {"--no-dump", FLAG, FIELD(no_dump), 0, 0, NULL, "", "write no dump"},
    {"--kv-blocks", INTEGER, FIELD(kv_blocks), 1, MANY, NULL, "N",
     "KV cache blocks of 16 tokens on each rank"},
    {"--threads", INTEGER, FIELD(threads), 0, 4096, NULL, "N",
     "threads of each rank; 0: the host's cores over its ranks, but no more than mpirun binds a rank to"},
    {"--peer-timeout", INTEGER, FIELD(peer_timeout), 1, MANY, NULL, "SECONDS",
     "how long a rank waits for another one before it is taken for dead"},
    {"--seed", SEED, FIELD(seed), 0, 0, NULL, "N", "of prompts and sampling"},
    {"--make-base", TEXT, FIELD(make_base), 0, 0, NULL, "DIR",
     "instead of training: make a tiny model, warm it up on arithmetic, save it in DIR"},
    {"--family", CHOICE, FIELD(family), 0, 0, "qwen3_moe|olmoe", "NAME", "of --make-base"},
    {"--warmup-steps", INTEGER, FIELD(warmup_steps), 0, MANY, NULL, "N", "supervised steps of --make-base"},
    {"--quiet", FLAG, FIELD(quiet), 0, 0, NULL, "", "no progress display"},
};
enum { N_ROWS = sizeof rows / sizeof rows[0] };

static const options defaults = {
    .task = "arithmetic",
    .replay = WB_REPLAY_ROLLOUT,
    .missing = WB_MISSING_STRICT,
    .rollout_dtype = WB_BF16,
    .steps = 20,
    .prompts = 64,
    .samples = 8,
    .max_tokens = 8,
    .stop_token = -1,
    .updates = 4,
    .micro_batch_tokens = 2048,
    .warmup_steps = 40,
    .checkpoint_every = 10,
    .compare_every = 1,
    .kv_blocks = 2048,
    .peer_timeout = 1800,
    .seed = 1,
    .temperature = 1,
    .top_p = 1,
    .lr = 1e-5,
    .grad_clip = 1,
    .clip_low = 0.2,
    .clip_high = 0.28,
};

/* The dtype field is an enum whose values are not the index of the choice. */
static int choice_value(const option_row *row, int index) {
    if (row->offset == FIELD(rollout_dtype)) return index == 0 ? WB_F32 : WB_BF16;
    return index;
}

static void print_choice(const option_row *row, int value) {
    int index = 0;
    for (const char *name = row->choices; name; index++) {
        size_t length = strcspn(name, "|");
        if (choice_value(row, index) == value) printf(" (%.*s) [%s]", (int)length, name, row->choices);
        name = name[length] == '|' ? name + length + 1 : NULL;
    }
}

static void print_help(void) {
    printf("usage: mpirun -n RANKS waybill-grpo --model DIR --out DIR [options]\n"
           "       mpirun -n RANKS waybill-grpo --make-base DIR [options]\n\n"
           "GRPO training of a Mixture-of-Experts model under routing replay: every token's experts are "
           "recorded during\n"
           "rollout and forced in the training forward. Experts are sharded over the ranks.\n\n");
    for (int i = 0; i < N_ROWS; i++) {
        char left[64];
        snprintf(left, sizeof left, "%s %s", rows[i].name, rows[i].value);
        printf("  %-26s %s", left, rows[i].help);
        const char *field = (const char *)&defaults + rows[i].offset;
        if (rows[i].kind == INTEGER && *(const int64_t *)field >= 0)
            printf(" (%" PRId64 ")", *(const int64_t *)field);
        if (rows[i].kind == NUMBER) printf(" (%g)", *(const double *)field);
        if (rows[i].kind == SEED) printf(" (%" PRIu64 ")", *(const uint64_t *)field);
        if (rows[i].kind == CHOICE) print_choice(&rows[i], *(const int *)field);
        printf("\n");
    }
    printf(
        "\nExit status: 0 done, 1 a failure (its message names what and where), 2 a wrong command line.\n");
}

static wb_status set_choice(const option_row *row, options *o, const char *value) {
    int index = 0;
    for (const char *name = row->choices; name; index++) {
        const char *bar = strchr(name, '|');
        size_t length = bar ? (size_t)(bar - name) : strlen(name);
        if (strlen(value) == length && strncmp(name, value, length) == 0) {
            *(int *)((char *)o + row->offset) = choice_value(row, index);
            return WB_OK;
        }
        name = bar ? bar + 1 : NULL;
    }
    return wb_fail(WB_INVALID_ARGUMENT, "%s %s: expected one of %s", row->name, value, row->choices);
}

static wb_status set_number(const option_row *row, options *o, const char *value) {
    char *end;
    errno = 0;
    double number = strtod(value, &end);
    bool integral = row->kind != INTEGER || number == floor(number);
    if (end == value || *end != '\0' || errno != 0 || !integral ||
        !(number >= row->low && number <= row->high))
        return wb_fail(WB_INVALID_ARGUMENT, "%s %s: expected %s from %g to %g", row->name, value,
                       row->kind == INTEGER ? "an integer" : "a number", row->low, row->high);
    if (row->kind == INTEGER)
        *(int64_t *)((char *)o + row->offset) = (int64_t)number;
    else
        *(double *)((char *)o + row->offset) = number;
    return WB_OK;
}

static wb_status set_seed(const option_row *row, options *o, const char *value) {
    char *end;
    errno = 0;
    unsigned long long number = strtoull(value, &end, 0);
    if (end == value || *end != '\0' || errno != 0 || value[0] == '-')
        return wb_fail(WB_INVALID_ARGUMENT, "%s %s: expected a whole number of at most 64 bits", row->name,
                       value);
    *(uint64_t *)((char *)o + row->offset) = number;
    return WB_OK;
}

static wb_status set_option(const option_row *row, options *o, const char *value) {
    switch (row->kind) {
    case FLAG:
        *(bool *)((char *)o + row->offset) = true;
        return WB_OK;
    case TEXT:
        *(const char **)((char *)o + row->offset) = value;
        return WB_OK;
    case CHOICE:
        return set_choice(row, o, value);
    case SEED:
        return set_seed(row, o, value);
    default:
        return set_number(row, o, value);
    }
}

static const option_row *find_row(const char *name) {
    for (int i = 0; i < N_ROWS; i++)
        if (strcmp(rows[i].name, name) == 0) return &rows[i];
    return NULL;
}

static wb_status check_together(const options *o) {
    if (o->make_base) return WB_OK;
    if (!o->model_dir || !o->out_dir)
        return wb_fail(WB_INVALID_ARGUMENT, "--model and --out are needed (or --make-base DIR)");
    if (strcmp(o->task, "arithmetic") != 0 && !o->reward_cmd)
        return wb_fail(WB_INVALID_ARGUMENT, "--task %s needs --reward-cmd", o->task);
    if (o->temperature < MIN_TEMPERATURE)
        return wb_fail(
            WB_INVALID_ARGUMENT,
            "--temperature %g: expected at least %g: a greedy sample is a point mass, all samples of a "
            "prompt are the same and their gradient is zero",
            o->temperature, MIN_TEMPERATURE);
    if (o->prompts % o->updates != 0)
        return wb_fail(WB_INVALID_ARGUMENT, "--prompts %" PRId64 " is not a multiple of --updates %" PRId64,
                       o->prompts, o->updates);
    return WB_OK;
}

wb_status options_parse(int argc, char **argv, bool loud, options *o, int *action_out) {
    *o = defaults;
    *action_out = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            if (loud) print_help();
            *action_out = 1;
            return WB_OK;
        }
        const option_row *row = find_row(argv[i]);
        if (!row) return wb_fail(WB_INVALID_ARGUMENT, "unknown option %s (see --help)", argv[i]);
        if (row->kind != FLAG && i + 1 == argc)
            return wb_fail(WB_INVALID_ARGUMENT, "%s needs a value (see --help)", argv[i]);
        WB_TRY(set_option(row, o, row->kind == FLAG ? NULL : argv[++i]));
    }
    return check_together(o);
}
