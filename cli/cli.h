/* cli.h - what the subcommands of `waybill` share. A subcommand is one file with one function, listed in
 * waybill.c. Exit codes: 0 ok, 1 the data or the system is at fault, 2 the command line is.
 * Results go to stdout, everything else to stderr. */
#ifndef WB_CLI_H
#define WB_CLI_H

#include "wb_formats.h"

#include <stdio.h>

enum { CLI_OK = 0, CLI_DATA = 1, CLI_USAGE = 2 };

typedef struct cli_command {
    const char *name;
    const char *summary; /* one line */
    const char *usage;   /* the text of --help, arguments and options */
    int (*run)(const struct cli_command *self, int argc, char **argv);
} cli_command;

int cli_inspect(const cli_command *self, int argc, char **argv);
int cli_verify(const cli_command *self, int argc, char **argv);
int cli_cat(const cli_command *self, int argc, char **argv);
int cli_stats(const cli_command *self, int argc, char **argv);
int cli_eplb(const cli_command *self, int argc, char **argv);

/* One option of a subcommand; the list ends with a NULL name. */
typedef struct cli_option {
    const char *name;  /* without the dashes */
    const char **text; /* where its argument goes, or NULL */
    uint64_t *number;  /* the same, for a whole number */
    double *decimal;   /* the same, for a number of at least 0 */
    bool *flag;        /* set to true, for an option without an argument */
} cli_option;

/* Reads options, --help and the one DUMP argument. Returns false when the command is to end at once with
 * *exit_code: the help was printed, or the command line is wrong, which has been said. */
bool cli_parse(const cli_command *self, int argc, char **argv, const cli_option *options,
               const char **dump_out, int *exit_code);

/* The same where DUMP may be left out; *dump_out is NULL then. */
bool cli_parse_optional(const cli_command *self, int argc, char **argv, const cli_option *options,
                        const char **dump_out, int *exit_code);

/* Says what is wrong with the command line, and the line of usage. Returns CLI_USAGE. */
int cli_usage_error(const cli_command *self, const char *format, ...) WB_PRINTF(2, 3);

/* Says the thread's error message and returns CLI_DATA. */
int cli_fail(void);

/* `code`, or CLI_DATA when stdout could not be written (full disk, closed pipe), which it then says. */
int cli_end(int code);

/* A JSON string with its quotes. */
void cli_json_text(FILE *out, const char *text);
/* A JSON number; null when it is not finite. */
void cli_json_number(FILE *out, double value);

#endif
