/* waybill.c - `waybill COMMAND ...`: finds the command in a table and runs it. */
#include "cli.h"

#include <signal.h>
#include <string.h>

static const cli_command commands[] = {
    {"inspect", "what a dump holds: model, files, sizes, integrity",
     "waybill inspect [--rid RID] DUMP\n\n"
     "Prints the model, the files, the number and sizes of records, codecs, and whether files were cut.\n"
     "DUMP is a .wbr file or a directory of them.\n\n"
     "  --rid RID   one record in detail instead\n",
     cli_inspect},
    {"verify", "check every byte of a dump; the exit code is the verdict",
     "waybill verify DUMP\n\n"
     "Checks structure, checksums and every expert id. Prints OK, or the first fault.\n"
     "Exits with 1 when anything is damaged or, a file having been cut, lost.\n",
     cli_verify},
    {"cat", "records as JSON lines",
     "waybill cat [--rid RID] [--tokens] [--routes] [--limit N] DUMP\n\n"
     "Prints a JSON object a line for each record: rid, group, sample, prompt_len, n_tokens, finish, "
     "spans.\n\n"
     "  --rid RID   only this record\n"
     "  --tokens    tokens and logprobs too\n"
     "  --routes    routes too: [{start, rows}], rows as [row][layer][slot] of expert ids, null where not "
     "valid\n"
     "  --limit N   at most N records\n",
     cli_cat},
    {"stats", "expert load of each layer, lengths, finish reasons",
     "waybill stats [--json] DUMP\n\n"
     "Counts the valid rows of every record: per MoE layer the most loaded expert against the mean, the\n"
     "entropy of the load (1: even), experts never chosen; lengths and finish reasons of the records.\n\n"
     "  --json      one JSON object instead of tables, with the counts of all experts\n",
     cli_stats},
};
enum { N_COMMANDS = sizeof commands / sizeof commands[0] };

static void help(FILE *out) {
    fprintf(out,
            "waybill %s - dumps of expert routes of Mixture-of-Experts models\n\n"
            "usage: waybill COMMAND [OPTIONS] DUMP\n\n",
            wb_version());
    for (int i = 0; i < N_COMMANDS; i++) fprintf(out, "  %-9s %s\n", commands[i].name, commands[i].summary);
    fprintf(out, "\nwaybill COMMAND --help says more. waybill --version prints the version.\n");
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN); /* a closed pipe is a failed write, and told as one */
    const char *name = argc > 1 ? argv[1] : NULL;
    if (name && (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0)) {
        help(stdout);
        return cli_end(CLI_OK);
    }
    if (name && strcmp(name, "--version") == 0) {
        printf("waybill %s\n", wb_version());
        return cli_end(CLI_OK);
    }
    for (int i = 0; name && i < N_COMMANDS; i++)
        if (strcmp(name, commands[i].name) == 0)
            return cli_end(commands[i].run(&commands[i], argc - 1, argv + 1));
    if (name) fprintf(stderr, "waybill: no command %s\n\n", name);
    help(stderr);
    return CLI_USAGE;
}
