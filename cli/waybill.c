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
    {"eplb", "where experts should live: placements compared on a dump or on synthetic loads",
     "waybill eplb (DUMP | --synthetic KIND) --ranks P --slots R [OPTIONS]\n\n"
     "Sends the tokens of each step through the placements of the solvers and prints balancedness, "
     "predicted\n"
     "time and what moves, beside the trivial placement (none), ranks in turn whatever the router chose\n"
     "(fake) and the least time that any placement could take (bound).\n\n"
     "The ranks:\n"
     "  --ranks P             expert parallel ranks\n"
     "  --slots R             physical experts of all ranks, at least as many as experts\n"
     "  --nodes N             nodes they are on (1)\n"
     "  --dead R[,R...]       ranks that have failed\n"
     "The tokens of a DUMP: every valid row, records dealt to micro-batches and ranks in file order\n"
     "  --step-records N      records of a step (all)\n"
     "  --micro-batches M     micro-batches of a step, of about equal numbers of rows (4)\n"
     "or synthetic:\n"
     "  --synthetic KIND      zipf, lognormal, or drift (popularities move from step to step)\n"
     "  --experts E           (256)\n"
     "  --layers L            MoE layers (58)\n"
     "  --top-k K             (8)\n"
     "  --tokens T            tokens of a micro-batch, of all ranks (65536)\n"
     "  --steps N             (2)\n"
     "  --skew X              Zipf's exponent, or the standard deviation of log popularity (1)\n"
     "  --noise X             standard deviation of its noise by micro-batch, and of drift's steps (0.2)\n"
     "  --seed N              (1)\n"
     "Placement and dispatch:\n"
     "  --algorithm A[,B...]  of deepseek, balanced, incremental, microbatch; all (the default), or none\n"
     "  --dispatch POLICY     static, dynamic, quota (the default) or fake\n"
     "  --init FILE           the placement to start from: a map or counts as JSON or msgpack, or a\n"
     "                        dump (the trivial one)\n"
     "  --groups G            deepseek: router groups; hierarchical when N divides them (1)\n"
     "  --trials N            balanced, microbatch: moves tried a layer (0: a good number)\n"
     "  --max-changes N       incremental: slots a layer that may change, beyond those that restore\n"
     "                        lost experts (0: no limit)\n"
     "  --target X            incremental: balancedness that is good enough (0.98)\n"
     "  --horizon N           incremental: passes over which a move is to pay (1000)\n"
     "  --threads N           (0: as many as there are)\n"
     "The cost model; the numbers used are printed:\n"
     "  --token-us X          microseconds of a token through an expert\n"
     "  --expert-us X         microseconds of reading an expert's weights, once a pass\n"
     "  --token-bytes X       bytes of a token's hidden state\n"
     "  --expert-bytes X      bytes of an expert\n"
     "  --node-gbps X         GB/s of a rank inside its node\n"
     "  --network-gbps X      GB/s of a rank out of its node\n"
     "Output:\n"
     "  --json                one JSON object instead of tables, with every step\n"
     "  --chart FILE          an SVG of tokens by rank, before and after the last algorithm\n"
     "  --save FILE           the last placement of the one algorithm; *.json is JSON, else msgpack\n",
     cli_eplb},
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
