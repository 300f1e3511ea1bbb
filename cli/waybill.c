/* waybill.c - `waybill COMMAND ...`: finds the command in a table, reads its command line and runs it. */
#include "command.h"
#include "wb_memory.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

static const cli_command *const commands[] = {&cli_inspect, &cli_verify,   &cli_cat,   &cli_stats,
                                              &cli_diff,    &cli_merge,    &cli_split, &cli_salvage,
                                              &cli_convert, &cli_tokenize, &cli_eplb,  &cli_report};
enum { N_COMMANDS = sizeof commands / sizeof commands[0] };

/* Two spaces stand between a name and its summary, however long: make_man.sh finds the commands by them. */
static void print_overview(FILE *out) {
    size_t width = 8;
    for (int i = 0; i < N_COMMANDS; i++)
        if (strlen(commands[i]->name) > width) width = strlen(commands[i]->name);
    fprintf(out,
            "waybill %s - dumps of expert routes of Mixture-of-Experts models\n\n"
            "usage: waybill COMMAND [OPTIONS] DUMP\n\n"
            "DUMP is a file, a directory of .wbr files, a pipe, or - for standard input.\n\n",
            wb_version());
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(out, "  %-*s  %s\n", (int)width, commands[i]->name, commands[i]->summary);
    fprintf(
        out,
        "\nwaybill help COMMAND, or waybill COMMAND --help, says more. waybill --version prints the "
        "version.\n\n"
        "Exit status: 0 done, 1 the data or the system is at fault, 2 the command line is. A dump that was\n"
        "cut is read up to the cuts, and standard error says what is lost: that is no fault but for "
        "verify.\n");
}

static const cli_command *find_command(const char *name) {
    for (int i = 0; i < N_COMMANDS; i++)
        if (strcmp(name, commands[i]->name) == 0) return commands[i];
    return NULL;
}

static bool is_help(const char *word) {
    return strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0;
}

/* Whether --help stands among the words before "--". */
static bool asks_for_help(int argc, char **argv) {
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (is_help(argv[i])) return true;
    return false;
}

static int run_command(const cli_command *command, int argc, char **argv) {
    if (asks_for_help(argc, argv)) {
        cli_print_help(command);
        return CLI_OK;
    }
    void *options = wb_alloc(1, command->options_size, "options");
    if (!options) return cli_fail();
    if (command->set_defaults) command->set_defaults(options);
    cli_arguments arguments;
    int code = cli_parse(command, argc, argv, options, &arguments);
    if (code == CLI_OK) code = command->run(command, &arguments);
    free(options);
    return code;
}

static int no_command(const char *name) {
    if (name) fprintf(stderr, "waybill: no command %s\n\n", name);
    print_overview(stderr);
    return CLI_USAGE;
}

/* `waybill help [COMMAND]` */
static int help(const char *name) {
    const bool overview = !name || is_help(name) || strcmp(name, "help") == 0;
    const cli_command *command = overview ? NULL : find_command(name);
    if (!overview && !command) return no_command(name);
    if (command)
        cli_print_help(command);
    else
        print_overview(stdout);
    return CLI_OK;
}

int main(int argc, char **argv) {
    /* Without this, a reader of the output that goes away would end the program before it has written its
     * files (--save, --chart). */
    signal(SIGPIPE, SIG_IGN);
    const char *name = argc > 1 ? argv[1] : NULL;
    if (!name) return no_command(NULL);
    const int max_words = strcmp(name, "help") == 0 ? 3 : 2;
    const bool alone = max_words == 3 || is_help(name) || strcmp(name, "--version") == 0;
    if (alone && argc > max_words) {
        fprintf(stderr, "waybill %s: expected nothing after it, found %s\n", name, argv[max_words]);
        return CLI_USAGE;
    }
    if (max_words == 3) return cli_end(help(argc > 2 ? argv[2] : NULL));
    if (is_help(name)) return cli_end(help(NULL));
    if (strcmp(name, "--version") == 0) {
        printf("waybill %s\n", wb_version());
        return cli_end(CLI_OK);
    }
    const cli_command *command = find_command(name);
    return command ? cli_end(run_command(command, argc - 1, argv + 1)) : no_command(name);
}
