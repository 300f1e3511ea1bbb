/* convert_command.c - `waybill convert`: its options and its two ways. */
#include "convert/convert.h"
#include "wb_export.h"
#include "wb_file.h"
#include "wb_import.h"

#include <stddef.h>

static const cli_option table[] = {
    {.name = "from",
     .argument = "LAYOUT",
     .type = CLI_TEXT,
     .offset = offsetof(convert_options, from),
     .help = "ANSWERS are those of vllm, sglang, nemo-rl, slime, verl, trtllm, prime-rl, megatron or dynamo"},
    {.name = "to",
     .argument = "LAYOUT",
     .type = CLI_TEXT,
     .offset = offsetof(convert_options, to),
     .help = "write DUMP as npz, sglang, vllm, verl or slime"},
    {.name = "model",
     .argument = "DIR",
     .type = CLI_TEXT,
     .offset = offsetof(convert_options, model),
     .help = "whose routes they are: a directory with the model's config.json"},
    {.name = "skip-bad",
     .type = CLI_FLAG,
     .offset = offsetof(convert_options, skip_bad),
     .help = "leave requests or records out that are refused, and say which; without it the first one ends "
             "the command, "
             "and OUT is not written"},
    {.name = "force",
     .type = CLI_FLAG,
     .offset = offsetof(convert_options, force),
     .help = "replace OUT if there is a file"},
    {.name = "output",
     .letter = 'o',
     .argument = "OUT",
     .type = CLI_OUTPUT,
     .offset = offsetof(convert_options, output),
     .required = true,
     .help = "the file that is written, which appears when it is whole; - is standard output; -o for short"},
};

static const cli_operand operands[] = {{"ANSWERS or DUMP", CLI_INPUT}};

void convert_skipped(const cli_progress *progress, uint64_t *skipped) {
    cli_progress_end(progress);
    fprintf(stderr, "waybill: skipped: %s\n", wb_error_message());
    ++*skipped;
}

FILE *convert_says_to(const char *output) {
    bool is_descriptor = false;
    return wb_is_descriptor(output, &is_descriptor) == WB_OK && is_descriptor ? stderr : stdout;
}

static int run(const cli_command *self, const cli_arguments *arguments) {
    const convert_options *o = arguments->options;
    if (!o->from == !o->to) return cli_usage_error(self, "--from or --to is needed, and not both");
    if (o->to && o->model) return cli_usage_error(self, "--model goes with --from");
    wb_export_layout to;
    wb_import_layout from;
    if (o->to && wb_export_layout_find(o->to, &to) != WB_OK)
        return cli_usage_error(self, "--to: %s", wb_error_message());
    if (o->from && wb_import_layout_find(o->from, &from) != WB_OK)
        return cli_usage_error(self, "--from: %s", wb_error_message());
    if (o->to) return convert_export(o, arguments->dump);
    if (!o->model) return cli_usage_error(self, "--model is needed");
    return convert_import(o, arguments->dump);
}

const cli_command cli_convert = {
    .name = "convert",
    .summary = "answers of other engines and trainers into a dump, and back",
    .description =
        "Reads the routes of other systems into a dump. ANSWERS are JSON lines (an answer a line, a list of "
        "answers, or the events of a stream), msgpack, .npz or .npy, as the system writes them, - being "
        "standard input. An answer that does not repeat its prompt has it beside it as input_ids or "
        "prompt_token_ids, and new tokens as output_ids or token_ids. Routes that cannot be are refused "
        "with the name of the request. With --to it is the other way: "
        "a dump as arrays of numpy (npz), as answers of sglang or vllm, or as the batch of a trainer.",
    .synopsis = "--from LAYOUT --model DIR [--skip-bad] [--force] ANSWERS -o OUT.wbr\n"
                "       waybill convert --to LAYOUT [--skip-bad] [--force] DUMP -o OUT",
    .options = table,
    .n_options = sizeof table / sizeof table[0],
    .options_size = sizeof(convert_options),
    .operands = operands,
    .n_operands = sizeof operands / sizeof operands[0],
    .run = run,
};
