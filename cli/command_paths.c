/* command_paths.c - what a subcommand writes is none of what it reads, no two outputs are one file and no two
 * inputs one pipe; see command.h. Files are compared by what they are, not by name: links are followed. An
 * output can be written, which is found before the work and not after it. Refuses: whether a file can be read
 * (whoever opens it says that). */
#include "command.h"
#include "wb_file.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A path of the command line. */
typedef struct cli_path {
    const char *dashes, *name; /* "--" and its option, or "" and its operand */
    const char *path;
} cli_path;

/* One path an option, the list of one option, and the operands. */
enum { MAX_INPUTS = CLI_MAX_OPTIONS + 2 * CLI_MAX_LIST, MAX_OUTPUTS = CLI_MAX_OPTIONS + 8 };

typedef struct cli_paths {
    size_t n_inputs, n_outputs;
    cli_path inputs[MAX_INPUTS], outputs[MAX_OUTPUTS];
} cli_paths;

static void add_path(cli_paths *paths, cli_type type, cli_path path) {
    if ((type == CLI_INPUT || type == CLI_INPUTS) && paths->n_inputs < MAX_INPUTS)
        paths->inputs[paths->n_inputs++] = path;
    if (type == CLI_OUTPUT && paths->n_outputs < MAX_OUTPUTS) paths->outputs[paths->n_outputs++] = path;
}

static void add_operands(cli_paths *paths, const cli_command *self, const cli_list *words) {
    size_t n = 0;
    const cli_operand *operands = cli_operands_of(self, &n);
    for (uint32_t i = 0; i < words->n; i++) {
        const cli_operand *o = &operands[i < n ? i : n - 1];
        add_path(paths, o->type, (cli_path){"", o->name, words->items[i]});
    }
}

static cli_paths paths_of(const cli_command *self, const cli_arguments *arguments) {
    cli_paths paths = {0};
    add_operands(&paths, self, &arguments->operands);
    for (size_t i = 0; i < self->n_options; i++) {
        const cli_option *o = &self->options[i];
        const void *at = (const char *)arguments->options + o->offset;
        if (!(arguments->is_set >> i & 1)) continue;
        if (o->type == CLI_INPUT || o->type == CLI_OUTPUT)
            add_path(&paths, o->type, (cli_path){"--", o->name, *(const char *const *)at});
        const cli_list *list = o->type == CLI_INPUTS ? at : NULL;
        for (uint32_t k = 0; list && k < list->n; k++)
            add_path(&paths, o->type, (cli_path){"--", o->name, list->items[k]});
    }
    return paths;
}

static bool same(const struct stat *a, const struct stat *b) {
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* Whether a directory that is read as a dump has the file as one of its parts. */
static bool is_part(const char *folder, const struct stat *file) {
    DIR *directory = opendir(folder);
    bool found = false;
    if (!directory) return false;
    for (struct dirent *entry; !found && (entry = readdir(directory));) {
        const size_t length = strlen(entry->d_name);
        struct stat part;
        if (length <= 4 || strcmp(entry->d_name + length - 4, ".wbr") != 0) continue;
        found = fstatat(dirfd(directory), entry->d_name, &part, 0) == 0 && same(&part, file);
    }
    closedir(directory);
    return found;
}

/* The input that the file is, or is part of; NULL when there is none. */
static const cli_path *find_input(const cli_paths *paths, const struct stat *file) {
    if (!S_ISREG(file->st_mode)) return NULL;
    for (size_t i = 0; i < paths->n_inputs; i++) {
        struct stat input;
        if (stat(paths->inputs[i].path, &input) != 0) continue;
        if (same(&input, file)) return &paths->inputs[i];
        if (S_ISDIR(input.st_mode) && is_part(paths->inputs[i].path, file)) return &paths->inputs[i];
    }
    return NULL;
}

/* `waybill cat run.wbr >>run.wbr` */
static int check_stdout(const cli_command *self, const cli_paths *paths) {
    struct stat out;
    const cli_path *input = fstat(STDOUT_FILENO, &out) == 0 ? find_input(paths, &out) : NULL;
    if (!input) return CLI_OK;
    return cli_usage_error(self, "expected a file that is not read, found %s as standard output",
                           input->path);
}

static int check_output(const cli_command *self, const cli_paths *paths, const cli_path *output) {
    struct stat file, out;
    bool is_descriptor = false;
    if (stat(output->path, &file) != 0) return CLI_OK;
    const cli_path *input = find_input(paths, &file);
    if (input)
        return cli_usage_error(self,
                               "%s%s: expected a file that is not read, found %s, which is or is part of %s",
                               output->dashes, output->name, output->path, input->path);
    if (wb_is_descriptor(output->path, &is_descriptor) != WB_OK) return cli_fail();
    if (!is_descriptor && S_ISREG(file.st_mode) && fstat(STDOUT_FILENO, &out) == 0 && same(&file, &out))
        return cli_usage_error(self, "%s%s: expected a file of its own, found standard output's %s",
                               output->dashes, output->name, output->path);
    return CLI_OK;
}

static int check_pair(const cli_command *self, const cli_path *a, const cli_path *b) {
    bool is_same = false, is_descriptor = false;
    if (wb_same_file(a->path, b->path, &is_same) != WB_OK ||
        wb_is_descriptor(b->path, &is_descriptor) != WB_OK)
        return cli_fail();
    if (!is_same || is_descriptor) return CLI_OK;
    return cli_usage_error(self, "%s%s: expected a file of its own, found %s, which is %s%s's", b->dashes,
                           b->name, b->path, a->dashes, a->name);
}

/* `cat run.wbr | waybill diff - -`: the second one would find nothing. A file as standard input is read from
 * its beginning each time. */
static int check_read_once(const cli_command *self, const cli_path *a, const cli_path *b) {
    struct stat first, second;
    if (stat(a->path, &first) != 0 || stat(b->path, &second) != 0 || !same(&first, &second)) return CLI_OK;
    if (!S_ISFIFO(first.st_mode) && !S_ISSOCK(first.st_mode)) return CLI_OK;
    return cli_usage_error(self, "%s%s: expected another input than %s%s, found one pipe as both", b->dashes,
                           b->name, a->dashes, a->name);
}

/* A pipe is not opened for a look: its reader would take the close for the end of the data. */
static int check_writable(const cli_path *output) {
    struct stat file;
    wb_new_file probe;
    wb_status status = WB_OK;
    if (stat(output->path, &file) == 0 && (S_ISFIFO(file.st_mode) || S_ISCHR(file.st_mode))) {
        if (access(output->path, W_OK) != 0)
            status = wb_fail(WB_IO, "%s: cannot be written: %s", output->path, strerror(errno));
    } else {
        status = wb_new_file_open(output->path, &probe);
        if (status == WB_OK) wb_new_file_discard(&probe);
    }
    if (status == WB_OK) return CLI_OK;
    wb_fail_context(status, "%s%s", output->dashes, output->name);
    return cli_fail();
}

int cli_check_paths(const cli_command *self, const cli_arguments *arguments) {
    const cli_paths paths = paths_of(self, arguments);
    int code = check_stdout(self, &paths);
    for (size_t i = 0; i < paths.n_inputs; i++)
        for (size_t k = 0; code == CLI_OK && k < i; k++)
            code = check_read_once(self, &paths.inputs[k], &paths.inputs[i]);
    for (size_t i = 0; code == CLI_OK && i < paths.n_outputs; i++) {
        code = check_output(self, &paths, &paths.outputs[i]);
        for (size_t k = 0; code == CLI_OK && k < i; k++)
            code = check_pair(self, &paths.outputs[k], &paths.outputs[i]);
    }
    for (size_t i = 0; code == CLI_OK && i < paths.n_outputs; i++) code = check_writable(&paths.outputs[i]);
    return code;
}
