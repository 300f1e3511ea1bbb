/* command_options.c - reads a command line by a subcommand's table of options; see command.h. */
#include "command.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* The option that "-o", "--name" or "--name=value" names; *value_out is the text after "=", or NULL. */
static const cli_option *find_option(const cli_command *self, const char *word, const char **value_out) {
    const char *equals = strchr(word, '=');
    const size_t length = equals ? (size_t)(equals - word) : strlen(word);
    *value_out = equals ? equals + 1 : NULL;
    for (size_t i = 0; length == 2 && i < self->n_options; i++)
        if (word[0] == '-' && self->options[i].letter && self->options[i].letter == word[1])
            return &self->options[i];
    if (strncmp(word, "--", 2) != 0) return NULL;
    for (size_t i = 0; i < self->n_options; i++) {
        const char *name = self->options[i].name;
        if (length == strlen(name) + 2 && memcmp(word + 2, name, length - 2) == 0) return &self->options[i];
    }
    return NULL;
}

static int not_a_number(const cli_command *self, const cli_option *o, const char *text) {
    return cli_usage_error(self, "--%s: expected a number, found %s", o->name, text);
}

static int read_number(const cli_command *self, const cli_option *o, const char *text, uint64_t *value_out) {
    char *end = NULL;
    const bool negative = text[0] == '-';
    const char *digits = text + negative;
    errno = 0;
    const unsigned long long value = strtoull(digits, &end, 10);
    const bool too_large = errno == ERANGE;
    if (digits[0] < '0' || digits[0] > '9' || *end != '\0') return not_a_number(self, o, text);
    if (negative || too_large || value < o->min || value > o->max)
        return cli_usage_error(self, "--%s: expected %" PRIu64 "..%" PRIu64 ", found %s", o->name, o->min,
                               o->max, text);
    *value_out = value;
    return CLI_OK;
}

static int read_decimal(const cli_command *self, const cli_option *o, const char *text, double *value_out) {
    char *end = NULL;
    const bool negative = text[0] == '-';
    const char *digits = text + negative;
    const bool begins_well = (digits[0] >= '0' && digits[0] <= '9') || digits[0] == '.';
    const double value = strtod(digits, &end);
    if (!begins_well || end == digits || *end != '\0') return not_a_number(self, o, text);
    if (negative || value > o->decimal_max || (o->above_zero && value == 0))
        return cli_usage_error(self, "--%s: expected a number %s 0 and at most %g, found %s", o->name,
                               o->above_zero ? "above" : "of at least", o->decimal_max, text);
    *value_out = value;
    return CLI_OK;
}

/* "-" is standard input or output. A directory may be called that. */
static const char *path_of(cli_type type, const char *word) {
    if (strcmp(word, "-") != 0 || type == CLI_FOLDER) return word;
    return type == CLI_OUTPUT ? "/dev/stdout" : "/dev/stdin";
}

static int read_text(const cli_command *self, const cli_option *o, const char *text, const char **value_out) {
    if (*text == '\0')
        return cli_usage_error(self, "--%s: expected %s, found none", o->name,
                               o->type == CLI_TEXT ? "text" : "a path");
    *value_out = o->type == CLI_TEXT ? text : path_of(o->type, text);
    return CLI_OK;
}

static int append_text(const cli_command *self, const cli_option *o, const char *text, cli_list *list) {
    if (list->n == CLI_MAX_LIST)
        return cli_usage_error(self, "--%s: expected it at most %d times", o->name, CLI_MAX_LIST);
    const int code = read_text(self, o, text, &list->items[list->n]);
    if (code == CLI_OK) list->n++;
    return code;
}

/* Reads `text` as the option's value, into the options struct. CLI_OK or the exit code. */
static int set_value(const cli_command *self, const cli_option *o, const char *text, void *options) {
    void *at = (char *)options + o->offset;
    switch (o->type) {
    case CLI_FLAG:
        *(bool *)at = true;
        return CLI_OK;
    case CLI_TEXT:
    case CLI_INPUT:
    case CLI_OUTPUT:
    case CLI_FOLDER:
        return read_text(self, o, text, at);
    case CLI_INPUTS:
        return append_text(self, o, text, at);
    case CLI_NUMBER:
        return read_number(self, o, text, at);
    default:
        return read_decimal(self, o, text, at);
    }
}

/* Takes one option with its argument; *i is the last word used. CLI_OK or the exit code. */
static int take_option(const cli_command *self, int argc, char **argv, int *i, void *options,
                       uint64_t *is_set) {
    const char *value = NULL, *word = argv[*i];
    const cli_option *o = find_option(self, word, &value);
    if (!o) return cli_usage_error(self, "no option %s", word);
    if (o->type == CLI_FLAG && value) return cli_usage_error(self, "--%s takes no argument", o->name);
    if (o->type != CLI_FLAG && !value) {
        if (*i + 1 == argc) return cli_usage_error(self, "--%s needs an argument", o->name);
        value = argv[++*i];
    }
    *is_set |= (uint64_t)1 << (o - self->options);
    return set_value(self, o, value, options);
}

const cli_operand *cli_operands_of(const cli_command *self, size_t *n_out) {
    static const cli_operand one_dump = {"DUMP", CLI_INPUT};
    *n_out = self->operands ? self->n_operands : 1;
    return self->operands ? self->operands : &one_dump;
}

/* Takes a word that belongs to no option. CLI_OK or the exit code. */
static int take_operand(const cli_command *self, const char *word, cli_arguments *found) {
    size_t n = 0;
    const cli_operand *operands = cli_operands_of(self, &n), *last = &operands[n - 1];
    cli_list *list = &found->operands;
    const cli_operand *o = list->n < n ? &operands[list->n] : last;
    if (list->n >= n && last->type != CLI_INPUTS)
        return cli_usage_error(self, "one %s at a time, found %s and %s", last->name, list->items[n - 1],
                               word);
    if (list->n == CLI_MAX_LIST)
        return cli_usage_error(self, "%s: expected at most %d paths on the command line", o->name,
                               CLI_MAX_LIST);
    if (*word == '\0') return cli_usage_error(self, "%s: expected a path, found none", o->name);
    const bool is_read = o->type == CLI_INPUT || o->type == CLI_INPUTS;
    word = path_of(o->type, word);
    if (is_read && !found->dump) found->dump = word;
    list->items[list->n++] = word;
    return CLI_OK;
}

static int check_complete(const cli_command *self, const cli_arguments *arguments) {
    size_t n = 0;
    const cli_operand *operands = cli_operands_of(self, &n);
    if (arguments->operands.n < n && !self->dump_optional)
        return cli_usage_error(self, "%s is needed", operands[arguments->operands.n].name);
    for (size_t i = 0; i < self->n_options; i++)
        if (self->options[i].required && !(arguments->is_set >> i & 1))
            return cli_usage_error(self, "--%s is needed", self->options[i].name);
    return cli_check_paths(self, arguments);
}

int cli_parse(const cli_command *self, int argc, char **argv, void *options, cli_arguments *arguments_out) {
    cli_arguments found = {.options = options};
    bool only_arguments = false; /* after "--" */
    for (int i = 1; i < argc; i++) {
        if (!only_arguments && strcmp(argv[i], "--") == 0) {
            only_arguments = true;
        } else {
            const bool is_option = !only_arguments && argv[i][0] == '-' && argv[i][1] != '\0';
            const int code = is_option ? take_option(self, argc, argv, &i, options, &found.is_set)
                                       : take_operand(self, argv[i], &found);
            if (code != CLI_OK) return code;
        }
    }
    *arguments_out = found;
    return check_complete(self, &found);
}

bool cli_is_set(const cli_command *self, const cli_arguments *arguments, size_t offset) {
    for (size_t i = 0; i < self->n_options; i++)
        if (self->options[i].offset == offset) return (arguments->is_set >> i & 1) != 0;
    return false;
}
