/* command.h - what a subcommand of `waybill` is: one file (or a folder) with one cli_command, listed in
 * waybill.c. Its table of options is the only place where they are described: the parser, --help, and the
 * manual page, which is made from --help, read it.
 *
 * Results go to stdout, everything else to stderr. */
#ifndef WB_CLI_COMMAND_H
#define WB_CLI_COMMAND_H

#include "wb_formats.h"

#include <stdio.h>

/* Exit codes: the data or the system is at fault, or the command line is. */
enum { CLI_OK = 0, CLI_DATA = 1, CLI_USAGE = 2 };

typedef enum cli_type {
    CLI_TEXT,    /* const char *, a word of the command line, not empty */
    CLI_INPUT,   /* const char *, the path of a file that is read */
    CLI_INPUTS,  /* cli_list of such paths; the option may be given several times */
    CLI_OUTPUT,  /* const char *, the path of a file that is written */
    CLI_FOLDER,  /* const char *, the path of a directory that is made; the subcommand looks at it */
    CLI_NUMBER,  /* uint64_t */
    CLI_DECIMAL, /* double, finite and at least 0 */
    CLI_FLAG     /* bool, no argument */
} cli_type;

enum { CLI_MAX_OPTIONS = 64 }; /* of a subcommand */
enum { CLI_MAX_LIST = 4096 };  /* times that an option is given */

typedef struct cli_list {
    uint32_t n;
    const char *items[CLI_MAX_LIST]; /* words of the command line */
} cli_list;

typedef struct cli_option {
    const char *name;     /* without the dashes */
    char letter;          /* 'o': "-o" is the option too; 0: it has no short name */
    const char *argument; /* what --help calls its argument, "N"; not of a flag */
    cli_type type;
    size_t offset;      /* of its value in the subcommand's options struct */
    uint64_t min, max;  /* CLI_NUMBER */
    double decimal_max; /* CLI_DECIMAL */
    bool above_zero;    /* CLI_DECIMAL: 0 is refused */
    bool required;
    int belongs_to;           /* for the subcommand's own use */
    const char *heading;      /* not NULL: in --help a group of options begins here */
    const char *help;         /* one sentence, wrapped by --help */
    const char *default_text; /* what --help says for the default; NULL: the value itself */
} cli_option;

/* A word of the command line that belongs to no option: a path. "-" is standard input or output, here as in
 * options that are paths of files, and is handed on as /dev/stdin or /dev/stdout. */
typedef struct cli_operand {
    const char *name; /* what usage calls it, "DUMP" */
    cli_type type;    /* CLI_INPUT, CLI_OUTPUT, CLI_FOLDER, or CLI_INPUTS: one and more, the last operand */
} cli_operand;

/* A command line that has been read. */
typedef struct cli_arguments {
    const char *dump;  /* the first word that is read, operands[0] of most; NULL only where it is optional */
    cli_list operands; /* words, one for each of the subcommand's operands, and more for CLI_INPUTS */
    const void *options; /* the subcommand's options struct, defaults filled in */
    uint64_t is_set;     /* bit i: option i of the table is on the command line */
} cli_arguments;

typedef struct cli_command {
    const char *name;
    const char *summary;         /* one line */
    const char *description;     /* paragraphs, wrapped by --help */
    const char *synopsis;        /* what follows "waybill NAME"; NULL: made from the tables */
    const cli_operand *operands; /* [n_operands]; NULL: the one DUMP */
    size_t n_operands;
    const cli_option *options;           /* [n_options] */
    size_t n_options;                    /* at most CLI_MAX_OPTIONS */
    size_t options_size;                 /* bytes of the options struct */
    void (*set_defaults)(void *options); /* in a zeroed struct; NULL: nothing but zeros */
    bool dump_optional;                  /* of the one DUMP */
    int (*run)(const struct cli_command *self, const cli_arguments *arguments); /* returns the exit code */
} cli_command;

extern const cli_command cli_inspect, cli_verify, cli_cat, cli_stats, cli_diff, cli_merge, cli_split,
    cli_salvage, cli_convert, cli_tokenize, cli_eplb, cli_report;

/* ---- command lines (command_options.c) ------------------------------------------------------- */

/* The operands of a subcommand, [*n_out]. */
const cli_operand *cli_operands_of(const cli_command *self, size_t *n_out);

/* Reads the options into `options`, [options_size] with defaults, and them and the operands into
 * *arguments_out. Returns CLI_OK, CLI_USAGE when the line is wrong, or CLI_DATA, which has been said. */
int cli_parse(const cli_command *self, int argc, char **argv, void *options, cli_arguments *arguments_out);

/* Whether the option whose value lies at `offset` is on the command line. */
bool cli_is_set(const cli_command *self, const cli_arguments *arguments, size_t offset);

/* ---- paths (command_paths.c) ------------------------------------------------------------------ */

/* No file that is written, standard output included, may be one that is read or another that is written.
 * What is written can be. Called by cli_parse. Returns CLI_OK, CLI_USAGE, or CLI_DATA where a path cannot be
 * written, which has been said. */
int cli_check_paths(const cli_command *self, const cli_arguments *arguments);

/* ---- help (command_help.c) ------------------------------------------------------------------- */

void cli_print_usage(FILE *out, const cli_command *self); /* one line */
void cli_print_help(const cli_command *self);             /* to stdout */

/* Says what is wrong with the command line, and the line of usage. Returns CLI_USAGE. */
int cli_usage_error(const cli_command *self, const char *format, ...) WB_PRINTF(2, 3);

/* ---- progress (command_progress.c) ------------------------------------------------------------ */

/* What a long command says on standard error: on a terminal one line of at most 60 columns that is written
 * anew, elsewhere a line every ten seconds; of a short command nothing. */
typedef struct cli_progress {
    double start, next; /* seconds: when the command began, when something is to be said next */
    bool terminal;
} cli_progress;

cli_progress cli_progress_start(void);

/* Whether it is time to say something. */
bool cli_progress_due(const cli_progress *progress);

/* Says it: the text, and from `done` of `total` the time left; a total of 0: it is not known. */
void cli_progress_show(cli_progress *progress, double done, double total, const char *format, ...)
    WB_PRINTF(4, 5);

/* The two above for records: "12 of 40 records, 1.2M tokens". No tokens: they are not known. */
void cli_progress_records(cli_progress *progress, uint64_t done, uint64_t total, uint64_t tokens);

/* Takes the line off the terminal. */
void cli_progress_end(const cli_progress *progress);

/* ---- dumps that are read (command_dump.c) ------------------------------------------------------ */

/* Where pipes are copied, which a dump cannot be read from. Not a folder in memory, as /tmp may be. */
#define CLI_SPOOL_FOLDER "/var/tmp"

typedef struct cli_spooled {
    const char *path; /* as it was given, or `name` */
    char name[32];
} cli_spooled;

/* The path under which a dump can be opened: another one for a pipe, whose bytes are in a file then that ends
 * with the process. */
wb_status cli_dump_path(const char *path, cli_spooled *name_out);

/* Opens a dump. Returns CLI_OK, or the exit code of a failure, which has been said. */
int cli_open_dump(const char *path, wb_dump **dump_out);

/* Says what the dump has lost, if it has, and closes it. NULL is a no-op. */
void cli_close_dump(wb_dump *dump);

/* Says what a dump has lost, if it has: the same words for every command. */
void cli_warn_of_loss(const wb_dump_info *info);

/* ---- dumps that are written (command_output.c) -------------------------------------------------- */

/* A dump file that is being written: it appears at its path when it is whole. */
typedef struct cli_output {
    char *path, *temp; /* of what it will be, links followed, and of what it is until then */
    bool direct;       /* a pipe, a device or a descriptor, which is given the bytes at the end */
    wb_dump_writer *writer;
} cli_output;

/* What stands at a path decides how it is written: *direct_out is cli_output's. IO where something is that
 * would be replaced, without `force`. */
wb_status cli_output_look(const char *path, bool force, bool *direct_out);

/* Returns CLI_OK, or the exit code of a failure, which has been said: of a path where something is, without
 * `force`, too. `producer` is the command's name, `codec` that of records which are not copied as stored. */
int cli_output_open(const char *path, bool force, const char *producer, wb_codec codec,
                    const wb_route_model *model, cli_output *output_out);

/* Ends the dump and puts it at its path; a failure has been said. */
int cli_output_commit(cli_output *output);
void cli_output_discard(cli_output *output); /* a no-op after commit, or of a zeroed struct */

/* ---- what is said at the end (command_end.c) ------------------------------------------------- */

/* Says the thread's error message and returns CLI_DATA. */
int cli_fail(void);

/* `code`, or CLI_DATA when stdout could not be written (full disk), which it then says. */
int cli_end(int code);

#endif
