/* tokenize.c - `waybill tokenize`: its options, read here as those of any subcommand, and handed to the
 * Python package, which has the tokenizer. Refuses: tokenizing, which a second implementation would do
 * otherwise sooner or later. */
#include "command.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

typedef struct tokenize_options {
    const char *tokenizer, *output;
    bool jsonl, decode, force;
} tokenize_options;

static const cli_option table[] = {
    {.name = "tokenizer",
     .argument = "DIR",
     .type = CLI_INPUT,
     .offset = offsetof(tokenize_options, tokenizer),
     .required = true,
     .help = "the checkpoint whose tokenizer.json it is, or that file"},
    {.name = "jsonl",
     .type = CLI_FLAG,
     .offset = offsetof(tokenize_options, jsonl),
     .help = "read PROMPTS as JSON lines, which a file has whose name ends in .jsonl or .json"},
    {.name = "decode",
     .type = CLI_FLAG,
     .offset = offsetof(tokenize_options, decode),
     .help =
         "the way back, line by line as they come: prompt, completion and tokens, lists of ids, get their "
         "texts beside them, as prompt_text and so on"},
    {.name = "force",
     .type = CLI_FLAG,
     .offset = offsetof(tokenize_options, force),
     .help = "replace OUT if there is a file"},
    {.name = "output",
     .letter = 'o',
     .argument = "OUT",
     .type = CLI_OUTPUT,
     .offset = offsetof(tokenize_options, output),
     .default_text = "standard output",
     .help = "the file that is written, which appears when it is whole; -o for short"},
};

static const cli_operand operands[] = {{"PROMPTS", CLI_INPUT}};

/* An installation of the package that is not there, or lacks what it needs, is said in the command's
 * words. */
static const char script[] = "import sys\n"
                             "try:\n"
                             "    from waybill.tokenize import main\n"
                             "except ImportError as error:\n"
                             "    sys.exit(f'waybill tokenize: expected the Python package waybill in "
                             "{sys.executable}: {error}')\n"
                             "sys.exit(main())\n";

static int run(const cli_command *self, const cli_arguments *arguments) {
    (void)self;
    const tokenize_options *o = arguments->options;
    const char *words[16] = {"python3", "-c", script, "--tokenizer", o->tokenizer};
    size_t n = 5;
    if (o->jsonl) words[n++] = "--jsonl";
    if (o->decode) words[n++] = "--decode";
    if (o->force) words[n++] = "--force";
    if (o->output) {
        words[n++] = "--output";
        words[n++] = o->output;
    }
    words[n++] = "--";
    words[n++] = arguments->dump;
    /* execvp takes them as they are, and does not write to them. */
    char *copies[16];
    memcpy(copies, words, sizeof copies);
    execvp(copies[0], copies);
    fprintf(stderr, "waybill tokenize: expected python3 on the path: %s\n", strerror(errno));
    return CLI_DATA;
}

const cli_command cli_tokenize = {
    .name = "tokenize",
    .summary = "prompts as text into the ids that waybill-grpo reads, and back",
    .description =
        "Reads PROMPTS, a text a line, or JSON lines with a text as prompt or a chat as messages, and writes "
        "JSON lines for waybill-grpo --task: the ids as prompt, the text as prompt_text, and what else the "
        "line had, which a reward program gets with the answer. Runs the Python package waybill of python3, "
        "with the packages tokenizers and, for chats, transformers; python3 -m waybill.tokenize is the same.",
    .options = table,
    .n_options = sizeof table / sizeof table[0],
    .options_size = sizeof(tokenize_options),
    .operands = operands,
    .n_operands = sizeof operands / sizeof operands[0],
    .run = run,
};
