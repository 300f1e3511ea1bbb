/* cli.c - options, errors and JSON text for the subcommands; see cli.h. */
#include "cli.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

int cli_usage_error(const cli_command *self, const char *format, ...) {
    va_list args;
    fprintf(stderr, "waybill %s: ", self->name);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\nusage: %.*s\n", (int)strcspn(self->usage, "\n"), self->usage);
    return CLI_USAGE;
}

/* The option that "--name" or "--name=value" names; *value_out is the text after "=", or NULL. */
static const cli_option *find_option(const cli_option *options, const char *arg, const char **value_out) {
    const char *equals = strchr(arg, '=');
    size_t length = equals ? (size_t)(equals - arg) : strlen(arg);
    *value_out = equals ? equals + 1 : NULL;
    for (; options->name; options++)
        if (length == strlen(options->name) + 2 && memcmp(arg + 2, options->name, length - 2) == 0)
            return options;
    return NULL;
}

static bool read_number(const char *text, uint64_t *out) {
    char *end = NULL;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || text[0] < '0' || text[0] > '9') return false;
    *out = value;
    return true;
}

static bool read_decimal(const char *text, double *out) {
    char *end = NULL;
    if ((text[0] < '0' || text[0] > '9') && text[0] != '.') return false;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !isfinite(value)) return false;
    *out = value;
    return true;
}

/* Takes one option with its argument; *i is the last argument used. CLI_OK or the exit code. */
static int take_option(const cli_command *self, int argc, char **argv, const cli_option *options, int *i) {
    const char *value = NULL, *arg = argv[*i];
    const cli_option *o = find_option(options, arg, &value);
    if (!o) return cli_usage_error(self, "no option %s", arg);
    if (o->flag) {
        if (value) return cli_usage_error(self, "--%s takes no argument", o->name);
        *o->flag = true;
        return CLI_OK;
    }
    if (!value && *i + 1 < argc) value = argv[++*i];
    if (!value) return cli_usage_error(self, "--%s needs an argument", o->name);
    if (o->text) *o->text = value;
    if ((o->number && !read_number(value, o->number)) || (o->decimal && !read_decimal(value, o->decimal)))
        return cli_usage_error(self, "--%s: expected a number, found %s", o->name, value);
    return CLI_OK;
}

bool cli_parse_optional(const cli_command *self, int argc, char **argv, const cli_option *options,
                        const char **dump_out, int *exit_code) {
    bool only_arguments = false; /* after "--" */
    *dump_out = NULL;
    *exit_code = CLI_OK;
    for (int i = 1; i < argc; i++) {
        if (!only_arguments && strcmp(argv[i], "--") == 0) {
            only_arguments = true;
        } else if (!only_arguments && (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)) {
            printf("usage: %s", self->usage);
            return false;
        } else if (!only_arguments && argv[i][0] == '-') {
            *exit_code = take_option(self, argc, argv, options, &i);
            if (*exit_code != CLI_OK) return false;
        } else if (*dump_out) {
            *exit_code = cli_usage_error(self, "one DUMP at a time, found %s and %s", *dump_out, argv[i]);
            return false;
        } else {
            *dump_out = argv[i];
        }
    }
    return true;
}

bool cli_parse(const cli_command *self, int argc, char **argv, const cli_option *options,
               const char **dump_out, int *exit_code) {
    if (!cli_parse_optional(self, argc, argv, options, dump_out, exit_code)) return false;
    if (*dump_out) return true;
    *exit_code = cli_usage_error(self, "a DUMP is needed");
    return false;
}

int cli_fail(void) {
    fflush(stdout); /* what was found before the fault, before it */
    fprintf(stderr, "waybill: %s\n", wb_error_message());
    return CLI_DATA;
}

int cli_end(int code) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return code;
    fprintf(stderr, "waybill: the output cannot be written: %s\n", strerror(errno));
    return CLI_DATA;
}

void cli_json_text(FILE *out, const char *text) {
    fputc('"', out);
    for (const unsigned char *s = (const unsigned char *)text; *s; s++) {
        if (*s == '"' || *s == '\\')
            fprintf(out, "\\%c", *s);
        else if (*s < 0x20 || *s == 0x7f)
            fprintf(out, "\\u%04x", *s);
        else
            fputc(*s, out);
    }
    fputc('"', out);
}

void cli_json_number(FILE *out, double value) {
    if (isfinite(value))
        fprintf(out, "%.9g", value);
    else
        fputs("null", out);
}
