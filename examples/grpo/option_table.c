/* option_table.c - each option's name, kind, bounds, help and default, and its value as text. Refuses: where
 * values come from, what they mean together. */
#include "option_table.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FIELD(field) offsetof(options, field)
#define MANY 1e9

const char *const option_group_names[N_OPTION_GROUPS] = {
    [RUN] = "The run",
    [PROMPTS] = "Prompts, answers and rewards",
    [ROLLOUT] = "The rollout and its engine",
    [REPLAY] = "Replay",
    [OBJECTIVE] = "The objective",
    [UPDATES] = "Updates",
    [EVALUATION] = "Evaluation",
    [OUTPUT] = "What is written to OUT",
    [PLACES] = "Where experts are",
    [RANKS] = "Ranks",
    [INSTEAD] = "Instead of training",
};

const option_row option_rows[] = {
    {"--model", RUN, TEXT, KEPT, FIELD(model_dir), 0, 0, NULL, "DIR",
     "checkpoint to train, Hugging Face layout"},
    {"--out", RUN, TEXT, FREE, FIELD(out_dir), 0, 0, NULL, "DIR",
     "gets checkpoint/, dump/ and metrics.jsonl"},
    {"--resume", RUN, FLAG, FREE, FIELD(resume), 0, 0, NULL, "",
     "go on from OUT/checkpoint where there is one, with its options where the command line gives none"},
    {"--steps", RUN, INTEGER, KEPT, FIELD(steps), 1, MANY, NULL, "N", "rollout batches"},
    {"--seed", RUN, SEED, FIXED, FIELD(seed), 0, 0, NULL, "N", "of prompts and sampling"},
    {"--dtype", RUN, CHOICE, FIXED, FIELD(dtype), 0, 0, "f32|bf16", "DTYPE",
     "weights and activations of training; of bf16 the optimizer has f32 masters, and gradients are f32"},
    {"--quiet", RUN, FLAG, FREE, FIELD(quiet), 0, 0, NULL, "", "no progress display"},
    {"--task", PROMPTS, TEXT, FIXED, FIELD(task), 0, 0, NULL, "TASK",
     "arithmetic, or jsonl:FILE with {\"prompt\": [token ids]} a line"},
    {"--reward-cmd", PROMPTS, TEXT, KEPT, FIELD(reward_cmd), 0, 0, NULL, "CMD",
     "started once a rank: reads completions as JSON lines, answers each with a number in a line, flushed"},
    {"--reward-timeout", PROMPTS, INTEGER, KEPT, FIELD(reward_timeout), 1, MANY, NULL, "SECONDS",
     "how long --reward-cmd may take for the next answer; for a rank's whole batch the others wait "
     "--peer-timeout"},
    {"--prompts", PROMPTS, INTEGER, FIXED, FIELD(prompts), 1, MANY, NULL, "N",
     "prompts a batch, over all ranks"},
    {"--samples", PROMPTS, INTEGER, FIXED, FIELD(samples), 2, MANY, NULL, "G",
     "samples a prompt (the GRPO group)"},
    {"--max-tokens", PROMPTS, INTEGER, KEPT, FIELD(max_tokens), 1, MANY, NULL, "N",
     "new tokens a sample at most"},
    {"--stop-token", PROMPTS, TEXT, KEPT, FIELD(stop_token), 0, 0, NULL, "LIST",
     "tokens that end a sample, with commas, or none; without it eos_token_id of the checkpoint's "
     "generation_config.json, arithmetic knows its own"},
    {"--long-prompts", PROMPTS, CHOICE, FIXED, FIELD(long_prompts), 0, 0, "error|skip|cut", "POLICY",
     "prompts that do not fit with --max-tokens: an error at the start, left out, without their beginning"},
    {"--temperature", ROLLOUT, NUMBER, KEPT, FIELD(temperature), 0, 100, NULL, "X",
     "sampling temperature, above 0; training takes the same"},
    {"--top-k", ROLLOUT, INTEGER, KEPT, FIELD(top_k), 0, MANY, NULL, "N",
     "sample from the N likeliest tokens; 0: all"},
    {"--top-p", ROLLOUT, NUMBER, KEPT, FIELD(top_p), 1e-6, 1, NULL, "X",
     "sample from the likeliest tokens that reach X"},
    {"--rollout-dtype", ROLLOUT, CHOICE, KEPT, FIELD(rollout_dtype), 0, 0, "same|f32|bf16", "DTYPE",
     "weights and KV cache of the rollout engine; same: as in training, with the bits of training"},
    {"--rollout-bits", ROLLOUT, INTEGER, KEPT, FIELD(rollout_bits), 0, 8, NULL, "N",
     "quantise the rollout's matrices of attention and experts to integers of 2 to 8 bits with a scale a "
     "row; "
     "0: do not"},
    {"--kv-blocks", ROLLOUT, INTEGER, KEPT, FIELD(kv_blocks), 1, MANY, NULL, "N",
     "KV cache blocks of the engine on each rank"},
    {"--block-size", ROLLOUT, INTEGER, KEPT, FIELD(block_size), 1, 65536, NULL, "N",
     "tokens of a KV cache block"},
    {"--max-batch-tokens", ROLLOUT, INTEGER, KEPT, FIELD(max_batch_tokens), 1, MANY, NULL, "N",
     "tokens that the engine feeds in one step; longer prompts are prefilled in chunks"},
    {"--max-running", ROLLOUT, INTEGER, KEPT, FIELD(max_running), 1, MANY, NULL, "N",
     "requests that hold KV cache blocks at a time"},
    {"--max-drafts", ROLLOUT, INTEGER, KEPT, FIELD(max_drafts), 0, 64, NULL, "N",
     "tokens that a request feeds ahead on a guess, by the MTP layer of a model that has one, else by the "
     "request's own text; samples are the same; 0: none"},
    {"--replay", REPLAY, CHOICE, KEPT, FIELD(replay), 0, 0, "off|record|rollout", "MODE",
     "routes of training: free (off), of the first training forward (record, R2), of the rollout (rollout, "
     "R3)"},
    {"--missing", REPLAY, CHOICE, KEPT, FIELD(missing), 0, 0, "strict|native|drop", "POLICY",
     "a position without routes: fail, choose freely, drop the sample"},
    {"--replay-indexer", REPLAY, FLAG, KEPT, FIELD(replay_indexer), 0, 0, NULL, "",
     "of a model with indexers: record which entries they choose for each token, and follow them as --replay "
     "and --missing say of routes"},
    {"--compare-every", REPLAY, INTEGER, KEPT, FIELD(compare_every), 0, MANY, NULL, "N",
     "every N steps run the batch with free routing too, one more forward, and report what replay changed; "
     "0: never"},
    {"--ratio", OBJECTIVE, CHOICE, KEPT, FIELD(ratio), 0, 0, "token|sequence", "LEVEL",
     "importance ratio by token (GRPO) or by sequence (GSPO)"},
    {"--clip-low", OBJECTIVE, NUMBER, KEPT, FIELD(clip_low), 0, 1, NULL, "X", "ratio clipped at 1 - X"},
    {"--clip-high", OBJECTIVE, NUMBER, KEPT, FIELD(clip_high), 0, MANY, NULL, "X", "ratio clipped at 1 + X"},
    {"--kl-coef", OBJECTIVE, NUMBER, KEPT, FIELD(kl_coef), 0, MANY, NULL, "X",
     "weight of KL(policy || --model), estimator k3; 0: no reference"},
    {"--tis-cap", OBJECTIVE, NUMBER, KEPT, FIELD(tis_cap), 0, MANY, NULL, "X",
     "truncated importance sampling: each token counts by how much likelier the trainer makes it than the "
     "rollout did, at most X; 0: all count the same"},
    {"--updates", UPDATES, INTEGER, KEPT, FIELD(updates), 1, MANY, NULL, "N",
     "minibatch updates a rollout batch"},
    {"--micro-batch-tokens", UPDATES, INTEGER, KEPT, FIELD(micro_batch_tokens), 1, MANY, NULL, "N",
     "tokens packed into one forward, and of the longest sample"},
    {"--keep-memory", UPDATES, NUMBER, KEPT, FIELD(keep_memory), 0, MANY, NULL, "GIB",
     "of each rank's device, for what a forward leaves to its backward, which then computes fewer layers "
     "again; 0: all but the last"},
    {"--lr", UPDATES, NUMBER, KEPT, FIELD(lr), 0, 10, NULL, "X", "AdamW learning rate"},
    {"--lr-schedule", UPDATES, CHOICE, KEPT, FIELD(schedule), 0, 0, "constant|linear|cosine", "SHAPE",
     "how --lr falls from the end of --lr-warmup to --lr-steps"},
    {"--lr-warmup", UPDATES, INTEGER, KEPT, FIELD(lr_warmup), 0, MANY, NULL, "N",
     "steps in which the learning rate rises to --lr"},
    {"--lr-steps", UPDATES, INTEGER, KEPT, FIELD(lr_steps), 0, MANY, NULL, "N",
     "the step at which linear and cosine are at --lr-end; 0: --steps of the run's first start, and a run "
     "that "
     "resumes keeps it"},
    {"--lr-end", UPDATES, NUMBER, KEPT, FIELD(lr_end), 0, 1, NULL, "X",
     "what linear and cosine fall to, as a share of --lr"},
    {"--weight-decay", UPDATES, NUMBER, KEPT, FIELD(weight_decay), 0, 10, NULL, "X",
     "AdamW decoupled weight decay of matrices"},
    {"--grad-clip", UPDATES, NUMBER, KEPT, FIELD(grad_clip), 0, MANY, NULL, "X",
     "largest gradient norm; 0: no limit"},
    {"--bias-rate", UPDATES, NUMBER, KEPT, FIELD(bias_rate), 0, 1, NULL, "X",
     "how far an update moves the selection bias of an expert, up below the mean load and down above it, by "
     "the routes that training followed; 0: biases stay"},
    {"--eval-task", EVALUATION, TEXT, KEPT, FIELD(eval_task), 0, 0, NULL, "TASK",
     "an evaluation set: each prompt of jsonl:FILE once, or 256 sums (arithmetic); rewarded as --task is"},
    {"--eval-every", EVALUATION, INTEGER, KEPT, FIELD(eval_every), 1, MANY, NULL, "N",
     "steps between evaluations; there is one after the last step too"},
    {"--eval-temperature", EVALUATION, NUMBER, KEPT, FIELD(eval_temperature), 0, 100, NULL, "X",
     "of the one answer to each prompt of the evaluation set; 0: greedy"},
    {"--checkpoint-every", OUTPUT, INTEGER, KEPT, FIELD(checkpoint_every), 0, MANY, NULL, "N",
     "steps between checkpoints; 0: at the end only"},
    {"--keep-last", OUTPUT, INTEGER, KEPT, FIELD(keep_last), 1, MANY, NULL, "N",
     "checkpoints that stay: OUT/checkpoint, and of those before it N - 1, as OUT/checkpoint.step<step>"},
    {"--keep-best", OUTPUT, FLAG, KEPT, FIELD(keep_best), 0, 0, NULL, "",
     "of --eval-task: save a checkpoint as OUT/checkpoint.best where the evaluation's reward is the best "
     "yet"},
    {"--tensorboard", OUTPUT, FLAG, KEPT, FIELD(tensorboard), 0, 0, NULL, "",
     "write the numbers of metrics.jsonl to OUT/tensorboard too, as TensorBoard reads them"},
    {"--dump-codec", OUTPUT, CHOICE, KEPT, FIELD(codec), 0, 0, "raw|zstd|packed", "CODEC",
     "of the routes in OUT/dump"},
    {"--no-dump", OUTPUT, FLAG, KEPT, FIELD(no_dump), 0, 0, NULL, "",
     "write no dump, nor when the run is resumed"},
    {"--eplb", PLACES, CHOICE, KEPT, FIELD(eplb), 0, 0, "off|static|live|planned", "MODE",
     "where experts are: each once, in blocks (off); where they were placed at the start (static); moved "
     "while the rollout generates, training follows (live); placed in training by each step's routes "
     "(planned)"},
    {"--redundant-experts", PLACES, INTEGER, KEPT, FIELD(redundant_experts), 0, MANY, NULL, "N",
     "slots beyond one an expert, over all ranks, in each layer"},
    {"--init-placement", PLACES, TEXT, FREE, FIELD(init_placement), 0, 0, NULL, "FILE",
     "a map of experts or their loads, as waybill eplb writes and reads them (no dump): where they are at "
     "the "
     "start"},
    {"--rebalance-every", PLACES, INTEGER, KEPT, FIELD(rebalance_every), 1, MANY, NULL, "N",
     "of --eplb live: passes of the rollout between two looks at the load"},
    {"--layers-per-chunk", PLACES, INTEGER, KEPT, FIELD(layers_per_chunk), 1, MANY, NULL, "N",
     "of --eplb live: layers in which experts move between two passes, at most; without it all whose moves "
     "do "
     "not meet on a rank"},
    {"--device", RANKS, CHOICE, FREE, FIELD(device), 0, 0, "cpu|cuda", "DEVICE",
     "where ranks compute; the n-th rank of a host takes its n-th GPU, counted round"},
    {"--threads", RANKS, INTEGER, FREE, FIELD(threads), 0, 4096, NULL, "N",
     "threads of each rank; 0: the host's cores over its ranks, but no more than mpirun binds a rank to"},
    {"--peer-timeout", RANKS, INTEGER, FREE, FIELD(peer_timeout), 1, MANY, NULL, "SECONDS",
     "how long a rank waits for another one before it is taken for dead"},
    {"--make-base", INSTEAD, TEXT, FREE, FIELD(make_base), 0, 0, NULL, "DIR",
     "instead of training: make a tiny model, warm it up on arithmetic, save it in DIR"},
    {"--family", INSTEAD, CHOICE, FREE, FIELD(family), 0, 0,
     "qwen3_moe|olmoe|qwen2_moe|glm4_moe|mixtral|gpt_oss|deepseek_v2|deepseek_v3|qwen3_next|qwen3_5_moe|"
     "deepseek_v4",
     "NAME", "of --make-base"},
    {"--warmup-steps", INSTEAD, INTEGER, FREE, FIELD(warmup_steps), 0, MANY, NULL, "N",
     "supervised steps of --make-base"},
    {"--plan-memory", INSTEAD, INTEGER, FREE, FIELD(plan_ranks), 1, 65536, NULL, "N",
     "instead of training: print what a rank of N takes with these options; --model is a folder or a "
     "config.json, no weights are read"},
    {"--device-memory", INSTEAD, NUMBER, FREE, FIELD(device_memory), 0, MANY, NULL, "X",
     "of --plan-memory: GiB that a rank's device has; 0: not compared"},
};
_Static_assert(sizeof option_rows / sizeof option_rows[0] == N_OPTIONS, "the number in option_table.h");

const options option_defaults = {
    .task = "arithmetic",
    .replay = WB_REPLAY_ROLLOUT,
    .missing = WB_MISSING_STRICT,
    .dtype = WB_F32,
    .steps = 20,
    .prompts = 64,
    .plan_ranks = -1,
    .rebalance_every = 1000,
    .layers_per_chunk = -1,
    .samples = 8,
    .max_tokens = 8,
    .updates = 4,
    .micro_batch_tokens = 2048,
    .warmup_steps = 40,
    .checkpoint_every = 10,
    .kv_blocks = 2048,
    .block_size = 16,
    .max_batch_tokens = 512,
    .max_running = 64,
    .peer_timeout = 1800,
    .reward_timeout = 600,
    .seed = 1,
    .temperature = 1,
    .top_p = 1,
    .lr = 1e-5,
    .grad_clip = 1,
    .eval_every = 10,
    .keep_last = 1,
    .clip_low = 0.2,
    .clip_high = 0.28,
};

const option_row *option_find(const char *name) {
    for (int i = 0; i < N_OPTIONS; i++)
        if (strcmp(option_rows[i].name, name) == 0) return &option_rows[i];
    return NULL;
}

bool options_given(const options *o, const char *name) {
    return o->given[option_find(name) - option_rows];
}

/* A dtype is an enum whose values are not the index of the choice. */
static int choice_value(const option_row *row, int index) {
    if (row->offset == FIELD(dtype)) return index == 0 ? WB_F32 : WB_BF16;
    return index;
}

const char *option_choice(const option_row *row, int value, size_t *length_out) {
    int index = 0;
    for (const char *name = row->choices; name; index++) {
        *length_out = strcspn(name, "|");
        if (choice_value(row, index) == value) return name;
        name = name[*length_out] == '|' ? name + *length_out + 1 : NULL;
    }
    *length_out = 0;
    return "";
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

wb_status option_set(const option_row *row, options *o, const char *value) {
    if (row->kind != FLAG && *value == '\0')
        return wb_fail(WB_INVALID_ARGUMENT, "%s: expected %s (see --help), found an empty value", row->name,
                       row->value);
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

const char *option_text(const option_row *row, const options *o, char *text) {
    const char *field = (const char *)o + row->offset;
    size_t length;
    switch (row->kind) {
    case TEXT:
        return *(const char *const *)field;
    case CHOICE: {
        const char *name = option_choice(row, *(const int *)field, &length);
        snprintf(text, OPTION_TEXT_BYTES, "%.*s", (int)length, name);
        return text;
    }
    case SEED:
        snprintf(text, OPTION_TEXT_BYTES, "%" PRIu64, *(const uint64_t *)field);
        return text;
    case INTEGER:
        snprintf(text, OPTION_TEXT_BYTES, "%" PRId64, *(const int64_t *)field);
        return text;
    case NUMBER: {
        /* 15 digits where they are the number, so that 6e-4 stays readable. */
        double value = *(const double *)field;
        snprintf(text, OPTION_TEXT_BYTES, "%.15g", value);
        if (strtod(text, NULL) != value) snprintf(text, OPTION_TEXT_BYTES, "%.17g", value);
        return text;
    }
    case FLAG:
        break;
    }
    return *(const bool *)field ? "yes" : NULL;
}
