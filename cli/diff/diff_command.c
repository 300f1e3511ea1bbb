/* diff_command.c - `waybill diff`: how the routes of two dumps of the same requests differ. */
#include "diff/diff.h"

#include <stddef.h>

typedef struct diff_options {
    bool json;
} diff_options;

static const cli_option table[] = {
    {.name = "json",
     .type = CLI_FLAG,
     .offset = offsetof(diff_options, json),
     .help = "one JSON object instead of tables"},
};

static const cli_operand operands[] = {{"A", CLI_INPUT}, {"B", CLI_INPUT}};

static int run(const cli_command *self, const cli_arguments *arguments) {
    (void)self;
    const diff_options *o = arguments->options;
    wb_dump *a = NULL, *b = NULL;
    diff d = {0};
    int code = cli_open_dump(arguments->operands.items[0], &a);
    if (code == CLI_OK) code = cli_open_dump(arguments->operands.items[1], &b);
    if (code == CLI_OK) code = diff_compare(a, b, &d);
    if (code == CLI_OK) o->json ? diff_print_json(&d) : diff_print_tables(&d);
    diff_close(&d);
    cli_close_dump(b);
    cli_close_dump(a);
    return code;
}

const cli_command cli_diff = {
    .name = "diff",
    .summary = "how the routes of two dumps of the same requests differ",
    .description =
        "Matches the records of the dumps A and B by request id and their rows by position, as far as the "
        "tokens are the same: the share of A's choices that are B's too (overlap@K), by MoE layer, by "
        "position and by the weight versions that the tokens were fed under; rows of the same experts in "
        "any order and in the same order (exact); the first difference; what indexers chose, where it is "
        "recorded, "
        "by layer; KL(A || B) from the log-probabilities of the sampled tokens. A difference is no fault: "
        "the exit status is 0.",
    .options = table,
    .n_options = sizeof table / sizeof table[0],
    .options_size = sizeof(diff_options),
    .operands = operands,
    .n_operands = sizeof operands / sizeof operands[0],
    .run = run,
};
